"""JSON schemas: check an author's own, follow references, and take a part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from airflow_llm_provider.errors import TerminalError

DECIMAL = "decimal"
"""The `format` of a Decimal: a number in an answer, a text in a row."""
LOCAL_TIME = "local-date-time"
"""The `format` of a date and time that never has an offset, in a row."""
MAX_DIGITS, PLACES = "maxDigits", "decimalPlaces"
"""Keywords of a Decimal in a row: its digits in all, and those after the point."""

_REFERENCES = frozenset({"$ref", "$dynamicRef"})


def require_checkable(schema: Mapping[str, Any]) -> None:
    """Return if answers can be validated against the schema.

    References may only point within the schema, because anything else would have to be fetched.

    Raises:
        TerminalError: It is not a schema of draft 2020-12, or a reference points to nothing.
    """
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    _require_schema(schema, "")
    root = DRAFT202012.create_resource(schema)
    left = [(root, Registry().resolver_with_root(root))]
    # A schema may refer to itself, so each target is checked once.
    seen = {id(schema)}
    while left:
        resource, resolver = left.pop()
        part = resource.contents
        for keyword in _REFERENCES & (part.keys() if isinstance(part, Mapping) else set()):
            try:
                found = resolver.lookup(part[keyword])
            except (Unresolvable, ValueError):
                raise _no_schema(f"{keyword} {part[keyword]!r} points to nothing in it") from None
            if id(found.contents) not in seen:
                seen.add(id(found.contents))
                # A reference may point to a place that is not a schema by its keyword, which the check of the whole
                # does not look at.
                _require_schema(found.contents, f" of {part[keyword]!r}")
                left.append((DRAFT202012.create_resource(found.contents), found.resolver))
        try:
            left += [(each, resolver.in_subresource(each)) for each in resource.subresources()]
        except ValueError as error:
            raise _no_schema(f"an $id in it is not a URI: {error}") from None


def _require_schema(schema: Any, where: str) -> None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise _no_schema(f"at {error.json_path}{where}, {error.message}") from None


def _no_schema(why: str) -> TerminalError:
    short = why if len(why) <= 300 else f"{why[:300]}…"
    return TerminalError(f"output_type= is not a JSON schema of draft 2020-12: {short}. Nothing was sent.")


def resolve_reference(reference: str, root: Mapping[str, Any]) -> Any:
    """Return the part of `root` that a `$ref` points to, or None if it points to nothing in it."""
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    try:
        resolver = Registry[Any]().resolver_with_root(DRAFT202012.create_resource(root))
        return resolver.lookup(reference).contents
    except (Unresolvable, ValueError, TypeError, LookupError, AttributeError):
        return None


def fields_of(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schemas of an object's fields by name."""
    # The whole of a recursive type is a reference to one of its definitions.
    whole = resolve_reference(str(schema["$ref"]), schema) if "$ref" in schema else schema
    properties: Mapping[str, Any] = (whole or schema).get("properties", {})
    return properties


def part_of(schema: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Any] | None:
    """Return the schema of some of an object's fields, each of them optional, with the definitions they use.

    None if a reference points outside of the part.
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
    return part


def names_in(schema: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of all fields, however deep."""
    return frozenset(name for each in _walk(schema) for name in each.get("properties", ()))


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
    """Return the names of all definitions that a schema uses, directly or not; other references as they are."""
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
