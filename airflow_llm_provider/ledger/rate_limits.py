"""Rate limits: when each call of a connection may be sent, by one timeline that all its processes share.

Each limit (requests, input tokens, output tokens) has a timeline: a call takes as much time of it as the limit needs
for the call's share. A permit is a place on the timelines. This is the generic cell rate algorithm.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from airflow_llm_provider.ledger.database import insert
from airflow_llm_provider.ledger.records import first_id_of
from airflow_llm_provider.ledger.schema import call, rate_limit

MAX_PERMITS_AT_ONCE = 32  # per block; a process that is killed wastes at most a block of the account's limit
_ROUND_MS = (
    1_000.0  # how much of the timeline all waiting processes may hold together, if that is a permit each
)
_WAITING_MS = 2_000.0  # a process counts as waiting for so long after its last permit
# After a cut the rate is a little below what went through. It stays there, comes back, and then grows faster and
# faster. In seconds, or in times between two calls where those are longer.
_MARGIN = 0.97
HOLD_S = 4.0
"""The rate stays for so long after a cut; what is then refused is not refused for the rate. See `unit_s`."""
# When it is back, and how fast it grows then; where a limit is known, that bounds it anyway.
_BACK, _SPEED = {True: 10.0, False: 20.0}, {True: 0.003, False: 0.0008}
_FORGOTTEN_MS = 600_000.0  # how long a header or a 429 counts
_OBSERVED_S = 10.0  # over which the rate is measured
_OBSERVED_CALLS, _MAX_OBSERVED_S = 10, 120.0  # or up to so many seconds, until it has so many calls
_LEAST_RPM = 1.0  # the rate is cut no further
_PROVEN = 0.85  # of what was accepted lately, a burst among it: at once, the rate is not cut below that
# A cut to nearly the same rate as the last one shows a limit that stays: the next growth comes twice as late.
_SAME, _MAX_SAME = 0.2, 3

Amounts = tuple[float, float, float]  # requests, input tokens, output tokens
NO_AMOUNTS: Amounts = (0.0, 0.0, 0.0)
_FREE = ("requests_free_ms", "input_free_ms", "output_free_ms")
_TIMES = (*_FREE, "quiet_until_ms", "learnt_ms", "cut_ms")
_CLOCK_MS = 1_000.0  # two reads of a clock may differ by less
_NAMED = sa.select(rate_limit).where(rate_limit.c.name == sa.bindparam("bucket"))
_LOCKED = _NAMED.with_for_update()
_UPDATE = rate_limit.update().where(rate_limit.c.name == sa.bindparam("bucket"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The limits of an account.

    Attributes:
        rpm: Requests per minute; None if not known.
        itpm: Input tokens per minute.
        otpm: Output tokens per minute.
        burst_s: After a pause, so many seconds' worth of them may be used at once.
    """

    rpm: int | None = None
    itpm: int | None = None
    otpm: int | None = None
    burst_s: float = 8.0

    def __bool__(self) -> bool:
        """Return whether any limit is known."""
        return any(self.per_minute)

    @property
    def per_minute(self) -> tuple[int | None, int | None, int | None]:
        """Return the limits in the order of Amounts."""
        return self.rpm, self.itpm, self.otpm


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """The calls that share one set of limits.

    Attributes:
        connection_id: The connection.
        model: The model, since the API counts by model; None for a connection that states its limits.
        stated: The limits that the connection states.
    """

    connection_id: str
    model: str | None
    stated: Limits

    @property
    def name(self) -> str:
        """Return the bucket's key in the ledger."""
        return self.connection_id if self.model is None else f"{self.connection_id}/{self.model}"


@dataclass(frozen=True, kw_only=True, slots=True)
class LimiterState:
    """What all processes have to respect, by the database's clock.

    Attributes:
        now_ms: When it was read.
        quiet_until_ms: Nothing may be sent until then.
        paced_until_ms: The limits, learnt or cut by a 429, count until then.
        learnt: The limits that the API's headers stated.
        cut_ms: When the rate was cut after a 429.
        cut_rpm: To what, in requests per minute; 0 for never.
    """

    now_ms: float
    quiet_until_ms: float = 0.0
    paced_until_ms: float = 0.0
    learnt: Limits = Limits()
    cut_ms: float = 0.0
    cut_rpm: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """Why the rate is cut.

    Attributes:
        share: The part of the rate that is refused.
        sent_rpm: Calls per minute that this process has sent lately.
        accepted: The part of them that was not refused.
        sent_ago_s: How long ago the call was sent that got a 429.
    """

    share: float
    sent_rpm: float
    accepted: float
    sent_ago_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PermitRequest:
    """A request for a block of permits.

    Attributes:
        bucket: Which limits.
        holder: The process that asks.
        dag_id: Its DAG: DAGs that wait get equal shares.
        costs: What each waiting call is expected to use.
        spare: So many more permits, for calls to come, but only those that may be used at once.
        correction: What earlier calls used beyond their permits; negative if they used less.
    """

    bucket: Bucket
    holder: str
    dag_id: str
    costs: Sequence[Amounts]
    spare: int = 0
    correction: Amounts = NO_AMOUNTS


@dataclass(frozen=True, kw_only=True, slots=True)
class PermitBlock:
    """A block of permits.

    Attributes:
        state: What all processes have to respect.
        waits_s: In how many seconds each permit may be used.
        interval_s: The time between two permits.
    """

    state: LimiterState
    waits_s: Sequence[float]
    interval_s: float


def take_permits(connection: sa.Connection, now_ms: float, request: PermitRequest) -> PermitBlock:
    """Take the next places on the timelines: at most the process's share of a round."""
    row = _locked_row(connection, now_ms, request.bucket)
    rates, burst_ms = _rates(row, request.bucket.stated, now_ms)
    free = _corrected(row, rates, request.correction)
    mean = tuple(sum(part) / len(request.costs) for part in zip(*request.costs, strict=True))
    limited = [(kind, rate) for kind, rate in enumerate(rates) if rate]
    interval_ms = max((mean[kind] / rate for kind, rate in limited), default=0.0)
    waiting = json.loads(row.waiting)
    waiting = {d: {h: until for h, until in held.items() if until > now_ms} for d, held in waiting.items()}
    waiting.setdefault(request.dag_id, {}).setdefault(request.holder, now_ms)
    room = _share(waiting, request.dag_id, _ROUND_MS / interval_ms if interval_ms else MAX_PERMITS_AT_ONCE)
    soonest = max(now_ms, row.quiet_until_ms)
    times: list[float] = []
    for number, cost in enumerate([*request.costs, *[mean] * request.spare][:room]):
        spans = [(kind, cost[kind] / rate) for kind, rate in limited]
        # A call that needs more than a burst waits until the whole burst is free, and the next calls wait longer.
        at = max([soonest, *(free[kind] - burst_ms + min(span, burst_ms) for kind, span in spans)])
        if number >= len(request.costs) and at > now_ms:
            break
        for kind, span in spans:
            free[kind] = max(free[kind], at) + span
        times.append(at)
    # There is at least one time: `_share` returns at least 1, and the first call always gets a place.
    waiting[request.dag_id][request.holder] = times[-1] + _WAITING_MS
    text = json.dumps({d: held for d, held in waiting.items() if held}, separators=(",", ":"))
    _update(connection, now_ms, request.bucket, waiting=text, **dict(zip(_FREE, free, strict=True)))
    waits_s = [(at - now_ms) / 1000 for at in times]
    return PermitBlock(state=_state_of(row, now_ms), waits_s=waits_s, interval_s=interval_ms / 1000)


def read_state(connection: sa.Connection, now_ms: float, bucket: Bucket) -> LimiterState:
    """Read what all processes have to respect."""
    row = connection.execute(_NAMED, {"bucket": bucket.name}).one_or_none()
    return _state_of(row, now_ms) if row else LimiterState(now_ms=now_ms)


def correct(connection: sa.Connection, now_ms: float, bucket: Bucket, correction: Amounts) -> None:
    """Book what calls used beyond their permits, or give back what they did not use."""
    row = _locked_row(connection, now_ms, bucket)
    free = _corrected(row, _rates(row, bucket.stated, now_ms)[0], correction)
    _update(connection, now_ms, bucket, **dict(zip(_FREE, free, strict=True)))


def pause(connection: sa.Connection, now_ms: float, bucket: Bucket, *, quiet_s: float) -> LimiterState:
    """Write down that nothing may be sent for `quiet_s` seconds; a longer pause stays."""
    row = _locked_row(connection, now_ms, bucket)
    quiet_until_ms = now_ms + quiet_s * 1000
    if quiet_until_ms > row.quiet_until_ms:
        rates, burst_ms = _rates(row, bucket.stated, now_ms)
        # The limit is used up: when the pause ends there is room for one call, and no burst.
        ends = [quiet_until_ms + burst_ms - min(burst_ms, 1 / rates[0] if rates[0] else 0.0)]
        ends += [quiet_until_ms + burst_ms] * 2
        values = {name: max(getattr(row, name), end) for name, end in zip(_FREE, ends, strict=True)}
        _update(connection, now_ms, bucket, quiet_until_ms=quiet_until_ms, **values)
    return read_state(connection, now_ms, bucket)


def slow_down(connection: sa.Connection, now_ms: float, bucket: Bucket, cut: Cut) -> LimiterState:
    """Cut the rate after 429s, to a little below what goes through, and never far below what just went through.

    Calls that were sent before the last cut do not cut the rate again.
    """
    row = _locked_row(connection, now_ms, bucket)
    if row.cut_ms < now_ms - cut.sent_ago_s * 1000:
        sent_rpm = max(cut.sent_rpm, _observed_rpm(connection, now_ms, bucket))
        rate = 60_000 * (_rates(row, bucket.stated, now_ms)[0][0] or 0.0) or sent_rpm
        accepted_rpm = max(rate * (1 - cut.share), _PROVEN * min(rate, sent_rpm * cut.accepted))
        cut_rpm = max(_LEAST_RPM, _MARGIN * accepted_rpm)
        is_same = abs(cut_rpm - row.cut_rpm) < _SAME * cut_rpm
        _update(
            connection,
            now_ms,
            bucket,
            cut_rpm=cut_rpm,
            cut_ms=now_ms,
            same_cuts=min(row.same_cuts + 1, _MAX_SAME) if is_same else 0,
        )
    return read_state(connection, now_ms, bucket)


def store_limits(connection: sa.Connection, now_ms: float, bucket: Bucket, limits: Limits) -> LimiterState:
    """Store the limits that the API's headers state; from then on calls are spread evenly."""
    row = _locked_row(connection, now_ms, bucket)
    values: dict[str, Any] = dict(zip(("rpm", "itpm", "otpm"), limits.per_minute, strict=True))
    before = _learnt(row).per_minute
    # Limits are stored once half of one is used, so there is no full burst to begin with.
    if row.learnt_ms < now_ms - _FORGOTTEN_MS:
        values |= {name: max(getattr(row, name), now_ms + limits.burst_s * 1000) for name in _FREE}
    elif any(old and (not new or new > old) for old, new in zip(before, limits.per_minute, strict=True)):
        # What is reserved ahead, on all timelines, follows from the lower limit. Processes lease anew.
        values |= {name: min(getattr(row, name), now_ms + limits.burst_s * 1000) for name in _FREE}
    _update(connection, now_ms, bucket, learnt_ms=now_ms, **values)
    return read_state(connection, now_ms, bucket)


def forget_limits(connection: sa.Connection, now_ms: float, bucket: Bucket) -> LimiterState:
    """Forget the limits that the API's headers stated, and what is reserved because of them."""
    row = _locked_row(connection, now_ms, bucket)
    values: dict[str, Any] = dict.fromkeys(("rpm", "itpm", "otpm"))
    values |= {name: min(getattr(row, name), now_ms) for name in _FREE}
    _update(connection, now_ms, bucket, learnt_ms=0, **values)
    return read_state(connection, now_ms, bucket)


def _share(waiting: dict[str, dict[str, float]], dag_id: str, per_round: float) -> int:
    """Return how many permits a process gets at a time: its part of its DAG's equal part of a round.

    The next block of a process begins at the end of the timeline, so equal blocks per round are equal shares. A
    round is long enough for each process to get a permit; fractions of a permit are drawn by lot.
    """
    processes = [len(held) for held in waiting.values() if held]
    of_dag = max(per_round / len(processes), *processes)
    return max(1, min(MAX_PERMITS_AT_ONCE, int(of_dag / len(waiting[dag_id]) + random.random())))


def _rates(row: sa.Row[Any], stated: Limits, now_ms: float) -> tuple[Sequence[float | None], float]:
    """Return the rates per millisecond, None where there is no limit, and the burst in milliseconds."""
    known = stated or (_learnt(row) if row.learnt_ms > now_ms - _FORGOTTEN_MS else Limits())
    requests, *tokens = [limit / 60_000 if limit else None for limit in known.per_minute]
    if row.cut_ms > now_ms - _FORGOTTEN_MS:
        cut = row.cut_rpm / 60_000 * _growth(row, now_ms, is_bounded=bool(requests))
        requests = min(requests or cut, cut)
    return (requests, *tokens), 1000 * (known.burst_s if known else 1.0)


def _corrected(row: sa.Row[Any], rates: Sequence[float | None], correction: Amounts) -> list[float]:
    return [
        getattr(row, name) + (c / rate if rate else 0.0)
        for name, c, rate in zip(_FREE, correction, rates, strict=True)
    ]


def unit_s(rpm: float) -> float:
    """Return the seconds that stand for one second of the rules: at low rates a second has less than a call."""
    return max(1.0, 240.0 / rpm)


def _growth(row: sa.Row[Any], now_ms: float, *, is_bounded: bool) -> float:
    """Return by what factor the rate has grown since it was cut."""
    stretch = unit_s(row.cut_rpm) * (1 if is_bounded else 2**row.same_cuts)
    passed: float = (now_ms - row.cut_ms) / 1000 / stretch
    back = _BACK[is_bounded]
    if passed < HOLD_S:
        return 1.0
    if passed < back:
        return 1 + (1 / _MARGIN - 1) * (passed - HOLD_S) / (back - HOLD_S)
    return math.exp(min(_SPEED[is_bounded] * (passed - back) ** 2, 10.0)) / _MARGIN


def _observed_rpm(connection: sa.Connection, now_ms: float, bucket: Bucket) -> float:
    """Return the rate of the calls that all processes have sent lately; ids begin with the time."""
    observed_s = _OBSERVED_S
    while True:
        since = first_id_of(int(now_ms - observed_s * 1000))
        sent = sa.select(sa.func.count(), sa.func.min(call.c.opened_ms)).where(
            call.c.id >= since, call.c.connection_id == bucket.connection_id
        )
        if bucket.model is not None:
            sent = sent.where(call.c.model == bucket.model)
        calls, first_ms = connection.execute(sent).one()
        if calls >= _OBSERVED_CALLS or observed_s >= _MAX_OBSERVED_S:
            break
        observed_s = min(observed_s * 2, _MAX_OBSERVED_S)
    # A run that has just begun has not sent for so long.
    passed_s = max(1.0, (now_ms - first_ms) / 1000) if first_ms is not None else observed_s
    return float(calls) * 60 / min(observed_s, passed_s)


def _state_of(row: sa.Row[Any], now_ms: float) -> LimiterState:
    ahead_ms = _ahead_ms(row, now_ms)
    return LimiterState(
        now_ms=now_ms,
        quiet_until_ms=row.quiet_until_ms - ahead_ms,
        paced_until_ms=max(row.learnt_ms, row.cut_ms) - ahead_ms + _FORGOTTEN_MS,
        learnt=_learnt(row),
        cut_ms=row.cut_ms - ahead_ms,
        cut_rpm=row.cut_rpm,
    )


def _learnt(row: sa.Row[Any]) -> Limits:
    return Limits(rpm=row.rpm, itpm=row.itpm, otpm=row.otpm)


def _ahead_ms(row: sa.Row[Any], now_ms: float) -> float:
    """Return by how much the database's clock was set back since the row was written; 0 for less than a second."""
    ahead_ms: float = row.written_ms - now_ms
    return ahead_ms if ahead_ms > _CLOCK_MS else 0.0


def _locked_row(connection: sa.Connection, now_ms: float, bucket: Bucket) -> sa.Row[Any]:
    """Return the bucket's row, locked until the transaction ends; make it at its first use.

    Its times are put back together with the database's clock: otherwise a clock that was an hour ahead for a moment
    would stop all calls for an hour.
    """
    row = connection.execute(_LOCKED, {"bucket": bucket.name}).one_or_none()
    if row is None:
        new = insert(connection.dialect.name, rate_limit).values(name=bucket.name, waiting="{}")
        # Two processes may make the row at the same time. Both then lock the one that was kept.
        connection.execute(new.on_conflict_do_nothing())
        row = connection.execute(_LOCKED, {"bucket": bucket.name}).one()
    if ahead_ms := _ahead_ms(row, now_ms):
        times = {name: getattr(row, name) - ahead_ms for name in _TIMES}
        _update(connection, now_ms, bucket, waiting="{}", **times)
        row = connection.execute(_LOCKED, {"bucket": bucket.name}).one()
    return row


def _update(connection: sa.Connection, now_ms: float, bucket: Bucket, **values: Any) -> None:
    connection.execute(_UPDATE, {"bucket": bucket.name, "written_ms": now_ms, **values})
