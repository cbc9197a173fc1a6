"""No message of ours holds a value that came at run time: every raise and every log call is walked over."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import airflow_llm_provider

PACKAGE = Path(airflow_llm_provider.__file__).parent
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
AIRFLOW_ERRORS = {
    "AirflowException",
    "AirflowFailException",
    "AirflowSkipException",
    "AirflowNotFoundException",
}
NOT_SHOWN = {
    "reply_text",
    "complaint",
    "fields",
    "needs_source",
    "retry_after_s",
    "billed",
    "budget",
    "label",
}
"""Arguments of our errors that are no part of their message."""
NUMBER_FORMATS = {",", "d", "g", "02x", ".0f", ".1f", ".2f", ".2%"}
"""Formats that Python refuses for a text."""

SAFE = re.compile(
    r"""
    (_?[A-Z][A-Z_]+ | ',\ '\.join\(_?[A-Z_]+\))        # a constant
    | (len|max|usd|_kind|without_text|message_at_run_time|estimate_tokens)\(.*\) | type\(.*\)\.__name__
    | (.*\.)?(task_id|dag_id|conn_id|connection_id|attempt_id|trace_id)
    | (.*\.)?(took_s|wait_s|map_index|cost_micro_usd|output_tokens|turns|returncode|errno)
    """,
    re.VERBOSE,
)
"""What says by itself that it is a constant, a length, a type, an amount, an id, a time or a count."""

LISTED: dict[str, dict[str, set[str]]] = {
    # What the author of the DAG, of the connection or of the configuration typed, and paths.
    "typed by an author, or a path": {
        "__init__.py": {"__name__", "name"},
        "decorators.py": {"self.custom_operator_name", "self.returns"},
        "documents/content.py": {"encoding"},
        "documents/files.py": {"path", "self._names", "shown"},
        "documents/formats.py": {"name"},
        "documents/output.py": {"name"},
        "documents/reader.py": {"document.id", "document.uri", "path"},
        "documents/sources.py": {"folder", "shown"},
        "engine/calls.py": {"request.model"},
        "engine/checks.py": {"_name(validator)", "name", "validator"},
        "engine/client.py": {"self.base_url", "self.ca_bundle"},
        "engine/json_schema.py": {
            "error",
            "error.json_path",
            "error.message",
            "keyword",
            "part[keyword]",
            "short",
            "where",
        },
        "engine/output_type.py": {"output_type", "self._field", "self.output_type", "what"},
        "engine/rate_limiter.py": {"state.bucket.name or 'This connection'"},
        "engine/request.py": {"wrong[0]"},
        "engine/retry.py": {"error", "kind", "name", "override", "self.attempts", "value"},
        "engine/tool_loop.py": {
            "', '.join(called)",
            "begun.tool",
            "found.tool",
            "request.model",
            "tool.name",
        },
        "errors.py": {"argument", "unknown[0]"},
        "hooks/answers.py": {"outcome.model", "where"},
        "hooks/arguments.py": {"arguments[name]", "given['model']", "name"},
        "hooks/branches.py": {"', '.join(map(repr, there))", "close[0]", "name"},
        "hooks/configuration.py": {"error", "name", "text"},
        "hooks/connection.py": {"connection.conn_type", "given", "meant", "name"},
        "hooks/downstream.py": {"', '.join(sorted(others))", "pairs", "rule", "self.decider"},
        "hooks/dry_run.py": {"', '.join(named) or 'another task'", "', '.join(sorted(upstream))"},
        "hooks/files.py": {"argument", "name", "path", "place"},
        "hooks/retention.py": {"option", "text"},
        "ledger/budgets.py": {
            "budget.name",
            "budget.per",
            "connection_id or 'claude_default'",
            "model",
            "name",
            "self.applies_to",
            "self.name",
            "self.on_exceeded",
            "self.per",
            "self.scope",
            "where",
        },
        "ledger/database.py": {"missing.format(self._file)", "self._file", "self._file.parent"},
        "ledger/migrations/__init__.py": {"', '.join(taken)", "database"},
        "ledger/payloads.py": {"text"},
        "operators/branch.py": {"default", "name", "tool.name"},
        "operators/document_io.py": {"inside", "str(given)"},
        "operators/documents.py": {"', '.join(self._run_values)", "max_failed"},
        "operators/repair.py": {"min(taken)"},
        "options.py": {"argument", "self.on_timeout", "self.timeout", "value", "wanted"},
        "personal_data.py": {"kind", "unknown[0]"},
        "pricing.py": {"dollars", "error", "model", "name", "percent", "rates.get(name)"},
        "sensors/approval.py": {
            "', '.join(sorted(self.downstream_task_ids)) or 'none'",
            "self.on_reject",
            "validator",
        },
        "sensors/conditions.py": {"each", "each.__name__", "self.limit", "self.share", "self.usd"},
        "tools.py": {
            "error",
            "error.message.splitlines()[0]",
            "name",
            "one.name",
            "parameter",
            "self.function",
            "self.name",
        },
        "triggers/deferral.py": {
            "', '.join(objects)",
            "', '.join(own)",
            "', '.join(sorted(unknown))",
            "argument",
            "name[1]",
            "on_invalid.then",
            "str(error)",
        },
        "validators.py": {
            "', '.join(identify.labels)",
            "known",
            "language",
            "least",
            "most",
            "validator",
            "value",
        },
    },
    # The text is made of parts that stand in this test at their own place.
    "a sentence of this package": {
        "approvals/answer.py": {"complaint"},
        "approvals/review.py": {"error", "what"},
        "approvals/spending.py": {"Rejected(rejected)", "decision.why", "error", "who"},
        "approvals/tools.py": {"needed"},
        "decorators.py": {"reason"},
        "documents/content.py": {"_binary(position)", "_binary(raw.index(b'\\x00'))"},
        "documents/cost_estimate.py": {"error"},
        "documents/formats.py": {"_reason(error)"},
        "documents/output.py": {"why"},
        "documents/pdf_process.py": {"answer['message']", "answer['reason']"},
        "documents/reader.py": {"_why(error)"},
        "documents/run.py": {"document.message", "document.reason", "self._cascaded()", "self._progress()"},
        "documents/sources.py": {"kind", "why"},
        "engine/calls.py": {"why"},
        "engine/checks.py": {"error"},
        "engine/engine.py": {"error", "short"},
        "engine/output_type.py": {"shown.message"},
        "engine/rate_limiter.py": {"error"},
        "engine/tool_loop.py": {"', '.join(map(str, calls.values()))", "begun", "call", "when", "why"},
        "hooks/alarm.py": {"warning"},
        "hooks/answers.py": {"await cost_line(engine, scope)", "error"},
        "hooks/arguments.py": {"cure"},
        "hooks/claude.py": {"_where(context)", "error", "missing(self.claude_conn_id)", "where"},
        "hooks/connection.py": {"allowed", "str(error)", "what"},
        "hooks/downstream.py": {"why"},
        "hooks/files.py": {"error", "found[0].message", "found[0].reason", "str(error)"},
        "hooks/question.py": {"error"},
        "ledger/budgets.py": {"said"},
        "ledger/ledger.py": {"error", "warning"},
        "ledger/transactions.py": {"where"},
        "operators/branch.py": {
            "await cost_line(engine, scope)",
            "decision.why",
            "error",
            "needed",
            "reason",
            "said",
            "where",
        },
        "operators/claude.py": {"error", "error_of(event)", "needed", "reason"},
        "operators/document_io.py": {"str(error)"},
        "operators/documents.py": {"await cost_line(engine, run.scope)", "cure", "error", "needed", "said"},
        "operators/task.py": {"needed", "why"},
        "options.py": {"cure"},
        "sensors/approval.py": {"Rejected(decision.rejection)", "who"},
        "triggers/claude.py": {"refused"},
        "triggers/deferral.py": {"reason"},
    },
    "a library's words about a position, a type or a host": {
        "approvals/form.py": {"error"},
        "documents/content.py": {"error.reason"},
        "documents/formats.py": {"constant"},
        "documents/pdf.py": {"error"},
        "engine/client.py": {"error", "reason", "said"},
        "engine/output_type.py": {"error"},
        "engine/reply.py": {"error", "kind"},
        "engine/request.py": {"error", "value"},
        "ledger/transactions.py": {"said"},
        "operators/document_io.py": {"error.strerror"},
    },
    "a count, an id, a time or a state": {
        "approvals/review.py": {"stored.verdict.status"},
        "approvals/spending.py": {"content[_COVERED]", "now"},
        "documents/content.py": {"error.start", "start"},
        "documents/formats.py": {"row.get('document_id')", "sorted(row.keys() - known)"},
        "documents/output.py": {"index"},
        "documents/pdf.py": {"count", "pages"},
        "documents/reader.py": {"document.size", "max_bytes", "size"},
        "engine/checks.py": {"number", "places"},
        "engine/engine.py": {
            "_about(item_id)",
            "_about(terms.item_id)",
            "chain[at].attempt_id or chain[at].purpose",
            "error.kind",
            "how",
        },
        "engine/retry.py": {"', '.join(sorted(merged))"},
        "engine/tool_loop.py": {
            "_format_time(begun.began_ms)",
            "_format_time(found.began_ms)",
            "found.id[:12]",
        },
        "errors.py": {"', '.join(sorted(BY_KIND))"},
        "hooks/arguments.py": {"number"},
        "ledger/budgets.py": {"need", "refusal.reserved_micro_usd", "refusal.settled_micro_usd"},
        "ledger/migrations/__init__.py": {"current", "latest"},
        "sensors/approval.py": {"decision.status"},
    },
    # Such as the context, or what another function makes a sentence of.
    "no part of the message": {
        "approvals/review.py": {
            "context",
            "event[RESUME]",
            "resume",
            "review",
            "review.reviewers.timeout",
            "scope",
        },
        "approvals/spending.py": {"context"},
        "documents/files.py": {"errno.EINVAL"},
        "documents/output.py": {"errno.EISDIR"},
        "engine/calls.py": {"opened", "request"},
        "engine/chunking.py": {
            "next((error for error in failed if isinstance(error, TerminalError)), failed[0])"
        },
        "engine/output_type.py": {"problems", "is_of_form"},
        "engine/tool_loop.py": {"asked", "effects.digest(*(call.intent.key for call in asked))"},
        "engine/votes.py": {"failures"},
        "hooks/claude.py": {"context"},
        "ledger/accounts.py": {"lost", "missing"},
        "operators/branch.py": {"context", "level"},
        "operators/claude.py": {"context"},
        "operators/documents.py": {"context"},
        "sensors/approval.py": {"context"},
        "tools.py": {"'\\n'.join(complaints)"},
    },
}
"""What else stands in a message, by kind and file.

A new expression joins the kind that it is of, or leaves the message: what may quote a document, a row, a reply, an
XCom, an answer in a form, or a tool's arguments, is replaced by its type, length or position (`errors.without_text`,
`AnswerError.complaint`).
"""


def modules() -> dict[str, ast.Module]:
    """Return the package's modules, without the stand-in and the command line, whose reader typed what they name."""
    files = [path for path in PACKAGE.rglob("*.py") if not {"testing", "cli"} & {*path.parts}]
    return {str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in files}


def error_names(trees: dict[str, ast.Module]) -> set[str]:
    """Return the names of all classes of errors: Python's, Airflow's and ours."""
    names = {
        name
        for name, cls in vars(builtins).items()
        if isinstance(cls, type) and issubclass(cls, BaseException)
    }
    names |= AIRFLOW_ERRORS
    classes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    bases = {node.name: {dotted(base)[1] for base in node.bases} for node in classes}
    while more := {name for name, its in bases.items() if its & names} - names:
        names |= more
    return names


def dotted(node: ast.expr) -> tuple[str, str]:
    """Return the last two names of a dotted one, such as `log` and `info` of `self.log.info`."""
    match node:
        case ast.Name(id=name):
            return "", name
        case ast.Attribute(value=ast.Name(id=owner) | ast.Attribute(attr=owner), attr=name):
            return owner, name
        case _:
            return "", ""


def shown(node: ast.AST, errors: set[str]) -> list[ast.expr]:
    """Return the arguments of a call whose text is raised or logged."""
    call = node.exc if isinstance(node, ast.Raise) else node
    if not isinstance(call, ast.Call):
        return []
    owner, name = dotted(call.func)
    is_log = name in LEVELS and owner in ("log", "logger")
    if not (isinstance(node, ast.Raise) or name in errors or is_log):
        return []
    keywords = [keyword.value for keyword in call.keywords if keyword.arg not in NOT_SHOWN]
    return [*call.args, *(() if is_log else keywords)]


def parts(node: ast.expr) -> Iterator[str]:
    """Yield the expressions that a text is made of, but for numbers that are formatted as numbers."""
    match node:
        case ast.Constant():
            return
        case ast.JoinedStr(values=values):
            for value in values:
                yield from parts(value)
        case ast.FormattedValue(value=value, format_spec=ast.JoinedStr(values=[ast.Constant(value=spec)])):
            if spec not in NUMBER_FORMATS:
                yield from parts(value)
        case ast.FormattedValue(value=value):
            yield from parts(value)
        case ast.IfExp(body=left, orelse=right) | ast.BinOp(left=left, op=ast.Add(), right=right):
            yield from parts(left)
            yield from parts(right)
        case _:
            yield " ".join(ast.unparse(node).split())


@cache
def found() -> set[tuple[str, str]]:
    """Return file and expression of everything that is put into a message."""
    trees = modules()
    errors = error_names(trees)
    return {
        (file, part)
        for file, tree in trees.items()
        for node in ast.walk(tree)
        for argument in shown(node, errors)
        for part in parts(argument)
    }


def listed() -> set[tuple[str, str]]:
    return {(file, part) for files in LISTED.values() for file, its in files.items() for part in its}


def test_every_part_of_a_message_is_of_a_kind_that_quotes_nothing() -> None:
    unknown = {(file, part) for file, part in found() - listed() if not SAFE.fullmatch(part)}
    assert unknown == set(), "Is it of a kind that is listed here? Else it must not be in a message."


def test_no_part_is_listed_that_no_message_has() -> None:
    assert listed() - found() == set()


def test_an_error_with_a_value_in_its_message_is_found() -> None:
    tree = ast.parse(
        "def f(row):\n    log.info('%s', row)\n    raise InvalidOutput(f'{row} of {len(row)}', complaint=row)"
    )
    seen = [
        part
        for node in ast.walk(tree)
        for argument in shown(node, {"InvalidOutput"})
        for part in parts(argument)
    ]
    assert sorted({part for part in seen if not SAFE.fullmatch(part)}) == ["row"]
