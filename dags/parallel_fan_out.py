"""A contract read by four specialists at once (legal, finance, compliance, planning), and one recommendation.

Each specialist is a task with its own instructions, and all four read the same contract at the same time. None of them
sees the other opinions: four independent readings find more than one long reading, and show where they disagree. The
last call gets the four opinions, without the contract, and weighs them.

Airflow runs them in parallel: `max_active_tasks` limits how many run at once, a specialist that fails is retried alone,
and clearing one asks only that one again. The model does not decide whether we may sign: a single `stop` among the
opinions blocks the signature, in the code of the last task.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from airflow.sdk import Param, dag, task
from pydantic import BaseModel, Field

from airflow_llm_provider import ClaudeOperator
from airflow_llm_provider.validators import quotes_in_source

CONTRACTS = Path(__file__).parent / "inputs" / "contracts"

SPECIALISTS = {
    "legal": "You are a commercial lawyer. Look at liability, warranty, indemnities, termination, ownership of the "
    "work, assignment and governing law.",
    "finance": "You are a financial controller. Look at prices, instalments and what triggers them, indexation, "
    "penalties, interest, deposits, and what it costs to get out.",
    "compliance": "You are a data protection officer. Look at personal data, sub-processors, transfers to other "
    "countries, retention, audit and the reporting of breaches.",
    "planning": "You are a delivery manager. Look at milestones, deadlines, notice periods, acceptance, dependencies "
    "on us, and dates that leave no slack between them.",
}
REVIEW = """\
We are the {{ params.side }} and are asked to sign this contract. Give your opinion from where you sit; others look at \
the rest. Name the findings that matter, five at most, the worst first; each quote is copied from the contract word \
for word. `stop` is for what we must not sign as it stands."""
SYNTHESIS = """\
Four specialists have read the same contract for us, the {{ params.side }}, each without knowing of the others. Weigh \
their opinions into one recommendation to the managing director. Say where they contradict each other, and which one \
you follow and why. Add no findings of your own."""


class Finding(BaseModel):
    """One thing that matters in a contract."""

    quote: str = Field(description="The words of the contract that it rests on")
    concern: str = Field(description="What is wrong with them")
    change: str = Field(description="What the clause should say instead")


class Opinion(BaseModel):
    """What one specialist thinks of a contract."""

    verdict: Literal["sign", "negotiate", "stop"] = Field(
        description="sign: nothing stands in the way; negotiate: sign it once it is changed; "
        "stop: must not be signed as it stands"
    )
    findings: list[Finding] = Field(max_length=5)


class Recommendation(BaseModel):
    """What the managing director gets."""

    decision: Literal["sign", "negotiate", "stop"]
    reasons: list[str] = Field(description="The findings that decide it", max_length=5)
    negotiate: list[str] = Field(description="What to change, in the order of importance", max_length=5)
    contradictions: list[str] = Field(description="Where the opinions contradict each other", max_length=5)


@dag(
    schedule="@weekly",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_tasks=4,
    default_args={"owner": "procurement", "retries": 2, "retry_delay": timedelta(seconds=30)},
    tags=["claude", "contracts", "example"],
    doc_md=__doc__,
    params={
        "contract": Param(
            "data_platform",
            enum=sorted(file.stem for file in CONTRACTS.glob("*.txt")),
            title="Example contract",
            description="One of the contracts beside this DAG.",
        ),
        "text": Param(
            None,
            type=["null", "string"],
            format="multiline",
            title="Your own contract",
            description="The text of a contract. It is read instead of the example.",
        ),
        "side": Param(
            "client",
            enum=["customer", "supplier", "client", "tenant", "landlord", "provider"],
            title="Who we are",
            description="The party that is asked to sign.",
        ),
    },
)
def parallel_fan_out() -> None:
    """Four opinions in parallel, then one recommendation."""

    @task
    def contract(params: dict[str, Any]) -> str:
        """Return the text of the contract that the form names."""
        return params["text"] or (CONTRACTS / f"{params['contract']}.txt").read_text()

    @task
    def decision(recommendation: dict[str, Any], opinions: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Block the signature when one specialist says stop, whatever the recommendation."""
        blocked_by = sorted(name for name, opinion in opinions.items() if opinion["verdict"] == "stop")
        return {**recommendation, "blocked_by": blocked_by, "may_sign": not blocked_by}

    text = contract()
    opinions = {
        name: ClaudeOperator(
            task_id=name,
            model="balanced",
            system=instructions,
            prompt=REVIEW,
            inputs={"contract": text},
            output_type=Opinion,
            validators=[quotes_in_source("findings.*.quote")],
        ).output
        for name, instructions in SPECIALISTS.items()
    }
    recommendation = ClaudeOperator(
        task_id="synthesis",
        model="strong",
        prompt=SYNTHESIS,
        inputs=opinions,
        output_type=Recommendation,
    )
    decision(recommendation.output, opinions)


parallel_fan_out()
