"""What the demo shows at its end: the first rows, the cost, the comparison, the places."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from airflow_llm_provider.cli.output import shown

if TYPE_CHECKING:
    from rich.console import Console

    from airflow_llm_provider.cli.demo_endpoint import Endpoint

_ROWS = 12
_SHORTEST_QUOTE = 15
_COLUMNS = {
    "document": 26,
    "SPDX id": 12,
    "copyleft": 8,
    "patents": 7,
    "must carry": 16,
}  # and the quote, if it fits


def print_report(
    console: Console,
    manifest: dict[str, Any],
    compared: dict[str, Any],
    told: dict[str, Any],
    endpoint: Endpoint,
) -> None:
    """Print the outcome of a run, from its manifest, the last task's summary and the figures of the last line."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE)
    for name, width in _COLUMNS.items():
        table.add_column(name, no_wrap=True, overflow="ellipsis", width=width)
    room = console.width - sum(_COLUMNS.values()) - 3 * len(_COLUMNS) - 4
    if room >= _SHORTEST_QUOTE:
        table.add_column("a quote", no_wrap=True, overflow="ellipsis", width=room)
    with Path(manifest["output"]).open(encoding="utf-8") as rows:
        for row in map(json.loads, islice(rows, _ROWS)):
            data = row["data"]
            quote = next((data[name] for name in _QUOTES if data[name]), "")
            cells = [
                shown(row["document_id"]),
                data["spdx_id"],
                data["copyleft"],
                "granted" if data["patent_grant"] else "-",
                {"notice_and_changes": "notice, changes"}.get(data["attribution"], data["attribution"]),
                shown(quote, 120),
            ]
            table.add_row(*map(Text, cells[: len(table.columns)]))
    console.print(table)
    lines = [f"… {manifest['rows'] - _ROWS} more rows."] if manifest["rows"] > _ROWS else []
    lines += [
        _outcome(told, manifest["outcomes"]["pending"]),
        _cost(told, manifest, endpoint),
        _comparison(compared),
    ]
    lines.append(f"Rows: {manifest['output']}")
    if manifest["dead_letters"]:
        lines.append(f"Dead letters: airflow-llm dead-letters list {manifest['dead_letters']}")
    for line in lines:
        typer.echo(line)


_QUOTES = ("patent_quote", "copyleft_quote", "spdx_quote", "attribution_quote")


def _outcome(told: dict[str, Any], pending: int) -> str:
    return (
        f"{told['documents']} documents: {told['answered']} answered, {told['reused']} reused, "
        f"{told['dead_letters']} dead letters{f', {pending} not asked about' if pending else ''}."
    )


def _cost(told: dict[str, Any], manifest: dict[str, Any], endpoint: Endpoint) -> str:
    cost = "unknown" if told["cost_usd"] is None else f"${told['cost_usd']}"
    line = f"{told['requests_paid']} new requests, cost {cost}; answers reused are worth ${manifest['saved_usd']}."
    if endpoint.is_stand_in:
        invoice = "unknown" if told["invoice_usd"] is None else f"${told['invoice_usd']}"
        line += f" The stand-in's own invoice: {invoice} (nobody pays it)."
    return line


def _comparison(compared: dict[str, Any]) -> str:
    line = (
        f"SPDX ids against the packages' own metadata: {compared['matches']} match, {compared['differs']} differ, "
        f"{compared['unknown']} can't be told"
    )
    if compared["differing"]:
        some = islice(compared["differing"].items(), 4)
        line += " (" + "; ".join(
            f"{shown(name)}: {'/'.join(sides['found'])}, declared {'/'.join(sides['declared'])}"
            for name, sides in some
        )
        line += "; …)" if len(compared["differing"]) > 4 else ")"
    return f"{line}. Quotes not found in their file: {compared['false_quotes']}."
