"""Our package: all documents in one task, each single question in a deferrable one."""

from airflow.sdk import DAG
from question import DEFAULT_ARGS, IN_FLIGHT, PROMPT, Delivery, works

from airflow_llm_provider.operators.claude import ClaudeOperator
from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator

for work in works():
    with DAG(work.dag_id, schedule=None, default_args=DEFAULT_ARGS):
        if work.questions:
            ClaudeOperator.partial(task_id="ask", model="fast", deferrable=True).expand(prompt=work.prompts)
        else:
            ClaudeDocumentsOperator(
                task_id="ask",
                documents=work.folder,
                prompt=PROMPT,
                output_type=Delivery,
                output=f"{work.folder}.jsonl",
                model="fast",
                max_in_flight=IN_FLIGHT,
            )
