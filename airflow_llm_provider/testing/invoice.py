"""The invoice: what the stand-in would charge per request, priced without our own code.

What genai-prices does not know is written out here from the published price list: https://claude.com/pricing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import IO, Any

import orjson

from airflow_llm_provider.testing.wire import Usage

ITEM_CHARS = 200
_US_PREMIUM = {
    model: Decimal("1.1") for model in ("claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5")
}
_FAST_PREMIUM = {"claude-opus-5-5": Decimal(2)}  # $8 and $40 in place of $4 and $20
_USD_PER_WEB_SEARCH = Decimal("0.01")


@dataclass(frozen=True, kw_only=True)
class InvoiceLine:
    """One accepted request for which a reply was generated.

    Attributes:
        request_id: the id that the reply's header has.
        time: when the request was accepted, in UTC, as ISO 8601.
        model: the id of the model that was asked.
        item: the first 200 characters of the document, or what `identify=` returned for the request.
        input_tokens: input tokens that were neither read from the cache nor written to it, of all passes.
        output_tokens: all tokens that were written, of all passes.
        cache_read_tokens: input tokens that were read from the cache.
        cache_write_5m_tokens: input tokens that were written to the cache for five minutes.
        cache_write_1h_tokens: input tokens that were written to the cache for one hour.
        passes: the tokens of each pass of a model, with its `model` and whether it `was_fast`; empty: one pass of the
            model that was asked.
        inference_geo: where it ran.
        web_searches: how many, at a fee each.
        key_last4: the last four characters of the API key; empty for a short key.
        stop_reason: why the answer ended.
        fault: the fault that changed its reply or its delivery, if any.
    """

    request_id: str
    time: str
    model: str
    item: str
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    passes: Sequence[Mapping[str, Any]] = ()
    inference_geo: str = "global"
    web_searches: int = 0
    key_last4: str = ""
    stop_reason: str = "end_turn"
    fault: str | None = None

    @property
    def cost_micro_usd(self) -> int | None:
        """Price the line in micro-USD, rounded up; None when genai-prices doesn't know a model."""
        own = {
            "model": self.model,
            "was_fast": False,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cache_read_tokens": self.cache_read_tokens,
            "cache_write_5m_tokens": self.cache_write_5m_tokens,
            "cache_write_1h_tokens": self.cache_write_1h_tokens,
        }
        total = self.web_searches * _USD_PER_WEB_SEARCH
        for each in self.passes or [own]:
            usage = Usage(
                **{name: count for name, count in each.items() if name not in ("model", "was_fast")}
            )
            price = price_usd(each["model"], usage, datetime.fromisoformat(self.time))
            if price is None:
                return None
            premium = _US_PREMIUM.get(each["model"], Decimal(1)) if self.inference_geo == "us" else Decimal(1)
            total += price * premium * (_FAST_PREMIUM[each["model"]] if each["was_fast"] else 1)
        return int((total * 1_000_000).to_integral_value(ROUND_CEILING))


def price_usd(model: str, usage: Usage, at: datetime) -> Decimal | None:
    """Price `usage` straight from genai-prices, in US dollars; None for an unknown model.

    It shares no code with `airflow_llm_provider.pricing`, because tests compare the ledger with the invoice.
    """
    import genai_prices

    # genai-prices counts input tokens with those that were read from and written to the cache.
    tokens = genai_prices.Usage(
        input_tokens=usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        cache_write_5m_tokens=usage.cache_write_5m_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
    )
    try:
        price = genai_prices.calc_price(tokens, model, provider_id="anthropic", genai_request_timestamp=at)
    except LookupError:
        return None
    return Decimal(price.total_price)


class Invoice:
    """Every billed request, in the order of billing. Safe to read from any thread.

    Args:
        lines: earlier lines.
        path: a file that every line is appended to at once as JSON. `Invoice.read` reads it, also after the server
            was killed, or after several runs. Default: no file.
    """

    def __init__(self, lines: Iterable[InvoiceLine] = (), *, path: str | Path | None = None) -> None:
        self._lines = list(lines)
        self._prices: list[int | None] = []
        self._lock = threading.Lock()
        # One write per line, so that processes that share the file do not mix their lines.
        self._file: IO[bytes] | None = Path(path).open("ab", buffering=0) if path else None  # noqa: SIM115 - it lives as long as the server

    @classmethod
    def read(cls, path: str | Path) -> Invoice:
        """Read an invoice file, without a last line that a kill cut off: that request was never answered."""
        whole = Path(path).read_bytes().rpartition(b"\n")[0]
        return cls(InvoiceLine(**orjson.loads(line)) for line in whole.splitlines())

    def add(self, line: InvoiceLine) -> None:
        """Bill one request."""
        if self._file:
            self._file.write(orjson.dumps(asdict(line)) + b"\n")
        self._lines.append(line)

    def close(self) -> None:
        """Close the file, if there is one; the lines stay readable."""
        if self._file:
            self._file.close()
            self._file = None

    @property
    def lines(self) -> list[InvoiceLine]:
        """Return a copy of the lines."""
        return list(self._lines)

    @property
    def paid(self) -> int:
        """Count the billed requests."""
        return len(self._lines)

    @property
    def cost_micro_usd(self) -> int:
        """Add up the prices of the lines, each rounded up; lines without a known price count as 0."""
        return sum(price for price in self._priced() if price is not None)

    @property
    def unpriced(self) -> int:
        """Count the lines whose model has no known price."""
        return sum(price is None for price in self._priced())

    def _priced(self) -> list[int | None]:
        # Pricing takes about 0.2 ms per line, so each line is priced once, and only when asked for.
        with self._lock:
            for line in self._lines[len(self._prices) :]:
                self._prices.append(line.cost_micro_usd)
            return list(self._prices)
