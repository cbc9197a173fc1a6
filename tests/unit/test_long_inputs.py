"""A text that is too long is refused before it costs anything, cut, or read in parts."""

import dataclasses
import functools
import re

import orjson
import pydantic
import pytest
from conftest import Wire, make_terms, message, question
from hypothesis import given
from hypothesis import strategies as st

from airflow_llm_provider.engine.chunking import (
    ask_about,
    ask_about_pieces,
    estimate_tokens,
    split_text,
    texts_to_read,
)
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.output_type import OutputType
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.errors import Refused, TooLong
from airflow_llm_provider.options import LongInput
from airflow_llm_provider.pricing import LIST_PRICES, Prices


class Report(pydantic.BaseModel):
    summary: str
    facts: list[str]


def book(pages: int) -> str:
    return "\n\n".join(
        f"Page {n}\n\n" + "Nothing happens here. " * 80 + f"FACT-{n:03}." for n in range(pages)
    )


def about(text: str, **fields: object) -> Request:
    content = [{"type": "text", "text": "Which facts are there?"}, {"type": "text", "text": text}]
    return question(messages=[{"role": "user", "content": content}], **fields)


def facts(request: Request) -> bytes:
    text = request.messages[-1]["content"][1]["text"]
    return message(orjson.dumps({"items": re.findall(r"FACT-\d+", text)}).decode())


async def test_a_text_that_fits_is_asked_as_it_is(engine: Engine, wire: Wire) -> None:
    await ask_about(engine, "short", about, make_terms(long_input=LongInput()))
    assert len(wire.sent) == 1


async def test_a_text_that_does_not_fit_is_refused_before_anything_is_sent(
    engine: Engine, wire: Wire
) -> None:
    with pytest.raises(TooLong, match="map_reduce"):
        await ask_about(engine, book(100), about, make_terms(long_input=LongInput(max_input_tokens=5000)))
    assert wire.sent == []


async def test_truncating_reads_the_beginning(engine: Engine, wire: Wire) -> None:
    long = LongInput(too_long="truncate", max_input_tokens=5000)
    await ask_about(engine, book(100), about, make_terms(long_input=long))
    sent = wire.sent[0].messages[0]["content"][1]["text"]
    assert book(100).startswith(sent)
    assert 4000 < estimate_tokens(sent) <= 5000


@pytest.mark.parametrize(("letters", "step"), [("a", 100_000), ("漢", 100_000)])
async def test_parts_stay_below_the_price_step_in_any_script(
    engine: Engine, wire: Wire, letters: str, step: int
) -> None:
    wire.usually = facts
    text = " ".join(f"{letters * 7}. FACT-{n:03}." for n in range(20_000))
    price_step = LongInput(too_long="map_reduce", max_input_tokens="price_step")
    terms = make_terms(long_input=price_step, output=OutputType(list[str]))
    await ask_about(engine, text, about, terms)
    # Of Chinese, a character is about a token; of Latin letters, three are at most one.
    sizes = [estimate_tokens(request.messages[-1]["content"][1]["text"]) for request in wire.sent]
    assert len(sizes) > 1
    assert max(sizes) <= step - 2_000


async def test_a_step_of_the_connections_own_prices_counts_and_without_one_the_window_does(
    engine: Engine, wire: Wire
) -> None:
    wire.usually = facts
    price_step = LongInput(too_long="map_reduce", max_input_tokens="price_step")
    terms = make_terms(long_input=price_step, output=OutputType(list[str]))
    own = {"mine": {"input": 1, "output": 2, "above": {"20000": {"input": 2, "output": 4}}}}
    engine.endpoint = dataclasses.replace(engine.endpoint, prices=Prices.of(own))
    for model, is_split in (("mine", True), ("claude-sonnet-5-5", False)):
        wire.sent.clear()
        await ask_about(engine, book(200), functools.partial(about, model=model), terms)
        sizes = [estimate_tokens(request.messages[-1]["content"][1]["text"]) for request in wire.sent]
        assert (len(sizes) > 1) == is_split
        assert max(sizes) < 18_000 or not is_split


@given(text=st.text(st.characters(codec="utf-8"), max_size=300), tokens=st.integers(1, 50))
async def test_a_cut_text_is_the_beginning_and_no_longer_than_was_asked(text: str, tokens: int) -> None:
    long = LongInput(
        too_long="truncate", max_input_tokens=tokens + estimate_tokens(" " * about("").text_bytes)
    )
    [kept] = texts_to_read(text, about, long, LIST_PRICES)
    assert text.startswith(kept)
    assert estimate_tokens(kept) <= max(tokens, 1) + 1


async def test_every_fact_of_a_300_page_book_is_found_in_parts_and_kept_for_a_retry(
    engine: Engine, wire: Wire
) -> None:
    wire.usually = facts
    long = LongInput(too_long="map_reduce", max_input_tokens=20_000)
    for again in (False, True):
        reply = await ask_about(
            engine, book(300), about, make_terms(long_input=long, output=OutputType(list[str]))
        )
        assert reply.value == [f"FACT-{n:03}" for n in range(300)]
        assert reply.reused == again
    assert 8 < len(wire.sent) < 20


async def test_answers_that_take_judgement_are_merged_by_the_model(engine: Engine, wire: Wire) -> None:
    def answer(request: Request) -> bytes:
        content = request.messages[-1]["content"]
        if len(content) == 3:  # the merging
            found = sorted(set(re.findall(r"FACT-\d+", content[1]["text"])))
            return message(Report(summary="the whole", facts=found).model_dump_json())
        found = re.findall(r"FACT-\d+", content[1]["text"])
        return message(Report(summary="a part", facts=found).model_dump_json())

    wire.usually = answer
    long = LongInput(too_long="map_reduce", max_input_tokens=20_000)
    reply = await ask_about(engine, book(60), about, make_terms(long_input=long, output=OutputType(Report)))
    assert reply.value == Report(summary="the whole", facts=[f"FACT-{n:03}" for n in range(60)])
    assert reply.attempts == len(wire.sent)
    assert reply.usage.input_tokens == 10 * len(wire.sent)


@given(st.text(min_size=1, max_size=2000), st.integers(10, 100))
def test_no_part_is_longer_than_asked_and_no_word_is_lost(text: str, tokens: int) -> None:
    parts = split_text(text, tokens)
    assert all(estimate_tokens(part) <= tokens for part in parts)
    assert "".join("".join(parts).split()) == "".join(text.split())


async def test_a_part_that_fails_fails_its_text_and_costs_the_others_nothing(
    engine: Engine, wire: Wire
) -> None:
    def answer(request: Request) -> bytes:
        refuses = "FACT-000" in str(request.messages)
        return message("A part.", stop_reason="refusal" if refuses else "end_turn")

    wire.usually = answer
    long = LongInput(too_long="map_reduce", max_input_tokens=20_000)
    with pytest.raises(Refused) as caught:
        await ask_about(engine, book(60), about, make_terms(long_input=long))
    assert caught.value.reply_text == ""  # what was said of a part is no answer about the whole
    assert (engine.tally.requests, engine.tally.unproven) == (len(wire.sent), 0)


async def test_parts_that_are_valid_may_not_be_so_together(engine: Engine, wire: Wire) -> None:
    def at_most_30(found: list[str]) -> str | None:
        return "More than 30." if len(found) > 30 else None

    def answer(request: Request) -> bytes:
        is_merging = len(request.messages[-1]["content"]) == 3
        return message('{"items": ["FACT-007"]}') if is_merging else facts(request)

    wire.usually = answer
    long = LongInput(too_long="map_reduce", max_input_tokens=5_000)
    terms = make_terms(long_input=long, output=OutputType(list[str]), validators=[at_most_30])
    few = await ask_about(engine, book(30), about, terms)
    assert (len(few.value), few.attempts) == (30, len(wire.sent))
    many = await ask_about(engine, book(31), about, terms)
    assert many.value == ["FACT-007"]


async def test_what_is_no_text_takes_no_room_of_it(engine: Engine, wire: Wire) -> None:
    def with_pages(text: str) -> Request:
        source = {"type": "base64", "media_type": "application/pdf", "data": "A" * 1_000_000}
        blocks = [{"type": "document", "source": source}, {"type": "text", "text": f"Which facts? {text}"}]
        return question(messages=[{"role": "user", "content": blocks}])

    await ask_about(engine, "", with_pages, make_terms(long_input=LongInput(max_input_tokens=10_000)))
    assert len(wire.sent) == 1


def pages(numbers: range) -> Request:
    """A request about pages that are looked at, of which one request takes only some."""
    return about(" ".join(f"FACT-{number:03}" for number in numbers))


async def test_more_pages_than_one_request_takes_are_refused_before_anything_is_sent(
    engine: Engine, wire: Wire
) -> None:
    with pytest.raises(TooLong, match=r"2 requests.*map_reduce"):
        await ask_about_pieces(
            engine, [pages(range(3)), pages(range(3, 5))], about, make_terms(long_input=LongInput())
        )
    assert wire.sent == []


async def test_more_pages_than_one_request_takes_are_asked_about_in_pieces_and_kept_for_a_retry(
    engine: Engine, wire: Wire
) -> None:
    wire.usually = facts
    pieces = [pages(range(3)), pages(range(3, 5))]
    for how, found in (("map_reduce", 5), ("truncate", 3)):
        terms = make_terms(long_input=LongInput(too_long=how), output=OutputType(list[str]))
        reply = await ask_about_pieces(engine, pieces, about, terms)
        assert reply.value == [f"FACT-{n:03}" for n in range(found)]
    assert len(wire.sent) == 2


async def test_parts_whose_numbers_are_longer_than_64_bits_are_joined(engine: Engine, wire: Wire) -> None:
    long = 2**64 + 1
    wire.usually = message(f'{{"items": [{long}, 1]}}')
    output = OutputType(list[int])
    limit = LongInput(too_long="map_reduce", max_input_tokens=10_000)
    make = functools.partial(about, schema=output.schema)
    reply = await ask_about(engine, book(100), make, make_terms(output=output, long_input=limit))
    assert (len(wire.sent) > 1, reply.value) == (True, [long, 1])
