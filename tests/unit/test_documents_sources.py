"""What list_documents finds, in which order, under which ids, and what it refuses."""

from __future__ import annotations

import json
import os
import random
import time
import tracemalloc
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from airflow_llm_provider.documents.opening import object_stamp
from airflow_llm_provider.documents.sources import (
    Document,
    NoSuchDocuments,
    OutsideRoots,
    Rejected,
    list_documents,
)
from airflow_llm_provider.options import Reading


def ids(found: Any) -> list[str]:
    return [item.id for item in found]


def reasons(found: Any) -> list[tuple[str, str]]:
    return [(item.id, item.reason if isinstance(item, Rejected) else "") for item in found]


def write(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}")
    return folder


@pytest.fixture
def bucket() -> Iterator[UPath]:
    root = UPath(f"memory://bucket-{uuid.uuid4().hex}")
    yield root
    if root.exists():
        root.fs.rm(root.path, recursive=True)


# files


def test_a_folder_is_every_supported_file_below_it_sorted_by_path(tmp_path):
    write(tmp_path, "b.txt", "a/z.md", "a/b/c.html", "a-1.txt", "skip.exe", "LICENSE", ".hid/x.txt", ".h.txt")
    write(tmp_path, "a/x.EXE", "v1.2 final", "y.mp4")
    skipped = Counter()
    found = list(list_documents(tmp_path, skipped=skipped))
    assert ids(found) == ["LICENSE", "a-1.txt", "a/b/c.html", "a/z.md", "b.txt", "v1.2 final"]
    assert skipped == {"exe": 2, "mp4": 1}
    assert ids(found) == sorted(ids(found))
    assert found[1].uri == str(tmp_path / "a-1.txt")


def test_ids_do_not_depend_on_where_the_folder_lies(tmp_path):
    one, two = write(tmp_path / "one", "x/a.txt"), write(tmp_path / "two/deep", "x/a.txt")
    assert ids(list_documents(one)) == ids(list_documents(str(two))) == ["x/a.txt"]


def test_the_stamp_changes_when_a_file_does_and_only_then(tmp_path):
    write(tmp_path, "a.txt")
    (first,) = list_documents(tmp_path)
    assert list(list_documents(tmp_path)) == [first]
    os.utime(tmp_path / "a.txt", ns=(1, 1))
    (second,) = list_documents(tmp_path)
    assert first.stamp != second.stamp
    assert second.stamp.startswith(f"{first.size}:1:")


def test_a_file_rewritten_under_its_old_size_and_time_has_another_stamp(tmp_path):
    path = tmp_path / "a.txt"
    stamps = []
    for text in ("$100.00", "$999.00"):
        path.write_text(text)
        os.utime(path, (315532800, 315532800))
        (found,) = list_documents(tmp_path)
        stamps.append(found.stamp)
        time.sleep(0.02)  # longer than the system's clock of changes ticks
    assert stamps[0] != stamps[1]


def test_a_pattern_names_other_files_of_a_folder(tmp_path):
    write(tmp_path, "x/LICENSE", "x/NOTICE.txt", "x/a.txt")
    assert ids(list_documents(tmp_path, reading=Reading(pattern=["LICENSE*", "NOTICE*"]))) == [
        "x/LICENSE",
        "x/NOTICE.txt",
    ]


def test_not_recursive_means_the_folder_itself(tmp_path):
    write(tmp_path, "a.txt", "x/b.txt")
    assert ids(list_documents(tmp_path, recursive=False)) == ["a.txt"]


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("*.txt", ["a.txt"]),
        ("**/*.txt", ["a.txt", "x/b.txt", "x/y/c.txt"]),
        ("x/*/c.*", ["y/c.txt"]),
        ("x/**", ["LICENSE", "b.txt", "y/c.txt"]),
        ("[ab].txt", ["a.txt"]),
        ("nothing-*", []),
    ],
)
def test_a_glob_takes_what_it_matches_with_ids_below_its_fixed_part(tmp_path, glob, expected):
    write(tmp_path, "a.txt", "x/b.txt", "x/y/c.txt", "x/LICENSE", "x/.hidden.txt")
    assert ids(list_documents(f"{tmp_path}/{glob}")) == expected


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path):
    write(tmp_path, "a[1].txt")
    assert ids(list_documents(tmp_path / "a[1].txt")) == ["a[1].txt"]


def test_a_single_file_is_read_whatever_its_name(tmp_path):
    write(tmp_path, "LICENSE")
    assert ids(list_documents(tmp_path / "LICENSE")) == ["LICENSE"]


def test_what_the_author_named_must_exist_and_an_empty_folder_is_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    assert list(list_documents(tmp_path / "empty")) == []
    for missing in ("gone", "gone.txt", "gone/*.txt"):
        with pytest.raises(NoSuchDocuments, match="gone"):
            list_documents(tmp_path / missing)


@pytest.mark.parametrize(
    "bad",
    ["round.txt", "x" * 300 + ".txt", "a\0b.txt", "\ud800.txt", "**.txt", "foo://x", "", "gone/\udcff.txt"],
)
def test_a_bad_path_in_a_list_costs_the_others_nothing(tmp_path, monkeypatch, bad):
    write(tmp_path, "a.txt", "b.txt")
    (tmp_path / "round.txt").symlink_to("round.txt")
    monkeypatch.chdir(tmp_path)
    first, rejected, last = list_documents(["a.txt", bad, "b.txt"], reading=Reading(strings="path"))
    assert (first.id, rejected.reason, last.id) == ("a.txt", "unreadable", "b.txt")
    assert rejected.message


def test_an_impossible_path_is_not_taken_for_the_working_folder(tmp_path, monkeypatch):
    write(tmp_path, "a.txt")
    monkeypatch.chdir(tmp_path)
    assert ids(list_documents(".")) == ["a.txt"]
    for missing in ("", "x" * 300):
        with pytest.raises(NoSuchDocuments):
            list_documents(missing)


def test_a_listed_folder_that_may_not_be_opened_costs_the_others_nothing(tmp_path, monkeypatch):
    locked = write(tmp_path, "a.txt", "locked/b.txt") / "locked"
    scandir = os.scandir

    def guarded(handle: int) -> Any:  # chmod does not stop root, who runs CI
        if os.fstat(handle).st_ino == locked.stat().st_ino:
            raise PermissionError(13, "Permission denied")
        return scandir(handle)

    monkeypatch.setattr("os.scandir", guarded)
    rejected, found = list_documents([locked, tmp_path / "a.txt"])
    assert (rejected.reason, found.path) == ("unreadable", str(tmp_path / "a.txt"))


def test_a_table_that_breaks_off_midway_ends_the_listing_so_that_a_retry_reads_it_whole(bucket, monkeypatch):
    (bucket / "rows.jsonl").write_text('{"id":1}\n' * 100_000)
    (found, *_), listing = (lambda it: ([next(it)], it))(list_documents(bucket / "rows.jsonl"))
    assert found.id == "1"

    def broken(*args: Any) -> bytes:
        raise PermissionError("the token has expired")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFile.read", broken)
    with pytest.raises(PermissionError):
        list(listing)


def test_a_list_of_paths_keeps_them_as_written(tmp_path, monkeypatch):
    write(tmp_path, "a.txt", "x/b.txt", "x/c.txt", "y/d.txt")
    monkeypatch.chdir(tmp_path)
    found = list(list_documents([Path("./a.txt"), Path("x"), Path("y/*.txt"), Path("gone.txt")]))
    assert reasons(found) == [
        ("a.txt", ""),
        ("x/b.txt", ""),
        ("x/c.txt", ""),
        ("y/d.txt", ""),
        ("gone.txt", "unreadable"),
    ]


def test_one_file_listed_twice_is_one_document(tmp_path):
    write(tmp_path, "a.txt")
    found = list(list_documents([tmp_path / "a.txt", tmp_path]))
    assert [item.reason for item in found if isinstance(item, Rejected)] == ["duplicate_id"]
    assert len(found) == 2


def test_a_file_name_that_is_not_utf8_is_rejected_and_the_others_unharmed(tmp_path):
    write(tmp_path, "b.txt")
    with open(os.fsencode(tmp_path) + b"/a\xff.txt", "w") as file:
        file.write("x")
    assert reasons(list_documents(tmp_path)) == [("a\\xff.txt", "unreadable"), ("b.txt", "")]


def test_a_folder_that_may_not_be_opened_costs_the_others_nothing(tmp_path, monkeypatch):
    locked = write(tmp_path, "a.txt", "locked/b.txt", "z.txt") / "locked"
    scandir = os.scandir

    def guarded(handle: int) -> Any:  # chmod does not stop root, who runs CI
        if os.fstat(handle).st_ino == locked.stat().st_ino:
            raise PermissionError(13, "Permission denied")
        return scandir(handle)

    monkeypatch.setattr("os.scandir", guarded)
    assert reasons(list_documents(tmp_path)) == [("a.txt", ""), ("locked", "unreadable"), ("z.txt", "")]


def test_limit_stops_after_so_many_documents(tmp_path):
    write(tmp_path, *(f"{n}.txt" for n in range(9)))
    assert len(list(list_documents(tmp_path, limit=3))) == 3
    assert list(list_documents(tmp_path, limit=0)) == []


# roots


def test_what_the_author_named_outside_the_roots_is_an_error_that_says_the_cure(tmp_path):
    write(tmp_path, "in/a.txt", "in-2/a.txt", "b.txt")
    roots = [tmp_path / "in"]
    assert ids(list_documents(tmp_path / "in", roots=roots)) == ["a.txt"]
    outside = ["b.txt", "*.txt", "in-2", "in/../b.txt", "in/../in-2/*.txt"]
    for path in outside:
        with pytest.raises(OutsideRoots, match=r"(?s)in'.*roots=.*\[llm\]"):
            list_documents(f"{tmp_path}/{path}", roots=roots)
    with pytest.raises(OutsideRoots, match="none"):
        list_documents(tmp_path / "in", roots=[])


def test_a_listed_path_outside_the_roots_is_rejected_and_the_others_unharmed(tmp_path):
    write(tmp_path, "in/a.txt", "b.txt")
    found = list_documents([tmp_path / "b.txt", tmp_path / "in/a.txt"], roots=[tmp_path / "in"])
    assert [item.reason if isinstance(item, Rejected) else "" for item in found] == ["outside_root", ""]


def test_links_are_followed_only_where_the_roots_reach(tmp_path):
    write(tmp_path, "in/a.txt", "in/sub/b.txt", "secret/s.txt", "also/c.txt")
    (tmp_path / "in/leak.txt").symlink_to(tmp_path / "secret/s.txt")
    (tmp_path / "in/leaks").symlink_to(tmp_path / "secret")
    (tmp_path / "in/more").symlink_to(tmp_path / "also")
    (tmp_path / "in/same.txt").symlink_to("a.txt")
    (tmp_path / "in/gone.txt").symlink_to("nowhere.txt")
    (tmp_path / "in/sub/round").symlink_to(tmp_path / "in")
    (tmp_path / "in/self.txt").symlink_to("self.txt")
    expected = [
        ("a.txt", ""),
        ("gone.txt", "unreadable"),
        ("leak.txt", "outside_root"),
        ("leaks", "outside_root"),
        ("more/c.txt", ""),
        ("same.txt", ""),
        ("self.txt", "unreadable"),
        ("sub/b.txt", ""),
    ]
    assert reasons(list_documents(tmp_path / "in", roots=[tmp_path / "in", tmp_path / "also"])) == expected
    # Without roots the folder given is the root.
    unrestricted = dict(reasons(list_documents(tmp_path / "in")))
    assert unrestricted["leak.txt"] == unrestricted["more"] == "outside_root"


def test_a_link_named_by_the_author_is_judged_by_where_it_leads(tmp_path):
    write(tmp_path, "in/a.txt", "secret/s.txt")
    (tmp_path / "in/leak.txt").symlink_to(tmp_path / "secret/s.txt")
    with pytest.raises(OutsideRoots):
        list_documents(tmp_path / "in/leak.txt", roots=[tmp_path / "in"])


def test_links_between_folders_do_not_multiply_the_files(tmp_path):
    write(tmp_path, *(f"d{n}/x.txt" for n in range(20)))
    for n in range(19):
        for link in ("a", "b"):
            (tmp_path / f"d{n}/{link}").symlink_to(tmp_path / f"d{n + 1}")
    assert len(list(list_documents(tmp_path))) == 20


# object storage


def test_object_storage_is_listed_like_a_folder(bucket):
    for name in ("b.txt", "a/z.md", "a-1.txt", "skip.exe", ".hid/x.txt"):
        (bucket / "in" / name).write_text(name)
    found = list(list_documents(bucket / "in"))
    assert ids(found) == ["a-1.txt", "a/z.md", "b.txt"]
    assert found[0].uri == f"{bucket}/in/a-1.txt"
    assert found[0].size == 7
    assert found[0].stamp.startswith("7:")
    assert ids(list_documents(f"{bucket}/in/**/*.md")) == ["a/z.md"]
    assert ids(list_documents(f"{bucket}/in/*.txt")) == ["a-1.txt", "b.txt"]
    assert ids(list_documents(str(bucket / "in/b.txt"))) == ["b.txt"]


def test_what_is_missing_in_object_storage_is_an_error_but_an_empty_glob_is_not(bucket):
    (bucket / "a.txt").write_text("a")
    with pytest.raises(NoSuchDocuments, match="nowhere"):
        list_documents(bucket / "nowhere")
    assert list(list_documents(f"{bucket}/nowhere/")) == []
    for missing in ("memory://no-such-bucket/", "memory://no-such-bucket/in/", "memory://no-such-bucket/*"):
        with pytest.raises(NoSuchDocuments, match="no-such-bucket"):
            list_documents(missing)
    assert list(list_documents(f"{bucket}/nowhere/*")) == []


@pytest.mark.parametrize("below", ["", "/**/*.txt"])
def test_a_folder_deleted_from_object_storage_meanwhile_is_named_and_costs_the_others_nothing(bucket, below):
    for folder in "amz":
        for n in range(3):
            (bucket / folder / f"{n}.txt").write_text("x")
    listing = list_documents(f"{bucket}{below}")
    first = next(listing)
    bucket.fs.rm((bucket / "m").path, recursive=True)
    found = [first, *listing]
    assert reasons(found) == [
        *((f"a/{n}.txt", "") for n in range(3)),
        ("m", "unreadable"),
        *((f"z/{n}.txt", "") for n in range(3)),
    ]
    assert "deleted after it was listed" in found[3].message


def test_an_etag_is_the_stamp_where_there_is_one():
    assert object_stamp({"ETag": '"abc"', "size": 1, "LastModified": "x"}) == '"abc"'
    assert object_stamp({"size": 1, "LastModified": "x"}) == "1:x"
    assert object_stamp({"size": 1}) is None


@pytest.mark.parametrize(
    ("root", "inside"),
    [
        ("{bucket}/in", True),
        ("{bucket}/in/", True),
        ("{bucket}", True),
        ("{bucket}/i", False),
        ("{bucket}/in/x", False),
        ("memory://other/in", False),
        ("s3://bucket/in", False),
    ],
)
def test_url_roots_are_compared_part_by_part(bucket, root, inside):
    (bucket / "in/a.txt").write_text("x")
    roots = [root.format(bucket=bucket)]
    if inside:
        assert ids(list_documents(f"{bucket}/in", roots=roots)) == ["a.txt"]
    else:
        with pytest.raises(OutsideRoots):
            list_documents(f"{bucket}/in", roots=roots)


def test_dots_do_not_lead_out_of_a_url_root(bucket):
    for path in ("in/../secret/a.txt", "in/../../bucket/a.txt"):
        (found,) = list_documents([UPath(f"{bucket}/{path}")], roots=[f"{bucket}/in"])
        assert found.reason == "outside_root"


# rows


def test_rows_are_documents_with_their_own_ids_and_canonical_text():
    rows = [{"id": 7, "b": 1, "a": "ä"}, {"id": "x", "a": {"n": [1, None]}}]
    found = list(list_documents(rows))
    assert ids(found) == ["7", "x"]
    assert [item.text for item in found] == ['{"a":"ä","b":1,"id":7}', '{"a":{"n":[1,null]},"id":"x"}']
    assert all(item.stamp is None and item.uri is None for item in found)


def test_a_text_field_is_the_text_byte_for_byte():
    text = "  {{ conn.x.password }}\r\n\ttail "
    (found,) = list_documents(
        [{"key": "k", "body": text}], reading=Reading(id_field="key", text_field="body")
    )
    assert (found.id, found.text) == ("k", text)


def test_rows_without_ids_are_named_by_their_content_so_equal_rows_are_one_document():
    first, again, other = list_documents([{"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 2}])
    assert again.reason == "duplicate_id"
    assert again.id == first.id != other.id
    assert len(first.id) == 32


def test_strings_in_a_list_are_texts_by_type_never_by_guess(tmp_path):
    write(tmp_path, "secret.txt")
    found = list(list_documents(["first text", "see the notes.txt for more", str(tmp_path / "secret.txt")]))
    assert [item.text for item in found[:2]] == ["first text", "see the notes.txt for more"]
    assert found[2].reason == "unreadable"
    assert "strings='path'" in found[2].message
    (as_path,) = list_documents([str(tmp_path / "secret.txt")], reading=Reading(strings="path"))
    assert as_path.path == str(tmp_path / "secret.txt")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (7, "unreadable"),
        (None, "unreadable"),
        (["a"], "unreadable"),
        ({"id": None}, "unreadable"),
        ({"id": ""}, "unreadable"),
        ({"id": True}, "unreadable"),
        ({"id": {"a": 1}}, "unreadable"),
        ({"id": "\ud800"}, "unreadable"),
        ({"id": "x" * 2000}, "unreadable"),
        ({"a": object()}, "unreadable"),
        ({"a": b"bytes"}, "unreadable"),
    ],
)
def test_a_row_that_cannot_be_a_document_is_rejected_and_the_others_unharmed(row, reason):
    before, bad, after = list_documents([{"id": 1}, row, {"id": 2}])
    assert (before.id, bad.reason, after.id) == ("1", reason, "2")
    assert "item 2" in bad.message


def test_an_id_field_that_was_asked_for_must_be_there():
    found, missing = list_documents([{"nr": 1, "t": "x"}, {"t": "x"}], reading=Reading(id_field="nr"))
    assert (found.id, missing.reason) == ("1", "unreadable")
    assert "'nr'" in missing.message


def test_a_missing_or_wrong_text_field_is_named():
    rows = [{"id": 1}, {"id": 2, "t": None}, {"id": 3, "t": 4}, {"id": 4, "t": "x"}]
    found = list(list_documents(rows, reading=Reading(text_field="t")))
    assert reasons(found) == [("1", "unreadable"), ("2", "empty"), ("3", "unreadable"), ("4", "")]
    assert "'t'" in found[0].message


def test_rows_with_large_integers_dates_and_decimals_are_written_as_json():
    large, small = list_documents([{"n": n, "d": Decimal("1.10"), "t": date(2026, 1, 2)} for n in (2**70, 7)])
    assert large.text == '{"d":"1.10","n":1180591620717411303424,"t":"2026-01-02"}'
    assert small.text == '{"d":"1.10","n":7,"t":"2026-01-02"}'


@pytest.mark.parametrize("wrong", [{"id": 1}, b"bytes", 7, None])
def test_what_is_neither_path_nor_list_is_a_type_error(wrong):
    with pytest.raises(TypeError, match="documents="):
        list_documents(wrong)


# tables


def test_a_jsonl_file_is_one_document_a_line_and_bad_lines_cost_the_others_nothing(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"id": "a", "t": "1"}\n\n'
        b'{"id": "b", broken\n'
        b'{"id": "c", "t": "\xff"}\r\n'
        b"[1]\n"
        b'"just text"\n'
        b'{"id": "a", "t": "2"}\n'
        b'{"id": "d", "t": "4"}'
    )
    found = list(list_documents(path))
    assert [(item.id, getattr(item, "reason", "")) for item in found if item.id in "abcd"] == [
        ("a", ""),
        ("a", "duplicate_id"),
        ("d", ""),
    ]
    rejected = {item.id: item.message for item in found if isinstance(item, Rejected)}
    assert set(rejected) == {"rows.jsonl line 3", "rows.jsonl line 4", "rows.jsonl line 5", "a"}
    assert found[0].uri == f"{path}#L1"
    assert found[-1].uri == f"{path}#L8"
    assert any(isinstance(item, Document) and item.text == "just text" for item in found)


def test_a_csv_file_is_one_document_a_row_and_bad_rows_cost_the_others_nothing(tmp_path):
    path = tmp_path / "rows.csv"
    long = "x" * 200_000  # past the csv module's own limit
    path.write_bytes(
        b'\xef\xbb\xbfid,t\r\na,"one\r\ntwo, ""q"""\r\nb\r\nc,\xff\r\n\r\nd,'
        + long.encode()
        + b"\r\ne,f,g\r\n"
    )
    found = list(list_documents(path, reading=Reading(text_field="t")))
    assert reasons(found) == [
        ("a", ""),
        ("rows.csv line 4", "unreadable"),
        ("rows.csv line 5", "unreadable"),
        ("d", ""),
        ("rows.csv line 8", "unreadable"),
    ]
    assert found[0].text == 'one\r\ntwo, "q"'
    assert found[3].text == long


def test_a_csv_header_with_a_column_twice_is_rejected_once(tmp_path):
    (tmp_path / "rows.csv").write_text("id,a,a\n1,2,3\n")
    (found,) = list_documents(tmp_path / "rows.csv")
    assert "names columns 2 and 3 alike" in found.message


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("id;text\n1;a\n2;b;c\n3\n", "Reading(delimiter=';')"),
        (" id, text\n1,a\n", "white space around the name of the column 'id'"),
    ],
)
def test_a_csv_header_that_is_read_wrong_is_rejected_once_before_its_rows_are_paid_for(tmp_path, table, says):
    (tmp_path / "rows.csv").write_text(table)
    (found,) = list_documents(tmp_path / "rows.csv")
    assert found.reason == "unreadable"
    assert says in found.message


def test_a_csv_file_has_the_id_field_that_was_asked_for(tmp_path):
    (tmp_path / "rows.csv").write_text("nr,text\n1,a;b\n2,c\n")
    assert ids(list_documents(tmp_path / "rows.csv", reading=Reading(id_field="nr"))) == ["1", "2"]
    assert len({len(name) for name in ids(list_documents(tmp_path / "rows.csv"))}) == 1
    (found,) = list_documents(tmp_path / "rows.csv", reading=Reading(id_field="number"))
    assert "no column 'number'" in found.message


@pytest.mark.parametrize(
    ("table", "delimiter"),
    [
        ("id;text\n1;a,b\n2;c,d\n", ";"),
        ("id\ttext\n1\ta,b\n", "\t"),
        ("id|text\n1|a\n", "|"),
        ("sep=;\nid;text\n1;a\n", ";"),
        ('"sep=|"\nid|text\n1|a\n', "|"),
        # Both give each row two cells; only one finds the id.
        ("id;price, net\n1;2,5\n2;3,5\n", ";"),
        # A line break and the other characters within quotes.
        ('id;text\n1;"a;\nb|,"\n2;c\n', ";"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_what_separates_the_cells_of_a_csv_file_is_found_and_said(
    tmp_path, caplog, table, delimiter, encoding
):
    (tmp_path / "rows.csv").write_bytes(table.encode(encoding))
    with caplog.at_level("INFO"):
        found = list(list_documents(tmp_path / "rows.csv"))
    assert [item.id for item in found][:2] == ["1", "2"][: len(found)]
    if "sep=" not in table:
        assert f"rows.csv is separated by {delimiter!r}." in caplog.text


def test_commas_are_not_said_and_a_given_delimiter_is_taken(tmp_path, caplog):
    (tmp_path / "rows.csv").write_text("id,t\n1,a;b\n")
    with caplog.at_level("INFO"):
        assert ids(list_documents(tmp_path / "rows.csv")) == ["1"]
    assert not caplog.records
    (tmp_path / "rows.csv").write_text("id#t\n1#a;b\n")
    assert ids(list_documents(tmp_path / "rows.csv", reading=Reading(delimiter="#"))) == ["1"]
    (tmp_path / "rows.tsv").write_text("id\tt\n7\ta;b\n")
    assert ids(list_documents(tmp_path / "rows.tsv")) == ["7"]


def test_a_csv_file_whose_first_rows_are_long_is_still_told(tmp_path):
    (tmp_path / "rows.csv").write_text("id;text\n" + "".join(f'{n};"{"x, " * 9_000}"\n' for n in range(9)))
    assert ids(list_documents(tmp_path / "rows.csv")) == [str(n) for n in range(9)]


def test_a_csv_file_of_one_column_is_read(tmp_path):
    (tmp_path / "rows.csv").write_text("text\na;b\n")
    (found,) = list_documents(tmp_path / "rows.csv", reading=Reading(text_field="text"))
    assert found.text == "a;b"


def test_integers_of_any_length_are_ids_and_texts_as_written(tmp_path):
    numbers = [123456789012345678901, 123456789012345678902, -(2**63) - 1, 2**64]
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"id":{n}}}\n' for n in numbers))
    found = list(list_documents(tmp_path / "rows.jsonl"))
    assert [(item.id, item.text) for item in found] == [(str(n), f'{{"id":{n}}}') for n in numbers]


@pytest.mark.parametrize("bad", ["NaN", "9" * 5000, "[" * 100_000])
def test_a_line_with_long_numbers_that_is_no_json_costs_the_others_nothing(tmp_path, bad):
    (tmp_path / "rows.jsonl").write_text(f'{{"id":1,"n":{bad},"m":{2**70}}}\n{{"id":2}}\n')
    assert reasons(list_documents(tmp_path / "rows.jsonl")) == [
        ("rows.jsonl line 1", "unreadable"),
        ("2", ""),
    ]


@pytest.mark.parametrize(
    ("codec", "told"),
    [
        *((codec, codec) for codec in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32")),
        *((codec, "utf-8") for codec in ("utf-8-sig", "utf-16", "utf-32")),
    ],
)
def test_tables_are_read_in_every_unicode_by_their_byte_order_mark(tmp_path, codec, told):
    (tmp_path / "rows.csv").write_bytes('id,t\n1,"ä\nĊ"\n'.encode(codec))
    (tmp_path / "rows.jsonl").write_bytes('{"id":2,"t":"öĊ"}\n\n{"id":3,"t":"a\u2028b"}\n'.encode(codec))
    found = list(list_documents(tmp_path, reading=Reading(text_field="t", encoding=told)))
    assert [item.text for item in found] == ["ä\nĊ", "öĊ", "a\u2028b"]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_what_is_not_valid_in_its_encoding_says_so(tmp_path, name):
    for raw, encoding in ((b"\xff,t\n", "utf-8"), ("id,t\n1,ä\n".encode("utf-16") + b"\0", "utf-16-le")):
        (tmp_path / name).write_bytes(raw)
        *_, last = list_documents(tmp_path / name)
        assert f"not valid {encoding};" in last.message


def test_tables_in_other_encodings_are_read_with_encoding(tmp_path):
    (tmp_path / "rows.csv").write_bytes("id,t\n1,ä\n".encode("cp1252"))
    (tmp_path / "rows.jsonl").write_bytes('{"id":2,"t":"ö"}\n'.encode("cp1252"))
    found = list_documents(tmp_path, reading=Reading(text_field="t", encoding="cp1252"))
    assert [item.text for item in found] == ["ä", "ö"]


def test_rows_of_several_tables_are_told_by_their_table(tmp_path):
    (tmp_path / "part-0.jsonl").write_text('{"id":1}\n{"id":2}\n{"id":2}\n"text"\n')
    (tmp_path / "part-1.csv").write_text("id,a\n1,x\n2,y\n")
    write(tmp_path, "z.txt")
    rows, text = list(list_documents(tmp_path))[:-1], "part-0.jsonl#" + ids(list_documents(["text"]))[0]
    assert reasons(rows) == [
        ("part-0.jsonl#1", ""),
        ("part-0.jsonl#2", ""),
        ("part-0.jsonl#2", "duplicate_id"),
        (text, ""),
        ("part-1.csv#1", ""),
        ("part-1.csv#2", ""),
    ]
    for several in (str(tmp_path / "*.csv"), [tmp_path / "part-1.csv"]):
        assert [item.id.rpartition("/")[2] for item in list_documents(several)] == [
            "part-1.csv#1",
            "part-1.csv#2",
        ]
    assert ids(list_documents(tmp_path / "part-1.csv")) == ["1", "2"]


def test_tables_in_object_storage_are_streamed(bucket):
    (bucket / "rows.jsonl").write_text('{"id":1}\n{"id":2}\n')
    (bucket / "rows.csv").write_text("id,t\n3,x\n")
    assert ids(list_documents(bucket / "rows.jsonl")) == ["1", "2"]
    assert ids(list_documents(str(bucket / "rows.csv"))) == ["3"]


def test_an_endless_line_is_too_large_and_the_next_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("airflow_llm_provider.documents.tables.MAX_FILE_BYTES", 1000)
    (tmp_path / "rows.jsonl").write_text('{"id":1,"t":"' + "x" * 5000 + '"}\n{"id":2}\n')
    assert reasons(list_documents(tmp_path / "rows.jsonl")) == [("rows.jsonl line 1", "too_large"), ("2", "")]


def test_a_file_that_is_no_table_inside_is_only_rejections(tmp_path):
    noise = random.Random(7)  # of other bytes, one in a hundred has a line that is a number, and so a row
    (tmp_path / "rows.jsonl").write_bytes(noise.randbytes(20_000))
    (tmp_path / "rows.csv").write_bytes(noise.randbytes(20_000))
    assert all(isinstance(item, Rejected) for item in list_documents(tmp_path))


def test_memory_stays_flat_over_many_rows(tmp_path):
    with open(tmp_path / "rows.jsonl", "w") as file:
        file.writelines(f'{{"id":{n},"t":"{"x" * 5_000}"}}\n' for n in range(2_000))
    tracemalloc.start()
    try:
        assert sum(1 for _ in list_documents(tmp_path / "rows.jsonl")) == 2_000
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_a_quote_that_is_never_closed_does_not_take_the_rows_after_it_in_silence(tmp_path):
    (tmp_path / "rows.csv").write_text('id,a\n1,x\n2,"abc\n3,def\n4,ghi\n')
    first, broken = list_documents(tmp_path / "rows.csv")
    assert first.id == "1"
    assert isinstance(broken, Rejected)
    assert "line 3: not valid CSV up to line 5" in broken.message


@pytest.mark.parametrize("header", ["Betrag, EUR;Menge, Stk", "Betrag,EUR;Menge,Stk"])
def test_where_two_delimiters_fit_the_comma_is_not_taken_and_the_log_says_so(tmp_path, caplog, header):
    (tmp_path / "rows.csv").write_text(f"{header}\n1,50;2,75\n3,10;4,20\n")
    found = [json.loads(item.text) for item in list_documents(tmp_path / "rows.csv")]
    assert [sorted(row.values()) for row in found] == [["1,50", "2,75"], ["3,10", "4,20"]]
    assert "may be separated by any of" in caplog.text
