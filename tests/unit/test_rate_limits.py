"""One timeline for all who share a limit: places on it, shares of it, and what the server said about it."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_llm_provider.ledger import rate_limits, schema
from airflow_llm_provider.ledger.database import Database
from airflow_llm_provider.ledger.rate_limits import Bucket, Limits, PermitBlock, PermitRequest

NOW = 1_800_000_000_000.0
TEN_A_SECOND = Bucket(connection_id="claude", model=None, stated=Limits(rpm=600, burst_s=2))
UNKNOWN = Bucket(connection_id="claude", model="claude-haiku-5-5", stated=Limits())


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sa.Connection]:
    database = Database(f"sqlite:///{tmp_path / 'ledger.db'}")
    database.migrate()
    with database.write() as connection:
        yield connection
    database.close()


def take(
    connection: sa.Connection,
    calls: int = 32,
    *,
    at_s: float = 0.0,
    bucket: Bucket = TEN_A_SECOND,
    holder: str = "one",
    dag_id: str = "nightly",
    tokens: tuple[float, float] = (0.0, 0.0),
    **more: object,
) -> PermitBlock:
    want = PermitRequest(bucket=bucket, holder=holder, dag_id=dag_id, costs=[(1.0, *tokens)] * calls, **more)
    return rate_limits.take_permits(connection, NOW + at_s * 1000, want)


def times(block: PermitBlock, at_s: float = 0.0) -> list[float]:
    return [round(at_s + wait_s, 3) for wait_s in block.waits_s]


def test_a_burst_goes_at_once_and_what_follows_is_spaced_evenly(connection: sa.Connection) -> None:
    assert [times(take(connection)) for _ in range(2)] == [[0.0] * 10] * 2
    assert times(take(connection)) == [round(0.1 * n, 3) for n in range(1, 11)]
    assert times(take(connection), 0.5)[0] == pytest.approx(1.6)


def test_processes_are_given_different_places(connection: sa.Connection) -> None:
    spent(connection)
    places = [t for holder in "abcd" for t in times(take(connection, holder=holder))]
    assert places == sorted(places)
    assert {round(b - a, 3) for a, b in pairwise(places)} == {0.1}


def spent(connection: sa.Connection, bucket: Bucket = TEN_A_SECOND) -> None:
    """Take the burst, so that from now on calls are spaced."""
    rate_limits.correct(connection, NOW, bucket, (0.0, 0.0, 0.0))
    connection.execute(
        sa.text(f"UPDATE rate_limit SET requests_free_ms = {NOW + 1000 * bucket.stated.burst_s}")
    )


takes = st.tuples(
    st.sampled_from("abcde"), st.integers(1, 40), st.integers(0, 20), st.floats(0, 3, allow_nan=False)
)


@settings(deadline=None)
@given(st.lists(takes, min_size=1, max_size=40), st.integers(1, 6000))
def test_however_it_is_taken_no_stretch_of_time_gets_more_than_its_rate_and_a_burst(
    taken: list[tuple[str, int, int, float]], rpm: int
) -> None:
    engine = sa.create_engine("sqlite://")
    bucket = Bucket(connection_id="claude", model=None, stated=Limits(rpm=rpm, burst_s=2))
    places: list[float] = []
    now_s = 0.0
    with engine.begin() as connection:
        schema.rate_limit.create(connection)
        for holder, calls, spare, later_s in taken:
            now_s += later_s
            block = take(connection, calls, at_s=now_s, bucket=bucket, holder=holder, spare=spare)
            places += [now_s + wait_s for wait_s in block.waits_s]
    engine.dispose()
    places.sort()
    for count, start in enumerate(places):
        later = places[count:]
        for n, end in enumerate(later, start=1):
            assert n <= (end - start + 2) * rpm / 60 + 1.01


def test_dags_that_wait_have_equal_shares_however_many_processes_they_are(connection: sa.Connection) -> None:
    spent(connection)
    due = {(f"p{n}", "many"): 0.0 for n in range(7)} | {("q", "one"): 0.0}
    counted = {"many": 0, "one": 0}
    while (at_s := min(due.values())) < 60:
        holder, dag_id = min(due, key=due.__getitem__)
        block = take(connection, at_s=at_s, holder=holder, dag_id=dag_id)
        counted[dag_id] += len(block.waits_s)
        # The next block is asked for when this one begins, as the queue does.
        due[holder, dag_id] = at_s + block.waits_s[0] + 0.001
    assert 560 <= sum(counted.values()) <= 640
    assert counted["one"] / sum(counted.values()) == pytest.approx(0.5, abs=0.05)


def test_the_share_of_a_process_that_is_gone_falls_to_the_others(connection: sa.Connection) -> None:
    spent(connection)
    take(connection, holder="gone", dag_id="other")
    assert len(take(connection).waits_s) == 5
    assert len(take(connection, at_s=10).waits_s) == 10


def test_spare_permits_are_only_taken_if_they_may_be_used_at_once(
    connection: sa.Connection,
) -> None:
    assert len(take(connection, 1, spare=5).waits_s) == 6
    spent(connection)
    assert len(take(connection, 1, spare=5).waits_s) == 1


def test_a_call_larger_than_a_burst_waits_for_all_of_it_and_leaves_a_debt(connection: sa.Connection) -> None:
    bucket = Bucket(connection_id="claude", model=None, stated=Limits(itpm=6_000, burst_s=2))
    assert times(take(connection, 1, bucket=bucket, tokens=(10.0, 0.0))) == [0.0]
    assert times(take(connection, 1, bucket=bucket, tokens=(1_000.0, 0.0))) == [
        0.1
    ]  # the bucket is full again
    assert times(take(connection, 1, bucket=bucket, tokens=(10.0, 0.0))) == [8.2]


def test_every_known_limit_is_kept(connection: sa.Connection) -> None:
    limits = Limits(rpm=6_000, itpm=600_000, otpm=600, burst_s=1)
    bucket = Bucket(connection_id="claude", model=None, stated=limits)
    block = take(connection, 3, bucket=bucket, tokens=(10.0, 5.0))
    assert times(block)[:2] == [0.0, 0.0]
    assert block.interval_s == pytest.approx(0.5)


def test_what_a_reply_took_beyond_its_permit_is_waited_for_by_the_next(connection: sa.Connection) -> None:
    bucket = Bucket(connection_id="claude", model=None, stated=Limits(otpm=600, burst_s=1))
    take(connection, 1, bucket=bucket, tokens=(0.0, 5.0))
    late = take(connection, 1, bucket=bucket, tokens=(0.0, 5.0), correction=(0.0, 0.0, 45.0))
    assert times(late) == [4.5]
    rate_limits.correct(connection, NOW, bucket, (0.0, 0.0, -45.0))
    assert times(take(connection, 1, bucket=bucket, tokens=(0.0, 5.0))) == [0.5]


# What the server states.


def test_after_a_pause_calls_are_spread_evenly(connection: sa.Connection) -> None:
    notice = rate_limits.pause(connection, NOW, TEN_A_SECOND, quiet_s=20)
    assert notice.quiet_until_ms == NOW + 20_000
    assert times(take(connection, 3)) == [20.0, 20.1, 20.2]
    assert rate_limits.read_state(connection, NOW, TEN_A_SECOND).quiet_until_ms == NOW + 20_000


def test_a_shorter_pause_does_not_end_a_longer_one(connection: sa.Connection) -> None:
    rate_limits.pause(connection, NOW, TEN_A_SECOND, quiet_s=20)
    notice = rate_limits.pause(connection, NOW + 1000, TEN_A_SECOND, quiet_s=1)
    assert notice.quiet_until_ms == NOW + 20_000


def interval_s(connection: sa.Connection, at_s: float, bucket: Bucket = TEN_A_SECOND) -> float:
    return round(take(connection, 1, at_s=at_s, bucket=bucket).interval_s, 3)


def cut(connection: sa.Connection, at_s: float, bucket: Bucket, share: float, ago_s: float = 0.1) -> None:
    """Cut the rate by `share`, as if this process sent nothing that was accepted."""
    why = rate_limits.Cut(share=share, sent_rpm=0.0, accepted=0.0, sent_ago_s=ago_s)
    rate_limits.slow_down(connection, NOW + 1000 * at_s, bucket, why)


def test_a_cut_holds_once_for_all_calls_sent_before_it_and_the_rate_is_back_within_seconds(
    connection: sa.Connection,
) -> None:
    for ago_s in (0.1, 0.4, 2.0):
        cut(connection, 0, TEN_A_SECOND, 0.5, ago_s)
    assert interval_s(connection, 0) == pytest.approx(0.2, rel=0.05)
    cut(connection, 1, TEN_A_SECOND, 0.5, 0.5)  # sent after the cut
    assert interval_s(connection, 1) == pytest.approx(0.4, rel=0.1)
    assert interval_s(connection, 60) == 0.1


def test_what_has_just_been_accepted_is_not_cut_away(connection: sa.Connection) -> None:
    why = rate_limits.Cut(share=0.9, sent_rpm=600.0, accepted=0.9, sent_ago_s=0.1)
    rate_limits.slow_down(connection, NOW, TEN_A_SECOND, why)
    assert interval_s(connection, 0) < 0.15


def test_an_unknown_limit_is_cut_to_what_was_sent_and_forgotten_in_the_end(
    connection: sa.Connection,
) -> None:
    assert interval_s(connection, 0, UNKNOWN) == 0
    why = rate_limits.Cut(share=0.5, sent_rpm=120.0, accepted=0.5, sent_ago_s=0.1)
    rate_limits.slow_down(connection, NOW, UNKNOWN, why)
    assert interval_s(connection, 0, UNKNOWN) == pytest.approx(1.0, rel=0.05)
    notice = rate_limits.read_state(connection, NOW, UNKNOWN)
    assert notice.paced_until_ms == NOW + 600_000
    assert interval_s(connection, 601, UNKNOWN) == 0


def test_a_limit_that_stays_is_tried_again_later_each_time(connection: sa.Connection) -> None:
    rates = [600.0]
    for start_s in (0, 40, 80):
        share = 1 - 600 / rates[-1]  # the limit is 600 a minute
        why = rate_limits.Cut(share=share, sent_rpm=600.0, accepted=1.0, sent_ago_s=0.1)
        rate_limits.slow_down(connection, NOW + 1000 * start_s, UNKNOWN, why)
        rates.append(60 / take(connection, 1, at_s=start_s + 40, bucket=UNKNOWN).interval_s)
    assert rates[1] > rates[2] > rates[3] >= 550


@pytest.mark.parametrize("ahead_s", [3_600, 86_400])
def test_a_clock_that_was_ahead_for_a_moment_stops_nobody(connection: sa.Connection, ahead_s: int) -> None:
    take(connection, 100, at_s=ahead_s)
    rate_limits.pause(connection, NOW + 1000 * ahead_s, TEN_A_SECOND, quiet_s=5)
    state = rate_limits.read_state(connection, NOW + 1000, TEN_A_SECOND)
    assert state.quiet_until_ms <= NOW + 1000 + 5_000
    waits = take(connection, 1, at_s=1.0).waits_s
    assert max(waits) <= 60


def test_a_clock_that_was_behind_for_a_moment_gives_one_burst_and_no_more(connection: sa.Connection) -> None:
    at_once = sum(wait == 0 for wait in take(connection, 32, at_s=0).waits_s)
    take(connection, 1, at_s=-3_600)
    again = sum(wait == 0 for wait in take(connection, 32, at_s=1.0).waits_s)
    assert again <= at_once + 11


def test_learnt_limits_count_for_ten_minutes_after_they_were_last_stated(connection: sa.Connection) -> None:
    notice = rate_limits.store_limits(connection, NOW, UNKNOWN, Limits(rpm=600, itpm=60_000))
    assert (notice.learnt.rpm, notice.learnt.itpm, notice.learnt.otpm) == (600, 60_000, None)
    assert times(take(connection, 2, bucket=UNKNOWN)) == [0.1, 0.2]  # half of them was used: no burst
    rate_limits.store_limits(connection, NOW + 300_000, UNKNOWN, Limits(rpm=300))
    assert interval_s(connection, 800, UNKNOWN) == 0.2
    assert interval_s(connection, 901, UNKNOWN) == 0
