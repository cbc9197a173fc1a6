"""The engine: a question asked until there is a valid answer or a reason why not, and many at a time."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_llm_provider.engine.buyer import Buyer
from airflow_llm_provider.engine.client import Client
from airflow_llm_provider.engine.flow import for_each
from airflow_llm_provider.engine.purchase import Purchase, add_up
from airflow_llm_provider.engine.reply import Message, Reply, require_complete
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.engine.retry import Policies
from airflow_llm_provider.engine.validate import OutputType, Validator
from airflow_llm_provider.errors import AnswerError, BusinessError, InvalidOutput, LLMError
from airflow_llm_provider.ledger.records import CallScope, Reopening, Reuse, Sighting
from airflow_llm_provider.pricing import Prices

TEXT = OutputType()
_MOST_TOKENS = 64_000  # what any current model can answer at the most


@dataclass(frozen=True, kw_only=True, slots=True)
class Fallback:
    """A model to ask instead; of another connection, where client, endpoint and connection_id say so."""

    model: str
    client: Client | None = None
    endpoint: str | None = None
    connection_id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """Which models are asked.

    escalate: asked in turn after the request's own model, while an answer is none, or unsure.
    min_confidence: below it, an answer that states its `confidence` (a field, 0 to 1) is unsure.
    fallbacks: asked in turn on errors of the kinds `fall_back_on`.
    """

    escalate: Sequence[str] = ()
    min_confidence: float | None = None
    fallbacks: Sequence[Fallback] = ()
    fall_back_on: frozenset[str] = frozenset({"network", "overloaded", "server"})

    def alone(self, first: Purchase, prices: Prices) -> int | None:
        """Return about what the last model would have cost by itself, in micro-USD."""
        card = prices.card(self.escalate[-1]) if self.escalate else None
        return card.price_micro_usd(first.message.usage) if card else None

    def is_unsure(self, value: Any) -> bool:
        """Tell whether an answer states a confidence below the bar."""
        if self.min_confidence is None:
            return False
        stated = value.get("confidence") if isinstance(value, dict) else getattr(value, "confidence", None)
        return isinstance(stated, (int, float)) and stated < self.min_confidence


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """The terms a question is asked on.

    scope: who asks. reuse: whose answers may be taken: `run` (the DAG run's), `always` (any) or `never`.
    output: what an answer must be; validators: what it must satisfy besides.
    max_repairs: how often an answer of the wrong shape is sent back with what is wrong.
    item_id: which document or row it is about.
    policies, route: instead of the engine's own.
    """

    scope: CallScope
    reuse: Reuse = "run"
    output: OutputType = TEXT
    validators: Sequence[Validator] = ()
    max_repairs: int = 0
    item_id: str | None = None
    policies: Policies | None = None
    route: Route | None = None


@dataclass(kw_only=True)
class Engine(Buyer):
    """Asks, pays once, remembers; see Buyer for its parts.

    route: which models are asked when the request's own is not enough.
    """

    route: Route = dataclasses.field(default_factory=Route)

    async def ask(self, request: Request, *, retry_dead: bool = False, **terms: Any) -> Reply:
        """Return a valid answer to `request`, buying each of its calls at most once.

        terms: the fields of Terms.
        retry_dead: ask anew what ended badly in an earlier run.

        An answer of the wrong shape is sent back with what is wrong; every repair is a request like any
        other, so a retry replays the chain from the ledger. Raises AnswerError when what was paid is no
        answer, and what sending raised when nothing was.
        """
        asked = Terms(**terms)
        try:
            return await self._ask_models(request, asked)
        except AnswerError as error:
            if not (retry_dead and error.reused):
                raise
            for fingerprint in error.fingerprints:
                await self.ledger.record(Reopening(fingerprint, asked.scope))
        return await self._ask_models(request, asked)

    async def recall(self, sighting: str, *, final: bool, **terms: Any) -> Reply | None:
        """Return the valid answer an unchanged document got, without reading it; None when there is none.

        final: raise AnswerError when what it got is no answer, rather than None; for when nothing would be
        done about it anyway.
        """
        asked = Terms(**terms)
        answer = await self.ledger.recall(sighting, asked.scope, asked.reuse)
        if answer is None:
            return None
        bought = Purchase.from_ledger(answer, purpose="answer")
        try:
            value = _check(bought.message, asked)
        except AnswerError as error:
            if final:
                error.fingerprints, error.reused = (answer.fingerprint,), True
                raise
            return None
        route = asked.route or self.route
        if route.escalate and route.is_unsure(value):
            return None
        reply = add_up(value, [bought], trace_id=asked.scope.trace_id)
        return dataclasses.replace(reply, strong_alone_micro_usd=route.alone(bought, self.prices))

    def sight(self, sighting: str, request: Request) -> None:
        """Remember what a document in this state is asked."""
        self.ledger.note(Sighting(sighting, request.fingerprint))

    async def map(
        self,
        requests: Iterable[Request],
        done: Callable[[int, Reply | LLMError], None],
        *,
        max_in_flight: int = 256,
        **terms: Any,
    ) -> None:
        """Ask many, `max_in_flight` at a time, and hand each outcome to `done(index, outcome)` as it comes.

        `requests` may be a generator: it is drawn from as there is room. One failure costs the others
        nothing. terms: the fields of Terms.
        """

        async def one(numbered: tuple[int, Request]) -> None:
            index, request = numbered
            outcome: Reply | LLMError
            try:
                outcome = await self.ask(request, **terms)
            except LLMError as error:
                outcome = error
            done(index, outcome)

        await for_each(enumerate(requests), one, limit=max_in_flight)

    async def _ask_models(self, request: Request, terms: Terms) -> Reply:
        """Ask the cheap model first; where its answer won't do, the next."""
        chain: list[Purchase] = []
        route = terms.route or self.route
        models = (request.model, *route.escalate)
        for number, model in enumerate(models):
            is_last = number + 1 == len(models)
            try:
                value = await self._ask_or_fall_back(_sent_to(request, model, request.endpoint), terms, chain)
            except AnswerError:
                if is_last:
                    raise
                continue
            if is_last or not route.is_unsure(value):
                reply = add_up(value, chain, trace_id=terms.scope.trace_id)
                if not route.escalate:
                    return reply
                return dataclasses.replace(
                    reply, escalations=number, strong_alone_micro_usd=route.alone(chain[0], self.prices)
                )
        raise AssertionError("the last model answers or raises")

    async def _ask_or_fall_back(self, request: Request, terms: Terms, chain: list[Purchase]) -> Any:
        """Ask the model, or the first fallback that can be had."""
        route = terms.route or self.route
        *others, last = (Fallback(model=request.model), *route.fallbacks)
        for fallback in others:
            try:
                return await self._ask_until_valid(request, terms, chain, fallback)
            except LLMError as error:
                if error.kind not in route.fall_back_on:
                    raise
        return await self._ask_until_valid(request, terms, chain, last)

    async def _ask_until_valid(
        self, request: Request, terms: Terms, chain: list[Purchase], target: Fallback
    ) -> Any:
        """Ask one model until its answer is valid or its attempts are spent; what was bought joins `chain`."""
        scope = terms.scope
        request = _sent_to(request, target.model, target.endpoint or request.endpoint)
        if target.connection_id is not None:
            scope = dataclasses.replace(scope, connection_id=target.connection_id)
        asked: list[str] = []
        failed: Counter[str] = Counter()
        first = len(chain)
        while True:
            asked.append(request.fingerprint)
            bought = await self.obtain(
                request,
                client=target.client,
                scope=scope,
                reuse=terms.reuse,
                purpose="repair" if len(asked) > 1 else "escalation" if chain else "answer",
                parent=chain[-1].attempt_id if chain else None,
                item_id=terms.item_id,
                policies=terms.policies,
            )
            chain.append(bought)
            try:
                return _check(bought.message, terms)
            except AnswerError as error:
                self.keep_prompt(request, bought)
                failed[error.kind] += 1
                otherwise = _asked_otherwise(request, error, bought.message)
                if otherwise is None or failed[error.kind] >= self._attempts(error, terms):
                    error.fingerprints = tuple(asked)
                    error.reused = not any(purchase.sends for purchase in chain[first:])
                    raise
                request = otherwise

    def _attempts(self, error: AnswerError, terms: Terms) -> int:
        if isinstance(error, InvalidOutput):
            return terms.max_repairs + 1
        return (terms.policies or self.policies)[error.kind].attempts


_REPAIR = """Your answer was not valid:

{complaint}

Answer again, in full, with this put right and everything else kept."""


def _sent_to(request: Request, model: str, endpoint: str) -> Request:
    if (request.model, request.endpoint) == (model, endpoint):
        return request  # with the fingerprint it has worked out already
    return dataclasses.replace(request, model=model, endpoint=endpoint)


def _asked_otherwise(request: Request, error: AnswerError, message: Message) -> Request | None:
    """Return the request that may get what this one did not; None where there is none."""
    match error.kind:
        case "invalid_output":
            return request.followed_by(
                {"role": "assistant", "content": message.text or "(nothing)"},
                {"role": "user", "content": _REPAIR.format(complaint=error)},
            )
        case "truncation":
            if request.max_tokens >= _MOST_TOKENS:
                return None
            return dataclasses.replace(request, max_tokens=min(2 * request.max_tokens, _MOST_TOKENS))
        case _:  # an independent answer to the same question
            return dataclasses.replace(request, sample=request.sample + 1)


def _check(message: Message, terms: Terms) -> Any:
    require_complete(message)
    value = terms.output.parse(message.text)
    for validator in terms.validators:
        if (complaint := _complaint(validator, value)) is not None:
            raise InvalidOutput(complaint, reply_text=message.text)
    return value


def _complaint(validator: Validator, value: Any) -> str | None:
    """Call an author's validator; what it raises is about this answer, and must not end a run of others."""
    name = getattr(validator, "__name__", repr(validator))
    try:
        complaint = validator(value)
    except LLMError:
        raise
    except Exception as error:
        raise BusinessError(f"The validator {name} raised {type(error).__name__}: {error}") from error
    if complaint is not None and not isinstance(complaint, str):
        raise BusinessError(
            f"The validator {name} returned {complaint!r}: return None, or a complaint as text."
        )
    return complaint
