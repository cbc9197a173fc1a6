"""What tasks did not have to pay: one row a try, written when it has ended well."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import sqlalchemy as sa

from airflow_llm_provider.errors import LLMError
from airflow_llm_provider.ledger.records import CallScope, new_attempt_id
from airflow_llm_provider.ledger.schema import saving
from airflow_llm_provider.ledger.sql import insert_saving, storable
from airflow_llm_provider.ledger.store import Ledger

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Saving:
    """What one try of a task saved.

    A reused answer is not written down when it is looked up: that would be a write for every read. A try so
    counts its own, and one that fails or is killed leaves no count: the next one counts the same answers.

    reused, reused_micro_usd: answers that were in the ledger, and what they had cost when they were bought.
    routed_micro_usd: about how much more the last model of a cascade alone would have cost; negative where
        escalating cost more than it saved.
    """

    scope: CallScope
    model: str
    version: str = ""
    reused: int = 0
    reused_micro_usd: int = 0
    routed_micro_usd: int = 0


async def keep_saving(ledger: Ledger, kept: Saving) -> None:
    """Commit what a try saved; nothing where it saved nothing. A ledger that is away costs the try nothing."""
    if not kept.reused and not kept.routed_micro_usd:
        return
    scope = kept.scope
    row = {
        "id": new_attempt_id(),  # here, so that a commit repeated because it went unheard counts once
        "dag_id": storable(scope.dag_id),
        "run_id": storable(scope.run_id),
        "task_id": storable(scope.task_id),
        "map_index": scope.map_index,
        "try_number": scope.try_number,
        "owner": storable(scope.owner),
        "tags": storable(scope.tags),
        "model": storable(kept.model),
        "version": storable(kept.version) or None,
        "reused": kept.reused,
        "reused_micro_usd": kept.reused_micro_usd,
        "routed_micro_usd": kept.routed_micro_usd,
    }

    def write(connection: sa.Connection, now_ms: int) -> None:
        connection.execute(insert_saving(connection.dialect.name), {**row, saving.c.at_ms.name: now_ms})

    try:
        await ledger.transact(write)
    except LLMError as error:
        log.warning("What this try saved could not be noted. %s", error)
