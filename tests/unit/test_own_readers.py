"""Readers of the DAG author's own: which files they get, what they may return, and where they run."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Wire
from fpdf import FPDF

from airflow_llm_provider.argument_checks import InvalidArgument
from airflow_llm_provider.documents.content import Content, Unreadable
from airflow_llm_provider.documents.document import Document
from airflow_llm_provider.documents.prompt import DocumentPrompt
from airflow_llm_provider.documents.reader import read
from airflow_llm_provider.documents.readers import custom
from airflow_llm_provider.documents.sources import list_documents
from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.output_type import OutputType
from airflow_llm_provider.options import Reading
from airflow_llm_provider.testing.processes import wait_until
from tests.support import own_readers


def read_with(
    folder: Path, reader: Callable[..., Any] | str, raw: bytes = b"text", name: str = "a.dwg"
) -> Content:
    (folder / name).write_bytes(raw)
    reading = Reading(readers={Path(name).suffix: reader})
    (document,) = list_documents(folder, reading=reading)
    return read(document, reading)


def refusal(folder: Path, reader: Callable[..., Any] | str) -> str:
    with pytest.raises(Unreadable) as caught:
        read_with(folder, reader)
    return str(caught.value)


@pytest.mark.parametrize("reader", [own_readers.upper, "tests.support.own_readers:upper"])
def test_a_file_of_any_suffix_is_read_by_the_function_that_is_given_for_it(
    tmp_path: Path, reader: Any
) -> None:
    assert read_with(tmp_path, reader).text == "TEXT"


def test_a_function_whose_parameter_is_named_path_gets_a_file(tmp_path: Path) -> None:
    assert read_with(tmp_path, own_readers.from_path).text == ".dwg text"


def test_it_runs_in_the_sandbox_and_not_in_the_task(tmp_path: Path) -> None:
    assert read_with(tmp_path, own_readers.where).text != str(os.getpid())


def test_it_may_return_texts_and_content_blocks(tmp_path: Path) -> None:
    parts = read_with(tmp_path, own_readers.blocks).parts
    assert [(part.kind, part.data) for part in parts] == [
        ("text", "plain"),
        ("text", "text"),
        ("image", own_readers.PNG),
        ("text", "a document"),
    ]


def test_pages_that_it_returns_are_counted(tmp_path: Path) -> None:
    pdf = FPDF()
    pdf.add_page()
    pdf.add_page()
    (part,) = read_with(tmp_path, own_readers.pdf, bytes(pdf.output())).parts
    assert (part.kind, part.pages) == ("pdf", 2)


@pytest.mark.parametrize("name", ["a.csv", "a.zip", "a.pdf", "a.txt"])
def test_it_comes_before_what_is_built_in_and_gets_the_whole_file(tmp_path: Path, name: str) -> None:
    assert read_with(tmp_path, own_readers.upper, b"id,text\n1,x\n", name).text == "ID,TEXT\n1,X\n"


def test_a_media_type_stands_for_its_suffixes_and_a_suffix_comes_first(tmp_path: Path) -> None:
    for name in ("a.svg", "b.txt"):
        (tmp_path / name).write_text("x")
    by_type = Reading(readers={"image/svg+xml": own_readers.upper})
    assert [read(each, by_type).text for each in list_documents(tmp_path, reading=by_type)] == ["X", "x"]
    both = Reading(readers={"image/svg+xml": own_readers.upper, ".SVG": own_readers.from_path})
    assert read(next(iter(list_documents(tmp_path, reading=both))), both).text == ".svg x"


def test_what_it_raises_is_a_dead_letter_without_the_documents_text(tmp_path: Path) -> None:
    message = refusal(tmp_path, own_readers.fail)
    assert "tests.support.own_readers:fail raised ValueError (own_readers.py, line" in message
    assert "text must not" not in message


def test_what_it_returns_wrongly_is_named(tmp_path: Path) -> None:
    assert "returned nothing; it has to return a text" in refusal(tmp_path, own_readers.nothing)
    assert "a block of the type int" in refusal(tmp_path, own_readers.strange)
    assert "raised AttributeError" in refusal(tmp_path, "tests.support.own_readers:missing")
    assert "raised ModuleNotFoundError" in refusal(tmp_path, "no_such_module:f")


def test_what_it_starts_ends_with_it(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="crashed"):
        read_with(tmp_path, own_readers.start_and_crash, str(tmp_path / "pid").encode())
    pid = int((tmp_path / "pid").read_text())
    assert wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie", 5)


def test_what_another_process_cannot_import_is_refused_when_the_dag_is_parsed() -> None:
    def inner(raw: bytes) -> str:
        return ""

    for reader in (lambda raw: "", inner, "no function", 7):
        with pytest.raises(InvalidArgument, match=r"reading\.readers\['dwg'\]"):
            Reading(readers={"dwg": reader})
    with pytest.raises(InvalidArgument, match="by suffix or media type"):
        Reading(readers=[own_readers.upper])  # type: ignore[arg-type]


def test_an_installed_package_brings_readers_and_the_authors_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package" / "brings_readers-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: brings-readers\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(f"[{custom.GROUP}]\ndwg = tests.support.own_readers:upper\n")
    monkeypatch.syspath_prepend(str(package.parent))
    importlib.invalidate_caches()
    custom._installed.cache_clear()
    try:
        assert custom.reader_of("a.dwg", Reading()) == "tests.support.own_readers:upper"
        assert custom.reader_of("a.txt", Reading()) is None
        own = Reading(readers={"dwg": "tests.support.own_readers:from_path"})
        assert custom.reader_of("a.dwg", own) == "tests.support.own_readers:from_path"
    finally:
        custom._installed.cache_clear()


def test_another_reader_for_an_unchanged_file_reads_it_again(wire: Wire) -> None:
    def sighting(**readers: str) -> str | None:
        prompt = DocumentPrompt(
            prompt="What?",
            output=OutputType(str),
            endpoint=Endpoint(client=wire),
            reading=Reading(readers=readers),
        )
        document = Document(id="a.dwg", uri="a.dwg", stamp="1")
        return prompt.sighting(document, document.stamp)

    assert sighting(dwg="one:f") == sighting(dwg="one:f")
    assert len({sighting(), sighting(dwg="one:f"), sighting(dwg="two:f")}) == 3
