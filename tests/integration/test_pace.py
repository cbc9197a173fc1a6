"""Many processes and DAGs on one rate limit: it is used, it is not broken, and it is shared."""

import json
import subprocess
import sys
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from airflow_llm_provider.testing.standin import StandIn

LATE = 2  # permits that were given in time, and noted only when a busy machine had CPU for their process
FOUR_OF_EACH = ["invoices"] * 4 + ["letters"] * 4


@pytest.fixture
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if getattr(request, "param", "sqlite") == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return request.getfixturevalue("postgres_url")


on_both_databases = pytest.mark.parametrize("ledger_url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def server(claude_server: StandIn) -> StandIn:
    claude_server.validate, claude_server.keep_requests = False, False
    claude_server.latency_s = 0.2
    return claude_server


def start(ledger_url: str, server: StandIn, dags: Sequence[str], **options: object) -> subprocess.Popen[str]:
    program = str(Path(__file__).parent / "pace_process.py")
    given = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, program, "--ledger", ledger_url, "--server", server.url, *given]
    return subprocess.Popen([*command, "--dags", *dags], stdout=subprocess.PIPE, text=True)


def told_by(process: subprocess.Popen[str]) -> list[dict]:
    """Wait for the processes to end and return what each said."""
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return [json.loads(line) for line in said.splitlines()]


def times(told: Sequence[dict], of: str) -> list[float]:
    return sorted(at for one in told for at in one[of])


def busiest(sent: Sequence[float], stretch_s: float) -> int:
    return max(bisect_left(sent, at + stretch_s) - n for n, at in enumerate(sent))


@pytest.mark.slow
@on_both_databases
def test_eight_processes_of_two_dags_use_one_limit_together_and_keep_it(
    ledger_url: str, server: StandIn
) -> None:
    server.limit({"rpm": 600, "burst": 100})
    told = told_by(start(ledger_url, server, FOUR_OF_EACH, rpm=600, seconds=25))
    sent = times(told, "sent")
    # Nine tenths, by the benchmark; a machine too busy to use its permits in time lets some of them lapse.
    assert server.invoice.paid >= 0.75 * (100 + 10 * (sent[-1] - sent[0]))
    assert server.seen - server.invoice.paid <= 0.01 * server.seen
    answered = Counter[str]()
    for one in told:
        answered[one["dag"]] += one["answered"]
        assert one["failed"] == 0
    assert min(answered.values()) >= 0.4 * answered.total()
    permitted = [at for at in times(told, "permitted") if at > sent[0] + 6]  # the burst is spent
    assert busiest(permitted, 1) <= 11 + LATE
    assert busiest(permitted, 5) <= 51 + LATE


@pytest.mark.slow
def test_a_dag_of_one_process_has_its_share_beside_one_of_six(ledger_url: str, server: StandIn) -> None:
    server.limit({"rpm": 600, "burst": 100})
    told = told_by(start(ledger_url, server, ["many"] * 6 + ["one"], rpm=600, seconds=20))
    sent = {
        dag_id: times([one for one in told if one["dag"] == dag_id], "sent") for dag_id in ("many", "one")
    }
    both_s = max(sent["many"][0], sent["one"][0]) + 5  # the burst goes to whoever is there first
    later = {dag_id: sum(at > both_s for at in its) for dag_id, its in sent.items()}
    assert 0.4 <= later["one"] / sum(later.values()) <= 0.6


@pytest.mark.slow
def test_tokens_are_a_limit_like_requests(ledger_url: str, server: StandIn) -> None:
    server.limit({"itpm": 60_000, "otpm": 60_000})
    told = told_by(start(ledger_url, server, ["one", "two"], itpm=60_000, otpm=60_000, words=400, seconds=15))
    sent = times(told, "sent")
    tokens = sum(line.input_tokens for line in server.invoice.lines)
    assert tokens >= 0.8 * 1000 * (8 + sent[-1] - sent[0])
    assert server.seen - server.invoice.paid <= 0.01 * server.seen


@on_both_databases
def test_one_who_is_told_to_wait_makes_all_processes_wait(ledger_url: str, server: StandIn) -> None:
    process = start(ledger_url, server, ["invoices", "letters", "invoices"], seconds=20, in_flight=4)
    while server.invoice.paid < 50:
        time.sleep(0.01)
    server.limit({"rpm": 10, "burst": 1})  # one goes, and the others are told to wait six seconds
    while server.seen == server.invoice.paid + server.in_flight:
        time.sleep(0.01)
    refused_s = time.monotonic()
    sent = times(told_by(process), "sent")
    silent = [at - refused_s for at in sent if 2 < at - refused_s < 5.9]
    assert silent == []
    assert sent[-1] > refused_s + 6, "and then they go on"


def test_limits_that_nobody_stated_are_learnt_from_the_api(ledger_url: str, server: StandIn) -> None:
    server.limit({"rpm": 600})
    started = time.monotonic()
    told = told_by(start(ledger_url, server, ["one", "two"], seconds=15))
    took_s = time.monotonic() - started
    assert sum(one["failed"] for one in told) == 0
    assert server.seen - server.invoice.paid <= 0.01 * server.seen
    assert 350 <= server.invoice.paid <= 330 + 10 * took_s  # half of a minute's at once, and ten a second
