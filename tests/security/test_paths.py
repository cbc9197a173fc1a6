"""No spelling of a path leads out of the roots, locally or in object storage."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from airflow_llm_provider.documents.reader import Unreadable, read
from airflow_llm_provider.documents.sources import Document, NoSuchDocuments, OutsideRoots, list_documents
from airflow_llm_provider.options import Reading

INSIDE, OUTSIDE = "a document", "the machine's secret"

# {t} is the folder above the root `data`; beside it lies `data2`, whose name begins alike.
LOCAL = [
    *(
        "{t}/data2",
        "{t}/data2/a.txt",
        "{t}/data/../data2/a.txt",
        "{t}/data/./../data2",
        "{t}/data/x/../../data2",
    ),
    *("file://{t}/data2/a.txt", "file://{t}/data/../data2/a.txt", "local://{t}/data2/a.txt"),
    *("{t}/data/%2e%2e/data2/a.txt", "file://{t}/data/%2e%2e/data2/a.txt", "{t}/data/..%2fdata2/a.txt"),
    *("{t}/da*/a.txt", "{t}/data*/*", "{t}/data/*/../../data2/*", "{t}/data/[.][.]/data2/*", "{t}/**/*.txt"),
    *(
        "{t}/data/link.txt",
        "{t}/data/folder",
        "{t}/data/folder/a.txt",
        "{t}/data/fold*/*",
        "{t}/data/again/data2/a.txt",
    ),
    *("/etc/passwd", "/proc/self/environ", "/dev/zero", "//etc/passwd", "{t}/data/\0/../../data2/a.txt"),
    "{t}/data",
]
REMOTE = [
    *("memory://bucket/data2/a.txt", "memory://bucket/data/../data2/a.txt", "memory://bucket/data2"),
    *(
        "memory://bucket/data/%2e%2e/data2/a.txt",
        "memory://bucket/data%2F..%2Fdata2/a.txt",
        "memory://bucket//data2/a.txt",
    ),
    *(
        "memory://bucket/data*/a.txt",
        "memory://bucket/*",
        "memory:///bucket/data2/a.txt",
        "memory://other/data/a.txt",
    ),
    *("simplecache::memory://bucket/data2/a.txt", "memory://bucket/data/../../other/data/a.txt"),
    *(
        "file:///etc/passwd",
        "/etc/passwd",
        "memory://bucket/data::file:///etc/passwd",
        "memory://bucket/data",
    ),
]


def texts(documents: Any, roots: list[str], **how: Any) -> list[str]:
    """Return the text of everything that can be read; what is refused at once is nothing."""
    try:
        found = list(list_documents(documents, roots=roots, reading=Reading(**how)))
    except (OutsideRoots, NoSuchDocuments, ValueError, FileNotFoundError):
        return []
    readable: list[str] = []
    for document in found:
        with suppress(Unreadable):  # the pipe
            if isinstance(document, Document):
                readable.append(read(document).text or "")
    return readable


@pytest.fixture
def top(tmp_path: Path) -> Path:
    for name, text in (("data", INSIDE), ("data2", OUTSIDE)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(text)
    data = tmp_path / "data"
    (data / "link.txt").symlink_to(tmp_path / "data2" / "a.txt")
    (data / "folder").symlink_to(tmp_path / "data2")
    (data / "again").symlink_to(tmp_path)
    os.mkfifo(data / "pipe.txt")
    return tmp_path


@pytest.fixture
def bucket() -> UPath:
    path = UPath("memory://bucket")
    path.fs.store.clear()
    path.fs.pipe(
        {
            "/bucket/data/a.txt": INSIDE.encode(),
            "/bucket/data2/a.txt": OUTSIDE.encode(),
            "/other/data/a.txt": OUTSIDE.encode(),
        }
    )
    return path


@pytest.mark.parametrize("in_a_list", [False, True])
@pytest.mark.parametrize("spelling", LOCAL)
def test_no_spelling_leads_out_of_a_local_root(top: Path, spelling: str, in_a_list: bool) -> None:
    path = spelling.format(t=top)
    root = [f"{top}/data"]
    found = texts([path], root, strings="path") if in_a_list else texts(path, root)
    assert set(found) <= {INSIDE}
    assert found or spelling != "{t}/data"


@pytest.mark.parametrize("in_a_list", [False, True])
@pytest.mark.parametrize("spelling", REMOTE)
@pytest.mark.usefixtures("bucket")
def test_no_spelling_leads_out_of_a_prefix(spelling: str, in_a_list: bool) -> None:
    root = ["memory://bucket/data"]
    found = texts([spelling], root, strings="path") if in_a_list else texts(spelling, root)
    assert set(found) <= {INSIDE}
    assert found or spelling != "memory://bucket/data"


def test_a_link_put_in_the_place_of_a_file_after_it_was_listed_is_not_followed(top: Path) -> None:
    document = next(d for d in list_documents(top / "data", roots=[top / "data"]) if d.id == "a.txt")
    assert isinstance(document, Document)
    (top / "data" / "a.txt").unlink()
    (top / "data" / "a.txt").symlink_to(top / "data2" / "a.txt")
    with pytest.raises(Unreadable, match="replaced by a link"):
        read(document)


def test_text_that_names_a_file_opens_none(top: Path) -> None:
    row = {"id": "1", "text": f"{top}/data2/a.txt"}
    assert texts([row], [f"{top}/data"], text_field="text") == [f"{top}/data2/a.txt"]
    assert texts([f"{top}/data2/a.txt"], [f"{top}/data"]) == []
