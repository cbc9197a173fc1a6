"""Contracts that have a text twin, and invoices with their own figures inside: nothing of them is lost."""

from __future__ import annotations

import difflib
import random
import re
import unicodedata
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pypdfium2
from lxml import etree

from airflow_llm_provider.documents.readers.pdf import read_pdf
from airflow_llm_provider.options import Reading
from airflow_llm_provider.validators import quotes_in_source
from tests.support.shared_data import shared_data

# The twins have straight quotation marks where the pages have curly ones.
STRAIGHT = str.maketrans("“”‘’", "\"\"''")  # noqa: RUF001
QUOTES = 1_000

# Amounts of the invoices' own data that are not printed on them; each was looked at.
NOT_PRINTED = {
    "Avoir_FR_type380_BASIC": {"-0.00"},  # an allowance of nothing
    "Avoir_FR_type381_BASICWL": {"0.00"},
    "Facture_DOM_BASIC": {"4.10"},  # 4,55 less 10 %; both of those are printed
    "Facture_FR_BASIC": {"4.10"},
    "Facture_UE_BASIC": {"4.10"},
    "Facture_UE_EN16931": {
        "4.10",
        "0.45",
        "36.40",
    },  # the price after the discount, the discount, the sum of discounts
    "ZUGFeRD_1p0_BASIC_Einfach": {"0.00"},
    "ZUGFeRD_1p0_COMFORT_Einfach": {
        "0.00",
        "56.87",
    },  # the sum of two taxes, 19,25 and 37,62, which are printed
    "ZUGFeRD_1p0_COMFORT_SEPA_Prenotification": {"0.00", "56.87"},
    "ZUGFeRD_1p0_COMFORT_Sachversicherung_berechneter_Steuersatz": {"0.00"},
    "acme_invoice-42_ZUGFeRD": {"100", "119"},  # the data is that of another invoice than the printed one
    "zugferd_2p1_EN16931_1_Teilrechnung": {"0.6667", "3.3333"},  # printed as 0,67 and 3,33
}


def text_of(path: Path) -> str:
    return "\f".join(part.data for part in read_pdf(path.read_bytes(), Reading()) if part.kind == "text")


def words_of(text: str) -> list[str]:
    return unicodedata.normalize("NFKC", text.translate(STRAIGHT)).split()


def contracts() -> Iterator[tuple[str, str]]:
    """Yield the text of each contract that has a twin, as it was read, and the twin."""
    folder = shared_data("cuad")
    for path in sorted((folder / "pdf").glob("*.pdf")):
        twin = folder / "txt" / f"{path.stem}.txt"
        yield text_of(path), twin.read_text()


def test_contracts_are_their_twins_word_for_word() -> None:
    ratios = [
        difflib.SequenceMatcher(None, words_of(text), words_of(twin), autojunk=False).ratio()
        for text, twin in contracts()
    ]
    assert len(ratios) == 7
    assert min(ratios) >= 0.999


def test_honest_quotes_pass_and_altered_ones_do_not() -> None:
    """1,000 quotes of 40 to 300 characters, cut at random from the twins; and as many with a word or digit altered."""
    chance = random.Random(7)
    read = list(contracts())
    check = quotes_in_source("*")
    honest = accepted = altered = wrongly_accepted = 0
    for text, twin in read:
        share = -(-QUOTES // len(read))
        quotes = [_cut(twin, chance) for _ in range(share)]
        complaint = check(quotes, text)
        honest += share
        accepted += share - len(complaint.fields if complaint else ())
        others = [_altered(" ".join(twin.split()), chance) for _ in range(share)]
        complaint = check(others, text)
        altered += share
        wrongly_accepted += share - len(complaint.fields if complaint else ())
    assert honest >= QUOTES
    assert accepted / honest >= 0.99
    assert (altered, wrongly_accepted) == (honest, 0)


def _cut(text: str, chance: random.Random) -> str:
    length = chance.randint(40, 300)
    begin = chance.randrange(len(text) - length)
    return text[begin : begin + length]


def _altered(text: str, chance: random.Random) -> str:
    """Return a quote with one word or one digit altered, which stands nowhere in the text."""
    while True:
        quote = _cut(text, chance)
        digits = [index for index, character in enumerate(quote) if character.isdigit()]
        if digits and chance.random() < 0.5:
            at = chance.choice(digits)
            found = quote[:at] + str((int(quote[at]) + chance.randint(1, 9)) % 10) + quote[at + 1 :]
        else:
            word = chance.choice(list(re.finditer(r"\S+", quote)))
            found = quote[: word.start()] + chance.choice(text.split()) + quote[word.end() :]
        if found not in text:
            return found


def test_every_printed_amount_of_an_invoice_is_found_literally() -> None:
    missing = {}
    invoices = 0
    for path in sorted(shared_data("zugferd").glob("*.pdf")):
        invoices += 1
        text = text_of(path)
        absent = {str(amount) for amount in _amounts(path) if not _is_printed(amount, text)}
        if absent:
            missing[path.stem] = absent
    assert invoices >= 22
    assert missing == NOT_PRINTED


def _amounts(path: Path) -> set[Decimal]:
    """Return the amounts of the XML that the invoice has inside."""
    pdf = pypdfium2.PdfDocument(path)
    attached = [pdf.get_attachment(number) for number in range(pdf.count_attachments())]
    files = [bytes(each.get_data()) for each in attached if each.get_name().endswith(".xml")]
    elements = [element for xml in files for element in etree.fromstring(xml).iter("{*}*")]
    return {Decimal(each.text.strip()) for each in elements if each.tag.endswith("Amount") and each.text}


def _is_printed(amount: Decimal, text: str) -> bool:
    """Tell whether an amount is printed: with a comma or a point, with or without separators of thousands."""
    amount = abs(amount).normalize()
    places = max(2, -int(amount.as_tuple().exponent))
    forms = {f"{amount:,.{places}f}", *([f"{amount:,.0f}"] if amount == amount.to_integral_value() else [])}
    patterns = (
        form.replace(".", "POINT").replace(",", "[,. '\u00a0\u202f]?").replace("POINT", "[.,]")
        for form in forms
    )
    return any(re.search(rf"(?<![\d.,]){pattern}(?!\d)", text) for pattern in patterns)
