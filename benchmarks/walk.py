"""Follow one prompt and one text document from an operator's `execute` to the HTTP client, in a real task instance.

`make house` runs this once per version of the package, with PYTHONPATH set to the folder that holds it.
A frame is counted from `execute` to the request function of the HTTP client, both included.
The last line is one JSON object. Nothing leaves this machine: the model is the package's own stand-in.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

PACKAGE = "airflow_llm_provider"
KINDS = ("prompt", "document")
# The HTTP client is found by its module and the function that every request passes through.
HTTP_CLIENT = ("aiohttp/client.py", "_request")


@dataclass
class Walk:
    """What ran between `execute` and its return."""

    root: Path
    stack: list[CodeType] = field(default_factory=list)  # from `execute` to the HTTP client
    files: set[str] = field(default_factory=set)  # of ours, where a function ran, in any thread
    _execute: FrameType | None = None
    _is_ours: dict[CodeType, bool] = field(default_factory=dict)

    def start(self, _context: object) -> None:
        """Watch from here on, in this thread and in those that it starts."""
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def stop(self) -> dict[str, Any]:
        """Watch no more, and return the figures."""
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
        if not self.stack:
            raise RuntimeError(f"No frame of {HTTP_CLIENT[0]}:{HTTP_CLIENT[1]} was seen below `execute`.")
        ours = [code for code in self.stack if self._ours(code)]
        return {
            "frames": len(self.stack),
            "frames_ours": len(ours),
            "files_on_stack": list(dict.fromkeys(self._name(code) for code in ours)),
            "files_ran": sorted(self.files),
            "stack": [f"{self._name(code)}:{code.co_name}" for code in self.stack],
        }

    def _profile(self, frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        if event == "return":
            if frame is self._execute:
                self._execute = None
        elif event == "call":
            if self._ours(code):
                if self._execute is None and code.co_name == "execute" and not self.stack:
                    self._execute = frame
                # Neither a module nor a class body, both of which run when a file is imported.
                if self._execute is not None and code.co_flags & inspect.CO_OPTIMIZED:
                    self.files.add(self._name(code))
            elif (
                code.co_name == HTTP_CLIENT[1]
                and self._execute is not None
                and not self.stack
                and code.co_filename.endswith(HTTP_CLIENT[0])
            ):
                self.stack = self._frames(frame)

    def _frames(self, frame: FrameType | None) -> list[CodeType]:
        """Return the code from `execute` to `frame`; a coroutine's callers are on the stack while it runs."""
        codes: list[CodeType] = []
        while frame is not None:
            codes.append(frame.f_code)
            if frame is self._execute:
                return codes[::-1]
            frame = frame.f_back
        return codes[::-1]  # the request was made in another thread: all that this thread's stack shows

    def _ours(self, code: CodeType) -> bool:
        known = self._is_ours.get(code)
        if known is None:
            known = Path(code.co_filename).is_relative_to(self.root)
            self._is_ours[code] = known and f"{os.sep}testing{os.sep}" not in code.co_filename
        return self._is_ours[code]

    def _name(self, code: CodeType) -> str:
        path = Path(code.co_filename)
        if path.is_relative_to(self.root):
            return str(path.relative_to(self.root))
        return "/".join(path.parts[-2:])


def walk(kind: str) -> dict[str, Any]:
    """Ask about one `prompt` or one `document` in a task of a DAG run, and return what was seen."""
    import importlib

    from airflow.sdk import DAG
    from airflow.utils.db import initdb

    home = Path(os.environ["AIRFLOW_HOME"])
    if not (home / "airflow.db").exists():
        initdb()
    package = importlib.import_module(PACKAGE)
    watcher = Walk(root=Path(package.__file__ or "").parent)
    asked = {"prompt": "What is owed?", "model": "fast", "pre_execute": watcher.start}
    with importlib.import_module(f"{PACKAGE}.testing").StandIn() as server:
        connection = {
            "conn_type": "claude",
            "password": "sk-ant-any",
            "host": server.url,
            "extra": {"ledger_url": f"sqlite:///{home / 'ledger.db'}"},
        }
        os.environ["AIRFLOW_CONN_CLAUDE_DEFAULT"] = json.dumps(connection)
        with DAG(f"walk_{kind}", schedule=None) as dag:
            if kind == "prompt":
                operators = importlib.import_module(f"{PACKAGE}.operators.claude")
                operators.ClaudeOperator(task_id="ask", **asked)
            else:
                inbox = home / "inbox"
                inbox.mkdir()
                (inbox / "letter.txt").write_text("We owe you $7.00.")
                operators = importlib.import_module(f"{PACKAGE}.operators.documents")
                operators.ClaudeDocumentsOperator(
                    task_id="ask", documents=str(inbox), output=str(home / "rows.jsonl"), **asked
                )
        _run(dag)
        found = watcher.stop()
    if server.invoice.paid != 1:
        raise RuntimeError(f"The stand-in was asked {server.invoice.paid} times, not once.")
    return found


def _run(dag: Any) -> None:
    """Run a DAG of this process to its end, as `airflow dags test` does."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.serialization.definitions.dag import SerializedDAG
    from airflow.serialization.serialized_objects import LazyDeserializedDAG
    from airflow.utils.session import create_session

    with create_session() as session:
        DagBundlesManager().sync_bundles_to_db(session=session)
        session.flush()
        lazy = LazyDeserializedDAG.from_dag(dag)
        SerializedDAG.bulk_write_to_db("dags-folder", None, [lazy], session=session)
        SerializedDagModel.write_dag(lazy, bundle_name="dags-folder", session=session)
    state = str(dag.test().state)
    if state != "success":
        raise RuntimeError(f"DAG {dag.dag_id} ended as {state}.")


def follow() -> None:
    """Print both walks of the package on PYTHONPATH as one JSON object, or the walk that is named."""
    if len(sys.argv) > 1:
        print(json.dumps(walk(sys.argv[1])))
        return
    env = {
        key: text for key, text in os.environ.items() if not key.startswith(("AIRFLOW__", "AIRFLOW_CONN_"))
    }
    found = {}
    with tempfile.TemporaryDirectory(prefix="walk-") as home:
        (Path(home) / "dags").mkdir()
        env |= {
            "AIRFLOW_HOME": home,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": f"{home}/dags",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        }
        for kind in KINDS:  # each in a process of its own: what runs once per process is counted for both
            done = subprocess.run(
                [sys.executable, __file__, kind],
                env=env,
                cwd=home,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                sys.exit(f"The walk of a {kind} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
            found[kind] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found))


if __name__ == "__main__":
    follow()
