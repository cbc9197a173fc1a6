"""A rejection holds in every shape of a DAG, in a real Airflow, also when tasks are cleared."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from airflow_llm_provider.testing.processes import wait_until
from tests.support.airflow import AirflowUnderTest

pytestmark = pytest.mark.system

SHAPES = ("plain", "group", "mapped_sensor", "mapped_group", "nested")
CASES = [
    f"{shape}_{on_reject}_{how}"
    for shape, on_reject, how in itertools.product(SHAPES, ("skip", "fail"), ("answer", "timeout"))
]
RUN_AFTER_A_FAILURE = {"all_done", "one_done", "all_failed", "one_failed", "none_skipped"}
"""Trigger rules that ask to run after the sensor has failed; docs/how-to/approval.md says so."""
NEVER_AFTER_A_SUCCESS = {"all_failed", "one_failed", "all_skipped"}
PRELOAD = """
import sys
if "scheduler" in sys.argv:
    import airflow_llm_provider.approvals.review, airflow_llm_provider.sensors.approval
"""


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowUnderTest]:
    folder = tmp_path_factory.mktemp("rejections")
    (folder / "dags").mkdir()
    shutil.copy(Path(__file__).with_name("rejections_dag.py"), folder / "dags" / "rejections_dag.py")
    (folder / "home" / "config").mkdir(parents=True)
    (folder / "home" / "config" / "airflow_local_settings.py").write_text(PRELOAD)
    connection = {"conn_type": "claude", "password": "sk-unused", "host": "http://127.0.0.1:9"}
    with AirflowUnderTest(
        folder / "home", folder / "dags", parallelism=6, connections={"claude_default": connection}
    ) as airflow:
        yield airflow


class Case:
    """A run of one DAG: the first item is rejected, the second, where there is one, approved."""

    def __init__(self, airflow: AirflowUnderTest, dag_id: str, run_id: str) -> None:
        self.airflow, self.dag_id, self.run_id = airflow, dag_id, run_id
        self.is_mapped = not dag_id.startswith(("plain", "group"))
        self.on_reject, self.how = dag_id.split("_")[-2:]

    def task_instances(self) -> list[dict[str, Any]]:
        for _ in range(5):
            with suppress(httpx2.TransportError):  # the API server may be busy
                return self.airflow.task_instances(self.dag_id, self.run_id)
        raise TimeoutError("The API server does not answer.")

    def states(self) -> dict[tuple[str, int], str | None]:
        tis = self.task_instances()
        return {(ti["task_id"].rpartition(".")[2], ti["map_index"]): ti["state"] for ti in tis}

    def ids(self) -> list[str]:
        return sorted({ti["task_id"] for ti in self.task_instances()})

    def decide(self) -> None:
        approval = next(task_id for task_id in self.ids() if task_id.endswith("approval"))
        indexes = [0, 1] if self.is_mapped else [-1]
        waits = {index: "Approve" if index == 1 else "Reject" for index in indexes}
        if self.how == "timeout":  # the first is not answered
            waits = {index: choice for index, choice in waits.items() if choice == "Approve"}
        for index, choice in waits.items():

            def is_open(index: int = index) -> bool:
                return self.states().get(("approval", index)) == "awaiting_input"

            assert wait_until(is_open, 300), self.states()
            time.sleep(1)
            self.airflow.answer(self.dag_id, self.run_id, approval, choice, index)
        self.airflow.wait(self.dag_id, self.run_id, timeout_s=600)

    def require_held(self) -> None:
        rejected, approved = (0, 1) if self.is_mapped else (-1, None)
        states = self.states()
        expected = "success" if self.on_reject == "skip" else "failed"
        assert states["approval", rejected] == expected, states
        rules = {task_id.removeprefix("pay_") for task_id, _ in states if task_id.startswith("pay_")}
        assert len(rules) == 11
        fails_together = self.on_reject == "fail" and self.dag_id.startswith("mapped_sensor")
        if self.dag_id.startswith("mapped_sensor"):
            # Airflow fails what is mapped over several tasks when its rule does not wait for all of them.
            unmappable = rules & {"one_done", "one_success"}
            assert {states.get((f"pay_{rule}", -1), "") for rule in unmappable} <= {
                "upstream_failed",
                "",
                None,
            }
            rules -= unmappable
        for rule in rules:
            own = states.get((f"pay_{rule}", rejected), states.get((f"pay_{rule}", -1)))
            if self.on_reject == "skip":
                assert own == "skipped", (rule, states)
            elif rule not in RUN_AFTER_A_FAILURE:
                # A task that is mapped over the sensors waits for all of them, and one_success for one.
                may_run = fails_together and rule in ("one_success", "all_done_min_one_success")
                assert own in ("upstream_failed", "skipped") or may_run, (rule, states)
            if approved is not None and not fails_together:
                other = states.get(("pay_" + rule, approved), states.get(("pay_" + rule, -1)))
                if rule in NEVER_AFTER_A_SUCCESS:
                    assert other in ("skipped", "upstream_failed"), (rule, states)
                else:
                    assert other == "success", (rule, states)


@pytest.mark.parametrize("case", CASES)
def test_a_rejection_holds(airflow: AirflowUnderTest, case: str) -> None:
    one = Case(airflow, case, airflow.trigger(case))
    one.decide()
    one.require_held()

    airflow.clear(case, one.run_id, [task_id for task_id in one.ids() if "pay_" in task_id])
    airflow.wait(case, one.run_id, timeout_s=600)
    one.require_held()

    airflow.clear(case, one.run_id)
    one.decide()
    one.require_held()
