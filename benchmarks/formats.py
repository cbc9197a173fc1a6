"""Readers of office files, mails and books compared: `python benchmarks/formats.py`, or `make bench NAME=formats`.

Each reader reads, in a process of its own, the files of the tests (`tests/support/office.py`). What a reader of the
printout sees in them, and what not, is known. The others than ours come from `uv run --with`, each by itself. The last
line is one JSON object.

How each figure is counted:

- right: of what is planted, that which the text has (`a < b`: in this order; `2 x a`: so often); and of what the printout
  does not show, that which the text does not have. `|` separates spellings that are all right.
- CPU: of one reading of each file, the third time. Memory: the peak of the process.
"""

# ruff: noqa: E501 - a line of XML is one line

from __future__ import annotations

import argparse
import io
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OPENXML = "application/vnd.openxmlformats-officedocument"
ODF = "application/vnd.oasis.opendocument"
MEDIA_TYPES = {
    "docx": f"{OPENXML}.wordprocessingml.document",
    "xlsx": f"{OPENXML}.spreadsheetml.sheet",
    "pptx": f"{OPENXML}.presentationml.presentation",
    "xls": "application/vnd.ms-excel",
    "ods": f"{ODF}.spreadsheet",
    "odt": f"{ODF}.text",
    "odp": f"{ODF}.presentation",
    "rtf": "application/rtf",
    "epub": "application/epub+zip",
    "eml": "message/rfc822",
    "msg": "application/vnd.ms-outlook",
}
SEEN = {
    "docx": (
        *("Letterhead", "Page footer", "1. Term|1.\tTerm", "1.1 Start|1.1\tStart", "(a) notice|(a)\tnotice"),
        *(
            "2. Fees|2.\tFees",
            "1 x moved words",
            "inserted words",
            "control",
            "in the box",
            "the footnote",
            "A1",
        ),
    ),
    "xlsx": (
        *(
            "Umsätze",
            "2026-03-04",
            "13:45",
            "15.5%",
            "1234.50 €|1,234.50 €|1234.5 €",
            "01067",
            "4321.75",
            "hidden",
        ),
        "=1+1|2",
    ),
    "xls": ("Umsätze", "2026-03-04", "15.5%", "1234.50 €|1,234.50 €|1234.5 €", "01067", "TRUE", "hidden"),
    "ods": ("Umsätze", "2026-03-04", "2 x Bolt", "15.5%", "2 x same", "hidden"),
    "odt": (
        *(
            "Letterhead",
            "Page footer",
            "I. Scope",
            "Costs  10.50 EUR|Costs 10.50 EUR",
            "1. first",
            "a) deeper",
        ),
        *("2. second", "A1", "in a box", "the footnote"),
    ),
    "odp": ("first slide < second slide", "what to say", "hidden"),
    "pptx": ("Title 3 < Title 1", "left cell", "in a group", "note 2", "Sales", "10.5", "hidden"),
    "rtf": ("Letterhead", "Page footer", "Café € costs 10.50", "При", "1.", "A1", "the footnote"),
    "epub": ("the first chapter < the second chapter",),
    "eml": ("Größe", "ada@example.org", "10.50 €", "noted", "Bolt"),
    "msg": ("Offer", "ada@example.org", "2026-03-03", "Costs 10.50 €", "noted"),
}
NOT_SEEN = {
    "docx": ("hidden words", "deleted words"),
    "ods": ("a comment",),
    "odt": ("removed text", "a comment", "hidden text"),
    "rtf": ("hidden text", "removed text", "In no print"),
    "eml": ("HTML text",),
}
# What each is installed as, and the distributions that count for its size.
PACKAGES = {
    "ours": "openpyxl xlrd python-pptx XlsxWriter pillow python-oxmsg olefile compressed-rtf lxml",
    "kreuzberg": "kreuzberg==4.10.4",
    "markitdown": "markitdown[docx,outlook,pptx,xls,xlsx]==0.1.9",
    "python-calamine": "python-calamine==0.9.1",
    "striprtf": "striprtf==0.0.35",
    "docx2python": "docx2python==3.7.1",
}


def word() -> bytes:
    """Return a Word document in every trouble of this format."""
    from tests.support.office import docx, p, r

    def level(depth: int, text: str, kind: str = "decimal") -> str:
        return f'<w:lvl w:ilvl="{depth}"><w:start w:val="1"/><w:numFmt w:val="{kind}"/><w:lvlText w:val="{text}"/></w:lvl>'

    def clause(text: str, depth: int) -> str:
        return p(text, f'<w:numPr><w:ilvl w:val="{depth}"/><w:numId w:val="1"/></w:numPr>')

    levels = level(0, "%1.") + level(1, "%1.%2") + level(2, "(%3)", "lowerLetter")
    box = f"<w:p><w:r><w:pict><v:textbox><w:txbxContent>{p('in the box')}</w:txbxContent></v:textbox></w:pict></w:r></w:p>"
    body = (
        clause("Term", 0) + clause("Start", 1) + clause("notice", 2) + clause("Fees", 0)
        + f"<w:p><w:moveFrom>{r('moved words')}</w:moveFrom></w:p><w:p><w:moveTo>{r('moved words')}</w:moveTo></w:p>"
        + f"<w:p>{r('seen ')}{r('hidden words', '<w:vanish/>')}<w:ins>{r('inserted words')}</w:ins>"
        + "<w:del><w:r><w:delText>deleted words</w:delText></w:r></w:del></w:p>"
        + f"<w:sdt><w:sdtContent>{p('control')}</w:sdtContent></w:sdt>{box}"
        + f'<w:p>{r("noted")}<w:r><w:footnoteReference w:id="2"/></w:r></w:p>'
        + f"<w:tbl><w:tr><w:tc>{p('A1')}</w:tc><w:tc>{p('B1')}</w:tc></w:tr></w:tbl>"
        + '<w:sectPr><w:headerReference w:type="default" r:id="header1"/><w:footerReference w:type="default" r:id="footer1"/></w:sectPr>'
    )  # fmt: skip
    return docx(
        body,
        numbering=f'<w:abstractNum w:abstractNumId="7">{levels}</w:abstractNum>'
        '<w:num w:numId="1"><w:abstractNumId w:val="7"/></w:num>',
        header1=p("Letterhead"),
        footer1=p("Page footer"),
        footnotes=f'<w:footnote w:id="2">{p("the footnote")}</w:footnote>',
    )


def files() -> dict[str, bytes]:
    """Return a file of each format."""
    from tests.support import office

    return {
        "docx": word(),
        **{kind: getattr(office, kind)() for kind in ("xlsx", "xls", "ods", "odt", "odp", "pptx", "epub")},
        "rtf": office.RTF,
        "eml": office.eml({"n.txt": b"noted", "a.xls": office.xls()}),
        "msg": office.msg("Offer", "Costs 10.50 €", {"n.txt": b"noted"}),
    }


def ours() -> Callable[[bytes, str], str]:
    """Return this package's readers."""
    from airflow_llm_provider.documents.readers.kinds import read_here
    from airflow_llm_provider.options import Reading

    return lambda raw, kind: "\n".join(
        part.data for part in read_here(raw, f"a.{kind}", Reading()) if part.kind == "text"
    )


def kreuzberg() -> Callable[[bytes, str], str]:
    """Return the reader of kreuzberg."""
    import kreuzberg

    return lambda raw, kind: str(kreuzberg.extract_bytes_sync(raw, MEDIA_TYPES[kind]).content)


def markitdown() -> Callable[[bytes, str], str]:
    """Return the reader of markitdown."""
    from markitdown import MarkItDown, StreamInfo

    reader = MarkItDown(enable_plugins=False)
    return lambda raw, kind: str(
        reader.convert_stream(io.BytesIO(raw), stream_info=StreamInfo(extension=f".{kind}")).markdown
    )


def calamine() -> Callable[[bytes, str], str]:
    """Return the reader of python-calamine, with what it tells of a sheet."""
    from python_calamine import CalamineWorkbook

    def text(raw: bytes, kind: str) -> str:
        if kind not in ("xlsx", "xls", "ods"):
            raise NotImplementedError
        book = CalamineWorkbook.from_filelike(io.BytesIO(raw))
        sheets = (
            (f"{each.name} {each.visible}", book.get_sheet_by_name(each.name).to_python())
            for each in book.sheets_metadata
        )
        return "\n".join(
            "\n".join([title, *("\t".join(map(str, row)) for row in rows)]) for title, rows in sheets
        )

    return text


def striprtf() -> Callable[[bytes, str], str]:
    """Return the reader of striprtf."""
    from striprtf.striprtf import rtf_to_text

    def text(raw: bytes, kind: str) -> str:
        if kind != "rtf":
            raise NotImplementedError
        return str(rtf_to_text(raw.decode("latin-1")))

    return text


def docx2python() -> Callable[[bytes, str], str]:
    """Return the reader of docx2python."""
    import docx2python

    def text(raw: bytes, kind: str) -> str:
        if kind != "docx":
            raise NotImplementedError
        with docx2python.docx2python(io.BytesIO(raw)) as document:
            return str(document.text)

    return text


READERS = {
    "ours": ours,
    "kreuzberg": kreuzberg,
    "markitdown": markitdown,
    "python-calamine": calamine,
    "striprtf": striprtf,
    "docx2python": docx2python,
}


def read_all(name: str, folder: Path) -> dict[str, Any]:
    """Read every file of a folder with one reader; what the child process does."""
    read = READERS[name]()
    texts, cpu_ms = {}, {}
    for path in sorted(folder.iterdir()):
        kind, raw = path.suffix[1:], path.read_bytes()
        try:
            for _ in range(3):
                began = time.process_time()
                texts[kind] = read(raw, kind)
                cpu_ms[kind] = round(1000 * (time.process_time() - began), 2)
        except Exception as error:  # noqa: BLE001 - each reader has errors of its own
            print(f"{name}: {kind}: {type(error).__name__}", file=sys.stderr)
    # Another reader's environment has nothing else in it.
    named = PACKAGES[name].split() if name == "ours" else [each.name for each in metadata.distributions()]
    sizes = [
        path.locate().stat().st_size
        for each in named
        for path in metadata.distribution(each).files or ()
        if path.locate().is_file() and "__pycache__" not in path.parts
    ]
    return {
        "texts": texts,
        "cpu_ms": cpu_ms,
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "installed_mb": round(sum(sizes) / 1e6),
    }


def is_said(planted: str, text: str) -> bool:
    """Tell whether a text has what is planted, in one of its spellings."""
    if found := re.fullmatch(r"(\d) x (.*)", planted):
        return text.count(found[2]) == int(found[1])
    if " < " in planted:
        first, second = map(text.find, planted.split(" < "))
        return 0 <= first < second
    return any(each.lower() in text.lower() for each in planted.split("|"))


def score(kind: str, text: str) -> tuple[int, list[str]]:
    """Return how much was planted in a file, and what is wrong in a text of it."""
    seen, not_seen = SEEN[kind], NOT_SEEN.get(kind, ())
    wrong = [each for each in seen if not is_said(each, text)] + [each for each in not_seen if each in text]
    return len(seen) + len(not_seen), wrong


def run(name: str, folder: Path) -> dict[str, Any]:
    """Read the folder with one reader in a process of its own."""
    command = [sys.executable]
    if name != "ours":
        command = [str(Path(sys.executable).with_name("uv")), "run", "--quiet", "--no-project", "--isolated"]
        command += ["--python", sys.executable, "--with", PACKAGES[name], "python", "-W", "ignore"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, __file__, "--one", name, str(folder)],
        stdout=subprocess.PIPE, env=environment, cwd=ROOT, check=True,
    )  # fmt: skip
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Run what the command line names."""
    import tempfile

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--one", nargs=2, metavar=("READER", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(read_all(arguments.one[0], Path(arguments.one[1]))))
        return
    sys.path.insert(0, str(ROOT))
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for kind, raw in files().items():
            (Path(temporary) / f"a.{kind}").write_bytes(raw)
        for name in arguments.readers:
            found = run(name, Path(temporary))
            scores = {kind: score(kind, text) for kind, text in found.pop("texts").items()}
            found["right"] = {
                kind: f"{planted - len(wrong)}/{planted}" for kind, (planted, wrong) in scores.items()
            }
            found["wrong"] = {kind: wrong for kind, (_, wrong) in scores.items() if wrong}
            results[name] = found
            print(f"{name:16}", *(f"{key}={value}" for key, value in found.items()))
    rights = {
        name: sum(int(each.partition("/")[0]) for each in found["right"].values())
        for name, found in results.items()
    }
    mine, peer = rights.get("ours"), rights.get("kreuzberg")
    print(
        json.dumps(
            {
                "name": "formats",
                "ours": mine,
                "peer": peer,
                "ratio": round(mine / peer, 3) if mine and peer else None,
                "unit": "planted facts of eleven formats that are right",
                "readers": results,
            }
        )
    )


if __name__ == "__main__":
    main()
