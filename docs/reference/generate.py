"""Write the reference of the operators from their signatures and docstrings: `python docs/reference/generate.py`."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from airflow_llm_provider.operators.claude import ClaudeOperator
from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator

PAGE = Path(__file__).with_name("operators.md")
DECORATORS = {ClaudeOperator: "@task.claude", ClaudeDocumentsOperator: "@task.claude_documents"}


def described(cls: type) -> dict[str, str]:
    """Return what the docstring says of each argument; `a, b: …` describes both."""
    doc = inspect.cleandoc(cls.__doc__ or "")
    found: dict[str, str] = {}
    for names, text in re.findall(r"^((?:\w+, )*\w+): (.+?)(?=\n\S|\n\n|\Z)", doc, re.DOTALL | re.MULTILINE):
        for name in names.split(", "):
            found[name] = " ".join(text.split())
    return found


def page() -> str:
    """Return the page."""
    parts = ["# The operators\n\nWritten by `docs/reference/generate.py` from the code.\n"]
    for cls, decorator in DECORATORS.items():
        texts = described(cls)
        summary = inspect.cleandoc(cls.__doc__ or "").splitlines()[0]
        parts.append(
            f"\n## {cls.__name__}, {decorator}\n\n{summary}\n\n| argument | default | |\n|---|---|---|\n"
        )
        for name, parameter in inspect.signature(cls.__init__).parameters.items():
            if name in ("self", "kwargs"):
                continue
            default = "" if parameter.default is parameter.empty else f"`{parameter.default!r}`"
            parts.append(f"| `{name}` | {default} | {texts[name].replace('|', chr(92) + '|')} |\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
