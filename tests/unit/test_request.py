"""Two requests are the same when they mean the same, and differ when anything that shapes the answer differs."""

import dataclasses
import json
import random
from typing import Any

import orjson
import pytest
from conftest import question
from hypothesis import given
from hypothesis import strategies as st

from airflow_llm_provider.engine.ceiling import ceiling_micro_usd
from airflow_llm_provider.engine.request import Request, to_json
from airflow_llm_provider.errors import BadRequest

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def shuffled(value: Any, seed: random.Random) -> Any:
    """Rebuild a value with its keys in another order and its whole numbers spelt as floats."""
    if isinstance(value, dict):
        items = list(value.items())
        seed.shuffle(items)
        return {key: shuffled(item, seed) for key, item in items}
    if isinstance(value, list):
        return [shuffled(item, seed) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and float(value) == value:
        return float(value)
    return value


@given(extra=st.dictionaries(st.text(min_size=1, max_size=8), JSON, max_size=4), seed=st.randoms())
def test_the_order_of_keys_and_the_spelling_of_numbers_do_not_count(extra: dict, seed: random.Random) -> None:
    assert question(extra=extra).fingerprint == question(extra=shuffled(extra, seed)).fingerprint


@given(one=JSON, other=JSON)
def test_different_parameters_are_different_questions(one: object, other: object) -> None:
    same = normal(one) == normal(other)
    assert (question(extra={"x": one}).fingerprint == question(extra={"x": other}).fingerprint) == same


def normal(value: Any) -> str:
    """Spell a value as the reference does: the stdlib's JSON, whole floats as integers."""

    def whole(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: whole(inner) for key, inner in item.items()}
        if isinstance(item, list):
            return [whole(inner) for inner in item]
        return int(item) if isinstance(item, float) and item.is_integer() and abs(item) <= 2**53 else item

    return json.dumps(whole(value), sort_keys=True)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "claude-opus-5-5"},
        {"messages": [{"role": "user", "content": "How are you now?"}]},
        {"messages": [{"role": "assistant", "content": "How are you?"}]},
        {"system": "Be brief."},
        {"max_tokens": 5},
        {"schema": {"type": "object"}},
        {"effort": "high"},
        {"extra": {"thinking": {"type": "enabled", "budget_tokens": 1024}}},
        {"endpoint": "anthropic http://127.0.0.1:8080"},
        {"version": "2"},
        {"sample": 1},
    ],
)
def test_whatever_shapes_the_answer_makes_another_question(change: dict) -> None:
    assert dataclasses.replace(question(), **change).fingerprint != question().fingerprint


@pytest.mark.parametrize(
    "change", [{"shared_blocks": 1}, {"input_ceiling": 9}, {"extra": {"metadata": {"user_id": "x"}}}]
)
def test_hints_do_not_make_another_question(change: dict) -> None:
    asked = question(messages=[{"role": "user", "content": [{"type": "text", "text": "How are you?"}]}])
    assert dataclasses.replace(asked, **change).fingerprint == asked.fingerprint


def test_the_order_of_a_schemas_properties_counts_since_a_model_fills_them_in_it() -> None:
    def schema(*names: str) -> dict:
        return {"type": "object", "properties": {name: {"type": "string"} for name in names}}

    assert (
        question(schema=schema("reason", "verdict")).fingerprint
        != question(schema=schema("verdict", "reason")).fingerprint
    )


def test_the_cache_breakpoint_stands_behind_what_is_shared() -> None:
    content = [{"type": "text", "text": "shared"}, {"type": "text", "text": "its own"}]
    asked = question(messages=[{"role": "user", "content": content}], system="System.", shared_blocks=1)
    body = orjson.loads(asked.body(None))
    first, second = body["messages"][0]["content"]
    assert first["cache_control"] == {"type": "ephemeral"}
    assert "cache_control" not in second
    assert "cache_control" not in body["system"][0]
    assert "cache_control" not in content[0]  # the author's own value is left alone


@given(text=st.text(st.characters(codec="utf-8")).filter(str.strip))
def test_text_is_sent_byte_for_byte(text: str) -> None:
    body = orjson.loads(question(text).body(None))
    assert body["messages"][0]["content"] == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", b"bytes", object()])
def test_what_json_can_not_hold_is_named_before_anything_is_sent(value: object) -> None:
    with pytest.raises(BadRequest):
        _ = question(extra={"x": value}).fingerprint


@given(text=st.text(st.characters(codec="utf-8"), max_size=200))
def test_the_ceiling_counts_at_least_a_token_a_byte(text: str) -> None:
    assert question(text).input_ceiling_tokens >= len(text.encode())


def test_the_ceiling_of_an_unknown_model_is_unknown() -> None:
    assert ceiling_micro_usd(question(model="a-private-model")) is None


def test_requests_with_the_same_instructions_share_a_prefix() -> None:
    def about(document: str, instruction: str = "Read.") -> Request:
        blocks = [{"type": "text", "text": instruction}, {"type": "text", "text": document}]
        return question(messages=[{"role": "user", "content": blocks}], shared_blocks=1)

    assert about("one").shared_prefix == about("two").shared_prefix != about("one", "Look.").shared_prefix


@given(text=st.text(st.characters(codec="utf-8")))
def test_all_that_caching_may_keep_is_counted_in_bytes(text: str) -> None:
    blocks = [{"type": "text", "text": text}, {"type": "text", "text": "its own" * 1_000}]
    tools = [{"name": "look", "description": text}]
    asked = question(
        messages=[{"role": "user", "content": blocks}], tools=tools, system=text, shared_blocks=1
    )
    assert 3 * len(text.encode()) <= asked.shared_bytes < asked.text_bytes - 7_000
    assert question(text, system=text).shared_bytes == 0


@pytest.mark.parametrize("name", ["max_tokens", "model", "messages", "stream"])
def test_what_is_reserved_and_priced_can_not_be_overruled(name: str) -> None:
    with pytest.raises(BadRequest, match=f"extra_body has '{name}'.*Nothing was sent"):
        question(extra={name: 1})


def test_what_a_server_does_with_tools_of_its_own_has_no_ceiling() -> None:
    search = {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}
    assert ceiling_micro_usd(question()) is not None
    assert ceiling_micro_usd(question(extra=search)) is None


# What the API would reject is never sent.

MARK = {"cache_control": {"type": "ephemeral"}}


def block(text: str, **fields: object) -> dict[str, object]:
    return {"type": "text", "text": text, **fields}


def marks(asked: Request) -> int:
    return asked.body(None).count(b"cache_control")


@pytest.mark.parametrize("own", range(8))
@pytest.mark.parametrize("place", ["messages", "tools", "system"])
def test_no_more_than_four_blocks_are_marked_for_caching_and_the_authors_marks_come_first(
    own: int, place: str
) -> None:
    content = [block("shared"), block("the document")]
    marked = [block(f"{n}", **(MARK if n < own else {})) for n in range(8)]
    asked = question(
        messages=[
            {"role": "user", "content": content},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": marked if place == "messages" else "And?"},
        ],
        system="Be brief.",
        shared_blocks=1,
        cache_first=True,
        extra={place: marked} if place != "messages" else {},
    )
    if own > 4:
        with pytest.raises(BadRequest, match=rf"{own} blocks are marked.*Nothing was sent"):
            asked.body(None)
    else:
        # Our two hints are sent where both have room.
        assert marks(asked) == (own + 2 if own <= 2 else own)


def test_the_mark_of_the_whole_request_counts_too() -> None:
    marked = [block(f"{n}", **MARK) for n in range(4)]
    asked = question(messages=[{"role": "user", "content": marked}])
    assert marks(asked) == 4
    with pytest.raises(BadRequest, match="5 blocks"):
        dataclasses.replace(asked, extra=MARK).body(None)


@pytest.mark.parametrize("system", ["", " ", "\n\t ", "\u00a0"])
def test_a_blank_system_prompt_is_none(system: str) -> None:
    assert question(system=system).body(None) == question().body(None)


@pytest.mark.parametrize("blank", ["", " ", "\n\n", "\u2003"])
def test_blank_blocks_of_a_tool_turn_are_left_out(blank: str) -> None:
    called = {"type": "tool_use", "id": "toolu_1", "name": "look_up", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": ""}
    asked = question().followed_by(
        {"role": "assistant", "content": [block(blank), called, block(blank)]},
        {"role": "user", "content": [result]},
    )
    sent = orjson.loads(asked.body(None))["messages"]
    assert sent[1]["content"] == [called]
    assert sent[2]["content"] == [result]
    assert sent[0] == question().messages[0]


@pytest.mark.parametrize("blank", ["", " \n", [], [block("")], [block(" "), block("\n")]], ids=repr)
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_message_without_anything_is_an_error_before_it_is_sent(blank: Any, role: str) -> None:
    asked = question().followed_by({"role": role, "content": blank}, {"role": "user", "content": "And?"})
    with pytest.raises(BadRequest, match=r"messages\[1\] has no text.*Nothing was sent"):
        asked.body(None)


@pytest.mark.parametrize("blank", ["", " \n"])
def test_a_document_without_text_is_an_error_before_it_is_sent(blank: str) -> None:
    source = {"type": "text", "media_type": "text/plain", "data": blank}
    content = [block("What is owed?"), {"type": "document", "source": source}]
    with pytest.raises(BadRequest, match="a document without text"):
        question(messages=[{"role": "user", "content": content}]).body(None)


def test_a_number_longer_than_64_bits_is_written_to_the_digit() -> None:
    long = 2**64 + 1
    data = {"b": [long, "é"], "a": 0.5}
    assert to_json(data) == f'{{"b":[{long},"é"],"a":0.5}}'.encode()
    assert to_json(data, sort_keys=True) == f'{{"a":0.5,"b":[{long},"é"]}}'.encode()
    for other in (float("nan"), {1}, "\ud800"):
        with pytest.raises(BadRequest, match="Nothing was sent"):
            to_json([long, other])
