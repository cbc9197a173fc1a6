"""Tools over real HTTP, in processes that are really killed: what may happen once happens once, and it is said."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from airflow_llm_provider.ledger.database import Database
from airflow_llm_provider.ledger.schema import call, effect
from airflow_llm_provider.testing.standin import StandIn
from tests.support.books import balance

PROGRAM = Path(__file__).parent / "tools_process.py"


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return request.getfixturevalue("postgres_url")


@dataclass(kw_only=True)
class Task:
    """One task instance, in as many processes as a test starts; `go` lets the tool return."""

    ledger_url: str
    server: StandIn
    folder: Path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        given = {
            "ledger": self.ledger_url,
            "server": self.server.url,
            "journal": self.journal,
            "go": self.gate,
        }
        options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        return subprocess.Popen(
            [sys.executable, str(PROGRAM), *options, *arguments], stdout=subprocess.PIPE, text=True
        )

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    @property
    def gate(self) -> Path:
        return self.folder / "go"

    def happened(self) -> list[str]:
        return self.journal.read_text().splitlines() if self.journal.exists() else []

    def wait_until_begun(self) -> None:
        deadline = time.monotonic() + 120
        while not self.happened():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def database(self) -> Database:
        return Database(self.ledger_url)

    def execute(self, statement: sa.Executable) -> None:
        database = self.database()
        with database.write() as connection:
            connection.execute(statement)
        database.close()


@pytest.fixture
def task(ledger_url: str, claude_server: StandIn, tmp_path: Path) -> Iterator[Task]:
    claude_server.reply(text="Paid.")
    claude_server.reply(text="I pay it.", tool_use=[{"name": "pay", "input": {"amount": 12}}], turn=0)
    yield Task(ledger_url=ledger_url, server=claude_server, folder=tmp_path)
    balance(ledger_url, claude_server.invoice)


@pytest.fixture
def started(task: Task) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        processes.append(task.start(*arguments))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def told(process: subprocess.Popen[str]) -> dict[str, object]:
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    answer: dict[str, object] = json.loads(said)
    return answer


def test_killed_between_its_call_and_its_answer_it_ran_once_and_that_is_said(
    task: Task, started: Callable[..., subprocess.Popen[str]]
) -> None:
    first = started()
    task.wait_until_begun()
    first.send_signal(signal.SIGKILL)
    assert first.wait(60) == -signal.SIGKILL
    # The lease of the dead process runs out; a test has no 45 s to spend.
    task.execute(sa.update(effect).values(lease_until_ms=0))
    task.gate.touch()
    for _ in range(2):
        retry = told(started())
        assert (retry["error"], retry["paid"]) == ("EffectUnknown", 0)
        assert "The tool pay may run once. It began at 20" in str(retry["message"])
        assert "effects list --unknown" in str(
            retry["message"]
        )  # which shows the arguments; a message does not
    assert task.happened() == ["begun 12"]
    assert task.server.invoice.paid == 1

    effect_id = str(retry["message"]).partition("effects settle ")[2].split()[0]
    program = "from airflow_llm_provider.cli import app; app()"
    subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            "effects",
            "settle",
            effect_id,
            "--output",
            "paid 12",
            "--ledger-url",
            task.ledger_url,
        ],
        check=True,
    )
    assert told(started()) == {"answer": "Paid.", "paid": 1}
    assert task.happened() == ["begun 12"]
    assert task.server.invoice.paid == 2


def test_two_processes_of_one_task_instance_run_it_once_and_both_answer(
    task: Task, started: Callable[..., subprocess.Popen[str]]
) -> None:
    both = [started(), started()]
    task.wait_until_begun()
    time.sleep(2)  # time for the other to come to the tool too
    assert task.happened() == ["begun 12"]
    task.gate.touch()
    answers = [told(process) for process in both]
    assert [answer["answer"] for answer in answers] == ["Paid.", "Paid."]
    assert sum(int(str(answer["paid"])) for answer in answers) == task.server.invoice.paid == 2
    assert task.happened() == ["begun 12", "ended 12"]


def test_a_retry_of_what_was_answered_buys_and_runs_nothing(
    task: Task, started: Callable[..., subprocess.Popen[str]]
) -> None:
    task.gate.touch()
    assert told(started()) == {"answer": "Paid.", "paid": 2}
    assert told(started()) == {"answer": "Paid.", "paid": 0}
    assert task.happened() == ["begun 12", "ended 12"]
    assert task.server.invoice.paid == 2
    database = task.database()
    with database.read() as connection:
        purposes = connection.scalars(sa.select(call.c.purpose).order_by(call.c.opened_ms)).all()
    database.close()
    assert purposes == ["answer", "tool_turn"]


def test_calls_that_come_streamed_are_made_too(
    task: Task, started: Callable[..., subprocess.Popen[str]]
) -> None:
    task.gate.touch()
    assert told(started("--max-tokens", "30000")) == {"answer": "Paid.", "paid": 2}
    assert task.happened() == ["begun 12", "ended 12"]
