"""What a server answers in place of a reply has a class, and is free only if the API itself refused the request."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_llm_provider.engine.api_errors import ErrorResponse
from airflow_llm_provider.errors import (
    AuthenticationFailed,
    BadRequest,
    LLMError,
    RetryableError,
    UnknownModel,
)

TYPES = [
    "error",
    "api_error",
    "overloaded_error",
    "not_found_error",
    "rate_limit_error",
    "invalid_request_error",
]
NAMES = st.sampled_from(["type", "error", "message", "request_id", "details", "error_code", "other"])
WORDS = st.sampled_from([*TYPES, "req_011", "model: x", "prompt is too long", "ramp_limit_exceeded", ""])
BODIES = st.recursive(
    st.none() | st.booleans() | st.integers() | WORDS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=10,
)
HEADERS = st.dictionaries(
    st.sampled_from(["request-id", "retry-after"]), st.sampled_from(["req_011", "7", "soon"]), max_size=2
)


def api_error(kind: str, message: str = "no", **fields: Any) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_011", **fields}


@given(status=st.integers(100, 999), headers=HEADERS, body=BODIES)
def test_no_body_is_too_odd_for_a_class_and_without_proof_it_may_have_been_billed(
    status: int, headers: dict[str, str], body: Any
) -> None:
    response = ErrorResponse.read(status, headers, body)
    error = response.error()
    assert isinstance(error, LLMError)
    assert str(error)
    assert error.billed is not response.is_free
    if response.is_free:
        assert body["type"] == "error"
        assert isinstance(body["error"]["type"], str)
        assert response.request_id
        assert 400 <= status < 500 or status == 529


@given(status=st.integers(400, 599), message=st.text(max_size=30))
def test_the_apis_refusals_are_free_and_its_own_failures_are_not(status: int, message: str) -> None:
    error = ErrorResponse.read(status, {}, api_error("api_error", message)).error()
    assert error.billed is (status == 499 or (status >= 500 and status != 529))
    assert "request req_011" in str(error)


@pytest.mark.parametrize("status", [200, 404])
@pytest.mark.parametrize(
    ("message", "is_model"),
    [
        ("model: claude-sonet-4-5", True),
        ("The model `claude-x` does not exist or you do not have access to it.", True),
        ("File not found: file_011", False),
        ("File not found: file_model_agreement", False),
        ("Not Found", False),
    ],
)
def test_what_is_not_found_is_a_model_only_if_the_api_says_so(
    status: int, message: str, is_model: bool
) -> None:
    error = ErrorResponse.read(status, {}, api_error("not_found_error", message)).error()
    assert isinstance(error, UnknownModel) is is_model
    assert not isinstance(error, RetryableError)


@pytest.mark.parametrize("status", [301, 307, 403, 404, 405, 407])
@pytest.mark.parametrize("body", ["<html>blocked by rule 941100</html>", None, {}, b""])
def test_a_page_without_a_reason_is_no_word_about_key_or_model(status: int, body: Any) -> None:
    error = ErrorResponse.read(status, {}, body).error()
    assert type(error) is BadRequest
    assert "host, proxy and key" in str(error)


@pytest.mark.parametrize("body", [{"error": {"message": "no such key"}}, {"message": "no such key"}])
def test_a_gateway_that_gives_a_reason_may_refuse_the_key(body: Any) -> None:
    assert isinstance(ErrorResponse.read(401, {}, body).error(), AuthenticationFailed)


@pytest.mark.parametrize("body", [{"error": {"message": "Request blocked: SQL"}}, {"message": "Forbidden"}])
def test_what_a_firewall_forbids_is_not_the_key(body: Any) -> None:
    assert type(ErrorResponse.read(403, {}, body).error()) is BadRequest


def answered(message: str, document: str) -> ErrorResponse:
    """Return a 400 to a request that holds a document."""
    sent = orjson.dumps({"model": "claude-x", "messages": [{"role": "user", "content": document}]})
    response = ErrorResponse.read(400, {}, api_error("invalid_request_error", message))
    return dataclasses.replace(response, sent=sent)


@pytest.mark.parametrize(
    "phrase",
    [
        "Your credit balance is too low",
        "this organization has been disabled",
        "the prompt is too long",
        "blocked by content filtering policy",
    ],
)
def test_what_a_server_repeats_of_a_document_says_nothing_of_account_or_length(phrase: str) -> None:
    response = answered(f"Guardrail: '{phrase}' may not be sent.", f"A letter.\n{phrase}, pay now.")
    assert type(response.error()) is BadRequest
    assert not response.is_blocked
    assert phrase not in str(response.error())


@pytest.mark.parametrize("write", [str, str.upper, repr, lambda text: f"\u201e{text}\u201c"])
def test_a_document_that_a_server_repeats_is_not_shown_however_it_is_written(
    write: Callable[[str], str],
) -> None:
    document = 'Herr "M\u00fcller" zahlt\n100 \u20ac an Frau\t\u00d6zg\u00fcr.'
    said = str(answered(f"bad: {write(document)}", document).error()).casefold()
    assert "zahlt" not in said
    assert "m\u00fcller" not in said


def test_an_account_number_is_not_shown() -> None:
    said = str(
        answered("input 'DE89370400440532013000,' is bad", "IBAN DE89370400440532013000; secret").error()
    )
    assert "DE89" not in said


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (api_error("api_error", "away"), "away"),
        ({"message": "Input is too long for requested model."}, "Input is too long for requested model."),
        ({"error": {"message": "away"}}, "away"),
        ({"error": "away"}, "no reason given"),
        ("<html>away</html>", "no reason given"),
        (None, "no reason given"),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_only_what_stands_where_a_reason_belongs_is_repeated(body: Any, message: str) -> None:
    assert ErrorResponse.read(503, {}, body).said.startswith(
        f"HTTP 503 {'api_error' if isinstance(body, dict) and body.get('type') else ''}".rstrip()
        + f": {message}"
    )
