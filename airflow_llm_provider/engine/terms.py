"""Terms: what an answer to one request must be, who asks, and with which options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from airflow_llm_provider.engine.checks import reads_source
from airflow_llm_provider.engine.output_type import OutputType
from airflow_llm_provider.engine.text_block import Framing
from airflow_llm_provider.engine.tool_loop import Toolbox
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.options import Options
from airflow_llm_provider.validators import Judge, Validator

TEXT = OutputType()
DEFAULTS = Options()


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """How one request is asked and what its answer is checked for.

    Attributes:
        scope: the task instance that asks; calls are booked on it.
        options: the author's options, as they were given.
        output: what an answer must be.
        validators: what a valid answer must satisfy besides. Functions come before judges, which cost a call.
        source: the text that is asked about, for validators that read it; None where part of it is not text.
        framing: how text is put into requests as data.
        given: an answer that exists already: it is checked, and only its repairs are asked for.
        item_id: the document or row that is asked about.
        toolbox: the tools that the model may call, with their limits; the request has the definitions.
        retry_dead: ask again what ended as a dead letter in an earlier run.
    """

    scope: CallScope
    options: Options = DEFAULTS
    output: OutputType = TEXT
    validators: Sequence[Validator | Judge] = ()
    source: str | None = None
    framing: Framing = "document"
    given: str | None = None
    item_id: str | None = None
    toolbox: Toolbox | None = None
    retry_dead: bool = False

    @property
    def needs_source(self) -> bool:
        """Whether a validator compares the answer with the text that was asked about."""
        return any(map(reads_source, self.validators))

    @property
    def functions(self) -> list[Validator]:
        """The validators that cost nothing, in their order."""
        return [validator for validator in self.validators if not isinstance(validator, Judge)]

    @property
    def judges(self) -> list[Judge]:
        """The validators that are asked for with a call of their own, once the functions have passed."""
        return [validator for validator in self.validators if isinstance(validator, Judge)]
