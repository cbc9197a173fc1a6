"""Votes: independent answers, the share that agrees, and what one failing vote does to the others."""

import asyncio
from typing import Any

import pytest
from conftest import Wire, make_terms, message, question
from hypothesis import given
from hypothesis import strategies as st
from waiting import until

from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.output_type import OutputType
from airflow_llm_provider.engine.reply import Reply
from airflow_llm_provider.engine.votes import ask_votes, count_votes
from airflow_llm_provider.errors import AuthenticationFailed, InvalidOutput, Overloaded, Refused
from airflow_llm_provider.options import Route

ONCE = {kind: {"attempts": 1} for kind in ("overloaded", "network")}
VOTES = st.lists(st.none() | st.tuples(st.sampled_from("abcd"), st.floats(0, 1)), min_size=1, max_size=9)


def poll(engine: Engine, votes: int, retry: Any = None, **fields: Any) -> Any:
    route = Route(retry=ONCE | (retry or {}))

    async def ask(sample: int) -> Reply:
        return await engine.ask(question(sample=sample), make_terms(route=route, **fields))

    return ask_votes(ask, votes)


async def test_every_vote_is_a_request_of_its_own_and_all_are_in_flight_at_once(
    engine: Engine, wire: Wire
) -> None:
    wire.gate = asyncio.Event()
    asking = asyncio.create_task(poll(engine, 5))
    await until(lambda: len(wire.sent) == 5)
    wire.gate.set()
    outcomes = await asking
    assert [outcome.text for outcome in outcomes] == ["Fine."] * 5
    assert len({request.fingerprint for request in wire.sent}) == 5


async def test_votes_that_were_cast_are_not_bought_again(engine: Engine, wire: Wire) -> None:
    wire.script = [message("a"), Overloaded("busy"), message("b")]
    with pytest.raises(Overloaded):
        await poll(engine, 3)
    outcomes = await poll(engine, 3)
    assert len(wire.sent) == 4
    assert sorted(outcome.text for outcome in outcomes) == ["Fine.", "a", "b"]


async def test_more_votes_only_add_to_those_there_are(engine: Engine, wire: Wire) -> None:
    await poll(engine, 3)
    await poll(engine, 5)
    assert len(wire.sent) == 5


async def test_a_refused_vote_that_is_asked_again_does_not_take_its_neighbours_answer(
    engine: Engine, wire: Wire
) -> None:
    wire.script = [message("", stop_reason="refusal")]
    await poll(engine, 3, retry={"refusal": {"attempts": 2}})
    assert len({request.sample for request in wire.sent}) == 4


async def test_an_answer_that_is_none_is_a_vote_for_nothing(engine: Engine, wire: Wire) -> None:
    wire.script = [message('{"value": 7}'), message("", stop_reason="refusal"), message("seven")]
    outcomes = await poll(engine, 3, output=OutputType(int))
    assert {type(outcome) for outcome in outcomes} == {InvalidOutput, Refused, Reply}


async def test_the_gravest_error_is_raised_once_all_have_ended(engine: Engine, wire: Wire) -> None:
    wire.script = [Overloaded("busy"), AuthenticationFailed("no key"), message("a")]
    with pytest.raises(AuthenticationFailed):
        await poll(engine, 3)
    assert len(wire.sent) == 3
    assert engine.tally.requests == 1


async def test_a_cancelled_poll_cancels_its_votes(engine: Engine, wire: Wire) -> None:
    wire.gate = asyncio.Event()
    asking = asyncio.create_task(poll(engine, 3))
    await until(lambda: len(wire.sent) == 3)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert engine.tally.unproven == 3


async def test_a_fault_of_ours_is_no_vote() -> None:
    async def ask(sample: int) -> Reply:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):
        await ask_votes(ask, 2)


def test_the_share_is_of_all_votes_also_those_that_were_not_cast() -> None:
    agreement = count_votes([("a", 0.9), ("b", 1.0), None, ("a", 0.7), None])
    assert agreement is not None
    assert (agreement.choice, agreement.share, agreement.voters) == ("a", 0.4, [0, 3])
    assert agreement.stated == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("votes", "choice"),
    [
        ([("a", 0.5), ("b", 0.6)], "b"),
        ([("a", 0.6), ("b", 0.6)], "a"),
        ([("b", 0.6), ("a", 0.6)], "b"),
    ],
)
def test_a_tie_goes_to_the_higher_stated_confidence_and_then_to_the_first(votes: Any, choice: str) -> None:
    agreement = count_votes(votes)
    assert agreement is not None
    assert agreement.choice == choice


def test_no_vote_is_no_agreement() -> None:
    assert count_votes([None, None]) is None


@given(VOTES)
def test_the_share_is_how_many_said_it_and_nobody_has_more(votes: Any) -> None:
    agreement = count_votes(votes)
    said = [vote[0] for vote in votes if vote]
    if agreement is None:
        assert not said
        return
    assert agreement.share == said.count(agreement.choice) / len(votes)
    assert all(said.count(other) <= said.count(agreement.choice) for other in said)
    assert 0 <= agreement.stated <= 1
    assert [votes[number][0] for number in agreement.voters] == [agreement.choice] * len(agreement.voters)
