"""A call as a DAG author states it: plain data, and the same in a worker and in the triggerer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

from airflow_llm_provider.engine.long import LongInput, TooLongMode, ask_about
from airflow_llm_provider.engine.reply import Reply
from airflow_llm_provider.engine.request import Request, to_json
from airflow_llm_provider.engine.retry import policies
from airflow_llm_provider.engine.run import Engine, Route
from airflow_llm_provider.engine.validate import OutputType, Validator
from airflow_llm_provider.errors import TerminalError
from airflow_llm_provider.hooks.storage import object_storage

if TYPE_CHECKING:
    from airflow_llm_provider.hooks.settings import Settings
    from airflow_llm_provider.ledger.records import CallScope

_CONNECTION = "conn:"  # a fallback that is another connection rather than a model

# XComs are rows of Airflow's database, read whole by every page that shows them.
MAX_XCOM_BYTES = 1_000_000


_IN_BODY = ("thinking", "stop_sequences", "metadata")
_SAME_NAME = (
    *("prompt", "output_type", "inputs", "messages", "system", "model", "max_tokens", "effort", "validators"),
    *("max_repairs", "min_confidence", "fallbacks", "fall_back_on", "retry", "too_long", "max_input_tokens"),
    *("reuse", "version"),
)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One question, with the terms it is asked on; the fields are ClaudeOperator's arguments."""

    prompt: str
    output_type: Any = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Mapping[str, Any]] = ()
    system: str | None = None
    model: str | Sequence[str] | None = None
    max_tokens: int = 4096
    effort: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    validators: Sequence[Validator] = ()
    max_repairs: int = 3
    min_confidence: float | None = None
    fallbacks: Sequence[str] | None = None
    fall_back_on: Sequence[str] = ("network", "overloaded", "server")
    retry: Mapping[str, Any] | None = None
    too_long: TooLongMode = "fail"
    max_input_tokens: int | None = None
    reuse: Literal["always", "run", "never"] = "run"
    version: str = ""
    output_path: str | None = None

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """Return the call that ClaudeOperator's arguments make."""
        ours = {name: arguments[name] for name in _SAME_NAME if arguments.get(name) is not None}
        extra = {name: arguments[name] for name in _IN_BODY if arguments.get(name) is not None}
        return cls(
            **ours,
            extra={**extra, **(arguments.get("extra_body") or {})},
            output_path=arguments.get("output"),
        )

    @property
    def connections(self) -> list[str]:
        """The other connections that fallbacks name, as `conn:ID`."""
        return [
            name.removeprefix(_CONNECTION) for name in self.fallbacks or () if name.startswith(_CONNECTION)
        ]

    async def ask(self, engine: Engine, settings: Mapping[str | None, Settings], scope: CallScope) -> Reply:
        """Ask, and return the valid answer; raises LLMError.

        settings: of the call's own connection under None, and of `connections` under their ids.
        """
        own = settings[None]
        models = [self.model] if self.model is None or isinstance(self.model, str) else list(self.model)
        overrides = policies(self.retry)
        repairs = (
            overrides["invalid_output"].attempts - 1
            if "invalid_output" in (self.retry or {})
            else self.max_repairs
        )
        fallbacks: list[tuple[str, str | None]] = []
        for name in own.fallbacks if self.fallbacks is None else self.fallbacks:
            if name.startswith(_CONNECTION):
                other = settings[name.removeprefix(_CONNECTION)]
                engine.other_clients.setdefault(other.client.endpoint, other.client)
                fallbacks.append((other.model(models[0]), other.client.endpoint))
            else:
                fallbacks.append((own.model(name), None))
        longest, text = self._longest_text()
        return await ask_about(
            engine,
            text,
            lambda part: self._request(
                own, {**self.inputs, longest: part} if longest else self.inputs, own.model(models[0])
            ),
            long=LongInput(too_long=self.too_long, max_input_tokens=self.max_input_tokens),
            scope=scope,
            reuse=self.reuse,
            output=OutputType(self.output_type),
            validators=self.validators,
            max_repairs=repairs,
            policies=overrides,
            route=Route(
                escalate=[own.model(model) for model in models[1:]],
                min_confidence=self.min_confidence,
                fallbacks=fallbacks,
                fall_back_on=frozenset(self.fall_back_on),
            ),
        )

    def delivered(self, reply: Reply) -> Any:
        """Return what goes into the XCom: the text or the data, or the path it was written to.

        A pydantic model stays one where the class can be imported elsewhere; one that a DAG file defines
        becomes a dict, since its name carries the file's path, which other machines don't share.
        """
        output = OutputType(self.output_type)
        plain = output.dump(reply.value)
        if self.output_path:
            return _write(self.output_path, plain)
        if len(to_json(plain)) > MAX_XCOM_BYTES:
            raise TerminalError(
                f"The answer has {len(to_json(plain)):,} bytes, too many for an XCom ({MAX_XCOM_BYTES:,}). Give the "
                "task output= a path or URL to write it to, and clear it: the answer is kept and costs nothing more."
            )
        return reply.value if output.is_importable else plain

    def _request(self, settings: Settings, inputs: Mapping[str, Any], model: str) -> Request:
        blocks = [_block(name, value) for name, value in inputs.items()]
        asked = {"role": "user", "content": [*blocks, {"type": "text", "text": self.prompt}]}
        return Request(
            model=model,
            system=self.system,
            messages=[*self.messages, asked],
            max_tokens=self.max_tokens,
            schema=OutputType(self.output_type).schema,
            effort=self.effort,
            extra=self.extra,
            endpoint=settings.client.endpoint,
            version=self.version,
        )

    def _longest_text(self) -> tuple[str | None, str]:
        """Return the input that is read in parts, should it be too long to be read at once."""
        texts = {name: value for name, value in self.inputs.items() if isinstance(value, str)}
        if not texts:
            return None, ""
        name = max(texts, key=lambda name: len(texts[name]))
        return name, texts[name]


def _block(name: str, value: Any) -> dict[str, Any]:
    """Return upstream data as a document block with its name as title: data, whatever it says."""
    if isinstance(value, Mapping) and value.get("type") in ("document", "image"):
        return dict(value)  # a content block the author made, such as a PDF
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json")
    text = value if isinstance(value, str) else to_json(value).decode()
    source = {"type": "text", "media_type": "text/plain", "data": text}
    return {"type": "document", "source": source, "title": name}


def _write(location: str, value: Any) -> str:
    """Write text as it is and data as JSON; return where."""
    from upath import UPath

    path = object_storage(location) if "://" in location else UPath(location)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(value.encode() if isinstance(value, str) else to_json(value))
    return location
