"""Rows: documents given in memory, which Airflow must neither render nor show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow_llm_provider.hooks.files import is_file


class Rows(Sequence[Any]):
    """Documents given in memory: Airflow neither renders them nor shows them under Rendered Templates."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self._rows = list(rows) if isinstance(rows, (list, tuple)) else _fetched(rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<{len(self)} documents>"

    @property
    def are_texts(self) -> bool:
        """Whether no item is a path object, which would be opened."""
        return not any(is_file(row) for row in self._rows)


def _fetched(rows: Sequence[Any]) -> list[Any]:
    from airflow.sdk.execution_time.lazy_sequence import LazyXComSequence

    # What a mapped task pushed: a slice takes one request, iterating takes one a row.
    return list(rows[:] if isinstance(rows, LazyXComSequence) else rows)
