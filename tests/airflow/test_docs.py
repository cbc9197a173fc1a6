"""The Python of the documentation runs."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT, blocks, section

from airflow_llm_provider.options import VALUE_OBJECTS
from airflow_llm_provider.testing import StandIn

MODULE = "unusual_prefix_0123456789_an_example"  # Airflow gives the modules of DAG files such names
RIVALS = ROOT / ".bench" / "rivals" / "bin" / "python"  # where benchmarks/ have the official providers
OFFICIAL = re.compile(r"airflow\.providers\.(common\.ai|anthropic)|@task\.llm")
PYTHON = blocks("python")
THEIRS = [block for block in PYTHON if OFFICIAL.search(block.values[0])]
WITH_SDK = [block for block in PYTHON if "import anthropic" in block.values[0]]
TESTS = [block for block in PYTHON if "def test_" in block.values[0]]
SCRIPTS = [block for block in PYTHON if block.values[0].startswith("# script\n")]
DAGS = [block for block in PYTHON if "with DAG(" in block.values[0] and block not in [*THEIRS, *WITH_SDK]]


@pytest.fixture
def data(deployment: Any) -> Path:
    """What the examples call /data."""
    for folder, text in {
        "contracts": "This agreement of March {n}, 2026 of Acme Inc. and Beta Ltd. is governed by the law of Ohio.",
        "invoices": "Invoice {n}. Consulting: $1,{n}00.00. Travel: ${n}5.00. Due on 2026-03-0{n}.",
    }.items():
        (deployment.folder / folder).mkdir()
        for n, name in enumerate(("alpha", "beta", "bravo"), start=1):
            (deployment.folder / folder / f"{name}.txt").write_text(text.format(n=n))
    return deployment.folder


@pytest.fixture
def run(deployment: Any, data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Load an example as the module of a DAG file, and run its DAG."""
    from airflow.sdk.definitions._internal.contextmanager import DagContext

    # As Airflow does when it loads a DAG file.
    monkeypatch.setattr(DagContext, "current_autoregister_module_name", MODULE)
    monkeypatch.setattr(DagContext, "autoregistered_dags", set())

    def run(code: str) -> Any:
        path = data / "an_example.py"
        path.write_text(code.replace("/data/", f"{data}/"))
        spec = importlib.util.spec_from_file_location(MODULE, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[MODULE] = made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
        ((dag, _),) = DagContext.autoregistered_dags
        return deployment.run(dag)

    yield run
    sys.modules.pop(MODULE, None)


def test_every_block_of_python_is_held_by_one_of_these_tests() -> None:
    held = [*DAGS, *WITH_SDK, *TESTS, *THEIRS, *SCRIPTS]
    assert sorted(block.id for block in held) == sorted(block.id for block in PYTHON)
    assert len(DAGS) >= 18


@pytest.mark.parametrize("code", DAGS)
def test_every_dag_of_the_documentation_runs(deployment: Any, run: Any, code: str) -> None:
    ran = run(code)
    assert ran.state == "success", ran.log
    asks = re.search(r"@task\.claude|Claude\w*Operator\(|Operator\.partial|ClaudeHook\(", code) is not None
    assert (deployment.server.invoice.paid > 0) == asks


@pytest.mark.parametrize("code", WITH_SDK)
def test_what_is_compared_with_as_a_plain_task_runs(
    run: Any, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StandIn() as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "any")
        ran = run(code)
    assert ran.state == "success", ran.log
    assert server.invoice.paid == 2


@pytest.mark.parametrize("code", SCRIPTS)
def test_every_script_of_the_documentation_runs_also_in_a_running_loop(deployment: Any, code: str) -> None:
    async def notebook() -> None:
        exec(compile(code, "notebook", "exec"), {})

    if "get_conn()" not in code:
        asyncio.run(notebook())
        assert deployment.server.invoice.paid == 1
        return
    with StandIn() as server:  # of its own: the SDK's calls are not in the ledger
        deployment.connect(host=server.url)
        asyncio.run(notebook())
    assert server.invoice.paid == 1
    assert deployment.server.invoice.paid == 0


@pytest.mark.parametrize("code", TESTS)
def test_every_test_of_the_documentation_passes(tmp_path: Path, code: str) -> None:
    (tmp_path / "test_it.py").write_text(code)
    options = ["-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def theirs(tmp_path: Path, *command: str) -> str:
    """Return what a Python that has the official providers prints."""
    if not RIVALS.exists():
        pytest.skip("the official providers are not installed: `make bench NAME=rivals` does so")
    done = subprocess.run(
        [str(RIVALS), "-W", "ignore", *command],
        env={
            "PATH": os.environ["PATH"],
            "AIRFLOW_HOME": str(tmp_path),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if missing := re.search(r"No module named '(airflow\.providers\.\w+)'", done.stderr):
        pytest.skip(f"{missing[1]} is not installed beside the other official provider")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("code", THEIRS)
def test_what_is_compared_with_loads_where_the_official_providers_are(tmp_path: Path, code: str) -> None:
    (tmp_path / "theirs.py").write_text(code)
    loads = f"import runpy; made = runpy.run_path({str(tmp_path / 'theirs.py')!r}); print('DAG' in made)"
    assert theirs(tmp_path, "-c", loads).splitlines()[-1] == "True"


NAMES = [
    line.split("|")[1:3] for line in section("explanation/comparison.md", "Names").splitlines() if "`" in line
]
WHERE = {
    "llm": "LLMOperator",
    "llm_batch": "LLMBatchOperator",
    "llm_branch": "LLMBranchOperator",
    "agent": "AgentOperator",
}


def test_the_names_to_move_to_are_there() -> None:
    from airflow_llm_provider.operators.branch import LLMBranchOperator
    from airflow_llm_provider.operators.claude import ClaudeOperator
    from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator

    known = {
        name
        for cls in (ClaudeOperator, ClaudeDocumentsOperator, LLMBranchOperator)
        for name in arguments(cls)
    }
    ours = {name for _, here in NAMES for name in re.findall(r"`(\w+)`", here)}
    assert len(ours) > 10
    assert ours <= known
    objects = {cls.__name__: cls for cls in VALUE_OBJECTS.values()}
    made = [found for _, here in NAMES for found in re.findall(r"`(\w+)\(([^`]*)\)`", here)]
    assert len(made) > 5
    for name, given in made:
        fields = {field.name for field in dataclasses.fields(objects[name])}
        assert set(re.findall(r"(\w+)=", given)) <= fields, name


def test_the_names_to_move_from_are_there(tmp_path: Path) -> None:
    code = f"""
import importlib, inspect, json
classes = [getattr(importlib.import_module("airflow.providers.common.ai.operators." + module), name)
           for module, name in {WHERE!r}.items()]
print(json.dumps([name for cls in classes for name in inspect.signature(cls.__init__).parameters]))
"""
    known = set(json.loads(theirs(tmp_path, "-c", code).splitlines()[-1]))
    there = {name for before, _ in NAMES for name in re.findall(r"`(\w+)`", before)}
    assert there - known == {"conn_id", "model"}  # of the anthropic provider


def arguments(cls: type) -> set[str]:
    return {name for base in cls.__mro__ for name in inspect.signature(base.__init__).parameters}
