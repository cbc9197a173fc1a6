"""Value objects that say how Claude is asked; they mean the same in operators, decorators, hook and flows.

Each is checked when it is made, so that a DAG with a wrong value does not parse. Where a string field may hold an
Airflow template, its class lists it in `template_fields`; the operator renders it when the task runs.
"""

from __future__ import annotations

import codecs
import dataclasses
import datetime as dt
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar, Literal, Self, TypeAlias

from airflow_llm_provider.argument_checks import (
    ABSOLUTE,
    comes_later,
    is_absolute,
    is_amount,
    is_flag,
    is_list,
    is_list_of_strings,
    is_mapping,
    is_share,
    is_string,
    is_unset,
    is_whole,
    or_none,
    refuse_sampling,
    require,
    require_choice,
    wrong_type,
)
from airflow_llm_provider.errors import require_kinds

Reuse: TypeAlias = Literal["always", "run", "never"]
"""Whose answers may be taken: those of any run, of this DAG run, or none."""
Effort: TypeAlias = Literal["low", "medium", "high", "xhigh", "max"]
User: TypeAlias = str | Mapping[str, str]
"""A user of Airflow: the user name, or a mapping with `id` and `name`, as Airflow's required actions take it."""

MAX_FILE_BYTES = 32 * 1024 * 1024
"""The Messages API takes no larger request: https://docs.claude.com/en/api/overview#request-size-limits."""


def _is_user(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, Mapping) and {"id", "name"} <= value.keys())


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What calls may cost, in US dollars, and what happens when that is not enough.

    A call is sent only while its highest possible price fits into every budget. A number or text in place of a
    Budget is `task_usd`.

    Attributes:
        task_usd: what the task instance may cost, over all its attempts.
        run_usd: what the whole DAG run may cost, its other tasks included.
        on_exceeded: what happens to the task when a call does not fit: `fail`, `skip`, or `ask` a person to raise the
            budget.
        confirm_above_usd: documents only: a likely price above which a person is asked before anything is sent.
        notifiers: Airflow notifiers, called when 50, 80 and 95 % of a budget are spent.
    """

    template_fields: ClassVar[tuple[str, ...]] = ("task_usd", "run_usd", "confirm_above_usd")

    task_usd: Decimal | float | str | None = None
    run_usd: Decimal | float | str | None = None
    on_exceeded: Literal["fail", "skip", "ask"] = "fail"
    confirm_above_usd: Decimal | float | str | None = None
    notifiers: Sequence[Any] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        for name in self.template_fields:
            value = getattr(self, name)
            if not (comes_later(value) or is_unset(value)):
                require(f"budget.{name}", value, is_amount, "give an amount in US dollars, such as 2.50.")
        more = " A budget per day or month can wait: see `airflow-llm budgets set`."
        require_choice("budget.on_exceeded", self.on_exceeded, ("fail", "skip", "ask"), more)

    @classmethod
    def of(cls, value: Budget | Decimal | float | str | None) -> Budget:
        """Return the budget that a plain value stands for; raises TypeError for another type."""
        if isinstance(value, Budget):
            return value
        if isinstance(value, (int, float, str, Decimal)) and not isinstance(value, bool):
            return cls(task_usd=value)
        if value is None:
            return cls()
        raise wrong_type("budget", value, "an amount in US dollars or a Budget(task_usd=…)")


@dataclass(frozen=True, kw_only=True)
class Route:
    """Which models are asked, and when the next one is.

    A list in place of a Route is `models`.

    Attributes:
        models: tiers or model ids to escalate through, the cheapest first: the next is asked where an answer is
            invalid, refused or unsure. Empty: the operator's `model` alone.
        min_confidence: an answer whose field `confidence` (0 to 1) is below it is unsure.
        fallbacks: tiers, model ids or `conn:ID` (another connection), asked in turn when a model cannot be reached;
            None: those of the connection.
        fall_back_on: the classes of error that lead to a fallback.
        retry: policies by class of error, such as `{"rate_limit": {"attempts": 3}}`; see `engine.retry`.
    """

    template_fields: ClassVar[tuple[str, ...]] = ("models", "fallbacks")

    models: Sequence[str] = ()
    min_confidence: float | None = None
    fallbacks: Sequence[str] | None = None
    fall_back_on: Sequence[str] = ("network", "overloaded", "server")
    retry: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("models", "fallbacks", "fall_back_on"):
            value = getattr(self, name)
            if value is not None:
                require(f"route.{name}", value, is_list_of_strings, "give a list of names.")
        require("route.min_confidence", self.min_confidence, is_share, "give a number from 0 to 1.")
        require("route.retry", self.retry, is_mapping, 'give a dict, such as {"server": {"attempts": 3}}.')
        require_kinds("route.fall_back_on", self.fall_back_on)
        if self.retry:
            # Here, because it imports tenacity, which a DAG file without policies of its own does not need.
            from airflow_llm_provider.engine.retry import policies

            policies(self.retry)

    @classmethod
    def of(cls, value: Route | Sequence[str] | None) -> Route:
        """Return the route that a plain value stands for; raises TypeError for another type."""
        if isinstance(value, Route):
            return value
        if value is None:
            return cls()
        if is_list_of_strings(value):
            return cls(models=value)
        raise wrong_type("route", value, 'a list of models, such as ["fast", "strong"], or a Route(…)')

    def is_unsure(self, value: Any) -> bool:
        """Tell whether an answer states a confidence below `min_confidence`."""
        if self.min_confidence is None:
            return False
        stated = value.get("confidence") if isinstance(value, dict) else getattr(value, "confidence", None)
        return isinstance(stated, (int, float)) and stated < self.min_confidence


@dataclass(frozen=True, kw_only=True)
class RequestFields:
    """Fields of the request to the Messages API (https://docs.claude.com/en/api/messages).

    Attributes:
        max_tokens: the longest answer, in tokens. A long answer is streamed by the client.
        effort: how much work the model puts into an answer, for models that take it.
        thinking: the API's `thinking` object.
        stop_sequences: texts at which the model stops.
        metadata: the API's `metadata` object. It does not change the fingerprint.
        extra_body: further fields of the body, for servers that take them.
        cache_ttl: how long the API keeps the prompt that the documents of a run share: `5m`, or `1h`, whose writes cost
            more (https://docs.claude.com/en/docs/build-with-claude/prompt-caching). It does not change the fingerprint.
        service_tier: `auto` or `standard_only`, as the API takes it; None: the API's default. It does not change the
            fingerprint.
        enforce: whether the API itself holds answers to `output_type`. False: the prompt describes the type, and
            answers are only checked and repaired here. For types that the API does not take, such as recursive ones,
            and for servers that do not enforce any.
    """

    max_tokens: int = 4096
    effort: Effort | None = None
    thinking: Mapping[str, Any] | None = None
    stop_sequences: Sequence[str] = ()
    metadata: Mapping[str, Any] | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    cache_ttl: Literal["5m", "1h"] = "5m"
    service_tier: Literal["auto", "standard_only"] | None = None
    enforce: bool = True

    def __new__(cls, *_: object, **given: object) -> Self:
        """Refuse what is no field of a request any more, and say what is."""
        refuse_sampling(given)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        require("request.enforce", self.enforce, is_flag, "give True or False.")
        require_choice("request.cache_ttl", self.cache_ttl, ("5m", "1h"))
        if self.service_tier is not None:
            require_choice("request.service_tier", self.service_tier, ("auto", "standard_only"))
        require("request.max_tokens", self.max_tokens, is_whole(1), "give a whole number, 1 or more.")
        require("request.effort", self.effort, or_none(is_string), "give a text, such as 'low'.")
        require("request.stop_sequences", self.stop_sequences, is_list_of_strings, "give a list of strings.")
        for name in ("thinking", "metadata"):
            require(f"request.{name}", getattr(self, name), or_none(is_mapping), "give a dict.")
        require("request.extra_body", self.extra_body, is_mapping, "give a dict.")

    @classmethod
    def of(cls, value: RequestFields | None) -> RequestFields:
        """Return the value, or the defaults for None; raises TypeError for another type."""
        if value is None or isinstance(value, RequestFields):
            return value or cls()
        raise wrong_type("request", value, "RequestFields(max_tokens=…, …)")

    @property
    def strict_tools(self) -> dict[str, Mapping[str, Any]]:
        """The schemas of the author's own tools in `extra_body` that the API enforces, by the tool's name."""
        tools = [tool for tool in self.extra_body.get("tools") or () if is_mapping(tool)]
        return {
            str(tool.get("name")): tool["input_schema"]
            for tool in tools
            if tool.get("strict") and is_mapping(tool.get("input_schema"))
        }

    @property
    def extra(self) -> dict[str, Any]:
        """The fields that go into the body as they are."""
        named = {
            "thinking": self.thinking,
            "stop_sequences": list(self.stop_sequences),
            "metadata": self.metadata,
            "service_tier": self.service_tier,
        }
        return {name: value for name, value in named.items() if value not in (None, [], {})} | dict(
            self.extra_body
        )


@dataclass(frozen=True, kw_only=True)
class OnInvalid:
    """What happens with an answer that does not pass its checks.

    `on_invalid="skip"` and the like set `then`.

    Attributes:
        max_repairs: how often an invalid answer is sent back with the complaint.
        then: what happens when no repair helped: `fail`; `skip` the task; `default`: the task returns `default`;
            `return`: the task returns the last answer unvalidated, for an ApprovalSensor downstream; `dead_letter`: the
            answer is written into the folder `dead_letters` and the task is skipped. A documents task writes a dead
            letter for the document in any case.
        default: the value returned with `then="default"`.
        dead_letters: the folder for `then="dead_letter"`: an absolute path or a URL.
    """

    template_fields: ClassVar[tuple[str, ...]] = ("dead_letters",)

    max_repairs: int = 3
    then: Literal["fail", "skip", "default", "return", "dead_letter"] = "fail"
    default: Any = field(default=None, repr=False)
    dead_letters: str | None = None

    def __post_init__(self) -> None:
        require("on_invalid.dead_letters", self.dead_letters, is_absolute, ABSOLUTE)
        require("on_invalid.max_repairs", self.max_repairs, is_whole(0), "give a whole number, 0 or more.")
        choices = ("fail", "skip", "default", "return", "dead_letter")
        more = ' To ask a stronger model instead: route=["fast", "strong"].'
        require_choice("on_invalid.then", self.then, choices, more)
        if self.default is not None and self.then != "default":
            raise ValueError("on_invalid.default goes with then='default'.")
        if (self.dead_letters is not None) != (self.then == "dead_letter"):
            raise ValueError("on_invalid.dead_letters and then='dead_letter' go together.")

    @classmethod
    def of(cls, value: OnInvalid | str | None) -> OnInvalid:
        """Return what a plain value stands for; raises TypeError for another type."""
        if isinstance(value, OnInvalid):
            return value
        if value is None:
            return cls()
        if isinstance(value, str):
            return cls(then=value)  # type: ignore[arg-type]  # checked when it is made
        raise wrong_type("on_invalid", value, "OnInvalid(max_repairs=…, then=…)")


@dataclass(frozen=True, kw_only=True)
class LongInput:
    """What happens with a text that the model cannot read at once.

    `long_input="map_reduce"` and the like set `too_long`.

    Attributes:
        too_long: `fail` before anything is sent; `truncate`: the beginning is read; `map_reduce`: the text is split at
            its sections, each part is asked about, and the answers are merged.
        max_input_tokens: how many tokens are read at once; None: the context window of the model. A lower limit can be
            cheaper: some models charge more for every token of a long prompt. `price_step` is the most that they read
            at the lower price, and None for a model whose prompts all cost the same.
    """

    too_long: Literal["fail", "truncate", "map_reduce"] = "fail"
    max_input_tokens: int | Literal["price_step"] | None = None

    def __post_init__(self) -> None:
        require_choice("long_input.too_long", self.too_long, ("fail", "truncate", "map_reduce"))
        require(
            "long_input.max_input_tokens",
            self.max_input_tokens,
            lambda value: value in (None, "price_step") or is_whole(1)(value),
            "give a whole number, 1 or more, or 'price_step'.",
        )

    @classmethod
    def of(cls, value: LongInput | str | None) -> LongInput:
        """Return what a plain value stands for; raises TypeError for another type."""
        if isinstance(value, LongInput):
            return value
        if value is None:
            return cls()
        if isinstance(value, str):
            return cls(too_long=value)  # type: ignore[arg-type]  # checked when it is made
        raise wrong_type("long_input", value, "'fail', 'truncate', 'map_reduce' or a LongInput(…)")


@dataclass(frozen=True, kw_only=True)
class ToolLimits:
    """Bounds of one answer that may call tools; past one of them the task fails.

    Attributes:
        max_turns: how many replies may call tools.
        max_s: how many seconds the whole may take.
        max_usd: what the answer may cost in all, in US dollars; None: no bound.
    """

    max_turns: int = 10
    max_s: float = 600.0
    max_usd: float | None = None

    def __post_init__(self) -> None:
        require("tool_limits.max_turns", self.max_turns, is_whole(0), "give a whole number, 0 or more.")
        is_time = isinstance(self.max_s, (int, float)) and self.max_s > 0
        require("tool_limits.max_s", self.max_s, lambda _: is_time, "give a number of seconds above 0.")
        require("tool_limits.max_usd", self.max_usd, is_amount, "give an amount in US dollars, such as 2.50.")

    @classmethod
    def of(cls, value: ToolLimits | None) -> ToolLimits:
        """Return the value, or the defaults for None; raises TypeError for another type."""
        if value is None or isinstance(value, ToolLimits):
            return value or cls()
        raise wrong_type("tool_limits", value, "ToolLimits(max_turns=…, …)")


@dataclass(frozen=True, kw_only=True)
class Reviewers:
    """Who is asked when a person decides, for how long, and what happens when nobody answers.

    A user name or a list of them in place of Reviewers is `users`.

    Attributes:
        users: who may answer; empty: everybody who may edit the DAG in Airflow.
        timeout: how long the task waits for an answer; None: without limit.
        on_timeout: what no answer in time means: `reject`, `approve` or `fail`.
        notifiers: Airflow notifiers, called before the task waits.
    """

    users: Sequence[User] = ()
    timeout: dt.timedelta | None = None
    on_timeout: Literal["reject", "approve", "fail"] = "reject"
    notifiers: Sequence[Any] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        require("reviewers.users", self.users, is_list, "give a list of user names, such as ['ada'].")
        for user in self.users:
            require("reviewers.users", user, _is_user, "give a user name, or a dict of id and name.")
        if self.timeout is not None and not isinstance(self.timeout, dt.timedelta):
            raise ValueError(
                f"reviewers.timeout={self.timeout!r}: give a timedelta, such as timedelta(hours=8)."
            )
        require_choice("reviewers.on_timeout", self.on_timeout, ("reject", "approve", "fail"))
        # Without a timeout the question stays open, and the value would never mean anything.
        if self.on_timeout != "reject" and self.timeout is None:
            raise ValueError(f"reviewers.on_timeout={self.on_timeout!r} goes with a timeout: give one.")

    @classmethod
    def of(cls, value: Reviewers | Sequence[User] | str | None) -> Reviewers:
        """Return the reviewers that a plain value stands for; raises TypeError for another type."""
        if isinstance(value, Reviewers):
            return value
        if value is None:
            return cls()
        if isinstance(value, str):
            return cls(users=(value,))
        if is_list(value):
            return cls(users=tuple(value))
        raise wrong_type("reviewers", value, "user names or Reviewers(users=…, timeout=…)")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How documents are found and read.

    Attributes:
        pattern: file names to take from a folder, such as `*.txt` or several in a list; None: every known format.
        encoding: of text files without a byte order mark.
        max_bytes: larger documents are dead letters.
        id_field: the field of a row that is its id; `id` where a row has one.
        text_field: the field of a row that is its text; None: the whole row.
        delimiter: what separates the cells of CSV files, one character; None: it is found in the first rows.
        strings: whether strings in a list of documents are `text` or `path`s.
        pdf: `auto` sends the text of pages that have it, and the other pages as they are; `text`; `native`.
        attachments: what the files attached to a mail are: `parts` of the same document, or `documents` of their own.
        framing: `document` (the API's document blocks), or `tag` for compatible servers without them.
        readers: functions of your own by suffix (`dwg`) or media type (`image/tiff`): bytes in, or a path where the
            first parameter is named `path`; a text or content blocks out. Each is a function of a module, or its
            name as `module:function`, and runs in a child process.
    """

    template_fields: ClassVar[tuple[str, ...]] = ("pattern", "id_field", "text_field")

    pattern: str | Sequence[str] | None = None
    encoding: str = "utf-8"
    max_bytes: int = MAX_FILE_BYTES
    id_field: str = "id"
    text_field: str | None = None
    delimiter: str | None = None
    strings: Literal["text", "path"] = "text"
    pdf: Literal["auto", "text", "native"] = "auto"
    attachments: Literal["parts", "documents"] = "parts"
    framing: Literal["document", "tag"] = "document"
    readers: Mapping[str, Callable[..., Any] | str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        is_pattern = self.pattern is None or isinstance(self.pattern, str) or is_list_of_strings(self.pattern)
        require(
            "reading.pattern", self.pattern, lambda _: is_pattern, "give a text such as '*.txt', or several."
        )
        require("reading.encoding", self.encoding, _is_encoding, "Python knows no such encoding.")
        require("reading.max_bytes", self.max_bytes, is_whole(1), "give a number of bytes, 1 or more.")
        require("reading.id_field", self.id_field, is_string, "give the name of a field.")
        require("reading.text_field", self.text_field, or_none(is_string), "give the name of a field.")
        is_character = self.delimiter is None or (
            isinstance(self.delimiter, str) and len(self.delimiter) == 1
        )
        require(
            "reading.delimiter", self.delimiter, lambda _: is_character, "give one character, such as ';'."
        )
        require_choice("reading.strings", self.strings, ("text", "path"))
        require_choice("reading.pdf", self.pdf, ("auto", "text", "native"))
        require_choice("reading.attachments", self.attachments, ("parts", "documents"))
        require_choice("reading.framing", self.framing, ("document", "tag"))
        is_mapping = isinstance(self.readers, Mapping) and all(
            isinstance(key, str) and key.strip(".") for key in self.readers
        )
        require(
            "reading.readers", self.readers, lambda _: is_mapping, "give functions by suffix or media type."
        )
        for key, reader in self.readers.items():
            require(
                f"reading.readers[{key!r}]",
                reader,
                _is_reader,
                "it runs in a process of its own, which imports it: give a function of a module (not of the DAG file, "
                "nor a lambda), or 'module:function'.",
            )

    @classmethod
    def of(cls, value: Reading | None) -> Reading:
        """Return the value, or the defaults for None; raises TypeError for another type."""
        if value is None or isinstance(value, Reading):
            return value or cls()
        raise wrong_type("reading", value, "Reading(pattern=…, …)")


def reader_name(reader: Callable[..., Any] | str) -> str:
    """Return a reader as `module:function`."""
    return reader if isinstance(reader, str) else f"{reader.__module__}:{reader.__qualname__}"


def _is_reader(reader: Any) -> bool:
    if not isinstance(reader, str) and not hasattr(reader, "__qualname__"):
        return False
    # Airflow imports a DAG file under a name that no other process knows.
    return re.fullmatch(r"(?!__main__|unusual_prefix_)[\w.]+:[\w.]+", reader_name(reader)) is not None


def _is_encoding(name: Any) -> bool:
    try:
        codecs.lookup(name)
    except (LookupError, TypeError):
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a question is asked: all that is not the question itself.

    Attributes:
        model: a tier (`fast`, `balanced`, `strong`) or a model id; None: the connection's default tier.
        route: which other models are asked, and when.
        request: fields of the request.
        on_invalid: repairs, and what happens with an answer that stays invalid.
        long_input: what happens with a text that the model cannot read at once.
        tool_limits: bounds of an answer that may call tools.
        budget: what the calls may cost.
        reviewers: who is asked where a person decides.
        reuse: whose answers may be taken.
        version: a label of the author's; a changed one asks everything again.
        output: where the answer is written: an absolute path or a URL; None: it is returned.
        tags: kept with every call.
    """

    model: str | None = None
    # All options share these defaults; they are frozen.
    route: Route = Route()
    request: RequestFields = RequestFields()
    on_invalid: OnInvalid = OnInvalid()
    long_input: LongInput = LongInput()
    tool_limits: ToolLimits = ToolLimits()
    budget: Budget = Budget()
    reviewers: Reviewers = Reviewers()
    reuse: Reuse = "run"
    version: str = ""
    output: str | None = None
    tags: Sequence[str] = ()

    def __post_init__(self) -> None:
        require("model", self.model, or_none(is_string), "give a tier or a model id; several are a route=.")
        require_choice("reuse", self.reuse, ("always", "run", "never"))
        require("tags", self.tags, is_list_of_strings, "give a list of strings.")
        # Both name the model that is asked first, and could contradict each other.
        if self.model and self.route.models:
            raise ValueError(
                "model= and route.models: give one of them. A route begins with its first model."
            )

    @property
    def models(self) -> Sequence[str | None]:
        """The tiers or model ids that are asked in turn; None is the connection's default."""
        return self.route.models or (self.model,)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Return the options among arguments by name; plain values stand for value objects, None for the default.

        Raises:
            TypeError, ValueError: for a value that an argument cannot have.
        """
        values = {each.name: given.get(each.name) for each in dataclasses.fields(cls)}
        made = {
            name: VALUE_OBJECTS[name].of(value) for name, value in values.items() if name in VALUE_OBJECTS
        }
        plain = {name: value for name, value in values.items() if name not in made and value is not None}
        if "version" in plain:
            # A version such as 2 and its text "2" are the same label, and the same question.
            plain["version"] = str(plain["version"])
        return cls(**made, **plain)


VALUE_OBJECTS: Mapping[str, Any] = {
    "budget": Budget,
    "long_input": LongInput,
    "on_invalid": OnInvalid,
    "reading": Reading,
    "request": RequestFields,
    "reviewers": Reviewers,
    "route": Route,
    "tool_limits": ToolLimits,
}
"""The classes of value objects, by the argument that takes them."""
