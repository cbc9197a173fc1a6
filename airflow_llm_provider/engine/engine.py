"""The engine: a question is asked until there is a valid answer or a reason why there is none."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from airflow_llm_provider.engine.calls import Call, Calls, add_up, last_answer
from airflow_llm_provider.engine.checks import judge_request, require_criteria_met, require_no_complaint
from airflow_llm_provider.engine.concurrency import for_each
from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.repair import Repair, SourceRepairs, repair
from airflow_llm_provider.engine.reply import Message, Reply, require_complete
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.engine.retry import Policies, policies
from airflow_llm_provider.engine.terms import Terms
from airflow_llm_provider.engine.tool_loop import Buy, Conversation
from airflow_llm_provider.engine.unread import UnreadCheck
from airflow_llm_provider.errors import AnswerError, BusinessError, InvalidOutput, LLMError, TerminalError
from airflow_llm_provider.ledger.records import CallScope, Reopening, Sighting
from airflow_llm_provider.options import Options, Route
from airflow_llm_provider.pricing import Prices
from airflow_llm_provider.validators import Judge

CONNECTION_PREFIX = "conn:"
"""Before the id of a connection, where a list of fallbacks names one instead of a model."""

log = logging.getLogger(__name__)

_LONGEST_LOGGED = 300  # characters of a complaint; the ledger has it whole
MOST_TOKENS = 64_000  # what any current model can answer at the most


@dataclass(kw_only=True)
class Engine(Calls):
    """Asks until there is a valid answer or a reason why there is none; its calls are made by Calls."""

    source_repairs: SourceRepairs = dataclasses.field(default_factory=SourceRepairs)
    unread: UnreadCheck = dataclasses.field(default_factory=UnreadCheck, repr=False)

    async def ask(self, request: Request, terms: Terms) -> Reply:
        """Return a valid answer to `request`, paying for each of its calls at most once.

        An invalid answer is sent back with the complaint. Each repair, and each verdict of a judge, is a request like
        any other, so a retry of the task takes them all from the ledger.

        Raises:
            AnswerError: what was paid for is not an answer; repairs, escalation and other attempts did not help.
            LLMError: nothing was paid for, and why.
        """
        if terms.needs_source and terms.source is None:
            raise TerminalError(
                "A validator compares the answer with the text that was asked about, and there is no such text: pages "
                "and images are sent as they are. Read them as text (Reading(pdf='text')), give the answer its "
                "source=, or use validators that look at the answer alone. Nothing was sent."
            )
        try:
            return await self._ask_models(request, terms)
        except AnswerError as error:
            # An answer that was paid for just now is not asked again: `retry_dead` is about dead letters of earlier
            # runs.
            if not (terms.retry_dead and error.reused):
                raise
            # The repairs are reopened too. If the new answer has the same fault, the old repair would come from the
            # ledger and fail again.
            for fingerprint in error.fingerprints:
                await self.ledger.record(Reopening(fingerprint, terms.scope))
        return await self._ask_models(request, terms)

    async def recall(self, sighting: str, terms: Terms, *, final: bool) -> Reply | None:
        """Return the valid answer that an unchanged document got, without reading the document; None for none.

        Args:
            sighting: the hash of prompt, path and modification stamp, as DocumentPrompt.sighting makes it.
            terms: what the answer must be.
            final: raise AnswerError for a paid answer that is not valid, rather than return None. For callers who
                would not ask again anyway.
        """
        if terms.needs_source or terms.judges:
            return None  # checking takes the text, or a request about the answer
        answer = await self.ledger.find_reply_by_sighting(sighting, terms.scope, terms.options.reuse)
        if answer is None:
            return None
        call = Call.from_ledger(answer, purpose="answer")
        try:
            value = _accepted(call.message, terms)
        except AnswerError as error:
            if final:
                error.fingerprints, error.reused = (answer.fingerprint,), True
                error.complaints = (error.complaint,)
                raise
            return None
        route = self._route(terms.options)
        # An unsure answer leads to a stronger model, and only `ask` may send a request.
        if route.escalate and terms.options.route.is_unsure(value):
            return None
        reply = add_up(value, [call], trace_id=terms.scope.trace_id)
        return dataclasses.replace(reply, strong_alone_micro_usd=route.alone(call, self.endpoint.prices))

    def sight(self, sighting: str, request: Request) -> None:
        """Remember what a document in this state is asked."""
        self.ledger.record_later(Sighting(sighting, request.fingerprint))

    async def map(
        self,
        requests: Iterable[Request],
        done: Callable[[int, Reply | LLMError], None],
        terms: Terms,
        *,
        max_in_flight: int = 256,
    ) -> None:
        """Ask many, and hand each outcome to `done(index, outcome)` as it comes; an error costs the others nothing.

        Args:
            requests: may be a generator: it is drawn from only as fast as there is room.
            done: gets the number of the request, from 0, and its answer or error.
            terms: of all of them.
            max_in_flight: how many are asked at once.
        """

        async def one(numbered: tuple[int, Request]) -> None:
            index, request = numbered
            outcome: Reply | LLMError
            try:
                outcome = await self.ask(request, terms)
            # An exception would end `for_each`, and with it all other requests.
            except LLMError as error:
                outcome = error
            done(index, outcome)

        await for_each(enumerate(requests), one, limit=max_in_flight)

    def _route(self, options: Options) -> _Route:
        """Return the models that the options name, as this engine's endpoints know them."""
        names = options.route.fallbacks
        return _Route(
            escalate=[self.endpoint.model(name) for name in options.models[1:]],
            fallbacks=self.endpoint.fallbacks if names is None else names,
            policies=policies(options.route.retry) if options.route.retry else self.policies,
        )

    def fallback(self, name: str, options: Options) -> tuple[str, Prices]:
        """Return the model of a fallback, and the prices of the connection that it is asked through."""
        if not name.startswith(CONNECTION_PREFIX):
            return self.endpoint.model(name), self.endpoint.prices
        other = self.others[name.removeprefix(CONNECTION_PREFIX)]
        return other.model(options.models[0]), other.prices

    async def _ask_models(self, request: Request, terms: Terms) -> Reply:
        """Ask the first model of the route; where its answer is not valid or unsure, the next."""
        chain: list[Call] = []
        route = self._route(terms.options)
        models = (request.model, *route.escalate)
        for level, model in enumerate(models):
            is_last = level + 1 == len(models)
            try:
                for target in self._targets(request, model, level, terms, route):
                    try:
                        value = await self._ask_until_valid(request, terms, chain, target, route.policies)
                        break
                    except LLMError as error:
                        if target.is_last or error.kind not in terms.options.route.fall_back_on:
                            raise
            # It is not an LLMError, so the fallbacks above do not catch it. The answer may be right, and another
            # model would be paid for no reason.
            except _Unjudged as unjudged:
                raise unjudged.error from None
            except AnswerError as error:
                if is_last:
                    _note_cost(error, chain, terms)
                    raise
                continue
            if is_last or not terms.options.route.is_unsure(value):
                reply = add_up(value, chain, trace_id=terms.scope.trace_id)
                # A given answer has no tokens, so nothing follows from it about the cost of the last model.
                if not route.escalate or terms.given is not None:
                    return reply
                alone = route.alone(chain[0], self.endpoint.prices)
                return dataclasses.replace(reply, escalations=level, strong_alone_micro_usd=alone)
        raise AssertionError("the last model answers or raises")

    def _targets(
        self, request: Request, model: str, level: int, terms: Terms, route: _Route
    ) -> Iterator[_Target]:
        """Yield where one level of the route is asked: its model, then the fallbacks in turn."""
        last = len(route.fallbacks)
        yield _Target(model=model, address=request.endpoint, is_last=last == 0)
        for number, name in enumerate(route.fallbacks, start=1):
            is_last = number == last
            if not name.startswith(CONNECTION_PREFIX):
                yield _Target(model=self.endpoint.model(name), address=request.endpoint, is_last=is_last)
                continue
            connection_id = name.removeprefix(CONNECTION_PREFIX)
            other = self.others[connection_id]
            yield _Target(
                model=other.model(terms.options.models[level]),
                address=other.address,
                connection_id=connection_id,
                is_last=is_last,
            )

    async def _ask_until_valid(
        self, request: Request, terms: Terms, chain: list[Call], target: _Target, policies: Policies
    ) -> Any:
        """Ask one model until its answer is valid or its attempts are used up; the calls made join `chain`."""
        scope = terms.scope
        request = _sent_to(request, target.model, target.address)
        if target.connection_id is not None:
            scope = dataclasses.replace(scope, connection_id=target.connection_id)
        asked: list[str] = []
        failed: Counter[str] = Counter()
        first = len(chain)

        # A partial, not a function: it adds no frame to the stack of every call.
        obtain = partial(
            self.obtain,
            scope=scope,
            reuse=terms.options.reuse,
            item_id=terms.item_id,
            policies=policies,
        )

        async def take_turn(request: Request) -> Call:
            if tools:
                tools.require_money(request)
            asked.append(request.fingerprint)
            made = await obtain(request, purpose="tool_turn", parent=_parent(chain))
            chain.append(made)
            return made

        tools = self._conversation(request, terms, scope, take_turn, chain)
        # `cache_first` is not in the fingerprint. So this may change in the middle of a run, and no answer is paid
        # for again.
        # A write for an hour costs twice the input: it never pays off for one document's repairs.
        if self.source_repairs.caching_pays and request.cache_ttl == "5m":
            request = dataclasses.replace(request, cache_first=True)
        fix: Repair | None = None
        with_source = request  # the conversation in which the document stands
        while True:
            if terms.given is not None and not failed:
                chain.append(made := Call.given(terms.given))
            else:
                purpose = "repair" if failed else "escalation" if chain else "answer"
                asked.append(request.fingerprint)
                if tools:
                    tools.require_money(request)
                made = await obtain(request, purpose=purpose, parent=_parent(chain))
                chain.append(made)
                self.source_repairs.count(made, fix)
                if purpose == "answer":
                    self.unread.require_read(request, made.message.usage.input_tokens)
            try:
                # The answer is the reply after the last tool call. A repair has to continue from there.
                if tools:
                    request, made = await tools.finish(request, made)
                # A small repair is a request of its own, without the document. A later repair that needs the document
                # continues the conversation from before it.
                if fix is None or fix.has_source:
                    with_source = request
                if fix:
                    # A small repair returns only the fields at fault. The checks need the whole answer.
                    chain[-1] = made = made.saying(fix.answer(made.message.text, terms.output))
                value = _accepted(made.message, terms)
                # Judges come last, because each of them is a paid call.
                for judge in terms.judges:
                    await self._require_met(judge, made, terms, asked, chain, request.family, tools, policies)
                return value
            except AnswerError as error:
                # A judge's complaint does not hold the answer, and a repair has to show it.
                error.reply_text = error.reply_text or made.message.text
                self.keep_prompt(request, made)
                self.keep_complaint(_complain(chain, error, terms.item_id), error)
                # Counted per kind: a refusal that is asked again does not use up the repairs of an invalid answer.
                failed[error.kind] += 1
                next_request: Request | None
                if failed[error.kind] >= _attempts(error, terms, policies):
                    next_request = None
                elif isinstance(error, InvalidOutput):
                    # With tools, the repair may need to call them again, so it sees the whole conversation.
                    may_be_small = tools is None and (fix is None or fix.has_source)
                    fix = repair(with_source, error, terms.output, framing=terms.framing, small=may_be_small)
                    next_request = fix.request
                else:
                    next_request = _asked_otherwise(request, error)
                if next_request is None:
                    error.fingerprints = tuple(asked)
                    error.reused = not any(call.sends for call in chain[first:])
                    raise
                request = next_request

    async def _require_met(
        self,
        judge: Judge,
        made: Call,
        terms: Terms,
        asked: list[str],
        chain: list[Call],
        family: str,
        tools: Conversation | None,
        policies: Policies,
    ) -> None:
        """Raise InvalidOutput unless the judge finds its criteria met; what was asked joins `asked` and `chain`."""
        request = judge_request(judge, made.message.text, terms.source, framing=terms.framing, family=family)
        if tools:
            tools.require_money(request)
        asked.append(request.fingerprint)
        try:
            verdict = await self.obtain(
                request,
                scope=terms.scope,
                reuse=terms.options.reuse,
                purpose="judge",
                parent=made.attempt_id or None,
                item_id=terms.item_id,
                policies=policies,
            )
        except LLMError as error:
            raise _Unjudged(error) from error
        chain.append(verdict)
        try:
            require_criteria_met(judge, verdict.message)
        # A criterion is not met: a repair can correct that.
        except InvalidOutput:
            raise
        # A repair would change an answer that may be right, so this is not an InvalidOutput.
        except AnswerError as error:
            raise BusinessError(f"The judge gave no verdict: {error}") from None

    def _conversation(
        self, request: Request, terms: Terms, scope: CallScope, take_turn: Buy, spent: Sequence[Call]
    ) -> Conversation | None:
        """Return the conversation that the request opens, where there are tools."""
        if terms.toolbox is None:
            return None
        prices = self._prices(scope)
        # Before the first call, so that nothing is paid under a limit that cannot be kept.
        terms.toolbox.require_price(request, prices)
        return terms.toolbox.conversation(
            ledger=self.ledger,
            scope=scope,
            item_id=terms.item_id,
            sleep=self.sleep,
            buy=take_turn,
            spent=spent,
            prices=prices,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Route:
    """A route with tiers resolved: the models after the first, the fallbacks, and the retries.

    Attributes:
        fallbacks: model names of the own endpoint, or `conn:ID`.
    """

    escalate: Sequence[str]
    fallbacks: Sequence[str]
    policies: Policies

    def alone(self, first: Call, prices: Prices) -> int | None:
        """Return about what the last model would have cost by itself, in micro-USD: the first call at its rates."""
        card = prices.card(self.escalate[-1]) if self.escalate else None
        return card.price_micro_usd(first.message.usage) if card else None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Target:
    """A model to ask; of another connection, where `connection_id` names one."""

    model: str
    address: str
    is_last: bool
    connection_id: str | None = None


def other_connections(route: Route, endpoint: Endpoint) -> list[str]:
    """Return the ids of the other connections that a route falls back to."""
    names = endpoint.fallbacks if route.fallbacks is None else route.fallbacks
    return [name.removeprefix(CONNECTION_PREFIX) for name in names if name.startswith(CONNECTION_PREFIX)]


class _Unjudged(Exception):
    """A judge could not be reached, which is not a reason to ask another model for the answer."""

    def __init__(self, error: LLMError) -> None:
        super().__init__(str(error))
        self.error = error


def _attempts(error: AnswerError, terms: Terms, policies: Policies) -> int:
    """Return how many answers with this class of error are paid for in all."""
    if not isinstance(error, InvalidOutput):
        return policies[error.kind].attempts
    options = terms.options
    if "invalid_output" in options.route.retry:
        return policies["invalid_output"].attempts
    return options.on_invalid.max_repairs + 1


def _sent_to(request: Request, model: str, endpoint: str) -> Request:
    if (request.model, request.endpoint) == (model, endpoint):
        return request  # with the fingerprint it has worked out already
    return dataclasses.replace(request, model=model, endpoint=endpoint)


def _asked_otherwise(request: Request, error: AnswerError) -> Request | None:
    """Return another request that may get an answer; None where there is none."""
    match error.kind:
        case "tool_limit":
            return None
        # The same `max_tokens` would cut the answer off again.
        case "truncation":
            if request.max_tokens >= MOST_TOKENS:
                return None
            return dataclasses.replace(request, max_tokens=min(2 * request.max_tokens, MOST_TOKENS))
        case _:  # an independent answer to the same question
            return dataclasses.replace(request, sample=request.sample + 1)


def _accepted(message: Message, terms: Terms) -> Any:
    """Return the value of a message that is whole, of the right form, and that no function complains of."""
    # First of all checks: an answer that was cut off, or a refusal, may still fit the output type.
    require_complete(message)
    if message.is_damaged:
        raise InvalidOutput(
            "The answer has characters that are not Unicode, such as half of a surrogate pair; U+FFFD stands in their "
            "place. Give the same answer in whole characters.",
            reply_text=message.text,
        )
    value, how = terms.output.read(message.text)
    if how:
        log.info("%sthe answer was %s; nothing is paid for that.", _about(terms.item_id), how)
    for validator in terms.functions:
        require_no_complaint(validator, value, terms.source, terms.output, reply_text=message.text)
    return value


def _complain(chain: list[Call], error: AnswerError, item_id: str | None) -> Call:
    """Log the complaint, and put it into the chain's last answer; return that call."""
    # A judge's verdict stands in the chain after the answer that it is about.
    at = max(number for number, purchase in enumerate(chain) if purchase.purpose != "judge")
    chain[at] = dataclasses.replace(chain[at], complaint=error.complaint)
    # A complaint has one line per field, and a log record should be one line.
    line = " ".join(str(error).split())
    short = line if len(line) <= _LONGEST_LOGGED else f"{line[:_LONGEST_LOGGED]}…"
    log.info("%s%s (%s): %s", _about(item_id), error.kind, chain[at].attempt_id or chain[at].purpose, short)
    return chain[at]


def _note_cost(error: AnswerError, chain: Sequence[Call], terms: Terms) -> None:
    """Put into an error what it took to come to it."""
    if chain:
        spent = add_up(None, chain, trace_id=terms.scope.trace_id)
        error.complaints, error.usage = spent.complaints, spent.usage_record()


def _parent(chain: Sequence[Call]) -> str | None:
    last = last_answer(chain)
    return last.attempt_id or None if last else None


def _about(item_id: str | None) -> str:
    return f"{' '.join(item_id.split())}: " if item_id else ""
