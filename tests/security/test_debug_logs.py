"""With everything logged at DEBUG and with Airflow's traces on, errors of every kind show no text that is not ours.

A word of its own is planted in each document, row, answer, tool call, form and XCom of a real Airflow's run, and looked
for in what Airflow and its tasks write.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx2
import pytest

from airflow_llm_provider.testing.processes import wait_until
from airflow_llm_provider.testing.standin import StandIn
from tests.support.airflow import AirflowUnderTest

pytestmark = pytest.mark.system

# A word for each source of text; it is in no other.
WORDS = {
    name: f"planted{number}{name}"
    for number, name in enumerate(
        (
            *("document", "result", "value", "key", "argument", "tool", "reason", "stop", "half"),
            *("feedback", "edit", "file", "row", "broken", "choice"),
        )
    )
}
LOGGERS = (
    *(
        "anthropic",
        "httpx2",
        "httpcore2",
        "httpx",
        "httpcore",
        "aiohttp",
        "aiohttp.client",
        "asyncio",
        "psycopg",
    ),
    *(
        "sqlalchemy",
        "sqlalchemy.engine",
        "sqlalchemy.engine.Engine",
        "fsspec",
        "pypdfium2",
        "airflow_llm_provider",
    ),
)
LOCAL_SETTINGS = f"""
import logging, sys
for name in {LOGGERS!r}:
    logging.getLogger(name).setLevel(logging.DEBUG)
if "scheduler" in sys.argv:
    import anthropic, aiohttp, httpx2, airflow_llm_provider.hooks.question, airflow_llm_provider.ledger.ledger
"""
# What Airflow 3.3 writes at DEBUG of what it carries to and from a task: XComs, forms, answers, rendered templates.
CARRIED = re.compile(rb"\[debug +\] (Received message from task runner|Sending) +\[supervisor\]")
FAILED = {
    *(
        f"{name}_{way}"
        for name in ("shape", "keys", "prose", "refused", "stopped", "500", "dropped")
        for way in ("worker", "deferred")
    ),
    *("model", "complaint", "validator", "judge", "repair", "turns", "wrong"),
    *(
        "prompt_of_another",
        "inputs_of_another",
        "messages_of_another",
        "budget_of_another",
        "output_of_another",
    ),
    *("folder", "path_of_another", "dict_of_another", "limit_of_another", "share_of_another"),
    *("hook_ask", "hook_map", "hook_session"),
}


@dataclass
class Collector:
    """An OTLP collector on loopback that keeps what it is sent."""

    bodies: list[bytes] = field(default_factory=list)

    def __enter__(self) -> Self:
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"


@dataclass(frozen=True)
class Stage:
    """A real Airflow that has run the DAGs."""

    airflow: AirflowUnderTest
    server: StandIn
    traces: Collector
    runs: dict[str, str]
    sent: list[str]

    def tables(self) -> dict[str, str]:
        """Return all that Airflow's database holds, by table."""
        with closing(sqlite3.connect(self.airflow.home / "airflow.db")) as database:
            names = [
                row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            ]
            return {name: str(database.execute(f'SELECT * FROM "{name}"').fetchall()) for name in names}

    def instances(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for dag_id, run_id in self.runs.items():
            for ti in self.airflow.task_instances(dag_id, run_id):
                yield dag_id, run_id, ti


def script(server: StandIn, sent: list[str]) -> None:
    """Answer each task in its own wrong way."""

    def seen(question: Any) -> bool:
        sent.append(question.text)
        return False

    letter = f"In spring, says {WORDS['value']}."
    server.reply(text=letter)
    server.reply(data={"date": letter}, matching=lambda question: question.schema is not None)
    wrong_key = json.dumps({"date": "2026-01-01", WORDS["key"]: 1})
    for way in ("worker", "deferred"):
        server.reply(text=wrong_key, matching=f"[keys_{way}]")
        server.reply(text=f"No JSON, {WORDS['value']}.", matching=f"[prose_{way}]")
        server.reply(text=f"I refuse, {WORDS['half']}.", stop_reason="refusal", matching=f"[refused_{way}]")
        server.reply(text=letter, stop_reason=WORDS["stop"], matching=f"[stopped_{way}]")
        server.fail(500, matching=f"[500_{way}]")
        server.fail(kind="drop", matching=f"[dropped_{way}]")
    findings = [{"criterion": 1, "why": f"Not so, {WORDS['reason']}.", "is_met": False}]
    server.reply(data={"findings": findings}, matching="Judge whether")
    calls = {
        "tool": {"name": "look_up", "input": {"name": WORDS["argument"]}},
        "unknown": {"name": WORDS["tool"], "input": {"name": WORDS["argument"]}},
        "arguments": {"name": "look_up", "input": {WORDS["key"]: WORDS["argument"]}},
        "broken": {"name": "look_up", "input": {"name": f"broken {WORDS['argument']}"}},
    }
    for name, call in calls.items():
        server.reply(tool_use=[call], turn=0, matching=f"[{name}]")
    server.reply(tool_use=[calls["tool"]], matching="[turns]")
    server.reply(tool_use=[{"name": "pay", "input": {"to": WORDS["argument"]}}], turn=0, matching="[paying]")
    server.reply(data={"reason": WORDS["reason"], "confidence": 0.5, "choice": "here"}, matching="[choice]")
    for name in ("unsure", "wrong"):
        server.reply(
            data={"reason": WORDS["reason"], "confidence": 2, "choice": WORDS["choice"]}, matching=f"[{name}]"
        )
    server.reply(text="", matching=seen)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("debug")
    for name in ("dags", "inbox", "home/config", "out"):
        (folder / name).mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("debug_dag.py"), folder / "dags" / "debug_dag.py")
    (folder / "home" / "config" / "airflow_local_settings.py").write_text(LOCAL_SETTINGS)
    for name in ("document", "result"):
        (folder / f"{name}.txt").write_text(f"Signed in {WORDS[name]}.")
    (folder / "inbox" / "letter.txt").write_text(f"Signed in {WORDS['file']}.")
    (folder / "inbox" / "broken.pdf").write_bytes(b"%PDF-1.7 " + WORDS["broken"].encode())
    rows = f'{{"id": 1, "text": "{WORDS["row"]}"}}\n{{"id": 2, "text": "{WORDS["row"]}"\n["{WORDS["row"]}"]\n'
    (folder / "inbox" / "rows.jsonl").write_text(rows)
    sent: list[str] = []
    with StandIn() as server, Collector() as traces:
        script(server, sent)
        connection = {"conn_type": "claude", "host": server.url, "password": "sk-debug"}
        config = {
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "DEBUG",
            "AIRFLOW__LOGGING__NAMESPACE_LEVELS": " ".join(f"{name}=DEBUG" for name in LOGGERS),
            "AIRFLOW__TRACES__OTEL_ON": "True",
            "OTEL_EXPORTER_OTLP_ENDPOINT": traces.url,
            "OTEL_TRACES_EXPORTER": "otlp_proto_http",
            "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true",
            "ANTHROPIC_OPEN_TELEMETRY": "true",
            "ANTHROPIC_OPEN_TELEMETRY_TRACES_CONTENT_MODE": "content",
            "ANTHROPIC_LOG": "debug",
        }
        with AirflowUnderTest(
            folder / "home",
            folder / "dags",
            parallelism=6,
            connections={"claude_default": connection},
            config=config,
        ) as airflow:
            runs = {name: airflow.trigger(name) for name in ("debug", "asked")}
            answer_all(airflow, runs["asked"])
            for name, run_id in runs.items():
                airflow.wait(name, run_id, timeout_s=900)
            yield Stage(airflow, server, traces, runs, sent)


def answer_all(airflow: AirflowUnderTest, run_id: str) -> None:
    """Answer every question, each with a planted word in what is typed."""
    answers: dict[str, tuple[str, dict[str, Any]]] = {
        "rejected": ("Reject", {"feedback": f"No, {WORDS['feedback']}."}),
        "edited": ("Approve with changes", {"content": [f"Not a letter, {WORDS['edit']}."]}),
        "because": ("Approve", {"feedback": f"Fine, {WORDS['feedback']}."}),
        "paying": ("Reject", {"feedback": f"No, {WORDS['feedback']}."}),
        "choice": ("there", {"feedback": f"There, {WORDS['feedback']}."}),
    }

    def is_open(task_id: str) -> bool:
        with suppress(httpx2.TransportError):  # the API server may be busy
            tis = airflow.task_instances("asked", run_id)
            return any(ti["task_id"] == task_id and ti["state"] == "awaiting_input" for ti in tis)
        return False

    for task_id, (option, fields) in answers.items():
        assert wait_until(lambda task_id=task_id: is_open(task_id), 300), task_id  # type: ignore[misc]
        airflow.answer("asked", run_id, task_id, option, **fields)


def has(content: bytes | str) -> list[str]:
    """Return the names of the planted words in `content`."""
    text = content if isinstance(content, str) else content.decode("utf-8", "replace")
    return sorted(name for name, word in WORDS.items() if word in text)


def test_every_task_met_its_error_and_every_word_was_in_use(stage: Stage) -> None:
    states = {ti["task_id"]: ti["state"] for dag_id, _, ti in stage.instances() if dag_id == "debug"}
    assert {name for name, state in states.items() if state == "failed"} == FAILED
    asked = {ti["task_id"]: ti["state"] for dag_id, _, ti in stage.instances() if dag_id == "asked"}
    assert {name for name, state in asked.items() if state == "failed"} == {"rejected", "edited"}
    # What was sent to the API is what the logs must not have.
    assert {"document", "file", "row", "result", "argument"} <= set(has("".join(stage.sent)))


def test_no_text_is_in_a_log_at_debug(stage: Stage) -> None:
    logs = list((stage.airflow.home / "logs").rglob("*.log"))
    lines = {str(path.relative_to(stage.airflow.home)): path.read_bytes().splitlines() for path in logs}
    assert sum(b'"level":"debug"' in line for its in lines.values() for line in its) > 1000
    found = [
        (name, has(line), line[:300])
        for name, its in lines.items()
        for line in its
        if has(line) and not CARRIED.search(line)
    ]
    assert found == []


def test_errors_still_say_what_is_wrong(stage: Stage) -> None:
    logs: dict[str, str] = {}
    for path in (stage.airflow.home / "logs").rglob("task_id=*/*.log"):  # of all attempts, and of the trigger
        task_id = path.parent.name.partition("=")[2]
        logs[task_id] = logs.get(task_id, "") + path.read_text()
    for task_id, said in (
        ("shape_worker", "InvalidOutput: date: maxLength should be 10"),
        ("model", "InvalidOutput: date: value_error"),
        ("complaint", "The validator complains complained about the answer in "),
        ("validator", "The validator breaks raised LookupError in breaks, debug_dag.py line "),
        ("judge", "The judge finds 1 of 1 criteria not met."),
        ("inputs_of_another", "inputs= is of type str: give a dict of data by name."),
        ("prompt_of_another", "prompt= is of type dict"),
        ("limit_of_another", "limit= is of type str of "),
        ("path_of_another", "which another task gave, is outside the roots"),
        ("rejected", "rejected it, with a feedback of "),
        ("edited", "The edit is not valid: "),
    ):
        assert said in logs[task_id], (task_id, logs[task_id][-3000:])


def test_no_text_is_in_a_rendered_template_or_in_the_event_log(stage: Stage) -> None:
    # The author's own templates pull the document into these arguments.
    by_template = {"budget_of_another", "output_of_another", "limit_of_another", "share_of_another"}
    rendered = {ti["task_id"]: str(ti["rendered_fields"]) for _, _, ti in stage.instances()}
    found = {name: has(text) for name, text in rendered.items() if has(text)}
    assert found.keys() <= by_template | {"prompt_of_another", "path_of_another"}, found
    with closing(sqlite3.connect(stage.airflow.home / "airflow.db")) as database:
        events = {
            (event, word)
            for event, extra in database.execute("SELECT event, extra FROM log")
            for word in has(str(extra))
        }
    # Airflow's own record of what a person sent through its API.
    assert events <= {("update_hitl_detail", "feedback"), ("update_hitl_detail", "edit")}


def test_airflows_database_has_the_text_only_where_it_is_meant_to_be(stage: Stage) -> None:
    found = {name: has(rows) for name, rows in stage.tables().items() if has(rows)}
    # Answers and complaints are XComs; the form shows the content, and keeps what was typed.
    assert found.keys() <= {
        "xcom",
        "hitl_detail",
        "hitl_detail_history",
        "rendered_task_instance_fields",
        "log",
    }, found
    xcoms = {}
    for dag_id, run_id, ti in stage.instances():
        path = f"dags/{dag_id}/dagRuns/{quote(run_id)}/taskInstances/{ti['task_id']}/xcomEntries"
        for xcom in stage.airflow.get(path)["xcom_entries"]:
            if words := has(str(stage.airflow.get(f"{path}/{xcom['key']}"))):
                xcoms[ti["task_id"], xcom["key"]] = words
    meant = {"return_value", "llm_checks", "llm_branch", "content"}
    # `llm_usage` has the reply's stop reason, as the server gave it.
    others = {key for (_, key), words in xcoms.items() if (key, words) != ("llm_usage", ["stop"])}
    assert others <= meant, xcoms


def test_no_text_is_in_a_span(stage: Stage) -> None:
    assert stage.traces.bodies
    assert has(b"".join(stage.traces.bodies)) == []
