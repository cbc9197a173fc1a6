"""What runs while things are thrown: documents, mapped calls, repair chains and approvals, and how each must end."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from airflow_llm_provider.ledger.schema import LATE, OPEN, SETTLED, UNPROVEN, call, review
from airflow_llm_provider.testing.question import Question
from airflow_llm_provider.testing.standin import StandIn
from tests.support.airflow import SteeredAirflow
from tests.support.books import Books, balance

SHARED, LOCAL = 260, 160  # documents, by ledger
STAGES, ASKS, CHAINS = 6, 5, 3  # single calls: so many stages of so many; repair chains
REPAIRS = 30  # the last document may get every truncated and every wrong-shaped answer of a seed, 24 of them
IN_FLIGHT = {"shared": 8, "local": 5}  # calls at once, by task; the others make one
DAG_ID = "chaos"
DAG = """
import json
from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, task
from pydantic import BaseModel

from airflow_llm_provider.operators.claude import ClaudeOperator
from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator
from airflow_llm_provider.operators.repair import ValidationRepairOperator
from airflow_llm_provider.options import OnInvalid
from airflow_llm_provider.sensors.approval import ApprovalSensor

NAME = "{{ dag_run.conf['name'] }}"
ASKED = "Which note is it, and what is the double of its number?"
SCHEMA = {
    "type": "object",
    "properties": {"note": {"type": "string"}, "double": {"type": "integer"}},
    "required": ["note", "double"],
    "additionalProperties": False,
}


class Note(BaseModel):
    note: str
    double: int


def is_double(note: Note):
    return None if note.double == 2 * int(note.note[-4:]) else "double has to be twice the note's number"


CHECKED = {"output_type": Note, "validators": [is_double], "on_invalid": OnInvalid(max_repairs=%(repairs)d)}

with DAG(
    "%(dag_id)s",
    schedule=None,
    max_active_tasks=32,
    default_args={"retries": 99, "retry_delay": timedelta(seconds=1)},
):
    ClaudeDocumentsOperator(
        task_id="shared",
        documents=f"%(inbox)s/{NAME}/shared",
        prompt=ASKED,
        output=f"%(rows)s/{NAME}-shared.jsonl",
        max_in_flight=%(shared)d,
        claude_conn_id="shared",
        **CHECKED,
    )
    ClaudeDocumentsOperator(
        task_id="local",
        documents=f"%(inbox)s/{NAME}/local",
        prompt=ASKED,
        output=f"%(rows)s/{NAME}-local.jsonl",
        max_in_flight=%(local)d,
        claude_conn_id="local",
        queue="%(queue)s",
        **CHECKED,
    )
    before = None
    for stage in range(%(stages)d):
        asks = ClaudeOperator.partial(
            task_id=f"ask_{stage}",
            output_type=SCHEMA,
            on_invalid=OnInvalid(max_repairs=%(repairs)d),
            deferrable=True,
            claude_conn_id="shared",
        ).expand(prompt=[f"{ASKED} Note {NAME}-ask{stage}{number:03}." for number in range(%(asks)d)])
        if before:
            before >> asks
        before = asks

    @task
    def act(decision, name, dag_run=None):
        file = Path("%(acts)s") / f"{dag_run.conf['name']}-{name}.json"
        draft = file.with_suffix(".draft")
        draft.write_text(json.dumps({"status": decision["status"], **decision["content"]}))
        draft.replace(file)

    for number in range(%(chains)d):
        text = f"Note {NAME}-chain{number:04}."
        draft = ClaudeOperator(task_id=f"draft_{number}", prompt=f"{ASKED} {text}", claude_conn_id="shared")
        mend = ValidationRepairOperator(
            task_id=f"mend_{number}",
            answer=draft.output,
            prompt=f"{ASKED} {text}",
            claude_conn_id="shared",
            **CHECKED,
        )
        approval = ApprovalSensor(
            task_id=f"approval_{number}",
            content=mend.output,
            subject=f"Act on note {number}?",
            claude_conn_id="shared",
        )
        act.override(task_id=f"act_{number}")(approval.output, number)
"""
_NOTE = re.compile(r'(?:Note |"note":\s*")([\w-]+\d{4})')
# Shorter than they should be where it matters, so that what hangs costs seconds.
_PATIENCE = {"timeout_s": 8, "deadline_s": 60, "default_tier": "fast"}


def answer(question: Question) -> dict[str, Any]:
    """Say the note and twice its number; of every fifth wrongly, where validators are there to complain."""
    found = _NOTE.search(question.text)
    if found is None:  # a repair that shows neither the document nor a usable answer
        return {}
    number = int(found[1][-4:])
    is_wrong = number % 5 == 0 and "-ask" not in found[1] and "complaint" not in question.text
    return {"note": found[1], "double": 0 if is_wrong else 2 * number}


def connection(url: str, **extra: str) -> str:
    """Return a connection to a stand-in, as Airflow reads it from the environment."""
    return json.dumps(
        {"conn_type": "claude", "password": "sk-chaos", "host": url, "extra": {**_PATIENCE, **extra}}
    )


def write_dag(dags: Path, *, folder: Path, rows: Path, queue: str) -> None:
    """Write the DAG: documents and deeds lie below `folder`, rows in `rows`; the local ledger is at `queue`."""
    (folder / "acts").mkdir()
    values = {"dag_id": DAG_ID, "stages": STAGES, "asks": ASKS, "chains": CHAINS}
    values |= {"repairs": REPAIRS, "queue": queue, **IN_FLIGHT}
    values |= {"rows": rows, "inbox": folder / "documents", "acts": folder / "acts"}
    (dags / "chaos.py").write_text(DAG % values)


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What was paid until some moment."""

    charged: int  # lines on the invoices
    answered: int  # different requests that the ledgers have an answer to
    lost_to_faults: int  # charged replies that a fault has kept from arriving


@dataclass(kw_only=True)
class Workload:
    """The DAG, its documents, its two ledgers, and a stand-in for each.

    folder: its files lie below it, but for the rows, which are in `rows`.
    ledgers: connection id to URL.
    """

    folder: Path
    rows: Path
    ledgers: Mapping[str, str]
    servers: Mapping[str, StandIn]

    def __post_init__(self) -> None:
        # A database that is stopped must not stop us.
        patience = {"connect_timeout": 3, "options": "-c statement_timeout=3000"}
        self._engines = {
            name: sa.create_engine(
                url,
                poolclass=sa.NullPool,
                connect_args=patience if url.startswith("postgresql") else {"timeout": 3},
            )
            for name, url in self.ledgers.items()
        }
        for server in self.servers.values():
            server.reply(call=answer)

    def write_documents(self, name: str) -> None:
        """Write the documents of the run `name`."""
        for kind, count in (("shared", SHARED), ("local", LOCAL)):
            inbox = self.folder / "documents" / name / kind
            inbox.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                (inbox / f"{number:04}.txt").write_text(f"Note {name}-{kind}{number:04} is due. " * 20)

    def settled(self) -> int:
        """Count what is settled; what a ledger that is away holds counts for nothing."""
        return sum(len(self._select(name, call.c.id, call.c.state == SETTLED)) for name in self.ledgers)

    def in_flight(self) -> int:
        """Count what the ledgers hold as in flight."""
        return sum(len(self._select(name, call.c.id, call.c.state == OPEN)) for name in self.ledgers)

    def tally(self) -> Tally:
        """Add up both sides."""
        charged = answered = lost = 0
        for name, server in self.servers.items():
            lines = server.invoice.lines
            charged += len(lines)
            rows = self._select(name, call.c.fingerprint, call.c.state.in_([SETTLED, LATE]))
            answered += len({row.fingerprint for row in rows})
            unheard = self._select(
                name, call.c.id, call.c.state == UNPROVEN, call.c.error_class == "NetworkError"
            )
            lost += min(len(unheard), sum(line.fault in ("drop", "slow") for line in lines))
        return Tally(charged=charged, answered=answered, lost_to_faults=lost)

    def require_complete(self, airflow: SteeredAirflow, name: str, run: str) -> list[Books]:
        """Check that everything has ended once, rightly, and that each ledger agrees with its invoice."""
        instances = airflow.task_instances(DAG_ID, run)
        assert len(instances) == 2 + STAGES * ASKS + 4 * CHAINS
        assert {instance["state"] for instance in instances} == {"success"}
        for kind, count in (("shared", SHARED), ("local", LOCAL)):
            self._require_rows(name, kind, count)
        for stage, number in product(range(STAGES), range(ASKS)):
            said = airflow.xcom(DAG_ID, run, f"ask_{stage}", map_index=number)
            assert said == _said(f"{name}-ask", 1000 * stage + number)
        for number in range(CHAINS):
            done = json.loads((self.folder / "acts" / f"{name}-{number}.json").read_text())
            assert done == {"status": "approved", **_said(f"{name}-chain", number)}
        decided = self._select("shared", review.c.status, review.c.run_id == run)
        assert [row.status for row in decided] == ["approved"] * CHAINS
        for ledger in self.ledgers:
            assert not self._select(ledger, call.c.id, call.c.state == OPEN), f"{ledger}: still in flight"
            settled = self._select(ledger, call.c.claim, call.c.state == SETTLED)
            assert len(settled) == len({row.claim for row in settled})
        return [balance(url, self.servers[ledger].invoice) for ledger, url in self.ledgers.items()]

    def most_in_flight_at_ends(self, airflow: SteeredAirflow, run: str) -> int:
        """Bound what was in flight when tries ended before their time, by the tries that Airflow counts."""
        instances = airflow.task_instances(DAG_ID, run)
        return sum((each["try_number"] - 1) * IN_FLIGHT.get(each["task_id"], 1) for each in instances)

    def _require_rows(self, name: str, kind: str, count: int) -> None:
        output = self.rows / f"{name}-{kind}.jsonl"
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        assert [row["document_id"] for row in rows] == [f"{number:04}.txt" for number in range(count)]
        assert [row["data"] for row in rows] == [_said(f"{name}-{kind}", number) for number in range(count)]
        manifest = json.loads(output.with_suffix(".manifest.json").read_text())
        assert manifest["documents"] == manifest["rows"] == sum(manifest["outcomes"].values()) == count
        assert manifest["dead_letters"] is None

    def _select(self, ledger: str, column: Any, *where: Any) -> list[Any]:
        """Return rows; none where the ledger is away, or not there yet."""
        engine = self._engines[ledger]
        if engine.dialect.name == "sqlite" and not Path(engine.url.database or "").exists():
            return []
        try:
            with engine.connect() as connection:
                return list(connection.execute(sa.select(column).where(*where)))
        except (sa.exc.OperationalError, sa.exc.ProgrammingError):
            return []


def _said(stem: str, number: int) -> dict[str, Any]:
    return {"note": f"{stem}{number:04}", "double": 2 * number}
