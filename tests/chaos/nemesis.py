"""What is thrown at a run: drawn from a seed, carried out at moments of the run's progress."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cluster import POSTGRES, Cluster
from disks import Disk
from jobs import runs

from airflow_llm_provider.testing.processes import send_signal, wait_until
from airflow_llm_provider.testing.question import Question
from airflow_llm_provider.testing.standin import StandIn

TARGETS = ("task", "worker", "triggerer", "scheduler", "dag-processor", "api-server", "redis", POSTGRES)
ACTIONS = ("kill", "stop", "restart")
DISKS = ("ledger full", "output full", "output read-only")
FAULTS: tuple[dict[str, Any], ...] = (
    {"kind": "error", "status": 429},
    {"kind": "error", "status": 529},
    {"kind": "error", "status": 500},
    {"kind": "hang"},
    {"kind": "drop"},
    {"kind": "slow"},
    {"kind": "truncated_json"},
    {"kind": "wrong_shape"},
)
# Their reply is paid for and may not arrive: `slow` does where it is quicker than the connection's time-out.
LOSING = ("drop", "slow")
_LANDING = 0.9  # of the run: about then the documents' rows are written


@dataclass(frozen=True, kw_only=True)
class Strike:
    """One thing that is done to the system.

    at: the share of the run's calls that are settled by then.
    what: a target, a disk's ailment, "clock" or a fault of the API.
    how: an action, or the particulars.
    for_s: how long it lasts; of a fault, how many requests it hits at the most stands in `how`.
    """

    at: float
    what: str
    how: Any
    for_s: float = 0.0

    def __str__(self) -> str:
        lasts = f" for {self.for_s:.1f} s" if self.for_s else ""
        return f"{self.what}: {self.how}{lasts}"


def schedule(seed: int) -> list[Strike]:
    """Draw what happens: every target once, a disk, the clock, and every fault of the API; the same for a seed."""
    draws = random.Random(f"chaos {seed}")
    strikes = [
        Strike(
            at=draws.uniform(0.02, 0.9),
            what=target,
            how=(action := draws.choice(ACTIONS)),
            # Stopped for longer than a task's heartbeat may take, or shorter; away as long as a machine's start takes.
            for_s=draws.uniform(2.0, 15.0) if action == "stop" else draws.uniform(0.0, 4.0),
        )
        for target in TARGETS
    ]
    ailment = draws.choice(DISKS)
    at = draws.uniform(0.1, 0.8) if ailment.startswith("ledger") else _LANDING
    strikes.append(Strike(at=at, what=ailment, how="disk", for_s=draws.uniform(6.0, 14.0)))
    by_s = draws.choice((-1, 1)) * draws.randrange(60, 86_400)
    strikes.append(
        Strike(at=draws.uniform(0.05, 0.7), what="clock", how=by_s, for_s=draws.uniform(4.0, 10.0))
    )
    for fault in FAULTS:
        more = {"times": draws.randrange(4, 13), "share": round(draws.uniform(0.3, 1.0), 2)}
        if fault.get("status") == 429:
            more["retry_after"] = draws.randrange(1, 4)
        if fault["kind"] == "slow":
            more["duration_s"] = draws.choice((2.0, 30.0))
        strikes.append(Strike(at=draws.uniform(0.0, 0.9), what="api", how={**fault, **more}))
    return sorted(strikes, key=lambda strike: strike.at)


@dataclass(kw_only=True)
class Nemesis:
    """Carries a schedule out.

    progress: tells the share of the run's calls that are settled.
    in_flight: counts the calls in flight; asked right before every strike.
    told: called with a line about everything that was done.
    """

    seed: int
    cluster: Cluster
    servers: list[StandIn]
    disks: dict[str, Disk]
    progress: Callable[[], float]
    in_flight: Callable[[], int]
    told: Callable[[str], None]
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        plan = schedule(self.seed)
        self.strikes = [strike for strike in plan if strike.what != "api"]
        self.orders = [strike for strike in plan if strike.what == "api"]
        self._draws = random.Random(f"victims {self.seed}")

    def go_on(self) -> None:
        """Do what is due: orders at the API at once, and one strike."""
        self._order_due()
        if self.strikes and self.strikes[0].at <= self.progress():
            strike, caught = self.strikes.pop(0), self.in_flight()
            progress = self.progress()
            done = self._strike(strike)
            self.counts["in flight"] += caught if done else 0
            self.told(f"{progress:4.0%} {strike}, {caught} in flight{'' if done else ': could not be done'}")

    def heal(self) -> None:
        """Put everything right again."""
        for server in self.servers:
            server.heal()
        for disk in self.disks.values():
            disk.mend()
        self.cluster.clock.move(0)

    def _strike(self, strike: Strike) -> bool:
        if strike.what in DISKS:
            return self._ail(strike)
        if strike.what == "clock":
            if self.cluster.clock.can_move:
                self.cluster.clock.move(strike.how)
                self._wait(strike.for_s)
                self.cluster.clock.move(0)
                self.counts["clocks moved"] += 1
            return self.cluster.clock.can_move
        if strike.what == "task":
            return self._strike_task(strike)
        service = self._draws.choice(self.cluster.workers) if strike.what == "worker" else strike.what
        if strike.how == "stop":
            self.cluster.signal(service, signal.SIGSTOP)
            self._wait(strike.for_s)
            self.cluster.signal(service, signal.SIGCONT)
        else:
            self.cluster.take_down(service, gracefully=strike.how == "restart")
            self._wait(strike.for_s)
            self.cluster.bring_up(service)
        self.counts[strike.how] += 1
        return True

    def _strike_task(self, strike: Strike) -> bool:
        if not wait_until(lambda: bool(self.cluster.tasks()), 15.0):
            return False
        task = self._draws.choice(self.cluster.tasks())
        if strike.how == "stop":
            send_signal(task.runner, signal.SIGSTOP)
            self._wait(strike.for_s)
            send_signal(task.runner, signal.SIGCONT)
        else:  # there is no restarting a task: its supervisor dies with it instead
            self.cluster.kill_task(task, with_supervisor=strike.how == "restart")
        self.counts["stop" if strike.how == "stop" else "kill"] += 1
        return not runs(task.runner) or strike.how == "stop"

    def _ail(self, strike: Strike) -> bool:
        name, _, ailment = strike.what.partition(" ")
        disk = self.disks[name]
        if not disk.can_fail:
            return False
        if ailment == "full":
            disk.fill()
        elif not disk.set_read_only():
            return False
        self._wait(strike.for_s)
        disk.mend()
        self.counts["disks failed"] += 1
        return True

    def _order_due(self) -> None:
        while self.orders and self.orders[0].at <= self.progress():
            order = self.orders.pop(0)
            self._order(**order.how)
            self.told(f"{self.progress():4.0%} {order}")

    def _order(self, *, share: float, **fault: Any) -> None:
        name = str(fault["status"]) if fault["kind"] == "error" else fault["kind"]

        def hits(_: Question) -> bool:
            is_hit = draws.random() < share
            self.counts[f"api {name}"] += is_hit
            return is_hit

        draws = random.Random(f"{self.seed} {fault}")
        for server in self.servers:
            server.fail(matching=hits, **fault)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.cluster.check()
            self._order_due()
            time.sleep(min(left, 0.25))


def replay(seed: int) -> str:
    """Return the command that throws the same again."""
    return f"make chaos SEED={seed} SEEDS=1 ARGS='-k whole_system'"
