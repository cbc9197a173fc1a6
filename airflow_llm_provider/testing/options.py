"""Which option of an enumeration, and whether a yes, a text supports most."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from airflow_llm_provider.testing.spans import Text, normal_phrase, words_of

_UNDECIDED = frozenset(
    {"other", "unknown", "none", "n/a", "na", "noassertion", "unclear", "not stated", "unspecified"}
)
_PIECES = re.compile(r"\s*(?:\||;|\n| / )\s*")
_QUOTED = re.compile(r"[\"“`]([^\"”`]{3,200})[\"”`]|(?<!\w)'([^']{3,200})'(?!\w)")
_LISTED = re.compile(r"\b(?:hints?|words|phrases?|says?|mentions?|contains?)\s*:\s*([^{}]+)", re.IGNORECASE)
_PHRASE_WORTH = 3.0
_LONGEST_PHRASE = 4  # words; a longer one is not worth more
_ENOUGH = 1.0  # a phrase, or all the words of one
_SENTENCE_SHARE = 0.6  # of a description's words that one sentence has to hold for a yes


def choose(options: Sequence[object], text: Text, *, description: str = "", prompt: str = "") -> object:
    """Return the option with most support in `text`.

    An option is supported by its own words and by its hints: what stands after `option:` in the
    field's description, or else in the prompt. A whole phrase found weighs more than any
    number of its words found apart, and more the earlier it stands.
    """
    ranked = rank(options, text, description=description, prompt=prompt)
    best, score = ranked[0]
    if score < _ENOUGH:
        for option in options:
            if isinstance(option, str) and option.lower() in _UNDECIDED:
                return option
    return best


def supported(
    options: Sequence[object], text: Text, *, description: str = "", prompt: str = ""
) -> list[object]:
    """Return all options with enough support, best first."""
    ranked = rank(options, text, description=description, prompt=prompt)
    return [option for option, score in ranked if score >= _ENOUGH]


def rank(
    options: Sequence[object], text: Text, *, description: str, prompt: str
) -> list[tuple[object, float]]:
    """Return the options with their scores, best first; equals stay in the schema's order."""
    names = tuple(option for option in options if isinstance(option, str))
    hints = dict(hints_of(names, description) or hints_of(names, prompt))
    sought = {option: (str(option), *hints.get(str(option), ())) for option in options}
    scores = {option: _phrases_score(phrases, text) for option, phrases in sought.items()}
    if not any(scores.values()):  # no phrase at all: then single words decide
        scores = {option: max(_words_score(phrase, text) for phrase in sought[option]) for option in options}
    return sorted(scores.items(), key=lambda pair: -pair[1])


def holds(text: Text, *, name: str, description: str) -> bool:
    """Say whether `text` supports a yes: by a phrase of the description, or most of its words."""
    if phrases := _phrases_to_find(description):
        return any(text.where(phrase) is not None for phrase in phrases)
    words = words_of(name, description)
    total = sum(weight for _, weight in words)
    for start, end in (text.sentences[index] for index in text.overlaps(words)):
        sentence = text.lower[start:end]
        if sum(weight for word, weight in words if word in sentence) >= _SENTENCE_SHARE * total:
            return True
    return False


@lru_cache(maxsize=512)
def hints_of(options: tuple[str, ...], source: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Read `option: words; option: words` out of a description, each option's words cut into phrases."""
    if not options or ":" not in source:
        return ()
    names = "|".join(sorted(map(re.escape, options), key=len, reverse=True))
    marks = list(re.finditer(rf"(?<![\w.-])[\"'`]?({names})[\"'`]?\s*:\s*", source))
    hints: dict[str, tuple[str, ...]] = {}
    ends = [mark.start() for mark in marks[1:]]
    for mark, end in zip(marks, [*ends, len(source)], strict=False):  # no marks, no hints
        words = source[mark.end() : end]
        words = words.split("\n\n")[0].strip(" \t\n;,.")
        pieces = tuple(piece.strip(" \"'`.,") for piece in _PIECES.split(words))
        hints[mark[1]] = (*hints.get(mark[1], ()), *(piece for piece in pieces if normal_phrase(piece)))
    return tuple(hints.items())


def _phrases_score(phrases: Sequence[str], text: Text) -> float:
    found = sorted((_phrase_score(phrase, text) for phrase in phrases), reverse=True)
    return found[0] + 0.25 * sum(found[1:])


def _phrase_score(phrase: str, text: Text) -> float:
    if (where := text.where(phrase)) is not None:
        return (_PHRASE_WORTH + _length(phrase)) * (2 - where)
    # A phrase with commas may be found in part.
    parts = [part for part in phrase.split(",") if len(part.split()) >= 2] if "," in phrase else []
    return max(
        (0.5 * (_PHRASE_WORTH + _length(part)) for part in parts if text.where(part) is not None), default=0.0
    )


def _length(phrase: str) -> int:
    return min(normal_phrase(phrase).count(" ") + 1, _LONGEST_PHRASE)


def _words_score(phrase: str, text: Text) -> float:
    words = normal_phrase(phrase).split()
    return sum(word in text.words for word in words) / len(words) if words else 0.0


@lru_cache(maxsize=512)
def _phrases_to_find(description: str) -> tuple[str, ...]:
    if quoted := [first or second for first, second in _QUOTED.findall(description)]:
        return tuple(quoted)
    listed = _LISTED.search(description)
    if listed or "|" in description:
        pieces = re.split(r"[;|,\n]", listed[1] if listed else description.rsplit(":", 1)[-1])
        return tuple(piece.strip(" .") for piece in pieces if normal_phrase(piece))
    return ()
