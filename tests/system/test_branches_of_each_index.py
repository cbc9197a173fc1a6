"""Only the branch that was chosen runs, at each map index and in every shape of a DAG, also when tasks are cleared."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from airflow_llm_provider.testing.processes import wait_until
from airflow_llm_provider.testing.question import Question
from airflow_llm_provider.testing.standin import StandIn
from tests.support.airflow import AirflowUnderTest
from tests.support.books import balance

pytestmark = pytest.mark.system

SHAPES = ("plain", "group", "mapped_branch", "mapped_group", "nested")
NEVER_AFTER_A_SUCCESS = {"all_failed", "one_failed", "all_skipped"}
# Airflow fails what is mapped over several tasks when its rule does not wait for all of them.
UNMAPPABLE = {"one_done", "one_success"}
PRELOAD = """
import sys
if "scheduler" in sys.argv:
    import anthropic, aiohttp, httpx2, airflow_llm_provider.hooks.question, airflow_llm_provider.ledger.ledger
"""


def chosen(question: Question) -> dict[str, Any]:
    """Choose every branch of the side that the input names."""
    assert question.schema is not None
    ids = re.findall(r"^- (\S+):", question.text, re.MULTILINE)
    side = "right" if re.search(r"\bright\b(?!_)", question.text.partition("Which side?")[0]) else "left"
    taken = [name for name in ids if name.rpartition(".")[2].startswith(side)]
    assert len(taken) == 11, question.text
    return {"reason": "It says so.", "choice": taken, "confidence": 0.9}


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowUnderTest]:
    folder = tmp_path_factory.mktemp("indexes")
    (folder / "dags").mkdir()
    shutil.copy(Path(__file__).with_name("branch_index_dags.py"), folder / "dags")
    (folder / "home" / "config").mkdir(parents=True)
    (folder / "home" / "config" / "airflow_local_settings.py").write_text(PRELOAD)
    with StandIn(validate=True) as server:
        server.reply(call=chosen)
        connection = {"conn_type": "claude", "password": "sk-branches", "host": server.url}
        with AirflowUnderTest(
            folder / "home", folder / "dags", parallelism=6, connections={"claude_default": connection}
        ) as airflow:
            yield airflow
            balance(f"sqlite:///{folder}/home/llm_ledger.db", server.invoice)


class Run:
    """A run of one DAG: the first index, or the task without one, takes the left side, the second the right one."""

    def __init__(self, airflow: AirflowUnderTest, shape: str) -> None:
        self.airflow, self.shape = airflow, shape
        self.run_id = airflow.trigger(shape)
        self.taken = {-1: "left"} if shape in ("plain", "group") else {0: "left", 1: "right"}

    def instances(self) -> list[dict[str, Any]]:
        for _ in range(5):
            with suppress(httpx2.TransportError):  # the API server may be busy
                return self.airflow.task_instances(self.shape, self.run_id)
        raise TimeoutError("The API server does not answer.")

    def ids(self, start: str) -> list[str]:
        names = {ti["task_id"] for ti in self.instances()}
        return sorted(name for name in names if name.rpartition(".")[2].startswith(start))

    def clear(self, task_ids: list[str] | None = None) -> None:
        before = {ti["id"] for ti in self.instances()}
        self.airflow.clear(self.shape, self.run_id, task_ids)
        # Each cleared instance gets another id.
        assert wait_until(lambda: {ti["id"] for ti in self.instances()} != before, 60)

    def require_only_the_chosen(self) -> None:
        self.airflow.wait(self.shape, self.run_id, timeout_s=600)
        states = {(ti["task_id"].rpartition(".")[2], ti["map_index"]): ti["state"] for ti in self.instances()}
        for index, side in self.taken.items():
            assert states["route", index] == "success", states
            for other in ("left", "right"):
                rules = {name.removeprefix(f"{other}_") for name, _ in states if name.startswith(f"{other}_")}
                assert len(rules) == 11
                for rule in rules - (UNMAPPABLE if self.shape == "mapped_branch" else set()):
                    state = states.get((f"{other}_{rule}", index), states.get((f"{other}_{rule}", -1)))
                    if other == side and rule not in NEVER_AFTER_A_SUCCESS:
                        assert state == "success", (other, rule, index, states)
                    elif other == side:
                        assert state in ("skipped", "upstream_failed"), (other, rule, index, states)
                    else:
                        assert state == "skipped", (other, rule, index, states)


@pytest.mark.parametrize("shape", SHAPES)
def test_only_the_chosen_branch_of_each_index_runs(airflow: AirflowUnderTest, shape: str) -> None:
    run = Run(airflow, shape)
    run.require_only_the_chosen()

    run.clear(run.ids("left") + run.ids("right"))
    run.require_only_the_chosen()

    run.clear(run.ids("right"))  # of what was skipped at the first index alone
    run.require_only_the_chosen()

    run.clear()
    run.require_only_the_chosen()
