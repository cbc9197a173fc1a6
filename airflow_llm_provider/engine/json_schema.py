"""A JSON schema as its author types it: one that no answer can be held against is refused before any is paid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_llm_provider.errors import TerminalError

_REFERENCES = frozenset({"$ref", "$dynamicRef"})


def require_checkable(schema: Mapping[str, Any]) -> None:
    """Raise TerminalError for what is no schema by draft 2020-12, and for references that lead nowhere.

    References may only lead within the schema: what stands elsewhere would be fetched while an answer waits.
    """
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    _require_schema(schema, "")
    root = DRAFT202012.create_resource(schema)
    left = [(root, Registry().resolver_with_root(root))]
    seen = {id(schema)}
    while left:
        resource, resolver = left.pop()
        part = resource.contents
        for keyword in _REFERENCES & (part.keys() if isinstance(part, Mapping) else set()):
            try:
                found = resolver.lookup(part[keyword])
            except (Unresolvable, ValueError):
                raise _no_schema(f"nothing in it is what {keyword} {part[keyword]!r} leads to") from None
            if id(found.contents) not in seen:
                seen.add(id(found.contents))
                _require_schema(found.contents, f" of {part[keyword]!r}")  # it may lie under any key
                left.append((DRAFT202012.create_resource(found.contents), found.resolver))
        try:
            left += [(each, resolver.in_subresource(each)) for each in resource.subresources()]
        except ValueError as error:
            raise _no_schema(f"an $id in it is no URI: {error}") from None


def _require_schema(schema: Any, where: str) -> None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise _no_schema(f"at {error.json_path}{where}, {error.message}") from None


def _no_schema(why: str) -> TerminalError:
    short = why if len(why) <= 300 else f"{why[:300]}…"
    return TerminalError(f"output_type= is no JSON schema of draft 2020-12: {short}. Nothing was sent.")
