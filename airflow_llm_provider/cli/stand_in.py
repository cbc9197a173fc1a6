"""`airflow-llm stand-in`: the stand-in of the Claude API, from the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airflow_llm_provider.cli.output import fail

if TYPE_CHECKING:
    from airflow_llm_provider.testing.faults import Fault

_TYPES: dict[str, type] = {
    **dict.fromkeys(("error_type", "error_code", "message", "matching", "model"), str),
    **dict.fromkeys(("status", "after", "times", "seed"), int),
    **dict.fromkeys(("retry_after", "share", "duration_s"), float),
}
_NEXT_OPTION = re.compile(r",(?=\w+=)")  # a text to match may contain commas


def stand_in(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on; 0 takes a free one.")] = 8765,
    latency: Annotated[float, typer.Option(help="Seconds before an answer begins.")] = 0.0,
    api_key: Annotated[str | None, typer.Option(help="Accept only this key; default: any key.")] = None,
    rpm: Annotated[float | None, typer.Option(help="Limit the requests per minute.")] = None,
    itpm: Annotated[float | None, typer.Option(help="Limit the input tokens per minute.")] = None,
    otpm: Annotated[float | None, typer.Option(help="Limit the output tokens per minute.")] = None,
    burst: Annotated[
        float | None,
        typer.Option(help="Requests that full buckets let through at once; default: those of one minute."),
    ] = None,
    fail_with: Annotated[
        list[str] | None,
        typer.Option(
            "--fail",
            metavar="FAULT",
            help="Order a fault: a status or a kind, and which requests it hits, such as 529:times=3, "
            "429:share=0.1,retry_after=2, hang:after=10 or refusal:matching=NOTICE. May be repeated.",
        ),
    ] = None,
    invoice: Annotated[
        Path | None, typer.Option(help="Append every billed request to this file, as JSON lines.")
    ] = None,
    validate: Annotated[
        bool, typer.Option(help="Check requests against the API's OpenAPI description (needs llm-comply).")
    ] = False,
    keep_requests: Annotated[
        bool, typer.Option(help="Keep the requests; /stand-in/requests shows them.")
    ] = False,
    record: Annotated[
        Path | None, typer.Option(help="Append the exchanges with --upstream to this file, without keys.")
    ] = None,
    upstream: Annotated[str | None, typer.Option(help="Base URL that requests are passed on to.")] = None,
    replay: Annotated[Path | None, typer.Option(help="Answer from a recorded file.")] = None,
) -> None:
    """Serve a stand-in of the Claude API until Ctrl-C: the real wire protocol, with answers from plain text rules.

    Point a connection of type claude at it, with any key. Its invoice is at /stand-in/invoice. No answer is Claude's.
    """
    from airflow_llm_provider.testing.standin import serve

    limits = {"rpm": rpm, "itpm": itpm, "otpm": otpm, "burst": burst}
    try:
        serve(
            host,
            port,
            latency_s=latency,
            invoice=invoice,
            api_key=api_key,
            limits={name: value for name, value in limits.items() if value is not None} or None,
            validate=validate,
            keep_requests=keep_requests,
            record=record,
            upstream=upstream,
            replay=replay,
            faults=[read_fault(text) for text in fail_with or ()],
        )
    except (OSError, ValueError, ImportError) as error:
        fail(error)


def read_fault(text: str) -> Fault:
    """Read `529:times=3` or `hang:after=10,matching=some text`; ValueError saying what is wrong with it."""
    from airflow_llm_provider.testing.faults import Fault

    kind, _, rest = text.partition(":")
    order: dict[str, Any] = {"kind": "error", "status": int(kind)} if kind.isdigit() else {"kind": kind}
    for part in _NEXT_OPTION.split(rest) if rest else ():
        name, _, value = part.partition("=")
        if name not in _TYPES and name not in ("sticky", "billed"):
            known = ", ".join(sorted([*_TYPES, "sticky", "billed"]))
            raise ValueError(f"--fail {text}: {name!r} is not one of {known}")
        try:
            order[name] = _TYPES[name](value) if name in _TYPES else value.lower() in ("", "true", "yes", "1")
        except ValueError:
            raise ValueError(f"--fail {text}: {name} must be a number, not {value!r}") from None
    return Fault(**order)
