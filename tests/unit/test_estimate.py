"""What an estimate counts: what a run would ask, once, and nothing that is paid for."""

from __future__ import annotations

import dataclasses
import itertools
import math
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import orjson
import pydantic
import pytest
import sqlalchemy as sa
from conftest import SCOPE, Wire, message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_llm_provider.documents.document import Document, Rejected
from airflow_llm_provider.documents.estimate import SAMPLE_REQUESTS, Estimate, Range, estimate
from airflow_llm_provider.documents.output import RowWriter
from airflow_llm_provider.documents.prompt import DocumentPrompt
from airflow_llm_provider.documents.run import Run
from airflow_llm_provider.documents.sources import list_documents
from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.output_type import OutputType
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.queries import past_calls
from airflow_llm_provider.ledger.rate_limits import Limits
from airflow_llm_provider.ledger.records import Sighting
from airflow_llm_provider.ledger.schema import metadata
from airflow_llm_provider.options import LongInput, OnInvalid, Options, RequestFields, Route
from airflow_llm_provider.pricing import Prices, Usage, rate_card
from airflow_llm_provider.validators import Judge

Ask = Callable[..., Any]
MODEL = "claude-haiku-5-5"
STRONG = "claude-opus-5-5"


def texts(*numbers: int, start: str = "Letter") -> list[Document]:
    return [Document(id=f"doc-{n}", text=f"{start} {n}: we owe you ${n}.00.") for n in numbers]


def a_run(
    engine: Engine,
    *,
    run_id: str = "run-1",
    output: Any = None,
    prompt: str = "What is owed?",
    extra: dict[str, Any] | None = None,
    max_tokens: int = 4096,
    max_repairs: int = 0,
    enforce: bool = True,
    models: tuple[str, ...] = (MODEL,),
    long_input: LongInput | None = None,
    reuse: Any = "always",
    route: dict[str, Any] | None = None,
    **fields: Any,
) -> Run:
    options = Options(
        route=Route(models=models, **(route or {})),
        request=RequestFields(max_tokens=max_tokens, enforce=enforce, extra_body=extra or {}),
        on_invalid=OnInvalid(max_repairs=max_repairs),
        long_input=long_input or LongInput(),
        reuse=reuse,
    )
    return Run(
        engine=engine,
        scope=SCOPE.__class__(dag_id="nightly", run_id=run_id, task_id="read", trace_id="0" * 32),
        prompt=DocumentPrompt(
            prompt=prompt,
            output=OutputType(output),
            endpoint=engine.endpoint,
            options=options,
            asked_by="nightly.read",
        ),
        **{"max_in_flight": 4, "log_every_s": 3600.0, **fields},
    )


def with_endpoint(engine: Engine, **fields: Any) -> Engine:
    engine.endpoint = dataclasses.replace(engine.endpoint, **fields)
    return engine


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
            a_run(engine, output=int, retry_dead=True, max_repairs=2),
            list_documents(f"{tmp_path}/*.txt"),
        )
        assert told.calls == 3
    await engine.ledger.record(Sighting("a", "b"))
    assert contents(engine) == before
    assert wire.sent == []


async def test_a_dead_letter_stays_one_and_costs_nothing(engine: Engine, wire: Wire, ask: Ask) -> None:
    wire.usually = message("no number")
    await ask(texts(1), output=int)
    told = await estimate(a_run(engine, output=int), texts(1))
    assert (told.calls, told.outcomes["dead_letter"], told.reasons["invalid_output"]) == (0, 1, 1)
    again = await estimate(a_run(engine, output=int, retry_dead=True), texts(1))
    assert (again.calls, again.outcomes["dead_letter"]) == (1, 0)


async def test_a_repair_that_is_still_to_be_asked_is_counted(engine: Engine, wire: Wire, ask: Ask) -> None:
    wire.usually = message("no number")
    await ask(texts(1), output=int)
    told = await estimate(a_run(engine, output=int, max_repairs=1), texts(1))
    assert (told.calls, told.outcomes["pending"]) == (1, 1)


async def test_what_is_unsure_counts_as_a_call_to_the_stronger_model(
    engine: Engine, wire: Wire, ask: Ask
) -> None:
    wire.usually = message(orjson.dumps({"confidence": 0.2}).decode())
    schema = {"type": "object", "properties": {"confidence": {"type": "number"}}, "required": ["confidence"]}
    await ask(texts(1), output=schema)
    cheap = await estimate(a_run(engine, output=schema), texts(1, 2))
    asked = {"models": (MODEL, STRONG), "route": {"min_confidence": 0.5}}
    told = await estimate(a_run(engine, output=schema, **asked), texts(1, 2))
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
    assert (told.calls, told.documents, told.outcomes["pending"]) == (2, 2, 2)


@pytest.mark.parametrize(("output", "calls"), [(None, 4), (list[str], 3)])
async def test_a_text_read_in_parts_counts_its_parts(engine: Engine, output: Any, calls: int) -> None:
    text = "\n\n".join(f"Part {n}. " + "word " * 1_500 for n in range(3))
    long = LongInput(too_long="map_reduce", max_input_tokens=3_000)
    told = await estimate(a_run(engine, output=output, long_input=long), [Document(id="a", text=text)])
    assert told.calls == calls  # the parts, and one that merges what can't simply be joined
    assert told.outcomes["pending"] == 1


async def test_a_merge_of_parts_costs_no_more_than_was_said(engine: Engine, wire: Wire, ask: Ask) -> None:
    text = "\n\n".join(f"Part {n}. " + "word " * 1_500 for n in range(3))
    asked = {"long_input": LongInput(too_long="map_reduce", max_input_tokens=3_000), "max_tokens": 200}
    wire.count = dense
    wire.usually = lambda request: message("Fine. " * 30, input_tokens=dense(request), output_tokens=150)
    told = await estimate(a_run(engine, **asked), [Document(id="a", text=text)])
    manifest = await ask([Document(id="a", text=text)], **asked)
    assert manifest["requests_paid"] == told.calls == 4
    assert told.input_tokens.low <= manifest["input_tokens"] <= told.input_tokens.high
    assert told.cost_micro_usd.low <= engine.tally.paid_micro_usd <= told.cost_micro_usd.high
    again = await estimate(a_run(engine, **asked), [Document(id="a", text=text)])
    assert (again.calls, again.outcomes["reused"]) == (0, 1)


async def test_a_model_without_a_price_has_none(engine: Engine) -> None:
    told = await estimate(a_run(engine, models=("nobody-knows-1",)), texts(1, 2))
    assert told.cost_micro_usd is None
    assert told.as_dict()["cost_usd"] is None
    assert told.input_tokens.likely > 0
    assert (told + Estimate()).cost_micro_usd is None


async def test_prompts_above_the_price_step_are_counted_and_said(engine: Engine) -> None:
    def long(words: int) -> list[Document]:
        return [Document(id="long", text="word " * words)]

    told = await estimate(a_run(engine), long(100_000))
    assert (told.calls, told.long_prompts) == (1, 1)
    assert "1 prompts are so long that every token costs more" in told.basis
    assert told.as_dict()["long_prompts"] == 1
    short = await estimate(a_run(engine), long(10_000))
    assert short.long_prompts == 0
    assert "costs more" not in short.basis
    assert told.cost_micro_usd.likely > 40 * short.cost_micro_usd.likely
    split = LongInput(too_long="map_reduce", max_input_tokens="price_step")
    parts = await estimate(a_run(engine, long_input=split), long(100_000))
    assert (parts.long_prompts, parts.calls > 1) == (0, True)
    assert parts.cost_micro_usd.likely < told.cost_micro_usd.likely / 3


@pytest.mark.parametrize(
    ("fields", "share"), [({}, 1.0), ({"inference_geo": "us"}, 1.1), ({"inference_geo": "global"}, 1.0)]
)
async def test_what_the_request_states_of_geography_and_speed_is_in_the_estimate(
    engine: Engine, fields: dict[str, Any], share: float
) -> None:
    plain = await estimate(a_run(engine, extra={"inference_geo": "global"}), texts(1))
    told = await estimate(a_run(engine, extra=fields), texts(1))
    assert told.cost_micro_usd.likely == pytest.approx(plain.cost_micro_usd.likely * share, rel=0.02)
    # What is not stated may be a default of the workspace, so the highest price has it.
    most = 1.0 if fields == {"inference_geo": "global"} else 1.09
    assert told.cost_micro_usd.high >= plain.cost_micro_usd.high * most


@pytest.mark.parametrize(
    "of_the_server",
    [{"tools": [{"type": "web_search_20260318", "name": "web_search"}]}, {"mcp_servers": [{}]}],
)
async def test_what_the_server_runs_itself_without_a_limit_has_no_bound_and_so_no_price(
    engine: Engine, of_the_server: dict[str, Any]
) -> None:
    told = await estimate(a_run(engine, extra=of_the_server), texts(1))
    assert told.cost_micro_usd is None


NOBODY = "nobody-knows-1"


@pytest.mark.parametrize(
    "asked", [{"models": (MODEL, NOBODY)}, {"route": {"fallbacks": [NOBODY]}}], ids=["escalation", "fallback"]
)
async def test_a_model_without_a_price_that_may_be_asked_leaves_no_bound(
    engine: Engine, asked: dict[str, Any]
) -> None:
    told = await estimate(a_run(engine, **asked), texts(1))
    assert told.cost_micro_usd is None
    assert told.output_tokens.high > 0


@pytest.mark.parametrize("model", [MODEL, NOBODY])
async def test_a_fallback_is_priced_by_its_own_connection(engine: Engine, wire: Wire, model: str) -> None:
    prices = Prices.of({model: {"input": 5_000, "output": 25_000}})
    engine.others["dear"] = Endpoint(client=wire, prices=prices, tiers={MODEL: model})
    told = await estimate(a_run(engine, route={"fallbacks": ["conn:dear"]}), texts(1))
    alone = await estimate(a_run(engine), texts(1))
    assert told.cost_micro_usd.high > 1_000 * alone.cost_micro_usd.high
    assert told.cost_micro_usd.likely == alone.cost_micro_usd.likely


@pytest.mark.parametrize(("max_repairs", "sends"), [(0, 1), (2, 5)])
async def test_a_model_may_be_paid_for_wrong_answers_before_its_fallback_is(
    engine: Engine, max_repairs: int, sends: int
) -> None:
    alone = await estimate(a_run(engine), texts(1))
    told = await estimate(a_run(engine, max_repairs=max_repairs, route={"fallbacks": [MODEL]}), texts(1))
    assert told.output_tokens.high >= sends * alone.output_tokens.high


async def test_without_a_history_all_that_may_follow_is_in_tokens_and_price(engine: Engine) -> None:
    first = await estimate(a_run(engine), texts(1))
    told = await estimate(a_run(engine, max_repairs=2, models=(MODEL, STRONG), validators=[JUDGE]), texts(1))
    for alone, of_all in (
        (first.input_tokens, told.input_tokens),
        (first.output_tokens, told.output_tokens),
        (first.cost_micro_usd, told.cost_micro_usd),
    ):
        assert of_all.low == alone.low
        assert of_all.likely > alone.likely
        assert of_all.high >= 6 * alone.high  # two models, each asked three times


async def test_a_prompt_that_may_be_cached_costs_no_more_than_that_at_least(engine: Engine) -> None:
    prompt = "規" * 1_010  # of three bytes each
    told = await estimate(a_run(engine, prompt=prompt), texts(*range(1_000)))
    card = rate_card(MODEL)
    assert card is not None
    read = card.price_micro_usd(Usage(cache_read_tokens=1_024, uncached_tokens=1, output_tokens=1))
    assert told.cost_micro_usd.low <= 1_000 * read


async def test_without_a_history_the_high_figure_is_what_would_be_reserved(engine: Engine) -> None:
    run = a_run(engine, max_tokens=100, max_repairs=1)
    told = await estimate(run, texts(1))
    card = rate_card(MODEL)
    request = run.prompt.request(None)
    assert card is not None
    assert told.cost_micro_usd.high >= 2 * card.ceiling_micro_usd(
        input_tokens=request.input_ceiling_tokens, output_tokens=100
    )
    assert told.output_tokens.high == 2 * 100
    assert told.input_tokens.high > 2 * request.input_ceiling_tokens


async def test_answers_to_other_schemas_and_of_other_models_tell_nothing(engine: Engine, ask: Ask) -> None:
    await ask(texts(1, 2))
    for other in ({"output": list[str]}, {"models": (STRONG,)}):
        assert (await estimate(a_run(engine, **other), texts(3))).answers_known == 0
    assert (await estimate(a_run(engine, prompt="What is owed on {{ ds }}?"), texts(3))).answers_known == 2


async def test_the_time_is_set_by_the_tightest_limit(engine: Engine) -> None:
    for limits, paced_by in (
        (Limits(rpm=60), "requests"),
        (Limits(itpm=1), "input"),
        (Limits(otpm=1), "output"),
    ):
        told = await estimate(
            a_run(with_endpoint(engine, limits=limits), max_in_flight=256), texts(*range(120))
        )
        assert told.paced_by == paced_by
        assert told.seconds >= 120
    engine = with_endpoint(engine, limits=Limits())
    assert (await estimate(a_run(engine), texts(*range(8)))).paced_by == "latency"


async def test_history_is_the_newest_paid_calls_of_the_family(engine: Engine, ask: Ask) -> None:
    await ask(texts(1, 2, 3))
    await ask(texts(4), prompt="Another?", run_id="run-2")
    family = a_run(engine).prompt.family
    calls = past_calls(engine.ledger.database, family)
    assert len(calls) == 4
    assert {call.purpose for call in calls} == {"answer"}
    assert len(past_calls(engine.ledger.database, family, most=2)) == 2
    assert past_calls(engine.ledger.database, "f" * 16) == []


JUDGE = Judge(criteria=["The sum is right."], model=STRONG)
MET = message('{"findings": [{"criterion": 1, "why": "So it is.", "is_met": true}]}', output_tokens=40)


def answer_and_judge(request: Request) -> bytes:
    return MET if request.model == JUDGE.model else message("$5.00", input_tokens=600, output_tokens=20)


async def test_judges_are_in_the_estimate_with_a_history_and_without(
    engine: Engine, wire: Wire, ask: Ask
) -> None:
    wire.usually = answer_and_judge
    judged = {"validators": [JUDGE]}
    await ask(texts(*range(10)))  # before there was a judge: no guide to what it takes
    for start in (100, 200):
        told = await estimate(a_run(engine, **judged), texts(*range(start, start + 40)))
        before = engine.tally.paid_micro_usd
        await ask(texts(*range(start, start + 40)), **judged)
        paid = engine.tally.paid_micro_usd - before
        assert told.cost_micro_usd.low <= paid <= told.cost_micro_usd.high
        assert told.answers_known == (0 if start == 100 else 50)
    assert told.cost_micro_usd.likely == pytest.approx(paid, rel=0.25)  # the ten without a judge count


async def test_every_call_about_a_document_is_of_its_family(engine: Engine, wire: Wire, ask: Ask) -> None:
    wire.script = [message('{"owed": "much"}'), message('{"owed": 5}')]
    wire.usually = MET
    output = pydantic.create_model("Debt", owed=(int, ...))
    await ask(texts(1), output=output, validators=[JUDGE], max_repairs=1)
    seen = past_calls(engine.ledger.database, a_run(engine, output=output).prompt.family)
    assert sorted(call.purpose for call in seen) == ["answer", "judge", "repair"]


def dense(request: Request) -> int:
    """Count as a server does whose tokens have two bytes."""
    return request.text_bytes // 2


async def test_a_sample_is_counted_by_the_api_and_stands_for_the_others(engine: Engine, wire: Wire) -> None:
    wire.count = dense
    told = await estimate(a_run(engine), texts(*range(100)))
    run = a_run(engine)
    read = [await run.read(document) for document in texts(*range(100))]
    true = sum(dense(run.prompt.request(content)) for content in read)
    assert len(wire.counted) == 1 + SAMPLE_REQUESTS  # the part that all share, and the sample
    assert told.requests_counted == SAMPLE_REQUESTS
    assert told.input_tokens.likely == pytest.approx(true, rel=0.02)
    assert 0.8 * true < told.input_tokens.low <= true
    assert wire.sent == []
    assert f"by the API's own count of {SAMPLE_REQUESTS} requests" in told.basis


async def test_a_server_that_does_not_count_leaves_bounds_from_bytes_and_is_said(
    engine: Engine, ask: Ask, wire: Wire
) -> None:
    told = await estimate(a_run(engine), texts(1, 2, 3))
    assert told.requests_counted == 0
    assert "the API could not count them" in told.basis
    assert told.input_tokens.high >= sum(
        a_run(engine).prompt.request(None).input_ceiling_tokens for _ in range(3)
    )
    wire.usually = message("$5.00", input_tokens=30, output_tokens=9)
    before = engine.tally.paid_micro_usd
    manifest = await ask(texts(1, 2, 3))
    assert told.input_tokens.low <= manifest["input_tokens"] <= told.input_tokens.high
    assert told.cost_micro_usd.low <= engine.tally.paid_micro_usd - before <= told.cost_micro_usd.high


async def test_without_a_count_the_likely_size_comes_from_earlier_calls(
    engine: Engine, ask: Ask, wire: Wire
) -> None:
    wire.usually = lambda request: message("Fine.", input_tokens=request.text_bytes // 2)
    await ask(texts(*range(10)))
    told = await estimate(a_run(engine), texts(*range(100, 200)))
    manifest = await ask(texts(*range(100, 200)))
    assert told.input_tokens.likely == pytest.approx(manifest["input_tokens"], rel=0.1)
    assert told.input_tokens.low <= manifest["input_tokens"] <= told.input_tokens.high


async def test_known_documents_need_no_count(engine: Engine, ask: Ask, wire: Wire) -> None:
    await ask(texts(1, 2))
    wire.count = dense
    told = await estimate(a_run(engine), texts(1, 2))
    assert (told.calls, told.cost_micro_usd, wire.counted) == (0, Range(), [])


def answering(*lengths: int) -> Callable[[Request], bytes]:
    """Answer with so many tokens in turn."""
    left = itertools.cycle(lengths)
    return lambda _: message("Fine.", output_tokens=next(left))


async def test_few_answers_leave_a_wider_range_than_many(engine: Engine, wire: Wire, ask: Ask) -> None:
    wire.count, wire.usually = dense, answering(20, 26)
    spans = []
    for known in (2, 40):
        await ask(texts(*range(known)))
        told = (await estimate(a_run(engine), texts(*range(1_000, 1_100)))).output_tokens
        assert told.low <= 20 * 100
        assert told.high >= 26 * 100
        spans.append((told.high - told.low) / told.likely)
    assert spans[0] > 1.5 * spans[1]


async def test_a_repair_never_seen_may_still_come(engine: Engine, wire: Wire, ask: Ask) -> None:
    wire.count = dense
    await ask(texts(*range(30)), max_repairs=1)
    repairable = await estimate(a_run(engine, max_repairs=1), texts(*range(100, 200)))
    final = await estimate(a_run(engine), texts(*range(100, 200)))
    assert repairable.cost_micro_usd.likely == pytest.approx(final.cost_micro_usd.likely, rel=0.01)
    # The rule of three: of what never happened in 30 cases, there may be 10 in 100.
    assert repairable.output_tokens.high == pytest.approx(final.output_tokens.high + 10 * 5, rel=0.01)


async def test_repairs_are_expected_as_often_as_they_came(engine: Engine, wire: Wire, ask: Ask) -> None:
    wire.count = dense
    for number in range(15):
        wire.script += [message(f'{{"owed": "much {number}"}}'), message('{"owed": 5}')]
    output = pydantic.create_model("Debt", owed=(int, ...))
    await ask(texts(*range(15)), output=output, max_repairs=1, max_in_flight=1)
    told = await estimate(a_run(engine, output=output, max_repairs=1), texts(*range(100, 200)))
    assert told.output_tokens.likely == pytest.approx(2 * 100 * 5, rel=0.01)
    assert told.output_tokens.low < told.output_tokens.likely < told.output_tokens.high


@given(
    st.lists(st.integers(1, 400), min_size=0, max_size=10),
    st.integers(1, 12),
    st.integers(1, 20_000),
    st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
async def test_the_figures_are_always_in_order(
    tmp_path: Path, outputs: list[int], calls: int, size: int, is_counted: bool
) -> None:
    wire = Wire()
    wire.count = dense if is_counted else None
    engine = Engine(endpoint=Endpoint(client=wire), ledger=Ledger(f"sqlite:///{tmp_path}/{uuid.uuid4()}.db"))
    try:
        if outputs:
            wire.usually = answering(*outputs)
            with RowWriter(str(tmp_path / "rows.jsonl")) as writer:
                await a_run(engine).run(texts(*range(len(outputs))), writer)
        documents = [Document(id=f"{n}", text=f"{n} " + "x" * (size // (n + 1))) for n in range(calls)]
        told = await estimate(a_run(engine, max_repairs=2), documents)
        for figure in (told.cost_micro_usd, told.input_tokens, told.output_tokens):
            assert 0 <= figure.low <= figure.likely <= figure.high < math.inf
    finally:
        await engine.close()


@pytest.mark.parametrize(
    ("output", "tokens"),
    [
        (bool, 5),
        (Literal["card", "transfer"], 12),
        (list[str], 100),
        (None, 300),
    ],
    ids=str,
)
async def test_an_answers_usual_length_is_judged_from_its_schema(
    engine: Engine, output: Any, tokens: int
) -> None:
    told = await estimate(a_run(engine, output=output), texts(1))
    assert told.output_tokens.likely == pytest.approx(tokens, rel=0.5)
    assert (told.output_tokens.low, told.output_tokens.high) == (1, 4096)


async def test_a_schema_that_refers_to_itself_ends(engine: Engine) -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}, "required": ["next"]}
    schema = {"$ref": "#/$defs/Node", "$defs": {"Node": node}}
    told = await estimate(a_run(engine, output=schema, enforce=False), texts(1))
    assert 0 < told.output_tokens.likely < 1_000
