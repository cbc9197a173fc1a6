"""Files of office formats, mails, books and archives that unpack, nest or repeat without measure."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zlib
from collections.abc import Callable

from tests.support import office

LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 11))
LAUGHS = f'<!DOCTYPE x [<!ENTITY l0 "ha">{LAUGHS}]>'
SHEET = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'


def other(archive: bytes, name: str, content: str | bytes) -> bytes:
    """The office file with one of its parts replaced."""
    import zipfile

    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        files = {each: opened.read(each) for each in opened.namelist()}
    return office.zipped({**files, name: content}, stored=("mimetype",))


def sheet(rows: str) -> bytes:
    return other(
        office.xlsx(),
        "xl/worksheets/sheet1.xml",
        f"<worksheet {SHEET}><sheetData>{rows}</sheetData></worksheet>",
    )


def odf_rows(rows: int, columns: int) -> bytes:
    cell = f'<table:table-cell table:number-columns-repeated="{columns}"><text:p>a cell</text:p></table:table-cell>'
    row = f'<table:table-row table:number-rows-repeated="{rows}">{cell}</table:table-row>'
    return office.odf("spreadsheet", f'<table:table table:name="t">{row}</table:table>')


def multipart(depth: int) -> bytes:
    head = b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(depth))
    return b"Subject: deep\n" + head + b"Content-Type: text/plain\n\nx\n"


def many_parts(count: int) -> bytes:
    return b"Subject: x\nContent-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\nx\n" * count + b"--b--\n"


def circle() -> bytes:
    """An OLE file whose folders have each other as children."""
    raw = bytearray(office.msg("x", "text", {"n.txt": b"x"}))
    at = raw.index("__attach_version1.0_#00000000".encode("utf-16-le"))
    raw[at + 76 : at + 80] = struct.pack("<I", 1)  # its child is itself
    return bytes(raw)


def tiff(width: int, height: int) -> bytes:
    """A TIFF of one strip that unpacks to far less than its size says."""
    strip = zlib.compress(bytes(1_000_000))
    tags = [
        (256, width),
        (257, height),
        (258, 8),
        (259, 8),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, height),
        (279, len(strip)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (
        struct.pack("<2sHI", b"II", 42, 8 + len(strip))
        + strip
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )


def bmp(width: int, height: int) -> bytes:
    return struct.pack("<2sI4xIIiiHHI24x", b"BM", 54, 54, 40, width, height, 1, 24, 0)


def many_pages(pages: int) -> bytes:
    return office.picture("TIFF", pages)


def sparse_tar(size: int) -> bytes:
    """A tar whose one file is declared far larger than the archive."""
    info = tarfile.TarInfo("a.txt")
    info.size = size
    return info.tobuf() + bytes(10_240)


def nested(depth: int, width: int) -> bytes:
    raw = office.zipped({"a.txt": bytes(10_000_000)})
    for _ in range(depth):
        raw = office.zipped({f"{n}.zip": raw for n in range(width)})
    return raw


GONE = {"unreadable", "too_large"}
BOMBS: dict[str, tuple[Callable[[], bytes], set[str]]] = {
    "many_rows.xlsx": (lambda: sheet("<row><c><v>1</v></c></row>" * 3_000_000), GONE),
    "far_cell.xlsx": (
        lambda: sheet('<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>' * 3_000),
        {"read", *GONE},
    ),
    "laughs.xlsx": (lambda: other(office.xlsx(), "xl/workbook.xml", f"{LAUGHS}<x>&l10;</x>"), GONE),
    "laughs_in_sheet.xlsx": (
        lambda: other(
            office.xlsx(), "xl/worksheets/sheet1.xml", f"{LAUGHS}<worksheet {SHEET}>&l10;</worksheet>"
        ),
        {"read", *GONE},
    ),
    "blanks.xlsx": (lambda: sheet(" " * 300_000_000), {"read", *GONE}),
    "many_cells.ods": (lambda: odf_rows(1_000_000, 10_000), GONE),
    "spaces.odt": (lambda: office.odf("text", '<text:p>x<text:s text:c="4000000000"/>y</text:p>'), GONE),
    "laughs.odt": (lambda: other(office.odt(), "content.xml", f"{LAUGHS}<x>&l10;</x>"), GONE),
    "many_paragraphs.odt": (lambda: office.odf("text", "<text:p/>" * 10_000_000), GONE),
    "many_shapes.pptx": (
        lambda: office.replaced(office.pptx(), b"</p:spTree>", b"<p:sp/>" * 3_000_000 + b"</p:spTree>"),
        GONE,
    ),
    "laughs.pptx": (lambda: other(office.pptx(), "ppt/presentation.xml", f"{LAUGHS}<x>&l10;</x>"), GONE),
    "large.epub": (lambda: other(office.epub(), "OEBPS/two.xhtml", "<p>x</p>" * 20_000_000), GONE),
    "one_page_often.epub": (
        lambda: other(
            office.epub(),
            "OEBPS/book.opf",
            '<package xmlns="http://www.idpf.org/2007/opf"><manifest><item id="one" href="two.xhtml" '
            'media-type="application/xhtml+xml"/></manifest><spine>'
            + '<itemref idref="one"/>' * 500_000
            + "</spine></package>",
        ),
        GONE,
    ),
    "deep.rtf": (lambda: b"{\\rtf1 " + b"{" * 5_000_000, {"empty", *GONE}),
    "many_words.rtf": (lambda: b"{\\rtf1 " + b"\\b" * 400_000 + b" x}", {"read", *GONE}),
    "deep.eml": (lambda: multipart(20_000), GONE),
    "many_parts.eml": (lambda: many_parts(80_000), {"read", *GONE}),
    "long_header.eml": (lambda: b"Subject: " + b"=?utf-8?q?x?= " * 300_000 + b"\n\nx", {"read", *GONE}),
    "circle.msg": (lambda: circle(), {"read", *GONE}),
    "wide.tiff": (lambda: tiff(60_000, 60_000), GONE),
    "wide.bmp": (lambda: bmp(60_000, 60_000), GONE),
    "many_pages.tiff": (lambda: many_pages(200), {"too_large"}),
    "numbered.docx": (
        lambda: office.docx(
            "".join(
                office.p("x", '<w:numPr><w:ilvl w:val="8"/><w:numId w:val="1"/></w:numPr>')
                for _ in range(20_000)
            ),
            numbering='<w:abstractNum w:abstractNumId="1"><w:lvl w:ilvl="8"><w:start w:val="1"/><w:lvlText w:val="'
            + "%9" * 20_000
            + '"/></w:lvl></w:abstractNum><w:num w:numId="1"><w:abstractNumId w:val="1"/></w:num>',
        ),
        GONE,
    ),
    "zeros.zip": (lambda: office.zipped({"a.txt": bytes(300_000_000)}), {"too_large"}),
    "nested.zip": (lambda: nested(2, 16), {"too_large"}),
    "many_files.zip": (lambda: office.zipped({f"{n}.txt": b"" for n in range(10_001)}), {"too_large"}),
    "zeros.txt.gz": (lambda: gzip.compress(bytes(300_000_000), 9), {"too_large"}),
    "zeros.txt.bz2": (lambda: bz2.compress(bytes(300_000_000)), {"too_large"}),
    "zeros.txt.xz": (lambda: lzma.compress(bytes(300_000_000), preset=0), {"too_large"}),
    "declared.tar": (lambda: sparse_tar(5_000_000_000), GONE),
}
