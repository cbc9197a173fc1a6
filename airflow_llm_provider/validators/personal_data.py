"""Personal data in texts: addresses, numbers of phones, accounts, cards and people."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any, Literal, get_args

from airflow_llm_provider.validators.complaint import Complaint, Validator
from airflow_llm_provider.validators.paths import plain, texts_at

Kind = Literal["email", "phone", "iban", "card", "us_ssn"]

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]++@[\w-]+(?:\.[\w-]+)+")
_IBAN = re.compile(r"\b(?=([A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}))", re.IGNORECASE)
_CARD = re.compile(r"(?<![\d-])[2-6](?:[ -]?\d){12,18}(?![\d-])")  # 2 to 6: what issuers of cards begin with
_SSN = re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])")
_NAMES: dict[str, str] = {
    "email": "an email address",
    "phone": "a phone number",
    "iban": "an IBAN",
    "card": "a card number",
    "us_ssn": "a US social security number",
}


def no_personal_data(
    *at: str, kinds: Collection[Kind] = get_args(Kind), region: str | None = None
) -> Validator:
    """Check that no personal data is left in the texts at these paths; without a path, in the whole answer.

    kinds: what to look for. Numbers have to be valid: an IBAN and a card number by their check digits, a phone
        number by the numbering plan of its country.
    region: two letters, such as `US`: also take phone numbers as they are written within that country; those with
        a `+` are found anyway.
    The complaint says where and of what kind, and does not repeat it. Names of people are beyond rules: ask a Judge.
    """
    if unknown := sorted(set(kinds) - _FINDERS.keys()):
        raise ValueError(f"kinds= knows no {unknown[0]!r}; there are {', '.join(_FINDERS)}.")

    def no_personal_data_is_left(value: Any) -> Complaint | None:
        data = plain(value)
        return Complaint.about(
            (
                (place, f"has {_NAMES[kind]} in it: take it out")
                for path in at or ("",)
                for place, text in texts_at(data, path)
                for kind in kinds
                if _FINDERS[kind](text, region)
            ),
            needs_source=False,
        )

    return no_personal_data_is_left


def _has_email(text: str, _: str | None) -> bool:
    return bool(_EMAIL.search(text))


def _has_phone(text: str, region: str | None) -> bool:
    import phonenumbers

    return any(True for _ in phonenumbers.PhoneNumberMatcher(text, region))


def _has_iban(text: str, _: str | None) -> bool:
    from stdnum import iban

    for match in _IBAN.finditer(text):
        compact = iban.compact(match[1])
        # What follows it may have been taken along.
        if any(iban.is_valid(compact[:end]) for end in range(15, len(compact) + 1)):
            return True
    return False


def _has_card(text: str, _: str | None) -> bool:
    from stdnum import luhn

    return any(luhn.is_valid(re.sub(r"\D", "", match[0])) for match in _CARD.finditer(text))


def _has_ssn(text: str, _: str | None) -> bool:
    from stdnum.us import ssn

    return any(ssn.is_valid(match[0]) for match in _SSN.finditer(text))


_FINDERS: dict[str, Callable[[str, str | None], bool]] = {
    "email": _has_email,
    "phone": _has_phone,
    "iban": _has_iban,
    "card": _has_card,
    "us_ssn": _has_ssn,
}
