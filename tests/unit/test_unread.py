"""A server that leaves out document blocks is found out by its count of tokens, and no other server is suspected."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import SCOPE, Wire, make_terms, message
from hypothesis import given
from hypothesis import strategies as st

from airflow_llm_provider.documents.output import RowWriter
from airflow_llm_provider.documents.prompt import DocumentPrompt
from airflow_llm_provider.documents.run import Run
from airflow_llm_provider.documents.sources import list_documents
from airflow_llm_provider.engine.output_type import OutputType
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.engine.text_block import text_block
from airflow_llm_provider.engine.unread import UnreadCheck, fewest_tokens
from airflow_llm_provider.errors import DocumentUnread
from airflow_llm_provider.options import Options, Reading
from airflow_llm_provider.pricing import Usage

PROMPT = "Which parties does this contract name, and which law governs it?"
RECORDED = Path(__file__).parents[2].parent / "shared/data/wire/anthropic_recorded.jsonl.xz"

# The same paragraph in languages whose tokens differ most in length; tokens by a tokenizer that is better than any.
TEXTS = {
    "English": "The supplier shall deliver the goods within thirty days after receipt of the written order. "
    * 20,
    "German": "Die Lieferverpflichtungen des Auftragnehmers beginnen mit der Auftragsbestätigung. " * 20,
    "Finnish": "Toimittajan toimitusvelvollisuus alkaa kirjallisen tilausvahvistuksen vastaanottamisesta. "
    * 20,
    "Chinese": "供应商应在收到书面订单后三十天内交付货物。否则买方有权解除合同并要求赔偿损失。" * 30,
    "Japanese": "供給者は書面による注文を受領した後三十日以内に商品を納入しなければならない。" * 30,
    "Thai": "ผู้จัดหาจะต้องส่งมอบสินค้าภายในสามสิบวันหลังจากได้รับคำสั่งซื้อเป็นลายลักษณ์อักษร" * 30,
    "Korean": "공급자는 서면 주문을 받은 후 삼십일 이내에 상품을 인도하여야 한다. " * 30,
    "numbers": "1 3 10.50\n2 6 20.50\n3 9 30.50\n" * 60,
}
BLANK = {
    "a rule of dashes": "-" * 20_000,
    "white space": " \n\t" * 8_000,
    "one long word": "a" * 20_000,
    "base64": "iVBORw0KGgoAAAANSUhEUgAA" * 500,
}


def request_about(text: str, framing: Any = "document", **fields: Any) -> Request:
    content = [{"type": "text", "text": PROMPT}, text_block(text, framing)]
    return Request(model="m", messages=[{"role": "user", "content": content}], shared_blocks=1, **fields)


def fewest_of(text: str) -> int:
    """Count tokens as a tokenizer would that has every word, and every four characters without spaces, in its list."""
    import re

    unspaced = sum(ord(c) > 0xDFF for c in text)
    return len(re.findall(r"[a-zA-Zäöüß]+|\d+|[^\w\s]", text)) + unspaced // 4


@pytest.mark.parametrize("language", TEXTS)
def test_a_long_document_that_was_left_out_is_found_in_the_first_reply(language):
    with pytest.raises(DocumentUnread, match='framing="tag"'):
        UnreadCheck().require_read(request_about(TEXTS[language]), 25)


@pytest.mark.parametrize("language", TEXTS)
def test_a_document_that_was_read_is_not_suspected_in_any_language(language):
    text = TEXTS[language]
    UnreadCheck().require_read(request_about(text), fewest_of(PROMPT + text))


@pytest.mark.parametrize("text", BLANK.values(), ids=BLANK)
def test_text_that_few_tokens_hold_is_not_suspected(text):
    UnreadCheck().require_read(request_about(text), 20 + len(text) // 128)


@given(st.lists(st.text(max_size=300), max_size=20))
def test_a_text_of_any_kind_is_not_suspected_at_half_a_token_per_word_or_four_characters(parts):
    text = " ".join(parts)
    words = sum(any(c.isalnum() or c == "_" for c in word) for word in text.split())
    assert fewest_tokens([text]) <= max(len(text) / 8, 0) + 1
    if text.isascii() and not any(c in text for c in "!\"#$%&'()*+,-./:;<=>?@[\\]^`{|}~"):
        assert fewest_tokens([text]) <= words / 2 + 1


def recorded() -> Iterator[tuple[Request, int]]:
    """Yield what was really sent as text, as if it were a document, with the input tokens of the real reply."""
    with lzma.open(RECORDED) as lines:
        exchanges = [json.loads(line) for line in lines]
    for each in exchanges:
        usage = usage_of(each["response"]) if each["status"] == 200 and "/messages" in each["uri"] else None
        if usage:
            text = "\n".join(texts_of([each["request"].get("system"), each["request"]["messages"]]))
            yield request_about(text), Usage.from_api(usage).input_tokens + 15  # the prompt's own


def usage_of(response: Any) -> dict[str, Any] | None:
    if isinstance(response, dict):
        return response.get("usage")
    for line in str(response).splitlines():
        if line.startswith("data: ") and "message_start" in line:
            return json.loads(line.removeprefix("data: "))["message"]["usage"]
    return None


def texts_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict) and value.get("type") != "base64":
        yield from (text for item in value.values() for text in texts_of(item))
    elif isinstance(value, list):
        yield from (text for item in value for text in texts_of(item))


@pytest.mark.skipif(not RECORDED.exists(), reason="the recorded exchanges are not on this machine")
def test_no_real_reply_of_the_api_is_suspected():
    exchanges = list(recorded())
    assert len(exchanges) > 100
    for request, tokens in exchanges:
        UnreadCheck().require_read(request, tokens)


def test_short_documents_are_found_out_by_replies_that_all_count_the_same():
    check = UnreadCheck()
    texts = [f"Ticket {n}: " + "it does not work. " * (n % 8) * 3 for n in range(20)]
    for text in texts[:7]:
        check.require_read(request_about(text), 60)
    with pytest.raises(DocumentUnread, match="very different lengths"):
        check.require_read(request_about(texts[7]), 60)
    read = UnreadCheck()
    for text in texts:
        read.require_read(request_about(text), 60 + len(text) // 4)


def test_equal_documents_may_take_equal_tokens():
    check = UnreadCheck()
    for n in range(50):
        check.require_read(request_about(f"Row {n:03}: paid."), 60)


@pytest.mark.parametrize(
    ("request_", "tokens"),
    [
        (request_about(TEXTS["English"], "tag"), 25),
        (request_about(TEXTS["English"]), 0),
        (request_about(TEXTS["English"]).followed_by({"role": "assistant", "content": "?"}), 25),
    ],
    ids=["tagged text", "a server that does not count", "a later turn"],
)
def test_only_document_blocks_of_a_first_question_are_judged(request_, tokens):
    UnreadCheck().require_read(request_, tokens)


async def test_tokens_of_the_cache_count_as_read(engine, wire):
    usage = {"input_tokens": 3, "output_tokens": 5, "cache_read_input_tokens": 2_000}
    reply = json.loads(message("Fine."))
    wire.usually = json.dumps({**reply, "usage": usage}).encode()
    assert (await engine.ask(request_about(TEXTS["English"]), make_terms())).text == "Fine."


async def test_a_run_stops_at_a_server_that_leaves_documents_out_and_goes_on_with_tags(
    engine, wire: Wire, tmp_path
):
    def leave_out(request: Request) -> bytes:
        seen = [block["text"] for block in request.messages[0]["content"] if block["type"] == "text"]
        return message("No parties.", input_tokens=sum(map(len, seen)) // 4)

    wire.usually = leave_out
    documents = [{"id": n, "text": f"Contract {n}. {TEXTS['English']}"} for n in range(100)]

    async def run_with(framing: Any) -> tuple[Run, dict[str, Any]]:
        prompt = DocumentPrompt(
            prompt=PROMPT,
            output=OutputType(None),
            endpoint=engine.endpoint,
            options=Options(),
            reading=Reading(framing=framing),
        )
        run = Run(engine=engine, scope=SCOPE, prompt=prompt, max_in_flight=4, log_every_s=3600.0)
        with RowWriter(str(tmp_path / "rows.jsonl")) as sink:
            return run, (await run.run(list_documents(documents, reading=Reading(text_field="text")), sink))[
                "outcomes"
            ]

    run, outcomes = await run_with("document")
    assert isinstance(run.stopped, DocumentUnread)
    assert (outcomes["answered"], outcomes["pending"]) == (0, 100)
    assert len(wire.sent) <= 8
    engine.is_read_only = False
    run, outcomes = await run_with("tag")
    assert (run.stopped, outcomes["answered"]) == (None, 100)
