"""What was listed is what is read: no other file, no mixture of two versions, and the stamp of just that."""

from __future__ import annotations

import os
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFile
from upath import UPath

from airflow_llm_provider.documents.content import Unreadable
from airflow_llm_provider.documents.opening import fetch
from airflow_llm_provider.documents.sources import Document, OutsideRoots, Rejected, list_documents

INSIDE, OUTSIDE = "a document", "the machine's secret"
MAX = 1_000_000


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A root `in` with `a.txt`, `m/deep/b.txt` and `z.txt`, and a folder `secret` of the same shape beside it."""
    for folder, text in (("in", INSIDE), ("secret", OUTSIDE)):
        (tmp_path / folder / "m/deep").mkdir(parents=True)
        for name in ("a.txt", "m/deep/b.txt", "z.txt"):
            (tmp_path / folder / name).write_text(text)
    return tmp_path


def swap(folder: Path, other: Path) -> None:
    """Put a link to `other` in the place of `folder`, which stays under a hidden name."""
    folder.rename(folder.with_name(f".{folder.name}"))
    folder.symlink_to(other)


def swap_back(folder: Path) -> None:
    folder.unlink()
    folder.with_name(f".{folder.name}").rename(folder)


def open_handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("level", ["m", "m/deep", "."])
def test_a_parent_folder_that_became_a_link_is_not_followed(top, level):
    listed = {found.id: found for found in list_documents(top / "in", roots=[top / "in"])}
    folder = top / "in" / level
    swap(folder, top / "secret" / level)
    with pytest.raises(Unreadable, match="replaced by a link"):
        fetch(listed["m/deep/b.txt"], MAX)


@pytest.mark.parametrize("level", ["m", "m/deep"])
def test_a_folder_still_to_be_walked_that_became_a_link_is_not_entered(top, level):
    listing = list_documents(top / "in", roots=[top / "in"])
    first = next(listing)
    swap(top / "in" / level, top / "secret" / level)
    found = [first, *listing]
    assert {item.id: isinstance(item, Rejected) for item in found} == {
        "a.txt": False,
        level: True,
        "z.txt": False,
    }


def test_a_folder_that_became_a_link_while_folders_below_it_were_walked_costs_what_is_left_in_it(top):
    (top / "in/m/z.txt").write_text(INSIDE)
    listing = list_documents(top / "in", roots=[top / "in"])
    before = [next(listing), next(listing)]
    assert [item.id for item in before] == ["a.txt", "m/deep/b.txt"]
    swap(top / "in/m", top / "secret")  # it has a z.txt, too
    rest = list(listing)
    assert [(item.id, isinstance(item, Rejected)) for item in rest] == [("m/z.txt", True), ("z.txt", False)]


@pytest.mark.parametrize("documents", ["in", "in/m", "in/*/deep/*.txt", "in/m/deep/b.txt"])
def test_a_thread_that_swaps_folders_for_links_never_gets_a_file_outside_the_roots_read(top, documents):
    stop, read = threading.Event(), set()

    def read_all() -> None:
        with suppress(OutsideRoots, OSError):  # at the moment there is no such folder, or it leads elsewhere
            for item in list_documents(str(top / documents), roots=[str(top / "in")]):
                with suppress(Unreadable):
                    time.sleep(0.0001)  # the other thread may strike
                    if isinstance(item, Document):
                        read.add(fetch(item, MAX)[0].decode())

    def keep_swapping() -> None:
        while not stop.is_set():
            for level in ("m", "m/deep"):
                swap(top / "in" / level, top / "secret" / level)
                swap_back(top / "in" / level)

    thread = threading.Thread(target=keep_swapping)
    thread.start()
    try:
        ends = time.monotonic() + 0.1
        while time.monotonic() < ends:
            read_all()
    finally:
        stop.set()
        thread.join()
    read_all()
    assert read == {INSIDE}


def test_a_file_below_a_link_that_the_roots_allow_is_read(top):
    (top / "in/more").symlink_to(top / "secret")
    found = list_documents(top / "in", roots=[top / "in", top / "secret"])
    texts = {item.id: fetch(item, MAX)[0].decode() for item in found if isinstance(item, Document)}
    assert texts["more/m/deep/b.txt"] == OUTSIDE


def test_a_tree_deeper_than_the_process_may_have_handles_is_listed(tmp_path):
    import resource

    folder = tmp_path
    for _ in range(60):
        folder = folder / "d"
        folder.mkdir()
        (folder / "x.txt").write_text("x")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_handles() + 20, hard))
    try:
        assert len(list(list_documents(tmp_path))) == 60
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_listing_that_is_left_early_leaves_no_handle_open(top):
    before = open_handles()
    for _ in range(3):
        listing = list_documents(top / "in")
        next(listing)
        listing.close()
    assert open_handles() == before


# stamps


def test_the_stamp_is_that_of_what_was_read(top):
    """A folder is swapped for another and put back: its files keep size, times and inode."""
    new = top / "new"
    (top / "in/m/deep").rename(new)
    (top / "in/m/deep").mkdir()
    (top / "in/m/deep/b.txt").write_text("of another version")
    (listed,) = list_documents(top / "in/m")
    (top / "in/m/deep").rename(top / "old")
    new.rename(top / "in/m/deep")
    raw, stamp = fetch(listed, MAX)
    (listed_now,) = list_documents(top / "in/m")
    assert raw.decode() == INSIDE
    assert stamp == listed_now.stamp != listed.stamp


def test_a_file_that_is_written_to_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("first half, ")
    (listed,) = list_documents(path)
    fstat, looks = os.fstat, iter(range(100))

    def meanwhile(handle: int) -> os.stat_result:
        found = fstat(handle)
        # The size is looked at before and after reading; a writer strikes between the two of the first try.
        if next(looks) == 1 + 1:
            path.write_text("first half, second half")
            found = fstat(handle)
        return found

    monkeypatch.setattr("os.fstat", meanwhile)
    raw, stamp = fetch(listed, MAX)
    monkeypatch.undo()
    (listed_now,) = list_documents(path)
    assert raw.decode() == "first half, second half"
    assert stamp == listed_now.stamp


@pytest.mark.parametrize(("writes", "reads"), [(0, "0"), (1, "1"), (2, "2"), (3, None)])
def test_an_object_that_is_overwritten_while_it_is_read_is_read_again_and_at_last_left_to_a_retry(
    monkeypatch, writes, reads
):
    path = UPath(f"memory://bucket-{uuid.uuid4().hex}/a.txt")
    path.write_text("0")
    (listed,) = list_documents(path)
    left = iter(range(1, writes + 1))

    def read_and_overwrite(file: MemoryFile, size: int) -> bytes:
        raw = file.getvalue()
        if (number := next(left, None)) is not None:
            path.fs.pipe_file(path.path, str(number).encode())
        return raw

    monkeypatch.setattr(MemoryFile, "read", read_and_overwrite)
    if reads is None:
        with pytest.raises(OSError, match="overwritten while it was read"):
            fetch(listed, MAX)
    else:
        raw, stamp = fetch(listed, MAX)
        (listed_now,) = list_documents(path)
        assert raw.decode() == reads
        assert stamp == listed_now.stamp


def test_a_table_in_a_store_that_is_overwritten_while_it_is_read_ends_the_listing(monkeypatch):
    path = UPath(f"memory://bucket-{uuid.uuid4().hex}/rows.jsonl")
    path.write_text('{"id": 1}\n')
    listing = list_documents(path)
    assert next(listing).id == "1"
    path.write_text('{"id": 2}\n')
    with pytest.raises(OSError, match="overwritten while it was read"):
        next(listing)
