"""Replies that were paid for and are odd: each is paid once, and is an answer or is named as none."""

import json
from pathlib import Path
from typing import Any

import pydantic
import pytest
from conftest import SCOPE, Wire, make_terms, message, question

from airflow_llm_provider.documents.output import RowWriter
from airflow_llm_provider.documents.prompt import DocumentPrompt
from airflow_llm_provider.documents.run import Run
from airflow_llm_provider.documents.sources import list_documents
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.output_type import OutputType
from airflow_llm_provider.engine.reply import Message, blocked_reply, json_of_reply
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.errors import InvalidOutput, NetworkError, Refused
from airflow_llm_provider.options import OnInvalid, Options, Route
from airflow_llm_provider.tools import by_name

HALF = b"\\ud83d"  # the first half of a surrogate pair, as JSON writes it


def reply(**fields: Any) -> bytes:
    return json.dumps(json.loads(message("Fine.")) | fields).encode()


@pytest.mark.parametrize("odd", [HALF, b"\\ude00", HALF + HALF, b"\xff", b"caf\xe9"])
async def test_an_answer_that_is_not_unicode_is_paid_once_and_repaired(
    engine: Engine, wire: Wire, odd: bytes
) -> None:
    wire.script = [message("Smile.").replace(b"Smile", b"Smile " + odd), message("Smile.")]
    answer = await engine.ask(question(), make_terms(max_repairs=1))
    assert answer.value == "Smile."
    assert (len(wire.sent), engine.tally.requests, engine.tally.unproven) == (2, 2, 0)
    wire.sent[1].body(None)  # what it complains of can be sent


async def test_an_answer_that_is_not_unicode_is_a_dead_letter_without_repairs_and_is_not_asked_again(
    engine: Engine, wire: Wire
) -> None:
    wire.usually = message("Smile.").replace(b"Smile", HALF)
    for _ in range(2):
        with pytest.raises(InvalidOutput, match="half of a surrogate pair") as caught:
            await engine.ask(question(), make_terms())
    assert caught.value.reply_text == "\ufffd."
    assert caught.value.reused
    assert len(wire.sent) == 1


async def test_a_tool_is_not_run_with_arguments_that_are_not_unicode(engine: Engine, wire: Wire) -> None:
    ran: list[str] = []

    def publish(text: str) -> str:
        """Publish a text.

        Args:
            text: what to publish.
        """
        ran.append(text)
        return "done"

    called = {"type": "tool_use", "id": "toolu_1", "name": "publish", "input": {"text": "Smile"}}
    whole = reply(content=[called], stop_reason="tool_use")
    again = reply(content=[{**called, "id": "toolu_2"}], stop_reason="tool_use")
    wire.script = [whole.replace(b"Smile", HALF), again, message("Published.")]
    asked = question(tools=[tool.definition for tool in by_name([publish]).values()])
    answer = await engine.ask(asked, make_terms(toolbox=toolbox(publish)))
    assert answer.value == "Published."
    assert ran == ["Smile"]
    result = wire.sent[1].messages[-1]["content"][0]
    assert result["is_error"]
    assert "nothing was done" in result["content"].lower()


def toolbox(*functions: Any) -> Any:
    from airflow_llm_provider.engine.tool_loop import Toolbox

    return Toolbox(tools=by_name(functions))


@pytest.mark.parametrize("text", ["😀", "naïve", "\ufffd", "\\ud83d", ""])
def test_a_text_of_whole_characters_is_read_as_it_is(text: str) -> None:
    read = Message.parse(message(text))
    assert (read.text, read.is_damaged) == (text, False)


def test_both_halves_of_a_pair_are_one_character() -> None:
    read = Message.parse(message("Smile.").replace(b"Smile", b"\\ud83d\\ude00"))
    assert (read.text, read.is_damaged) == ("😀.", False)
    # In a stream they may come in two events.
    assert (
        Message.parse(json_of_reply(json.loads(message("")) | {"content": [text("\ud83d\ude00")]})).text
        == "😀"
    )


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


async def test_a_refusal_without_content_is_a_refusal(engine: Engine, wire: Wire) -> None:
    wire.usually = reply(content=None, stop_reason="refusal")
    for _ in range(2):
        with pytest.raises(Refused):
            await engine.ask(question(), make_terms())
    assert (len(wire.sent), engine.tally.requests, engine.tally.unproven) == (1, 1, 0)


@pytest.mark.parametrize(
    "raw",
    [
        reply(content=None),
        reply(content=5),
        reply(usage=None),
        b"[" * 100_000,
        b'{"model": NaN, ' + message("")[1:],
        b"",
        b"\xff\xfe",
    ],
    ids=["no content", "a number", "no usage", "deep", "NaN", "nothing", "no text"],
)
def test_what_is_no_reply_is_an_error_that_may_have_been_billed(raw: bytes) -> None:
    with pytest.raises(NetworkError, match="not a Messages API reply") as caught:
        Message.parse(raw)
    assert caught.value.billed


@pytest.mark.parametrize(
    ("details", "category"),
    [
        ({"type": "refusal", "category": "cyber", "explanation": "about JOHN DOE"}, "cyber"),
        ({"type": "refusal", "category": None, "explanation": "about JOHN DOE"}, None),
        ({"category": "about JOHN DOE"}, None),
        ({"category": 5}, None),
        (None, None),
        ("JOHN DOE", None),
    ],
)
async def test_a_refusal_says_its_category_and_none_of_its_text(
    engine: Engine, wire: Wire, details: Any, category: str | None
) -> None:
    wire.usually = reply(stop_reason="refusal", stop_details=details)
    with pytest.raises(Refused) as caught:
        await engine.ask(question(), make_terms())
    assert ("category cyber" in str(caught.value)) == (category == "cyber")
    assert "JOHN" not in str(caught.value)
    assert Message.parse(wire.usually).refusal_category == category


@pytest.mark.parametrize("is_free", [True, False])
def test_an_answer_that_the_filter_kept_back_is_a_refusal_that_costs_nothing_or_the_most(
    is_free: bool,
) -> None:
    asked = question("word " * 100)
    read = Message.parse(blocked_reply(asked, is_free=is_free))
    assert (read.stop_reason, read.refusal_category) == ("refusal", "content_filter")
    ceiling = (asked.input_ceiling_tokens, asked.max_tokens)
    assert (read.usage.input_tokens, read.usage.output_tokens) == ((0, 0) if is_free else ceiling)


# One odd reply among others, through a whole run.


class Fact(pydantic.BaseModel):
    name: str
    amount: int | None = None


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "amount": {"type": ["integer", "null"]}},
    "required": ["name"],
    "additionalProperties": False,
}
ODD = {
    "half a pair in the reply": message('{"name": "Smile"}').replace(b"Smile", HALF),
    "half a pair in the answer": message('{"name": "\\ud83d"}'),
    "half a pair in a key": message('{"\\ud83d": 1, "name": "x"}'),
    "a NUL": message('{"name": "a\\u0000b"}'),
    "a NUL in the reply": message('{"name": "ab"}').replace(b"ab", b"a\\u0000b"),
    "a number too large": message('{"name": "x", "amount": 1' + "0" * 400 + "}"),
    "a number beyond 64 bits": message('{"name": "x", "amount": 18446744073709551616}'),
    "not a number": message('{"name": "x", "amount": NaN}'),
    "nested deep": message("[" * 3_000),
    "nested deep in a field": message('{"name": ' + '{"a": ' * 3_000 + "1" + "}" * 3_001),
    "a key twice": message('{"name": "x", "name": "y"}'),
    "no content": reply(content=None, stop_reason="refusal"),
    "content of numbers": reply(content=[5]),
    "a block without a type": reply(content=[{}]),
    "a text that is no text": reply(content=[{"type": "text", "text": 5}]),
    "a long text": message("x" * 1_000_000),
    "a model of half a pair": reply(model="\ud83d"),
    "a stop reason of half a pair": reply(stop_reason="\ud83d"),
    "bytes": b"\x00\xff\xfe",
    "a bell and an escape": message('{"name": "\\u0007\\u001b[31m"}'),
}


@pytest.mark.parametrize(("output_type", "suffix"), [(None, "jsonl"), (Fact, "parquet"), (SCHEMA, "csv")])
async def test_no_odd_reply_ends_a_run_or_keeps_the_rows_of_others_from_the_file(
    engine: Engine, wire: Wire, tmp_path: Path, output_type: Any, suffix: str
) -> None:
    odd = dict(enumerate(ODD.values()))

    def answer(request: Request) -> bytes:
        number = int(json.loads(request.messages[0]["content"][1]["source"]["data"])["id"])
        return odd.get(number, message('{"name": "ACME"}'))

    wire.usually = answer
    route = Route(models=(question().model,), retry={"network": {"attempts": 1}})
    prompt = DocumentPrompt(
        prompt="Who?",
        output=OutputType(output_type),
        endpoint=engine.endpoint,
        options=Options(route=route, on_invalid=OnInvalid(max_repairs=0)),
    )
    run = Run(engine=engine, scope=SCOPE, prompt=prompt, max_in_flight=4, log_every_s=3600.0)
    count = len(odd) + 5
    with RowWriter(str(tmp_path / f"rows.{suffix}"), schema=prompt.output.schema) as sink:
        manifest = await run.run(list_documents([{"id": n, "text": "?"} for n in range(count)]), sink)
        sink.publish(manifest)
    outcomes = manifest["outcomes"]
    assert run.stopped is None
    assert outcomes["answered"] >= 5
    assert outcomes["answered"] + outcomes["dead_letter"] == manifest["documents"] == count
    assert len(wire.sent) == count
    letters = (tmp_path / "rows.dead_letters.jsonl").read_bytes().splitlines()
    assert len(letters) == outcomes["dead_letter"] > 0
