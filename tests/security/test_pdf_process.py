"""The process that reads PDFs: a crash costs one document, and the process ends with its parent."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from test_malicious_files import pdf

from airflow_llm_provider.documents.content import Unreadable
from airflow_llm_provider.documents.pdf_process import pdf_parts_in_child
from airflow_llm_provider.testing.processes import wait_until

# Twenty times what a page unpacks to is what PDFium takes.
BOMB = pdf(b"BT /F1 12 Tf (x) Tj ET\n" * 3_500_000, layers=2)
FORKED = """
import os, sys
from airflow_llm_provider.documents.pdf_process import _reader, pdf_parts_in_child
raw = sys.stdin.buffer.read()
text = lambda: pdf_parts_in_child(raw, "auto")[0][0].data
print(text(), _reader._process.pid, flush=True)
if os.fork() == 0:
    print(text(), _reader._process.pid, flush=True)
    os.kill(os.getpid(), 9)
os.wait()
print(text(), _reader._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
COUNTED = """
import base64, sys
from airflow_llm_provider.documents.content import PDF_PAGE_TOKENS
from airflow_llm_provider.documents.reader import ceiling_of_blocks
pdf = {"type": "base64", "media_type": "application/pdf", "data": base64.b64encode(sys.stdin.buffer.read())}
assert ceiling_of_blocks([{"type": "document", "source": pdf}]) == PDF_PAGE_TOKENS
assert not any("pdfium" in name for name in sys.modules), "opened in the task"
"""


def fine(text: str) -> bytes:
    return pdf(f"BT /F1 12 Tf ({text}) Tj ET".encode())


def test_what_kills_the_reader_is_one_dead_letter_among_the_others() -> None:
    def text(raw: bytes) -> str:
        try:
            return pdf_parts_in_child(raw, "auto")[0][0].data
        except Unreadable as error:
            return error.reason

    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(text, [fine("one"), BOMB, fine("two"), fine("three"), BOMB, fine("four")]))
    assert texts == ["one", "unreadable", "two", "three", "unreadable", "four"]


def test_a_pdf_that_crashes_the_child_process_is_named_with_the_limits() -> None:
    assert len(BOMB) < 3_000
    with pytest.raises(Unreadable, match=r"crashed on this PDF \(exit status -\d+\).* 1,024 MiB or 60 s"):
        pdf_parts_in_child(BOMB, "text")


def test_a_fork_gets_a_reader_of_its_own_and_none_outlives_a_killed_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED],
        input=fine("read"),
        capture_output=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    (first, its), (forked, anothers), (again, still) = (line.split() for line in done.stdout.split(b"\n")[:3])
    assert (first, forked, again) == (b"read",) * 3
    assert its == still != anothers
    assert wait_until(lambda: not any(psutil.pid_exists(int(pid)) for pid in (its, anothers)), 10)


def test_pages_of_a_pdf_that_goes_in_as_it_is_are_counted_there_too(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", COUNTED], input=fine("one"), cwd=tmp_path, timeout=60, check=True)


def test_a_module_in_the_working_folder_is_not_taken_for_one_of_pythons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Unreadable):
        pdf_parts_in_child(BOMB, "auto")  # so that the next one starts anew, here
    assert pdf_parts_in_child(fine("read"), "auto")[0][0].data == "read"
    assert not (tmp_path / "ran").exists()
