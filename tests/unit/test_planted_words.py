"""A word in a document, an answer, a complaint or a tool's arguments is in no error, no cause of one, and no log."""

from __future__ import annotations

import enum
import json
import logging
import traceback
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal

import orjson
import pydantic
import pytest
from conftest import SCOPE, Wire, make_terms, message, question

from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.output_type import OutputType
from airflow_llm_provider.engine.reply import Message, require_complete
from airflow_llm_provider.engine.tool_loop import Toolbox, ToolVerdict
from airflow_llm_provider.errors import AnswerError, InvalidOutput, LLMError, NetworkError
from airflow_llm_provider.tools import Tool, by_name
from airflow_llm_provider.validators import Complaint, Judge, adds_up, refers_to

WORD = "plantedword"
SENTENCE = f"So says {WORD}."


def written(error: BaseException) -> str:
    """Return all that Airflow prints of an error: its traceback, causes included."""
    return "".join(traceback.format_exception(error))


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    name: str


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]
    name: str


def is_day(value: str) -> str:
    raise ValueError(f"{value} is no day")


def is_custom(value: str) -> str:
    raise pydantic_core_error(value)


def pydantic_core_error(value: str) -> Exception:
    from pydantic_core import PydanticCustomError

    return PydanticCustomError("no_day", "{value} is no day", {"value": value})


def breaks(value: str) -> str:
    raise KeyError(value)


class Color(enum.Enum):
    RED = "red"


class Letter(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    day: Annotated[str, pydantic.AfterValidator(is_day)] = ""
    custom: Annotated[str, pydantic.AfterValidator(is_custom)] = ""
    broken: Annotated[str, pydantic.AfterValidator(breaks)] = ""
    color: Color = Color.RED
    number: int = 0
    id: uuid.UUID | None = None
    url: pydantic.HttpUrl | None = None
    pet: Annotated[Cat | Dog, pydantic.Field(discriminator="kind")] | None = None
    counts: dict[str, int] = {}
    short: Annotated[str, pydantic.Field(max_length=3)] = ""


SCHEMA = {
    "type": "object",
    "properties": {
        "day": {"type": "string", "maxLength": 3},
        "items": {"type": "object", "additionalProperties": {"type": "integer"}},
    },
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "answer",
    [
        *({name: SENTENCE} for name in ("day", "custom", "broken", "color", "number", "id", "url", "short")),
        *({"pet": {"kind": WORD}}, {"pet": {"kind": "cat", WORD: 1}}, {"counts": {WORD: "many"}}, {WORD: 1}),
        SENTENCE,
        f'{{"day": "{WORD}"',
        f'{{"{WORD}": 1, "{WORD}": 2}}',
    ],
    ids=ascii,
)
@pytest.mark.parametrize("output_type", [Letter, list[Letter]])
def test_an_answer_of_another_shape_is_not_quoted(answer: Any, output_type: Any) -> None:
    inner = answer if isinstance(answer, str) else json.dumps(answer)
    text = inner if output_type is Letter else f'{{"items": [{inner}]}}'
    with pytest.raises(InvalidOutput) as caught:
        OutputType(output_type).parse(text)
    assert WORD not in written(caught.value)


@pytest.mark.parametrize(
    "answer", [{"day": SENTENCE}, {WORD: 1}, {"items": {WORD: "many"}}, [WORD]], ids=ascii
)
def test_an_answer_that_does_not_fit_a_schema_is_not_quoted(answer: Any) -> None:
    with pytest.raises(InvalidOutput) as caught:
        OutputType(SCHEMA).parse(json.dumps(answer))
    assert WORD not in written(caught.value)


@pytest.mark.parametrize(
    "reason", ["refusal", "max_tokens", "pause_turn", "model_context_window_exceeded", WORD]
)
def test_an_answer_that_stopped_early_is_not_quoted(reason: str) -> None:
    with pytest.raises(AnswerError) as caught:
        require_complete(Message.parse(message(SENTENCE, stop_reason=reason)))
    assert WORD not in written(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        SENTENCE.encode(),
        json.dumps([WORD]).encode(),
        json.dumps({"content": WORD, "model": WORD, "stop_reason": WORD, "usage": WORD}).encode(),
        json.dumps(
            {
                "content": [{"type": "text", "text": WORD}],
                "model": [WORD],
                "stop_reason": None,
                "usage": {"input_tokens": WORD},
            }
        ).encode(),
    ],
    ids=ascii,
)
def test_what_is_no_reply_of_the_api_is_not_quoted(body: bytes) -> None:
    with pytest.raises(NetworkError) as caught:
        Message.parse(body)
    assert WORD not in written(caught.value)


def says(answer: str) -> str:
    return f"{answer} is wrong"


def says_where(answer: str) -> Complaint:
    return Complaint(f"{answer} is wrong", fields=[f"items.{WORD}"])


def raises(answer: str) -> None:
    raise LookupError(f"{answer} is in no table")


@pytest.mark.parametrize(
    "validator",
    [says, says_where, raises, lambda answer: [answer], lambda answer: answer],
)
async def test_the_complaint_of_a_validator_is_not_quoted(
    engine: Engine, wire: Wire, caplog: pytest.LogCaptureFixture, validator: Callable[..., Any]
) -> None:
    wire.script = [message(SENTENCE)]
    await refused(engine, caplog, validators=[validator], source="Another text.")


@pytest.mark.parametrize(
    "verdict",
    [SENTENCE, {"findings": [{"criterion": 1, "why": SENTENCE, "is_met": False}]}, {"findings": WORD}],
)
async def test_the_reason_of_a_judge_is_not_quoted(
    engine: Engine, wire: Wire, caplog: pytest.LogCaptureFixture, verdict: Any
) -> None:
    judge = Judge(criteria=["It is right."], model="claude-haiku-5-5")
    text = verdict if isinstance(verdict, str) else json.dumps(verdict)
    wire.script = [message(SENTENCE), message(text)]
    await refused(engine, caplog, validators=[judge], source=SENTENCE, quotes=False)


def find(name: str) -> str:
    """Find somebody."""
    if name.startswith("nobody"):
        raise LookupError(f"{name} is in no table")
    return f"{name}: {SENTENCE}"


async def no(_: Any) -> ToolVerdict:
    return ToolVerdict(is_approved=False, reason=SENTENCE)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *(
            ("find", {"name": WORD}),
            ("find", {"name": f"nobody {WORD}"}),
            ("find", {WORD: WORD}),
            ("find", {"name": [WORD]}),
        ),
        *((WORD, {"name": WORD}), ("once", {"name": WORD}), ("asked", {"name": WORD})),
    ],
    ids=ascii,
)
async def test_what_a_tool_is_given_and_returns_is_not_quoted(
    engine: Engine, wire: Wire, caplog: pytest.LogCaptureFixture, name: str, arguments: dict[str, Any]
) -> None:
    def once(name: str) -> str:
        """Do it once."""
        return name

    def asked(name: str) -> str:
        """Do it when asked."""
        return name

    tools = by_name([find, Tool(function=once, irreversible=True), Tool(function=asked, needs_approval=True)])
    reply = orjson.loads(message("", stop_reason="tool_use"))
    wire.usually = orjson.dumps(
        {**reply, "content": [{"type": "tool_use", "id": "toolu_1", "name": name, "input": arguments}]}
    )
    toolbox = Toolbox(tools=tools, max_turns=2, verdict=no)
    definitions = [one.definition for one in tools.values()]
    await refused(engine, caplog, tools=definitions, toolbox=toolbox, quotes=False)
    # The model is told all of it.
    assert WORD in str(wire.sent[-1].messages)


@pytest.mark.parametrize(
    "validator", [adds_up("parts.*", to="total"), refers_to("name", known=["Mill"])], ids=["sum", "reference"]
)
async def test_the_package_s_own_validators_quote_nothing_either(
    engine: Engine, wire: Wire, caplog: pytest.LogCaptureFixture, validator: Callable[..., Any]
) -> None:
    wire.script = [message(json.dumps({"name": WORD, "parts": {WORD: "4"}, "total": "5"}))]
    await refused(
        engine,
        caplog,
        output=OutputType({"type": "object"}),
        validators=[validator],
        source="Another text.",
        quotes=False,
    )


async def refused(
    engine: Engine, caplog: pytest.LogCaptureFixture, *, tools: Any = (), quotes: bool = True, **terms: Any
) -> None:
    """Ask, and require an error; neither it nor the log holds the word."""
    caplog.set_level(logging.DEBUG)
    with pytest.raises(LLMError) as caught:
        await engine.ask(question(SENTENCE, tools=tools), make_terms(scope=SCOPE, **terms))
    error = caught.value
    assert isinstance(error, AnswerError)
    assert WORD not in written(error)
    assert WORD not in caplog.text
    assert not quotes or WORD in error.complaint or "returned a value of type" in error.complaint
