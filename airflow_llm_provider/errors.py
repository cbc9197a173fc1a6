"""Errors, sorted by whether a retry can help.

No message holds a value that came at run time: Airflow's logs show messages to everybody who may see the task. What an
error has to say about a value to the model is its `complaint`.

```text
LLMError
├── RetryableError            the same request may succeed later
│   ├── NetworkError          no reply, or an incomplete one
│   ├── RateLimited           429
│   │   └── RampLimited       429: usage grows faster than the account may grow
│   ├── Overloaded            529
│   ├── ServerError           5xx
│   ├── KeyBusy               another task is asking the same
│   ├── BudgetWaits           our budget: until its next day or month
│   └── LedgerUnavailable     the ledger can't be reached; nothing was sent
└── TerminalError             it fails again until something is changed
    ├── BadRequest            400, 404, 422
    │   └── UnknownModel      404 of a model
    ├── AuthenticationFailed  401, 403
    ├── SpendLimitReached     the account's own limit at Anthropic
    ├── BudgetExceeded        our budget
    │   ├── BudgetSkips       and the task is skipped
    │   └── BudgetAsks        and a person is asked
    ├── UnknownPrice          a budget cannot count a call without a price
    ├── LedgerUnusable        wrong address, damaged, or a newer version
    ├── DocumentUnread        the server answers without having read the document
    ├── TooLong               more text than the model can read at once
    ├── Rejected              a person rejected it
    ├── ChangedSinceShown     not what a person approved
    ├── EffectUnknown         an irreversible effect may or may not have happened
    └── AnswerError           paid, but not a valid answer
        ├── Refused           the model declined
        ├── Truncated         it stopped at a limit
        ├── ToolLimit         its turns, time or money were used up by tool calls
        ├── InvalidOutput     of another shape than asked for
        └── BusinessError     a validator rejected it for good
```
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar


class LLMError(Exception):
    """A call to the model failed; `kind` is the name of the class in retry policies.

    Attributes:
        billed: whether the API may have charged for the request: it was sent, and nothing proves that it was not run.
    """

    kind: ClassVar[str] = "error"
    billed: bool = False


class RetryableError(LLMError):
    """The same request may succeed later.

    Args:
        message: what happened, and what to do.
        retry_after_s: how long the server asked to wait, in seconds; None when it did not say.
        billed: whether the API may have charged for the request.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None, billed: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.billed = billed


class NetworkError(RetryableError):
    """The connection failed, timed out, or broke before the reply was complete. A retry can help."""

    kind = "network"


class RateLimited(RetryableError):
    """The account's requests or tokens per minute are used up for now."""

    kind = "rate_limit"


class RampLimited(RateLimited):
    """The account's usage grows faster than the API allows it to grow. A retry helps, and so does slower growth."""


class Overloaded(RetryableError):
    """The API is overloaded for the moment. A retry can help."""

    kind = "overloaded"


class ServerError(RetryableError):
    """The API failed on its side. A retry can help."""

    kind = "server"


class KeyBusy(RetryableError):
    """Another task has been asking the same for longer than the deadline; nothing was sent."""

    kind = "busy"


class BudgetWaits(RetryableError):
    """Nothing was sent: the budget is used up until its next day or month. A retry after that can help."""

    kind = "budget_wait"


class LedgerUnavailable(RetryableError):
    """The ledger cannot be reached, so nothing was sent or paid."""

    kind = "ledger"


class TerminalError(LLMError):
    """The same request fails again until something is changed."""


class BadRequest(TerminalError):
    """The API does not accept the request. A retry does not help."""

    kind = "bad_request"


class UnknownModel(BadRequest):
    """The API does not have this model, or not for this key. A file that is not found is a BadRequest."""

    kind = "unknown_model"


class AuthenticationFailed(TerminalError):
    """The API key is missing, wrong, or not allowed to send this request, or its organization is disabled."""

    kind = "auth"


class SpendLimitReached(TerminalError):
    """The account's credit is used up, or its own spend limit at Anthropic is reached. It has to be raised there."""

    kind = "spend_limit"


class BudgetExceeded(TerminalError):
    """Nothing was sent: the call could cost more than is left of the budget. Raise it, and clear the task."""

    kind = "budget"


class BudgetSkips(BudgetExceeded):
    """The call was not sent, and its budget says to skip the task."""


class BudgetAsks(BudgetExceeded):
    """The call was not sent, and its budget says to ask a person to raise it.

    Args:
        message: what happened, and what to do.
        budget: the name of the budget.
        label: whose calls the budget adds up.
        booked_micro_usd: what is already paid or reserved of the budget.
        need_micro_usd: the most that this call could cost.
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
    """The call was not sent: its model has no known price, so a budget cannot count it."""

    kind = "unpriced"


class LedgerUnusable(TerminalError):
    """The ledger cannot be used: its address is wrong, its file is damaged, or its version is too new."""

    kind = "ledger"


class DocumentUnread(TerminalError):
    """The server left out the document that was sent, and the model has answered about nothing."""

    kind = "unread"


class TooLong(TerminalError):
    """The input is more than the model can read at once. Shorten it, or read it in parts."""

    kind = "too_long"


class Rejected(TerminalError):
    """A person rejected it, and that is final."""

    kind = "rejected"


class ChangedSinceShown(TerminalError):
    """What would go on is not what a person was shown, so it is not approved."""

    kind = "changed"


class EffectUnknown(TerminalError):
    """An irreversible tool was started, and its process ended before the result was recorded."""

    kind = "effect"


class AnswerError(TerminalError):
    """The call was paid, but the reply is not a valid answer.

    Args:
        message: what happened, and what to do. It quotes nothing.
        reply_text: the reply, with the fields that repairs replaced.
        complaint: what is wrong, for the model and for dead letters; it may quote the answer. Default: the message.

    Attributes:
        fingerprints: of the requests that led here, repairs included.
        reused: none of these requests was sent now.
        complaints: what was wrong, in order.
        usage: what the calls took, as in the XCom `llm_usage`.
    """

    def __init__(self, message: str, *, reply_text: str = "", complaint: str = "") -> None:
        super().__init__(message)
        self.reply_text = reply_text
        self.complaint = complaint or message
        self.fingerprints: tuple[str, ...] = ()
        self.reused = False
        self.complaints: tuple[str, ...] = ()
        self.usage: Mapping[str, Any] = {}


class Refused(AnswerError):
    """The model declined to answer, or the API's content filter kept its answer back. It is not asked again."""

    kind = "refusal"


class Truncated(AnswerError):
    """The answer is incomplete: `max_tokens` or the context window was reached."""

    kind = "truncation"


class ToolLimit(AnswerError):
    """The model was still calling tools when its turns, time or money were used up."""

    kind = "tool_limit"


class InvalidOutput(AnswerError):
    """The answer does not have the shape that was asked for.

    Args:
        message: what happened. It quotes nothing.
        reply_text: the reply, with the fields that repairs replaced.
        complaint: what is wrong, which is sent to the model; it may quote the answer. Default: the message.
        fields: the wrong places, such as `items.3.amount`; empty: the whole answer.
        needs_source: whether a repair needs the text that was asked about.
    """

    kind = "invalid_output"

    def __init__(
        self,
        message: str,
        *,
        reply_text: str = "",
        complaint: str = "",
        fields: Sequence[str] = (),
        needs_source: bool = True,
    ) -> None:
        super().__init__(message, reply_text=reply_text, complaint=complaint)
        self.fields = tuple(fields)
        self.needs_source = needs_source


class BusinessError(AnswerError):
    """The answer has the right shape, but a validator says that it must not be used."""

    kind = "business"


def _by_kind(error: type[LLMError]) -> dict[str, type[LLMError]]:
    kinds = {error.kind: error}
    for child in error.__subclasses__():
        # A class without a `kind` of its own, such as BudgetSkips, inherits it. The name then means the parent class.
        kinds |= {kind: cls for kind, cls in _by_kind(child).items() if kind not in kinds}
    return kinds


BY_KIND = _by_kind(LLMError)
"""All classes of error, by the names that retry policies use."""


def require_kinds(argument: str, kinds: Iterable[str]) -> None:
    """Raise ValueError unless every one of `kinds` names a class of error."""
    if unknown := sorted(set(kinds) - BY_KIND.keys()):
        raise ValueError(
            f"{argument}= knows no class of error {unknown[0]!r}; there are {', '.join(sorted(BY_KIND))}."
        )


def without_text(error: BaseException) -> str:
    """Return the class of an error and where it was raised; its text may quote what the code was given.

    Args:
        error: an error of code that is not ours: a validator, a tool, a parser.
    """
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return type(error).__name__
    code = traceback.tb_frame.f_code
    file = code.co_filename.rpartition("/")[2]
    return f"{type(error).__name__} in {code.co_name}, {file} line {traceback.tb_lineno}"


def record_of(error: LLMError) -> dict[str, Any]:
    """Return an error as plain data, which a trigger can send."""
    # The reply of an AnswerError is left out, because Airflow logs the events of triggers.
    retry_after_s = error.retry_after_s if isinstance(error, RetryableError) else None
    return {"error": type(error).__name__, "message": str(error), "retry_after_s": retry_after_s}


def error_of(record: Mapping[str, Any]) -> LLMError:
    """Return the error that `record_of` recorded."""
    # A class that this process has not loaded is one of those that no retry can solve.
    cls = {cls.__name__: cls for cls in _all(LLMError)}.get(record["error"], TerminalError)
    if issubclass(cls, RetryableError):
        return cls(record["message"], retry_after_s=record["retry_after_s"])
    return cls(record["message"])


def _all(error: type[LLMError]) -> list[type[LLMError]]:
    return [error, *(cls for child in error.__subclasses__() for cls in _all(child))]
