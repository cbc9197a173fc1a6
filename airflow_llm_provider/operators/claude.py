"""ClaudeOperator: one question to Claude, in one task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.exceptions import AirflowFailException

from airflow_llm_provider import _airflow
from airflow_llm_provider._airflow import DeferrablePartial
from airflow_llm_provider.approvals.retries import add_retries, with_retries
from airflow_llm_provider.argument_checks import is_list
from airflow_llm_provider.errors import AnswerError, LLMError, error_of
from airflow_llm_provider.hooks.arguments import require_data
from airflow_llm_provider.hooks.claude import BudgetNeedsPerson
from airflow_llm_provider.hooks.connection import DEFAULT_CONNECTION
from airflow_llm_provider.hooks.files import is_file, with_files_read
from airflow_llm_provider.operators.task import (
    ATTRIBUTES,
    SHARED_TEMPLATE_FIELDS,
    ClaudeTask,
    require_enforceable,
)
from airflow_llm_provider.options import (
    Budget,
    LongInput,
    OnInvalid,
    Options,
    RequestFields,
    Reuse,
    Reviewers,
    Route,
    ToolLimits,
)
from airflow_llm_provider.triggers.deferral import ARGUMENTS, start_in_triggerer

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.definitions.mappedoperator import MappedOperator

    from airflow_llm_provider.engine.reply import Reply
    from airflow_llm_provider.engine.tool_loop import ApprovalNeeded
    from airflow_llm_provider.hooks.question import Question


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


class Turns(Sequence[Any]):
    """Earlier turns of a conversation: Airflow does not show them under Rendered Templates."""

    def __init__(self, turns: Sequence[Any]) -> None:
        self._turns = tuple(turns)

    def __getitem__(self, index: Any) -> Any:
        return self._turns[index]

    def __len__(self) -> int:
        return len(self._turns)

    def __repr__(self) -> str:
        return f"<{len(self)} messages>"


class ClaudeOperator(ClaudeTask):
    """Ask Claude one question.

    A retry, a clear or another task of the DAG run does not pay again for what was answered.

    The task returns the text or the validated data. A pydantic model from an importable module arrives downstream as
    that type, one defined in the DAG file as a dict. A second XCom, `llm_usage`, says what the call took. A third,
    `llm_checks`, says what was wrong with answers, where anything was: `valid`, `complaints`, `repairs`.

    Args:
        prompt: the question, typed by the DAG author; Airflow templates work here.
        inputs: data from upstream by name: text, content blocks (PDF, image), or anything JSON can hold, from XComs or
            as literals. It is sent as data, one document block each with its name as title, before the prompt. What
            comes from an XCom is never rendered as a template. A path object (Path, ObjectStoragePath) is a file, read
            as the documents operator reads it.
        roots: folders or URL prefixes below which files that other tasks name may be read; None: `[llm] roots`.
        messages: earlier turns of a conversation, as the Messages API takes them; they come before everything else.
        system: the system prompt; templates work here, too.
        model: a tier (`fast`, `balanced`, `strong`) or a model id; None: the connection's default tier.
        output_type: None or `str` for text; a pydantic model, enum, list, union or any other type pydantic knows; or a
            JSON schema as a dict.
        validators: functions of the validated value, and of the text that was asked about where they have a second
            parameter `source`. They return None or a complaint, which is sent back to the model; they may raise
            BusinessError where asking again cannot help. And Judges, asked once all functions have passed.
        tools: typed functions that the model may call, plain or made by `tool`, which marks those that are irreversible
            or need approval. What they return and raise is sent to the model.
        route: models to escalate through, confidence, fallbacks and retries; a list of models is enough.
        request: fields of the request, such as RequestFields(max_tokens=8000, effort="low").
        on_invalid: how often an invalid answer is repaired, and what happens when it stays invalid.
        long_input: what happens with an input that the model cannot read at once.
        tool_limits: how many turns, seconds and dollars an answer with tools may take.
        budget: what the task and the DAG run may cost; a number is the task's, in US dollars.
        reviewers: who is asked where a tool needs approval or a budget says `ask`.
        output: an absolute path or object storage URL that the answer is written to, text as it is and data as JSON;
            the task then returns the path. Needed for answers over 1 MB.
        reuse: whose answers may be taken: those of this DAG `run`, of any run (`always`), or none (`never`).
        version: a label; a changed one asks again.
        tags: kept with the call, beside the DAG's own.
        deferrable: wait in the triggerer, from start to end, without a worker. What needs Python of the DAG file
            (validators, an output_type defined in it) or of a worker (outlets, callbacks) runs in a worker, and the log
            says so when the DAG is parsed.
        claude_conn_id: the Airflow connection, of type `claude`.

    Raises:
        AirflowFailException: no retry can help.
        LLMError: a retry may help.
    """

    template_fields: Sequence[str] = (*SHARED_TEMPLATE_FIELDS, "inputs", "messages")
    # Airflow makes an object from an XCom only where its class is allowed. This allows it for the tasks of the DAG.
    deserialization_allowed_class_fields = ("output_type",)
    runs_in_worker: ClassVar[bool] = False
    _decision: Mapping[str, Any] | None = (
        None  # the event that Airflow resumed the task with, until it is kept
    )

    def __init__(
        self,
        *,
        prompt: str,
        inputs: Mapping[str, Any] | None = None,
        roots: Sequence[str] | str | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        system: str | None = None,
        model: str | None = None,
        output_type: Any = None,
        validators: Sequence[Any] = (),
        tools: Sequence[Callable[..., Any]] = (),
        route: Route | Sequence[str] | None = None,
        request: RequestFields | None = None,
        on_invalid: OnInvalid | str | None = None,
        long_input: LongInput | str | None = None,
        tool_limits: ToolLimits | None = None,
        budget: Budget | Decimal | float | str | None = None,
        reviewers: Reviewers | Sequence[str] | str | None = None,
        output: str | PurePath | None = None,
        reuse: Reuse = "run",
        version: str = "",
        tags: Sequence[str] = (),
        deferrable: bool = False,
        claude_conn_id: str = DEFAULT_CONNECTION,
        **kwargs: Any,
    ) -> None:
        super().__init__(**with_retries(kwargs, asks=self.may_ask({"budget": budget, "tools": tools})))
        self.prompt = prompt
        self._inputs: Any = inputs or {}
        self.allowed_roots = roots
        # A file that the author typed may be read without roots; in a mapped task another task may have named it.
        is_mapped = _airflow.is_made_from_mapped(self)
        given = self._inputs if isinstance(self._inputs, Mapping) and not is_mapped else {}
        self._typed_files = frozenset(name for name, value in given.items() if is_file(value))
        self._messages: Any = messages or []
        self.system = system
        self.model = model
        self.output_type = output_type
        self.validators = validators
        self.tools = tools
        self.route = route
        self.request = request
        self.on_invalid = on_invalid
        self.long_input = long_input
        self.tool_limits = tool_limits
        self.budget = budget
        self.reviewers = reviewers
        self.output_path = str(output) if isinstance(output, PurePath) else output
        self.reuse = reuse
        self.version = version
        self.tags = tags
        self.deferrable = deferrable
        self.claude_conn_id = claude_conn_id
        self.require_arguments({**self.arguments(), "roots": roots, "deferrable": deferrable})
        if (
            deferrable and not self.runs_in_worker and not is_mapped
        ):  # `.expand()` has decided for a mapped one
            start_in_triggerer(self, self.arguments(), push=self.do_xcom_push)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that make the call, by name, as they go to the triggerer."""
        return {name: getattr(self, ATTRIBUTES.get(name, name)) for name in ARGUMENTS}

    @property
    def question(self) -> Question:
        """What is asked, with the files among the inputs read."""
        from airflow_llm_provider.hooks.question import Question

        return Question(
            prompt=self.prompt,
            inputs=with_files_read(self.inputs, roots=self.allowed_roots, typed=self._typed_files),
            messages=self.messages,
            system=self.system,
            output_type=self.output_type,
            validators=self.validators,
            tools=self.tools,
        )

    @property
    def options(self) -> Options:
        """How Claude is asked."""
        with self.failing_for_good():
            return Options(
                model=self.model,
                route=Route.of(self.route),
                request=RequestFields.of(self.request),
                on_invalid=OnInvalid.of(self.on_invalid),
                long_input=LongInput.of(self.long_input),
                tool_limits=ToolLimits.of(self.tool_limits),
                budget=Budget.of(self.budget),
                reviewers=Reviewers.of(self.reviewers),
                reuse=self.reuse,
                version=str(self.version),
                output=self.output_path,
                tags=self.tags,
            )

    @classmethod
    def partial(cls, **kwargs: Any) -> DeferrablePartial:
        """Return a partial whose `.expand()` decides where the task runs; its arguments are checked at once."""
        cls.require_arguments(kwargs)
        made = super().partial(**kwargs)
        require_enforceable(made, kwargs)
        if cls.may_ask(kwargs):
            add_retries(made, kwargs)
        return DeferrablePartial.of(made)

    @classmethod
    def may_ask(cls, arguments: Mapping[str, Any]) -> bool:
        """Tell whether a person may be asked, as far as the arguments say when the DAG is parsed."""
        tools = arguments.get("tools") or ()
        needs_approval = is_list(tools) and any(getattr(tool, "needs_approval", False) for tool in tools)
        return needs_approval or super().may_ask(arguments)

    @classmethod
    def start_mapped_in_triggerer(cls, task: MappedOperator) -> None:
        """Decide where the instances of a mapped task run."""
        # `deferrable` and the arguments of the call may also stand in the DAG's default_args.
        given = {**(task.dag.default_args if task.dag else {}), **task.partial_kwargs}
        if given.get("deferrable") and not cls.runs_in_worker:
            arguments = {name: value for name, value in given.items() if name in ARGUMENTS}
            start_in_triggerer(task, arguments, push=given.get("do_xcom_push", True))

    @property
    def inputs(self) -> Any:
        """Data from upstream, by name."""
        return self._inputs

    @inputs.setter
    def inputs(self, inputs: Mapping[str, Any]) -> None:
        # The constructor sets `_inputs`, so that Airflow sees what to resolve; once resolved, it is data.
        self._require_data("inputs", inputs)
        self._inputs = Inputs(inputs or {})

    @property
    def messages(self) -> Any:
        """Earlier turns of the conversation."""
        return self._messages

    @messages.setter
    def messages(self, messages: Sequence[Mapping[str, Any]]) -> None:
        self._require_data("messages", messages)
        self._messages = Turns(messages or ())

    def _require_data(self, name: str, value: Any) -> None:
        """Fail while Airflow resolves the arguments: later, a wrong value would stand under Rendered Templates."""
        try:
            require_data(name, value)
        except ValueError as error:
            raise AirflowFailException(f"{self.task_id}: {error}") from None

    def execute(self, context: Context) -> Any:
        """Ask in this worker, and return the answer."""
        from airflow_llm_provider.engine.tool_loop import ApprovalNeeded

        question, options = self.question, self.options
        try:
            reply: Reply | AnswerError = self.hook.answer(question, options, context)
        except ApprovalNeeded as needed:
            self._ask_for_approval(needed, context)
            # The decision is in the ledger now, and so are the model's earlier replies: the same loop continues behind
            # them. Not `self.execute`: that of a decorator would call the function again, which may return another
            # prompt.
            return ClaudeOperator.execute(self, context)
        except BudgetNeedsPerson as needed:
            raise self.ask_for_budget(needed, context) from None
        except AnswerError as error:
            reply = error
        return self._finish(reply, question, options, context)

    def _finish(
        self, reply: Reply | AnswerError, question: Question, options: Options, context: Context
    ) -> Any:
        """Push what describes the answer, and return the answer or what takes its place."""
        from airflow_llm_provider.hooks.answers import instead, returned, xcoms

        # Pushed before anything raises: a failed answer was paid for as well, and these XComs say what it cost.
        for key, value in xcoms(reply).items():
            context["ti"].xcom_push(key=key, value=value)
        try:
            if isinstance(reply, AnswerError):
                return instead(reply, question, options, context)
            return returned(reply, question, options)
        except LLMError as error:
            raise self.hook.for_airflow(error, context) from None

    def resume_after_approval(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Continue with a person's decision on tool calls: up to them, nothing is asked or run again."""
        self._decision = event
        return self.execute(context)

    def _ask_for_approval(self, needed: ApprovalNeeded, context: Context) -> None:
        """Keep what a person decided on these calls, or park the task until a person has."""
        from airflow_llm_provider.approvals.review import ask, take_answer
        from airflow_llm_provider.approvals.tools import review_of

        review, event = review_of(needed, self.options.reviewers), self._decision
        if event is None:
            ask(review, hook=self.hook, context=context, resume="resume_after_approval")
        else:
            # The decision is about these calls only. The model may make others, which a person has not seen.
            self._decision = None
            take_answer(review, event, hook=self.hook, context=context)

    def resume(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Continue where the trigger could not: raise its error, or make the call here."""
        # Not an error: the call was not made, or a person has to be asked, which a worker can do.
        if reason := event.get("needs_worker"):
            self.log.warning("Runs in a worker although deferrable=True: %s.", reason)
            return ClaudeOperator.execute(self, context)
        raise self.hook.for_airflow(error_of(event), context)
