"""The files of a run: rows and dead letters in input order, schema and manifest, published all or none."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import tempfile
import threading
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

import orjson

from airflow_llm_provider.documents.files import PathLike, ToPath, locate, uri_of, url_to_path
from airflow_llm_provider.documents.formats import (
    RowDoesNotFit,
    check_format,
    from_json,
    open_writer,
    row_check,
    row_schema,
    to_json,
)

if TYPE_CHECKING:
    from upath import UPath

_STALE_S = 3600


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputFiles:
    """The folder of a run's files, and their names.

    store: any path in the object store that holds `folder`; None when it is local.
    """

    folder: str
    stem: str
    format: str
    store: UPath | None = None

    @classmethod
    def of(
        cls,
        output: PathLike,
        *,
        part: str | None = None,
        folder_format: str = "jsonl",
        to_path: ToPath = url_to_path,
    ) -> OutputFiles:
        """Read the place out of `output`: a file with its extension, or a folder (a slash at the end)."""
        where = locate(output, to_path)
        path = where if isinstance(where, str) else where.path
        head, _, name = path.rstrip("/").rpartition("/")
        stem, dot, extension = name.rpartition(".")
        # Path objects drop a slash at the end, so a name without extension is a folder too.
        if str(output).endswith("/") or not dot or not stem:
            folder, stem, extension = path.rstrip("/"), part or "part-0", folder_format
        else:
            folder, stem = head, stem if part is None else f"{stem}.{part}"
        return cls(
            folder=folder or "/",
            stem=stem,
            format=extension.lower(),
            store=None if isinstance(where, str) else where,
        )

    @property
    def output(self) -> str:
        """Return the rows' file name."""
        return f"{self.stem}.{self.format}"

    @property
    def schema(self) -> str:
        """Return the schema's file name."""
        return f"{self.stem}.schema.json"

    @property
    def dead_letters(self) -> str:
        """Return the dead letters' file name."""
        return f"{self.stem}.dead_letters.jsonl"

    @property
    def manifest(self) -> str:
        """Return the manifest's file name."""
        return f"{self.stem}.manifest.json"

    def key(self, name: str) -> str:
        """Return the full path of one of the files, in the store's own terms."""
        return f"{self.folder.rstrip('/')}/{name}"

    def uri(self, name: str) -> str:
        """Return where one of the files is: a local path or a URL."""
        key = self.key(name)
        return key if self.store is None else uri_of(self.store, key)

    @property
    def names(self) -> tuple[str, str, str, str]:
        """Return all that a run may write here."""
        return self.output, self.schema, self.manifest, self.dead_letters

    def prepare(self) -> None:
        """Make a local folder and try it; object stores have none.

        Raises OSError, with its cause and cure as `strerror`, when the files could not be put there.
        """
        if self.store is not None:
            return
        try:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            for name in self.names:
                if Path(self.key(name)).is_dir():
                    raise IsADirectoryError(errno.EISDIR, f"{name!r} is a folder")
            trial = Path(_hidden_path(self.folder, max(self.names, key=len)))
            trial.touch(exist_ok=False)
            trial.unlink()
        except OSError as error:
            why = f"rows can't be written to {self.key(self.output)!r}: {error.strerror}"
            raise OSError(error.errno, f"{why}. Give another `output=`, or make room for it.") from error


class StagedFiles:
    """Files on their way to a OutputFiles.

    Local: written beside their target under a hidden name, synced, and renamed. Object stores: written to a
    local temporary folder and uploaded whole, an object appearing when its upload ends. Whatever fails before
    `publish` leaves the place as it was, and nothing behind.
    """

    def __init__(self, target: OutputFiles) -> None:
        self._target = target
        self._ready: dict[str, str] = {}
        self._removed: list[str] = []
        self._aside: str | None = None

    def __enter__(self) -> StagedFiles:
        if self._target.store is not None:
            self._aside = tempfile.mkdtemp(prefix="airflow-llm-staged-")
        else:
            _remove_stale(self._target)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for path in self._ready.values():
            with suppress(OSError):
                Path(path).unlink()
        if self._aside is not None:
            shutil.rmtree(self._aside, ignore_errors=True)

    @contextmanager
    def file(self, name: str) -> Iterator[IO[bytes]]:
        """Open the file that will be `name`."""
        path = _hidden_path(self._aside or self._target.folder, name if self._aside is None else "")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._ready[name] = path
        with open(descriptor, "wb", buffering=1024 * 1024) as file:
            yield file
            file.flush()
            if self._aside is None:
                os.fsync(file.fileno())

    def write(self, name: str, data: bytes) -> None:
        """Write the whole file that will be `name`."""
        with self.file(name) as file:
            file.write(data)

    def remove(self, name: str) -> None:
        """Remove an earlier run's file when this one is published."""
        self._removed.append(name)

    def publish(self) -> None:
        """Put the files in place in the order they were written."""
        with _locked_folder(self._target):
            self._put()

    def _put(self) -> None:
        target = self._target
        last = list(self._ready)[-1:]
        for name in list(self._ready):
            if [name] == last:
                for old in self._removed:
                    _remove(target, old)
            if target.store is None:
                Path(self._ready[name]).replace(target.key(name))
            else:
                target.store.fs.put_file(self._ready[name], target.key(name))


def _hidden_path(folder: str, name: str) -> str:
    """Return a path of nobody else's for the file that will be `name`."""
    return f"{folder}/.{name}.{secrets.token_hex(8)}.tmp"


@contextmanager
def _locked_folder(target: OutputFiles) -> Iterator[None]:
    """Let nobody else publish in a local folder meanwhile: two runs' files would mix."""
    if target.store is not None:
        yield
        return
    descriptor = os.open(target.folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # some network file systems can't
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(target: OutputFiles, name: str) -> None:
    with suppress(FileNotFoundError):
        if target.store is None:
            Path(target.key(name)).unlink()
        elif target.store.fs.exists(target.key(name)):
            target.store.fs.rm_file(target.key(name))


def _remove_stale(target: OutputFiles) -> None:
    """Remove what a killed process left an hour ago or longer; younger ones may be another run's."""
    starts = tuple(f".{name}." for name in target.names)
    with os.scandir(target.folder) as entries:
        for entry in entries:
            if entry.name.startswith(starts) and entry.name.endswith(".tmp"):
                with suppress(OSError):
                    if time.time() - entry.stat().st_mtime > _STALE_S:
                        Path(entry.path).unlink()


__all__ = ["RowDoesNotFit", "RowWriter", "WrittenFiles"]

_MISSING = -1
_ROW, _DEAD = b"r", b"d"


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenFiles:
    """Where a run's files are, and how many rows and dead letters they hold.

    dead_letters: None when there are none; then no such file is there either.
    """

    output: str
    schema: str
    manifest: str
    dead_letters: str | None
    rows: int
    dead: int

    def paths(self) -> dict[str, str | None]:
        """Return the paths alone, as the manifest names them."""
        return {"output": self.output, "schema": self.schema, "dead_letters": self.dead_letters}


class RowWriter:
    """Take rows and dead letters in any order; `close` lands them in input order.

    output: a file by extension (.jsonl, .csv, .parquet; `rows.jsonl` brings `rows.schema.json`,
        `rows.manifest.json` and, if there are any, `rows.dead_letters.jsonl`), or a folder (ends in a slash).
    spool_dir: a local folder for what has come so far; the file in it has no name and dies with the process.
    schema: the JSON schema of one row's data; None for plain text.
    list_type: an answer is a list, and each of its items is a row with its number in `item`.
    part: a mapped shard's own name, such as `part-0`: `folder/part-0.jsonl` or `rows.part-0.jsonl`.
    folder_format: of a folder's files; a file's format is its extension.

    Raises UnknownFormat, MissingExtra and OSError (a local folder that can't be written) at once, before
    anything is paid for. Memory: 8 bytes a document. Safe in threads.
    """

    def __init__(
        self,
        output: PathLike,
        *,
        spool_dir: str | os.PathLike[str] | None = None,
        schema: Mapping[str, Any] | None = None,
        list_type: bool = False,
        part: str | None = None,
        folder_format: str = "jsonl",
        to_path: ToPath = url_to_path,
    ) -> None:
        self._place = OutputFiles.of(output, part=part, folder_format=folder_format, to_path=to_path)
        check_format(self._place.format)
        self._place.prepare()
        self._schema = schema
        self._list_type = list_type
        self._check = row_check(self._place.format, schema=schema, list_type=list_type)
        self._spool: IO[bytes] = tempfile.TemporaryFile(dir=spool_dir)  # noqa: SIM115 - lives as long as the sink
        self._offsets = array("q")
        self._end = 0
        self._lock = threading.Lock()
        self._rows = 0
        self._dead = 0

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    @property
    def files(self) -> list[str]:
        """Return where the files of this run go, also those that may not come to be."""
        return [self._place.uri(name) for name in self._place.names]

    def add(self, index: int, row: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Take the row, or the rows, of the document at `index` (from 0) of the input.

        Raises RowDoesNotFit, having taken nothing, so that the document can be given to `dead` instead.
        """
        rows = [row] if isinstance(row, Mapping) else list(row)
        for each in rows:
            self._check(each)
        self._put(index, _ROW, rows)

    def add_dead_letter(self, index: int, letter: Mapping[str, Any]) -> None:
        """Take the dead letter of the document at `index`: document_id, uri, reason, error, message, …."""
        self._put(index, _DEAD, [letter])

    def publish(self, manifest: Mapping[str, Any]) -> WrittenFiles:
        """Write all files in input order and publish them, the manifest last; all or none.

        manifest: what the run says of itself; `output`, `schema`, `dead_letters` and `rows` are put in.
        """
        try:
            with StagedFiles(self._place) as staged:
                place = self._place
                with staged.file(place.output) as file:
                    writer = open_writer(place.format, file, schema=self._schema, list_type=self._list_type)
                    for row in self._read(_ROW):
                        writer.write(row)
                    writer.finish()
                staged.write(place.schema, _pretty(row_schema(self._schema, self._list_type)))
                if self._dead:
                    with staged.file(place.dead_letters) as file:
                        for letter in self._read(_DEAD):
                            file.write(to_json(letter) + b"\n")
                else:
                    staged.remove(place.dead_letters)
                written = WrittenFiles(
                    output=place.uri(place.output),
                    schema=place.uri(place.schema),
                    manifest=place.uri(place.manifest),
                    dead_letters=place.uri(place.dead_letters) if self._dead else None,
                    rows=self._rows,
                    dead=self._dead,
                )
                staged.write(place.manifest, _pretty({**manifest, **written.paths(), "rows": self._rows}))
                staged.publish()
                return written
        finally:
            self.discard()

    def discard(self) -> None:
        """Drop what has been taken; what was landed stays."""
        self._spool.close()

    def _put(self, index: int, kind: bytes, items: Sequence[Mapping[str, Any]]) -> None:
        record = to_json(items)
        with self._lock:
            if index >= len(self._offsets):
                self._offsets.extend([_MISSING] * (index + 1 - len(self._offsets)))
            if self._offsets[index] != _MISSING:
                raise ValueError(f"document {index} has an outcome already; each has exactly one")
            self._offsets[index] = self._end
            line = kind + record + b"\n"  # JSON holds no raw newline
            self._spool.write(line)
            self._end += len(line)
            if kind == _ROW:
                self._rows += len(items)
            else:
                self._dead += 1

    def _read(self, kind: bytes) -> Iterator[dict[str, Any]]:
        """Yield what was taken of one kind, in input order."""
        self._spool.flush()
        position = self._spool.seek(0)
        for offset in self._offsets:
            if offset == _MISSING:
                continue
            if offset != position:  # a seek throws the buffer away; what came in order needs none
                self._spool.seek(offset)
            line = self._spool.readline()
            position = offset + len(line)
            if line.startswith(kind):
                yield from from_json(line[1:])


def _pretty(value: Mapping[str, Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


_SUFFIX = ".dead_letters.jsonl"


def read_dead_letters(path: PathLike, *, to_path: ToPath = url_to_path) -> Iterator[dict[str, Any]]:
    """Yield the dead letters of a run, or of all parts in a folder.

    path: an output file, its dead-letter file, or a folder. A run without any has no such file.
    Raises FileNotFoundError when nothing is at `path` and no dead letters are beside it.
    """
    where = locate(path, to_path)
    if isinstance(where, str):
        yield from _read_local(Path(where))
        return
    fs, key = where.fs, where.path.rstrip("/")
    fs.invalidate_cache()
    if key.endswith(_SUFFIX):
        found = [key]
    elif fs.isdir(key):
        found = sorted(name for name in fs.ls(key, detail=False) if name.endswith(_SUFFIX))
    else:
        target = OutputFiles.of(where)
        beside = target.key(target.dead_letters)
        found = [beside] if fs.exists(beside) else []
        if not found:
            fs.info(key)
    for name in found:
        with fs.open(name, "rb") as file:
            yield from _letters(file)


def _read_local(path: Path) -> Iterator[dict[str, Any]]:
    if path.name.endswith(_SUFFIX):
        found = [path]
    elif path.is_dir():
        found = sorted(path.glob(f"*{_SUFFIX}"))
    else:
        target = OutputFiles.of(path)
        beside = Path(target.key(target.dead_letters))
        found = [beside] if beside.exists() else []
        if not found:
            path.stat()
    for name in found:
        with open(name, "rb") as file:
            yield from _letters(file)


def _letters(file: IO[bytes]) -> Iterator[dict[str, Any]]:
    for line in file:
        if line.strip():
            yield orjson.loads(line)
