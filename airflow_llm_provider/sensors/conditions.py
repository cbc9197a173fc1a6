"""Conditions under which ApprovalSensor asks a person, each with its reason in words."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, NamedTuple, Protocol


class Judged(NamedTuple):
    """Whether a person is asked, and why.

    Attributes:
        asks: whether a person is asked.
        reason: why, or why not.
    """

    asks: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of the content.

    Attributes:
        content: what is decided on.
        usages: the XComs `llm_usage` of the tasks it came from.
        checks: the XComs `llm_checks` of the tasks it came from.
        identity: run, task and map index; the same at every retry.
    """

    content: Any
    usages: Sequence[Mapping[str, Any]]
    checks: Sequence[Mapping[str, Any]]
    identity: str

    @property
    def cost_usd(self) -> Decimal | None:
        """What the content cost, in US dollars; None when that is not known."""
        costs = [usage.get("cost_usd") for usage in self.usages]
        return None if not costs or None in costs else sum(map(Decimal, map(str, costs)), Decimal())


class Condition(Protocol):
    """A condition under which a person is asked."""

    def judge(self, facts: Facts) -> Judged:
        """Return whether a person is asked, and why."""


When = Literal["always"] | Condition | Callable[[Any], bool | str | None]


@dataclass(frozen=True)
class BelowConfidence:
    """Ask where the content states a confidence below `limit`, or states none.

    Attributes:
        limit: a number from 0 to 1.
        field: the field of the content that holds the confidence, a number from 0 to 1.
    """

    limit: float
    field: str = "confidence"

    def __post_init__(self) -> None:
        if not 0 <= self.limit <= 1:
            raise ValueError(f"BelowConfidence({self.limit}): a confidence is a number from 0 to 1.")

    def judge(self, facts: Facts) -> Judged:
        """Compare with the limit."""
        content = facts.content
        stated = (
            content.get(self.field) if isinstance(content, Mapping) else getattr(content, self.field, None)
        )
        # True is a number to Python, and would be full confidence.
        if isinstance(stated, bool) or not isinstance(stated, (int, float)):
            return Judged(True, f"no {self.field} is stated")
        asks = not stated >= self.limit  # NaN asks
        return Judged(asks, f"{self.field} {stated:g} is {'below' if asks else 'not below'} {self.limit:g}")


@dataclass(frozen=True)
class AboveCost:
    """Ask where the content cost more than `usd`, or its cost is not known; the XCom `llm_usage` says it.

    Attributes:
        usd: US dollars.
    """

    usd: float | str

    def __post_init__(self) -> None:
        try:
            Decimal(str(self.usd))
        except InvalidOperation:
            raise ValueError(f"AboveCost({self.usd!r}): give a number of US dollars.") from None

    def judge(self, facts: Facts) -> Judged:
        """Compare with the limit."""
        cost = facts.cost_usd
        if cost is None:
            return Judged(True, "its cost is not known")
        asks = cost > Decimal(str(self.usd))
        return Judged(asks, f"it cost ${cost}, {'' if asks else 'not '}more than ${self.usd}")


@dataclass(frozen=True)
class OnComplaints:
    """Ask where a validator complained, also where the answer was repaired since; the XCom `llm_checks` says it."""

    def judge(self, facts: Facts) -> Judged:
        """Look for complaints of validators."""
        complaints = [str(said) for checks in facts.checks for said in checks.get("complaints") or ()]
        is_invalid = any(not checks.get("valid", True) for checks in facts.checks)
        if not complaints and not is_invalid:
            return Judged(False, "no validator complained")
        more = f" and {len(complaints) - 1} more" if len(complaints) > 1 else ""
        return Judged(
            True, f"a validator complained: {complaints[0]}{more}" if complaints else "it is not valid"
        )


@dataclass(frozen=True)
class RandomShare:
    """Ask for a random share, which is the same at every retry and clear.

    Attributes:
        share: a number from 0 to 1.
        seed: another text draws another sample.
    """

    share: float
    seed: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"RandomShare({self.share}): a share is a number from 0 to 1.")

    def judge(self, facts: Facts) -> Judged:
        """Draw by the hash of the identity."""
        # A random number would be another one at a retry, and could ask, or not ask, the second time.
        drawn = hashlib.sha256(f"{self.seed}\0{facts.identity}".encode()).digest()
        asks = int.from_bytes(drawn[:8]) < self.share * 2**64
        return Judged(asks, f"{'' if asks else 'not '}drawn for the sample of {self.share:.2%}")


def judge(when: When | Sequence[When], facts: Facts) -> Judged:
    """Return whether any condition asks, with the reasons of those that ask, or of all where none does."""
    whens: Sequence[When] = when if isinstance(when, (list, tuple)) else [when]  # type: ignore[list-item]
    judged = [_judge(each, facts) for each in whens]
    asking = [each for each in judged if each.asks]
    return Judged(bool(asking), "; ".join(each.reason for each in asking or judged))


def require_conditions(when: Any) -> None:
    """Raise ValueError, when the DAG is parsed, for what is not a condition."""
    for each in when if isinstance(when, (list, tuple)) else [when]:
        if isinstance(each, str) and each != "always":
            raise ValueError(
                f"when={each!r}: use always, a condition of sensors.conditions, or a function of the content."
            )
        if isinstance(each, type):
            raise ValueError(f"when={each.__name__}: give it its arguments, as in {each.__name__}(…).")
        if not (isinstance(each, str) or callable(each) or hasattr(each, "judge")):
            raise ValueError(
                f"when={each!r} is neither a condition of sensors.conditions nor a function of the content."
            )


def _judge(when: When, facts: Facts) -> Judged:
    if when == "always":
        return Judged(True, "always asked")
    if hasattr(when, "judge"):
        return when.judge(facts)
    name = getattr(when, "__name__", "when")
    result = when(facts.content)
    if isinstance(result, str) and result:
        return Judged(True, result)
    return Judged(bool(result), f"{name}() returned {bool(result)}")
