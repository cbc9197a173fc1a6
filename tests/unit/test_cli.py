"""The command line, as far as it needs no Airflow."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from conftest import SCOPE, Wire, make_terms, message, question
from typer.testing import CliRunner, Result

from airflow_llm_provider.cli import app
from airflow_llm_provider.cli.demo_endpoint import open_endpoint
from airflow_llm_provider.cli.output import shown
from airflow_llm_provider.cli.stand_in import read_fault
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.output_type import OutputType
from airflow_llm_provider.errors import InvalidOutput
from airflow_llm_provider.ledger.ledger import Ledger

COMMANDS = [
    ["demo"],
    ["stand-in"],
    ["test-connection"],
    ["dead-letters", "list"],
    ["dead-letters", "show"],
    ["dead-letters", "reopen"],
    ["ledger", "show"],
    ["ledger", "check"],
    ["ledger", "export"],
    ["ledger", "prune"],
    ["estimate"],
    ["costs"],
    ["budgets", "set"],
    ["budgets", "list"],
    ["budgets", "remove"],
    ["effects", "list"],
    ["effects", "settle"],
]
UNREADABLE = {
    "document_id": "a.pdf",
    "uri": "/in/a.pdf",
    "reason": "unreadable",
    "error": "Unreadable",
    "message": "it can't be parsed",
}
REFUSED = {
    "document_id": "b.txt",
    "uri": "/in/b.txt",
    "reason": "refused",
    "error": "Refused",
    "message": "The model declined.",
    "reply": "No \x1b[31mway",
    "fingerprints": ["f" * 64],
}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "120"})


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """Return an output file with two dead letters beside it."""
    (tmp_path / "rows.jsonl").write_text('{"row": "and no database"}\n')
    file = tmp_path / "rows.dead_letters.jsonl"
    file.write_text("".join(json.dumps(letter) + "\n" for letter in (UNREADABLE, REFUSED)))
    return tmp_path / "rows.jsonl"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_says_what_it_does(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_can_write_json(command: list[str]) -> None:
    """The demo ends with a JSON line, `ledger export` writes JSON lines, and the stand-in is a server."""
    help_text = run(*command, "--help").output
    assert ("--json" in help_text) == (command not in (["demo"], ["stand-in"], ["ledger", "export"]))
    assert "--format" not in help_text


def test_help_costs_neither_airflow_nor_the_sdk() -> None:
    code = (
        "import sys; import airflow_llm_provider.cli; "
        "print([m for m in ('airflow', 'anthropic', 'aiohttp', 'sqlalchemy', 'genai_prices') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_list_names_every_letter_and_counts_the_reasons(letters: Path) -> None:
    for path in (letters, letters.with_name("rows.dead_letters.jsonl"), letters.parent):
        result = run("dead-letters", "list", str(path))
        assert result.exit_code == 0
        assert "a.pdf" in result.output
        assert "b.txt" in result.output
        assert "2 dead letters: unreadable 1, refused 1" in result.output


def test_the_list_as_json_is_whole(letters: Path) -> None:
    told = json.loads(run("dead-letters", "list", str(letters), "--json").stdout)
    assert told["by_reason"] == {"unreadable": 1, "refused": 1}
    assert told["letters"] == [UNREADABLE, REFUSED]


def test_a_reply_is_shown_without_steering_the_terminal(letters: Path) -> None:
    result = run("dead-letters", "show", str(letters), "b.txt")
    assert result.exit_code == 0
    assert "reply: No \\x1b[31mway" in result.output
    assert "\x1b" not in result.output


def test_without_a_command_what_there_is_is_shown(ledger_url: str) -> None:
    Ledger(ledger_url).close()
    options = ("--ledger-url", ledger_url, "--json")
    for group, command in (("ledger", "show"), ("effects", "list"), ("budgets", "list")):
        whole = run(group, command, *options)
        assert whole.exit_code == 0
        assert run(group, *options).output == whole.output
        assert "Default command" in run(group, "--help").output


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite://", "needs the absolute path of a file"),
        ("sqlite:///ledger.db", "needs the absolute path of a file"),
        ("sqlite:///{folder}", "is not a file"),
        ("sqlite:///{folder}/foreign.db", "holds other tables with the names of the ledger's own (call)"),
        ("sqlite:///{folder}/empty.db", "holds no ledger yet"),
    ],
)
def test_an_address_without_a_ledger_is_told_for_what_it_is(tmp_path: Path, url: str, said: str) -> None:
    (tmp_path / "empty.db").touch()
    with closing(sqlite3.connect(tmp_path / "foreign.db")) as foreign:
        foreign.execute("CREATE TABLE call (number TEXT)")
    result = run("ledger", "show", "--ledger-url", url.format(folder=tmp_path))
    assert result.exit_code == 1
    assert said in result.stderr


@pytest.mark.parametrize("line", ["3", "[]", '{"document_id": "a.pdf"}', '{"document_id": [], "reason": {}}'])
@pytest.mark.parametrize("command", [("list",), ("show", "a.pdf"), ("reopen", "a.pdf")], ids=" ".join)
def test_a_file_that_holds_no_dead_letters_is_named(
    tmp_path: Path, command: tuple[str, ...], line: str
) -> None:
    path = tmp_path / "rows.dead_letters.jsonl"
    path.write_text(f"{json.dumps(UNREADABLE)}\n{line}\n")
    result = run("dead-letters", command[0], str(path), *command[1:])
    assert result.exit_code == 1
    assert f"{path} does not hold dead letters" in result.stderr


def test_what_is_not_there_is_one_line_and_status_1(letters: Path, tmp_path: Path) -> None:
    for arguments in (
        ("dead-letters", "list", str(tmp_path / "nowhere.jsonl")),
        ("dead-letters", "show", str(letters), "c.txt"),
        ("dead-letters", "reopen", str(letters), "c.txt"),
        ("dead-letters", "reopen", str(letters), "--ledger-url", f"sqlite:///{tmp_path}/none.db"),
        ("ledger", "show", "--ledger-url", f"sqlite:///{tmp_path}/none.db"),
        ("ledger", "show", "--ledger-url", "no url"),
        ("effects", "list", "--ledger-url", f"sqlite:///{letters}"),
        ("effects", "settle", "abc", "--did-not-happen", "--ledger-url", f"sqlite:///{letters}"),
        ("stand-in", "--fail", "nonsense"),
        ("stand-in", "--fail", "529:often=2"),
        ("demo", "--tier", "cheapest"),
        ("demo", "--home", str(tmp_path / "home"), "--base-url", "ftp://nowhere"),
        ("demo", "--home", str(tmp_path / "home"), "--base-url", "http://127.0.0.1:1"),
    ):
        result = run(*arguments)
        assert result.exit_code == 1, arguments
        assert result.stderr.startswith("Error: "), arguments
        assert result.stderr.count("\n") == 1, result.stderr
    assert not (tmp_path / "none.db").exists()


def test_an_output_without_dead_letters_has_none(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    result = run("dead-letters", "list", str(tmp_path / "rows.jsonl"))
    assert (result.exit_code, result.stdout[:15]) == (0, "No dead letters")


async def test_a_reopened_letter_is_asked_and_paid_anew(
    engine: Engine, wire: Wire, ledger_url: str, tmp_path: Path
) -> None:
    asking = {"scope": SCOPE, "reuse": "always", "output": OutputType(int), "max_repairs": 1}
    with pytest.raises(InvalidOutput) as caught:
        await engine.ask(question(), make_terms(**asking))
    letter = {**REFUSED, "reason": "invalid_output", "fingerprints": list(caught.value.fingerprints)}
    path = tmp_path / "rows.dead_letters.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in (letter, UNREADABLE)))
    with pytest.raises(InvalidOutput):
        await engine.ask(question(), make_terms(**asking))
    assert len(wire.sent) == 2  # the answer and its repair, paid once

    reopen = ("dead-letters", "reopen", str(path), "--ledger-url", ledger_url)
    first = await asyncio.to_thread(run, *reopen)
    assert first.exit_code == 0
    assert "1 reopened (2 calls)" in first.stdout
    assert "1 need no reopening (unreadable 1)" in first.stdout
    again = await asyncio.to_thread(run, *reopen)
    assert "0 reopened" in again.stdout
    assert "holds no answer to them" in again.stdout
    assert json.loads((await asyncio.to_thread(run, *reopen, "--json")).stdout) == {
        "reopened": 0,
        "calls": 0,
        "not_reopened": 1,
        "need_no_reopening": {"unreadable": 1},
    }

    wire.usually = message('{"value": 7}')
    assert (await engine.ask(question(), make_terms(**asking))).value == 7
    assert len(wire.sent) == 3

    told = json.loads(
        (await asyncio.to_thread(run, "ledger", "show", "--ledger-url", ledger_url, "--json")).stdout
    )
    assert told["calls"] == {"reopened": 2, "settled": 1}
    assert float(told["paid_usd"]) > 0
    assert told["unproven_usd_at_most"] == "0.000000"
    shown_to_people = await asyncio.to_thread(run, "ledger", "show", "--ledger-url", ledger_url)
    assert f"paid ${told['paid_usd']}" in shown_to_people.stdout


def test_the_demos_stand_in_keeps_its_address_and_says_so_when_it_can_not(tmp_path: Path) -> None:
    with ExitStack() as running:
        first = open_endpoint(None, "", tmp_path, running)
        first.remember()
        assert "not Claude" in first.told[0]
    with ExitStack() as running:
        again = open_endpoint(None, "", tmp_path, running)
        assert again.base_url == first.base_url
        taken = open_endpoint(None, "", tmp_path, running)
        assert taken.base_url != first.base_url
        assert "is taken" in taken.told[-1]
        assert "asked anew" in taken.told[-1]


def test_a_key_asks_claude_and_is_sent_to_no_stand_in(tmp_path: Path) -> None:
    key = "sk-ant-a-key-that-must-not-show"
    with ExitStack() as running:
        claude = open_endpoint(None, key, tmp_path, running)
        assert (claude.costs_money, claude.connection) == (True, {"conn_type": "claude", "password": key})
        assert "spends money" in claude.told[0]
        assert key not in "".join(claude.told)
        stand_in = open_endpoint(None, "", tmp_path, running)
        assert stand_in.base_url is not None
        other = open_endpoint(stand_in.base_url + "/", key, tmp_path, running)
        assert (other.is_stand_in, other.costs_money, other.api_key) == (True, False, "stand-in")


def test_a_fault_is_read_from_one_word() -> None:
    assert (read_fault("529:times=3").status, read_fault("529:times=3").times) == (529, 3)
    fault = read_fault("refusal:matching=a, b=c,share=0.5,sticky=true")
    assert (fault.kind, fault.matching, fault.share, fault.sticky) == ("refusal", "a, b=c", 0.5, True)


def test_text_is_cut_to_one_line() -> None:
    assert shown("a\n b\t c" * 3, 8) == "a b ca…"
    assert shown("\x9b31m") == "\\x9b31m"
