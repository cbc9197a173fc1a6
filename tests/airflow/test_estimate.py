"""`airflow-llm estimate` and dry runs: real DAG files, no scheduler, and nothing sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from airflow_llm_provider.cli import app

DAG_FILE = """
import datetime as dt
from airflow.sdk import DAG, Param, task
from airflow_llm_provider.operators.claude import ClaudeOperator
from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator
from airflow_llm_provider.options import Reading

print("a DAG file may print")
terms = {{"prompt": "What is owed?", "output": "{folder}/out/", "model": "fast"}}

with DAG("nightly", schedule=None, params={{"count": Param(3, type="integer")}}):
    ClaudeDocumentsOperator(task_id="read", documents="{folder}/inbox", **terms)

    @task.claude_documents(reading=Reading(text_field="text"), **terms)
    def listed(params):
        return [{{"id": str(n), "text": f"Note {{n}}: we owe you $1."}} for n in range(params["count"])]

    @task
    def upstream():
        return ["a"]

    listed()
    ClaudeDocumentsOperator(task_id="after", documents=upstream(), **terms)
    ClaudeDocumentsOperator(task_id="pulled", documents="{{{{ ti.xcom_pull(task_ids='upstream') }}}}", **terms)
    ClaudeDocumentsOperator(task_id="lost", documents="{folder}/nowhere", **terms)
    ClaudeDocumentsOperator.partial(task_id="shards", **terms).expand(
        documents=["{folder}/inbox/doc-000*.txt", "{folder}/inbox/doc-001*.txt"]
    )
    ClaudeOperator(task_id="one", prompt="How are you?", model="fast")

with DAG("dated", schedule="@daily", start_date=dt.datetime(2026, 1, 1, tzinfo=dt.UTC), catchup=False):
    ClaudeDocumentsOperator(task_id="read", documents="{folder}/{{{{ ds[:7] }}}}/*.txt", roots=["{folder}"], **terms)
"""


@pytest.fixture
def dags(deployment: Any) -> Path:
    """A folder with a DAG file, beside an inbox of twelve documents."""
    folder = deployment.folder / "dags"
    folder.mkdir()
    (folder / "a_dag.py").write_text(DAG_FILE.format(folder=deployment.folder))
    deployment.files(12)
    for month, count in (("2026-01", 5), ("2026-02", 7)):
        (deployment.folder / month).mkdir()
        for n in range(count):
            (deployment.folder / month / f"{n}.txt").write_text(f"Invoice {n} of {month[:6]}: $1.")
    return folder


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["estimate", *arguments], env={"COLUMNS": "200"})


def told(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def test_a_dag_that_never_ran_is_estimated_task_by_task(deployment: Any, dags: Path) -> None:
    seen = deployment.server.seen
    answer = told("nightly", "--file", str(dags), "--conf", '{"count": 4}')
    assert deployment.server.seen == seen
    assert {name: one["calls"] for name, one in answer["tasks"].items()} == {
        "read": 12,
        "listed": 4,
        "shards": 0,
    }
    assert answer["tasks"]["shards"]["repeated"] == 12  # `read` pays for them
    assert answer["total"]["calls"] == 16
    cost = answer["total"]["cost_usd"]
    assert 0 < float(cost["low"]) < float(cost["likely"]) < float(cost["high"])
    assert answer["unknown"].keys() == {"after", "pulled", "lost"}
    assert "come from upstream" in answer["unknown"]["after"]
    assert "come from upstream" in answer["unknown"]["pulled"]
    assert "nowhere" in answer["unknown"]["lost"]
    assert answer["single_questions"] == ["one"]


def test_the_table_says_what_it_rests_on(deployment: Any, dags: Path) -> None:
    result = run("nightly", "--file", str(dags))
    assert result.exit_code == 0, result.output
    for text in (
        "read",
        "all",
        "without earlier answers of this task",
        "after: not estimated",
        "one: not estimated",
    ):
        assert text in result.stdout
    assert "may print" not in result.stdout


def test_a_backfill_counts_what_its_dates_share_once(deployment: Any, dags: Path) -> None:
    answer = told("dated", "--file", str(dags), "--backfill", "2026-01-30", "2026-02-03")
    assert answer["runs"] == 5  # by the timetable: two days of January, three of February
    read = answer["tasks"]["read"]
    assert read["documents"] == 2 * 5 + 3 * 7
    assert read["calls"] == 12 - 5  # the same five texts are in both months
    assert read["repeated"] == read["documents"] - read["calls"]


def test_what_was_estimated_is_what_is_paid(deployment: Any, dags: Path) -> None:
    asking = {"output": f"{deployment.folder}/out/", "prompt": "What is owed?"}
    deployment.ask(f"{deployment.folder}/inbox/doc-000[0-4].txt", name="nightly", **asking)
    before = deployment.server.invoice.cost_micro_usd
    answer = told("nightly", "--file", str(dags))["tasks"]["read"]
    assert (answer["answers_known"], answer["outcomes"]["reused"], answer["calls"]) == (5, 5, 7)
    deployment.ask(f"{deployment.folder}/inbox", name="nightly", **asking)
    paid = (deployment.server.invoice.cost_micro_usd - before) / 1e6
    cost = {name: float(figure) for name, figure in answer["cost_usd"].items()}
    assert cost["low"] <= paid <= cost["high"]
    assert cost["likely"] == pytest.approx(paid, rel=0.1)


def test_a_dry_run_returns_the_same_estimate(deployment: Any, dags: Path) -> None:
    asking = {"output": f"{deployment.folder}/out/", "prompt": "What is owed?"}
    ran = deployment.ask(f"{deployment.folder}/inbox", name="nightly", dry_run="{{ 'yes' }}", **asking)
    assert ran.state == "success"
    assert deployment.server.seen == 0
    answer = told("nightly", "--file", str(dags))["tasks"]["read"]
    assert {**ran.manifest, "seconds_about": 0} == {**answer, "seconds_about": 0}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nobody",), "There is no DAG 'nobody'"),
        (("nightly", "--conf", "["), "--conf is no JSON"),
        (("nightly", "--conf", "[]"), "--conf is a JSON object"),
        (("nightly", "--backfill", "yesterday", "today"), "--backfill is 'yesterday'"),
        (("dated", "--backfill", "2030-01-01", "2030-01-02"), "has no past run"),
    ],
)
def test_what_can_not_be_estimated_is_one_line(
    deployment: Any, dags: Path, arguments: Any, said: str
) -> None:
    result = run(*arguments, "--file", str(dags))
    assert result.exit_code == 1
    assert said in result.stderr.splitlines()[-1]
    assert result.stderr.splitlines()[-1].startswith("Error: ")


def test_a_param_that_is_wrong_is_said_for_every_task(deployment: Any, dags: Path) -> None:
    answer = told("nightly", "--file", str(dags), "--conf", '{"count": "many"}')
    assert answer["tasks"] == {}
    assert "count" in answer["unknown"]["read"]
