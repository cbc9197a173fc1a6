"""Tools: what the model is told of them, the conversation in which they are called, and what happens once."""

import asyncio
import contextlib
import dataclasses
import datetime as dt
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal

import orjson
import pydantic
import pytest
import sqlalchemy as sa
from conftest import SCOPE, Clock, Wire, make_terms, message, question
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result
from waiting import until

from airflow_llm_provider.cli import app
from airflow_llm_provider.engine.ceiling import ceiling_micro_usd
from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.output_type import OutputType
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.engine.tool_loop import MAX_OUTPUT_CHARACTERS, ApprovalNeeded, Toolbox, ToolVerdict
from airflow_llm_provider.errors import EffectUnknown, InvalidOutput, ToolLimit
from airflow_llm_provider.ledger import effects
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.ledger.schema import call, effect
from airflow_llm_provider.tools import Tool, by_name, tool
from airflow_llm_provider.validators import Judge


def calling(*uses: tuple[str, dict[str, Any]], turn: int = 0) -> bytes:
    """A reply that calls tools."""
    reply = orjson.loads(message("Let me see.", stop_reason="tool_use"))
    reply["content"] += [
        {"type": "tool_use", "id": f"toolu_{turn}_{n}", "name": name, "input": given}
        for n, (name, given) in enumerate(uses)
    ]
    return orjson.dumps(reply)


def told(request: Request) -> list[dict[str, Any]]:
    """What the model was told of the tools it called last."""
    last = request.messages[-1]
    assert last["role"] == "user"
    return list(last["content"])


class Bank:
    """Tools that count how often they were run."""

    def __init__(self) -> None:
        self.runs: list[tuple[str, Any]] = []

    def balance(self, account: str) -> int:
        """Look up what is on an account."""
        self.runs.append(("balance", account))
        return 100 * len(self.runs)

    def pay(self, amount: int, to: str = "Acme") -> str:
        """Pay somebody."""
        self.runs.append(("pay", amount))
        return f"paid {amount} to {to}"

    @property
    def once(self) -> Tool:
        return Tool(function=self.pay, irreversible=True)

    @property
    def approved(self) -> Tool:
        return Tool(function=self.pay, irreversible=True, needs_approval=True)


@pytest.fixture
def bank() -> Bank:
    return Bank()


async def ask(
    engine: Engine, *tools: Any, scope: Any = SCOPE, bounds: dict | None = None, **terms: Any
) -> Any:
    toolbox = Toolbox(tools=by_name(tools), **(bounds or {}))
    definitions = [one.definition for one in toolbox.tools.values()]
    return await engine.ask(
        question("What do I have?", tools=definitions), make_terms(scope=scope, toolbox=toolbox, **terms)
    )


@pytest.fixture
async def later(engine: Engine, wire: Wire, ledger_url: str) -> AsyncIterator[Callable[[], Engine]]:
    """Another process's engine on the same ledger."""
    made: list[Engine] = []

    def another() -> Engine:
        made.append(Engine(endpoint=Endpoint(client=wire), ledger=Ledger(ledger_url)))
        return made[-1]

    yield another
    for one in made:
        await one.close()


# -- what the model is told of a tool ----------------------------------------------------------------


class Line(pydantic.BaseModel):
    sku: str
    count: int


def test_signature_and_docstring_are_the_schema() -> None:
    @tool
    def order(
        lines: list[Line],
        when: dt.date,
        currency: Literal["EUR", "USD"] = "EUR",
        note: Annotated[str, pydantic.Field(max_length=20, description="the author's word")] = "",
    ) -> str:
        """Order goods.

        They come within a week.

        Args:
            lines: what, and how many
            when: the day of delivery
            note: the docstring's word
        """

    definition = order.definition
    assert definition["name"] == "order"
    assert definition["description"] == "Order goods.\n\nThey come within a week."
    schema = definition["input_schema"]
    assert schema["type"] == "object"
    assert schema["required"] == ["lines", "when"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["lines"]["items"] == {"$ref": "#/$defs/Line"}
    assert schema["properties"]["lines"]["description"] == "what, and how many"
    assert schema["properties"]["when"]["format"] == "date"
    assert schema["properties"]["currency"]["enum"] == ["EUR", "USD"]
    assert schema["properties"]["currency"]["default"] == "EUR"
    assert schema["properties"]["note"]["description"] == "the author's word"


@pytest.mark.parametrize(
    "docstring",
    [
        "Pay.\n\nArgs:\n    amount: in euros",
        "Pay.\n\n:param amount: in euros",
        "Pay.\n\nParameters\n----------\namount : int\n    in euros",
    ],
)
def test_parameters_are_described_in_any_usual_style(docstring: str) -> None:
    def pay(amount: int) -> None: ...

    pay.__doc__ = docstring
    definition = Tool.of(pay).definition
    assert definition["description"] == "Pay."
    assert definition["input_schema"]["properties"]["amount"]["description"] == "in euros"


def untyped(amount: int, to) -> None: ...
def starred(*amounts: int) -> None: ...
def keywords(**amounts: int) -> None: ...
def positional(amount: int, /) -> None: ...
def unknown(amount: "Money") -> None: ...  # noqa: F821
def unschemable(amount: threading.Thread) -> None: ...
def uncallable(then: Callable[[int], int]) -> None: ...


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (untyped, "untyped: the parameter 'to' has no type"),
        (starred, r"starred: \*amounts: int can't be given by name"),
        (keywords, r"keywords: \*\*amounts: int can't be given by name"),
        (positional, "positional: amount: int can't be given by name"),
        (unknown, "unknown: name 'Money' is not defined"),
        (unschemable, "unschemable: Unable to generate"),
        (uncallable, "uncallable: Cannot generate"),
        (lambda amount: amount, "can't be a tool"),
        (Line, "can't be a tool"),
    ],
)
def test_a_function_that_no_model_could_call_is_refused_by_name(function: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        tool(function)
    with pytest.raises(TypeError, match=says):
        by_name([function])


def test_two_tools_of_one_name_are_refused(bank: Bank) -> None:
    with pytest.raises(ValueError, match="Two tools are named 'pay'"):
        by_name([bank.pay, bank.once])


def test_a_tool_can_still_be_called_as_the_function_it_is(bank: Bank) -> None:
    assert bank.once(3, to="Beta") == "paid 3 to Beta"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(JSON | st.dictionaries(st.sampled_from(["lines", "when", "n"]), JSON))
def test_whatever_a_model_gives_is_arguments_or_a_complaint(anything: Any) -> None:
    @tool
    def order(lines: list[Line], when: dt.date | None = None, n: int = 1) -> None: ...

    with contextlib.suppress(ValueError):
        arguments = order.arguments(json.dumps(anything).encode())
        assert arguments.keys() <= {"lines", "when", "n"}
        assert all(isinstance(line, Line) for line in arguments["lines"])


# -- the conversation --------------------------------------------------------------------------------


async def test_what_a_tool_returned_is_told_and_the_model_answers(
    engine: Engine, wire: Wire, bank: Bank, caplog: pytest.LogCaptureFixture
) -> None:
    wire.script = [calling(("balance", {"account": "A1"})), message("You have 100.")]
    with caplog.at_level(logging.INFO):
        reply = await ask(engine, bank.balance)
    assert reply.value == "You have 100."
    assert reply.cost_micro_usd == 2 * 4  # both turns
    first, second = wire.sent
    assert [one["name"] for one in first.tools] == [one["name"] for one in second.tools] == ["balance"]
    assistant, user = second.messages[1:]
    assert assistant["content"][-1]["id"] == "toolu_0_0"
    assert user == {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": "toolu_0_0", "content": "100"}],
    }
    assert "Tool balance(16 bytes of arguments) returned 3 characters in 0." in caplog.text
    assert caplog.text.rstrip().endswith(" s")
    assert "A1" not in caplog.text
    purposes = [row.purpose for row in rows(engine, call)]
    assert purposes == ["answer", "tool_turn"]


async def test_the_calls_of_one_reply_run_at_once_and_are_told_in_order(engine: Engine, wire: Wire) -> None:
    both = threading.Barrier(2, timeout=20)

    def first() -> str:
        both.wait()
        return "1"

    def second() -> str:
        both.wait()
        return "2"

    wire.script = [calling(("second", {}), ("nobody", {}), ("first", {}))]
    await ask(engine, first, second)
    assert [block["content"] for block in told(wire.sent[1])] == [
        "2",
        "There is no tool 'nobody'. There are: first, second.",
        "1",
    ]
    assert [block.get("is_error", False) for block in told(wire.sent[1])] == [False, True, False]


async def test_an_async_tool_is_awaited(engine: Engine, wire: Wire) -> None:
    @tool
    async def later(seconds: float) -> dict[str, float]:
        await asyncio.sleep(seconds)
        return {"waited": seconds}

    wire.script = [calling(("later", {"seconds": 0}))]
    await ask(engine, later)
    assert told(wire.sent[1])[0]["content"] == '{"waited":0.0}'


async def test_arguments_of_the_wrong_type_are_told_and_nothing_runs(
    engine: Engine, wire: Wire, bank: Bank
) -> None:
    wire.script = [calling(("pay", {"amount": "a lot", "for": 1}))]
    await ask(engine, bank.once)
    [block] = told(wire.sent[1])
    assert block["is_error"] is True
    assert "amount: Input should be a valid integer" in block["content"]
    assert "for: Extra inputs are not permitted" in block["content"]
    assert bank.runs == []
    assert rows(engine, effect) == []


async def test_what_a_tool_raises_is_told_without_its_traceback(engine: Engine, wire: Wire) -> None:
    def broken(path: str) -> str:
        raise FileNotFoundError(f"no {path}")

    wire.script = [calling(("broken", {"path": "x.txt"})), message("I could not read it.")]
    assert (await ask(engine, broken)).value == "I could not read it."
    assert told(wire.sent[1]) == [
        {
            "type": "tool_result",
            "tool_use_id": "toolu_0_0",
            "content": "FileNotFoundError: no x.txt",
            "is_error": True,
        }
    ]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("text as it is", "text as it is"),
        (None, "null"),
        ({"day": dt.date(2026, 3, 4), "line": Line(sku="a", count=1)}, None),
        ({1, 2}, "[1,2]"),
        (object, "\"<class 'object'>\""),
        ([complex(1, 2)], '["1+2j"]'),
        (b"\xff", "b'\\xff'"),
        ("half a character: \ud83d", "half a character: ?"),
    ],
)
async def test_whatever_a_tool_returns_can_be_told(engine: Engine, wire: Wire, value: Any, says: str) -> None:
    def look() -> Any:
        return value

    wire.script = [calling(("look", {}))]
    await ask(engine, look)
    content = told(wire.sent[1])[0]["content"]
    assert content == (says or '{"day":"2026-03-04","line":{"sku":"a","count":1}}')


async def test_what_holds_itself_can_be_told(engine: Engine, wire: Wire) -> None:
    endless: list[Any] = []
    endless.append(endless)

    def look() -> Any:
        return endless

    wire.script = [calling(("look", {}))]
    await ask(engine, look)
    assert told(wire.sent[1])[0]["content"] == "[[...]]"


async def test_an_output_too_large_is_cut_and_says_so(engine: Engine, wire: Wire) -> None:
    def look() -> str:
        return "x" * (MAX_OUTPUT_CHARACTERS + 1)

    wire.script = [calling(("look", {}))]
    await ask(engine, look)
    content = told(wire.sent[1])[0]["content"]
    assert content.startswith(
        "x" * MAX_OUTPUT_CHARACTERS + "\n… cut off: these are the first 100,000 of 100,001"
    )


async def test_the_final_answer_is_checked_and_repaired_within_the_conversation(
    engine: Engine, wire: Wire, bank: Bank
) -> None:
    wire.script = [
        calling(("balance", {"account": "A1"})),
        message('{"value": "many"}'),
        calling(("balance", {"account": "A2"}), turn=1),
        message('{"value": 200}'),
    ]
    reply = await ask(engine, bank.balance, output=OutputType(int), max_repairs=1)
    assert (reply.value, reply.repairs) == (200, 1)
    assert all(request.tools for request in wire.sent)
    assert [row.purpose for row in rows(engine, call)] == ["answer", "tool_turn", "repair", "tool_turn"]
    wire.script = [calling(("balance", {"account": "A3"})), message("nothing"), message("nothing")]
    with pytest.raises(InvalidOutput) as caught:
        await ask(engine, bank.balance, output=OutputType(int), max_repairs=1, reuse="never")
    assert len(caught.value.fingerprints) == 3


# -- bounds ------------------------------------------------------------------------------------------


async def test_an_endless_loop_ends_and_its_turns_are_kept(
    engine: Engine, wire: Wire, bank: Bank, later: Callable[[], Engine]
) -> None:
    def again(request: Request) -> bytes:
        return calling(("balance", {"account": "A1"}), turn=len(request.messages))

    wire.usually = again
    with pytest.raises(ToolLimit, match=r"\(balance\) after 3 turns.*Raise tool_limits.max_turns") as caught:
        await ask(engine, bank.balance, bounds={"max_turns": 3})
    assert (len(wire.sent), len(bank.runs)) == (4, 3)
    assert len(caught.value.fingerprints) == 4
    wire.usually = message("Enough.")
    assert (await ask(later(), bank.balance, bounds={"max_turns": 4})).value == "Enough."
    assert (len(wire.sent), len(bank.runs)) == (5, 4)  # one turn more, and nothing twice


async def test_no_tool_runs_when_turns_are_forbidden(engine: Engine, wire: Wire, bank: Bank) -> None:
    wire.usually = calling(("balance", {"account": "A1"}))
    with pytest.raises(ToolLimit):
        await ask(engine, bank.balance, bounds={"max_turns": 0})
    assert bank.runs == []


@pytest.mark.parametrize("needs_approval", [False, True])
async def test_a_tool_that_hangs_ends_the_conversation_in_time(
    simulated_time: Callable[[], float], engine: Engine, wire: Wire, needs_approval: bool
) -> None:
    async def yes(_: ApprovalNeeded) -> ToolVerdict:
        return ToolVerdict(is_approved=True)

    release = threading.Event()

    def hang() -> None:
        release.wait(10)

    tool = Tool(function=hang, needs_approval=needs_approval)
    wire.usually = calling(("hang", {}))
    try:
        with pytest.raises(
            ToolLimit, match=r"60 s while hang\(2 bytes of arguments\) ran. Raise tool_limits.max_s"
        ):
            await ask(engine, tool, bounds={"max_s": 60, "verdict": yes})
    finally:
        release.set()


async def test_the_next_turn_is_not_bought_when_it_might_cost_too_much(
    engine: Engine, wire: Wire, bank: Bank
) -> None:
    wire.usually = calling(("balance", {"account": "A1"}))
    first = question("What do I have?", tools=[Tool.of(bank.balance).definition])
    with pytest.raises(ToolLimit, match=r"\$0.000004 is spent.*tool_limits.max_usd, .*Raise it"):
        await ask(engine, bank.balance, bounds={"max_micro_usd": ceiling_micro_usd(first)})
    assert len(wire.sent) == 1
    with pytest.raises(ToolLimit, match=r"\$0.000000 is spent"):
        await ask(engine, bank.balance, bounds={"max_micro_usd": 1000}, item_id="another")
    assert len(wire.sent) == 1


async def test_a_judge_of_the_answer_is_held_by_the_bound_too(engine: Engine, wire: Wire, bank: Bank) -> None:
    judge = Judge(criteria=["It is polite."], model="claude-opus-5-5")
    with pytest.raises(ToolLimit, match=r"tool_limits.max_usd, \$0.003000. Raise it"):
        await ask(engine, bank.balance, bounds={"max_micro_usd": 3000}, validators=[judge], source="A letter")
    assert len(wire.sent) == 1


async def test_a_bound_on_money_needs_a_price(engine: Engine, wire: Wire, bank: Bank) -> None:
    toolbox = Toolbox(tools=by_name([bank.balance]), max_micro_usd=1_000_000)
    with pytest.raises(ToolLimit, match="no-such-model has no known price"):
        await engine.ask(question(model="no-such-model"), make_terms(toolbox=toolbox))
    assert wire.sent == []


# -- what a retry finds ------------------------------------------------------------------------------

RETRY = dataclasses.replace(SCOPE, try_number=2)


async def test_a_retry_buys_nothing_and_runs_nothing_again(
    engine: Engine, wire: Wire, bank: Bank, later: Callable[[], Engine]
) -> None:
    script = [calling(("balance", {"account": "A1"}), ("pay", {"amount": 1})), message("Done.")]
    wire.script = [*script]
    first = await ask(engine, bank.balance, bank.once)
    replayed = await ask(later(), bank.balance, bank.once, scope=RETRY)
    assert replayed.value == first.value == "Done."
    assert replayed.reused
    assert len(wire.sent) == 2
    assert bank.runs == [("balance", "A1"), ("pay", 1)]


async def test_another_task_runs_its_own_tools_though_it_shares_the_replies(
    engine: Engine, wire: Wire, bank: Bank
) -> None:
    wire.script = [calling(("pay", {"amount": 1})), message("Done.")]
    await ask(engine, bank.once)
    await ask(engine, bank.once, scope=dataclasses.replace(SCOPE, task_id="other"))
    await ask(engine, bank.once, scope=dataclasses.replace(SCOPE, map_index=3))
    assert bank.runs == [("pay", 1)] * 3
    assert len(wire.sent) == 2


async def test_the_same_id_in_another_turn_is_another_call(engine: Engine, wire: Wire, bank: Bank) -> None:
    wire.script = [calling(("balance", {"account": "A1"})), calling(("balance", {"account": "A1"}))]
    await ask(engine, bank.balance)
    assert len(bank.runs) == 2


async def test_a_tool_that_can_be_repeated_is_run_again_after_a_kill(
    engine: Engine, wire: Wire, bank: Bank
) -> None:
    wire.script = [calling(("balance", {"account": "A1"})), message("Done.")]
    await ask(engine, bank.balance)
    run(engine, sa.update(effect).values(state="begun", output=None, holder="somebody", lease_until_ms=2**50))
    await ask(engine, bank.balance)
    assert len(bank.runs) == 2
    assert [row.state for row in rows(engine, effect)] == ["ended"]


# -- what may happen once ----------------------------------------------------------------------------


async def test_an_irreversible_tool_runs_once_whatever_the_model_says(
    engine: Engine, wire: Wire, bank: Bank, later: Callable[[], Engine]
) -> None:
    wire.script = [
        calling(("pay", {"amount": 1}), ("pay", {"amount": 1}), ("pay", {"amount": 2})),
        calling(("pay", {"amount": 3}), turn=1),
    ]
    await ask(engine, bank.once)
    assert bank.runs == [("pay", 1)]
    same, again, other = told(wire.sent[1])
    assert same["content"] == again["content"] == "paid 1 to Acme"
    assert other["is_error"] is True
    assert other["content"] == (
        'Nothing was done: pay may run once, and has run with the arguments {"amount":1}. It returned: paid 1 to Acme'
    )
    assert told(wire.sent[2])[0]["is_error"] is True
    # After a clear, with every reply bought anew and another one at that.
    wire.script = [calling(("pay", {"amount": 4})), message("Done.")]
    cleared = dataclasses.replace(SCOPE, try_number=2, first_try=2)
    await ask(later(), bank.once, scope=cleared, reuse="never")
    assert len(wire.sent) == 5
    assert bank.runs == [("pay", 1)]


async def test_one_that_raised_is_not_run_again_either(engine: Engine, wire: Wire) -> None:
    runs = []

    @tool(irreversible=True)
    def pay(amount: int) -> str:
        runs.append(amount)
        raise ConnectionError("the bank hung up")

    wire.script = [calling(("pay", {"amount": 1})), calling(("pay", {"amount": 1}), turn=1)]
    await ask(engine, pay)
    assert runs == [1]
    assert told(wire.sent[2])[0]["content"] == "ConnectionError: the bank hung up"
    assert told(wire.sent[2])[0]["is_error"] is True


PARTS = st.tuples(*[st.text(max_size=3)] * 4, st.integers(-1, 3), st.none() | st.text(max_size=3))


@given(PARTS, PARTS, st.booleans())
def test_calls_of_two_task_instances_or_tools_are_never_the_same(
    these: tuple[Any, ...], those: tuple[Any, ...], irreversible: bool
) -> None:
    def intent(dag: str, run: str, task: str, name: str, index: int, item: str | None) -> effects.Intent:
        scope = CallScope(dag_id=dag, run_id=run, task_id=task, map_index=index)
        return effects.Intent(
            scope=scope,
            item_id=item,
            call_id="c",
            tool_use_id="t",
            tool=name,
            is_irreversible=irreversible,
            arguments=b"{}",
        )

    assert (intent(*these).id == intent(*those).id) == (these == those)


async def begun_and_killed(engine: Engine, *, lease_ms: int = 0) -> effects.Effect:
    """Leave in the ledger what a process leaves that is killed within the tool."""
    intent = effects.Intent(
        scope=SCOPE,
        item_id=None,
        call_id="0" * 32,
        tool_use_id="toolu_0_0",
        tool="pay",
        is_irreversible=True,
        arguments=b'{"amount":1}',
    )
    return await engine.ledger.write(
        lambda connection, now_ms: effects.begin(connection, now_ms, intent, lease_ms=lease_ms)
    )


async def test_one_that_may_have_happened_is_not_run_and_says_so(
    engine: Engine, wire: Wire, bank: Bank
) -> None:
    left = await begun_and_killed(engine)
    wire.usually = calling(("pay", {"amount": 1}))
    with pytest.raises(EffectUnknown) as caught:
        await ask(engine, bank.once)
    assert bank.runs == []
    assert "The tool pay may run once. It began at 20" in str(caught.value)
    assert '{"amount":1}' not in str(caught.value)  # a model wrote it; the command shows it
    assert "airflow-llm effects list --unknown" in str(caught.value)
    assert f"airflow-llm effects settle {left.id[:12]} --output" in str(caught.value)


async def test_one_that_another_process_is_running_is_waited_for(
    engine: Engine, wire: Wire, bank: Bank, clock: Clock
) -> None:
    left = await begun_and_killed(engine, lease_ms=45_000)  # that is: not killed yet
    wire.script = [calling(("pay", {"amount": 1}))]
    asking = asyncio.ensure_future(ask(engine, bank.once))
    await until(lambda: len(clock.slept) >= 3)
    assert not asking.done()
    outcome = effects.Outcome(content="paid by the other")
    await engine.ledger.write(lambda connection, now_ms: effects.end(connection, now_ms, left.id, outcome))
    await asking
    assert bank.runs == []
    assert told(wire.sent[1])[0]["content"] == "paid by the other"


async def test_many_conversations_at_once_run_it_once(engine: Engine, wire: Wire, bank: Bank) -> None:
    def reply(request: Request) -> bytes:
        if len(request.messages) > 1:
            return message("Done.")
        return calling(("pay", {"amount": request.sample}))

    wire.usually = reply
    toolbox = Toolbox(tools=by_name([bank.once]))
    await asyncio.gather(*(engine.ask(question(sample=n), make_terms(toolbox=toolbox)) for n in range(8)))
    assert len(bank.runs) == 1


async def test_a_task_told_to_stop_lets_it_end(engine: Engine, wire: Wire) -> None:
    within, go_on = threading.Event(), threading.Event()

    @tool(irreversible=True)
    def pay(amount: int) -> str:
        within.set()
        go_on.wait(20)
        return "paid"

    wire.script = [calling(("pay", {"amount": 1}))]
    asking = asyncio.ensure_future(ask(engine, pay))
    await asyncio.to_thread(within.wait, 20)
    asking.cancel()
    await asyncio.sleep(0.05)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await asking
    [row] = rows(engine, effect)
    assert row.state == "ended"


# -- the command line --------------------------------------------------------------------------------


def airflow_llm(engine: Engine, *arguments: str) -> Result:
    url = engine.ledger.database.url.render_as_string(hide_password=False)
    return CliRunner().invoke(app, ["effects", *arguments, "--ledger-url", url], env={"COLUMNS": "150"})


async def test_what_tools_have_done_is_listed(engine: Engine, wire: Wire, bank: Bank) -> None:
    wire.script = [calling(("balance", {"account": "[red]A1"}), ("pay", {"amount": 1}))]
    await ask(engine, bank.balance, bank.once)
    listed = airflow_llm(engine, "list")
    assert '{"account":"[red]A1"}' in listed.output
    told = json.loads(airflow_llm(engine, "list", "--json", "--dag", "nightly", "--run", "run-1").output)
    [asked] = [row.id for row in rows(engine, call) if row.purpose == "answer"]
    assert {one["call_id"] for one in told} == {asked}
    assert [(one["tool"], one["state"], one["output"]) for one in told] == [
        ("balance", "ended", "100"),
        ("pay", "ended", "paid 1 to Acme"),
    ]
    assert json.loads(airflow_llm(engine, "list", "--json", "--unknown").output) == []
    assert json.loads(airflow_llm(engine, "list", "--json", "--run", "another").output) == []
    refused = airflow_llm(engine, "settle", told[1]["id"][:8], "--output", "paid")
    assert refused.exit_code == 1
    assert "nothing to settle" in refused.output


async def test_what_may_have_happened_is_settled_by_a_person(engine: Engine, wire: Wire, bank: Bank) -> None:
    left = await begun_and_killed(engine)
    [unknown] = json.loads(airflow_llm(engine, "list", "--json", "--unknown").output)
    assert (unknown["id"], unknown["state"]) == (left.id, "unknown")
    for wrong in (
        ["settle", "nothing", "--did-not-happen"],
        ["settle", left.id],
        ["settle", left.id, "--output", "x", "--did-not-happen"],
    ):
        assert airflow_llm(engine, *wrong).exit_code == 1
    settled = airflow_llm(engine, "settle", left.id[:12], "--output", "the bank says it was paid")
    assert "Clear nightly.ask of the run run-1" in settled.output
    wire.script = [calling(("pay", {"amount": 1}))]
    await ask(engine, bank.once)
    assert bank.runs == []
    assert told(wire.sent[1])[0]["content"] == "the bank says it was paid"


async def test_what_did_not_happen_may(engine: Engine, wire: Wire, bank: Bank) -> None:
    left = await begun_and_killed(engine)
    wire.script = [calling(("pay", {"amount": 1}))]
    assert airflow_llm(engine, "settle", left.id[:12], "--did-not-happen").exit_code == 0
    await ask(engine, bank.once)
    assert bank.runs == [("pay", 1)]


async def test_what_is_being_made_cannot_be_settled(engine: Engine) -> None:
    left = await begun_and_killed(engine, lease_ms=45_000)
    refused = airflow_llm(engine, "settle", left.id, "--did-not-happen")
    assert refused.exit_code == 1
    assert "is running" in refused.output


# -- what a person decides ---------------------------------------------------------------------------


class Person:
    """Says what a test lets them say."""

    def __init__(self, **said: ToolVerdict) -> None:
        self.said: dict[str, ToolVerdict] = said

    async def __call__(self, needed: ApprovalNeeded) -> ToolVerdict | None:
        return self.said.get(needed.key)


async def test_a_call_waits_for_a_person_and_runs_when_approved(
    engine: Engine, wire: Wire, bank: Bank, later: Callable[[], Engine]
) -> None:
    wire.script = [calling(("balance", {"account": "A1"}), ("pay", {"amount": 7})), message("Done.")]
    person = Person()
    with pytest.raises(ApprovalNeeded, match=r"pay\(12 bytes of arguments\) must be approved") as asked:
        await ask(engine, bank.approved, bank.balance, bounds={"verdict": person})
    [waiting] = asked.value.calls
    assert (waiting.tool.name, waiting.arguments) == ("pay", {"amount": 7})
    assert bank.runs == [("balance", "A1")]
    person.said[asked.value.key] = ToolVerdict(is_approved=True)
    reply = await ask(later(), bank.approved, bank.balance, bounds={"verdict": person}, scope=RETRY)
    assert reply.value == "Done."
    assert bank.runs == [("balance", "A1"), ("pay", 7)]
    assert len(wire.sent) == 2
    # It has run, so nobody is asked about it again.
    await ask(engine, bank.approved, bank.balance, bounds={"verdict": Person()})
    assert len(bank.runs) == 2


async def test_a_refusal_and_its_reason_are_told(engine: Engine, wire: Wire, bank: Bank) -> None:
    wire.script = [calling(("pay", {"amount": 7})), message("Then not.")]
    person = Person()
    with pytest.raises(ApprovalNeeded) as asked:
        await ask(engine, bank.approved, bounds={"verdict": person})
    person.said[asked.value.key] = ToolVerdict(is_approved=False, reason="Too much.")
    assert (await ask(engine, bank.approved, bounds={"verdict": person})).value == "Then not."
    assert bank.runs == []
    [block] = told(wire.sent[1])
    assert block["content"] == "A person refused this call, and nothing was done. Too much."
    assert block["is_error"] is True


async def test_the_calls_of_one_reply_are_one_question(engine: Engine, wire: Wire, bank: Bank) -> None:
    close = Tool(function=bank.balance, needs_approval=True)
    wire.usually = calling(("pay", {"amount": 7}), ("balance", {"account": "A1"}), ("pay", {"amount": "?"}))
    with pytest.raises(ApprovalNeeded) as asked:
        await ask(engine, bank.approved, close)
    assert [call.tool.name for call in asked.value.calls] == ["pay", "balance"]


async def test_approval_of_one_amount_is_none_of_another(engine: Engine, wire: Wire, bank: Bank) -> None:
    wire.script = [calling(("pay", {"amount": 7})), calling(("pay", {"amount": 8}))]
    keys = []
    for _ in range(2):
        with pytest.raises(ApprovalNeeded) as asked:
            await ask(
                engine, bank.approved, reuse="never", scope=dataclasses.replace(SCOPE, first_try=len(keys))
            )
        keys.append(asked.value.key)
    assert len(set(keys)) == 2


def rows(engine: Engine, table: sa.Table) -> list[sa.Row]:
    with engine.ledger.database.read() as connection:
        return list(connection.execute(sa.select(table)))


def run(engine: Engine, statement: Any) -> None:
    with engine.ledger.database.write() as connection:
        connection.execute(statement)
