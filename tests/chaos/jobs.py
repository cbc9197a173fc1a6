"""Jobs of the chaos tests: a DAG over documents of its own, with a stand-in and a ledger of its own."""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa

from airflow_llm_provider.ledger.schema import OPEN, SETTLED, call
from airflow_llm_provider.testing.processes import is_alive
from airflow_llm_provider.testing.standin import StandIn
from tests.support.airflow import AirflowUnderTest
from tests.support.books import Books, balance

# SEED=4711 repeats that seed; SEEDS=5 takes the four after it too; KILLS=9 kills so often in each run.
SEED = int(os.environ.get("SEED") or random.SystemRandom().randrange(1_000_000))
SEEDS = int(os.environ.get("SEEDS") or 3)
KILLS = int(os.environ.get("KILLS") or 7)
# How long the call of a killed process blocks its key; 45 s by default, shortened to wait less here.
LEASE_S = float(os.environ.get("LEASE_S") or 8)

# Half the seeds are killed at here, and two at least: at one ledger, then at the other.
_SEEDS = range(SEED, SEED + max(min(SEEDS, 2), SEEDS // 2))
CASES = [(("sqlite", "postgresql")[seed % 2], seed) for seed in _SEEDS]
HEARTBEAT_TIMEOUT_S = 10

DAG = """
from datetime import timedelta
from airflow.sdk import DAG
from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator

with DAG({name!r}, schedule=None):
    ClaudeDocumentsOperator(
        task_id="read",
        documents={inbox!r},
        prompt="Which number does this note have?",
        output={output!r},
        max_in_flight={in_flight},
        claude_conn_id={name!r},
        retries={retries},
        retry_delay=timedelta(seconds=1),
    )
"""


@dataclass(kw_only=True)
class Job:
    """A DAG over documents of its own, with a stand-in and a ledger of its own."""

    name: str
    folder: Path
    ledger_url: str
    server: StandIn
    documents: int
    in_flight: int
    retries: int = 99
    engine: sa.Engine = field(init=False)

    def __post_init__(self) -> None:
        self.engine = sa.create_engine(self.ledger_url, poolclass=sa.NullPool)
        # The answer is the number in the note, so that a row can be held against its document.
        self.server.reply(call=lambda question: question.document.split()[1])

    @property
    def output(self) -> Path:
        return self.folder / "rows" / f"{self.name}.jsonl"

    def write(self, dags: Path) -> None:
        """Write the DAG and its documents."""
        inbox = self.folder / "inbox" / self.name
        inbox.mkdir(parents=True)
        for number in range(self.documents):
            (inbox / f"{number:04}.txt").write_text(
                f"Note {number:04} says that number {number} is due. " * 20
            )
        self.output.parent.mkdir(exist_ok=True)
        values = {"name": self.name, "inbox": str(inbox), "output": str(self.output)}
        text = DAG.format(**values, in_flight=self.in_flight, retries=self.retries)
        (dags / f"{self.name}.py").write_text(text)

    def connection(self) -> dict[str, Any]:
        extra = {"ledger_url": self.ledger_url, "default_tier": "fast"}
        return {"conn_type": "claude", "password": "sk-chaos", "host": self.server.url, "extra": extra}

    def open_attempts(self) -> set[str]:
        """Return the attempts that the ledger holds as in flight."""
        return {row.id for row in self._rows(call.c.state == OPEN)}

    def settled(self) -> int:
        return len(self._rows(call.c.state == SETTLED))

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.read_text().splitlines()]

    def require_complete(self) -> Books:
        """Check that each document has one right row, in order, and that ledger and invoice agree."""
        rows = self.rows()
        assert [row["document_id"] for row in rows] == [f"{n:04}.txt" for n in range(self.documents)]
        assert [row["data"] for row in rows] == [f"{n:04}" for n in range(self.documents)]
        manifest = json.loads(self.output.with_suffix(".manifest.json").read_text())
        assert manifest["documents"] == manifest["rows"] == self.documents
        assert manifest["dead_letters"] is None
        settled = self._rows(call.c.state == SETTLED)
        assert len(settled) == len({row.fingerprint for row in settled}) == self.documents
        return balance(self.ledger_url, self.server.invoice)

    def _rows(self, where: Any) -> list[Any]:
        if not sa.inspect(self.engine).has_table(call.name):
            return []
        with self.engine.connect() as connection:
            return list(connection.execute(sa.select(call).where(where)))


@dataclass(kw_only=True)
class Chaos:
    """The Airflow and its jobs."""

    airflow: AirflowUnderTest
    jobs: dict[str, Job]


def runs(pid: int) -> bool:
    """Return whether the process is there and works."""
    try:
        return is_alive(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False
