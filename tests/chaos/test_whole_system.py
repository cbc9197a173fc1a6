"""Everything at once, struck anywhere: each input has one end, the books balance, and it gets there in time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from cluster import LOCAL_QUEUE, Cluster
from disks import Disk
from jobs import SEED, SEEDS
from nemesis import ACTIONS, DISKS, FAULTS, TARGETS, Nemesis, replay, schedule
from workload import ASKS, DAG_ID, Workload, connection, write_dag

from airflow_llm_provider.testing.processes import wait_until
from airflow_llm_provider.testing.standin import StandIn

LATENCY_S = 1.5
# Loss is noticed within seconds and not within minutes.
IMPATIENCE = {
    "AIRFLOW__LLM__LEASE_S": "8",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "12",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__NUM_STUCK_IN_QUEUED_RETRIES": "99",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "15",
    "AIRFLOW__CELERY__WORKER_CONCURRENCY": "4",
    "AIRFLOW__API__WORKERS": "1",
}
# A run that takes so much longer than the calm one has not survived; one that takes so long hangs.
SLOWER, HANGS_S = 3.0, 900.0
_AWAY = (httpx2.TransportError, httpx2.HTTPStatusError, OSError)


@pytest.mark.parametrize("seed", range(SEED, SEED + SEEDS), ids=lambda seed: f"seed-{seed}")
def test_whatever_is_struck_each_input_ends_once_and_the_books_balance(
    system: System, calm: tuple[float, int], result: dict[str, Any], seed: int, say: Callable[[str], None]
) -> None:
    calm_s, calls = calm
    workload, fallen = system.workload, system.cluster.fallen
    before, settled = workload.tally(), workload.settled()
    nemesis = Nemesis(
        seed=seed,
        cluster=system.cluster,
        servers=list(workload.servers.values()),
        disks=system.disks,
        progress=lambda: (workload.settled() - settled) / calls,
        in_flight=workload.in_flight,
        told=lambda line: say(f"  {line}"),
    )
    with explained(seed, say):
        try:
            run, seconds = carry_out(system, str(seed), nemesis.go_on, random.Random(seed))
        finally:
            nemesis.heal()
        assert wait_until(
            lambda: not system.cluster.tasks() and not any(s.in_flight for s in workload.servers.values()),
            60.0,
        ), "something still runs"
        books = workload.require_complete(system.cluster, str(seed), run)
        after, fallen = workload.tally(), system.cluster.fallen - fallen
        # A triggerer that ends costs its calls no try.
        ended = workload.most_in_flight_at_ends(system.cluster, run) + ASKS * (1 + fallen)
        duplicates = after.charged - before.charged - (after.answered - before.answered)
        lost = after.lost_to_faults - before.lost_to_faults
        strikes = {name: nemesis.counts[name] for name in ("kill", "stop", "restart")}
        faults = {n.removeprefix("api "): c for n, c in nemesis.counts.items() if n.startswith("api ")}
        result |= {
            "kills": strikes["kill"],
            "stops": strikes["stop"],
            "restarts": strikes["restart"],
            "others": nemesis.counts["disks failed"] + nemesis.counts["clocks moved"],
            "too_late": len(nemesis.strikes) + len(nemesis.orders),  # the run was over before
            "fallen": fallen,
            "faults": sum(faults.values()),
            "duplicates": duplicates,
            "in_flight": nemesis.counts["in flight"],
            "in_flight_at_ends": ended,
            "lost_to_faults": lost,
            "seconds": round(seconds, 1),
        }
        say(
            f"seed {seed}: {result}, faults {faults}, {seconds / calm_s:.1f} x the calm {calm_s:.0f} s; {books}"
        )
        assert duplicates - lost <= min(nemesis.counts["in flight"], ended)
        if seconds > SLOWER * calm_s:  # the machine may have become slower since
            _, now_s = carry_out(system, f"calm-{seed}", lambda: None, random.Random(0))
            calm_s = max(calm_s, now_s)
        assert seconds <= SLOWER * calm_s


def test_a_seed_is_a_plan_in_which_nothing_is_left_out() -> None:
    assert schedule(SEED) == schedule(SEED) != schedule(SEED + 1)
    plan = schedule(SEED)
    assert {*TARGETS, "clock"} <= {strike.what for strike in plan}
    assert [strike.what in DISKS for strike in plan].count(True) == 1
    assert [strike.what for strike in plan].count("api") == len(FAULTS)
    plans = [strike for seed in range(50) for strike in schedule(seed)]
    struck = {(strike.what, strike.how) for strike in plans if strike.what in TARGETS}
    assert len(struck) == len(TARGETS) * len(ACTIONS)
    assert {strike.what for strike in plans} >= set(DISKS)


@dataclass(frozen=True, kw_only=True)
class System:
    """Airflow, what it runs, and the disks that may fail under it."""

    cluster: Cluster
    workload: Workload
    disks: dict[str, Disk]


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Airflow on many machines: one ledger for all in PostgreSQL, one beside a single worker in SQLite."""
    folder = tmp_path_factory.mktemp("system")
    documents, dags = folder / "documents", folder / "dags"  # documents: the volume that may be read
    for each in (documents, dags):
        each.mkdir()
    with ExitStack() as stack:
        disks = {
            "ledger": stack.enter_context(Disk("ledger", size_mb=64)),
            "output": stack.enter_context(Disk("rows", size_mb=8)),
        }
        servers = {name: stack.enter_context(StandIn(latency_s=LATENCY_S)) for name in ("shared", "local")}
        local = f"sqlite:///{disks['ledger'].path}/ledger.db"
        more = {
            **IMPATIENCE,
            "AIRFLOW_CONN_SHARED": connection(servers["shared"].url),
            "AIRFLOW_CONN_LOCAL": connection(servers["local"].url, ledger_url=local),
        }
        write_dag(dags, folder=folder, rows=disks["output"].path, queue=LOCAL_QUEUE)
        cluster = stack.enter_context(Cluster(folder, dags=dags, more=more))
        ledgers = {"shared": cluster.ledger_url, "local": local}
        workload = Workload(folder=folder, rows=disks["output"].path, ledgers=ledgers, servers=servers)
        yield System(cluster=cluster, workload=workload, disks=disks)


@pytest.fixture(scope="session")
def calm(system: System) -> tuple[float, int]:
    """How long the same takes when nothing is thrown, and how many calls it needs."""
    run, seconds = carry_out(system, "calm", lambda: None, random.Random(0))
    books = system.workload.require_complete(system.cluster, "calm", run)
    assert [(each.unproven, each.lost) for each in books] == [(0, 0)] * len(books)
    return seconds, system.workload.settled()


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a line at once, captured or not."""

    def now(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}", end="", flush=True)

    return now


@contextmanager
def explained(seed: int, say: Callable[[str], None]) -> Iterator[None]:
    """Say how to throw the same again, should it fail."""
    try:
        yield
    except BaseException:
        say(f"seed {seed} failed; again: {replay(seed)}")
        say("\n".join(f"{strike.at:4.0%} {strike}" for strike in schedule(seed)))
        raise


def carry_out(
    system: System, name: str, meanwhile: Callable[[], None], draws: random.Random
) -> tuple[str, float]:
    """Run the DAG to its end, calling `meanwhile` again and again; return run id and seconds."""
    cluster, workload = system.cluster, system.workload
    workload.write_documents(name)
    run = cluster.trigger(DAG_ID, {"name": name}, timeout_s=180.0)
    desk, started = Desk(system, run, draws), time.monotonic()
    while (seconds := time.monotonic() - started) < HANGS_S:
        cluster.check()
        meanwhile()
        with suppress(*_AWAY):
            state = cluster.get(f"dags/{DAG_ID}/dagRuns/{run}")["state"]
            assert state != "failed", tasks_of(system, run)
            if state == "success":
                return run, seconds
            desk.decide()
        time.sleep(0.5)
    raise TimeoutError(f"not ended after {HANGS_S:.0f} s: {tasks_of(system, run)}")


class Desk:
    """The person who approves, some time after being asked."""

    def __init__(self, system: System, run: str, draws: random.Random) -> None:
        self._cluster, self._run, self._draws = system.cluster, run, draws
        self._due: dict[str, float] = {}

    def decide(self) -> None:
        """Answer what is due; a question that is open again, or whose answer was lost, is answered again."""
        now = time.monotonic()
        for instance in self._cluster.task_instances(DAG_ID, self._run):
            task = instance["task_id"]
            if instance["state"] != "awaiting_input":
                continue
            if self._due.setdefault(task, now + self._draws.uniform(0.0, 20.0)) <= now:
                self._cluster.answer(DAG_ID, self._run, task, "Approve")
                self._due[task] = now + 15.0


def tasks_of(system: System, run: str) -> list[dict[str, Any]]:
    with suppress(*_AWAY):
        names = ("task_id", "map_index", "state", "try_number")
        return [{n: i[n] for n in names} for i in system.cluster.task_instances(DAG_ID, run)]
    return []
