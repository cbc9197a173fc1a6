"""The files in archives are documents of their own, within bounds."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from airflow_llm_provider.documents.document import Document, Rejected
from airflow_llm_provider.documents.reader import read
from airflow_llm_provider.documents.readers import archive
from airflow_llm_provider.documents.sources import list_documents
from airflow_llm_provider.options import Reading
from tests.support import office


def tarred(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as made:
        for name, raw in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            made.addfile(info, io.BytesIO(raw))
    return out.getvalue()


def listed(folder: Path, raw: bytes, name: str = "o.zip", **reading: Any) -> list[Document | Rejected]:
    (folder / name).write_bytes(raw)
    return list(list_documents(folder / name, reading=Reading(**reading)))


def texts(found: list[Document | Rejected]) -> dict[str, str | None]:
    return {item.id: text_or_reason(item) for item in found}


def text_or_reason(item: Document | Rejected) -> str | None:
    try:
        return read(item).text if isinstance(item, Document) else item.reason
    except archive.Unreadable as error:
        return error.reason


WORD = office.docx(office.p("word"))
FILES = {"a.txt": b"first", "x/b.md": b"second"}


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("o.zip", office.zipped(FILES)),
        ("o.tar", tarred(FILES)),
        ("o.tgz", tarred(FILES, "w:gz")),
        ("o.tar.gz", tarred(FILES, "w:gz")),
        ("o.tar.bz2", tarred(FILES, "w:bz2")),
        ("o.txz", tarred(FILES, "w:xz")),
    ],
)
def test_files_in_an_archive_are_documents_named_behind_it(tmp_path, name, raw):
    found = listed(tmp_path, raw, name)
    assert texts(found) == {f"{name}!a.txt": "first", f"{name}!x/b.md": "second"}
    assert [item.uri for item in found] == [f"{tmp_path / name}!a.txt", f"{tmp_path / name}!x/b.md"]


@pytest.mark.parametrize("pack", [gzip, bz2, lzma])
def test_a_packed_file_is_a_document(tmp_path, pack):
    suffix = {gzip: "gz", bz2: "bz2", lzma: "xz"}[pack]
    found = listed(tmp_path, pack.compress(b"text"), f"n.txt.{suffix}")
    assert texts(found) == {f"n.txt.{suffix}!n.txt": "text"}


def test_tables_and_archives_and_office_files_within_are_read_as_what_they_are(tmp_path):
    inner = office.zipped({"deep.txt": "deep", "table.csv": "id;t\n1;x\n"})
    raw = office.zipped(
        {
            "a.xls": office.xls(),
            "i/inner.zip": inner,
            "c.csv": "id,t\n1,x\n",
            "w.docx": office.docx(office.p("word")),
        }
    )
    found = texts(listed(tmp_path, raw))
    assert found.pop("o.zip!a.xls").startswith("Sheet: Umsätze")
    assert found == {
        "o.zip!i/inner.zip!deep.txt": "deep",
        "o.zip!i/inner.zip!table.csv#1": '{"id":"1","t":"x"}',
        "o.zip!c.csv#1": '{"id":"1","t":"x"}',
        "o.zip!w.docx": "word",
    }


def test_the_stamp_of_a_file_in_an_archive_is_that_of_its_content(tmp_path):
    one = listed(tmp_path, office.zipped({"a.txt": "same", "b.txt": "old"}))
    two = listed(tmp_path, tarred({"b.txt": b"new", "a.txt": b"same"}), "o.zip")
    stamps = [{item.id: item.stamp for item in found} for found in (one, two)]
    assert stamps[0]["o.zip!a.txt"] == stamps[1]["o.zip!a.txt"]
    assert stamps[0]["o.zip!b.txt"] != stamps[1]["o.zip!b.txt"]


def test_hidden_files_links_and_other_formats_are_left_out_and_counted(tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        for name in ("a.txt", ".b.txt", "__MACOSX/a.txt", "x/.git/c.txt", "p.exe", "folder/", "noending"):
            made.writestr(name, "text")
        link = zipfile.ZipInfo("link.txt")
        link.external_attr = 0o120777 << 16
        made.writestr(link, "/etc/passwd")
    (tmp_path / "o.zip").write_bytes(out.getvalue())
    skipped = Counter()
    found = list(list_documents(tmp_path, skipped=skipped))
    assert [item.id for item in found] == ["o.zip!a.txt", "o.zip!noending"]
    assert skipped == {"exe": 1}
    made = tarred({"a.txt": b"x"})
    with tarfile.open(fileobj=io.BytesIO(made)) as opened:
        info = opened.getmember("a.txt")
    info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/passwd", 0
    linked = io.BytesIO()
    with tarfile.open(fileobj=linked, mode="w") as opened:
        opened.addfile(info)
    assert listed(tmp_path, linked.getvalue(), "l.tar") == []


@pytest.mark.parametrize("name", ["../../etc/passwd.txt", "/etc/passwd.txt", "C:\\x.txt"])
def test_a_name_that_leads_out_of_the_archive_is_a_name_only(tmp_path, name):
    (found,) = listed(tmp_path, office.zipped({name: "text"}))
    assert found.path is None
    assert read(found).text == "text"


def test_one_file_that_cannot_be_unpacked_does_not_cost_the_others(tmp_path):
    raw = bytearray(office.zipped({"a.txt": "first text", "b.txt": "second text"}, stored=("a.txt", "b.txt")))
    raw[raw.index(b"first")] ^= 1  # its checksum is wrong
    assert texts(listed(tmp_path, bytes(raw))) == {"o.zip!a.txt": "unreadable", "o.zip!b.txt": "second text"}
    found = texts(listed(tmp_path, office.zipped({"a.txt": "x" * 100, "b.txt": "short"}), max_bytes=90))
    assert found == {"o.zip!a.txt": "too_large", "o.zip!b.txt": "short"}


def test_a_broken_archive_within_does_not_cost_the_others(tmp_path):
    found = texts(listed(tmp_path, office.zipped({"a.txt": "text", "i.zip": b"PK\x03\x04 broken"})))
    assert found == {"o.zip!a.txt": "text", "o.zip!i.zip": "unreadable"}


def test_an_archive_with_a_password_or_a_fault_is_one_dead_letter(tmp_path):
    raw = bytearray(office.zipped({"a.txt": "x", "b.txt": "x"}))
    for at in (raw.index(b"PK\x01\x02") + 8, raw.rindex(b"PK\x01\x02") + 8):
        raw[at] |= 1
    (found,) = listed(tmp_path, bytes(raw))
    assert (found.id, found.reason) == ("o.zip", "unreadable")
    assert "password" in found.message
    for broken in (b"PK\x03\x04", b"", b"\x1f\x8b broken", b"x" * 2000, office.zipped(FILES)[:-30]):
        (found,) = listed(tmp_path, broken)
        assert (found.id, found.reason) == ("o.zip", "unreadable")


def test_archives_are_bounded_in_number_size_and_depth(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    with pytest.raises(archive.Unreadable, match="over 3 files"):
        archive.list_members(office.zipped({f"{n}.txt": "x" for n in range(4)}), "o.zip", False)
    monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(archive.Unreadable, match="unpacks to 1,200"):
        archive.list_members(office.zipped({f"{n}.txt": "x" * 400 for n in range(3)}), "o.zip", False)
    nested = office.zipped({"a.txt": "x"})
    for _ in range(archive.MAX_DEPTH - 1):
        nested = office.zipped({"inner.zip": nested})
    assert [member.name for member in archive.list_members(nested, "o.zip", False)] == [
        "inner.zip!inner.zip!a.txt"
    ]
    with pytest.raises(archive.Unreadable, match="over 3 deep"):
        archive.list_members(office.zipped({"inner.zip": nested}), "o.zip", False)


def test_a_zip_bomb_is_one_dead_letter(tmp_path):
    zeros = bytes(20_000_000)
    bomb = office.zipped({"a.txt": zeros})
    for name, raw in (
        ("o.zip", bomb),
        ("n.zip", office.zipped({"i.zip": bomb})),
        ("g.txt.gz", gzip.compress(zeros)),
    ):
        (found,) = listed(tmp_path, raw, name)
        assert (found.id, found.reason) == (name, "too_large")
        assert "zip bomb" in found.message


def test_attachments_are_documents_of_their_own_where_the_author_says_so(tmp_path):
    files = {"n.txt": b"noted", "t.csv": b"id,t\n1,x\n", "z.zip": office.zipped(FILES)}
    for name, raw in (("m.eml", office.eml(files)), ("m.msg", office.msg("Offer", "text", files))):
        found = texts(listed(tmp_path, raw, name, attachments="documents"))
        assert "Attachment: n.txt\n" in found.pop(name)
        assert found == {
            f"{name}!n.txt": "noted",
            f"{name}!t.csv#1": '{"id":"1","t":"x"}',
            f"{name}!z.zip!a.txt": "first",
            f"{name}!z.zip!x/b.md": "second",
        }
        (one,) = listed(tmp_path, raw, name)
        assert "Attachment: n.txt\nnoted" in read(one).text


def test_attachments_of_mails_in_an_archive_are_documents_too(tmp_path):
    raw = office.zipped({"m.eml": office.eml({"n.txt": b"noted"})})
    found = texts(listed(tmp_path, raw, attachments="documents"))
    assert list(found) == ["o.zip!m.eml", "o.zip!m.eml!n.txt"]
    assert found["o.zip!m.eml!n.txt"] == "noted"


def test_a_broken_mail_is_one_dead_letter(tmp_path):
    found = listed(tmp_path, b"no mail", "m.eml", attachments="documents")
    assert texts(found) == {"m.eml": "unreadable"}


def test_an_attachment_that_is_a_bomb_is_a_dead_letter_beside_its_mail(tmp_path):
    mail = office.eml({"z.zip": office.zipped({"a.txt": bytes(20_000_000)})})
    found = listed(tmp_path, mail, "m.eml", attachments="documents")
    assert [(item.id, getattr(item, "reason", None)) for item in found] == [
        ("m.eml", None),
        ("m.eml!attachments", "too_large"),
    ]


def test_a_name_with_a_dot_for_the_folder_is_not_hidden(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("./dot.txt", "only dot")
        archive.writestr("./.hidden.txt", "not this")
    assert [item.id for item in list_documents(tmp_path / "d.zip")] == ["d.zip!./dot.txt"]
