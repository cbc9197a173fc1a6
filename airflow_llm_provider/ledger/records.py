"""Records: the values that are written to the ledger and read from it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeGuard

from airflow_llm_provider.pricing import Usage

# Who may take a settled reply: every DAG run, calls of the same DAG run, or only the task instance that bought it.
Reuse = Literal["always", "run", "never"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CallScope:
    """The task instance that a call belongs to: written down as attribution, and used to limit reuse.

    Attributes:
        dag_id: The DAG.
        run_id: The DAG run.
        task_id: The task.
        map_index: Index of a mapped task instance; -1 for one that is not mapped.
        try_number: Number of the attempt of the task, from 1.
        first_try: Number of the first try since the task was last cleared. Tries from it on share answers with
            `reuse="never"` and decisions of people.
        connection_id: The Airflow connection.
        owner: The owner of the task.
        tags: Tags of the call, as a JSON list.
        trace_id: 32 hex digits that connect the call with the caller's trace.
        budget_micro_usd: What the task instance may cost, over all its tries; None for no limit.
        run_budget_micro_usd: What the DAG run may cost; None for no limit.
        on_exceeded: What happens to the task when one of these two budgets is exceeded: `fail`, `skip` or `ask`.
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
        """Return the key that only one live attempt may hold.

        The more calls may share the reply, the fewer parts of the scope are in the key.
        """
        if reuse == "always":
            return fingerprint
        parts = [fingerprint, self.dag_id, self.run_id]
        if reuse == "never":
            # The first try since the clear, not the current one: retries share the answer, and a clear asks anew.
            parts += [self.task_id, str(self.map_index), str(self.first_try)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def new_id(now_ms: int, number: int = 0) -> str:
    """Return a unique id of 32 hex digits; later ids sort after earlier ones.

    Ids begin with the time in microseconds, so rows of the same time lie side by side in the indexes. With
    random ids a third fewer calls are settled per second.

    Args:
        now_ms: The database's clock, so that the ids of all machines sort together.
        number: Keeps those of one transaction in order; below 1,000.
    """
    # 14 digits hold microseconds for 2,000 years, so all ids have one length, and sort by time as text.
    return f"{now_ms * 1000 + number:014x}{os.urandom(9).hex()}"


def is_id(value: object) -> TypeGuard[str]:
    """Return whether a value that comes from elsewhere has the form of an id."""
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{32}", value) is not None


def ms_of(call_id: str) -> int:
    """Return the time that an id begins with, in milliseconds since 1970."""
    return int(call_id[:14], 16) // 1000


def first_id_of(ms: int) -> str:
    """Return the lowest id that `new_id` can give at a time, in milliseconds since 1970."""
    return f"{max(0, ms) * 1000:014x}"


@dataclass(frozen=True, kw_only=True, slots=True)
class NewAttempt:
    """A request for an attempt: claim the key, reserve the ceiling, insert the row.

    Attributes:
        fingerprint: Hash of everything that shapes the reply, 64 hex digits.
        scope: The task instance that asks.
        reuse: Who may take the reply later.
        model: Id of the model.
        purpose: What the call is for: an answer, a repair, a judgement …
        parent: The attempt whose reply this call repairs.
        item_id: The document or row that it is about.
        ceiling_micro_usd: The most that the call can cost; None when its model has no known price.
        version: The author's label.
        family: What calls share from which estimates are made; empty where nothing is estimated.
        ceiling_tokens: The most input tokens that it can have.
    """

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


@dataclass(frozen=True, slots=True)
class OpenedAttempt:
    """The caller holds the claim and must send the request.

    Attributes:
        attempt_id: Id of the attempt, which the ledger has given it; the record of its end names it.
    """

    attempt_id: str


@dataclass(frozen=True, slots=True)
class ClaimHeld:
    """Another live attempt holds the claim.

    Attributes:
        holder: The engine that it belongs to; empty when it ended while we looked.
    """

    holder: str


@dataclass(frozen=True, slots=True)
class SettledReply:
    """A reply that was paid for earlier: the attempt that bought it, the API's bytes, the cost."""

    attempt_id: str
    fingerprint: str
    reply: bytes
    cost_micro_usd: int | None
    latency_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Settlement:
    """The reply to an attempt, its usage and its cost."""

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
    """The end of an attempt without a reply.

    Attributes:
        billed: Whether the API may have charged for it: then it is booked at its ceiling.
        error_class: Name of the error's class.
        error: What the error says.
        prompt: Returns the request's body; None when it was never sent.
    """

    attempt_id: str
    fingerprint: str
    billed: bool
    error_class: str
    error: str
    prompt: Callable[[], bytes] | None


@dataclass(frozen=True, slots=True)
class Sighting:
    """A document in a certain state, and the request that it led to.

    Attributes:
        sighting: Hash of prompt, path and modification stamp, 64 hex digits.
        fingerprint: Of the request.
    """

    sighting: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class PromptToKeep:
    """The prompt of a settled attempt whose answer turned out to be invalid: kept by the payload policy for errors."""

    attempt_id: str
    fingerprint: str
    prompt: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class InvalidAnswer:
    """What is wrong with the answer of a settled attempt."""

    attempt_id: str
    error_class: str
    error: str


@dataclass(frozen=True, slots=True)
class Reopening:
    """A settled reply that must not be reused, unless the scope's task bought it since it was last cleared."""

    fingerprint: str
    scope: CallScope


@dataclass(frozen=True, kw_only=True, slots=True)
class Saving:
    """What one try of a task saved.

    A cache hit is not written down when it is looked up: that would be a write per read. The try counts its own
    and writes one row at its end. A try that fails or is killed writes none: the next one counts the same replies.

    Attributes:
        reused: Number of replies that were in the ledger.
        reused_micro_usd: What they had cost when they were bought.
        routed_micro_usd: About how much more the last model of a cascade alone would have cost; negative where
            the escalation cost more than it saved.
    """

    scope: CallScope
    model: str
    version: str = ""
    reused: int = 0
    reused_micro_usd: int = 0
    routed_micro_usd: int = 0


Write = NewAttempt | Settlement | Failure | Sighting | PromptToKeep | InvalidAnswer | Reopening | Saving
