"""A plain @task with the SDK, mapped: one document or question a task."""

from airflow.sdk import DAG, BaseHook, task
from question import DEFAULT_ARGS, MODEL, PROMPT, Delivery, works


@task
def ask(prompt, *, is_document):
    """Ask one question."""
    import anthropic

    connection = BaseHook.get_connection("claude")
    client = anthropic.Anthropic(api_key=connection.password, base_url=connection.host)
    messages = [{"role": "user", "content": prompt}]
    if not is_document:
        reply = client.messages.create(model=MODEL, max_tokens=4096, messages=messages)
        return reply.content[0].text
    reply = client.messages.parse(
        model=MODEL, max_tokens=4096, system=PROMPT, messages=messages, output_format=Delivery
    )
    return reply.parsed_output.model_dump(mode="json")


for work in works():
    with DAG(work.dag_id, schedule=None, default_args=DEFAULT_ARGS):
        prompts = work.prompts or [file.read_text() for file in work.files]
        ask.partial(is_document=not work.questions).expand(prompt=prompts)
