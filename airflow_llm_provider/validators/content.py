"""The supplied validators of what an answer says."""

from __future__ import annotations

import datetime as dt
import re
import unicodedata
from collections.abc import Collection, Hashable, Sequence
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any, Literal

from airflow_llm_provider.errors import BusinessError
from airflow_llm_provider.validators.complaint import Complaint, Validator
from airflow_llm_provider.validators.paths import plain, texts_at, values_at

_SURELY = 0.8  # how probable another language has to be; short texts and lists of names stay below it
_SPELLINGS = str.maketrans(
    {
        **dict.fromkeys("“”„‟«»‘’‚‛‹›'`´", '"'),  # noqa: RUF001 - the kinds there are
        **dict.fromkeys("‐‑‒–—―−", "-"),  # noqa: RUF001
        "\N{SOFT HYPHEN}": None,
        "\N{ZERO WIDTH SPACE}": None,
    }
)


def quotes_in_source(*at: str) -> Validator:
    """Check that the texts at these paths stand word for word in the document.

    Differences of white space, of the kind of quotation marks and dashes, and of ligatures are none.
    """
    _require_paths("quotes_in_source", at)

    def quotes_are_in_source(value: Any, source: str) -> Complaint | None:
        told, data = _spelled_alike(source), plain(value)
        return Complaint.about(
            (place, "is not in the document: copy it word for word")
            for path in at
            for place, quote in texts_at(data, path)
            if not (spelled := _spelled_alike(quote)) or spelled not in told
        )

    return quotes_are_in_source


def adds_up(parts: str, *more_parts: str, to: str, tolerance: Decimal | str | int = 0) -> Validator:
    """Check that the numbers at `parts` (and `more_parts`) add up to the one at `to`, give or take `tolerance`.

    Decimal arithmetic; a number in a string counts (`"12.50"`), and what is null counts nothing.
    """
    allowed = Decimal(tolerance)

    def numbers_add_up(value: Any) -> Complaint | None:
        data = plain(value)
        stated = list(values_at(data, to))
        found = [item for path in (parts, *more_parts) for item in values_at(data, path)]
        if strange := [place for place, number in [*found, *stated] if _decimal(number) is None]:
            return Complaint.about((place, "is not a number") for place in strange)
        summed = sum((_decimal(number) or Decimal() for _, number in found), Decimal())
        return Complaint.about(
            (place, f"is {number}, but {' and '.join((parts, *more_parts))} add up to {summed}")
            for place, number in stated
            if abs((_decimal(number) or Decimal()) - summed) > allowed
        )

    return numbers_add_up


def dates_between(
    *at: str, earliest: dt.date | str | None = None, latest: dt.date | str | None = None
) -> Validator:
    """Check that the dates at these paths lie between two others, both included.

    at: dates or times in ISO 8601; of a time, its date counts.
    earliest, latest: fixed dates. One that moves with the clock would judge a paid answer otherwise at a retry.
    """
    _require_paths("dates_between", at)
    first, last = _bound(earliest), _bound(latest)

    def dates_are_in_range(value: Any) -> Complaint | None:
        dates = [(place, _date(date)) for path in at for place, date in values_at(plain(value), path)]
        if strange := [place for place, date in dates if date is None]:
            return Complaint.about(
                ((place, "is not a date such as 2026-03-04") for place in strange), needs_source=False
            )
        return Complaint.about(
            (place, f"{date} is not between {first or 'ever'} and {last or 'ever'}")
            for place, date in dates
            if date and ((first and date < first) or (last and date > last))
        )

    return dates_are_in_range


def refers_to(*at: str, known: Collection[Any] | None = None, defined_at: str | None = None) -> Validator:
    """Check that what is at these paths exists: among `known`, or at the path `defined_at` of the same answer."""
    if (known is None) == (defined_at is None):
        raise ValueError("refers_to(…): give either known= or defined_at=.")
    if isinstance(known, str):  # its letters would be taken for what is known
        raise ValueError(f"refers_to(…): known={known!r} should be a list or a set.")
    _require_paths("refers_to", at)
    listed = None if known is None else frozenset(known)

    def references_exist(value: Any) -> Complaint | None:
        data = plain(value)
        defined = (name for _, name in values_at(data, defined_at or ""))
        there = listed if listed is not None else {name for name in defined if isinstance(name, Hashable)}
        hint = f": one of {', '.join(map(str, sorted(there, key=str)))}" if len(there) <= 20 else ""
        return Complaint.about(
            (place, f"refers to what does not exist{hint}")
            for path in at
            for place, name in values_at(data, path)
            if not isinstance(name, Hashable) or name not in there
        )

    return references_exist


def length_between(
    *at: str,
    least: int = 0,
    most: int | None = None,
    unit: Literal["characters", "words"] = "characters",
) -> Validator:
    """Check how long the texts at these paths are; without a path, the answer itself."""
    if most is None and not least:
        raise ValueError("length_between(…): give least=, most= or both.")
    if most is not None and most < least:
        raise ValueError(f"length_between(…): least={least} is more than most={most}.")

    def lengths_are_right(value: Any) -> Complaint | None:
        sizes = [
            (place, len(text.split()) if unit == "words" else len(text))
            for path in at or ("",)
            for place, text in texts_at(plain(value), path)
        ]
        if short := [(place, size) for place, size in sizes if size < least]:
            return Complaint.about(
                (place, f"has {size} {unit}, at least {least} are asked for") for place, size in short
            )
        return Complaint.about(
            (
                (place, f"has {size} {unit}, at most {most} are asked for: shorten it")
                for place, size in sizes
                if most is not None and size > most
            ),
            needs_source=False,
        )

    return lengths_are_right


def written_in(language: str, *at: str) -> Validator:
    """Check the language of the texts at these paths; without a path, of the answer itself.

    language: ISO 639-1, such as `en`. What is too short to tell passes.
    Needs `pip install airflow-provider-llm[language]`.
    """

    def is_written_in(value: Any) -> Complaint | None:
        identify = _identifier()
        if language not in identify.labels:
            raise BusinessError(
                f"written_in({language!r}): no such language; there are {', '.join(identify.labels)}."
            )
        found = [
            (place, identify.classify(text))
            for path in at or ("",)
            for place, text in texts_at(plain(value), path)
        ]
        return Complaint.about(
            (
                (place, f"is written in {other!r}: write it in {language!r}")
                for place, (other, probability) in found
                if other != language and probability >= _SURELY
            ),
            needs_source=False,
        )

    return is_written_in


def _require_paths(validator: str, at: Sequence[str]) -> None:
    """Raise ValueError, when the DAG is parsed, where a validator would check nothing, and so never complain."""
    if not at:
        raise ValueError(f"{validator}(…): name the paths to check, such as 'items.*.amount'.")


def _spelled_alike(text: str) -> str:
    # Apart from NFKC's own: it turns an acute accent into a space and a combining one.
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text.translate(_SPELLINGS))).strip()


def _decimal(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return None
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
