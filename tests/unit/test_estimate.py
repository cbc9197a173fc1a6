# ruff: noqa: F821  # to be moved to the new arguments in the next commit
"""What an estimate counts: what a run would ask, once, and nothing that is paid for."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pydantic
import pytest
import sqlalchemy as sa
from conftest import SCOPE, Wire, message
from hypothesis import given
from hypothesis import strategies as st

from airflow_llm_provider.documents.answers import answer_tokens
from airflow_llm_provider.documents.document import Document, Rejected
from airflow_llm_provider.documents.estimate import Estimate, estimate
from airflow_llm_provider.documents.experience import Experience
from airflow_llm_provider.documents.forecast import Asking, Forecast
from airflow_llm_provider.documents.output import RowWriter
from airflow_llm_provider.documents.run import Run
from airflow_llm_provider.documents.sources import list_documents
from airflow_llm_provider.engine.chunking import LongInput
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.output_type import OutputType
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.ledger.queries import PastCall, past_calls
from airflow_llm_provider.ledger.rate_limits import Limits
from airflow_llm_provider.ledger.records import Sighting
from airflow_llm_provider.ledger.schema import metadata
from airflow_llm_provider.options import Route
from airflow_llm_provider.pricing import Prices, Usage, rate_card
from airflow_llm_provider.validators import Judge

Ask = Callable[..., Any]
MODEL = "claude-haiku-5-5"


def texts(*numbers: int, start: str = "Letter") -> list[Document]:
    return [Document(id=f"doc-{n}", text=f"{start} {n}: we owe you ${n}.00.") for n in numbers]


def a_run(engine: Engine, *, run_id: str = "run-1", output: Any = None, **fields: Any) -> Run:
    question = {"prompt": "What is owed?", "model": MODEL, "endpoint": "api", "asked_by": "nightly.read"}
    asked = {name: fields.pop(name) for name in ("prompt", "model", "max_tokens", "extra") if name in fields}
    return Run(
        engine=engine,
        scope=SCOPE.__class__(dag_id="nightly", run_id=run_id, task_id="read", trace_id="0" * 32),
        question=Question(**{**question, **asked}, output=OutputType(output)),
        **{"max_in_flight": 4, **fields},
    )


@pytest.fixture
def ask(engine: Engine, tmp_path: Path) -> Ask:
    async def asked(documents: Any, **fields: Any) -> dict[str, Any]:
        with RowWriter(str(tmp_path / "rows.jsonl")) as sink:
            return await a_run(engine, **fields).run(documents, sink)

    return asked


def contents(engine: Engine) -> dict[str, list[Any]]:
    with engine.ledger.database.read() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(sa.select(table)).all()))
            for table in metadata.sorted_tables
        }


async def test_known_documents_cost_nothing_and_new_ones_are_counted(
    engine: Engine, wire: Wire, ask: Ask
) -> None:
    await ask(texts(1, 2, 3))
    told = await estimate(a_run(engine), texts(1, 2, 3, 4, 5))
    assert (told.documents, told.calls, told.outcomes["reused"], told.outcomes["pending"]) == (5, 2, 3, 2)
    assert told.answers_known == 3
    assert len(wire.sent) == 3


async def test_an_estimate_sends_nothing_and_changes_nothing(
    engine: Engine, wire: Wire, ask: Ask, tmp_path: Path
) -> None:
    wire.script = [message("no number")]
    for n in range(3):
        (tmp_path / f"{n}.txt").write_text(f"Letter {n}")
    await ask(list_documents(str(tmp_path / "0.txt")), output=int)
    await engine.ledger.record(Sighting("a", "b"))  # what was noted before is written by now
    before = contents(engine)
    wire.sent.clear()
    for _ in range(2):
        told = await estimate(
            a_run(engine, output=int, retry_dead=True, terms={"max_repairs": 2}),
            list_documents(f"{tmp_path}/*.txt"),
        )
        assert told.calls == 3
    await engine.ledger.record(Sighting("a", "b"))
    assert contents(engine) == before
    assert wire.sent == []


async def test_a_dead_letter_is_dead_still_and_costs_nothing(engine: Engine, wire: Wire, ask: Ask) -> None:
    wire.usually = message("no number")
    await ask(texts(1), output=int)
    told = await estimate(a_run(engine, output=int), texts(1))
    assert (told.calls, told.outcomes["dead_letter"], told.reasons["invalid_output"]) == (0, 1, 1)
    again = await estimate(a_run(engine, output=int, retry_dead=True), texts(1))
    assert (again.calls, again.outcomes["dead_letter"]) == (1, 0)


async def test_a_repair_that_is_still_to_be_asked_is_counted(engine: Engine, wire: Wire, ask: Ask) -> None:
    wire.usually = message("no number")
    await ask(texts(1), output=int)
    told = await estimate(a_run(engine, output=int, terms={"max_repairs": 1}), texts(1))
    assert (told.calls, told.outcomes["pending"]) == (1, 1)


async def test_what_is_unsure_counts_as_a_call_to_the_stronger_model(
    engine: Engine, wire: Wire, ask: Ask
) -> None:
    wire.usually = message(orjson.dumps({"confidence": 0.2}).decode())
    schema = {"type": "object", "properties": {"confidence": {"type": "number"}}, "required": ["confidence"]}
    await ask(texts(1), output=schema)
    cheap = await estimate(a_run(engine, output=schema), texts(1, 2))
    route = Route(escalate=["claude-opus-5-5"], min_confidence=0.5)
    told = await estimate(a_run(engine, output=schema, terms={"route": route}), texts(1, 2))
    assert (cheap.calls, told.calls) == (1, 2)
    assert told.cost_micro_usd.likely > 3 * cheap.cost_micro_usd.likely


async def test_the_same_content_is_paid_once(engine: Engine) -> None:
    twins = [Document(id=f"copy-{n}", text="The very same letter.") for n in range(5)]
    told = await estimate(a_run(engine), twins)
    assert (told.calls, told.repeated, told.outcomes["reused"]) == (1, 4, 4)


async def test_a_range_of_runs_counts_what_they_share_once(engine: Engine, tmp_path: Path) -> None:
    for n in range(4):
        (tmp_path / f"{n}.txt").write_text(f"Letter {n}")
    paid_for: set[str] = set()
    days = [
        await estimate(
            a_run(engine, run_id=f"day-{day}"), list_documents(f"{tmp_path}/[0-{day}].txt"), paid_for=paid_for
        )
        for day in (1, 2, 3)
    ]
    assert [day.calls for day in days] == [2, 1, 1]
    whole = sum(days, Estimate())
    assert (whole.documents, whole.calls, whole.repeated) == (9, 4, 5)
    assert whole.outcomes == {"answered": 0, "reused": 5, "repaired": 0, "dead_letter": 0, "pending": 4}


async def test_runs_that_share_no_answers_pay_each_for_itself(engine: Engine) -> None:
    paid_for: set[str] = set()
    for reuse, calls in (("run", 3), ("run", 3), ("always", 3), ("always", 0)):
        run_id = f"run-{len(paid_for)}"
        told = await estimate(a_run(engine, run_id=run_id, reuse=reuse), texts(1, 2, 3), paid_for=paid_for)
        assert told.calls == calls


async def test_broken_documents_show_before_money_is_spent(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    given = [
        *list_documents(str(tmp_path / "empty.txt")),
        Rejected(id="x", uri=None, reason="too_large", message="big"),
    ]
    told = await estimate(a_run(engine), [*given, *texts(1)])
    assert told.reasons == {"empty": 1, "too_large": 1}
    assert (told.calls, told.outcomes["dead_letter"]) == (1, 2)


async def test_a_limit_leaves_the_rest_uncounted(engine: Engine) -> None:
    told = await estimate(a_run(engine, limit=2), texts(*range(10)))
    assert (told.calls, told.documents, told.outcomes["pending"]) == (2, 10, 10)


@pytest.mark.parametrize(("output", "calls"), [(None, 4), (list[str], 3)])
async def test_a_text_read_in_parts_counts_its_parts(engine: Engine, output: Any, calls: int) -> None:
    text = "\n\n".join(f"Part {n}. " + "word " * 1_500 for n in range(3))
    long = LongInput(too_long="map_reduce", max_input_tokens=3_000)
    told = await estimate(a_run(engine, output=output, long=long), [Document(id="a", text=text)])
    assert told.calls == calls  # the parts, and one that merges what can't simply be joined
    assert told.outcomes["pending"] == 1


async def test_a_model_without_a_price_has_none(engine: Engine) -> None:
    told = await estimate(a_run(engine, model="nobody-knows-1"), texts(1, 2))
    assert told.cost_micro_usd is None
    assert told.as_dict()["cost_usd"] is None
    assert told.input_tokens.likely > 0
    assert (told + Estimate()).cost_micro_usd is None


@pytest.mark.parametrize("of_the_server", ["tools", "mcp_servers"])
async def test_what_the_server_runs_itself_has_no_bound_and_so_no_price(
    engine: Engine, of_the_server: str
) -> None:
    told = await estimate(a_run(engine, extra={of_the_server: [{}]}), texts(1))
    assert told.cost_micro_usd is None


NOBODY = "nobody-knows-1"


@pytest.mark.parametrize("route", [Route(escalate=[NOBODY]), Route(fallbacks=[Fallback(model=NOBODY)])])
async def test_a_model_without_a_price_that_may_be_asked_leaves_no_bound(
    engine: Engine, route: Route
) -> None:
    told = await estimate(a_run(engine, terms={"route": route}), texts(1))
    assert told.cost_micro_usd is None
    assert told.output_tokens.high > 0


@pytest.mark.parametrize("model", [MODEL, NOBODY])
async def test_a_fallback_is_priced_by_its_own_connection(engine: Engine, model: str) -> None:
    engine.other_prices["dear"] = Prices.of({model: {"input": 5_000, "output": 25_000}})
    route = Route(fallbacks=[Fallback(model=model, connection_id="dear")])
    told = await estimate(a_run(engine, terms={"route": route}), texts(1))
    alone = await estimate(a_run(engine), texts(1))
    assert told.cost_micro_usd.high > 1_000 * alone.cost_micro_usd.high
    assert told.cost_micro_usd.likely == alone.cost_micro_usd.likely


@pytest.mark.parametrize(("max_repairs", "sends"), [(0, 1), (2, 5)])
async def test_a_model_may_be_paid_for_wrong_answers_before_its_fallback_is(
    engine: Engine, max_repairs: int, sends: int
) -> None:
    alone = await estimate(a_run(engine), texts(1))
    terms = {"max_repairs": max_repairs, "route": Route(fallbacks=[Fallback(model=MODEL)])}
    told = await estimate(a_run(engine, terms=terms), texts(1))
    assert told.output_tokens.high == sends * alone.output_tokens.high


async def test_without_a_past_all_that_may_follow_is_in_tokens_and_price(engine: Engine) -> None:
    first = await estimate(a_run(engine), texts(1))
    terms = {"max_repairs": 2, "route": Route(escalate=[JUDGE.model]), "validators": [JUDGE]}
    told = await estimate(a_run(engine, terms=terms), texts(1))
    for alone, of_all in (
        (first.input_tokens, told.input_tokens),
        (first.output_tokens, told.output_tokens),
        (first.cost_micro_usd, told.cost_micro_usd),
    ):
        assert of_all.low == alone.low
        assert of_all.likely > alone.likely
        assert of_all.high >= 6 * alone.high  # two models, each asked three times


def test_a_prompt_that_may_be_cached_costs_no_more_than_that_at_least() -> None:
    blocks = [{"type": "text", "text": "規" * 1_010}, {"type": "text", "text": "x"}]  # of three bytes each
    request = Request(model=MODEL, messages=[{"role": "user", "content": blocks}], shared_blocks=1)
    forecast = Forecast(past=None, cards=rate_card, asking=Asking(models=(MODEL,)))
    for _ in range(1_000):
        forecast.add(request)
    card = rate_card(MODEL)
    assert card is not None
    read = card.price_micro_usd(Usage(cache_read_tokens=1_024, uncached_tokens=1, output_tokens=1))
    assert forecast.cost_micro_usd.low <= 1_000 * read


async def test_without_a_past_the_high_figure_is_what_would_be_reserved(engine: Engine) -> None:
    run = a_run(engine, max_tokens=100, terms={"max_repairs": 1})
    told = await estimate(run, texts(1))
    card = rate_card(MODEL)
    request = run.question.request(None)
    assert card is not None
    assert told.cost_micro_usd.high >= 2 * card.ceiling_micro_usd(
        input_tokens=request.input_ceiling_tokens, output_tokens=100
    )
    assert told.output_tokens.high == 2 * 100
    assert told.input_tokens.high > 2 * request.input_ceiling_tokens


async def test_other_schemas_and_other_tasks_are_no_experience(engine: Engine, ask: Ask) -> None:
    await ask(texts(1, 2))
    for other in ({"output": list[str]}, {"model": "claude-opus-5-5"}):
        assert (await estimate(a_run(engine, **other), texts(3))).answers_known == 0
    assert (await estimate(a_run(engine, prompt="What is owed on {{ ds }}?"), texts(3))).answers_known == 2


async def test_the_time_is_set_by_the_tightest_limit(engine: Engine) -> None:
    for limits, paced_by in (
        (Limits(rpm=60), "requests"),
        (Limits(itpm=1), "input"),
        (Limits(otpm=1), "output"),
    ):
        engine.limits = limits
        told = await estimate(a_run(engine, max_in_flight=256), texts(*range(120)))
        assert told.paced_by == paced_by
        assert told.seconds >= 120
    engine.limits = Limits()
    assert (await estimate(a_run(engine), texts(*range(8)))).paced_by == "latency"


async def test_history_is_the_newest_paid_calls_of_the_family(engine: Engine, ask: Ask) -> None:
    await ask(texts(1, 2, 3))
    await ask(texts(4), prompt="Another?", run_id="run-2")
    family = a_run(engine).question.family
    calls = past_calls(engine.ledger.database, family)
    assert len(calls) == 4
    assert {call.purpose for call in calls} == {"answer"}
    assert len(past_calls(engine.ledger.database, family, most=2)) == 2
    assert past_calls(engine.ledger.database, "f" * 16) == []


JUDGE = Judge(criteria=["The sum is right."], model="claude-opus-5-5")
MET = message('{"findings": [{"criterion": 1, "why": "So it is.", "is_met": true}]}', output_tokens=40)


def answer_and_judge(request: Request) -> bytes:
    return MET if request.model == JUDGE.model else message("$5.00", input_tokens=600, output_tokens=20)


async def test_judges_are_in_the_estimate_with_a_past_and_without(
    engine: Engine, wire: Wire, ask: Ask
) -> None:
    wire.usually = answer_and_judge
    terms = {"terms": {"validators": [JUDGE], "max_repairs": 0}}
    await ask(texts(*range(10)))  # before there was a judge: no guide to what it takes
    for start in (100, 200):
        told = await estimate(a_run(engine, **terms), texts(*range(start, start + 40)))
        before = engine.tally.paid_micro_usd
        await ask(texts(*range(start, start + 40)), **terms)
        paid = engine.tally.paid_micro_usd - before
        assert told.cost_micro_usd.low <= paid <= told.cost_micro_usd.high
        assert told.answers_known == (0 if start == 100 else 50)
    assert told.cost_micro_usd.likely == pytest.approx(paid, rel=0.25)  # the ten without a judge count


async def test_every_call_about_a_document_is_of_its_family(engine: Engine, wire: Wire, ask: Ask) -> None:
    wire.script = [message('{"owed": "much"}'), message('{"owed": 5}')]
    wire.usually = MET
    output = pydantic.create_model("Debt", owed=(int, ...))
    terms = {"validators": [JUDGE], "max_repairs": 1}
    await ask(texts(1), output=output, terms=terms)
    seen = past_calls(engine.ledger.database, a_run(engine, output=output).question.family)
    assert sorted(call.purpose for call in seen) == ["answer", "judge", "repair"]


def past(ceiling: int, tokens: int, output: int, *, purpose: str = "answer", **usage: int) -> PastCall:
    used = Usage(uncached_tokens=tokens, output_tokens=output, **usage)
    return PastCall(
        purpose=purpose, model=MODEL, ceiling_tokens=ceiling, usage=used, cost_micro_usd=50, latency_ms=900
    )


def test_longer_documents_are_foretold_from_shorter_ones() -> None:
    seen = Experience.of([past(2_000 + 10 * n, 5 * n // 2, 20) for n in range(10, 40)], MODEL)
    assert seen is not None
    longer = Request(model=MODEL, messages=[{"role": "user", "content": "x" * 100_000}])
    assert seen.input_tokens(longer) == pytest.approx(25_000, rel=0.02)
    assert seen.input_doubt(100_000) > seen.input_doubt(2_200)


def test_a_few_calls_leave_more_doubt_than_many() -> None:
    one, many = (
        Experience.of([past(2_400, 100, 20 + n % 7) for n in range(count)], MODEL) for count in (2, 500)
    )
    assert one is not None
    assert many is not None
    assert one.output_doubt(100) > 2 * many.output_doubt(100)
    assert many.output_doubt(1) > many.output_doubt(1_000)


def test_a_repair_never_seen_may_still_come() -> None:
    seen = Experience.of([past(2_400, 100, 20) for _ in range(30)], MODEL)
    assert seen is not None
    told = seen.extras_of(100)
    assert (told.low, told.likely, told.high) == (0, 0, 10)  # the rule of three
    repaired = [past(2_400, 100, 20), past(2_900, 150, 20, purpose="repair")] * 50
    often = Experience.of(repaired, MODEL)
    assert often is not None
    assert often.extras_of(100).low > 50


@given(
    st.lists(st.tuples(st.integers(2_100, 50_000), st.integers(1, 400)), min_size=1, max_size=40),
    st.integers(1, 30),
    st.integers(10, 20_000),
)
def test_a_forecast_is_always_in_order(seen: list[tuple[int, int]], calls: int, size: int) -> None:
    history = [past(ceiling, ceiling // 5, output) for ceiling, output in seen]
    for experience in (None, Experience.of(history, MODEL)):
        forecast = Forecast(past=experience, cards=rate_card, asking=Asking(models=(MODEL,), times=3))
        for n in range(calls):
            text = f"{n} " + "x" * size
            forecast.add(Request(model=MODEL, messages=[{"role": "user", "content": text}], max_tokens=500))
        for span in (forecast.cost_micro_usd, forecast.input_tokens, forecast.output_tokens):
            assert 0 <= span.low <= span.likely <= span.high < math.inf


SCHEMAS = st.recursive(
    st.one_of(
        st.builds(lambda options: {"enum": options}, st.lists(st.text(max_size=20), min_size=1, max_size=4)),
        st.builds(lambda most: {"type": "string", "maxLength": most}, st.integers(0, 80)),
        st.sampled_from([{"type": "boolean"}, {"type": "integer"}, {"type": "null"}, {"type": "string"}, {}]),
    ),
    lambda inner: st.one_of(
        st.builds(
            lambda parts: {"type": "object", "properties": parts, "required": sorted(parts)},
            st.dictionaries(st.text(max_size=8), inner, max_size=4),
        ),
        st.builds(
            lambda item, most: {"type": "array", "items": item, "maxItems": most}, inner, st.integers(0, 5)
        ),
        st.builds(lambda parts: {"anyOf": parts}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=10,
)


@given(SCHEMAS, st.integers(1, 5_000))
def test_any_schema_says_something_of_an_answers_length(schema: dict[str, Any], max_tokens: int) -> None:
    told = answer_tokens(Request(model=MODEL, messages=[], schema=schema, max_tokens=max_tokens))
    assert 1 <= told.low <= told.likely <= told.high <= max_tokens


def test_a_schema_that_refers_to_itself_ends() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}, "required": ["next"]}
    schema = {"$ref": "#/$defs/Node", "$defs": {"Node": node}}
    assert answer_tokens(Request(model=MODEL, messages=[], schema=schema)).high == 4096


def test_a_choice_is_bounded_unless_the_model_thinks_first() -> None:
    choice = {
        "type": "object",
        "properties": {"topic": {"enum": ["card", "transfer"]}},
        "required": ["topic"],
    }
    told = answer_tokens(Request(model=MODEL, messages=[], schema=choice))
    assert told.high < 60
    thinking = Request(model=MODEL, messages=[], schema=choice, extra={"thinking": {"type": "adaptive"}})
    assert answer_tokens(thinking).high == 4096
