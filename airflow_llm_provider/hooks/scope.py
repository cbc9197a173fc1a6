"""Who asks: a task instance, as the ledger writes it down."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_llm_provider.hooks.rendered import amount

if TYPE_CHECKING:
    from airflow_llm_provider.ledger.records import CallScope


CAPS = ("budget_usd", "run_budget_usd")


def scope_of(
    ti: Any,
    task: Any,
    conn_id: str,
    tags: Sequence[str] = (),
    *,
    arguments: Mapping[str, Any] | None = None,
) -> CallScope:
    """Return the scope of a task instance's calls, with the trace id of its run.

    tags: of the task; those of its DAG are added.
    arguments: of the task, where its attributes are not rendered yet; its budgets are among them.
    """
    from airflow.sdk.configuration import conf

    from airflow_llm_provider.ledger.records import CallScope

    deployment = conf.get("llm", "deployment", fallback="airflow")
    caps = {name: amount(task.task_id, name, _argument(task, name, arguments)) for name in CAPS}
    all_tags = sorted({*tags, *(getattr(task.dag, "tags", None) or ())})
    return CallScope(
        dag_id=ti.dag_id,
        run_id=ti.run_id,
        task_id=ti.task_id,
        map_index=-1 if ti.map_index is None else ti.map_index,
        try_number=ti.try_number,
        # Airflow raises max_tries by the retries when a task is cleared, so this counts the clears too.
        first_try=max(1, ti.max_tries - (task.retries or 0) + 1),
        connection_id=conn_id,
        owner=task.owner,
        tags=json.dumps(all_tags) if all_tags else None,
        trace_id=trace_id(deployment, ti.dag_id, ti.run_id),
        budget_micro_usd=caps["budget_usd"],
        run_budget_micro_usd=caps["run_budget_usd"],
        on_exceeded=_argument(task, "on_exceeded", arguments) or "fail",
    )


def _argument(task: Any, name: str, arguments: Mapping[str, Any] | None) -> Any:
    return getattr(task, name, None) if arguments is None else arguments.get(name)


def trace_id(deployment: str, dag_id: str, run_id: str) -> str:
    """Return the 32 hex digits that every call of a DAG run carries, through retries and clears."""
    return hashlib.sha256(f"{deployment}\0{dag_id}\0{run_id}".encode()).digest()[:16].hex()
