"""PDF readers compared: `python benchmarks/readers.py [FOLDER …]`, or `make bench NAME=readers`.

Each reader reads, in a process of its own, the corpus of the tests (files in every trouble whose words are known), the
contracts and invoices beside the checkout (`SHARED_DATA` names another place), and every PDF of the folders given. The
others than ours come from `uv run --with`, each by itself. The last line is one JSON object.

How each figure is counted:

- corpus: of the planted words, those in the reader's text in reading order; numbers are the words with a digit.
- contracts: the ratio of difflib by words, NFKC, straight quotation marks; the lowest of all. Characters lost: those of
  the twins, without white space, that are not among those of the text, by kind and count.
- invoices: amounts of the invoice's own XML that are found literally. A few are not printed, so none finds all.
- folders: characters without white space, and those lost where a `.txt` of the same name is beside the file.
- CPU: of the whole reading, the second time, per page. Memory: the peak of the process.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STRAIGHT = str.maketrans("“”‘’", "\"\"''")  # noqa: RUF001 - the twins have straight ones
# What each is installed as; ours needs nothing more than the checkout.
PACKAGES = {
    "ours": "pypdfium2",
    "pypdfium2": "pypdfium2==5.15.2",
    "pdf_oxide": "pdf_oxide==0.3.78",
    "kreuzberg": "kreuzberg==4.10.4",
    "pypdf": "pypdf==7.1.1",
    "pdfminer.six": "pdfminer.six==20260107",
}


def ours() -> Callable[[bytes], str]:
    """Return this package's reader."""
    from airflow_llm_provider.documents.readers.pdf import read_pdf
    from airflow_llm_provider.options import Reading

    return lambda raw: "\f".join(part.data for part in read_pdf(raw, Reading()) if part.kind == "text")


def pypdfium2() -> Callable[[bytes], str]:
    """Return PDFium's own text, which this package had before."""
    import pypdfium2

    def text(raw: bytes) -> str:
        return "\f".join(page.get_textpage().get_text_bounded() for page in pypdfium2.PdfDocument(raw))

    return text


def pdf_oxide() -> Callable[[bytes], str]:
    """Return the reader of pdf_oxide."""
    import pdf_oxide

    def text(raw: bytes) -> str:
        pdf = pdf_oxide.PdfDocument.from_bytes(raw)
        return "\f".join(pdf.extract_text(number) for number in range(pdf.page_count()))

    return text


def kreuzberg() -> Callable[[bytes], str]:
    """Return the reader of kreuzberg."""
    import kreuzberg

    return lambda raw: str(kreuzberg.extract_bytes_sync(raw, "application/pdf").content)


def pypdf() -> Callable[[bytes], str]:
    """Return the reader of pypdf."""
    import io

    import pypdf

    return lambda raw: "\f".join(page.extract_text() for page in pypdf.PdfReader(io.BytesIO(raw)).pages)


def pdfminer() -> Callable[[bytes], str]:
    """Return the reader of pdfminer.six."""
    import io

    from pdfminer.high_level import extract_text

    return lambda raw: str(extract_text(io.BytesIO(raw)))


READERS = {
    "ours": ours,
    "pypdfium2": pypdfium2,
    "pdf_oxide": pdf_oxide,
    "kreuzberg": kreuzberg,
    "pypdf": pypdf,
    "pdfminer.six": pdfminer,
}


def read_all(name: str, folder: Path) -> dict[str, Any]:
    """Read every PDF of a folder with one reader; what the child process does."""
    read = READERS[name]()
    files = {path.name: path.read_bytes() for path in sorted(folder.glob("*.pdf"))}
    texts: dict[str, str | None] = {}
    for _ in range(2):
        began = time.process_time()
        for file, raw in files.items():
            try:
                texts[file] = read(raw)
            except Exception as error:  # noqa: BLE001 - each reader has errors of its own
                print(f"{name}: {file}: {type(error).__name__}", file=sys.stderr)
                texts[file] = None
        cpu_s = time.process_time() - began
    distribution = metadata.distribution(re.split("==", PACKAGES[name])[0])
    about = distribution.metadata
    return {
        "texts": texts,
        "cpu_s": cpu_s,
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "installed_mb": round(
            sum(path.locate().stat().st_size for path in distribution.files or () if path.locate().is_file())
            / 1e6
        ),
        "licence": about.get("License-Expression") or about.get("License") or "see its classifiers",
    }


def gather(folders: list[Path], into: Path) -> dict[str, dict[str, Any]]:
    """Copy all files into one folder, and return what is known of each by its new name."""
    from tests.support.pdf_corpus import corpus

    known: dict[str, dict[str, Any]] = {}

    def add(raw: bytes, **what: Any) -> None:
        name = f"{len(known):05}.pdf"
        (into / name).write_bytes(raw)
        known[name] = what

    for sheet in corpus():
        add(sheet.raw, kind="corpus", words=sheet.words)
    shared = Path(os.environ.get("SHARED_DATA", ROOT.parent / "shared" / "data"))
    for path in sorted((shared / "cuad" / "pdf").glob("*.pdf")):
        add(
            path.read_bytes(),
            kind="contracts",
            twin=(shared / "cuad" / "txt" / f"{path.stem}.txt").read_text(),
        )
    for path in sorted((shared / "zugferd").glob("*.pdf")):
        add(path.read_bytes(), kind="invoices", amounts=amounts_of(path))
    for folder in folders:
        for path in sorted(folder.rglob("*.pdf")):
            twin = path.with_suffix(".txt")
            add(path.read_bytes(), kind="folders", twin=twin.read_text() if twin.exists() else None)
    return known


def amounts_of(path: Path) -> list[Decimal]:
    """Return the amounts of the XML that an invoice has inside."""
    import pypdfium2
    from lxml import etree

    pdf = pypdfium2.PdfDocument(path)
    attached = [pdf.get_attachment(number) for number in range(pdf.count_attachments())]
    files = [bytes(each.get_data()) for each in attached if each.get_name().endswith(".xml")]
    elements = [element for xml in files for element in etree.fromstring(xml).iter("{*}*")]
    return sorted(
        {Decimal(each.text.strip()) for each in elements if each.tag.endswith("Amount") and each.text}
    )


def is_printed(amount: Decimal, text: str) -> bool:
    """Tell whether an amount stands in a text, with a comma or a point, with or without separators of thousands."""
    amount = abs(amount).normalize()
    places = max(2, -int(amount.as_tuple().exponent))
    forms = {f"{amount:,.{places}f}", *([f"{amount:,.0f}"] if amount == amount.to_integral_value() else [])}
    patterns = (
        form.replace(".", "POINT").replace(",", "[,. '\u00a0\u202f]?").replace("POINT", "[.,]")
        for form in forms
    )
    return any(re.search(rf"(?<![\d.,]){pattern}(?!\d)", text) for pattern in patterns)


def words_of(text: str) -> list[str]:
    """Return the words, with one spelling of what is typeset in several ways."""
    return unicodedata.normalize("NFKC", text.translate(STRAIGHT)).split()


def score(texts: dict[str, str | None], known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Compare the texts of one reader with what is known of the files."""
    count: Counter[str] = Counter()
    ratios = []
    for name, what in known.items():
        text = texts[name] or ""
        if what["kind"] == "corpus":
            words = text.split()
            blocks = difflib.SequenceMatcher(None, what["words"], words, autojunk=False).get_matching_blocks()
            found = [word for block in blocks for word in what["words"][block.a : block.a + block.size]]
            count["planted"] += len(what["words"])
            count["found"] += len(found)
            count["numbers"] += sum(any(map(str.isdigit, word)) for word in what["words"])
            count["numbers_found"] += sum(any(map(str.isdigit, word)) for word in found)
        elif what["kind"] == "invoices":
            count["amounts"] += len(what["amounts"])
            count["amounts_found"] += sum(is_printed(amount, text) for amount in what["amounts"])
        else:
            count[f"{what['kind']}_characters"] += len("".join(text.split()))
            if what["twin"] is not None:
                mine, its = words_of(text), words_of(what["twin"])
                count["lost"] += (Counter("".join(its)) - Counter("".join(mine))).total()
                if what["kind"] == "contracts":
                    ratios.append(difflib.SequenceMatcher(None, mine, its, autojunk=False).ratio())
    return {
        "corpus_words": round(count["found"] / max(count["planted"], 1), 4),
        "corpus_numbers": round(count["numbers_found"] / max(count["numbers"], 1), 4),
        "contracts": round(min(ratios), 4) if ratios else None,
        "characters_lost": count["lost"],
        "amounts_found": count["amounts_found"],
        "amounts": count["amounts"],
        "folder_characters": count["folders_characters"],
        "failed": sum(text is None for text in texts.values()),
    }


def run(name: str, folder: Path) -> dict[str, Any]:
    """Read the folder with one reader in a process of its own."""
    command = [sys.executable]
    if name != "ours":
        uv = Path(sys.executable).with_name("uv")
        command = [str(uv), "run", "--quiet", "--no-project", "--python", sys.executable]
        command += ["--isolated", "--with", PACKAGES[name], "python"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, __file__, "--one", name, str(folder)],
        stdout=subprocess.PIPE, env=environment, cwd=ROOT, check=True,
    )  # fmt: skip
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, help="folders of PDF files, each with or without a .txt"
    )
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--one", choices=READERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(read_all(arguments.one, arguments.folders[0])))
        return
    sys.path.insert(0, str(ROOT))
    import pypdfium2

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        known = gather(arguments.folders, folder)
        pages = sum(len(pypdfium2.PdfDocument(path)) for path in folder.glob("*.pdf"))
        print(f"{len(known)} files, {pages} pages")
        results = {}
        for name in arguments.readers:
            found = run(name, folder)
            results[name] = {
                **score(found.pop("texts"), known),
                "cpu_ms_per_page": round(1000 * found.pop("cpu_s") / pages, 2),
                **found,
            }
            print(f"{name:13}", *(f"{key}={value}" for key, value in results[name].items()))
    peer = results.get("pypdfium2", {}).get("corpus_words")
    mine = results.get("ours", {}).get("corpus_words")
    print(
        json.dumps(
            {
                "name": "readers",
                "ours": mine,
                "peer": peer,
                "ratio": round(mine / peer, 3) if mine and peer else None,
                "unit": "planted words of the corpus found in reading order",
                "pages": pages,
                "readers": results,
            }
        )
    )


if __name__ == "__main__":
    main()
