"""What goes into the ledger and what comes out of it."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from airflow_llm_provider.pricing import Usage

Reuse = Literal["always", "run", "never"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CallScope:
    """Who asks: the task instance, written down as attribution and used to scope reuse.

    first_try: number of the first try since the task was last cleared; tries from it on are one going.
    budget_micro_usd, run_budget_micro_usd: what its task instance, and its DAG run, may cost; None: no cap of its
        own. on_exceeded: what then becomes of the task: `fail`, `skip` or `ask`.
    """

    dag_id: str = ""
    run_id: str = ""
    task_id: str = ""
    map_index: int = -1
    try_number: int = 1
    first_try: int = 1
    connection_id: str = ""
    owner: str | None = None
    tags: str | None = None
    trace_id: str = ""
    budget_micro_usd: int | None = None
    run_budget_micro_usd: int | None = None
    on_exceeded: str = "fail"

    def claim(self, fingerprint: str, reuse: Reuse) -> str:
        """Return the key that one live attempt may hold: the wider the reuse, the fewer parts it has."""
        if reuse == "always":
            return fingerprint
        parts = [fingerprint, self.dag_id, self.run_id]
        if reuse == "never":
            parts += [self.task_id, str(self.map_index), str(self.first_try)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def new_attempt_id() -> str:
    """Return 32 hex digits that nobody else has; opaque, though later ones sort later.

    Rows of one time so lie side by side in the indexes: random ids cost a third of the settles a second.
    """
    return f"{time.time_ns() // 1000:014x}{os.urandom(9).hex()}"


def first_id_of(ms: int) -> str:
    """Return the lowest id that `new_attempt_id` can give at a time, in milliseconds since 1970."""
    return f"{max(0, ms) * 1000:014x}"


@dataclass(frozen=True, kw_only=True, slots=True)
class NewAttempt:
    """An attempt to be opened."""

    fingerprint: str
    scope: CallScope
    reuse: Reuse
    model: str
    purpose: str = "answer"
    parent: str | None = None
    item_id: str | None = None
    ceiling_micro_usd: int | None = None
    version: str = ""
    family: str = ""
    ceiling_tokens: int | None = None
    id: str = field(default_factory=new_attempt_id)


@dataclass(frozen=True, slots=True)
class OpenedAttempt:
    """The attempt is ours: send it."""

    attempt_id: str


@dataclass(frozen=True, slots=True)
class ClaimHeld:
    """Somebody else's live attempt holds the key."""

    holder: str


@dataclass(frozen=True, slots=True)
class SettledReply:
    """A settled reply: the attempt that bought it, the API's bytes, and what was paid."""

    attempt_id: str
    fingerprint: str
    reply: bytes
    cost_micro_usd: int | None
    latency_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Settlement:
    """What an attempt brought, to be committed."""

    attempt_id: str
    fingerprint: str
    reply: bytes
    prompt: Callable[[], bytes]
    stop_reason: str | None
    usage: Usage
    cost_micro_usd: int | None
    latency_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """How an attempt ended without a reply; `billed` when the API may have charged for it.

    prompt: None for one that was never sent.
    """

    attempt_id: str
    fingerprint: str
    billed: bool
    error_class: str
    error: str
    prompt: Callable[[], bytes] | None


@dataclass(frozen=True, slots=True)
class Sighting:
    """A document seen in a state that was asked with this fingerprint."""

    sighting: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class PromptToKeep:
    """The prompt of a settled attempt whose answer turned out to be an error."""

    attempt_id: str
    fingerprint: str
    prompt: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class InvalidAnswer:
    """What was wrong with the answer that a settled attempt brought."""

    attempt_id: str
    error_class: str
    error: str


@dataclass(frozen=True, slots=True)
class Reopening:
    """An answer to be asked for anew, unless it was bought by this very going of the task."""

    fingerprint: str
    scope: CallScope


@dataclass(frozen=True, kw_only=True, slots=True)
class Saving:
    """What one try of a task saved.

    A reused answer is not written down when it is looked up: that would be a write for every read. A try so
    counts its own, and one that fails or is killed leaves no count: the next one counts the same answers.

    reused, reused_micro_usd: answers that were in the ledger, and what they had cost when they were bought.
    routed_micro_usd: about how much more the last model of a cascade alone would have cost; negative where
        escalating cost more than it saved.
    """

    scope: CallScope
    model: str
    version: str = ""
    reused: int = 0
    reused_micro_usd: int = 0
    routed_micro_usd: int = 0
    id: str = field(default_factory=new_attempt_id)


Write = NewAttempt | Settlement | Failure | Sighting | PromptToKeep | InvalidAnswer | Reopening | Saving
