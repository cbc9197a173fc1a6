"""Files among a call's inputs: read as documents are, below the roots the DAG author named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk.exceptions import AirflowFailException

from airflow_llm_provider.hooks.arguments import require_data
from airflow_llm_provider.hooks.storage import object_storage


def is_file(value: Any) -> bool:
    """Tell a path object, local or of object storage, from text: a text that names a file opens none."""
    from airflow_llm_provider.documents.files import is_path

    return is_path(value)


def named_roots(roots: Sequence[str] | str | None) -> list[str]:
    """Return where a task says that files may be read, divided at commas in a text; None: what [llm] roots says."""
    from airflow.sdk.configuration import conf

    named = roots if roots is not None else conf.get("llm", "roots", fallback="")
    names = named.split(",") if isinstance(named, str) else map(str, named)
    return [name.strip() for name in names if name.strip()]


def with_files_read(
    inputs: Mapping[str, Any], *, roots: Sequence[str] | str | None, typed: frozenset[str]
) -> dict[str, Any]:
    """Return the inputs with every path object replaced by what is in the file: its text, or content blocks.

    roots: where files may be read; None: [llm] roots, and where there are none, only what the author `typed`.
    Raises AirflowFailException for a file that can't be read, and why.
    """
    try:
        require_data("inputs", inputs)
    except ValueError as error:
        raise AirflowFailException(str(error)) from None
    allowed = named_roots(roots)
    read = dict(inputs)
    for name, value in inputs.items():
        if not is_file(value):
            continue
        if not allowed and name not in typed:
            raise AirflowFailException(
                f"The input {name!r} is a file that another task named ({value}), so it must be said where files may "
                "be read: give the operator roots=[…], or set [llm] roots."
            )
        read[name] = _content(name, value, allowed or None)
    return read


def _content(name: str, path: Any, roots: list[str] | None) -> Any:
    from airflow_llm_provider.documents.content import Unreadable, to_blocks
    from airflow_llm_provider.documents.document import Rejected
    from airflow_llm_provider.documents.reader import read
    from airflow_llm_provider.documents.sources import list_documents

    found = list(list_documents([path], roots=roots, to_path=object_storage))
    if len(found) != 1:
        raise AirflowFailException(f"The input {name!r} is one file, and {path} is {len(found)} documents.")
    try:
        if isinstance(found[0], Rejected):
            raise Unreadable(found[0].reason, found[0].message)
        content = read(found[0])
    except (Unreadable, OSError) as error:
        raise AirflowFailException(f"The input {name!r} can't be read: {error}") from error
    if len(content.parts) == 1 and content.text is not None:
        return content.text
    return to_blocks(content)
