"""An Airflow under test: killed, restarted, measured, and steered as a person would."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection
from contextlib import suppress
from typing import Any

import psutil  # type: ignore[import-untyped]  # no stubs among our dependencies

from airflow_llm_provider.testing.airflow import COMPONENTS, ComponentFailed, LocalAirflow, TaskProcess
from airflow_llm_provider.testing.airflow_rest import RunningAirflow, quoted, run_path
from airflow_llm_provider.testing.processes import send_signal

__all__ = ["COMPONENTS", "AirflowUnderTest", "ComponentFailed", "SteeredAirflow", "TaskProcess"]

_STOP_S = 12.0


class SteeredAirflow(RunningAirflow):
    """A running Airflow in which tests do what a person does in the UI."""

    def clear(
        self, dag_id: str, run_id: str, task_ids: Collection[str] | None = None, *, downstream: bool = False
    ) -> None:
        """Clear tasks of the run, all by default, so that they run again; the run id stays."""
        body = {
            "dry_run": False,
            "dag_run_id": run_id,
            "task_ids": list(task_ids) if task_ids is not None else None,
            "only_failed": False,
            "include_downstream": downstream,
        }
        self.request("POST", f"dags/{quoted(dag_id)}/clearTaskInstances", json=body)

    def mark(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """Set a task's state by hand, "failed" or "success"; a running task is told to stop."""
        path = f"{run_path(dag_id, run_id)}/taskInstances/{quoted(task_id)}"
        self.request("PATCH", path, json={"new_state": state})

    def question(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, Any]:
        """Return what a person is asked: subject, body, options, fields and, once there is one, the answer."""
        asked: dict[str, Any] = self.get(_question_path(dag_id, run_id, task_id, map_index))
        return asked

    def answer(
        self, dag_id: str, run_id: str, task_id: str, option: str, map_index: int = -1, **fields: Any
    ) -> None:
        """Choose an option of a question that waits for a person, with the form's fields as given."""
        body = {"chosen_options": [option], "params_input": fields}
        self.request("PATCH", _question_path(dag_id, run_id, task_id, map_index), json=body)


class AirflowUnderTest(SteeredAirflow, LocalAirflow):
    """A `LocalAirflow` that tests and benchmarks can break and measure."""

    def kill(self, component: str, signum: int = signal.SIGKILL) -> None:
        """Send `signum` to the component's main process only; its children stay, as after a crash."""
        self.components[component].killed = True
        send_signal(self.components[component].pid, signum)

    def restart(self, component: str) -> None:
        """Start `component` again and wait until it is healthy; end it first if it still runs.

        After `kill` the children of the killed process live on, as after a crash.
        """
        old = self.components[component]
        if not old.has_ended():
            old.killed = True
            self.end([old], _STOP_S)
        self.start(component)
        self.wait_healthy([component])

    def pids(self) -> dict[str, int]:
        """Return the main process of every component that runs."""
        return {name: child.pid for name, child in self.components.items() if not child.has_ended()}

    def cpu_seconds(self) -> float:
        """Return the CPU seconds, user and system, of all components and what they have started.

        Ended processes count too, except orphans of a killed component. So does a process that has ended and was
        not awaited yet: a task's supervisor may take a second for that.
        """
        total = sum(child.ended_cpu_s for child in self.started if child.has_ended())
        sessions = self.sessions()
        for pid in psutil.pids():
            with suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
                if os.getsid(pid) in sessions:
                    times = psutil.Process(pid).cpu_times()
                    total += times.user + times.system + times.children_user + times.children_system
        return total


def _question_path(dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    return f"{run_path(dag_id, run_id)}/taskInstances/{quoted(task_id)}/{map_index}/hitlDetails"
