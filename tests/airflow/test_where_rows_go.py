"""What comes out: rows in each format, the schema beside them, the manifest in XCom, parts of mapped tasks."""

from __future__ import annotations

import csv
import datetime as dt
import json
from pathlib import Path

import pyarrow.parquet
import pytest
from airflow.sdk import DAG, task
from pydantic import BaseModel

from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator
from airflow_llm_provider.options import OnInvalid, Route

ASKING = {"prompt": "What is owed?", "model": "fast"}


class Debt(BaseModel):
    amount: float
    due: dt.date | None = None


DEBT = {
    "type": "object",
    "properties": {"amount": {"type": "number"}},
    "required": ["amount"],
    "additionalProperties": False,
}


def test_rows_land_in_input_order_with_their_schema_and_manifest_beside_them(deployment):
    deployment.server.latency_s = 0.01
    deployment.server.reply(data={"amount": 3.5, "due": "2026-04-12"})
    ran = deployment.ask(deployment.texts(40), output_type=Debt)
    assert [row["document_id"] for row in ran.rows] == [f"doc-{n}" for n in range(40)]
    assert ran.rows[7]["data"] == {"amount": 3.5, "due": "2026-04-12"}
    folder = Path(ran.manifest["output"]).parent
    assert sorted(path.name for path in folder.iterdir()) == [
        "rows.jsonl",
        "rows.manifest.json",
        "rows.schema.json",
    ]
    schema = json.loads((folder / "rows.schema.json").read_text())
    assert "amount" in json.dumps(schema)
    assert json.loads((folder / "rows.manifest.json").read_text())["outcomes"]["answered"] == 40


def test_a_row_says_what_its_answer_took(deployment):
    ran = deployment.ask(deployment.texts(1))
    (row,), (line,) = ran.rows, deployment.server.invoice.lines
    assert row["document_id"] == "doc-0"
    assert row["outcome"] == "answered"
    assert (row["model"], row["stop_reason"]) == ("claude-haiku-5-5", "end_turn")
    assert (row["input_tokens"], row["output_tokens"]) == (line.input_tokens, line.output_tokens)
    assert row["cost_usd"] == f"{line.cost_micro_usd / 1e6:.6f}"
    assert (row["reused"], row["attempts"], row["repairs"]) == (False, 1, 0)
    assert row["trace_id"] == ran.manifest["trace_id"]


def test_the_manifest_in_xcom_is_small_and_complete(deployment):
    deployment.server.fail(kind="refusal", matching="Letter 3:")
    ran = deployment.ask(deployment.texts(20), max_failed=1, limit=15)
    manifest = ran.xcom()
    assert len(json.dumps(manifest)) < 4096
    assert manifest["outcomes"] == {
        "answered": 14,
        "reused": 0,
        "repaired": 0,
        "dead_letter": 1,
        "pending": 0,
    }
    assert sum(manifest["outcomes"].values()) == manifest["documents"] == 15
    assert manifest["limited"] is True
    assert manifest["dead_letter_reasons"] == {"refused": 1}
    invoice = deployment.server.invoice
    assert manifest["requests_paid"] == invoice.paid == 15
    assert manifest["input_tokens"] == sum(line.input_tokens for line in invoice.lines)
    assert manifest["output_tokens"] == sum(line.output_tokens for line in invoice.lines)
    assert manifest["cost_usd"] == f"{invoice.cost_micro_usd / 1e6:.6f}"
    assert manifest["seconds"] > 0
    assert manifest["rows"] == len(ran.rows) == 14
    assert {"output", "schema", "dead_letters"} <= manifest.keys()


def test_rows_land_as_csv(deployment):
    deployment.server.reply(data={"amount": 3.5, "due": None})
    ran = deployment.ask(deployment.texts(3), output=f"{deployment.folder}/rows.csv", output_type=Debt)
    with open(ran.manifest["output"], newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["document_id"], row["data.amount"], row["data.due"]) for row in rows] == [
        (f"doc-{n}", "3.5", "") for n in range(3)
    ]


def test_rows_land_as_parquet(deployment):
    deployment.server.reply(data={"amount": 3.5, "due": "2026-04-12"})
    ran = deployment.ask(deployment.texts(3), output=f"{deployment.folder}/rows.parquet", output_type=Debt)
    rows = pyarrow.parquet.read_table(ran.manifest["output"]).to_pylist()
    assert [row["document_id"] for row in rows] == ["doc-0", "doc-1", "doc-2"]
    assert rows[0]["data"]["amount"] == 3.5


def test_an_answer_that_parquet_cannot_hold_is_a_dead_letter(deployment):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    deployment.server.reply(data={"n": 2**80}, matching="Letter 1:")
    deployment.server.reply(data={"n": 1}, matching="Letter 0:")
    output = f"{deployment.folder}/rows.parquet"
    ran = deployment.ask(deployment.texts(2), output=output, output_type=schema, max_failed=1)
    assert ran.state == "success"
    assert ran.outcomes == {"answered": 1, "dead_letter": 1}


def test_a_list_type_lands_one_row_an_item(deployment):
    deployment.server.reply(data={"items": [{"amount": 1, "due": None}, {"amount": 2, "due": None}]})
    ran = deployment.ask(deployment.texts(2), output_type=list[Debt])
    assert [(row["document_id"], row["item"], row["data"]["amount"]) for row in ran.rows] == [
        ("doc-0", 0, 1.0),
        ("doc-0", 1, 2.0),
        ("doc-1", 0, 1.0),
        ("doc-1", 1, 2.0),
    ]
    assert ran.manifest["rows"] == 4


def test_a_json_schema_is_an_output_type_too(deployment):
    deployment.server.reply(data={"amount": 3}, matching="Letter 0:")
    deployment.server.reply(data={"amount": "three"}, matching="Letter 1:")
    ran = deployment.ask(
        deployment.texts(2), output_type=DEBT, on_invalid=OnInvalid(max_repairs=0), max_failed=1
    )
    assert [row["data"] for row in ran.rows] == [{"amount": 3}]
    assert [letter["reason"] for letter in ran.dead_letters] == ["invalid_output"]


def test_without_an_output_type_a_row_holds_text(deployment):
    deployment.server.reply(text="Three dollars.")
    assert deployment.ask(deployment.texts(1)).rows[0]["data"] == "Three dollars."


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("rows.jsonl", "it is relative"),
        ("/tmp/rows.xlsx", "cannot be written as 'xlsx'"),
        ("{inbox}/rows.jsonl", "among"),
    ],
)
def test_an_output_that_cannot_work_fails_at_once_and_before_anything_is_paid(deployment, output, says):
    folder = deployment.files(2)
    later = "{{ '" + output.format(inbox=folder) + "' }}"  # a literal one is an error of the DAG file
    ran = deployment.ask(str(folder), output=later, retries=1)
    assert ran.state == "failed"
    assert ran.ti().try_number == 1
    assert says in ran.log
    assert deployment.server.seen == 0


def rows_of(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_run_that_fails_for_everyone_leaves_the_rows_of_the_last_one(deployment):
    before = deployment.ask(deployment.texts(2)).rows
    deployment.server.fail(status=401)
    assert deployment.ask(deployment.texts(4), prompt="Another question?").state == "failed"
    assert rows_of(deployment.output) == before


def test_what_was_answered_before_the_key_was_revoked_is_written_with_what_is_known(deployment):
    deployment.ask(deployment.texts(5))
    deployment.server.fail(status=401, after=3)
    ran = deployment.ask(deployment.texts(50), max_in_flight=1, retries=2)
    assert (ran.state, ran.ti().try_number) == ("failed", 1)
    assert ran.outcomes == {"reused": 5, "answered": 3, "pending": 42}
    assert [row["document_id"] for row in rows_of(deployment.output)] == [f"doc-{n}" for n in range(8)]
    assert "42 of 50 documents are pending" in ran.log
    assert "Check the API key" in ran.log


def test_what_was_answered_before_the_server_went_down_is_written_and_a_retry_continues(
    deployment, monkeypatch
):
    once = {"attempts": 1}
    deployment.server.fail(status=529, after=5)
    ran = deployment.ask(deployment.texts(40), max_in_flight=1, route=Route(retry={"overloaded": once}))
    assert ran.state == "failed"
    assert ran.outcomes == {"answered": 5, "dead_letter": 7, "pending": 28}
    assert len(rows_of(deployment.output)) == 5
    deployment.server.heal()
    assert deployment.ask(deployment.texts(40)).outcomes == {"reused": 5, "answered": 35}


def test_three_hundred_corrupt_images_are_three_hundred_dead_letters(deployment):
    folder = deployment.inbox
    for n in range(300):
        (folder / f"scan-{n:03}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes([n % 256, n // 256]) * 50)
    deployment.files(3)
    deployment.server.fail(status=400, matching=lambda question: "image" in json.dumps(question.body))
    ran = deployment.ask(str(folder), max_failed="99.5%")
    assert (ran.state, ran.outcomes) == ("success", {"answered": 3, "dead_letter": 300})
    assert len(rows_of(deployment.output)) == 3


# Mapped over shards.


def shards(count: int, size: int) -> list[list[dict[str, str]]]:
    return [
        [{"id": f"{shard}-{n}", "text": f"Shard {shard}, letter {n}: ${n}."} for n in range(size)]
        for shard in range(count)
    ]


@pytest.mark.parametrize("source", ["literal", "xcom"])
@pytest.mark.parametrize("form", ["operator", "decorator"])
def test_mapped_shards_write_parts_and_share_the_ledger(deployment, source, form):
    with DAG("sharded", schedule=None) as dag:

        @task
        def split():
            return shards(3, 4)

        @task.claude_documents(output=deployment.output, **ASKING)
        def read(rows):
            return rows

        given = shards(3, 4) if source == "literal" else split()
        if form == "operator":
            ClaudeDocumentsOperator.partial(task_id="read", output=deployment.output, **ASKING).expand(
                documents=given
            )
        else:
            read.expand(rows=given)
    ran = deployment.run(dag)
    assert ran.state == "success", ran.log
    for shard in range(3):
        path = Path(deployment.output).parent / f"rows.part-{shard}.jsonl"
        assert ran.xcom(map_index=shard)["output"] == str(path)
        assert [json.loads(line)["document_id"] for line in path.read_text().splitlines()] == [
            f"{shard}-{n}" for n in range(4)
        ]
    assert {(call["map_index"], call["item_id"][0]) for call in deployment.calls} == {
        (0, "0"),
        (1, "1"),
        (2, "2"),
    }
    assert deployment.server.invoice.paid == 12


def test_shards_that_hold_the_same_document_pay_for_it_once(deployment):
    same = [{"id": "1", "text": "We owe you $1."}]
    with DAG("twins", schedule=None) as dag:
        ClaudeDocumentsOperator.partial(
            task_id="read", output=f"{deployment.folder}/parts/", **ASKING
        ).expand(documents=[same, same])
    ran = deployment.run(dag)
    assert [Path(ran.xcom(map_index=shard)["output"]).name for shard in (0, 1)] == [
        "part-0.jsonl",
        "part-1.jsonl",
    ]
    assert deployment.server.invoice.paid == 1


def test_typed_globs_can_be_shards(deployment):
    folder = deployment.files(20)
    with DAG("globs", schedule=None) as dag:
        ClaudeDocumentsOperator.partial(task_id="read", output=deployment.output, **ASKING).expand(
            documents=[f"{folder}/doc-000*.txt", f"{folder}/doc-001*.txt"]
        )
    ran = deployment.run(dag)
    assert ran.state == "success", ran.log
    assert [ran.xcom(map_index=shard)["documents"] for shard in (0, 1)] == [10, 10]


def test_prompts_can_be_mapped_over_one_set_of_documents(deployment):
    folder = deployment.files(2)
    with DAG("prompts", schedule=None) as dag:
        ClaudeDocumentsOperator.partial(
            task_id="read", output=deployment.output, documents=str(folder), model="fast"
        ).expand(prompt=["What is owed?", "Who owes it?"])
    ran = deployment.run(dag)
    assert ran.state == "success", ran.log
    assert deployment.server.invoice.paid == 4
