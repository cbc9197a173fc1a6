"""The engine: a question asked until there is a valid answer or a reason why not, and many at a time."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_llm_provider.engine.buyer import Buyer
from airflow_llm_provider.engine.flow import for_each
from airflow_llm_provider.engine.judge import judging, require_met
from airflow_llm_provider.engine.purchase import Purchase, add_up, last_answer
from airflow_llm_provider.engine.repair import Repair, SourceRepairs, repair
from airflow_llm_provider.engine.reply import Message, Reply, require_complete
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.engine.terms import Fallback, Route, Terms
from airflow_llm_provider.engine.tools import Buy, Conversation
from airflow_llm_provider.engine.validate import complaint_of
from airflow_llm_provider.errors import AnswerError, BusinessError, InvalidOutput, LLMError, TerminalError
from airflow_llm_provider.ledger.records import Reopening, Sighting
from airflow_llm_provider.validators import Judge

log = logging.getLogger(__name__)

_LONGEST_LOGGED = 300  # characters of a complaint; the ledger has it whole
MOST_TOKENS = 64_000  # what any current model can answer at the most


@dataclass(kw_only=True)
class Engine(Buyer):
    """Asks, pays once, remembers; see Buyer for its parts.

    route: which models are asked when the request's own is not enough.
    """

    route: Route = dataclasses.field(default_factory=Route)
    source_repairs: SourceRepairs = dataclasses.field(default_factory=SourceRepairs)

    async def ask(self, request: Request, *, retry_dead: bool = False, **terms: Any) -> Reply:
        """Return a valid answer to `request`, buying each of its calls at most once.

        terms: the fields of Terms.
        retry_dead: ask anew what ended badly in an earlier run.

        An invalid answer is sent back with what is wrong; every repair, and every verdict of a judge, is a
        request like any other, so a retry replays the chain from the ledger. Raises AnswerError when what was
        paid is no answer, and what sending raised when nothing was.
        """
        asked = Terms(**terms)
        if asked.needs_source and asked.source is None:
            raise TerminalError(
                "A validator compares with the text that is asked about, and there is none: pages and images are sent "
                "as they are. Have them read as text (pdf='text'), give an answer its source=, or take validators that "
                "look at the answer alone. Nothing was sent."
            )
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
        if asked.needs_source or asked.judges:
            return None  # it takes the text, or a request about the answer
        answer = await self.ledger.find_reply_by_sighting(sighting, asked.scope, asked.reuse)
        if answer is None:
            return None
        bought = Purchase.from_ledger(answer, purpose="answer")
        try:
            value = _accepted(bought.message, asked)
        except AnswerError as error:
            if final:
                error.fingerprints, error.reused = (answer.fingerprint,), True
                error.complaints = (str(error),)
                raise
            return None
        route = asked.route or self.route
        if route.escalate and route.is_unsure(value):
            return None
        reply = add_up(value, [bought], trace_id=asked.scope.trace_id)
        return dataclasses.replace(reply, strong_alone_micro_usd=route.alone(bought, self.prices))

    def sight(self, sighting: str, request: Request) -> None:
        """Remember what a document in this state is asked."""
        self.ledger.record_later(Sighting(sighting, request.fingerprint))

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
            except _Unjudged as unjudged:
                raise unjudged.error from None
            except AnswerError as error:
                if is_last:
                    _tell(error, chain, terms)
                    raise
                continue
            if is_last or not route.is_unsure(value):
                reply = add_up(value, chain, trace_id=terms.scope.trace_id)
                if not route.escalate or terms.given is not None:
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

        async def buy(request: Request, purpose: str = "tool_turn") -> Purchase:
            if tools:
                tools.require_money(request)
            asked.append(request.fingerprint)
            bought = await self.obtain(
                request,
                client=target.client,
                scope=scope,
                reuse=terms.reuse,
                purpose=purpose,
                parent=_parent(chain),
                item_id=terms.item_id,
                policies=terms.policies,
            )
            chain.append(bought)
            return bought

        tools = self._conversation(request, dataclasses.replace(terms, scope=scope), buy, chain)
        if self.source_repairs.caching_pays:
            request = dataclasses.replace(request, cache_first=True)
        fix: Repair | None = None
        with_source = request  # the conversation in which the document stands
        while True:
            if terms.given is not None and not failed:
                chain.append(bought := Purchase.given(terms.given))
            else:
                bought = await buy(request, "repair" if failed else "escalation" if chain else "answer")
                self.source_repairs.count(bought, fix)
            try:
                if tools:
                    request, bought = await tools.finish(request, bought)
                if fix is None or fix.has_source:
                    with_source = request
                if fix:
                    chain[-1] = bought = bought.saying(fix.answer(bought.message.text, terms.output))
                value = _accepted(bought.message, terms)
                for judge in terms.judges:
                    await self._require_met(judge, bought, terms, asked, chain, request.family, tools)
                return value
            except AnswerError as error:
                error.reply_text = error.reply_text or bought.message.text
                self.keep_prompt(request, bought)
                self.keep_complaint(_complain(chain, error, terms.item_id), error)
                failed[error.kind] += 1
                otherwise: Request | None
                if failed[error.kind] >= self._attempts(error, terms):
                    otherwise = None
                elif isinstance(error, InvalidOutput):
                    # With tools, the answer may take another look.
                    may_be_small = tools is None and (fix is None or fix.has_source)
                    fix = repair(with_source, error, terms.output, framing=terms.framing, small=may_be_small)
                    otherwise = fix.request
                else:
                    otherwise = _asked_otherwise(request, error)
                if otherwise is None:
                    error.fingerprints = tuple(asked)
                    error.reused = not any(purchase.sends for purchase in chain[first:])
                    raise
                request = otherwise

    async def _require_met(
        self,
        judge: Judge,
        bought: Purchase,
        terms: Terms,
        asked: list[str],
        chain: list[Purchase],
        family: str,
        tools: Conversation | None,
    ) -> None:
        """Raise InvalidOutput unless the judge finds its criteria met; what was asked joins `asked` and `chain`."""
        request = judging(judge, bought.message.text, terms.source, framing=terms.framing, family=family)
        if tools:
            tools.require_money(request)
        asked.append(request.fingerprint)
        try:
            verdict = await self.obtain(
                request,
                scope=terms.scope,
                reuse=terms.reuse,
                purpose="judge",
                parent=bought.attempt_id or None,
                item_id=terms.item_id,
                policies=terms.policies,
            )
        except LLMError as error:
            raise _Unjudged(error) from error
        chain.append(verdict)
        try:
            require_met(judge, verdict.message)
        except InvalidOutput:
            raise
        except AnswerError as error:
            raise BusinessError(f"The judge gave no verdict: {error}") from error

    def _conversation(
        self, request: Request, terms: Terms, buy: Buy, spent: Sequence[Purchase]
    ) -> Conversation | None:
        """Return the conversation that the request opens, where there are tools."""
        if terms.toolbox is None:
            return None
        prices = self._prices(terms.scope)
        terms.toolbox.require_price(request, prices)
        return terms.toolbox.conversation(
            ledger=self.ledger,
            scope=terms.scope,
            item_id=terms.item_id,
            sleep=self.sleep,
            buy=buy,
            spent=spent,
            prices=prices,
        )

    def _attempts(self, error: AnswerError, terms: Terms) -> int:
        if isinstance(error, InvalidOutput):
            return terms.max_repairs + 1
        return (terms.policies or self.policies)[error.kind].attempts


class _Unjudged(Exception):
    """A judge could not be had: no reason to ask another model for the answer."""

    def __init__(self, error: LLMError) -> None:
        super().__init__(str(error))
        self.error = error


def _sent_to(request: Request, model: str, endpoint: str) -> Request:
    if (request.model, request.endpoint) == (model, endpoint):
        return request  # with the fingerprint it has worked out already
    return dataclasses.replace(request, model=model, endpoint=endpoint)


def _asked_otherwise(request: Request, error: AnswerError) -> Request | None:
    """Return the request that may get what this one did not; None where there is none."""
    match error.kind:
        case "tool_limit":
            return None
        case "truncation":
            if request.max_tokens >= MOST_TOKENS:
                return None
            return dataclasses.replace(request, max_tokens=min(2 * request.max_tokens, MOST_TOKENS))
        case _:  # an independent answer to the same question
            return dataclasses.replace(request, sample=request.sample + 1)


def _accepted(message: Message, terms: Terms) -> Any:
    """Return the value of a message that is whole, of the right form, and that no function complains of."""
    require_complete(message)
    value, how = terms.output.read(message.text)
    if how:
        log.info("%sthe answer was %s; nothing is paid for that.", _about(terms.item_id), how)
    for validator in terms.functions:
        if complaint := complaint_of(validator, value, terms.source):
            raise InvalidOutput(
                complaint.message,
                reply_text=message.text,
                fields=complaint.fields,
                needs_source=complaint.needs_source,
            )
    return value


def _complain(chain: list[Purchase], error: AnswerError, item_id: str | None) -> Purchase:
    """Say in the log, and in the chain, what is wrong with its last answer; return that."""
    at = max(number for number, purchase in enumerate(chain) if purchase.purpose != "judge")
    chain[at] = dataclasses.replace(chain[at], complaint=str(error))
    told = " ".join(str(error).split())
    short = told if len(told) <= _LONGEST_LOGGED else f"{told[:_LONGEST_LOGGED]}…"
    log.info("%s%s (%s): %s", _about(item_id), error.kind, chain[at].attempt_id or chain[at].purpose, short)
    return chain[at]


def _tell(error: AnswerError, chain: Sequence[Purchase], terms: Terms) -> None:
    """Put into an error what it took to come to it."""
    if chain:
        spent = add_up(None, chain, trace_id=terms.scope.trace_id)
        error.complaints, error.usage = spent.complaints, spent.usage_record()


def _parent(chain: Sequence[Purchase]) -> str | None:
    last = last_answer(chain)
    return last.attempt_id or None if last else None


def _about(item_id: str | None) -> str:
    return f"{' '.join(item_id.split())}: " if item_id else ""
