"""`airflow-llm demo`: the license audit, run to its end in a real Airflow of its own."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

import airflow_llm_provider
from airflow_llm_provider.cli.output import fail

if TYPE_CHECKING:
    from rich.console import Console

    from airflow_llm_provider.testing.airflow import LocalAirflow

PROJECT = Path(airflow_llm_provider.__file__).resolve().parent.parent
DAG, ASKING, COMPARING = "license_audit", "read_licenses", "compare"
RUN_TIMEOUT_S = 3600.0  # a young account's rate limits stretch the run; the stand-in takes seconds


class DemoFailed(RuntimeError):
    """The demo's DAG run did not succeed; the message holds the end of the log that says why."""


def demo(
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask this Anthropic-compatible server instead.")
    ] = None,
    stay: Annotated[bool, typer.Option("--stay", help="Leave Airflow up until Ctrl-C.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask about so many documents at most.")] = None,
    tier: Annotated[str, typer.Option(help="Model tier: fast, balanced or strong.")] = "fast",
    yes: Annotated[bool, typer.Option("--yes", help="Spend money without asking.")] = False,
    home: Annotated[
        Path | None, typer.Option(help="Airflow's home; by default .demo in the project. It is kept.")
    ] = None,
) -> None:
    """Read the licenses of all that is installed here, in a real Airflow, and show what came of it.

    With ANTHROPIC_API_KEY it asks Claude, and that costs money; without, a stand-in answers, for nothing. A
    second run asks, and pays, only for what is new. The last line of its output is a JSON object.
    """
    if not (PROJECT / "dags" / f"{DAG}.py").is_file():
        fail("The demo runs an example DAG of the source tree: run it from a clone (`make demo`).")
    if tier not in ("fast", "balanced", "strong"):
        fail(f"--tier {tier}: the tiers are fast, balanced and strong.")
    import httpx2

    from airflow_llm_provider.cli.demo_endpoint import EndpointFailed
    from airflow_llm_provider.testing.airflow import ComponentFailed

    try:
        told = _Demo(home or PROJECT / ".demo", base_url, stay, {"limit": limit, "tier": tier}, yes).run()
    except (KeyboardInterrupt, typer.Abort):  # the latter from a question that was asked
        typer.echo("Stopped; nothing is left running. What was paid for is kept.", err=True)
        raise typer.Exit(130) from None
    except (DemoFailed, EndpointFailed, ComponentFailed, httpx2.HTTPError, RuntimeError, OSError) as error:
        fail(error)
    typer.echo(json.dumps(told))


@dataclass(frozen=True, kw_only=True)
class _Paid:
    """What the ledger says that a run has paid; cost_usd is None when some of it has no known price."""

    calls: int
    cost_usd: str | None


class _Demo:
    """One demo: what it runs on, and the steps it takes."""

    def __init__(self, home: Path, base_url: str | None, stay: bool, conf: dict[str, Any], yes: bool) -> None:
        from rich.console import Console

        self.home = home.resolve()
        self.base_url = base_url
        self.stay = stay
        self.conf = {name: value for name, value in conf.items() if value is not None}
        self.yes = yes
        # A log file has room for a table as wide as a terminal's.
        self.console: Console = Console(highlight=False, width=None if sys.stdout.isatty() else 130)

    def run(self) -> dict[str, Any]:
        """Run it all; return what the last line says."""
        from airflow_llm_provider.cli.demo_endpoint import open_endpoint
        from airflow_llm_provider.cli.demo_report import print_report
        from airflow_llm_provider.testing.airflow import LocalAirflow

        started = time.monotonic()
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with ExitStack() as open_things:
            endpoint = open_endpoint(
                self.base_url, os.environ.get("ANTHROPIC_API_KEY", ""), self.home, open_things
            )
            for line in endpoint.told:
                typer.echo(line)
            typer.echo(f"Starting Airflow in {self.home} …")
            airflow = open_things.enter_context(
                LocalAirflow(self.home, PROJECT / "dags", connections={"claude_default": endpoint.connection})
            )
            endpoint.remember()
            typer.echo(f"Airflow is up after {time.monotonic() - started:.0f} s: {airflow.url}")
            billed_before = endpoint.invoice()
            if endpoint.costs_money:
                self._require_consent(airflow)
            run_id = self._run_to_the_end(airflow, self.conf)
            manifest = airflow.xcom(DAG, run_id, ASKING)
            paid = self._paid(run_id)
            billed = endpoint.invoice()
            told = {
                "documents": manifest["documents"],
                "answered": manifest["outcomes"]["answered"] + manifest["outcomes"]["repaired"],
                "reused": manifest["outcomes"]["reused"],
                "dead_letters": manifest["outcomes"]["dead_letter"],
                "requests_paid": paid.calls,
                "cost_usd": paid.cost_usd,
                "invoice_usd": billed.since(billed_before) if billed and billed_before else None,
                "seconds": round(time.monotonic() - started, 1),
            }
            print_report(self.console, manifest, airflow.xcom(DAG, run_id, COMPARING), told, endpoint)
            self._end_or_stay(airflow, run_id)
        return told

    def _require_consent(self, airflow: LocalAirflow) -> None:
        """Say what it may cost, from a dry run, and ask whether to go on where somebody can answer."""
        run_id = self._run_to_the_end(airflow, {**self.conf, "dry_run": True})
        plan = airflow.xcom(DAG, run_id, ASKING)
        cost = plan["cost_usd"]
        price = "for a price that is not known" if cost is None else f"for at most ${cost['high']}"
        typer.echo(
            f"The dry run: {plan['documents']} documents, {plan['outcomes']['reused']} answered already; the rest "
            f"would go to {plan['model']}, {price}. `make demo ARGS='--limit 10'` asks about ten at most."
        )
        is_somebody_there = self.console.is_terminal and os.isatty(0)
        if not self.yes and is_somebody_there and not typer.confirm("Spend it?", default=True):
            raise DemoFailed("Nothing was asked, nothing was spent.")

    def _run_to_the_end(self, airflow: LocalAirflow, conf: dict[str, Any]) -> str:
        from airflow_llm_provider.cli.demo_progress import Progress

        run_id = airflow.trigger(DAG, conf)
        is_dry, limit = bool(conf.get("dry_run")), conf.get("limit")
        with Progress(self.console, self.home, (DAG, run_id, ASKING), is_dry=is_dry, limit=limit) as progress:
            state = airflow.wait(DAG, run_id, RUN_TIMEOUT_S, on_progress=progress.look, poll_s=0.3)
        if state != "success":
            raise DemoFailed(self._why_failed(airflow, run_id))
        return run_id

    def _why_failed(self, airflow: LocalAirflow, run_id: str) -> str:
        for task in airflow.task_instances(DAG, run_id):
            if task["state"] == "failed":
                lines = airflow.log(DAG, run_id, task["task_id"], max(1, task["try_number"])).splitlines()[
                    -25:
                ]
                return f"Task {task['task_id']} failed. The end of its log:\n" + "\n".join(lines)
        return f"The run failed before its tasks did. Airflow's own logs are in {self.home / 'logs'}."

    def _paid(self, run_id: str) -> _Paid:
        from airflow_llm_provider.ledger.database import Database
        from airflow_llm_provider.ledger.reports import totals_by_state
        from airflow_llm_provider.pricing import usd

        database = Database(f"sqlite:///{self.home / 'llm_ledger.db'}")
        try:
            paid = [
                sums for sums in totals_by_state(database, dag_id=DAG, run_id=run_id).values() if sums.is_paid
            ]
        finally:
            database.close()
        unpriced = any(sums.unpriced for sums in paid)
        return _Paid(
            calls=sum(sums.calls for sums in paid),
            cost_usd=None if unpriced else usd(sum(sums.cost_micro_usd for sums in paid)),
        )

    def _end_or_stay(self, airflow: LocalAirflow, run_id: str) -> None:
        page = f"{airflow.url}/dags/{DAG}/runs/{quote(run_id)}"
        if not self.stay:
            typer.echo(f"`make demo STAY=1` leaves the UI up, at {airflow.url}.")
            return
        typer.echo(f"The run: {page}\nAirflow stays up until Ctrl-C.")
        try:
            while True:
                airflow.check()
                time.sleep(1)
        except KeyboardInterrupt:
            typer.echo("Ending Airflow …")
