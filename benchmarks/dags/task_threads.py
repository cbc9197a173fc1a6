"""A plain @task with the SDK that asks about all documents itself, in threads, and keeps what it gets."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from airflow.sdk import DAG, BaseHook, task
from question import DEFAULT_ARGS, IN_FLIGHT, MODEL, PROMPT, Delivery, works


@task
def ask(folder):
    """Ask about every document; one that fails costs the others nothing."""
    import anthropic

    connection = BaseHook.get_connection("claude")
    client = anthropic.Anthropic(api_key=connection.password, base_url=connection.host)

    def row(file):
        try:
            reply = client.messages.parse(
                model=MODEL,
                max_tokens=4096,
                system=PROMPT,
                messages=[{"role": "user", "content": file.read_text()}],
                output_format=Delivery,
            )
        except (anthropic.APIError, ValueError) as error:  # ValueError: an answer of another shape
            return {"document": file.name, "error": str(error)}
        return {"document": file.name, "value": reply.parsed_output.model_dump(mode="json")}

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        rows = list(pool.map(row, sorted(Path(folder).iterdir())))
    Path(f"{folder}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    return sum("value" in each for each in rows)


for work in works():
    with DAG(work.dag_id, schedule=None, default_args=DEFAULT_ARGS):
        ask(work.folder)
