"""`airflow-llm demo`: the license audit, run to its end in an Airflow of its own."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

import airflow_llm_provider
from airflow_llm_provider.cli.output import fail, shown

if TYPE_CHECKING:
    from rich.console import Console

    from airflow_llm_provider.cli.demo_endpoint import Endpoint
    from airflow_llm_provider.ledger.database import Database
    from airflow_llm_provider.testing.airflow import LocalAirflow

PROJECT = Path(airflow_llm_provider.__file__).resolve().parent.parent
DAG, ASKING, COMPARING = "license_audit", "read_licenses", "compare"
RUN_TIMEOUT_S = 3600.0  # the rate limits of a new account stretch the run; the stand-in takes seconds
ROWS_SHOWN = 12
COLUMNS = {"document": 26, "SPDX id": 12, "copyleft": 8, "patents": 7, "must carry": 16}
QUOTES = ("patent_quote", "copyleft_quote", "spdx_quote", "attribution_quote")


class DemoFailed(RuntimeError):
    """The demo's DAG run did not succeed; the message holds the end of the log that says why."""


def demo(
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask this Anthropic-compatible server instead.")
    ] = None,
    stay: Annotated[bool, typer.Option("--stay", help="Leave Airflow running until Ctrl-C.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask about at most this many documents.")] = None,
    tier: Annotated[str, typer.Option(help="Model tier: fast, balanced or strong.")] = "fast",
    yes: Annotated[bool, typer.Option("--yes", help="Spend money without a question first.")] = False,
    home: Annotated[
        Path | None, typer.Option(help="Airflow's home; default: .demo in the project. It is kept.")
    ] = None,
) -> None:
    """Read the license of every package installed here, in a real Airflow, and show the result.

    With ANTHROPIC_API_KEY it asks Claude, which costs money. Without, the stand-in answers, which costs nothing.
    A second run asks and pays only for new documents. The last line of the output is a JSON object.
    """
    if not (PROJECT / "dags" / f"{DAG}.py").is_file():
        fail("The demo runs an example DAG of the source tree: run it from a clone (`make demo`).")
    if tier not in ("fast", "balanced", "strong"):
        fail(f"--tier {tier}: the tiers are fast, balanced and strong.")
    import httpx2

    from airflow_llm_provider.cli.demo_endpoint import EndpointFailed
    from airflow_llm_provider.testing.airflow import ComponentFailed

    conf = {"tier": tier} if limit is None else {"limit": limit, "tier": tier}
    try:
        with ExitStack() as open_things:
            result = _Demo((home or PROJECT / ".demo").resolve(), open_things).run(base_url, conf, yes, stay)
    except (KeyboardInterrupt, typer.Abort):  # the latter from a question that was asked
        typer.echo("Stopped; nothing is left running. Paid answers are kept.", err=True)
        raise typer.Exit(130) from None
    except (DemoFailed, EndpointFailed, ComponentFailed, httpx2.HTTPError, RuntimeError, OSError) as error:
        fail(error)
    typer.echo(json.dumps(result))


@dataclass(frozen=True, kw_only=True)
class _Paid:
    """What the ledger says that a run has paid; `cost_usd` is None when some of it has no known price."""

    calls: int = 0
    cost_usd: str | None = None


class _Demo:
    """One demo: what it runs on, and its steps."""

    def __init__(self, home: Path, open_things: ExitStack) -> None:
        from rich.console import Console

        from airflow_llm_provider.ledger.database import Database

        self.home = home
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.open_things = open_things
        # A log file has room for a table as wide as a terminal's.
        self.console: Console = Console(highlight=False, width=None if sys.stdout.isatty() else 130)
        self.ledger: Database = Database(f"sqlite:///{home / 'llm_ledger.db'}")
        open_things.callback(self.ledger.close)

    def run(self, base_url: str | None, conf: dict[str, Any], yes: bool, stay: bool) -> dict[str, Any]:
        """Run it all; return the figures of the last line."""
        from airflow_llm_provider.cli.demo_endpoint import open_endpoint
        from airflow_llm_provider.testing.airflow import LocalAirflow

        started = time.monotonic()
        endpoint = open_endpoint(
            base_url, os.environ.get("ANTHROPIC_API_KEY", ""), self.home, self.open_things
        )
        typer.echo("\n".join(endpoint.told))
        typer.echo(f"Starting Airflow in {self.home} …")
        airflow = self.open_things.enter_context(
            LocalAirflow(self.home, PROJECT / "dags", connections={"claude_default": endpoint.connection})
        )
        endpoint.remember()
        typer.echo(f"Airflow is up after {time.monotonic() - started:.0f} s: {airflow.url}")
        # A stand-in that was given by its address may have answered others before.
        billed_before = endpoint.invoice()
        if endpoint.costs_money:
            self._require_consent(airflow, conf, yes)
        run_id = self._run_to_the_end(airflow, conf)
        manifest, paid, billed = airflow.xcom(DAG, run_id, ASKING), self._paid(run_id), endpoint.invoice()
        outcomes = manifest["outcomes"]
        figures = {
            "documents": manifest["documents"],
            "answered": outcomes["answered"] + outcomes["repaired"],
            "reused": outcomes["reused"],
            "dead_letters": outcomes["dead_letter"],
            "requests_paid": paid.calls,
            "cost_usd": paid.cost_usd,
            "invoice_usd": billed.since(billed_before) if billed and billed_before else None,
            "seconds": round(time.monotonic() - started, 1),
        }
        _print_rows(self.console, Path(manifest["output"]))
        typer.echo("\n".join(_report(manifest, airflow.xcom(DAG, run_id, COMPARING), figures, endpoint)))
        _end_or_stay(airflow, run_id, stay)
        return figures

    def _require_consent(self, airflow: LocalAirflow, conf: dict[str, Any], yes: bool) -> None:
        """Say what it may cost, from a dry run; ask whether to go on where a person can answer."""
        plan = airflow.xcom(DAG, self._run_to_the_end(airflow, {**conf, "dry_run": True}), ASKING)
        cost = plan["cost_usd"]
        price = "for a price that is not known" if cost is None else f"for at most ${cost['high']}"
        typer.echo(
            f"The dry run: {plan['documents']} documents, {plan['outcomes']['reused']} of them answered already; "
            f"the rest goes to {plan['model']}, {price}. `make demo ARGS='--limit 10'` asks about at most ten."
        )
        can_ask = self.console.is_terminal and os.isatty(0)
        if not yes and can_ask and not typer.confirm("Spend it?", default=True):
            raise DemoFailed("Nothing was asked, nothing was spent.")

    def _run_to_the_end(self, airflow: LocalAirflow, conf: dict[str, Any]) -> str:
        """Trigger the DAG and wait for it, counting paid answers meanwhile; return the run id."""
        run_id, is_dry = airflow.trigger(DAG, conf), "dry_run" in conf
        what = "Estimating the price" if is_dry else "Reading licenses"
        with self.console.status(f"{what} …") as status:

            def show_progress(_: str) -> None:
                if not is_dry:
                    status.update(f"{what}: {self._paid(run_id).calls} paid answers …")

            state = airflow.wait(DAG, run_id, RUN_TIMEOUT_S, on_progress=show_progress)
        if state != "success":
            raise DemoFailed(self._why_failed(airflow, run_id))
        return run_id

    def _why_failed(self, airflow: LocalAirflow, run_id: str) -> str:
        for task in airflow.task_instances(DAG, run_id):
            if task["state"] == "failed":
                log = airflow.log(DAG, run_id, task["task_id"], max(1, task["try_number"]))
                end = "\n".join(log.splitlines()[-25:])
                return f"Task {task['task_id']} failed. The end of its log:\n{end}"
        return f"The run failed before its tasks did. Airflow's own logs are in {self.home / 'logs'}."

    def _paid(self, run_id: str) -> _Paid:
        import sqlalchemy as sa

        from airflow_llm_provider.ledger.reports import totals_by_state
        from airflow_llm_provider.pricing import usd

        if not (self.home / "llm_ledger.db").exists():
            return _Paid()
        try:
            totals = totals_by_state(self.ledger, dag_id=DAG, run_id=run_id)
        except sa.exc.OperationalError:  # the task is creating its tables
            return _Paid()
        paid = [sums for sums in totals.values() if sums.is_paid]
        unpriced = any(sums.unpriced for sums in paid)
        return _Paid(
            calls=sum(sums.calls for sums in paid),
            cost_usd=None if unpriced else usd(sum(sums.cost_micro_usd for sums in paid)),
        )


def _end_or_stay(airflow: LocalAirflow, run_id: str, stay: bool) -> None:
    if not stay:
        typer.echo(f"`make demo STAY=1` leaves the UI running, at {airflow.url}.")
        return
    typer.echo(f"The run: {airflow.url}/dags/{DAG}/runs/{quote(run_id)}\nAirflow runs until Ctrl-C.")
    try:
        while True:
            airflow.check()
            time.sleep(1)
    except KeyboardInterrupt:
        typer.echo("Ending Airflow …")


def _print_rows(console: Console, output: Path) -> None:
    """Print the first rows; the quote only where the terminal is wide enough."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE)
    room = console.width - sum(COLUMNS.values()) - 3 * len(COLUMNS) - 4
    for name, width in {**COLUMNS, **({"a quote": room} if room >= 15 else {})}.items():
        table.add_column(name, no_wrap=True, overflow="ellipsis", width=width)
    with output.open(encoding="utf-8") as rows:
        for row in map(json.loads, islice(rows, ROWS_SHOWN)):
            data = row["data"]
            cells = [
                shown(row["document_id"]),
                data["spdx_id"],
                data["copyleft"],
                "granted" if data["patent_grant"] else "-",
                {"notice_and_changes": "notice, changes"}.get(data["attribution"], data["attribution"]),
                shown(next((data[name] for name in QUOTES if data[name]), ""), 120),
            ]
            table.add_row(*map(Text, cells[: len(table.columns)]))
    console.print(table)


def _report(
    manifest: dict[str, Any], compared: dict[str, Any], figures: dict[str, Any], endpoint: Endpoint
) -> list[str]:
    """Return the lines below the table: outcomes, cost, comparison, and where the files are."""
    pending = manifest["outcomes"]["pending"]
    cost = "unknown" if figures["cost_usd"] is None else f"${figures['cost_usd']}"
    invoice = "unknown" if figures["invoice_usd"] is None else f"${figures['invoice_usd']}"
    differing = [
        f"{shown(name)}: {'/'.join(sides['found'])}, declared {'/'.join(sides['declared'])}"
        for name, sides in compared["differing"].items()
    ]
    examples = f" ({'; '.join(differing[:4])}{'; …' if len(differing) > 4 else ''})" if differing else ""
    return [
        *([f"… {manifest['rows'] - ROWS_SHOWN} more rows."] if manifest["rows"] > ROWS_SHOWN else []),
        (
            f"{figures['documents']} documents: {figures['answered']} answered, {figures['reused']} reused, "
            f"{figures['dead_letters']} dead letters{f', {pending} not asked about' if pending else ''}."
        ),
        f"{figures['requests_paid']} new requests, cost {cost}; the reused answers are worth "
        f"${manifest['saved_usd']}."
        + (f" The stand-in's own invoice: {invoice} (not charged)." if endpoint.is_stand_in else ""),
        (
            f"SPDX ids against the packages' own metadata: {compared['matches']} match, {compared['differs']} "
            f"differ, {compared['unknown']} cannot be compared{examples}. "
            f"Quotes not found in their file: {compared['false_quotes']}."
        ),
        f"Rows: {manifest['output']}",
        *(
            [f"Dead letters: airflow-llm dead-letters list {manifest['dead_letters']}"]
            if manifest["dead_letters"]
            else []
        ),
    ]
