"""Claude plans, a person decides, and exactly what the person approved is carried out.

After an outage a person must decide which customers get which credit. The strong tier reads the incident report and
writes a plan: account, amount, reason, and a letter. Code checks the rules that can be checked, before a person spends
time on the plan.

Then the DAG waits, for days if necessary, and uses neither a worker nor a trigger. Under *Required Actions* a person
sees the plan, what it does and what it cost. The person approves it, approves it with changes typed into the form, or
rejects it with a reason. Changes must follow the same rules as the plan. No answer within two days rejects the plan.

The last task does not use Claude. It books what was approved, from the decision itself, and records who approved it and
the hash of what they saw. After a rejection it is skipped. A retry or a clear of any task pays for nothing again.

Bookings are written to `$AIRFLOW_HOME/credits/`, one JSON file per run.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import Param, dag, task
from pydantic import BaseModel, Field

from airflow_llm_provider import ApprovalSensor, ClaudeOperator, Reviewers

REPORT = Path(__file__).parent / "inputs" / "outage" / "report.txt"
BOOKED = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser() / "credits"
LIMIT_EUR = 500.0

PLAN = """\
You prepare decisions for the head of support. The incident report says which customers an outage has hit, and what \
our terms promise them. Propose a credit for each customer who was harmed, whether the terms promise it or goodwill \
asks for it, up to EUR {{ params.goodwill_eur }} of goodwill each; none for those who noticed nothing. The reason \
names the harm and the rule. Write one letter that can go to all of them: what happened, that we are sorry."""


class Credit(BaseModel):
    """What one customer gets."""

    account: str = Field(pattern=r"^C-\d{4}$", description="Account number")
    amount_eur: float = Field(ge=0, description="Credit in EUR")
    reason: str = Field(description="The harm, and the rule that the amount follows from")


class Plan(BaseModel):
    """What is done for the customers after an outage."""

    credits: list[Credit] = Field(min_length=1)
    letter: str = Field(description="The letter to the customers, in plain English")


def within_the_limit(plan: Plan) -> str | None:
    """Check every credit against the limit, in the plan and in a person's changes."""
    too_much = [
        f"{credit.account} EUR {credit.amount_eur:.2f}"
        for credit in plan.credits
        if credit.amount_eur > LIMIT_EUR
    ]
    return f"Credits are limited to EUR {LIMIT_EUR:.2f} each: {', '.join(too_much)}." if too_much else None


def each_account_once(plan: Plan) -> str | None:
    """Check that no account is paid twice."""
    twice = [account for account, count in Counter(c.account for c in plan.credits).items() if count > 1]
    return f"These accounts are in the plan more than once: {', '.join(twice)}." if twice else None


RULES = [within_the_limit, each_account_once]


@dag(
    schedule="0 7 * * MON",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    default_args={"owner": "support", "retries": 2, "retry_delay": timedelta(seconds=30)},
    tags=["claude", "approval", "example"],
    doc_md=__doc__,
    params={
        "report": Param(
            None,
            type=["null", "string"],
            format="multiline",
            title="Incident report",
            description="The text of a report. Empty: the example beside this DAG.",
        ),
        "goodwill_eur": Param(
            250,
            type="integer",
            minimum=0,
            maximum=int(LIMIT_EUR),
            title="Goodwill (EUR)",
            description="The highest goodwill that is proposed for one customer.",
        ),
    },
)
def human_checkpoint() -> None:
    """Plan, ask, book."""

    @task
    def report(params: dict[str, Any]) -> str:
        """Return the incident report."""
        return params["report"] or REPORT.read_text()

    @task
    def book(decision: dict[str, Any], run_id: str) -> str:
        """Book what was approved, and nothing else. A retry writes the same file again."""
        booking = {
            "approved_by": decision["decided_by"],
            "approved_at": decision["decided_at"],
            "with_changes": decision["status"] == "modified",
            "content_hash": decision["content_hash"],
            **decision["content"],
        }
        file = BOOKED / f"{run_id.replace(':', '-')}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(booking, indent=2))
        return str(file)

    plan = ClaudeOperator(
        task_id="plan",
        model="strong",
        prompt=PLAN,
        inputs={"report": report()},
        output_type=Plan,
        validators=RULES,
    )
    approval = ApprovalSensor(
        task_id="approval",
        content=plan.output,
        subject="Credits after an outage",
        action="The amounts are booked to the customers' accounts, and the letter goes out.",
        risk="A booking cannot be reversed without the customer's consent.",
        output_type=Plan,
        validators=RULES,
        reviewers=Reviewers(timeout=timedelta(days=2)),
    )
    book(approval.output)


human_checkpoint()
