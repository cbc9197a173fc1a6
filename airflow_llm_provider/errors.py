"""Errors, sorted by whether trying again would help.

LLMError
├── RetryableError            it may work later, as it is
│   ├── NetworkError          no answer, or half of one
│   ├── RateLimited           429
│   ├── Overloaded            529
│   ├── ServerError           5xx
│   ├── KeyBusy               somebody else is asking the same
│   ├── BudgetWaits           ours: until its next day or month
│   └── LedgerUnavailable     nothing was sent
└── TerminalError             it will not, until somebody changes something
    ├── BadRequest            400, 422
    │   └── UnknownModel      404
    ├── AuthenticationFailed  401, 403
    ├── SpendLimitReached     the account's own limit
    ├── BudgetExceeded        ours
    │   ├── BudgetSkips       and the task is to be skipped
    │   └── BudgetAsks        and a person is to be asked
    ├── UnknownPrice          a budget can't hold what has no price
    ├── LedgerUnusable        wrong address, damaged, or of a newer version
    ├── TooLong               more than the model can read
    ├── Rejected              a person said no
    ├── ChangedSinceShown     not what a person decided on
    ├── EffectUnknown         something irreversible may or may not have happened
    └── AnswerError           paid, but no answer
        ├── Refused
        ├── Truncated
        ├── ToolLimit             still calling tools when its turns, time or money were spent
        ├── InvalidOutput
        └── BusinessError         a validator's word
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar


class LLMError(Exception):
    """Something went wrong with a call to the model; `kind` is its name in retry policies."""

    kind: ClassVar[str] = "error"


class RetryableError(LLMError):
    """The same request may succeed later.

    retry_after_s: how long the server asked to be left alone; None when it did not say.
    billed: whether the API may have charged for it: it was sent, and no proof came back that it was not.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None, billed: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.billed = billed


class NetworkError(RetryableError):
    """The connection failed, timed out, or broke before the reply was complete."""

    kind = "network"


class RateLimited(RetryableError):
    """The account's requests or tokens a minute are used up for now."""

    kind = "rate_limit"


class Overloaded(RetryableError):
    """The API is temporarily overloaded."""

    kind = "overloaded"


class ServerError(RetryableError):
    """The API failed on its side."""

    kind = "server"


class KeyBusy(RetryableError):
    """Somebody else has been asking the same for longer than the deadline; nothing was sent."""

    kind = "busy"


class BudgetWaits(RetryableError):
    """The call was not sent: it waits for its budget's next day or month."""

    kind = "budget_wait"


class LedgerUnavailable(RetryableError):
    """The ledger can't be reached, so nothing was sent and nothing paid."""

    kind = "ledger"


class TerminalError(LLMError):
    """The same request will fail again: something has to be changed first."""


class BadRequest(TerminalError):
    """The API does not accept this request."""

    kind = "bad_request"


class UnknownModel(BadRequest):
    """The API knows no such model, or not for this key."""

    kind = "unknown_model"


class AuthenticationFailed(TerminalError):
    """The API key is missing, wrong, or not allowed to do this."""

    kind = "auth"


class SpendLimitReached(TerminalError):
    """The account's own spend limit is reached; waiting a minute does not help."""

    kind = "spend_limit"


class BudgetExceeded(TerminalError):
    """The call was not sent: it could cost more than the budget has left."""

    kind = "budget"


class BudgetSkips(BudgetExceeded):
    """The call was not sent, and its budget says that the task is then skipped."""


class BudgetAsks(BudgetExceeded):
    """The call was not sent, and its budget says that a person is then asked to raise it.

    budget, label: its name, and whose calls it adds up. booked_micro_usd: what is paid or reserved of it already;
    need_micro_usd: the most this call could cost. calls: how many are in need of the same.
    """

    def __init__(
        self,
        message: str,
        *,
        budget: str = "",
        label: str = "",
        booked_micro_usd: int = 0,
        need_micro_usd: int = 0,
    ) -> None:
        super().__init__(message)
        self.budget = budget
        self.label = label
        self.booked_micro_usd = booked_micro_usd
        self.need_micro_usd = need_micro_usd
        self.calls = 1


class UnknownPrice(TerminalError):
    """The call was not sent: its model has no known price, so no budget could hold it."""

    kind = "unpriced"


class LedgerUnusable(TerminalError):
    """The ledger can't be used as it is: its address is wrong, its file damaged, or its version too new."""

    kind = "ledger"


class TooLong(TerminalError):
    """The input is more than the model can read at once."""

    kind = "too_long"


class Rejected(TerminalError):
    """A person said no, and that is final."""

    kind = "rejected"


class ChangedSinceShown(TerminalError):
    """What would go on is not what a person was shown, so nobody has approved it."""

    kind = "changed"


class EffectUnknown(TerminalError):
    """Something that may happen once was begun, and its process ended before it could say how it went."""

    kind = "effect"


class AnswerError(TerminalError):
    """The call was paid, but what came back is not an answer.

    reply_text: what did come, with what repairs put into it.
    fingerprints: of the requests that led here, repairs included; reused: none of them was sent just now.
    complaints: what was found wrong, in order; usage: what the calls took, as a reply's usage record.
    """

    def __init__(self, message: str, *, reply_text: str = "") -> None:
        super().__init__(message)
        self.reply_text = reply_text
        self.fingerprints: tuple[str, ...] = ()
        self.reused = False
        self.complaints: tuple[str, ...] = ()
        self.usage: Mapping[str, Any] = {}


class Refused(AnswerError):
    """The model declined to answer."""

    kind = "refusal"


class Truncated(AnswerError):
    """The answer stopped in the middle: `max_tokens`, or the context window, was reached."""

    kind = "truncation"


class ToolLimit(AnswerError):
    """The model was still calling tools when the turns, the time or the money for it were spent."""

    kind = "tool_limit"


class InvalidOutput(AnswerError):
    """The answer is not of the shape that was asked for; the message is the complaint.

    fields: the places at fault, such as `items.3.amount`; none: the answer as a whole.
    needs_source: whether what was asked about has to be read again to put it right.
    """

    kind = "invalid_output"

    def __init__(
        self, message: str, *, reply_text: str = "", fields: Sequence[str] = (), needs_source: bool = True
    ) -> None:
        super().__init__(message, reply_text=reply_text)
        self.fields = tuple(fields)
        self.needs_source = needs_source


class BusinessError(AnswerError):
    """The answer is of the right shape, and a validator says that it must not be used."""

    kind = "business"


def _by_kind(error: type[LLMError]) -> dict[str, type[LLMError]]:
    kinds = {error.kind: error}
    for child in error.__subclasses__():
        kinds |= {kind: cls for kind, cls in _by_kind(child).items() if kind not in kinds}
    return kinds


BY_KIND = _by_kind(LLMError)
"""All classes of error by their names, as retry policies use them."""


def require_kinds(argument: str, kinds: Iterable[str]) -> None:
    """Raise ValueError unless every one of `kinds` names a class of error."""
    if unknown := sorted(set(kinds) - BY_KIND.keys()):
        raise ValueError(
            f"{argument}= knows no class of error {unknown[0]!r}; there are {', '.join(sorted(BY_KIND))}."
        )


def record_of(error: LLMError) -> dict[str, Any]:
    """Return an error as plain data."""
    retry_after_s = error.retry_after_s if isinstance(error, RetryableError) else None
    return {"error": type(error).__name__, "message": str(error), "retry_after_s": retry_after_s}


def error_of(record: Mapping[str, Any]) -> LLMError:
    """Return the error that `record_of` wrote down."""
    # A class that this process has not loaded is one of those that only come up where nothing can be mended.
    cls = {cls.__name__: cls for cls in _all(LLMError)}.get(record["error"], TerminalError)
    if issubclass(cls, RetryableError):
        return cls(record["message"], retry_after_s=record["retry_after_s"])
    return cls(record["message"])


def _all(error: type[LLMError]) -> list[type[LLMError]]:
    return [error, *(cls for child in error.__subclasses__() for cls in _all(child))]
