"""`airflow-llm costs`: what was paid, added up by DAG, run, task, document, tag, model and more."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from airflow_llm_provider.cli.connection import ConnectionOption, LedgerOption, find_ledger, reading
from airflow_llm_provider.cli.output import (
    CSV_LINE_END,
    CsvOption,
    JsonOption,
    cell,
    echo_json,
    moment_ms,
    shown,
)
from airflow_llm_provider.pricing import paid_and_unproven, usd

if TYPE_CHECKING:
    from airflow_llm_provider.ledger import reports
    from airflow_llm_provider.ledger.reports import Costs, Report

By = StrEnum("By", ["document", "task", "run", "dag", "owner", "tag", "model", "version", "day", "purpose"])


def costs(
    by: Annotated[By, typer.Option("--by", help="The groups to add up.")] = By.dag,
    since: Annotated[
        str | None,
        typer.Option(help="From this date or time on, such as 2026-11-01; UTC by default."),
    ] = None,
    until: Annotated[str | None, typer.Option(help="Before this date or time.")] = None,
    dag: Annotated[str | None, typer.Option("--dag", help="Only this DAG.")] = None,
    run: Annotated[str | None, typer.Option("--run", help="Only this DAG run.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="Only this task.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Only this model.")] = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    top: Annotated[
        int,
        typer.Option(
            min=1, help="Rows of the table; one more row adds up the rest. JSON and CSV have all rows."
        ),
    ] = 40,
    ledger_url: LedgerOption = None,
    conn_id: ConnectionOption = None,
) -> None:
    """Add up calls, tokens and cost, and what the ledger, prompt caching and routing saved.

    A call belongs to the day on which it was sent, in UTC. Calls without a known price are counted as unpriced, and
    no amount includes them. What the ledger and routing saved is known per task, not per document or purpose.
    """
    from airflow_llm_provider.ledger.reports import Filter
    from airflow_llm_provider.ledger.reports import costs as add_up

    named = {"dag_id": dag, "run_id": run, "task_id": task, "model": model}
    wanted = Filter(
        since_ms=moment_ms("--since", since),
        until_ms=moment_ms("--until", until),
        names={column: value for column, value in named.items() if value is not None},
    )
    with reading(find_ledger(ledger_url, conn_id)) as database:
        report = add_up(database, cast("reports.By", by.value), wanted)
    if as_json:
        echo_json(
            {
                "by": by.value,
                "since": since,
                "until": until,
                "rows": list(_rows(report)),
                "total": _figures(report.total),
                "pruned": _figures(report.pruned),
                "overlaps": report.overlaps,
            }
        )
    elif as_csv:
        _write_csv(report)
    else:
        _show(report, top)


def _figures(one: Costs) -> dict[str, Any]:
    return {
        "calls": one.calls,
        "failed": one.failed,
        "open": one.open,
        "uncached_tokens": one.uncached_tokens,
        "cache_read_tokens": one.cache_read_tokens,
        "cache_write_5m_tokens": one.cache_write_5m_tokens,
        "cache_write_1h_tokens": one.cache_write_1h_tokens,
        "output_tokens": one.output_tokens,
        "cached_share": None if one.cached_share is None else round(one.cached_share, 4),
        "cost_usd": usd(one.cost_micro_usd),
        "unpriced": one.unpriced,
        "unproven": one.unproven,
        "unproven_usd_at_most": usd(one.unproven_micro_usd),
        "reused": one.reused,
        "saved_by_ledger_usd": usd(one.reused_micro_usd),
        "saved_by_caching_usd": usd(one.cached_micro_usd),
        "saved_by_routing_usd": usd(one.routed_micro_usd),
    }


_NUMBERS = (
    "calls",
    "input",
    "cached",
    "output",
    "cost (USD)",
    "unproven",
    "saved: ledger",
    "caching",
    "routing",
)


def _rows(report: Report) -> Iterator[dict[str, Any]]:
    for key, one in report.groups.items():
        yield {**dict(zip(report.columns, key, strict=True)), **_figures(one)}


def _write_csv(report: Report) -> None:
    """Write all groups; without the total, so that a spreadsheet can add up a column."""
    from airflow_llm_provider.ledger.reports import Costs

    writer = csv.DictWriter(sys.stdout, [*report.columns, *_figures(Costs())], lineterminator=CSV_LINE_END)
    writer.writeheader()
    for row in _rows(report):
        writer.writerow(
            # Only names can hold a formula. A negative amount must stay a number, although it begins like one.
            {name: cell(value) if name in report.columns else value for name, value in row.items()}
        )


def _show(report: Report, top: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from airflow_llm_provider.ledger.reports import Costs

    groups = list(report.groups.items())
    shares = [(tuple("-" if part is None else part for part in key), one) for key, one in groups[:top]]
    blank = ("",) * (len(report.columns) - 1)
    if rest := groups[top:]:
        shares.append(((f"… {len(rest):,} more", *blank), sum((one for _, one in rest), Costs())))
    figures = [list(_cells(one)) for one in (*(one for _, one in shares), report.total)]
    # A terminal has little room, so a column without any figure is left out.
    used = [number for number, column in enumerate(zip(*figures, strict=True)) if any(column)]
    table = Table(*report.columns)
    for number in used:
        # An amount that is cut off is a wrong amount, so names are cut first.
        width = max(len(cells[number]) for cells in figures)
        table.add_column(_NUMBERS[number], justify="right", min_width=width)
    names = [[Text(shown(part, 80)) for part in key] for key, _ in shares]
    for row, cells in zip([*names, [Text("total")]], figures, strict=True):
        if cells is figures[-1]:
            table.add_section()
        blanks = [""] * (len(report.columns) - len(row))
        table.add_row(*row, *blanks, *(cells[number] for number in used))
    console = Console()
    console.print(table)
    total = report.total
    if report.overlaps:
        console.print("A call with several tags is counted in the row of each tag, and once in the total.")
    if total.unpriced:
        console.print(f"Calls without a known price, not included in any amount: {total.unpriced:,}.")
    if report.pruned != Costs():
        paid = paid_and_unproven(report.pruned.cost_micro_usd, report.pruned.unproven_micro_usd)
        console.print(
            f"{report.pruned.calls:,} of the paid calls were pruned since ({paid}): only their day, DAG, owner, tags "
            "and model are known."
        )
    if total.unproven:
        most = usd(total.unproven_micro_usd)
        console.print(
            f"Calls that may have been billed without an answer: {total.unproven:,}, at most ${most} more."
        )


def _cells(one: Costs) -> Iterator[str]:
    yield f"{one.calls:,}"
    yield f"{one.input_tokens:,}"
    yield "" if one.cached_share is None else f"{one.cached_share:.0%}"
    yield f"{one.output_tokens:,}"
    yield str(usd(one.cost_micro_usd))
    others = (one.unproven_micro_usd, one.reused_micro_usd, one.cached_micro_usd, one.routed_micro_usd)
    for amount in others:
        yield str(usd(amount)) if amount else ""
