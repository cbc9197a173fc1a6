"""Plain text: decoded, and otherwise as it is."""

from __future__ import annotations

from airflow_llm_provider.documents.content import Part, decode
from airflow_llm_provider.options import Reading


def read_text(raw: bytes, reading: Reading) -> tuple[Part, ...]:
    """Return the text exactly as it is in the file; see `decode`."""
    return (Part(kind="text", data=decode(raw, reading.encoding)),)
