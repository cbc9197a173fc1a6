"""The tables of docs/explanation/sizing.md: what results/scale.json measured, and arithmetic from it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULT = HERE / "results" / "scale.json"
PAGE = HERE.parent / "docs" / "explanation" / "sizing.md"

LEDGERS = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
DOCUMENTS_A_DAY = (1_000, 10_000, 100_000, 1_000_000)
# Assumptions that a reader replaces.
TOKENS_IN, TOKENS_OUT = 1_500, 150
LATENCY_S = 3
NIGHT_H = 8
IN_FLIGHT = 256  # the operator's default
SHARD = 100_000  # the most documents that one task was measured with
ACCOUNT = {"requests": 4_000, "input tokens": 4_000_000, "output tokens": 800_000}  # per minute
RETENTION_DAYS = 90
Row = tuple[str, str, Callable[[int], str]]

_MEASURED = (
    "ledger",
    "documents",
    "documents/s",
    "CPU per document: task",
    "all of Airflow",
    "stand-in",
    "memory of the task",
    "ledger per document",
)
_BLOCK = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def page(text: str, result: Mapping[str, Any]) -> str:
    """Return the page with its tables as of `result`."""
    blocks: Mapping[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
        "measured": _measured,
        "arithmetic": _arithmetic,
    }
    return _BLOCK.sub(lambda m: f"{m[1]}\n" + "\n".join(blocks[m[2]](result)) + f"\n\n{m[3]}", text)


def keep(result: Mapping[str, Any]) -> None:
    """Write the result down, and the page's tables anew."""
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    PAGE.write_text(page(PAGE.read_text(), result))


def _measured(result: Mapping[str, Any]) -> Iterator[str]:
    """Tell what each run took."""
    machine = result["machine"]
    yield (
        f"Measured on {result['date']} ({machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, an "
        f"fsync takes {machine['fsync_ms']:.1f} ms; the stand-in on the same cores):"
    )
    yield ""
    yield from _table(
        _MEASURED,
        (
            (
                title,
                f"{run['documents']:,}",
                f"{run['documents_per_s']:,.0f}",
                f"{run['task_cpu_ms_a_document']:.2f} ms",
                f"{run['airflow_cpu_ms_a_document']:.2f} ms",
                f"{1000 * run['stand_in_cpu_s'] / run['documents']:.2f} ms",
                f"{run['peak_rss_mb']:.0f} MB",
                f"{run['ledger_bytes_a_document']:,} bytes",
            )
            for name, title in LEDGERS.items()
            for run in result[name]["runs"]
        ),
    )
    again = {title: result[name]["again"] for name, title in LEDGERS.items()}
    yield ""
    yield (
        "The largest run again, with no document changed: "
        + "; ".join(
            f"{title}, {run['requests']} requests, {run['seconds']:.0f} s ({run['documents_per_s']:,.0f} documents/s), "
            f"{run['peak_rss_mb']:.0f} MB"
            for title, run in again.items()
        )
        + ". Each further document takes "
        + " and ".join(f"{result[name]['linear']['rss_bytes_a_document']:,}" for name in LEDGERS)
        + f" bytes of the task's memory. PostgreSQL's own CPU is {_server_cpu_ms(result):.2f} ms per document."
    )


def _server_cpu_ms(result: Mapping[str, Any]) -> float:
    run = result["postgresql"]["runs"][-1]
    return float(1000 * run["ledger_server_cpu_s"] / run["documents"])


def _arithmetic(result: Mapping[str, Any]) -> Iterator[str]:
    """Compute what a number of documents per day needs, from the more expensive of the two ledgers' largest runs."""
    runs = [run for name in LEDGERS for run in result[name]["runs"]]
    minutes = NIGHT_H * 60

    def dearest(figure: str, n: int = SHARD) -> Any:
        return max(run[figure] for run in runs if run["documents"] == n and figure in run)

    def in_tasks(figure: str, n: int) -> float:
        return float(dearest(figure, min(n, SHARD)) * math.ceil(n / SHARD))

    def in_one_task_mb(n: int) -> float:
        growth = max(result[name]["linear"]["rss_bytes_a_document"] for name in LEDGERS) / 1024**2
        return float(dearest("peak_rss_mb", min(n, SHARD)) + max(0, n - SHARD) * growth)

    stored = dearest("ledger_bytes_a_document")
    written = dearest("ledger_rows_written") / SHARD
    needs: Sequence[Row] = (
        ("requests per minute", f"documents / {minutes} min", lambda n: _count(n / minutes)),
        ("input tokens per minute", f"x {TOKENS_IN:,}", lambda n: _count(n / minutes * TOKENS_IN)),
        ("output tokens per minute", f"x {TOKENS_OUT:,}", lambda n: _count(n / minutes * TOKENS_OUT)),
        ("calls in flight", f"per second x {LATENCY_S} s", lambda n: _count(n / minutes / 60 * LATENCY_S)),
        ("memory, all in one task", "measured, with its growth", lambda n: f"{in_one_task_mb(n):,.0f} MB"),
        ("tasks, and worker slots", f"one per {SHARD:,}", lambda n: _count(n / SHARD)),
        ("CPU of the tasks", "measured; ten tasks", lambda n: _time(in_tasks("task_cpu_s", n))),
        (
            "ledger rows written per second",
            f"per second x {written:.1f}",
            lambda n: _count(n / minutes / 60 * written),
        ),
        ("ledger, per day", f"documents x {stored:,} bytes", lambda n: _size(n * stored)),
        ("ledger, per year (by default all is kept)", "x 365", lambda n: _size(n * stored * 365)),
        (
            f"ledger, `retention_days = {RETENTION_DAYS}`",
            f"x {RETENTION_DAYS}",
            lambda n: _size(n * stored * RETENTION_DAYS),
        ),
    )
    by_account = min(
        ACCOUNT["requests"], ACCOUNT["input tokens"] / TOKENS_IN, ACCOUNT["output tokens"] / TOKENS_OUT
    )
    times: Sequence[Row] = (
        ("this account", f"documents / {by_account:,.0f} per minute", lambda n: _time(n / by_account * 60)),
        (
            f"{IN_FLIGHT} in flight",
            f"documents x {LATENCY_S} s / {IN_FLIGHT}",
            lambda n: _time(n * LATENCY_S / IN_FLIGHT),
        ),
        ("one process", "measured; ten in sequence", lambda n: _time(in_tasks("seconds", n))),
    )
    yield from _table(("documents per day", "", *(f"{n:,}" for n in DOCUMENTS_A_DAY)), _reckoned(needs))
    yield ""
    yield (
        f"When time is short: with an account of {ACCOUNT['requests']:,} requests, {ACCOUNT['input tokens']:,} input "
        f"and {ACCOUNT['output tokens']:,} output tokens per minute, a run takes the longest of these:"
    )
    yield ""
    yield from _table(("documents", "", *(f"{n:,}" for n in DOCUMENTS_A_DAY)), _reckoned(times))


def _reckoned(rows: Iterable[Row]) -> Iterator[tuple[str, ...]]:
    for name, how, reckon in rows:
        yield name, how, *(reckon(n) for n in DOCUMENTS_A_DAY)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _count(number: float) -> str:
    """Write a number that is needed whole, so rounded up, in three figures."""
    whole = math.ceil(number)
    return f"{math.ceil(whole / (step := 10 ** max(0, len(str(whole)) - 3))) * step:,}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(number: float) -> str:
    return f"{number / 1e6:,.0f} MB" if number < 1e9 else f"{number / 1e9:,.1f} GB"
