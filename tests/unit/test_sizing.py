"""The page on sizing says what was measured."""

import importlib.util
import json
from pathlib import Path

SIZING = Path(__file__).parents[2] / "benchmarks" / "sizing.py"


def test_the_tables_on_sizing_are_those_of_the_kept_result() -> None:
    spec = importlib.util.spec_from_file_location("sizing", SIZING)
    assert spec is not None
    assert spec.loader is not None
    sizing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sizing)
    text = sizing.PAGE.read_text()
    assert "<!-- measured -->" in text
    assert "<!-- arithmetic -->" in text
    assert sizing.page(text, json.loads(sizing.RESULT.read_text())) == text, (
        "make bench NAME=scale ARGS=--keep"
    )
