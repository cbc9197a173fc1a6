"""An answer is what was asked for, or a complaint that a model can act on."""

import datetime as dt
import enum
from collections.abc import Callable
from decimal import Decimal
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_llm_provider.engine.output_type import OutputType
from airflow_llm_provider.errors import InvalidOutput, TerminalError


class Invoice(pydantic.BaseModel):
    number: str
    total: float = pydantic.Field(ge=0)
    due: dt.date


class Kind(enum.StrEnum):
    INVOICE = "invoice"
    CONTRACT = "contract"


INVOICE = '{"number": "A-1", "total": 12.5, "due": "2026-03-04"}'


def test_a_model_comes_back_as_itself() -> None:
    value = OutputType(Invoice).parse(INVOICE)
    assert value == Invoice(number="A-1", total=12.5, due=dt.date(2026, 3, 4))
    assert OutputType(Invoice).dump(value) == {"number": "A-1", "total": 12.5, "due": "2026-03-04"}


@pytest.mark.parametrize(
    ("output_type", "text", "value"),
    [
        (
            list[Invoice],
            f'{{"items": [{INVOICE}]}}',
            [Invoice(number="A-1", total=12.5, due=dt.date(2026, 3, 4))],
        ),
        (list[str], '{"items": []}', []),
        (Kind, '{"value": "invoice"}', Kind.INVOICE),
        (Literal["yes", "no"], '{"value": "no"}', "no"),
        (int | None, '{"value": null}', None),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        ({"type": "object", "required": ["a"]}, '{"a": 1}', {"a": 1}),
        ({"type": "array", "items": {"type": "integer"}}, '{"value": [1]}', [1]),
        (None, "Just text.", "Just text."),
        (str, "Just text.", "Just text."),
    ],
)
def test_any_type_can_be_asked_for(output_type: Any, text: str, value: object) -> None:
    assert OutputType(output_type).parse(text) == value


@pytest.mark.parametrize("output_type", [Invoice, list[Invoice], Kind, int | None, {"type": "array"}])
def test_the_api_is_given_an_object_whatever_the_type(output_type: Any) -> None:
    schema = OutputType(output_type).schema
    assert schema is not None
    assert schema["type"] == "object"


def test_definitions_stay_at_the_top_of_a_wrapped_schema() -> None:
    schema = OutputType(list[Invoice]).schema
    assert schema is not None
    assert "Invoice" in schema["$defs"]
    assert "$defs" not in schema["properties"]["items"]
    item = OutputType(list[Invoice]).item_schema
    assert item is not None
    assert item["$ref"] == "#/$defs/Invoice"
    assert "Invoice" in item["$defs"]


@pytest.mark.parametrize(
    ("output_type", "text", "complaint"),
    [
        (
            Invoice,
            '{"number": "A-1", "total": -1, "due": "2026-03-04"}',
            "total: .*greater than or equal to 0",
        ),
        (Invoice, '{"number": "A-1", "due": "soon"}', "(?s)total: Field required.*due: "),
        (Invoice, "The total is 12.", "Invalid JSON"),
        (Invoice, '{"number": "A-1", "total": 12.5, "due": "2026-', "Invalid JSON"),
        (Invoice, "[]", "object|dictionary"),
        (list[Invoice], "[]", "object"),
        (Kind, '{"value": "letter"}', "invoice"),
        ({"type": "object", "required": ["a"]}, "{}", "'a' is a required property"),
        (None, "  \n", "empty"),
    ],
)
def test_a_complaint_names_the_field_and_what_is_wrong(output_type: Any, text: str, complaint: str) -> None:
    with pytest.raises(InvalidOutput, match=complaint) as caught:
        OutputType(output_type).parse(text)
    assert caught.value.reply_text == text


def test_a_long_complaint_is_cut_to_what_a_reader_can_use() -> None:
    with pytest.raises(InvalidOutput, match="… and 90 more"):
        OutputType(list[int]).parse('{"items": [' + ",".join(['"x"'] * 100) + "]}")


@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    for output_type in (Invoice, list[Invoice], Kind, {"type": "object"}):
        try:
            OutputType(output_type).parse(text)
        except InvalidOutput:
            continue


class Strict(pydantic.BaseModel):
    vendor: str = pydantic.Field(alias="vendorName")
    code: int

    @pydantic.field_validator("code")
    @classmethod
    def known(cls, code: int) -> int:
        return {7: 7}[code]  # an author's bug: KeyError for all others


def test_an_answer_nested_to_break_its_reader_is_invalid_and_no_more() -> None:
    deep = '{"number": "1", "total": 1, "due": "2026-03-04", "junk": ' + "[" * 3000 + "]" * 3000 + "}"
    for output_type in (Invoice, list[Invoice], {"type": "object", "properties": {"junk": {"$ref": "#"}}}):
        with pytest.raises(InvalidOutput):
            OutputType(output_type).parse(deep)


def test_a_bug_in_an_authors_validator_is_a_complaint_about_this_answer() -> None:
    with pytest.raises(InvalidOutput, match="KeyError"):
        OutputType(Strict).parse('{"vendorName": "Acme", "code": 8}')


def test_data_is_written_under_the_names_of_its_schema() -> None:
    output = OutputType(Strict)
    assert output.dump(output.parse('{"vendorName": "Acme", "code": 7}')) == {"vendorName": "Acme", "code": 7}


def test_long_numbers_are_kept_to_the_digit() -> None:
    assert OutputType(list[int]).parse('{"items": [18446744073709551617]}') == [18446744073709551617]
    assert OutputType({"type": "object"}).parse('{"a": 18446744073709551617}') == {"a": 18446744073709551617}


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_what_json_has_no_number_for_is_no_number_of_a_schema(number: str) -> None:
    with pytest.raises(InvalidOutput, match="is not a finite number"):
        OutputType({"type": "object", "properties": {"n": {"type": "number"}}}).parse(f'{{"n": {number}}}')


@pytest.mark.parametrize(
    ("output_type", "given", "value"),
    [
        (Literal["1", "2"], "1", "1"),
        (int, "1", 1),
        (Literal["true"], "true", "true"),
        (bool | str, "true", True),
    ],
)
def test_a_text_from_elsewhere_is_read_as_what_is_asked_for(output_type: Any, given: str, value: Any) -> None:
    output = OutputType(output_type)
    assert output.parse(output.answer_text(given)) == value


PATTERN = Annotated[str, pydantic.Field(pattern="[")]


@pytest.mark.parametrize("no_type", [3, "", "int", "Invoice", Callable[[], int], PATTERN])
def test_what_is_no_type_is_named_and_no_retry_can_mend_it(no_type: Any) -> None:
    with pytest.raises(TerminalError, match=r"^output_type=.*Nothing was sent\.$"):
        _ = OutputType(no_type).schema


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        ({"type": "object", "properties": {"a": {"pattern": "["}}}, r"at \$\.properties\.a\.pattern, '\['"),
        ({"type": "object", "patternProperties": {"[": {}}}, r"at \$\.patternProperties, '\['"),
        ({"type": "strng"}, r"at \$\.type, 'strng'"),
        ({"minLength": "3"}, r"at \$\.minLength, '3' is not of type 'integer'"),
        ({"required": "x"}, r"at \$\.required, 'x' is not of type 'array'"),
        ({"$ref": "#/$defs/X"}, r"\$ref '#/\$defs/X' points to nothing in it"),
        ({"items": {"not": {"$ref": "#/nowhere"}}}, "'#/nowhere'"),
        ({"$ref": "https://example.com/schema"}, r"'https://example\.com/schema'"),
        ({"$ref": "#/own/a", "own": {"a": {"type": "strng"}}}, r"at \$\.type of '#/own/a', 'strng'"),
        ({"$id": "http://[", "items": {"$id": "b"}}, r"an \$id in it is not a URI"),
    ],
)
def test_a_schema_that_nothing_can_be_held_against_is_named_before_anything_is_sent(
    schema: dict[str, Any], what: str
) -> None:
    with pytest.raises(
        TerminalError, match=rf"^output_type= is not a JSON schema.*{what}.*Nothing was sent\.$"
    ):
        _ = OutputType(schema).schema


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"$ref": {"type": "string"}}, "enum": [{"$ref": "none"}]},
        {"$ref": "#/definitions/a", "definitions": {"a": {"type": "object"}}},
        {"$ref": "#/own/a", "own": {"a": {"type": "object"}}},
        {"$ref": "#top", "$defs": {"a": {"$anchor": "top", "type": "object"}}},
        {"$id": "https://example.com/", "$ref": "b", "$defs": {"a": {"$id": "b", "type": "object"}}},
        {"properties": {"child": {"$ref": "#"}}, "type": "object"},
    ],
)
def test_a_reference_may_lead_anywhere_within_its_schema(schema: dict[str, Any]) -> None:
    assert OutputType(schema).schema == schema


keywords = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["object", "string", "integer", "text", 3]),
        "pattern": st.sampled_from(["^a", "[", "(?<x", 5]),
        "minLength": st.sampled_from([1, "1", -1]),
        "minimum": st.sampled_from([0, "0", None]),
        "required": st.sampled_from([["a"], "a", [1], True]),
        "enum": st.sampled_from([["a"], "a", []]),
        "multipleOf": st.sampled_from([2, 0, "2"]),
    },
)
schemas = st.recursive(
    keywords,
    lambda inner: (
        st.builds(
            lambda one, own: {**own, "properties": {"a": one}, "patternProperties": {"^b": one}},
            inner,
            keywords,
        )
        | st.builds(lambda one, own: {**own, "items": one, "anyOf": [one, own]}, inner, keywords)
    ),
    max_leaves=4,
)


@given(schemas, st.sampled_from(['{"a": 1}', '{"a": "b", "b": {"a": 3}}', "{}", '{"a": [1, "a", {}]}']))
def test_a_schema_is_refused_or_can_be_checked(schema: dict[str, Any], data: str) -> None:
    output = OutputType(schema)
    try:
        _ = output.schema
    except TerminalError:
        return
    complaint = ""
    try:
        output.parse(output.answer_text(data))
    except InvalidOutput as error:
        complaint = str(error)
    assert "could not be checked" not in complaint


@pytest.mark.parametrize(
    "output_type",
    [bytes, list[bytes], dict[str, dt.time], Path | None, IPv4Address, pydantic.HttpUrl, Kind],
)
def test_what_an_xcom_cannot_hold_goes_into_it_as_plain_data(output_type: Any) -> None:
    assert not OutputType(output_type).is_importable


@pytest.mark.parametrize("output_type", [list[str], dict[str, int], dt.datetime, Decimal, int | None])
def test_what_an_xcom_knows_goes_into_it_as_it_is(output_type: Any) -> None:
    assert OutputType(output_type).is_importable
