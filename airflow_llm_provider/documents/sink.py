"""Where rows go: spooled as they come, landed in input order, all files or none."""

from __future__ import annotations

import os
import tempfile
import threading
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any

import orjson

from airflow_llm_provider.documents.formats import check_format, open_writer, row_check
from airflow_llm_provider.documents.landing import Landing, Place
from airflow_llm_provider.documents.paths import PathLike, ToPath, url_to_path
from airflow_llm_provider.documents.rows import RowDoesNotFit, from_json, row_schema, to_json

__all__ = ["Landed", "RowDoesNotFit", "RowSink"]

_MISSING = -1
_ROW, _DEAD = b"r", b"d"


@dataclass(frozen=True, kw_only=True, slots=True)
class Landed:
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


class RowSink:
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
        self._place = Place.of(output, part=part, folder_format=folder_format, to_path=to_path)
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

    def __enter__(self) -> RowSink:
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

    def dead(self, index: int, letter: Mapping[str, Any]) -> None:
        """Take the dead letter of the document at `index`: document_id, uri, reason, error, message, …."""
        self._put(index, _DEAD, [letter])

    def close(self, manifest: Mapping[str, Any]) -> Landed:
        """Write all files in input order and publish them, the manifest last; all or none.

        manifest: what the run says of itself; `output`, `schema`, `dead_letters` and `rows` are put in.
        """
        try:
            with Landing(self._place) as landing:
                place = self._place
                with landing.file(place.output) as file:
                    writer = open_writer(place.format, file, schema=self._schema, list_type=self._list_type)
                    for row in self._read(_ROW):
                        writer.write(row)
                    writer.finish()
                landing.write(place.schema, _pretty(row_schema(self._schema, self._list_type)))
                if self._dead:
                    with landing.file(place.dead_letters) as file:
                        for letter in self._read(_DEAD):
                            file.write(to_json(letter) + b"\n")
                else:
                    landing.remove(place.dead_letters)
                landed = Landed(
                    output=place.uri(place.output),
                    schema=place.uri(place.schema),
                    manifest=place.uri(place.manifest),
                    dead_letters=place.uri(place.dead_letters) if self._dead else None,
                    rows=self._rows,
                    dead=self._dead,
                )
                landing.write(place.manifest, _pretty({**manifest, **landed.paths(), "rows": self._rows}))
                landing.publish()
                return landed
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
