"""The output files of a run: rows and dead letters in input order, schema and manifest, all published or none."""

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
from airflow_llm_provider.engine.json_repair import writable

if TYPE_CHECKING:
    from upath import UPath

_STALE_S = 3600


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputFiles:
    """Where the files of a run go: their folder and their names.

    Attributes:
        folder: a local folder, or a key prefix in `store`.
        stem: what the names of all files begin with.
        format: of the rows, in lower case; also the extension of their file.
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
        """Return the files that an `output` stands for.

        Args:
            output: the rows' file, with its extension, or a folder, with a slash at its end.
            part: the name of a mapped task instance's part, such as `part-0`.
            folder_format: the format of the rows in a folder.
            to_path: makes a path of a URL.
        """
        where = locate(output, to_path)
        path = where if isinstance(where, str) else where.path
        head, _, name = path.rstrip("/").rpartition("/")
        stem, dot, extension = name.rpartition(".")
        # Path objects drop the slash at the end, so a name without an extension is a folder too.
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
        """Return the names of all files that a run may write."""
        return self.output, self.schema, self.manifest, self.dead_letters

    def published_manifest(self) -> Mapping[str, Any]:
        """Return the manifest of an earlier run; empty where there is none that can be read."""
        if self.store is not None:
            self.store.fs.invalidate_cache()  # a retry must see what is there now
        with suppress(FileNotFoundError, ValueError):
            manifest = orjson.loads(self._read(self.manifest))
            return manifest if isinstance(manifest, dict) else {}
        return {}

    def published_rows(self) -> bool:
        """Tell whether an earlier run has published rows."""
        manifest = self.published_manifest()
        if "rows" in manifest:
            return bool(manifest["rows"])
        # Rows without a manifest that says how many: of another program, or of a run that was killed.
        with suppress(FileNotFoundError):
            if self.store is None:
                return Path(self.key(self.output)).stat().st_size > 0
            return bool(self.store.fs.size(self.key(self.output)))
        return False

    def _read(self, name: str) -> bytes:
        if self.store is None:
            return Path(self.key(name)).read_bytes()
        return bytes(self.store.fs.cat_file(self.key(name)))

    def prepare(self) -> None:
        """Make a local folder, and check that files can be written there; an object store needs neither.

        Raises:
            OSError: the files cannot be written; its `strerror` says why and what to do.
        """
        if self.store is not None:
            return
        try:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            for name in self.names:
                if Path(self.key(name)).is_dir():
                    raise IsADirectoryError(errno.EISDIR, f"{name!r} is a folder")
            # With the longest name: the hidden name is longer still, and file systems limit the length of a name.
            trial = Path(_hidden_path(self.folder, max(self.names, key=len)))
            trial.touch(exist_ok=False)
            trial.unlink()
        except OSError as error:
            why = f"rows cannot be written to {self.key(self.output)!r}: {error.strerror}"
            raise OSError(
                error.errno, f"{why}. Give another `output=`, or remove what is in the way."
            ) from error


class StagedFiles:
    """Files that are written under other names first, and then published together.

    Local files are written beside their target under a hidden name, synced, and renamed. Objects are written to a
    local temporary folder and uploaded whole; an object appears when its upload ends. A failure before `publish`
    leaves the earlier files as they were, and no temporary file.

    Args:
        target: where the files go.
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
            # A process that was killed could not remove its temporary files; this run does.
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
        """Open the file that will be published as `name`."""
        path = _hidden_path(self._aside or self._target.folder, name if self._aside is None else "")
        # O_EXCL: a file of this name must not exist, and a link of this name is not followed.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._ready[name] = path
        with open(descriptor, "wb", buffering=1024 * 1024) as file:
            yield file
            file.flush()
            # A rename can reach the disk before the content does. After a power cut the new name would be an empty
            # file.
            if self._aside is None:
                os.fsync(file.fileno())

    def write(self, name: str, data: bytes) -> None:
        """Write the whole file that will be published as `name`."""
        with self.file(name) as file:
            file.write(data)

    def remove(self, name: str) -> None:
        """Remove the file `name` of an earlier run when this one is published."""
        self._removed.append(name)

    def publish(self) -> None:
        """Publish the files in the order in which they were written."""
        with _locked_folder(self._target):
            self._put()

    def _put(self) -> None:
        target = self._target
        last = list(self._ready)[-1:]
        for name in list(self._ready):
            if [name] == last:
                # Just before the last file, the manifest: a run that is killed earlier leaves the earlier dead letters
                # in place.
                for old in self._removed:
                    _remove(target, old)
            if target.store is None:
                # A rename within one folder: a reader sees the old file or the new one, never a part.
                Path(self._ready[name]).replace(target.key(name))
            else:
                target.store.fs.put_file(self._ready[name], target.key(name))


def _hidden_path(folder: str, name: str) -> str:
    """Return an unused path for the file that will be published as `name`."""
    return f"{folder}/.{name}.{secrets.token_hex(8)}.tmp"


@contextmanager
def _locked_folder(target: OutputFiles) -> Iterator[None]:
    """Lock a local folder, so that the files of two runs that publish at once do not mix."""
    if target.store is not None:
        yield
        return
    descriptor = os.open(target.folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # some network file systems have no locks
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
    """Remove temporary files that a killed process left; younger than an hour, they may belong to a running one."""
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
    """The files that a run has published.

    Attributes:
        output: path or URL of the rows.
        schema: of the JSON schema of a row.
        manifest: of what the run says of itself.
        dead_letters: None when there are none; then there is no such file.
        rows: how many rows were written.
        dead: how many dead letters were written.
    """

    output: str
    schema: str
    manifest: str
    dead_letters: str | None
    rows: int
    dead: int

    def paths(self) -> dict[str, str | None]:
        """Return the paths as the manifest names them."""
        return {"output": self.output, "schema": self.schema, "dead_letters": self.dead_letters}


class RowWriter:
    """Takes rows and dead letters in any order; `publish` writes them in input order.

    Memory: 8 bytes per document. It may be used from several threads.

    Args:
        output: a file with the extension of its format (.jsonl, .csv, .parquet), or a folder, with a slash at its
            end. Beside `rows.jsonl` stand `rows.schema.json`, `rows.manifest.json` and, if there are any,
            `rows.dead_letters.jsonl`.
        spool_dir: a local folder for what has come so far; the file in it has no name and ends with the process.
        schema: of one row's data; None for plain text.
        list_type: whether an answer is a list, each item of which is a row with its number in `item`.
        part: the name of a mapped task instance's part, such as `part-0`: `folder/part-0.jsonl` or
            `rows.part-0.jsonl`.
        folder_format: the format of the rows in a folder.
        to_path: makes a path of a URL.

    Raises:
        UnknownFormat: rows cannot be written in this format.
        MissingExtra: the format needs a package that is not installed.
        OSError: the local folder cannot be written to.
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
        self._target = OutputFiles.of(output, part=part, folder_format=folder_format, to_path=to_path)
        check_format(self._target.format)
        self._target.prepare()
        self._schema = schema
        self._list_type = list_type
        self._check = row_check(self._target.format, schema=schema, list_type=list_type)
        # Rows come in the order of the answers and are published in the order of the input, so they are kept until the
        # end.
        self._spool: IO[bytes] = tempfile.TemporaryFile(dir=spool_dir)  # noqa: SIM115 - it lives as long as the writer
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
        """Return where the files of this run go, including those that it may not need."""
        return [self._target.uri(name) for name in self._target.names]

    @property
    def rows(self) -> int:
        """Return how many rows were taken so far."""
        return self._rows

    def published_manifest(self) -> Mapping[str, Any]:
        """Return the manifest of an earlier run at the same place; empty where there is none that can be read."""
        return self._target.published_manifest()

    def would_replace_rows(self) -> bool:
        """Tell whether an earlier run has published rows that `publish` would replace."""
        return self._target.published_rows()

    def add(self, index: int, row: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Take the row, or the rows, of one document.

        Args:
            index: the document's position in the input, from 0.
            row: by column; a column that is missing is null.

        Raises:
            RowDoesNotFit: a row does not fit the format. None was taken, so the document can be a dead letter instead.
        """
        rows = [row] if isinstance(row, Mapping) else list(row)
        # All rows are checked before one is kept: a document is either in the rows or a dead letter.
        try:
            for each in rows:
                self._check(each)
            record = to_json(rows)
            from_json(record)
        except (ValueError, TypeError, RecursionError) as error:
            if isinstance(error, RowDoesNotFit):
                raise
            raise RowDoesNotFit(
                f"document {rows[0].get('document_id')!r}: its row cannot be written ({type(error).__name__})"
            ) from None
        self._put(index, _ROW, record, len(rows))

    def add_dead_letter(self, index: int, letter: Mapping[str, Any]) -> None:
        """Take the dead letter of one document.

        Args:
            index: the document's position in the input, from 0.
            letter: document_id, uri, reason, error, message and what else is known.
        """
        # A reply may hold half of a surrogate pair, which no file can.
        self._put(index, _DEAD, to_json([writable(letter)]), 1)

    def publish(self, manifest: Mapping[str, Any]) -> WrittenFiles:
        """Write all files in input order, and publish all or none of them, the manifest last.

        Args:
            manifest: what the run says of itself; `output`, `schema`, `dead_letters` and `rows` are added.
        """
        try:
            with StagedFiles(self._target) as staged:
                target = self._target
                with staged.file(target.output) as file:
                    writer = open_writer(target.format, file, schema=self._schema, list_type=self._list_type)
                    for row in self._read(_ROW):
                        writer.write(row)
                    writer.finish()
                staged.write(target.schema, _pretty(row_schema(self._schema, self._list_type)))
                if self._dead:
                    with staged.file(target.dead_letters) as file:
                        for letter in self._read(_DEAD):
                            file.write(to_json(letter) + b"\n")
                else:
                    staged.remove(target.dead_letters)
                written = WrittenFiles(
                    output=target.uri(target.output),
                    schema=target.uri(target.schema),
                    manifest=target.uri(target.manifest),
                    dead_letters=target.uri(target.dead_letters) if self._dead else None,
                    rows=self._rows,
                    dead=self._dead,
                )
                staged.write(target.manifest, _pretty({**manifest, **written.paths(), "rows": self._rows}))
                staged.publish()
                return written
        finally:
            self.discard()

    def discard(self) -> None:
        """Forget what has been taken; published files stay."""
        self._spool.close()

    def _put(self, index: int, kind: bytes, record: bytes, count: int) -> None:
        with self._lock:
            if index >= len(self._offsets):
                self._offsets.extend([_MISSING] * (index + 1 - len(self._offsets)))
            if self._offsets[index] != _MISSING:
                raise ValueError(f"document {index} already has an outcome; each document has exactly one")
            self._offsets[index] = self._end
            line = kind + record + b"\n"  # JSON has no raw newline, so one line is one document
            self._spool.write(line)
            self._end += len(line)
            if kind == _ROW:
                self._rows += count
            else:
                self._dead += 1

    def _read(self, kind: bytes) -> Iterator[dict[str, Any]]:
        """Yield the rows, or the dead letters, that were taken, in input order."""
        self._spool.flush()
        position = self._spool.seek(0)
        for offset in self._offsets:
            # A document that is pending has neither a row nor a dead letter.
            if offset == _MISSING:
                continue
            if offset != position:  # a seek drops the buffer, and rows that came in order need none
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

    Args:
        path: the output file of a run, its file of dead letters, or a folder. A run without dead letters has no such
            file, and yields none.
        to_path: makes a path of a URL.

    Raises:
        FileNotFoundError: nothing is at `path`, and no dead letters are beside it.
    """
    where = locate(path, to_path)
    if isinstance(where, str):
        yield from _read_local(Path(where))
        return
    fs, key = where.fs, where.path.rstrip("/")
    # fsspec remembers listings, and the run may have written the file since.
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
            # A run without dead letters has no such file. That is told from a wrong path by the rows: this raises
            # without them.
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
            # As above: it raises where there are no rows either.
            path.stat()
    for name in found:
        with open(name, "rb") as file:
            yield from _letters(file)


def _letters(file: IO[bytes]) -> Iterator[dict[str, Any]]:
    for line in file:
        if line.strip():
            yield orjson.loads(line)
