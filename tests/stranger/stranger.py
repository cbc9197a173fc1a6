"""What a stranger does in an empty folder with a bare python3: the commands of the README and the tutorial, timed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 3600  # for one command: `make test` on a small machine
STAY_UP = ("airflow-llm stand-in", "airflow standalone")  # until the page is done
DONE = "the command has ended with"
# A heading; a block, and the file it is where the line before it names one.
PARTS = re.compile(r"^## ([^\n]+)$|(?:^`([^`\n]+)`:\n\n)?^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Terminal:
    """A shell that a stranger types into.

    folder: where it is opened.
    log: file that takes all that it prints.
    """

    def __init__(self, folder: Path, env: dict[str, str], log: Path) -> None:
        self.log = log
        log.touch()
        with log.open("ab") as output:
            self.shell = subprocess.Popen(
                ["bash", "--noprofile", "--norc"],
                cwd=folder,
                env=env,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def type(self, command: str, shown: list[str]) -> float:
        """Return how many seconds a command takes; ends the program where it fails or doesn't print what is shown."""
        stays_up = command.endswith(STAY_UP)
        begun, size = time.monotonic(), self.log.stat().st_size
        assert self.shell.stdin is not None
        self.shell.stdin.write(f"{{ {command}\n}} </dev/null\nprintf '\\n{DONE} %s\\n' $?\n".encode())
        self.shell.stdin.flush()
        while True:
            said = self.log.read_bytes()[size:].decode(errors="replace")
            status = re.search(rf"^{DONE} (\d+)$", said, re.MULTILINE)
            missing = [line for line in shown if line not in said]
            seconds = time.monotonic() - begun
            if not missing and (stays_up if status is None else status[1] == "0" and not stays_up):
                return round(seconds, 1)
            if status or seconds > LIMIT_S:
                how = f"ended with {status[1]}" if status else f"went on for {LIMIT_S} s"
                print(
                    said[-8000:],
                    f"$ {command}",
                    f"It {how}; not printed: {missing}",
                    sep="\n",
                    file=sys.stderr,
                )
                sys.exit(1)
            time.sleep(0.1)

    def close(self) -> None:
        """End the shell and all it started."""
        for stop, wait_s in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
            end = time.monotonic() + wait_s
            for pid in self._members():
                with suppress(ProcessLookupError):
                    os.kill(pid, stop)
            while self._members() and time.monotonic() < end:
                self.shell.poll()
                time.sleep(0.1)

    def _members(self) -> list[int]:
        pids = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(ProcessLookupError):
                if os.getsid(int(entry.name)) == self.shell.pid:
                    pids.append(int(entry.name))
        return pids


class Stranger:
    """Somebody with an empty folder, a python3 and nothing else.

    folder: theirs; their home is in it.
    seconds: what each command took, under the name of its page and its number.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = {}
        self.terminals: list[Terminal] = []
        (folder / "home").mkdir()
        ours = ("AIRFLOW", "ANTHROPIC", "CLAUDE", "MAKE", "MFLAGS", "PYTHON", "VIRTUAL_ENV")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | {
            "HOME": str(folder / "home"),
            # Where this machine's package index is set; the caches are empty.
            "XDG_CONFIG_HOME": os.environ.get("XDG_CONFIG_HOME", str(Path.home() / ".config")),
            "PYTHONUNBUFFERED": "1",  # what a terminal shows at once; our terminals are files
            "PIP_FIND_LINKS": f"{os.environ.get('PIP_FIND_LINKS', '')} {folder / 'dist'}".strip(),
        }

    def open(self, folder: Path) -> Terminal:
        """Open a terminal."""
        folder.mkdir(exist_ok=True)
        log = self.folder / f"{len(self.terminals)}.log"
        self.terminals.append(Terminal(folder, self.env, log))
        return self.terminals[-1]

    def type(self, terminal: Terminal, page: str, block: str) -> None:
        """Type the commands of a block one after the other; its other lines are what the command before prints."""
        for lines in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *shown = lines.splitlines()
            seconds = terminal.type(command, shown)
            self.seconds[f"{len(self.seconds) + 1} {page}: {command.partition('  #')[0].rstrip()}"] = seconds
            print(f"{seconds:8.1f} s  $ {command}", flush=True)

    def follow(self, page: Path, folder: Path) -> None:
        """Do what a tutorial says: type its commands, and write its files with the folder in place of /data."""
        terminal = main = self.open(folder)
        typed = len(self.seconds)
        for heading, name, language, text in PARTS.findall(page.read_text()):
            if heading:
                terminal = self.open(folder) if "a terminal of its own" in heading else main
            elif language == "console":
                self.type(terminal, page.stem, text)
            else:
                (folder / name).write_text(text.replace("/data/", f"{folder}/"))
        assert len(self.seconds) - typed == len(re.findall(r"^\$ ", page.read_text(), re.MULTILINE)) > 0

    def leave(self) -> None:
        """Close every terminal."""
        while self.terminals:
            self.terminals.pop().close()


def main() -> None:
    """Clone, build the wheel, then the README and the tutorial; the last line is JSON."""
    with tempfile.TemporaryDirectory(prefix="stranger-", ignore_cleanup_errors=True) as temporary:
        stranger = Stranger(Path(temporary))
        clone, beside = stranger.folder / "airflow-provider-llm", stranger.folder / "beside"
        try:
            street = stranger.open(stranger.folder)
            stranger.type(street, "clone", f"$ git clone --quiet {ROOT} {clone.name}")
            stranger.type(street, "wheel", f"$ python3 -m pip wheel --quiet --no-deps -w dist ./{clone.name}")
            in_clone, install = re.findall(
                r"```console\n(.*?)```", (clone / "README.md").read_text(), re.DOTALL
            )
            stranger.type(stranger.open(clone), "README", in_clone)
            work(stranger, beside, install)
            stranger.leave()
            stranger.follow(clone / "docs" / "tutorial" / "first-dag.md", stranger.folder / "tutorial")
        finally:
            stranger.leave()
        total = round(sum(stranger.seconds.values()), 1)
        print(json.dumps({"name": "stranger", "seconds": total, "steps": stranger.seconds}))


def work(stranger: Stranger, folder: Path, install: str) -> None:
    """Follow the README's installation beside an Airflow that is there, with a stand-in in place of a paid key."""
    terminal = stranger.open(folder)
    airflow = re.search(r"^apache-airflow==.*$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert airflow is not None
    there = [
        "python3 -m venv .venv",
        ". .venv/bin/activate",
        f"pip install --quiet {airflow[0]}",
        "airflow db migrate",
    ]
    # The README's key is a stranger's own; ours is any, and what it is tried on is the stand-in.
    there.append("export ANTHROPIC_API_KEY=any-key")
    stranger.type(terminal, "Airflow", "".join(f"$ {command}\n" for command in there))
    added, tried = re.split(r"^(?=\$ airflow-llm test-connection)", install, flags=re.MULTILINE)
    stranger.type(terminal, "README", added)
    server = stranger.open(folder)
    stranger.type(
        server, "stand-in", "$ . .venv/bin/activate\n$ airflow-llm stand-in\nhttp://127.0.0.1:8765\n"
    )
    here = json.dumps({"conn_type": "claude", "password": "any-key", "host": "http://127.0.0.1:8765"})
    stranger.type(terminal, "stand-in", f"$ export AIRFLOW_CONN_CLAUDE_DEFAULT='{here}'\n")
    stranger.type(terminal, "README", tried)
    stranger.type(terminal, "wheel", "$ airflow providers get airflow-provider-llm\nairflow-provider-llm\n")


if __name__ == "__main__":
    main()
