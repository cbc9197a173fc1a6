"""Nothing is no answer: where there are no documents, the log says so, and rows of an earlier run are not lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from airflow.sdk import DAG, TriggerRule, task, task_group

from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator


def empty(deployment, kind: str):
    """Return documents of which there are none."""
    match kind:
        case "folder":
            return str(deployment.inbox)
        case "glob":
            return f"{deployment.inbox}/*.txt"
        case "list":
            return []
        case "table":
            table = deployment.inbox / "rows.csv"
            table.write_text("id,text\n")
            return str(table)
        case "skipped":
            (deployment.inbox / "setup.exe").write_text("x")
            return str(deployment.inbox)
    raise ValueError(kind)


KINDS = ("folder", "glob", "list", "table", "skipped")


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_found_is_a_warning_and_a_first_run_succeeds_without_rows(deployment, kind):
    ran = deployment.ask(empty(deployment, kind))
    assert (ran.state, ran.manifest["documents"], ran.rows) == ("success", 0, [])
    assert any(
        "WARNING" in line or "warning" in line for line in ran.log.splitlines() if "no documents were" in line
    )
    assert deployment.server.seen == 0


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_found_does_not_replace_the_rows_of_an_earlier_run(deployment, kind):
    before = deployment.ask(deployment.texts(3)).rows
    ran = deployment.ask(empty(deployment, kind), retries=1)
    assert (ran.state, ran.ti().try_number) == ("failed", 2)  # a folder may be mounted by the next try
    assert [json.loads(line) for line in Path(deployment.output).read_text().splitlines()] == before
    assert "on_empty='ok'" in ran.log


def test_an_earlier_run_without_rows_has_nothing_to_lose(deployment):
    deployment.inbox.mkdir(exist_ok=True)
    for _ in range(2):
        assert deployment.ask(str(deployment.inbox)).state == "success"


@pytest.mark.parametrize("form", ["rows.csv", "rows.parquet", "folder/"])
def test_rows_of_every_format_are_kept(deployment, form):
    output = f"{deployment.folder}/out/{form}"
    path = Path(deployment.ask(deployment.texts(2), output=output).manifest["output"])
    before = path.read_bytes()
    assert deployment.ask([], output=output).state == "failed"
    assert path.read_bytes() == before


def test_rows_without_a_manifest_are_kept_too(deployment):
    deployment.ask(deployment.texts(2))
    Path(deployment.output).with_suffix(".manifest.json").unlink()
    assert deployment.ask([]).state == "failed"


@pytest.mark.parametrize(("on_empty", "state"), [("fail", "failed"), ("skip", "success"), ("ok", "success")])
def test_on_empty_decides(deployment, on_empty, state):
    deployment.ask(deployment.texts(3))
    ran = deployment.ask(str(deployment.inbox), on_empty=on_empty)
    assert (ran.state, str(ran.ti().state)) == (state, "skipped" if on_empty == "skip" else state)
    rows = Path(deployment.output).read_text().splitlines()
    assert len(rows) == (0 if on_empty == "ok" else 3)


def test_on_empty_says_nothing_where_there_is_a_document(deployment):
    ran = deployment.ask(deployment.texts(1), on_empty="fail")
    assert (ran.state, ran.outcomes) == ("success", {"answered": 1})
    assert "no documents were" not in ran.log


def test_a_dry_run_says_too_that_there_is_nothing(deployment):
    ran = deployment.ask(str(deployment.inbox), dry_run=True)
    assert (ran.state, ran.xcom()["documents"]) == ("success", 0)
    assert "no documents were found" in ran.log


def test_a_limit_of_none_is_not_an_empty_folder(deployment):
    ran = deployment.ask(str(deployment.files(2)), limit=0, on_empty="fail")
    assert (ran.state, ran.manifest["documents"]) == ("success", 0)


def test_a_mapped_instance_without_documents_is_skipped_alone_with_what_follows_it(deployment):
    full, bare = deployment.files(2), deployment.folder / "bare"
    bare.mkdir()
    with DAG("sharded", schedule=None) as dag:

        @task_group
        def shard(documents):
            read = ClaudeDocumentsOperator(
                task_id="read",
                documents=documents,
                prompt="What is owed?",
                model="fast",
                output=deployment.output,
                roots=[str(deployment.folder)],
                on_empty="skip",
            )

            @task
            def load():
                return "loaded"

            read >> load()

        @task(trigger_rule=TriggerRule.NONE_FAILED)
        def after():
            return "done"

        shard.expand(documents=[str(full), str(bare)]) >> after()
    ran = deployment.run(dag)
    assert {key: str(ti.state) for key, ti in ran.instances.items()} == {
        ("shard.read", 0): "success",
        ("shard.load", 0): "success",
        ("shard.read", 1): "skipped",
        ("shard.load", 1): "skipped",
        ("after", -1): "success",
    }


def test_another_word_is_refused_when_the_dag_is_parsed(deployment):
    with pytest.raises(ValueError, match="on_empty='maybe': give fail, skip or ok"):
        deployment.dag(documents=[], on_empty="maybe")
    with pytest.raises(ValueError, match="on_empty"):
        ClaudeDocumentsOperator.partial(task_id="read", on_empty="maybe")
