"""What the next try, the next run and the next version ask: only what is missing, and what has changed."""

from __future__ import annotations

import datetime as dt
import json
import re
import threading
import time
from pathlib import Path

import pytest
from airflow.sdk import DAG

from airflow_llm_provider import OnInvalid, RequestFields
from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator
from airflow_llm_provider.testing.invoice import Invoice
from airflow_llm_provider.testing.standin import StandIn
from tests.support.books import balance


def paid_items(deployment) -> list[str]:
    return [call["item_id"] for call in deployment.calls if call["state"] == "settled"]


@pytest.fixture
def one_attempt(deployment):
    """Let a request fail at its first error, where it would be tried for minutes."""
    deployment.connect(deadline_s=0.01)


# Dead letters and `max_failed`.


@pytest.mark.parametrize(
    ("max_failed", "state"),
    [(0, "failed"), (2, "failed"), (3, "success"), ("14%", "failed"), ("15%", "success")],
)
def test_the_task_fails_when_more_than_max_failed_are_dead_letters(deployment, max_failed, state):
    deployment.server.fail(kind="refusal", matching=lambda question: int(question.text.split("$")[1][0]) < 3)
    documents = [{"id": str(n), "text": f"We owe you ${n}."} for n in range(10)]
    documents += [{"id": f"x{n}", "text": f"We owe you ${n % 7 + 3}, says {n}."} for n in range(10)]
    ran = deployment.ask(documents, max_failed=max_failed)
    assert ran.state == state
    assert ran.outcomes == {"answered": 17, "dead_letter": 3}


def test_a_task_that_fails_has_finished_the_others_first(deployment):
    deployment.server.fail(kind="refusal", matching="Letter 0:")
    ran = deployment.ask(deployment.texts(30), max_in_flight=2)
    assert ran.state == "failed"
    assert len(ran.rows) == 29
    assert Path(deployment.output).exists()
    assert [(letter["document_id"], letter["reason"]) for letter in ran.dead_letters] == [
        ("doc-0", "refused")
    ]
    assert "1 of 30 documents are dead letters" in ran.log
    assert "max_failed=0 allows 0" in ran.log
    assert ran.manifest["dead_letters"] in ran.log


def test_what_no_retry_can_mend_is_not_retried(deployment):
    deployment.server.fail(kind="refusal", matching="Letter 0:")
    deployment.server.fail(kind="max_tokens", matching="Letter 1:")
    deployment.server.fail(status=400, matching="Letter 2:")
    (deployment.inbox / "unused.txt").write_text("")
    ran = deployment.ask(deployment.texts(5), retries=3)
    assert (ran.state, ran.ti().try_number) == ("failed", 1)
    assert {letter["document_id"]: letter["reason"] for letter in ran.dead_letters} == {
        "doc-0": "refused",
        "doc-1": "truncated",
        "doc-2": "error",
    }


def test_a_retry_asks_only_for_what_is_missing(deployment, one_attempt):
    server = deployment.server
    failing = {f"Letter {n}:" for n in range(0, 100, 33)}
    server.fail(status=529, times=len(failing), matching=lambda q: any(mark in q.text for mark in failing))
    ran = deployment.ask(deployment.texts(100), retries=1)
    assert (ran.state, ran.ti().try_number) == ("success", 2)
    assert server.seen == 100 + len(failing)
    assert server.invoice.paid == 100
    assert ran.outcomes == {"answered": len(failing), "reused": 100 - len(failing)}
    assert len(ran.rows) == 100
    again = [call["item_id"] for call in deployment.calls if call["try_number"] == 2]
    assert sorted(again) == ["doc-0", "doc-33", "doc-66", "doc-99"]


def test_three_in_a_hundred_fail_then_heal_and_a_retry_asks_exactly_those(deployment, one_attempt):
    server = deployment.server
    server.fail(status=529, share=0.03, sticky=True)
    first = deployment.ask(deployment.texts(300))
    assert first.state == "failed"
    failed = first.outcomes["dead_letter"]
    assert 1 <= failed <= 30
    letters = first.dead_letters
    server.heal()
    seen = server.seen
    second = deployment.ask(deployment.texts(300))
    assert second.outcomes == {"answered": failed, "reused": 300 - failed}
    assert server.seen - seen == failed
    assert {row["document_id"] for row in second.rows if row["outcome"] == "answered"} == {
        letter["document_id"] for letter in letters
    }


def test_a_server_that_is_down_for_all_stops_the_try(deployment, one_attempt):
    deployment.server.fail(status=529)
    ran = deployment.ask(deployment.texts(200), retries=1, max_in_flight=8)
    assert (ran.state, ran.ti().try_number) == ("failed", 2)
    assert deployment.server.seen < 60
    assert "Overloaded" in ran.log


@pytest.mark.parametrize(("status", "cure"), [(401, "API key"), (403, "API key"), (402, "Claude Console")])
def test_what_fails_for_all_alike_fails_the_task_at_once(deployment, status, cure):
    deployment.server.fail(status=status)
    ran = deployment.ask(deployment.texts(500), retries=2, max_in_flight=4)
    assert (ran.state, ran.ti().try_number) == ("failed", 1)
    assert deployment.server.seen <= 8
    (message,) = {
        line for line in ran.log.splitlines() if line.startswith("airflow.sdk.exceptions.AirflowFail")
    }
    assert f"HTTP {status}" in message
    assert cure in message
    assert "nightly.read" in message
    assert deployment.key not in ran.log


def test_a_connection_without_a_key_says_so(deployment):
    deployment.connect(key="")
    ran = deployment.ask(deployment.texts(3), retries=1)
    assert (ran.state, ran.ti().try_number) == ("failed", 1)
    assert "has no API key" in ran.log


def test_an_unknown_connection_is_named(deployment):
    ran = deployment.ask(deployment.texts(3), claude_conn_id="claude_elsewhere")
    assert ran.state == "failed"
    assert "claude_elsewhere" in ran.log


# What changed.


def test_only_edited_documents_are_asked_again(deployment):
    folder = deployment.files(2_000)
    assert deployment.ask(str(folder)).outcomes == {"answered": 2_000}
    edited = [f"doc-{n:04}.txt" for n in range(0, 2_000, 100)]
    for name in edited:
        (folder / name).write_text(f"{name}: we owe you nothing any more.")
    seen = deployment.server.seen
    ran = deployment.ask(str(folder))
    assert ran.outcomes == {"answered": 20, "reused": 1_980}
    assert deployment.server.seen - seen == 20
    assert sorted(paid_items(deployment)[2_000:]) == edited
    assert len(ran.rows) == 2_000


def test_a_file_that_was_only_touched_is_not_asked_again(deployment):
    folder = deployment.files(3)
    deployment.ask(str(folder))
    for path in folder.iterdir():
        path.write_text(path.read_text())
    assert deployment.ask(str(folder)).outcomes == {"reused": 3}


def test_an_unchanged_file_is_not_even_read_again(deployment):
    folder = deployment.files(3)
    deployment.ask(str(folder))
    for path in folder.iterdir():
        path.chmod(0)  # root reads it all the same; the sighting is what counts
    started = deployment.server.seen
    assert deployment.ask(str(folder)).outcomes == {"reused": 3}
    assert deployment.server.seen == started


def test_an_addition_is_asked_and_a_removal_is_dropped(deployment):
    folder = deployment.files(3)
    deployment.ask(str(folder))
    (folder / "doc-0001.txt").unlink()
    (folder / "doc-0009.txt").write_text("We owe you $9.")
    ran = deployment.ask(str(folder))
    assert ran.outcomes == {"answered": 1, "reused": 2}
    assert [row["document_id"] for row in ran.rows] == ["doc-0000.txt", "doc-0002.txt", "doc-0009.txt"]


@pytest.mark.parametrize(
    "change",
    [
        {"version": "2"},
        {"prompt": "Who owes it?"},
        {"system": "You are an accountant."},
        {"model": "strong"},
        {"request": RequestFields(max_tokens=100)},
        {"output_type": {"type": "object", "properties": {}, "additionalProperties": False}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_question_is_asked_anew(deployment, change):
    deployment.ask(deployment.texts(2))
    assert deployment.ask(deployment.texts(2), **change).outcomes == {"answered": 2}
    assert deployment.ask(deployment.texts(2)).outcomes == {"reused": 2}
    assert deployment.server.invoice.paid == 4


def test_another_server_gives_another_answer(deployment):
    deployment.ask(deployment.texts(2))
    with StandIn() as other:
        deployment.connect(host=other.url)
        assert deployment.ask(deployment.texts(2)).outcomes == {"answered": 2}
        assert other.invoice.paid == 2
        for line in other.invoice.lines:
            deployment.server.invoice.add(line)


def test_another_dag_reuses_what_is_paid(deployment):
    deployment.ask(deployment.texts(2), name="nightly")
    assert deployment.ask(deployment.texts(2), name="weekly").outcomes == {"reused": 2}


def test_reuse_within_the_run_asks_every_run_anew(deployment, one_attempt):
    assert deployment.ask(deployment.texts(3), reuse="run").outcomes == {"answered": 3}
    deployment.server.fail(status=529, times=1, matching="Letter 2:")
    ran = deployment.ask(deployment.texts(3), reuse="run", retries=1)
    assert (ran.ti().try_number, ran.outcomes) == (2, {"answered": 1, "reused": 2})
    assert deployment.server.invoice.paid == 6


def test_reuse_never_asks_every_task_anew_but_a_retry_takes_its_own(deployment, one_attempt):
    with DAG("never", schedule=None) as dag:
        for name in ("first", "second"):
            ClaudeDocumentsOperator(
                task_id=name,
                documents=deployment.texts(3),
                prompt="What is owed?",
                model="fast",
                output=f"{deployment.folder}/{name}.jsonl",
                reuse="never",
                retries=1,
                retry_delay=0,
            )
    deployment.server.fail(status=529, times=1, matching="Letter 2:")
    ran = deployment.run(dag)
    assert ran.state == "success"
    assert {ran.ti("first").try_number, ran.ti("second").try_number} == {1, 2}
    assert deployment.server.invoice.paid == 6


def test_a_clear_continues_from_what_is_paid(deployment, one_attempt):
    deployment.server.fail(status=529, matching="Letter 2:")
    dag = deployment.dag(documents=deployment.texts(3))
    ran = deployment.run(dag)
    assert ran.state == "failed"
    deployment.server.heal()
    ran = deployment.clear(ran, dag)
    assert (ran.state, ran.outcomes) == ("success", {"answered": 1, "reused": 2})
    assert deployment.server.invoice.paid == 3


def test_a_clear_of_a_task_that_never_reuses_asks_it_all_anew(deployment):
    dag = deployment.dag(documents=deployment.texts(3), reuse="never")
    ran = deployment.clear(deployment.run(dag), dag)
    assert ran.outcomes == {"answered": 3}
    assert deployment.server.invoice.paid == 6


# Repairs and dead letters.

DEBT = {"type": "object", "properties": {"amount": {"type": "number"}}, "required": ["amount"]}


def test_a_wrong_shape_is_repaired_and_a_later_run_pays_for_neither(deployment):
    deployment.server.fail(kind="wrong_shape", times=2)
    ran = deployment.ask(deployment.texts(1), output_type=DEBT)
    assert ran.outcomes == {"repaired": 1}
    assert (ran.rows[0]["repairs"], ran.rows[0]["attempts"]) == (2, 3)
    assert [call["purpose"] for call in deployment.calls] == ["answer", "repair", "repair"]
    assert deployment.ask(deployment.texts(1), output_type=DEBT).outcomes == {"reused": 1}
    assert deployment.server.invoice.paid == 3


def test_a_document_stays_dead_at_no_cost_until_its_dead_are_retried(deployment):
    deployment.server.fail(kind="wrong_shape")
    asking = {"output_type": DEBT, "on_invalid": OnInvalid(max_repairs=1), "max_failed": 1}
    assert deployment.ask(deployment.texts(1), **asking).outcomes == {"dead_letter": 1}
    deployment.server.heal()
    assert deployment.ask(deployment.texts(1), **asking).outcomes == {"dead_letter": 1}
    assert deployment.server.invoice.paid == 2
    ran = deployment.ask(deployment.texts(1), **asking, retry_dead=True)
    assert ran.outcomes == {"answered": 1}
    assert deployment.server.invoice.paid == 3
    assert deployment.ask(deployment.texts(1), **asking).outcomes == {"reused": 1}


def test_a_new_version_brings_the_dead_to_life_too(deployment):
    deployment.server.fail(kind="refusal", times=1)
    assert deployment.ask(deployment.texts(1), max_failed=1).outcomes == {"dead_letter": 1}
    assert deployment.ask(deployment.texts(1), version="2").outcomes == {"answered": 1}


def test_dead_letters_of_a_good_run_are_gone_from_beside_the_rows(deployment):
    deployment.server.fail(kind="refusal", times=1)
    dead = deployment.ask(deployment.texts(1), max_failed=1).manifest["dead_letters"]
    assert Path(dead).exists()
    assert deployment.ask(deployment.texts(1), retry_dead=True).manifest["dead_letters"] is None
    assert not Path(dead).exists()


# A first look.


def test_a_limit_asks_about_the_first_and_says_that_there_are_more(deployment):
    ran = deployment.ask(deployment.texts(10), limit=3)
    assert (ran.state, ran.outcomes, ran.manifest["limited"]) == ("success", {"answered": 3}, True)
    assert [row["document_id"] for row in ran.rows] == ["doc-0", "doc-1", "doc-2"]
    assert deployment.server.invoice.paid == 3


@pytest.mark.parametrize("limit", ["2.7", "-1", "few"])
def test_a_limit_that_a_template_makes_no_whole_number_is_not_rounded(deployment, limit):
    ran = deployment.ask(deployment.texts(3), limit=f"{{{{ '{limit}' }}}}")
    assert ran.state == "failed"
    assert re.search(r"limit= is [^:]*: give a whole number, 0 or more\.", ran.log)
    assert deployment.server.seen == 0


def test_a_dry_run_sends_nothing_and_says_what_it_could_cost(deployment):
    (deployment.inbox / "empty.txt").write_text("")
    folder = deployment.files(10)
    deployment.ask(f"{folder}/doc-0000.txt")
    seen, before = deployment.server.seen, Path(deployment.output).read_bytes()
    ran = deployment.ask(str(folder), dry_run=True)
    assert ran.state == "success"
    assert deployment.server.seen == seen
    manifest = ran.manifest
    assert manifest["outcomes"] == {"answered": 0, "reused": 1, "repaired": 0, "dead_letter": 1, "pending": 9}
    assert Path(deployment.output).read_bytes() == before
    paid = deployment.ask(str(folder), max_failed=1)
    low, high = (float(manifest["cost_usd"][end]) for end in ("low", "high"))
    assert low <= float(paid.manifest["cost_usd"]) <= high


# Stopping.


def test_on_kill_drops_the_calls_in_flight_and_the_next_try_finishes(deployment):
    server = deployment.server
    server.fail(
        kind="hang", matching=lambda question: int(question.text.split("Letter ")[1].split(":")[0]) >= 20
    )
    running, killed = [], []

    def settled():
        return [call["state"] for call in deployment.calls].count("settled")

    def kill_when_it_hangs():
        patience = time.monotonic() + 30
        while server.in_flight < 10 or server.invoice.paid < 20 or settled() < 20:
            if time.monotonic() > patience:
                return
            time.sleep(0.01)
        server.heal()
        killed.append(time.monotonic())
        running[0].on_kill()

    killer = threading.Thread(target=kill_when_it_hangs)
    killer.start()
    ran = deployment.ask(
        deployment.texts(30),
        retries=1,
        pre_execute=lambda context: running.append(context["task"]),
        on_retry_callback=lambda context: killed.append(time.monotonic()),
    )
    killer.join()
    assert len(killed) == 2, ran.log
    assert killed[1] - killed[0] < 3
    assert (ran.state, ran.ti().try_number) == ("success", 2)
    assert ran.outcomes == {"answered": 10, "reused": 20}
    assert "nightly.read: stopped before it was done" in ran.log
    states = [call["state"] for call in deployment.calls]
    assert (states.count("settled"), states.count("unproven")) == (30, 10)


def test_a_task_timeout_keeps_what_is_paid(deployment):
    deployment.ask([], version="warm")  # so that imports don't count
    deployment.server.fail(kind="hang", matching="Letter 3:", times=1)
    ran = deployment.ask(deployment.texts(5), retries=1, execution_timeout=dt.timedelta(seconds=1))
    assert (ran.state, ran.ti().try_number) == ("success", 2)
    assert ran.outcomes == {"answered": 1, "reused": 4}


def test_no_more_are_in_flight_than_allowed(deployment):
    deployment.server.latency_s = 0.05
    deployment.ask(deployment.texts(40), max_in_flight=7)
    assert deployment.server.max_in_flight == 7


# What the ledger says of a call.


def test_a_call_is_attributed_to_who_made_it(deployment, one_attempt):
    deployment.server.fail(status=529, times=1, matching="Letter 1:")
    ran = deployment.ask(
        deployment.texts(2), retries=1, tags=("finance",), owner="ada", task_tags=("letters", "finance")
    )
    first, *_, last = deployment.calls
    for call in (first, last):
        assert (call["dag_id"], call["run_id"], call["task_id"]) == (ran.dag_id, ran.run_id, "read")
        assert call["map_index"] == -1
        assert call["owner"] == "ada"
        assert json.loads(call["tags"]) == ["finance", "letters"]
        assert call["connection_id"] == "claude_default"
        assert call["trace_id"] == ran.manifest["trace_id"] == ran.rows[0]["trace_id"]
    assert (first["try_number"], last["try_number"]) == (1, 2)


def test_a_retry_keeps_the_trace_and_another_run_has_another(deployment):
    first, second = deployment.ask(deployment.texts(1)), deployment.ask(deployment.texts(1))
    assert len(first.manifest["trace_id"]) == 32
    assert first.manifest["trace_id"] != second.manifest["trace_id"]


def test_the_form_of_the_connection_may_name_another_ledger_and_airflow_cfg_names_one_for_all(deployment):
    deployment.connect(ledger_url="")
    elsewhere = deployment.folder / "elsewhere.db"
    deployment.monkeypatch.setenv("AIRFLOW__LLM__LEDGER_URL", f"sqlite:///{elsewhere}")
    deployment.ask(deployment.texts(1))
    assert elsewhere.exists()
    assert not (deployment.folder / "ledger.db").exists()
    deployment.connect()
    assert deployment.ask(deployment.texts(1)).outcomes == {"answered": 1}
    deployment.connect(ledger_url=f"sqlite:///{elsewhere}")
    assert deployment.ask(deployment.texts(1)).outcomes == {"reused": 1}
    elsewhere_line, *here = deployment.server.invoice.lines
    assert balance(f"sqlite:///{elsewhere}", [elsewhere_line]).paid == 1
    deployment.server.invoice = Invoice(here)
