"""Every library that the package imports is declared in pyproject.toml; none arrives by chance with another."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import files
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = [*PROJECT["dependencies"], *chain.from_iterable(PROJECT["optional-dependencies"].values())]
# pytest itself loads our fixtures. Airflow's namespace belongs to a dozen distributions; apache-airflow brings them.
ALREADY_THERE = {"airflow_llm_provider", "pytest", "airflow"}


def test_every_import_is_declared() -> None:
    brought = {name for text in DECLARED for name in top_level_names(Requirement(text).name)}
    undeclared = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / "airflow_llm_provider").rglob("*.py")
        for name in imported(ast.parse(path.read_text())) - sys.stdlib_module_names - ALREADY_THERE - brought
    }
    assert not undeclared


def top_level_names(distribution: str) -> set[str]:
    """Return the modules that an installed distribution brings."""
    return {file.parts[0].partition(".")[0] for file in files(distribution) or ()}


def imported(module: ast.Module) -> set[str]:
    """Return the top-level names of what runs when `module` is used; imports for type checkers don't."""
    names: set[str] = set()
    for node in running(module):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def running(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from running(child)
