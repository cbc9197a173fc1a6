"""The official provider's hook in one @task, with asyncio: its agent asked about all documents at once."""

import asyncio
import json
from pathlib import Path

from airflow.sdk import DAG, task
from question import DEFAULT_ARGS, IN_FLIGHT, PROMPT, Delivery, works


@task
def ask(folder):
    """Ask about every document; one that fails costs the others nothing."""
    from airflow.providers.common.ai.hooks.pydantic_ai import PydanticAIHook
    from pydantic_ai.exceptions import AgentRunError

    agent = PydanticAIHook(llm_conn_id="claude").create_agent(
        output_type=Delivery, instructions=PROMPT, model_settings={"max_tokens": 4096}
    )
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def row(file):
        async with gate:
            try:
                result = await agent.run(file.read_text())
            except AgentRunError as error:
                return {"document": file.name, "error": str(error)}
        return {"document": file.name, "value": result.output.model_dump(mode="json")}

    async def rows(files):
        return await asyncio.gather(*map(row, files))

    found = asyncio.run(rows(sorted(Path(folder).iterdir())))
    Path(f"{folder}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in found))
    return sum("value" in each for each in found)


for work in works():
    with DAG(work.dag_id, schedule=None, default_args=DEFAULT_ARGS):
        ask(work.folder)
