"""The license audit's DAG: what it takes for a document, and where it reads."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "dags" / "license_audit.py"


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("license_audit", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def site_packages(tmp_path: Path) -> Path:
    """Return a folder with one distribution, whose RECORD also names what lies outside."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "LICENSE").write_text("not yours to read")
    info = tmp_path / "site" / "acme-1.0.dist-info"
    (info / "licenses").mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: acme\nVersion: 1.0\nLicense-Expression: MIT\n"
    )
    (info / "licenses" / "LICENSE").write_text("The MIT License")
    (info / "LICENSE").write_bytes("Zoë's license".encode("latin-1"))
    (info / "licenses.py").write_text("")
    names = (
        "acme-1.0.dist-info/licenses/LICENSE",
        "acme-1.0.dist-info/LICENSE",
        "acme-1.0.dist-info/licenses.py",
    )
    (info / "RECORD").write_text(
        "".join(f"{name},,\n" for name in (*names, "../secret/LICENSE", "gone/NOTICE"))
    )
    return tmp_path / "site"


def test_documents_are_the_license_files_of_the_folder_and_no_others(
    audit: ModuleType, site_packages: Path
) -> None:
    found = dict(audit._license_files([str(site_packages)]))
    assert list(found) == ["acme/LICENSE", "acme/acme-1.0.dist-info/LICENSE"]
    assert audit._text(found["acme/acme-1.0.dist-info/LICENSE"]) == "Zoë's license"


def test_every_installed_license_has_an_id_of_its_own(audit: ModuleType) -> None:
    found = list(audit._license_files(sys.path))
    assert len(found) > 100
    assert len(dict(found)) == len(found)


def test_a_folder_somebody_typed_must_lie_below_the_roots(
    audit: ModuleType, site_packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    assert audit._search_path(None) is sys.path
    with pytest.raises(AirflowFailException, match="is outside the roots"):
        audit._search_path(str(site_packages))
    monkeypatch.setenv("AIRFLOW__LLM__ROOTS", str(site_packages.parent))
    assert audit._search_path(str(site_packages)) == [str(site_packages)]
    with pytest.raises(AirflowFailException, match="no folder"):
        audit._search_path(str(site_packages / "nowhere"))


@pytest.mark.parametrize(
    ("metadata", "declared"),
    [
        ("License-Expression: MIT OR Apache-2.0", {"MIT", "Apache-2.0"}),
        ("License-Expression: GPL-3.0-or-later WITH GCC-exception-3.1", {"GPL-3.0"}),
        ("License: BSD 3-Clause", {"BSD-3-Clause"}),
        ("Classifier: License :: OSI Approved :: Apache Software License", {"Apache-2.0"}),
        ("License: my own", set()),
    ],
)
def test_metadata_names_ids(audit: ModuleType, metadata: str, declared: set[str]) -> None:
    from email import message_from_string

    assert audit._declared(message_from_string(metadata)) == declared


def test_the_form_has_its_fields_and_the_schedule_its_pause(audit: ModuleType) -> None:
    dag: Any = audit.license_audit()
    assert set(dag.params) == {"folder", "tier", "limit", "dry_run"}
    assert dag.catchup is False
    assert dag.doc_md
    assert {"claude", "compliance"} <= set(dag.tags)
    assert {task.owner for task in dag.tasks} == {"compliance"}
