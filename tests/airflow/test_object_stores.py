"""Documents in S3, rows to S3: moto over HTTP, Amazon's provider, credentials from an Airflow connection."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.s3 import S3, SECRET, s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with s3_server() as running:
        yield running


@pytest.fixture
def s3(server: S3, deployment) -> S3:
    """The server with empty buckets `letters` and `results`, and the connection `store` that leads to it."""
    from airflow.sdk.io import store

    deployment.monkeypatch.setenv("AIRFLOW_CONN_STORE", json.dumps(server.connection()))
    store._STORE_CACHE.clear()  # as in a process of its own
    server.reset()
    for bucket in ("letters", "results"):
        server.client.create_bucket(Bucket=bucket)
    return server


def letters(count: int, start: int = 0) -> dict[str, str]:
    return {f"inbox/doc-{n:04}.txt": f"Letter {n}: we owe you ${n}.00." for n in range(start, start + count)}


def rows(s3: S3, key: str = "rows.jsonl") -> list[dict]:
    return [json.loads(line) for line in s3.get("results", key).splitlines()]


IN, OUT = "s3://store@letters/inbox/", "s3://store@results/rows.jsonl"


def test_objects_become_rows_and_dead_letters_in_the_store(deployment, s3):
    s3.put("letters", letters(3) | {"inbox/empty.txt": "", "inbox/skipped.exe": "x", "other/x.txt": "x"})
    ran = deployment.ask(IN, output=OUT, max_failed=1)
    assert (ran.state, ran.outcomes) == ("success", {"answered": 3, "dead_letter": 1}), ran.log
    assert [row["document_id"] for row in rows(s3)] == [f"doc-{n:04}.txt" for n in range(3)]
    assert [row["document_id"] for row in rows(s3, "rows.dead_letters.jsonl")] == ["empty.txt"]
    assert json.loads(s3.get("results", "rows.manifest.json"))["outcomes"]["answered"] == 3
    assert s3.keys("results") == [
        "rows.dead_letters.jsonl",
        "rows.jsonl",
        "rows.manifest.json",
        "rows.schema.json",
    ]
    assert ran.manifest["output"] == "s3://results/rows.jsonl"
    assert SECRET not in ran.log


def test_more_keys_than_one_page_of_a_listing_are_all_found_and_an_unchanged_run_asks_nothing(deployment, s3):
    """1,010 objects in, rows out; unchanged: 0 requests and no object read; one overwritten: 1."""
    s3.put("letters", letters(1_010))
    s3.requests.clear()
    first = deployment.ask(IN, output=OUT)
    assert (first.state, first.outcomes) == ("success", {"answered": 1_010}), first.log
    assert len([each for each in s3.requests if "continuation-token" in each]) == 1  # a page holds 1,000
    assert len(rows(s3)) == 1_010
    assert deployment.server.invoice.paid == 1_010

    s3.requests.clear()
    second = deployment.ask(IN, output=OUT)
    assert second.outcomes == {"reused": 1_010}
    assert deployment.server.invoice.paid == 1_010
    assert not [each for each in s3.requests if each.startswith("GET /letters/inbox/")]

    s3.put("letters", {"inbox/doc-0700.txt": "Letter 700: we owe you nothing."})
    s3.requests.clear()
    third = deployment.ask(IN, output=OUT)
    assert third.outcomes == {"reused": 1_009, "answered": 1}
    assert deployment.server.invoice.paid == 1_011
    assert {each for each in s3.requests if each.startswith("GET /letters/inbox/")} == {
        "GET /letters/inbox/doc-0700.txt"
    }


def test_a_store_that_asks_to_slow_down_is_asked_again(deployment, s3):
    s3.put("letters", letters(3))

    def is_of_documents(environ) -> bool:
        return environ["PATH_INFO"].startswith("/letters")

    s3.refuse(is_of_documents, times=2)  # a listing
    ran = deployment.ask(IN, output=OUT)
    assert (ran.state, ran.outcomes) == ("success", {"answered": 3}), ran.log
    s3.put("letters", letters(2, start=3))
    s3.refuse(lambda environ: environ["PATH_INFO"] == "/letters/inbox/doc-0004.txt", times=2)
    ran = deployment.ask(IN, output=OUT)
    assert (ran.state, ran.outcomes) == ("success", {"answered": 2, "reused": 3}), ran.log
    s3.refuse(lambda environ: environ["REQUEST_METHOD"] == "PUT", times=2)
    ran = deployment.ask(IN, output=OUT)
    assert (ran.state, len(rows(s3))) == ("success", 5), ran.log


def test_an_object_that_stays_unreadable_is_a_dead_letter_that_the_next_try_reads(deployment, s3):
    s3.put("letters", letters(3))
    s3.before = lambda environ: (
        ("403 Forbidden", b"<Error><Code>AccessDenied</Code></Error>")
        if environ["PATH_INFO"] == "/letters/inbox/doc-0001.txt"
        else None
    )
    ran = deployment.ask(IN, output=OUT, max_failed=1)
    assert (ran.state, ran.outcomes) == ("success", {"answered": 2, "dead_letter": 1})
    assert [letter["reason"] for letter in rows(s3, "rows.dead_letters.jsonl")] == ["unreadable"]
    s3.before = None
    assert deployment.ask(IN, output=OUT).outcomes == {"answered": 1, "reused": 2}


def test_an_object_overwritten_while_it_is_read_is_read_again_and_never_a_mixture(deployment, s3):
    s3.put("letters", letters(1))
    new = {"inbox/doc-0000.txt": "Letter 0, corrected: we owe you $7.00."}
    answers = iter([new])

    def overwrite(environ) -> None:
        # The first GET comes after the description of the object was fetched: by then it is another version.
        is_read = environ["REQUEST_METHOD"] == "GET" and environ["PATH_INFO"].endswith("doc-0000.txt")
        if is_read and (objects := next(answers, None)):
            s3.put("letters", objects)

    s3.before = overwrite
    deployment.server.reply(call=lambda question: "corrected" if "corrected" in question.text else "first")
    ran = deployment.ask(IN, output=OUT)
    assert (ran.state, [row["data"] for row in rows(s3)]) == ("success", ["corrected"]), ran.log
    s3.before = None
    assert deployment.ask(IN, output=OUT).outcomes == {"reused": 1}


def test_an_object_put_back_later_is_not_known_by_what_stood_in_its_place(deployment, s3):
    """S3's etags are hashes: the object that is put back has the old one again."""
    old, new = letters(1), {"inbox/doc-0000.txt": "Letter 0, corrected: we owe you $7.00."}
    s3.put("letters", old)
    deployment.server.reply(call=lambda question: "corrected" if "corrected" in question.text else "first")
    replaced = iter([new])

    def replace(environ) -> None:
        # After the listing, and before the object is looked at again.
        is_looked_at = environ["REQUEST_METHOD"] == "HEAD" and environ["PATH_INFO"].endswith("doc-0000.txt")
        if is_looked_at and (objects := next(replaced, None)):
            s3.put("letters", objects)

    s3.before = replace
    deployment.ask(IN, output=OUT)
    assert [row["data"] for row in rows(s3)] == ["corrected"]
    s3.before = None
    s3.put("letters", old)
    deployment.ask(IN, output=OUT)
    assert [row["data"] for row in rows(s3)] == ["first"]


def test_a_table_in_the_store_is_read_row_by_row_and_a_glob_matches_objects(deployment, s3):
    s3.put("letters", {"inbox/rows.csv": "id,text\n1,one\n2,two\n", "inbox/a.txt": "a", "inbox/b.md": "b"})
    assert deployment.ask("s3://store@letters/inbox/rows.csv", output=OUT).outcomes == {"answered": 2}
    assert deployment.ask("s3://store@letters/inbox/*.txt", output=OUT).outcomes == {"answered": 1}
    ran = deployment.ask("s3://store@letters/inbox/a.txt", output="s3://store@results/all/")
    assert ran.manifest["output"] == "s3://results/all/part-0.jsonl"


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_other_formats_go_to_the_store_too(deployment, s3, form):
    s3.put("letters", letters(2))
    ran = deployment.ask(IN, output=f"s3://store@results/rows.{form}")
    assert (ran.state, ran.manifest["rows"]) == ("success", 2)
    assert s3.get("results", f"rows.{form}")


@pytest.mark.parametrize("documents", ["elsewhere/", "elsewhere/*", "elsewhere/**/*.txt"])
def test_a_folder_that_holds_nothing_keeps_the_rows_in_the_store(deployment, s3, documents):
    s3.put("letters", letters(2))
    deployment.ask(IN, output=OUT)
    ran = deployment.ask(f"s3://store@letters/{documents}", output=OUT)
    assert ran.state == "failed"
    assert "has rows of an earlier run" in ran.log
    assert len(rows(s3)) == 2
    assert deployment.ask(f"s3://store@letters/{documents}", output=OUT, on_empty="ok").state == "success"
    assert rows(s3) == []


def test_an_empty_bucket_holds_nothing(deployment, s3):
    ran = deployment.ask("s3://store@letters/", output=OUT)
    assert (ran.state, ran.manifest["documents"]) == ("success", 0)
    assert "no documents were found" in ran.log


@pytest.mark.parametrize(
    "path",
    [
        "no-such-bucket/",
        "no-such-bucket/inbox/",
        "no-such-bucket/*",
        "letters/no-such.txt",
        "letters/no-such-folder",
    ],
)
def test_what_does_not_exist_in_the_store_is_named(deployment, s3, path):
    s3.put("letters", letters(1))
    ran = deployment.ask(f"s3://store@{path}", output=OUT)
    assert ran.state == "failed"
    assert "no such" in ran.log


def test_a_single_call_takes_an_object_as_input_and_writes_its_answer_to_the_store(deployment, s3):
    from airflow.sdk import DAG, ObjectStoragePath

    from airflow_llm_provider.operators.claude import ClaudeOperator

    s3.put("letters", letters(1))
    with DAG("single", schedule=None) as dag:
        ClaudeOperator(
            task_id="read",
            prompt="What is owed?",
            model="fast",
            inputs={"letter": ObjectStoragePath("s3://store@letters/inbox/doc-0000.txt")},
            output="s3://store@results/answer.txt",
        )
    ran = deployment.run(dag)
    assert ran.state == "success", ran.log
    assert s3.get("results", "answer.txt")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("gs://store@letters/inbox/", "apache-airflow-providers-google"),
        ("abfs://store@letters/inbox/", "apache-airflow-providers-microsoft-azure"),
        ("dropbox://store@letters/inbox/", "Install a provider that knows it"),
    ],
)
@pytest.mark.parametrize("argument", ["documents", "output"])
def test_a_scheme_without_its_provider_says_what_to_install(deployment, url, says, argument):
    asking = {"documents": deployment.texts(1), argument: url}
    ran = deployment.ask(**asking, retries=1)
    assert (ran.state, ran.ti().try_number) == ("failed", 1)
    assert says in ran.log
    assert deployment.server.seen == 0


def test_roots_of_a_store_whose_provider_is_missing_do_not_keep_local_files_from_being_read(deployment):
    folder = deployment.files(1)
    ran = deployment.ask(str(folder), roots=["gs://conn@letters/in", str(folder)])
    assert ran.outcomes == {"answered": 1}


def test_a_root_in_the_store_is_compared_without_its_connection(deployment, s3):
    s3.put("letters", letters(1))
    assert deployment.ask(IN, output=OUT, roots=["s3://letters/inbox"]).outcomes == {"answered": 1}
    ran = deployment.ask(IN, output=OUT, roots=["s3://store@letters/other"])
    assert ran.state == "failed"
    assert "outside the roots" in ran.log
