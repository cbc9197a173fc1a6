"""A type that the API would refuse is named before anything is sent, and can be asked about all the same."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Optional

import pydantic
import pytest
from conftest import Wire, make_terms, message, question
from hypothesis import given
from hypothesis import strategies as st

from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.output_type import OutputType
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.engine.schema_limits import in_dialect, problem_of
from airflow_llm_provider.errors import TerminalError
from airflow_llm_provider.options import RequestFields
from airflow_llm_provider.testing.question import read_question
from airflow_llm_provider.testing.schema_rules import check_schemas
from airflow_llm_provider.testing.wire import ApiError

ENFORCED, DESCRIBED = RequestFields(), RequestFields(enforce=False)


def model(**fields: Any) -> type[pydantic.BaseModel]:
    made: type[pydantic.BaseModel] = pydantic.create_model("Made", **fields)
    return made


class Part(pydantic.BaseModel):
    name: str
    parts: list["Part"]


class Left(pydantic.BaseModel):
    right: Optional["Right"]


class Right(pydantic.BaseModel):
    left: Left


class Closed(pydantic.BaseModel):
    a: str
    b: tuple[int, int] = (1, 2)


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"in": schema}, "required": ["in"]}
    return schema


UNIONS = {f"f{n}": (int | None, ...) for n in range(17)}
OPTIONAL = {f"f{n}": (int, 0) for n in range(25)}
OVER = [
    (
        model(**UNIONS),
        "17 fields have more than one type (output_type.f0, output_type.f1",
        "16 in one request",
    ),
    (model(**OPTIONAL), "25 fields are optional (output_type.f0, output_type.f1", "24 in one request"),
    (
        model(lines=(list[model(**UNIONS)], ...)),
        "17 fields have more than one type (output_type.lines.*.f0",
        "16",
    ),
    (list[Part], "output_type.*.parts.* refers to itself", "Name each level"),
    (Left, "output_type.right.left refers to itself", "Name each level"),
    (
        model(meta=(dict[str, int], ...)),
        "output_type.meta is a dict with keys of the model's choice",
        "list of entries",
    ),
    (model(meta=(dict, ...)), "output_type.meta is a dict", "list of entries"),
    (dict[str, int], "output_type is a dict", "list of entries"),
    ({"type": "object"}, "output_type is a dict", "list of entries"),
    (
        {"type": "object", "patternProperties": {"^a": {"type": "string"}}},
        "output_type is a dict",
        "list of entries",
    ),
    (model(what=(Any, ...)), "output_type.what may be anything", "Any is not one"),
    (model(what=(list, ...)), "output_type.what.* may be anything", "Any is not one"),
    ({"type": "object", "properties": {"a": True}}, "output_type.a may be anything", "Any is not one"),
    (
        {"type": "object", "properties": {"a": {"type": "array"}}},
        "output_type.a.* may be anything",
        "Any is not one",
    ),
    (nested(40), f"output_type.{'in.' * 32}in is nested 33 levels deep", "Flatten the type"),
    (
        {"$ref": "#/own/a", "own": {"a": {"type": "object"}}},
        "output_type refers to '#/own/a'",
        "`$defs` only",
    ),
    (
        {"type": "object", "properties": {"c": {"$ref": "#"}}},
        "output_type.c refers to itself",
        "Name each level",
    ),
]


@pytest.mark.parametrize(("output_type", "what", "way_out"), OVER, ids=range(len(OVER)))
def test_what_the_api_would_refuse_is_named_with_its_field_the_limit_and_two_ways_out(
    output_type: Any, what: str, way_out: str
) -> None:
    output = OutputType(output_type)
    with pytest.raises(TerminalError) as caught:
        output.asking("What?", ENFORCED)
    said = str(caught.value)
    assert said.startswith(what)
    assert way_out in said
    assert "request=RequestFields(enforce=False)" in said
    prompt, schema = output.asking("What?", DESCRIBED)
    assert schema is None
    assert prompt.startswith("What?\n\nAnswer with one JSON object")
    assert json.loads(prompt.partition("schema:\n\n")[2]) == output.schema


@pytest.mark.parametrize("output_type", [each for each, _, _ in OVER], ids=range(len(OVER)))
def test_what_is_refused_here_the_api_refuses_or_could_never_fill(output_type: Any) -> None:
    schema = OutputType(output_type).schema
    assert schema is not None
    try:
        sent = dialect(schema)
        check_schemas({"output_config": {"format": {"type": "json_schema", "schema": sent}}})
    except (ApiError, ValueError, TypeError):
        return
    # What is left is lost on the way to the API: fields that nothing could be put into.
    assert (
        '"properties": {}' in json.dumps(sent)
        or '{"type": "array"}' in json.dumps(sent)
        or "in.in" in str(problem_of({"output_type": schema}))
    )


def dialect(schema: Mapping[str, Any]) -> dict[str, Any]:
    import anthropic

    return anthropic.transform_schema(in_dialect(schema))


FITTING = [
    model(**dict(list(UNIONS.items())[:16])),
    model(**dict(list(OPTIONAL.items())[:24])),
    model(amounts=(Annotated[list[int], pydantic.Field(min_length=2, max_length=5)], ...)),
    model(code=(Annotated[str, pydantic.Field(pattern="^a+$", min_length=2)], ...), raw=(bytes, b"")),
    model(pair=(tuple[int, str], ...), triple=(tuple[float, float, float], ...)),
    model(kind=(Literal["a", "b", None], ...), one=(Literal[1], ...)),
    list[Closed],
    str | int | Closed,
    {"type": ["object", "null"], "properties": {"type": {"type": "string"}}, "required": ["type"]},
    {"type": "object", "properties": {"enum": {"type": ["string", "null"], "enum": ["a", None]}}},
    nested(30),
]


@pytest.mark.parametrize("output_type", FITTING, ids=range(len(FITTING)))
def test_what_is_let_through_here_the_api_takes(output_type: Any) -> None:
    output = OutputType(output_type)
    prompt, schema = output.asking("What?", ENFORCED)
    assert prompt == "What?"
    assert schema is not None
    check_schemas({"output_config": {"format": {"type": "json_schema", "schema": dialect(schema)}}})


parts = st.recursive(
    st.sampled_from(
        [
            {"type": "string"},
            {"type": "string", "format": "phone", "minLength": 3},
            {"type": ["integer", "null"], "minimum": 3},
            {"enum": ["a", None]},
            {"type": "string", "enum": ["a"]},
            {},
            {"type": "object"},
            {"$ref": "#/$defs/Known"},
        ]
    ),
    lambda inner: (
        st.builds(
            lambda one, least: {"type": "array", "items": one, "minItems": least}, inner, st.integers(0, 3)
        )
        | st.builds(lambda one, two: {"anyOf": [one, two]}, inner, inner)
        | st.builds(lambda one, two: {"type": "array", "prefixItems": [one, two]}, inner, inner)
        | st.builds(
            lambda named, required: {
                "type": "object",
                "properties": named,
                "required": sorted(named)[:required],
            },
            st.dictionaries(st.sampled_from(["a", "type", "enum", "$ref"]), inner, min_size=1),
            st.integers(0, 4),
        )
    ),
    max_leaves=12,
)


@given(parts)
def test_no_schema_that_is_let_through_is_refused_by_the_api(part: dict[str, Any]) -> None:
    schema = {
        "type": "object",
        "properties": {"it": part},
        "$defs": {"Known": {"type": "object", "properties": {"x": {"type": "string"}}}},
    }
    if problem_of({"output_type": schema}) is None:
        check_schemas({"output_config": {"format": {"type": "json_schema", "schema": dialect(schema)}}})


def strict(name: str, fields: int, **more: Any) -> dict[str, Any]:
    properties = {f"f{n}": {"type": "string"} for n in range(fields)}
    return {
        "name": name,
        "strict": True,
        "input_schema": {"type": "object", "properties": properties, **more},
    }


def test_the_limits_are_of_all_strict_schemas_together() -> None:
    tools = [strict("look", 12), {**strict("free", 90), "strict": False}]
    fields = RequestFields(extra_body={"tools": tools})
    output = OutputType(model(**{f"f{n}": (int, 0) for n in range(13)}))
    with pytest.raises(TerminalError, match=r"^25 fields are optional \(output_type\.f0, .* and 20 more\)"):
        output.require_enforceable(fields)
    output.require_enforceable(dataclasses.replace(fields, enforce=False))
    OutputType(model(**{f"f{n}": (int, 0) for n in range(12)})).require_enforceable(fields)


def test_strict_tools_have_limits_of_their_own_whatever_the_answer() -> None:
    many = [strict(f"tool{n}", 1, required=["f0"]) for n in range(21)]
    for output in (OutputType(), OutputType(Closed)):
        with pytest.raises(TerminalError, match=r"^there are 21 strict tools, and the API takes 20"):
            output.require_enforceable(RequestFields(enforce=False, extra_body={"tools": many}))
        output.require_enforceable(RequestFields(extra_body={"tools": many[:20]}))


# What the API says to a schema that is sent as it is.
RAW = [
    ({"type": "object"}, "For 'object' type, 'additionalProperties' must be explicitly set to false"),
    (
        {"type": "object", "additionalProperties": True},
        "For 'object' type, 'additionalProperties: true' is not supported. Please set 'additionalProperties' to false",
    ),
    (
        {"type": "object", "additionalProperties": {"type": "string"}},
        "For 'object' type, 'additionalProperties: object' is not supported. Please set",
    ),
    (
        {"type": "integer", "minimum": 1, "maximum": 2},
        "For 'integer' type, properties maximum, minimum are not supported",
    ),
    (
        {"type": "array", "items": {"type": "string"}, "maxItems": 3},
        "For 'array' type, property 'maxItems' is not supported",
    ),
    (
        {"type": "array", "items": {"type": "string"}, "minItems": 6},
        "For 'array' type, 'minItems' values other than 0 or 1 are not supported (got: [6, ∞])",
    ),
    ({"type": "string", "format": "phone"}, "For 'string' type, format 'phone' is not supported"),
    ({"oneOf": [{"type": "string"}]}, "Schema type 'oneOf' is not supported"),
    ({}, "Invalid schema: Schema type is missing"),
    ({"$ref": "#/$defs/Nothing"}, "Invalid schema: Reference to non-existent definition: #/$defs/Nothing"),
    (
        {"type": ["string", "null"], "enum": ["OD", None]},
        "Invalid schema: Enum value 'OD' does not match declared type '['string', 'null']'",
    ),
]


def asked(schema: Any, **more: Any) -> dict[str, Any]:
    return {
        "model": "claude-haiku-5-5",
        "max_tokens": 10,
        "messages": [{"role": "user", "content": "Hi"}],
        "output_config": {"format": {"type": "json_schema", "schema": schema}},
        **more,
    }


@pytest.mark.parametrize(("schema", "said"), RAW, ids=range(len(RAW)))
def test_the_stand_in_refuses_a_raw_schema_in_the_apis_words(schema: Any, said: str) -> None:
    whole = {"type": "object", "properties": {"a": schema}, "additionalProperties": False, "required": ["a"]}
    with pytest.raises(ApiError, match=r"^output_config\.format\.schema: ") as caught:
        read_question(asked(whole))
    assert (caught.value.status, caught.value.message.partition(": ")[2][: len(said)]) == (400, said)
    tool = {"name": "look", "input_schema": whole}
    with pytest.raises(ApiError, match=r"^tools\.0\.custom: "):
        read_question({**asked(CLOSED), "tools": [{**tool, "strict": True}]})
    read_question({**asked(CLOSED), "tools": [tool]})
    read_question(asked(whole), count_only=True)


CLOSED = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}
NULLABLE = {"anyOf": [{"type": "string"}, {"type": "null"}]}


def wide(part: Any, fields: int, required: int) -> dict[str, Any]:
    names = [f"f{n}" for n in range(fields)]
    return {**CLOSED, "properties": dict.fromkeys(names, part), "required": names[:required]}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (
            wide(NULLABLE, 17, 17),
            "Schemas contains too many parameters with union types (17 parameters with type arrays or anyOf).",
        ),
        (wide({"type": "string"}, 30, 5), "Schemas contains too many optional parameters (25), which"),
        (
            {
                **CLOSED,
                "properties": {"a": {"$ref": "#/$defs/A"}},
                "$defs": {"A": {**CLOSED, "properties": {"b": {"$ref": "#/$defs/A"}}}},
            },
            "Circular reference detected in schema definitions: A -> A. Self-referencing or mutually-referencing",
        ),
        (wide(wide({"type": "string"}, 60, 60), 60, 60), "Schema is too complex for compilation."),
    ],
    ids=["unions", "optional", "circle", "size"],
)
def test_the_stand_in_refuses_what_is_too_complex_in_the_apis_words(schema: Any, said: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_question(asked(schema))
    assert caught.value.message.startswith(said)
    for fitting in (wide(NULLABLE, 16, 16), wide({"type": "string"}, 24, 0)):
        read_question(asked(fitting))


# Asked without the API's enforcement.

TREE = {"name": "a", "parts": [{"name": "b", "parts": []}]}


def request(output: OutputType, fields: RequestFields) -> Request:
    prompt, schema = output.asking("Which parts?", fields)
    source = {"type": "text", "media_type": "text/plain", "data": "a has b"}
    blocks = [{"type": "document", "source": source}, {"type": "text", "text": prompt}]
    return question(messages=[{"role": "user", "content": blocks}], schema=schema)


async def test_a_recursive_type_is_asked_for_in_words_checked_and_repaired(
    engine: Engine, wire: Wire
) -> None:
    output = OutputType(Part)
    wire.script = [
        message('{"name": "a", "parts": [{"name": 3, "parts": []}]}'),
        message('{"parts": [{"name": "b", "parts": []}]}'),
    ]
    reply = await engine.ask(request(output, DESCRIBED), make_terms(output=output, max_repairs=3))
    assert (reply.value, reply.repairs) == (Part.model_validate(TREE), 1)
    first, fix = wire.sent
    assert (first.schema, fix.schema) == (None, None)
    assert '"$ref": "#/$defs/Part"' in first.messages[-1]["content"][-1]["text"]
    # The repair is a small one: it has the schema of the field at fault, and not the document.
    assert '"properties": {"parts":' in fix.messages[0]["content"][0]["text"]
    assert "a has b" not in str(fix.messages)


def test_an_answer_that_was_enforced_is_another_answer() -> None:
    output = OutputType(Closed)
    prints = {request(output, fields).fingerprint for fields in (ENFORCED, DESCRIBED, ENFORCED)}
    assert len(prints) == 2


def test_free_text_is_asked_for_as_always() -> None:
    for output_type in (None, str):
        assert OutputType(output_type).asking("What?", DESCRIBED) == ("What?", None)
