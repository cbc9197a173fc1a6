"""Reading dead letters back, for the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import orjson

from airflow_llm_provider.documents.landing import Place
from airflow_llm_provider.documents.paths import PathLike, ToPath, place, url_to_path

_SUFFIX = ".dead_letters.jsonl"


def read_dead_letters(path: PathLike, *, to_path: ToPath = url_to_path) -> Iterator[dict[str, Any]]:
    """Yield the dead letters of a run, or of all parts in a folder.

    path: an output file, its dead-letter file, or a folder. A run without any has no such file.
    Raises FileNotFoundError when nothing is at `path` and no dead letters are beside it.
    """
    where = place(path, to_path)
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
        target = Place.of(where)
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
        target = Place.of(path)
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
