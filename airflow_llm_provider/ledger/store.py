"""The old way to the ledger, until hooks/call.py goes the new one."""

from __future__ import annotations

from airflow_llm_provider.ledger.ledger import Ledger

__all__ = ["Ledger"]
