"""Estimates against invoices: what was foretold, and what the stand-in then charged."""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from airflow_llm_provider.documents.document import Document
from airflow_llm_provider.documents.estimate import SAMPLE_REQUESTS, Estimate, estimate
from airflow_llm_provider.documents.output import RowWriter
from airflow_llm_provider.documents.prompt import DocumentPrompt
from airflow_llm_provider.documents.run import Run
from airflow_llm_provider.engine.client import AnthropicClient
from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.output_type import OutputType
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.options import LongInput, OnInvalid, Options, RequestFields, Route
from airflow_llm_provider.testing.standin import StandIn
from tests.support.books import balance

WORDS = (  # noqa: SIM905  # a sentence reads better
    "agreement buyer seller delivers within thirty days after receipt of invoice payment is due and late payment "
    "bears interest unless otherwise stated the governing law shall be that of the state where goods are made"
).split()


class Fact(pydantic.BaseModel):
    date: str = pydantic.Field(description="the date of the agreement")
    amount: str | None = pydantic.Field(description="the amount of money")
    clause: str = pydantic.Field(description="the sentence on late payment")


class Topic(pydantic.BaseModel):
    topic: Literal["payment", "delivery", "other"]


def texts(count: int, *, words: int, seed: int) -> list[Document]:
    """Return so many documents of about so many words, all different."""
    chance = random.Random(seed)

    def text(number: int) -> str:
        length = max(5, round(words * chance.uniform(0.6, 1.4)))
        body = " ".join(chance.choice(WORDS) for _ in range(length))
        return f"Agreement {seed}-{number} of March {number % 28 + 1}, 2026 on ${number + 1},000.00. {body}."

    return [Document(id=f"{seed}-{n}", text=text(n)) for n in range(count)]


def is_hard(question: Any) -> bool:
    """Pick every fourth document: a share that is the same in history and after it."""
    return int(re.search(r"Agreement \d+-(\d+)", question.text)[1]) % 4 == 0


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Documents to be asked about, after others were."""

    name: str
    documents: list[Document]
    history: list[Document] = field(default_factory=list)
    output: Any = Fact
    prompt: str = "What was agreed?"
    models: tuple[str, ...] = ("claude-haiku-5-5",)
    max_repairs: int = 0
    fault: dict[str, Any] | None = None
    long_input: LongInput = field(default_factory=LongInput)

    @property
    def options(self) -> Options:
        return Options(
            route=Route(models=self.models),
            request=RequestFields(max_tokens=1_000),
            on_invalid=OnInvalid(max_repairs=self.max_repairs),
            long_input=self.long_input,
            reuse="always",
        )


GUIDE = "House rules for reading agreements. " + " ".join(
    f"Rule {n}: take what stands, never what is meant." for n in range(150)
)
WORKLOADS = [
    Workload(name="short, without history", documents=texts(40, words=30, seed=1)),
    Workload(
        name="short, with history", documents=texts(60, words=30, seed=1), history=texts(25, words=30, seed=2)
    ),
    Workload(name="long, without history", documents=texts(6, words=6_000, seed=3)),
    Workload(
        name="long, after short ones",
        documents=texts(12, words=3_000, seed=4),
        history=texts(30, words=400, seed=5),
    ),
    Workload(name="cached prompt, without history", documents=texts(30, words=60, seed=6), prompt=GUIDE),
    Workload(
        name="cached prompt, with history",
        documents=texts(80, words=60, seed=7),
        history=texts(30, words=60, seed=8),
        prompt=GUIDE,
    ),
    Workload(
        name="partly known",
        documents=[*texts(30, words=80, seed=9), *texts(50, words=80, seed=10)],
        history=texts(30, words=80, seed=9),
    ),
    Workload(name="bounded answers, without history", documents=texts(40, words=50, seed=11), output=Topic),
    Workload(
        name="prose, with history",
        documents=texts(50, words=200, seed=12),
        history=texts(20, words=200, seed=13),
        output=None,
    ),
    Workload(
        name="repairs, with history",
        documents=texts(150, words=60, seed=14),
        history=texts(150, words=60, seed=15),
        max_repairs=2,
        fault={"kind": "wrong_shape", "share": 0.2},
    ),
    Workload(
        name="repairs, without history",
        documents=texts(40, words=60, seed=16),
        max_repairs=2,
        fault={"kind": "wrong_shape", "share": 0.2},
    ),
    Workload(
        name="in parts, without history",
        documents=texts(3, words=4_000, seed=17),
        output=list[Fact],
        long_input=LongInput(too_long="map_reduce", max_input_tokens=3_000),
    ),
    Workload(
        name="cascade, with history",
        documents=texts(80, words=60, seed=18),
        history=texts(80, words=60, seed=19),
        models=("claude-haiku-5-5", "claude-opus-5-5"),
        fault={"kind": "wrong_shape", "matching": is_hard, "model": "claude-haiku-5-5"},
    ),
    Workload(
        name="one document, with history",
        documents=texts(1, words=100, seed=20),
        history=texts(20, words=100, seed=21),
    ),
]


class Office:
    """Runs over documents against a stand-in, each an engine of its own on one ledger."""

    def __init__(self, server: StandIn, folder: Path) -> None:
        self.server, self.url, self.folder = server, f"sqlite:///{folder / 'ledger.db'}", folder
        self.runs = 0

    async def with_run(
        self, workload: Workload, work: Callable[[Run], Any], *, base_url: str | None = None
    ) -> Any:
        self.runs += 1
        client = AnthropicClient(api_key="sk-ant-any", base_url=base_url or self.server.url)
        engine = Engine(endpoint=Endpoint(client=client, address=self.server.url), ledger=Ledger(self.url))
        try:
            run = Run(
                engine=engine,
                scope=CallScope(
                    dag_id="nightly", run_id=f"run-{self.runs}", task_id="read", trace_id="0" * 32
                ),
                prompt=DocumentPrompt(
                    prompt=workload.prompt,
                    output=OutputType(workload.output),
                    endpoint=engine.endpoint,
                    options=workload.options,
                    asked_by="nightly.read",
                ),
                max_in_flight=16,
            )
            return await work(run)
        finally:
            await engine.close()

    async def ask(self, workload: Workload, documents: list[Document]) -> dict[str, Any]:
        async def work(run: Run) -> dict[str, Any]:
            with RowWriter(str(self.folder / "rows.jsonl")) as sink:
                return await run.run(documents, sink)

        return await self.with_run(workload, work)

    async def estimate(
        self, workload: Workload, documents: list[Document], *, base_url: str | None = None
    ) -> Estimate:
        return await self.with_run(workload, lambda run: estimate(run, documents), base_url=base_url)


@pytest.fixture
def office(claude_server: StandIn, tmp_path: Path) -> Iterator[Office]:
    claude_server.validate = False
    office = Office(claude_server, tmp_path)
    yield office
    balance(office.url, claude_server.invoice)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
async def test_the_invoice_lies_within_the_estimate(office: Office, workload: Workload) -> None:
    if workload.fault:
        office.server.fail(**workload.fault)
    if workload.history:
        await office.ask(workload, workload.history)
    before, seen = office.server.invoice.cost_micro_usd, office.server.seen
    told = await office.estimate(workload, workload.documents)
    assert office.server.seen == seen, "something was sent to /v1/messages"
    assert told.requests_counted == min(told.calls, SAMPLE_REQUESTS)
    manifest = await office.ask(workload, workload.documents)

    paid = office.server.invoice.cost_micro_usd - before
    lines = office.server.invoice.lines[-manifest["requests_paid"] :]
    cost = told.cost_micro_usd
    assert cost is not None
    print(f"{cost.low:.0f} <= {paid} <= {cost.high:.0f} micro-USD, likely {cost.likely / paid - 1:+.1%}")
    assert cost.low <= paid <= cost.high
    assert told.input_tokens.low <= manifest["input_tokens"] <= told.input_tokens.high
    assert told.output_tokens.low <= sum(line.output_tokens for line in lines) <= told.output_tokens.high
    if workload.history:
        assert cost.likely == pytest.approx(paid, rel=0.10)
        assert cost.high < 2.5 * paid  # or it would say nothing
    assert told.documents == manifest["documents"]
    assert told.outcomes["reused"] == manifest["outcomes"]["reused"]


@pytest.mark.parametrize("answer", [web.Response(status=404), web.Response(body=b"[]")], ids=["404", "odd"])
async def test_a_compatible_server_that_does_not_count_tokens_leaves_bounds(
    office: Office, answer: web.Response
) -> None:
    asked: list[str] = []

    async def refuse(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=answer.status, body=answer.body)

    workload = WORKLOADS[0]
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", refuse)
    async with TestServer(app) as server:
        told = await office.estimate(workload, workload.documents, base_url=str(server.make_url("")))
    assert asked == ["/v1/messages/count_tokens"]
    assert "the API could not count them" in told.basis
    manifest = await office.ask(workload, workload.documents)
    assert told.input_tokens.low <= manifest["input_tokens"] <= told.input_tokens.high
    assert told.cost_micro_usd.low <= office.server.invoice.cost_micro_usd <= told.cost_micro_usd.high


async def test_an_estimate_needs_no_network(office: Office) -> None:
    told = await office.estimate(WORKLOADS[0], WORKLOADS[0].documents, base_url="http://127.0.0.1:9")
    assert (told.calls, told.requests_counted) == (len(WORKLOADS[0].documents), 0)
