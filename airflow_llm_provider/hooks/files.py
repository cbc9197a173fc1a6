"""Files: inputs are read below the roots that the DAG author named, answers are written to absolute paths and URLs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk.exceptions import AirflowFailException

from airflow_llm_provider.errors import without_text
from airflow_llm_provider.hooks.arguments import require_data


def is_file(value: Any) -> bool:
    """Tell a path object, local or of object storage, from text: text that names a file is not opened."""
    from airflow_llm_provider.documents.files import is_path

    return is_path(value)


def named_roots(roots: Sequence[str] | str | None) -> list[str]:
    """Return the roots below which a task may read files; a text is split at commas; None: `[llm] roots`."""
    from airflow.sdk.configuration import conf

    named = roots if roots is not None else conf.get("llm", "roots", fallback="")
    # A single string taken as a list would give one root per letter, and `/` among them would allow every file.
    names = named.split(",") if isinstance(named, str) else map(str, named)
    return [name.strip() for name in names if name.strip()]


def with_files_read(
    inputs: Mapping[str, Any], *, roots: Sequence[str] | str | None, typed: frozenset[str]
) -> dict[str, Any]:
    """Return the inputs with every path object replaced by the content of the file: its text, or content blocks.

    Args:
        inputs: data by name.
        roots: where files may be read; None: `[llm] roots`, and where there are none, only the `typed` files.
        typed: names of the inputs that the DAG author typed.

    Raises:
        AirflowFailException: a file cannot be read, and why.
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
                f"The input {name!r} is a file that another task named, so the operator has to say where files may "
                "be read: give it roots=[…], or set [llm] roots."
            )
        read[name] = _content(name, value, allowed or None)
    return read


def _content(name: str, path: Any, roots: list[str] | None) -> Any:
    from airflow_llm_provider.documents.content import Unreadable, to_blocks
    from airflow_llm_provider.documents.document import Rejected
    from airflow_llm_provider.documents.reader import read
    from airflow_llm_provider.documents.sources import list_documents

    found = list(list_documents([path], roots=roots, to_path=object_storage))
    # A folder or a table stands for many documents.
    if len(found) != 1:
        raise AirflowFailException(f"The input {name!r} is one file, and {path} is {len(found)} documents.")
    try:
        if isinstance(found[0], Rejected):
            raise Unreadable(found[0].reason, found[0].message)
        content = read(found[0])
        if len(content.pieces) > 1:
            raise Unreadable(
                "too_large",
                "it has more pages to be looked at than one request takes. Ask about it with "
                "ClaudeDocumentsOperator and long_input='map_reduce', or split it.",
            )
    except (Unreadable, OSError) as error:
        raise AirflowFailException(f"The input {name!r} cannot be read: {error}") from None
    except Exception as error:  # noqa: BLE001  # a parser's own failure, whose text may quote the file
        raise AirflowFailException(f"The input {name!r} cannot be parsed: {without_text(error)}.") from None
    # As a text, and not as a block: only a text can be read in parts where it is too long for the model.
    if len(content.parts) == 1 and content.text is not None:
        return content.text
    return to_blocks(content)


_PROVIDERS = {
    **dict.fromkeys(("s3", "s3a", "s3n"), "apache-airflow-providers-amazon[s3fs]"),
    **dict.fromkeys(("gs", "gcs"), "apache-airflow-providers-google"),
    **dict.fromkeys(("abfs", "abfss", "adl"), "apache-airflow-providers-microsoft-azure"),
}


class UnknownScheme(ValueError):
    """The provider of this kind of object storage is not installed."""


def object_storage(url: str) -> Any:
    """Return the path of a URL such as `s3://conn@bucket/key`.

    Call it where no event loop runs: Amazon's provider starts one to find its credentials.

    Raises:
        UnknownScheme: no provider that is installed knows this kind of storage.
    """
    from airflow.sdk import ObjectStoragePath
    from airflow.sdk.io import has_fs

    scheme = url.partition("://")[0]
    # fsspec's own, such as memory://, need no provider, and have no connection.
    if not has_fs(scheme) and (scheme in _PROVIDERS or not _is_of_fsspec(scheme)):
        package = _PROVIDERS.get(scheme)
        cure = f"Install {package}" if package else "Install a provider that knows it"
        raise UnknownScheme(
            f"No provider that is installed reads or writes {scheme}:// URLs. {cure}, on workers and triggerers alike."
        )
    # The library of Azure logs URL and headers of each exchange at INFO: pages of them per document.
    logging.getLogger("azure.core.pipeline.policies.http_logging_policy").setLevel(logging.WARNING)
    return ObjectStoragePath(url)


def _is_of_fsspec(scheme: str) -> bool:
    import fsspec  # type: ignore[import-untyped]

    try:
        fsspec.get_filesystem_class(scheme)
    except (ValueError, ImportError):
        return False
    return True


def write(location: str, value: Any) -> str:
    """Write text as it is and other data as JSON to an absolute path or a URL; return the location."""
    from upath import UPath

    from airflow_llm_provider.engine.request import to_json

    # A URL may name an Airflow connection, as in `s3://conn@bucket/key`, which only ObjectStoragePath understands.
    path = object_storage(location) if "://" in location else UPath(location)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(value.encode() if isinstance(value, str) else to_json(value))
    return location
