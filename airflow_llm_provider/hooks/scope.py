"""The scope of calls: which task instance asks, as the ledger writes it down."""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import TYPE_CHECKING

from airflow_llm_provider.hooks.arguments import read_amount
from airflow_llm_provider.options import Options

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_llm_provider.ledger.records import CallScope

NO_DAG = "(no DAG)"
"""The `dag_id` of calls that were made outside of Airflow's tasks."""


def scope_of(context: Context, options: Options, connection_id: str) -> CallScope:
    """Return the scope of a task instance's calls, with the trace id of its run.

    Args:
        context: Airflow's context of the task instance.
        options: their tags are added to those of the DAG; their budget must be rendered.
        connection_id: of the endpoint that calls go to.

    Raises:
        AirflowFailException: a template left something that is not an amount in US dollars.
    """
    from airflow_llm_provider.ledger.records import CallScope

    ti, task = context["ti"], context["task"]
    # Sorted and without repeats: the same tags are the same text in the ledger.
    tags = sorted({*options.tags, *(getattr(task.dag, "tags", None) or ())})
    budget = options.budget
    return CallScope(
        dag_id=ti.dag_id,
        run_id=ti.run_id,
        task_id=ti.task_id,
        map_index=-1 if ti.map_index is None else ti.map_index,
        try_number=ti.try_number,
        # Airflow raises max_tries by the retries when a task is cleared, so this counts the clears too.
        first_try=max(1, ti.max_tries - (task.retries or 0) + 1),
        connection_id=connection_id,
        owner=task.owner,
        tags=json.dumps(tags) if tags else None,
        trace_id=trace_id(_deployment(), ti.dag_id, ti.run_id),
        budget_micro_usd=read_amount(task.task_id, "budget.task_usd", budget.task_usd),
        run_budget_micro_usd=read_amount(task.task_id, "budget.run_usd", budget.run_usd),
        on_exceeded=budget.on_exceeded,
    )


def ad_hoc_scope(options: Options, connection_id: str, run_id: str) -> CallScope:
    """Return the scope of calls outside of a task: a run of its own, so that no DAG run takes its answers by accident.

    Args:
        options: their tags and budget count.
        connection_id: of the endpoint that calls go to.
        run_id: as `ad_hoc_run_id` makes it.
    """
    from airflow_llm_provider.ledger.records import CallScope

    budget = options.budget
    return CallScope(
        dag_id=NO_DAG,
        run_id=run_id,
        task_id="python",
        connection_id=connection_id,
        tags=json.dumps(sorted({*options.tags})) if options.tags else None,
        trace_id=trace_id(_deployment(), NO_DAG, run_id),
        budget_micro_usd=read_amount("python", "budget.task_usd", budget.task_usd),
        run_budget_micro_usd=read_amount("python", "budget.run_usd", budget.run_usd),
        # Outside of a task, nothing can be skipped and no form can be shown.
        on_exceeded="fail",
    )


def ad_hoc_run_id() -> str:
    """Return a new run id for calls outside of a task."""
    return f"ad_hoc__{uuid.uuid4().hex}"


def trace_id(deployment: str, dag_id: str, run_id: str) -> str:
    """Return the 32 hex digits that every call of a DAG run carries, through retries and clears."""
    # Made from what a retry and a clear keep: Airflow's own traceparent is renewed by a clear.
    return hashlib.sha256(f"{deployment}\0{dag_id}\0{run_id}".encode()).digest()[:16].hex()


def _deployment() -> str:
    from airflow.sdk.configuration import conf

    return str(conf.get("llm", "deployment", fallback="airflow"))
