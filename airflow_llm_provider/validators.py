"""Validators: what an answer must satisfy besides its type, as plain functions, and a judge.

A validator is a function of the answer. It returns None, or a complaint: a plain string, or a `Complaint`, which
names the fields at fault and says whether the document is needed to correct them. A validator with a second
parameter named `source` is also given the text that was asked about.

The functions here return validators. They read the answer as plain JSON data, at paths such as `items.*.amount`:
names of fields, numbers of list items, `*` for each. A field whose name contains a dot cannot be named. Values that
are null or missing are skipped: the output type says whether they may be.
"""

from __future__ import annotations

import datetime as dt
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any, Literal, TypeAlias

from airflow_llm_provider.errors import BusinessError

__all__ = [
    "Complaint",
    "Judge",
    "Validator",
    "adds_up",
    "dates_between",
    "length_between",
    "quotes_in_source",
    "refers_to",
    "written_in",
]

_MAX_COMPLAINT_LINES = 10
_MIN_PROBABILITY = 0.8  # of another language; short texts and lists of names stay below it
# Characters that are typeset differently in a document and in an answer, without another meaning.
_SPELLINGS = str.maketrans(
    {
        **dict.fromkeys("“”„‟«»‘’‚‛‹›'`´", '"'),  # noqa: RUF001 - the kinds there are
        **dict.fromkeys("‐‑‒–—―−", "-"),  # noqa: RUF001
        # Seen by nobody: soft hyphens, joiners, marks of direction, and PDFium's mark of a hyphen at a line's end.
        **dict.fromkeys("\xad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\x02\ufffe"),
    }
)
# A minus before a digit stays: it is a part of the number.
_SPACES_AND_HYPHENS = re.compile(r"\s+|-(?!\s*\d)")
_RUNNING_LINES = 3  # of a header or a footer, at most


@dataclass(frozen=True)
class Complaint:
    """What is wrong with an answer, for the model that repairs it and for the log.

    Attributes:
        message: what is wrong, in words that the model can act on.
        fields: the fields at fault, as names or paths such as `items.3.amount`; empty: the answer as a whole.
        needs_source: whether the document has to be read again for the repair. Where it does not, only the fields
            at fault are sent back, which costs a fraction.
    """

    message: str
    fields: Sequence[str] = ()
    needs_source: bool = True

    @classmethod
    def about(cls, problems: Iterable[tuple[str, str]], *, needs_source: bool = True) -> Complaint | None:
        """Return one complaint about several fields, one line per field; None when there are none.

        Args:
            problems: pairs of a field's path and what is wrong with it; the empty path is the whole answer.
            needs_source: see `Complaint.needs_source`.
        """
        found = list(problems)
        if not found:
            return None
        lines = [f"{path or 'answer'}: {message}" for path, message in found[:_MAX_COMPLAINT_LINES]]
        if len(found) > _MAX_COMPLAINT_LINES:
            lines.append(f"… and {len(found) - _MAX_COMPLAINT_LINES} more")
        # A problem with the whole answer puts all of it at fault, so no field is named.
        fields = tuple(dict.fromkeys(path for path, _ in found)) if all(path for path, _ in found) else ()
        return cls("\n".join(lines), fields, needs_source)


Validator: TypeAlias = Callable[..., Complaint | str | None]
"""Takes the validated value, and the text that was asked about where its second parameter is named `source`.

It returns None or a complaint, and raises BusinessError where asking again cannot help.
"""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A model that says whether an answer meets criteria; it is asked after all functions have passed.

    Attributes:
        criteria: what must be true of the answer, one sentence each; at least one.
        model: a tier or a model id, on the task's own connection.
        reads_source: whether the judge is also sent the text that was asked about, and pays for reading it.
        endpoint: of that connection; the operators fill it in.
    """

    criteria: Sequence[str]
    model: str = "fast"
    reads_source: bool = True
    endpoint: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.criteria, str) or not self.criteria:
            raise ValueError("Judge(criteria=[…]): give a list of at least one sentence.")


def quotes_in_source(*at: str) -> Validator:
    """Check that the texts at these paths stand word for word in the document.

    What is typeset in several ways is ignored: white space (missing, extra, at page breaks), hyphens and dashes but
    for a minus before a digit, quotation marks, ligatures, raised digits, characters that nobody sees. A quote may run
    over a page break: headers and footers that stand on most pages may be left out of it.

    Args:
        at: paths of the quotes, at least one.
    """
    _require_paths("quotes_in_source", at)

    def quotes_are_in_source(value: Any, source: str) -> Complaint | None:
        # Once per answer and not once per quote: the document can be long.
        data = plain(value)
        spelled = [_spelled_alike(text) for text in (source, _without_running_heads(source)) if text]
        return Complaint.about(
            (found_at, "is not in the document: copy it word for word")
            for path in at
            for found_at, quote in texts_at(data, path)
            if not (wanted := _spelled_alike(quote)) or not any(wanted in text for text in spelled)
        )

    return quotes_are_in_source


def adds_up(parts: str, *more_parts: str, to: str, tolerance: Decimal | str | int = 0) -> Validator:
    """Check that the numbers at `parts` and `more_parts` add up to the number at `to`.

    The arithmetic is decimal. A number in a string (`"12.50"`) counts as a number; null counts as nothing.

    Args:
        parts: path of the numbers to add, such as `items.*.amount`.
        more_parts: further paths of numbers to add.
        to: path of the stated sum.
        tolerance: the largest difference that passes.
    """
    allowed = Decimal(tolerance)

    def numbers_add_up(value: Any) -> Complaint | None:
        data = plain(value)
        stated = list(values_at(data, to))
        found = [item for path in (parts, *more_parts) for item in values_at(data, path)]
        # Not added up then: without the strange number, the complaint about the sum would be wrong.
        if strange := [path for path, number in [*found, *stated] if _decimal(number) is None]:
            return Complaint.about((path, "is not a number") for path in strange)
        summed = sum((_decimal(number) or Decimal() for _, number in found), Decimal())
        return Complaint.about(
            (path, f"is {number}, but {' and '.join((parts, *more_parts))} add up to {summed}")
            for path, number in stated
            if abs((_decimal(number) or Decimal()) - summed) > allowed
        )

    return numbers_add_up


def dates_between(
    *at: str, earliest: dt.date | str | None = None, latest: dt.date | str | None = None
) -> Validator:
    """Check that the dates at these paths are not before `earliest` and not after `latest`.

    Args:
        at: paths of dates or times in ISO 8601, at least one; of a time, its date counts.
        earliest: a fixed date; None: no lower bound. A bound that moves with the clock would give a paid answer
            another verdict at a retry.
        latest: a fixed date; None: no upper bound.
    """
    _require_paths("dates_between", at)
    first, last = _bound(earliest), _bound(latest)

    def dates_are_in_range(value: Any) -> Complaint | None:
        dates = [(found_at, _date(date)) for path in at for found_at, date in values_at(plain(value), path)]
        if strange := [path for path, date in dates if date is None]:
            return Complaint.about(
                ((path, "is not a date such as 2026-03-04") for path in strange), needs_source=False
            )
        return Complaint.about(
            (path, f"{date} is not {_range(first, last)}")
            for path, date in dates
            if date and ((first and date < first) or (last and date > last))
        )

    return dates_are_in_range


def refers_to(*at: str, known: Collection[Any] | None = None, defined_at: str | None = None) -> Validator:
    """Check that each value at these paths exists: among `known`, or at the path `defined_at` of the same answer.

    Args:
        at: paths of the references, at least one.
        known: the values that exist, as a list or a set.
        defined_at: path of the values that exist; give either this or `known`.
    """
    if (known is None) == (defined_at is None):
        raise ValueError("refers_to(…): give either known= or defined_at=.")
    if isinstance(known, str):  # a string would be taken for the list of its letters
        raise ValueError(f"refers_to(…): known={known!r} should be a list or a set.")
    _require_paths("refers_to", at)
    listed = None if known is None else frozenset(known)

    def references_exist(value: Any) -> Complaint | None:
        data = plain(value)
        defined = (name for _, name in values_at(data, defined_at or ""))
        existing = listed if listed is not None else {name for name in defined if isinstance(name, Hashable)}
        # The complaint is sent to the model and paid for as input, so a long list is left out.
        hint = f": one of {', '.join(map(str, sorted(existing, key=str)))}" if len(existing) <= 20 else ""
        return Complaint.about(
            (found_at, f"refers to something that does not exist{hint}")
            for path in at
            for found_at, name in values_at(data, path)
            # A list or a dict in the place of a reference would raise an error in the set.
            if not isinstance(name, Hashable) or name not in existing
        )

    return references_exist


def length_between(
    *at: str,
    least: int = 0,
    most: int | None = None,
    unit: Literal["characters", "words"] = "characters",
) -> Validator:
    """Check how long the texts at these paths are.

    Args:
        at: paths of the texts; none: the answer itself.
        least: the smallest length that passes.
        most: the largest length that passes; None: no upper bound.
        unit: what `least` and `most` count; words are separated by white space.
    """
    if most is None and not least:
        raise ValueError("length_between(…): give least=, most= or both.")
    if most is not None and most < least:
        raise ValueError(f"length_between(…): least={least} is more than most={most}.")

    def lengths_are_right(value: Any) -> Complaint | None:
        sizes = [
            (found_at, len(text.split()) if unit == "words" else len(text))
            for path in at or ("",)
            for found_at, text in texts_at(plain(value), path)
        ]
        if short := [(path, size) for path, size in sizes if size < least]:
            return Complaint.about(
                (path, f"has {size} {unit}, at least {least} are required") for path, size in short
            )
        # Shortening needs no document: the text that is too long is in the answer.
        return Complaint.about(
            (
                (path, f"has {size} {unit}, at most {most} are allowed: shorten it")
                for path, size in sizes
                if most is not None and size > most
            ),
            needs_source=False,
        )

    return lengths_are_right


def written_in(language: str, *at: str) -> Validator:
    """Check the language of the texts at these paths.

    A text that is too short for a probable language passes. Needs `pip install 'airflow-provider-llm[language]'`.

    Args:
        language: ISO 639-1 code, such as `en`.
        at: paths of the texts; none: the answer itself.
    """

    def is_written_in(value: Any) -> Complaint | None:
        identify = _identifier()
        if language not in identify.labels:
            raise BusinessError(
                f"written_in({language!r}): no such language; there are {', '.join(identify.labels)}."
            )
        found = [
            (found_at, identify.classify(text))
            for path in at or ("",)
            for found_at, text in texts_at(plain(value), path)
        ]
        return Complaint.about(
            (
                (path, f"is written in {other!r}: write it in {language!r}")
                for path, (other, probability) in found
                if other != language and probability >= _MIN_PROBABILITY
            ),
            needs_source=False,
        )

    return is_written_in


def plain(value: Any) -> Any:
    """Return a validated value as plain JSON data, under the names of its schema."""
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value, by_alias=True)


def values_at(data: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the full path and the value of everything that `path` matches, except nulls.

    Args:
        data: plain JSON data.
        path: such as `items.*.amount`; the empty path is the data itself.
    """
    found = [("", data)]
    for step in path.split(".") if path else ():
        found = [
            (f"{whole_at}.{name}" if whole_at else name, value)
            for whole_at, whole in found
            for name, value in _children(whole, step)
        ]
    yield from ((found_at, value) for found_at, value in found if value is not None)


def texts_at(data: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield the full path and the text of every string at `path`, and of every string inside what is there."""
    for found_at, value in values_at(data, path):
        if isinstance(value, str):
            yield found_at, value
        else:
            for name, child in _children(value, "*"):
                inner = f"{found_at}.{name}" if found_at else name
                yield from (
                    (f"{inner}.{rest}" if rest else inner, text) for rest, text in texts_at(child, "")
                )


def _children(whole: Any, step: str) -> Iterator[tuple[str, Any]]:
    items = (
        {str(name): value for name, value in whole.items()}
        if isinstance(whole, Mapping)
        else {str(number): value for number, value in enumerate(whole)}
        if isinstance(whole, list)
        else {}
    )
    if step == "*":
        yield from items.items()
    elif step in items:
        yield step, items[step]


def _require_paths(validator: str, at: Sequence[str]) -> None:
    """Raise ValueError, when the DAG is parsed, for a validator that would check nothing and never complain."""
    if not at:
        raise ValueError(f"{validator}(…): name the paths to check, such as 'items.*.amount'.")


def _spelled_alike(text: str) -> str:
    """Return the text with one spelling for what may be typeset in several ways."""
    # Translated before NFKC, which turns an acute accent into a space and a combining accent.
    return _SPACES_AND_HYPHENS.sub("", unicodedata.normalize("NFKC", text.translate(_SPELLINGS)))


def _without_running_heads(text: str) -> str | None:
    """Return a text without the lines that stand at the top or bottom of most pages; None where there are none.

    Args:
        text: its pages are separated by form feeds. Digits are ignored: the number of the page is one.
    """
    pages = [[line for line in page.split("\n") if line.strip()] for page in text.split("\f")]
    edges = Counter(line for page in pages for line in {_head(line) for line in _edge(page)})
    running = {line for line, count in edges.items() if count > max(1, len(pages) // 2)}
    if not running:
        return None
    for page in pages:
        for at in (0, -1):
            for _ in range(_RUNNING_LINES):
                if page and _head(page[at]) in running:
                    del page[at]
    return "\n".join(line for page in pages for line in page)


def _edge(page: Sequence[str]) -> Sequence[str]:
    return [*page[:_RUNNING_LINES], *page[-_RUNNING_LINES:]]


def _head(line: str) -> str:
    return re.sub(r"\d+", "#", " ".join(line.split()))


def _decimal(value: Any) -> Decimal | None:
    # True is an int to Python. In an answer it is not a number.
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        # By its text: Decimal(0.1) would have the error of the float, and sums would not add up.
        number = Decimal(str(value))
    except InvalidOperation:
        return None
    # "NaN" and "Infinity" are numbers to Decimal, and no comparison with NaN is true.
    return number if number.is_finite() else None


def _date(value: Any) -> dt.date | None:
    if isinstance(value, dt.datetime):
        return value.date()
    if isinstance(value, dt.date):
        return value
    try:
        return dt.datetime.fromisoformat(value).date()
    except (TypeError, ValueError):
        return None


def _bound(value: dt.date | str | None) -> dt.date | None:
    date = _date(value)
    if date is None and value is not None:
        raise ValueError(f"dates_between(…): {value!r} is not a date such as 2026-03-04.")
    return date


def _range(first: dt.date | None, last: dt.date | None) -> str:
    """Write the bounds of a range of dates in words."""
    if first and last:
        return f"between {first} and {last}"
    return f"on or after {first}" if first else f"on or before {last}"


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import (  # type: ignore[import-untyped]  # it ships no types
            MODEL_FILE,
            LanguageIdentifier,
        )
    except ImportError as error:
        raise BusinessError(
            "written_in(…) needs a language identifier: pip install 'airflow-provider-llm[language]'."
        ) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
