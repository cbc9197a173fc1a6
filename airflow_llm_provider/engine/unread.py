"""Whether a server reads document blocks: the input tokens of its replies against the text that was sent.

Servers that are compatible with the API in other ways may leave out blocks they do not know. The model then answers
about nothing, and its answer may be valid.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_llm_provider.engine.request import BYTES_PER_TOKEN, Request
from airflow_llm_provider.errors import DocumentUnread

# Of the recorded exchanges of the API, the fewest tokens are 1.24 per word or four characters, whichever is less.
_SHARE = 0.5
_FEWEST_TOKENS = 32  # below, a word more or less would decide
_ALIKE, _CHARACTERS_APART = 8, 256

# Chinese, Japanese, Korean, Thai, Lao, Khmer and Burmese put no spaces between words: four characters count as one.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_WORD = re.compile(r"\w+")


@dataclass(kw_only=True)
class UnreadCheck:
    """Compares what replies say they have read with what was sent; it belongs to one engine."""

    _seen: dict[tuple[str, str, str], _Alike] = field(default_factory=dict, init=False)

    def require_read(self, request: Request, input_tokens: int) -> None:
        """Raise DocumentUnread where the reply to a request with document blocks cannot have read them.

        Args:
            request: what was sent; only the first question of a conversation is judged.
            input_tokens: of the reply, with those of the cache; 0: the server does not count.
        """
        if not input_tokens or len(request.messages) != 1:
            return
        blocks = request.messages[0]["content"]
        if isinstance(blocks, str):
            return
        documents = [text for block in blocks if (text := _document_text(block)) is not None]
        if not documents:
            return
        texts = [*documents, *_texts(blocks), request.system or ""]
        # Most replies are far above the first bound, so that words are seldom counted.
        if input_tokens < _of_characters(texts) * _SHARE and input_tokens < fewest_tokens(texts):
            raise _error("far fewer than the text that was sent takes")
        alike = self._seen.setdefault((request.endpoint, request.model, request.family), _Alike())
        if alike.is_constant(input_tokens, sum(map(len, documents))):
            raise _error("the same for documents of very different lengths")


@dataclass(slots=True)
class _Alike:
    """Replies in a row with the same number of input tokens, and how long their documents were."""

    tokens: int = 0
    count: int = 0
    shortest: int = 0
    longest: int = 0

    def is_constant(self, tokens: int, characters: int) -> bool:
        """Count a reply; tell whether so many in a row cannot have read documents of such different lengths."""
        if tokens != self.tokens:
            self.tokens, self.count, self.shortest, self.longest = tokens, 0, characters, characters
        self.count += 1
        self.shortest, self.longest = min(self.shortest, characters), max(self.longest, characters)
        return self.count >= _ALIKE and self.longest - self.shortest >= _CHARACTERS_APART


def fewest_tokens(texts: list[str]) -> int:
    """Return a number of tokens that no tokenizer gets below for these texts; 0 where they are too short to tell."""
    fewest = round(min(_of_characters(texts), sum(map(_words, texts))) * _SHARE)
    return fewest if fewest >= _FEWEST_TOKENS else 0


def _of_characters(texts: list[str]) -> float:
    return sum(map(len, texts)) / BYTES_PER_TOKEN


def _words(text: str) -> float:
    # A long run of characters, such as a line of dashes, may be one token; a word of its own takes at least one.
    spaced, unspaced = _UNSPACED.subn(" ", text)
    return sum(1 for _ in _WORD.finditer(spaced)) + unspaced / BYTES_PER_TOKEN


def _document_text(block: Mapping[str, Any]) -> str | None:
    source = block.get("source")
    if block.get("type") != "document" or not isinstance(source, Mapping) or source.get("type") != "text":
        return None
    return str(source.get("data"))


def _texts(blocks: Any) -> Iterator[str]:
    return (str(block["text"]) for block in blocks if block.get("type") == "text")


def _error(what: str) -> DocumentUnread:
    return DocumentUnread(
        f"The server did not read the document that was sent: the input tokens of its replies are {what}. It answers "
        "about nothing, so its answers are not used. Send documents as tagged text, which every server reads: "
        'Reading(framing="tag").'
    )
