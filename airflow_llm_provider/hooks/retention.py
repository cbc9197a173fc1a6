"""Retention: how long the ledger keeps calls and payloads, as [llm] says."""

from __future__ import annotations

from airflow.sdk.exceptions import AirflowFailException

from airflow_llm_provider.hooks.claude import ClaudeHook
from airflow_llm_provider.hooks.configuration import default_ledger_url
from airflow_llm_provider.hooks.connection import DEFAULT_CONNECTION

_DAY_MS = 86_400_000


def retention_ms() -> tuple[int | None, int | None]:
    """Return [llm] retention_days and payload_retention_days in milliseconds; None: without limit.

    Raises:
        AirflowFailException: an option is not a number above 0.
    """
    from airflow.sdk.configuration import conf

    def kept_ms(option: str) -> int | None:
        text = conf.get("llm", option, fallback="").strip()
        if not text:
            return None
        try:
            days = float(text)
        except ValueError:
            days = 0.0
        if not 0 < days < float("inf"):
            raise AirflowFailException(f"[llm] {option} is {text!r}, and should be a number of days above 0.")
        return round(days * _DAY_MS)

    return kept_ms("retention_days"), kept_ms("payload_retention_days")


def prune_ledger(claude_conn_id: str | None = DEFAULT_CONNECTION) -> dict[str, int]:
    """Remove from a connection's ledger what is older than [llm] retention_days and payload_retention_days.

    Nothing is removed where neither option is set.

    Args:
        claude_conn_id: the connection whose ledger is pruned; None: the ledger of [llm] ledger_url.

    Returns:
        How many `rows`, `payloads` and records of `documents` were removed, and how many old rows were `kept` because
            their run is still active.
    """
    from airflow_llm_provider.ledger.database import Database
    from airflow_llm_provider.ledger.maintenance import prune

    rows, payloads = retention_ms()
    url = default_ledger_url() if claude_conn_id is None else ClaudeHook(claude_conn_id).connection.ledger_url
    database = Database(url)
    try:
        database.migrate()
        with database.read() as connection:
            # The times in the rows are by the database's clock, which need not agree with this machine's.
            now_ms = database.now_ms(connection)
        gone = prune(
            database,
            rows_before_ms=None if rows is None else now_ms - rows,
            payloads_before_ms=None if payloads is None else now_ms - payloads,
        )
    finally:
        database.close()
    return {"rows": gone.rows, "payloads": gone.payloads, "documents": gone.documents, "kept": gone.kept}
