"""What a document's content is, and how each kind of bad document is named."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import docx
import pypdfium2
import pytest
from docx.oxml import parse_xml
from fpdf import FPDF
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from airflow_llm_provider.documents.document import Document
from airflow_llm_provider.documents.reader import Content, Unreadable, read
from airflow_llm_provider.documents.readers import pdf as pdf_module
from airflow_llm_provider.documents.readers.image import MAX_IMAGE_BASE64_BYTES
from airflow_llm_provider.documents.readers.pdf import read_pdf
from airflow_llm_provider.documents.sources import list_documents
from airflow_llm_provider.options import Reading

PNG = base64.b64decode(
    b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def read_bytes(folder: Path, raw: bytes, name: str = "a.txt", **how: Any) -> Content:
    path = folder / name
    path.write_bytes(raw)
    (document,) = list_documents(path)
    return read(document, Reading(**how))


def refused(folder: Path, raw: bytes, name: str = "a.txt", **how: Any) -> tuple[str, str]:
    with pytest.raises(Unreadable) as caught:
        read_bytes(folder, raw, name, **how)
    return caught.value.reason, str(caught.value)


def make_pdf(*pages: str, password: str | None = None) -> bytes:
    """A PDF with a page for each text; "" is a page with a drawing only, "blank" one with nothing."""
    pdf = FPDF()
    pdf.set_font("helvetica")
    for text in pages:
        pdf.add_page()
        if text == "":
            pdf.rect(10, 10, 50, 50)
        elif text != "blank":
            pdf.cell(text=text)
    if password is not None:
        pdf.set_encryption(owner_password="owner", user_password=password)
    return bytes(pdf.output())


def make_docx(build: Any = None) -> bytes:
    document = docx.Document()
    (build or (lambda d: d.add_paragraph("Hello")))(document)
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


# text


@pytest.mark.parametrize("name", ["a.txt", "a.md", "LICENSE"])
def test_text_goes_through_byte_for_byte(tmp_path, name):
    text = "  {{ conn.x.password }}\r\n{% raw %}\t\rä\u0301 \u2028</document>\n\n "
    content = read_bytes(tmp_path, text.encode(), name)
    assert content.text == text
    assert content.content_hash == hashlib.sha256(text.encode()).hexdigest()


@given(st.text(min_size=1).filter(lambda text: not text.isspace() and "\0" not in text))
def test_any_row_text_goes_through_unchanged(text):
    assert read(Document(id="x", text=text)).text == text


@pytest.mark.parametrize(
    ("raw", "reason", "says"),
    [
        (b"", "empty", "0 bytes"),
        (b" \r\n\t\n", "empty", "nothing but white space"),
        (b"\xef\xbb\xbf", "empty", ""),
        (b"abc\0def", "unreadable", "NUL byte at position 3"),
        (b"\x00\x01\xff\xfe", "unreadable", "binary"),
        (b"abc \xe4 def", "unreadable", "byte 0xe4 at position 4"),
        (b"abc \xed\xa0\x80", "unreadable", "position 4"),
    ],
)
def test_a_bad_text_is_named(tmp_path, raw, reason, says):
    found = refused(tmp_path, raw)
    assert found[0] == reason
    assert says in found[1]


def test_a_wrong_encoding_says_the_cure_and_the_cure_works(tmp_path):
    assert "encoding='cp1252'" in refused(tmp_path, "Käse".encode("cp1252"))[1]
    assert read_bytes(tmp_path, "Käse".encode("cp1252"), encoding="cp1252").text == "Käse"


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_wins_and_is_no_part_of_the_text(tmp_path, codec):
    assert read_bytes(tmp_path, "Käse".encode(codec)).text == "Käse"


def test_a_row_with_a_lone_surrogate_or_nul_is_unreadable():
    for text in ("a\ud800", "a\0"):
        with pytest.raises(Unreadable, match=r"(character|position) 1") as caught:
            read(Document(id="x", text=text))
        assert caught.value.reason == "unreadable"


# limits


def test_a_300_mb_file_costs_nothing(tmp_path):
    with open(tmp_path / "a.txt", "wb") as file:
        file.truncate(300_000_000)  # sparse
    (document,) = list_documents(tmp_path)
    started = time.perf_counter()
    with pytest.raises(Unreadable, match="300,000,000 bytes") as caught:
        read(document)
    assert caught.value.reason == "too_large"
    assert time.perf_counter() - started < 0.5


def test_a_file_that_grew_after_it_was_listed_is_still_within_limits(tmp_path):
    (tmp_path / "a.txt").write_text("small")
    (document,) = list_documents(tmp_path)
    (tmp_path / "a.txt").write_text("x" * 1000)
    with pytest.raises(Unreadable) as caught:
        read(document, Reading(max_bytes=100))
    assert caught.value.reason == "too_large"


def test_a_row_over_the_limit_is_too_large():
    with pytest.raises(Unreadable) as caught:
        read(Document(id="x", text="ä" * 60), Reading(max_bytes=100))
    assert caught.value.reason == "too_large"


def test_what_happened_to_a_file_after_listing_is_named(tmp_path):
    for name in ("gone.txt", "link.txt", "pipe.txt", "folder.txt"):
        (tmp_path / name).write_text("x")
    documents = {document.id: document for document in list_documents(tmp_path)}
    for name in documents:
        (tmp_path / name).unlink()
    (tmp_path / "link.txt").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "folder.txt").mkdir()
    for name, says in [
        ("gone.txt", "deleted after it was listed"),
        ("link.txt", "replaced by a link"),
        ("pipe.txt", "not a regular file"),
        ("folder.txt", "not a regular file"),
    ]:
        with pytest.raises(Unreadable, match=says) as caught:
            read(documents[name])
        assert caught.value.reason == "unreadable"


def test_object_storage_is_read_within_limits():
    path = UPath("memory://reader/in/a.txt")
    path.write_text("over there")
    (document,) = list_documents(path)
    assert read(document).text == "over there"
    unknown = Document(id="x", path=document.path, store=document.store)
    for each in (document, unknown):
        with pytest.raises(Unreadable) as caught:
            read(each, Reading(max_bytes=5))
        assert caught.value.reason == "too_large"
    path.unlink()
    with pytest.raises(Unreadable, match="deleted after it was listed"):
        read(document)


# HTML


def test_html_becomes_what_a_reader_sees(tmp_path):
    page = (
        "<html><head><title>t</title><script>var x</script></head><body><h1>Terms</h1><p>One &amp; two"
        "<table><tr><td>a</td><td>b</td></tr><tr><td>1</td><td>2</td></tr></table></body></html>"
    )
    text = read_bytes(tmp_path, page.encode(), "a.html").text
    assert text is not None
    assert "Terms" in text
    assert "One & two" in text
    assert "a  b" in text
    assert "var x" not in text
    assert not any(line.endswith(" ") for line in text.split("\n"))


def test_html_says_its_own_encoding(tmp_path):
    page = '<?xml version="1.0" encoding="iso-8859-1"?><html><meta charset="iso-8859-1"><p>Käse</p></html>'
    assert read_bytes(tmp_path, page.encode("iso-8859-1"), "a.html").text == "Käse"
    assert refused(tmp_path, "<p>Käse</p>".encode("cp1252"), "a.html")[0] == "unreadable"


@pytest.mark.parametrize(
    "page", [b"<html></html>", b"<!-- only this -->", b"<p> </p>", b"<script>x</script>"]
)
def test_html_without_text_is_empty(tmp_path, page):
    assert refused(tmp_path, page, "a.html")[0] == "empty"


def test_html_nested_too_deep_is_named_not_cut(tmp_path):
    assert read_bytes(tmp_path, b"<div>" * 1500 + b"deep", "a.html").text.strip() == "deep"
    assert refused(tmp_path, b"<div>" * 100_000 + b"deep", "a.html") == (
        "unreadable",
        "HTML nested too deeply",
    )


def test_what_html_hides_is_not_read(tmp_path):
    page = (
        b'<p>seen</p><p style="color: red; DISPLAY:none">hidden</p><script>x</script><p style="color:red">too'
    )
    assert read_bytes(tmp_path, page, "a.html").text == "seen\n\ntoo"


# PDF


def test_pdf_auto_takes_text_where_there_is_any_and_sends_the_other_pages_to_be_looked_at(tmp_path):
    content = read_bytes(tmp_path, make_pdf("first", "", "third", "blank", ""), "a.pdf")
    text, native = content.parts
    assert text.data == "first\f\fthird\f\f"
    assert content.text == text.data
    assert (native.kind, native.pages, native.title) == ("pdf", 2, "pages 2, 5")
    assert len(pypdfium2.PdfDocument(base64.b64decode(native.data))) == 2


def test_the_same_pdf_is_the_same_request_every_time(tmp_path, monkeypatch):
    raw = make_pdf("first", "")
    first = read_bytes(tmp_path, raw, "a.pdf")
    assert read_bytes(tmp_path, raw, "a.pdf") == first
    written = pypdfium2.PdfDocument(base64.b64decode(first.parts[1].data)).get_metadata_value("CreationDate")
    assert written.startswith("D:20000101000000"), "not the second at which PDFium wrote it"


def test_pdf_auto_sends_a_scan_whole_and_as_it_is(tmp_path):
    raw = make_pdf("", "")
    (part,) = read_bytes(tmp_path, raw, "a.pdf").parts
    assert base64.b64decode(part.data) == raw
    assert part.title is None


def test_pdf_text_and_native_are_what_they_say(tmp_path):
    raw = make_pdf("first", "")
    assert [part.kind for part in read_bytes(tmp_path, raw, "a.pdf", pdf="text").parts] == ["text"]
    (part,) = read_bytes(tmp_path, raw, "a.pdf", pdf="native").parts
    assert (part.kind, part.pages) == ("pdf", 2)
    assert refused(tmp_path, make_pdf("", ""), "a.pdf", pdf="text")[0] == "unreadable"


def test_bad_pdfs_are_named(tmp_path):
    whole = make_pdf("text")
    for broken in (b"%PDF-1.7\ngarbage", whole[:200], b"no pdf at all"):
        assert refused(tmp_path, broken, "a.pdf")[0] == "unreadable"
    for mode in ("auto", "text", "native"):
        reason, message = refused(tmp_path, make_pdf("x", password="secret"), "a.pdf", pdf=mode)
        assert reason == "unreadable"
        assert "encrypted" in message
    assert refused(tmp_path, make_pdf("blank", "blank"), "a.pdf")[0] == "empty"


def test_a_pdf_encrypted_without_a_password_is_sent_decrypted(tmp_path):
    raw = make_pdf("hello", password="")
    assert read_bytes(tmp_path, raw, "a.pdf").text == "hello"
    (part,) = read_bytes(tmp_path, raw, "a.pdf", pdf="native").parts
    assert b"/Encrypt" in raw
    assert b"/Encrypt" not in base64.b64decode(part.data)


def test_more_pages_than_the_api_looks_at_are_returned_in_pieces(monkeypatch):
    monkeypatch.setattr(pdf_module, "MAX_NATIVE_PAGES", 2)
    native = read_pdf(make_pdf("a", "b", "c", "d", "e"), Reading(pdf="native"))
    assert [(part.pages, part.title) for part in native] == [
        (2, "pages 1, 2"),
        (2, "pages 3, 4"),
        (1, "pages 5"),
    ]
    parts = read_pdf(make_pdf("a", "", "", "d", "", "f"), Reading())
    assert [(part.kind, part.title, part.data if part.kind == "text" else None) for part in parts] == [
        ("text", None, "a\f\f\fd"),
        ("pdf", "pages 2, 3", None),
        ("text", None, "\ff"),
        ("pdf", "pages 5", None),
    ]
    assert read_pdf(make_pdf("a", "b", "c"), Reading())[0].data == "a\fb\fc"


def test_pages_too_heavy_for_one_request_are_returned_in_pieces(monkeypatch):
    raw = make_pdf("", "")
    monkeypatch.setattr(pdf_module, "MAX_REQUEST_BYTES", len(base64.b64encode(raw)) - 1)
    assert [part.title for part in read_pdf(raw, Reading())] == ["pages 1", "pages 2"]
    monkeypatch.setattr(pdf_module, "MAX_REQUEST_BYTES", 100)
    with pytest.raises(Unreadable, match=r"page 1 has .* bytes; the API takes 75"):
        read_pdf(raw, Reading())


def test_pdfs_are_read_by_many_threads(tmp_path):
    for n in range(20):
        (tmp_path / f"{n:02}.pdf").write_bytes(make_pdf(f"number {n}", ""))
    with ThreadPoolExecutor(8) as pool:
        texts = [content.text for content in pool.map(read, list_documents(tmp_path))]
    assert texts == [f"number {n}\f" for n in range(20)]
    assert threading.active_count() < 20


# DOCX


def test_a_word_document_is_its_paragraphs_and_tables_in_order(tmp_path):
    def build(document: Any) -> None:
        document.add_heading("Title")
        document.add_paragraph("Before\twith tab")
        table = document.add_table(rows=2, cols=2)
        for number, cell in enumerate(table._cells):
            cell.text = f"c{number}"
        document.add_paragraph("After")

    assert read_bytes(tmp_path, make_docx(build), "a.docx").text == (
        "Title\nBefore\twith tab\nc0\tc1\nc2\tc3\nAfter"
    )


def test_text_in_content_controls_insertions_and_links_is_not_lost(tmp_path):
    def build(document: Any) -> None:
        w = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
        run = "<w:r><w:t>{}</w:t></w:r>"
        control = f"<w:sdt {w}><w:sdtContent><w:p>{run.format('control')}</w:p></w:sdtContent></w:sdt>"
        paragraph = (
            f"<w:p {w}><w:ins>{run.format('inserted')}</w:ins>"
            f"<w:del><w:r><w:delText>deleted</w:delText></w:r></w:del>"
            f"<w:hyperlink>{run.format(' link')}</w:hyperlink></w:p>"
        )
        for number, xml in enumerate((control, paragraph)):
            document.element.body.insert(number, parse_xml(xml))

    assert read_bytes(tmp_path, make_docx(build), "a.docx").text == "control\ninserted link"


def test_a_merged_cell_costs_once_however_wide_it_says_it_is(tmp_path):
    def build(document: Any) -> None:
        cell = document.add_table(rows=1, cols=1).cell(0, 0)
        cell.text = "wide"
        cell._tc.grid_span = 1_000_000_000

    assert read_bytes(tmp_path, make_docx(build), "a.docx").text == "wide"


def test_bad_word_documents_are_named(tmp_path):
    whole = make_docx()
    empty_zip = io.BytesIO()
    with zipfile.ZipFile(empty_zip, "w") as archive:
        archive.writestr("x.txt", "x")
    for broken in (b"PK\x03\x04 nothing", whole[: len(whole) // 2], empty_zip.getvalue(), b"plain"):
        assert refused(tmp_path, broken, "a.docx")[0] == "unreadable"
    assert "encrypted" in refused(tmp_path, b"\xd0\xcf\x11\xe0" + bytes(600), "a.docx")[1]
    assert refused(tmp_path, make_docx(lambda document: None), "a.docx")[0] == "empty"


# images, and names that don't say what is inside


@pytest.mark.parametrize(
    ("raw", "media_type"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0 jpeg", "image/jpeg"),
        (b"GIF89a\x01\x00\x01\x00", "image/gif"),
        (b"RIFF\x10\x00\x00\x00WEBPVP8 ", "image/webp"),
    ],
)
@pytest.mark.parametrize("name", ["a.png", "a.txt", "a.pdf", "noname"])
def test_images_are_recognised_by_their_first_bytes(tmp_path, raw, media_type, name):
    content = read_bytes(tmp_path, raw, name)
    (part,) = content.parts
    assert (part.kind, part.media_type) == ("image", media_type)
    assert base64.b64decode(part.data) == raw
    assert content.text is None


def test_an_image_over_the_apis_limit_is_too_large_counted_as_base64(tmp_path):
    assert MAX_IMAGE_BASE64_BYTES == 5_242_880
    assert refused(tmp_path, PNG + bytes(4_000_000), "a.png")[0] == "too_large"
    assert read_bytes(tmp_path, PNG + bytes(3_900_000), "a.png").parts


def test_first_bytes_win_over_the_name(tmp_path):
    assert read_bytes(tmp_path, make_pdf("hello"), "a.txt").text == "hello"
    assert read_bytes(tmp_path, make_pdf("hello"), "a.docx").text == "hello"
    assert read_bytes(tmp_path, make_docx(), "a.txt").text == "Hello"
    assert read_bytes(tmp_path, b"GIF89a is what such a file begins with").text is not None
    assert refused(tmp_path, b"just text", "a.png")[0] == "unreadable"
    assert refused(tmp_path, b"PK\x03\x04" + bytes(50))[0] == "unreadable"


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = (
        "import sys, airflow_llm_provider.documents.sources, airflow_llm_provider.documents.reader, "
        "airflow_llm_provider.documents.content, airflow_llm_provider.documents.output, "
        "airflow_llm_provider.documents.output\n"
        "heavy = {'pypdfium2', 'docx', 'lxml', 'inscriptis', 'pyarrow', 'fsspec', 'upath', 'airflow'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
