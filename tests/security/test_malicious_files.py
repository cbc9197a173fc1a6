"""Files made to harm whoever reads them cost bounded memory and time, and end as dead letters or plain text."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bombs import BOMBS

SECRET = "only the machine's owner reads this"
W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def docx(document: str, **parts: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "[Content_Types].xml",
            '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
            '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
            '<Override PartName="/word/document.xml" ContentType="application/vnd.openxmlformats-officedocument'
            '.wordprocessingml.document.main+xml"/></Types>',
        )
        archive.writestr(
            "_rels/.rels",
            '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="a" '
            'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" '
            'Target="word/document.xml"/></Relationships>',
        )
        archive.writestr("word/document.xml", document)
        for name, content in parts.items():
            archive.writestr(name, content)
    return out.getvalue()


def word(body: str, doctype: str = "") -> bytes:
    return docx(f"<?xml version='1.0'?>{doctype}<w:document {W}><w:body>{body}</w:body></w:document>")


def pdf(content: bytes, *, layers: int = 1) -> bytes:
    """Return a PDF of one page whose content is packed so many times."""
    for _ in range(layers):
        content = zlib.compress(content, 9)
    filters = b" ".join([b"/FlateDecode"] * layers)
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        (
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources<</Font<</F1"
            b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>>>>>>>"
        ),
        b"<</Length %d/Filter[%s]>>stream\n%s\nendstream" % (len(content), filters, content),
    ]
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return (
        out
        + b"xref\n0 5\n0000000000 65535 f \n%strailer<</Size 5/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF"
        % (
            table,
            len(out),
        )
    )


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(10_000_000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def laughs(root: str) -> str:
    """Return a document type whose last entity would be ten thousand million words long."""
    levels = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 11))
    return f'<!DOCTYPE {root} [<!ENTITY l0 "ha">{levels}]>'


def outside(root: str, path: Path) -> str:
    return f'<!DOCTYPE {root} [<!ENTITY x SYSTEM "file://{path}">]>'


def endless(path: Path, line: bytes, size: int = 200_000_000) -> None:
    with path.open("wb") as file:
        file.write(b'id,text\n1,"')
        for _ in range(size // (len(line) * 100_000)):
            file.write(line * 100_000)


def zeros(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


FILES: dict[str, tuple[Any, set[str]]] = {
    # name: what is in it, or a function that writes it; and what may come of it.
    "deep.jsonl": (b"[" * 5_000_000 + b"\n", {"unreadable"}),
    "deep_objects.jsonl": (b'{"a":' * 1_000_000 + b"1" + b"}" * 1_000_000, {"unreadable"}),
    "digits.jsonl": (b'{"id": ' + b"9" * 5_000_000 + b"}\n", {"unreadable"}),
    "one_line.jsonl": (lambda path: zeros(path, 400_000_000), {"too_large"}),
    "one_field.csv": (lambda path: endless(path, b"a" * 100), {"unreadable", "too_large"}),
    "one_row_of_many_fields.csv": (lambda path: endless(path, b'a","\n'), {"unreadable", "too_large"}),
    "commas.csv": (lambda path: endless(path, b"," * 50), {"unreadable", "too_large"}),
    "zeros.txt": (lambda path: zeros(path, 3_000_000_000), {"too_large"}),
    "bomb.docx": (
        lambda path: path.write_bytes(docx("<x>" + " " * 200_000_000 + "</x>")),
        {"unreadable", "too_large"},
    ),
    "many_elements.docx": (
        lambda path: path.write_bytes(word("<w:p/>" * 5_000_000)),
        {"unreadable", "too_large"},
    ),
    "deep.docx": (word("<w:p>" * 100_000), {"unreadable"}),
    "laughs.docx": (
        word("<w:p><w:r><w:t>&l10;</w:t></w:r></w:p>", laughs("w:document")),
        {"unreadable", "read"},
    ),
    "laughs.xhtml": (laughs("html").encode() + b"<html><p>&l10;</p></html>", {"unreadable", "empty", "read"}),
    "deep.html": (b"<div>" * 1_000_000 + b"deep", {"unreadable", "too_large"}),
    "wide.html": (
        b"<table>" + b"<tr>" + b"<td colspan=99999>x</td>" * 200_000 + b"</table>",
        {"read", "too_large"},
    ),
    "attributes.html": (b"<p " + b"a='b' " * 3_000_000 + b">x</p>", {"read", "unreadable", "too_large"}),
    "one_tag.html": (
        b"<p " + b"".join(b"a%d=b " % n for n in range(100_000)) + b">x</p>",
        {"read", "unreadable", "too_large"},
    ),
    "padding.html": (
        b"<table><tr><td>" + b"x" * 100_000 + b"</td></tr>" + b"<tr><td>y</td></tr>" * 10_000 + b"</table>",
        {"unreadable", "too_large"},
    ),
    "nested_tables.html": (
        (b"<table><tr><td>" * 200 + b"x" * 5000 + b"</td></tr><tr><td>y</td></tr></table>" * 200),
        {"read"},
    ),
    "huge.png": (lambda path: path.write_bytes(png(65_000, 65_000)), {"read"}),
    "packed_twice.pdf": (
        lambda path: path.write_bytes(pdf(b"BT /F1 12 Tf (x) Tj ET\n" * 13_000_000, layers=2)),
        {"unreadable", "too_large"},
    ),
    "blank_but_huge.pdf": (
        lambda path: path.write_bytes(pdf(b" " * 900_000_000, layers=2)),
        {"unreadable", "too_large", "empty"},
    ),
    "loop.pdf": (
        pdf(b"").replace(b"/Kids[3 0 R]/Count 1", b"/Kids[2 0 R]/Count 9"),
        {"unreadable", "empty", "too_large"},
    ),
    "a_million_pages.pdf": (
        pdf(b"").replace(b"/Count 1>>", b"/Count 1000000>>"),
        {"unreadable", "empty", "too_large"},
    ),
}


def read(path: Path) -> dict[str, Any]:
    program = Path(__file__).with_name("hostile.py")
    done = subprocess.run(
        [sys.executable, program, path], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"the reader died, {done.returncode}: {done.stderr[-1000:]}"
    told: dict[str, Any] = json.loads(done.stdout)
    print(
        f"\n{path.name}: {told['outcomes']}, {told['seconds']:.1f} s, {told['cpu_s']:.1f} CPU-s, "
        f"{told['peak_bytes'] / 1e6:,.0f} MB; children {told['children_cpu_s']:.1f} CPU-s, "
        f"{told['largest_child_bytes'] / 1e6:,.0f} MB"
    )
    return told


def write(path: Path, content: bytes | Callable[[Path], Any]) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    return path


FILES |= {
    name: (lambda path, make=make: path.write_bytes(make()), fates) for name, (make, fates) in BOMBS.items()
}


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_costs_bounded_memory_and_time(tmp_path: Path, name: str) -> None:
    content, fates = FILES[name]
    told = read(write(tmp_path / name, content))
    assert set(told["outcomes"]) <= fates
    assert told["cpu_s"] < 30
    assert told["peak_bytes"] < 1_000_000_000
    assert told["children_cpu_s"] <= 10
    assert told["largest_child_bytes"] <= 512 * 1024 * 1024


@pytest.mark.parametrize("kind", ["docx", "xhtml"])
def test_an_entity_opens_no_file(tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    made = {
        "docx": word("<w:p><w:r><w:t>before &x; after</w:t></w:r></w:p>", outside("w:document", secret)),
        "xhtml": f"{outside('html', secret)}<html><p>before &x; after</p></html>".encode(),
    }
    told = read(write(tmp_path / f"asks.{kind}", made[kind]))
    assert SECRET not in told["text"]


def test_an_ordinary_file_is_read_within_the_same_limits(tmp_path: Path) -> None:
    for name, content in {
        "fine.docx": word("<w:p><w:r><w:t>fine</w:t></w:r></w:p>"),
        "fine.pdf": pdf(b"BT /F1 12 Tf (fine) Tj ET"),
        "fine.jsonl": b'{"id": 1, "text": "fine"}',
        "fine.csv": b"id,text\n1,fine\n",
    }.items():
        told = read(write(tmp_path / name, content))
        assert told["outcomes"] == {"read": 1}
        assert "fine" in told["text"]
