"""An answer is what was asked for, or a complaint that a model can act on."""

import datetime as dt
import enum
import json
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
        (Invoice, "The total is 12.", "is not JSON"),
        (Invoice, '{"number": "A-1", "total": 12.5, "due": "2026-', "is not JSON"),
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


class Measure(pydantic.BaseModel):
    n: float
    text: str = ""


MEASURE = {"type": "object", "properties": {"n": {"type": "number"}, "text": {"type": "string"}}}


@pytest.mark.parametrize("output_type", [Measure, MEASURE, list[Measure], float, dict[str, float]])
@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", '"NaN"', '"-inf"'])
def test_what_json_has_no_number_for_is_a_complaint(output_type: Any, number: str) -> None:
    output = OutputType(output_type)
    inner = number if output_type is float else f'{{"n": {number}}}'
    text = f'{{"{output.fields[0]}": [{inner}]}}' if output.is_list else inner
    with pytest.raises(InvalidOutput, match=r"finite number|NaN or infinite|type should be") as caught:
        output.parse(f'{{"value": {number}}}' if output_type is float else text)
    assert not caught.value.needs_source


def test_a_number_beyond_floats_is_a_complaint_in_a_decimal_too() -> None:
    with pytest.raises(InvalidOutput, match="A number is NaN or infinite"):
        OutputType(Decimal).parse('{"value": 1e999}')


@pytest.mark.parametrize("output_type", [Measure, MEASURE, list[Measure], dict[str, float]])
@pytest.mark.parametrize("twice", ['"n": 1, "n": 2', '"n": 1, "n": 1', '"n": 1, "\\u006e": 2'])
def test_a_name_given_twice_is_a_complaint(output_type: Any, twice: str) -> None:
    inner = f'{{"items": [{{{twice}}}]}}' if output_type == list[Measure] else f"{{{twice}}}"
    for text in (inner, f"Here it is: {inner}"):
        with pytest.raises(InvalidOutput, match="the same name twice"):
            OutputType(output_type).parse(text)


@pytest.mark.parametrize("output_type", [Measure, MEASURE, str, None, dict[str, str | float]])
@pytest.mark.parametrize("half", ["\\ud800", "\\udc00\\ud800", "\ud800", "a\udfff"])
def test_half_of_a_surrogate_pair_is_a_complaint(output_type: Any, half: str) -> None:
    is_text = output_type in (str, None)
    if is_text and "\\" in half:
        return  # six characters of plain text
    text = half if is_text else f'{{"n": 1, "text": "{half}"}}'
    with pytest.raises(InvalidOutput, match="half of a surrogate pair") as caught:
        OutputType(output_type).parse(text)
    assert not caught.value.needs_source
    str(caught.value).encode()


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert OutputType(Measure).parse('{"n": 1, "text": "\\ud83c\\udf88"}').text == "🎈"


class Bill(pydantic.BaseModel):
    total: Decimal
    net: Annotated[Decimal, pydantic.Field(max_digits=8, decimal_places=2)] | None = None
    by_name: dict[str, Decimal] = {}
    pair: tuple[Decimal, float] | None = None
    share: float = 0


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**20), max_value=10**20))
def test_a_decimal_keeps_every_digit_that_was_written(number: Decimal) -> None:
    written = f"{number:f}"
    for output_type, text in (
        (Bill, f'{{"total": {written}}}'),
        (list[Bill], f'{{"items": [{{"total": {written}}}]}}'),
        (Decimal, f'{{"value": {written}}}'),
        (Decimal | None, f'{{"value": {written}}}'),
        (Bill | Measure, f'{{"value": {{"total": {written}}}}}'),
    ):
        value = OutputType(output_type).parse(text)
        value = value[0] if isinstance(value, list) else value
        kept = value.total if isinstance(value, Bill) else value
        assert str(kept) == str(Decimal(written))


def test_decimals_keep_their_digits_wherever_the_type_has_them_and_floats_stay_floats() -> None:
    text = """{"total": 0.10, "net": 12.50, "by_name": {"a": 1.000000000000000000001}, "pair": [2.00, 2.00],
        "share": 0.10}"""
    bill = OutputType(Bill).parse(text)
    assert [str(each) for each in (bill.total, bill.net, bill.by_name["a"], bill.pair[0])] == [
        "0.10",
        "12.50",
        "1.000000000000000000001",
        "2.00",
    ]
    assert (bill.pair[1], bill.share) == (2.0, 0.1)
    assert type(bill.share) is float


def test_a_text_is_not_read_as_a_decimal_that_may_be_a_text() -> None:
    assert OutputType(Decimal | str).parse('{"value": 1.5}') == Decimal("1.5")


def test_a_decimal_is_asked_for_as_a_number_and_not_as_a_union() -> None:
    schema = OutputType(Bill).schema
    assert schema is not None
    assert schema["properties"]["total"] == {"type": "number", "format": "decimal", "title": "Total"}


class Place(pydantic.BaseModel):
    city: Literal["New York", "Bern", "bern"]
    kinds: list[Literal["Sea Port"]] = []
    fixed: Literal["Yes"] = "Yes"
    free: Literal["Any Text"] | str = ""
    total: Decimal = Decimal(0)


PLACE = {"type": "object", "properties": {"city": {"enum": ["New York", "Bern", "bern"]}}}


@pytest.mark.parametrize("around", ["{}", "Here it is: {}."])
def test_capitals_that_the_api_does_not_hold_to_are_put_right_for_nothing(around: str) -> None:
    text = '{"city": "New york", "kinds": ["sea port"], "fixed": "YES", "total": 1.10}'
    value, how = OutputType(Place).read(around.format(text))
    assert value == Place(city="New York", kinds=["Sea Port"], fixed="Yes", total=Decimal("1.10"))
    assert str(value.total) == "1.10"
    assert how == "repaired in its capitals"
    assert OutputType(PLACE).parse('{"city": "new York"}') == {"city": "New York"}
    assert OutputType(list[Literal["A b"]]).parse('{"items": ["a B"]}') == ["A b"]
    assert OutputType(Kind).parse('{"value": "Invoice"}') == Kind.INVOICE


@pytest.mark.parametrize("city", ["BERN", "New  york", "York", ""])
@pytest.mark.parametrize("output_type", [Place, PLACE])
def test_a_value_that_could_be_another_one_is_not_respelled(output_type: Any, city: str) -> None:
    with pytest.raises(InvalidOutput, match="city: "):
        OutputType(output_type).parse(json.dumps({"city": city}))


def test_a_text_that_may_be_anything_keeps_its_capitals() -> None:
    assert OutputType(Place).parse('{"city": "bern", "free": "any text"}').free == "any text"
    assert OutputType(Place).parse('{"city": "new york", "free": "any text"}').free == "any text"


class Dumped(pydantic.BaseModel):
    name: str = pydantic.Field(validation_alias="nameIn", serialization_alias="nameOut")
    secret: str = pydantic.Field(default="", exclude=True)
    amount: Decimal = Decimal("1.50")
    labelled: int = 3

    @pydantic.computed_field
    @property
    def gross(self) -> Decimal:
        return self.amount * 2

    @pydantic.field_serializer("labelled")
    def label(self, value: int):  # type: ignore[no-untyped-def]  # as an author may leave it
        return f"no. {value}"


@pytest.mark.parametrize(("output_type", "text"), [(Dumped, '{"nameIn": "a"}'), (list[Dumped], None)])
def test_the_schema_of_a_row_is_that_of_what_is_written(output_type: Any, text: str | None) -> None:
    import jsonschema

    output = OutputType(output_type)
    value = output.parse(text or '{"items": [{"nameIn": "a"}]}')
    data = output.dump(value) if text else output.dump(value)[0]
    assert data == {"nameOut": "a", "amount": "1.50", "labelled": "no. 3", "gross": "3.00"}
    schema = dict(output.item_schema or {})
    jsonschema.Draft202012Validator(schema).validate(data)
    properties = schema.get("properties") or schema["$defs"]["Dumped"]["properties"]
    assert set(properties) == set(data)


def test_a_serializer_that_gives_what_json_has_not_is_named_before_it_reaches_a_file() -> None:
    class Broken(pydantic.BaseModel):
        n: int

        @pydantic.field_serializer("n")
        def nothing(self, value: int) -> float:
            return float("nan") if value else value

    output = OutputType(Broken)
    with pytest.raises(
        InvalidOutput,
        match=r"^The answer can't be written as JSON: ValueError in iterencode, encoder.py line \d+\.$",
    ):
        output.dump(output.parse('{"n": 1}'))


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("date", "2026-03-04", "4 March"),
        ("date-time", "2026-03-04T05:06:07Z", "2026-03-04 at five"),
        ("time", "05:06:07", "noon"),
    ],
)
def test_a_date_of_a_json_schema_is_checked(kind: str, right: str, wrong: str) -> None:
    output = OutputType({"type": "object", "properties": {"when": {"type": "string", "format": kind}}})
    assert output.parse(json.dumps({"when": right})) == {"when": right}
    with pytest.raises(InvalidOutput, match="when: format should be") as caught:
        output.parse(json.dumps({"when": wrong}))
    assert caught.value.fields == ("when",)


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
