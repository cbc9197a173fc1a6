"""Permits: when the calls of a connection may go, by one timeline that all its processes share."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from airflow_llm_provider.ledger.database import insert
from airflow_llm_provider.ledger.records import first_id_of
from airflow_llm_provider.ledger.schema import call, rate_limit

MAX_PERMITS_AT_ONCE = 32  # permits in a block: what a killed process may lose of the account's limit
_ROUND_MS = 1_000.0  # what all who wait may hold of the timeline together, where each can have a permit of it
_TAKER_MS = 2_000.0  # a DAG counts as waiting for so long after its last permit
# In what time the pace is back where it was before a 429: sooner where a limit is known, which bounds it anyway.
_BACK_IN_MS = {True: 10_000.0, False: 30_000.0}
_FORGOTTEN_MS = 600_000.0  # what a header or a 429 said of the limits
_OBSERVED_S = 10.0
_LEAST_RPM = 60.0  # no 429 cuts an unknown limit further

Amounts = tuple[float, float, float]  # requests, input tokens, output tokens
NO_AMOUNTS: Amounts = (0.0, 0.0, 0.0)
_FREE = ("requests_free_ms", "input_free_ms", "output_free_ms")
_NAMED = sa.select(rate_limit).where(rate_limit.c.name == sa.bindparam("bucket"))
_LOCKED = _NAMED.with_for_update()
_UPDATE = rate_limit.update().where(rate_limit.c.name == sa.bindparam("bucket"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """An account's limits a minute: requests, input tokens, output tokens; None where not known.

    burst_s: how many seconds' worth of them may go at once after a lull.
    """

    rpm: int | None = None
    itpm: int | None = None
    otpm: int | None = None
    burst_s: float = 8.0

    def __bool__(self) -> bool:
        """Tell whether any limit is known."""
        return any(self.a_minute)

    @property
    def a_minute(self) -> tuple[int | None, int | None, int | None]:
        """Return the limits in the order of Amounts."""
        return self.rpm, self.itpm, self.otpm


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """What shares one set of limits: a connection that states them, else a connection's model, as the API counts."""

    connection_id: str
    model: str | None
    stated: Limits

    @property
    def name(self) -> str:
        """Return the bucket's key in the ledger."""
        return self.connection_id if self.model is None else f"{self.connection_id}/{self.model}"


@dataclass(frozen=True, kw_only=True, slots=True)
class LimiterState:
    """What all must heed, by the database's clock in ms: silence until then, and limits that hold until then."""

    now_ms: float
    quiet_until_ms: float = 0.0
    paced_until_ms: float = 0.0
    learnt: Limits = Limits()


@dataclass(frozen=True, kw_only=True, slots=True)
class PermitRequest:
    """A block that somebody asks for.

    holder, dag_id: who asks, for the shares of those who wait.
    costs: what each waiting call is expected to take. spare: as many more like them, where they are there for
        the taking: for calls about to come.
    correction: what earlier calls took more than their permits, or, negative, less.
    """

    bucket: Bucket
    holder: str
    dag_id: str
    costs: Sequence[Amounts]
    spare: int = 0
    correction: Amounts = NO_AMOUNTS


@dataclass(frozen=True, kw_only=True, slots=True)
class PermitBlock:
    """Permits: the seconds from now until each may be used; 0 is at once. interval_s: between two of them."""

    notice: LimiterState
    waits_s: Sequence[float]
    interval_s: float


def take_permits(connection: sa.Connection, now_ms: float, want: PermitRequest) -> PermitBlock:
    """Take the next places on the timeline, as many as are this process' share of a round."""
    row = _row(connection, want.bucket)
    rates, burst_ms = _rates(row, want.bucket.stated, now_ms)
    free = _corrected(row, rates, want.correction)
    mean = tuple(sum(part) / len(want.costs) for part in zip(*want.costs, strict=True))
    limited = [(kind, rate) for kind, rate in enumerate(rates) if rate]
    interval_ms = max((mean[kind] / rate for kind, rate in limited), default=0.0)
    takers = json.loads(row.waiting)
    takers = {d: {h: until for h, until in held.items() if until > now_ms} for d, held in takers.items()}
    takers.setdefault(want.dag_id, {}).setdefault(want.holder, now_ms)
    room = _share(takers, want.dag_id, _ROUND_MS / interval_ms if interval_ms else MAX_PERMITS_AT_ONCE)
    soonest = max(now_ms, row.quiet_until_ms)
    times: list[float] = []
    for number, cost in enumerate([*want.costs, *[mean] * want.spare][:room]):
        spans = [(kind, cost[kind] / rate) for kind, rate in limited]
        # A call that takes more than a burst waits for the whole of it, and leaves a debt.
        at = max([soonest, *(free[kind] - burst_ms + min(span, burst_ms) for kind, span in spans)])
        if number >= len(want.costs) and at > now_ms:
            break
        for kind, span in spans:
            free[kind] = max(free[kind], at) + span
        times.append(at)
    takers[want.dag_id][want.holder] = times[-1] + _TAKER_MS
    text = json.dumps({d: held for d, held in takers.items() if held}, separators=(",", ":"))
    _write(connection, want.bucket, waiting=text, **dict(zip(_FREE, free, strict=True)))
    waits_s = [(at - now_ms) / 1000 for at in times]
    return PermitBlock(notice=_notice(row, now_ms), waits_s=waits_s, interval_s=interval_ms / 1000)


def read_state(connection: sa.Connection, now_ms: float, bucket: Bucket) -> LimiterState:
    """Read what all must heed."""
    row = connection.execute(_NAMED, {"bucket": bucket.name}).one_or_none()
    return _notice(row, now_ms) if row else LimiterState(now_ms=now_ms)


def correct(connection: sa.Connection, now_ms: float, bucket: Bucket, correction: Amounts) -> None:
    """Book what was taken more than permitted, or give back what was not used."""
    row = _row(connection, bucket)
    free = _corrected(row, _rates(row, bucket.stated, now_ms)[0], correction)
    _write(connection, bucket, **dict(zip(_FREE, free, strict=True)))


def slow_down(
    connection: sa.Connection, now_ms: float, bucket: Bucket, *, quiet_s: float, limited_ago_s: float | None
) -> LimiterState:
    """Note that the server asked for `quiet_s` of silence; or refused, as too many, what was sent so long ago.

    Of the calls that were sent before a cut of the pace, none cuts it once more.
    """
    row = _row(connection, bucket)
    values: dict[str, Any] = {}
    quiet_until_ms = max(row.quiet_until_ms, now_ms + quiet_s * 1000 if quiet_s else 0.0)
    if limited_ago_s is not None and row.cut_ms < now_ms - limited_ago_s * 1000:
        limit = bucket.stated.rpm or row.rpm
        pace = 60_000 * (_rates(row, bucket.stated, now_ms)[0][0] or 0.0) or _observed_rpm(connection, bucket)
        values = {"cut_rpm": max(pace / 2, limit / 16 if limit else _LEAST_RPM)}
        values["cut_ms"] = max(now_ms, quiet_until_ms)
    if quiet_until_ms > row.quiet_until_ms or values:
        # Whoever went over a limit has nothing left to burst with.
        full = max(now_ms, quiet_until_ms) + _rates(row, bucket.stated, now_ms)[1]
        values |= {name: max(getattr(row, name), full) for name in _FREE}
        _write(connection, bucket, quiet_until_ms=quiet_until_ms, **values)
    return read_state(connection, now_ms, bucket)


def store_limits(connection: sa.Connection, now_ms: float, bucket: Bucket, limits: Limits) -> LimiterState:
    """Note the limits that the API's headers state; the pace is even from then on."""
    row = _row(connection, bucket)
    values: dict[str, Any] = dict(zip(("rpm", "itpm", "otpm"), limits.a_minute, strict=True))
    if row.learnt_ms < now_ms - _FORGOTTEN_MS:
        values |= {name: max(getattr(row, name), now_ms + limits.burst_s * 1000) for name in _FREE}
    _write(connection, bucket, learnt_ms=now_ms, **values)
    return read_state(connection, now_ms, bucket)


def _share(takers: dict[str, dict[str, float]], dag_id: str, in_a_round: float) -> int:
    """Return how many permits a process gets at a time: its part of its DAG's equal part of a round.

    Who has had its block goes to the end of the timeline, so equal blocks a round are equal shares. A round
    is as long as it takes for everybody to get one; parts of a permit are drawn by lot.
    """
    waiting = [len(held) for held in takers.values() if held]
    of_dag = max(in_a_round / len(waiting), *waiting)
    return max(1, min(MAX_PERMITS_AT_ONCE, int(of_dag / len(takers[dag_id]) + random.random())))


def _rates(row: sa.Row[Any], stated: Limits, now_ms: float) -> tuple[Sequence[float | None], float]:
    """Return what may go a millisecond, by kind, None where there is no limit; and the burst in ms."""
    known = stated or (_learnt(row) if row.learnt_ms > now_ms - _FORGOTTEN_MS else Limits())
    requests, *tokens = [limit / 60_000 if limit else None for limit in known.a_minute]
    if row.cut_ms > now_ms - _FORGOTTEN_MS:
        cut = row.cut_rpm / 60_000 * (1 + max(0.0, now_ms - row.cut_ms) / _BACK_IN_MS[bool(requests)])
        requests = min(requests or cut, cut)
    return (requests, *tokens), 1000 * (known.burst_s if known else 1.0)


def _corrected(row: sa.Row[Any], rates: Sequence[float | None], correction: Amounts) -> list[float]:
    return [
        getattr(row, name) + (c / rate if rate else 0.0)
        for name, c, rate in zip(_FREE, correction, rates, strict=True)
    ]


def _observed_rpm(connection: sa.Connection, bucket: Bucket) -> float:
    """Count the calls all processes have sent of late; their ids begin with the time."""
    since = first_id_of(int((time.time() - _OBSERVED_S) * 1000))
    sent = sa.select(sa.func.count()).where(call.c.id >= since, call.c.connection_id == bucket.connection_id)
    if bucket.model is not None:
        sent = sent.where(call.c.model == bucket.model)
    return float(connection.execute(sent).scalar_one()) * 60 / _OBSERVED_S


def _notice(row: sa.Row[Any], now_ms: float) -> LimiterState:
    return LimiterState(
        now_ms=now_ms,
        quiet_until_ms=row.quiet_until_ms,
        paced_until_ms=max(row.learnt_ms, row.cut_ms) + _FORGOTTEN_MS,
        learnt=_learnt(row),
    )


def _learnt(row: sa.Row[Any]) -> Limits:
    return Limits(rpm=row.rpm, itpm=row.itpm, otpm=row.otpm)


def _row(connection: sa.Connection, bucket: Bucket) -> sa.Row[Any]:
    """Return the bucket's row, made at its first use, which is nobody else's until the transaction ends."""
    row = connection.execute(_LOCKED, {"bucket": bucket.name}).one_or_none()
    if row is None:
        new = insert(connection.dialect.name, rate_limit).values(name=bucket.name, waiting="{}")
        connection.execute(new.on_conflict_do_nothing())
        row = connection.execute(_LOCKED, {"bucket": bucket.name}).one()
    return row


def _write(connection: sa.Connection, bucket: Bucket, **values: Any) -> None:
    connection.execute(_UPDATE, {"bucket": bucket.name, **values})
