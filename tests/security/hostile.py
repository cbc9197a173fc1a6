"""Reads one hostile file within hard limits of memory and CPU, in a process of its own; prints what came of it."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

MEMORY_BYTES = 1_500_000_000
CPU_S = 60


def main(path: Path) -> None:
    """Print the outcome of every document of the file, with the peak of memory and the CPU it took."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    from airflow_llm_provider.documents import sandbox
    from airflow_llm_provider.documents.reader import Unreadable, read
    from airflow_llm_provider.documents.sources import Rejected, list_documents

    began, own_began = time.monotonic(), time.process_time()
    outcomes: dict[str, int] = {}
    text = ""
    for document in list_documents(path):
        try:
            if isinstance(document, Rejected):
                raise Unreadable(document.reason, document.message)
            text = read(document).text or ""
            outcome = "read"
        except Unreadable as error:
            outcome = error.reason
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    seconds = time.monotonic() - began
    sandbox.close()  # so that the children count
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Not ru_maxrss, which begins with that of the process this one was forked from.
    status = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in status if line.startswith("VmHWM"))
    print(
        json.dumps(
            {
                "outcomes": outcomes,
                "text": text[:1000],
                "seconds": seconds,
                "cpu_s": time.process_time() - own_began,
                "peak_bytes": int(peak) * 1024,
                "children_cpu_s": children.ru_utime + children.ru_stime,
                "largest_child_bytes": children.ru_maxrss * 1024,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
