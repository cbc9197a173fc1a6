"""Claude in ordinary Airflow DAGs: scheduled batch document processing that loses nothing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_llm_provider.errors import LLMError
    from airflow_llm_provider.hooks.branches import Branch
    from airflow_llm_provider.hooks.claude import ClaudeHook
    from airflow_llm_provider.operators.branch import LLMBranchOperator
    from airflow_llm_provider.operators.claude import ClaudeOperator
    from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator
    from airflow_llm_provider.operators.repair import ValidationRepairOperator
    from airflow_llm_provider.options import (
        Budget,
        LongInput,
        OnInvalid,
        Reading,
        RequestFields,
        Reviewers,
        Route,
        ToolLimits,
    )
    from airflow_llm_provider.sensors.approval import ApprovalSensor
    from airflow_llm_provider.tools import tool
    from airflow_llm_provider.validators import Complaint, Judge

__version__ = "0.1.0"

_MODULES = {
    "ApprovalSensor": "sensors.approval",
    "Branch": "hooks.branches",
    "Budget": "options",
    "ClaudeDocumentsOperator": "operators.documents",
    "ClaudeHook": "hooks.claude",
    "ClaudeOperator": "operators.claude",
    "Complaint": "validators",
    "Judge": "validators",
    "LLMBranchOperator": "operators.branch",
    "LLMError": "errors",
    "LongInput": "options",
    "OnInvalid": "options",
    "Reading": "options",
    "RequestFields": "options",
    "Reviewers": "options",
    "Route": "options",
    "ToolLimits": "options",
    "ValidationRepairOperator": "operators.repair",
    "tool": "tools",
}

__all__ = [
    "ApprovalSensor",
    "Branch",
    "Budget",
    "ClaudeDocumentsOperator",
    "ClaudeHook",
    "ClaudeOperator",
    "Complaint",
    "Judge",
    "LLMBranchOperator",
    "LLMError",
    "LongInput",
    "OnInvalid",
    "Reading",
    "RequestFields",
    "Reviewers",
    "Route",
    "ToolLimits",
    "ValidationRepairOperator",
    "tool",
]


def __getattr__(name: str) -> Any:
    # Lazy (PEP 562): a DAG file pays only for the names that it imports.
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
