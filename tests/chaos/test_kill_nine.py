"""kill -9 at random moments: no document is lost, and none is paid twice but those in flight at a kill."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
from jobs import KILLS, LEDGERS, SEED, SEEDS, Chaos, Job

from airflow_llm_provider.testing.airflow import TaskProcess
from airflow_llm_provider.testing.processes import is_alive, send_signal


SHORTEST_RUN_S = 60.0
TIMEOUT_S = 900.0


@dataclass(frozen=True, kw_only=True)
class Kill:
    """When and whom to kill.

    settled: how many documents must be settled: 0 is right after the task process came up, all of them
        while the output is written; `delay_s` is waited then.
    victims: of the task's two processes, "supervisor" and "runner".
    """

    settled: int
    delay_s: float
    victims: tuple[str, ...]


def plan(draws: random.Random, documents: int) -> list[Kill]:
    """Draw one kill at the start, before the first call, two at the end, the others in between."""
    middle = sorted(draws.randrange(1, documents - 20) for _ in range(max(KILLS - 3, 0)))
    moments = [
        (0, draws.uniform(0, 2.5)),
        *((settled, draws.uniform(0, 1.0)) for settled in middle),
        (documents, draws.uniform(0, 0.01)),
        (documents, draws.uniform(0, 0.2)),
    ]
    whom = [("runner",), ("supervisor", "runner"), ("supervisor",)]
    # Mostly the process that makes the calls; at the end only that one, whose end is all that is left.
    return [
        Kill(
            settled=settled,
            delay_s=delay,
            victims=("runner",) if settled == documents else draws.choices(whom, [3, 2, 1])[0],
        )
        for settled, delay in moments[:KILLS]
    ]


@pytest.mark.parametrize("seed", range(SEED, SEED + SEEDS), ids=lambda seed: f"seed-{seed}")
@pytest.mark.parametrize("ledger", LEDGERS)
def test_each_document_has_one_row_and_only_calls_in_flight_are_paid_again(
    chaos: Chaos, result: dict[str, Any], ledger: str, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    job = chaos.jobs[f"{ledger}_{seed}"]
    kills = plan(random.Random(f"{seed} {ledger}"), job.documents)
    run = chaos.airflow.trigger(job.name)
    started = time.monotonic()
    lost: dict[str, int] = {}
    done = 0
    for kill in kills:
        if (task := wait_for(chaos, job, run, kill)) is None:
            break  # it was too quick for us at its end
        in_flight = strike(job, task, kill, counted=set(lost))
        done += 1
        lost |= in_flight
        with capsys.disabled():
            landed = "landed" if job.output.exists() else "not landed"
            print(
                f"\n{job.name}: {time.monotonic() - started:5.1f} s, {job.settled()} settled, {landed}: killed "
                f"{' and '.join(kill.victims)} with {len(in_flight)} in flight",
                end="",
            )
    assert chaos.airflow.wait(job.name, run, TIMEOUT_S) == "success"
    seconds = time.monotonic() - started
    settle(job)

    books = job.require_complete()
    extra = job.server.invoice.paid - job.documents
    tries = chaos.airflow.task_instances(job.name, run)[0]["try_number"]
    result |= {"kills": done, "duplicates": extra, "in_flight": len(lost), "seconds": seconds}
    with capsys.disabled():
        print(f"\n{job.name}: {result}, {tries} tries, {books}")
    assert seconds >= SHORTEST_RUN_S
    assert extra <= len(lost)
    assert tries <= done + 1  # none that we did not cause; the last kill may come after all was reported
    assert done >= KILLS - 1


def wait_for(chaos: Chaos, job: Job, run: str, kill: Kill) -> TaskProcess | None:
    """Wait for a kill's moment; return the task's processes, or None when the run has ended before."""
    task = None
    for _ in looks(lambda: task is not None):
        task = next(iter(chaos.airflow.task_pids()), None)
        if task is None and chaos.airflow.get(f"dags/{job.name}/dagRuns/{run}")["state"] == "success":
            return None
    assert task is not None
    if "supervisor" in kill.victims:
        # Killed before it has told the API server that the task runs, LocalExecutor leaves it queued for ever.
        for _ in looks(lambda: is_reported(chaos, job, run) or not is_running(task)):
            pass
    if kill.settled < job.documents:
        for _ in looks(lambda: job.settled() >= kill.settled or not is_running(task)):
            pass
    else:
        for _ in looks(lambda: job.settled() == job.documents or not is_running(task)):
            pass
        before = drafts(job)
        deadline = time.monotonic() + 20.0  # reading 500 answers from the ledger takes less than one
        while not drafts(job) - before and time.monotonic() < deadline:
            time.sleep(0.0005)
    time.sleep(kill.delay_s)
    return task if is_running(task) else None


def strike(job: Job, task: TaskProcess, kill: Kill, counted: set[str]) -> dict[str, int]:
    """Stop the victims, write down what the ledger holds as in flight, and kill them.

    Stopped first: between counting and killing they would settle some calls and send others.
    """
    pids = [getattr(task, victim) for victim in kill.victims]
    for pid in pids:
        send_signal(pid, signal.SIGSTOP)
    in_flight = {id: number for id, number in job.open_attempts().items() if id not in counted}
    for pid in pids:
        send_signal(pid, signal.SIGKILL)
    for _ in looks(lambda: not any(psutil.pid_exists(pid) and is_alive(psutil.Process(pid)) for pid in pids)):
        pass
    return in_flight


def is_reported(chaos: Chaos, job: Job, run: str) -> bool:
    return bool(chaos.airflow.task_instances(job.name, run)[0]["state"] == "running")


def settle(job: Job) -> None:
    """Wait until nothing is in flight: a runner without supervisor may still be at work."""
    for _ in looks(lambda: job.server.in_flight == 0):
        pass


def drafts(job: Job) -> set[str]:
    return {entry.name for entry in os.scandir(job.output.parent) if entry.name.endswith(".tmp")}


def is_running(task: TaskProcess) -> bool:
    return psutil.pid_exists(task.runner) and is_alive(psutil.Process(task.runner))


def looks(done: Callable[[], Any], *, every_s: float = 0.05) -> Iterator[None]:
    """Yield before every look at `done` until it says so; TimeoutError when it never does."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        yield
        if done():
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {TIMEOUT_S:.0f} s")
        time.sleep(every_s)
