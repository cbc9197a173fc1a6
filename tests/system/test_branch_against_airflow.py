"""A branch that Claude chose leaves every task in the state that Airflow's own branch operator leaves it in."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from airflow_llm_provider.testing.processes import wait_until
from airflow_llm_provider.testing.question import Question
from airflow_llm_provider.testing.standin import StandIn
from tests.support.airflow import AirflowUnderTest
from tests.support.books import balance

pytestmark = pytest.mark.system

TESTS = Path(__file__).parents[1]
FILES = (TESTS / "airflow" / "branch_shapes.py", TESTS / "system" / "branch_dags.py")
NAMES: list[str] = re.findall(r"^def (\w+)\(choose", FILES[0].read_text(), re.MULTILINE)
WAYS = ("by_claude", "by_python")
# A worker's start in a quarter of the time: what a task imports is there when it is forked.
PRELOAD = """
import sys
if "scheduler" in sys.argv:
    import anthropic, aiohttp, httpx2, airflow_llm_provider.hooks.question, airflow_llm_provider.ledger.ledger
"""


def named(question: Question) -> dict[str, object]:
    """Answer with the choice that the prompt names."""
    found = re.search(r"Choose exactly (.*)\.$", question.text, re.MULTILINE)
    assert found, question.text
    return {"reason": "It says so.", "choice": ast.literal_eval(found[1]), "confidence": 0.9}


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowUnderTest]:
    folder = tmp_path_factory.mktemp("branches")
    (folder / "dags").mkdir()
    for file in FILES:
        shutil.copy(file, folder / "dags")
    (folder / "home" / "config").mkdir(parents=True)
    (folder / "home" / "config" / "airflow_local_settings.py").write_text(PRELOAD)
    with StandIn(validate=True) as server:
        server.reply(call=named)
        connection = {"conn_type": "claude", "password": "sk-branches", "host": server.url}
        running = AirflowUnderTest(
            folder / "home", folder / "dags", parallelism=6, connections={"claude_default": connection}
        )
        with running:
            yield running
            balance(f"sqlite:///{folder}/home/llm_ledger.db", server.invoice)


@pytest.fixture(scope="module")
def runs(airflow: AirflowUnderTest) -> dict[tuple[str, str], str]:
    """Run every shape in both ways, all at once."""
    return {(name, way): airflow.trigger(f"{name}_{way}") for name in NAMES for way in WAYS}


def states(airflow: AirflowUnderTest, dag_id: str, run_id: str) -> dict[tuple[str, int], str]:
    return {(ti["task_id"], ti["map_index"]): ti["state"] for ti in airflow.task_instances(dag_id, run_id)}


def is_skipped(airflow: AirflowUnderTest, dag_id: str, run_id: str) -> bool:
    return states(airflow, dag_id, run_id)["a", -1] == "skipped"


@pytest.mark.parametrize("name", NAMES)
def test_all_tasks_end_in_the_same_states(
    airflow: AirflowUnderTest, runs: dict[tuple[str, str], str], name: str
) -> None:
    ended = []
    for way in WAYS:
        run_id = runs[name, way]
        state = airflow.wait(f"{name}_{way}", run_id, timeout_s=300)
        ended.append((state, states(airflow, f"{name}_{way}", run_id)))
    if name != "a_mapped_group":
        assert ended[0] == ended[1]
    # In a mapped group Airflow 3.3.2 skips nothing: it looks for the choice at map index -1. We skip.
    assert "skipped" in ended[0][1].values()
    assert ("skipped" in ended[1][1].values()) is (name != "a_mapped_group")


def test_a_skipped_task_that_is_cleared_is_skipped_again(
    airflow: AirflowUnderTest, runs: dict[tuple[str, str], str]
) -> None:
    for way in WAYS:
        dag_id, run_id = f"plain_{way}", runs["plain", way]
        airflow.wait(dag_id, run_id, timeout_s=300)
        before = states(airflow, dag_id, run_id)
        airflow.clear(dag_id, run_id, ["a"])
        assert wait_until(partial(is_skipped, airflow, dag_id, run_id), within_s=60)
        airflow.wait(dag_id, run_id, timeout_s=300)
        assert states(airflow, dag_id, run_id) == before
        assert before["a", -1] == "skipped"
