"""What a documents task reads and where it writes: what its author typed, and what is known only at run time."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk import XComArg
from airflow.sdk.definitions.mappedoperator import MappedOperator

from airflow_llm_provider import _airflow
from airflow_llm_provider.argument_checks import comes_later, message_at_run_time
from airflow_llm_provider.hooks.arguments import require_absolute
from airflow_llm_provider.hooks.files import is_file, named_roots, object_storage

if TYPE_CHECKING:
    from airflow_llm_provider.documents.output import RowWriter


# What stands in the way of the rows, and will at the next try.
_IN_THE_WAY = frozenset({errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP})


class Rows(Sequence[Any]):
    """Documents given in memory: Airflow neither renders them nor shows them under Rendered Templates."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self._rows = list(rows) if isinstance(rows, (list, tuple)) else _airflow.fetched(rows)

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


class Misplaced(ValueError):
    """Rows cannot be written to this output."""


def is_literal(documents: Any) -> bool:
    """Tell whether the DAG author has typed these very documents, with no template and no XCom in them."""
    if isinstance(documents, (list, tuple)):
        return True
    return (isinstance(documents, str) or is_file(documents)) and not comes_later(str(documents))


def require_resolvable(task_id: str, documents: Any) -> None:
    """Raise ValueError, when the DAG is parsed, for a list with another task's output in it."""
    if isinstance(documents, (list, tuple)) and any(isinstance(item, XComArg) for item in documents):
        raise ValueError(
            f"{task_id}: documents= is a list with another task's output in it, which Airflow would not resolve: "
            "give that output itself, or join several as `first.concat(second)`."
        )


def require_possible(output: Any, documents: Any) -> None:
    """Raise ValueError, when the DAG is parsed, for an output that no run can write; templates are checked there."""
    if output is None or comes_later(str(output)):
        return
    from airflow_llm_provider.documents.formats import require_known

    require_absolute("output", output)
    name = str(output).rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    if stem and dot:
        require_known(suffix.lower())
    if is_literal(documents) and not isinstance(documents, (list, tuple)):
        _require_apart([str(output)], documents, "path")


def is_mapped_over_a_task(task: Any) -> bool:
    """Tell whether `.expand()` took its values from another task."""
    # The instance that runs has lost its mapping; the task that the DAG holds has it.
    in_dag = task.dag.get_task(task.task_id)
    values = in_dag.expand_input.value if isinstance(in_dag, MappedOperator) else None
    return any(XComArg.iter_xcom_references(values))


def readable_roots(
    documents: Any,
    roots: Sequence[str] | str | None,
    *,
    is_typed: bool,
    strings: Literal["text", "path"],
) -> list[str] | None:
    """Return where files may be read; None where the author has typed the very path.

    A path that comes from a Param, a template or an XCom is not the author's word, so it needs roots: raises
    ValueError without any.

    roots: as the task names them; None: [llm] roots. is_typed: whether the author has typed `documents`.
    """
    names = named_roots(roots)
    are_texts = isinstance(documents, Rows) and documents.are_texts and strings == "text"
    if names or are_texts or is_typed:
        return names or None
    raise ValueError(
        f"which documents to read is decided at run time, by a value of type {type(documents).__name__}, so it must be "
        "said where files may be read: give the operator roots=[…], or set [llm] roots."
    )


def row_sink(
    output: str,
    documents: Any,
    *,
    output_type: Any,
    strings: Literal["text", "path"],
    map_index: int | None,
) -> RowWriter:
    """Return where the rows about `documents` go; raises Misplaced."""
    from airflow_llm_provider.documents.formats import MissingExtra
    from airflow_llm_provider.documents.output import RowWriter
    from airflow_llm_provider.engine.output_type import OutputType

    try:
        require_absolute("output", output)
    except ValueError as error:
        raise Misplaced(message_at_run_time(error)) from None
    kind = OutputType(output_type)
    try:
        sink = RowWriter(
            output,
            part=f"part-{map_index}" if map_index is not None and map_index >= 0 else None,
            schema=kind.item_schema,
            list_type=kind.is_list,
            to_path=object_storage,
        )
    except (ValueError, MissingExtra, TypeError) as error:
        raise Misplaced(str(error)) from error
    except OSError as error:
        # Any other error, such as a full disk, may be gone at the next try, so it does not fail the task for good.
        if error.errno not in _IN_THE_WAY:
            raise
        raise Misplaced(error.strerror) from error
    try:
        _require_apart(sink.files, documents, strings)
    except Misplaced:
        # The writer holds an open temporary file by now.
        sink.discard()
        raise
    return sink


def _require_apart(files: Sequence[str], documents: Any, strings: str) -> None:
    """Raise Misplaced for files among the documents: the next run would read, and pay for, its own rows."""
    for given in documents if isinstance(documents, Rows) else [documents]:
        # A string that stands alone is always a path. In a list it is a text, unless `strings` says that it is a path.
        names_files = isinstance(given, str) and (strings == "path" or given is documents)
        if not (is_file(given) or names_files):
            continue
        if inside := _lies_among(files, given):
            raise Misplaced(
                f"{inside!r}, which the output would be, lies among the documents {str(given)!r}: the next run would "
                "read its own rows. Write them elsewhere."
            )


def _lies_among(files: Sequence[str], documents: Any) -> str | None:
    """Return the first of `files` that a path, folder or glob of documents would take in."""
    given = str(documents).removeprefix("file://")
    is_local = "://" not in given
    if not given:
        return None  # the empty path would be the working folder
    try:
        # A link or `..` can be another way to the same folder, so local paths are compared by what they resolve to.
        base = os.path.realpath(given) if is_local else given.rstrip("/")
    except ValueError:
        return None  # no path at all, which is said when it would be read
    for written in files:
        file = os.path.realpath(written.removeprefix("file://")) if is_local else written
        # A glob's star stops at a slash, a folder's does not.
        pattern = re.escape(base).replace(r"\*\*", ".*").replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
        if file == base or file.startswith(base + "/") or re.fullmatch(pattern, file):
            return written
    return None
