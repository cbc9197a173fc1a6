"""What our operators cost a DAG file: at most a tenth of a CPU-second over `from airflow.sdk import DAG`."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

import pytest

import airflow_llm_provider
from airflow_llm_provider.provider_info import get_provider_info

_INFO = get_provider_info()
MODULES = {
    *(module for group in _INFO["operators"] for module in group["python-modules"]),
    *(decorator["class-name"].rpartition(".")[0] for decorator in _INFO["task-decorators"]),
}
AIRFLOW = "from airflow.sdk import DAG"
OURS = f"import {', '.join(sorted(MODULES))}"
MOST_CPU_S = 0.1
RUNS = 3

CPU = """
import resource
{first}
before = resource.getrusage(resource.RUSAGE_SELF)
{then}
after = resource.getrusage(resource.RUSAGE_SELF)
print(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
"""
# The thin layers of ours that a DAG file needs; what sends, prices, reads and keeps comes with the first call.
LIGHT = (
    *("operators", "decorators", "sensors", "hooks", "triggers.deferral", "tools", "pricing", "errors"),
    *("options", "argument_checks", "_airflow", "approvals.retries"),
)


def run(code: str) -> str:
    # As Airflow runs: byte code is written, and found again.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout.splitlines()[-1]


@pytest.mark.usefixtures("airflow_home")
def test_importing_the_operators_adds_at_most_a_tenth_of_a_cpu_second():
    code = CPU.format(first=AIRFLOW, then=OURS)
    run(code)  # byte code
    assert statistics.median(float(run(code)) for _ in range(RUNS)) <= MOST_CPU_S


@pytest.mark.usefixtures("airflow_home")
def test_importing_the_operators_imports_nothing_but_thin_layers_and_airflows_own():
    code = f"import sys; {AIRFLOW}; before = set(sys.modules); {OURS}; print(*(set(sys.modules) - before))"
    loaded = run(code).split()
    assert set(loaded) >= MODULES
    heavy = [
        name
        for name in loaded
        if not name.startswith("airflow.sdk.")
        and name.partition(".")[0] not in sys.stdlib_module_names
        and name
        not in ("airflow_llm_provider", "airflow_llm_provider.triggers", "airflow_llm_provider.approvals")
        and not name.startswith(tuple(f"airflow_llm_provider.{layer}" for layer in LIGHT))
    ]
    assert heavy == []


@pytest.mark.usefixtures("airflow_home")
def test_a_dag_file_with_our_decorator_costs_little_more_than_the_import():
    dag = f"""
from airflow.sdk import DAG, task
{OURS}
with DAG("nightly", schedule=None):
    airflow_llm_provider.operators.documents.ClaudeDocumentsOperator(
        task_id="rows", documents=[dict(id=str(n), text="x" * 100) for n in range(1000)], prompt="?", output="/o.csv"
    )
    @airflow_llm_provider.decorators.claude_documents_task(prompt="What?", output="/out/rows.jsonl")
    def read():
        return "/in"
    read()
"""
    code = CPU.format(first=AIRFLOW, then=dag)
    assert statistics.median(float(run(code)) for _ in range(RUNS)) <= 2 * MOST_CPU_S


# The front door.


@pytest.mark.parametrize("name", sorted(airflow_llm_provider.__all__))
def test_every_public_name_is_there(name):
    value = getattr(airflow_llm_provider, name)
    assert value.__module__.startswith("airflow_llm_provider.")
    assert value.__name__ == name


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'ClaudeOperatr'"):
        _ = airflow_llm_provider.ClaudeOperatr


def test_the_front_door_alone_imports_nothing():
    code = "import sys; before = set(sys.modules); import airflow_llm_provider; print(*(set(sys.modules) - before))"
    others = {name for name in run(code).split() if name.partition(".")[0] not in sys.stdlib_module_names}
    assert others == {"airflow_llm_provider"}


@pytest.mark.usefixtures("airflow_home")
def test_importing_all_public_names_adds_at_most_a_tenth_of_a_cpu_second():
    names = ", ".join(airflow_llm_provider.__all__)
    code = CPU.format(first=AIRFLOW, then=f"from airflow_llm_provider import {names}")
    run(code)  # byte code
    assert statistics.median(float(run(code)) for _ in range(RUNS)) <= MOST_CPU_S
