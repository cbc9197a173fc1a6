"""What the package says of itself is all there is: its modules to Airflow, its dependencies to pip."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from airflow_llm_provider.provider_info import get_provider_info

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = sorted((ROOT / "airflow_llm_provider").rglob("*.py"))
DECLARED = [
    Requirement(text) for text in sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"])
]


@pytest.mark.parametrize("kind", ["Operator", "Sensor", "Hook", "Trigger"])
def test_airflow_is_told_every_module_that_holds_one(kind: str) -> None:
    holds = re.compile(rf"^class [A-Z]\w*{kind}\b", re.MULTILINE)
    folder = f"{kind.lower()}s"
    told = {name for group in get_provider_info()[folder] for name in group["python-modules"]}
    assert told == {
        f"airflow_llm_provider.{folder}.{path.stem}"
        for path in SOURCES
        if path.parent.name == folder and holds.search(path.read_text())
    }


def test_every_decorator_is_told() -> None:
    told = {decorator["class-name"] for decorator in get_provider_info()["task-decorators"]}
    assert told == {
        f"airflow_llm_provider.decorators.{path.stem}.{name}"
        for path in SOURCES
        if path.parent.name == "decorators"
        for name in re.findall(r"^def ([a-z]\w*_task)\b", path.read_text(), re.MULTILINE)
    }


def test_all_that_is_imported_comes_with_what_is_declared() -> None:
    known = importlib.metadata.packages_distributions()
    brought: set[str] = set()
    asked = list(DECLARED)
    while asked:
        one = asked.pop()
        if f"{one.name}{sorted(one.extras)}" not in brought:
            brought |= {canonicalize_name(one.name), f"{one.name}{sorted(one.extras)}"}
            asked += [
                needed
                for needed in map(Requirement, importlib.metadata.requires(one.name) or ())
                if needed.marker is None
                or any(needed.marker.evaluate({"extra": extra}) for extra in {"", *one.extras})
            ]
    for name in imported() - {"airflow_llm_provider", "pytest"}:  # pytest is who loads our fixtures
        assert {canonicalize_name(each) for each in known[name]} & brought, name


def imported() -> set[str]:
    """Return the top-level names of all imports of the package, but for the standard library's."""
    names = set()
    for node in (node for path in SOURCES for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names


def test_the_pythons_that_are_named_are_those_that_are_tested() -> None:
    named = {text.rpartition(" ")[2] for text in PROJECT["classifiers"] if "Python :: 3." in text}
    tested = re.search(r"^PYTHONS \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert tested is not None
    assert set(tested[1].split()) == named
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert {f"3.{minor}" for minor in range(30) if f"3.{minor}" in allowed} == named
