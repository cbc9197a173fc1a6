"""Local files and stored objects: their names, the roots that they must lie below, and their listing."""

# ruff: noqa: PTH100, PTH116 - local paths stay strings: a Path object would cost more than the rest of listing a file

from __future__ import annotations

import errno
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from stat import S_ISREG
from typing import IO, TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote

from airflow_llm_provider.documents.document import Document, Rejected

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
_ETAGS = ("ETag", "etag", "md5Hash", "content_md5", "md5", "crc32c", "generation", "VersionId")
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")


class OutsideRoots(ValueError):
    """The path named by the author lies below none of the roots; nothing was read."""


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
            found = locate(root, to_path)
            if isinstance(found, str):
                self._local.append(os.path.realpath(found))
            else:
                self._remote.append(_parts(found, found.path))

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
            path: a local path, or a key in `store`.
            shown: the path as its author wrote it, for the message.
            store: any path in the object store; None: `path` is local.
        """
        if not (
            self.contain_file(os.path.realpath(path)) if store is None else self.contain_key(store, path)
        ):
            known = ", ".join(repr(name) for name in self._names) or "none"
            raise OutsideRoots(
                f"{shown!r} is outside the roots ({known}), so nothing was read. "
                "Add its folder to the task's `roots=`, or to `roots` in the configuration's `[llm]` section."
            )


def _parts(store: UPath, key: str) -> tuple[str, ...]:
    """Return protocol, bucket or host, and the parts of the path, normalised for comparison."""
    protocol, _, rest = uri_of(store, key).partition("://")
    protocol = _SAME_STORE.get(protocol, protocol)
    # A web server decodes %2e%2e to `..`, which would lead out of the root.
    if protocol == "http":
        rest = unquote(rest)
    host, _, path = rest.lstrip("/").partition("/")
    inside = posixpath.normpath("/" + path).strip("/")
    return (protocol, host, *(part for part in inside.split("/") if part))


def open_regular(path: str) -> IO[bytes]:
    """Open `path` for reading; refuse links, pipes and devices, even if the file was replaced after it was listed.

    Raises:
        OSError: the path is not a regular file, or it cannot be opened.
    """
    # O_NOFOLLOW refuses a file that has become a link. With O_NONBLOCK, opening a pipe does not wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return open(descriptor, "rb")


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
        # ctime stands beside mtime because any program can set mtime, and only the system sets ctime.
        stamp=f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}",
        size=stat.st_size,
        path=real,
    )


def object_document(store: UPath, info: dict[str, Any], *, name: str) -> Document:
    """Return a stored object as a document; its stamp is the store's etag, else its size and time."""
    key = info["name"]
    return Document(
        id=name, uri=uri_of(store, key), stamp=_stamp(info), size=info.get("size"), path=key, store=store
    )


def walk_files(
    folder: str, *, roots: Roots, is_wanted: IsWanted, depth: int | None, prefix: str = ""
) -> Iterator[Document | Rejected]:
    """Yield the wanted files below a local folder in the order of their ids.

    Hidden files and folders are skipped. Links are followed if they lead below the roots, and each folder is
    visited once. Memory: the entries of one folder per level.

    Args:
        folder: a local folder.
        roots: links that lead elsewhere are rejected.
        is_wanted: tells by its path below `folder` whether a file is yielded.
        depth: how many levels to descend; 1: the folder itself; None: all.
        prefix: put before each id.

    Raises:
        OSError: the folder itself cannot be listed; a folder below it that cannot be listed is a Rejected.
    """
    real_folder = os.path.realpath(folder)
    top = os.stat(real_folder)
    # A stack instead of recursion: paths may be deeper than Python's recursion limit.
    stack = [(_entries(real_folder), "", folder)]
    return _walk_files(stack, {(top.st_dev, top.st_ino)}, roots, is_wanted, depth, prefix)


def _walk_files(
    stack: list[tuple[list[tuple[os.DirEntry[str], bool]], str, str]],
    seen: set[tuple[int, int]],
    roots: Roots,
    is_wanted: IsWanted,
    depth: int | None,
    prefix: str,
) -> Iterator[Document | Rejected]:
    while stack:
        entries, below, shown = stack[-1]
        if not entries:
            stack.pop()
            continue
        entry, is_dir = entries.pop()
        relative = below + entry.name
        uri = f"{shown.rstrip('/')}/{entry.name}"
        if is_dir and depth is not None and relative.count("/") + 1 >= depth:
            continue
        if not is_dir and not is_wanted(relative):
            continue
        if not _is_utf8(relative):
            yield _rejected(prefix + relative, uri, "its name is not valid UTF-8: rename it")
            continue
        try:
            is_link = entry.is_symlink()
            real = os.path.realpath(entry.path) if is_link else entry.path
            if is_link and not roots.contain_file(real):
                yield Rejected(
                    id=prefix + relative,
                    uri=uri,
                    reason="outside_root",
                    message=f"{uri!r} is a link to {real!r}, which is outside the roots. "
                    "Add that folder to `roots=`, or remove the link.",
                )
                continue
            stat = entry.stat()
            if not is_dir:
                yield file_document(real, stat, name=prefix + relative, uri=uri)
            # By inode: a link can lead back to a folder above it, and the walk would never end.
            elif (stat.st_dev, stat.st_ino) not in seen:
                seen.add((stat.st_dev, stat.st_ino))
                stack.append((_entries(real), relative + "/", uri))
        except OSError as error:
            yield _rejected(prefix + relative, uri, error.strerror or str(error))


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


def _entries(folder: str) -> list[tuple[os.DirEntry[str], bool]]:
    """Return a local folder's visible entries in reverse order, so that the next one is popped from the end."""
    with os.scandir(folder) as found:
        entries = [(entry, _is_dir(entry)) for entry in found if not entry.name.startswith(".")]
    # A folder sorts as "name/", so that the walk yields whole paths in order.
    entries.sort(key=lambda pair: pair[0].name + "/" if pair[1] else pair[0].name, reverse=True)
    return entries


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle of links
        return False


def _objects(fs: Any, folder: str) -> list[dict[str, Any]]:
    """Return what lies directly below a key prefix in reverse order, with the fields that are needed."""
    # fsspec caches listings for the life of a process; a retry must see what is there now.
    fs.invalidate_cache(folder)
    keep = ("name", "type", "size", *_ETAGS, *_TIMES)
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


def _stamp(info: dict[str, Any]) -> str | None:
    # An etag changes with the content. Where a store has none, size and time are the next best.
    for name in _ETAGS:
        if info.get(name) is not None:
            return str(info[name])
    for name in _TIMES:
        if info.get(name) is not None and info.get("size") is not None:
            return f"{info['size']}:{info[name]}"
    return None


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
