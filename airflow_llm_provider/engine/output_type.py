"""Output types: the JSON schema for the model, and the validation of its answer."""

from __future__ import annotations

import datetime as dt
import enum
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import PurePath
from typing import Any, Literal, get_args, get_origin

from airflow_llm_provider.engine.answer_data import with_exact_decimals, with_listed_spelling
from airflow_llm_provider.engine.json_repair import (
    UnsoundJson,
    is_json,
    member_spans,
    objects_in,
    require_characters,
    require_sound,
    writable,
)
from airflow_llm_provider.engine.json_schema import DECIMAL, fields_of, names_in, part_of, require_checkable
from airflow_llm_provider.engine.schema_limits import problem_of
from airflow_llm_provider.errors import InvalidOutput, TerminalError, without_text
from airflow_llm_provider.options import RequestFields
from airflow_llm_provider.validators import Complaint

# The API wants an object at the top level. Anything else is put into one field of this name.
_LIST_FIELD, _VALUE_FIELD = "items", "value"

# Faults of form, which can be repaired without reading the document again: kinds of pydantic errors (besides wrong
# types and failed parsing), and keywords of JSON schemas.
_FORM_KINDS = frozenset(
    {
        *("enum", "literal_error", "extra_forbidden", "json_invalid", "int_from_float"),
        *("string_pattern_mismatch", "string_too_long", "date_from_datetime_inexact"),
    }
)
_FORM_KEYWORDS = frozenset(
    {"type", "enum", "const", "format", "pattern", "additionalProperties", "maxLength"}
)
_NOT_FINITE = re.compile(r"nan|inf", re.IGNORECASE)
# Kinds of pydantic errors whose text quotes the value, or is the text of somebody's exception.
_QUOTING_KINDS = frozenset(
    {
        *("value_error", "assertion_error", "get_attribute_error", "iteration_error", "mapping_type"),
        *("union_tag_invalid", "uuid_parsing", "url_parsing", "url_syntax_violation"),
        *("datetime_object_invalid", "bytes_invalid_encoding"),
    }
)
# Types that Airflow serializes as fields of a pydantic model, but not by themselves.
_NOT_IN_XCOMS = (enum.Enum, bytes, bytearray, complex, dt.time, PurePath, re.Pattern)
_MODULES_NOT_IN_XCOMS = frozenset({"ipaddress", "pydantic.networks"})


class OutputType:
    """What an answer must be.

    Its schemas raise TerminalError, before anything is sent, if `output_type` is neither a type nor a schema.
    """

    def __init__(self, output_type: Any = None) -> None:
        """Make an output type.

        Args:
            output_type: None or `str` for free text; a pydantic model; any type that pydantic knows (list, enum,
                union, TypedDict …); or a JSON schema of draft 2020-12 as a dict.
        """
        self.output_type = output_type
        self.is_text = output_type is None or output_type is str
        self.is_list = get_origin(output_type) is list
        self._parts: dict[tuple[str, ...], Mapping[str, Any] | None] = {}

    @cached_property
    def schema(self) -> Mapping[str, Any] | None:
        """The JSON schema of a whole answer; None for free text."""
        if self.is_text or self._field is None:
            return self._inner_schema
        inner = dict(self._inner_schema or {})
        definitions = {"$defs": inner.pop("$defs")} if "$defs" in inner else {}
        return {
            "type": "object",
            "properties": {self._field: inner},
            "required": [self._field],
            "additionalProperties": False,
            **definitions,
        }

    @cached_property
    def item_schema(self) -> Mapping[str, Any] | None:
        """The JSON schema of one row's data, as `dump` writes it: of one item, if the type is a list."""
        if self._adapter is None:
            return self._inner_schema
        from airflow_llm_provider.engine.pydantic_schema import Schemas

        with self._naming_type():
            dumped = self._adapter.json_schema(mode="serialization", schema_generator=Schemas)
        if not self.is_list:
            return dict(dumped)
        definitions = {"$defs": dumped["$defs"]} if "$defs" in dumped else {}
        return {**dumped["items"], **definitions}

    def parse(self, text: str) -> Any:
        """Return the validated value of an answer; raises InvalidOutput with a complaint that a model can act on."""
        return self.read(text)[0]

    def read(self, text: str) -> tuple[Any, str]:
        """Return the validated value of an answer, and what was done to read it.

        If the text is not JSON, an object is looked for in prose and code fences, and its punctuation is repaired.
        That costs nothing and invents nothing.

        Raises:
            InvalidOutput: With a complaint that a model can act on.
        """
        if self.is_text:
            if not text.strip():
                raise InvalidOutput("The answer is empty.", reply_text=text)
            try:
                require_characters(text)
            except UnsoundJson as error:
                raise InvalidOutput(str(error), reply_text=text, needs_source=False) from None
            return text, ""
        faults: list[InvalidOutput] = []
        read: list[tuple[Any, str]] = []
        for candidate, how in ((text, ""), *objects_in(text, self._names)):
            try:
                read.append((self._validated(candidate), how))
            except InvalidOutput as error:
                faults.append(error)
        if not read and (respelled := self._respelled(text)) is not None:
            read.append((respelled, "repaired in its capitals"))
        # Both are compared: 1 == True, and repr() may leave out a field.
        if read and all((repr(value), value) == (repr(read[0][0]), read[0][0]) for value, _ in read):
            return read[0]
        # If there is one object among other text, the complaint is about that object.
        fault = faults[-1] if len(faults) <= 2 else faults[0]
        if read:
            fault = InvalidOutput(
                "The answer has several JSON objects that differ. Give one.", needs_source=False
            )
        fault.reply_text = text
        raise fault

    def _respelled(self, text: str) -> Any:
        """Return the value of an answer whose listed values have other capitals; None if that is not its only fault."""
        structure = self.structure(text)
        if structure is None:
            return None
        try:
            require_sound(structure)
            return self._validated(with_listed_spelling(structure, self.schema or {}))
        except (InvalidOutput, ValueError):
            return None

    def structure(self, text: str) -> str | None:
        """Return the text of the one JSON object in an answer; None if there is none, or several."""
        candidates = [candidate for candidate, _ in objects_in(text, self._names)]
        if not candidates and is_json(text):
            candidates = [text] if isinstance(json.loads(text), dict) else []
        return candidates[0] if len(candidates) == 1 else None

    def answer_text(self, given: Any) -> str:
        """Return a given answer, text or data, as the text in which a model would have given it."""
        if isinstance(given, str):
            structure = None if self._field is None else self.structure(given)
            if self._field is None or (structure and self._field in member_spans(structure)):
                return given
            # The text "1" may be a number or a string.
            written = [f'{{"{self._field}": {text}}}' for text in (given, json.dumps(given)) if is_json(text)]
            return next(filter(self._takes, written), written[0])
        from pydantic_core import to_json

        whole = to_json(given, by_alias=True).decode()
        return f'{{"{self._field}": {whole}}}' if self._field else whole

    def read_loosely(self, text: str) -> Any:
        """Return an invalid answer as plain data, or its text if it is not JSON.

        NaN, Infinity and half of a surrogate pair, which no XCom and no file can hold, become texts.
        """
        structure = None if self.is_text else self.structure(text)
        if structure is None:
            return writable(text)
        data = writable(json.loads(structure, parse_constant=str))
        return data if self._field is None else data.get(self._field, data)

    @property
    def fields(self) -> Sequence[str]:
        """The names of the top-level fields of a whole answer."""
        return list(fields_of(self.schema or {}))

    def top_level(self, places: Iterable[str]) -> list[str]:
        """Return the top-level fields of the answer for places in its value, such as `items.3.amount`.

        Returns an empty list if one of the places is not in a field of the schema.
        """
        tops = list(dict.fromkeys(self._field or place.partition(".")[0] for place in places))
        return tops if set(tops) <= set(self.fields) else []

    def asking(self, prompt: str, fields: RequestFields) -> tuple[str, Mapping[str, Any] | None]:
        """Return the prompt of a request, and the schema that the API enforces.

        Args:
            prompt: The author's.
            fields: They say whether the API enforces the schema; otherwise the prompt describes it.

        Raises:
            TerminalError: The API would refuse the request.
        """
        self.require_enforceable(fields)
        if self.schema is None or fields.enforce:
            return prompt, self.schema
        return f"{prompt}\n\n{described(self.schema)}", None

    def require_enforceable(self, fields: RequestFields) -> None:
        """Raise TerminalError if the API would refuse what it is to enforce: this type, and strict tools."""
        strict_tools = fields.strict_tools
        if not strict_tools and not fields.enforce:
            return
        problem = problem_of({**self._own_schema(fields), **strict_tools}) if strict_tools else self._problem
        if problem:
            raise TerminalError(f"{problem} Nothing was sent.")

    @cached_property
    def _problem(self) -> str | None:
        return problem_of(self._own_schema(RequestFields()))

    def _own_schema(self, fields: RequestFields) -> Mapping[str, Mapping[str, Any]]:
        inner = self._inner_schema if fields.enforce else None
        return {} if inner is None else {"output_type": inner}

    def part(self, names: Iterable[str], *, enforce: bool) -> Mapping[str, Any] | None:
        """Return the schema of some top-level fields, always the same object; None if there is none for a request.

        Args:
            names: of the fields; a part may leave out each of them.
            enforce: Whether the API is to enforce it.
        """
        wanted = tuple(names)
        if wanted not in self._parts:
            # Kept, because the client caches the API's form of a schema by the identity of the schema.
            self._parts[wanted] = part_of(self.schema or {}, wanted)
        part = self._parts[wanted]
        return None if part is not None and enforce and problem_of({"part": part}) else part

    @cached_property
    def is_importable(self) -> bool:
        """Whether the values are plain, or of classes that another process can import and Airflow can serialize."""
        return all(
            is_importable(cls)
            and not issubclass(cls, _NOT_IN_XCOMS)
            and cls.__module__ not in _MODULES_NOT_IN_XCOMS
            for cls in _classes(self.output_type)
        )

    def wrap(self, data: Any) -> Any:
        """Return plain data as the whole answer: in its field, if it is not an object itself."""
        return data if self._field is None else {self._field: data}

    def dump(self, value: Any) -> Any:
        """Return a validated value as plain JSON data, in the form that XComs and all files have.

        Raises:
            InvalidOutput: A serializer of the author fails, or gives what JSON does not have.
        """
        if self._adapter is None:
            return value
        try:
            plain = self._adapter.dump_python(value, mode="json", by_alias=True)  # the names of its schema
            json.dumps(plain, ensure_ascii=False, allow_nan=False).encode()
        except Exception as error:  # noqa: BLE001  # a serializer of the author, bytes that are not text, NaN
            raise InvalidOutput(f"The answer can't be written as JSON: {without_text(error)}.") from None
        return plain

    @cached_property
    def _names(self) -> frozenset[str]:
        return names_in(self.schema or {})

    def _validated(self, text: str) -> Any:
        try:
            return self._validate(text)
        except InvalidOutput:
            raise
        except Exception as error:  # noqa: BLE001  # a validator of the author, or an answer that is nested too deep
            raise InvalidOutput(
                f"The answer could not be checked: {without_text(error)}.",
                complaint=f"The answer could not be checked: {type(error).__name__}: {error}",
            ) from None

    def _takes(self, text: str) -> bool:
        try:
            self._validated(text)
        except InvalidOutput:
            return False
        return True

    def _validate(self, text: str) -> Any:
        """Validate the text itself, because long numbers would change if it was parsed and written again."""
        try:
            require_sound(text)
        except UnsoundJson as error:
            raise InvalidOutput(str(error), needs_source=False) from None
        except json.JSONDecodeError as error:
            raise InvalidOutput(f"The answer is not JSON: {error}.", needs_source=False) from None
        if self._adapter is None:
            return self._validate_by_schema(json.loads(text))
        from pydantic import ValidationError

        try:
            exact = with_exact_decimals(text, self.schema or {}) if self._has_decimals else text
            value = (self._wrapped or self._adapter).validate_json(exact)
        except ValidationError as error:
            details = error.errors(include_url=False, include_context=False)
            problems = [
                (".".join(map(str, e["loc"])), e["msg"], e["msg"] if _is_plain(e["type"]) else e["type"])
                for e in details
            ]
            # A null may stand for something that only the document says, so it is not a fault of form.
            is_of_form = all(_is_of_form(e["type"]) and e["input"] is not None for e in details)
            raise self._invalid(problems, is_of_form=is_of_form) from None
        value = value if self._wrapped is None else getattr(value, self._field or "")
        # pydantic reads the text "NaN" as a number, and writes that as null.
        if _NOT_FINITE.search(text) and not _is_finite(self._adapter.dump_python(value, mode="json")):
            raise InvalidOutput("A number is NaN or infinite.", needs_source=False)
        return value

    def _validate_by_schema(self, data: Any) -> Any:
        from jsonschema import Draft202012Validator

        if self._field is not None:
            if not isinstance(data, dict) or self._field not in data:
                raise InvalidOutput(f"The answer is not an object with the field {self._field!r}.")
            data = data[self._field]
        validator = Draft202012Validator(self.output_type, format_checker=_formats())
        errors = sorted(validator.iter_errors(data), key=lambda e: e.json_path)
        if errors:
            problems = [
                (".".join(map(str, e.absolute_path)), _describe(e), _describe(e, is_quoting=False))
                for e in errors
            ]
            is_of_form = all(e.validator in _FORM_KEYWORDS and e.instance is not None for e in errors)
            raise self._invalid(problems, is_of_form=is_of_form)
        return data

    def _invalid(self, problems: Sequence[tuple[str, str, str]], *, is_of_form: bool) -> InvalidOutput:
        """Return the error with one line per field.

        Args:
            problems: the place, what is wrong for the model, and what is wrong without a word of the answer.
            is_of_form: whether the document is not needed to correct it.
        """
        complaint = Complaint.about(
            [(place, said) for place, said, _ in problems], needs_source=not is_of_form
        )
        shown = Complaint.about([(self.known_place(place), said) for place, _, said in problems])
        assert complaint is not None, "an invalid answer has at least one problem"
        assert shown is not None, "it has a line for each problem"
        return InvalidOutput(
            shown.message,
            complaint=complaint.message,
            fields=complaint.fields,
            needs_source=complaint.needs_source,
        )

    def known_place(self, place: str) -> str:
        """Return a place such as `items.3.amount`, with `*` for each name that came with the answer."""
        known = {*self._names, self._field}
        return ".".join(part if part.isdecimal() or part in known else "*" for part in place.split("."))

    @cached_property
    def _wrapped(self) -> Any:
        """The pydantic adapter of the object around a value; None if the value is an object itself."""
        if self._field is None:
            return None
        from pydantic import TypeAdapter, create_model

        fields: dict[str, Any] = {self._field: (self.output_type, ...)}
        return TypeAdapter(create_model("Answer", **fields))

    @property
    def _adapter(self) -> Any:
        return self._adapter_and_schema[0]

    @property
    def _inner_schema(self) -> Mapping[str, Any] | None:
        return self._adapter_and_schema[1]

    @cached_property
    def _adapter_and_schema(self) -> tuple[Any, Mapping[str, Any] | None]:
        """The pydantic adapter, None for free text and JSON schemas; and the JSON schema, None for free text."""
        if self.is_text:
            return None, None
        if isinstance(self.output_type, Mapping):
            require_checkable(self.output_type)
            return None, self.output_type
        if isinstance(self.output_type, str):
            raise TerminalError(
                f"output_type={self.output_type!r} is a text. Give the type itself. Nothing was sent."
            )
        from pydantic import TypeAdapter

        from airflow_llm_provider.engine.pydantic_schema import Schemas

        with self._naming_type():
            adapter = TypeAdapter(self.output_type)
            return adapter, adapter.json_schema(mode="validation", schema_generator=Schemas)

    @contextmanager
    def _naming_type(self) -> Iterator[None]:
        """Raise TerminalError with the type for what pydantic raises."""
        from pydantic import PydanticUserError

        try:
            yield
        except PydanticUserError as error:  # the rest of the message is about pydantic's settings
            what = error.message.splitlines()[0]
            raise TerminalError(f"output_type={self.output_type!r}: {what} Nothing was sent.") from error
        except Exception as error:  # a wrong pattern, or a schema of the author
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise TerminalError(f"output_type={self.output_type!r}: {what}. Nothing was sent.") from error

    @cached_property
    def _has_decimals(self) -> bool:
        return f'"format": "{DECIMAL}"' in json.dumps(self._inner_schema)

    @cached_property
    def _field(self) -> str | None:
        """The field for a value that is not an object itself."""
        inner = self._inner_schema or {}
        # The schema of a recursive type is a reference to one of its definitions, which is an object.
        if self.is_text or inner.get("type") == "object" or "$ref" in inner:
            return None
        return _LIST_FIELD if self.is_list else _VALUE_FIELD


def described(schema: Mapping[str, Any]) -> str:
    """Return the instruction that asks for an answer of a schema that the API does not enforce."""
    return (
        "Answer with one JSON object and nothing else: no words before or after it, no code fence. It must fit this "
        f"JSON schema:\n\n{json.dumps(schema, ensure_ascii=False)}"
    )


def _is_finite(plain: Any) -> bool:
    try:
        json.dumps(plain, allow_nan=False)
    except ValueError:
        return False
    return True


@cache
def _formats() -> Any:
    """Return what checks the formats that rows have columns for, besides those that the library knows."""
    from jsonschema import Draft202012Validator, FormatChecker

    checker = FormatChecker(formats=())
    checker.checkers = dict(Draft202012Validator.FORMAT_CHECKER.checkers)
    for name, kind in (("date", dt.date), ("date-time", dt.datetime), ("time", dt.time)):
        checker.checkers[name] = (_reads(kind.fromisoformat), ValueError)
    return checker


def _reads(parse: Callable[[str], object]) -> Callable[[object], bool]:
    return lambda value: not isinstance(value, str) or bool(parse(value) is not None)


def _classes(annotation: Any) -> list[type]:
    """Return the classes that a type annotation is made of."""
    if arguments := get_args(annotation):
        return [found for argument in arguments for found in _classes(argument)]
    return [annotation] if isinstance(annotation, type) and annotation is not type(None) else []


def is_importable(cls: type) -> bool:
    """Tell whether a class can be imported by its name. Airflow gives a DAG file's module another name."""
    found: Any = sys.modules.get(cls.__module__) if cls.__module__ != "__main__" else None
    if cls.__module__.startswith("unusual_prefix_"):
        return False
    for name in cls.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is cls


def _is_plain(kind: str) -> bool:
    """Tell a pydantic error whose text is made of the type's own rules."""
    from pydantic_core.core_schema import ErrorType

    # Another kind is a PydanticCustomError, with a text of the author.
    return kind in get_args(ErrorType) and kind not in _QUOTING_KINDS


def _is_of_form(kind: str) -> bool:
    """Tell whether a pydantic error is about the form of a value and not about its content."""
    return kind.endswith(("_type", "_parsing")) or kind in _FORM_KINDS


def _describe(error: Any, *, is_quoting: bool = True) -> str:
    """Return what is wrong by a JSON schema; only the names of fields that should not be there are quoted."""
    if error.validator == "required" or (error.validator == "additionalProperties" and is_quoting):
        return str(error.message)
    rule = json.dumps(error.validator_value, ensure_ascii=False, default=str)
    return f"{error.validator} should be {rule[:200]}"


_PLAIN = {cls.__name__: cls for cls in (str, int, float, bool)}


def type_to_name(output_type: Any) -> Any:
    """Return JSON data from which `type_from_name` makes the type again; raises ValueError if there is none."""
    if output_type is None or isinstance(output_type, Mapping):
        return output_type
    if get_origin(output_type) is list:
        return {"list of": type_to_name(get_args(output_type)[0])}
    if get_origin(output_type) is Literal:
        return {"one of": list(get_args(output_type))}
    if output_type in _PLAIN.values():
        return output_type.__name__
    if isinstance(output_type, type) and is_importable(output_type):
        return f"{output_type.__module__}:{output_type.__qualname__}"
    raise ValueError(f"{output_type!r} can't be imported by name. Define it in a module beside the DAG file.")


def type_from_name(name: Any) -> Any:
    """Return the output type that `type_to_name` described."""
    match name:
        case str() if name in _PLAIN:
            return _PLAIN[name]
        case str():
            module, _, qualname = name.partition(":")
            cls: Any = importlib.import_module(module)
            for part in qualname.split("."):
                cls = getattr(cls, part)
            return cls
        case {"list of": item}:
            return list[type_from_name(item)]  # type: ignore[misc]  # a type made at run time
        case {"one of": options}:
            return Literal[tuple(options)]
        case _:
            return name
