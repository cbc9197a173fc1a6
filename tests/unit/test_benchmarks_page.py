"""What is published of the benchmarks is what was measured, and what was measured holds what we claim."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))
report = importlib.import_module("report")


@pytest.fixture(scope="module")
def works() -> dict[str, Any]:
    told: dict[str, Any] = json.loads((BENCHMARKS / "results" / "rivals.json").read_text())
    return told["works"]


def test_the_page_is_what_the_results_say() -> None:
    assert report.PAGE.read_text() == report.page()


@pytest.mark.parametrize(("peer", "times"), [("common_ai", 500), ("common_ai_preloaded", 100)])
def test_a_cpu_second_yields_many_times_the_documents(works: dict[str, Any], peer: str, times: int) -> None:
    # A mapped side does the same few documents in both works.
    theirs = max(works[name][peer]["documents_per_cpu_s"] for name in ("unlimited", "small"))
    assert works["unlimited"]["ours"]["documents_per_cpu_s"] >= times * theirs


def test_a_limit_is_used_and_hardly_ever_met(works: dict[str, Any]) -> None:
    ours = works["limited"]["ours"]
    assert ours["limit_used"] >= 0.9
    assert ours["refused"] <= 0.01 * ours["requests"]


def test_what_was_answered_is_not_asked_again(works: dict[str, Any]) -> None:
    ours = works["rerun"]["ours"]
    assert ours["unchanged"]["requests"] == 0
    assert ours["changed"]["requests"] == 0.01 * ours["documents"]


@pytest.mark.parametrize(
    "work", ["unlimited", "small", "limited", "questions", "rerun", "invalid", "transient"]
)
def test_every_document_is_answered_by_us(works: dict[str, Any], work: str) -> None:
    ours = works[work]["ours"]
    assert ours["answered"] == ours["documents"] > 0


def test_a_rival_that_does_better_is_named() -> None:
    column = report.Column("cpu_s", "CPU-s")
    sides = {"ours": {"cpu_s": 2.0}, "theirs": {"cpu_s": 1.0}}
    (_, line) = report.where_rivals_are_better(sides, [column], {"theirs": "the rival"})
    assert "the rival (CPU-s)" in line
    assert not list(report.where_rivals_are_better(sides, [column._replace(more_is_better=True)], {}))
