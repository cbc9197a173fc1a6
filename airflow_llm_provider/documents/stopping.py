"""What would fail every document alike, so that a run stops: a class of error, or failures in a row and a proof."""

from __future__ import annotations

from dataclasses import dataclass, field

from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.errors import (
    AuthenticationFailed,
    BadRequest,
    DocumentUnread,
    LedgerUnavailable,
    LedgerUnusable,
    LLMError,
    NetworkError,
    RetryableError,
    ServerError,
    SpendLimitReached,
    UnknownModel,
    UnknownPrice,
)

LEDGER_GONE = (LedgerUnavailable, LedgerUnusable)
"""Errors after which nothing can be looked up."""
SAME_FOR_ALL = (
    AuthenticationFailed,
    SpendLimitReached,
    UnknownModel,
    UnknownPrice,
    DocumentUnread,
    *LEDGER_GONE,
)
"""Errors of key, account, model, ledger and server, which no document has caused."""

# A document can cause these, too: an image that is broken, a text that the server fails at. Only a request without a
# document shows whose fault they are.
_OF_DOCUMENT_OR_SERVER = (BadRequest, ServerError, NetworkError)
_PROBE_TIMEOUT_S = 30.0


@dataclass(kw_only=True)
class StopRule:
    """Tells by the errors of documents when it is no use to ask about the others.

    Attributes:
        endpoint: where documents are asked about.
        request: what is asked, without a document.
        patience: after how many failures in a row, without one answer between them, the cause is looked for.
    """

    endpoint: Endpoint
    request: Request
    patience: int
    _in_a_row: int = field(default=0, init=False)

    def count_answer(self) -> None:
        """Count an answer, valid or not: the server is there, and takes this kind of request."""
        self._in_a_row = 0

    async def stops(self, error: LLMError) -> bool:
        """Tell whether an error of one document would be the same for all."""
        if isinstance(error, SAME_FOR_ALL):
            return True
        if not isinstance(error, (BadRequest, RetryableError)):
            self.count_answer()
            return False
        self._in_a_row += 1
        if self._in_a_row < self.patience:
            return False
        self._in_a_row = 0
        # A server that is overloaded, or limits rates, is so for all.
        return not isinstance(error, _OF_DOCUMENT_OR_SERVER) or await self._is_without_document(error)

    async def _is_without_document(self, error: LLMError) -> bool:
        """Tell whether the server fails alike without a document. It is asked to count tokens, which is free."""
        try:
            await self.endpoint.client.count_tokens(self.request, timeout_s=_PROBE_TIMEOUT_S)
        except SAME_FOR_ALL:
            return True
        # Limits on counting tokens are of their own, so a 429 or 529 proves nothing.
        except (ServerError, NetworkError):
            return isinstance(error, RetryableError)
        except RetryableError:
            return False
        # The very words, as many servers do not count tokens, and refuse that with a 400 or 404.
        except BadRequest as refused:
            return isinstance(error, BadRequest) and _words(refused) == _words(error)
        return False


def _words(error: LLMError) -> str:
    """Return what the server said, without the id of the request."""
    return str(error).partition(" (request ")[0]
