"""The official provider: its operator mapped over the documents, one task each."""

from airflow.providers.common.ai.operators.llm import LLMOperator
from airflow.sdk import DAG
from question import DEFAULT_ARGS, PROMPT, Delivery, works

SETTINGS = {"max_tokens": 4096}

for work in works():
    with DAG(work.dag_id, schedule=None, default_args=DEFAULT_ARGS):
        if work.questions:
            LLMOperator.partial(task_id="ask", llm_conn_id="claude", model_settings=SETTINGS).expand(
                prompt=work.prompts
            )
        else:
            LLMOperator.partial(
                task_id="ask",
                llm_conn_id="claude",
                system_prompt=PROMPT,
                output_type=Delivery,
                model_settings=SETTINGS,
                serialize_output=True,
            ).expand(prompt=[file.read_text() for file in work.files])
