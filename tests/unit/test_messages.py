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
        "__init__.py": {"', '.join(taken)", "__name__", "database", "name"},
        "answers.py": {"outcome.model", "where"},
        "approval.py": {
            "', '.join(sorted(self.downstream_task_ids)) or 'none'",
            "self.on_reject",
            "validator",
        },
        "arguments.py": {"arguments[name]", "given['model']", "name"},
        "branch.py": {"default", "name", "tool.name"},
        "branches.py": {"', '.join(map(repr, there))", "close[0]", "name"},
        "budgets.py": {
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
        "calls.py": {"request.model"},
        "checks.py": {"_name(validator)", "name", "validator"},
        "client.py": {"self.base_url", "self.ca_bundle"},
        "conditions.py": {"each", "each.__name__", "self.limit", "self.share", "self.usd"},
        "configuration.py": {"error", "name", "text"},
        "connection.py": {"connection.conn_type", "given", "meant", "name"},
        "content.py": {"encoding"},
        "database.py": {"missing.format(self._file)", "self._file", "self._file.parent"},
        "decorators.py": {"self.custom_operator_name", "self.returns"},
        "deferral.py": {
            "', '.join(objects)",
            "', '.join(own)",
            "', '.join(sorted(unknown))",
            "argument",
            "name[1]",
            "on_invalid.then",
            "str(error)",
        },
        "document_io.py": {"inside", "str(given)"},
        "documents.py": {"', '.join(self._run_values)", "max_failed"},
        "downstream.py": {"', '.join(sorted(others))", "pairs", "rule", "self.decider"},
        "dry_run.py": {"', '.join(named) or 'another task'", "', '.join(sorted(upstream))"},
        "errors.py": {"argument", "unknown[0]"},
        "files.py": {"argument", "name", "path", "place", "self._names", "shown"},
        "formats.py": {"name"},
        "json_schema.py": {
            "error",
            "error.json_path",
            "error.message",
            "keyword",
            "part[keyword]",
            "short",
            "where",
        },
        "options.py": {"argument", "self.on_timeout", "self.timeout", "value", "wanted"},
        "output.py": {"name"},
        "output_type.py": {"output_type", "self._field", "self.output_type", "what"},
        "payloads.py": {"text"},
        "personal_data.py": {"kind", "unknown[0]"},
        "pricing.py": {"dollars", "error", "model", "name", "percent", "rates.get(name)"},
        "rate_limiter.py": {"state.bucket.name or 'This connection'"},
        "reader.py": {"document.id", "document.uri", "path"},
        "repair.py": {"min(taken)"},
        "request.py": {"wrong[0]"},
        "retention.py": {"option", "text"},
        "retry.py": {"error", "kind", "name", "override", "self.attempts", "value"},
        "sources.py": {"folder", "shown"},
        "tool_loop.py": {"', '.join(called)", "begun.tool", "found.tool", "request.model", "tool.name"},
        "tools.py": {
            "error",
            "error.message.splitlines()[0]",
            "name",
            "one.name",
            "parameter",
            "self.function",
            "self.name",
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
        "alarm.py": {"warning"},
        "answer.py": {"complaint"},
        "answers.py": {"await cost_line(engine, scope)", "error"},
        "approval.py": {"Rejected(decision.rejection)", "who"},
        "arguments.py": {"cure"},
        "branch.py": {
            "await cost_line(engine, scope)",
            "decision.why",
            "error",
            "needed",
            "reason",
            "said",
            "where",
        },
        "budgets.py": {"said"},
        "calls.py": {"why"},
        "checks.py": {"error"},
        "claude.py": {
            "_where(context)",
            "error",
            "error_of(event)",
            "missing(self.claude_conn_id)",
            "needed",
            "reason",
            "refused",
            "where",
        },
        "connection.py": {"allowed", "str(error)", "what"},
        "content.py": {"_binary(position)", "_binary(raw.index(b'\\x00'))"},
        "cost_estimate.py": {"error"},
        "decorators.py": {"reason"},
        "deferral.py": {"reason"},
        "document_io.py": {"str(error)"},
        "documents.py": {"await cost_line(engine, run.scope)", "cure", "error", "needed", "said"},
        "downstream.py": {"why"},
        "engine.py": {"error", "short"},
        "files.py": {"error", "found[0].message", "found[0].reason", "str(error)"},
        "formats.py": {"_reason(error)"},
        "ledger.py": {"error", "warning"},
        "options.py": {"cure"},
        "output.py": {"why"},
        "output_type.py": {"shown.message", "str(error)"},
        "question.py": {"error"},
        "rate_limiter.py": {"error"},
        "reader.py": {"_why(error)"},
        "review.py": {"error", "what"},
        "run.py": {"document.message", "document.reason", "self._cascaded()", "self._progress()"},
        "sandbox.py": {
            "answer['message']",
            "answer['reason']",
            "ended",
            "self._end('took too long')",
            "self._end()",
            "self._end(_TOO_MUCH_MEMORY)",
            "self._end(f'found more than {_MAX_REPLY_BYTES >> 20:,} MiB in it')",
        },
        "sources.py": {"kind", "why"},
        "spending.py": {"Rejected(rejected)", "decision.why", "error", "who"},
        "task.py": {"needed", "why"},
        "tool_loop.py": {"', '.join(map(str, calls.values()))", "begun", "call", "when", "why"},
        "tools.py": {"needed"},
        "transactions.py": {"where"},
    },
    "a library's words about a position, a type or a host": {
        "client.py": {"error", "reason", "said"},
        "content.py": {"error.reason"},
        "document_io.py": {"error.strerror"},
        "form.py": {"error"},
        "formats.py": {"constant"},
        "output_type.py": {"error"},
        "pdf.py": {"error"},
        "reply.py": {"error", "kind"},
        "request.py": {"error", "value"},
        "transactions.py": {"said"},
    },
    "a count, an id, a time or a state": {
        "__init__.py": {"current", "latest"},
        "approval.py": {"decision.status"},
        "arguments.py": {"number"},
        "budgets.py": {"need", "refusal.reserved_micro_usd", "refusal.settled_micro_usd"},
        "checks.py": {"number", "places"},
        "content.py": {"error.start", "start"},
        "engine.py": {
            "_about(item_id)",
            "_about(terms.item_id)",
            "chain[at].attempt_id or chain[at].purpose",
            "error.kind",
            "how",
        },
        "errors.py": {"', '.join(sorted(BY_KIND))"},
        "formats.py": {"precision - scale", "row.get('document_id')", "scale", "sorted(row.keys() - known)"},
        "json_repair.py": {"at"},
        "output.py": {"index", "rows[0].get('document_id')"},
        "pdf.py": {"count", "pages"},
        "reader.py": {"document.size", "max_bytes", "size"},
        "retry.py": {"', '.join(sorted(merged))"},
        "review.py": {"stored.verdict.status"},
        "spending.py": {"content[_COVERED]", "now"},
        "tool_loop.py": {"_format_time(begun.began_ms)", "_format_time(found.began_ms)", "found.id[:12]"},
    },
    # Such as the context, or what another function makes a sentence of.
    "no part of the message": {
        "accounts.py": {"lost", "missing"},
        "approval.py": {"context"},
        "branch.py": {"context", "level"},
        "calls.py": {"opened", "request"},
        "chunking.py": {"next((error for error in failed if isinstance(error, TerminalError)), failed[0])"},
        "claude.py": {"context"},
        "documents.py": {"context"},
        "files.py": {"errno.EINVAL"},
        "output.py": {"errno.EISDIR"},
        "output_type.py": {"is_of_form", "problems"},
        "review.py": {"context", "event[RESUME]", "resume", "review", "review.reviewers.timeout", "scope"},
        "spending.py": {"context"},
        "tool_loop.py": {"asked", "effects.digest(*(call.intent.key for call in asked))"},
        "tools.py": {"'\\n'.join(complaints)"},
        "votes.py": {"failures"},
    },
}
"""What else stands in a message, by kind and file.

A new expression joins the kind that it is of, or leaves the message: what may quote a document, a row, a reply, an
XCom, an answer in a form, or a tool's arguments, is replaced by its type, length or position (`errors.without_text`,
`AnswerError.complaint`).
"""


def modules() -> list[tuple[str, ast.Module]]:
    """Return the package's modules, without the stand-in and the command line, whose reader typed what they name."""
    files = [path for path in PACKAGE.rglob("*.py") if not {"testing", "cli"} & {*path.parts}]
    return [(path.name, ast.parse(path.read_text())) for path in files]


def error_names(trees: list[tuple[str, ast.Module]]) -> set[str]:
    """Return the names of all classes of errors: Python's, Airflow's and ours."""
    names = {
        name
        for name, cls in vars(builtins).items()
        if isinstance(cls, type) and issubclass(cls, BaseException)
    }
    names |= AIRFLOW_ERRORS
    classes = [node for _, tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
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
        for file, tree in trees
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
