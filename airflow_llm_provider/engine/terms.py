"""Terms: how a question is asked, by which models, and what its answer must be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from airflow_llm_provider.engine.client import Client
from airflow_llm_provider.engine.framing import Framing
from airflow_llm_provider.engine.purchase import Purchase
from airflow_llm_provider.engine.retry import Policies
from airflow_llm_provider.engine.tools import Toolbox
from airflow_llm_provider.engine.validate import OutputType, reads_source
from airflow_llm_provider.ledger.records import CallScope, Reuse
from airflow_llm_provider.pricing import Prices
from airflow_llm_provider.validators import Judge, Validator

TEXT = OutputType()


@dataclass(frozen=True, kw_only=True, slots=True)
class Fallback:
    """A model to ask instead; of another connection, where client, endpoint and connection_id say so."""

    model: str
    client: Client | None = None
    endpoint: str | None = None
    connection_id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """Which models are asked.

    escalate: asked in turn after the request's own model, while an answer is none, or unsure.
    min_confidence: below it, an answer that states its `confidence` (a field, 0 to 1) is unsure.
    fallbacks: asked in turn on errors of the kinds `fall_back_on`.
    """

    escalate: Sequence[str] = ()
    min_confidence: float | None = None
    fallbacks: Sequence[Fallback] = ()
    fall_back_on: frozenset[str] = frozenset({"network", "overloaded", "server"})

    def alone(self, first: Purchase, prices: Prices) -> int | None:
        """Return about what the last model would have cost by itself, in micro-USD."""
        card = prices.card(self.escalate[-1]) if self.escalate else None
        return card.price_micro_usd(first.message.usage) if card else None

    def is_unsure(self, value: Any) -> bool:
        """Tell whether an answer states a confidence below the bar."""
        if self.min_confidence is None:
            return False
        stated = value.get("confidence") if isinstance(value, dict) else getattr(value, "confidence", None)
        return isinstance(stated, (int, float)) and stated < self.min_confidence


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """The terms a question is asked on.

    scope: who asks. reuse: whose answers may be taken: `run` (the DAG run's), `always` (any) or `never`.
    output: what an answer must be; validators: what it must satisfy besides, the functions before the judges.
    source: the text that is asked about, for validators that read it; None where there is none.
    framing: how text goes into requests as data.
    given: an answer that there is already: it is checked, and only repairs are asked for.
    max_repairs: how often an invalid answer is sent back with what is wrong.
    item_id: which document or row it is about.
    policies, route: instead of the engine's own.
    toolbox: what the model may call, and how often; the request has the definitions.
    """

    scope: CallScope
    reuse: Reuse = "run"
    output: OutputType = TEXT
    validators: Sequence[Validator | Judge] = ()
    source: str | None = None
    framing: Framing = "document"
    given: str | None = None
    max_repairs: int = 0
    item_id: str | None = None
    policies: Policies | None = None
    route: Route | None = None
    toolbox: Toolbox | None = None

    @property
    def needs_source(self) -> bool:
        """Whether the answer can only be checked against the text that was asked about."""
        return any(map(reads_source, self.validators))

    @property
    def functions(self) -> list[Validator]:
        """The validators that cost nothing, in their order."""
        return [validator for validator in self.validators if not isinstance(validator, Judge)]

    @property
    def judges(self) -> list[Judge]:
        """The validators that are asked, once all others have passed."""
        return [validator for validator in self.validators if isinstance(validator, Judge)]
