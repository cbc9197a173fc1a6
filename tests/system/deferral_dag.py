"""The DAGs of test_deferral.py; the test copies this file into the DAGs folder."""

from __future__ import annotations

from airflow.sdk import DAG, task

from airflow_llm_provider.operators.claude import ClaudeOperator
from airflow_llm_provider.options import Route

FATES = ("ok", "invalid", "busy", "refusal", "truncation")
# A letter apart, so that the same text costs the same tokens in both.
WAYS = {"w": {}, "d": {"deferrable": True}}
DATE = {
    "type": "object",
    "properties": {"date": {"type": "string"}},
    "required": ["date"],
    "additionalProperties": False,
}
ASKED = {"model": "fast", "output_type": DATE, "inputs": {"letter": "Signed March 4, 2026."}}
ABROAD = {"retries": 2, "retry_delay": 300}  # so long that a test would notice it


def prompt(way: str, shape: str, fate: str) -> str:
    return f"[{way} {shape} {fate}] When was it signed?"


with DAG("deferral", schedule=None, params={"question": "When was it signed?"}, default_args=ABROAD):
    for way, how in WAYS.items():

        @task(task_id=f"prompts_{way}")
        def prompts(way: str) -> list[str]:
            return [prompt(way, "xcom", fate) for fate in FATES]

        asked = {**ASKED, **how}
        for fate in FATES:
            ClaudeOperator(task_id=f"plain_{fate}_{way}", prompt=prompt(way, "plain", fate), **asked)
            ClaudeOperator(
                task_id=f"templated_{fate}_{way}",
                prompt=f"[{way} templated {fate}] {{{{ params.question }}}}",
                **asked,
            )
        literal = [prompt(way, "literal", fate) for fate in FATES]
        ClaudeOperator.partial(task_id=f"literal_{way}", **asked).expand(prompt=literal)
        ClaudeOperator.partial(task_id=f"xcom_{way}", **asked).expand(prompt=prompts(way))

with DAG("killed", schedule=None, params={"question": "When was it signed?"}):
    for way, how in WAYS.items():
        asked = {**ASKED, **how, "retries": 3, "retry_delay": 1}

        @task(task_id=f"prompts_{way}")
        def slow_prompts(way: str) -> list[str]:
            return [prompt(way, "xcom", "killed")]

        ClaudeOperator(task_id=f"plain_{way}", prompt=prompt(way, "plain", "killed"), **asked)
        ClaudeOperator(
            task_id=f"templated_{way}",
            prompt=f"[{way} templated killed] {{{{ params.question }}}}",
            **asked,
        )
        literal = [prompt(way, "literal", "killed")]
        ClaudeOperator.partial(task_id=f"literal_{way}", **asked).expand(prompt=literal)
        ClaudeOperator.partial(task_id=f"xcom_{way}", **asked).expand(prompt=slow_prompts(way))

with DAG("stopped", schedule=None):
    for end in ("cleared", "failed"):
        ClaudeOperator(task_id=end, prompt=f"[{end}] Take your time.", model="fast", deferrable=True)

with DAG("limited", schedule=None, default_args=ABROAD):
    for way, how in WAYS.items():
        once = Route(retry={"rate_limit": {"attempts": 1}})
        ClaudeOperator(task_id=f"busy_{way}", prompt=f"[{way} later] Hello?", model="fast", route=once, **how)

with DAG("broken", schedule=None):
    ClaudeOperator(task_id="no_connection", prompt="Hello?", deferrable=True, claude_conn_id="nowhere")
    ClaudeOperator(task_id="no_name", prompt="Hello {{ nobody }}?", deferrable=True)
