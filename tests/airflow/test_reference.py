"""The reference says what the code does: every page is up to date, and everything public is on one."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from airflow_llm_provider import errors, testing, tools, validators
from airflow_llm_provider.cli import app
from airflow_llm_provider.provider_info import get_provider_info
from airflow_llm_provider.sensors import conditions
from airflow_llm_provider.testing import fixtures

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
PUBLIC = [conditions, validators, tools, errors, testing, fixtures]
INTERNAL = {  # public by name, and called by our own code alone
    *("judge", "require_conditions", "Condition", "Facts", "Judged", "When"),  # sensors.conditions
    *("by_name", "record_of", "error_of", "require_kinds", "gravest", "Inputs", "Shown"),
}


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", REFERENCE / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    return generate


def test_the_reference_is_up_to_date(generate: ModuleType) -> None:
    for name, page in generate.PAGES.items():
        assert (REFERENCE / name).read_text() == page(), "run: python docs/reference/generate.py"
    assert {page.name for page in REFERENCE.glob("*.md")} == {*generate.PAGES, "rows.md"}


def test_every_public_class_and_function_is_in_it(generate: ModuleType) -> None:
    text = "".join(page() for page in generate.PAGES.values())
    info = get_provider_info()
    listed = [
        importlib.import_module(name)
        for kind in ("operators", "sensors", "hooks", "triggers")
        for group in info[kind]
        for name in group["python-modules"]
    ]
    names = {name for module in [*listed, *PUBLIC] for name in public(module)} - INTERNAL
    told = {
        *re.findall(r"^### (\w+)$", text, re.MULTILINE),
        *re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE),
    }
    told |= {title.partition(",")[0] for title in generate.OPERATORS.values()}
    assert len(names) > 50
    assert names - told == {"claude_server"}  # in a sentence
    assert "`claude_server`" in text
    decorators = {each["name"] for each in info["task-decorators"]}
    assert {name for name in decorators if f"@task.{name}\n" not in text} == set()


def test_every_setting_is_in_it(generate: ModuleType) -> None:
    info = get_provider_info()
    [connection] = info["connection-types"]
    for name in [*connection["conn-fields"], *connection["ui-field-behaviour"]["relabeling"]]:
        assert f"`{name}`" in generate.connection()
    for name in info["config"]["llm"]["options"]:
        assert f"| `{name}` |" in generate.configuration()


def test_every_command_and_option_is_in_it(generate: ModuleType) -> None:
    page = generate.command_line()
    found = list(commands(typer.main.get_command(app), "airflow-llm"))
    assert len(found) > 20
    for path, command in found:
        _, heading, said = page.partition(f"\n## {path}")
        assert heading, path
        for option in (word for each in command.params for word in each.opts if word.startswith("--")):
            assert f"`{option}" in said.partition("\n## ")[0]


def public(module: ModuleType) -> set[str]:
    """Return the names that a module offers: those it says, or else those it defines."""
    if hasattr(module, "__all__"):
        return {name for name in module.__all__ if name != "Validator"}  # a type, told in words
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
        and (inspect.isclass(value) or inspect.isfunction(value) or "Fixture" in type(value).__name__)
    }


def commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, f"{path} {name}")
