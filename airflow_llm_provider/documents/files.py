"""Local files and stored objects: their names, the roots that they must lie below, and their listing."""

# ruff: noqa: PTH100 - local paths stay strings: a Path object would cost more than the rest of listing a file

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote

from airflow_llm_provider.documents.document import Document, Rejected
from airflow_llm_provider.documents.opening import (
    STAMP_FIELDS,
    file_stamp,
    object_stamp,
    open_folder,
    stat_real,
    why_not_opened,
)

if TYPE_CHECKING:
    from upath import UPath

PathLike: TypeAlias = "str | os.PathLike[str] | UPath"
ToPath: TypeAlias = "Callable[[str], UPath]"
IsWanted: TypeAlias = Callable[[str], bool]
"""Tells by its path below the folder whether a file is to be listed."""

LOCAL_PROTOCOLS = frozenset({"", "file", "local"})
# Protocols of the same store: a file given as `s3a://` lies below a root given as `s3://`.
_SAME_STORE = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "https": "http"}
_MAGIC = re.compile(r"[*?\[]")


class OutsideRoots(ValueError):
    """The path lies below none of the roots; nothing was read.

    Attributes:
        without_value: the message without the path, for a text that another task gave as one.
    """

    def __init__(self, shown: str, roots: Sequence[str]) -> None:
        why = (
            f"is outside the roots ({', '.join(map(repr, roots)) or 'none'}), so nothing was read. "
            "Add its folder to the task's `roots=`, or to `roots` in the configuration's `[llm]` section."
        )
        super().__init__(f"{shown!r} {why}")
        self.without_value = f"a path of {len(shown):,} characters, which another task gave, {why}"


class NoSuchDocuments(FileNotFoundError):
    """The file or folder named by the author does not exist."""


def url_to_path(url: str) -> UPath:
    """Return the path of a URL by universal_pathlib; operators pass Airflow's ObjectStoragePath instead."""
    from upath import UPath

    return UPath(url)


def locate(path: PathLike, to_path: ToPath = url_to_path) -> str | UPath:
    """Return a local path as an absolute `str`, its links not resolved, and any other path as its UPath."""
    if isinstance(path, str):
        if "://" not in path:
            # Links are not resolved: ids and URIs are what the author wrote. Roots are compared by the resolved path.
            return os.path.abspath(path)
        path = to_path(path)
    protocol = getattr(path, "protocol", None)
    if protocol is None or protocol in LOCAL_PROTOCOLS:
        return os.path.abspath(str(getattr(path, "path", None) or os.fspath(path)))  # type: ignore[arg-type]
    return path  # type: ignore[return-value]


def is_path(value: object) -> bool:
    """Tell whether `value` is a path object (not a `str`): pathlib, UPath or ObjectStoragePath."""
    # Looked up on the type: the `fs` of an instance would connect to the store.
    return isinstance(value, os.PathLike) or (hasattr(type(value), "protocol") and hasattr(type(value), "fs"))


def as_written(path: PathLike) -> str:
    """Return `path` as its author wrote it, with forward slashes and without `.` parts."""
    text = path if isinstance(path, str) else path.as_posix() if hasattr(path, "as_posix") else str(path)
    if "://" in text:
        return text
    return os.path.normpath(text).replace(os.sep, "/")


def uri_of(store: UPath, key: str) -> str:
    """Return the URL of `key` in `store`, without connection ids or credentials."""
    return key if "://" in key else f"{store.protocol}://{key.lstrip('/')}"


class Roots:
    """The folders and URL prefixes below which files may be read.

    Args:
        roots: local folders, whose links are resolved, and URL prefixes; they are compared part by part. None allows
            everything, an empty sequence allows nothing.
        to_path: makes a path of a URL.
    """

    def __init__(self, roots: Sequence[PathLike] | None, to_path: ToPath = url_to_path) -> None:
        self._open = roots is None
        self._names = [as_written(root) for root in roots or ()]
        self._local: list[str] = []
        self._remote: list[tuple[str, ...]] = []
        for root in roots or ():
            # A URL is only compared, so the provider of its store need not be installed.
            found = _url_parts(root) if isinstance(root, str) else None
            if found is not None:
                self._remote.append(found)
                continue
            where = locate(root, to_path)
            if isinstance(where, str):
                self._local.append(os.path.realpath(where))
            else:
                self._remote.append(_parts(where, where.path))

    def contain_file(self, real_path: str) -> bool:
        """Tell whether a local path lies below a root; its links must have been resolved."""
        if self._open:
            return True
        return any(real_path == r or real_path.startswith(r.rstrip("/") + "/") for r in self._local)

    def contain_key(self, store: UPath, key: str) -> bool:
        """Tell whether an object lies below a URL root, after `..` is resolved as a server might resolve it."""
        if self._open:
            return True
        if "::" in key or "::" in store.protocol:  # a chained file system reads from another store
            return False
        # Part by part, and not as text: `bucket/inbox` does not lie below `bucket/in`.
        parts = _parts(store, key)
        return any(parts[: len(root)] == root for root in self._remote)

    def require(self, path: str, shown: str, store: UPath | None = None) -> None:
        """Raise OutsideRoots unless a path lies below a root.

        Args:
            path: a local path whose links have been resolved, or a key in `store`.
            shown: the path as its author wrote it, for the message.
            store: any path in the object store; None: `path` is local.
        """
        if not (self.contain_file(path) if store is None else self.contain_key(store, path)):
            raise OutsideRoots(shown, self._names)


def _url_parts(url: str) -> tuple[str, ...] | None:
    """Return the parts of a URL without its connection id; None for a local path."""
    protocol, mark, rest = url.partition("://")
    if not mark or protocol in LOCAL_PROTOCOLS:
        return None
    host, slash, path = rest.partition("/")
    return _normalised(f"{protocol}://{host.rpartition('@')[2]}{slash}{path}")


def _parts(store: UPath, key: str) -> tuple[str, ...]:
    """Return the parts of a key's URL."""
    return _normalised(uri_of(store, key))


def _normalised(url: str) -> tuple[str, ...]:
    """Return protocol, bucket or host, and the parts of the path, normalised for comparison."""
    protocol, _, rest = url.partition("://")
    protocol = _SAME_STORE.get(protocol, protocol)
    # A web server decodes %2e%2e to `..`, which would lead out of the root.
    if protocol == "http":
        rest = unquote(rest)
    host, _, path = rest.lstrip("/").partition("/")
    inside = posixpath.normpath("/" + path).strip("/")
    return (protocol, host, *(part for part in inside.split("/") if part))


def split_glob(path: str) -> tuple[str, str] | None:
    """Split `path` into its fixed folder and its pattern; None when it has no wildcard."""
    match = _MAGIC.search(path)
    if match is None:
        return None
    # Up to the last slash before the wildcard: the part before it is a folder that can be listed.
    cut = path.rfind("/", 0, match.start())
    return (path[:cut] or "/", path[cut + 1 :]) if cut >= 0 else ("", path)


def glob_test(pattern: str) -> tuple[IsWanted, int | None]:
    """Return a test for paths below the glob's fixed folder, and how many levels deep it can match.

    The depth is None where `**` matches at any depth.
    """
    from fsspec.utils import glob_translate  # type: ignore[import-untyped]

    matches = re.compile(glob_translate(pattern)).match
    depth = None if "**" in pattern else pattern.count("/") + 1
    return (lambda relative: matches(relative) is not None), depth


def file_document(real: str, stat: os.stat_result, *, name: str, uri: str) -> Document:
    """Return a local file as a document."""
    return Document(
        id=name,
        uri=uri,
        stamp=file_stamp(stat),
        size=stat.st_size,
        path=real,
    )


def object_document(store: UPath, info: dict[str, Any], *, name: str) -> Document:
    """Return a stored object as a document; its stamp is the store's etag, else its size and time."""
    key = info["name"]
    return Document(
        id=name,
        uri=uri_of(store, key),
        stamp=object_stamp(info),
        size=info.get("size"),
        path=key,
        store=store,
    )


def walk_files(
    real: str, shown: str, *, roots: Roots, is_wanted: IsWanted, depth: int | None, prefix: str = ""
) -> Iterator[Document | Rejected]:
    """Yield the wanted files below a local folder in the order of their ids.

    Hidden files and folders are skipped. Links are followed if they lead below the roots, and each folder is
    visited once. A folder that is replaced by a link meanwhile is not entered. Memory: the names of one folder per
    level.

    Args:
        real: a local folder, its links resolved.
        shown: the folder as its author wrote it, for URIs.
        roots: links that lead elsewhere are rejected.
        is_wanted: tells by its path below the folder whether a file is yielded.
        depth: how many levels to descend; 1: the folder itself; None: all.
        prefix: put before each id.

    Raises:
        OSError: the folder itself cannot be listed; a folder below it that cannot be listed is a Rejected.
    """
    return _walk_files(_Folder(real=real, below="", shown=shown), roots, is_wanted, depth, prefix)


class _Folder:
    """A folder that is walked: the names in it that are left, and a handle while files are looked up in it.

    Only the innermost folder has a handle. A tree may be deeper than a process may have handles.
    """

    def __init__(self, *, real: str, below: str, shown: str) -> None:
        self.real = real
        self.below = below
        self.shown = shown
        self._handle: int | None = None
        handle = self._open()
        # By inode: a link can lead back to a folder above it, and the walk would never end.
        stat = os.fstat(handle)
        self.inode = (stat.st_dev, stat.st_ino)
        try:
            self.entries = _entries(handle)
        except BaseException:
            self.close()
            raise

    def _open(self) -> int:
        if self._handle is None:
            self._handle = open_folder(self.real)
        return self._handle

    def close(self) -> None:
        """Close the handle; the next look-up opens the folder again."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def resolve(self, name: str, *, is_link: bool) -> str:
        """Return the real path of an entry."""
        path = f"{self.real.rstrip('/')}/{name}"
        return os.path.realpath(path) if is_link else path

    def stat(self, name: str, real: str, *, is_link: bool) -> os.stat_result:
        """Return the status of an entry, or of what it leads to; raise OSError where a link stands in the way."""
        if not is_link:
            return os.stat(name, dir_fd=self._open(), follow_symlinks=False)
        return stat_real(real)


def _walk_files(
    top: _Folder, roots: Roots, is_wanted: IsWanted, depth: int | None, prefix: str
) -> Iterator[Document | Rejected]:
    # A stack instead of recursion: paths may be deeper than Python's recursion limit.
    stack, seen = [top], {top.inode}
    try:
        while stack:
            folder = stack[-1]
            if not folder.entries:
                stack.pop().close()
                continue
            name, is_dir, is_link = folder.entries.pop()
            relative = folder.below + name
            uri = f"{folder.shown.rstrip('/')}/{name}"
            if is_dir and depth is not None and relative.count("/") + 1 >= depth:
                continue
            if not is_dir and not is_wanted(relative):
                continue
            if not _is_utf8(relative):
                yield _rejected(prefix + relative, uri, "its name is not valid UTF-8: rename it")
                continue
            try:
                real = folder.resolve(name, is_link=is_link)
                if is_link and not roots.contain_file(real):
                    yield Rejected(
                        id=prefix + relative,
                        uri=uri,
                        reason="outside_root",
                        message=f"{uri!r} is a link to {real!r}, which is outside the roots. "
                        "Add that folder to `roots=`, or remove the link.",
                    )
                    continue
                stat = folder.stat(name, real, is_link=is_link)
                if not is_dir:
                    yield file_document(real, stat, name=prefix + relative, uri=uri)
                elif (stat.st_dev, stat.st_ino) not in seen:
                    inner = _Folder(real=real, below=relative + "/", shown=uri)
                    folder.close()
                    seen.add(inner.inode)
                    stack.append(inner)
            except OSError as error:
                yield _rejected(prefix + relative, uri, why_not_opened(error))
    finally:
        # Also where the one who asks has enough of it.
        if stack:
            stack[-1].close()


def walk_objects(
    store: UPath, folder: str, *, roots: Roots, is_wanted: IsWanted, depth: int | None, prefix: str = ""
) -> Iterator[Document | Rejected]:
    """Yield the wanted objects below a key prefix in the order of their ids, like `walk_files`.

    Args:
        store: any path in the store.
        folder: the key prefix.
        roots: objects elsewhere are rejected.
        is_wanted: tells by its path below `folder` whether an object is yielded.
        depth: how many levels to descend; None: all.
        prefix: put before each id.

    Raises:
        FileNotFoundError: there is no such prefix.
    """
    return _walk_objects([(_objects(store.fs, folder), "")], store, roots, is_wanted, depth, prefix)


def _walk_objects(
    stack: list[tuple[list[dict[str, Any]], str]],
    store: UPath,
    roots: Roots,
    is_wanted: IsWanted,
    depth: int | None,
    prefix: str,
) -> Iterator[Document | Rejected]:
    while stack:
        entries, below = stack[-1]
        if not entries:
            stack.pop()
            continue
        info = entries.pop()
        relative = below + info["name"].rstrip("/").rpartition("/")[2]
        if info["type"] == "directory":
            if depth is not None and relative.count("/") + 1 >= depth:
                continue
            try:
                stack.append((_objects(store.fs, info["name"]), relative + "/"))
            except FileNotFoundError:
                why = "it was deleted after it was listed"
                yield _rejected(prefix + relative, uri_of(store, info["name"]), why)
        elif is_wanted(relative):
            if roots.contain_key(store, info["name"]):
                yield object_document(store, info, name=prefix + relative)
            else:
                uri = uri_of(store, info["name"])
                yield Rejected(
                    id=prefix + relative,
                    uri=uri,
                    reason="outside_root",
                    message=f"{uri!r} is outside the roots. Add its folder to `roots=`.",
                )


def _entries(handle: int) -> list[tuple[str, bool, bool]]:
    """Return the visible entries of an open folder in reverse order: name, whether a folder, whether a link.

    The next one is popped from the end.
    """
    with os.scandir(handle) as found:
        entries = [
            (entry.name, _is_dir(entry), entry.is_symlink())
            for entry in found
            if not entry.name.startswith(".")
        ]
    # A folder sorts as "name/", so that the walk yields whole paths in order.
    entries.sort(key=lambda entry: entry[0] + "/" if entry[1] else entry[0], reverse=True)
    return entries


def _is_dir(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):  # a link in a circle of links
        return entry.is_dir()
    return False


def _objects(fs: Any, folder: str) -> list[dict[str, Any]]:
    """Return what lies directly below a key prefix in reverse order, with the fields that are needed."""
    # fsspec caches listings for the life of a process; a retry must see what is there now.
    fs.invalidate_cache(folder)
    keep = ("name", "type", "size", *STAMP_FIELDS)
    own = folder.strip("/")
    found = []
    for info in fs.ls(folder, detail=True):
        name, is_folder = info["name"], info["type"] == "directory"
        if name.strip("/") == own or (name.endswith("/") and not is_folder):
            continue  # a marker object, which stands for a folder
        if name.rstrip("/").rpartition("/")[2].startswith("."):
            continue
        # Only what is needed: a store's description of an object is much larger, and a folder can hold many.
        found.append({key: info[key] for key in keep if info.get(key) is not None})
    fs.invalidate_cache(folder)
    found.sort(key=lambda i: i["name"].rstrip("/") + ("/" if i["type"] == "directory" else ""), reverse=True)
    return found


def _is_utf8(name: str) -> bool:
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _rejected(name: str, uri: str, why: str) -> Rejected:
    name, uri = (os.fsencode(text).decode(errors="backslashreplace") for text in (name, uri))
    return Rejected(id=name, uri=uri, reason="unreadable", message=f"{uri!r} cannot be read: {why}")
