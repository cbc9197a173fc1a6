"""A folder with a file of each format: every file is a row or a dead letter that names its format."""

from __future__ import annotations

import gzip
import json
from typing import Any

from fpdf import FPDF

from airflow_llm_provider.options import Reading
from tests.support import office

SAYS = "We owe you $3.00."


def pdf() -> bytes:
    made = FPDF()
    made.add_page()
    made.set_font("helvetica")
    made.cell(text=SAYS)
    return bytes(made.output())


READ = {
    "a.txt": SAYS.encode(),
    "a.md": SAYS.encode(),
    "a.html": f"<p>{SAYS}</p>".encode(),
    "a.json": json.dumps({"text": SAYS}).encode(),
    "a.xml": f'<?xml version="1.0" encoding="iso-8859-1"?><a>{SAYS} ä</a>'.encode("iso-8859-1"),
    "a.pdf": pdf(),
    "a.png": office.picture("PNG"),
    "a.jpg": office.picture("JPEG"),
    "a.gif": office.picture("GIF"),
    "a.webp": office.picture("WEBP"),
    "a.tiff": office.picture("TIFF", 2),
    "a.bmp": office.picture("BMP"),
    "a.docx": office.docx(office.p(SAYS)),
    "a.xlsx": office.xlsx(),
    "a.xls": office.xls(),
    "a.ods": office.ods(),
    "a.pptx": office.pptx(),
    "a.odp": office.odp(),
    "a.odt": office.odt(),
    "a.rtf": office.RTF,
    "a.epub": office.epub(),
    "a.eml": office.eml({"n.xlsx": office.xlsx()}),
    "a.msg": office.msg("Offer", SAYS),
    "no ending": office.xlsx(),
}
SPREAD = {
    "a.csv": (b"id;text\n1;x\n", ["a.csv#1"]),
    "b.csv": (b"id,text\n1,x\n", ["b.csv#1"]),
    "a.tsv": (b"id\ttext\n1\tx\n", ["a.tsv#1"]),
    "a.jsonl": (b'{"id": 1, "text": "x"}\n', ["a.jsonl#1"]),
    "a.zip": (
        office.zipped({"i/a.txt": SAYS, "a.docx": office.docx(office.p(SAYS))}),
        ["a.zip!i/a.txt", "a.zip!a.docx"],
    ),
    "n.txt.gz": (gzip.compress(SAYS.encode()), ["n.txt.gz!n.txt"]),
}
NAMED = {
    "a.doc": (office.ole({"WordDocument": b"x" * 5000}), "old Word document"),
    "a.heic": (b"\0\0\0\x18ftypheic", "HEIC"),
    "a.7z": (b"7z\xbc\xaf\x27\x1c", "7z"),
    "a.vsdx": (b"PK\x03\x04", "Visio"),
    "sealed.docx": (office.ole({"EncryptedPackage": b"x"}), "password"),
    "cut.xlsx": (office.xlsx()[:2000], "Excel workbook that is broken"),
    "unknown": (b"\0\1\2\3" * 100, "binary"),
}
SKIPPED = ("a.py", "b.py", "a.mp4")


def test_every_file_of_a_folder_is_a_row_or_a_named_dead_letter_or_counted(deployment: Any) -> None:
    for name, raw in {**READ, **{name: raw for name, (raw, _) in (SPREAD | NAMED).items()}}.items():
        (deployment.inbox / name).write_bytes(raw)
    for name in SKIPPED:
        (deployment.inbox / name).write_bytes(b"x")
    assert len({name.rpartition(".")[2] for name in (*READ, *SPREAD, *NAMED)}) > 25
    ran = deployment.ask(str(deployment.inbox), max_failed=len(NAMED))
    assert ran.state == "success"
    assert sorted(row["document_id"] for row in ran.rows) == sorted(
        [*READ, *(each for _, found in SPREAD.values() for each in found)]
    )
    letters = {letter["document_id"]: letter["message"] for letter in ran.dead_letters}
    assert letters.keys() == NAMED.keys()
    assert all(says in letters[name] for name, (_, says) in NAMED.items())
    assert ran.manifest["documents"] == len(ran.rows) + len(letters) == sum(ran.manifest["outcomes"].values())
    assert ran.manifest["skipped"] == {"py": 2, "mp4": 1}
    assert ran.log.count("3 files were skipped, whose endings are of no known format: 2 .py, 1 .mp4.") == 1
    assert "a.csv is separated by ';'." in ran.log


def test_an_unchanged_folder_of_all_formats_is_asked_about_once(deployment: Any) -> None:
    for name, raw in {**READ, **{name: raw for name, (raw, _) in SPREAD.items()}}.items():
        (deployment.inbox / name).write_bytes(raw)
    first = deployment.ask(str(deployment.inbox), reading=Reading(attachments="documents"))
    asked = deployment.server.seen
    assert first.manifest["outcomes"]["dead_letter"] == 0
    again = deployment.ask(str(deployment.inbox), reading=Reading(attachments="documents"))
    assert deployment.server.seen == asked
    assert again.manifest["outcomes"]["reused"] == first.manifest["documents"]
    assert "a.eml!n.xlsx" in {row["document_id"] for row in again.rows}
