"""What is on the page is in the text: PDF files in every trouble, each with its truth."""

from __future__ import annotations

import base64
import difflib
import io

import pypdfium2
import pypdfium2.raw as pdfium
import pytest
from fpdf import FPDF
from PIL import Image

from airflow_llm_provider.documents.content import Part
from airflow_llm_provider.documents.readers.pdf import read_pdf
from airflow_llm_provider.options import Reading
from tests.support import pdf_corpus
from tests.support.pdf_corpus import Sheet, assembled, corpus

SHEETS = list(corpus())
BY_NAME = {sheet.name: sheet for sheet in SHEETS}


def text_of(raw: bytes, **how: object) -> str:
    return "\f".join(part.data for part in read_pdf(raw, Reading(**how)) if part.kind == "text")


def as_lines(text: str) -> list[str]:
    return [" ".join(line.split()) for page in text.split("\f") for line in page.split("\n") if line]


def native(parts: tuple[Part, ...]) -> list[str | None]:
    return [part.title for part in parts if part.kind == "pdf"]


def test_of_the_planted_words_and_numbers_99_5_percent_are_there_in_reading_order() -> None:
    found = planted = numbers = numbers_found = 0
    for sheet in SHEETS:
        words = text_of(sheet.raw).split()
        matches = difflib.SequenceMatcher(None, sheet.words, words, autojunk=False).get_matching_blocks()
        in_order = [word for match in matches for word in sheet.words[match.a : match.a + match.size]]
        found, planted = found + len(in_order), planted + len(sheet.words)
        numbers += sum(any(map(str.isdigit, word)) for word in sheet.words)
        numbers_found += sum(any(map(str.isdigit, word)) for word in in_order)
    assert planted > 3_000
    assert found / planted >= 0.995
    assert numbers_found / numbers >= 0.995


@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_a_turned_page_has_one_line_per_row_as_shown(angle: int) -> None:
    sheet = BY_NAME[f"turned by {angle}"]
    assert as_lines(text_of(sheet.raw)) == sheet.lines


def test_a_page_that_is_read_sideways_has_one_line_per_row() -> None:
    sheet = BY_NAME["read sideways"]
    assert as_lines(text_of(sheet.raw)) == sheet.lines


@pytest.mark.parametrize(
    "sheet", [each for each in SHEETS if each.name.startswith("form")], ids=lambda each: each.name
)
def test_the_values_of_a_form_stand_where_they_are_shown(sheet: Sheet) -> None:
    assert as_lines(text_of(sheet.raw)) == sheet.lines


@pytest.mark.parametrize("angle", [180, 270])
def test_a_value_on_a_turned_page_stands_where_it_is_shown(angle: int) -> None:
    sheet = pdf_corpus.form()
    pdf = pypdfium2.PdfDocument(sheet.raw)
    pdf[0].set_rotation(angle)
    out = io.BytesIO()
    pdf.save(out)
    assert as_lines(text_of(out.getvalue())) == sheet.lines


def test_a_hidden_field_and_a_password_are_not_read() -> None:
    def field(number: int, name: bytes, flags: int, kind: int) -> bytes:
        return b"<</Type/Annot/Subtype/Widget/FT/Tx/Ff %d/F %d/T(%s)/V(secret)/Rect[99 %d 200 %d]>>" % (
            kind, flags, name, 700 - number * 40, 715 - number * 40,
        )  # fmt: skip

    raw = assembled(
        [
            b"<</Type/Catalog/Pages 2 0 R/AcroForm<</Fields[5 0 R 6 0 R]>>>>",
            b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Annots[5 0 R 6 0 R]>>",
            b"<</Length 0>>stream\n\nendstream",
            field(0, b"hidden", 2, 0),
            field(1, b"password", 4, 8192),
        ]
    )
    assert text_of(raw) == "******"


def test_a_word_hyphenated_at_the_end_of_a_line_is_one_word_and_its_own_hyphens_stay() -> None:
    sheet = BY_NAME["hyphens"]
    text = text_of(sheet.raw)
    assert text.split() == sheet.words
    assert "\x02" not in text
    assert "\ufffe" not in text


@pytest.mark.parametrize("name", ["columns", "columns, by row"])
def test_two_columns_are_read_one_after_the_other(name: str) -> None:
    assert text_of(BY_NAME[name].raw).split() == BY_NAME[name].words


def test_a_table_written_column_by_column_is_read_row_by_row() -> None:
    sheet = BY_NAME["table by column"]
    assert as_lines(text_of(sheet.raw)) == sheet.lines


def test_a_footnotes_mark_is_not_a_digit_of_the_number_before_it() -> None:
    text = text_of(BY_NAME["footnotes"].raw)
    number = BY_NAME["footnotes"].lines[5].split()[-1]
    assert number.endswith("¹")
    assert number in text.split()


def test_pages_with_a_scan_or_an_image_of_a_table_are_sent_with_their_text() -> None:
    for name in ("stamped scan", "image table"):
        parts = read_pdf(BY_NAME[name].raw, Reading())
        assert parts[0].data.split() == BY_NAME[name].words
        assert native(parts) == [f"pages {', '.join(map(str, BY_NAME[name].looked_at))}"]


def test_without_images_no_page_is_sent_to_be_looked_at() -> None:
    for sheet in SHEETS:
        assert bool(native(read_pdf(sheet.raw, Reading()))) == bool(sheet.looked_at), sheet.name


def test_a_typed_note_is_read() -> None:
    assert "Approved up to 7,300.00" in text_of(BY_NAME["note"].raw)


def test_text_outside_the_page_is_left_out_and_said() -> None:
    parts = read_pdf(BY_NAME["outside"].raw, Reading())
    assert "Ignore" not in parts[0].data
    assert parts[0].warnings == ("text_outside_page: pages 1",)


def test_what_is_not_looked_at_with_pdf_text_is_said() -> None:
    parts = read_pdf(BY_NAME["image table"].raw, Reading(pdf="text"))
    assert parts[0].warnings == ("not_looked_at: pages 2",)


def test_characters_without_a_meaning_are_said_and_many_are_looked_at() -> None:
    meanings = b"1 begincodespacerange <00> <FF> endcodespacerange 1 beginbfchar <7A> <E123> endbfchar"

    def page(codes: bytes) -> bytes:
        return assembled(
            [
                b"<</Type/Catalog/Pages 2 0 R>>",
                b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
                b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
                b"<</Length %d>>stream\nBT /F1 12 Tf 50 700 Td (%s) Tj ET\nendstream"
                % (len(codes) + 31, codes),
                b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/ToUnicode 6 0 R>>",
                b"<</Length %d>>stream\n%s\nendstream" % (len(meanings), meanings),
            ]
        )

    (text,) = read_pdf(page(b"a" * 200 + b"z"), Reading())
    assert text.warnings == ("unsure_characters: pages 1",)
    parts = read_pdf(page(b"az" * 20), Reading())
    assert [part.kind for part in parts] == ["text", "pdf"]


def test_the_pages_that_are_sent_are_those_of_the_file_and_not_the_changed_ones() -> None:
    pdf = FPDF()
    pdf.set_font("helvetica")
    pdf.add_page()
    pdf.image(Image.new("L", (300, 300), 200), 10, 50, 150, 150)
    pdf.free_text_annotation("Approved", x=15, y=20, w=80, h=12)
    pdf.add_page()
    pdf.text(10, 10, "second")
    text, looked_at = read_pdf(bytes(pdf.output()), Reading())
    assert text.data == "Approved\fsecond"
    # Reading hides what it has read; the API must still see it.
    page = pypdfium2.PdfDocument(base64.b64decode(looked_at.data))[0]
    annotation = pdfium.FPDFPage_GetAnnot(page, 0)
    assert not pdfium.FPDFAnnot_GetFlags(annotation) & pdfium.FPDF_ANNOT_FLAG_HIDDEN


def test_a_line_that_runs_off_the_page_is_read_whole() -> None:
    pdf = FPDF()
    pdf.set_font("helvetica")
    pdf.add_page()
    pdf.text(150, 10, "The total that runs off the page is 17.50, and this is not seen")
    (part,) = read_pdf(bytes(pdf.output()), Reading())
    assert "17.50" in part.data
    assert part.warnings == ()


@pytest.mark.parametrize("angle", [90, 180, 270])
def test_pages_shown_sideways_or_upside_down_are_read_in_order(angle: int) -> None:
    sheet = BY_NAME["running heads"]
    pdf = pypdfium2.PdfDocument(sheet.raw)
    for page in pdf:
        page.set_rotation(angle)
    out = io.BytesIO()
    pdf.save(out)
    assert as_lines(text_of(out.getvalue())) == sheet.lines
