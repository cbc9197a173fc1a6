"""What repairs cost: sending only what a complaint needs, against sending everything; answers of scripted quality.

The stand-in plays a model that gets 12 % of a thousand invoices wrong at first, and 1 % for ever: values in the wrong
form, JSON among prose, fields left out, quotes that are in no document. It puts right what can be put right from what
it is shown, and leaves out what can't. Both sides run the documents of the operator through the same engine; the
other side repairs as is usual, by sending the whole conversation again. Costs are read off the ledger, which is
held against the stand-in's invoice: this measures what is sent, not any real model.

Then the share of documents that need their source again is varied: the engine caches the source only where that
pays, which is held against caching it never and always.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import re
import tempfile
from pathlib import Path
from typing import Any, Literal

import pydantic
import sqlalchemy as sa

from airflow_llm_provider.documents.output import RowWriter
from airflow_llm_provider.documents.prompt import DocumentPrompt
from airflow_llm_provider.documents.run import Run
from airflow_llm_provider.documents.sources import list_documents
from airflow_llm_provider.engine.client import AnthropicClient
from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.output_type import OutputType
from airflow_llm_provider.engine.repair import SourceRepairs
from airflow_llm_provider.errors import InvalidOutput
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.ledger.schema import call
from airflow_llm_provider.options import Options, Reading
from airflow_llm_provider.testing.standin import StandIn
from airflow_llm_provider.validators import adds_up, quotes_in_source
from tests.support.books import balance

MODEL = "claude-haiku-5-5"
SCOPE = CallScope(dag_id="bench", run_id="run", task_id="read", trace_id="0" * 32)
OPTIONS = Options(model=MODEL, reuse="always")
TERMS = (
    "Payment is due within thirty days of receipt. Late payment bears interest at the statutory rate. " * 60
)
LETTER = (
    "Invoice {n} of {vendor}. Travel: {travel}. Hotel: {hotel}. Total: {total}. Due on March {day}, 2026.\n\n"
)
FAULTS = {  # of a hundred documents, which are answered how at first
    **dict.fromkeys((3, 23, 43, 63), "form"),
    **dict.fromkeys((13, 33), "prose"),
    53: "hopeless",
    73: "missing",
    83: "quote",
    **dict.fromkeys((7, 27), "sum"),
    47: "form that the source tells",
}


class Line(pydantic.BaseModel):
    """What is paid for."""

    text: str
    amount: float


class Invoice(pydantic.BaseModel):
    """What is owed, by whom, and when."""

    number: int
    vendor: str
    kind: Literal["invoice", "credit note"]
    lines: list[Line]
    total: float
    due: pydantic.PastDate | pydantic.FutureDate
    quote: str


VALIDATORS = [adds_up("lines.*.amount", to="total"), quotes_in_source("quote")]


class SentAgain(OutputType):
    """The usual repair: nothing is mended, and every complaint sends the whole conversation again."""

    def read(self, text: str) -> tuple[Any, str]:
        """Return the value of an answer that is JSON and nothing but."""
        try:
            value, how = super().read(text)
        except InvalidOutput as error:
            raise InvalidOutput(str(error), reply_text=text) from error
        if how:
            raise InvalidOutput("The answer is not JSON alone.", reply_text=text)
        return value, how


def letter(number: int) -> dict[str, Any]:
    """Return the values of an invoice."""
    travel, hotel = 10 + number % 90, 100 + number % 37
    return {"n": number, "vendor": f"Vendor {number % 50} Ltd.", "travel": travel, "hotel": hotel} | {
        "total": travel + hotel,
        "day": 1 + number % 28,
    }


def truth(number: int) -> dict[str, Any]:
    """Return the right answer about an invoice."""
    values = letter(number)
    return {
        "number": number,
        "vendor": values["vendor"],
        "kind": "invoice",
        "lines": [
            {"text": "Travel", "amount": values["travel"]},
            {"text": "Hotel", "amount": values["hotel"]},
        ],
        "total": values["total"],
        "due": f"2026-03-{values['day']:02}",
        "quote": f"Total: {values['total']}.",
    }


def answer(question: Any) -> str:
    """Answer as a model might that is shown the document, or an answer alone."""
    found = re.search(r"Invoice (\d+) of", question.document)
    if found is None:
        return json.dumps(put_right(question))
    number = int(found[1])
    right, fault = truth(number), FAULTS.get(number % 100)
    is_repair = "complaint" in question.text
    if fault == "hopeless":
        return json.dumps({**right, "quote": "They owe us nothing."})
    if is_repair or fault is None:
        return json.dumps(right)
    if fault == "prose":
        return f"Here is what I found:\n\n```json\n{json.dumps(right)}\n```\n\nAsk me if you need more."
    wrong = {
        "form": {
            "kind": "Invoice",
            "total": f"{right['total']}.00 EUR",
            "due": f"March {int(right['due'][-2:])}, 2026",
        },
        "form that the source tells": {"total": "see above"},
        "missing": {"due": None},
        "quote": {"quote": f"The total is {right['total']}."},
        "sum": {"total": right["total"] + 1},
    }[fault]
    return json.dumps({**right, **wrong})


def put_right(question: Any) -> dict[str, Any]:
    """Return the fields that can be put right from the answer alone."""
    shown = next(
        json.loads(b.text) for b in question.blocks if b.kind == "document" and b.raw["title"] == "answer"
    )
    fixed: dict[str, Any] = {}
    if "kind" in shown:
        fixed["kind"] = shown["kind"].lower()
    if "total" in shown and (amount := re.match(r"[\d.]+", shown["total"])):
        fixed["total"] = float(amount[0])
    if "due" in shown:
        fixed["due"] = f"2026-03-{int(re.findall(r'[0-9]+', shown['due'])[0]):02}"
    return fixed


async def side(server: StandIn, documents: int, output: OutputType, folder: Path) -> dict[str, Any]:
    """Run all documents; return outcomes and costs."""
    url, before = f"sqlite:///{folder}/ledger.db", len(server.invoice.lines)
    endpoint = Endpoint(client=AnthropicClient(api_key="sk-bench", base_url=server.url))
    engine = Engine(endpoint=endpoint, ledger=Ledger(url))
    run = Run(
        engine=engine,
        scope=SCOPE,
        prompt=DocumentPrompt(prompt="What is owed?", output=output, endpoint=endpoint, options=OPTIONS),
        validators=VALIDATORS,
    )
    rows = [{"id": str(n), "text": LETTER.format(**letter(n)) + TERMS} for n in range(documents)]
    sink = RowWriter(folder / "rows.jsonl", schema=output.item_schema)
    try:
        manifest = await run.run(list_documents(rows, reading=Reading(text_field="text")), sink)
        sink.publish(manifest)
    finally:
        await engine.close()
    balance(url, server.invoice.lines[before:])
    letters = folder / "rows.dead_letters.jsonl"
    dead = [json.loads(line) for line in letters.read_text().splitlines()] if letters.exists() else []
    return {"outcomes": manifest["outcomes"], "dead": dead, **spent(url)}


def spent(url: str) -> dict[str, Any]:
    """Return requests and cost by purpose, and how many repairs had the document in them."""
    database = sa.create_engine(url, poolclass=sa.NullPool)
    with database.connect() as connection:
        found = connection.execute(
            sa.select(call.c.purpose, sa.func.count(), sa.func.sum(call.c.cost_micro_usd)).group_by(
                call.c.purpose
            )
        ).all()
    database.dispose()
    return {purpose: {"requests": count, "micro_usd": int(cost)} for purpose, count, cost in found}


class Never(SourceRepairs):
    """Caches no source."""

    caching_pays = False


class Always(SourceRepairs):
    """Caches every source."""

    caching_pays = True


async def cached(server: StandIn, documents: int, share: float, rule: SourceRepairs) -> int:
    """Ask about documents of which a share needs its source again; return the cost in micro-USD."""
    asked: collections.Counter[int] = collections.Counter()

    def half_right(question: Any) -> str:
        number = int(re.search(r"Invoice (\d+) of", question.document)[1])
        asked[number] += 1
        is_wrong = asked[number] == 1 and number % 10 < share * 10
        return json.dumps({**truth(number), **({"due": None} if is_wrong else {})})

    server.reply(call=half_right)
    before = server.invoice.cost_micro_usd
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(
            endpoint=Endpoint(client=AnthropicClient(api_key="sk-bench", base_url=server.url)),
            ledger=Ledger(f"sqlite:///{folder}/ledger.db"),
            source_repairs=rule,
        )
        prompt = DocumentPrompt(
            prompt="What is owed?", output=OutputType(Invoice), endpoint=engine.endpoint, options=OPTIONS
        )
        run = Run(engine=engine, scope=SCOPE, prompt=prompt, max_in_flight=8)
        rows = [{"id": str(n), "text": LETTER.format(**letter(n)) + TERMS} for n in range(documents)]
        sink = RowWriter(Path(folder) / "rows.jsonl", schema=prompt.output.item_schema)
        await run.run(list_documents(rows, reading=Reading(text_field="text")), sink)
        sink.discard()
        await engine.close()
    return server.invoice.cost_micro_usd - before


def main() -> None:
    """Run both sides and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=1000)
    documents = parser.parse_args().documents
    sides = {}
    for name, output in (("ours", OutputType(Invoice)), ("peer", SentAgain(Invoice))):
        with StandIn() as server, tempfile.TemporaryDirectory() as folder:
            server.reply(call=answer)
            sides[name] = asyncio.run(side(server, documents, output, Path(folder)))
    caching = {}
    for share in (0.1, 0.5):
        caching[share] = {}
        for name, rule in (("ours", SourceRepairs()), ("never", Never()), ("always", Always())):
            with StandIn() as server:
                caching[share][name] = asyncio.run(cached(server, documents // 2, share, rule))
    invalid = sum(n % 100 in FAULTS for n in range(documents))
    hopeless = sum(FAULTS.get(n % 100) == "hopeless" for n in range(documents))
    ours, peer = sides["ours"], sides["peer"]
    valid = ours["outcomes"]["answered"] + ours["outcomes"]["repaired"]
    for each in ours["dead"][:3]:
        print(f"dead letter {each['document_id']}: {each['reason']}: {each['message']}")
    print(f"caching the source, in micro-USD by share of documents that need it again: {caching}")
    print(
        json.dumps(
            {
                "name": "repair",
                "ours": ours["repair"]["micro_usd"],
                "peer": peer["repair"]["micro_usd"],
                "ratio": round(ours["repair"]["micro_usd"] / peer["repair"]["micro_usd"], 3),
                "unit": "micro-USD of repairs, on the stand-in's invoice; the peer sends everything again",
                "documents": documents,
                "invalid_at_first": invalid,
                "hopeless": hopeless,
                "valid_share": valid / documents,
                "named_with_reasons": sum(bool(each["complaints"]) for each in ours["dead"]),
                "repair_requests": ours["repair"]["requests"],
                "repair_requests_at_most": 1.2 * invalid + 3 * hopeless,
                "peer_repair_requests": peer["repair"]["requests"],
                "peer_valid_share": (peer["outcomes"]["answered"] + peer["outcomes"]["repaired"]) / documents,
                "answers_micro_usd": ours["answer"]["micro_usd"],
                "caching_micro_usd": {str(share): costs for share, costs in caching.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
