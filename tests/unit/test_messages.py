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
    | errno\.[A-Z]+ | (.*\.)?(took_s|wait_s|map_index|cost_micro_usd|output_tokens|turns|returncode|errno)
    """,
    re.VERBOSE,
)
"""What says by itself that it is a constant, a length, a type, an amount, an id, a time or a count."""

AMBIGUOUS = {
    *(
        "complaint",
        "cure",
        "error",
        "given",
        "kind",
        "known",
        "message",
        "place",
        "reason",
        "refused",
        "rejected",
        "said",
    ),
    *("short", "shown", "str(error)", "text", "value", "warning", "what", "where", "why", "written", "wrong"),
}
"""Expressions that may be of any kind: an entry names the file, too."""
LISTED: dict[str, set[str]] = {
    # What the author of the DAG, of the connection or of the configuration typed, and paths.
    "typed by an author, or a path": {
        "argument_checks.py: value",
        "named[0]",
        "', '.join(called)",
        "function",
        "', '.join(identify.labels)",
        "', '.join(map(repr, there))",
        "', '.join(named) or 'another task'",
        "', '.join(objects)",
        "', '.join(own)",
        "', '.join(self._run_values)",
        "', '.join(sorted(others))",
        "', '.join(sorted(self.downstream_task_ids)) or 'none'",
        "', '.join(sorted(unknown))",
        "', '.join(sorted(upstream))",
        "', '.join(taken)",
        "__name__",
        "_name(validator)",
        "answers.py: where",
        "argument",
        "arguments[name]",
        "begun.tool",
        "budget.name",
        "budget.per",
        "budgets.py: where",
        "close[0]",
        "configuration.py: error",
        "configuration.py: text",
        "connection.conn_type",
        "connection.py: given",
        "connection_id or 'claude_default'",
        "database",
        "default",
        "deferral.py: str(error)",
        "dollars",
        "each",
        "each.__name__",
        "encoding",
        "error.json_path",
        "error.message",
        "error.message.splitlines()[0]",
        "files.py: shown",
        "folder",
        "found.tool",
        "given['model']",
        "inside",
        "json_schema.py: error",
        "json_schema.py: short",
        "json_schema.py: where",
        "keyword",
        "language",
        "least",
        "max_failed",
        "meant",
        "min(taken)",
        "missing.format(self._file)",
        "model",
        "most",
        "name",
        "name[1]",
        "on_invalid.then",
        "one.name",
        "opening.py: shown",
        "option",
        "options.py: value",
        "outcome.model",
        "output_type",
        "output_type.py: what",
        "custom.py: where",
        "ended.reason",
        "odf.py: what",
        "package.py: what",
        "self._package.what",
        "self.cure",
        "self.extra",
        "self.what",
        "override",
        "pairs",
        "parameter",
        "part[keyword]",
        "path",
        "payloads.py: text",
        "percent",
        "personal_data.py: kind",
        "pricing.py: error",
        "rates.get(name)",
        "real",
        "request.model",
        "retention.py: text",
        "retry.py: error",
        "retry.py: kind",
        "retry.py: value",
        "rule",
        "self._field",
        "self._file",
        "self._file.parent",
        "self._names",
        "self.applies_to",
        "self.base_url",
        "self.ca_bundle",
        "self.custom_operator_name",
        "self.decider",
        "self.function",
        "self.limit",
        "self.name",
        "self.on_exceeded",
        "self.on_reject",
        "self.on_timeout",
        "self.output_type",
        "self.per",
        "self.returns",
        "self.scope",
        "self.share",
        "self.timeout",
        "self.usd",
        "sources.py: shown",
        "state.bucket.name or 'This connection'",
        "str(given)",
        "tool.name",
        "tools.py: error",
        "unknown[0]",
        "validator",
        "validators.py: known",
        "validators.py: value",
        "wanted",
        "wrong[0]",
        "scheme",
        "sink.files[0]",
    },
    # The text is made of parts that stand in this test at their own place.
    "a sentence of this package": {
        "argument_checks.py: cure",
        "ended.reason",
        "problem",
        "self._end(_TOO_LONG)",
        "str(error).removesuffix(' Nothing was sent.')",
        "odf.py: what",
        "package.py: what",
        "self._package.what",
        "self.cure",
        "self.extra",
        "self.what",
        "', '.join(map(str, calls.values()))",
        "Rejected(decision.rejection)",
        "Rejected(rejected)",
        "_binary(position)",
        "_binary(raw.index(b'\\x00'))",
        "_reason(error)",
        "_refusal(message.refusal_category)",
        "_where(context)",
        "alarm.py: warning",
        "allowed",
        "answer.py: complaint",
        "answer['message']",
        "answer['reason']",
        "answers.py: error",
        "arguments.py: cure",
        "await cost_line(engine, run.scope)",
        "await cost_line(engine, scope)",
        "begun",
        "body.has_left",
        "booked",
        "branch.py: error",
        "branch.py: reason",
        "branch.py: said",
        "branch.py: where",
        "budgets.py: said",
        "call",
        "calls.py: why",
        "checks.py: error",
        "claude.py: error",
        "claude.py: reason",
        "claude.py: refused",
        "claude.py: where",
        "connection.py: str(error)",
        "connection.py: what",
        "cost_booking.py: where",
        "cost_estimate.py: error",
        "decision.why",
        "decorators.py: reason",
        "deferral.py: reason",
        "document.message",
        "document.reason",
        "document_io.py: str(error)",
        "documents.py: cure",
        "documents.py: error",
        "documents.py: said",
        "run.py: error",
        "says",
        "files.py: cure",
        "unread.py: what",
        "downstream.py: why",
        "ended",
        "engine.py: error",
        "engine.py: short",
        "error_of(event)",
        "files.py: error",
        "files.py: str(error)",
        "found[0].message",
        "found[0].reason",
        "ledger.py: error",
        "ledger.py: warning",
        "meaning[has_left]",
        "missing(self.claude_conn_id)",
        "needed",
        "os.strerror(errno.ELOOP)",
        "output.py: why",
        "output_type.py: str(error)",
        "price.unknown",
        "question.py: error",
        "bucket.py: error",
        "review.py: error",
        "review.py: what",
        "self._cascaded()",
        "self._end()",
        "self._end(_TOO_MUCH_MEMORY)",
        "self._end(f'found more than {_MAX_REPLY_BYTES >> 20:,} MiB in it')",
        "self._progress()",
        "shown.message",
        "sources.py: kind",
        "sources.py: why",
        "spending.py: error",
        "task.py: why",
        "tool_loop.py: why",
        "transactions.py: where",
        "when",
        "who",
        "why_not_opened(error)",
    },
    "a library's words about a position, a type or a host": {
        "client.py: error",
        "client.py: reason",
        "constant",
        "error.reason",
        "error.strerror",
        "form.py: error",
        "output_type.py: error",
        "pdf.py: error",
        "reply.py: error",
        "reply.py: kind",
        "request.py: error",
        "request.py: value",
        "self.said",
        "transactions.py: said",
    },
    "a count, an id, a time or a state": {
        "listed",
        "self.skipped.total()",
        "', '.join(sorted(BY_KIND))",
        "', '.join(sorted(merged))",
        "_about(item_id)",
        "_about(terms.item_id)",
        "_format_time(begun.began_ms)",
        "_format_time(found.began_ms)",
        "_utc(ms_of(last_call))",
        "_utc(since_ms)",
        "at",
        "chain[at].attempt_id or chain[at].purpose",
        "content[_COVERED]",
        "count",
        "current",
        "decision.status",
        "document.size",
        "error.kind",
        "found",
        "error.start",
        "found.id[:12]",
        "how",
        "index",
        "latest",
        "max_bytes",
        "need",
        "now",
        "number",
        "opened.size",
        "pages",
        "places",
        "precision - scale",
        "refusal.reserved_micro_usd",
        "refusal.settled_micro_usd",
        "row.get('document_id')",
        "rows[0].get('document_id')",
        "scale",
        "sorted(row.keys() - known)",
        "start",
        "stored.verdict.status",
    },
    # Such as the context, or what another function makes a sentence of.
    "no part of the message": {
        "body",
        "body.content",
        "package.py: error",
        "pptx.py: error",
        "spreadsheet.py: error",
        "'\\n'.join(complaints)",
        "asked",
        "context",
        "effects.digest(*(call.intent.key for call in asked))",
        "event[RESUME]",
        "failures",
        "is_of_form",
        "level",
        "lost",
        "missing",
        "next((error for error in failed if isinstance(error, TerminalError)), failed[0])",
        "opened",
        "problems",
        "request",
        "resume",
        "review",
        "review.reviewers.timeout",
        "scope",
    },
}
"""What else stands in a message, by kind: an expression, or one with the name of its file.

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


def entry(file: str, part: str) -> str:
    return f"{file}: {part}" if part in AMBIGUOUS else part


def test_every_part_of_a_message_is_of_a_kind_that_quotes_nothing() -> None:
    listed = {each for entries in LISTED.values() for each in entries}
    unknown = {
        (file, part) for file, part in found() if not SAFE.fullmatch(part) and entry(file, part) not in listed
    }
    assert unknown == set(), "Is it of a kind that is listed here? Else it must not be in a message."


def test_no_part_is_listed_that_no_message_has() -> None:
    there = {entry(file, part) for file, part in found()}
    assert {kind: entries - there for kind, entries in LISTED.items() if entries - there} == {}


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
