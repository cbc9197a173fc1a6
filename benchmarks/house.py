"""Measure how easily the package can be read: `python benchmarks/house.py [FOLDER] [--before REV]`, or `make house`.

FOLDER is a package folder, by default ours. `--before REV` measures that revision beside it, `--no-walk` leaves out
the two task runs, and `--check` only looks for import circles, and for private parts of Airflow outside of
`_airflow.py`. The last line is one JSON object.

How each figure is counted:

- modules: every `.py` file. "without testing/" leaves out the test kit; so do all figures below "lines".
- imports: those at module level, inside functions and below `if TYPE_CHECKING:`. The last are not run; circles that
  exist without them are counted apart. An import of a module is not counted as one of the packages around it.
- arguments of an operator: those of `__init__` in `operators/` and `sensors/`, with those of our own base classes
  that `**kwargs` reaches; Airflow's own are left out.
- `Any`: each use of the name, imports left out.
- the walks: one prompt and one text document, in a real task instance against the stand-in; see `walk.py`. Files
  "that ran" are those of which a function ran between the start and the return of `execute`, in any thread.
- private parts of Airflow: see `PRIVATE_MODULES`, and underscore attributes or names that no module of ours defines.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OURS = ROOT / "airflow_llm_provider"
SHORT, LONG = 60, 600  # lines of a module
# Airflow promises nothing about these modules, nor about any module or name that starts with an underscore.
PRIVATE_MODULES = (
    "airflow.serialization.",
    "airflow.sdk.execution_time.",
    "airflow.models.",
    "airflow.jobs.",
)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Module:
    """One file of the package."""

    name: str
    path: Path
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The file, parsed."""
        return ast.parse(self.text)

    @property
    def lines(self) -> int:
        """How many lines the file has, empty ones and comments included."""
        return len(self.text.splitlines())

    @property
    def is_test_kit(self) -> bool:
        """Whether it is part of the test kit."""
        return ".testing." in f"{self.name}."


def read(folder: Path) -> dict[str, Module]:
    """Return the modules of a package by their dotted names."""
    modules = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = Module(name=name, path=path, text=path.read_text())
    return modules


def _imports(
    tree: ast.AST, *, is_for_types: bool = False
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, is_for_types
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _imports(ast.Module(body=node.body, type_ignores=[]), is_for_types=True)
            yield from _imports(ast.Module(body=node.orelse, type_ignores=[]), is_for_types=is_for_types)
        else:
            yield from _imports(node, is_for_types=is_for_types)


def graph(modules: dict[str, Module], *, with_types: bool = True) -> dict[str, set[str]]:
    """Return who imports whom; `from a import b` is an import of a.b, where that is a module, or else of a."""
    edges: dict[str, set[str]] = {}
    for name, module in modules.items():
        targets: set[str] = set()
        for node, is_for_types in _imports(module.tree):
            if is_for_types and not with_types:
                continue
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
                continue
            base = node.module or ""
            within = {alias.name: f"{base}.{alias.name}" for alias in node.names}
            targets |= {full if full in modules else base for full in within.values()}
        edges[name] = (targets & set(modules)) - {name}
    return edges


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one module (Tarjan's algorithm, without recursion)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    found: list[list[str]] = []
    for start in edges:
        if start in index:
            continue
        work: list[tuple[str, Iterator[str]]] = []

        def enter(name: str, work: list[tuple[str, Iterator[str]]] = work) -> None:
            index[name] = low[name] = len(index)
            stack.append(name)
            on_stack.add(name)
            work.append((name, iter(sorted(edges[name]))))

        enter(start)
        while work:
            name, targets = work[-1]
            for target in targets:
                if target not in index:
                    enter(target)
                    break
                if target in on_stack:
                    low[name] = min(low[name], index[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[name])
                if low[name] == index[name]:
                    component = []
                    while True:
                        component.append(stack.pop())
                        on_stack.discard(component[-1])
                        if component[-1] == name:
                            break
                    if len(component) > 1:
                        found.append(sorted(component))
    return sorted(found)


def figures(folder: Path) -> dict[str, Any]:
    """Return the figures of a package folder."""
    everything = read(folder)
    modules = {name: module for name, module in everything.items() if not module.is_test_kit}
    lines = sum(module.lines for module in modules.values())
    edges = graph(everything)
    importers = Counter(target for targets in edges.values() for target in targets)
    functions = [
        node for module in modules.values() for node in ast.walk(module.tree) if isinstance(node, FUNCTIONS)
    ]
    longest = max(functions, key=_length)
    widths = {name: width for module in modules.values() for name, width in _widths(module)}
    widest = max(widths, key=lambda name: widths[name])
    anys = sum(_uses_of_any(module.tree) for module in modules.values())
    docstrings = sum(_docstring_lines(module.tree) for module in modules.values())
    comments = sum(_comments(module.text) for module in modules.values())
    once = [name for name in modules if importers[name] == 1]
    short = [module for module in modules.values() if 0 < module.lines < SHORT]
    return {
        "modules": len(everything),
        "modules without testing/": len(modules),
        "lines": sum(module.lines for module in everything.values()),
        "lines without testing/": lines,
        "median lines of a module": statistics.median(module.lines for module in modules.values()),
        f"modules under {SHORT} lines": len(short),
        f"modules over {LONG} lines": [name for name, module in modules.items() if module.lines > LONG],
        "modules imported by exactly one other": len(once),
        "of these, under 60 lines": sorted(module.name for module in short if module.name in once),
        "import circles": circles(edges),
        "import circles without TYPE_CHECKING": circles(graph(everything, with_types=False)),
        "arguments of an operator": _operators(everything),
        "parameters of a public callable, mean": round(statistics.mean(widths.values()), 2),
        "parameters of a public callable, most": f"{widths[widest]} ({widest})",
        "`Any`s": anys,
        "`Any`s per 1,000 lines": round(1000 * anys / lines, 1),
        "comments per 100 lines": round(100 * comments / lines, 1),
        "docstring lines per 100 lines": round(100 * docstrings / lines, 1),
        "longest function, lines": f"{_length(longest)} ({longest.name})",
        "hard dependencies": _dependencies(folder.parent / "pyproject.toml"),
        "modules that reach into Airflow's private parts": private_parts(modules),
    }


def _length(node: Function) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _parameters(node: Function) -> list[str]:
    names = [each.arg for each in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
    return [name for name in names if name not in ("self", "cls")]


def _widths(module: Module) -> Iterator[tuple[str, int]]:
    """Yield the public functions, methods and constructors of a module, with how many parameters each has."""
    for node in module.tree.body:
        if isinstance(node, FUNCTIONS) and not node.name.startswith("_"):
            yield f"{module.name}.{node.name}", len(_parameters(node))
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for each in node.body:
                if isinstance(each, FUNCTIONS) and (each.name == "__init__" or not each.name.startswith("_")):
                    yield f"{module.name}.{node.name}.{each.name}", len(_parameters(each))


def _operators(modules: dict[str, Module]) -> dict[str, int]:
    """Return how many arguments of ours each operator and sensor takes."""
    classes = {
        node.name: node
        for module in modules.values()
        for node in module.tree.body
        if isinstance(node, ast.ClassDef)
        and {"operators", "sensors", "approvals"} & set(module.name.split("."))
    }

    def arguments(name: str) -> set[str]:
        node = classes[name]
        bases = [ast.unparse(base).split(".")[-1].split("[")[0] for base in node.bases]
        inherited = [base for base in bases if base in classes]
        for each in node.body:
            if isinstance(each, FUNCTIONS) and each.name == "__init__":
                own = set(_parameters(each))
                return own.union(*map(arguments, inherited)) if each.args.kwarg else own
        return set().union(*map(arguments, inherited))

    shown = [name for name in classes if name.endswith(("Operator", "Sensor")) and not name.startswith("_")]
    return {name: len(arguments(name)) for name in shown}


def _uses_of_any(tree: ast.AST) -> int:
    """Return how often `Any` is used, in annotations that are written as strings too."""
    count = 0
    for node in ast.walk(tree):
        if (isinstance(node, ast.Name) and node.id == "Any") or (
            isinstance(node, ast.Attribute) and node.attr == "Any"
        ):
            count += 1
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "Any" in node.value:
            with contextlib.suppress(SyntaxError):  # most strings are not annotations
                inner = ast.parse(node.value, mode="eval")
                count += sum(isinstance(each, ast.Name) and each.id == "Any" for each in ast.walk(inner))
    return count


def _docstring_lines(tree: ast.AST) -> int:
    count = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                count += (first.end_lineno or first.lineno) - first.lineno + 1
    return count


def _comments(text: str) -> int:
    return sum(
        token.type == tokenize.COMMENT for token in tokenize.generate_tokens(io.StringIO(text).readline)
    )


def _dependencies(pyproject: Path) -> int | None:
    import tomllib

    if not pyproject.exists():
        return None
    return len(tomllib.loads(pyproject.read_text())["project"].get("dependencies", []))


def private_parts(modules: dict[str, Module]) -> dict[str, list[str]]:
    """Return what each module uses of Airflow's private parts; the test kit may."""
    defined = _private_names(modules.values())
    ours = [module for module in modules.values() if not module.is_test_kit]
    return {module.name: reached for module in ours if (reached := _private(module, defined))}


def _private(module: Module, defined: set[str]) -> list[str]:
    """Return what a module uses of Airflow that Airflow does not promise to keep; `defined` are our own names."""
    found: set[str] = set()
    knows_airflow = False
    for node, _ in _imports(module.tree):
        base = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        for name in (f"{base}{alias.name}" for alias in node.names):
            if name.split(".")[0] != "airflow":
                continue
            knows_airflow = True
            has_underscore = any(part.startswith("_") for part in name.split("."))
            if has_underscore or f"{name}.".startswith(PRIVATE_MODULES):
                found.add(name)
    if knows_airflow:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and _is_private(node.attr) and node.attr not in defined:
                found.add(f".{node.attr}")
    return sorted(found)


def _is_private(name: str) -> bool:
    return (
        name.startswith("_") and not name.startswith("__") and name != "_mapping"
    )  # SQLAlchemy's, documented


def _private_names(modules: Iterable[Module]) -> set[str]:
    """Return the underscore names that our code defines, but for methods that override one of a foreign class."""
    names: set[str] = set()
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, FUNCTIONS):
                calls = {
                    each.attr
                    for each in ast.walk(node)
                    if isinstance(each, ast.Attribute) and _is_super(each)
                }
                names |= {node.name} - calls
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names |= {node.attr} if ast.unparse(node.value) == "self" else set()
    return {name for name in names if _is_private(name)}


def _is_super(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "super"


def walk(folder: Path) -> dict[str, Any]:
    """Return what `benchmarks/walk.py` sees of a package folder."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "walk.py")],
        env={**os.environ, "PYTHONPATH": str(folder.parent)},
        cwd=tempfile.gettempdir(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr[-4000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(folder: Path, *, with_walk: bool) -> dict[str, Any]:
    """Return all figures of a package folder, the walks among them."""
    found = figures(folder)
    if with_walk:
        for kind, seen in walk(folder).items():
            found |= {
                f"{kind}: frames from execute to HTTP": seen["frames"],
                f"{kind}: of these, ours": seen["frames_ours"],
                f"{kind}: the stack": seen["stack"],
                f"{kind}: our files on it": seen["files_on_stack"],
                f"{kind}: our files that ran": seen["files_ran"],
            }
    return found


@contextlib.contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """Give the package folder of a revision, in a work tree of its own."""
    with tempfile.TemporaryDirectory(prefix="house-") as temporary:
        tree = Path(temporary) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), revision], check=True)
        try:
            yield tree / OURS.name
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def check(folder: Path) -> int:
    """Print import circles, and modules besides `_airflow` that use private parts of Airflow; return how many."""
    modules = read(folder)
    found = [f"Import circle: {', '.join(names)}" for names in circles(graph(modules))]
    for name, reached in private_parts(modules).items():
        if name.split(".")[1:] != ["_airflow"]:
            found.append(
                f"{name} uses private parts of Airflow, which _airflow.py should: {', '.join(reached)}"
            )
    print("\n".join(found) or "No import circles; only _airflow.py uses private parts of Airflow.")
    return len(found)


def show(columns: dict[str, dict[str, Any]]) -> None:
    """Print the figures side by side, then what the lists hold."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=int(os.environ.get("COLUMNS", "120")))
    table = Table(title="The house")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    labels = list(dict.fromkeys(label for figures in columns.values() for label in figures))
    for label in labels:
        table.add_row(label, *(_cell(figures.get(label)) for figures in columns.values()))
    console.print(table)
    name, last = list(columns.items())[-1]
    for label, value in last.items():
        if isinstance(value, list | dict) and value and not isinstance(next(iter(value)), int):
            console.print(f"\n[bold]{label}[/bold] ({name})")
            for line in _items(value):
                console.print(f"  {line}", highlight=False, soft_wrap=True, markup=False)


def _cell(value: Any) -> str:
    if isinstance(value, dict) and value and all(isinstance(each, int) for each in value.values()):
        return "\n".join(f"{name} {count}" for name, count in value.items())
    return str(len(value)) if isinstance(value, list | dict) else "" if value is None else str(value)


def _items(value: Iterable[Any] | dict[str, Any]) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (
            f"{name}: {', '.join(each) if isinstance(each, list) else each}" for name, each in value.items()
        )
    else:
        yield from (" <-> ".join(each) if isinstance(each, list) else str(each) for each in value)


def main() -> int:
    """Measure, print, and end with one JSON object."""
    parser = argparse.ArgumentParser(description="Measure how easily the package can be read.")
    parser.add_argument("folder", nargs="?", type=Path, default=OURS, help="a package folder (default: ours)")
    parser.add_argument("--before", metavar="REV", help="measure this revision beside it")
    parser.add_argument("--no-walk", action="store_true", help="run no task")
    parser.add_argument(
        "--check",
        action="store_true",
        help="only look for import circles and for private parts of Airflow",
    )
    options = parser.parse_args()
    folder = options.folder.resolve()
    if options.check:
        return min(check(folder), 1)
    columns = {}
    if options.before:
        with checked_out(options.before) as before:
            columns[options.before] = measure(before, with_walk=not options.no_walk)
    columns["now"] = measure(folder, with_walk=not options.no_walk)
    show(columns)
    print(json.dumps({"name": "house", **columns}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
