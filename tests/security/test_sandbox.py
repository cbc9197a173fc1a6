"""The sandbox: a file that crashes its reader costs one document, and no child outlives its parent."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from test_malicious_files import pdf

from airflow_llm_provider.documents import sandbox
from airflow_llm_provider.documents.content import Unreadable
from airflow_llm_provider.documents.readers.kinds import read_parts
from airflow_llm_provider.options import Reading
from airflow_llm_provider.testing.processes import wait_until

# Twenty times what a page unpacks to is what PDFium takes.
BOMB = pdf(b"BT /F1 12 Tf (x) Tj ET\n" * 3_500_000, layers=2)
FORKED = """
import os, sys
from airflow_llm_provider.documents import sandbox
raw = sys.stdin.buffer.read()
text = lambda: sandbox.run("airflow_llm_provider.documents.readers.kinds:parse", raw, {"name": "", "reading": {}})
told = lambda: print(text()[0]["data"], *(child.process.pid for child in sandbox._pool._children), flush=True)
told()
if os.fork() == 0:
    told()
    os.kill(os.getpid(), 9)
os.wait()
told()
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


def text_of(raw: bytes) -> str:
    try:
        return read_parts(raw, "a.pdf", Reading())[0].data
    except Unreadable as error:
        return error.reason


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
    sandbox.close()


def call(name: str) -> int:
    # What waits takes no CPU; what uses CPU gets little of it on a machine with other work.
    limits = sandbox.Limits(cpu_s=1, wall_s=3 if name == "wait" else 100)
    found: int = sandbox.run(f"sandboxed:{name}", b"", {}, limits)
    return found


def test_what_kills_its_reader_is_one_dead_letter_among_the_others() -> None:
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(text_of, [fine("one"), BOMB, fine("two"), fine("three"), BOMB, fine("four")]))
    # By PDFium itself, which ends without memory, or by the parent, which looks how much it has.
    assert {texts.pop(4), texts.pop(1)} <= {"unreadable", "too_large"}
    assert texts == ["one", "two", "three", "four"]


@pytest.mark.parametrize(
    ("name", "says", "reason"),
    [
        ("use_memory", "needed too much memory", "too_large"),
        ("use_cpu", "took too much CPU time", "too_large"),
        ("wait", "took too long", "too_large"),
        ("die", "crashed", "unreadable"),
    ],
)
def test_each_limit_ends_the_child_and_is_named(name: str, says: str, reason: str) -> None:
    with pytest.raises(Unreadable, match=says) as caught:
        call(name)
    assert caught.value.reason == reason
    assert "400 MiB" in str(caught.value)
    assert call("say_pid")


def test_as_many_children_work_as_there_are_cores_and_no_more() -> None:
    pids: list[int] = []
    threads = [threading.Thread(target=lambda: pids.append(call("say_pid"))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 20
    assert 1 <= len(set(pids)) <= sandbox.cores()
    assert len(set(psutil.Process().children())) == len(set(pids))


def test_what_a_library_prints_does_not_stand_between_the_answers() -> None:
    assert call("say_pid") == call("say_pid")


def test_a_fork_gets_a_child_of_its_own_and_none_outlives_a_killed_process(tmp_path: Path) -> None:
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
    assert text_of(fine("read")) == "read"
    assert not (tmp_path / "ran").exists()
