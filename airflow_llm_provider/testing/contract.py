"""The check of requests against the API's own OpenAPI description, from the llm-comply package."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from importlib import resources
from typing import Any, Protocol

from airflow_llm_provider.testing.wire import ApiError

_URN = "urn:anthropic-openapi"


class _Validator(Protocol):
    def is_valid(self, instance: Any) -> bool: ...

    def iter_errors(self, instance: Any) -> Any: ...


def is_available() -> bool:
    """Say whether llm-comply and jsonschema are installed."""
    return all(importlib.util.find_spec(name) for name in ("llm_comply", "jsonschema"))


def check(body: Any, *, schema: str = "CreateMessageParams") -> None:
    """Raise ApiError 400 with the reason when `body` does not fit the schema of that name."""
    validator = _validator(schema)
    if validator.is_valid(body):
        return
    from jsonschema.exceptions import best_match

    error = best_match(validator.iter_errors(body))
    where = ".".join(map(str, error.absolute_path)) or "body"
    raise ApiError(400, f"{where}: {error.message[:300]}")


@lru_cache
def _validator(name: str) -> _Validator:
    # Loaded here: 1.2 MB of JSON and two test dependencies, needed only when validation is on.
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
