"""Personal data in answers: email addresses, and numbers of phones, accounts, cards and people.

Phone numbers, IBANs, card and social security numbers need `pip install 'airflow-provider-llm[personal-data]'`.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias, get_args

from airflow_llm_provider.validators import Complaint, Validator, plain, texts_at

Kind: TypeAlias = Literal["email", "phone", "iban", "card", "us_ssn"]

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]++@[\w-]+(?:\.[\w-]+)+")
# A lookahead, so that a match may begin inside another one. The shortest IBAN has 15 characters, the longest 34.
_IBAN = re.compile(r"(?<![A-Z0-9])(?=([A-Z]{2}[0-9]{2}(?:[ -]?[A-Z0-9]){11,30}))", re.IGNORECASE | re.ASCII)
# For the check digits, letters count as the numbers 10 to 35.
_AS_NUMBERS = str.maketrans({chr(ord("A") + n): str(10 + n) for n in range(26)})
_CARD = re.compile(r"(?<![\d-])[2-6](?:[ -]?\d){12,18}(?![\d-])")  # card numbers of issuers begin with 2 to 6
_SSN = re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])")


def no_personal_data(
    *at: str, kinds: Collection[Kind] = get_args(Kind), region: str | None = None
) -> Validator:
    """Check that no personal data is left in the texts at these paths.

    The complaint names the field and the kind, and does not repeat the data. Names of people cannot be found by
    rules: ask a Judge.

    Args:
        at: paths of the texts; none: the whole answer.
        kinds: what to look for. Only valid numbers count: an IBAN and a card number by their check digits, a phone
            number by the numbering plan of its country.
        region: two letters, such as `US`: also find phone numbers in the national format of that country. Numbers
            with a `+` are always found.

    Raises:
        ValueError: `kinds` names a kind that does not exist.
        ImportError: a kind needs the extra `personal-data`, which is not installed.
    """
    if unknown := sorted(set(kinds) - _KINDS.keys()):
        raise ValueError(
            f"no_personal_data(…): kinds= knows no {unknown[0]!r}; there are {', '.join(_KINDS)}."
        )
    for kind in kinds:
        # Found out when the DAG is parsed, not when the first answer has been paid for.
        if (library := _KINDS[kind].library) and importlib.util.find_spec(library) is None:
            raise ImportError(
                f"no_personal_data(…) needs a library to find {kind!r}: "
                "pip install 'airflow-provider-llm[personal-data]'."
            )

    def no_personal_data_is_left(value: Any) -> Complaint | None:
        data = plain(value)
        return Complaint.about(
            (
                (found_at, f"contains {_KINDS[kind].name}: remove it")
                for path in at or ("",)
                for found_at, text in texts_at(data, path)
                for kind in kinds
                if _KINDS[kind].is_in(text, region)
            ),
            needs_source=False,
        )

    return no_personal_data_is_left


def _has_email(text: str, _: str | None) -> bool:
    return bool(_EMAIL.search(text))


def _has_phone(text: str, region: str | None) -> bool:
    import phonenumbers

    # By default it gives up after 65,535 candidates, and would miss a number after them.
    return any(True for _ in phonenumbers.PhoneNumberMatcher(text, region, max_tries=len(text) + 1))


def _has_iban(text: str, _: str | None) -> bool:
    from stdnum import iban

    for match in _IBAN.finditer(text):
        compact = match[1].translate({ord(" "): None, ord("-"): None}).upper()
        # The match may include words that follow the IBAN: its country says how long it is.
        number = compact[: _iban_length(compact[:2])]
        # Of 97 near-misses, 96 end here. The whole check takes twenty times as long.
        if int((number[4:] + number[:4]).translate(_AS_NUMBERS)) % 97 == 1 and iban.is_valid(number):
            return True
    return False


@lru_cache(maxsize=1024)
def _iban_length(country: str) -> int:
    """Return how long the IBANs of a country are; 4 where it has none."""
    from stdnum import numdb

    (_, found), *_ = numdb.get("iban").info(f"{country}00")
    # The structure of what follows the first four characters, such as 8!n10!n.
    return 4 + sum(int(digits) for digits in re.findall(r"(\d+)!", found.get("bban", "")))


def _has_card(text: str, _: str | None) -> bool:
    from stdnum import luhn

    return any(luhn.is_valid(re.sub(r"\D", "", match[0])) for match in _CARD.finditer(text))


def _has_ssn(text: str, _: str | None) -> bool:
    from stdnum.us import ssn

    return any(ssn.is_valid(match[0]) for match in _SSN.finditer(text))


@dataclass(frozen=True, kw_only=True)
class _Finder:
    """How one kind of personal data is found: its name in a complaint, the test, and the library that it needs."""

    name: str
    is_in: Callable[[str, str | None], bool]
    library: str | None = None


_KINDS: dict[str, _Finder] = {
    "email": _Finder(name="an email address", is_in=_has_email),
    "phone": _Finder(name="a phone number", is_in=_has_phone, library="phonenumbers"),
    "iban": _Finder(name="an IBAN", is_in=_has_iban, library="stdnum"),
    "card": _Finder(name="a card number", is_in=_has_card, library="stdnum"),
    "us_ssn": _Finder(name="a US social security number", is_in=_has_ssn, library="stdnum"),
}
