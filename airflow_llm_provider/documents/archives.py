"""Archives, and mails with attachments, as the documents that are in them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from airflow_llm_provider.documents import sandbox
from airflow_llm_provider.documents.content import Unreadable
from airflow_llm_provider.documents.document import Document, Rejected, suffix_of
from airflow_llm_provider.documents.opening import fetch
from airflow_llm_provider.documents.readers import archive
from airflow_llm_provider.options import Reading

_ARCHIVE_TIMES = 4
"""An archive may have so many times the bytes of one document."""
_BATCH_BYTES = 16 * 1024 * 1024


def has_documents(name: str, reading: Reading) -> bool:
    """Tell by a file's name whether the files in it are documents of their own."""
    suffix = suffix_of(name)
    return suffix in archive.SUFFIXES or is_mail(name, reading)


def is_mail(name: str, reading: Reading) -> bool:
    """Tell by a file's name whether it is a mail whose attachments are documents of their own."""
    return reading.attachments == "documents" and suffix_of(name) in archive.MAIL_SUFFIXES


def documents_in(
    outer: Document, reading: Reading, is_wanted: Callable[[str], bool]
) -> Iterator[Document | Rejected]:
    """Yield the files in an archive as documents, or the archive as a Rejected if it cannot be unpacked.

    They are unpacked in the sandbox, a few at a time, and kept in memory; nothing is written to a disk.

    Args:
        outer: an archive, or a mail.
        reading: how documents are read. A file over `max_bytes` is a Rejected.
        is_wanted: tells by its name whether a file is yielded.

    Raises:
        OSError: it cannot be fetched for a reason that may pass.
    """
    try:
        raw, _ = fetch(outer, _ARCHIVE_TIMES * reading.max_bytes)
        arguments = {"name": outer.name, "with_mails": reading.attachments == "documents"}
        members = sandbox.run(f"{archive.__name__}:list_members", raw, arguments)
        for batch in _batches([member for member in members if is_wanted(member["name"])]):
            arguments = {
                "name": outer.name,
                "paths": [member["path"] for member in batch],
                "max_bytes": reading.max_bytes,
            }
            found = sandbox.run(f"{archive.__name__}:unpack", raw, arguments)
            for member, unpacked in zip(batch, found, strict=True):
                yield _document(outer, member["name"], unpacked)
    except Unreadable as error:
        yield Rejected(id=outer.id, uri=outer.uri, reason=error.reason, message=str(error))


def _batches(members: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    size = 0
    for member in members:
        if batch and size + member["size"] > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(member)
        size += member["size"]
    if batch:
        yield batch


def _document(outer: Document, name: str, unpacked: dict[str, Any]) -> Document | Rejected:
    inner_id, uri = f"{outer.id}!{name}", f"{outer.uri}!{name}"
    if unpacked["reason"]:
        return Rejected(id=inner_id, uri=uri, reason=unpacked["reason"], message=unpacked["message"])
    raw = base64.b64decode(unpacked["data"])
    # The archive may be written anew with the same files in it: only the file itself tells that it has changed.
    stamp = hashlib.sha256(raw).hexdigest()
    return Document(id=inner_id, uri=uri, stamp=stamp, size=len(raw), raw=raw)
