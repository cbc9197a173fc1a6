"""The wheel: built the same twice, holding what it should, and working beside an Airflow that is there."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITHOUT_AIRFLOW = {
    name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHONPATH"))
}


def build(folder: Path, kind: str) -> Path:
    """Build from a copy of what git holds, as a release does."""
    source = folder / "source"
    source.mkdir(parents=True)
    files = subprocess.check_output(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT).split(b"\0")
    for name in filter(None, files):
        path = source / os.fsdecode(name)
        if (ROOT / os.fsdecode(name)).is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((ROOT / os.fsdecode(name)).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(folder / "dist")]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (folder / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_two_builds_are_alike_to_the_byte(tmp_path: Path, kind: str) -> None:
    one, other = (build(tmp_path / name, kind) for name in ("one", "other"))
    assert hashlib.sha256(one.read_bytes()).digest() == hashlib.sha256(other.read_bytes()).digest()


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert top == {"airflow_llm_provider", f"{wheel.name.split('-py3')[0]}.dist-info"}
    assert "airflow_llm_provider/py.typed" in names
    inside = [name for name in names if name.startswith("airflow_llm_provider/")]
    # The demo's own DAG and documents come along, and the ledger's migrations; nothing else that is not code does.
    assert {Path(name).suffix for name in inside} <= {".py", ".typed", ".md", ".txt", ".json", ".sql"}
    migrations = [name for name in inside if name.endswith(".sql")]
    here = (ROOT / "airflow_llm_provider/ledger/migrations").glob("*.sql")
    assert sorted(migrations) == sorted(str(path.relative_to(ROOT)) for path in here)
    assert not [name for name in names if "test_" in name or "conftest" in name or ".env" in name]


def test_nothing_of_the_machine_it_was_built_on_is_in_it(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    text = b"".join(archive.read(name) for name in archive.namelist())
    for word in (str(ROOT), "index-url", "extra-index"):
        assert word.encode() not in text


def test_it_installs_beside_an_airflow_and_airflow_knows_it(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(subprocess.check_output([python, "-c", where], text=True).strip())
    # All that is installed here, but for this package: what stands for a venv with an Airflow in it.
    for installed in Path(
        subprocess.check_output([sys.executable, "-c", where], text=True).strip()
    ).iterdir():
        if (
            not installed.name.lower()
            .replace("-", "_")
            .startswith(("airflow_provider_llm", "_airflow_provider_llm"))
        ):
            (site / installed.name).symlink_to(installed)
    install = [
        str(Path(sys.executable).with_name("uv")),  # .venv is made without pip
        "pip",
        "install",
        "--python",
        str(python),
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    env = WITHOUT_AIRFLOW | {"AIRFLOW_HOME": str(tmp_path / "home"), "PYTHONDONTWRITEBYTECODE": "1"}
    airflow = [str(python), "-m", "airflow", "providers", "get", "airflow-provider-llm"]
    told = subprocess.run(airflow, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert "airflow-provider-llm" in told.stdout
    found = subprocess.check_output(
        [python, "-c", "import airflow_llm_provider; print(airflow_llm_provider.__file__)"],
        cwd=tmp_path,
        env=env,
        text=True,
    )
    assert found.startswith(str(tmp_path))
    assert (tmp_path / "venv" / "bin" / "airflow-llm").exists()
