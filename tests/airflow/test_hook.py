"""The hook by itself: in a task, in a running event loop, in a notebook without Airflow's context, after a cancel."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import pydantic
import pytest
from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from airflow_llm_provider import Budget, ClaudeHook, LLMError, OnInvalid, Route
from airflow_llm_provider.errors import AuthenticationFailed, InvalidOutput
from airflow_llm_provider.hooks.scope import NO_DAG
from airflow_llm_provider.testing.processes import wait_until
from airflow_llm_provider.triggers.engines import shared_engine
from tests.support.forks import in_a_child

FAST = "claude-haiku-5-5"
LETTER = "We owe you $7.00. Signed March 4, 2026."


class Debt(pydantic.BaseModel):
    amount: float


def rows(count: int, *, start: int = 0) -> list[str]:
    return [f"Letter {n}: we owe you ${n}.00." for n in range(start, start + count)]


def amounts(deployment: Any) -> None:
    """Let the stand-in answer with the amount in the row."""
    deployment.server.reply(call=lambda question: {"amount": float(question.document.split("$")[1][:-1])})


def map_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "claude-map"]


# In a child that was forked.


async def test_a_forked_child_gets_an_error_for_its_parents_session_and_engines_of_its_own(
    deployment: Any,
) -> None:
    connection = ClaudeHook().connection

    async def with_shared_engine() -> str:
        async with shared_engine(connection) as engine:
            return engine.ledger.holder

    async def ask(claude: Any) -> str:
        return str((await claude.ask("Of the child?", model="fast")).stop_reason)

    def in_it(claude: Any, parents: str) -> list[Any]:
        try:
            asyncio.run(ask(claude))
        except LLMError as error:
            said = str(error)
        own = asyncio.run(with_shared_engine())
        return [
            "was forked since" in said,
            own != parents,
            ClaudeHook().ask("By itself?", model="fast").stop_reason,
        ]

    async with ClaudeHook().session() as claude, shared_engine(connection) as engine:
        assert await ask(claude) == "end_turn"
        told = await asyncio.to_thread(in_a_child, lambda: in_it(claude, engine.ledger.holder))
        assert told == "[True, True, 'end_turn']"
        assert (await claude.ask("Of the parent?", model="fast")).stop_reason == "end_turn"


# In a plain task.


def in_a_task(deployment: Any, function: Any, *, dag_id: str = "plain", retries: int = 0) -> Any:
    with DAG(dag_id, schedule=None) as dag:
        task(task_id="read", retries=retries, retry_delay=0)(function)()
    return dag


def test_ask_in_a_task_belongs_to_the_task_instance(deployment: Any) -> None:
    amounts(deployment)

    def read() -> Any:
        reply = ClaudeHook().ask("What is owed?", inputs={"letter": LETTER}, output_type=Debt, model="fast")
        assert isinstance(reply.value, Debt)
        return reply.value.amount

    deployment.server.reply(data={"amount": 7.0})
    dag = in_a_task(deployment, read)
    ran = deployment.run(dag)
    assert (ran.state, ran.xcom()) == ("success", 7.0), ran.log
    (row,) = deployment.calls
    assert (row["dag_id"], row["run_id"], row["task_id"]) == ("plain", ran.run_id, "read")
    assert "It cost $" in ran.log
    again = deployment.clear(ran, in_a_task(deployment, read))
    assert again.xcom() == 7.0
    assert deployment.server.invoice.paid == 1


def test_map_in_a_task_yields_in_order_and_a_retry_asks_only_for_the_rest(deployment: Any) -> None:
    amounts(deployment)
    deployment.server.fail(500, matching="Letter 3:", times=1)

    def read() -> Any:
        said = []
        route = Route(retry={"server": {"attempts": 1}})
        for outcome in ClaudeHook().map(rows(6), "?", output_type=Debt, model="fast", route=route):
            if isinstance(outcome, LLMError):
                raise outcome
            said.append(outcome.value.amount)
        return said

    ran = deployment.run(in_a_task(deployment, read, retries=1))
    assert (ran.state, ran.xcom()) == ("success", [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), ran.log
    assert ran.ti().try_number == 2
    assert deployment.server.invoice.paid == 6
    assert {row["task_id"] for row in deployment.calls} == {"read"}


def test_a_session_in_a_task_asks_at_once_on_the_tasks_own_loop(deployment: Any) -> None:
    def read() -> Any:
        async def both() -> list[str]:
            async with ClaudeHook().session() as claude:
                replies = await asyncio.gather(
                    claude.ask("First?", model="fast"), claude.ask("Second?", model="fast")
                )
                return [reply.value for reply in replies]

        return asyncio.run(both())

    ran = deployment.run(in_a_task(deployment, read))
    assert (ran.state, ran.xcom()) == ("success", ["First?", "Second?"]), ran.log
    assert {row["run_id"] for row in deployment.calls} == {ran.run_id}


def test_an_error_that_no_retry_can_help_fails_the_task_at_once(deployment: Any) -> None:
    deployment.server.fail(401)

    def read() -> Any:
        return ClaudeHook().ask("?", model="fast").value

    ran = deployment.run(in_a_task(deployment, read, retries=2))
    assert (ran.state, ran.ti().try_number) == ("failed", 1)
    assert "AirflowFailException: plain.read: AuthenticationFailed" in ran.log


def test_an_answer_that_stays_invalid_fails_the_task_at_once(deployment: Any) -> None:
    deployment.server.fail(kind="wrong_shape")

    def read() -> Any:
        return ClaudeHook().ask("?", output_type=Debt, on_invalid=OnInvalid(max_repairs=0)).value

    ran = deployment.run(in_a_task(deployment, read, retries=2))
    assert (ran.state, ran.ti().try_number) == ("failed", 1)
    assert "AirflowFailException: plain.read: InvalidOutput" in ran.log


def test_a_budget_of_one_question_bounds_the_task_instance(deployment: Any) -> None:
    def read() -> Any:
        return ClaudeHook().ask("?", model="fast", budget=0.000_001).value

    ran = deployment.run(in_a_task(deployment, read, retries=2))
    assert (ran.state, deployment.server.seen) == ("failed", 0)
    assert "left in budget 'budget.task_usd'" in ran.log


# Without a task: in a test, a script or a notebook.


def test_ask_gives_a_value_of_the_output_type_and_says_what_it_took(deployment: Any) -> None:
    deployment.server.reply(data={"amount": 7.0})
    reply = ClaudeHook().ask("What is owed?", inputs={"letter": LETTER}, output_type=Debt, model="fast")
    assert reply.value == Debt(amount=7.0)
    assert reply.model == FAST
    assert reply.cost_micro_usd == deployment.server.invoice.cost_micro_usd
    assert not reply.reused


def test_calls_without_a_task_share_no_answers_with_a_dag_run_or_with_another_hook(deployment: Any) -> None:
    def read() -> Any:
        return ClaudeHook().ask("Hello?", model="fast").value

    deployment.run(in_a_task(deployment, read))
    first, second = ClaudeHook(), ClaudeHook()
    assert not first.ask("Hello?", model="fast").reused
    assert first.ask("Hello?", model="fast").reused
    assert not second.ask("Hello?", model="fast").reused
    assert deployment.server.invoice.paid == 3
    assert len({row["run_id"] for row in deployment.calls}) == 3
    assert [row["dag_id"] for row in deployment.calls].count(NO_DAG) == 2
    # Where the author wants it, they do.
    assert second.ask("Hello?", model="fast", reuse="always").reused


def test_a_dag_run_takes_no_answer_of_a_notebook(deployment: Any) -> None:
    ClaudeHook().ask("Hello?", model="fast")

    def read() -> Any:
        return ClaudeHook().ask("Hello?", model="fast").reused

    assert deployment.run(in_a_task(deployment, read)).xcom() is False


def test_ask_works_while_an_event_loop_runs_as_in_a_notebook(deployment: Any) -> None:
    async def cell() -> str:
        return ClaudeHook().ask("Hello?", model="fast").value

    assert asyncio.run(cell()) == "Hello?"


def test_map_works_while_an_event_loop_runs(deployment: Any) -> None:
    amounts(deployment)

    async def cell() -> list[Any]:
        return list(ClaudeHook().map(rows(3), "?", output_type=Debt, model="fast"))

    assert [reply.value.amount for reply in asyncio.run(cell())] == [0.0, 1.0, 2.0]


def test_sessions_follow_one_another_on_different_loops(deployment: Any) -> None:
    hook = ClaudeHook()

    async def cell(prompt: str) -> str:
        async with hook.session() as claude:
            return (await claude.ask(prompt, model="fast")).value

    assert [asyncio.run(cell(prompt)) for prompt in ("One?", "Two?")] == ["One?", "Two?"]
    assert hook.ask("Three?", model="fast").value == "Three?"


def test_two_sessions_of_one_hook_at_once(deployment: Any) -> None:
    hook = ClaudeHook()

    async def cell() -> list[str]:
        async with hook.session() as one:
            async with hook.session() as two:
                await two.ask("Two?", model="fast")
            return [(await one.ask(prompt, model="fast")).value for prompt in ("One?", "Two?")]

    assert asyncio.run(cell()) == ["One?", "Two?"]
    assert deployment.server.invoice.paid == 2


def test_outside_of_a_task_every_error_is_an_llm_error(deployment: Any) -> None:
    deployment.server.fail(401)
    with pytest.raises(AuthenticationFailed):
        ClaudeHook().ask("?", model="fast")


def test_an_error_in_a_session_is_an_llm_error(deployment: Any) -> None:
    deployment.server.fail(kind="wrong_shape")

    async def cell() -> None:
        async with ClaudeHook().session() as claude:
            await claude.ask("?", output_type=Debt, inputs={"letter": LETTER}, model="fast")

    with pytest.raises(InvalidOutput):
        asyncio.run(cell())


def test_a_session_maps_on_the_callers_loop(deployment: Any) -> None:
    amounts(deployment)

    async def cell() -> list[float]:
        said = []
        async with ClaudeHook().session() as claude:
            async for reply in claude.map(rows(5), "?", output_type=Debt, model="fast", max_in_flight=2):
                assert not isinstance(reply, LLMError)
                said.append(reply.value.amount)
        return said

    assert asyncio.run(cell()) == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("how", ["ask", "session"])
def test_a_route_may_fall_back_on_another_connection(deployment: Any, how: Literal["ask", "session"]) -> None:
    other = deployment.server.url.replace("127.0.0.1", "localhost")
    deployment.connect("elsewhere", host=other, key="sk-other-4712")
    deployment.server.fail(500, matching=lambda question: question.key_last4 != "4712")
    route = Route(fallbacks=["conn:elsewhere"], retry={"server": {"attempts": 1}})

    async def cell() -> str:
        async with ClaudeHook().session() as claude:
            return (await claude.ask("Hello?", model="fast", route=route)).value

    said = (
        ClaudeHook().ask("Hello?", model="fast", route=route).value if how == "ask" else asyncio.run(cell())
    )
    assert said == "Hello?"
    assert {line.key_last4 for line in deployment.server.invoice.lines} == {"4712"}


NOTEBOOK = """
import asyncio
from airflow_llm_provider import ClaudeHook, LLMError

hook = ClaudeHook()
print(hook.ask("Hello?", model="fast").value)
print([reply.value for reply in hook.map(["a", "b"], "Which letter?", output_type=str, model="fast")])

async def cell():
    print(hook.ask("In a cell?", model="fast").value)
    async with hook.session() as claude:
        print((await claude.ask("In a session?", model="fast")).value)

asyncio.run(cell())
"""


def test_a_script_without_airflows_context_needs_only_a_connection(deployment: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if not line.startswith("20")]
    assert said[0] == "Hello?"
    assert said[-2:] == ["In a cell?", "In a session?"]
    rows = deployment.calls
    assert {row["dag_id"] for row in rows} == {NO_DAG}
    assert len({row["run_id"] for row in rows}) == 1
    assert deployment.server.invoice.paid == 5


# Many rows.


def test_outcomes_come_in_the_order_of_the_rows_whatever_takes_longest(deployment: Any) -> None:
    amounts(deployment)
    deployment.server.fail(kind="slow", matching="Letter 0:", times=1)
    said = [reply.value.amount for reply in ClaudeHook().map(rows(8), "?", output_type=Debt, model="fast")]
    assert said == [float(n) for n in range(8)]


def test_an_error_is_a_value_and_costs_the_other_rows_nothing(deployment: Any) -> None:
    amounts(deployment)
    deployment.server.fail(kind="refusal", matching="Letter 1:")
    outcomes = list(ClaudeHook().map(rows(3), "?", output_type=Debt, model="fast"))
    assert [type(outcome).__name__ for outcome in outcomes] == ["Reply", "Refused", "Reply"]


def test_rows_may_come_from_a_generator_that_never_ends(deployment: Any) -> None:
    amounts(deployment)
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            yield f"Letter {taken}: we owe you ${taken}.00."
            taken += 1

    said = []
    for reply in ClaudeHook().map(endless(), "?", output_type=Debt, model="fast", max_in_flight=2):
        assert not isinstance(reply, LLMError)
        said.append(reply.value.amount)
        if len(said) == 5:
            break
    assert said == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert taken < 40
    assert not map_threads()


def test_leaving_the_loop_early_cancels_what_is_in_flight_and_ends_the_thread(deployment: Any) -> None:
    amounts(deployment)
    deployment.server.fail(kind="hang", matching="Letter 1:")
    started = time.monotonic()
    for outcome in ClaudeHook().map(rows(2), "?", output_type=Debt, model="fast"):
        assert not isinstance(outcome, LLMError)
        break
    assert not map_threads()
    assert time.monotonic() - started < 20  # the request timeout is 300 s


def test_a_map_that_is_never_begun_starts_no_thread(deployment: Any) -> None:
    ClaudeHook().map(rows(2), "?", model="fast")
    assert not map_threads()


def test_a_question_may_be_asked_within_the_loop_over_a_map(deployment: Any) -> None:
    amounts(deployment)
    deployment.server.reply(text="Thanks.", matching="Thank them.")
    hook, said = ClaudeHook(), []
    for outcome in hook.map(rows(3), "?", output_type=Debt, model="fast", max_in_flight=1):
        assert not isinstance(outcome, LLMError)
        said.append((outcome.value.amount, hook.ask(f"Thank them. {outcome.value}", model="fast").value))
    assert said == [(0.0, "Thanks."), (1.0, "Thanks."), (2.0, "Thanks.")]


def test_a_budget_holds_over_all_rows(deployment: Any) -> None:
    outcomes = list(ClaudeHook().map(rows(3), "?", model="fast", budget=Budget(task_usd=0.000_001)))
    assert [type(outcome).__name__ for outcome in outcomes] == ["BudgetExceeded"] * 3
    assert deployment.server.seen == 0


# After a cancel.


def cancelled(deployment: Any, hook: ClaudeHook, ask: Any) -> BaseException:
    """Cancel `ask` while its request is in flight; return what it raised."""
    caught: list[BaseException] = []

    def run() -> None:
        try:
            ask()
        except BaseException as error:  # it is what the test looks at
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert wait_until(lambda: deployment.server.seen > 0, 30)
    hook.cancel()
    thread.join(30)
    (error,) = caught
    return error


def test_a_cancel_ends_the_call_in_flight_and_the_hook_answers_again(deployment: Any) -> None:
    deployment.server.fail(kind="hang", times=1)
    hook = ClaudeHook()
    error = cancelled(deployment, hook, lambda: hook.ask("Hello?", model="fast"))
    assert isinstance(error, AirflowException)
    assert not isinstance(error, AirflowFailException)
    assert "stopped before it was done" in str(error)
    assert hook.ask("Hello?", model="fast").value == "Hello?"
    assert [reply.value for reply in hook.map(["a"], "Again?", model="fast")] != []


def test_a_cancel_ends_a_map_and_the_hook_answers_again(deployment: Any) -> None:
    deployment.server.fail(kind="hang", times=2)
    hook = ClaudeHook()
    error = cancelled(deployment, hook, lambda: list(hook.map(rows(2), "?", model="fast")))
    assert "stopped before it was done" in str(error)
    assert not map_threads()
    assert len(list(hook.map(rows(2, start=10), "?", model="fast"))) == 2


def test_a_cancel_before_a_call_ends_that_call_and_no_other(deployment: Any) -> None:
    hook = ClaudeHook()
    hook.cancel()  # as when a task is killed before its event loop has started
    with pytest.raises(AirflowException, match="stopped before it was done"):
        hook.ask("Hello?", model="fast")
    assert deployment.server.seen == 0
    assert hook.ask("Hello?", model="fast").value == "Hello?"


# The SDK's own client.


def test_get_conn_is_the_sdks_client_with_the_connections_key_and_host(deployment: Any) -> None:
    deployment.monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-from-the-environment")
    with ClaudeHook().get_conn() as client:
        assert isinstance(client, anthropic.Anthropic)
        message = client.messages.create(
            model=FAST, max_tokens=100, messages=[{"role": "user", "content": "Hello?"}]
        )
    assert "Hello?" in json.dumps(message.model_dump(), default=str)
    (line,) = deployment.server.invoice.lines
    assert line.key_last4 == deployment.key[-4:]
    assert not (deployment.folder / "ledger.db").exists()  # the ledger knows nothing of it
    deployment.server.invoice._lines.clear()
