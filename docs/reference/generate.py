"""Write the reference from the code it is about: `python docs/reference/generate.py`."""

from __future__ import annotations

import enum
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import typer

from airflow_llm_provider import errors, validators
from airflow_llm_provider.cli import app
from airflow_llm_provider.engine.client import AnthropicClient
from airflow_llm_provider.engine.reply import Reply
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.engine.retry import RetryPolicy
from airflow_llm_provider.engine.run import Engine
from airflow_llm_provider.hooks.claude import ClaudeHook
from airflow_llm_provider.hooks.retention import prune_ledger
from airflow_llm_provider.hooks.retry import ClaudeRetryPolicy
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.operators.branch import Branch, LLMBranchOperator, use_branch_settings
from airflow_llm_provider.operators.claude import ClaudeOperator
from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator
from airflow_llm_provider.operators.repair import ValidationRepairOperator
from airflow_llm_provider.provider_info import get_provider_info
from airflow_llm_provider.sensors.approval import ApprovalSensor
from airflow_llm_provider.sensors.conditions import AboveCost, BelowConfidence, OnComplaints, RandomShare
from airflow_llm_provider.testing.books import Books, balance
from airflow_llm_provider.testing.faults import Fault, FaultKind, ScriptedReply
from airflow_llm_provider.testing.invoice import Invoice, InvoiceLine
from airflow_llm_provider.testing.limits import Limits
from airflow_llm_provider.testing.question import Question
from airflow_llm_provider.testing.standin import StandIn, serve
from airflow_llm_provider.tools import Tool, tool
from airflow_llm_provider.triggers.claude import ClaudeTrigger

HERE = Path(__file__).parent
WRITTEN = "Written by `docs/reference/generate.py` from the code.\n"
OPERATORS: dict[type, str] = {
    ClaudeOperator: "ClaudeOperator, @task.claude",
    ClaudeDocumentsOperator: "ClaudeDocumentsOperator, @task.claude_documents",
    LLMBranchOperator: "LLMBranchOperator, @task.claude_branch",
    ValidationRepairOperator: "ValidationRepairOperator, @task.claude_repair",
    ApprovalSensor: "ApprovalSensor",
}
METHODS: dict[type, Sequence[str]] = {
    ClaudeHook: ("run", "scope"),
    Engine: ("ask", "map", "close"),
    StandIn: ("url", "reply", "fail", "heal", "limit", "summary"),
    Question: ("model", "prompt", "document", "documents", "text", "schema", "turn", "tool_results"),
    Invoice: ("read", "lines", "paid", "cost_micro_usd", "unpriced"),
    InvoiceLine: ("cost_micro_usd",),
}
DECORATORS = (
    "A decorator takes the arguments of its operator, but for the one that its function returns: the prompt, of "
    "`@task.claude_documents` the documents, of `@task.claude_repair` the answer.\n"
)
_ARGUMENT = re.compile(r"((?:\w+, )*\w+): (.+)")


def operators() -> str:
    """Return the page of operators, sensor and decorators, and of what their arguments are made of."""
    parts = [f"# The operators and the sensor\n\n{WRITTEN}\n{DECORATORS}"]
    for cls, title in OPERATORS.items():
        texts = {name: text for names, text in _arguments(cls).items() for name in names.split(", ")}
        parts.append(
            f"\n## {title}\n\n`{cls.__module__}`\n\n{_prose(cls)}\n\n| argument | default | |\n|---|---|---|\n"
        )
        for name, parameter in inspect.signature(cls.__init__).parameters.items():
            if name in ("self", "kwargs"):
                continue
            default = "" if parameter.default is parameter.empty else f"`{parameter.default!r}`"
            parts.append(_row(f"`{name}`", default, texts[name]))
    return (
        "".join(parts)
        + _section("Branches", [Branch, use_branch_settings])
        + _section("When a person is asked", [BelowConfidence, AboveCost, OnComplaints, RandomShare])
    )


def checks() -> str:
    """Return the page of validators and tools."""
    supplied = [getattr(validators, name) for name in validators.__all__ if name != "Validator"]
    supplied.sort(key=inspect.isclass)
    return (
        f"# Validators and tools\n\n{WRITTEN}"
        f"\n## Validators\n\n`airflow_llm_provider.validators`\n\n{_prose(validators)}\n"
        + "".join(_entry(each) for each in supplied)
        + _section("Tools", [tool, Tool])
    )


def error_classes() -> str:
    """Return the page of errors."""
    tree = inspect.cleandoc(errors.__doc__ or "").split("\n\n", 1)[1]
    rows = "".join(
        _row(f"`{name}`", f"`{cls.kind}`", _prose(cls))
        for name, cls in vars(errors).items()
        if inspect.isclass(cls) and issubclass(cls, errors.LLMError)
    )
    return (
        f"# Errors\n\n{WRITTEN}\n`airflow_llm_provider.errors`. A task that meets a `TerminalError` fails without a "
        f"retry, as `AirflowFailException`; every other error is left to Airflow's retries.\n\n```text\n{tree}\n```\n\n"
        "The class is what `retry=` and `fall_back_on=` call an error.\n\n"
        f"| error | class | |\n|---|---|---|\n{rows}"
    )


def python() -> str:
    """Return the page of what Python code outside of a DAG file may use."""
    return (
        f"# Python\n\n{WRITTEN}\nThe operators need none of this; [tests](../how-to/testing.md), tasks of your own and "
        "plugins may.\n"
        + _section("In Airflow", [ClaudeHook, ClaudeRetryPolicy, prune_ledger, ClaudeTrigger])
        + _section(
            "Without Airflow", [Engine, Request, Reply, RetryPolicy, CallScope, Ledger, AnthropicClient]
        )
    )


def test_kit() -> str:
    """Return the page of the stand-in."""
    kinds = ", ".join(f"`{kind}`" for kind in get_args(FaultKind))
    return (
        f"# Test kit\n\n{WRITTEN}\nHow to use it: [test your DAGs](../how-to/testing.md). The pytest fixture "
        "`claude_server` gives a test a `StandIn` of its own.\n"
        + _section("The stand-in", [StandIn, serve])
        + _section("What it is ordered, and asked", [Fault, ScriptedReply, Limits, Question])
        + f"\nThe kinds of faults: {kinds}.\n"
        + _section("What it would have charged", [Invoice, InvoiceLine, balance, Books])
    )


def command_line() -> str:
    """Return the page of the command line."""
    return f"# The command line\n\n{WRITTEN}" + "".join(_command(typer.main.get_command(app), "airflow-llm"))


def connection() -> str:
    """Return the page of the connection."""
    [kind] = get_provider_info()["connection-types"]
    behaviour = kind["ui-field-behaviour"]
    rows = [
        _row(f"{label} (`{name}`)", "", behaviour["placeholders"][name])
        for name, label in sorted(behaviour["relabeling"].items(), reverse=True)
    ]
    for name, field in kind["conn-fields"].items():
        rows.append(_row(f"`{name}`", _code(field["schema"].get("default")), field["description"]))
    return CONNECTION.format(written=WRITTEN, rows="".join(rows))


def configuration() -> str:
    """Return the page of the configuration."""
    rows = [
        _row(f"`{name}`", _code(option["default"]), _code(option["example"]), option["description"])
        for name, option in get_provider_info()["config"]["llm"]["options"].items()
    ]
    return (
        f"# The configuration\n\n{WRITTEN}\nSection `[llm]` of `airflow.cfg`, or `AIRFLOW__LLM__…`. See "
        "[budgets](../how-to/budgets.md) and [retention](../how-to/ledger.md#every-night).\n\n"
        f"| option | default | example | |\n|---|---|---|---|\n{''.join(rows)}"
    )


CONNECTION = """# The connection

{written}
Type `claude`, default id `claude_default`. Password and host are those of any Airflow connection; the others are fields
of its form, and of its `extra`. A connection of type `anthropic`, `http` or `generic` will do, with these in its extra.

| field | default | |
|---|---|---|
{rows}
As an environment variable:

```console
$ export AIRFLOW_CONN_CLAUDE_DEFAULT='{{"conn_type": "claude", "password": "sk-ant-…", "extra": {{"rpm": 600}}}}'
```

`airflow-llm test-connection [ID]` asks for the list of models, which costs nothing, and says which tiers the key can
use and which model retires within 90 days. The Test button in the UI does the same where `[core] test_connection =
Enabled`.

DAGs should name tiers, not model ids: when a model retires, one connection changes and no DAG does. An answer belongs
to the model and the endpoint that gave it, so changing either asks anew.

How the limits are kept is told under [pace](../explanation/pace.md), what prices are for under
[budgets](../how-to/budgets.md#prices), what fallbacks do under [calls](../how-to/calls.md#the-cheap-model-first).
"""

PAGES: dict[str, Callable[[], str]] = {
    "operators.md": operators,
    "checks.md": checks,
    "errors.md": error_classes,
    "connection.md": connection,
    "configuration.md": configuration,
    "cli.md": command_line,
    "python.md": python,
    "testing.md": test_kit,
}


def _section(title: str, members: Sequence[Any]) -> str:
    return f"\n## {title}\n{''.join(map(_entry, members))}"


def _entry(one: Any) -> str:
    """Return what there is to say of a function or a class."""
    paragraphs, texts = _read(one)[0], _arguments(one)
    parts = [
        f"\n### {one.__name__}\n\n```python\nfrom {_home(one)} import {one.__name__}\n\n{_call(one)}\n```\n"
    ]
    parts += [f"\n{paragraph}\n" for paragraph in paragraphs]
    if texts:
        parts += [
            "\n| argument | |\n|---|---|\n",
            *(_row(f"`{names}`", text) for names, text in texts.items()),
        ]
    for name in METHODS.get(one, ()):
        method = getattr(one, name)
        shown = _call(method) if callable(method) else name
        parts.append(f"\n`.{shown}`: {' '.join(_read(method)[0])}\n")
    return "".join(parts)


def _home(one: Any) -> str:
    """Return the module to import it from: the package, where that has it among its names."""
    package = one.__module__.rpartition(".")[0]
    return package if one.__name__ in getattr(sys.modules[package], "__all__", ()) else one.__module__


def _call(one: Any) -> str:
    """Write a signature without its types."""
    plain = [
        parameter.replace(annotation=parameter.empty, default=_legible(parameter.default))
        for name, parameter in inspect.signature(one).parameters.items()
        if name != "self"
    ]
    return f"{one.__name__}{inspect.Signature(plain)}".replace("'", '"')  # as the formatter has it


def _legible(default: Any) -> Any:
    """Return a default that is written in a few characters, the same in every process."""
    if callable(default) and default is not inspect.Parameter.empty:
        return _Bare(default.__name__)
    return default if len(repr(default)) < 60 else _Bare("…")


class _Bare(str):
    """A text that is written without quotation marks."""

    __slots__ = ()
    __repr__ = str.__str__


def _prose(one: Any) -> str:
    return "\n\n".join(_read(one)[0])


def _read(one: Any) -> tuple[list[str], dict[str, str]]:
    """Return the paragraphs of a docstring, and what it says of arguments; `a, b: …` describes both."""
    paragraphs: list[str] = []
    texts: dict[str, str] = {}
    for part in inspect.cleandoc(one.__doc__ or "").split("\n\n"):
        prose: list[str] = []
        names = ""
        for line in part.splitlines():
            if found := _ARGUMENT.fullmatch(line):
                names, texts[found[1]] = found.groups()
            elif names and (line.startswith(" ") or not texts[names].endswith(".")):
                texts[names] += f" {line.strip()}"
            else:
                names = ""
                prose.append(line)
        if prose:
            is_code = all(line.startswith("    ") for line in prose)
            paragraphs.append("\n".join(prose) if is_code else " ".join(" ".join(prose).split()))
    return paragraphs, texts


def _arguments(one: Any) -> dict[str, str]:
    """Return what the docstrings of a function, or of a class and its bases, say of arguments."""
    ours = [
        base
        for base in getattr(one, "__mro__", (one,))
        if base.__module__.startswith("airflow_llm_provider.")
    ]
    return {names: text for base in reversed(ours) for names, text in _read(base)[1].items()}


def _command(command: Any, path: str) -> Iterator[str]:
    """Yield what a command says of itself, then its own commands."""
    rows, words = [], [path]
    for one in command.params:
        is_argument = one.param_type_name == "argument"
        name = (
            (one.metavar or one.name.upper()) if is_argument else ", ".join([*one.opts, *one.secondary_opts])
        )
        words += [name if one.required or name.startswith("[") else f"[{name}]"] if is_argument else []
        is_choice = isinstance(one.default, enum.Enum)
        choices = f" One of {', '.join(map(str, type(one.default)))}." if is_choice else ""
        rows.append(_row(f"`{name}`", _code(one.default or None), f"{one.help}{choices}"))
    yield f"\n## {' '.join(words)}\n\n{command.help}\n"
    if rows:
        yield f"\n| argument or option | default | |\n|---|---|---|\n{''.join(rows)}"
    for name, child in getattr(command, "commands", {}).items():
        yield from _command(child, f"{path} {name}")


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _code(value: Any) -> str:
    return "" if value in (None, "") else f"`{value}`"


if __name__ == "__main__":
    for file_name, page in PAGES.items():
        (HERE / file_name).write_text(page())
