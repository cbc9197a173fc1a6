"""What Airflow discovers of this provider; imports nothing."""

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata."""
    return {
        "package-name": "airflow-provider-llm",
        "name": "LLM (Claude)",
        "description": "Claude in ordinary Airflow DAGs: thousands of documents in one task, none lost or paid twice.",
        "integrations": [
            {
                "integration-name": "Claude",
                "external-doc-url": "https://docs.claude.com/en/api/messages",
                "tags": ["service"],
            }
        ],
        "operators": [
            {
                "integration-name": "Claude",
                "python-modules": [
                    "airflow_llm_provider.operators.branch",
                    "airflow_llm_provider.operators.claude",
                    "airflow_llm_provider.operators.documents",
                    "airflow_llm_provider.operators.repair",
                ],
            }
        ],
        "sensors": [
            {"integration-name": "Claude", "python-modules": ["airflow_llm_provider.sensors.approval"]}
        ],
        "hooks": [{"integration-name": "Claude", "python-modules": ["airflow_llm_provider.hooks.claude"]}],
        "triggers": [
            {"integration-name": "Claude", "python-modules": ["airflow_llm_provider.triggers.claude"]}
        ],
        "connection-types": [
            {
                "hook-class-name": "airflow_llm_provider.hooks.claude.ClaudeHook",
                "hook-name": "Claude",
                "connection-type": "claude",
                "conn-fields": _CONNECTION_FIELDS,
                "ui-field-behaviour": {
                    "hidden-fields": ["schema", "port", "login", "extra"],
                    "relabeling": {"host": "Base URL", "password": "API key"},
                    "placeholders": {
                        "host": "https://api.anthropic.com, or any Anthropic-compatible server",
                        "password": "sk-ant-…",
                    },
                },
            }
        ],
        "task-decorators": [
            {"name": "claude", "class-name": "airflow_llm_provider.decorators.claude_task"},
            {
                "name": "claude_branch",
                "class-name": "airflow_llm_provider.decorators.claude_branch_task",
            },
            {
                "name": "claude_documents",
                "class-name": "airflow_llm_provider.decorators.claude_documents_task",
            },
            {
                "name": "claude_repair",
                "class-name": "airflow_llm_provider.decorators.claude_repair_task",
            },
        ],
        "config": {
            "llm": {"description": "How calls to language models are kept and bounded.", "options": _OPTIONS}
        },
    }


def _field(label: str, kind: str, description: str, **schema: Any) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": [kind, "null"], **schema}}


_CONNECTION_FIELDS = {
    "fast": _field("Model: fast", "string", "Model id of the tier `fast`", default="claude-haiku-5-5"),
    "balanced": _field(
        "Model: balanced", "string", "Model id of the tier `balanced`", default="claude-sonnet-5-5"
    ),
    "strong": _field("Model: strong", "string", "Model id of the tier `strong`", default="claude-opus-5-5"),
    "default_tier": _field(
        "Default tier",
        "string",
        "Tier of a task that names no model",
        default="balanced",
        enum=["fast", "balanced", "strong"],
    ),
    "fallbacks": _field(
        "Fallbacks",
        "string",
        "Tiers, model ids or conn:ID (another connection), separated by commas, asked in turn when a model is "
        "overloaded or down",
    ),
    "timeout_s": _field("Request timeout (s)", "number", "Longest time for one request", default=300),
    "deadline_s": _field(
        "Total deadline (s)", "number", "Longest time for a call with all its retries", default=900
    ),
    "rpm": _field("Requests a minute", "integer", "For all tasks together; empty: as the API's headers say"),
    "itpm": _field(
        "Input tokens a minute", "integer", "For all tasks together; empty: as the API's headers say"
    ),
    "otpm": _field(
        "Output tokens a minute", "integer", "For all tasks together; empty: as the API's headers say"
    ),
    "burst_s": _field(
        "Burst (s)",
        "number",
        "How many seconds' worth of these limits may go at once after a lull",
        default=8,
    ),
    "prices": _field(
        "Prices",
        "string",
        'JSON: {"model-id": {"input": 3, "output": 15}} in USD per million tokens, where the list prices are '
        'not what you pay or don\'t know the model; with "factors" for a geography, speed or service tier',
    ),
    "price_change_percent": _field(
        "Price change (%)",
        "number",
        "On the list prices of all other models: -15 is fifteen percent below them, 10 is ten percent above",
    ),
    "proxy": _field(
        "Proxy",
        "string",
        "URL of an HTTP proxy, which may hold a password. Empty: HTTP(S)_PROXY and NO_PROXY of the environment",
        format="password",
    ),
    "no_proxy": _field(
        "No proxy for",
        "string",
        "Hosts, domains or networks that are reached without this proxy, separated by commas",
    ),
    "ca_bundle": _field(
        "CA bundle", "string", "Path of a PEM file, for a proxy or server with its own certificates"
    ),
    "ledger_url": _field(
        "Ledger URL", "string", "SQLAlchemy URL; empty: [llm] ledger_url of airflow.cfg", format="password"
    ),
}


def _option(description: str, default: str, example: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "description": description,
        "version_added": "0.1.0",
        "type": "string",
        "example": example,
        "default": default,
        **more,
    }


_OPTIONS = {
    "ledger_url": _option(
        "SQLAlchemy URL of the ledger. Empty: SQLite at $AIRFLOW_HOME/llm_ledger.db. "
        "Workers on more than one machine need PostgreSQL.",
        "",
        "postgresql+psycopg://airflow:…@db/llm_ledger",
        sensitive=True,
    ),
    "payload": _option(
        "Which prompts the ledger keeps: full, errors, sampled:<share> (errors always) or none. "
        "Replies are always kept, a retry is answered from them.",
        "errors",
        "sampled:0.1",
    ),
    "synchronous": _option(
        "SQLite's durability: FULL survives a power cut, NORMAL only a killed process.", "FULL"
    ),
    "lease_s": _option(
        "Seconds that a call of a killed process blocks the same call of its successor, before it is sent again.",
        "45",
        type="float",
    ),
    "call_budget_usd": _option(
        "The most that one request may cost, in US dollars. Empty: no cap.", "", "0.50"
    ),
    "run_budget_usd": _option("The most that each DAG run may cost. Empty: no cap.", "", "20"),
    "day_budget_usd": _option("The most that all calls of a day may cost. Empty: no cap.", "", "100"),
    "month_budget_usd": _option("The most that all calls of a month may cost. Empty: no cap.", "", "1500"),
    "budget_timezone": _option("Whose days and months those are.", "UTC", "Europe/Berlin"),
    "roots": _option(
        "Folders or URL prefixes, separated by commas, below which documents may be read where an operator "
        "names no roots of its own.",
        "",
        "/data/inbox,s3://documents/",
    ),
    "retention_days": _option(
        "Days that calls are kept by `airflow-llm ledger prune`. Empty: without limit. A pruned answer is asked "
        "and paid anew when a run needs it.",
        "",
        "400",
    ),
    "payload_retention_days": _option(
        "Days that prompts and replies are kept; their calls stay in the books. Empty: as long as those.",
        "",
        "90",
    ),
    "deployment": _option("Name of this Airflow deployment; part of every trace id.", "airflow"),
}
