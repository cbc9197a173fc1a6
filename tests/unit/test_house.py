"""The check of `make house` finds import circles and private parts of Airflow."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sys.modules.pop("house", None)
    return importlib.import_module("house")


def package(folder: Path, **modules: str) -> Path:
    (made := folder / "ours").mkdir()
    for name, text in {"__init__": "", **modules}.items():
        (made / f"{name}.py").write_text(text)
    return made


@pytest.mark.parametrize(
    "back",
    [
        "from ours.a import thing",
        "def later():\n    from ours import a",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ours.a",
    ],
    ids=["module", "function", "types"],
)
def test_a_circle_is_found_at_every_level(house: ModuleType, tmp_path: Path, back: str) -> None:
    made = package(tmp_path, a="import ours.b", b="import ours.c", c=back, d="import ours.a")
    assert house.circles(house.graph(house.read(made))) == [["ours.a", "ours.b", "ours.c"]]
    assert house.check(made) == 1


@pytest.mark.parametrize(
    "text",
    [
        "from airflow.sdk.definitions._internal.templater import Templater",
        "from airflow.sdk.execution_time.comms import DeleteXCom",
        "from airflow.sdk import DAG\n\ndef expand(task):\n    return task._expand_called",
    ],
    ids=["underscore", "module", "attribute"],
)
def test_a_private_part_of_airflow_is_found(house: ModuleType, tmp_path: Path, text: str) -> None:
    assert house.check(package(tmp_path, a=text)) == 1
    (tmp_path / "ours" / "a.py").rename(tmp_path / "ours" / "_airflow.py")
    assert house.check(tmp_path / "ours") == 0


def test_our_own_private_names_are_no_private_parts_of_airflow(house: ModuleType, tmp_path: Path) -> None:
    code = "from airflow.sdk import DAG\n\nclass A:\n    def __init__(self):\n        self._b = 1\n\nA()._b"
    assert house.check(package(tmp_path, a=code)) == 0
