"""A running Airflow, driven through its REST API."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    import httpx2

_FINAL = ("success", "failed")
_TRIES = 4


class RunningAirflow:
    """An Airflow at `url` whose simple auth manager makes every visitor an admin.

    Attributes:
        url: the UI's address, without a slash at the end.
    """

    url: str

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **params: Any) -> Any:
        """Return what `GET /api/v2/<path>` answers; httpx2.HTTPStatusError when it refuses."""
        return self.request("GET", path, params=params)

    def unpause(self, dag_id: str) -> None:
        """Let the DAG's runs start."""
        self.request("PATCH", f"dags/{quoted(dag_id)}", json={"is_paused": False})

    def trigger(
        self,
        dag_id: str,
        conf: Mapping[str, Any] | None = None,
        logical_date: datetime | None = None,
        *,
        timeout_s: float = 60.0,
    ) -> str:
        """Start a run of the DAG as its file is now; unpause the DAG; return the run id.

        Waits up to `timeout_s` for the file to be parsed; TimeoutError with the import errors after that.
        """
        import httpx2

        if self._wait_parsed(dag_id, timeout_s)["is_paused"]:
            self.unpause(dag_id)
        # With an id of our own, a repeated request does not start a second run.
        run_id = f"manual__{datetime.now(UTC).isoformat()}_{secrets.token_hex(4)}"
        date = logical_date.isoformat() if logical_date else None
        body = {"dag_run_id": run_id, "conf": conf or {}, "logical_date": date}
        try:
            self.request("POST", f"dags/{quoted(dag_id)}/dagRuns", json=body)
        except httpx2.HTTPStatusError as error:
            # After a server error the request is sent again, and the first one may have started the run.
            if error.response.status_code != httpx2.codes.CONFLICT or run_id not in self._run_ids(dag_id):
                raise
        return run_id

    def wait(
        self,
        dag_id: str,
        run_id: str,
        timeout_s: float,
        on_progress: Callable[[str], None] | None = None,
        *,
        poll_s: float = 0.5,
    ) -> str:
        """Wait until the run has ended; return "success" or "failed".

        An API server that does not answer is waited for.

        Args:
            dag_id: of the DAG.
            run_id: of the run.
            timeout_s: seconds; then TimeoutError with the states of the tasks.
            on_progress: called with the run's state, every `poll_s` seconds.
            poll_s: seconds between two requests.
        """
        import httpx2

        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.check()
            with suppress(httpx2.TransportError):
                state = str(self.get(run_path(dag_id, run_id))["state"])
                if on_progress is not None:
                    on_progress(state)
                if state in _FINAL:
                    return state
            time.sleep(poll_s)
        tasks = ", ".join(f"{t['task_id']}: {t['state']}" for t in self.task_instances(dag_id, run_id))
        raise TimeoutError(f"{dag_id}, run {run_id}, has not ended after {timeout_s:.0f} s ({tasks}).")

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return the run's task instances as the API describes them, mapped ones too."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.get(f"{run_path(dag_id, run_id)}/taskInstances", limit=100, offset=len(found))
            found += page["task_instances"]
            if not page["task_instances"] or len(found) >= page["total_entries"]:
                return found

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1) -> str:
        """Return the log of one try: one event per line, exceptions by class and message."""
        path = f"{run_path(dag_id, run_id)}/taskInstances/{quoted(task_id)}/logs/{try_number}"
        events = self.get(path, map_index=map_index, full_content=True)["content"]
        return "\n".join(_line(event) for event in events)

    def xcom(
        self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1
    ) -> Any:
        """Return the XCom's value; LookupError when the task has pushed none."""
        import httpx2

        path = f"{run_path(dag_id, run_id)}/taskInstances/{quoted(task_id)}/xcomEntries/{quoted(key)}"
        try:
            return self.get(path, map_index=map_index)["value"]
        except httpx2.HTTPStatusError as error:
            if error.response.status_code != httpx2.codes.NOT_FOUND:
                raise
            raise LookupError(f"{dag_id}.{task_id}[{map_index}], run {run_id}: no XCom {key!r}.") from None

    def disconnect(self) -> None:
        """Close the connections to the API server; the next request opens them again."""
        if client := self.__dict__.pop("_http", None):
            client.close()

    def check(self) -> None:
        """Raise when this Airflow can no longer end a run; called before every request while waiting."""

    def _run_ids(self, dag_id: str) -> set[str]:
        runs = self.get(f"dags/{quoted(dag_id)}/dagRuns", order_by="-run_after", limit=10)["dag_runs"]
        return {run["dag_run_id"] for run in runs}

    def _wait_parsed(self, dag_id: str, timeout_s: float) -> dict[str, Any]:
        import httpx2

        deadline, asked_at = time.monotonic() + timeout_s, time.time()
        while True:
            self.check()
            try:
                dag: dict[str, Any] = self.get(f"dags/{quoted(dag_id)}")
                if _parsed_since_change(dag, asked_at):
                    return dag
            except httpx2.HTTPStatusError as error:
                if error.response.status_code != httpx2.codes.NOT_FOUND:
                    raise
            except httpx2.TransportError:
                pass
            if time.monotonic() > deadline:
                errors = [f"{e['filename']}:\n{e['stack_trace']}" for e in self._import_errors()]
                raise TimeoutError(
                    f"DAG {dag_id!r} was not parsed within {timeout_s:.0f} s. Import errors: "
                    + ("\n".join(errors) or "none; is the file in the DAGs folder, and does it name this id?")
                )
            time.sleep(0.2)

    def _import_errors(self) -> Sequence[dict[str, Any]]:
        errors: list[dict[str, Any]] = self.get("importErrors")["import_errors"]
        return errors

    def request(self, method: str, path: str, **arguments: Any) -> Any:
        """Send a request to `/api/v2/<path>`; return its JSON. Raises httpx2.HTTPStatusError for an error status."""
        if "Authorization" not in self._http.headers:
            self._log_in()
        for _ in range(_TRIES):
            response = self._http.request(method, f"/api/v2/{path}", **arguments)
            if response.status_code == 401:  # the token lasts a day
                self._log_in()
            elif response.status_code >= 500:
                # On SQLite a write can wait for a task's start within the same API server, until the lock times
                # out after 5 s.
                time.sleep(0.5)
            else:
                break
        if response.is_error:
            import httpx2

            raise httpx2.HTTPStatusError(
                f"{method} {path}: {response.status_code} {response.text[:2000]}",
                request=response.request,
                response=response,
            )
        return response.json() if response.content else None

    def _log_in(self) -> None:
        response = self._http.get("/auth/token").raise_for_status()
        self._http.headers["Authorization"] = f"Bearer {response.json()['access_token']}"

    @cached_property
    def _http(self) -> httpx2.Client:
        import httpx2

        # trust_env=False: requests to loopback must not go through a proxy.
        return httpx2.Client(base_url=self.url, timeout=120.0, trust_env=False)


def quoted(part: str) -> str:
    """Return `part` as one segment of a URL path."""
    return quote(part, safe="")


def run_path(dag_id: str, run_id: str) -> str:
    """Return the API path of a DAG run."""
    return f"dags/{quoted(dag_id)}/dagRuns/{quoted(run_id)}"


def _parsed_since_change(dag: Mapping[str, Any], asked_at: float) -> bool:
    file = Path(dag["fileloc"])
    # A file with a time in the future would never count as parsed.
    changed_at = min(file.stat().st_mtime, asked_at) if file.exists() else 0.0
    return datetime.fromisoformat(dag["last_parsed_time"]).timestamp() > changed_at


def _line(event: Mapping[str, Any] | str) -> str:
    if isinstance(event, str):
        return event
    line = " ".join(str(event[key]) for key in ("timestamp", "level", "event") if event.get(key))
    for detail in event.get("error_detail") or ():
        line += f"\n{detail.get('exc_type')}: {detail.get('exc_value')}"
    extra = {k: v for k, v in event.items() if k in ("exit_code", "signal", "signal_name", "error")}
    return f"{line} {json.dumps(extra, default=str)}" if extra else line
