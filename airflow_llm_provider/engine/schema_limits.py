"""What the API's structured outputs take: its limits, and a schema written in its dialect.

Source: https://platform.claude.com/docs/en/build-with-claude/structured-outputs, "JSON Schema limitations" and "Schema
complexity limits".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

MOST_OPTIONAL = 24
MOST_UNIONS = 16
MOST_STRICT_TOOLS = 20
# The API states no depth. It limits the size of what it compiles, and this is more than any model fills.
MOST_LEVELS = 32

_SHOWN = 5  # fields that a message names
_TYPES = frozenset({"object", "array", "string", "integer", "number", "boolean", "null"})
_DEFINITION = "#/$defs/"
_CURE = (
    "Or ask without the API's enforcement: with request=RequestFields(enforce=False) the schema stands in the prompt, "
    "and answers are checked and repaired all the same."
)


def problem_of(schemas: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return why the API would refuse a request, and what to do; None if it would not.

    Bounds, patterns, other string formats and `minItems` above 1 are no reason: they are sent as descriptions, and
    answers are checked for them here.

    Args:
        schemas: all that the API enforces in one request, by what a message calls them: `output_type`, or the name of
            a strict tool.
    """
    found = _Found()
    for name, schema in schemas.items():
        found.add(schema, name)
    problem = next(iter(found.problems), None) or found.over_a_limit()
    if problem is None and (tools := sum(name != "output_type" for name in schemas)) > MOST_STRICT_TOOLS:
        problem = (
            f"there are {tools} strict tools, and the API takes {MOST_STRICT_TOOLS} in one request. Leave out `strict` "
            "where a wrong argument does no harm."
        )
    return problem and f"{problem} {_CURE}"


@dataclass
class _Found:
    """What stands in the schemas of a request.

    Attributes:
        optional: paths of the fields that an answer may leave out.
        unions: paths of what has more than one type.
        problems: what the API does not take at all.
    """

    optional: list[str] = field(default_factory=list)
    unions: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, schema: Mapping[str, Any], name: str) -> None:
        """Look at a whole schema."""
        _Walk(root=schema, found=self).look(schema, name, (), 0)

    def over_a_limit(self) -> str | None:
        """Return which count is too high, and the fields that are counted."""
        if (count := len(self.unions)) > MOST_UNIONS:
            return (
                f"{count} fields have more than one type ({_listed(self.unions)}), and the API takes {MOST_UNIONS} in "
                "one request. Give some of them one type: an empty text instead of null, or a list with no item."
            )
        if (count := len(self.optional)) > MOST_OPTIONAL:
            return (
                f"{count} fields are optional ({_listed(self.optional)}), and the API takes {MOST_OPTIONAL} in one "
                "request. Make some of them required: remove their defaults."
            )
        return None


@dataclass
class _Walk:
    """One way through a schema; a definition that is used twice is looked at once, as the API states no other rule."""

    root: Mapping[str, Any]
    found: _Found
    seen: set[str] = field(default_factory=set)

    def look(self, part: Any, path: str, inside: tuple[str, ...], level: int) -> None:
        """Note what stands at one place and below it.

        Args:
            part: the schema of the place.
            path: of the place, for messages.
            inside: names of the definitions that the place is within.
            level: how many objects and lists the place is within.
        """
        if level > MOST_LEVELS:
            self.refuse(path, f"is nested {level} levels deep, and {MOST_LEVELS} are sent. Flatten the type.")
        elif not isinstance(part, Mapping) or not _states_type(part):
            self.refuse(
                path, "may be anything, and the API takes no such field. Give it a type: Any is not one."
            )
        elif "$ref" in part:
            self.follow(str(part["$ref"]), path, inside, level)
        else:
            self.look_inside(part, path, inside, level)

    def refuse(self, path: str, why: str) -> None:
        """Note a problem of a place."""
        self.found.problems.append(f"{path} {why}")

    def follow(self, reference: str, path: str, inside: tuple[str, ...], level: int) -> None:
        """Look at the definition that a reference names."""
        name = reference.removeprefix(_DEFINITION)
        definitions = self.root.get("$defs", {})
        if reference == "#" or name in inside:
            self.refuse(
                path, "refers to itself, and the API takes no recursive type. Name each level in the type."
            )
        elif not reference.startswith(_DEFINITION) or name not in definitions:
            self.refuse(path, f"refers to {reference!r}. The API follows references into `$defs` only.")
        elif name not in self.seen:
            self.seen.add(name)
            self.look(definitions[name], path, (*inside, name), level)

    def look_inside(self, part: Mapping[str, Any], path: str, inside: tuple[str, ...], level: int) -> None:
        """Note what stands in a schema that is no reference."""
        kinds = _kinds(part)
        options = part.get("anyOf") or part.get("oneOf")
        if options or (len(kinds) > 1 and not _is_literal(part)):
            self.found.unions.append(path)
        for option in options or ():
            self.look(option, path, inside, level)
        for each in part.get("allOf") or ():
            if isinstance(each, Mapping) and "$ref" in each:
                self.refuse(
                    path,
                    "combines a reference with allOf, which the API does not take. Write its fields out.",
                )
            else:
                self.look(each, path, inside, level)
        if "object" in kinds:
            self.look_at_fields(part, path, inside, level + 1)
        if "array" in kinds:
            items = part.get("prefixItems") or [part.get("items")]
            for item in items:
                self.look(item, f"{path}.*", inside, level + 1)
            if len(items) > 1 and any(item != items[0] for item in items):
                self.found.unions.append(f"{path}.*")

    def look_at_fields(self, part: Mapping[str, Any], path: str, inside: tuple[str, ...], level: int) -> None:
        """Note the fields of an object."""
        fields = part.get("properties") or {}
        is_open = part.get("additionalProperties", "properties" not in part) not in (False, None)
        if "patternProperties" in part or (is_open and not fields):
            self.refuse(
                path,
                "is a dict with keys of the model's choice. The API takes named fields only, and the dict would always "
                "be empty. Ask for a list of entries, each with a key and a value.",
            )
        required = part.get("required") or ()
        for name, inner in fields.items():
            if name not in required:
                self.found.optional.append(f"{path}.{name}")
            self.look(inner, f"{path}.{name}", inside, level)


def _states_type(part: Mapping[str, Any]) -> bool:
    return (
        "$ref" in part
        or _is_literal(part)
        or bool(_kinds(part) & _TYPES)
        or any(part.get(keyword) for keyword in ("anyOf", "oneOf", "allOf"))
    )


def _kinds(part: Mapping[str, Any]) -> set[Any]:
    kinds = part.get("type")
    return {kinds} if isinstance(kinds, str) else set(kinds or ())


def _is_literal(part: Mapping[str, Any]) -> bool:
    """Tell whether a value is one of those listed, which is a type by itself."""
    listed = part["enum"] if "enum" in part else [part["const"]] if "const" in part else []
    return bool(listed) and not any(isinstance(value, (Mapping, list, tuple)) for value in listed)


def _listed(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(paths[:_SHOWN]) + more


_OF_KIND: Mapping[str, frozenset[str]] = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "minItems", "maxItems", "uniqueItems"}),
    "string": frozenset({"format", "pattern", "minLength", "maxLength"}),
}
# Keywords by what they hold: schemas by name, a list of schemas, one schema.
_NAMED, _LISTS, _SINGLE = {"properties", "$defs"}, {"anyOf", "oneOf", "allOf", "prefixItems"}, {"items"}


def in_dialect(schema: Any) -> Any:
    """Return a schema that anthropic.transform_schema reads without loss of what the API can enforce."""
    if not isinstance(schema, Mapping):
        return schema
    made = {keyword: _inner(keyword, value) for keyword, value in schema.items()}
    if items := made.pop("prefixItems", None):
        # The API has no tuples. Their order and length are checked here.
        distinct = [item for at, item in enumerate(items) if item not in items[:at]]
        made["items"] = distinct[0] if len(distinct) == 1 else {"anyOf": distinct}
    kinds = schema.get("type")
    if _is_literal(schema):
        made.pop("type", None)  # the API wants each listed value to be of the one type that is stated
    elif isinstance(kinds, list):  # the SDK takes one type at a time
        del made["type"]
        options = [{"type": kind, **_taken(made, _OF_KIND.get(kind, frozenset()))} for kind in kinds]
        made = {**made, **options[0]} if len(options) == 1 else {**made, "anyOf": options}
    return made


def _inner(keyword: str, value: Any) -> Any:
    if keyword in _NAMED and isinstance(value, Mapping):
        return {name: in_dialect(part) for name, part in value.items()}
    if keyword in _LISTS and isinstance(value, (list, tuple)):
        return [in_dialect(part) for part in value]
    return in_dialect(value) if keyword in _SINGLE else value


def _taken(made: dict[str, Any], keywords: Set[str]) -> dict[str, Any]:
    """Remove keywords from a schema, and return them."""
    return {keyword: made.pop(keyword) for keyword in keywords & made.keys()}
