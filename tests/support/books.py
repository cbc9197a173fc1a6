"""Compares the ledger's rows with the stand-in's invoice, line by line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from airflow_llm_provider.ledger.schema import OPEN, PAID, UNPROVEN, call
from airflow_llm_provider.testing.invoice import Invoice, InvoiceLine

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Books:
    """What ledger and invoice agree on.

    Attributes:
        paid: rows with a reply; each has one line on the invoice.
        cost_micro_usd: the cost of the paid rows, where it is known.
        unproven: rows whose call may have been charged without a reply.
        ceiling_micro_usd: the highest cost of the unproven rows, as the ledger has booked it.
        lost: invoice lines that only unproven rows explain.
        lost_micro_usd: the cost of the lost lines.
    """

    paid: int
    cost_micro_usd: int
    unproven: int
    ceiling_micro_usd: int
    lost: int
    lost_micro_usd: int


def balance(ledger_url: str, invoice: Invoice | Iterable[InvoiceLine]) -> Books:
    """Return what ledger and invoice agree on; raise AssertionError with the difference if they do not agree.

    Every row with a reply has one invoice line, equal to the token and micro-USD, unless the reply stands for an answer
    that the content filter kept back. Every other line belongs to an
    unproven attempt with the same model, and costs at most that attempt's ceiling. An open attempt counts as
    unproven, because its process may have been killed.

    Args:
        ledger_url: SQLAlchemy URL; a SQLite file that does not exist yet has no rows.
        invoice: the stand-in's, or the lines of several. Read it when no request is in flight.
    """
    lines = invoice.lines if isinstance(invoice, Invoice) else list(invoice)
    rows = _rows(ledger_url)
    paid = [row for row in rows if row["state"] in PAID and not _is_blocked(row)]
    unproven = [row for row in rows if row["state"] in (UNPROVEN, OPEN)]

    booked, charged = Counter(map(_row_key, paid)), Counter(map(_line_key, lines))
    if booked - charged:
        raise AssertionError(
            _difference("in the ledger, not on the invoice", booked - charged, charged - booked)
        )
    left = list((charged - booked).elements())
    _require_explained(left, unproven)
    return Books(
        paid=len(paid),
        cost_micro_usd=sum(row["cost_micro_usd"] or 0 for row in paid),
        unproven=len(unproven),
        ceiling_micro_usd=sum(row["ceiling_micro_usd"] or 0 for row in unproven),
        lost=len(left),
        lost_micro_usd=sum(key.cost_micro_usd or 0 for key in left),
    )


@dataclass(frozen=True, order=True)
class _Key:
    """What a row and its invoice line have in common."""

    model: str
    uncached_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_5m_tokens: int
    cache_write_1h_tokens: int
    cost_micro_usd: int | None

    def __str__(self) -> str:
        return (
            f"{self.model}: {self.uncached_tokens} in, {self.output_tokens} out, "
            f"{self.cache_read_tokens} read, "
            f"{self.cache_write_5m_tokens}+{self.cache_write_1h_tokens} written, {self.cost_micro_usd} µUSD"
        )


def _rows(ledger_url: str) -> list[dict[str, Any]]:
    url = sa.make_url(ledger_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        return []  # connecting would create the file
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    try:
        if not sa.inspect(engine).has_table(call.name):
            return []
        with engine.connect() as connection:
            return [dict(row) for row in connection.execute(sa.select(call)).mappings()]
    finally:
        engine.dispose()


def _row_key(row: Mapping[str, Any]) -> _Key:
    return _Key(**{name: row[name] for name in _Key.__dataclass_fields__})


def _is_blocked(row: Mapping[str, Any]) -> bool:
    """Tell an answer that the content filter kept back: settled, so that it is not asked again, and free."""
    return row["stop_reason"] == "refusal" and not row["uncached_tokens"] and not row["output_tokens"]


def _line_key(line: InvoiceLine) -> _Key:
    return _Key(
        model=line.model,
        uncached_tokens=line.input_tokens,
        output_tokens=line.output_tokens,
        cache_read_tokens=line.cache_read_tokens,
        cache_write_5m_tokens=line.cache_write_5m_tokens,
        cache_write_1h_tokens=line.cache_write_1h_tokens,
        cost_micro_usd=line.cost_micro_usd,
    )


def _require_explained(left: list[_Key], unproven: Sequence[Mapping[str, Any]]) -> None:
    """Match each line with an unproven row that was booked at no less, the most expensive first."""
    for model in sorted({key.model for key in left}):
        # An unknown price has no bound on either side, so only the number of calls counts.
        costs = sorted((k.cost_micro_usd or 0 for k in left if k.model == model), reverse=True)
        ceilings = sorted(
            (float("inf") if r["ceiling_micro_usd"] is None else r["ceiling_micro_usd"])
            for r in unproven
            if r["model"] == model
        )[::-1]
        if len(costs) > len(ceilings):
            lines = Counter(key for key in left if key.model == model)
            raise AssertionError(
                f"{len(costs)} calls of {model} were charged that no settled row has, and only "
                f"{len(ceilings)} are booked as unproven:\n{_listed(lines)}"
            )
        for cost, ceiling in zip(costs, ceilings, strict=False):
            if cost > ceiling:
                raise AssertionError(
                    f"A call of {model} was charged {cost} micro-USD; it was booked at {ceiling} at most."
                )


def _difference(what: str, ours: Counter[_Key], theirs: Counter[_Key]) -> str:
    return (
        f"{ours.total()} rows {what}:\n{_listed(ours)}\n"
        f"{theirs.total()} on the invoice, not in the ledger:\n{_listed(theirs)}"
    )


def _listed(keys: Counter[_Key]) -> str:
    lines = [f"  {count} x {key}" for key, count in sorted(keys.items(), key=lambda pair: str(pair[0]))]
    more = f"\n  … and {len(lines) - _SHOWN} more kinds" if len(lines) > _SHOWN else ""
    return "\n".join(lines[:_SHOWN]) + more
