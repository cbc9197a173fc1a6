"""ClaudeDocumentsOperator: thousands of documents through Claude in one task, one clean row each."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.sdk import BaseOperator, XComArg
from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from airflow_llm_provider.errors import LLMError, require_kinds
from airflow_llm_provider.hooks.claude import ClaudeHook
from airflow_llm_provider.hooks.retry import ClaudeRetryPolicy
from airflow_llm_provider.hooks.scope import require_budgets
from airflow_llm_provider.hooks.settings import DEFAULT_CONNECTION
from airflow_llm_provider.hooks.storage import object_storage
from airflow_llm_provider.operators.rows import Rows, is_path, lies_among

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_llm_provider.documents.document import Document, Rejected
    from airflow_llm_provider.documents.estimate import Estimate
    from airflow_llm_provider.documents.run import Question, Run
    from airflow_llm_provider.documents.sink import RowSink
    from airflow_llm_provider.engine.run import Engine
    from airflow_llm_provider.engine.validate import OutputType
    from airflow_llm_provider.hooks.routing import Routing
    from airflow_llm_provider.hooks.settings import Settings

# Template variables that differ at every run: in a prompt they make every document a new question.
_RUN_VALUES = re.compile(
    r"\{\{[^}]*\b(ds|ts|run_id|logical_date|data_interval_\w+|dag_run|ti|task_instance|execution_date|prev_\w+"
    r"|ds_nodash|ts_nodash\w*)\b"
)


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
    id_field, text_field: the fields of a row that are its id and its text; by default `id`, and the whole row.
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
        "claude_conn_id",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"prompt": "md", "system": "md"}
    ui_color = "#f0e4d8"

    def __init__(
        self,
        *,
        documents: Any,
        prompt: str,
        output: str,
        output_type: Any = None,
        system: str | None = None,
        model: str | Sequence[str] | None = None,
        roots: Sequence[str] | str | None = None,
        strings: Literal["text", "path"] = "text",
        id_field: str = "id",
        text_field: str | None = None,
        pattern: str | Sequence[str] | None = None,
        pdf: Literal["auto", "text", "native"] = "auto",
        framing: Literal["document", "tag"] = "document",
        encoding: str = "utf-8",
        max_bytes: int = 32 * 1024 * 1024,
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
        on_exceeded: Literal["fail", "skip"] = "fail",
        budget_notifiers: Sequence[Any] = (),
        tags: Sequence[str] = (),
        claude_conn_id: str = DEFAULT_CONNECTION,
        **kwargs: Any,
    ) -> None:
        if "retry_policy" not in (kwargs.get("default_args") or {}):
            kwargs.setdefault("retry_policy", ClaudeRetryPolicy())
        super().__init__(**kwargs)
        if not isinstance(max_in_flight, int) or max_in_flight < 1:
            raise ValueError(f"max_in_flight={max_in_flight!r}: at least one request has to be in flight.")
        if not isinstance(max_failed, (int, float)) or max_failed < 0:
            raise ValueError(
                f"max_failed={max_failed!r}: give a count (int) or a share (float) of the documents."
            )
        require_kinds("retry", retry or ())
        require_kinds("fall_back_on", fall_back_on)
        require_budgets(on_exceeded, budget_usd=budget_usd, run_budget_usd=run_budget_usd)
        self.documents = documents
        self.prompt = prompt
        self.output_path = output  # BaseOperator.output is the XCom
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
        self.tags = tags
        self.claude_conn_id = claude_conn_id
        if isinstance(documents, (list, tuple)) and any(isinstance(item, XComArg) for item in documents):
            raise ValueError(
                f"{self.task_id}: documents= is a list with another task's output in it, which Airflow would not "
                "resolve: give that output itself, or join several as `first.concat(second)`."
            )
        # Known only here: rendering replaces the template by its value.
        self._is_literal = _is_literal(documents)
        self._run_values = sorted(set(_RUN_VALUES.findall(f"{prompt}\n{system}")))

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
        if not self.prompt or not self.prompt.strip():
            raise AirflowFailException(f"{self.task_id}: the prompt is empty.")
        if _flag(self.is_dry_run):
            return ClaudeDocumentsOperator.estimate(self, context).as_dict()
        settings = self.hook.all_settings(self._routing)
        manifest, run = self.hook.run(lambda engine: self._work(engine, settings, context), context=context)
        self._require_within_budget(manifest, run.over_budget, context)
        self._require_few_dead_letters(manifest, run.may_heal, context)
        return manifest

    def estimate(self, context: Context, *, paid_for: set[str] | None = None) -> Estimate:
        """Return what `execute` would do and take, sending nothing.

        paid_for: what other estimates of the same range have counted already; this one's join it.
        """
        from airflow_llm_provider.documents.estimate import estimate

        settings = self.hook.all_settings(self._routing)

        async def work(engine: Engine) -> Estimate:
            run = self._run(engine, settings, context)
            return await estimate(run, self._found(), paid_for=paid_for)

        return self.hook.run(work, context=context)

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
        from airflow_llm_provider.documents.formats import MissingExtra, UnknownFormat
        from airflow_llm_provider.engine.bill import bill

        run = self._run(engine, settings, context)
        found = self._found()
        try:
            sink = self._sink(run.question.output, context["ti"].map_index)
        except (UnknownFormat, MissingExtra, TypeError) as error:
            raise AirflowFailException(f"{self.task_id}: {error}") from error
        with sink:
            self._require_apart(sink)
            manifest = await run.run(found, sink)
            landed = await asyncio.to_thread(sink.close, manifest)
        self.log.info("%s", await bill(engine, run.scope))
        return {**manifest, **landed.paths(), "rows": landed.rows}, run

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
            limit=_number(self.limit),
            long=LongInput(too_long=self.too_long, max_input_tokens=self.max_input_tokens),
            terms={
                "validators": with_models(self.validators, self.hook.settings),
                **self._routing.terms(engine, settings),
            },
            log=self.log,
        )

    def _found(self) -> Iterator[Document | Rejected]:
        from airflow_llm_provider.documents.formats import MissingExtra, UnknownFormat
        from airflow_llm_provider.documents.roots import OutsideRoots
        from airflow_llm_provider.documents.source import list_documents

        try:
            return list_documents(
                self.documents,
                roots=self._readable_roots(),
                id_field=self.id_field,
                text_field=self.text_field,
                pattern=self.pattern,
                strings=self.strings,
                encoding=self.encoding,
                to_path=object_storage,
            )
        except (OutsideRoots, UnknownFormat, MissingExtra, TypeError) as error:
            raise AirflowFailException(f"{self.task_id}: {error}") from error

    def _sink(self, output_type: OutputType, map_index: int | None) -> RowSink:
        from airflow_llm_provider.documents.sink import RowSink

        return RowSink(
            self._output(),
            part=f"part-{map_index}" if map_index is not None and map_index >= 0 else None,
            schema=output_type.item_schema,
            list_type=output_type.is_list,
            to_path=object_storage,
        )

    def _question(self, output_type: OutputType) -> Question:
        from airflow_llm_provider.documents.run import Question

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
            version=self.version,
            framing=self.framing,
            pdf=self.pdf,
            max_bytes=self.max_bytes,
            encoding=self.encoding,
            asked_by=f"{self.dag_id}.{self.task_id}",
        )

    def _readable_roots(self) -> list[str] | None:
        """Return where files may be read; None where the author has typed the very path.

        A path that comes from a Param, a template or an XCom is not the author's word, so it needs roots.
        """
        from airflow.sdk.configuration import conf

        named = (
            self.allowed_roots if self.allowed_roots is not None else conf.get("llm", "roots", fallback="")
        )
        roots = named.split(",") if isinstance(named, str) else list(named)
        roots = [root.strip() for root in roots if root.strip()]
        texts = isinstance(self.documents, Rows) and self.documents.are_texts and self.strings == "text"
        if roots or texts or (self._is_literal and not self._is_mapped_over_a_task()):
            return roots or None
        raise AirflowFailException(
            f"{self.task_id}: which documents to read is decided at run time ({self.documents!r}), so it must be said "
            "where files may be read: give the operator roots=[…], or set [llm] roots."
        )

    def _is_mapped_over_a_task(self) -> bool:
        """Tell whether `.expand()` took its values from another task."""
        task = self.dag.get_task(self.task_id)
        values = task.expand_input.value if isinstance(task, MappedOperator) else None
        return any(XComArg.iter_xcom_references(values))

    def _output(self) -> str:
        if "://" not in self.output_path and not self.output_path.startswith("/"):
            raise AirflowFailException(
                f"{self.task_id}: output={self.output_path!r} is relative, and a task's working directory is nobody's "
                "promise: give an absolute path or a URL."
            )
        return self.output_path

    def _require_apart(self, sink: RowSink) -> None:
        """Refuse to write among the documents: the next run would read, and pay for, its own rows."""
        documents = self.documents if isinstance(self.documents, Rows) else [self.documents]
        for given in documents:
            if not (
                is_path(given)
                or (isinstance(given, str) and (self.strings == "path" or given is self.documents))
            ):
                continue
            if inside := lies_among(sink.files, given):
                raise AirflowFailException(
                    f"{self.task_id}: {inside!r}, which the output would be, lies among the documents {str(given)!r}: "
                    "the next run would read its own rows. Write them elsewhere."
                )

    def _require_within_budget(
        self, manifest: dict[str, Any], over_budget: LLMError | None, context: Context
    ) -> None:
        """End the task as the budget says that had no room for some; the others are written."""
        if over_budget is None:
            return
        context["ti"].xcom_push(key="manifest", value=manifest)
        pending, documents = manifest["outcomes"]["pending"], manifest["documents"]
        over_budget.args = (f"{pending} of {documents} documents are pending. {over_budget}",)
        raise self.hook.for_airflow(over_budget, context)

    def _require_few_dead_letters(
        self, manifest: dict[str, Any], may_heal: Exception | None, context: Context
    ) -> None:
        dead, documents = manifest["outcomes"]["dead_letter"], manifest["documents"]
        allowed = self.max_failed * documents if isinstance(self.max_failed, float) else self.max_failed
        if dead <= allowed:
            return
        context["ti"].xcom_push(key="manifest", value=manifest)
        message = (
            f"{self.task_id}: {dead} of {documents} documents are dead letters, max_failed={self.max_failed} allows "
            f"{allowed:g} ({manifest['dead_letter_reasons']}). The other rows are written and paid answers are kept; "
            f"see {manifest['dead_letters']} or `airflow-llm dead-letters list {manifest['dead_letters']}`."
        )
        # Where every letter is final, a retry would only find the same in the ledger.
        if may_heal is None:
            raise AirflowFailException(message)
        raise AirflowException(message) from may_heal


def _is_literal(documents: Any) -> bool:
    """Tell whether the DAG author has typed these very documents, with no template and no XCom in them."""
    if isinstance(documents, (list, tuple)):
        return True
    written = str(documents) if isinstance(documents, str) or is_path(documents) else "{{"
    return "{{" not in written and "{%" not in written


def _number(limit: int | str | None) -> int | None:
    """Read a limit that may have come through a template."""
    if limit is None or limit in ("", "None"):
        return None
    try:
        return int(limit)
    except ValueError:
        raise AirflowFailException(f"limit={limit!r} is no whole number.") from None


def _flag(value: bool | str) -> bool:
    """Read a yes or no that may have come through a template."""
    return value if isinstance(value, bool) else value.strip().lower() in ("true", "1", "yes", "on")
