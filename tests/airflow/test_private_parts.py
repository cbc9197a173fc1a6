"""Airflow's private parts, as `_airflow` uses them: one test per function, which fails when Airflow changes one."""

from __future__ import annotations

import asyncio
import datetime as dt
import gc
import inspect
import uuid
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator, task, task_group
from airflow.sdk.definitions.mappedoperator import MappedOperator, OperatorPartial

from airflow_llm_provider import _airflow
from airflow_llm_provider.operators.claude import ClaudeOperator

pytestmark = pytest.mark.usefixtures("airflow_home")

WATCHED = {
    "is_made_from_mapped",
    "expand_input",
    "DeferrablePartial",
    "CheckedPartial",
    "drop",
    "when_complete",
    "needs_expansion",
    "is_mapped_over",
    "run_before",
    "fetched",
    "map_indexes",
    "show_form",
    "template_environment",
    "expanded",
    "upstream_of",
    "is_mapped",
    "pull_xcom",
    "push_xcom",
    "delete_xcom",
    "find_answer",
    "imagined_run",
    "rendered_task",
    "past_runs",
}


def test_every_reach_into_airflow_is_watched_here() -> None:
    there = {
        name
        for name, value in vars(_airflow).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == _airflow.__name__
    }
    assert there == WATCHED


def takes(function: Any, *names: str) -> None:
    """Assert that a function of Airflow's has these parameters."""
    assert set(names) <= set(inspect.signature(function).parameters), function


class Plain(BaseOperator):
    """A task that Airflow alone knows."""

    template_fields = ("value",)

    def __init__(self, *, value: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.value = value

    def execute(self, context: Any) -> Any:
        return self.value


def mapped(values: Any = (1, 2)) -> Any:
    return Plain.partial(task_id="over").expand(value=list(values))


def serialized(dag: DAG, task_id: str) -> Any:
    """Return a task as the scheduler and the triggerer have it."""
    from airflow.serialization.serialized_objects import DagSerialization

    return DagSerialization.from_dict(DagSerialization.to_dict(dag)).get_task(task_id)


# When the DAG is parsed.


def test_is_made_from_mapped() -> None:
    with DAG("parts", schedule=None):
        over = ClaudeOperator.partial(task_id="over").expand(prompt=["a"])
        plain = Plain(task_id="plain")
    assert _airflow.is_made_from_mapped(over.unmap({"prompt": "a"}))
    assert not _airflow.is_made_from_mapped(plain)


def test_expand_input() -> None:
    with DAG("parts", schedule=None) as dag:
        over = mapped()
        by_rows = Plain.partial(task_id="rows").expand_kwargs([{"value": 1}])
    assert dict(_airflow.expand_input(over).value) == {"value": [1, 2]}
    assert list(_airflow.expand_input(by_rows).value) == [{"value": 1}]
    stored = _airflow.expand_input(serialized(dag, "over"))
    assert (stored.EXPAND_INPUT_TYPE, dict(stored.value)) == ("dict-of-lists", {"value": [1, 2]})


def test_deferrable_partial() -> None:
    takes(OperatorPartial._expand, "expand_input", "strict")
    with DAG("parts", schedule=None):
        partial = ClaudeOperator.partial(task_id="over", deferrable=True)
        assert isinstance(partial, _airflow.DeferrablePartial)
        assert isinstance(partial.expand(prompt=["a"]), MappedOperator)
        assert isinstance(
            ClaudeOperator.partial(task_id="rows").expand_kwargs([{"prompt": "a"}]), MappedOperator
        )


def test_checked_partial_and_when_complete() -> None:
    checked: list[Any] = []

    class Checked(Plain):
        require_complete = staticmethod(checked.append)

    with DAG("parts", schedule=None) as dag:
        made = _airflow.CheckedPartial.of(Checked.partial(task_id="over"))
        over = made.expand(value=[1])
    assert checked == []
    dag.resolve_template_files()  # as Airflow does with every DAG of a file that it has parsed
    assert checked == [over]


def test_drop() -> None:
    with warnings.catch_warnings(record=True) as said, DAG("parts", schedule=None):
        _airflow.drop(Plain.partial(task_id="left"))
        gc.collect()
    assert [str(warning.message) for warning in said if "never mapped" in str(warning.message)] == []
    with DAG("parts", schedule=None), pytest.warns(UserWarning, match="never mapped"):
        _leave(Plain.partial(task_id="left"))


def _leave(partial: OperatorPartial) -> None:
    del partial
    gc.collect()


def test_airflow_calls_resolve_template_files_of_every_task_when_a_file_is_parsed() -> None:
    from airflow.dag_processing import dagbag

    assert "resolve_template_files" in inspect.getsource(dagbag)
    assert "resolve_template_files" in inspect.getsource(DAG.resolve_template_files)


def test_needs_expansion() -> None:
    with DAG("parts", schedule=None) as dag:
        over, plain = mapped(), Plain(task_id="plain")

        @task_group
        def each(n: int) -> None:
            Plain(task_id="inner", value=n)

        each.expand(n=[1, 2])
    assert _airflow.needs_expansion(over)
    assert _airflow.needs_expansion(dag.task_dict["each.inner"])
    assert not _airflow.needs_expansion(plain)


def test_is_mapped_over() -> None:
    with DAG("parts", schedule=None):
        source, other = Plain(task_id="source"), Plain(task_id="other")
        over = Plain.partial(task_id="over").expand(value=source.output)
        by_map = Plain.partial(task_id="by_map").expand(value=source.output.map(str))
        by_zip = Plain.partial(task_id="by_zip").expand(value=source.output.zip(other.output))
    assert _airflow.is_mapped_over(over, source)
    assert _airflow.is_mapped_over(by_map, source)
    assert not _airflow.is_mapped_over(over, other)
    assert not _airflow.is_mapped_over(by_zip, source)
    assert not _airflow.is_mapped_over(source, other)


def test_run_before(deployment: Any) -> None:
    ran: list[str] = []
    with DAG("parts", schedule=None) as dag:
        made = Plain(task_id="read", value=7, pre_execute=lambda context: ran.append("author's"))
        _airflow.run_before(made, lambda context: ran.append(f"ours, of {context['ti'].task_id}"))
    assert deployment.run(dag).state == "success"
    assert ran == ["author's", "ours, of read"]


def test_run_before_reaches_a_task_that_airflow_would_not_send_to_a_worker(deployment: Any) -> None:
    from airflow.providers.standard.operators.empty import EmptyOperator

    ran: list[int] = []
    with DAG("parts", schedule=None) as dag:
        made = EmptyOperator(task_id="read")
        _airflow.run_before(made, lambda context: ran.append(1))
    assert EmptyOperator(task_id="other").inherits_from_empty_operator
    assert serialized(dag, "read").inherits_from_empty_operator is False
    assert deployment.run(dag).state == "success"
    assert ran == [1]


# In a worker.


def test_fetched(deployment: Any) -> None:
    got: list[Any] = []
    with DAG("parts", schedule=None) as dag:

        @task
        def number(n: int) -> int:
            return n

        @task
        def after(numbers: Any) -> None:
            got.append((type(numbers).__name__, _airflow.fetched(numbers)))

        after(number.expand(n=[1, 2, 3]))
    assert deployment.run(dag).state == "success"
    assert got == [("LazyXComSequence", [1, 2, 3])]
    assert _airflow.fetched([1, 2]) == [1, 2]


def test_map_indexes(deployment: Any) -> None:
    got: list[Any] = []
    with DAG("parts", schedule=None) as dag:
        over = mapped()

        @task
        def after(ti: Any = None) -> None:
            got.extend(_airflow.map_indexes(ti, ["over"]))

        over >> after()
    assert deployment.run(dag).state == "success"
    assert sorted(got) == [("over", 0), ("over", 1)]


def test_show_form(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import HITLDetailRequestResult

    form = {
        "options": ["Approve", "Reject"],
        "subject": "Send?",
        "body": "…",
        "defaults": None,
        "multiple": False,
        "params": {},
        "assigned_users": [],
    }
    asked: list[Any] = []

    def send(message: Any) -> Any:
        asked.append(message)
        return HITLDetailRequestResult(ti_id=message.ti_id, **form)

    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", SimpleNamespace(send=send), raising=False)
    ti_id = uuid.uuid4()
    assert _airflow.show_form(ti_id, form) == form
    assert (asked[0].ti_id, asked[0].options) == (ti_id, form["options"])


# In the triggerer.


def test_template_environment() -> None:
    import jinja2

    environment = _airflow.template_environment()
    assert environment.from_string("{{ a }}").render(a=1) == "1"
    with pytest.raises(jinja2.UndefinedError):
        environment.from_string("{{ a }}").render()


def test_expanded() -> None:
    ti = SimpleNamespace(map_index=3)
    lists = {"a": [1, 2], "b": ["x", "y", "z"]}
    assert _airflow.expanded(lists, ti) == {"a": 2, "b": "x"}


def test_upstream_of_and_is_mapped() -> None:
    with DAG("parts", schedule=None) as dag:
        Plain.partial(task_id="over").expand(value=Plain(task_id="source").output)
        Plain.partial(task_id="after").expand(value=dag.task_dict["over"].output)
    over, after = serialized(dag, "over"), serialized(dag, "after")
    assert _airflow.upstream_of(_airflow.expand_input(over).value["value"]) == ("source", "return_value")
    assert _airflow.upstream_of(_airflow.expand_input(after).value["value"]) is None
    assert _airflow.is_mapped(over)
    assert not _airflow.is_mapped(serialized(dag, "source"))


def test_pull_and_push_xcom(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import GetXCom, SetXCom, XComResult

    said: list[Any] = []

    async def asend(message: Any) -> Any:
        said.append(message)
        return XComResult(key=message.key, value="kept") if isinstance(message, GetXCom) else None

    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", SimpleNamespace(asend=asend), raising=False)
    ti = SimpleNamespace(dag_id="parts", run_id="today", task_id="ask", map_index=2)
    assert asyncio.run(_airflow.pull_xcom(ti, "source", "return_value")) == "kept"
    asyncio.run(_airflow.push_xcom(ti, "return_value", [1, 2], mapped_length=2))
    pull, push = said
    assert (pull.task_id, pull.run_id, pull.map_index) == ("source", "today", -1)
    assert isinstance(push, SetXCom)
    assert (push.task_id, push.map_index, push.mapped_length) == ("ask", 2, 2)


def test_delete_xcom(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk.execution_time import task_runner

    said: list[Any] = []

    async def asend(message: Any) -> None:
        said.append(message)

    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", SimpleNamespace(asend=asend), raising=False)
    ti = SimpleNamespace(dag_id="parts", run_id="today", task_id="ask", map_index=2)
    asyncio.run(_airflow.delete_xcom(ti, "llm_usage"))
    (message,) = said
    assert (type(message).__name__, message.key, message.map_index) == ("DeleteXCom", "llm_usage", 2)


@pytest.mark.parametrize("user", [None, {"id": "ada", "name": "Ada"}])
def test_find_answer(monkeypatch: pytest.MonkeyPatch, user: Any) -> None:
    from airflow.sdk.execution_time import task_runner

    there = SimpleNamespace(
        response_received=True,
        responded_by_user=None if user is None else SimpleNamespace(**user),
        chosen_options=["Approve"],
        params_input={"feedback": "Yes."},
        responded_at=dt.datetime(2026, 3, 4, tzinfo=dt.UTC),
    )
    said: list[Any] = []

    async def asend(message: Any) -> Any:
        said.append(message)
        return there

    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", SimpleNamespace(asend=asend), raising=False)
    ti_id = uuid.uuid4()
    answer = asyncio.run(_airflow.find_answer(str(ti_id)))
    assert answer is not None
    assert (answer["chosen_options"], answer["responded_by_user"]) == (["Approve"], user)
    assert answer["timedout"] is (user is None)
    assert (type(said[0]).__name__, said[0].ti_id) == ("GetHITLDetailResponse", ti_id)
    there.response_received = False
    assert asyncio.run(_airflow.find_answer(str(ti_id))) is None


def test_the_answer_to_a_form_has_these_fields() -> None:
    from airflow.sdk.api.datamodels._generated import HITLDetailResponse

    fields = HITLDetailResponse.model_fields.keys()
    assert {
        *("response_received", "responded_by_user", "responded_at", "chosen_options", "params_input")
    } <= fields


# Without a run.


def run(**more: Any) -> Any:
    day = dt.datetime(2026, 3, 4, tzinfo=dt.UTC)
    given = {"conf": {"who": "Ada"}, "logical_date": day, "is_backfill": False}
    interval = (day, day + dt.timedelta(days=1))
    return _airflow.imagined_run("parts", run_id="imagined", data_interval=interval, **given | more)


def test_imagined_run() -> None:
    made = run(is_backfill=True)
    assert (made.dag_id, made.run_id, made.conf) == ("parts", "imagined", {"who": "Ada"})
    assert made.run_type == "backfill"
    assert made.data_interval_end - made.data_interval_start == dt.timedelta(days=1)


@pytest.mark.parametrize("map_index", [-1, 1])
def test_rendered_task(map_index: int) -> None:
    pulled: list[Any] = []

    def on_xcom_pull(*args: Any, **kwargs: Any) -> str:
        pulled.append((args, kwargs))
        return "from upstream"

    text = "{{ ds }} {{ dag_run.conf['who'] }} {{ ti.xcom_pull('source') }}"
    with DAG("parts", schedule=None, params={"who": "?"}):
        made: Any = (
            Plain(task_id="read", value=text)
            if map_index < 0
            else Plain.partial(task_id="read").expand(value=["0", text])
        )
    with _airflow.rendered_task(made, run(), map_index, on_xcom_pull) as (rendered, context):
        assert rendered.value == "2026-03-04 Ada from upstream"  # type: ignore[attr-defined]  # of Plain
        assert (context["ti"].task_id, context["ti"].map_index) == ("read", map_index)
    assert pulled == [(("source",), {})]


def test_past_runs() -> None:
    first = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
    with DAG("parts", schedule="@daily", start_date=first, catchup=True) as dag:
        Plain(task_id="read")
    runs = list(_airflow.past_runs(dag, first, first + dt.timedelta(days=2)))
    assert [made.logical_date.day for made in runs] == [1, 2, 3]
    assert all(made.data_interval for made in runs)
