"""The example DAGs in a real Airflow, the network off: each runs to its end, and its ledger is the invoice."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from airflow_llm_provider.ledger.schema import call
from airflow_llm_provider.pricing import usd
from airflow_llm_provider.testing.processes import wait_until
from airflow_llm_provider.testing.standin import StandIn
from tests.support.airflow import AirflowUnderTest
from tests.support.books import balance
from tests.support.offline import offline

pytestmark = pytest.mark.system

DAGS = Path(__file__).parents[2] / "dags"
NOWHERE = "http://127.0.0.1:9"  # discard: nothing listens there
PLAN = {
    "credits": [
        {"account": "C-2210", "amount_eur": 49.0, "reason": "below 99.5 percent: 10 percent of EUR 490.00"},
        {"account": "C-0415", "amount_eur": 44.5, "reason": "24/7: 50 percent of EUR 89.00"},
    ],
    "letter": "In the night to 18 February your stock was not passed on to your till. We are sorry.",
}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A real Airflow with the example DAGs, and the stand-in that they ask.

    is_offline: they have no network but loopback; else only proxies that lead nowhere.
    say: prints a line past pytest's capturing.
    """

    airflow: AirflowUnderTest
    server: StandIn
    is_offline: bool
    say: Callable[[str], None]

    def run(self, dag_id: str, conf: Mapping[str, Any], answer: Callable[[str], None] | None = None) -> str:
        """Run a DAG to success, its question answered by `answer`, and hold its rows against the invoice."""
        began, billed = time.monotonic(), len(self.server.invoice.lines)
        run_id = self.airflow.trigger(dag_id, conf)
        if answer is not None:
            answer(run_id)
        state = self.airflow.wait(dag_id, run_id, timeout_s=240)
        assert state == "success", self._logs(dag_id, run_id)
        rows, lines = self._rows(run_id), self.server.invoice.lines[billed:]
        assert len(rows) == len(lines) > 0
        cost = sum(row["cost_micro_usd"] for row in rows)
        assert cost == sum(line.cost_micro_usd or 0 for line in lines)
        balance(self._ledger_url, self.server.invoice)
        self.say(f"{dag_id}: {time.monotonic() - began:.1f} s, {len(rows)} calls, ${usd(cost)}")
        return run_id

    def states(self, dag_id: str, run_id: str) -> dict[str, str]:
        return {ti["task_id"]: ti["state"] for ti in self.airflow.task_instances(dag_id, run_id)}

    @property
    def _ledger_url(self) -> str:
        return f"sqlite:///{self.airflow.home}/llm_ledger.db"

    def _rows(self, run_id: str) -> list[dict[str, Any]]:
        engine = sa.create_engine(self._ledger_url, poolclass=sa.NullPool)
        try:
            with engine.connect() as connection:
                query = sa.select(call).where(call.c.run_id == run_id)
                return [dict(row) for row in connection.execute(query).mappings()]
        finally:
            engine.dispose()

    def _logs(self, dag_id: str, run_id: str) -> str:
        failed = [ti for ti in self.airflow.task_instances(dag_id, run_id) if ti["state"] == "failed"]
        logs = [self.airflow.log(dag_id, run_id, ti["task_id"], max(1, ti["try_number"])) for ti in failed]
        return "\n".join(log[-3000:] for log in logs)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Stage]:
    """One Airflow for all; the network is off for it and for the stand-in, where that can be done."""

    def say(line: str) -> None:
        with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n{line}", flush=True)

    home = tmp_path_factory.mktemp("dags") / "home"
    with offline() as is_offline, StandIn(validate=True) as server:
        proxies = {} if is_offline else dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), NOWHERE)
        with AirflowUnderTest(
            home,
            DAGS,
            connections={"claude_default": {"conn_type": "claude", "password": "any", "host": server.url}},
            config=proxies,
        ) as airflow:
            yield Stage(airflow=airflow, server=server, is_offline=is_offline, say=say)


def test_there_is_no_network_but_loopback(stage: Stage) -> None:
    if not stage.is_offline:
        pytest.skip("Only the proxies lead nowhere: to take the network away is for root, or `unshare -r`.")
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
    here = network_of("thread-self")
    assert here != network_of(os.getppid())
    assert {network_of(pid) for pid in stage.airflow.pids().values()} == {here}
    with pytest.raises(OSError, match="unreachable"):
        socket.create_connection(("192.0.2.1", 443), timeout=5)


def network_of(process: int | str) -> Path:
    return Path(f"/proc/{process}/ns/net").readlink()


def test_every_file_is_a_dag_without_import_errors_and_warnings(stage: Stage) -> None:
    names = {file.stem for file in DAGS.glob("*.py")}
    assert wait_until(lambda: {dag["dag_id"] for dag in stage.airflow.get("dags")["dags"]} == names, 60)
    assert stage.airflow.get("importErrors")["import_errors"] == []
    assert stage.airflow.get("dagWarnings")["dag_warnings"] == []


def test_a_contract_goes_through_the_chain(stage: Stage) -> None:
    run = stage.run("sequential_chain", {"contract": "managed_hosting"})
    page = stage.airflow.xcom("sequential_chain", run, "page")
    assert "- effective on: 2026-04-01" in page
    assert "laws of England and Wales" in page


def test_four_specialists_and_a_synthesis(stage: Stage) -> None:
    run = stage.run("parallel_fan_out", {"contract": "data_platform"})
    decision = stage.airflow.xcom("parallel_fan_out", run, "decision")
    assert decision["may_sign"] is (decision["blocked_by"] == [])


def test_a_message_is_routed_and_its_desk_uses_its_tools(stage: Stage) -> None:
    ticket = {"account": "C-1042", "team": "billing", "text": "R-88952 was charged twice."}
    uses = [{"name": "invoices", "input": {"account": "C-1042"}}, {"name": "open_ticket", "input": ticket}]
    stage.server.reply(tool_use=uses, turn=0, model="claude-sonnet-5-5", matching=is_about_invoices)
    run = stage.run("support_routing", {"message": "double_charge"})
    draft = stage.airflow.xcom("support_routing", run, "draft")
    assert draft["desk"] == "billing"
    assert "T-00001" in draft["text"]  # a stand-in's answer is what the tools returned
    states = stage.states("support_routing", run)
    assert {task for task, state in states.items() if state == "skipped"} == {
        "technical",
        "contract",
        "a_person",
    }
    tickets = (stage.airflow.home / "support_tickets.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in tickets] == [{"number": "T-00001", **ticket}]


def is_about_invoices(question: Any) -> bool:
    return "invoices" in question.tool_names and "C-1042" in question.text


def test_what_a_person_changed_and_approved_is_what_is_booked(stage: Stage) -> None:
    stage.server.reply(data=PLAN, model="claude-opus-5-5", matching="incident report")
    changed = {**PLAN, "credits": [{**PLAN["credits"][0], "amount_eur": 120.0}, PLAN["credits"][1]]}

    def approve_with_changes(run_id: str) -> None:
        asked = wait_for_question(stage, run_id)
        assert "Credits after an outage" in asked["subject"]
        for shown in ("C-2210", "49.0", "booked to the customers' accounts", "cannot be reversed"):
            assert shown in asked["body"].replace("\\", "")
        option = "Approve with changes"
        stage.airflow.answer(
            "human_checkpoint", run_id, "approval", option, content=changed, feedback="They wrote to us."
        )

    run = stage.run("human_checkpoint", {}, approve_with_changes)
    decision = stage.airflow.xcom("human_checkpoint", run, "approval")
    assert (decision["status"], decision["feedback"]) == ("modified", "They wrote to us.")
    booked = json.loads(Path(stage.airflow.xcom("human_checkpoint", run, "book")).read_text())
    assert {name: booked[name] for name in changed} == changed
    assert (booked["approved_by"], booked["content_hash"]) == (
        decision["decided_by"],
        decision["content_hash"],
    )
    assert booked["approved_by"]


def test_what_a_person_rejected_is_not_booked(stage: Stage) -> None:
    stage.server.reply(data=PLAN, model="claude-opus-5-5", matching="incident report")

    def reject(run_id: str) -> None:
        wait_for_question(stage, run_id)
        stage.airflow.answer("human_checkpoint", run_id, "approval", "Reject", feedback="Too little.")

    run = stage.run("human_checkpoint", {}, reject)
    assert stage.states("human_checkpoint", run)["book"] == "skipped"
    assert len(list((stage.airflow.home / "credits").iterdir())) == 1  # that of the run before


def wait_for_question(stage: Stage, run_id: str) -> dict[str, Any]:
    """Return what is asked, once the task waits for a person.

    Airflow 3.3.2 loses an answer that comes before its scheduler has heard of the parking, about a second after it:
    the task is taken for failed, and tried again. Nobody reads so fast.
    """

    def has_heard() -> bool:
        log = (stage.airflow.home / "logs" / "scheduler.log").read_text()
        finished = (line for line in log.splitlines() if "TaskInstance Finished" in line and run_id in line)
        return any("task_id=approval" in line and "state=awaiting_input" in line for line in finished)

    assert wait_until(has_heard, 120)
    return stage.airflow.question("human_checkpoint", run_id, "approval")


def test_the_licenses_of_what_is_installed_are_audited(stage: Stage) -> None:
    run = stage.run("license_audit", {})
    compared = stage.airflow.xcom("license_audit", run, "compare")
    assert compared["distributions"] > 100
    assert compared["false_quotes"] == 0
