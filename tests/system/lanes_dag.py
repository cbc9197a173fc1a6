"""The DAGs of test_lanes.py; the test copies this file into the DAGs folder."""

from __future__ import annotations

from airflow.sdk import DAG, task

from airflow_llm_provider.operators.claude import ClaudeOperator

FATES = ("ok", "invalid", "busy", "refusal", "truncation")
# A letter apart, so that the same text costs the same tokens in both.
LANES = {"w": {}, "d": {"deferrable": True}}
DATE = {
    "type": "object",
    "properties": {"date": {"type": "string"}},
    "required": ["date"],
    "additionalProperties": False,
}
ASKED = {"model": "fast", "output_type": DATE, "inputs": {"letter": "Signed March 4, 2026."}}
ABROAD = {"retries": 2, "retry_delay": 300}  # so long that a test would notice it


def prompt(lane: str, shape: str, fate: str) -> str:
    return f"[{lane} {shape} {fate}] When was it signed?"


with DAG("lanes", schedule=None, params={"question": "When was it signed?"}, default_args=ABROAD):
    for lane, how in LANES.items():

        @task(task_id=f"prompts_{lane}")
        def prompts(lane: str) -> list[str]:
            return [prompt(lane, "xcom", fate) for fate in FATES]

        asked = {**ASKED, **how}
        for fate in FATES:
            ClaudeOperator(task_id=f"plain_{fate}_{lane}", prompt=prompt(lane, "plain", fate), **asked)
            ClaudeOperator(
                task_id=f"templated_{fate}_{lane}",
                prompt=f"[{lane} templated {fate}] {{{{ params.question }}}}",
                **asked,
            )
        literal = [prompt(lane, "literal", fate) for fate in FATES]
        ClaudeOperator.partial(task_id=f"literal_{lane}", **asked).expand(prompt=literal)
        ClaudeOperator.partial(task_id=f"xcom_{lane}", **asked).expand(prompt=prompts(lane))

with DAG("killed", schedule=None, params={"question": "When was it signed?"}):
    for lane, how in LANES.items():
        asked = {**ASKED, **how, "retries": 3, "retry_delay": 1}

        @task(task_id=f"prompts_{lane}")
        def slow_prompts(lane: str) -> list[str]:
            return [prompt(lane, "xcom", "killed")]

        ClaudeOperator(task_id=f"plain_{lane}", prompt=prompt(lane, "plain", "killed"), **asked)
        ClaudeOperator(
            task_id=f"templated_{lane}",
            prompt=f"[{lane} templated killed] {{{{ params.question }}}}",
            **asked,
        )
        literal = [prompt(lane, "literal", "killed")]
        ClaudeOperator.partial(task_id=f"literal_{lane}", **asked).expand(prompt=literal)
        ClaudeOperator.partial(task_id=f"xcom_{lane}", **asked).expand(prompt=slow_prompts(lane))

with DAG("stopped", schedule=None):
    for end in ("cleared", "failed"):
        ClaudeOperator(task_id=end, prompt=f"[{end}] Take your time.", model="fast", deferrable=True)

with DAG("limited", schedule=None, default_args=ABROAD):
    for lane, how in LANES.items():
        once = {"rate_limit": {"attempts": 1}}
        ClaudeOperator(
            task_id=f"busy_{lane}", prompt=f"[{lane} later] Hello?", model="fast", retry=once, **how
        )

with DAG("broken", schedule=None):
    ClaudeOperator(task_id="no_connection", prompt="Hello?", deferrable=True, claude_conn_id="nowhere")
    ClaudeOperator(task_id="no_name", prompt="Hello {{ nobody }}?", deferrable=True)
