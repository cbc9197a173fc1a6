"""ClaudeOperator: one question to Claude, in one task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.sdk import BaseOperator

from airflow_llm_provider.errors import AnswerError, LLMError, error_of
from airflow_llm_provider.hooks.arguments import require_sound
from airflow_llm_provider.hooks.checks import Exhausted, OnExhausted, checks_record
from airflow_llm_provider.hooks.claude import ClaudeHook
from airflow_llm_provider.hooks.files import is_file, with_files_read
from airflow_llm_provider.hooks.retry import ClaudeRetryPolicy
from airflow_llm_provider.hooks.settings import DEFAULT_CONNECTION
from airflow_llm_provider.triggers.lane import LanePartial, place

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.definitions.mappedoperator import MappedOperator

    from airflow_llm_provider.engine.reply import Reply
    from airflow_llm_provider.engine.run import Engine
    from airflow_llm_provider.engine.tool_calls import ApprovalNeeded
    from airflow_llm_provider.hooks.call import Call


CALL_ARGUMENTS = (
    *("prompt", "inputs", "messages", "system", "model", "output_type", "max_tokens", "effort", "thinking"),
    *("stop_sequences", "metadata", "extra_body", "validators", "max_repairs", "min_confidence", "retry"),
    *("fallbacks", "fall_back_on", "too_long", "max_input_tokens", "output", "reuse", "version", "tags"),
    *("tools", "max_tool_turns", "max_tool_s", "max_tool_usd", "approval", "claude_conn_id"),
    *("on_exhausted", "default", "dead_letters"),
    *("budget_usd", "run_budget_usd", "on_exceeded", "budget_notifiers"),
)
_ATTRIBUTES = {"output": "output_path"}  # BaseOperator.output is the XCom


class Inputs(Mapping[str, Any]):
    """Upstream data by name: Airflow does not show it under Rendered Templates."""

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        self._inputs = dict(inputs)

    def __getitem__(self, name: str) -> Any:
        return self._inputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._inputs)

    def __len__(self) -> int:
        return len(self._inputs)

    def __repr__(self) -> str:
        return f"<inputs: {', '.join(self)}>"


class ClaudeOperator(BaseOperator):
    """Ask Claude one question; a retry, a clear or another task of the run asks nothing that was answered.

    prompt: the question, typed by the DAG author; Airflow templates work here.
    inputs: data from upstream by name: text, content blocks (PDF, image), or anything JSON can hold, from
        XComs or as literals. It goes in as data, one document block each titled with its name, before the
        prompt; what comes from an XCom is never rendered.
        A path object (Path, ObjectStoragePath) is a file, read as the documents operator reads it.
    roots: folders or URL prefixes below which files that other tasks name may be read; None: [llm] roots.
    messages: earlier turns of a conversation, as the Messages API takes them; they come before all else.
    system: the system prompt; templates work here too.
    model: a tier (`fast`, `balanced`, `strong`) or a model id, None for the connection's default tier; or a
        list to escalate through: the first answers, the next is asked where the answer is invalid or refused,
        or unsure.
    output_type: None or `str` for text; a pydantic model, enum, list, union or any other type pydantic knows;
        or a JSON schema as a dict.
    max_tokens: the longest answer; a long one streams under the hood.
    effort, thinking, stop_sequences, metadata, extra_body: as the Messages API takes them.
    min_confidence: an answer that states a `confidence` (a field, 0 to 1) below it is unsure.
    validators: functions of the validated value, and of the text asked about where they have a second parameter
        `source`, that return None or a complaint, which is sent back to the model; they may raise BusinessError
        where asking again is no use. And Judges, asked once all functions have passed; see `validators`.
    max_repairs: how often an invalid answer is sent back with what is wrong.
    on_exhausted: what is done when that was in vain: `fail`; `skip`; `default` (the task returns `default`);
        `review` (it returns the last answer as it is, for an ApprovalSensor downstream); or `dead_letter` (it
        is written into the folder `dead_letters`, and the task is skipped).
    default, dead_letters: for these: what an answer would be; an absolute path or URL.
    tools: typed functions that the model may call, plain or made by `airflow_llm_provider.tools.tool`, which marks
        those that are irreversible or need approval. What they return and raise is told to the model.
    max_tool_turns, max_tool_s, max_tool_usd: how many of its replies may call tools, how many seconds that may
        take, and what the answer may cost in all (None: no bound); past one of them the task fails.
    approval: of tools that need it, and budgets that ask: `response_timeout` (a timedelta, after which it is a no;
        None: never), `assigned_users` and `notifiers`, as ApprovalSensor takes them.
    retry: policies by class of error, such as `{"rate_limit": {"attempts": 3}}`; see engine.retry.
    fallbacks: tiers, model ids or `conn:ID` (another connection), asked in turn when the model can't be had;
        None: the connection's own.
    fall_back_on: the classes of error that lead to a fallback.
    too_long, max_input_tokens: what to do with an input that can't be read at once: `fail`, `truncate` or
        `map_reduce`; see engine.long.
    output: an absolute path or object storage URL that the answer is written to, text as it is and data as
        JSON; the task then returns the path. Needed for answers over 1 MB.
    reuse: whose answers may be taken: `run` (this DAG run's), `always` (any run's) or `never`.
    version: change it to ask anew.
    budget_usd: what the task instance may cost, over all its tries, in US dollars; None: no cap of its own.
    run_budget_usd: what the whole DAG run may cost, its other tasks counted.
    on_exceeded: what becomes of the task when a call could cost more than either has left: `fail`, `skip`, or
        `ask`: a person is asked to raise it, as `approval` says.
    budget_notifiers: Airflow notifiers, told when 50, 80 and 95 % of a budget are spent.
    tags: kept with the call, beside the DAG's own.
    claude_conn_id: the Airflow connection, of type `claude`.
    deferrable: wait in the triggerer, from start to end, and hold no worker. What needs Python of the DAG file
        (validators, an output_type defined in it) or of a worker (outlets, callbacks) runs in a worker, and
        says so when the DAG is parsed.

    Returns the text or the validated data. A pydantic model from an importable module arrives downstream as
    that type, one defined in the DAG file as a dict. What the call took is a second XCom, `llm_usage`; what was
    wrong with answers, where anything was, a third, `llm_checks`: `valid`, `complaints`, `repairs`.
    Raises AirflowFailException for what no retry can mend.
    """

    template_fields: Sequence[str] = (
        "prompt",
        "inputs",
        "messages",
        "system",
        "model",
        "output_path",
        "dead_letters",
        "version",
        "budget_usd",
        "run_budget_usd",
        "claude_conn_id",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"prompt": "md", "system": "md"}
    deserialization_allowed_class_fields = ("output_type",)
    ui_color = "#f0e4d8"
    starts_in_worker: ClassVar[bool] = False
    _said: Mapping[str, Any] | None = None  # what Airflow resumed the task with, until it is kept

    def __init__(
        self,
        *,
        prompt: str,
        inputs: Mapping[str, Any] | None = None,
        roots: Sequence[str] | str | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        system: str | None = None,
        model: str | Sequence[str] | None = None,
        output_type: Any = None,
        max_tokens: int = 4096,
        effort: str | None = None,
        thinking: Mapping[str, Any] | None = None,
        stop_sequences: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        validators: Sequence[Any] = (),
        max_repairs: int = 3,
        on_exhausted: OnExhausted = "fail",
        default: Any = None,
        dead_letters: str | None = None,
        min_confidence: float | None = None,
        tools: Sequence[Callable[..., Any]] = (),
        max_tool_turns: int = 10,
        max_tool_s: float = 600.0,
        max_tool_usd: float | None = None,
        approval: Mapping[str, Any] | None = None,
        retry: Mapping[str, Any] | None = None,
        fallbacks: Sequence[str] | None = None,
        fall_back_on: Sequence[str] = ("network", "overloaded", "server"),
        too_long: Literal["fail", "truncate", "map_reduce"] = "fail",
        max_input_tokens: int | None = None,
        output: str | PurePath | None = None,
        reuse: Literal["always", "run", "never"] = "run",
        version: str = "",
        budget_usd: float | str | None = None,
        run_budget_usd: float | str | None = None,
        on_exceeded: Literal["fail", "skip", "ask"] = "fail",
        budget_notifiers: Sequence[Any] = (),
        tags: Sequence[str] = (),
        deferrable: bool = False,
        claude_conn_id: str = DEFAULT_CONNECTION,
        **kwargs: Any,
    ) -> None:
        if "retry_policy" not in (kwargs.get("default_args") or {}):
            kwargs.setdefault("retry_policy", ClaudeRetryPolicy())
        super().__init__(**kwargs)
        self.prompt = prompt
        self._inputs: Any = inputs or {}
        self.allowed_roots = roots  # BaseOperator.roots are the first tasks of the DAG
        # In a mapped task the author may have typed them, or another task may have named them: that takes roots.
        is_mapped = getattr(self, "_BaseOperator__from_mapped", False)
        given = self._inputs if isinstance(self._inputs, Mapping) and not is_mapped else {}
        self._typed_files = frozenset(name for name, value in given.items() if is_file(value))
        self.messages = messages or []
        self.system = system
        self.model = model
        self.output_type = output_type
        self.max_tokens = max_tokens
        self.effort = effort
        self.thinking = thinking
        self.stop_sequences = stop_sequences
        self.metadata = metadata
        self.extra_body = extra_body
        self.validators = validators
        self.max_repairs = max_repairs
        self.on_exhausted = on_exhausted
        self.default = default
        self.dead_letters = dead_letters
        self.min_confidence = min_confidence
        self.tools = tools
        self.max_tool_turns = max_tool_turns
        self.max_tool_s = max_tool_s
        self.max_tool_usd = max_tool_usd
        self.approval = approval or {}
        self.retry = retry
        self.fallbacks = fallbacks
        self.fall_back_on = fall_back_on
        self.too_long = too_long
        self.max_input_tokens = max_input_tokens
        # BaseOperator.output is the XCom.
        self.output_path = str(output) if isinstance(output, PurePath) else output
        self.reuse = reuse
        self.version = version
        self.budget_usd = budget_usd
        self.run_budget_usd = run_budget_usd
        self.on_exceeded = on_exceeded
        self.budget_notifiers = budget_notifiers
        self.tags = tags
        self.deferrable = deferrable
        self.claude_conn_id = claude_conn_id
        self.require_sound({**self.arguments(), "deferrable": deferrable})
        Exhausted(on_exhausted=on_exhausted, default=default, dead_letters=dead_letters).require_consistent()
        if deferrable and not self.starts_in_worker and not is_mapped:  # a mapped one has its lane already
            place(self, self.arguments(), push=self.do_xcom_push, call_arguments=CALL_ARGUMENTS)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that make the call."""
        return {name: getattr(self, _ATTRIBUTES.get(name, name)) for name in CALL_ARGUMENTS}

    @classmethod
    def partial(cls, **kwargs: Any) -> LanePartial:
        """Return a partial whose `.expand()` chooses the lane, with its arguments checked when the DAG is parsed."""
        cls.require_sound(kwargs)
        return LanePartial.of(super().partial(**kwargs))

    @classmethod
    def require_sound(cls, arguments: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError, when the DAG is parsed, for arguments that can't be meant."""
        require_sound(arguments, templated=(*cls.template_fields, "prompt"))

    @classmethod
    def place_mapped(cls, task: MappedOperator) -> None:
        """Choose the lane of a mapped task."""
        given = {**(task.dag.default_args if task.dag else {}), **task.partial_kwargs}
        if given.get("deferrable") and not cls.starts_in_worker:
            arguments = {name: value for name, value in given.items() if name in CALL_ARGUMENTS}
            place(task, arguments, push=given.get("do_xcom_push", True), call_arguments=CALL_ARGUMENTS)

    @property
    def inputs(self) -> Any:
        """Data from upstream, by name."""
        return self._inputs

    @inputs.setter
    def inputs(self, inputs: Mapping[str, Any]) -> None:
        # The constructor sets `_inputs`, so that Airflow sees what to resolve; once resolved, it is data.
        self._inputs = Inputs(inputs) if isinstance(inputs, Mapping) else inputs

    @cached_property
    def hook(self) -> ClaudeHook:
        """The hook of the connection."""
        return ClaudeHook(self.claude_conn_id)

    def execute(self, context: Context) -> Any:
        """Ask in this worker, and return the answer."""
        from airflow_llm_provider.engine.bill import bill
        from airflow_llm_provider.engine.tool_calls import ApprovalNeeded
        from airflow_llm_provider.ledger.savings import keep_saving
        from airflow_llm_provider.pricing import usd

        files = with_files_read(self.inputs, roots=self.allowed_roots, typed=self._typed_files)
        call = self.call(files)
        settings = self.hook.all_settings(call.routing)
        scope = self.hook.scope(context, tuple(self.tags))

        async def work(engine: Engine) -> tuple[Reply | AnswerError, Any]:
            try:
                reply = await call.ask(engine, settings, scope)
            except AnswerError as error:
                self.log.info("%s", await bill(engine, scope))
                return error, None
            if reply.strong_alone_micro_usd is not None:
                cost, alone = reply.cost_micro_usd or 0, reply.strong_alone_micro_usd
                self.log.info(
                    "%s answered: $%s in all, about $%s with the last model alone",
                    reply.model,
                    usd(cost),
                    usd(alone),
                )
            delivered = await asyncio.to_thread(call.delivered, reply)
            await keep_saving(engine.ledger, call.saving(reply, scope))
            self.log.info("%s", await bill(engine, scope))
            return reply, delivered

        try:
            outcome, answer = self.hook.run(work, context=context)
        except ApprovalNeeded as needed:
            self._put_to_a_person(needed, context)
            return ClaudeOperator.execute(self, context)
        if outcome.complaints:
            context["ti"].xcom_push(key="llm_checks", value=checks_record(outcome))
        if isinstance(outcome, AnswerError):
            context["ti"].xcom_push(key="llm_usage", value=outcome.usage)
            return self._instead(outcome, call, context)
        context["ti"].xcom_push(key="llm_usage", value=outcome.usage_record())
        return answer

    def call(self, inputs: Mapping[str, Any]) -> Call:
        """Return the call to make, with the files among its inputs read."""
        from airflow_llm_provider.hooks.call import Call

        return Call.of({**self.arguments(), "inputs": inputs})

    def _instead(self, error: AnswerError, call: Call, context: Context) -> Any:
        """Do what `on_exhausted` says."""
        try:
            return call.instead(error, context)
        except LLMError as raised:
            raise self.hook.for_airflow(raised, context) from None

    def decided(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Go on with what a person said of tool calls: up to them, nothing is asked or run again."""
        self._said = event
        return self.execute(context)

    def budget_decided(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Go on with what a person said of a budget."""
        from airflow_llm_provider.approvals import spending

        spending.keep_raise(event, hook=self.hook, context=context)
        return self.execute(context)

    def _put_to_a_person(self, needed: ApprovalNeeded, context: Context) -> None:
        """Keep what was said of these calls, or park the task until something is."""
        from airflow_llm_provider.approvals.review import decision, park
        from airflow_llm_provider.approvals.tools import question

        review, said = question(needed, self.approval), self._said
        if said is None:
            park(
                review,
                hook=self.hook,
                context=context,
                resume="decided",
                notifiers=self.approval.get("notifiers", ()),
            )
        else:
            self._said = None
            decision(review, said, hook=self.hook, context=context)

    def resume(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Go on where the trigger could not: raise what it met, or make the call here."""
        if reason := event.get("needs_worker"):
            self.log.warning("Runs in a worker although deferrable=True: %s.", reason)
            return ClaudeOperator.execute(self, context)
        raise self.hook.for_airflow(error_of(event), context)

    def on_kill(self) -> None:
        """Drop the call in flight."""
        self.hook.cancel()
