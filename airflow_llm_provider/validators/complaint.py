"""What a validator is, and what it may say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

_MOST_LINES = 10


@dataclass(frozen=True)
class Complaint:
    """What is wrong with an answer, for the model as much as for the log.

    fields: the fields at fault, as names or paths such as `items.3.amount`; none: the answer as a whole.
    needs_source: whether the document has to be read again to put it right. Where it need not be, only the fields
        at fault are sent back, which costs a fraction.
    """

    message: str
    fields: Sequence[str] = ()
    needs_source: bool = True

    @classmethod
    def about(cls, problems: Iterable[tuple[str, str]], *, needs_source: bool = True) -> Complaint | None:
        """Return one complaint about several places, one line a place; None where there are none."""
        found = list(problems)
        if not found:
            return None
        lines = [f"{place or 'answer'}: {message}" for place, message in found[:_MOST_LINES]]
        if len(found) > _MOST_LINES:
            lines.append(f"… and {len(found) - _MOST_LINES} more")
        # One place that is the whole answer puts all of it at fault.
        fields = tuple(dict.fromkeys(place for place, _ in found)) if all(p for p, _ in found) else ()
        return cls("\n".join(lines), fields, needs_source)


Validator = Callable[..., Complaint | str | None]
"""Takes the validated value, and the text asked about where its second parameter is named `source`; returns None or
a complaint, and raises BusinessError where asking again is no use."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A model that says whether an answer meets criteria; it is asked after all functions have passed.

    criteria: what must be true of the answer, one sentence each.
    model: a tier or a model id, of the task's own connection.
    reads_source: whether the judge is sent the text that was asked about, too, and pays for reading it.
    endpoint: of that connection; the operators fill it in.
    """

    criteria: Sequence[str]
    model: str = "fast"
    reads_source: bool = True
    endpoint: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.criteria, str) or not self.criteria:
            raise ValueError("Judge(criteria=[…]): give a list of at least one sentence.")
