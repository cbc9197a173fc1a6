"""A support message is routed to a specialist: Claude chooses the branch, and each branch has its own model and tools.

The fast tier reads the message and names one of three desks, with a confidence. An unsure choice, an invalid answer or
a model that cannot be reached leads to `a_person`, and the record of the branch says why.

Each desk is a task: its model, its system prompt, and the Python functions that it may call. The functions look things
up in the account. Opening a ticket is marked as irreversible and happens at most once, however often the task is
retried. What the specialist writes is a draft: anyone can write any account number into a message, so a person reads it
before it is sent.

A run answers one message: an example, or the `text` of the form. A help desk starts one run per message, through the
REST API with `{"text": …}` as its conf; the schedule is only for the example.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from airflow.sdk import Param, dag, task

from airflow_llm_provider import Branch, ClaudeOperator, LLMBranchOperator, Route, tool

MESSAGES = Path(__file__).parent / "inputs" / "support"
TICKETS = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser() / "support_tickets.jsonl"

TRIAGE = "A customer wrote to the support of our shop software. Which desk should answer?"
ANSWER = """\
Answer the customer's message. Look up what you need with your tools before you say anything about an account; never \
promise what they don't show. Sign as "the support team". Plain text, ten lines at most, in the message's language."""
HOUSE_RULES = "You work for the support of a maker of shop software. Be brief, warm and exact."


def invoices(account: str) -> list[dict[str, Any]]:
    """List an account's invoices, the oldest first.

    Args:
        account: as on the message, such as C-1042.
    """
    return _account(account)["invoices"]


def contract_ends(account: str) -> dict[str, str]:
    """Say for each location of an account on which date its contract ends.

    Args:
        account: as on the message, such as C-1042.
    """
    return _account(account)["locations"]


def service_status(region: Literal["eu-west", "eu-north", "us-east"]) -> str:
    """Say whether a region's stock synchronisation works now.

    Args:
        region: where the customer's shop runs.
    """
    return "degraded since 23:34: updates are accepted and delivered late" if region == "eu-west" else "works"


@tool(irreversible=True)
def open_ticket(account: str, team: Literal["billing", "platform"], text: str) -> str:
    """Open a ticket with the team that can act on it; returns its number.

    Args:
        account: as on the message, such as C-1042.
        team: who is to act.
        text: what they need to know, in two sentences.
    """
    opened = TICKETS.read_text().splitlines() if TICKETS.exists() else []
    number = f"T-{len(opened) + 1:05}"
    ticket = {"number": number, "account": account, "team": team, "text": text}
    TICKETS.write_text("\n".join([*opened, json.dumps(ticket), ""]))
    return number


def _account(account: str) -> dict[str, Any]:
    accounts: dict[str, dict[str, Any]] = json.loads((MESSAGES / "accounts.json").read_text())
    if account not in accounts:
        raise LookupError(f"There is no account {account!r}.")  # the model is told, and can ask the customer
    return accounts[account]


BRANCHES = {
    "billing": Branch("invoices, payments, refunds, charged twice, card statement"),
    "technical": Branch(
        "something does not work: sync, connector, API token, error codes, a till or web shop with wrong stock"
    ),
    "contract": Branch(
        "cancellation, cancel a plan, when a contract ends, change of plan, subscription",
        min_confidence=0.8,  # a wrong date for the end of a contract is expensive
    ),
}


@dag(
    schedule="@hourly",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    default_args={"owner": "support", "retries": 2, "retry_delay": timedelta(seconds=30)},
    tags=["claude", "support", "example"],
    doc_md=__doc__,
    params={
        "message": Param(
            "double_charge",
            enum=sorted(file.stem for file in MESSAGES.glob("*.txt")),
            title="Example message",
            description="One of the messages beside this DAG.",
        ),
        "text": Param(
            None,
            type=["null", "string"],
            format="multiline",
            title="Your own message",
            description="The text of a message. It is answered instead of the example.",
        ),
    },
)
def support_routing() -> None:
    """Choose a desk, let it answer, or hand over to a person."""

    @task
    def message(params: dict[str, Any]) -> str:
        """Return the message from the form."""
        return params["text"] or (MESSAGES / f"{params['message']}.txt").read_text()

    @task
    def a_person(message: str) -> str:
        """Leave the message to a person, unchanged."""
        return f"No desk was chosen for this message; somebody should read it:\n\n{message}"

    @task(trigger_rule="none_failed_min_one_success")
    def draft(ti: Any) -> dict[str, Any]:
        """Return the draft, the desk that wrote it, and why that desk was chosen."""
        chosen = ti.xcom_pull(task_ids="triage", key="llm_branch")
        (desk,) = chosen["taken"]
        return {"desk": desk, "why": chosen["why"], "text": ti.xcom_pull(task_ids=desk)}

    text = message()
    triage = LLMBranchOperator(
        task_id="triage",
        model="fast",
        prompt=TRIAGE,
        inputs={"message": text},
        branches=BRANCHES,
        route=Route(min_confidence=0.6),
        default_branch="a_person",
    )
    billing = ClaudeOperator(
        task_id="billing",
        prompt=ANSWER,
        inputs={"message": text},
        model="balanced",
        system=f"{HOUSE_RULES} You handle invoices. A refund is a ticket for the billing team, not a promise.",
        tools=[invoices, open_ticket],
    )
    technical = ClaudeOperator(
        task_id="technical",
        prompt=ANSWER,
        inputs={"message": text},
        model="strong",
        system=f"{HOUSE_RULES} You know the connector well. Check the region's status before anything else.",
        tools=[service_status, open_ticket],
    )
    contract = ClaudeOperator(
        task_id="contract",
        prompt=ANSWER,
        inputs={"message": text},
        model="balanced",
        system=f"{HOUSE_RULES} You handle contracts. Confirm dates only as the tools give them.",
        tools=[contract_ends, invoices],
    )
    triage >> [billing, technical, contract, a_person(text)] >> draft()


support_routing()
