"""A contract, read in three steps: its terms, its risks, and a page for the person who signs.

The fast tier copies the terms out of the contract. The balanced tier reads the contract together with those terms and
names the risks, each with a quote. The last call writes half a page, from the terms and the risks alone. Plain code
puts the dates and amounts, which must be exact, at the top of that page. A quote that is not in the contract word for
word is sent back to the model that wrote it.

A contract is paid for once, in whichever run it comes back: `reuse="always"`. When a prompt changes, only that step and
the steps after it are asked again.

Start it from the UI: choose an example contract, or paste a contract of your own.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from airflow.sdk import Param, dag, task
from pydantic import BaseModel, Field

from airflow_llm_provider import ClaudeOperator, RequestFields
from airflow_llm_provider.validators import quotes_in_source

CONTRACTS = Path(__file__).parent / "inputs" / "contracts"

TERMS = "Copy the terms out of this contract. Go by its text alone; leave out what it does not say."
RISKS = """\
You advise the {{ params.side }} named in this contract, who is about to sign it. `terms` is what a colleague has \
copied out of it.

Name the clauses that could hurt your client, the worst first, six at most. For each: what can happen, and what to ask \
the other side for. The quote is copied from the contract word for word. A clause that is usual and harmless is no \
risk."""
SUMMARY = """\
Write half a page for the person who signs on behalf of the {{ params.side }}: what they commit to, what worries us \
most, and the three things to negotiate. Plain English, no headings. Go by `terms` and `risks` alone and add nothing."""


class Terms(BaseModel):
    """What a contract says."""

    title: str = Field(description="The heading of the contract")
    parties: list[str] = Field(description="Names of the companies that sign")
    signed_on: date | None = Field(description="Date of the contract")
    effective_on: date | None = Field(description="Date from which it takes effect, or its term runs")
    term: str | None = Field(description="The sentence that says how long the term runs")
    renewal: str | None = Field(description="The sentence on how it renews automatically")
    notice: str | None = Field(description="The sentence on written notice and how long before the end")
    price: str | None = Field(description="The sentence that names the fee, rent or fixed price")
    liability: str | None = Field(description="The sentence that says to what liability is limited")
    governing_law: str | None = Field(description="The sentence on the laws that govern it")


class Risk(BaseModel):
    """One clause that could hurt."""

    area: Literal["money", "term", "liability", "data", "ownership", "changes", "other"] = Field(
        description="money: fees, rent, interest, instalments; term: renews, terminate, notice; "
        "liability: liable, liability, indemnifies; data: personal data, patient data; "
        "ownership: all rights, licence, source code; changes: may amend, may increase, may move"
    )
    severity: Literal["high", "medium", "low"] = Field(
        description="high: could cost more than a year's fees, or stop the business; medium: costs money or time; "
        "low: worth knowing"
    )
    quote: str = Field(description="The words of the clause")
    consequence: str = Field(description="What can happen to the client")
    ask_for: str = Field(description="What to ask the other side for")


class Risks(BaseModel):
    """The risks of a contract, the worst first."""

    risks: list[Risk] = Field(max_length=6)


@dag(
    schedule="@daily",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={"owner": "legal-operations", "retries": 2, "retry_delay": timedelta(seconds=30)},
    tags=["claude", "contracts", "example"],
    doc_md=__doc__,
    params={
        "contract": Param(
            "managed_hosting",
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
            "customer",
            enum=["customer", "supplier", "client", "tenant", "landlord", "provider"],
            title="Whom we advise",
            description="The party whose risks are named.",
        ),
    },
)
def sequential_chain() -> None:
    """Terms, then risks, then a page."""

    @task
    def contract(params: dict[str, Any]) -> str:
        """Return the text of the contract that the form names."""
        return params["text"] or (CONTRACTS / f"{params['contract']}.txt").read_text()

    @task
    def page(terms: dict[str, Any], risks: dict[str, Any], summary: str) -> str:
        """Put the facts above the summary: what is copied from the contract can be checked against it."""
        facts = [f"- {name.replace('_', ' ')}: {value}" for name, value in terms.items() if value]
        clauses = [f"- **{risk['severity']}**, {risk['area']}: “{risk['quote']}”" for risk in risks["risks"]]
        return "\n".join([*facts, "", *clauses, "", summary])

    text = contract()
    terms = ClaudeOperator(
        task_id="terms",
        model="fast",
        prompt=TERMS,
        inputs={"contract": text},
        output_type=Terms,
        validators=[quotes_in_source("term", "renewal", "notice", "price", "liability", "governing_law")],
        reuse="always",
    )
    risks = ClaudeOperator(
        task_id="risks",
        model="balanced",
        prompt=RISKS,
        inputs={"contract": text, "terms": terms.output},
        output_type=Risks,
        validators=[quotes_in_source("risks.*.quote")],
        reuse="always",
    )
    summary = ClaudeOperator(
        task_id="summary",
        model="balanced",
        prompt=SUMMARY,
        inputs={"terms": terms.output, "risks": risks.output},
        request=RequestFields(max_tokens=1000),
        reuse="always",
    )
    page(terms.output, risks.output, summary.output)


sequential_chain()
