"""Publishing a run's files: written aside first, then all put in place, the manifest last."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

from airflow_llm_provider.documents.paths import PathLike, ToPath, place, uri_of, url_to_path

if TYPE_CHECKING:
    from upath import UPath

_STALE_S = 3600


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
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
    ) -> Place:
        """Read the place out of `output`: a file with its extension, or a folder (a slash at the end)."""
        where = place(output, to_path)
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
            trial = Path(_aside(self.folder, max(self.names, key=len)))
            trial.touch(exist_ok=False)
            trial.unlink()
        except OSError as error:
            why = f"rows can't be written to {self.key(self.output)!r}: {error.strerror}"
            raise OSError(error.errno, f"{why}. Give another `output=`, or make room for it.") from error


class Landing:
    """Files on their way to a Place.

    Local: written beside their target under a hidden name, synced, and renamed. Object stores: written to a
    local temporary folder and uploaded whole, an object appearing when its upload ends. Whatever fails before
    `publish` leaves the place as it was, and nothing behind.
    """

    def __init__(self, target: Place) -> None:
        self._target = target
        self._ready: dict[str, str] = {}
        self._removed: list[str] = []
        self._aside: str | None = None

    def __enter__(self) -> Landing:
        if self._target.store is not None:
            self._aside = tempfile.mkdtemp(prefix="airflow-llm-landing-")
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
        path = _aside(self._aside or self._target.folder, name if self._aside is None else "")
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
        with _alone(self._target):
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


def _aside(folder: str, name: str) -> str:
    """Return a path of nobody else's for the file that will be `name`."""
    return f"{folder}/.{name}.{secrets.token_hex(8)}.tmp"


@contextmanager
def _alone(target: Place) -> Iterator[None]:
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


def _remove(target: Place, name: str) -> None:
    with suppress(FileNotFoundError):
        if target.store is None:
            Path(target.key(name)).unlink()
        elif target.store.fs.exists(target.key(name)):
            target.store.fs.rm_file(target.key(name))


def _remove_stale(target: Place) -> None:
    """Remove what a killed process left an hour ago or longer; younger ones may be another run's."""
    starts = tuple(f".{name}." for name in target.names)
    with os.scandir(target.folder) as entries:
        for entry in entries:
            if entry.name.startswith(starts) and entry.name.endswith(".tmp"):
                with suppress(OSError):
                    if time.time() - entry.stat().st_mtime > _STALE_S:
                        Path(entry.path).unlink()
