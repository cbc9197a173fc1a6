"""The DAGs of the documentation run."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

MODULE = "unusual_prefix_0123456789_an_example"  # Airflow gives the modules of DAG files such names
ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
EXAMPLES = [
    pytest.param(code, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, code in enumerate(CODE.findall(page.read_text()))
    if "with DAG(" in code
]


@pytest.fixture
def data(deployment: Any) -> Path:
    """What the examples call /data."""
    for folder, text in {
        "contracts": "This agreement of March {n}, 2026 of Acme Inc. and Beta Ltd. is governed by the law of Ohio.",
        "invoices": "Invoice {n}. Consulting: $1,{n}00.00. Travel: ${n}5.00. Due on 2026-03-0{n}.",
    }.items():
        (deployment.folder / folder).mkdir()
        for n, name in enumerate(("alpha", "beta", "bravo"), start=1):
            (deployment.folder / folder / f"{name}.txt").write_text(text.format(n=n))
    return deployment.folder


@pytest.fixture
def load(data: Path) -> Iterator[Any]:
    """Load an example as the module of a DAG file."""

    def module(code: str) -> ModuleType:
        path = data / "an_example.py"
        path.write_text(code.replace("/data/", f"{data}/"))
        spec = importlib.util.spec_from_file_location(MODULE, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[MODULE] = made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
        return made

    yield module
    sys.modules.pop(MODULE, None)


@pytest.mark.parametrize("code", EXAMPLES)
def test_every_dag_of_the_documentation_runs(
    deployment: Any, load: Any, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.sdk.definitions._internal.contextmanager import DagContext

    # As Airflow does when it loads a DAG file.
    monkeypatch.setattr(DagContext, "current_autoregister_module_name", MODULE)
    monkeypatch.setattr(DagContext, "autoregistered_dags", set())
    load(code)
    ((dag, _),) = DagContext.autoregistered_dags
    ran = deployment.run(dag)
    assert ran.state == "success", ran.log
    asks = re.search(r"@task\.claude|Claude\w*Operator\(|Operator\.partial", code) is not None
    assert (deployment.server.invoice.paid > 0) == asks


def test_every_page_that_shows_a_dag_is_found() -> None:
    assert len(EXAMPLES) >= 8
