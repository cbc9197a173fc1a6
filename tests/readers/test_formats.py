"""What is read of each format, and how one that is not read is named."""

from __future__ import annotations

import base64
import datetime as dt
import email.message
import email.policy
import io
import subprocess
import sys
import zipfile

import compressed_rtf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from airflow_llm_provider.documents.content import Part, Unreadable
from airflow_llm_provider.documents.readers import image, kinds
from airflow_llm_provider.documents.readers.number_format import shown
from airflow_llm_provider.documents.readers.spreadsheet import text_of
from airflow_llm_provider.options import Reading
from tests.support import office


def parts(raw: bytes, name: str, **reading: object) -> tuple[Part, ...]:
    """The parts of a file, read here and not in the sandbox."""
    return kinds.read_here(raw, name, Reading(**reading))


def text(raw: bytes, name: str, **reading: object) -> str:
    (part,) = parts(raw, name, **reading)
    assert part.kind == "text"
    return part.data


def opened(part: Part) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(part.data)))


def refused(raw: bytes, name: str) -> str:
    with pytest.raises(Unreadable) as caught:
        parts(raw, name)
    return str(caught.value)


# spreadsheets


def test_a_workbook_is_its_tables_with_sheet_names_and_formats():
    assert text(office.xlsx(), "a.xlsx").split("\n") == [
        "Sheet: Umsätze",
        "Item\tDay\tShare\tAmount\tAt\tZip",
        "Bolt\t2026-03-04\t15.5%\t1234.50 €\t2026-03-04 13:45:00\t01067",
        # Merged cells have their value once; a formula has the value that was stored, else itself.
        "Total\t\t\t4321.75\t=1+1",
        "",
        "Sheet: Secret (hidden)",
        "hidden cell",
    ]


def test_an_old_workbook_is_its_tables_too():
    assert text(office.xls(), "a.xls").split("\n") == [
        "Sheet: Umsätze",
        "Item\tDay\tShare\tAmount\tZip\tSure",
        "Bolt\t2026-03-04\t15.5%\t1234.50 €\t01067\tTRUE",
        "",
        "Sheet: Secret (hidden)",
        "hidden cell",
    ]


def test_an_open_document_spreadsheet_is_its_tables_too():
    assert text(office.ods(), "a.ods").split("\n") == [
        "Sheet: Umsätze",
        "Item\tDay\tShare",
        "Bolt\t2026-03-04\t15.5%",
        "Bolt\t2026-03-04\t15.5%",
        "same\tsame",
        "",
        "Sheet: Secret (hidden)",
        "hidden cell",
    ]


def test_the_size_that_a_sheet_states_of_itself_is_not_believed():
    lying = office.replaced(office.xlsx(), b'<dimension ref="A1:F3"/>', b'<dimension ref="A1:A1"/>')
    assert text(lying, "a.xlsx") == text(office.xlsx(), "a.xlsx")


@pytest.mark.parametrize(
    ("value", "code", "text"),
    [
        (0.155, "0%", "15.5%"),  # digits that the format hides are kept
        (0.1, "0.00%", "10.00%"),
        (1234.5, "[$€-407] #,##0.00", "€ 1234.50"),
        (1234.5, '"$"#,##0.00_);[Red]("$"#,##0.00)', "$1234.50"),
        (-1234.5, '"$"#,##0.00_);[Red]("$"#,##0.00)', "-$1234.50"),
        (0, '_-* #,##0.00\\ "€"_-;-* #,##0.00\\ "€"_-;_-* "-"??\\ "€"_-', "0 €"),
        (1234567, '0.0,,"M"', "1.234567M"),
        (12, '0" kg"', "12 kg"),
        (1067, "00000", "01067"),
        (123456789, "000\\-00\\-0000", "123-45-6789"),
        (0.1 + 0.2, "General", "0.3"),
        (1e-7, "0.00E+00", "0.0000001"),
        (7, "# ?/?", "7"),
        (5, ";;;", "5"),
        (150, '[>100]0" high";0" low"', "150 high"),
        (50, '[>100]0" high";0" low"', "50 low"),
        (10**20, "0", "100000000000000000000"),
        (3, "@", "3"),
    ],
)
def test_a_number_keeps_its_digits_and_gets_what_its_format_adds(value, code, text):
    assert shown(value, code) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (dt.timedelta(hours=30, minutes=5), "30:05:00"),
        (dt.time(13, 5), "13:05:00"),
        (dt.date(2026, 3, 4), "2026-03-04"),
        (False, "FALSE"),
        (None, ""),
        ("#DIV/0!", "#DIV/0!"),
    ],
)
def test_a_value_that_is_no_number_is_written_as_a_spreadsheet_shows_it(value, text):
    assert text_of(value) == text


@given(
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.sampled_from(["0.00", "#,##0", "General", '0" kg"']),
)
def test_no_number_loses_a_digit(value, code):
    found = shown(value, code).removesuffix(" kg")
    assert float(found) == pytest.approx(value, rel=1e-14)


STRICT = {
    b"http://schemas.openxmlformats.org/%b/2006/main" % name: b"http://purl.oclc.org/ooxml/%b/main" % name
    for name in (b"spreadsheetml", b"wordprocessingml", b"presentationml", b"drawingml")
} | {
    b"http://schemas.openxmlformats.org/officeDocument/2006/": b"http://purl.oclc.org/ooxml/officeDocument/",
    b"http://schemas.openxmlformats.org/drawingml/2006/": b"http://purl.oclc.org/ooxml/drawingml/",
}


@pytest.mark.parametrize(
    ("make", "name"),
    [(office.xlsx, "a.xlsx"), (lambda: office.docx(office.p("text")), "a.docx"), (office.pptx, "a.pptx")],
    ids=["xlsx", "docx", "pptx"],
)
def test_a_strict_open_xml_file_is_read_like_any_other(make, name):
    with zipfile.ZipFile(io.BytesIO(make())) as opened:
        files = {each: opened.read(each) for each in opened.namelist()}
    for usual, strict in STRICT.items():
        files = {
            each: raw if each.startswith("[") else raw.replace(usual, strict) for each, raw in files.items()
        }
    assert text(office.zipped(files), name) == text(make(), name)


# presentations, OpenDocument, RTF, books


def test_slides_come_in_the_order_in_which_they_are_shown():
    assert text(office.pptx(), "a.pptx").split("\n") == [
        *("Slide 1", "Title 3", "\tQ1\tQ2", "Sales\t10.5\t20", "Notes:", "note 3", ""),
        *("Slide 2", "Title 1", "left cell\tright cell", "Notes:", "note 1", ""),
        *("Slide 3 (hidden)", "Title 2", "in a group", "Notes:", "note 2"),
    ]


def test_an_open_document_text_is_what_its_printout_shows():
    assert text(office.odt(), "a.odt").split("\n") == [
        *(
            "Letterhead",
            "I. Scope",
            "Costs  10.50 EUR[1].",
            "1. first",
            "a) deeper",
            "2. second",
            "A1\tB1",
            "",
        ),
        *("in a box", "Page footer", "[1] the footnote"),
    ]


def test_an_open_document_presentation_is_read_slide_by_slide():
    assert text(office.odp(), "a.odp").split("\n") == [
        *("Slide 1", "first slide", "Notes:", "what to say", "", "Slide 2 (hidden)", "second slide"),
    ]


def test_rtf_is_what_its_printout_shows():
    assert text(office.RTF, "a.rtf").split("\n") == [
        *("Letterhead", "Café € costs 10.50", "При", "1.\tfirst", "A1 line\tB1", "after[1]", "Page footer"),
        "[1] the footnote",
    ]


@given(
    st.text(alphabet=st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="\u2028\u2029\x85"))
)
def test_rtf_carries_any_character(said):
    escaped = "".join(
        f"\\u{int.from_bytes(unit, 'little', signed=True)}?"
        for letter in said
        for unit in (
            letter.encode("utf-16-le")[i : i + 2] for i in range(0, len(letter.encode("utf-16-le")), 2)
        )
    )
    assert text(b"{\\rtf1 x" + escaped.encode() + b"x}", "a.rtf") == f"x{said}x"


def test_a_book_is_its_chapters_in_reading_order():
    assert text(office.epub(), "a.epub") == "the first chapter\n\nthe second chapter"


# mails


HEADERS = "From: Ada <ada@example.org>\nTo: bob@example.org\nDate: Tue, 03 Mar 2026 10:00:00 +0100\nSubject: Größe\n\n"


def test_a_mail_is_its_headers_and_its_text_once():
    assert text(office.eml(), "a.eml") == f"{HEADERS}The plain text costs 10.50 €."


def test_attachments_are_read_as_what_they_are():
    mail = office.eml(
        {"n.txt": b"noted", "a.xls": office.xls(), "p.png": office.picture("PNG"), "o.doc": b"\xd0\xcf"}
    )
    before, image, after = parts(mail, "a.eml")
    assert before.data.startswith(HEADERS)
    assert "Attachment: n.txt\nnoted\n\nAttachment: a.xls\nSheet: Umsätze" in before.data
    assert before.data.endswith("Attachment: p.png")
    assert (image.kind, image.media_type) == ("image", "image/png")
    assert (
        "Attachment: o.doc (not read: old Word document (.doc): this format is not read. Save it as .docx.)"
        in after.data
    )


def test_attachments_that_are_documents_of_their_own_are_named_only():
    mail = office.eml({"n.txt": b"noted"})
    assert text(mail, "a.eml", attachments="documents").endswith("10.50 €.\n\nAttachment: n.txt")


def test_html_is_read_where_the_plain_text_only_says_that_there_is_html():
    mail = email.message.EmailMessage()
    mail["From"] = "x@example.org"
    mail.set_content("See HTML.")
    mail.add_alternative(f"<p>{'It costs 10.50. ' * 20}</p>", subtype="html")
    assert "It costs 10.50." in text(bytes(mail), "a.eml")


def test_a_mail_within_a_mail_is_read():
    outer = email.message.EmailMessage()
    outer["Subject"] = "Fwd"
    outer.set_content("see below")
    inner = email.message_from_bytes(office.eml({"n.txt": b"noted"}), policy=email.policy.default)
    outer.add_attachment(inner)
    found = text(bytes(outer), "a.eml")
    assert "see below" in found
    assert "Attachment: attachment 1.eml\nFrom: Ada" in found
    assert found.endswith("Attachment: n.txt\nnoted")


def test_small_pictures_in_the_text_are_named_and_not_sent():
    mail = email.message.EmailMessage()
    mail["Subject"] = "Hi"
    mail.set_content("text")
    mail.add_alternative("<p>text <img src='cid:1'></p>", subtype="html")
    mail.get_payload()[1].add_related(office.picture("PNG"), "image", "png", cid="<1>", filename="logo.png")
    assert text(bytes(mail), "a.eml").endswith("Attachment: logo.png (a small picture in the text, left out)")


def test_a_mail_in_a_wrong_charset_and_with_a_broken_header_is_read():
    raw = b"From: x@example.org\nSubject: =?utf-8?B?w?= \xe4\nContent-Type: text/plain; charset=klingon\n\nK\xe4se\n"
    assert text(raw, "a.eml").endswith("Käse")


def test_a_mail_that_came_back_says_why_and_what_was_sent():
    raw = (
        b"Subject: back\nContent-Type: multipart/report; boundary=b\n\n--b\n\nfailed\n"
        b"--b\nContent-Type: message/delivery-status\n\nStatus: 5.1.1\n\n"
        b"--b\nContent-Type: message/rfc822\n\nSubject: sent\n\nbody\n--b--\n"
    )
    said = "Subject: back\n\nfailed\nStatus: 5.1.1\n\nAttachment: attachment 1.eml\nSubject: sent\n\nbody"
    assert text(raw, "a.eml") == said


def test_an_encrypted_mail_is_named():
    raw = b"Subject: x\nContent-Type: multipart/encrypted; boundary=b\n\n--b\n\nx\n--b--\n"
    assert "Decrypt it" in refused(raw, "a.eml")
    assert "not a mail" in refused(b"just text\n", "a.eml")


def test_an_outlook_item_is_read_like_a_mail():
    item = office.msg("Offer", "Costs 10.50 €", {"n.txt": b"noted", "a.xls": office.xls()})
    found = text(item, "a.msg")
    assert found.startswith(
        "From: Ada <ada@example.org>\nTo: Bob\nDate: 2026-03-03 09:00:00+00:00\nSubject: Offer\n\nCosts 10.50 €\n"
    )
    assert "Attachment: n.txt\nnoted\n\nAttachment: a.xls\nSheet: Umsätze" in found


def test_an_outlook_item_without_plain_text_is_read_from_its_html_or_its_rtf():
    assert text(office.msg("x", "", html="<p>Käse</p>"), "a.msg").endswith("\n\nKäse")
    assert text(office.msg("x", "", rtf=compressed_rtf.compress(rb"{\rtf1 K\'e4se}")), "a.msg").endswith(
        "\n\nKäse"
    )


# texts and images


@pytest.mark.parametrize("encoding", ["iso-8859-1", "utf-8", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
def test_xml_is_read_in_the_encoding_that_it_declares(encoding):
    said = f'<?xml version="1.0" encoding="{encoding}"?><a>Größe</a>'
    assert text(said.encode(encoding), "a.xml") == said
    assert text(said.encode(encoding), "no ending") == said


def test_a_web_page_is_read_in_the_encoding_of_its_xml_declaration():
    page = '<?xml version="1.0" encoding="iso-8859-1"?><html xmlns="http://www.w3.org/1999/xhtml"><p>Größe</p></html>'
    assert text(page.encode("iso-8859-1"), "a.xhtml") == "Größe"


def test_entities_are_never_expanded():
    said = '<!DOCTYPE a [<!ENTITY x "expanded"><!ENTITY y SYSTEM "file:///etc/passwd">]><a>&x;&y;</a>'
    assert text(said.encode(), "a.xml") == said


def test_xml_in_an_unknown_encoding_is_named():
    assert "encoding" in refused(b'<?xml version="1.0" encoding="klingon"?><a/>', "a.xml")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32-le"])
def test_json_is_read_in_the_encoding_that_its_first_bytes_tell(encoding):
    assert text('{"a": "Größe"}'.encode(encoding), "a.json") == '{"a": "Größe"}'


@pytest.mark.parametrize(("kind", "pages"), [("TIFF", 3), ("BMP", 1)])
def test_bitmaps_are_converted_page_by_page(kind, pages):
    found = parts(office.picture(kind, pages), f"a.{kind.lower()}")
    assert [(part.kind, part.media_type) for part in found] == [("image", "image/png")] * pages
    colours = [opened(part).getpixel((0, 0)) for part in found]
    assert colours == [(page, 0, 0) for page in range(pages)]


def test_an_image_that_the_api_would_refuse_for_its_size_is_scaled_or_packed(monkeypatch):
    monkeypatch.setattr(image, "MAX_IMAGE_PIXELS", 20)
    (part,) = parts(office.picture("BMP"), "a.bmp")
    assert opened(part).size == (20, 15)
    monkeypatch.setattr(image, "MAX_IMAGE_PIXELS", 8000)
    monkeypatch.setattr(image, "MAX_IMAGE_BASE64_BYTES", 3000)
    out = io.BytesIO()
    Image.effect_noise((100, 100), 90).save(out, "BMP")
    (part,) = parts(out.getvalue(), "a.bmp")
    assert part.media_type == "image/jpeg"
    assert len(part.data) <= 3000


def with_pictures(raw: bytes, folder: str, pictures: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(io.BytesIO(raw)) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    return office.zipped(files | {folder + name: raw for name, raw in pictures.items()}, stored=("mimetype",))


def noise(size: int) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((size, size), 90).save(out, "PNG")
    return out.getvalue()


LARGE = noise(200)


@pytest.mark.parametrize(
    ("make", "name", "folder"),
    [
        (lambda: office.docx(office.p("Scan")), "a.docx", "word/media/"),
        (office.pptx, "a.pptx", "ppt/media/"),
        (office.odt, "a.odt", "Pictures/"),
    ],
    ids=["docx", "pptx", "odt"],
)
def test_pictures_are_sent_where_there_is_hardly_any_text(make, name, folder):
    scans = {f"image{n}.png": noise(200 + n) for n in (1, 2, 10)}
    first, *images = parts(with_pictures(make(), folder, scans | {"logo.png": office.picture("PNG")}), name)
    assert first.kind == "text"
    assert [base64.b64decode(image.data) for image in images] == [scans[f"image{n}.png"] for n in (1, 2, 10)]


def test_pictures_beside_enough_text_are_not_sent():
    raw = office.docx(office.p("A sentence that is long. " * 20))
    assert [part.kind for part in parts(with_pictures(raw, "word/media/", {"p.png": LARGE}), "a.docx")] == [
        "text"
    ]


def test_a_document_of_pictures_alone_is_its_pictures_and_those_of_other_formats_are_named():
    raw = with_pictures(office.docx(""), "word/media/", {"a.png": LARGE, "b.emf": b"x" * 30_000})
    (image,) = parts(raw, "a.docx")
    assert (image.kind, image.warnings) == ("image", ("pictures_not_sent: 1",))
    (text,) = parts(
        with_pictures(office.docx(office.p("x")), "word/media/", {"b.emf": b"x" * 30_000}), "a.docx"
    )
    assert (text.data, text.warnings) == ("x", ("pictures_not_sent: 1",))


def test_what_was_not_read_within_a_document_is_said_beside_the_answer():
    (workbook,) = parts(office.xlsx(), "a.xlsx")
    assert workbook.warnings == ("formulas_not_computed: 1",)
    mail, *_ = parts(office.eml({"n.txt": b"noted", "o.doc": b"x", "a.xlsx": office.xlsx()}), "a.eml")
    assert mail.warnings == ("attachment_not_read: 2", "formulas_not_computed: 1")


# recognition


@pytest.mark.parametrize("name", ["a", "a.pdf", "a.b c", "folder.d/a"])
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (office.xlsx, "Sheet: "),
        (office.xls, "Sheet: "),
        (office.ods, "Sheet: "),
        (office.odt, "Letterhead"),
        (office.odp, "Slide 1"),
        (office.pptx, "Slide 1"),
        (office.epub, "the first"),
        (lambda: office.docx(office.p("word")), "word"),
        (lambda: office.RTF, "Letterhead"),
        (lambda: office.msg("Offer", "text"), "From: Ada"),
    ],
    ids=["xlsx", "xls", "ods", "odt", "odp", "pptx", "epub", "docx", "rtf", "msg"],
)
def test_first_bytes_tell_the_format_whatever_the_name(make, says, name):
    assert text(make(), name).startswith(says)


def test_where_first_bytes_and_name_tell_nothing_the_beginning_hints():
    assert text(b"Received: by x\nSubject: hi\n\nbody", "a") == "Subject: hi\n\nbody"
    assert text(b"<!DOCTYPE html><p>page", "a") == "page"
    # A web page that is named like a workbook; one that is named as a text is sent as it is.
    assert text(b"<html><table><tr><td>1.50</td></tr></table>", "a.xls") == "1.50"
    assert text(b"<html>x", "a.txt") == "<html>x"
    assert text(b"just text", "a") == "just text"


@pytest.mark.parametrize(
    ("raw", "name", "says"),
    [
        (office.ole({"WordDocument": b"x" * 5000}), "a", "old Word document (.doc)"),
        (office.ole({"PowerPoint Document": b"x"}), "a.dat", "old PowerPoint presentation (.ppt)"),
        (office.ole({"EncryptedPackage": b"x"}), "a.docx", "office file with a password"),
        (office.zipped({"xl/workbook.bin": b"x"}), "a.xlsx", "binary Excel workbook (.xlsb)"),
        (b"x", "a.pages", "Pages"),
        (b"x", "a.vsdx", "Visio"),
        (b"%!PS-Adobe", "a", "PostScript"),
        (b"\0\0\0\x18ftypheic\0\0", "a.jpg", "HEIC"),
        (b"7z\xbc\xaf\x27\x1c", "a", "7z or RAR archive"),
        (b"Rar!\x1a\x07\x01\0", "a.bin", "7z or RAR archive"),
        (b"\x1f\x8b\x08", "a", "archive"),
        (b"PAR1", "a", "Parquet file"),
        (b"ID3\x03", "a", "audio or video file"),
        (b"\0\0\0\x20ftypisom", "a.mp4", "audio or video file"),
        (b"\x7fELF", "a", "program or database file"),
        (b"-----BEGIN PGP MESSAGE-----", "a", "encrypted mail"),
    ],
)
def test_a_format_that_is_not_read_is_named_with_what_to_do(raw, name, says):
    message = refused(raw, name)
    assert message.startswith(says) or says in message.partition(":")[0]
    assert "this format is not read. " in message
    assert message.endswith(".")


@pytest.mark.parametrize(
    "suffix", ["xlsx", "xls", "pptx", "odt", "ods", "odp", "epub", "msg", "docx", "tiff"]
)
@pytest.mark.parametrize(
    "raw", [b"plain", b"PK\x03\x04 nothing", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)]
)
def test_a_broken_file_is_named(suffix, raw):
    assert "broken" in refused(raw, f"a.{suffix}") or "encrypted" in refused(raw, f"a.{suffix}")


def test_a_cut_file_is_named():
    for make, suffix in (
        (office.xlsx, "xlsx"),
        (office.pptx, "pptx"),
        (office.xls, "xls"),
        (office.odt, "odt"),
    ):
        raw = make()
        with pytest.raises(Unreadable):
            parts(raw[: len(raw) // 2], f"a.{suffix}")


def test_an_extra_that_is_missing_is_named():
    """In a process of its own, where the libraries cannot be imported."""
    code = (
        "import sys\n"
        "for name in ('openpyxl', 'xlrd', 'pptx', 'oxmsg', 'olefile', 'PIL'): sys.modules[name] = None\n"
        "from airflow_llm_provider.documents.readers import kinds\n"
        "from airflow_llm_provider.documents.content import Unreadable\n"
        "from airflow_llm_provider.options import Reading\n"
        "for suffix in ('xlsx', 'xls', 'pptx', 'msg', 'tiff'):\n"
        "    try: kinds.read_here(b'PK' if suffix in ('xlsx', 'pptx') else b'x', 'a.' + suffix, Reading())\n"
        "    except Unreadable as error: print(suffix, error)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert [line.split()[0] for line in said] == ["xlsx", "xls", "pptx", "msg", "tiff"]
    assert all("pip install 'airflow-provider-llm[office]'" in line for line in said)
