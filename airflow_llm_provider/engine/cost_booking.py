"""What a reply is booked at, and what the log says where that is not what was expected."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from airflow_llm_provider.billing import Price, price_of
from airflow_llm_provider.engine.ceiling import asked_of
from airflow_llm_provider.engine.reply import Message
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.pricing import Prices, usd

log = logging.getLogger(__name__)

_COMPARE = "`airflow-llm ledger export` lists the calls, to compare with the invoice."


@dataclass(kw_only=True, slots=True)
class CostBooking:
    """Prices replies, and warns: of each kind once per model, because a run may have thousands.

    Attributes:
        beyond_reserved: Calls that were billed above what was reserved for them.
        beyond_micro_usd: By how much, in all.
        above_step: Calls whose prompt was so long that every token cost more.
    """

    beyond_reserved: int = 0
    beyond_micro_usd: int = 0
    above_step: int = 0
    _said: set[tuple[str, str]] = field(default_factory=set)

    def cost_micro_usd(
        self, request: Request, message: Message, prices: Prices, *, reserved: int | None, connection_id: str
    ) -> int | None:
        """Return what a reply is booked at, in micro-USD.

        That is its price. Where the price is unknown, it is what was reserved: nothing that the request allows costs
        more, and a budget must not count it as 0. Without that either, it is None.

        Args:
            request: What was sent.
            message: The reply.
            prices: Of the connection.
            reserved: The highest price that the call was reserved at, in micro-USD; None if it was not known.
            connection_id: The connection, where prices can be stated.
        """
        price = price_of(message.billed, prices, asked=asked_of(request), answered=message.model)
        where = f"the connection {connection_id or 'claude_default'}"
        if price.micro_usd is None:
            self._warn_of_unknown(request.model, price, reserved, where)
            return reserved
        if reserved is not None and price.micro_usd > reserved:
            self._warn_of_more(request.model, price.micro_usd, reserved, where)
        if price.price_step is not None:
            self._note_step(request.model, price.price_step)
        return price.micro_usd

    def __str__(self) -> str:
        """Return what a line about the costs of a task has to add; empty for nothing."""
        parts = []
        if self.beyond_reserved:
            parts.append(
                f"{self.beyond_reserved} of them billed above what was reserved, by ${usd(self.beyond_micro_usd)}"
            )
        if self.above_step:
            parts.append(f"{self.above_step} of them at the higher price of a long prompt")
        return "".join(f", {part}" for part in parts)

    def _warn_of_unknown(self, model: str, price: Price, reserved: int | None, where: str) -> None:
        if not self._is_new("unknown", model):
            return
        booked = (
            f"The call is booked at the most that was reserved for it, ${usd(reserved)}"
            if reserved is not None
            else "The call is booked without a price, and counts as unpriced"
        )
        log.warning(
            "%s: the reply has something without a known price: %s. %s. State the price or the factor in %s (prices, "
            "with factors). Said once per model; %s",
            model,
            price.unknown,
            booked,
            where,
            _COMPARE,
        )

    def _warn_of_more(self, model: str, billed: int, reserved: int, where: str) -> None:
        self.beyond_reserved += 1
        self.beyond_micro_usd += billed - reserved
        if not self._is_new("more", model):
            return
        log.warning(
            "%s: the server billed more than was reserved: $%s billed, $%s reserved, $%s more. It is booked in full, "
            "and budgets have that much less left for the next call. Find out why the server counts more (a gateway, "
            "another model, fields of extra_body), or state what it charges in %s (prices, price_change_percent). "
            "Said once per model; %s",
            model,
            usd(billed),
            usd(reserved),
            usd(billed - reserved),
            where,
            _COMPARE,
        )

    def _note_step(self, model: str, step: int) -> None:
        self.above_step += 1
        if self._is_new("step", model):
            log.info(
                "%s: a prompt of more than %s tokens costs more for every one of its tokens. To split long texts below "
                "that: LongInput(too_long='map_reduce', max_input_tokens='price_step'). Said once per model.",
                model,
                f"{step:,}",
            )

    def _is_new(self, kind: str, model: str) -> bool:
        if (kind, model) in self._said:
            return False
        self._said.add((kind, model))
        return True
