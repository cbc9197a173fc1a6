"""Write the reference of the operators from their signatures and docstrings: `python docs/reference/generate.py`."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from airflow_llm_provider.operators.branch import LLMBranchOperator
from airflow_llm_provider.operators.claude import ClaudeOperator
from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator
from airflow_llm_provider.operators.repair import ValidationRepairOperator
from airflow_llm_provider.sensors.approval import ApprovalSensor

PAGE = Path(__file__).with_name("operators.md")
TITLES = {
    ClaudeOperator: "ClaudeOperator, @task.claude",
    ClaudeDocumentsOperator: "ClaudeDocumentsOperator, @task.claude_documents",
    LLMBranchOperator: "LLMBranchOperator, @task.claude_branch",
    ValidationRepairOperator: "ValidationRepairOperator, @task.claude_repair",
    ApprovalSensor: "ApprovalSensor",
}
_ARGUMENT = re.compile(r"^((?:\w+, )*\w+): (.+?)(?=\n\S|\n\n|\Z)", re.DOTALL | re.MULTILINE)


def described(cls: type) -> dict[str, str]:
    """Return what the docstrings of a class and its bases say of each argument; `a, b: …` describes both."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("airflow_llm_provider."):
            for names, text in _ARGUMENT.findall(_doc(base)):
                found |= {name: " ".join(text.split()) for name in names.split(", ")}
    return found


def prose(cls: type) -> str:
    """Return the paragraphs of a docstring that describe no arguments."""
    paragraphs = (" ".join(part.split()) for part in _doc(cls).split("\n\n") if not _ARGUMENT.match(part))
    return "\n\n".join(paragraphs)


def page() -> str:
    """Return the page."""
    parts = ["# The operators and the sensor\n\nWritten by `docs/reference/generate.py` from the code.\n"]
    for cls, title in TITLES.items():
        texts = described(cls)
        parts.append(f"\n## {title}\n\n{prose(cls)}\n\n| argument | default | |\n|---|---|---|\n")
        for name, parameter in inspect.signature(cls.__init__).parameters.items():
            if name in ("self", "kwargs"):
                continue
            default = "" if parameter.default is parameter.empty else f"`{parameter.default!r}`"
            parts.append(f"| `{name}` | {default} | {texts[name].replace('|', chr(92) + '|')} |\n")
    return "".join(parts)


def _doc(cls: type) -> str:
    return inspect.cleandoc(cls.__doc__ or "")


if __name__ == "__main__":
    PAGE.write_text(page())
