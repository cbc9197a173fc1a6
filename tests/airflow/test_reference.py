"""The reference is built from the code, and everything public is on exactly one of its pages."""

from __future__ import annotations

import html
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import griffe
import pytest
import typer
from airflow.sdk.bases.hook import BaseHook
from airflow.sdk.bases.operator import BaseOperator
from airflow.triggers.base import BaseTrigger

import airflow_llm_provider
from airflow_llm_provider import errors, options, personal_data, testing, tools, validators
from airflow_llm_provider.cli import app
from airflow_llm_provider.provider_info import get_provider_info
from airflow_llm_provider.sensors import conditions
from airflow_llm_provider.testing import fixtures

ROOT = Path(__file__).parents[2]
PACKAGE = "airflow_llm_provider"
PUBLIC = [conditions, validators, personal_data, tools, errors, testing, fixtures]
INTERNAL = {  # public by name, and called by our own code alone
    *("judge", "require_conditions", "Condition", "Content", "Facts", "Judged", "When"),  # sensors.conditions
    *("by_name", "record_of", "error_of", "require_kinds", "without_text"),
}
KINDS = (BaseOperator, BaseHook, BaseTrigger)  # what Airflow finds in the modules that provider_info names


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Give the HTML of each reference page; a warning of MkDocs, mkdocstrings or griffe is an error."""
    site = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return {page.parent.name: page.read_text() for page in (site / "reference").glob("*/index.html")}


def test_every_public_class_and_function_is_on_exactly_one_page(pages: Mapping[str, str]) -> None:
    info = get_provider_info()
    listed = [
        importlib.import_module(name)
        for kind in ("operators", "sensors", "hooks", "triggers")
        for group in info[kind]
        for name in group["python-modules"]
    ]
    names = {name for module in PUBLIC for name in public(module)} - INTERNAL
    names |= {
        name
        for module in listed
        for name in public(module)
        if inspect.isclass(cls := getattr(module, name)) and issubclass(cls, KINDS)
    }
    names |= {cls.__name__ for cls in options.VALUE_OBJECTS.values()}
    names |= set(getattr(airflow_llm_provider, "__all__", ()))
    told = Counter(name for page in pages.values() for name in documented(page))
    assert len(names) > 50
    assert {name: told[name] for name in sorted(names) if told[name] != 1} == {}


def test_every_decorator_is_in_it(pages: Mapping[str, str]) -> None:
    for each in get_provider_info()["task-decorators"]:
        assert f"@task.{each['name']}<" in pages["operators"]


def test_every_setting_is_in_it(pages: Mapping[str, str]) -> None:
    info = get_provider_info()
    [connection] = info["connection-types"]
    for name in [*connection["conn-fields"], *connection["ui-field-behaviour"]["relabeling"]]:
        assert f"<code>{name}</code>" in pages["connection"]
    for name in info["config"]["llm"]["options"]:
        assert f"<td><code>{name}</code></td>" in pages["configuration"]


def test_every_kind_of_error_is_in_it(pages: Mapping[str, str]) -> None:
    for kind in errors.BY_KIND:
        assert f"<td><code>{kind}</code></td>" in pages["errors"]


def test_every_command_and_option_is_in_it(pages: Mapping[str, str]) -> None:
    page = html.unescape(pages["cli"])
    found = list(commands(typer.main.get_command(app), "airflow-llm"))
    assert len(found) > 20
    for path, command in found:
        _, heading, said = page.partition(f"<code>{path}</code>")
        assert heading, path
        for option in (word for each in command.params for word in each.opts if word.startswith("--")):
            assert option in re.split(r"<h\d", said)[0], path


def test_every_parameter_on_a_page_is_described() -> None:
    package = griffe.load(PACKAGE, search_paths=[str(ROOT)], docstring_parser="google")
    missing = {path: names for path in shown(package) if (names := undescribed(package[path]))}
    assert missing == {}


def shown(package: griffe.Module) -> Iterator[str]:
    """Yield what the pages show, by its path below the package: `::: name`, and the members that a page names."""
    for page in sorted((ROOT / "docs" / "reference").glob("*.md")):
        for name, given in re.findall(
            rf"^::: {PACKAGE}\.(\S+)((?:\n    .*)*)", page.read_text(), re.MULTILINE
        ):
            members = re.search(r"members:\s*\[(.*?)\]", given, re.DOTALL)
            if not package[name].is_module:
                yield name
            if members:
                yield from (f"{name}.{member.strip()}" for member in members[1].split(","))


def undescribed(one: griffe.Object | griffe.Alias) -> set[str]:
    """Return the parameters of a function or class, and the fields of a dataclass, that its docstring leaves out."""
    one = one.final_target if one.is_alias else one
    fields = [each for each in one.attributes.values() if each.annotation and "property" not in each.labels]
    if one.is_function:
        names = {each.name for each in one.parameters}
    elif "dataclass" in one.labels:
        names = {each.name for each in fields if "instance-attribute" in each.labels}
    else:
        names = {each.name for each in one.parameters if each.name != "self"} if one.is_class else set()
    sections = one.docstring.parsed if one.docstring else []
    tables = [each.value for each in sections if each.kind.value in ("parameters", "attributes")]
    told = {each.name.lstrip("*") for table in tables for each in table} | {"self", "kwargs"}
    return {name for name in names - told if not name.startswith("_")}


def documented(page: str) -> set[str]:
    """Return the classes, functions and data of modules that have a heading on a page; no methods."""
    found = re.findall(r'<h\d id="airflow_llm_provider((?:\.[a-z_]+)*)\.(\w+)" class="doc', page)
    return {name for _, name in found}


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
    """Yield a command and the commands below it, each with its words."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, f"{path} {name}")
