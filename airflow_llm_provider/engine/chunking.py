"""Long texts: read whole, their beginning only, or in parts whose answers are merged."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.reply import Reply
from airflow_llm_provider.engine.request import FRAME_TOKENS, Request, to_json
from airflow_llm_provider.engine.terms import Terms
from airflow_llm_provider.errors import AnswerError, InvalidOutput, TerminalError, TooLong
from airflow_llm_provider.options import LongInput, OnInvalid
from airflow_llm_provider.pricing import Prices, context_window

# Four for English; tables need more tokens. Bytes and not characters: of Chinese, a character is about one token.
_BYTES_PER_TOKEN = 3
_USUAL_WINDOW = 200_000  # tokens; for a model that genai-prices does not know

_REDUCE = """The document was too long to be read at once, so it was read in parts. What stands above are the answers
about its parts, in order. Merge them into one answer about the whole document. Leave out what is said twice."""


def surely_fits(request: Request, long_input: LongInput, prices: Prices) -> bool:
    """Tell whether a request can be read at once even if each byte is a token."""
    return request.input_ceiling_tokens < _most_tokens(request, long_input, prices)


async def ask_about(
    engine: Engine,
    text: str,
    request: Callable[[str], Request],
    terms: Terms,
    *,
    source: Callable[[str], str | None] = str,
) -> Reply:
    """Return the answer about `text`, which is read whole, in part or in parts.

    Parts are requests like any other: they are in the ledger, and a retry does not ask them again.

    Args:
        engine: asks.
        text: what is asked about.
        request: makes the request about a text.
        terms: of the answer; `terms.options.long_input` says what happens with a long text.
        source: what the answer about a text is checked against; by default that text.

    Raises:
        TooLong: the text cannot be read at once and `too_long` is `fail`; nothing was sent.
        LLMError: as Engine.ask.
    """
    texts = texts_to_read(text, request, terms.options.long_input, engine.endpoint.prices)
    if len(texts) == 1:
        return await engine.ask(request(texts[0]), dataclasses.replace(terms, source=source(texts[0])))
    asked = [(request(part), source(part)) for part in texts]
    return await _map_reduce(engine, asked, request, dataclasses.replace(terms, source=source(text)))


async def ask_about_pieces(
    engine: Engine, pieces: Sequence[Request], request: Callable[[str], Request], terms: Terms
) -> Reply:
    """Return the answer about a document that one request cannot hold: one with more pages than the API takes.

    Args:
        engine: asks.
        pieces: a request about each piece, in order.
        request: makes the request about a text, with which answers are merged.
        terms: of the answer; `terms.options.long_input` says what happens with more than one piece.

    Raises:
        TooLong: there are several pieces and `too_long` is `fail`; nothing was sent.
        LLMError: as Engine.ask.
    """
    pieces = pieces_to_read(pieces, terms.options.long_input)
    if len(pieces) == 1:
        return await engine.ask(pieces[0], terms)
    return await _map_reduce(engine, [(piece, terms.source) for piece in pieces], request, terms)


def pieces_to_read(pieces: Sequence[Request], long_input: LongInput) -> Sequence[Request]:
    """Return the pieces that are asked about: all, or the first; raises TooLong where there may be only one."""
    if len(pieces) > 1 and long_input.too_long == "fail":
        raise TooLong(
            f"The document has more pages to be looked at than one request takes; it needs {len(pieces)} requests. "
            "Set long_input='map_reduce' to ask about all and merge the answers, long_input='truncate' to ask about "
            "the first, or reading=Reading(pdf='text') where the text is enough."
        )
    return pieces[:1] if long_input.too_long == "truncate" else pieces


def texts_to_read(
    text: str, request: Callable[[str], Request], long_input: LongInput, prices: Prices
) -> list[str]:
    """Return the texts that are asked about: all of `text` where it fits, else its beginning or its parts.

    Args:
        text: what is asked about.
        request: makes the request about a text.
        long_input: what to do with a text that does not fit.
        prices: what the connection pays, where a text is split by its price.

    Raises:
        TooLong: the text cannot be read at once and `too_long` is `fail`.
    """
    room = _room(request(""), long_input, prices)
    if room >= estimate_tokens(text):
        return [text]
    if long_input.too_long == "fail" or room <= 0:
        raise TooLong(
            f"The text has about {estimate_tokens(text)} tokens, and {max(room, 0)} can be read at once. "
            "Set long_input='map_reduce' to read it in parts, long_input='truncate' to read its beginning, or raise "
            "LongInput(max_input_tokens=…) where the model can read more."
        )
    if long_input.too_long == "truncate":
        # A character that the cut goes through is left out.
        return [_utf8(text)[: room * _BYTES_PER_TOKEN].decode(errors="ignore")]
    return split_text(text, room)


def split_text(text: str, tokens: int) -> list[str]:
    """Split a text into parts of at most `tokens` tokens, at its sections, paragraphs and sentences."""
    import semchunk

    parts = semchunk.chunk(text, tokens, estimate_tokens, memoize=False)  # type: ignore[attr-defined]  # not in its __all__
    assert isinstance(parts, list)
    return parts


def estimate_tokens(text: str) -> int:
    """Estimate the tokens of a text, rather too many than too few."""
    length = len(text) if text.isascii() else len(_utf8(text))
    return -(-length // _BYTES_PER_TOKEN)


def _utf8(text: str) -> bytes:
    # A lone surrogate is an error when the request is written as JSON. Splitting is not the place for it.
    return text.encode("utf-8", "surrogatepass")


async def _map_reduce(
    engine: Engine,
    parts: Sequence[tuple[Request, str | None]],
    request: Callable[[str], Request],
    terms: Terms,
) -> Reply:
    """Ask about each part, checked against its own source, and merge the answers; `terms` has the whole source."""
    # All are awaited to their end: when one fails, the others in flight are paid for all the same.
    asked = await asyncio.gather(
        *(engine.ask(part, dataclasses.replace(terms, source=source)) for part, source in parts),
        return_exceptions=True,
    )
    if failed := [each for each in asked if isinstance(each, BaseException)]:
        # A TerminalError goes first: a retry of the task cannot help as long as it is there.
        raise _of_whole(next((error for error in failed if isinstance(error, TerminalError)), failed[0]))
    replies = [each for each in asked if isinstance(each, Reply)]
    answers = [terms.output.dump(reply.value) for reply in replies]
    if (joined := _joined(answers)) is not None:
        whole = to_json(terms.output.wrap(joined)).decode()
        # Each part is valid, but together they may not be: merging them then takes the model's judgement.
        with contextlib.suppress(InvalidOutput):
            # The joined answer is given, so nothing is sent here; only the checks run.
            checked = await engine.ask(request(""), _checking(terms, whole))
            return Reply.of_parts(replies, checked.value)
    summary = json.dumps(answers, indent=2, ensure_ascii=False)

    def merging(text: str) -> Request:
        return request(text).with_block({"type": "text", "text": _REDUCE})

    # Quotes from the parts stand in the whole text.
    reduced = await ask_about(engine, summary, merging, terms, source=lambda _: terms.source)
    return Reply.of_parts([*replies, reduced], reduced.value)


def _checking(terms: Terms, answer: str) -> Terms:
    """Return terms that check an answer by what costs nothing: no judge, no repair."""
    retry = {kind: policy for kind, policy in terms.options.route.retry.items() if kind != "invalid_output"}
    options = dataclasses.replace(
        terms.options,
        on_invalid=OnInvalid(max_repairs=0),
        route=dataclasses.replace(terms.options.route, retry=retry),
    )
    return dataclasses.replace(terms, options=options, validators=terms.functions, given=answer)


def _of_whole(error: BaseException) -> BaseException:
    """Return the error of a part without its answer, which is not an answer about the whole text."""
    if isinstance(error, AnswerError):
        error.reply_text = ""
    return error


def _joined(answers: Sequence[Any]) -> Any:
    """Join answers that are lists, or objects of lists; return None for others, which the model must merge."""
    if all(isinstance(answer, list) for answer in answers):
        return _without_repeats(item for answer in answers for item in answer)
    if all(
        isinstance(answer, Mapping) and all(isinstance(v, list) for v in answer.values())
        for answer in answers
    ):
        names = dict.fromkeys(name for answer in answers for name in answer)
        return {
            name: _without_repeats(i for answer in answers for i in answer.get(name, [])) for name in names
        }
    return None


def _without_repeats(items: Any) -> list[Any]:
    return [json.loads(item) for item in dict.fromkeys(map(to_json, items))]


def _room(empty: Request, long_input: LongInput, prices: Prices) -> int:
    """Return how many tokens of text fit beside the rest of a request."""
    # base64 is not text
    return _most_tokens(empty, long_input, prices) - -(-empty.text_bytes // _BYTES_PER_TOKEN)


def _most_tokens(request: Request, long_input: LongInput, prices: Prices) -> int:
    """Return how many tokens of input a request may have."""
    window = context_window(request.model) or _USUAL_WINDOW
    most = long_input.max_input_tokens or window
    if most == "price_step":
        card = prices.card(request.model)
        # The step is by the API's count, which has more than our text.
        most = card.price_step - FRAME_TOKENS if card and card.price_step else window
    return min(window - request.max_tokens, most)
