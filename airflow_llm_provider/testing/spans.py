"""Spans really found in a text: sentences by word overlap, phrases, dates, money, numbers, names."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property, lru_cache
from itertools import islice
from math import log2

SCAN_CHARS = 20_000  # how much of a document is looked at
_HITS_A_WORD = 20
_SPANS = 50  # of one kind that are looked at in the whole text
_NEAREST = 12  # sentences that are looked at first
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
_UUID = re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b")
_IPV4 = re.compile(r"\b(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)\b")
_TIME = re.compile(r"\b(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d)?\b")
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A value and where in the text it was found."""

    start: int
    value: object


class Text:
    """A document as the rules see it: its first 20,000 characters, indexed when asked."""

    def __init__(self, raw: str) -> None:
        self.raw = raw[:SCAN_CHARS]

    @cached_property
    def lower(self) -> str:
        """Return the text in lower case, every character at its place."""
        lower = self.raw.lower()
        if len(lower) == len(self.raw):
            return lower
        return "".join(low if len(low := char.lower()) == 1 else char for char in self.raw)

    @cached_property
    def normal(self) -> str:
        """Return the lower-cased words with one space around each, for phrases over line breaks."""
        return f" {' '.join(self.lower.translate(_SEPARATORS).split())} "

    @cached_property
    def words(self) -> frozenset[str]:
        """Return the lower-cased words."""
        return frozenset(self.normal.split())

    @cached_property
    def sentences(self) -> list[tuple[int, int]]:
        """Find where the sentences start and end; short lines are sentences too."""
        found, start = [], 0
        for match in _BREAK.finditer(self.raw):
            gap = match.group()
            if gap[0] == "\n":
                line = match.start() - max(start, self.raw.rfind("\n", 0, match.start()) + 1)
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
        """Score sentences by the words in them; a word that stands in many counts less."""
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
        """Return up to `count` sentences, literally, with most overlap; none where nothing overlaps."""
        scores = self.overlaps(words)
        ranked = sorted(scores, key=lambda index: (-scores[index], index))[:count]
        return [self.raw[slice(*self.sentences[index])] for index in ranked]

    def spans(self, kind: str, words: Words) -> Iterator[Span]:
        """Yield spans of a kind, a key of `FINDERS`: first from the sentences nearest to `words`.

        A sentence is near for its own words, and less so for those of the one before. Then come the
        first spans of the whole text, so that some come twice.
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
        """Say how far into the text a phrase stands, from 0 to 1, whatever its case and line breaks."""
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
        assert isinstance(span.value, date)
        time = _TIME.match(text, span.start + 11) if text[span.start : span.start + 4].isdigit() else None
        clock = time.group() if time else "00:00:00"
        day = datetime.fromisoformat(f"{span.value.isoformat()}T{clock}+00:00")
        yield Span(start=span.start, value=day.isoformat().replace("+00:00", "Z"))


def _numbers(text: str) -> Iterator[Span]:
    for match in _NUMBERS.finditer(text):
        yield Span(start=match.start(), value=float(match.group().replace(",", "")))


def _money(text: str) -> Iterator[Span]:
    for match in _MONEY.finditer(text):
        yield Span(start=match.start(), value=float((match["a"] or match["b"]).replace(",", "")))


FINDERS: dict[str, Callable[[str], Iterator[Span]]] = {
    "date": _dates,
    "date-time": _date_times,
    "time": _plain(_TIME),
    "date-literal": _plain(_DATE),
    "number": _numbers,
    "money": _money,
    "money-literal": _plain(_MONEY),
    "name": _plain(_NAME),
    "email": _plain(_EMAIL),
    "uri": _plain(_URL),
    "uuid": _plain(_UUID),
    "ipv4": _plain(_IPV4),
}


@lru_cache(maxsize=4096)
def words_of(name: str, description: str) -> tuple[tuple[str, float], ...]:
    """Return the stems that a field's name and description look for, the name's counting double."""
    found: dict[str, float] = {}
    for weight, text in ((2.0, _CAMEL.sub(" ", name)), (1.0, description)):
        for word in _WORD.findall(text.lower()):
            if len(word) >= 3 and word not in STOP_WORDS:
                found.setdefault(stem(word), weight)
    return tuple(found.items())


@lru_cache(maxsize=4096)
def normal_phrase(phrase: str) -> str:
    """Return a phrase as `Text.normal` has it."""
    return " ".join(phrase.lower().translate(_SEPARATORS).split())


def stem(word: str) -> str:
    """Cut a common ending off, so that `granted` finds `grant`."""
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)]
    return word
