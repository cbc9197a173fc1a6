"""One request is bought at most once, and an answer is either valid or named as not valid."""

import asyncio
import dataclasses

import pydantic
import pytest
import sqlalchemy as sa
from conftest import SCOPE, Clock, Wire, make_terms, message, question
from waiting import until

from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.output_type import OutputType
from airflow_llm_provider.engine.reply import Reply
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.engine.retry import policies
from airflow_llm_provider.errors import (
    AnswerError,
    BadRequest,
    BusinessError,
    InvalidOutput,
    LLMError,
    NetworkError,
    Overloaded,
    RateLimited,
    Refused,
    Truncated,
)
from airflow_llm_provider.ledger.schema import call, payload
from airflow_llm_provider.options import Route


class Verdict(pydantic.BaseModel):
    good: bool


VERDICT = OutputType(Verdict)
GOOD = message('{"good": true}')
BAD = message('{"good": "perhaps"}')


def rows(engine: Engine) -> list[sa.Row]:
    with engine.ledger.database.read() as connection:
        return list(connection.execute(sa.select(call).order_by(call.c.opened_ms)))


async def test_an_answer_says_what_it_took(engine: Engine) -> None:
    reply = await engine.ask(question(), make_terms())
    assert reply.value == "Fine."
    assert reply.usage_record() == {
        "model": "claude-haiku-5-5",
        "stop_reason": "end_turn",
        "input_tokens": 10,
        "output_tokens": 5,
        "cache_read_tokens": 0,
        "cache_write_tokens": 0,
        "cost_usd": "0.000004",  # 10 x 0.10 + 5 x 0.50 micro-USD, rounded up
        "reused": False,
        "attempts": 1,
        "repairs": 0,
        "latency_s": reply.usage_record()["latency_s"],
        "trace_id": "0" * 32,
    }


async def test_a_settled_call_is_not_bought_again(engine: Engine, wire: Wire) -> None:
    first = await engine.ask(question(), make_terms())
    second = await engine.ask(question(), make_terms())
    assert len(wire.sent) == 1
    assert (first.reused, second.reused) == (False, True)
    assert second.value == first.value
    assert second.cost_micro_usd == first.cost_micro_usd


@pytest.mark.parametrize(
    ("reuse", "scope", "bought"),
    [
        ("always", {"run_id": "run-2", "dag_id": "another"}, 1),
        ("run", {"task_id": "another", "map_index": 7}, 1),
        ("run", {"run_id": "run-2"}, 2),
        ("run", {"dag_id": "another"}, 2),
        ("never", {"try_number": 2}, 1),  # an Airflow retry takes what this task instance has settled
        ("never", {"try_number": 2, "first_try": 2}, 2),  # a clear asks anew
        ("never", {"task_id": "another"}, 2),
    ],
)
async def test_reuse_reaches_as_far_as_it_says(
    engine: Engine, wire: Wire, reuse: str, scope: dict, bought: int
) -> None:
    await engine.ask(question(), make_terms(reuse=reuse))
    await engine.ask(question(), make_terms(scope=dataclasses.replace(SCOPE, **scope), reuse=reuse))
    assert len(wire.sent) == bought


async def test_many_who_ask_the_same_at_once_pay_once(engine: Engine, wire: Wire) -> None:
    replies = await asyncio.gather(*(engine.ask(question(), make_terms()) for _ in range(50)))
    assert len(wire.sent) == 1
    assert sum(reply.reused for reply in replies) == 49


@pytest.mark.parametrize(
    ("stop_reason", "error"),
    [
        ("refusal", Refused),
        ("max_tokens", Truncated),
        ("model_context_window_exceeded", Truncated),
        ("pause_turn", Truncated),
        ("something_new", AnswerError),
        (None, AnswerError),
    ],
)
async def test_only_a_finished_answer_is_a_success(
    engine: Engine, wire: Wire, stop_reason: str, error: type[LLMError]
) -> None:
    wire.usually = message('{"good": true}', stop_reason=stop_reason)
    for _ in range(2):  # the second time from the ledger, with the same outcome
        with pytest.raises(error):
            await engine.ask(question(), make_terms(output=VERDICT, max_repairs=3))
    assert len(wire.sent) == 1
    assert [row.state for row in rows(engine)] == ["settled"]


async def test_an_invalid_answer_is_sent_back_with_what_is_wrong(engine: Engine, wire: Wire) -> None:
    wire.script = [BAD, GOOD]
    reply = await engine.ask(question(), make_terms(output=VERDICT, max_repairs=3))
    assert reply.value == Verdict(good=True)
    assert (reply.repairs, reply.attempts) == (1, 2)
    *_, complaint = wire.sent[1].messages[-1]["content"]
    assert complaint["source"]["data"] == "good: Input should be a valid boolean, unable to interpret input"


async def test_a_repaired_answer_is_replayed_from_the_ledger(engine: Engine, wire: Wire) -> None:
    wire.script = [BAD, BAD, GOOD]
    await engine.ask(question(), make_terms(output=VERDICT, max_repairs=3))
    again = await engine.ask(question(), make_terms(output=VERDICT, max_repairs=3))
    assert len(wire.sent) == 3
    assert (again.reused, again.repairs, again.attempts) == (True, 2, 0)


async def test_a_hopeless_answer_stays_dead_at_no_cost_until_asked_for(engine: Engine, wire: Wire) -> None:
    wire.usually = BAD
    for _ in range(2):
        with pytest.raises(InvalidOutput):
            await engine.ask(question(), make_terms(output=VERDICT, max_repairs=2, reuse="always"))
    assert len(wire.sent) == 3
    wire.usually = GOOD
    later = dataclasses.replace(SCOPE, run_id="run-2")
    reply = await engine.ask(
        question(), make_terms(scope=later, output=VERDICT, max_repairs=2, reuse="always", retry_dead=True)
    )
    assert reply.value == Verdict(good=True)
    assert len(wire.sent) == 4


async def test_asking_for_the_dead_does_not_ask_again_at_every_retry(engine: Engine, wire: Wire) -> None:
    wire.usually = BAD
    for try_number in (1, 2):
        scope = dataclasses.replace(SCOPE, try_number=try_number)
        with pytest.raises(InvalidOutput):
            await engine.ask(question(), make_terms(scope=scope, output=VERDICT, retry_dead=True))
    assert len(wire.sent) == 1


async def test_what_may_work_later_is_tried_again(engine: Engine, wire: Wire, clock: Clock) -> None:
    wire.script = [RateLimited("slow down", retry_after_s=7), Overloaded("busy"), message("Fine.")]
    reply = await engine.ask(question(), make_terms())
    assert reply.attempts == 3
    assert clock.slept[0] >= 7
    assert [row.state for row in rows(engine)] == ["failed", "failed", "settled"]
    assert [row.error_class for row in rows(engine)] == ["RateLimited", "Overloaded", None]


async def test_what_can_not_work_is_tried_once(engine: Engine, wire: Wire) -> None:
    wire.usually = lambda _: BadRequest("no such model")
    with pytest.raises(BadRequest):
        await engine.ask(question(), make_terms())
    assert len(wire.sent) == 1


async def test_a_wait_beyond_the_deadline_is_left_to_airflow(engine: Engine, wire: Wire) -> None:
    wire.usually = lambda _: RateLimited("come back tomorrow", retry_after_s=86_400)
    with pytest.raises(RateLimited) as caught:
        await engine.ask(question(), make_terms())
    assert len(wire.sent) == 1
    assert caught.value.retry_after_s == 86_400


async def test_a_call_that_may_have_been_billed_is_booked_at_its_ceiling(engine: Engine, wire: Wire) -> None:
    wire.script = [NetworkError("cut off", billed=True), message("Fine.")]
    await engine.ask(question(max_tokens=1000), make_terms())
    unproven, settled = rows(engine)
    assert (unproven.state, settled.state) == ("unproven", "settled")
    assert unproven.cost_micro_usd == unproven.ceiling_micro_usd > settled.cost_micro_usd
    assert engine.tally.unproven == 1


async def test_a_fallback_answers_when_the_model_is_down(engine: Engine, wire: Wire) -> None:
    route = Route(fallbacks=["claude-sonnet-5-5"])
    wire.usually = lambda r: Overloaded("busy") if r.model == "claude-haiku-5-5" else message("Fine.")
    reply = await engine.ask(question(), make_terms(route=route))
    assert reply.value == "Fine."
    assert wire.sent[-1].model == "claude-sonnet-5-5"


async def test_cancelling_books_what_is_in_flight_and_frees_the_key(engine: Engine, wire: Wire) -> None:
    wire.gate = asyncio.Event()
    task = asyncio.create_task(engine.ask(question(), make_terms()))
    await until(lambda: bool(wire.sent))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    wire.gate = None
    await engine.ask(question(), make_terms())
    assert [row.state for row in rows(engine)] == ["unproven", "settled"]


async def test_one_failure_costs_the_others_nothing(engine: Engine, wire: Wire) -> None:
    wire.usually = lambda r: (
        BadRequest("not this one") if r.messages[0]["content"] == "question 7" else message("Fine.")
    )
    outcomes: dict[int, Reply | LLMError] = {}
    await engine.map(
        (question(f"question {i}") for i in range(20)),
        outcomes.__setitem__,
        make_terms(),
        max_in_flight=4,
    )
    assert isinstance(outcomes.pop(7), BadRequest)
    assert len(outcomes) == 19
    assert all(reply.value == "Fine." for reply in outcomes.values())


async def test_no_more_than_asked_are_in_flight(engine: Engine, wire: Wire) -> None:
    in_flight, most = 0, 0
    send = wire.send

    async def counted(request: object, **how: object) -> bytes:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        try:
            return await send(request, **how)
        finally:
            in_flight -= 1

    wire.send = counted
    await engine.map((question(f"{i}") for i in range(40)), lambda *_: None, make_terms(), max_in_flight=5)
    assert most == 5


async def test_the_first_call_warms_the_shared_prefix_before_the_others_go(
    engine: Engine, wire: Wire
) -> None:
    wire.gate = asyncio.Event()
    shared = {"type": "text", "text": "instructions " * 500}

    def about(document: str) -> object:
        content = [shared, {"type": "text", "text": document}]
        return question(messages=[{"role": "user", "content": content}], shared_blocks=1)

    asking = asyncio.create_task(
        engine.map((about(f"{i}") for i in range(10)), lambda *_: None, make_terms(), max_in_flight=10)
    )
    await until(lambda: bool(wire.sent))
    await asyncio.sleep(0.05)  # the others have their chance to go
    assert len(wire.sent) == 1
    wire.gate.set()
    await asking
    assert len(wire.sent) == 10


async def test_prompts_are_kept_for_errors_only_by_default(engine: Engine, wire: Wire) -> None:
    wire.script = [BAD]
    with pytest.raises(InvalidOutput):
        await engine.ask(question("bad"), make_terms(output=VERDICT))
    wire.script = [GOOD]
    await engine.ask(question("good"), make_terms(output=VERDICT))
    with engine.ledger.database.read() as connection:
        kept = list(connection.execute(sa.select(payload.c.prompt, payload.c.reply)))
    assert sorted(row.prompt is not None for row in kept) == [False, True]
    assert all(row.reply for row in kept)


class Sure(pydantic.BaseModel):
    good: bool
    confidence: float


def by_model(**answers: object) -> object:
    """Script a wire by the tail of the model's name."""

    def answer(request: Request) -> object:
        scripted = answers[request.model.split("-")[1]]
        return scripted.pop(0) if isinstance(scripted, list) else scripted

    return answer


async def test_the_strong_model_is_asked_only_where_the_cheap_one_fails(engine: Engine, wire: Wire) -> None:
    route = Route(models=["claude-haiku-5-5", "claude-opus-5-5"])
    wire.usually = by_model(haiku=BAD, opus=GOOD)
    reply = await engine.ask(question(), make_terms(output=VERDICT, max_repairs=1, route=route))
    assert reply.value == Verdict(good=True)
    assert [request.model[7:11] for request in wire.sent] == ["haik", "haik", "opus"]
    assert (reply.repairs, reply.attempts) == (1, 3)
    assert [row.purpose for row in rows(engine)] == ["answer", "repair", "escalation"]
    again = await engine.ask(question(), make_terms(output=VERDICT, max_repairs=1, route=route))
    assert (again.reused, len(wire.sent)) == (True, 3)


@pytest.mark.parametrize(("confidence", "models"), [(0.95, ["haiku"]), (0.5, ["haiku", "opus"])])
async def test_an_unsure_answer_goes_on_to_the_strong_model(
    engine: Engine, wire: Wire, confidence: float, models: list[str]
) -> None:
    route = Route(models=["claude-haiku-5-5", "claude-opus-5-5"], min_confidence=0.8)
    wire.usually = by_model(
        haiku=message(f'{{"good": false, "confidence": {confidence}}}'),
        opus=message('{"good": true, "confidence": 0.6}'),
    )
    reply = await engine.ask(question(), make_terms(output=OutputType(Sure), route=route))
    assert [request.model.split("-")[1] for request in wire.sent] == models
    assert reply.value.good == (models == ["haiku", "opus"])


async def test_a_refusal_is_answered_by_the_fallback_where_the_author_says_so(
    engine: Engine, wire: Wire
) -> None:
    wire.usually = by_model(haiku=message("No.", stop_reason="refusal"), opus=message("Yes."))
    route = Route(fallbacks=["claude-opus-5-5"], fall_back_on=["refusal"])
    reply = await engine.ask(question(), make_terms(route=route))
    assert reply.value == "Yes."


async def test_a_fallback_may_be_another_server(engine: Engine, wire: Wire) -> None:
    other = Wire()
    engine.connect(Endpoint(client=other, connection_id="other", default_tier="claude-opus-5-5"))
    wire.usually = lambda _: Overloaded("busy")
    reply = await engine.ask(question(), make_terms(route=Route(fallbacks=["conn:other"])))
    assert reply.value == "Fine."
    assert len(other.sent) == 1
    assert [row.connection_id for row in rows(engine)][-1] == "other"


async def test_what_the_author_lets_be_asked_again_is_asked_otherwise(engine: Engine, wire: Wire) -> None:
    engine.policies = policies({"refusal": {"attempts": 2}, "truncation": {"attempts": 2}})
    wire.script = [
        message("No.", stop_reason="refusal"),
        message("Well", stop_reason="max_tokens"),
        message("Well then."),
    ]
    reply = await engine.ask(question(max_tokens=100), make_terms())
    assert reply.value == "Well then."
    assert [(request.sample, request.max_tokens) for request in wire.sent] == [(0, 100), (1, 100), (1, 200)]


async def test_a_validators_complaint_is_sent_back_like_any_other(engine: Engine, wire: Wire) -> None:
    wire.script = [message("yes"), message("Yes.")]

    def ends_with_a_stop(value: str) -> str | None:
        return None if value.endswith(".") else "End with a full stop."

    reply = await engine.ask(question(), make_terms(validators=[ends_with_a_stop], max_repairs=1))
    assert reply.value == "Yes."
    complaint, _ = wire.sent[1].messages[-1]["content"]
    assert complaint["source"]["data"] == "End with a full stop."


async def test_a_validator_may_say_that_asking_again_is_no_use(engine: Engine, wire: Wire) -> None:
    def no_such_customer(value: str) -> None:
        raise BusinessError("Customer 7 does not exist.")

    with pytest.raises(BusinessError):
        await engine.ask(question(), make_terms(validators=[no_such_customer], max_repairs=3))
    assert len(wire.sent) == 1


@pytest.mark.parametrize("validator", [lambda _: True, lambda _: {}["missing"]])
async def test_a_broken_validator_buys_no_repairs(engine: Engine, wire: Wire, validator: object) -> None:
    with pytest.raises(BusinessError):
        await engine.ask(question(), make_terms(validators=[validator], max_repairs=3))
    assert len(wire.sent) == 1


async def test_a_fault_of_our_own_holds_neither_key_nor_money(engine: Engine, wire: Wire) -> None:
    def break_down(_: Request) -> bytes:
        raise ZeroDivisionError

    wire.script = [break_down]
    with pytest.raises(ZeroDivisionError):
        await engine.ask(question(), make_terms())
    assert (await engine.ask(question(), make_terms())).value == "Fine."
    assert sorted(row.state for row in rows(engine)) == ["settled", "unproven"]
