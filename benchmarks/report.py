"""The page docs/benchmarks.md, written from results/*.json."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "benchmarks.md"
# A rival is called better from here on; below it, machines are too noisy to tell. What is counted has no noise.
BETTER = 1.05
COUNTS = ("requests", "duplicates", "refused")
EXACT = ("answered_share", "usd_a_thousand", "modules")


class Column(NamedTuple):
    """One figure of a work: its name in the results, as the head of a table, its form, and which way is good."""

    figure: str
    head: str
    form: str = ",.0f"
    more_is_better: bool = False


DOCUMENTS_A_CPU_S = Column("documents_per_cpu_s", "documents/CPU-s", ",.2f", more_is_better=True)
DOCUMENTS_A_S = Column("documents_per_s", "documents/s", ",.1f", more_is_better=True)
REQUESTS = Column("requests", "requests paid")
REFUSED = Column("refused", "errors received")
DUPLICATES = Column("duplicates", "paid twice")
ANSWERED = Column("answered_share", "answered", ".1%", more_is_better=True)
MEMORY = Column("peak_task_mb", "tasks' memory (MB)")
USD = Column("usd_a_thousand", "USD per 1,000 answers", ".3f")
TABLES: Mapping[str, Sequence[Column]] = {
    "unlimited": (DOCUMENTS_A_CPU_S, DOCUMENTS_A_S, ANSWERED, REQUESTS, DUPLICATES, USD, MEMORY),
    "small": (DOCUMENTS_A_CPU_S, DOCUMENTS_A_S, MEMORY),
    "limited": (
        Column("limit_used", "of the limit used", ".1%", more_is_better=True),
        Column("refused_share", "refused (429)", ".2%"),
        ANSWERED,
        REQUESTS,
        DUPLICATES,
        DOCUMENTS_A_CPU_S,
    ),
    "questions": (
        Column("cpu_s_a_document", "CPU-s per answer", ".3f"),
        Column("documents_per_s", "answers/s", ".2f", more_is_better=True),
        ANSWERED,
        REQUESTS,
        DUPLICATES,
    ),
    "invalid": (ANSWERED, REQUESTS, DUPLICATES, USD, DOCUMENTS_A_CPU_S, DOCUMENTS_A_S),
    "transient": (ANSWERED, REFUSED, DUPLICATES, USD, DOCUMENTS_A_CPU_S, DOCUMENTS_A_S),
    "parse": (
        Column("cpu_s", "CPU-s", ".3f"),
        Column("modules", "modules imported"),
        Column("mb", "memory (MB)", ".1f"),
    ),
}
WORDS = {
    "unlimited": """
Mapped sides run one task per document, {parallelism} at a time, and each task pays for a process and its imports. They
do {few} documents. "Preloaded" has the imports in the process that tasks are forked from; no default Airflow has that.
Ours, the hook and the threads are one task with 256 documents in flight. The hook and the threads are programs of about
thirty lines, without a ledger and without rate limits; their retry pays for everything again.""",
    "small": """
The same with {few} documents on every side. With fewer documents, the cost of the task itself weighs more; ours is one
task too.""",
    "limited": """
The stand-in accepts 600 requests per minute, 100 at once. Our side is not told; it learns the limit from the first
replies. Threads without a rate limiter must be as many as the limit and the latency allow, which changes with both: 8
fit, 256 do not. The mapped sides are not in the table: on this machine they stay below the limit. "Used" is what was
paid after the burst, over the time from the first to the last answer.""",
    "questions": """
Each question is a mapped task. Ours are deferrable: they start and end in the triggerer and hold no worker slot. The
others hold one of {parallelism} slots, and do {few} questions. On our side the SDK is loaded once.""",
    "invalid": """
The first request for about every twentieth document gets, in turn, JSON of another shape, truncated JSON, or JSON in a
code fence between sentences. Ours reads the last as it is, and sends the others again; "paid twice" counts these
requests. The threads keep the valid answers and have none for the others. The mapped side does 60 documents.""",
    "transient": """
The first request for about every thirty-third document gets, in turn, a 529, a 500, a connection that breaks within the
body, or a 429. The answer on the broken connection was charged, so a retry pays twice. A scattered
429 delays that one request. The mapped side does 132 documents.""",
    "parse": """
What running the DAG file adds to a Python that has loaded `airflow.sdk` and pydantic, the median of seven. Every task
process pays it. The DAG processor pays it at every parse, except for official providers, which stay loaded.""",
}


def keep(result: Mapping[str, Any], *, is_part: bool) -> dict[str, Any]:
    """Add the figures of a side to those measured under the same circumstances; write the page once it is complete.

    Args:
        result: what was measured now.
        is_part: other sides or works are not measured now. Where their figures were measured under other
            circumstances, nothing is kept.

    Returns:
        All figures that were measured under the same circumstances.
    """
    path = RESULTS / "rivals.json"
    result = {**result, "date": datetime.now(UTC).date().isoformat()}
    before = json.loads(path.read_text()) if path.exists() else {}
    if not before or _circumstances(before) != _circumstances(result):
        if is_part:
            return result
        before = {"works": {}, "idle_cpu_per_s": {}}
    works = {
        # In the order of the sides, whichever was measured last.
        name: {side: all_of[side] for side in result["sides"] if side in all_of}
        for name in result["titles"]
        if (all_of := {**before["works"].get(name, {}), **result["works"].get(name, {})})
    }
    told = {
        **result,
        **_headline(works),
        "works": works,
        "idle_cpu_per_s": {**before["idle_cpu_per_s"], **result["idle_cpu_per_s"]},
    }
    path.write_text(json.dumps(told, indent=1) + "\n")
    if told["idle_cpu_per_s"].keys() == told["sides"].keys():  # else a side is still to be measured
        PAGE.write_text(page())
    return told


def _circumstances(result: Mapping[str, Any]) -> list[Any]:
    """Return what must be the same for figures to be compared."""
    machine = {name: value for name, value in result["machine"].items() if name != "fsync_ms"}
    return [machine, *(result.get(name) for name in ("date", "versions", "few", "parallelism"))]


def _headline(works: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return documents per CPU-second of this package and of the mapped official operator, and their ratio."""
    sides = works.get("unlimited", {})
    if not {"ours", "common_ai"} <= sides.keys():
        return {}
    ours, peer = (sides[side]["documents_per_cpu_s"] for side in ("ours", "common_ai"))
    return {
        "ours": ours,
        "peer": peer,
        "ratio": round(ours / peer),
        "unit": "documents per CPU-second",
        "target": 500,
    }


def page() -> str:
    """Return the page, from the stored results."""
    told = json.loads((RESULTS / "rivals.json").read_text())
    return "\n".join(_lines(told)) + "\n"


def _lines(told: Mapping[str, Any]) -> Iterator[str]:
    machine, versions = told["machine"], told["versions"]
    works = {name: _with_shares(sides) for name, sides in told["works"].items()}
    idle = told["idle_cpu_per_s"].values()
    yield "# Benchmarks"
    yield ""
    yield (
        f"Measured on {told['date']} on one machine ({machine['cpu']}, {machine['cores']} cores, Python "
        f"{machine['python']}, an fsync takes {machine['fsync_ms']:.1f} ms), with "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ". `make bench` measures everything again and writes this page; nothing in it is typed by hand."
    )
    yield ""
    yield (
        "Every side runs in a real Airflow (api-server, scheduler with LocalExecutor, dag-processor, triggerer; "
        "SQLite) and asks the same stand-in: a test double of the API on the same machine, which answers after a fixed "
        "time and writes an invoice. The figures say nothing about a model. CPU is user and system time of all "
        "processes of that Airflow, scheduler and API server included; while nothing runs they use "
        f"{min(idle):.2f} to {max(idle):.2f} CPU-seconds per second, which is in the figures. Memory is that of all "
        "tasks at once. The DAGs, reduced to what is measured, are in `benchmarks/dags`; all tasks have three retries. "
        f"Airflow has {told['parallelism']} slots, no limit on the tasks of a DAG, and is asked for the state of the "
        "run once per second. The stand-in counts one token per four characters. Each figure is one run: repeated runs "
        "differed by up to a tenth in CPU, and by more in time."
    )
    yield ""
    yield (
        f"With 2,000 documents, a CPU-second yields {_times(told, 'common_ai')} as many answers with this package as "
        f"with the official provider's mapped operator, {_times(told, 'common_ai_preloaded')} as many as with the same "
        f"preloaded, {_times(told, 'task_mapped')} as many as with the SDK in a mapped `@task`; "
        f"{_times(told, 'common_ai_hook')} as many as with the official provider's hook and a loop of your own in one "
        f"task, and {_times(told, 'task_threads')} as many as with the SDK in threads. With {told['few']} documents it "
        f"is {_times(told, 'common_ai', 'small')} the mapped operator's, and "
        f"{_times(told, 'common_ai_preloaded', 'small')} the preloaded one's."
    )
    for name, columns in TABLES.items():
        yield from ("", f"## {_sentence(told['titles'][name])}", "")
        yield WORDS[name].strip().format(few=told["few"], parallelism=told["parallelism"])
        yield from ("", *_table(works[name], columns, told["sides"]))
        yield from where_rivals_are_better(works[name], columns, told["sides"])
        if name == "small":
            yield from _again(works["rerun"], told)
    yield from ("", *_scale(json.loads((RESULTS / "scale.json").read_text())))
    yield from ("", "## Single figures", "", *_others())
    yield from ("", "## What the rivals have that is not measured here", "", _NOT_MEASURED)


_NOT_MEASURED = """\
The official provider's `LLMBatchOperator` sends documents through the vendor's batch API: at half the price, with
answers within a day. This package does not use it yet. The official provider also supports models of many vendors; this
package supports Claude only. More in [the comparison](explanation/comparison.md)."""


def _with_shares(sides: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Add to each side's figures what follows from them."""
    out = {}
    for side, told in sides.items():
        more: dict[str, Any] = {}
        if "answered" in told:
            more["answered_share"] = told["answered"] / told["documents"]
            more["refused_share"] = told["refused"] / max(1, told["refused"] + told["requests"])
            more["usd_a_thousand"] = told["invoice_usd"] / max(1, told["answered"]) * 1000
        out[side] = {**told, **more}
    return out


def _table(
    sides: Mapping[str, Mapping[str, Any]], columns: Sequence[Column], titles: Mapping[str, str]
) -> Iterator[str]:
    counted = "documents" in next(iter(sides.values()))
    yield "| | " + ("of | " if counted else "") + " | ".join(column.head for column in columns) + " |"
    yield "|---|" + "---:|" * (len(columns) + counted)
    for side, told in sides.items():
        cells = [format(told[column.figure], column.form) for column in columns]
        of = [f"{told['documents']:,}"] if counted else []
        yield f"| {titles[side]} | " + " | ".join([*of, *cells]) + " |"


def _again(sides: Mapping[str, Mapping[str, Any]], told: Mapping[str, Any]) -> Iterator[str]:
    """Yield the section on the same documents in further runs."""
    yield from ("", f"## {_sentence(told['titles']['rerun'])}", "")
    yield (
        "The same DAG runs three times: over new documents, over the same documents, and over the same documents "
        "after every hundredth was changed. Requests are those on the invoice."
    )
    yield from (
        "",
        "| | of | new | unchanged | 1 % changed | CPU-s unchanged |",
        "|---|---:|---:|---:|---:|---:|",
    )
    for side, first in sides.items():
        unchanged, changed = first["unchanged"], first["changed"]
        yield (
            f"| {told['sides'][side]} | {first['documents']:,} | {first['requests']:,} | {unchanged['requests']:,} "
            f"| {changed['requests']:,} | {unchanged['cpu_s']:.2f} |"
        )
    yield from where_rivals_are_better(sides, [DOCUMENTS_A_CPU_S, DOCUMENTS_A_S], told["sides"])


def _scale(told: Mapping[str, Any]) -> Iterator[str]:
    """Yield the section on how one task of ours scales."""
    yield "## 100,000 documents in one task of ours"
    yield ""
    yield (
        f"Measured on {told['date']}; the stand-in answers immediately, so documents per second show what our CPU "
        "allows, with the stand-in on the same cores. CPU is that of the whole Airflow. What this means per day "
        "is in [sizing](explanation/sizing.md)."
    )
    heads = "documents/s | CPU-ms per document | task's peak memory (MB) | ledger (bytes per document)"
    yield from ("", f"| ledger | documents | {heads} |", "|---|" + "---:|" * 5)
    for ledger in ("sqlite", "postgresql"):
        for run in told[ledger]["runs"]:
            yield (
                f"| {ledger} | {run['documents']:,} | {run['documents_per_s']:,.0f} "
                f"| {run['airflow_cpu_ms_a_document']:.2f} | {run['peak_rss_mb']:,.0f} "
                f"| {run['ledger_bytes_a_document']:,} |"
            )
        run = told[ledger]["again"]
        yield (
            f"| {ledger} | {run['documents']:,}, unchanged: {run['requests']} requests | {run['documents_per_s']:,.0f} "
            f"| {run['airflow_cpu_ms_a_document']:.2f} | {run['peak_rss_mb']:,.0f} | |"
        )


def where_rivals_are_better(
    sides: Mapping[str, Mapping[str, Any]], columns: Sequence[Column], titles: Mapping[str, str]
) -> Iterator[str]:
    """Name every figure in which another side is better than ours."""
    better = []
    for column in columns:
        ours = sides["ours"][column.figure]
        for side, told in sides.items():
            theirs = told[column.figure]
            # With fewer answers, every count is lower.
            if column.figure in COUNTS:
                ours, theirs = (
                    sides[name][column.figure] / max(1, sides[name]["answered"]) for name in ("ours", side)
                )
            better_by = 1.0 if column.figure in EXACT else BETTER
            looks = [format(sides[name][column.figure], column.form) for name in ("ours", side)]
            if column.figure not in COUNTS and looks[0] == looks[1]:
                continue  # the table shows no difference
            is_better = theirs > ours * better_by if column.more_is_better else theirs * better_by < ours
            if side != "ours" and is_better:
                better.append(f"{titles[side]} ({column.head})")
    if better:
        yield from ("", f"Better than this package: {_listed(better)}.")


def _others() -> Iterator[str]:
    """List the benchmarks of single parts by what they measure."""
    yield "`make bench NAME=…` prints the figures of one part for your machine:"
    yield ""
    for path in sorted(set(HERE.glob("*.py")) - {Path(__file__)}):
        tree = ast.parse(path.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            yield f"- `{path.stem}`: {(ast.get_docstring(tree) or '').split(chr(10) * 2)[0].replace(chr(10), ' ')}"


def _times(told: Mapping[str, Any], side: str, name: str = "unlimited") -> str:
    works = told["works"]
    peer = works[name][side]["documents_per_cpu_s"]
    if works["unlimited"][side]["documents"] == told["few"]:
        # A mapped side does the same in both works: its better run counts.
        peer = max(works[each][side]["documents_per_cpu_s"] for each in ("unlimited", "small"))
    ratio = works[name]["ours"]["documents_per_cpu_s"] / peer
    return f"{ratio:,.0f} times" if ratio >= 10 else f"{ratio:.1f} times"


def _sentence(title: str) -> str:
    return title[0].upper() + title[1:]


def _listed(parts: Any) -> str:
    *first, last = list(parts)
    return f"{', '.join(first)} and {last}" if first else last


def main() -> None:
    """Write the page from the results that are there."""
    PAGE.write_text(page())
    print(PAGE.relative_to(HERE.parent))


if __name__ == "__main__":
    main()
