"""What the package says of itself is all there is: its modules to Airflow, its Pythons to pip."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from airflow_llm_provider.provider_info import get_provider_info

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = sorted((ROOT / "airflow_llm_provider").rglob("*.py"))


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
    source = (ROOT / "airflow_llm_provider" / "decorators.py").read_text()
    found = re.findall(r"^def ([a-z]\w*_task)\b", source, re.MULTILINE)
    assert told == {f"airflow_llm_provider.decorators.{name}" for name in found}


def test_the_pythons_that_are_named_are_those_that_are_tested() -> None:
    named = {text.rpartition(" ")[2] for text in PROJECT["classifiers"] if "Python :: 3." in text}
    tested = re.search(r"^PYTHONS \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert tested is not None
    assert set(tested[1].split()) == named
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert {f"3.{minor}" for minor in range(30) if f"3.{minor}" in allowed} == named
