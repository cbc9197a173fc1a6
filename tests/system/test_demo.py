"""`airflow-llm demo`, as a person runs it: real rows, nothing paid twice, nothing left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_llm_provider.testing.processes import session_members
from airflow_llm_provider.testing.standin import StandIn

pytestmark = pytest.mark.system

COMMAND = [str(Path(sys.executable).with_name("airflow-llm"))]
FIELDS = [
    "documents",
    "answered",
    "reused",
    "dead_letters",
    "requests_paid",
    "cost_usd",
    "invoice_usd",
    "seconds",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the home that the tests of this file share, as the runs of `make demo` share theirs."""
    return tmp_path_factory.mktemp("demo") / "home"


@pytest.fixture(scope="module")
def first(home: Path) -> dict[str, Any]:
    """Return what the first demo said."""
    return demo(home)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[StandIn]:
    """Return a stand-in of our own, another endpoint than the demo's."""
    with StandIn(latency_s=0.1) as server:
        yield server


def environment(home: Path) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "ANTHROPIC"))}
    return env | {"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}


def airflow_llm(home: Path, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def demo(home: Path, *arguments: str) -> dict[str, Any]:
    done = airflow_llm(home, "demo", "--home", str(home), *arguments, timeout_s=180)
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(told)
    assert list(told) == FIELDS
    assert told["invoice_usd"] == told["cost_usd"]
    assert told["documents"] == told["answered"] + told["reused"] + told["dead_letters"]
    assert processes_of(home) == []
    return {**told, "said": done.stdout}


def processes_of(home: Path) -> list[Any]:
    """Return what still runs of the Airflow that worked in `home`."""
    found = subprocess.run(
        ["pgrep", "-f", f"{home}/|airflow (scheduler|api-server)"], capture_output=True, text=True
    )
    return [pid for pid in found.stdout.split() if works_in(int(pid), home)]


def works_in(pid: int, home: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").resolve().is_relative_to(home)
    except OSError:
        return False


def test_the_first_demo_lands_a_row_for_every_license(home: Path, first: dict[str, Any]) -> None:
    assert first["documents"] > 100
    assert first["dead_letters"] == 0
    assert 0 < first["requests_paid"] == first["answered"]
    assert first["reused"] > 0  # the same text in several packages is paid once
    assert first["seconds"] < 120
    rows = [json.loads(line) for line in (home / "license_audit" / "rows.jsonl").read_text().splitlines()]
    for words in (
        "not Claude",
        rows[0]["data"]["spdx_id"],
        "SPDX ids against the packages' own metadata",
        "http://127.0.0.1:",
    ):
        assert words in first["said"]
    assert len(rows) == first["documents"]
    assert {row["data"]["spdx_id"] for row in rows} >= {"MIT", "Apache-2.0", "BSD-3-Clause"}
    matches = int(first["said"].partition(" match,")[0].rpartition(" ")[2])
    assert matches > 100
    assert "Quotes not found in their file: 0." in first["said"]


def test_a_second_demo_pays_nothing(home: Path, first: dict[str, Any]) -> None:
    again = demo(home)
    assert again["requests_paid"] == 0
    assert again["cost_usd"] == "0.000000"
    assert again["reused"] == again["documents"] == first["documents"]


def test_nothing_is_reused_at_another_address(home: Path, first: dict[str, Any], elsewhere: StandIn) -> None:
    other = demo(home, "--base-url", elsewhere.url)
    assert other["requests_paid"] == first["requests_paid"] == elsewhere.invoice.paid
    assert other["answered"] == first["answered"]


def test_ctrl_c_in_the_middle_leaves_nothing_running(
    tmp_path: Path, home: Path, first: dict[str, Any]
) -> None:
    with StandIn(latency_s=20) as slow:
        with subprocess.Popen(
            [*COMMAND, "demo", "--home", str(home), "--base-url", slow.url],
            env=environment(home),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Whoever runs the tests in the background has SIGINT ignored, and a child inherits that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        ) as process:
            deadline = time.monotonic() + 90
            while slow.in_flight == 0 and time.monotonic() < deadline:
                time.sleep(0.1)
            assert slow.in_flight > 0
            sessions = {pid for pid, _ in json.loads((home / "launcher.json").read_text())["processes"]}
            assert session_members(sessions)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=120)
        assert process.returncode == 130
        assert "nothing is left running" in said
        assert "Traceback" not in said
        assert session_members(sessions) == []
        assert processes_of(home) == []


def test_a_failing_demo_shows_why_and_leaves_nothing_running(home: Path, first: dict[str, Any]) -> None:
    with StandIn() as broken:
        broken.fail(401)
        done = airflow_llm(home, "demo", "--home", str(home), "--base-url", broken.url, timeout_s=120)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: Task read_licenses failed.")
    assert "HTTP 401" in done.stderr
    assert "Traceback" not in done.stderr
    assert processes_of(home) == []


def test_a_connection_is_tested_from_the_command_line(
    home: Path, first: dict[str, Any], elsewhere: StandIn
) -> None:
    here = json.dumps({"conn_type": "claude", "host": elsewhere.url, "password": "any"})
    added = subprocess.run(
        [sys.executable, "-m", "airflow", "connections", "add", "in_the_database", "--conn-json", here],
        env=environment(home),
        capture_output=True,
        text=True,
        check=False,
    )
    assert added.returncode == 0, added.stderr
    paid = elsewhere.invoice.paid
    tested = airflow_llm(home, "test-connection", "in_the_database")
    assert tested.returncode == 0, tested.stderr
    assert "fast: claude-haiku-5-5 ok" in tested.stdout
    assert elsewhere.invoice.paid == paid

    missing = airflow_llm(home, "test-connection", "nowhere")
    assert missing.returncode == 1
    assert "There is no connection 'nowhere'" in missing.stderr
    assert "Traceback" not in missing.stderr


def test_a_connection_in_the_environment_is_tested_too(tmp_path: Path) -> None:
    key = "sk-ant-a-key-that-must-not-show"
    with StandIn(api_key="another") as server:
        env = environment(tmp_path)
        env["AIRFLOW_CONN_CLAUDE_DEFAULT"] = json.dumps(
            {"conn_type": "claude", "host": server.url, "password": key}
        )
        tested = subprocess.run(
            [*COMMAND, "test-connection"], env=env, capture_output=True, text=True, check=False
        )
    assert tested.returncode == 1
    assert tested.stderr.startswith("Error: ")
    assert key not in tested.stdout + tested.stderr


def test_the_ledger_shows_what_the_demos_paid(home: Path, first: dict[str, Any], elsewhere: StandIn) -> None:
    told = json.loads(airflow_llm(home, "ledger", "show", "--json").stdout)
    assert told["calls"]["settled"] >= first["requests_paid"] + elsewhere.invoice.paid
    assert told["ledger"].endswith("/llm_ledger.db")
