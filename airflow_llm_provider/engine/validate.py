"""Output types: the schema the model is given, and the check that its answer must pass."""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, get_args, get_origin

from airflow_llm_provider.errors import InvalidOutput

Validator = Callable[[Any], str | None]
"""Takes the validated value; returns None, or a complaint that a model can act on; may raise BusinessError."""

# The API wants an object at the top; anything else travels in one field of this name.
_LIST_FIELD, _VALUE_FIELD = "items", "value"


class OutputType:
    """What an answer must be.

    output_type: None or `str` for free text; a pydantic model; any type pydantic knows (list, enum, union,
        TypedDict …); or a JSON schema as a dict.
    """

    def __init__(self, output_type: Any = None) -> None:
        self.output_type = output_type
        self.is_text = output_type is None or output_type is str
        self.is_list = get_origin(output_type) is list

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
        """The JSON schema of one row's data: of one item, where the type is a list."""
        inner = self._inner_schema
        if not self.is_list or inner is None:
            return inner
        definitions = {"$defs": inner["$defs"]} if "$defs" in inner else {}
        return {**inner["items"], **definitions}

    def parse(self, text: str) -> Any:
        """Return the validated value of an answer; raises InvalidOutput with a complaint a model can act on."""
        if self.is_text:
            if not text.strip():
                raise InvalidOutput("The answer is empty.", reply_text=text)
            return text
        try:
            return self._validate(text)
        except InvalidOutput as error:
            error.reply_text = text
            raise
        except Exception as error:  # an author's own validator, or an answer nested to break its reader
            raise InvalidOutput(
                f"The answer could not be checked: {type(error).__name__}: {error}", reply_text=text
            ) from error

    @cached_property
    def is_importable(self) -> bool:
        """Whether the values are plain, or of classes that another process can import by name."""
        classes = _classes(self.output_type)
        return all(
            is_importable(cls) and not issubclass(cls, enum.Enum) for cls in classes
        )  # XComs know no enums

    def wrap(self, data: Any) -> Any:
        """Return plain data as an answer carries it: in its field, where it is no object itself."""
        return data if self._field is None else {self._field: data}

    def dump(self, value: Any) -> Any:
        """Return a validated value as plain JSON data."""
        if self._adapter is None:
            return value
        try:
            return self._adapter.dump_python(value, mode="json", by_alias=True)  # as its schema says
        except Exception as error:  # an author's own serializer, or bytes that are no text
            raise InvalidOutput(f"The answer can't be written: {type(error).__name__}: {error}") from error

    def _validate(self, text: str) -> Any:
        """Validate the text itself: parsed and written again, long numbers would change."""
        if self._adapter is None:
            return self._validate_by_schema(text)
        from pydantic import ValidationError

        try:
            value = (self._wrapped or self._adapter).validate_json(text)
        except ValidationError as error:
            details = error.errors(include_url=False, include_context=False, include_input=False)
            raise InvalidOutput(
                _complaint((".".join(map(str, e["loc"])), e["msg"]) for e in details)
            ) from error
        return value if self._wrapped is None else getattr(value, self._field or "")

    def _validate_by_schema(self, text: str) -> Any:
        from jsonschema import Draft202012Validator

        try:
            data = json.loads(text)
        except ValueError as error:
            raise InvalidOutput(f"The answer is not JSON: {error}.") from error
        if self._field is not None:
            if not isinstance(data, dict) or self._field not in data:
                raise InvalidOutput(f"The answer is not an object with the field {self._field!r}.")
            data = data[self._field]
        errors = sorted(Draft202012Validator(self.output_type).iter_errors(data), key=lambda e: e.json_path)
        if errors:
            raise InvalidOutput(_complaint((e.json_path.removeprefix("$."), e.message) for e in errors))
        return data

    @cached_property
    def _wrapped(self) -> Any:
        """The adapter of the object a value travels in; None where the value is the object itself."""
        if self._field is None:
            return None
        from pydantic import TypeAdapter, create_model

        fields: dict[str, Any] = {self._field: (self.output_type, ...)}
        return TypeAdapter(create_model("Answer", **fields))

    @cached_property
    def _adapter(self) -> Any:
        """The pydantic adapter; None for free text and JSON schemas."""
        if self.is_text or isinstance(self.output_type, Mapping):
            return None
        from pydantic import TypeAdapter

        return TypeAdapter(self.output_type)

    @cached_property
    def _inner_schema(self) -> Mapping[str, Any] | None:
        if self.is_text:
            return None
        schema: Mapping[str, Any] = (
            self.output_type if self._adapter is None else self._adapter.json_schema(mode="validation")
        )
        return schema

    @cached_property
    def _field(self) -> str | None:
        """The field a value travels in that is not an object itself."""
        inner = self._inner_schema or {}
        if self.is_text or inner.get("type") == "object" or "$ref" in inner:
            return None
        return _LIST_FIELD if self.is_list else _VALUE_FIELD


def _classes(annotation: Any) -> list[type]:
    """List the classes a type annotation is made of."""
    if arguments := get_args(annotation):
        return [found for argument in arguments for found in _classes(argument)]
    return [annotation] if isinstance(annotation, type) and annotation is not type(None) else []


def is_importable(cls: type) -> bool:
    """Tell whether a class is found under its own name; a DAG file's module has a name of its own making."""
    found: Any = sys.modules.get(cls.__module__) if cls.__module__ != "__main__" else None
    if cls.__module__.startswith("unusual_prefix_"):
        return False
    for name in cls.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is cls


def _complaint(problems: Any, most: int = 10) -> str:
    """Write what is wrong, one line a field, for the model as much as for the log."""
    lines = [f"{place or 'answer'}: {message}" for place, message in problems]
    more = f"\n… and {len(lines) - most} more" if len(lines) > most else ""
    return "\n".join(lines[:most]) + more
