"""Output types by name, for a process that does not load the DAG file."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from airflow_llm_provider.engine.validate import is_importable

_PLAIN = {cls.__name__: cls for cls in (str, int, float, bool)}


def named(output_type: Any) -> Any:
    """Return JSON data that `found` makes the same type of; raises ValueError where there is none."""
    if output_type is None or isinstance(output_type, Mapping):
        return output_type
    if get_origin(output_type) is list:
        return {"list of": named(get_args(output_type)[0])}
    if get_origin(output_type) is Literal:
        return {"one of": list(get_args(output_type))}
    if output_type in _PLAIN.values():
        return output_type.__name__
    if isinstance(output_type, type) and is_importable(output_type):
        return f"{output_type.__module__}:{output_type.__qualname__}"
    raise ValueError(f"{output_type!r} can't be imported by name; define it in a module beside the DAG file")


def found(name: Any) -> Any:
    """Return the output type of a name."""
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
            return list[found(item)]  # type: ignore[misc]  # a type made at run time
        case {"one of": options}:
            return Literal[tuple(options)]
        case _:
            return name
