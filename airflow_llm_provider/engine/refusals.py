"""What the 429s of a bucket mean: its limit is used up, or single calls are refused whatever the rate is."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from airflow_llm_provider.ledger.rate_limits import HOLD_S, unit_s

_WINDOW_S = 2.0  # a cut is decided by the calls that were sent in it
_PROVEN_S = 10.0  # what went through in it has been proven to go through
_KEPT_S = 150.0
_STEP_S = 0.05  # sends are counted together for so long
_ANSWERED_S = 0.5  # a refusal comes within it; replies take longer
_LEAST_SENT, _LEAST_REFUSED = 10, 2  # fewer say nothing of the limit
_MAX_USUAL = 0.12  # more than this share is never taken for refusals that come whatever the rate is


@dataclass(slots=True)
class _Step:
    """Calls sent at about the same time, and how many of them were refused."""

    at_s: float
    sent: int = 0
    refused: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Overload:
    """The rate is too high.

    Attributes:
        share: the part of the rate that is refused, without the refusals that come at any rate.
    """

    share: float


class Refusals:
    """The calls that this process sent to one bucket in the last minutes, and those that got a 429.

    A 429 comes back at once and a reply only after its latency. So refused calls are compared with those sent at the
    same time, and not with the replies that came meanwhile.

    Some servers refuse a few calls whatever the rate is. Their share is measured while the rate is below one that has
    just been proven to go through, and only more than that is a reason to slow down.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        """Make an empty count.

        Args:
            now: a monotonic clock.
        """
        self._now = now
        self._steps: deque[_Step] = deque()
        self._cut_s, self._unit_s, self._is_measured = float("-inf"), 1.0, True
        self._usual = 0.0
        self._after_cuts: deque[float] = deque([0.0], maxlen=2)

    def count_send(self) -> None:
        """Count a call that is sent now."""
        now = self._now()
        if not self._steps or now - self._steps[-1].at_s > _STEP_S:
            self._steps.append(_Step(now))
            while self._steps[0].at_s < now - _KEPT_S:
                self._steps.popleft()
        self._steps[-1].sent += 1

    def count_refusal(self, sent_s: float) -> None:
        """Count a 429 for a call that was sent at `sent_s`."""
        for step in reversed(self._steps):
            if step.at_s <= sent_s:
                step.refused = min(step.refused + 1, step.sent)
                return

    @property
    def overload(self) -> Overload | None:
        """By how much the rate is too high; None where it need not be cut."""
        self._measure_usual()
        sent, refused = self._window()
        if sent < _LEAST_SENT or refused < _LEAST_REFUSED:
            return None
        # The fewer calls, the less is known of what is usual.
        share, usual = refused / sent, max(self._usual, 0.01 + 0.2 / sent)
        # Three standard deviations above the usual: by chance alone that is rare.
        if share <= usual + 0.01 + 3 * math.sqrt(usual * (1 - usual) / sent):
            return None
        return Overload(share=max(0.0, 1 - (1 - share) / (1 - self._usual)))

    @property
    def may_be_used_up(self) -> bool:
        """Whether more is refused than usual, or too few calls were sent lately to tell."""
        return self._window()[0] < _LEAST_SENT or self.overload is not None

    def lately(self) -> tuple[float, float]:
        """Return how many calls per minute this process has sent lately, and which part of them was not refused."""
        since_s = self._now() - _PROVEN_S * self._unit_s
        sent, refused = self._count(since_s)
        if not sent:
            return 0.0, 0.0
        # A run that has just begun has not sent for so long.
        passed_s = max(1.0, self._now() - max(since_s, self._steps[0].at_s))
        return 60 * sent / passed_s, 1 - refused / sent

    def note_cut(self, at_s: float, rpm: float) -> None:
        """Take note that the rate was cut, by this process or another.

        Args:
            at_s: when.
            rpm: to what, in requests per minute.
        """
        if at_s <= self._cut_s + _STEP_S:
            return
        self._measure_usual(is_over=True)
        self._cut_s, self._unit_s, self._is_measured = at_s, unit_s(rpm), False

    def _window(self) -> tuple[int, int]:
        """Return the calls sent in the last seconds, or as many as are needed, and how many of them were refused."""
        since_s, sent, refused = self._now() - _WINDOW_S * self._unit_s, 0, 0
        for step in reversed(self._steps):
            if step.at_s <= self._cut_s or (step.at_s <= since_s and sent >= _LEAST_SENT):
                break
            sent, refused = sent + step.sent, refused + step.refused
        return sent, refused

    def _measure_usual(self, *, is_over: bool = False) -> None:
        """Measure which share is refused anyway, once the time after the last cut is over."""
        until_s = self._cut_s + HOLD_S * self._unit_s
        if self._is_measured or (self._now() < until_s + _ANSWERED_S and not is_over):
            return
        self._is_measured = True
        sent, refused = self._count(self._cut_s, until_s)
        if sent:
            # Two cuts in a row: what is refused because of the rate is gone after the second.
            self._after_cuts.append(refused / sent)
            self._usual = min(_MAX_USUAL, *self._after_cuts)

    def _count(self, since_s: float, until_s: float = math.inf) -> tuple[int, int]:
        """Return how many calls were sent in a time, and how many of them were refused."""
        sent = refused = 0
        for step in reversed(self._steps):
            if step.at_s <= since_s:
                break
            if step.at_s <= until_s:
                sent, refused = sent + step.sent, refused + step.refused
        return sent, refused
