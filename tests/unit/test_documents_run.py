"""A run over documents: what ends it, what it leaves behind, and how far it reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from conftest import SCOPE, message

from airflow_llm_provider.documents.document import Document, Rejected
from airflow_llm_provider.documents.output import RowWriter
from airflow_llm_provider.documents.prompt import DocumentPrompt
from airflow_llm_provider.documents.run import Run
from airflow_llm_provider.documents.sources import list_documents
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.output_type import OutputType
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.errors import (
    AuthenticationFailed,
    BadRequest,
    LLMError,
    NetworkError,
    Overloaded,
    ServerError,
    SpendLimitReached,
    UnknownModel,
)
from airflow_llm_provider.options import Options, Route

MODEL = "claude-haiku-5-5"
BROKEN = (
    "HTTP 400 invalid_request_error: messages.0.content.1.image: Could not process image (request req_{})"
)


def a_run(engine: Engine, **fields: Any) -> Run:
    options = Options(
        route=Route(
            models=(MODEL,), retry={kind: {"attempts": 1} for kind in ("server", "network", "overloaded")}
        )
    )
    prompt = DocumentPrompt(
        prompt="What is owed?", output=OutputType(None), endpoint=engine.endpoint, options=options
    )
    return Run(
        engine=engine, scope=SCOPE, prompt=prompt, **{"max_in_flight": 4, "log_every_s": 3600.0, **fields}
    )


def texts(count: int) -> list[dict[str, Any]]:
    return [{"id": n, "text": f"Letter {n}."} for n in range(count)]


def asks_about(request: Request) -> int:
    """Return the number of the letter that a request is about."""
    return int(orjson.loads(request.messages[0]["content"][1]["source"]["data"])["id"])


def breaking(numbers: Any, error: type[LLMError], words: str = BROKEN) -> Any:
    """Answer all letters but those with these numbers."""

    def answer(request: Request) -> bytes | LLMError:
        number = asks_about(request)
        return error(words.format(number)) if number in numbers else message("$1")

    return answer


async def outcome(run: Run, documents: Any, tmp_path: Path) -> tuple[dict[str, int], list[str]]:
    """Return the outcomes that are not 0, and the ids of the rows."""
    with RowWriter(str(tmp_path / "rows.jsonl")) as sink:
        manifest = await run.run(list_documents(documents), sink)
        sink.publish(manifest)
    rows = [orjson.loads(line)["document_id"] for line in (tmp_path / "rows.jsonl").read_bytes().splitlines()]
    counts = {name: count for name, count in manifest["outcomes"].items() if count}
    assert sum(counts.values()) == manifest["documents"]
    return counts, rows


# what does not end a run


@pytest.mark.parametrize("error", [BadRequest, ServerError, NetworkError])
async def test_bad_documents_are_dead_letters_however_many_come_in_a_row(engine, wire, tmp_path, error):
    wire.usually = breaking(range(2, 38), error)
    wire.count = lambda request: 10
    run = a_run(engine)
    counts, rows = await outcome(run, texts(40), tmp_path)
    assert counts == {"answered": 4, "dead_letter": 36}
    assert rows == ["0", "1", "38", "39"]
    assert run.stopped is None


async def test_a_server_that_does_not_count_tokens_proves_nothing_against_the_documents(
    engine, wire, tmp_path
):
    wire.usually = breaking(range(30), BadRequest)
    assert wire.count is None
    counts, _ = await outcome(a_run(engine), texts(31), tmp_path)
    assert counts == {"answered": 1, "dead_letter": 30}


async def test_whether_the_settings_are_accepted_is_asked_without_a_document(engine, wire, tmp_path):
    wire.usually = breaking(range(20), BadRequest)
    wire.count = lambda request: 10
    await outcome(a_run(engine), texts(20), tmp_path)
    assert wire.counted
    assert all(len(request.messages[0]["content"]) == 1 for request in wire.counted)


# what ends a run


@pytest.mark.parametrize("error", [AuthenticationFailed, SpendLimitReached, UnknownModel])
async def test_what_key_account_or_model_cause_stops_the_run_at_once_and_what_was_answered_is_written(
    engine, wire, tmp_path, error
):
    wire.usually = breaking(range(4, 100), error, "no")
    run = a_run(engine)
    counts, rows = await outcome(run, texts(100), tmp_path)
    assert counts == {"answered": 4, "pending": 96}
    assert rows == ["0", "1", "2", "3"]
    assert isinstance(run.stopped, error)
    assert len(wire.sent) <= 4 + 2 * run.max_in_flight


async def test_a_server_that_cannot_be_reached_stops_the_run(engine, wire, tmp_path):
    def unreachable(request: Request) -> int:
        raise NetworkError("The connection failed.")

    wire.usually = breaking(range(4, 100), NetworkError, "The connection failed.")
    wire.count = unreachable
    run = a_run(engine)
    counts, rows = await outcome(run, texts(100), tmp_path)
    assert rows == ["0", "1", "2", "3"]
    assert isinstance(run.stopped, NetworkError)
    assert counts["pending"] > 80


async def test_a_server_that_stays_overloaded_stops_the_run_though_it_counts_tokens(engine, wire, tmp_path):
    wire.usually = breaking(range(4, 100), Overloaded, "busy")
    wire.count = lambda request: 10
    run = a_run(engine)
    await outcome(run, texts(100), tmp_path)
    assert isinstance(run.stopped, Overloaded)
    assert not wire.counted


async def test_a_schema_that_the_server_refuses_without_a_document_too_stops_the_run(engine, wire, tmp_path):
    words = "HTTP 400 invalid_request_error: output_config.format.schema: too complex (request {})"

    def refuse(request: Request) -> int:
        raise BadRequest(words.format("count"))

    wire.usually = breaking(range(100), BadRequest, words)
    wire.count = refuse
    run = a_run(engine)
    counts, _ = await outcome(run, texts(100), tmp_path)
    assert isinstance(run.stopped, BadRequest)
    assert counts["pending"] > 80


async def test_after_a_stop_the_documents_that_are_known_still_get_their_rows(engine, wire, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for n in range(30):
        (folder / f"{n:02}.txt").write_text(f"Letter {n}.")
    await outcome(a_run(engine), folder, tmp_path)
    paid = len(wire.sent)
    (folder / "00.txt").write_text("Another letter.")
    (folder / "29.txt").write_text("And another.")
    wire.usually = AuthenticationFailed("no")
    run = a_run(engine)
    counts, rows = await outcome(run, folder, tmp_path)
    assert counts == {"reused": 28, "pending": 2}
    assert len(rows) == 28
    assert len(wire.sent) - paid <= 2


async def test_after_a_stop_no_file_that_is_not_known_is_read(engine, wire, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for n in range(20):
        (folder / f"{n:02}.txt").write_text("" if n else "Letter 0.")  # reading an empty one shows
    wire.usually = AuthenticationFailed("no")
    counts, _ = await outcome(a_run(engine, max_in_flight=1), folder, tmp_path)
    assert counts == {"pending": 20}


async def test_an_invalid_answer_is_a_sign_that_the_server_is_there(engine, wire, tmp_path):
    def answer(request: Request) -> bytes | LLMError:
        number = asks_about(request)
        return message("", stop_reason="refusal") if number % 4 == 0 else Overloaded("busy")

    wire.usually = answer
    run = a_run(engine)
    await outcome(run, texts(40), tmp_path)
    assert run.stopped is None


# how far it reads


async def test_a_limit_reads_no_more_rows_of_a_table_than_it_asks_about(engine, wire, tmp_path):
    table = tmp_path / "rows-in.csv"
    table.write_text("id,text\n" + "".join(f"{n},{'x' * 100}\n" for n in range(20_000)))
    listing = list_documents(table)
    read: list[Document | Rejected] = []

    def noted() -> Iterator[Document | Rejected]:
        for item in listing:
            read.append(item)
            yield item

    run = a_run(engine, limit=10)
    with RowWriter(str(tmp_path / "rows.jsonl")) as sink:
        manifest = await run.run(noted(), sink)
    assert manifest["outcomes"]["answered"] == manifest["documents"] == 10
    assert manifest["limited"] is True
    assert len(read) == 11


@pytest.mark.parametrize(("limit", "limited"), [(None, False), (3, False), (4, False), (2, True), (0, True)])
async def test_the_manifest_says_whether_there_is_more_than_the_limit(engine, wire, tmp_path, limit, limited):
    run = a_run(engine, limit=limit)
    with RowWriter(str(tmp_path / "rows.jsonl")) as sink:
        manifest = await run.run(list_documents(texts(3)), sink)
    assert manifest["documents"] == min(3, 3 if limit is None else limit)
    assert manifest.get("limited", False) is limited
