"""The ledger in a file: who may read it, what happens when it is not there, and how its writers queue."""

import asyncio
import contextlib
import os
import re
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from conftest import Wire, make_terms, question
from test_ledger_claims import KEY, NIGHTLY, REPLY, bought, entry, settlement, states
from waiting import until

from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.errors import LedgerUnavailable, LedgerUnusable
from airflow_llm_provider.ledger.database import Database
from airflow_llm_provider.ledger.file_lock import FileLock
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import ClaimHeld, OpenedAttempt


def url_of(path: Path) -> str:
    return f"sqlite:///{path}"


def move(path: Path, to: Path) -> None:
    path.rename(to)


def put_an_empty_one_in_place_of(path: Path) -> None:
    path.unlink()
    path.touch()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    ledger = Ledger(url_of(path), deadline_s=0.3)
    yield ledger
    ledger.close()


@pytest.fixture
def impatient(path: Path) -> Iterator[Ledger]:
    """Open a ledger for a test that takes it away."""
    ledger = Ledger(url_of(path), deadline_s=0.02)
    yield ledger
    ledger.close()


# Its address.


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "sqlite:///ledger.db", "sqlite:///../l.db"]
)
def test_a_ledger_that_would_forget_is_refused(url: str) -> None:
    with pytest.raises(LedgerUnusable, match="absolute path of a file, with four slashes"):
        Ledger(url)


@pytest.mark.parametrize(
    "url",
    [
        "mysql://ledger:s3cret@host/db",
        "ledger:s3cret@host/db",
        "postgresql://ledger:s3cret@host:54x/db",
        "s3cret",
        "",
    ],
)
def test_an_address_that_can_not_be_used_is_refused_without_repeating_the_password(url: str) -> None:
    with pytest.raises(LedgerUnusable, match="ledger_url") as caught:
        Ledger(url)
    assert not re.search("s3cret|cret@", "".join(traceback.format_exception(caught.value, limit=0)))


def test_an_unreachable_server_is_named_without_the_password() -> None:
    with pytest.raises(LedgerUnavailable, match=r"ledger:\*\*\*@127.0.0.1:1/db can't be reached") as caught:
        Ledger("postgresql://ledger:s3cret@127.0.0.1:1/db", deadline_s=0.02)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value, limit=0))


@pytest.mark.parametrize("driver", ["postgres", "postgresql", "postgresql+psycopg2", "postgresql+asyncpg"])
def test_airflows_own_database_url_is_understood_whatever_its_driver(driver: str) -> None:
    assert Database(f"{driver}://ledger@host/db").url.drivername == "postgresql+psycopg"


# Its file.


def test_replies_are_for_the_ledgers_owner_only_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        ledger = Ledger(url_of(tmp_path / "ledger.db"))
        files = sorted(tmp_path.iterdir())
        assert [file.name for file in files] == [
            "ledger.db",
            "ledger.db-shm",
            "ledger.db-wal",
            "ledger.db.lock",
        ]
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        ledger.close()
    finally:
        os.umask(before)


def test_a_mode_chosen_by_the_owner_is_kept_and_holds_for_the_lock_too(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.touch()
    path.chmod(0o660)
    Ledger(url_of(path)).close()
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o660}


def test_a_missing_folder_is_named_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(
        LedgerUnavailable, match=r"the folder .*/not-mounted does not exist: make it, or mount it"
    ):
        Ledger(url_of(tmp_path / "not-mounted" / "ledger.db"), deadline_s=0.02)
    assert not (tmp_path / "not-mounted").exists()


def test_a_folder_that_is_mounted_within_the_deadline_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, waits = tmp_path / "slow", iter(range(100))
    # It is mounted during the second wait.
    monkeypatch.setattr(time, "sleep", lambda _: folder.mkdir() if next(waits) == 1 else None)
    Ledger(url_of(folder / "ledger.db"), deadline_s=20).close()
    assert next(waits) == 2


def test_a_file_that_is_not_a_ledger_is_named_and_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"not a database " * 1000)
    with pytest.raises(
        LedgerUnusable, match=r"ledger.db is damaged or is not a ledger \(file is not a database"
    ):
        Ledger(url_of(path))
    assert path.read_bytes() == b"not a database " * 1000


def test_a_folder_is_not_a_ledger_and_is_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnusable, match=r"is not a file.*sqlite:////.*/llm_ledger\.db"):
        Ledger(url_of(tmp_path))
    with pytest.raises(LedgerUnusable, match="is not a file"), Database(url_of(tmp_path)).read():
        pass
    assert not list(tmp_path.iterdir())


def test_another_programs_tables_are_named_and_not_changed(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as foreign:
        foreign.executescript("CREATE TABLE call (number TEXT); CREATE TABLE review (stars INT)")
        with pytest.raises(
            LedgerUnusable,
            match=r"ledger\.db holds other tables with the names of the ledger's own \(call, review\)",
        ):
            Ledger(url_of(path))
        assert foreign.execute("SELECT name FROM sqlite_master ORDER BY name").fetchall() == [
            ("call",),
            ("review",),
        ]


async def test_a_table_changed_by_hand_is_not_tried_again(path: Path) -> None:
    ledger = Ledger(url_of(path))  # which tries for a minute what passes
    with ledger.database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE payload RENAME TO mine")
        connection.exec_driver_sql("ALTER TABLE call RENAME COLUMN model TO which")
    for asked in (ledger.open(entry()), ledger.find_reply(KEY, NIGHTLY, "run")):
        with pytest.raises(LedgerUnusable, match=r"rejected a statement: .*no (such table|column named)"):
            await asyncio.wait_for(asked, 20)
    ledger.close()


def test_reading_a_ledger_that_is_not_there_makes_none(tmp_path: Path) -> None:
    database = Database(url_of(tmp_path / "ledger.db"))
    with pytest.raises(FileNotFoundError, match="there is no ledger"), database.read():
        pass
    assert not list(tmp_path.iterdir())


async def test_nothing_is_opened_or_settled_in_a_file_that_was_deleted(
    impatient: Ledger, path: Path, tmp_path: Path
) -> None:
    ledger = impatient
    move(path, tmp_path / "elsewhere.db")
    started = time.monotonic()
    with pytest.raises(
        LedgerUnavailable, match=r"was moved or deleted while in use.*Nothing is sent without it"
    ):
        await ledger.open(entry())
    assert time.monotonic() - started < 3
    move(tmp_path / "elsewhere.db", path)
    await bought(ledger)  # it goes on where it was
    put_an_empty_one_in_place_of(path)
    with pytest.raises(LedgerUnavailable, match="replaced by another file"):
        await ledger.open(entry("f" * 64))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not write")
def test_a_folder_one_may_not_write_to_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    program = """
        import os, sqlite3, sys, tempfile
        import sqlalchemy.dialects.sqlite.pysqlite
        from airflow_llm_provider.errors import LedgerUnavailable
        from airflow_llm_provider.ledger.ledger import Ledger
        for is_there in (False, True):
            with tempfile.TemporaryDirectory(dir="/tmp") as folder:
                os.chmod(folder, 0o555)
                Ledger(f"sqlite:///{folder}/ledger.db").close() if is_there else None
                os.seteuid(65534)
                try:
                    Ledger(f"sqlite:///{folder}/ledger.db", deadline_s=0.02)
                except LedgerUnavailable as error:
                    print(error)
                finally:
                    os.seteuid(0)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = re.findall("ledger.db can't be reached .*(?:unable to open|Permission denied)", done.stdout)
    assert len(said) == 2, done


async def test_the_engine_sends_nothing_while_the_ledger_is_away(
    wire: Wire, impatient: Ledger, path: Path
) -> None:
    engine = Engine(endpoint=Endpoint(client=wire), ledger=impatient)
    move(path, path.with_name("elsewhere.db"))
    with pytest.raises(LedgerUnavailable):
        await engine.ask(question(), make_terms(scope=NIGHTLY))
    assert wire.sent == []
    move(path.with_name("elsewhere.db"), path)
    assert (await engine.ask(question(), make_terms(scope=NIGHTLY))).value == "Fine."


# Its queue.


def test_the_file_lock_excludes_threads_and_other_ledgers(tmp_path: Path) -> None:
    locks = [FileLock(tmp_path / "lock", timeout_s=10) for _ in range(2)]
    inside, most = 0, 0

    def work(mine: FileLock) -> None:
        nonlocal inside, most
        for _ in range(20):
            with mine.held():
                inside += 1
                most = max(most, inside)
                time.sleep(0.0005)
                inside -= 1

    threads = [threading.Thread(target=work, args=(locks[i % 2],)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_the_file_lock_times_out_and_a_lock_that_comes_too_late_is_passed_on(tmp_path: Path) -> None:
    mine, others = (FileLock(tmp_path / "lock", timeout_s=0.1) for _ in range(2))
    with others.held():
        for _ in range(3):
            with pytest.raises(TimeoutError, match=r"for 0.1 s; is one stopped or hung"), mine.held():
                pass
    for _ in range(5):
        with mine.held(), pytest.raises(TimeoutError), others.held():
            pass


def test_a_child_that_was_forked_under_the_lock_does_not_keep_it(tmp_path: Path) -> None:
    locks = FileLock(tmp_path / "lock", timeout_s=1)
    with locks.held():
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
    try:
        with locks.held():
            pass
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


async def test_a_writer_that_hangs_is_an_error_at_the_deadline(ledger: Ledger, tmp_path: Path) -> None:
    hung = FileLock(tmp_path / "ledger.db.lock", timeout_s=1)
    with hung.held(), pytest.raises(LedgerUnavailable, match="another process has been writing to it"):
        await ledger.open(entry())
    assert isinstance(await ledger.open(entry()), OpenedAttempt)


async def test_threads_of_one_process_may_read_and_write_beside_the_engine(ledger: Ledger) -> None:
    errors: list[Exception] = []

    def beside() -> None:
        try:
            for _ in range(30):
                with ledger.database.read() as connection:
                    connection.execute(sa.text("SELECT count(*) FROM call")).scalar_one()
                with ledger.database.write() as connection:
                    connection.execute(sa.text("UPDATE call SET owner = 'me'"))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=beside) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(30):
        await bought(ledger, f"{i:064x}")
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert errors == []


# Its size.


async def test_a_reader_that_stays_lets_the_log_grow_only_while_it_stays(
    ledger: Ledger, path: Path, tmp_path: Path
) -> None:
    log = tmp_path / "ledger.db-wal"
    stays = sqlite3.connect(path, isolation_level=None)
    stays.execute("BEGIN")
    stays.execute("SELECT count(*) FROM call").fetchall()

    async def write(name: str, megabytes: int) -> None:
        for i in range(megabytes // 8):
            key = f"{name}{i:063x}"
            opened = await ledger.open(entry(key))
            await ledger.record(settlement(opened, key, reply=bytes(8 * 2**20)))

    await write("a", 48)
    assert log.stat().st_size > 40 * 2**20
    stays.close()
    await write("b", 16)
    assert log.stat().st_size <= 33 * 2**20


async def test_two_ledgers_in_one_process_share_the_file(tmp_path: Path) -> None:
    first, second = (Ledger(url_of(tmp_path / "ledger.db")) for _ in range(2))
    assert isinstance(await first.open(entry()), OpenedAttempt)
    assert await second.open(entry()) == ClaimHeld(first.holder)
    first.close()
    await bought(second, "f" * 64)
    assert (await second.find_reply("f" * 64, NIGHTLY, "run")).reply == REPLY
    assert states(second) == ["open", "settled"]
    second.close()


async def test_ends_of_attempts_are_written_once_an_unreachable_database_is_back(path: Path) -> None:
    ledger = Ledger(url_of(path), deadline_s=0.02, lease_s=60, beat_s=0.02)
    paid, free, away = await ledger.open(entry()), entry(), path.with_name("away")
    move(path, away)
    with pytest.raises(LedgerUnavailable):
        await ledger.record(settlement(paid))
    with pytest.raises(LedgerUnavailable):
        await ledger.open(free)
    move(away, path)
    await until(lambda: states(ledger) == ["settled"])
    ledger.close()


async def test_a_caller_that_is_cancelled_twice_while_opening_leaves_nothing_open(ledger: Ledger) -> None:
    with ledger.database.write():  # so that opening has to wait
        opening = asyncio.create_task(ledger.open(entry()))
        for _ in range(2):
            await asyncio.sleep(0.02)
            opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
    await until(lambda: states(ledger) == ["failed"])
