"""The ledger: claims, replies and prices, committed before anyone is told of them."""

from __future__ import annotations

import logging
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import sqlalchemy as sa
import tenacity

from airflow_llm_provider.errors import LedgerUnavailable
from airflow_llm_provider.ledger import sql
from airflow_llm_provider.ledger.batch import Batch
from airflow_llm_provider.ledger.database import Database
from airflow_llm_provider.ledger.records import (
    Answer,
    Busy,
    CallScope,
    Entry,
    Failure,
    KeptPrompt,
    Opened,
    Reopening,
    Reuse,
    Settlement,
    Sighting,
    Write,
)
from airflow_llm_provider.ledger.schema import FAILED, OPEN, SETTLED, UNPROVEN

log = logging.getLogger(__name__)

LEASE_S = 45.0
_BEATS_A_LEASE = 4.5  # so that three renewals may fail or come late

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Lookup:
    key: str
    by: Literal["fingerprint", "sighting"]
    scope: CallScope
    reuse: Reuse


class Ledger:
    """What was asked, paid and answered.

    url: SQLAlchemy URL of SQLite or PostgreSQL.
    payload: which prompts are kept: `full`, `errors`, `sampled:<share>` (errors always) or `none`. Replies
        are always kept: a retry is answered from them.
    deadline_s: how long an unreachable database is tried before callers get `LedgerUnavailable`.
    lease_s: how long an attempt of a killed process blocks its key; renewed all along while it lives. A
        process that stalls for longer may have its calls paid twice.

    Two threads of its own do the SQL, one writes and one reads; create it after any fork.
    """

    def __init__(
        self,
        url: str,
        *,
        payload: str = "errors",
        synchronous: str = "FULL",
        deadline_s: float = 60.0,
        lease_s: float = LEASE_S,
    ) -> None:
        if lease_s <= 0:
            raise ValueError(f"[llm] lease_s is {lease_s:g}; it must be more than 0 seconds")
        self._sample = _parse_policy(payload)
        self._deadline_s = deadline_s
        self._lease_ms = int(lease_s * 1000)
        self.holder = uuid.uuid4().hex
        self.database = Database(url, synchronous=synchronous)
        self._retried(self.database.migrate)
        self._insert_call = sql.insert_call(self.database.dialect)
        self._upsert_payload = sql.upsert_payload(self.database.dialect)
        self._upsert_sighting = sql.upsert_sighting(self.database.dialect)
        self._writer: Batch[Write, Any] = Batch(
            self._write, name="llm-ledger-write", tick=self._beat, tick_s=lease_s / _BEATS_A_LEASE
        )
        self._reader: Batch[_Lookup, Answer | None] = Batch(
            self._read, name="llm-ledger-read", linger_s=0.002
        )

    async def answered(self, fingerprint: str, scope: CallScope, reuse: Reuse) -> Answer | None:
        """Return the settled reply to a request, if it may be reused here."""
        return await self._reader.submit(_Lookup(fingerprint, "fingerprint", scope, reuse))

    async def recall(self, sighting: str, scope: CallScope, reuse: Reuse) -> Answer | None:
        """Return the settled reply to what an unchanged document was asked."""
        return await self._reader.submit(_Lookup(sighting, "sighting", scope, reuse))

    async def open(self, entry: Entry) -> Opened | Answer | Busy:
        """Claim a key and open an attempt, or say who has it: a settled answer or a live attempt."""
        outcome: Opened | Answer | Busy = await self._writer.submit(entry)
        return outcome

    async def record(self, write: Settlement | Failure | Sighting | KeptPrompt | Reopening) -> None:
        """Commit `write`; returns when it is durable, also when the waiting coroutine is cancelled."""
        await self._writer.submit(write)

    def note(self, write: Failure | Sighting | KeptPrompt) -> None:
        """Commit `write` with the next batch, without waiting for it: for what nobody waits on."""
        self._writer.submit(write).add_done_callback(_log_failure)

    def close(self) -> None:
        """Commit what was submitted and close the database."""
        self._writer.close()
        self._reader.close()
        self.database.close()

    # -- in the writer's thread ----------------------------------------------------------------------

    def _write(self, batch: list[Write]) -> list[Any]:
        try:
            return self._retried(self._write_once, batch)
        except sa.exc.DBAPIError as error:
            if isinstance(error, sa.exc.OperationalError):
                raise LedgerUnavailable(_unreachable(self.database, error)) from error
            if len(batch) == 1:
                raise
            # One row the database won't take must not cost the others theirs.
            return [self._alone(write) for write in batch]

    def _alone(self, write: Write) -> Any:
        try:
            return self._write([write])[0]
        except Exception as error:  # noqa: BLE001  # handed to the one who submitted it
            return error

    def _write_once(self, batch: list[Write]) -> list[Any]:
        outcomes: dict[int, Any] = {}
        with self.database.write() as connection:
            now = self.database.now_ms(connection)
            self._settle(connection, now, [w for w in batch if isinstance(w, Settlement)])
            self._fail(connection, now, [w for w in batch if isinstance(w, Failure)])
            self._keep(connection, [w for w in batch if isinstance(w, KeptPrompt)])
            for write in batch:
                if isinstance(write, Reopening):
                    connection.execute(
                        sql.REOPEN,
                        {
                            "fingerprint_": write.fingerprint,
                            "dag": write.scope.dag_id,
                            "run": write.scope.run_id,
                            "task": write.scope.task_id,
                            "first_try": write.scope.first_try,
                        },
                    )
            if sightings := [w for w in batch if isinstance(w, Sighting)]:
                connection.execute(
                    self._upsert_sighting,
                    [{"sighting": s.sighting, "fingerprint": s.fingerprint} for s in sightings],
                )
            if entries := [w for w in batch if isinstance(w, Entry)]:
                opened = self._open(connection, now, entries)
                outcomes = {id(entry): outcome for entry, outcome in zip(entries, opened, strict=True)}
        return [outcomes.get(id(write)) for write in batch]

    def _settle(self, connection: sa.Connection, now: int, settled: Sequence[Settlement]) -> None:
        if not settled:
            return
        connection.execute(
            sql.SETTLE,
            [
                {
                    "attempt": s.attempt_id,
                    "now": now,
                    "latency_ms_": s.latency_ms,
                    "stop_reason_": s.stop_reason,
                    "uncached": s.usage.uncached_tokens,
                    "output": s.usage.output_tokens,
                    "cache_read": s.usage.cache_read_tokens,
                    "write_5m": s.usage.cache_write_5m_tokens,
                    "write_1h": s.usage.cache_write_1h_tokens,
                    "cost": s.cost_micro_usd,
                }
                for s in settled
            ],
        )
        connection.execute(
            self._upsert_payload,
            [
                {
                    "call_id": s.attempt_id,
                    "reply": s.reply,
                    "prompt": _pack(s.prompt) if self._keeps(s.fingerprint, error=False) else None,
                }
                for s in settled
            ],
        )

    def _fail(self, connection: sa.Connection, now: int, failed: Sequence[Failure]) -> None:
        if not failed:
            return
        connection.execute(
            sql.FAIL,
            [
                {
                    "attempt": f.attempt_id,
                    "now": now,
                    "state_": UNPROVEN if f.billed else FAILED,
                    "error_class_": f.error_class,
                    "error_": _storable(f.error),
                }
                for f in failed
            ],
        )
        if kept := [f for f in failed if self._keeps(f.fingerprint, error=True)]:
            connection.execute(
                self._upsert_payload,
                [{"call_id": f.attempt_id, "prompt": _pack(f.prompt), "reply": None} for f in kept],
            )

    def _keep(self, connection: sa.Connection, kept: Sequence[KeptPrompt]) -> None:
        kept = [k for k in kept if self._keeps(k.fingerprint, error=True)]
        if kept:
            connection.execute(
                sql.KEEP, [{"attempt": k.attempt_id, "prompt_": _pack(k.prompt)} for k in kept]
            )

    def _open(
        self, connection: sa.Connection, now: int, entries: Sequence[Entry]
    ) -> list[Opened | Answer | Busy]:
        rows = [self._row(entry, now) for entry in entries]
        # Sorted, so that two writers who want the same keys wait for each other in one order: no deadlock.
        connection.execute(self._insert_call, sorted(rows, key=lambda row: row["claim"]))
        holders = self._holders(connection, [row["claim"] for row in rows])
        expired = [h.id for h in holders.values() if h.state == OPEN and h.lease_until_ms < now]
        if expired:
            connection.execute(sql.EXPIRE, [{"attempt": attempt, "now": now} for attempt in sorted(expired)])
            again = [row for row in rows if holders[row["claim"]].id in set(expired)]
            connection.execute(self._insert_call, sorted(again, key=lambda row: row["claim"]))
            holders |= self._holders(connection, [row["claim"] for row in again])
        settled = [h.id for h in holders.values() if h.state == SETTLED]
        answers = {
            row.id: Answer(*row)
            for chunk in _chunks(settled)
            for row in connection.execute(sql.BY_ID, {"ids": chunk})
        }
        outcomes: list[Opened | Answer | Busy] = []
        for row in rows:
            holder = holders[row["claim"]]
            if holder.id == row["id"]:
                outcomes.append(Opened(row["id"]))
            else:
                outcomes.append(answers.get(holder.id) or Busy(holder.holder))
        return outcomes

    def _row(self, entry: Entry, now: int) -> dict[str, Any]:
        scope = entry.scope
        return {
            "id": entry.id,
            "fingerprint": entry.fingerprint,
            "claim": scope.claim(entry.fingerprint, entry.reuse),
            "state": OPEN,
            "holder": self.holder,
            "lease_until_ms": now + self._lease_ms,
            "purpose": entry.purpose,
            "parent": entry.parent,
            "item_id": _storable(entry.item_id) if entry.item_id is not None else None,
            "connection_id": scope.connection_id,
            "dag_id": scope.dag_id,
            "run_id": scope.run_id,
            "task_id": scope.task_id,
            "map_index": scope.map_index,
            "try_number": scope.try_number,
            "owner": scope.owner,
            "tags": scope.tags,
            "trace_id": scope.trace_id,
            "model": entry.model,
            "ceiling_micro_usd": entry.ceiling_micro_usd,
            "opened_ms": now,
        }

    def _holders(self, connection: sa.Connection, claims: Sequence[str]) -> dict[str, Any]:
        return {
            row.claim: row
            for chunk in _chunks(claims)
            for row in connection.execute(sql.HOLDERS, {"claims": chunk})
        }

    def _beat(self) -> None:
        """Renew the leases of what this engine has in flight."""
        try:
            with self.database.write() as connection:
                until = self.database.now_ms(connection) + self._lease_ms
                connection.execute(sql.RENEW, {"held_by": self.holder, "until": until})
        except sa.exc.DBAPIError as error:
            log.warning("The ledger's leases could not be renewed, will try again: %s", error.orig)

    # -- in the reader's thread ----------------------------------------------------------------------

    def _read(self, batch: list[_Lookup]) -> list[Answer | None]:
        try:
            return self._retried(self._read_once, batch)
        except sa.exc.OperationalError as error:
            raise LedgerUnavailable(_unreachable(self.database, error)) from error

    def _read_once(self, batch: list[_Lookup]) -> list[Answer | None]:
        found: dict[_Lookup, Answer] = {}
        # All lookups of one task share scope and reuse, so this is one group, seldom two.
        groups: dict[tuple[CallScope, Reuse], list[_Lookup]] = {}
        for lookup in batch:
            groups.setdefault((lookup.scope, lookup.reuse), []).append(lookup)
        with self.database.read() as connection:
            for (scope, reuse), lookups in groups.items():
                fingerprints = {look.key: look.key for look in lookups if look.by == "fingerprint"}
                sightings = [look.key for look in lookups if look.by == "sighting"]
                for chunk in _chunks(sightings):
                    fingerprints |= {
                        row.sighting: row.fingerprint
                        for row in connection.execute(sql.SIGHTED, {"sightings": chunk})
                    }
                answers = self._answers(connection, scope, reuse, list(set(fingerprints.values())))
                for look in lookups:
                    if answer := answers.get(fingerprints.get(look.key, "")):
                        found[look] = answer
        return [found.get(lookup) for lookup in batch]

    def _answers(
        self, connection: sa.Connection, scope: CallScope, reuse: Reuse, fingerprints: Sequence[str]
    ) -> dict[str, Answer]:
        answers = {}
        for chunk in _chunks(fingerprints):
            parameters: dict[str, Any] = {"fingerprints": chunk}
            if reuse == "run":
                parameters |= {"dag": scope.dag_id, "run": scope.run_id}
            elif reuse == "never":
                parameters |= {"claims": [scope.claim(fingerprint, reuse) for fingerprint in chunk]}
            for row in connection.execute(sql.ANSWERED[reuse], parameters):
                answers[row.fingerprint] = Answer(*row)
        return answers

    def _retried(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run `work` again while the database can't be reached, up to the deadline."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(sa.exc.OperationalError),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=5),
            stop=tenacity.stop_after_delay(self._deadline_s),
            reraise=True,
        )
        return retrying(work, *arguments)

    def _keeps(self, fingerprint: str, *, error: bool) -> bool:
        """Decide whether the payload policy keeps this prompt; a sample is the same at every run."""
        if self._sample is None:
            return False
        return error or int(fingerprint[:8], 16) < self._sample * 2**32


def _parse_policy(policy: str) -> float | None:
    """Return the share of prompts kept besides those of errors; None keeps none at all."""
    kind, _, share = policy.partition(":")
    if kind == "sampled":
        try:
            sample = float(share)
        except ValueError:
            sample = -1.0
        if 0 <= sample <= 1:
            return sample
    elif policy in ("full", "errors", "none"):
        return {"full": 1.0, "errors": 0.0, "none": None}[policy]
    raise ValueError(
        f"[llm] payload is {policy!r}; use full, errors, none or sampled:<share>, such as sampled:0.1"
    )


def _pack(prompt: Callable[[], bytes]) -> bytes:
    return zlib.compress(prompt(), level=1)


def unpack_prompt(packed: bytes) -> bytes:
    """Return the request body that was kept."""
    return zlib.decompress(packed)


def _storable(text: str) -> str:
    """Replace what a text column can't hold: NUL on PostgreSQL, lone surrogates everywhere."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def _chunks(keys: Sequence[str], size: int = 500) -> Iterator[Sequence[str]]:
    # 500 stays below the 999 variables of old SQLite builds and is as fast as more.
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


def _unreachable(database: Database, error: sa.exc.DBAPIError) -> str:
    return (
        f"The ledger at {database.url.render_as_string(hide_password=True)} can't be reached: {error.orig}. "
        "Nothing is sent without it, so nothing is paid; check [llm] ledger_url and the database, then retry."
    )


def _log_failure(future: Any) -> None:
    if not future.cancelled() and (error := future.exception()):
        log.warning("The ledger could not note something: %s", error)
