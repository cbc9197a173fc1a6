"""Documents and answers in object storage, in a worker and in the triggerer; loaded by a real Airflow."""

from __future__ import annotations

from airflow.sdk import DAG, ObjectStoragePath, task

from airflow_llm_provider import ClaudeDocumentsOperator, ClaudeOperator

with DAG("stores", schedule=None):
    ClaudeDocumentsOperator(
        task_id="documents",
        documents="s3://store@letters/inbox/",
        prompt="What is owed?",
        output="s3://store@results/rows.jsonl",
        model="fast",
    )
    ClaudeOperator(
        task_id="deferred",
        prompt="Say something.",
        output="s3://store@results/answer.txt",
        model="fast",
        deferrable=True,
    )

    @task.claude_documents(
        prompt="What is owed?", output="s3://store@results/listed/", model="fast", roots=["s3://letters"]
    )
    def listed():
        return [ObjectStoragePath("s3://store@letters/inbox/0.txt")]

    listed()
