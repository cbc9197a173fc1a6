"""Tools: typed Python functions that a model may call."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, overload

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")  # what the Messages API takes


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A function that a model may call, and what the model is told about it.

    Attributes:
        function: every parameter has a type that pydantic knows, and can be given by name. An async function is
            awaited; any other runs in a thread of its own. Its docstring (Google, NumPy or Sphinx style) describes it
            and its parameters to the model.
        irreversible: run it at most once per task instance, over all its attempts and clears.
        needs_approval: park the task before each call until a person has seen the arguments and approved them.

    Raises:
        TypeError: the function cannot be described to the model.
    """

    function: Callable[..., Any]
    irreversible: bool = False
    needs_approval: bool = False

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"A tool has to be a function, and {self.function!r} is not one.")
        _ = self.definition  # a function that cannot be a tool is an error when the DAG is parsed

    @classmethod
    def of(cls, function: Callable[..., Any] | Self) -> Self:
        """Return a tool made from a plain function, or the tool itself."""
        return function if isinstance(function, cls) else cls(function=function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the plain function."""
        return self.function(*args, **kwargs)

    def __deepcopy__(self, memo: object) -> Self:
        return self  # Airflow copies a task's arguments, and a tool never changes

    @property
    def name(self) -> str:
        """The function's name."""
        return str(getattr(self.function, "__name__", repr(self.function)))

    @cached_property
    def definition(self) -> Mapping[str, Any]:
        """Name, description and input schema in the form of the Messages API."""
        from docstring_parser import parse

        docstring = parse(inspect.getdoc(self.function) or "")
        schema = self._schema()
        properties = schema["properties"]
        for param in docstring.params:
            if param.arg_name in properties and param.description:
                properties[param.arg_name].setdefault("description", param.description)
        for name, parameter in self._parameters.items():
            # Other defaults may not be JSON, and the function applies them anyway.
            if isinstance(parameter.default, (str, int, float)):
                properties[name].setdefault("default", parameter.default)
        description = {"description": docstring.description.strip()} if docstring.description else {}
        return {"name": self.name, **description, "input_schema": schema}

    def arguments(self, given: bytes) -> dict[str, Any]:
        """Return the function's arguments from the JSON that a model gave.

        Raises:
            ValueError: the complaint, for the model.
        """
        from pydantic import ValidationError

        try:
            return dict(self._adapter.validate_json(given))
        except ValidationError as error:
            problems = error.errors(include_url=False, include_context=False, include_input=False)
            complaints = [f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in problems]
            raise ValueError("\n".join(complaints)) from None

    def _schema(self) -> dict[str, Any]:
        from pydantic import PydanticUserError

        try:
            schema: dict[str, Any] = self._adapter.json_schema()
        except PydanticUserError as error:  # the rest of the message is about pydantic's settings
            raise TypeError(f"The tool {self.name}: {error.message.splitlines()[0]}") from error
        return schema

    @cached_property
    def _adapter(self) -> Any:
        """The signature as a pydantic type: an object with one field per parameter, and no others."""
        from pydantic import ConfigDict, TypeAdapter, with_config
        from typing_extensions import TypedDict  # pydantic supports typing.TypedDict from Python 3.12 on

        hints = self._hints
        fields: dict[str, Any] = {
            name: hints[name] if parameter.default is parameter.empty else typing.NotRequired[hints[name]]
            for name, parameter in self._parameters.items()
        }
        make: Any = TypedDict  # its fields are known only at run time
        return TypeAdapter(with_config(ConfigDict(extra="forbid"))(make(self.name, fields)))

    @cached_property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        if not inspect.isroutine(self.function) or not _NAME.fullmatch(self.name):
            raise TypeError(
                f"{self.function!r} can't be a tool. A tool is a function whose name has only letters, digits, _ and -."
            )
        parameters = inspect.signature(self.function).parameters
        for name, parameter in parameters.items():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise TypeError(
                    f"The tool {self.name}: {parameter} can't be given by name, and a model gives all arguments by "
                    "name. Write out the parameters."
                )
            if parameter.annotation is parameter.empty:
                raise TypeError(
                    f"The tool {self.name}: the parameter {name!r} has no type. Give it one, such as `{name}: str`. "
                    "The model is told the type, and its arguments are validated."
                )
            if not _NAME.fullmatch(name):
                raise TypeError(f"The tool {self.name}: the API does not allow a parameter named {name!r}.")
        return parameters

    @property
    def _hints(self) -> Mapping[str, Any]:
        try:
            return typing.get_type_hints(self.function, include_extras=True)
        except (NameError, AttributeError) as error:
            raise TypeError(
                f"The tool {self.name}: {error}. The types of its parameters are needed at run time. "
                "Import them outside of `if TYPE_CHECKING`."
            ) from error


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *, irreversible: bool = False, needs_approval: bool = False
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    irreversible: bool = False,
    needs_approval: bool = False,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a function a tool: `@tool`, or `@tool(irreversible=True)`.

    Args:
        function: as for Tool.
        irreversible: run it at most once per task instance, over all its attempts and clears.
        needs_approval: park the task before each call until a person has approved it.
    """

    def made(function: Callable[..., Any]) -> Tool:
        return Tool(function=function, irreversible=irreversible, needs_approval=needs_approval)

    return made if function is None else made(function)


def by_name(tools: Iterable[Callable[..., Any] | Tool]) -> dict[str, Tool]:
    """Return tools and plain functions as tools, by their names.

    Raises:
        TypeError: a function cannot be described to the model.
        ValueError: two have the same name.
    """
    named: dict[str, Tool] = {}
    for one in map(Tool.of, tools):
        if one.name in named:
            raise ValueError(f"Two tools are named {one.name!r}. A model could not tell them apart.")
        named[one.name] = one
    return named
