"""When a person is asked, and the reason in words."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_llm_provider.sensors.conditions import (
    AboveCost,
    BelowConfidence,
    Facts,
    OnComplaints,
    RandomShare,
    judge,
)

REFUND = {"amount": 40.0, "items": ["kettle"], "confidence": 0.4}


class Answer:
    confidence = 0.9


def facts(content: Any = REFUND, *, usage: Any = None, checks: Any = None, identity: str = "run") -> Facts:
    return Facts(
        content=content, usages=[usage] if usage else [], checks=[checks] if checks else [], identity=identity
    )


@pytest.mark.parametrize(
    ("when", "about", "asks", "why"),
    [
        ("always", facts(), True, "always asked"),
        (BelowConfidence(0.8), facts(), True, "confidence 0.4 is below 0.8"),
        (BelowConfidence(0.4), facts(), False, "confidence 0.4 is not below 0.4"),
        (BelowConfidence(0.8), facts(Answer()), False, "confidence 0.9 is not below 0.8"),
        (BelowConfidence(0.8), facts("text"), True, "no confidence is stated"),
        (BelowConfidence(0.8), facts({"confidence": True}), True, "no confidence is stated"),
        (BelowConfidence(0.8), facts({"confidence": float("nan")}), True, "confidence nan is below 0.8"),
        (BelowConfidence(0.8, field="sure"), facts({"sure": 1}), False, "sure 1 is not below 0.8"),
        (
            AboveCost(0.01),
            facts(usage={"cost_usd": "0.010001"}),
            True,
            "it cost $0.010001, more than $0.01",
        ),
        (AboveCost("0.01"), facts(usage={"cost_usd": "0.01"}), False, "it cost $0.01, not more than $0.01"),
        (AboveCost(0.01), facts(usage={"cost_usd": None}), True, "its cost is not known"),
        (AboveCost(0.01), facts(), True, "its cost is not known"),
        (OnComplaints(), facts(), False, "no validator complained"),
        (
            OnComplaints(),
            facts(checks={"valid": True, "complaints": ["too long", "no date"], "repairs": 1}),
            True,
            "a validator complained: too long and 1 more",
        ),
        (OnComplaints(), facts(checks={"valid": False, "complaints": []}), True, "it is not valid"),
        (RandomShare(0.0), facts(), False, "not drawn for the sample of 0.00%"),
        (RandomShare(1.0), facts(), True, "drawn for the sample of 100.00%"),
        (lambda content: content["amount"] > 100, facts(), False, "<lambda>() returned False"),
        (lambda content: content["amount"] > 10, facts(), True, "<lambda>() returned True"),
        (lambda content: "a kettle" if "kettle" in content["items"] else None, facts(), True, "a kettle"),
        (
            [BelowConfidence(0.1), OnComplaints()],
            facts(),
            False,
            "confidence 0.4 is not below 0.1; no validator complained",
        ),
        ([BelowConfidence(0.1), BelowConfidence(0.5)], facts(), True, "confidence 0.4 is below 0.5"),
    ],
)
def test_a_condition_says_whether_and_why(when: Any, about: Facts, asks: bool, why: str) -> None:
    assert judge(when, about) == (asks, why)


def test_what_several_calls_cost_is_added_up_to_the_micro_dollar() -> None:
    usages = [{"cost_usd": "0.000001"}] * 10
    assert (
        str(Facts(content=None, usages=usages, checks=(), identity="").cost_usd) == "0.000010"
    )  # floats would drift


def test_a_random_share_is_the_share_and_the_same_at_every_try() -> None:
    def drawn(seed: str) -> list[bool]:
        return [RandomShare(0.2, seed).judge(facts(identity=f"run{n}")).asks for n in range(2000)]

    assert 340 < sum(drawn("a")) < 460
    assert drawn("a") == drawn("a") != drawn("b")


def test_a_share_is_a_share() -> None:
    with pytest.raises(ValueError, match="a share is a number from 0 to 1"):
        RandomShare(20)


def test_a_bar_no_content_can_be_held_against_is_refused() -> None:
    with pytest.raises(ValueError, match="a confidence is a number from 0 to 1"):
        BelowConfidence(80)
    with pytest.raises(ValueError, match="give a number of US dollars"):
        AboveCost("a lot")
