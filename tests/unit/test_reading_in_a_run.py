"""Documents that take long to read hold up neither the loop nor its own threads, which look into the ledger."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from conftest import SCOPE

from airflow_llm_provider.documents.prompt import DocumentPrompt
from airflow_llm_provider.documents.run import Run
from airflow_llm_provider.documents.sources import list_documents
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.output_type import OutputType
from airflow_llm_provider.options import Reading
from tests.support import own_readers


async def test_the_threads_of_the_loop_are_free_while_documents_are_read(
    engine: Engine, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    for number in range(50):
        (inbox / f"{number}.hold").write_text(str(go))
    reading = Reading(readers={"hold": own_readers.hold})
    prompt = DocumentPrompt(prompt="?", output=OutputType(str), endpoint=engine.endpoint, reading=reading)
    run = Run(engine=engine, scope=SCOPE, prompt=prompt)
    reads = [asyncio.create_task(run.read(each)) for each in list_documents(inbox, reading=reading)]
    await asyncio.sleep(0)  # so that all have begun
    give_up = threading.Timer(10, go.touch)  # else a failure would never end
    give_up.start()
    await asyncio.to_thread(str)
    assert not any(read.done() for read in reads)
    go.touch()
    assert {content.text for content in await asyncio.gather(*reads)} == {"held"}
    give_up.cancel()
