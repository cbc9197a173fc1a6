"""What `documents=` may be: each way of naming documents, through a real task instance."""

from __future__ import annotations

import json

import pytest
from airflow.sdk import DAG, ObjectStoragePath, task
from airflow.sdk.bases.operator import BaseOperator
from airflow.sdk.io import attach
from fsspec.implementations.memory import MemoryFileSystem

from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator
from airflow_llm_provider.options import Reading

ASKING = {"prompt": "What is owed?", "model": "fast"}


def ids(ran):
    return [row["document_id"] for row in ran.rows]


def test_a_folder_is_asked_file_by_file_in_order(deployment):
    ran = deployment.ask(str(deployment.files(12)))
    assert ran.state == "success"
    assert ran.outcomes == {"answered": 12}
    assert ids(ran) == [f"doc-{n:04}.txt" for n in range(12)]


def test_a_glob_takes_what_matches(deployment):
    folder = deployment.files(12)
    (folder / "notes.md").write_text("nothing owed")
    assert ids(deployment.ask(f"{folder}/doc-000*.txt")) == [f"doc-{n:04}.txt" for n in range(10)]


def test_one_file_is_one_document(deployment):
    folder = deployment.files(2)
    assert ids(deployment.ask(f"{folder}/doc-0001.txt")) == ["doc-0001.txt"]


def test_a_pattern_chooses_from_a_folder(deployment):
    folder = deployment.files(2)
    (folder / "LICENSE").write_text("You owe us nothing.")
    assert ids(deployment.ask(str(folder), reading=Reading(pattern="LICENSE*"))) == ["LICENSE"]


def test_a_literal_list_of_rows_is_asked_row_by_row(deployment):
    ran = deployment.ask(deployment.texts(5))
    assert ids(ran) == [f"doc-{n}" for n in range(5)]
    sent = [request["messages"][0]["content"][1]["source"]["data"] for request in deployment.server.requests]
    assert sorted(map(json.loads, sent), key=lambda row: row["id"]) == deployment.texts(5)


def test_the_fields_of_a_row_that_are_its_id_and_text_can_be_named(deployment):
    rows = [{"number": 7, "body": "We owe you $3.00.", "internal": "not for the model"}]
    ran = deployment.ask(rows, reading=Reading(id_field="number", text_field="body"))
    assert ids(ran) == ["7"]
    (request,) = deployment.server.requests
    assert request["messages"][0]["content"][1]["source"]["data"] == "We owe you $3.00."


def test_a_list_of_paths_is_asked_when_the_author_says_so(deployment):
    folder = deployment.files(3)
    ran = deployment.ask(
        [f"{folder}/doc-0000.txt", f"{folder}/doc-0002.txt", f"{folder}/gone.txt"],
        reading=Reading(strings="path"),
        roots=[str(folder)],
        max_failed=1,
    )
    assert ran.outcomes == {"answered": 2, "dead_letter": 1}


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_table_is_asked_row_by_row(deployment, suffix):
    table = deployment.inbox / f"rows.{suffix}"
    rows = deployment.texts(3)
    if suffix == "jsonl":
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        table.write_text("id,text\n" + "".join(f"{row['id']},{row['text']}\n" for row in rows))
    assert ids(deployment.ask(str(table))) == ["doc-0", "doc-1", "doc-2"]


def test_a_file_url_works_like_a_path(deployment):
    folder = deployment.files(3)
    ran = deployment.ask(f"file://{folder}", output=f"file://{deployment.folder}/out/rows.jsonl")
    assert ran.outcomes == {"answered": 3}
    assert len(ids(ran)) == 3


def test_an_object_store_is_read_and_written(deployment):
    attach("memory", fs=MemoryFileSystem())
    store = ObjectStoragePath("memory://bucket/inbox")
    store.mkdir(parents=True, exist_ok=True)
    for n in range(3):
        (store / f"doc-{n}.txt").write_text(f"We owe you ${n}.00.")
    ran = deployment.ask("memory://bucket/inbox/", output="memory://bucket/out/rows.jsonl")
    assert ran.outcomes == {"answered": 3}
    landed = ObjectStoragePath(ran.manifest["output"])
    assert str(landed).startswith("memory://")
    assert len(landed.read_text().splitlines()) == 3
    assert deployment.ask("memory://bucket/inbox/", output="memory://bucket/out/rows.jsonl").outcomes == {
        "reused": 3
    }


def test_an_object_storage_path_is_taken_as_it_is(deployment):
    folder = deployment.files(3)
    ran = deployment.ask(ObjectStoragePath(f"file://{folder}"), roots=[f"file://{folder.parent}"])
    assert ran.outcomes == {"answered": 3}


def test_paths_that_the_author_has_typed_need_no_roots(deployment):
    folder = deployment.files(3)
    assert deployment.ask(ObjectStoragePath(f"file://{folder}")).outcomes == {"answered": 3}
    paths = [folder / "doc-0000.txt", f"{folder}/doc-0001.txt"]
    assert deployment.ask(paths, reading=Reading(strings="path")).outcomes == {"reused": 2}


def test_a_list_with_a_tasks_output_in_it_is_refused_when_the_dag_is_parsed(deployment):
    with DAG("mixed", schedule=None):

        @task
        def export():
            return []

        with pytest.raises(ValueError, match=r"first\.concat\(second\)"):
            ClaudeDocumentsOperator(
                task_id="read", documents=[export(), {"id": "1"}], output=deployment.output, **ASKING
            )


def test_rows_of_several_tasks_are_joined_with_concat(deployment):
    with DAG("joined", schedule=None) as dag:

        @task
        def export(start):
            return [{"id": str(n), "text": f"We owe you ${n}.00."} for n in range(start, start + 2)]

        ClaudeDocumentsOperator(
            task_id="read", documents=export(0).concat(export(2)), output=deployment.output, **ASKING
        )
    ran = deployment.run(dag)
    assert ids(ran) == ["0", "1", "2", "3"]


def test_rows_come_from_an_upstream_task(deployment):
    with DAG("from_xcom", schedule=None) as dag:

        @task
        def export():
            return [{"id": str(n), "text": f"We owe you ${n}.00."} for n in range(4)]

        ClaudeDocumentsOperator(task_id="read", documents=export(), output=deployment.output, **ASKING)
    ran = deployment.run(dag)
    assert ran.state == "success"
    assert ids(ran) == ["0", "1", "2", "3"]


def test_rows_come_from_a_mapped_upstream_task(deployment):
    with DAG("from_mapped", schedule=None) as dag:

        @task
        def export(n):
            return {"id": str(n), "text": f"We owe you ${n}.00."}

        ClaudeDocumentsOperator(
            task_id="read", documents=export.expand(n=[1, 2, 3]), output=deployment.output, **ASKING
        )
    ran = deployment.run(dag)
    assert ran.state == "success", ran.log
    assert ids(ran) == ["1", "2", "3"]
    assert "We owe you" not in json.dumps(ran.rendered())


def test_the_decorated_function_says_which_documents(deployment):
    with DAG("decorated", schedule=None) as dag:

        @task
        def how_many():
            return 3

        @task.claude_documents(output=deployment.output, **ASKING)
        def read(count, run_id=None):
            assert run_id, "context variables come by name, as in @task"
            return [{"id": str(n), "text": f"{{{{ We owe you ${n}.00. }}}}"} for n in range(count)]

        read(how_many())
    ran = deployment.run(dag)
    assert ran.state == "success", ran.log
    assert ids(ran) == ["0", "1", "2"]
    assert isinstance(dag.get_task("read"), BaseOperator)
    assert "We owe you" not in json.dumps(ran.rendered())


def test_nothing_found_is_a_run_of_no_rows(deployment):
    ran = deployment.ask(f"{deployment.inbox}/*.pdf")
    assert ran.state == "success"
    assert (ran.manifest["documents"], ran.rows) == (0, [])


def test_a_folder_that_is_missing_may_come_with_the_next_try(deployment):
    ran = deployment.ask(f"{deployment.folder}/tomorrow", retries=1)
    assert ran.state == "failed"
    assert ran.ti().try_number == 2
    assert "no such file or folder" in ran.log


# A path that is known only at run time must lie below the roots.


def params_dag(deployment, **asking):
    return deployment.dag(
        documents="{{ params.folder }}", params={"folder": str(deployment.inbox), "limit": None}, **asking
    )


def test_a_folder_from_a_param_needs_roots(deployment):
    deployment.files(2)
    ran = deployment.run(params_dag(deployment, retries=1))
    assert ran.state == "failed"
    assert ran.ti().try_number == 1
    assert "give the operator roots=[…], or set [llm] roots" in ran.log
    assert deployment.server.seen == 0


def test_a_folder_from_a_param_below_the_roots_is_read(deployment):
    folder = deployment.files(2)
    ran = deployment.run(params_dag(deployment, roots=[str(folder.parent)]))
    assert ran.outcomes == {"answered": 2}


def test_roots_may_be_set_for_the_whole_deployment(deployment):
    folder = deployment.files(2)
    deployment.monkeypatch.setenv("AIRFLOW__LLM__ROOTS", f"/nowhere, {folder}")
    assert deployment.run(params_dag(deployment)).outcomes == {"answered": 2}


@pytest.mark.parametrize("folder", ["/etc", "{inbox}/../../secrets", "{inbox}/link"])
def test_a_folder_from_a_param_outside_the_roots_fails_at_once(deployment, folder):
    secrets = deployment.folder / "secrets"
    secrets.mkdir()
    (secrets / "passwords.txt").write_text("hunter2")
    (deployment.inbox / "link").symlink_to(secrets)
    ran = deployment.run(
        params_dag(deployment, roots=[str(deployment.inbox)], retries=1),
        run_conf={"folder": folder.format(inbox=deployment.inbox)},
    )
    assert ran.state == "failed"
    assert ran.ti().try_number == 1
    assert "is outside the roots" in ran.log
    assert deployment.server.seen == 0


def test_paths_from_a_task_need_roots(deployment):
    folder = deployment.files(2)
    with DAG("paths_from_xcom", schedule=None) as dag:

        @task
        def choose():
            return [f"{folder}/doc-0000.txt", "/etc/hostname"]

        @task
        def choose_one():
            return f"{folder}/doc-0000.txt"

        ClaudeDocumentsOperator(
            task_id="many",
            documents=choose(),
            reading=Reading(strings="path"),
            output=deployment.output,
            **ASKING,
        )
        ClaudeDocumentsOperator(task_id="one", documents=choose_one(), output=deployment.output, **ASKING)
        ClaudeDocumentsOperator.partial(
            task_id="mapped", output=f"{deployment.folder}/parts/", **ASKING
        ).expand(documents=choose())
    ran = deployment.run(dag)
    assert ran.state == "failed"
    states = {
        (ti.task_id, ti.map_index): ti.state for ti in ran.instances.values() if "choose" not in ti.task_id
    }
    assert states == {
        ("many", -1): "failed",
        ("one", -1): "failed",
        ("mapped", 0): "failed",
        ("mapped", 1): "failed",
    }
    assert ran.log.count("must be said where files may be read") >= 4
    assert deployment.server.seen == 0


def test_a_limit_from_a_form_asks_only_so_many(deployment):
    deployment.files(5)

    def run(**conf):
        dag = params_dag(deployment, roots=[str(deployment.inbox)], limit="{{ params.limit }}")
        return deployment.run(dag, run_conf=conf)

    assert run(limit=2).outcomes == {"answered": 2}
    assert run().outcomes == {"answered": 3, "reused": 2}
