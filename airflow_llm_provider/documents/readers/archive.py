"""The files in archives and mails, each of which is a document of its own."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from airflow_llm_provider.documents.content import Unreadable
from airflow_llm_provider.documents.document import suffix_of
from airflow_llm_provider.documents.opening import too_large
from airflow_llm_provider.documents.readers.kinds import ARCHIVE, MAIL, OUTLOOK_ITEM

SUFFIXES = ARCHIVE.suffixes
"""The suffixes of archives."""
MAIL_SUFFIXES = MAIL.suffixes | OUTLOOK_ITEM.suffixes
"""The suffixes of mails, whose attachments are documents of their own where the author says so."""
MAX_MEMBERS = 10_000
MAX_UNPACKED_BYTES = 1024 * 1024 * 1024
MAX_RATIO = 200
"""An archive that unpacks to so many times its size is a bomb; text and tables reach about 20."""
MAX_DEPTH = 3
"""Archives within archives, the outermost being the first."""

_RATIO_MATTERS_FROM_BYTES = 10_000_000
_UNPACK: dict[bytes, Callable[[io.BytesIO], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
_PIECE = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One file in an archive.

    Attributes:
        path: its position in the archive; of a file in an archive within, the positions on the way to it.
        name: as the archive has it, with forward slashes; of a file in an archive within, `inner.zip!name`.
        size: in bytes.
    """

    path: tuple[int, ...]
    name: str
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    """One file of one archive, and how to get its bytes."""

    name: str
    size: int
    read: Callable[[], bytes]


def list_members(raw: bytes, name: str, with_mails: bool) -> list[Member]:
    """Return the files in an archive or a mail, those of archives within it included.

    Folders, links, hidden files and the notes of the Mac's archiver are left out.

    Args:
        raw: the archive's bytes.
        name: the archive's file name.
        with_mails: whether the attachments of mails in it are files, too.

    Raises:
        Unreadable: it is broken or encrypted, or its files are too many, too large or nested too deep.
    """
    found: list[Member] = []
    for member in _walk(raw, name, with_mails, ()):
        found.append(member)
        if len(found) > MAX_MEMBERS:
            raise Unreadable("too_large", f"an archive of over {MAX_MEMBERS:,} files. Split it.")
    unpacked = sum(member.size for member in found)
    is_bomb = unpacked > MAX_RATIO * len(raw) and unpacked > _RATIO_MATTERS_FROM_BYTES
    if is_bomb or unpacked > MAX_UNPACKED_BYTES:
        raise Unreadable(
            "too_large",
            f"an archive of {len(raw):,} bytes that unpacks to {unpacked:,}: a zip bomb, or over the limits "
            f"({MAX_UNPACKED_BYTES:,} bytes, {MAX_RATIO} times its size). Unpack it, or split it.",
        )
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Unpacked:
    """The bytes of a file in an archive, or why there are none.

    Attributes:
        data: the bytes as base64.
        reason, message: of the dead letter; empty where there are bytes.
    """

    data: str = ""
    reason: str = ""
    message: str = ""


def unpack(raw: bytes, name: str, paths: list[list[int]], max_bytes: int) -> list[Unpacked]:
    """Return some files in an archive; one that cannot be unpacked does not keep the others from it.

    Args:
        raw: the archive's bytes.
        name: the archive's file name.
        paths: the files, as `list_members` gave them.
        max_bytes: a larger file is not unpacked.
    """
    # One archive after another is opened, and an inner one is kept open while its files are asked for.
    opened: dict[tuple[int, ...], list[_Entry]] = {(): list(_entries(raw, name))}
    found = []
    for path in paths:
        for depth in range(1, len(path)):
            outer, inner = tuple(path[: depth - 1]), tuple(path[:depth])
            if inner not in opened:
                opened = {key: value for key, value in opened.items() if key == inner[: len(key)]}
                entry = opened[outer][path[depth - 1]]
                opened[inner] = list(_entries(entry.read(), entry.name))
        found.append(_unpacked(opened[tuple(path[:-1])][path[-1]], max_bytes))
    return found


def _unpacked(entry: _Entry, max_bytes: int) -> Unpacked:
    if entry.size > max_bytes:
        return Unpacked(reason="too_large", message=str(too_large(entry.size, max_bytes)))
    try:
        return Unpacked(data=base64.b64encode(entry.read()).decode())
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - as in `_entries`
        return Unpacked(
            reason="unreadable", message=f"a file in an archive that is broken ({type(error).__name__})"
        )


def _walk(raw: bytes, name: str, with_mails: bool, above: tuple[int, ...]) -> Iterator[Member]:
    for index, entry in enumerate(_entries(raw, name)):
        path, suffix = (*above, index), suffix_of(entry.name)
        if any(
            part == "__MACOSX" or (part.startswith(".") and part not in (".", ".."))
            for part in entry.name.split("/")
        ):
            continue
        is_mail = with_mails and suffix in MAIL_SUFFIXES
        if suffix not in SUFFIXES:
            yield Member(path=path, name=entry.name, size=entry.size)
        if suffix in SUFFIXES or is_mail:
            if len(path) >= MAX_DEPTH:
                raise Unreadable(
                    "too_large", f"archives within archives, over {MAX_DEPTH} deep. Unpack them."
                )
            try:
                inner = list(_walk(entry.read(), entry.name, with_mails, path))
            except (Unreadable, ModuleNotFoundError) as error:
                if isinstance(error, Unreadable) and error.reason == "too_large":
                    raise
                # It is a document that will be a dead letter; a mail already is one.
                inner = []
                if not is_mail:
                    yield Member(path=path, name=entry.name, size=entry.size)
            for member in inner:
                yield Member(path=member.path, name=f"{entry.name}!{member.name}", size=member.size)


def _entries(raw: bytes, name: str) -> Iterator[_Entry]:
    """Yield the files of one archive or mail, without those of archives within it."""
    try:
        if suffix_of(name) in MAIL_SUFFIXES:
            yield from _attachments(raw, suffix_of(name))
        elif raw.startswith(b"PK"):
            yield from _zip_entries(raw)
        elif (
            unpacker := next((each for start, each in _UNPACK.items() if raw.startswith(start)), None)
        ) is not None:
            with unpacker(io.BytesIO(raw)) as stream:
                is_tar = stream.read(512)[257:262] == b"ustar" or suffix_of(name).startswith("t")
            if is_tar:
                yield from _tar_entries(raw)
            else:
                yield _packed_file(raw, name, unpacker)
        else:
            yield from _tar_entries(raw)
    except (Unreadable, MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:  # noqa: BLE001 - the archivers pass on errors of struct, zlib and the file's encoding
        raise Unreadable("unreadable", f"an archive that is broken ({type(error).__name__})") from None


def _zip_entries(raw: bytes) -> Iterator[_Entry]:
    archive = zipfile.ZipFile(io.BytesIO(raw))
    for info in archive.infolist():
        if info.is_dir() or _is_link(info):
            continue
        if info.flag_bits & 1:
            raise Unreadable("unreadable", "an archive with a password. Unpack it.")
        # What an archiver wrote in the code page of its country, and did not mark, cannot be told; it stays as it is.
        yield _Entry(name=info.filename, size=info.file_size, read=lambda info=info: archive.read(info))  # type: ignore[misc]


def _is_link(info: zipfile.ZipInfo) -> bool:
    return info.external_attr >> 28 == 0o12  # the type of file, as Unix has it


def _tar_entries(raw: bytes) -> Iterator[_Entry]:
    archive = tarfile.open(fileobj=io.BytesIO(raw))  # noqa: SIM115 - it is read from after this function has ended

    def read(member: tarfile.TarInfo) -> bytes:
        stream = archive.extractfile(member)
        assert stream is not None
        return stream.read()

    for member in archive:
        if member.isreg():
            name = member.name.removeprefix("./")
            yield _Entry(name=name, size=member.size, read=lambda member=member: read(member))  # type: ignore[misc]


def _packed_file(raw: bytes, name: str, unpacker: Callable[[io.BytesIO], Any]) -> _Entry:
    """Return the one file that was packed without an archive around it."""

    def read() -> bytes:
        with unpacker(io.BytesIO(raw)) as stream:
            return bytes(stream.read())

    size = 0
    with unpacker(io.BytesIO(raw)) as stream:
        # Nothing states the size. It is counted without keeping what is read, and no further than it may be.
        while size <= MAX_UNPACKED_BYTES and (piece := stream.read(_PIECE)):
            size += len(piece)
    return _Entry(name=name.rpartition("/")[2].rpartition(".")[0], size=size, read=read)


def _attachments(raw: bytes, suffix: str) -> Iterator[_Entry]:
    from airflow_llm_provider.documents.readers import mail

    found = mail.msg(raw) if suffix in OUTLOOK_ITEM.suffixes else mail.eml(raw)
    for attachment in found.attachments:
        if not attachment.is_small_picture:
            name = attachment.name.replace("/", "_")
            yield _Entry(name=name, size=len(attachment.raw), read=lambda each=attachment: each.raw)  # type: ignore[misc]
