"""Secrets and document text, planted with marks of their own in a real Airflow and looked for wherever it writes."""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from proxy import Proxy

from airflow_llm_provider.testing.processes import wait_until
from airflow_llm_provider.testing.standin import StandIn
from tests.support.airflow import AirflowUnderTest
from tests.support.postgres import LocalPostgres

pytestmark = pytest.mark.system

SECRETS = {
    "api key": "sk-ant-planted-Quaggakey",
    "ledger password": "Planted+Ledgerword",
    "proxy password": "planted-Proxyword",
    "another field": "planted-Extrafield",
}
# Where the text of a document comes from, and a word that is in no other.
TEXTS = {name: f"plantedword{number}" for number, name in enumerate(
    ("letter", "exported", "returned", "invalid", "shown", "waiting", "broken")
)}  # fmt: skip
PRELOAD = """
import sys
if "scheduler" in sys.argv:
    import anthropic, aiohttp, httpx2, airflow_llm_provider.hooks.question, airflow_llm_provider.ledger.ledger
"""


def forms(secret: str) -> set[bytes]:
    """Return a secret as it may be written."""
    user = base64.b64encode(f"someone:{secret}".encode()).decode()
    return {form.encode() for form in (secret, quote(secret, safe=""), user)}


@dataclass(frozen=True)
class Stage:
    """A real Airflow that has run the DAGs, and what it asked through."""

    airflow: AirflowUnderTest
    server: StandIn
    proxy: Proxy
    ledger_url: str
    runs: dict[str, str]

    def tables(self) -> dict[str, bytes]:
        """Return all that Airflow's database holds, by table, whether deleted rows linger in the file or not."""
        with closing(sqlite3.connect(self.airflow.home / "airflow.db")) as database:
            names = [
                row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            ]
            return {name: as_bytes(database.execute(f'SELECT * FROM "{name}"').fetchall()) for name in names}

    def ledger(self) -> bytes:
        """Return all that the ledger holds, unpacked."""
        engine = sa.create_engine(self.ledger_url, poolclass=sa.NullPool)
        with engine.connect() as connection:
            names = sa.inspect(connection).get_table_names()
            return b"".join(
                as_bytes([tuple(row) for row in connection.execute(sa.text(f'SELECT * FROM "{name}"'))])
                for name in names
            )

    def pages(self) -> dict[str, bytes]:
        """Return what the UI shows of every task instance: its fields, XComs, log and question."""
        found: dict[str, bytes] = {}
        for dag_id, run_id in self.runs.items():
            for ti in self.airflow.task_instances(dag_id, run_id):
                path = f"dags/{dag_id}/dagRuns/{quote(run_id)}/taskInstances/{ti['task_id']}"
                xcoms = self.airflow.get(f"{path}/xcomEntries")["xcom_entries"]
                values = [self.airflow.get(f"{path}/xcomEntries/{xcom['key']}") for xcom in xcoms]
                name = f"{dag_id}.{ti['task_id']}"
                found[f"{name} rendered"] = as_bytes([ti["rendered_fields"]])
                found[f"{name} xcoms"] = as_bytes(values)
                if ti["try_number"]:
                    found[f"{name} log"] = self.airflow.log(dag_id, run_id, ti["task_id"]).encode()
        found["asked.approval question"] = as_bytes(
            [self.airflow.question("asked", self.runs["asked"], "approval")]
        )
        found["asked.paying question"] = as_bytes(
            [self.airflow.question("asked", self.runs["asked"], "paying")]
        )
        return found


def as_bytes(rows: Any) -> bytes:
    """Return rows as text, blobs unpacked where they are packed."""

    def cell(value: Any) -> str:
        if isinstance(value, memoryview):
            value = value.tobytes()
        if isinstance(value, bytes):
            with suppress(zlib.error):
                value = zlib.decompress(value)
            return value.decode("utf-8", "replace")
        return value if isinstance(value, str) else json.dumps(value, default=str)

    return "\n".join(
        cell(value) for row in rows for value in (row if isinstance(row, tuple) else (row,))
    ).encode()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("planted")
    for name in ("dags", "inbox", "home/config", "out"):
        (folder / name).mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("planted_dag.py"), folder / "dags" / "planted.py")
    (folder / "home" / "config" / "airflow_local_settings.py").write_text(PRELOAD)
    for name, word in TEXTS.items():
        (folder / f"{name}.txt").write_text(f"Signed in {word}, {{{{ conn.claude_default.password }}}}.")
    (folder / "invalid.txt").write_text(json.dumps({"day": TEXTS["invalid"]}))
    shutil.move(folder / "letter.txt", folder / "inbox" / "letter.txt")
    (folder / "inbox" / "broken.pdf").write_bytes(b"%PDF-1.7 " + TEXTS["broken"].encode())
    (folder / "inbox" / "rows.jsonl").write_text(
        f'{{"id": 1, "text": "{TEXTS["broken"]}"\n["{TEXTS["broken"]}"]\n'
    )
    with (
        LocalPostgres(durable=False) as postgres,
        StandIn(api_key=SECRETS["api key"]) as server,
        Proxy() as proxy,
    ):
        script(server)
        url = sa.make_url(postgres.create_database("ledger"))
        ledger_url = url.set(password=SECRETS["ledger password"]).render_as_string(hide_password=False)
        connection = {
            "conn_type": "claude",
            "host": server.url,
            "password": SECRETS["api key"],
            "extra": {
                "proxy": f"http://someone:{SECRETS['proxy password']}@127.0.0.1:{proxy.port}",
                "ledger_url": ledger_url,
                "webhook": SECRETS["another field"],
            },
        }
        with AirflowUnderTest(
            folder / "home",
            folder / "dags",
            parallelism=6,
            connections={"claude_default": connection},
            config={"AIRFLOW__LLM__LEDGER_URL": ledger_url, "AIRFLOW__LLM__PAYLOAD": "full"},
        ) as airflow:
            runs = {name: airflow.trigger(name) for name in ("planted", "asked")}
            airflow.wait("planted", runs["planted"], timeout_s=240)
            assert wait_until(lambda: states(airflow, "asked", runs["asked"], "awaiting_input") == 2, 120)
            yield Stage(airflow, server, proxy, ledger_url, runs)


def script(server: StandIn) -> None:
    """Let every answer be one of its own words, and every error repeat the key, as some gateways do."""
    server.reply(text="In spring.")
    server.reply(data={"date": "In spring."}, matching=lambda question: question.schema is not None)
    server.reply(data={"reason": "It says so.", "confidence": 0.9, "choice": "left"}, matching="[route]")
    server.reply(tool_use=[{"name": "look_up", "input": {"name": "Mill"}}], turn=0, matching="[tools]")
    server.reply(tool_use=[{"name": "pay", "input": {"amount": 5}}], turn=0, matching="[paying]")
    for status in (400, 401, 500):
        said = f"You sent x-api-key: {SECRETS['api key']}, and that is wrong."
        server.fail(status, message=said, matching=f"[{status}]")
    server.fail(kind="slow", duration_s=20.0, matching="[slow]")


def states(airflow: AirflowUnderTest, dag_id: str, run_id: str, state: str) -> int:
    return sum(ti["state"] == state for ti in airflow.task_instances(dag_id, run_id))


def has(content: bytes, words: Any) -> list[str]:
    """Return the names of what is in `content`."""
    return sorted(name for name, word in words.items() if any(form in content for form in forms(word)))


def test_every_task_ended_as_it_should_and_the_secrets_were_in_use(stage: Stage) -> None:
    ended = {
        ti["task_id"]: ti["state"] for ti in stage.airflow.task_instances("planted", stage.runs["planted"])
    }
    failed = {f"{status}_{way}" for status in (400, 401, 500) for way in (True, False)}
    assert {name for name, state in ended.items() if state == "failed"} == failed
    assert {name for name, state in ended.items() if state == "skipped"} == {"right"}
    heads = b"".join(stage.proxy.heads)
    assert base64.b64encode(f"someone:{SECRETS['proxy password']}".encode()) in heads
    assert SECRETS["api key"].encode() in heads
    sent = stage.ledger()
    assert has(sent, TEXTS) == sorted({*TEXTS} - {"waiting", "broken"})  # so unpacking it works


def test_no_secret_is_in_any_file_of_any_component(stage: Stage) -> None:
    files = [path for path in stage.airflow.home.parent.rglob("*") if path.is_file()]
    assert {"scheduler.log", "triggerer.log", "api-server.log", "dag-processor.log", "airflow.db"} <= {
        path.name for path in files
    }
    assert {str(path): found for path in files if (found := has(path.read_bytes(), SECRETS))} == {}


def test_no_secret_is_in_the_ledger(stage: Stage) -> None:
    assert has(stage.ledger(), SECRETS) == []


def test_no_secret_is_on_any_page_and_errors_still_say_why(stage: Stage) -> None:
    pages = stage.pages()
    assert {name: found for name, content in pages.items() if (found := has(content, SECRETS))} == {}
    for status, error in ((400, b"BadRequest"), (401, b"AuthenticationFailed"), (500, b"ServerError")):
        for way in (True, False):
            log = pages[f"planted.{status}_{way} log"]
            assert error in log
            assert b"You sent x-api-key: ***, and that is wrong." in log


@pytest.mark.parametrize(
    "command",
    [
        *(
            "ledger",
            "ledger show --conn-id claude_default",
            "ledger show --json",
            "ledger check",
            "ledger export --with-payload",
        ),
        *(
            "costs",
            "costs --by document --csv",
            "costs --json",
            "budgets list",
            "effects list --json",
        ),
        *("dead-letters list OUT --json", "dead-letters show OUT broken.pdf", "dead-letters reopen OUT"),
        *("test-connection", "ledger show --ledger-url BROKEN", "costs --ledger-url BROKEN"),
    ],
)
def test_no_secret_is_in_what_a_command_prints(stage: Stage, command: str) -> None:
    broken = sa.make_url(stage.ledger_url).set(database="nowhere").render_as_string(hide_password=False)
    broken += "?password=" + quote(SECRETS["ledger password"])
    places = {"OUT": str(stage.airflow.home.parent / "out" / "rows.jsonl"), "BROKEN": broken}
    done = subprocess.run(
        ["airflow-llm", *(places.get(word, word) for word in command.split())],
        env=stage.airflow.environment(),
        cwd=stage.airflow.home,
        capture_output=True,
        check=False,
    )
    assert (done.returncode == 0) == ("BROKEN" not in command), done.stdout + done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stdout + done.stderr
    assert has(done.stdout + done.stderr, SECRETS) == []


def test_document_text_is_in_no_log_and_no_rendered_template(stage: Stage) -> None:
    logs = stage.airflow.home / "logs"
    assert {
        str(path): found for path in logs.rglob("*.log") if (found := has(path.read_bytes(), TEXTS))
    } == {}
    pages = stage.pages()
    shown = {name: found for name, content in pages.items() if (found := has(content, TEXTS))}
    # What the DAG's author returns, and what a person is asked about, is shown; nothing else is.
    assert shown == {
        "planted.exported xcoms": ["exported"],
        "planted.invalid xcoms": ["invalid"],
        "asked.shown xcoms": ["shown"],
        "asked.approval question": ["shown"],
    }


def test_document_text_is_in_airflows_database_only_where_the_author_sends_it(stage: Stage) -> None:
    assert {name: found for name, rows in stage.tables().items() if (found := has(rows, TEXTS))} == {
        "xcom": ["exported", "invalid", "shown"],
        "hitl_detail": ["shown"],
    }


def test_what_a_tool_raises_is_named_by_its_class_and_line_and_not_quoted(stage: Stage) -> None:
    log = stage.pages()["planted.tools log"]
    assert b"Tool look_up raised LookupError in look_up, planted.py line " in log
    assert b"nobody is called Mill" not in log


def test_a_deferred_call_waits_with_its_text_only_where_a_function_made_it(stage: Stage) -> None:
    run = stage.airflow.trigger("waiting")
    assert wait_until(lambda: stage.server.in_flight == 2, 90)
    with closing(sqlite3.connect(stage.airflow.home / "airflow.db")) as database:
        waiting = database.execute(
            "SELECT ti.task_id, t.kwargs FROM trigger t JOIN task_instance ti ON ti.trigger_id = t.id"
        ).fetchall()
    # Airflow 3.3 encrypts what a task starts in the triggerer with, and not what a worker defers with.
    texts = {task_id: has(str(kwargs).encode(), TEXTS) for task_id, kwargs in waiting}
    assert texts == {"parked": ["waiting"], "started": []}
    assert stage.airflow.wait("waiting", run, timeout_s=120) == "success"
    assert wait_until(lambda: "waiting" not in has(stage.tables()["trigger"], TEXTS), 60)
    assert {name for name, rows in stage.tables().items() if "waiting" in has(rows, TEXTS)} == {"xcom"}
