"""Parts of a JSON schema: some of its fields, with the definitions they use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# https://platform.claude.com/docs/en/build-with-claude/structured-outputs, "Schema complexity limits".
_MOST_OPTIONAL = 24


def fields_of(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schemas of an object's fields by name."""
    properties: Mapping[str, Any] = _resolved(schema).get("properties", {})
    return properties


def part_of(schema: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Any] | None:
    """Return the schema of some of an object's fields, each of which may be left out.

    None where the API would not take it, since it bounds how many fields may be optional, and where a reference
    leads to what the part does not have.
    """
    fields = fields_of(schema)
    part: dict[str, Any] = {
        "type": "object",
        "properties": {name: fields[name] for name in names},
        "additionalProperties": False,
    }
    definitions = schema.get("$defs", {})
    used = _used(part, definitions)
    if used - definitions.keys():
        return None
    if used:
        part["$defs"] = {name: definitions[name] for name in definitions if name in used}
    optional = sum(len(each.get("properties", ())) - len(each.get("required", ())) for each in _walk(part))
    return part if optional <= _MOST_OPTIONAL else None


def names_in(schema: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of all fields, however deep."""
    return frozenset(name for each in _walk(schema) for name in each.get("properties", ()))


def _resolved(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow the reference that the whole of a schema may be: to itself, where it is recursive."""
    name = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    found: Mapping[str, Any] = schema.get("$defs", {}).get(name, schema)
    return found


def _walk(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every schema of objects within a schema."""
    if isinstance(schema, Mapping):
        if isinstance(schema.get("properties"), Mapping):
            yield schema
        for value in schema.values():
            yield from _walk(value)
    elif isinstance(schema, (list, tuple)):
        for value in schema:
            yield from _walk(value)


def _used(schema: Any, definitions: Mapping[str, Any]) -> set[str]:
    """Return the names of the definitions that a schema refers to, and those refer to; other references whole."""
    used: set[str] = set()
    left = [schema]
    while left:
        each = left.pop()
        if isinstance(each, Mapping):
            name = str(each.get("$ref", "")).removeprefix("#/$defs/")
            if name and name not in used:
                used.add(name)
                left.append(definitions.get(name))
            left.extend(each.values())
        elif isinstance(each, (list, tuple)):
            left.extend(each)
    return used
