"""The rules of structured outputs: which schemas the API refuses, in its own words where they are known.

The rules are those of https://platform.claude.com/docs/en/build-with-claude/structured-outputs, the words are those of
public reports. They are written here a second time, and not taken from the engine: a stand-in that used the engine's
own check could not disagree with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from airflow_llm_provider.testing.wire import ApiError

_LIMITS = {"strict tools": 20, "optional": 24, "unions": 16}
# The API publishes no figure for the size of what it compiles. No schema of a sane type comes near this one.
_MOST_PARTS = 2_000
_FORMATS = ["date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"]
_ANYWHERE = {
    *("type", "title", "description", "default", "enum", "const"),
    *("anyOf", "allOf", "$ref", "$defs", "definitions"),
}
_BY_TYPE: Mapping[str, set[str]] = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems"},
    "string": {"format", "pattern"},
    "integer": set(),
    "number": set(),
    "boolean": set(),
    "null": set(),
}


def check_schemas(body: Mapping[str, Any]) -> None:
    """Raise ApiError 400 if the API would not compile the schemas of a request."""
    counts: Counter[str] = Counter()
    for where, schema in _enforced(body):
        counts["strict tools"] += where.startswith("tools.")
        for part, within in _parts(schema, schema, where):
            counts["parts"] += 1
            if counts["parts"] > _MOST_PARTS:
                raise ApiError(400, "Schema is too complex for compilation.")
            _check_part(part, within)
            properties = part.get("properties", {})
            counts["optional"] += len(properties.keys() - set(part.get("required", ())))
            counts["unions"] += "anyOf" in part or isinstance(part.get("type"), list)
    _check_counts(counts)


def _enforced(body: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    form = (body.get("output_config") or {}).get("format") or {}
    if form.get("type") == "json_schema":
        yield "output_config.format.schema", form.get("schema") or {}
    for position, tool in enumerate(body.get("tools") or ()):
        if tool.get("strict"):
            yield f"tools.{position}.custom", tool.get("input_schema") or {}


def _check_counts(counts: Counter[str]) -> None:
    if (unions := counts["unions"]) > _LIMITS["unions"]:
        raise ApiError(
            400,
            f"Schemas contains too many parameters with union types ({unions} parameters with type arrays or anyOf). "
            "This causes exponential compilation cost. Reduce the number of nullable or union-typed parameters "
            f"(limit: {_LIMITS['unions']} parameters with unions).",
        )
    if (optional := counts["optional"]) > _LIMITS["optional"]:
        raise ApiError(
            400,
            f"Schemas contains too many optional parameters ({optional}), which would make grammar compilation "
            "inefficient. Reduce the number of optional parameters in your tool schemas "
            f"(limit: {_LIMITS['optional']}).",
        )
    if (tools := counts["strict tools"]) > _LIMITS["strict tools"]:
        raise ApiError(400, f"Too many strict tools ({tools}), limit: {_LIMITS['strict tools']}.")


def _parts(part: Any, root: dict[str, Any], where: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each schema within a schema; definitions where they stand, and not where they are used."""
    if not isinstance(part, dict):
        raise ApiError(400, f"{where}: Invalid schema: Schema type is missing")
    yield part, where
    definitions: dict[str, Any] = part.get("$defs") or part.get("definitions") or {}
    for name, definition in definitions.items():
        _refuse_circle(name, root, (name,))
        yield from _parts(definition, root, where)
    _check_reference(part, root, where)
    inner = [
        *part.get("properties", {}).values(),
        *part.get("anyOf", ()),
        *part.get("allOf", ()),
        *([part["items"]] if "items" in part else []),
    ]
    for each in inner:
        yield from _parts(each, root, where)


def _check_reference(part: dict[str, Any], root: dict[str, Any], where: str) -> None:
    if (reference := part.get("$ref")) is None:
        return
    if reference == "#":
        raise ApiError(400, _circular("#", "#"))
    if not reference.startswith("#/"):
        raise ApiError(400, f"{where}: Invalid schema: External reference is not supported: {reference}")
    if _definition(reference, root) is None:
        raise ApiError(400, f"{where}: Invalid schema: Reference to non-existent definition: {reference}")


def _definition(reference: str, root: dict[str, Any]) -> Any:
    _, _, rest = reference.partition("#/")
    kind, _, name = rest.partition("/")
    return root.get(kind, {}).get(name) if kind in ("$defs", "definitions") else None


def _refuse_circle(name: str, root: dict[str, Any], way: tuple[str, ...]) -> None:
    """Refuse a definition that leads back to itself, on whatever way."""
    definition = _definition(f"#/$defs/{name}", root) or _definition(f"#/definitions/{name}", root)
    for used in dict.fromkeys(_used(definition)):
        if used == way[0]:
            raise ApiError(400, _circular(*way, used))
        if used not in way:
            _refuse_circle(used, root, (*way, used))


def _used(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"].rpartition("/")[2]
        part = list(part.values())
    if isinstance(part, list):
        for each in part:
            yield from _used(each)


def _circular(*way: str) -> str:
    return (
        f"Circular reference detected in schema definitions: {' -> '.join(way)}. Self-referencing or "
        "mutually-referencing definitions are not supported."
    )


def _check_part(part: dict[str, Any], where: str) -> None:
    if "oneOf" in part:
        raise ApiError(400, f"{where}: Schema type 'oneOf' is not supported")
    if not part.keys() & {"type", "anyOf", "allOf", "$ref", "enum", "const"}:
        raise ApiError(400, f"{where}: Invalid schema: Schema type is missing")
    if any("$ref" in each for each in part.get("allOf", ())):
        raise ApiError(400, f"{where}: Invalid schema: allOf with $ref is not supported")
    kinds = part.get("type", [])
    for value in part.get("enum", ()):
        if isinstance(value, dict | list):
            raise ApiError(400, f"{where}: Invalid schema: Enum values of complex types are not supported")
        if isinstance(kinds, list) and kinds:
            raise ApiError(
                400, f"{where}: Invalid schema: Enum value '{value}' does not match declared type '{kinds}'"
            )
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        _check_keywords(part, kind, where)


def _check_keywords(part: dict[str, Any], kind: str, where: str) -> None:
    if kind not in _BY_TYPE:
        raise ApiError(400, f"{where}: Invalid schema: Schema type '{kind}' is not supported")
    if kind == "array" and part.get("minItems", 0) not in (0, 1):
        got = f"[{part['minItems']}, {part.get('maxItems', '∞')}]"
        raise ApiError(
            400,
            f"{where}: For 'array' type, 'minItems' values other than 0 or 1 are not supported (got: {got})",
        )
    others = set().union(*_BY_TYPE.values()) if isinstance(part.get("type"), list) else _BY_TYPE[kind]
    if unknown := sorted(part.keys() - _ANYWHERE - others):
        are = f"property '{unknown[0]}' is" if len(unknown) == 1 else f"properties {', '.join(unknown)} are"
        raise ApiError(400, f"{where}: For '{kind}' type, {are} not supported")
    if kind == "string" and part.get("format") not in (None, *_FORMATS):
        raise ApiError(400, f"{where}: For 'string' type, format '{part['format']}' is not supported")
    if kind == "object" and (extra := part.get("additionalProperties")) is not False:
        said = "object" if isinstance(extra, dict) else str(extra).lower()
        raise ApiError(
            400,
            f"{where}: For 'object' type, 'additionalProperties' must be explicitly set to false"
            if extra is None
            else f"{where}: For 'object' type, 'additionalProperties: {said}' is not supported. Please set "
            "'additionalProperties' to false",
        )
