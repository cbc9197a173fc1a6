"""What a text says: its sentences, phrases, dates, amounts and names, and which option or yes it supports."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property, lru_cache
from itertools import islice
from math import log2

SCAN_CHARS = 20_000  # how much of a document is searched
_HITS_A_WORD = 20
_SPANS = 50  # of one kind, from the whole text
_NEAREST = 12  # sentences that are searched first
_NEXT_SENTENCE = 0.4
_OVER = 24
_SHORT_LINE = 50  # a line shorter than this ends its sentence, as in a form or a list

Words = Sequence[tuple[str, float]]  # stems of a field's name and description, with their weights

_BREAK = re.compile(r"[.!?\n][\"')\]]*\s*")
_WORD = re.compile(r"[^\W_]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SEPARATORS = {code: " " for code in range(128) if not chr(code).isalnum()}

_EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,4}")
_URL = re.compile(r"https?://[^\s<>\"')\]]{1,300}")
_MONTH_NAMES = _WORD.findall("jan feb mar apr may jun jul aug sep oct nov dec")
_MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES, 1)}
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6}"
_DATE = re.compile(
    r"\b(?:(?P<y>\d{4})[-/.](?P<m>\d{1,2})[-/.](?P<d>\d{1,2})"
    rf"|(?P<d2>\d{{1,2}})(?:st|nd|rd|th)?\.? (?P<m2>{_MONTH})\.?,? (?P<y2>\d{{4}})"
    rf"|(?P<m3>{_MONTH})\.? (?P<d3>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<y3>\d{{4}})"
    r"|(?P<d4>\d{1,2})[./](?P<m4>\d{1,2})[./](?P<y4>\d{4}))\b"
)
_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_NUMBERS = re.compile(rf"(?<![\w.])-?(?:{_NUMBER})(?![\w]|\.\d)")
_MONEY = re.compile(
    rf"(?:[$€£¥]|\b(?:USD|EUR|GBP|CHF)) ?(?P<a>{_NUMBER})"
    rf"|\b(?P<b>{_NUMBER}) ?(?:[€£]|(?:USD|EUR|GBP|CHF|dollars?|euros?)\b)"
)
_NAME = re.compile(
    r"\b[A-Z][\w&'-]{1,40}(?:,? (?:(?:of|de|van|von|der|for|and|&) )?[A-Z][\w&'.-]{0,40}){0,6}"
)
STOP_WORDS = frozenset(
    _WORD.findall(
        "the and for are was were that this with from not has have had its his her their they you your any"
        " all one which who whom what when where whether why how into than then them such can may must shall"
        " will would should does did been being out per only also each every other some most more very"
        " there here these those if is it of true false null none string value field date number integer list"
        " document text found literal quote exact word say state mention give given name description optional"
    )
)

_UNDECIDED = frozenset(
    {"other", "unknown", "none", "n/a", "na", "noassertion", "unclear", "not stated", "unspecified"}
)
_PIECES = re.compile(r"\s*(?:\||;|\n| / )\s*")
_QUOTED = re.compile(r"[\"“`]([^\"”`]{3,200})[\"”`]|(?<!\w)'([^']{3,200})'(?!\w)")
_LISTED = re.compile(r"\b(?:hints?|words|phrases?|says?|mentions?|contains?)\s*:\s*([^{}]+)", re.IGNORECASE)
_PHRASE_WORTH = 3.0
_LONGEST_PHRASE = 4  # words; a longer phrase does not score more
_ENOUGH = 1.0  # a phrase, or all the words of one
_SENTENCE_SHARE = 0.6  # of a description's words that one sentence has to hold for a yes


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A value, and where the text has it."""

    start: int
    value: object


class Text:
    """The first 20,000 characters of a document, indexed when needed."""

    def __init__(self, raw: str) -> None:
        self.raw = raw[:SCAN_CHARS]

    @cached_property
    def lower(self) -> str:
        """Return the text in lower case, with every character at the same position."""
        lower = self.raw.lower()
        # Some letters have two in lower case, such as the Turkish dotted capital I, and positions would move.
        if len(lower) == len(self.raw):
            return lower
        return "".join(low if len(low := char.lower()) == 1 else char for char in self.raw)

    @cached_property
    def normal(self) -> str:
        """Return the lower-case words with one space around each, to find phrases across line breaks."""
        return f" {' '.join(self.lower.translate(_SEPARATORS).split())} "

    @cached_property
    def words(self) -> frozenset[str]:
        """Return the lower-cased words."""
        return frozenset(self.normal.split())

    @cached_property
    def sentences(self) -> list[tuple[int, int]]:
        """Return the start and end of each sentence; short lines are sentences too."""
        found, start = [], 0
        for match in _BREAK.finditer(self.raw):
            gap = match.group()
            if gap[0] == "\n":
                line = match.start() - max(start, self.raw.rfind("\n", 0, match.start()) + 1)
                # A long line that ends without a full stop goes on in the next one; a blank line ends it.
                if gap.count("\n") < 2 and line >= _SHORT_LINE:
                    continue
                end = match.start()
            elif not gap[-1].isspace():
                continue
            else:
                end = match.start() + len(gap.rstrip())
            if end > start:
                found.append((start, end))
            start = match.end()
        if self.raw[start:].strip():
            found.append((start, len(self.raw.rstrip())))
        return found

    @cached_property
    def _starts(self) -> list[int]:
        return [start for start, _ in self.sentences]

    def sentence_at(self, position: int) -> int:
        """Return the index of the sentence around `position`."""
        return max(0, bisect_right(self._starts, position) - 1)

    def overlaps(self, words: Words) -> dict[int, float]:
        """Score sentences by the words in them; a word that is in many sentences counts less."""
        scores: dict[int, float] = {}
        if not self.sentences:
            return scores
        for word, weight in words:
            hits = list(self._sentences_with(word))
            worth = weight / (1 + log2(len(hits))) if hits else 0.0
            for index in hits:
                scores[index] = scores.get(index, 0.0) + worth
        return scores

    def _sentences_with(self, word: str) -> Iterator[int]:
        lower, at = self.lower, -1
        for _ in range(_HITS_A_WORD):
            at = lower.find(word, at + 1)
            if at < 0:
                return
            if at and lower[at - 1].isalnum():
                continue
            index = self.sentence_at(at)
            yield index
            at = self.sentences[index][1]

    def best_sentences(self, words: Words, count: int) -> list[str]:
        """Return up to `count` sentences with the highest scores, literally; none if no word is found."""
        scores = self.overlaps(words)
        ranked = sorted(scores, key=lambda index: (-scores[index], index))[:count]
        return [self.raw[slice(*self.sentences[index])] for index in ranked]

    def spans(self, kind: str, words: Words) -> Iterator[Span]:
        """Yield spans of a kind (a key of `FINDERS`), first those of the sentences with the highest scores.

        A sentence scores for its own words, and less for those of the sentence before. The first spans of the whole
        text follow, so some come twice.
        """
        find, scores = FINDERS[kind], self.overlaps(words)
        near: dict[int, float] = {}
        for index, score in scores.items():
            near[index] = near.get(index, 0.0) + score
            near[index + 1] = near.get(index + 1, 0.0) + _NEXT_SENTENCE * score
        near.pop(len(self.sentences), None)
        for index in sorted(near, key=lambda index: (-near[index], index))[:_NEAREST]:
            start, end = self.sentences[index]
            # A little over the end: `12. March 2026` looks like two sentences.
            for span in find(self.raw[start : end + _OVER]):
                if span.start < end - start:
                    yield span
        yield from islice(find(self.raw), _SPANS)

    def where(self, phrase: str) -> float | None:
        """Return how far into the text a phrase is, from 0 to 1, ignoring case and line breaks; None if absent."""
        normal = normal_phrase(phrase)
        at = self.normal.find(f" {normal} ") if normal else -1
        return None if at < 0 else at / len(self.normal)


def _plain(pattern: re.Pattern[str]) -> Callable[[str], Iterator[Span]]:
    def find(text: str) -> Iterator[Span]:
        return (
            Span(start=match.start(), value=match.group().rstrip(".,;")) for match in pattern.finditer(text)
        )

    return find


def _dates(text: str) -> Iterator[Span]:
    for match in _DATE.finditer(text):
        parts = {name[0]: part for name, part in match.groupdict().items() if part}
        month = int(parts["m"]) if parts["m"].isdigit() else _MONTHS[parts["m"][:3].lower()]
        try:
            found = date(int(parts["y"]), month, int(parts["d"]))
        except ValueError:
            continue
        yield Span(start=match.start(), value=found)


def _date_times(text: str) -> Iterator[Span]:
    for span in _dates(text):
        yield Span(start=span.start, value=f"{span.value}T00:00:00Z")


def _numbers(text: str) -> Iterator[Span]:
    for match in _NUMBERS.finditer(text):
        yield Span(start=match.start(), value=float(match.group().replace(",", "")))


def _money(text: str) -> Iterator[Span]:
    for match in _MONEY.finditer(text):
        yield Span(start=match.start(), value=float((match["a"] or match["b"]).replace(",", "")))


FINDERS: dict[str, Callable[[str], Iterator[Span]]] = {
    "date": _dates,
    "date-time": _date_times,
    "date-literal": _plain(_DATE),
    "number": _numbers,
    "money": _money,
    "money-literal": _plain(_MONEY),
    "name": _plain(_NAME),
    "email": _plain(_EMAIL),
    "uri": _plain(_URL),
}


@lru_cache(maxsize=4096)
def words_of(name: str, description: str) -> tuple[tuple[str, float], ...]:
    """Return the stems of a field's name and description with their weights; the name's count double."""
    found: dict[str, float] = {}
    for weight, text in ((2.0, _CAMEL.sub(" ", name)), (1.0, description)):
        for word in _WORD.findall(text.lower()):
            if len(word) >= 3 and word not in STOP_WORDS:
                found.setdefault(stem(word), weight)
    return tuple(found.items())


@lru_cache(maxsize=4096)
def normal_phrase(phrase: str) -> str:
    """Return a phrase in the form of `Text.normal`."""
    return " ".join(phrase.lower().translate(_SEPARATORS).split())


def stem(word: str) -> str:
    """Remove a common ending, so that `granted` finds `grant`."""
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)]
    return word


def choose(options: Sequence[object], text: Text, *, description: str = "", prompt: str = "") -> object:
    """Return the option that `text` supports most.

    An option is supported by its own words and by its hints: the text after `option:` in the field's description, or
    else in the prompt. A whole phrase counts more than any number of its words, and more if it comes earlier.
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
    """Return the options with their scores, best first; equal ones in the schema's order."""
    names = tuple(option for option in options if isinstance(option, str))
    hints = dict(hints_of(names, description) or hints_of(names, prompt))
    sought = {option: (str(option), *hints.get(str(option), ())) for option in options}
    scores = {option: _phrases_score(phrases, text) for option, phrases in sought.items()}
    if not any(scores.values()):  # without any phrase, single words decide
        scores = {option: max(_words_score(phrase, text) for phrase in sought[option]) for option in options}
    return sorted(scores.items(), key=lambda pair: -pair[1])


def holds(text: Text, *, name: str, description: str) -> bool:
    """Tell whether `text` supports a yes: it has a phrase of the description, or most of its words."""
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
    """Return the phrases of each option from a description such as `option: words; option: words`."""
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
    # Of a phrase with commas, a part may be found.
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
