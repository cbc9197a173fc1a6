"""Validates requests against the API's OpenAPI description, from the llm-comply package."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from functools import lru_cache
from importlib import resources
from typing import Any, Protocol

from airflow_llm_provider.testing.wire import ApiError

_URN = "urn:anthropic-openapi"


class _Validator(Protocol):
    def is_valid(self, instance: Any) -> bool: ...

    def iter_errors(self, instance: Any) -> Any: ...


def is_available() -> bool:
    """Tell whether llm-comply is installed."""
    return importlib.util.find_spec("llm_comply") is not None


def check(body: Any, *, schema: str = "CreateMessageParams") -> None:
    """Raise ApiError 400 with the reason when `body` does not fit the schema of this name."""
    validator = _validator(schema)
    if not validator.is_valid(body):
        error = _cause(validator.iter_errors(body))
        where = ".".join(map(str, error.absolute_path)) or "body"
        raise ApiError(400, f"{where}: {error.message[:300]}")
    for position, tool in enumerate(body.get("tools") or ()):
        _check_schema(tool.get("input_schema", {}), f"tools.{position}.custom.input_schema")


def _cause(errors: Iterable[Any]) -> Any:
    """Return the first error; inside a union, the first one of the branch that fits best."""
    error = next(iter(errors))
    while error.context:
        branches: dict[Any, list[Any]] = {}
        for inner in error.context:
            branches.setdefault(inner.schema_path[0], []).append(inner)
        error = min(branches.values(), key=_misfit)[0]
    return error


def _misfit(branch: list[Any]) -> tuple[bool, int]:
    """Rank a branch of a union: a branch of another type fits worst, then the one with more errors."""
    of_another_type = any(
        error.validator == "const"
        or (error.validator == "type" and error.absolute_path == error.parent.absolute_path)
        for error in branch
    )
    return of_another_type, len(branch)


def _check_schema(schema: Any, where: str) -> None:
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ApiError(
            400,
            f"{where}: JSON schema is invalid. It must match JSON Schema draft 2020-12 ({error.message[:200]})",
        ) from error


@lru_cache
def _validator(name: str) -> _Validator:
    # Loaded here: 1.2 MB of JSON, needed only when validation is on.
    import orjson
    from jsonschema import Draft202012Validator
    from referencing import Registry
    from referencing.jsonschema import DRAFT202012

    description = orjson.loads((resources.files("llm_comply") / "specs" / "anthropic.json").read_bytes())
    registry = Registry().with_resource(_URN, DRAFT202012.create_resource(description))
    validator: _Validator = Draft202012Validator(
        {"$ref": f"{_URN}#/components/schemas/{name}"}, registry=registry
    )
    return validator
