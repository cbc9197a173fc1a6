"""The invoice: what the stand-in would charge per request, priced without our own code."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import IO

import orjson

from airflow_llm_provider.testing.wire import Usage

ITEM_CHARS = 200


@dataclass(frozen=True, kw_only=True)
class InvoiceLine:
    """One accepted request for which a reply was generated.

    Attributes:
        request_id: the id that the reply's header has.
        time: when the request was accepted, in UTC, as ISO 8601.
        model: the id of the model.
        item: the first 200 characters of the document, or what `identify=` returned for the request.
        input_tokens: input tokens that were neither read from the cache nor written to it.
        output_tokens: all tokens of the answer.
        cache_read_tokens: input tokens that were read from the cache.
        cache_write_5m_tokens: input tokens that were written to the cache for five minutes.
        cache_write_1h_tokens: input tokens that were written to the cache for one hour.
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
    key_last4: str = ""
    stop_reason: str = "end_turn"
    fault: str | None = None

    @property
    def cost_micro_usd(self) -> int | None:
        """Price the line in micro-USD, rounded up; None when genai-prices doesn't know the model."""
        return price_micro_usd(
            self.model,
            Usage(
                input_tokens=self.input_tokens,
                output_tokens=self.output_tokens,
                cache_read_tokens=self.cache_read_tokens,
                cache_write_5m_tokens=self.cache_write_5m_tokens,
                cache_write_1h_tokens=self.cache_write_1h_tokens,
            ),
            datetime.fromisoformat(self.time),
        )


def price_micro_usd(model: str, usage: Usage, at: datetime) -> int | None:
    """Price `usage` straight from genai-prices, in micro-USD rounded up; None for an unknown model.

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
    return int((Decimal(price.total_price) * 1_000_000).to_integral_value(ROUND_CEILING))


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
