"""ClaudeDocumentsOperator: thousands of documents through Claude in one task, one clean row per document."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, get_args

from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from airflow_llm_provider.approvals.retries import add_retries, with_retries
from airflow_llm_provider.argument_checks import InvalidArgument, comes_later, message_at_run_time, require
from airflow_llm_provider.errors import BudgetAsks, DocumentUnread, TerminalError
from airflow_llm_provider.hooks.arguments import read_amount, read_count, read_flag, require_text, run_values
from airflow_llm_provider.hooks.claude import BudgetNeedsPerson
from airflow_llm_provider.hooks.connection import DEFAULT_CONNECTION
from airflow_llm_provider.hooks.files import object_storage
from airflow_llm_provider.operators.document_io import (
    Misplaced,
    Rows,
    is_literal,
    is_mapped_over_a_task,
    readable_roots,
    require_possible,
    require_resolvable,
    row_sink,
)
from airflow_llm_provider.operators.task import SHARED_TEMPLATE_FIELDS, ClaudeTask, require_enforceable
from airflow_llm_provider.options import (
    Budget,
    LongInput,
    OnInvalid,
    Options,
    Reading,
    RequestFields,
    Reuse,
    Reviewers,
    Route,
)

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.definitions.mappedoperator import OperatorPartial

    from airflow_llm_provider.documents.document import Document, Rejected
    from airflow_llm_provider.documents.estimate import Estimate
    from airflow_llm_provider.documents.output import RowWriter
    from airflow_llm_provider.documents.run import Run
    from airflow_llm_provider.engine.engine import Engine


OnEmpty = Literal["fail", "skip", "ok"]
_ON_EMPTY = "give fail, skip or ok: what happens where there are no documents."


class ClaudeDocumentsOperator(ClaudeTask):
    """Ask Claude the same about every document, and write one row per document.

    What was paid is in the ledger: a retry, a clear, another run or a backfill asks only about what is new or has
    changed. A document that cannot be answered becomes a dead letter with a reason; it costs the others nothing.

    The task returns a manifest below 4 KB: paths, counts by outcome, tokens, cost, seconds.

    Args:
        documents: a path, folder or glob; an object storage URL (`s3://conn@bucket/inbox/`); a `.jsonl` or `.csv` file,
            one document per row; or a list of rows (dicts), texts or paths, as a literal or from an XCom.
        prompt: the instruction, typed by the DAG author; Airflow templates work here, and nowhere in the documents.
        output: path or URL of the rows, `.jsonl`, `.csv` or `.parquet` by extension; with a `/` at its end, a folder of
            its own. A mapped task instance writes a part of its own, `rows.part-{map_index}.jsonl`. Dead letters,
            schema and manifest are written beside it.
        output_type: a pydantic model or any type pydantic knows; a JSON schema as a dict; None for text. A list type
            gives one row per item.
        system: the system prompt; templates work here, too.
        model: a tier (`fast`, `balanced`, `strong`) or a model id; None: the connection's default tier.
        roots: folders or URL prefixes below which files may be read; None: `[llm] roots`, and where there are none
            either, `documents` itself, if the DAG author typed it.
        reading: how documents are found and read: file patterns, encoding, size limit, fields of rows, PDF.
        validators: functions of the validated value, and of the document's text where they have a second parameter
            `source`. They return None or a complaint, which is sent back to the model. And Judges.
        route: models to escalate through, confidence, fallbacks and retries; a list of models is enough.
        request: fields of the request, such as RequestFields(max_tokens=8000, effort="low").
        on_invalid: OnInvalid(max_repairs=…): how often an invalid answer is repaired; then it is a dead letter.
        long_input: what happens with a document that the model cannot read at once.
        budget: what the task and the DAG run may cost; a number is the task's, in US dollars. Documents for which it
            has no room are `pending`. Budget(confirm_above_usd=…) asks a person before anything is sent.
        reviewers: who is asked about that price, and about a budget that says `ask`.
        max_failed: dead letters that are tolerated: a count (`10`), or a share of the documents found (`"1%"`). With
            more, the task fails, after all other documents are done and written.
        max_in_flight: how many documents are asked about at once.
        reuse: whose answers may be taken: those of any run (`always`), of this DAG `run`, or none (`never`).
        version: a label; a changed one asks everything again.
        retry_dead: ask again about the dead letters of earlier runs.
        limit: ask about so many documents at most, the first in their order; no others are listed or read.
        on_empty: what happens where there are no documents: `fail` (a retry may find some), `skip` the task, or `ok`,
            which writes no rows. None: `fail` where rows of an earlier run would be lost, else `ok`.
        dry_run: send nothing; return what would be asked, and what it would take: tokens, price and time.
        tags: kept with every call, beside the DAG's own.
        claude_conn_id: the Airflow connection, of type `claude`.

    Raises:
        AirflowFailException: no retry can help.
        AirflowException: a retry may help.
    """

    template_fields: Sequence[str] = (
        *SHARED_TEMPLATE_FIELDS,
        *("documents", "reading", "limit", "is_dry_run", "max_failed"),
    )
    _decision: Mapping[str, Any] | None = None  # the event that Airflow resumed the task with

    def __init__(
        self,
        *,
        documents: Any,
        prompt: str,
        output: str | PurePath,
        output_type: Any = None,
        system: str | None = None,
        model: str | None = None,
        roots: Sequence[str] | str | None = None,
        reading: Reading | None = None,
        validators: Sequence[Any] = (),
        route: Route | Sequence[str] | None = None,
        request: RequestFields | None = None,
        on_invalid: OnInvalid | None = None,
        long_input: LongInput | str | None = None,
        budget: Budget | Decimal | float | str | None = None,
        reviewers: Reviewers | Sequence[str] | str | None = None,
        max_failed: int | str = 0,
        max_in_flight: int = 256,
        reuse: Reuse = "always",
        version: str = "",
        retry_dead: bool = False,
        limit: int | str | None = None,
        on_empty: OnEmpty | None = None,
        dry_run: bool | str = False,
        tags: Sequence[str] = (),
        claude_conn_id: str = DEFAULT_CONNECTION,
        **kwargs: Any,
    ) -> None:
        super().__init__(**with_retries(kwargs, asks=self.may_ask({"budget": budget})))
        self.documents = documents
        self.prompt = prompt
        self.output_path = str(output) if isinstance(output, PurePath) else output
        self.output_type = output_type
        self.system = system
        self.model = model
        self.allowed_roots = roots
        self.reading = reading
        self.validators = validators
        self.route = route
        self.request = request
        self.on_invalid = on_invalid
        self.long_input = long_input
        self.budget = budget
        self.reviewers = reviewers
        self.max_failed = max_failed
        self.max_in_flight = max_in_flight
        self.reuse = reuse
        self.version = version
        self.retry_dead = retry_dead
        self.limit = limit
        self.on_empty = on_empty
        self.is_dry_run = dry_run
        self.tags = tags
        self.claude_conn_id = claude_conn_id
        self.require_arguments({**vars(self), "documents": documents, "output": output, "roots": roots})
        # Known only here: rendering replaces the template by its value.
        self._is_literal = is_literal(documents)
        self._run_values = run_values(prompt, system)

    @classmethod
    def partial(cls, **kwargs: Any) -> OperatorPartial:
        """Return a partial; its arguments are checked at once."""
        cls.require_arguments(kwargs)
        made = super().partial(**kwargs)
        require_enforceable(made, kwargs)
        if cls.may_ask(kwargs):
            add_retries(made, kwargs)
        return made

    @classmethod
    def require_arguments(cls, arguments: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError, when the DAG is parsed, for arguments that are not valid."""
        super().require_arguments(arguments)
        require_resolvable(str(arguments.get("task_id")), arguments.get("documents"))
        require_possible(arguments.get("output"), arguments.get("documents"))
        if not comes_later(reading := arguments.get("reading")):
            Reading.of(reading)
        if "max_failed" in arguments and not comes_later(arguments["max_failed"]):
            # Only its form is checked; any number of documents does for that.
            tolerated(arguments["max_failed"], 100)
        require(
            "on_empty",
            arguments.get("on_empty"),
            lambda given: given in (None, *get_args(OnEmpty)),
            _ON_EMPTY,
        )
        on_invalid = OnInvalid.of(arguments.get("on_invalid"))
        require(
            "on_invalid.then",
            on_invalid.then,
            lambda then: then == "fail",
            "a document whose answer stays invalid is a dead letter; max_failed= says how many fail the task.",
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
                budget=Budget.of(self.budget),
                reviewers=Reviewers.of(self.reviewers),
                reuse=self.reuse,
                version=str(self.version),
                output=self.output_path,
                tags=self.tags,
            )

    @property
    def documents(self) -> Any:
        """What to ask about."""
        return self._documents

    @documents.setter
    def documents(self, documents: Any) -> None:
        # Airflow sets this once more when it has resolved an XCom, in mapped tasks too. Checked here, because a value
        # of the wrong type would stand under Rendered Templates afterwards.
        if isinstance(documents, (Mapping, bytes)):
            raise AirflowFailException(
                f"{self.task_id}: documents= is of type {type(documents).__name__}: give a path, or a list of paths "
                "or rows."
            )
        is_list = isinstance(documents, Sequence) and not isinstance(documents, (str, bytes, Rows))
        self._documents = Rows(documents) if is_list else documents

    def execute(self, context: Context) -> dict[str, Any]:
        """Ask about the documents, write the rows, and return the manifest."""
        if self._run_values and self.reuse == "always":
            self.log.warning(
                "The prompt contains %s, which differs in every run: every document will be asked about and paid for "
                "again. If the answer does not depend on it, remove it.",
                ", ".join(self._run_values),
            )
        require_text(self.task_id, "prompt", self.prompt)
        with self.failing_for_good():  # before anything is paid for: a template may have left anything
            tolerated(self.max_failed, 100)
        if read_flag(self.task_id, "dry_run", self.is_dry_run):
            # Not `self.estimate`: that of a decorator would call the function a second time.
            told = ClaudeDocumentsOperator.estimate(self, context)
            if not told.documents:
                self._warn_of_nothing()
            return told.as_dict()
        self._require_confirmed_price(context)
        try:
            manifest, run = self.hook.run(self._run_all(context), context)
        except BudgetNeedsPerson as needed:
            raise self.ask_for_budget(needed, context) from None
        if failure := self._failure(manifest, run, context):
            # A task that fails returns nothing, and the manifest says where the rows and the dead letters are.
            context["ti"].xcom_push(key="manifest", value=manifest)
            if isinstance(failure, BudgetNeedsPerson):
                failure = self.ask_for_budget(failure, context)
            # ClaudeRetryPolicy finds the delay that the API asked for in the cause.
            raise failure from run.retryable
        return manifest

    def _failure(self, manifest: Mapping[str, Any], run: Run, context: Context) -> BaseException | None:
        """Return the error of a run that a budget ended, or that has more dead letters than are tolerated.

        The other rows are written; None where the task has done what it should.
        """
        found = manifest["documents"]
        if stopped := run.stopped:
            pending = manifest["outcomes"]["pending"]
            rest = f"{pending} of {found} documents are pending, and the rows of the others are written"
            stopped.args = (f"{stopped} {rest}; see {manifest['output']}.",)
            return self.hook.for_airflow(stopped, context)
        if refused := run.over_budget:
            pending = manifest["outcomes"]["pending"]
            # The amount that is proposed to the person then has room for all documents that are pending.
            if isinstance(refused, BudgetAsks):
                refused.calls = pending
            refused.args = (f"{pending} of {found} documents are pending. {refused}",)
            return self.hook.for_airflow(refused, context)
        dead, allowed = manifest["outcomes"]["dead_letter"], tolerated(self.max_failed, found)
        if dead <= allowed:
            return None
        # Where every dead letter is final, a retry would only find the same in the ledger.
        return (AirflowException if run.retryable else AirflowFailException)(
            f"{self.task_id}: {dead} of {found} documents are dead letters, max_failed={self.max_failed} allows "
            f"{allowed} ({manifest['dead_letter_reasons']}). The other rows are written and paid answers are kept; see "
            f"{manifest['dead_letters']} or `airflow-llm dead-letters list {manifest['dead_letters']}`."
        )

    def estimate(self, context: Context, *, paid_for: set[str] | None = None) -> Estimate:
        """Return what `execute` would do and take, sending nothing.

        Args:
            context: Airflow's context of the task.
            paid_for: what other estimates of the same range have counted already; this one's join it.
        """
        return self.hook.run(self._estimate(context, paid_for), context)

    async def _estimate(self, context: Context, paid_for: set[str] | None) -> Estimate:
        from airflow_llm_provider.documents.estimate import estimate

        async with self.hook.open_engine(self.options, context, own_loop=True) as engine:
            run = self._run(engine, context)
            found = await asyncio.to_thread(self._found, run.skipped)
            return await estimate(run, found, paid_for=paid_for)

    def resume_after_price(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        """Continue with a person's decision on the price."""
        self._decision = event
        return self.execute(context)

    async def _run_all(self, context: Context) -> tuple[dict[str, Any], Run]:
        """Ask about all documents; return the manifest, and the run that it is about."""
        from airflow_llm_provider.documents.stopping import LEDGER_GONE
        from airflow_llm_provider.hooks.answers import cost_line

        async with self.hook.open_engine(self.options, context, own_loop=True) as engine:
            run = self._run(engine, context)
            # The output is checked and opened before anything is asked: nothing is paid for rows that could not be
            # written. In a thread, as the listing: an object store is reached, and its provider may start a loop.
            with await asyncio.to_thread(self._sink, context["ti"].map_index) as sink:
                manifest = await run.run(await asyncio.to_thread(self._found, run.skipped), sink)
                # Rows of an earlier run are better than none, or than answers about nothing.
                if run.stopped is not None and (not sink.rows or isinstance(run.stopped, DocumentUnread)):
                    raise run.stopped
                if not run.found and not run.has_more:
                    await asyncio.to_thread(self._require_empty_allowed, sink)
                # In a thread: it writes and uploads all rows, and the event loop must not stand still meanwhile.
                landed = await asyncio.to_thread(sink.publish, manifest)
            if not isinstance(run.stopped, LEDGER_GONE):  # the line is read from the ledger
                self.log.info("%s", await cost_line(engine, run.scope))
            return {**manifest, **landed.paths(), "rows": landed.rows}, run

    def _warn_of_nothing(self) -> str:
        """Log that there are no documents; return the sentence."""
        what = f"{len(self.documents)} items" if isinstance(self.documents, Rows) else repr(self.documents)
        says = f"{self.task_id}: no documents were found in {what}, so nothing was asked."
        self.log.warning("%s", says)
        return says

    def _require_empty_allowed(self, sink: RowWriter) -> None:
        """Log that there are no documents; raise unless the task goes on and writes no rows."""
        says = self._warn_of_nothing()
        if self.on_empty == "skip":
            raise AirflowSkipException(says)
        if self.on_empty == "fail":
            raise AirflowException(says)
        if self.on_empty is None and sink.would_replace_rows():
            raise AirflowException(
                f"{says} {sink.files[0]!r} has rows of an earlier run and stays as it is: a folder that is not mounted "
                "is empty, too. If there may be no documents, set on_empty='ok' or 'skip'."
            )

    def _require_confirmed_price(self, context: Context) -> None:
        """Return where the price need not be confirmed, or a person has confirmed it; else park the task."""
        from airflow_llm_provider.approvals.spending import PriceCheck

        above = read_amount(self.task_id, "budget.confirm_above_usd", self.options.budget.confirm_above_usd)
        if above is None:
            return
        with self._sink(context["ti"].map_index):  # a person is not asked for rows that could not be written
            estimate = ClaudeDocumentsOperator.estimate(self, context)
        check = PriceCheck(estimate=estimate, above_micro_usd=above, reviewers=self.options.reviewers)
        check.require_approval(
            hook=self.hook, context=context, resume="resume_after_price", event=self._decision
        )

    def _run(self, engine: Engine, context: Context) -> Run:
        from airflow_llm_provider.documents.prompt import DocumentPrompt
        from airflow_llm_provider.documents.run import Run
        from airflow_llm_provider.engine.output_type import OutputType
        from airflow_llm_provider.hooks.question import with_models

        options = self.options
        return Run(
            engine=engine,
            scope=self.hook.scope(context, options),
            prompt=DocumentPrompt(
                prompt=self.prompt,
                output=OutputType(self.output_type),
                endpoint=engine.endpoint,
                options=options,
                reading=Reading.of(self.reading),
                system=self.system,
                asked_by=f"{self.dag_id}.{self.task_id}",
            ),
            validators=with_models(self.validators, engine.endpoint),
            retry_dead=self.retry_dead,
            max_in_flight=self.max_in_flight,
            limit=read_count(self.task_id, "limit", self.limit),
            log=self.log,
        )

    def _found(self, skipped: Counter[str]) -> Iterator[Document | Rejected]:
        from airflow_llm_provider.documents.formats import MissingExtra
        from airflow_llm_provider.documents.sources import list_documents

        # A mapped instance is made from plain values, so a path that another task named looks like one that the author
        # typed.
        is_typed = self._is_literal and not is_mapped_over_a_task(self)
        reading = Reading.of(self.reading)
        try:
            return list_documents(
                self.documents,
                roots=readable_roots(
                    self.documents, self.allowed_roots, is_typed=is_typed, strings=reading.strings
                ),
                reading=reading,
                to_path=object_storage,
                skipped=skipped,
            )
        except (MissingExtra, TypeError, ValueError) as error:
            said = str(error) if is_typed else message_at_run_time(error)
            raise AirflowFailException(f"{self.task_id}: {said}") from None

    def _sink(self, map_index: int | None) -> RowWriter:
        """Return where rows go; raises AirflowFailException where they cannot, before anything is paid for."""
        try:
            return row_sink(
                self.output_path,
                self.documents,
                output_type=self.output_type,
                strings=Reading.of(self.reading).strings,
                map_index=map_index,
            )
        except (Misplaced, TerminalError) as error:
            raise AirflowFailException(f"{self.task_id}: {error}") from None


def tolerated(max_failed: int | str, documents: int) -> int:
    """Return how many dead letters `max_failed` allows: a count, or a share such as `"1%"` of the documents.

    Raises:
        ValueError: it is neither.
    """
    text = str(max_failed).strip()
    cure = 'give a count, such as 10, or a share, such as "1%".'
    try:
        allowed = float(text.removesuffix("%"))
        is_share = text.endswith("%")
        if is_share and 0 <= allowed <= 100:
            return int(allowed * documents / 100)
        # A float is refused: 0.01 could be meant as a count or as a share, and only the % sign decides.
        if not is_share and not isinstance(max_failed, (float, bool)) and int(text) >= 0:
            return int(text)
    except ValueError:
        pass
    raise InvalidArgument("max_failed", max_failed, cure)
