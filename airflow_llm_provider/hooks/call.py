"""A call as a DAG author states it: plain data, and the same in a worker and in the triggerer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

from airflow_llm_provider.documents.reader import ceiling_of_blocks
from airflow_llm_provider.engine.long import LongInput, TooLongMode, ask_about
from airflow_llm_provider.engine.reply import Reply
from airflow_llm_provider.engine.request import Request, to_json
from airflow_llm_provider.engine.run import Engine
from airflow_llm_provider.engine.tools import Toolbox
from airflow_llm_provider.engine.validate import OutputType
from airflow_llm_provider.errors import AnswerError, TerminalError
from airflow_llm_provider.hooks.arguments import require_messages
from airflow_llm_provider.hooks.checks import Exhausted, with_models
from airflow_llm_provider.hooks.routing import Routing
from airflow_llm_provider.hooks.storage import object_storage, require_absolute
from airflow_llm_provider.ledger.savings import Saving
from airflow_llm_provider.pricing import micro_usd
from airflow_llm_provider.tools import by_name
from airflow_llm_provider.validators import Judge, Validator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_llm_provider.hooks.settings import Settings
    from airflow_llm_provider.ledger.records import CallScope
    from airflow_llm_provider.ledger.store import Ledger

# XComs are rows of Airflow's database, read whole by every page that shows them.
MAX_XCOM_BYTES = 1_000_000


_IN_BODY = ("thinking", "stop_sequences", "metadata")
_OF_ROUTING = ("model", "min_confidence", "fallbacks", "fall_back_on", "retry", "max_repairs")
_OF_EXHAUSTED = ("on_exhausted", "default", "dead_letters")
_OF_CALL = (
    *("prompt", "output_type", "inputs", "messages", "system", "max_tokens", "effort", "validators"),
    *("too_long", "max_input_tokens", "reuse", "version"),
    *("tools", "max_tool_turns", "max_tool_s", "max_tool_usd", "approval"),
)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One question, with the terms it is asked on; the fields are ClaudeOperator's arguments.

    given: an answer that there is already, text or data: it is checked, and only repairs are asked for.
    """

    prompt: str
    output_type: Any = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Mapping[str, Any]] = ()
    system: str | None = None
    max_tokens: int = 4096
    effort: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    validators: Sequence[Validator | Judge] = ()
    routing: Routing = field(default_factory=Routing)
    too_long: TooLongMode = "fail"
    max_input_tokens: int | None = None
    reuse: Literal["always", "run", "never"] = "run"
    version: str = ""
    sample: int = 0
    output_path: str | None = None
    given: Any = None
    exhausted: Exhausted = field(default_factory=Exhausted)
    tools: Sequence[Callable[..., Any]] = ()
    max_tool_turns: int = 10
    max_tool_s: float = 600.0
    max_tool_usd: float | None = None
    approval: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """Return the call that ClaudeOperator's arguments make."""
        given = {name: value for name, value in arguments.items() if value is not None}
        given["version"] = str(given.get("version", ""))
        extra = {name: given[name] for name in _IN_BODY if name in given} | dict(given.get("extra_body", {}))
        return cls(
            **{name: given[name] for name in _OF_CALL if name in given},
            routing=Routing(**{name: given[name] for name in _OF_ROUTING if name in given}),
            exhausted=Exhausted(**{name: given[name] for name in _OF_EXHAUSTED if name in given}),
            extra=extra,
            output_path=given.get("output"),
        )

    async def ask(self, engine: Engine, settings: Mapping[str | None, Settings], scope: CallScope) -> Reply:
        """Ask, and return the valid answer; raises LLMError.

        settings: of the call's own connection under None, and of `routing.connections` under their ids.
        """
        self._require_sound()
        own = settings[None]
        longest, text = self._longest_text()
        output = OutputType(self.output_type)
        self._require_places()
        self.exhausted.require_fits(output)

        def inputs(part: str) -> Mapping[str, Any]:
            return {**self.inputs, longest: part} if longest else self.inputs

        def request(part: str) -> Request:
            return self._request(own, inputs(part), self.routing.first_model(own))

        terms: dict[str, Any] = {
            "scope": scope,
            "reuse": self.reuse,
            "output": output,
            "validators": with_models(self.validators, own),
            "toolbox": self._toolbox(engine.ledger, scope),
            **self.routing.terms(engine, settings),
        }
        if self.given is not None:
            given = output.answer_text(self.given)
            return await engine.ask(request(text), source=self._source(inputs(text)), given=given, **terms)
        return await ask_about(
            engine,
            text,
            request,
            source=lambda part: self._source(inputs(part)),
            long=LongInput(too_long=self.too_long, max_input_tokens=self.max_input_tokens),
            **terms,
        )

    def _require_sound(self) -> None:
        """Raise TerminalError, before anything is paid, for what templates and other tasks gave and can't be meant."""
        wrong = None
        if not isinstance(self.prompt, str):
            wrong = f"The prompt is a {type(self.prompt).__name__}, and should be text."
        elif not self.prompt.strip():
            wrong = "The prompt is empty."
        elif not isinstance(self.system, str | None):
            wrong = f"system= is a {type(self.system).__name__}, and should be text."
        elif not isinstance(self.inputs, Mapping):
            wrong = f"inputs= is a {type(self.inputs).__name__}, and should be a dict of data by name."
        else:
            try:
                require_messages(self.messages)
            except ValueError as error:
                wrong = str(error)
        if wrong:
            raise TerminalError(f"{wrong} Nothing was sent.")

    def _require_places(self) -> None:
        """Raise TerminalError, before anything is paid, where an answer or a dead letter could not be written."""
        for argument, place in (("output", self.output_path), ("dead_letters", self.exhausted.dead_letters)):
            if place:
                try:
                    require_absolute(argument, place)
                except ValueError as error:
                    raise TerminalError(f"{error} Nothing was sent.") from None

    def delivered(self, reply: Reply) -> Any:
        """Return what goes into the XCom: the text or the data, or the path it was written to.

        A pydantic model stays one where the class can be imported elsewhere; one that a DAG file defines
        becomes a dict, since its name carries the file's path, which other machines don't share.
        """
        output = OutputType(self.output_type)
        return self._put(reply.value, output.dump(reply.value))

    def instead(self, error: AnswerError, context: Context) -> Any:
        """Return what goes into the XCom in the place of an answer; raises AirflowSkipException or `error`."""
        output = OutputType(self.output_type)
        value = self.exhausted.instead(error, output, context)
        is_answer = self.exhausted.on_exhausted == "default" and value is not None
        return self._put(value, output.dump(value) if is_answer else value)

    def _put(self, value: Any, plain: Any) -> Any:
        if self.output_path:
            return _write(self.output_path, plain)
        if len(to_json(plain)) > MAX_XCOM_BYTES:
            raise TerminalError(
                f"The answer has {len(to_json(plain)):,} bytes, too many for an XCom ({MAX_XCOM_BYTES:,}). Give the "
                "task output= a path or URL to write it to, and clear it: the answer is kept and costs nothing more."
            )
        return value if OutputType(self.output_type).is_importable else plain

    def saving(self, reply: Reply, scope: CallScope) -> Saving:
        """Return what an answer saved: all of it where it was known, else what routing did."""
        alone, cost = reply.strong_alone_micro_usd, reply.cost_micro_usd or 0
        return Saving(
            scope=scope,
            model=reply.model,
            version=self.version,
            reused=int(reply.reused),
            reused_micro_usd=cost if reply.reused else 0,
            routed_micro_usd=0 if reply.reused or alone is None else alone - cost,
        )

    def _request(self, settings: Settings, inputs: Mapping[str, Any], model: str) -> Request:
        blocks = [block for name, value in inputs.items() for block in _blocks(name, value)]
        asked = {"role": "user", "content": [*blocks, {"type": "text", "text": self.prompt}]}
        messages = [*self.messages, asked]
        return Request(
            model=model,
            system=self.system,
            messages=messages,
            input_ceiling=ceiling_of_blocks(messages),
            max_tokens=self.max_tokens,
            schema=OutputType(self.output_type).schema,
            tools=[tool.definition for tool in by_name(self.tools).values()],
            effort=self.effort,
            extra=self.extra,
            endpoint=settings.client.endpoint,
            version=self.version,
            sample=self.sample,
        )

    def _toolbox(self, ledger: Ledger, scope: CallScope) -> Toolbox | None:
        """Return the tools with their bounds; None where there are none."""
        if not self.tools:
            return None
        from airflow_llm_provider.approvals.tools import verdicts

        return Toolbox(
            tools=by_name(self.tools),
            max_turns=self.max_tool_turns,
            max_s=self.max_tool_s,
            max_micro_usd=None if self.max_tool_usd is None else micro_usd(self.max_tool_usd),
            verdict=verdicts(ledger, scope, self.approval),
        )

    def _source(self, inputs: Mapping[str, Any]) -> str | None:
        """Return the text that is asked about; None where some of it is no text.

        It is that of the inputs; without any, the prompt holds it, but for an answer that comes from elsewhere.
        """
        blocks = [block for name, value in inputs.items() for block in _blocks(name, value)]
        if not all(block["source"].get("type") == "text" for block in blocks):
            return None
        if not blocks:
            return self.prompt if self.given is None else None
        return "\n\n".join(block["source"]["data"] for block in blocks)

    def _longest_text(self) -> tuple[str | None, str]:
        """Return the input that is read in parts, should it be too long to be read at once."""
        texts = {name: value for name, value in self.inputs.items() if isinstance(value, str)}
        if not texts:
            return None, ""
        name = max(texts, key=lambda name: len(texts[name]))
        return name, texts[name]


def _blocks(name: str, value: Any) -> list[dict[str, Any]]:
    """Return upstream data as a document block with its name as title: data, whatever it says."""
    if _is_block(value):
        return [dict(value)]  # a content block the author made, such as a PDF
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


def _write(location: str, value: Any) -> str:
    """Write text as it is and data as JSON; return where."""
    from upath import UPath

    path = object_storage(location) if "://" in location else UPath(location)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(value.encode() if isinstance(value, str) else to_json(value))
    return location
