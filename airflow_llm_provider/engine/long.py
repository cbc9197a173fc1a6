"""Long inputs: what is done with a text that is longer than a model should read at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from airflow_llm_provider.engine.reply import Reply
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.engine.run import Engine
from airflow_llm_provider.engine.validate import OutputType
from airflow_llm_provider.errors import AnswerError, InvalidOutput, TerminalError, TooLong
from airflow_llm_provider.pricing import context_window
from airflow_llm_provider.validators import Judge

TooLongMode = Literal["fail", "truncate", "map_reduce"]

_CHARACTERS_A_TOKEN = 3  # of English it is four; tables and other languages need more tokens
_USUAL_WINDOW = 200_000  # of a model that genai-prices does not know

_REDUCE = """The document was too long to be read at once, so it was read in parts. What stands above are the answers
about its parts, in order. Merge them into one answer about the whole document. Leave out what is said twice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LongInput:
    """What to do with a text that is too long.

    too_long: `fail` says so before anything is sent; `truncate` reads the beginning; `map_reduce` asks about
        each part, split where the text has its sections, and merges the answers.
    max_input_tokens: how much may be read at once; None: the model's context window. A lower bound may be
        cheaper: some models charge long prompts at a higher rate.
    """

    too_long: TooLongMode = "fail"
    max_input_tokens: int | None = None

    def surely_fits(self, request: Request) -> bool:
        """Tell whether a request can be read at once even if every byte were a token."""
        window = context_window(request.model) or _USUAL_WINDOW
        limit = min(window - request.max_tokens, self.max_input_tokens or window)
        return request.input_ceiling_tokens < limit


async def ask_about(
    engine: Engine,
    text: str,
    request: Callable[[str], Request],
    *,
    source: Callable[[str], str | None] = str,
    long: LongInput,
    **terms: Any,
) -> Reply:
    """Return the answer about `text`, which is read whole, in part or in parts.

    request: makes the request about a text; source: what its answer is checked against, by default that text.
    terms: as for Engine.ask.
    Parts are requests like any other: in the ledger, and not asked again by a retry. Raises TooLong.
    """
    room = _room(request(""), long)
    if room >= estimated_tokens(text):
        return await engine.ask(request(text), source=source(text), **terms)
    if long.too_long == "fail" or room <= 0:
        raise TooLong(
            f"The text has about {estimated_tokens(text)} tokens, and {max(room, 0)} can be read at once. "
            "Set too_long='map_reduce' to read it in parts, too_long='truncate' to read its beginning, or raise "
            "max_input_tokens where the model can read more."
        )
    if long.too_long == "truncate":
        beginning = text[: room * _CHARACTERS_A_TOKEN]
        return await engine.ask(request(beginning), source=source(beginning), **terms)
    return await _map_reduce(engine, text, split(text, room), request, source, long, terms)


def split(text: str, tokens: int) -> list[str]:
    """Split a text into parts of at most so many tokens, at its sections, paragraphs and sentences."""
    import semchunk

    parts = semchunk.chunk(text, tokens, estimated_tokens, memoize=False)  # type: ignore[attr-defined]  # not in its __all__
    assert isinstance(parts, list)
    return parts


def estimated_tokens(text: str) -> int:
    """Estimate the tokens of a text, rather too many than too few."""
    return -(-len(text) // _CHARACTERS_A_TOKEN)


async def _map_reduce(
    engine: Engine,
    text: str,
    parts: Sequence[str],
    request: Callable[[str], Request],
    source: Callable[[str], str | None],
    long: LongInput,
    terms: dict[str, Any],
) -> Reply:
    # Each to its end: what is in flight when one fails is paid for all the same.
    asked = await asyncio.gather(
        *(engine.ask(request(part), source=source(part), **terms) for part in parts), return_exceptions=True
    )
    if failed := [each for each in asked if isinstance(each, BaseException)]:
        raise _of_whole(next((error for error in failed if isinstance(error, TerminalError)), failed[0]))
    replies = [each for each in asked if isinstance(each, Reply)]
    output: OutputType = terms.get("output") or OutputType()
    answers = [output.dump(reply.value) for reply in replies]
    if (joined := _joined(answers)) is not None:
        functions = [each for each in terms.get("validators", ()) if not isinstance(each, Judge)]
        once = {**terms, "validators": functions, "max_repairs": 0}
        whole = orjson.dumps(output.wrap(joined)).decode()
        # What every part has passed, all of them together may not: then it takes judgement.
        with contextlib.suppress(InvalidOutput):
            checked = await engine.ask(request(""), given=whole, source=source(text), **once)
            return Reply.of_parts(replies, checked.value)
    summary = orjson.dumps(answers, option=orjson.OPT_INDENT_2).decode()

    def merging(text: str) -> Request:
        return request(text).with_block({"type": "text", "text": _REDUCE})

    # What the parts quote is in the whole.
    reduced = await ask_about(engine, summary, merging, source=lambda _: source(text), long=long, **terms)
    return Reply.of_parts([*replies, reduced], reduced.value)


def _of_whole(error: BaseException) -> BaseException:
    """Return a part's error as one about the whole: what it says of the part is no answer about all of it."""
    if isinstance(error, AnswerError):
        error.reply_text = ""
    return error


def _joined(answers: Sequence[Any]) -> Any:
    """Join the answers where they are lists, or objects of nothing but lists; None where it takes judgement."""
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
    return [orjson.loads(item) for item in dict.fromkeys(orjson.dumps(item) for item in items)]


def _room(empty: Request, long: LongInput) -> int:
    """Return how many tokens of text fit beside the rest of a request."""
    window = context_window(empty.model) or _USUAL_WINDOW
    limit = min(window - empty.max_tokens, long.max_input_tokens or window)
    return limit - -(-empty.text_bytes // _CHARACTERS_A_TOKEN)  # base64 is no text
