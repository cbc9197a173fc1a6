"""The DAGs of test_required_actions.py; the test copies this file into the DAGs folder."""

from __future__ import annotations

import datetime as dt

import pydantic
from airflow.providers.smtp.notifications.smtp import SmtpNotifier
from airflow.sdk import DAG, task

from airflow_llm_provider.options import Reviewers
from airflow_llm_provider.sensors.approval import ApprovalSensor

LETTER = """\
Dear Ms. Mill,

you owe us $12.50 since March 4, 2026.
```
<script>document.title = 'broken out'</script><b>bold</b>
![a picture](/static/stolen.png) | [a link](javascript:alert(1))
# A headline
"""
USAGE = {"model": "claude-haiku-5-5", "cost_usd": "0.001234"}


class Refund(pydantic.BaseModel):
    customer: str
    amount: float = pydantic.Field(le=100)
    reason: str
    items: list[str]


REFUND = {
    "customer": "Ms. Mill | <i>VIP</i>",
    "amount": 40.0,
    "reason": "Late delivery of order 4711.",
    "items": ["kettle", "lid"],
}


@task
def draft(ti=None):
    ti.xcom_push("llm_usage", USAGE)
    return LETTER


@task
def propose():
    return REFUND


@task
def send(content):
    return content


@task
def redo(decision):
    return decision["feedback"]


with DAG("letter", schedule=None):
    asked = ApprovalSensor(
        task_id="approval",
        content=draft(),
        subject="Send this letter to Ms. Mill?",
        action="The letter goes out by post today.",
        risk="It can't be called back.",
        reviewers=Reviewers(
            users=["ada"],
            notifiers=[
                SmtpNotifier(
                    to="ada@example.com",
                    from_email="airflow@example.com",
                    subject="{{ review_subject }}",
                    html_content="Decide here: {{ review_url }}",
                )
            ],
        ),
    )
    send(asked.output["content"])

with DAG("refund", schedule=None):
    asked = ApprovalSensor(
        task_id="approval",
        content=propose(),
        subject="Pay this refund?",
        output_type=Refund,
        on_reject="redo",
        reviewers=Reviewers(timeout=dt.timedelta(days=2)),
    )
    send(asked.output["content"])
    redo(asked.output)
