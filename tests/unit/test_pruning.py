"""What the engine makes of a ledger that was pruned, and what an export makes of what was said."""

from __future__ import annotations

import asyncio
import json

from conftest import SCOPE, Wire, make_terms, message, question
from test_maintenance import before

from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.ledger.maintenance import export, prune
from airflow_llm_provider.ledger.schema import call, payload


async def test_a_call_that_lost_its_reply_is_bought_again_without_a_wait(engine: Engine, wire: Wire) -> None:
    database = engine.ledger.database
    await engine.ask(question(), make_terms(reuse="always"))
    ancient = call.update().values(id="0" * 32, closed_ms=1)
    with database.write() as connection:
        connection.execute(ancient)
        connection.execute(payload.update().values(call_id="0" * 32))
    gone = await asyncio.to_thread(lambda: prune(database, payloads_before_ms=before(database, 1)))
    assert gone.payloads == 1
    wire.usually = message("Better.")
    reply = await engine.ask(question(), make_terms(reuse="always"))
    assert (reply.text, len(wire.sent)) == ("Better.", 2)


async def test_an_export_with_payloads_has_the_apis_json(engine: Engine) -> None:
    bought = await engine.obtain(question("How are you?"), scope=SCOPE, reuse="run")
    engine.keep_prompt(question("How are you?"), bought)
    await engine.obtain(
        question("And you?"), scope=SCOPE, reuse="run"
    )  # what was noted before is written by now
    line, other = await asyncio.to_thread(lambda: list(export(engine.ledger.database, with_payload=True)))
    assert line["reply"]["content"][0]["text"] == "Fine."
    assert line["prompt"]["messages"][0]["content"] == "How are you?"
    assert other["prompt"] is None  # it is kept for errors only
    json.dumps(line)
