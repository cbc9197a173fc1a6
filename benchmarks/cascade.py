"""What a cascade saves: the cheap model first against the strong model alone, on models of scripted quality.

The stand-in plays a cheap model that gets the hard quarter of the questions wrong and half of those with a low
stated confidence, the others in the wrong shape; and a strong model that gets all of them right. Score and
cost are read off the answers and the stand-in's invoice: this measures the routing, not any real model.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from typing import Any, Literal

import pydantic

from airflow_llm_provider.engine.client import AnthropicClient
from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.output_type import OutputType
from airflow_llm_provider.engine.reply import Reply
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.engine.terms import Terms
from airflow_llm_provider.errors import LLMError
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.options import OnInvalid, Options, Route
from airflow_llm_provider.testing.standin import StandIn
from tests.support.books import balance

CHEAP, STRONG = "claude-haiku-5-5", "claude-opus-5-5"
TOPICS = ("card", "transfer", "login", "loan")
TICKET = "Ticket {n}: please help me with my {topic}. " + "I have been a customer for many years. " * 20


class Ticket(pydantic.BaseModel):
    """What is asked for."""

    topic: Literal["card", "transfer", "login", "loan"]
    confidence: float


def truth(number: int) -> str:
    """Return the right answer about a ticket."""
    return TOPICS[number * 7 % len(TOPICS)]


def cheap_answer(question: Any) -> Any:
    """Answer as a cheap model might."""
    number = int(question.prompt.split("Ticket ")[1].split(":")[0])
    if number % 4:
        return {"topic": truth(number), "confidence": 0.95}
    if number % 8:
        return {"topic": truth(number + 1), "confidence": 0.4}
    return {"topic": "something else", "confidence": 0.9}


def strong_answer(question: Any) -> Any:
    """Answer as a strong model might."""
    number = int(question.prompt.split("Ticket ")[1].split(":")[0])
    return {"topic": truth(number), "confidence": 0.99}


async def side(server: StandIn, tickets: int, models: list[str]) -> dict[str, Any]:
    """Ask about all tickets; return score and cost."""
    before = server.invoice.cost_micro_usd
    right, alone, stayed = 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/ledger.db"
        engine = Engine(
            endpoint=Endpoint(client=AnthropicClient(api_key="sk-bench", base_url=server.url)),
            ledger=Ledger(url),
        )

        def done(index: int, outcome: Reply | LLMError) -> None:
            nonlocal right, alone, stayed
            if isinstance(outcome, LLMError):
                return
            right += outcome.value.topic == truth(index)
            alone += outcome.strong_alone_micro_usd or 0
            stayed += not outcome.escalations

        def request(number: int) -> Request:
            text = TICKET.format(n=number, topic=truth(number))
            message = {"role": "user", "content": [{"type": "text", "text": text}]}
            return Request(model=models[0], messages=[message], schema=OutputType(Ticket).schema)

        scope = CallScope(dag_id="bench", run_id="run", task_id="ask", trace_id="0" * 32)
        options = Options(route=Route(models=models, min_confidence=0.8), on_invalid=OnInvalid(max_repairs=0))
        terms = Terms(scope=scope, output=OutputType(Ticket), options=options)
        await engine.map((request(n) for n in range(tickets)), done, terms)
        await engine.close()
        cost = server.invoice.cost_micro_usd - before
        lines = server.invoice.lines[-engine.tally.requests :]
        balance(url, lines)
    return {
        "score": right / tickets,
        "cost_micro_usd": cost,
        "stayed_cheap": stayed,
        "alone_micro_usd": alone,
    }


def main() -> None:
    """Run both sides and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tickets", type=int, default=1000)
    tickets = parser.parse_args().tickets
    with StandIn() as server:
        server.reply(call=cheap_answer, model=CHEAP)
        server.reply(call=strong_answer, model=STRONG)
        cascade = asyncio.run(side(server, tickets, [CHEAP, STRONG]))
        strong = asyncio.run(side(server, tickets, [STRONG]))
    print(
        json.dumps(
            {
                "name": "cascade",
                "ours": cascade["cost_micro_usd"],
                "peer": strong["cost_micro_usd"],
                "ratio": round(strong["cost_micro_usd"] / cascade["cost_micro_usd"], 2),
                "unit": "micro-USD on the stand-in's invoice",
                "saved_share": round(1 - cascade["cost_micro_usd"] / strong["cost_micro_usd"], 3),
                "ours_score": cascade["score"],
                "peer_score": strong["score"],
                "stayed_cheap": cascade["stayed_cheap"],
                "strong_alone_estimated": cascade["alone_micro_usd"],
                "tickets": tickets,
            }
        )
    )


if __name__ == "__main__":
    main()
