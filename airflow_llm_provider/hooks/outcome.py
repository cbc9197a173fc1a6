"""What becomes of a task whose documents did not all get their rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from airflow_llm_provider.errors import BudgetAsks

if TYPE_CHECKING:
    from airflow_llm_provider.documents.run import Run


def failure_of(manifest: Mapping[str, Any], run: Run, *, max_failed: float, task_id: str) -> Exception | None:
    """Return the error of a run that a budget stopped, or that has more dead letters than are tolerated.

    The other rows are written; None where the task has done what it should.
    """
    documents = manifest["documents"]
    if refused := run.over_budget:
        if isinstance(refused, BudgetAsks):
            refused.calls = manifest["outcomes"]["pending"]
        refused.args = (f"{manifest['outcomes']['pending']} of {documents} documents are pending. {refused}",)
        return refused
    dead = manifest["outcomes"]["dead_letter"]
    allowed = max_failed * documents if isinstance(max_failed, float) else max_failed
    if dead <= allowed:
        return None
    # Where every letter is final, a retry would only find the same in the ledger.
    return (AirflowException if run.may_heal else AirflowFailException)(
        f"{task_id}: {dead} of {documents} documents are dead letters, max_failed={max_failed} allows {allowed:g} "
        f"({manifest['dead_letter_reasons']}). The other rows are written and paid answers are kept; see "
        f"{manifest['dead_letters']} or `airflow-llm dead-letters list {manifest['dead_letters']}`."
    )
