"""A question: what is asked, as the DAG author states it."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from airflow_llm_provider.argument_checks import message_at_run_time
from airflow_llm_provider.documents.reader import ceiling_of_blocks
from airflow_llm_provider.engine.chunking import ask_about, surely_fits
from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.output_type import OutputType
from airflow_llm_provider.engine.reply import Reply
from airflow_llm_provider.engine.request import Request, to_json
from airflow_llm_provider.engine.terms import Terms
from airflow_llm_provider.engine.tool_loop import Toolbox
from airflow_llm_provider.errors import InvalidOutput, TerminalError
from airflow_llm_provider.hooks.arguments import require_absolute, require_data, require_messages
from airflow_llm_provider.options import Options
from airflow_llm_provider.pricing import micro_usd
from airflow_llm_provider.tools import by_name
from airflow_llm_provider.validators import Judge, Validator

if TYPE_CHECKING:
    from airflow_llm_provider.ledger.records import CallScope


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked; ClaudeOperator describes the fields of the same names.

    Attributes:
        prompt: the instruction, typed by the DAG author.
        inputs: data by name: text, content blocks, or anything JSON can hold. It is sent as data, before the prompt.
        messages: earlier turns of a conversation, as the Messages API takes them.
        system: the system prompt.
        output_type: what the answer must be; None: text.
        validators: what the answer must satisfy besides.
        tools: functions that the model may call.
        given: an answer that exists already: it is checked, and only its repairs are asked for.
        sample: 0, 1, 2 … where several independent answers are wanted.
    """

    prompt: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Mapping[str, Any]] = ()
    system: str | None = None
    output_type: Any = None
    validators: Sequence[Validator | Judge] = ()
    tools: Sequence[Callable[..., Any]] = ()
    given: Any = None
    sample: int = 0

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Return the question among arguments by name; None stands for the default."""
        names = ("inputs", "messages", "system", "output_type", "validators", "tools", "given", "sample")
        values = {name: given[name] for name in names if given.get(name) is not None}
        return cls(prompt=given.get("prompt") or "", **values)

    @cached_property
    def output(self) -> OutputType:
        """The output type, read."""
        return OutputType(self.output_type)

    def about(self, row: Any) -> Self:
        """Return the same question about one row of many."""
        made = dataclasses.replace(self, inputs={"row": row})
        made.__dict__["output"] = self.output  # reading an output type takes longer than the rest
        return made

    def request(self, engine: Engine, options: Options, text: str | None = None) -> Request:
        """Return the request to the first model of the route.

        Args:
            engine: its endpoint knows the models.
            options: the fields of the request, and its version.
            text: in place of the longest text among the inputs.
        """
        blocks = [
            block for name, value in self._inputs(text).items() for block in content_blocks(name, value)
        ]
        prompt, schema = self.output.asking(self.prompt, options.request)
        messages = [
            *self.messages,
            {"role": "user", "content": [*blocks, {"type": "text", "text": prompt}]},
        ]
        return Request(
            model=engine.endpoint.model(options.models[0]),
            system=self.system,
            messages=messages,
            # The request bounds its text by its bytes. Images and pages have base64 instead, so their bound is counted
            # here.
            input_ceiling=ceiling_of_blocks(messages),
            max_tokens=options.request.max_tokens,
            schema=schema,
            tools=[tool.definition for tool in by_name(self.tools).values()],
            effort=options.request.effort,
            extra=options.request.extra,
            cache_ttl=options.request.cache_ttl,
            endpoint=engine.endpoint.address,
            version=options.version,
            # It is a part of the request's key: without it, several votes would be one request with one answer.
            sample=self.sample,
        )

    def terms(self, engine: Engine, options: Options, scope: CallScope) -> Terms:
        """Return what the answer must be, and who asks."""
        return Terms(
            scope=scope,
            options=options,
            output=self.output,
            validators=with_models(self.validators, engine.endpoint),
            source=self.source(),
            given=None if self.given is None else self.output.answer_text(self.given),
            toolbox=self._toolbox(engine, options, scope),
        )

    def ask(self, engine: Engine, options: Options, scope: CallScope) -> Awaitable[Reply]:
        """Return what gives the answer when it is awaited; a text too long to be read at once is read in parts.

        A plain function: the coroutine it returns is the engine's own, which keeps the stack of a call short.

        Raises:
            TerminalError: before anything is sent, for arguments that are not valid.
            LLMError: when awaited, as Engine.ask.
        """
        self._require_valid(options)
        request, terms = self.request(engine, options), self.terms(engine, options, scope)
        name = self._longest
        # An answer that exists already is about the whole text, so the text is not read in parts.
        if (
            name is None
            or self.given is not None
            or surely_fits(request, options.long_input, engine.endpoint.prices)
        ):
            return engine.ask(request, terms)
        return ask_about(
            engine,
            self.inputs[name],
            lambda text: self.request(engine, options, text),
            terms,
            source=self.source,
        )

    def source(self, text: str | None = None) -> str | None:
        """Return the text that is asked about; None where some of it is not text.

        It is the text of the inputs. Without inputs the prompt holds it, but for an answer that was given.

        Args:
            text: in place of the longest text among the inputs.
        """
        blocks = [
            block for name, value in self._inputs(text).items() for block in content_blocks(name, value)
        ]
        # A quote could not be looked up in a page or an image, so nothing is checked against a part of the source.
        if not all(block["source"].get("type") == "text" for block in blocks):
            return None
        if not blocks:
            return self.prompt if self.given is None else None
        return "\n\n".join(block["source"]["data"] for block in blocks)

    def _require_valid(self, options: Options) -> None:
        """Raise TerminalError, before anything is paid for, for invalid values of templates and other tasks."""
        try:
            for name in ("prompt", "system", "inputs", "messages"):
                require_data(name, getattr(self, name))
            require_messages(self.messages)
            require_absolute("output", options.output)
            require_absolute("on_invalid.dead_letters", options.on_invalid.dead_letters)
        except ValueError as error:
            raise TerminalError(f"{message_at_run_time(error)} Nothing was sent.") from None
        if not self.prompt or not self.prompt.strip():  # a decorated function may have returned None
            raise TerminalError("The prompt is empty. Nothing was sent.")
        for name, value in self.inputs.items():
            if isinstance(value, str) and not value.strip():
                raise TerminalError(
                    f"The input {name!r} is empty: there is nothing to ask about. Nothing was sent. Skip the task "
                    "where there is no text, or leave the input out."
                )
        # The default is needed only after the last repair has failed; that it is wrong must be known before the first
        # call.
        if options.on_invalid.default is not None:
            try:
                self.output.parse(self.output.answer_text(options.on_invalid.default))
            except InvalidOutput as error:
                raise TerminalError(
                    f"on_invalid.default is not of the output type: {error}. Nothing was sent."
                ) from None

    def _inputs(self, text: str | None) -> Mapping[str, Any]:
        name = self._longest
        return self.inputs if text is None or name is None else {**self.inputs, name: text}

    @cached_property
    def _longest(self) -> str | None:
        """The name of the longest text among the inputs: the one that is read in parts, where it is too long."""
        texts = {name: value for name, value in self.inputs.items() if isinstance(value, str)}
        return max(texts, key=lambda name: len(texts[name])) if texts else None

    def _toolbox(self, engine: Engine, options: Options, scope: CallScope) -> Toolbox | None:
        if not self.tools:
            return None
        from airflow_llm_provider.approvals.tools import verdicts

        limits = options.tool_limits
        return Toolbox(
            tools=by_name(self.tools),
            max_turns=limits.max_turns,
            max_s=limits.max_s,
            max_micro_usd=None if limits.max_usd is None else micro_usd(limits.max_usd),
            verdict=verdicts(engine.ledger, scope, options.reviewers),
        )


def content_blocks(name: str, value: Any) -> list[dict[str, Any]]:
    """Return one input as blocks of a user message: data with its name as title, whatever it says."""
    if _is_block(value):
        return [dict(value)]  # a content block that the author made, such as a PDF
    if isinstance(value, list) and value and all(map(_is_block, value)):
        return [dict(block) for block in value]  # the parts of a file
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json")
    text = value if isinstance(value, str) else to_json(value).decode()
    source = {"type": "text", "media_type": "text/plain", "data": text}
    return [{"type": "document", "source": source, "title": name}]


def _is_block(value: Any) -> bool:
    """Tell a content block from a row that happens to have a field `type` or `source`."""
    is_typed = isinstance(value, Mapping) and value.get("type") in ("document", "image")
    return is_typed and isinstance(value.get("source"), Mapping)


def with_models(validators: Sequence[Validator | Judge], endpoint: Endpoint) -> list[Validator | Judge]:
    """Return the validators with the tiers of judges as the endpoint's model ids."""
    return [
        dataclasses.replace(each, model=endpoint.model(each.model), endpoint=endpoint.address)
        if isinstance(each, Judge)
        else each
        for each in validators
    ]
