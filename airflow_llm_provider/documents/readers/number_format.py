"""Numbers of spreadsheet cells with what their number format adds: percent signs, currencies, units, leading zeros."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

_SIGNIFICANT_DIGITS = 15  # a cell holds no more; further digits of a float are noise
_TOKEN = re.compile(
    r"""
      "(?P<quoted>[^"]*)"
    | \\(?P<escaped>.)
    | \[\$(?P<currency>[^\]\-]*)(?:-[^\]]*)?\]
    | \[(?P<condition>[^\]]*)\]
    | _.                                  # a gap as wide as the next character
    | \*.                                 # the next character fills the cell
    | (?P<general>General)
    | (?P<digits>[0\#?][0\#?,.]*)
    | (?P<exponent>E[+-])
    | (?P<any>.)
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
_CONDITION = re.compile(r"(<=|>=|<>|<|>|=)\s*(-?[0-9.]+)")
# Signs and brackets of a section state the sign, which the value itself states; a slash belongs to a fraction.
_NOT_SHOWN = frozenset("-+()/;@")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Section:
    """One section of a number format.

    Attributes:
        prefix, suffix: what it shows before and after the digits.
        pieces: the runs of digit places, with the texts between them, as in `00-000`.
        power: how many times the value is multiplied by ten.
        condition: the values that it is for; None: by its place among the sections.
        is_exponential: written with a power of ten.
    """

    prefix: str
    suffix: str
    pieces: tuple[str, ...]
    power: int
    condition: tuple[str, Decimal] | None
    is_exponential: bool


def shown(value: float, number_format: str) -> str:
    """Return a number with all its digits, and with what its format adds to them.

    A format may round; the digits that it would hide are kept. `0.0%` makes `15.5%` of 0.155, `00000` makes `01067` of
    1067, and `#,##0.00 "€"` makes `1234.50 €` of 1234.5.

    Args:
        value: the cell's value.
        number_format: as Excel writes it, such as `0.0%`.
    """
    number = _exact(value)
    section = _section_for(number, number_format)
    if section is None or not section.pieces or section.is_exponential:
        return _plain(number)
    number = number.scaleb(section.power)
    digits = f"{section.prefix}{_digits(abs(number), section)}{section.suffix}".strip()
    return f"-{digits}" if number < 0 else digits


def _exact(value: float) -> Decimal:
    return Decimal(value) if isinstance(value, int) else Decimal(f"{value:.{_SIGNIFICANT_DIGITS}g}")


def _plain(number: Decimal) -> str:
    if not number.is_finite() or abs(number.adjusted()) > 30:
        return str(number)
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _digits(number: Decimal, section: _Section) -> str:
    text = _plain(number)
    whole, _, fraction = text.partition(".")
    if len(section.pieces) > 1:
        return text if fraction else _masked(whole, section.pieces)
    wanted, _, decimals = section.pieces[0].partition(".")
    whole = whole.zfill(wanted.count("0"))
    fraction = fraction.ljust(decimals.count("0"), "0")
    return f"{whole}.{fraction}" if fraction else whole


def _masked(digits: str, pieces: tuple[str, ...]) -> str:
    """Return digits with the texts that a format such as `000-0000` puts between them."""
    places = "".join(piece for piece in pieces[::2]).replace(",", "")
    rest = digits.zfill(len(places))
    out: list[str] = []
    for index in range(len(pieces) - 1, -1, -1):
        if index % 2:
            out.append(pieces[index])
        else:
            size = len(pieces[index].replace(",", ""))
            # The first run takes all digits that are left.
            cut = max(len(rest) - size, 0) if index else 0
            out.append(rest[cut:])
            rest = rest[:cut]
    return "".join(reversed(out))


def _section_for(number: Decimal, number_format: str) -> _Section | None:
    sections = _sections(number_format)
    for section in sections:
        if section.condition is not None and _holds(number, *section.condition):
            return section
    plain = [section for section in sections if section.condition is None]
    if len(plain) < len(sections):
        return plain[-1] if plain else None
    index = 1 if number < 0 else 2 if number == 0 else 0
    return plain[index] if index < len(plain) else plain[0] if plain else None


def _holds(number: Decimal, relation: str, limit: Decimal) -> bool:
    return {
        "<": number < limit,
        "<=": number <= limit,
        ">": number > limit,
        ">=": number >= limit,
        "=": number == limit,
        "<>": number != limit,
    }[relation]


@lru_cache(maxsize=1024)
def _sections(number_format: str) -> tuple[_Section, ...]:
    sections: list[_Section] = []
    tokens: list[re.Match[str]] = []
    for match in _TOKEN.finditer(number_format):
        if match["any"] == ";":
            sections.append(_section(tokens))
            tokens = []
        else:
            tokens.append(match)
    return (*sections, _section(tokens))


def _section(tokens: list[re.Match[str]]) -> _Section:
    texts = [""]  # texts and runs of digit places in turn, beginning with a text
    power, condition, is_exponential = 0, None, False
    for token in tokens:
        if token["condition"] is not None:
            found = _CONDITION.fullmatch(token["condition"])
            condition = (found[1], Decimal(found[2])) if found else condition
        elif token["digits"] is not None:
            run = token["digits"].rstrip(",")
            power -= 3 * (len(token["digits"]) - len(run))
            texts += [run, ""]
        elif token["exponent"] is not None:
            is_exponential = True
        else:
            power += 2 * (token["any"] == "%")
            texts[-1] += _text_of(token)
    runs = tuple(texts[1:-1])
    # With decimals in a later run (a fraction, or a mask with a point) the plain number is less wrong.
    is_mask = all("." not in run for run in runs[::2]) and all(text.strip() for text in runs[1::2])
    return _Section(
        prefix=texts[0],
        suffix=texts[-1] if len(texts) > 1 else "",
        pieces=runs if len(runs) < 2 or is_mask else (),
        power=power,
        condition=condition,
        is_exponential=is_exponential,
    )


def _text_of(token: re.Match[str]) -> str:
    for name in ("quoted", "escaped", "currency", "any"):
        if token[name] is not None:
            # A quoted dash stands for zero.
            return "" if token[name] in _NOT_SHOWN and name != "escaped" else token[name]
    return ""
