"""kill -9 at random moments: no document is lost, and none is paid twice but those in flight at a kill."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
from jobs import CASES, KILLS, Chaos, Job, runs

from airflow_llm_provider.testing.processes import is_alive, send_signal, wait_until
from tests.support.airflow import TaskProcess

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


@pytest.mark.parametrize(("ledger", "seed"), CASES, ids=[f"{ledger}-seed-{seed}" for ledger, seed in CASES])
def test_each_document_has_one_row_and_only_calls_in_flight_are_paid_again(
    chaos: Chaos, result: dict[str, Any], ledger: str, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    job = chaos.jobs[f"{ledger}_{seed}"]
    kills = plan(random.Random(f"{seed} {ledger}"), job.documents)
    run = chaos.airflow.trigger(job.name)
    started = time.monotonic()
    lost: set[str] = set()
    orphans: list[psutil.Process] = []
    done = 0
    for kill in kills:
        if (victim := wait_for(chaos, job, run, kill)) is None:
            break  # it was too quick for us at its end
        in_flight = strike(job, victim, kill, orphans) - lost
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
    look_until(lambda: job.server.in_flight == 0)  # a runner without supervisor may still be at work

    books = job.require_complete()
    extra = job.server.invoice.paid - job.documents
    tries = instance(chaos, job, run)["try_number"]
    result |= {"kills": done, "duplicates": extra, "in_flight": len(lost), "seconds": seconds}
    with capsys.disabled():
        print(f"\n{job.name}: {result}, {tries} tries, {books}")
    assert seconds >= SHORTEST_RUN_S
    assert extra <= len(lost)
    assert tries <= done + 1  # none that we did not cause; the last kill may come after all was reported
    assert done >= KILLS - 1


def wait_for(chaos: Chaos, job: Job, run: str, kill: Kill) -> TaskProcess | None:
    """Wait for a kill's moment; return the processes of the try to kill, or None when the run has ended before."""
    victim = appear(chaos, job, run)
    if victim is None:
        return None
    if "supervisor" in kill.victims:
        # Killed before it has told the API server that the task runs, LocalExecutor leaves it queued for ever.
        look_until(lambda: is_reported(chaos, job, run) or not runs(victim.runner))
    if kill.settled < job.documents:
        look_until(lambda: job.settled() >= kill.settled or not runs(victim.runner))
    else:
        before = drafts(job)
        look_until(lambda: job.settled() > job.documents - job.in_flight or not runs(victim.runner))
        # The output is written within milliseconds, so here we look without rest.
        deadline = time.monotonic() + 60.0
        while not drafts(job) - before and time.monotonic() < deadline:
            time.sleep(0.0002)
    time.sleep(kill.delay_s)
    return victim if runs(victim.runner) else None


def appear(chaos: Chaos, job: Job, run: str) -> TaskProcess | None:
    """Wait for a try's processes; None when the run has succeeded instead."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if tasks := chaos.airflow.task_pids():
            return tasks[0]
        if chaos.airflow.get(f"dags/{job.name}/dagRuns/{run}")["state"] == "success":
            return None
        time.sleep(0.05)
    raise TimeoutError(f"no try of {job.name} came up within {TIMEOUT_S:.0f} s")


def strike(job: Job, victim: TaskProcess, kill: Kill, orphans: list[psutil.Process]) -> set[str]:
    """Kill, and return the attempts that the ledger then holds as in flight.

    orphans: runners so far: one whose supervisor alone was killed works on, and dies with the next runner.
    """
    with suppress(psutil.NoSuchProcess):  # it may have ended by itself in this very moment
        orphans.append(psutil.Process(victim.runner))
    for name in kill.victims:
        send_signal(getattr(victim, name), signal.SIGKILL)
    if "runner" in kill.victims:
        for orphan in orphans:
            with suppress(psutil.NoSuchProcess):
                orphan.kill()
        look_until(lambda: not any(is_alive(orphan) for orphan in orphans))
    # Nobody is left who could open or settle an attempt: this is what the kill has caught.
    return job.open_attempts() if "runner" in kill.victims else set()


def instance(chaos: Chaos, job: Job, run: str) -> dict[str, Any]:
    return chaos.airflow.task_instances(job.name, run)[0]


def is_reported(chaos: Chaos, job: Job, run: str) -> bool:
    return bool(instance(chaos, job, run)["state"] == "running")


def drafts(job: Job) -> set[str]:
    return {entry.name for entry in os.scandir(job.output.parent) if entry.name.endswith(".tmp")}


def look_until(done: Callable[[], Any]) -> None:
    if not wait_until(done, TIMEOUT_S):
        raise TimeoutError(f"not within {TIMEOUT_S:.0f} s")
