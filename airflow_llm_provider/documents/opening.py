"""Opening what was listed: exactly that file or object and no other, and the stamp of what was read."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from stat import S_ISLNK, S_ISREG
from typing import IO, Any

from airflow_llm_provider.documents.content import Unreadable
from airflow_llm_provider.documents.document import Document

_ETAGS = ("ETag", "etag", "md5Hash", "content_md5", "md5", "crc32c", "generation", "VersionId")
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
STAMP_FIELDS = (*_ETAGS, *_TIMES)
"""The fields of a stored object's description that its stamp is made of."""

# s3fs sends If-Match with each GET of an open file. An S3 etag is a hash of the content, so comparing it before and
# after would miss an object that was put back meanwhile; the etags of other stores are new at each write.
_PINNED = frozenset({"s3", "s3a", "s3n"})
_TRIES = 3
# Faults of the machine or the store, which may pass, and not of the document.
_MAY_PASS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.EBUSY})

# O_PATH needs only the right to pass through a folder; systems without it need the right to list it.
_PASS_THROUGH = getattr(os, "O_PATH", os.O_RDONLY)
_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def file_stamp(stat: os.stat_result) -> str:
    """Return the stamp of a local file's state."""
    # ctime stands beside mtime because any program can set mtime, and only the system sets ctime.
    return f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"


def object_stamp(info: Mapping[str, Any]) -> str | None:
    """Return the stamp of a stored object's state; None where the store tells too little."""
    # An etag changes with the content. Where a store has none, size and time are the next best.
    for name in _ETAGS:
        if info.get(name) is not None:
            return str(info[name])
    for name in _TIMES:
        if info.get(name) is not None and info.get("size") is not None:
            return f"{info['size']}:{info[name]}"
    return None


def open_regular(real: str) -> IO[bytes]:
    """Open a local file for reading; refuse links, pipes and devices, in whatever place of the path they stand.

    Args:
        real: the path with its links resolved. Resolved and compared with the roots, it names one file; a link that
            takes the place of that file or of a folder above it would lead elsewhere, and is not followed.

    Raises:
        OSError: the path is not a regular file, or it cannot be opened.
    """
    # With O_NONBLOCK, opening a pipe does not wait for a writer.
    descriptor = _open_unlinked(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", real)
    return open(descriptor, "rb")


def open_folder(real: str) -> int:
    """Open a local folder for listing, as `open_regular` opens a file; return its handle."""
    return _open_unlinked(real, os.O_RDONLY | _FOLDER)


def stat_real(real: str) -> os.stat_result:
    """Return the status of what a path with its links resolved names; raise OSError where a link stands in it."""
    handle = _open_unlinked(real, _PASS_THROUGH | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        stat = os.fstat(handle)
    finally:
        os.close(handle)
    if S_ISLNK(stat.st_mode):  # in a circle of links, or since the path was resolved
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), real)
    return stat


def _open_unlinked(real: str, flags: int) -> int:
    """Open an absolute path folder by folder, each below the handle of the one before, and follow no link."""
    *folders, name = real.strip("/").split("/")
    folder = os.open("/", _PASS_THROUGH | _FOLDER)
    try:
        for part in folders:
            inner = os.open(part, _PASS_THROUGH | _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(name or ".", flags, dir_fd=folder)
    finally:
        os.close(folder)


def why_not_opened(error: OSError) -> str:
    """Return in words why a file or folder that was listed cannot be opened."""
    if isinstance(error, FileNotFoundError):
        return "it was deleted after it was listed"
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return "it, or a folder above it, was replaced by a link, or leads in a circle of links"
    return error.strerror or str(error)


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenDocument:
    """A file or object that is open for reading, and the state that it was opened in.

    Attributes:
        file: its bytes.
        size: in bytes; None where the store does not tell.
        stamp: of this state; None where the store does not tell.
        stamp_now: returns the stamp of the state that it is in by now.
    """

    file: IO[bytes]
    size: int | None
    stamp: str | None
    stamp_now: Callable[[], str | None]

    def require_unchanged(self) -> None:
        """Raise OSError (EBUSY) if it was written to since it was opened: what was read may be of two versions."""
        if self.stamp_now() != self.stamp:
            raise OSError(errno.EBUSY, "it was overwritten while it was read")


@contextmanager
def open_document(document: Document) -> Iterator[OpenDocument]:
    """Open a file or object that was listed.

    Raises:
        OSError: it cannot be opened.
    """
    if document.raw is not None:
        yield OpenDocument(
            file=io.BytesIO(document.raw),
            size=len(document.raw),
            stamp=document.stamp,
            stamp_now=lambda: document.stamp,
        )
        return
    assert document.path is not None, "a row is not opened"
    store, path = document.store, document.path
    if store is None:
        with open_regular(path) as file:
            handle = file.fileno()
            stat = os.fstat(handle)
            yield OpenDocument(
                file=file,
                size=stat.st_size,
                stamp=file_stamp(stat),
                stamp_now=lambda: file_stamp(os.fstat(handle)),
            )
        return
    fs = store.fs
    with closing(fs.open(path, "rb", cache_type="readahead")) as stream:
        # The description by which s3fs has opened it, where there is one; it is older than what is read.
        info = getattr(stream, "details", None) or fs.info(path)
        stamp = object_stamp(info)

        def stamp_now() -> str | None:
            return stamp if store.protocol in _PINNED else object_stamp(fs.info(path))

        yield OpenDocument(file=stream, size=info.get("size"), stamp=stamp, stamp_now=stamp_now)


def fetch(document: Document, max_bytes: int) -> tuple[bytes, str | None]:
    """Return the bytes of a file or object, and the stamp of the very state that was read.

    Args:
        document: as it was listed, with a path.
        max_bytes: a larger document is refused by its size, before it is read.

    Raises:
        Unreadable: the document cannot be asked about.
        OSError: reading failed for a reason that may pass, such as object storage that does not answer.
    """
    if document.size is not None and document.size > max_bytes:
        raise too_large(document.size, max_bytes)
    for tries_left in reversed(range(_TRIES)):
        try:
            with open_document(document) as opened:
                raw = _read(opened, max_bytes)
                opened.require_unchanged()
                return raw, opened.stamp
        except OSError as error:
            if error.errno == errno.EBUSY and tries_left:
                continue
            is_refused = isinstance(error, (FileNotFoundError, PermissionError))
            # Any other error of a store stays an OSError: the store may answer at the next try of the task.
            if error.errno in _MAY_PASS or (document.store is not None and not is_refused):
                raise
            shown = document.path if document.store is None else document.uri
            raise Unreadable("unreadable", f"{shown!r} cannot be read: {why_not_opened(error)}") from None
    raise AssertionError("the last try returns or raises")


def _read(opened: OpenDocument, max_bytes: int) -> bytes:
    if opened.size is not None and opened.size > max_bytes:
        raise too_large(opened.size, max_bytes)
    # One byte more than is expected shows that there is more.
    raw = opened.file.read((max_bytes if opened.size is None else opened.size) + 1)
    if len(raw) > max_bytes:
        raise too_large(len(raw), max_bytes)
    return raw


def too_large(size: int, max_bytes: int) -> Unreadable:
    """Return the error of a document that has too many bytes."""
    return Unreadable("too_large", f"{size:,} bytes; at most {max_bytes:,} are read (`max_bytes=`)")
