"""The stand-in's answers: they fit the schema, and are filled with what the document says."""

from __future__ import annotations

import time
from datetime import date
from typing import Any, Literal

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker
from pydantic import BaseModel, Field

from airflow_llm_provider.testing.answers import answer as answer_to
from airflow_llm_provider.testing.answers import fill
from airflow_llm_provider.testing.question import count_tokens, read_question
from airflow_llm_provider.testing.text import Text
from airflow_llm_provider.testing.wire import ApiError

INVOICE = """ACME Tools GmbH
Invoice REF-2231
Date: 2025-03-04
Vendor: ACME Tools GmbH
Billing contact: billing@acme.example
Subtotal: $1,000.00
Total: $1,190.00
Due: 12 April 2025
This invoice is unpaid. Any dispute is settled by the courts of Hamburg, and nowhere else.
"""

LICENCES = {
    "MIT": "The MIT License (MIT)\n\nCopyright (c) Ann Author\n\nPermission is hereby granted, free\n of "
    "charge, to any person obtaining a copy of this software, to deal in the Software without restriction.",
    "Apache-2.0": "                Apache License\n           Version 2.0, January 2004\n\n"
    "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION. Permission is granted.",
    "BSD-3-Clause": "Copyright (c) 2011, Bob\nRedistribution and use in source and binary is permitted.\n"
    "Neither the name of the copyright holder nor the names of its contributors may be used to endorse.",
    "MPL-2.0": "Mozilla Public License Version 2.0\n===\n1.12 Secondary License: GNU General Public License.",
    "GPL-3.0-or-later": "GNU GENERAL PUBLIC LICENSE\nVersion 3, 29 June 2007\n\nEveryone may copy.",
    "PSF-2.0": "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2\n\n1. This LICENSE AGREEMENT is between the PSF",
    "ISC": "ISC License\n\nPermission to use, copy, modify, and/or distribute this software for any purpose",
}
HINTS = (
    "The SPDX id. MIT: Permission is hereby granted, free of charge; Apache-2.0: Apache License Version 2.0; "
    "BSD-3-Clause: Neither the name of | may be used to endorse; MPL-2.0: Mozilla Public License; "
    "GPL-3.0-or-later: GNU GENERAL PUBLIC LICENSE Version 3; PSF-2.0: PYTHON SOFTWARE FOUNDATION LICENSE; "
    "ISC: Permission to use, copy, modify, and/or distribute this software"
)


def answer(schema: dict[str, Any], text: str, prompt: str = "") -> Any:
    value = fill(schema, Text(text), prompt=prompt)
    Draft202012Validator(schema, format_checker=FormatChecker()).validate(value)
    return value


class Invoice(BaseModel):
    vendor: str
    total: float
    due: date
    email: list[str]
    reference: str = Field(pattern=r"^REF-\d+$")
    status: Literal["paid", "unpaid", "unknown"]
    quote: str = Field(description="the sentence about a dispute and the courts")
    iban: str | None
    signed_at: date | None


def test_every_field_is_a_span_of_the_document() -> None:
    found = answer(Invoice.model_json_schema(), INVOICE)
    assert found == {
        "vendor": "ACME Tools GmbH",
        "total": 1190.0,
        "due": "2025-04-12",
        "email": ["billing@acme.example"],
        "reference": "REF-2231",
        "status": "unpaid",
        "quote": "Any dispute is settled by the courts of Hamburg, and nowhere else.",
        "iban": None,
        "signed_at": "2025-03-04",  # a date that was found, if not the one meant: the rules are plain
    }


@pytest.mark.parametrize("spdx", LICENCES)
def test_the_option_is_the_one_whose_hint_the_document_says(spdx: str) -> None:
    schema = {"type": "string", "enum": list(LICENCES), "description": HINTS}
    assert answer(schema, LICENCES[spdx]) == spdx


@pytest.mark.parametrize("spdx", LICENCES)
def test_hints_for_options_are_found_in_the_prompt_too(spdx: str) -> None:
    assert answer({"enum": list(LICENCES)}, LICENCES[spdx], prompt=HINTS) == spdx


def test_what_stands_on_top_wins_over_what_comes_with_it() -> None:
    text = LICENCES["Apache-2.0"] + "\n" * 50 + "Parts of it: " + LICENCES["BSD-3-Clause"]
    assert answer({"enum": list(LICENCES), "description": HINTS}, text) == "Apache-2.0"


def test_an_item_that_lacks_what_is_required_of_it_is_none() -> None:
    item = {
        "type": "object",
        "properties": {"account": {"type": "string", "pattern": r"^C-\d{4}$"}, "harm": {"type": "string"}},
        "required": ["account", "harm"],
    }
    text = (
        "The account C-2210 did harm. The account of an unknown did harm. C-1042 had harm on account of it."
    )
    found = answer({"type": "array", "items": item}, text)
    assert [item["account"] for item in found] == ["C-2210", "C-1042"]


def test_data_is_read_as_lines_of_names_and_values() -> None:
    data = {
        "risks": [{"area": "money", "quote": "All fees fall due at once."}],
        "total_eur": 12.5,
        "note": None,
    }
    body = {"model": "m", "max_tokens": 1}
    source = {"type": "text", "data": orjson.dumps(data).decode()}
    content = [{"type": "document", "source": source}, {"type": "text", "text": "Which fees are due?"}]
    question = read_question({**body, "messages": [{"role": "user", "content": content}]})
    assert answer_to(question) == "All fees fall due at once."
    broken = [{"type": "document", "source": {"type": "text", "data": "{fees: due"}}]
    question = read_question({**body, "messages": [{"role": "user", "content": broken}]})
    assert answer_to(question) == "{fees: due"


def test_an_option_for_nothing_found_is_taken_when_nothing_is_found() -> None:
    schema = {"enum": ["MIT", "ISC", "other"]}
    assert answer(schema, "An apple a day.") == "other"
    assert answer({"anyOf": [{"enum": ["MIT", "ISC"]}, {"type": "null"}]}, "An apple a day.") in ("MIT", None)
    assert answer({"enum": ["MIT", "ISC", None]}, "An apple a day.") is None


@pytest.mark.parametrize(
    ("description", "text", "said"),
    [
        ("true when it says 'patent license'", "grants a patent\n  license to you", True),
        ("true when it says 'patent license'", "grants a copyright license", False),
        ("phrases: GNU General Public License | Mozilla Public License", LICENCES["MPL-2.0"], True),
        ("phrases: GNU General Public License | Mozilla Public License", LICENCES["MIT"], False),
        ("whether disputes are settled by courts", INVOICE, True),
        ("whether goods are shipped by air", INVOICE, False),
    ],
)
def test_a_yes_needs_the_words_of_its_description(description: str, text: str, said: bool) -> None:
    assert answer({"type": "boolean", "description": description}, text) is said


@pytest.mark.parametrize(
    "schema",
    [
        {"const": 7},
        {"type": "integer", "minimum": 10, "maximum": 20},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        {"type": "integer", "multipleOf": 7, "minimum": 50},
        {"type": "string", "minLength": 30, "maxLength": 40},
        {"type": "string", "format": "uuid"},
        {"type": "string", "format": "date-time"},
        {"type": "string", "format": "ipv4"},
        {"type": ["integer", "null"], "minimum": 5000},
        {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
        {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "minItems": 2},
        {"type": "array", "items": {"enum": ["paid", "unpaid"]}},
        {"type": "array", "maxItems": 0, "items": {"type": "string"}},
        {"allOf": [{"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}]},
        {"oneOf": [{"type": "null"}, {"type": "object", "properties": {}, "additionalProperties": False}]},
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {
            "$defs": {
                "Node": {
                    "type": "object",
                    "properties": {
                        "name": {"type": "string"},
                        "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
                        "parts": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
                    },
                    "required": ["name", "next", "parts"],
                    "additionalProperties": False,
                }
            },
            "$ref": "#/$defs/Node",
        },
    ],
    ids=lambda schema: str(schema)[:50],
)
@pytest.mark.parametrize("text", [INVOICE, ""], ids=["invoice", "empty"])
def test_any_sort_of_schema_is_fitted(schema: dict[str, Any], text: str) -> None:
    answer(schema, text)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(text=st.text(max_size=600))
def test_no_text_breaks_the_rules_and_every_quote_is_literal(text: str) -> None:
    found = answer(
        {
            "type": "object",
            "properties": {
                "quote": {"anyOf": [{"type": "string", "description": "a a b c"}, {"type": "null"}]},
                "due": {"type": "string", "format": "date"},
                "amount": {"type": "number"},
                "name": {"type": "string"},
                "kind": {"enum": ["a", "b"]},
                "yes": {"type": "boolean", "description": "a b c"},
            },
            "required": ["quote", "due", "amount", "name", "kind", "yes"],
            "additionalProperties": False,
        },
        text,
    )
    assert found["quote"] is None or found["quote"] in text


def test_characters_that_grow_in_lower_case_dont_shift_the_quotes() -> None:
    text = "İİİİ İİİİ. The dispute goes to court. The end."
    assert answer({"type": "string", "description": "dispute court"}, text) == "The dispute goes to court."


def test_a_long_document_is_answered_in_about_a_millisecond() -> None:
    text = "\n".join(
        f"Line {n} of the agreement speaks of deliveries, of payment and of {n} other things."
        for n in range(130)
    )
    schema = Invoice.model_json_schema()
    fill(schema, Text(text))
    began = time.process_time()
    for _ in range(20):
        fill(schema, Text(text))
    assert (time.process_time() - began) / 20 < 0.01  # a wide margin for a busy machine


def test_tokens_are_a_quarter_of_the_characters_and_flat_for_pages_and_images() -> None:
    pdf = b"%PDF-1.4 /Type /Pages /Type /Page /Type/Page"
    content = [
        {"type": "text", "text": "x" * 401},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": b64(pdf)}},
        {
            "type": "document",
            "title": "abcd",
            "source": {"type": "text", "media_type": "text/plain", "data": "y" * 8},
        },
    ]
    question = read_question(
        {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": content}]}
    )
    assert [block.tokens for block in question.blocks] == [101, 1_500, 4_000, 3]
    assert question.tokens == 5_604
    assert count_tokens("") == 0


def test_the_document_is_its_block_or_its_tag_or_all_the_text() -> None:
    def document(*content: dict[str, Any]) -> str:
        body = {
            "model": "m",
            "max_tokens": 1,
            "system": "Be brief.",
            "messages": [{"role": "user", "content": [*content]}],
        }
        return read_question(body).document

    ask = {"type": "text", "text": "What is it?"}
    assert document({"type": "document", "source": {"type": "text", "data": "A pear."}}, ask) == "A pear."
    assert document({"type": "text", "text": "<document-3f2a>A fig.</document-3f2a>"}, ask) == "A fig."
    assert document(ask) == "What is it?"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ([], "not a JSON object"),
        ({"max_tokens": 1, "messages": [{}]}, "model: Field required"),
        ({"model": "m", "messages": [{}]}, "max_tokens: Field required"),
        ({"model": "m", "max_tokens": 1, "messages": []}, "at least one message"),
        ({"model": "m", "max_tokens": 1, "messages": [{"role": "robot", "content": ""}]}, "messages.0.role"),
        ({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    ],
)
def test_a_request_of_the_wrong_shape_is_refused_with_the_reason(body: Any, reason: str) -> None:
    with pytest.raises(ApiError, match=reason) as refused:
        read_question(body)
    assert orjson.loads(refused.value.body("req_1")) == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": refused.value.message},
        "request_id": "req_1",
    }


def b64(content: bytes) -> str:
    import base64

    return base64.b64encode(content).decode()
