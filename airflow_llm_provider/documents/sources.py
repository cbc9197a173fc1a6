"""The documents to ask about, as one lazy stream from paths, globs, lists, tables and rows."""

# ruff: noqa: PTH119 - local paths stay strings, see files.py

from __future__ import annotations

import dataclasses
import errno
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from stat import S_ISDIR
from typing import TYPE_CHECKING, Any, cast

from airflow_llm_provider.documents.archives import documents_in, has_documents, is_mail
from airflow_llm_provider.documents.document import Document, Rejected, suffix_of
from airflow_llm_provider.documents.files import (
    IsWanted,
    NoSuchDocuments,
    OutsideRoots,
    PathLike,
    Roots,
    ToPath,
    as_written,
    file_document,
    glob_test,
    is_path,
    locate,
    object_document,
    split_glob,
    uri_of,
    url_to_path,
    walk_files,
    walk_objects,
)
from airflow_llm_provider.documents.opening import open_document, stat_real
from airflow_llm_provider.documents.readers import kinds
from airflow_llm_provider.documents.readers.custom import reader_of
from airflow_llm_provider.documents.tables import TABLE_SUFFIXES, looks_like_a_path, row_document, table_rows
from airflow_llm_provider.options import Reading

if TYPE_CHECKING:
    from upath import UPath

__all__ = ["SUFFIXES", "Document", "NoSuchDocuments", "OutsideRoots", "Rejected", "list_documents"]

SUFFIXES = TABLE_SUFFIXES | kinds.SUFFIXES
"""The suffixes of files that are taken from a folder; others are read where a glob, a list or `pattern=` names them."""

_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


def list_documents(
    documents: PathLike | Iterable[Any],
    *,
    reading: Reading | None = None,
    roots: Sequence[PathLike] | None = None,
    recursive: bool = True,
    limit: int | None = None,
    to_path: ToPath = url_to_path,
    skipped: Counter[str] | None = None,
) -> Iterator[Document | Rejected]:
    """Yield every document that is found, in a stable order, and a Rejected for each that cannot be asked about.

    Memory: the names of one folder per level, and the hash of each id.

    Args:
        documents: a file, folder, glob or URL; or an iterable of dicts (rows), strings (texts) and path objects in any
            mix. A folder stands for every file below it with one of SUFFIXES or without a suffix, hidden files
            excepted. A table (.jsonl, .csv, …) stands for its rows, an archive for the files in it.
        reading: how documents are found and read; None: the defaults. Of a row, only the id field `id` may be missing:
            its id is then a hash. Whether strings are texts or paths is never guessed: a text that names a file must
            not open that file.
        roots: where files may be read; None: anywhere, but links may not lead out of the given folder.
        recursive: whether folders below the given one are listed.
        limit: stop after this many documents; None: no limit.
        to_path: makes a path of a URL.
        skipped: counts the files of folders and archives that are not taken, by their suffix.

    Raises:
        NoSuchDocuments: `documents` is one path, and nothing is there; in a list it is a Rejected.
        OutsideRoots: `documents` is one path, and it does not lie below a root; in a list it is a Rejected.
        TypeError: `documents` is neither a path nor a list.
    """
    lister = _Lister(
        reading=reading or Reading(),
        roots=Roots(roots, to_path),
        restricted=roots is not None,
        depth=None if recursive else 1,
        to_path=to_path,
        skipped=Counter() if skipped is None else skipped,
    )
    if isinstance(documents, str) or is_path(documents):
        found = lister.named(cast("PathLike", documents), prefix=None)
    elif isinstance(documents, Mapping | bytes) or not isinstance(documents, Iterable):
        kind = type(documents).__name__
        raise TypeError(f"documents= takes a path, a glob, or a list of rows, texts and paths, not {kind!r}")
    else:
        found = lister.items(documents)
    return _once_each(found, limit)


def _once_each(found: Iterator[Document | Rejected], limit: int | None) -> Iterator[Document | Rejected]:
    """Yield the first document of each id; reject later ones as `duplicate_id`."""
    seen: set[int] = set()
    count = 0
    if limit is not None and limit <= 0:
        return
    for item in found:
        if isinstance(item, Rejected):
            yield item
            continue
        known = len(seen)
        # The hash and not the id itself: 100,000 long ids would take much memory.
        seen.add(hash(item.id))
        if len(seen) == known:
            yield Rejected(
                id=item.id,
                uri=item.uri,
                reason="duplicate_id",
                message=f"an earlier document has the same id, {item.id!r}; that one was taken",
            )
            continue
        yield item
        count += 1
        if count == limit:
            return


class _Lister:
    """One listing: its settings, and what it does with a path or a list."""

    def __init__(
        self,
        *,
        reading: Reading,
        roots: Roots,
        restricted: bool,
        depth: int | None,
        to_path: ToPath,
        skipped: Counter[str],
    ) -> None:
        self.reading = reading
        self.roots = roots
        self.restricted = restricted
        self.depth = depth
        self.to_path = to_path
        self.skipped = skipped

    def items(self, items: Iterable[Any]) -> Iterator[Document | Rejected]:
        """Yield what the items of a list stand for."""
        for number, item in enumerate(items, 1):
            where = f"item {number}"
            # The empty path would be the working folder.
            if self.reading.strings == "path" and item == "":
                yield Rejected(id=where, uri=None, reason="unreadable", message=f"{where}: the path is empty")
            elif is_path(item) or (isinstance(item, str) and self.reading.strings == "path"):
                yield from self.listed(item)
            elif isinstance(item, str) and looks_like_a_path(item):
                message = (
                    f"{where}: the text, of {len(item)} characters, looks like a file's name. If it is one, give "
                    "path objects or Reading(strings='path'); if it is the text itself, give a dict and "
                    "Reading(text_field=…)."
                )
                yield Rejected(id=where, uri=None, reason="unreadable", message=message)
            else:
                yield row_document(item, where=where, uri=None, reading=self.reading)

    def listed(self, path: PathLike) -> Iterator[Document | Rejected]:
        """Yield what one path of a list stands for; a path that cannot be read is a Rejected, not an error."""
        shown = as_written(path)
        try:
            shown = _shown(path, locate(path, self.to_path))
            found = self.named(path, prefix=shown)
        except OutsideRoots as error:
            yield Rejected(id=shown, uri=shown, reason="outside_root", message=str(error))
        except (FileNotFoundError, PermissionError) as error:
            yield Rejected(id=shown, uri=shown, reason="unreadable", message=str(error))
        except ValueError as error:  # a NUL, a wildcard in the wrong place, an unknown protocol
            yield Rejected(
                id=shown, uri=shown, reason="unreadable", message=f"{shown!r} is not a path: {error}"
            )
        else:
            # Outside the try: reading a table may fail midway, which a retry can cure; the path is fine.
            yield from found

    def named(self, path: PathLike, prefix: str | None) -> Iterator[Document | Rejected]:
        """Check one path now, and return an iterator of what it stands for.

        Args:
            path: as the author gave it.
            prefix: for a path in a list, the path as written, so that the ids of several paths do not collide.
        """
        if path == "":
            raise NoSuchDocuments("documents= is an empty path; give a file, a folder or a glob")
        where = locate(path, self.to_path)
        shown = _shown(path, where)
        if isinstance(where, str):
            return self._local(where, shown, prefix)
        return self._remote(where, shown, prefix, may_be_empty=as_written(path).endswith("/"))

    def _local(self, path: str, shown: str, prefix: str | None) -> Iterator[Document | Rejected]:
        # A file may have `*` or `[` in its name; what exists under the exact name is that file.
        glob = None if os.path.lexists(path) else split_glob(path)
        folder = glob[0] if glob else path
        try:
            # Resolved once: what is compared with the roots is what is opened.
            real = os.path.realpath(folder)
            self.roots.require(real, shown)
            stat = stat_real(real)
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            why = f"{folder!r}: {error.strerror}"
            raise NoSuchDocuments(f"no such file or folder: {shown!r} ({why})") from None
        if not S_ISDIR(stat.st_mode):
            if glob:
                raise NoSuchDocuments(f"no such folder: {folder!r} is a file ({shown!r})")
            document = file_document(real, stat, name=prefix or os.path.basename(path), uri=path)
            return self._opened(iter([document]), is_alone=prefix is None)
        is_wanted, depth = glob_test(glob[1]) if glob else (self._wanted(), self.depth)
        below = _below(prefix, glob)
        # Without roots the folder itself is one: a link in it must not lead to files elsewhere.
        roots = self.roots if self.restricted else Roots([real])
        found = walk_files(real, folder, roots=roots, is_wanted=is_wanted, depth=depth, prefix=below)
        return self._opened(found)

    def _remote(
        self, path: UPath, shown: str, prefix: str | None, *, may_be_empty: bool
    ) -> Iterator[Document | Rejected]:
        key = path.path.rstrip("/") or path.path
        glob = split_glob(key)
        # Before the store is reached, which a Param may have named.
        self.roots.require(glob[0] if glob else key, shown, store=path)
        fs = path.fs
        # fsspec caches listings for the life of a process, and a retry must see what is there now.
        fs.invalidate_cache()
        # As for a local file: an object may have `*` or `[` in its name.
        if glob and fs.exists(key):
            glob = None
            self.roots.require(key, shown, store=path)
        folder = glob[0] if glob else key
        if glob is None:
            try:
                info = fs.info(key)
            except FileNotFoundError:
                if may_be_empty and _has_bucket(fs, key):
                    return iter(())
                raise NoSuchDocuments(
                    f"no such object, folder or bucket: {shown!r}. In object storage an empty folder does not exist. "
                    "If there may be no documents, give a URL with a `/` at its end, or a glob such as `…/*`."
                ) from None
            if info["type"] != "directory":
                document = object_document(path, info, name=prefix or key.rpartition("/")[2])
                return self._opened(iter([document]), is_alone=prefix is None)
        is_wanted, depth = glob_test(glob[1]) if glob else (self._wanted(), self.depth)
        below = _below(prefix, glob)
        try:
            found = walk_objects(
                path, folder, roots=self.roots, is_wanted=is_wanted, depth=depth, prefix=below
            )
        except FileNotFoundError:
            if glob and _has_bucket(fs, key):
                return iter(())  # in object storage an empty folder does not exist
            raise NoSuchDocuments(f"no such folder or bucket: {shown!r}") from None
        return self._opened(found)

    def _wanted(self) -> IsWanted:
        """Return the test for the files of a folder, by `pattern=` or by suffix."""
        given = self.reading.pattern
        if given is None:
            return self._is_known
        patterns = (given,) if isinstance(given, str) else tuple(given)
        return lambda relative: any(fnmatchcase(relative.rpartition("/")[2], p) for p in patterns)

    def _is_known(self, name: str) -> bool:
        """Tell by its suffix whether a file is taken, and count it if it is not."""
        suffix = suffix_of(name)
        # A file without a suffix is told by its first bytes.
        if suffix and suffix not in SUFFIXES and reader_of(name, self.reading) is None:
            self.skipped[suffix] += 1
            return False
        return True

    def _opened(
        self, found: Iterator[Document | Rejected], *, is_alone: bool = False
    ) -> Iterator[Document | Rejected]:
        """Yield files as they are, the rows of tables, and the files in archives.

        Args:
            found: files.
            is_alone: there is no other file, so that rows need not be told from those of another table.
        """
        for item in found:
            # What the author's own function reads is one document, whatever it is.
            if isinstance(item, Rejected) or reader_of(item.name, self.reading) is not None:
                yield item
            elif suffix_of(item.name) in TABLE_SUFFIXES:
                yield from self._rows(item, is_alone)
            elif has_documents(item.name, self.reading) and item.raw is None:
                if is_mail(item.name, self.reading):
                    yield item
                    yield from self._opened(self._attachments(item))
                else:
                    yield from self._opened(documents_in(item, self.reading, self._is_known))
            else:
                yield item

    def _attachments(self, mail: Document) -> Iterator[Document | Rejected]:
        for found in documents_in(mail, self.reading, self._is_known):
            if not isinstance(found, Rejected) or found.id != mail.id:
                yield found
            # A mail that cannot be read says so itself; attachments can be too many or too large without it.
            elif found.reason != "unreadable":
                yield dataclasses.replace(found, id=f"{mail.id}!attachments")

    def _rows(self, table: Document, is_alone: bool) -> Iterator[Document | Rejected]:
        with ExitStack() as stack:
            try:
                opened = stack.enter_context(open_document(table))
            except OSError as error:
                yield Rejected(
                    id=table.id, uri=table.uri, reason="unreadable", message=f"{table.uri!r}: {error}"
                )
                return
            yield from table_rows(opened.file, table, reading=self.reading, is_alone=is_alone)
            # A local table may be a log that grows. An object is replaced whole, and its rows could be of two versions.
            if table.store is not None:
                opened.require_unchanged()


def _shown(path: PathLike, where: str | UPath) -> str:
    """Return the path as its author wrote it; URLs without connection ids, which are not part of a document's id."""
    return as_written(path) if isinstance(where, str) else uri_of(where, where.path)


def _has_bucket(fs: Any, key: str) -> bool:
    """Tell whether the bucket of a key exists, as far as one may know."""
    try:
        fs.info(key.strip("/").partition("/")[0])
    except FileNotFoundError:
        return False
    except OSError:  # the connection may only list below a prefix
        return True
    return True


def _below(prefix: str | None, glob: tuple[str, str] | None) -> str:
    """Return what is put before the ids of the files of a folder or glob: nothing, unless it stands in a list."""
    if prefix is None:
        return ""
    if glob is None:
        return prefix.rstrip("/") + "/"
    fixed = split_glob(prefix)
    return "" if fixed is None or not fixed[0] else fixed[0].rstrip("/") + "/"
