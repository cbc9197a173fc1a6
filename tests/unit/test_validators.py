"""The supplied validators: what they let pass, what they complain of, and whether the source is needed for it."""

import datetime as dt
import re
import sys
import time
from decimal import Decimal
from typing import Any

import pydantic
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from airflow_llm_provider.engine.checks import reads_source
from airflow_llm_provider.errors import BusinessError, TerminalError
from airflow_llm_provider.personal_data import no_personal_data
from airflow_llm_provider.validators import (
    Complaint,
    Judge,
    adds_up,
    dates_between,
    length_between,
    quotes_in_source,
    refers_to,
    texts_at,
    values_at,
    written_in,
)

INVOICE = {
    "lines": [{"text": "Travel", "amount": 12.5}, {"text": "Hotel", "amount": 100}],
    "total": 112.5,
    "note": None,
}

json_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("path", "places"),
    [
        ("", {"": INVOICE}),
        ("total", {"total": 112.5}),
        ("lines.*.amount", {"lines.0.amount": 12.5, "lines.1.amount": 100}),
        ("lines.1.text", {"lines.1.text": "Hotel"}),
        ("note", {}),
        ("missing.*.deep", {}),
        ("total.cents", {}),
    ],
)
def test_a_path_leads_to_places(path: str, places: dict[str, Any]) -> None:
    assert dict(values_at(INVOICE, path)) == places


@given(json_data)
def test_every_text_is_found_at_the_place_it_is_given(data: Any) -> None:
    for place, text in texts_at(data, ""):
        assert (place, text) in list(values_at(data, place))


class Quoted(pydantic.BaseModel):
    clause: str = pydantic.Field(alias="theClause")


def test_a_quote_has_to_stand_in_the_source() -> None:
    check = quotes_in_source("theClause")
    source = "The buyer shall pay “promptly” —\n  within 30 days — and in full. The ﬁrst rate is due."
    for quote in ('shall pay "promptly" - within 30 days', "The first rate", "in full."):
        assert check(Quoted(theClause=quote), source) is None
    complaint = check(Quoted(theClause="The seller shall pay"), source)
    assert complaint is not None
    assert (complaint.fields, complaint.needs_source) == (("theClause",), True)
    assert "seller" not in complaint.message  # what documents say is not for the log


@pytest.mark.parametrize(
    ("quote", "source"),
    [
        ("the contractual party", "the contrac-\ntual party"),
        ("the contractual party", "the contrac\x02tual party"),
        ("the long-term fee", "the long-\nterm fee"),
        ("the contractual party", "the con\u00adtractual party"),
        ("office staff", "oﬃce staff"),
        ("“promptly” and «in full»", "\"promptly\" and 'in full'"),
        ("shall pay within 30 days", "shallpay within 30  days"),
        ("shallpay within 30 days", "shall pay\t within\u00a030\ndays"),
        ("the buyer shall pay", "the buyer\fshall pay"),
        ("10.351 m2 of floor", "10.351 m² of floor"),
        ("fell by -5.00", "fell by −5.00"),  # noqa: RUF001
        ("zero width", "zero\u200b wid\u2060th"),
    ],
)
def test_a_quote_may_be_typeset_in_another_way(quote: str, source: str) -> None:
    assert quotes_in_source("*")([quote], f"Before. {source} After.") is None


@pytest.mark.parametrize(
    ("quote", "source"),
    [
        ("fell by 5.00 to -7", "fell by -5.00 to 7"),
        ("pay 1,250", "pay 1,520"),
        ("the buyer may pay", "the buyer shall pay"),
        ("pay in 30 days", "pay in 30 working days"),
        ("of Contract 12 the buyer", "of Contract 12\nThe buyer"),
    ],
)
def test_a_quote_with_another_word_or_digit_is_refused(quote: str, source: str) -> None:
    assert quotes_in_source("*")([quote], f"Before. {source} After.") is not None


def test_a_quote_may_run_over_a_page_break_without_its_header_and_footer() -> None:
    page = "ACME Ltd.\nMaster agreement\n{}\nContract 4711, page {} of 3"
    bodies = ["The buyer shall", "pay the price in\nthree instal", "ments of 5,000 each."]
    source = "\f".join(page.format(body, number) for number, body in enumerate(bodies, 1))
    check = quotes_in_source("*")
    assert check(["The buyer shall pay the price in three instalments of 5,000 each."], source) is None
    assert check(["Contract 4711, page 2 of 3"], source) is None
    assert check(["The buyer shall not pay the price"], source) is not None
    # One page says nothing of what stands on most.
    assert check(["ACME Ltd. The buyer"], page.format(bodies[0], 1)) is not None


def test_an_empty_quote_quotes_nothing() -> None:
    assert quotes_in_source("*")([" "], "Some text.") is not None


@given(st.text(min_size=1), st.text(), st.text())
def test_what_is_cut_out_of_a_text_is_found_in_it(quote: str, before: str, after: str) -> None:
    # Next to each other, characters may combine to others: white space keeps them apart.
    assume(quote.strip() and quotes_in_source("")(quote, quote) is None)
    assert quotes_in_source("")(quote, f"{before} {quote} {after}") is None


@pytest.mark.parametrize(
    ("amounts", "total", "tolerance", "passes"),
    [
        ([0.1, 0.2], 0.3, 0, True),  # as floats they are not
        (["0.10", "0.20"], "0.30", 0, True),
        ([33.33, 33.33, 33.33], 100, 0, False),
        ([33.33, 33.33, 33.33], 100, "0.01", True),
        ([1, None], 1, 0, True),
        ([1, 2], None, 0, True),
        ([], 0, 0, True),
        ([1, "many"], 1, 0, False),
        ([True], 1, 0, False),
        (["NaN"], 1, 0, False),
    ],
)
def test_numbers_add_up_as_decimals(amounts: list, total: Any, tolerance: Any, passes: bool) -> None:
    check = adds_up("lines.*.amount", to="total", tolerance=tolerance)
    data = {"lines": [{"amount": amount} for amount in amounts], "total": total}
    assert (check(data) is None) == passes


def test_parts_may_stand_in_several_places() -> None:
    check = adds_up("net", "tax", to="gross")
    assert check({"net": 100, "tax": 19, "gross": 119}) is None
    complaint = check({"net": 100, "tax": 19, "gross": 100})
    assert complaint == Complaint(
        "gross: is 100, but net and tax add up to 119", ("gross",), needs_source=True
    )


@given(st.lists(st.decimals(-(10**9), 10**9, places=2), max_size=20), st.decimals(-10, 10, places=2))
def test_a_sum_is_right_to_the_cent(amounts: list[Decimal], error: Decimal) -> None:
    data = {"a": [str(amount) for amount in amounts], "t": str(sum(amounts, Decimal()) + error)}
    assert (adds_up("a.*", to="t")(data) is None) == (error == 0)
    assert adds_up("a.*", to="t", tolerance=abs(error))(data) is None


@given(st.dates(), st.dates(), st.dates())
def test_dates_lie_between_their_bounds(first: dt.date, last: dt.date, date: dt.date) -> None:
    for written in (date.isoformat(), f"{date.isoformat()}T23:59:59Z"):
        complaint = dates_between("d", earliest=first, latest=last.isoformat())({"d": written})
        assert (complaint is None) == (first <= date <= last)


def test_a_date_that_is_none_is_a_matter_of_form() -> None:
    complaint = dates_between("signed", earliest="2020-01-01")({"signed": "March 4, 2026"})
    assert complaint is not None
    assert not complaint.needs_source
    with pytest.raises(ValueError, match="not a date"):
        dates_between("signed", latest="soon")


def test_references_exist_in_a_collection_or_in_the_answer() -> None:
    known = refers_to("customer", known={"C-1", "C-2"})
    assert known({"customer": "C-1"}) is None
    complaint = known({"customer": "C-9"})
    assert complaint is not None
    assert "C-1, C-2" in complaint.message
    within = refers_to("parties.*", defined_at="people.*.id")
    assert within({"parties": [1], "people": [{"id": 1}]}) is None
    assert within({"parties": [1, 2], "people": [{"id": 1}]}).fields == ("parties.1",)
    assert within({"parties": [["nested"]], "people": []}) is not None
    with pytest.raises(ValueError, match="either"):
        refers_to("customer")


def test_a_long_text_is_shortened_without_the_source_and_a_short_one_is_not() -> None:
    check = length_between("summary", least=2, most=4, unit="words")
    assert check({"summary": "three short words"}) is None
    assert not check({"summary": "one two three four five"}).needs_source
    assert check({"summary": "one"}).needs_source
    assert length_between(most=3)("four") == Complaint(
        "answer: has 4 characters, at most 3 are allowed: shorten it", (), needs_source=False
    )


def test_the_language_of_a_text_is_recognised_where_there_is_enough_of_it() -> None:
    pytest.importorskip("py3langid")
    check = written_in("de", "summary")
    assert check({"summary": "Der Käufer zahlt den Preis innerhalb von dreißig Tagen."}) is None
    assert check({"summary": "OK"}) is None
    complaint = check({"summary": "The buyer pays the price within thirty days of delivery."})
    assert complaint is not None
    assert not complaint.needs_source
    with pytest.raises(BusinessError, match="no such language"):
        written_in("klingon")("Some words.")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Write to jane.doe+bills@example.co.uk.", "email"),
        ("Call +49 30 901820 today.", "phone"),
        ("Pay to DE89 3704 0044 0532 0130 00 AND quote the number.", "IBAN"),
        ("pay to gb82west12345698765432", "IBAN"),
        ("Card 4111-1111-1111-1111.", "card"),
        ("SSN 536-90-4399.", "social security"),
    ],
)
def test_personal_data_is_found_and_not_repeated(text: str, kind: str) -> None:
    complaint = no_personal_data()({"notes": [text]})
    assert complaint is not None
    assert kind in complaint.message
    assert (complaint.fields, complaint.needs_source) == (("notes.0",), False)
    assert not set(re.findall(r"\d{3,}", text)) & set(re.findall(r"\d{3,}", complaint.message))


@pytest.mark.parametrize(
    "text",
    [
        "Invoice 2026-03-04, number 4711-2026, total 1,250.00 EUR.",
        "Order 4111 1111 1111 1112 of DE89 3704 0044 0532 0130 02.",  # wrong check digits
        "The range 000-20-3000 at @home.",
    ],
)
def test_numbers_that_only_look_alike_pass(text: str) -> None:
    assert no_personal_data()(text) is None


def test_only_the_kinds_that_are_named_are_looked_for() -> None:
    text = "jane@example.com, 650-253-0000"
    assert no_personal_data(kinds=["phone"])(text) is None  # a number of which country?
    assert no_personal_data(kinds=["phone"], region="US")(text) is not None
    with pytest.raises(ValueError, match="no 'name'"):
        no_personal_data(kinds=["name"])


def test_a_missing_extra_is_named_when_the_dag_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("phonenumbers", "stdnum"):
        monkeypatch.setitem(sys.modules, library, None)
    for kind in ("phone", "iban", "card", "us_ssn"):
        with pytest.raises(ImportError, match=r"'airflow-provider-llm\[personal-data\]'"):
            no_personal_data(kinds=[kind])
    assert no_personal_data(kinds=["email"])("jane@example.com") is not None


def test_a_judge_without_criteria_is_an_authors_mistake() -> None:
    for criteria in ("Is polite.", []):
        with pytest.raises(ValueError, match="list"):
            Judge(criteria=criteria)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: quotes_in_source(), "name the paths to check"),
        (lambda: dates_between(earliest="2020-01-01"), "name the paths to check"),
        (lambda: refers_to(known=["a"]), "name the paths to check"),
        (lambda: refers_to("party", known="abc"), "should be a list or a set"),
        (lambda: length_between("summary"), "give least=, most= or both"),
        (lambda: length_between("summary", least=10, most=5), "least=10 is more than most=5"),
    ],
)
def test_a_validator_that_would_check_nothing_is_refused(make: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        make()


def test_a_long_text_is_looked_through_in_no_time() -> None:
    assert no_personal_data(kinds=["email"])("a" * 1_000_000) is None
    assert no_personal_data(kinds=["email"])("a" * 1_000_000 + "@b.c") is not None


near_misses = st.lists(
    st.sampled_from(
        ["DE00 ", "GB82 WEST", "DE89-3704-", " ", "-", "A1", "4111 ", "536-90-", "+49 30 ", "a@", "(", "."]
    ),
    max_size=12,
).map("".join)
structures = {
    "DE": "[0-9]{18}",
    "NO": "[0-9]{11}",
    "GB": "[A-Z]{4}[0-9]{14}",
    "MT": "[A-Z]{4}[0-9]{5}[A-Z0-9]{18}",
}
ibans = st.sampled_from(sorted(structures)).flatmap(
    lambda country: st.from_regex(structures[country], fullmatch=True).map(lambda bban: (country, bban))
)


@given(before=near_misses, made=ibans, separator=st.sampled_from(["", " ", "-"]), after=near_misses)
def test_an_iban_is_found_whatever_nearly_is_one_around_it(
    before: str, made: tuple[str, str], separator: str, after: str
) -> None:
    iban = pytest.importorskip("stdnum.iban")
    country, bban = made
    number = f"{country}{iban.calc_check_digits(f'{country}00{bban}')}{bban}"
    assume(iban.is_valid(number))  # Norway has check digits of its own, too
    printed = separator.join(number[start : start + 4] for start in range(0, len(number), 4))
    check = no_personal_data(kinds=["iban"])
    assert check(f"{before}\n{printed}{after}") is not None
    assert check(f"{before}\n{printed.lower()} {after}") is not None
    wrong = number[:2] + f"{(int(number[2:4]) + 1) % 100:02}" + number[4:]
    assert check(wrong) is None


@pytest.mark.parametrize(
    "near_miss", ["DE00 ", "DE89-3704-", "DE89370400440532013001 ", "A1B2", "4 ", "4-", "a@", "a."]
)
@pytest.mark.parametrize("kind", ["email", "iban", "card", "us_ssn"])
def test_the_time_for_a_text_of_near_misses_grows_with_its_length(kind: Any, near_miss: str) -> None:
    check, text = no_personal_data(kinds=[kind]), near_miss * 10_000

    def took_s(text: str) -> float:
        began = time.process_time()
        check(text)
        return time.process_time() - began

    # 16 times the text took 256 times as long where the time grew with the square.
    assert took_s(text) < 0.1 + 50 * min(took_s(text[: len(text) // 16]) for _ in range(3))


@pytest.mark.slow
def test_a_phone_number_is_found_after_more_candidates_than_the_library_tries_by_default() -> None:
    assert (
        no_personal_data(kinds=["phone"], region="US")("12 (34 (56 " * 30_000 + "\n650-253-0000") is not None
    )


@pytest.mark.parametrize("no_validator", ["x", 3, None, {"criteria": ["Is polite."]}])
def test_what_is_not_a_validator_is_refused_before_anything_is_paid(no_validator: Any) -> None:
    with pytest.raises(TerminalError, match=r"neither a function nor a Judge\. Nothing was sent\.$"):
        reads_source(no_validator)
