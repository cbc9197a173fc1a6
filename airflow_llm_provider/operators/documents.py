"""ClaudeDocumentsOperator: thousands of documents through Claude in one task, one clean row each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from airflow_llm_provider.errors import TerminalError
from airflow_llm_provider.hooks.arguments import require_sound
from airflow_llm_provider.hooks.claude import ClaudeHook
from airflow_llm_provider.hooks.outcome import failure_of
from airflow_llm_provider.hooks.rendered import amount, flag, number, require_text, run_values
from airflow_llm_provider.hooks.retry import ClaudeRetryPolicy
from airflow_llm_provider.hooks.settings import DEFAULT_CONNECTION
from airflow_llm_provider.hooks.storage import object_storage
from airflow_llm_provider.operators.places import (
    Misplaced,
    is_literal,
    is_mapped_over_a_task,
    readable_roots,
    require_resolvable,
    row_sink,
)
from airflow_llm_provider.operators.rows import Rows
from airflow_llm_provider.options import MAX_FILE_BYTES

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.definitions.mappedoperator import OperatorPartial

    from airflow_llm_provider.documents.document import Document, Rejected
    from airflow_llm_provider.documents.estimate import Estimate
    from airflow_llm_provider.documents.output import RowWriter
    from airflow_llm_provider.documents.pdf import PdfMode
    from airflow_llm_provider.documents.question import Question
    from airflow_llm_provider.documents.run import Run
    from airflow_llm_provider.engine.framing import Framing
    from airflow_llm_provider.engine.run import Engine
    from airflow_llm_provider.engine.validate import OutputType
    from airflow_llm_provider.hooks.routing import Routing
    from airflow_llm_provider.hooks.settings import Settings


class ClaudeDocumentsOperator(BaseOperator):
    """Ask Claude the same about every document, and land one row a document.

    What was paid is in the ledger: a retry, a clear, another run or a backfill asks only about what is new or
    has changed. Documents that can't be answered become dead letters with a reason; they cost the others
    nothing.

    documents: a path, folder or glob; an object storage URL (`s3://conn@bucket/inbox/`); a `.jsonl` or `.csv`
        file, one document a row; or a list of rows (dicts), texts or paths, as a literal or from an XCom.
    prompt, system: typed by the DAG author; Airflow templates work here, and nowhere in the documents.
    output: URL or path of the rows, `.jsonl`, `.csv` or `.parquet` by extension; with a `/` at its end, a folder
        of its own. A mapped task instance writes a part of its own, `rows.part-{map_index}.jsonl`. Dead
        letters, schema and manifest land beside it.
    output_type: a pydantic model or any type pydantic knows; a JSON schema as a dict; None for text. A list
        type lands one row an item.
    model: a tier (`fast`, `balanced`, `strong`) or a model id; None: the connection's default tier; or a list to
        escalate through, the cheapest first, as far as answers are invalid, refused, or unsure.
    min_confidence: an answer that states a `confidence` (a field, 0 to 1) below it is unsure.
    roots: folders or URL prefixes below which files may be read; None: [llm] roots, and where there are none
        either, `documents` itself, if the DAG author typed it.
    strings: whether strings in a list are `text` or `path`s.
    id_field, text_field: the fields of a row that are its id and its text; by default `id`, where a row has one, and
        the whole row. Rows without the fields you name are dead letters.
    pattern: file names to take from a folder, such as `*.txt`; by default every format that can be read.
    pdf: `auto` sends the text of pages that have it and the others as they are; `text`; `native`.
    encoding: of text files without a byte order mark.
    framing: `document` (the API's document blocks) or `tag`, for compatible servers that lack them.
    max_bytes: larger documents are dead letters.
    max_tokens, effort, extra_body: as the Messages API takes them.
    validators: functions of the validated value, and of the document's text where they have a second parameter
        `source`, that return None or a complaint, which is sent back; and Judges; see `validators`.
    max_repairs: how often an invalid answer is sent back with what is wrong; then the document is a dead letter.
    retry, fallbacks, fall_back_on, too_long, max_input_tokens: as for ClaudeOperator.
    max_failed: dead letters that are tolerated: an int is a count, a float a share of the documents found.
        Beyond it the task fails, after all others are done and written.
    max_in_flight: requests at once.
    reuse: whose answers may be taken: `always` (any run's), `run` (this DAG run's) or `never`.
    version: change it to ask everything anew.
    retry_dead: ask dead letters of earlier runs anew.
    limit: ask about so many documents at most; the rest are `pending`.
    dry_run: send nothing; return what would be asked, and what it would take: tokens, price and time.
    budget_usd, run_budget_usd, on_exceeded, budget_notifiers: as for ClaudeOperator. What a budget has no room for is
        `pending`; what is paid is written.
    confirm_above_usd: a likely price above which a person is asked before anything is sent, shown the estimate;
        None: nobody is. A no fails the task; a retry asks nobody again, a clear does.
    approval: of that price, and of a budget that asks: `response_timeout` (a timedelta, after which it is a no;
        None: never), `assigned_users` and `notifiers`, as ApprovalSensor takes them.
    tags: kept with every call, beside the DAG's own.
    claude_conn_id: the Airflow connection, of type `claude`.

    Returns a manifest below 4 KB: paths, counts by outcome, tokens, cost, seconds. Raises AirflowFailException
    for what no retry can mend, and AirflowException where the next try may do better.
    """

    template_fields: Sequence[str] = (
        "documents",
        "prompt",
        "system",
        "output_path",
        "model",
        "allowed_roots",
        "version",
        "limit",
        "is_dry_run",
        "budget_usd",
        "run_budget_usd",
        "confirm_above_usd",
        "claude_conn_id",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"prompt": "md", "system": "md"}
    ui_color = "#f0e4d8"
    _said: Mapping[str, Any] | None = None  # what Airflow resumed the task with

    def __init__(
        self,
        *,
        documents: Any,
        prompt: str,
        output: str | PurePath,
        output_type: Any = None,
        system: str | None = None,
        model: str | Sequence[str] | None = None,
        roots: Sequence[str] | str | None = None,
        strings: Literal["text", "path"] = "text",
        id_field: str = "id",
        text_field: str | None = None,
        pattern: str | Sequence[str] | None = None,
        pdf: PdfMode = "auto",
        framing: Framing = "document",
        encoding: str = "utf-8",
        max_bytes: int = MAX_FILE_BYTES,
        max_tokens: int = 4096,
        effort: str | None = None,
        extra_body: dict[str, Any] | None = None,
        validators: Sequence[Any] = (),
        max_repairs: int = 3,
        min_confidence: float | None = None,
        retry: Mapping[str, Any] | None = None,
        fallbacks: Sequence[str] | None = None,
        fall_back_on: Sequence[str] = ("network", "overloaded", "server"),
        too_long: Literal["fail", "truncate", "map_reduce"] = "fail",
        max_input_tokens: int | None = None,
        max_failed: float = 0,
        max_in_flight: int = 256,
        reuse: Literal["always", "run", "never"] = "always",
        version: str = "",
        retry_dead: bool = False,
        limit: int | str | None = None,
        dry_run: bool | str = False,
        budget_usd: float | str | None = None,
        run_budget_usd: float | str | None = None,
        on_exceeded: Literal["fail", "skip", "ask"] = "fail",
        budget_notifiers: Sequence[Any] = (),
        confirm_above_usd: float | str | None = None,
        approval: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        claude_conn_id: str = DEFAULT_CONNECTION,
        **kwargs: Any,
    ) -> None:
        if "retry_policy" not in (kwargs.get("default_args") or {}):
            kwargs.setdefault("retry_policy", ClaudeRetryPolicy())
        super().__init__(**kwargs)
        self.documents = documents
        self.prompt = prompt
        # BaseOperator.output is the XCom.
        self.output_path = str(output) if isinstance(output, PurePath) else output
        self.output_type = output_type
        self.system = system
        self.model = model
        self.allowed_roots = roots  # BaseOperator.roots are the first tasks of the DAG
        self.strings = strings
        self.id_field = id_field
        self.text_field = text_field
        self.pattern = pattern
        self.pdf = pdf
        self.framing = framing
        self.encoding = encoding
        self.max_bytes = max_bytes
        self.max_tokens = max_tokens
        self.effort = effort
        self.extra_body = extra_body
        self.validators = validators
        self.max_repairs = max_repairs
        self.min_confidence = min_confidence
        self.retry = retry
        self.fallbacks = fallbacks
        self.fall_back_on = fall_back_on
        self.too_long = too_long
        self.max_input_tokens = max_input_tokens
        self.max_failed = max_failed
        self.max_in_flight = max_in_flight
        self.reuse = reuse
        self.version = version
        self.retry_dead = retry_dead
        self.limit = limit
        self.is_dry_run = dry_run  # BaseOperator has a method dry_run()
        self.budget_usd = budget_usd
        self.run_budget_usd = run_budget_usd
        self.on_exceeded = on_exceeded
        self.budget_notifiers = budget_notifiers
        self.confirm_above_usd = confirm_above_usd
        self.approval = approval or {}
        self.tags = tags
        self.claude_conn_id = claude_conn_id
        self.require_sound(vars(self))
        require_resolvable(self.task_id, documents)
        # Known only here: rendering replaces the template by its value.
        self._is_literal = is_literal(documents)
        self._run_values = run_values(prompt, system)

    @classmethod
    def partial(cls, **kwargs: Any) -> OperatorPartial:
        """Return a partial, with its arguments checked when the DAG is parsed."""
        cls.require_sound(kwargs)
        require_resolvable(kwargs["task_id"], kwargs.get("documents"))
        return super().partial(**kwargs)

    @classmethod
    def require_sound(cls, arguments: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError, when the DAG is parsed, for arguments that can't be meant."""
        require_sound(arguments, templated=cls.template_fields)

    @property
    def documents(self) -> Any:
        """What to ask about."""
        return self._documents

    @documents.setter
    def documents(self, documents: Any) -> None:
        # Airflow sets this once more when it has resolved an XCom, in mapped tasks too.
        is_list = isinstance(documents, Sequence) and not isinstance(documents, (str, bytes, Rows))
        self._documents = Rows(documents) if is_list else documents

    @cached_property
    def hook(self) -> ClaudeHook:
        """The hook of the connection."""
        return ClaudeHook(self.claude_conn_id)

    def execute(self, context: Context) -> dict[str, Any]:
        """Ask about the documents, write the rows, and return the manifest."""
        if self._run_values and self.reuse == "always":
            self.log.warning(
                "The prompt contains %s, which differs at every run: every document will be asked and paid again. "
                "If the answer does not depend on it, take it out.",
                ", ".join(self._run_values),
            )
        require_text(self.task_id, "prompt", self.prompt)
        if flag(self.task_id, "dry_run", self.is_dry_run):
            return ClaudeDocumentsOperator.estimate(self, context).as_dict()
        self._require_leave_to_spend(context)
        settings = self.hook.all_settings(self._routing)
        manifest, run = self.hook.run(lambda engine: self._work(engine, settings, context), context=context)
        if failure := failure_of(manifest, run, max_failed=self.max_failed, task_id=self.task_id):
            context["ti"].xcom_push(key="manifest", value=manifest)
            raise self.hook.for_airflow(failure, context) from run.may_heal
        return manifest

    def estimate(self, context: Context, *, paid_for: set[str] | None = None) -> Estimate:
        """Return what `execute` would do and take, sending nothing.

        paid_for: what other estimates of the same range have counted already; this one's join it.
        """
        from airflow_llm_provider.documents.estimate import estimate

        settings = self.hook.all_settings(self._routing)

        return self.hook.run(
            lambda engine: estimate(self._run(engine, settings, context), self._found(), paid_for=paid_for),
            context=context,
        )

    def decided(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        """Go on with what a person said of the price."""
        self._said = event
        return self.execute(context)

    def budget_decided(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        """Go on with what a person said of a budget."""
        from airflow_llm_provider.approvals import spending

        spending.keep_raise(event, hook=self.hook, context=context)
        return self.execute(context)

    def on_kill(self) -> None:
        """Drop the calls in flight; what is settled stays in the ledger."""
        self.hook.cancel()

    @property
    def _routing(self) -> Routing:
        from airflow_llm_provider.hooks.routing import Routing

        return Routing(
            model=self.model,
            min_confidence=self.min_confidence,
            fallbacks=self.fallbacks,
            fall_back_on=self.fall_back_on,
            retry=self.retry,
            max_repairs=self.max_repairs,
        )

    async def _work(
        self, engine: Engine, settings: Mapping[str | None, Settings], context: Context
    ) -> tuple[dict[str, Any], Run]:
        """Do the work, and say what it came to."""
        from airflow_llm_provider.engine.bill import bill

        run = self._run(engine, settings, context)
        with self._sink(context["ti"].map_index) as sink:
            manifest = await run.run(self._found(), sink)
            landed = await asyncio.to_thread(sink.publish, manifest)
        self.log.info("%s", await bill(engine, run.scope))
        return {**manifest, **landed.paths(), "rows": landed.rows}, run

    def _require_leave_to_spend(self, context: Context) -> None:
        """Return when nobody need be asked about the price, or somebody has said yes; else park the task."""
        from airflow_llm_provider.approvals.spending import PriceCheck

        above = amount(self.task_id, "confirm_above_usd", self.confirm_above_usd)
        if above is None:
            return
        with self._sink(context["ti"].map_index):  # nobody is asked for what could not be written
            estimate = ClaudeDocumentsOperator.estimate(self, context)
        check = PriceCheck(estimate=estimate, above_micro_usd=above, approval=self.approval)
        check.require_approval(hook=self.hook, context=context, resume="decided", said=self._said)

    def _run(self, engine: Engine, settings: Mapping[str | None, Settings], context: Context) -> Run:
        from airflow_llm_provider.documents.run import Run
        from airflow_llm_provider.engine.long import LongInput
        from airflow_llm_provider.engine.validate import OutputType
        from airflow_llm_provider.hooks.checks import with_models

        return Run(
            engine=engine,
            scope=self.hook.scope(context, tuple(self.tags)),
            question=self._question(OutputType(self.output_type)),
            reuse=self.reuse,
            retry_dead=self.retry_dead,
            max_in_flight=self.max_in_flight,
            limit=number(self.task_id, "limit", self.limit),
            long=LongInput(too_long=self.too_long, max_input_tokens=self.max_input_tokens),
            terms={
                "validators": with_models(self.validators, self.hook.settings),
                **self._routing.terms(engine, settings),
            },
            log=self.log,
        )

    def _found(self) -> Iterator[Document | Rejected]:
        from airflow_llm_provider.documents.formats import MissingExtra
        from airflow_llm_provider.documents.sources import list_documents

        is_typed = self._is_literal and not is_mapped_over_a_task(self)
        try:
            return list_documents(
                self.documents,
                roots=readable_roots(
                    self.documents, self.allowed_roots, is_typed=is_typed, strings=self.strings
                ),
                id_field=self.id_field,
                text_field=self.text_field,
                pattern=self.pattern,
                strings=self.strings,
                encoding=self.encoding,
                to_path=object_storage,
            )
        except (MissingExtra, TypeError, ValueError) as error:
            raise AirflowFailException(f"{self.task_id}: {error}") from error

    def _sink(self, map_index: int | None) -> RowWriter:
        """Return where rows go; raises AirflowFailException where they can't, before anything is paid for."""
        try:
            return row_sink(
                self.output_path,
                self.documents,
                output_type=self.output_type,
                strings=self.strings,
                map_index=map_index,
            )
        except (Misplaced, TerminalError) as error:  # a place or an output type that can't be
            raise AirflowFailException(f"{self.task_id}: {error}") from error

    def _question(self, output_type: OutputType) -> Question:
        from airflow_llm_provider.documents.question import Question

        settings = self.hook.settings
        return Question(
            prompt=self.prompt,
            system=self.system,
            model=self._routing.first_model(settings),
            output=output_type,
            endpoint=settings.client.endpoint,
            max_tokens=self.max_tokens,
            effort=self.effort,
            extra=self.extra_body or {},
            version=str(self.version),
            framing=self.framing,
            pdf=self.pdf,
            max_bytes=self.max_bytes,
            encoding=self.encoding,
            asked_by=f"{self.dag_id}.{self.task_id}",
        )
