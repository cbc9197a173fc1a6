"""Effects: tool calls, each stored before it begins and again when it has ended."""

from __future__ import annotations

import hashlib
import json
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import sqlalchemy as sa

from airflow_llm_provider.ledger.database import insert
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.ledger.schema import effect

BEGUN, ENDED = "begun", "ended"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a tool call returned, as the model is told it."""

    content: str
    is_error: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Intent:
    """A tool call that is about to be made.

    Attributes:
        scope: The task instance.
        item_id: The document or row that it is about.
        call_id: The attempt whose reply asked for it.
        tool_use_id: Its id in that reply.
        tool: Name of the tool.
        is_irreversible: Whether it must not be made twice.
        arguments: As JSON.
        holder: Who is about to make it.
    """

    scope: CallScope
    item_id: str | None
    call_id: str
    tool_use_id: str
    tool: str
    is_irreversible: bool
    arguments: bytes
    holder: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def id(self) -> str:
        """Id of the effect; two calls with the same id are the same call.

        An irreversible tool runs once per task instance and item, whichever reply asks for it. Other tools run
        once per request of the model.
        """
        scope = self.scope
        # Without the number of the try: a retry, and a try after a clear, must find the same effect.
        parts = [scope.dag_id, scope.run_id, scope.task_id, scope.map_index, self.item_id, self.tool]
        if not self.is_irreversible:
            parts += [self.call_id, self.tool_use_id]
        return digest(*parts)

    @property
    def key(self) -> str:
        """Hash of the call and its arguments: what a person decides on."""
        return digest(self.id, json.loads(self.arguments))


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """A tool call in the ledger.

    Attributes:
        call_id: The attempt whose reply asked for it.
        arguments: As JSON.
        outcome: None until it has ended.
        is_live: Whether it has not ended and its lease has not, by the database's clock.
    """

    id: str
    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    tool: str
    is_irreversible: bool
    call_id: str
    arguments: bytes
    outcome: Outcome | None
    holder: str
    is_live: bool
    began_ms: int
    ended_ms: int | None

    @property
    def is_unknown(self) -> bool:
        """Whether it may have happened and must not be repeated: its process ended before it said how it went."""
        return self.is_irreversible and self.outcome is None and not self.is_live

    @classmethod
    def of(cls, row: Any, now_ms: int) -> Self:
        """Read a row of the ledger."""
        return cls(
            id=row.id,
            dag_id=row.dag_id,
            run_id=row.run_id,
            task_id=row.task_id,
            map_index=row.map_index,
            tool=row.tool,
            is_irreversible=row.is_irreversible,
            call_id=row.call_id,
            arguments=zlib.decompress(row.input),
            outcome=None if row.output is None else Outcome(**json.loads(zlib.decompress(row.output))),
            holder=row.holder,
            is_live=row.state == BEGUN and row.lease_until_ms > now_ms,
            began_ms=row.began_ms,
            ended_ms=row.ended_ms,
        )


def begin(connection: sa.Connection, now_ms: int, intent: Intent, *, lease_ms: int) -> Effect:
    """Store a call before it is made; return its effect, which may be there already.

    The caller makes the call only if the effect's holder is the intent's: it is new, or it has not ended and may be
    repeated.

    Args:
        connection: In a write transaction.
        now_ms: The database's clock.
        intent: The call.
        lease_ms: How long it counts as live without a renewal.
    """
    scope = intent.scope
    held = {"holder": intent.holder, "lease_until_ms": now_ms + lease_ms, "began_ms": now_ms}
    made = {
        "id": intent.id,
        "dag_id": scope.dag_id,
        "run_id": scope.run_id,
        "task_id": scope.task_id,
        "map_index": scope.map_index,
        "try_number": scope.try_number,
        "call_id": intent.call_id,
        "tool": intent.tool,
        "is_irreversible": intent.is_irreversible,
        "state": BEGUN,
        "input": zlib.compress(intent.arguments),
    }
    new = insert(connection.dialect.name, effect).values(**made, **held)
    # First insert, then read: if two processes begin the same call, the database keeps one row, and both read it.
    connection.execute(new.on_conflict_do_nothing())
    # A repeatable call is taken over, even from a process that is still running it: running it twice does no harm.
    if not intent.is_irreversible:
        connection.execute(
            sa.update(effect).where(effect.c.id == intent.id, effect.c.state == BEGUN).values(**held)
        )
    found = find(connection, now_ms, intent.id)
    assert found is not None, "the row was inserted just now, or was there before"
    return found


def renew(connection: sa.Connection, now_ms: int, intent: Intent, *, lease_ms: int) -> None:
    """Renew the lease of a call that is still running."""
    connection.execute(
        sa.update(effect)
        # Only as its holder: a process from which the call was taken over must not go on renewing the lease.
        .where(effect.c.id == intent.id, effect.c.holder == intent.holder)
        .values(lease_until_ms=now_ms + lease_ms)
    )


def end(connection: sa.Connection, now_ms: int, effect_id: str, outcome: Outcome) -> Outcome:
    """Store how a call ended; return the outcome that counts, which is the first that was stored."""
    packed = zlib.compress(json.dumps({"content": outcome.content, "is_error": outcome.is_error}).encode())
    connection.execute(
        sa.update(effect)
        # Two processes may have run a repeatable call. Both must send the model the same, which is what ended first.
        .where(effect.c.id == effect_id, effect.c.state == BEGUN)
        .values(state=ENDED, output=packed, ended_ms=now_ms)
    )
    found = find(connection, now_ms, effect_id)
    return found.outcome if found and found.outcome else outcome


def forget(connection: sa.Connection, effect_id: str) -> None:
    """Delete a call that never happened, so that it may be made."""
    connection.execute(sa.delete(effect).where(effect.c.id == effect_id))


def find(connection: sa.Connection, now_ms: int, effect_id: str) -> Effect | None:
    """Return the effect with an id, None if there is none."""
    row = connection.execute(sa.select(effect).where(effect.c.id == effect_id)).one_or_none()
    return None if row is None else Effect.of(row, now_ms)


def list_effects(
    connection: sa.Connection,
    now_ms: int,
    *,
    dag_id: str | None = None,
    run_id: str | None = None,
    id_begins_with: str = "",
) -> Sequence[Effect]:
    """List effects in the order in which they began; without filters, all of them."""
    query = sa.select(effect).order_by(effect.c.began_ms, effect.c.id)
    if dag_id is not None:
        query = query.where(effect.c.dag_id == dag_id)
    if run_id is not None:
        query = query.where(effect.c.run_id == run_id)
    if id_begins_with:
        # A person types the beginning of the id. % and _ in it must not be wildcards of LIKE.
        query = query.where(effect.c.id.startswith(id_begins_with, autoescape=True))
    return [Effect.of(row, now_ms) for row in connection.execute(query)]


def digest(*parts: Any) -> str:
    """Return the hash of JSON data, 64 hex digits."""
    # The keys are sorted, because a model may write the same arguments in another order.
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
