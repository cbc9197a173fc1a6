"""The old way to a saving, until hooks/call.py and operators/claude.py go the new one."""

from __future__ import annotations

from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import Saving

__all__ = ["Saving", "keep_saving"]


async def keep_saving(ledger: Ledger, kept: Saving) -> None:
    """Commit what a try saved, without waiting for it."""
    ledger.record_later(kept)
