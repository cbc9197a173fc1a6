"""Replies that were paid for and are odd: each is paid once, and is an answer or is named as none."""

import json
from typing import Any

import pytest
from conftest import Wire, make_terms, message, question

from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.reply import Message, blocked_reply, json_of_reply
from airflow_llm_provider.errors import InvalidOutput, NetworkError, Refused
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
