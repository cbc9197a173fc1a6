"""The commands of the documentation exist, and take what they are given."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from typing import Any

import pytest
import typer
from pages import PAGES, ROOT, blocks

from airflow_llm_provider.cli import app
from airflow_llm_provider.provider_info import get_provider_info

INLINE = re.compile(r"`(airflow-llm [^`]+)`")
OF_THE_SHELL = {".", "cp", "docker", "echo", "for", "git", "head", "mkdir", "python3", "sqlite3"}
SAID = [
    line.removeprefix("$ ")
    for block in blocks("console")
    for line in block.values[0].splitlines()
    if line.startswith("$ ")
]
MENTIONED = sorted({command for page in PAGES for command in INLINE.findall(page.read_text())})


def test_there_are_commands_of_every_kind() -> None:
    assert {command.split()[0] for command in SAID} >= {"airflow", "airflow-llm", "export", "make", "pip"}
    assert all(
        line.startswith("$ ") for block in blocks("console") for line in block.values[0].splitlines()[:1]
    )


@pytest.mark.usefixtures("airflow_home")
@pytest.mark.parametrize("command", sorted(set(SAID)))
def test_a_command_of_the_documentation_can_be_given(command: str) -> None:
    name, *words = shlex.split(command.partition(" > ")[0], comments=True)
    match name:
        case "airflow-llm":
            parse(typer.main.get_command(app), words)
        case "airflow":
            from airflow.cli.cli_parser import get_parser

            get_parser().parse_args(words)
        case "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert {word for word in words if "=" not in word} <= set(targets)
        case "pip":
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            for word in words:
                found = re.fullmatch(rf"{project['name']}\[(\w+)\]", word)
                assert found is None or found[1] in project["optional-dependencies"]
        case "export":
            setting, _, value = words[0].partition("=")
            require_known(setting, value)
        case _:
            assert name in OF_THE_SHELL


@pytest.mark.parametrize("command", MENTIONED)
def test_a_command_that_is_mentioned_exists(command: str) -> None:
    try:
        parse(typer.main.get_command(app), shlex.split(command)[1:])
    except typer.BadParameter as missing:  # a sentence may leave arguments out
        assert type(missing).__name__ == "MissingParameter"  # noqa: PT017


def parse(command: Any, words: list[str]) -> None:
    """Read words as the command line does, running nothing; raises for what it does not take."""
    context = command.make_context(command.name, words)
    if hasattr(command, "commands"):
        rest = [*getattr(context, "_protected_args", []), *context.args]
        if rest:
            _, child, others = command.resolve_command(context, rest)
            parse(child, others)


def require_known(setting: str, value: str) -> None:
    if setting.startswith("AIRFLOW_CONN_"):
        [kind] = get_provider_info()["connection-types"]
        connection = json.loads(value)
        assert connection.pop("conn_type") == kind["connection-type"]
        assert connection.pop("extra", {}).keys() <= kind["conn-fields"].keys()
        assert connection.keys() <= kind["ui-field-behaviour"]["relabeling"].keys()
    elif setting != "AIRFLOW_HOME":
        from airflow.sdk.configuration import conf

        _, section, option = setting.lower().split("__")
        assert conf.has_option(section, option)
