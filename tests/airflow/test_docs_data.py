"""What the documentation says in other languages than Python, and in tables of names, is what there is."""

from __future__ import annotations

import configparser
import dataclasses
import json
import re
import tomllib
from typing import Any, get_args

import pytest
import sqlalchemy as sa
import yaml
from pages import ROOT, blocks, languages, named, section

from airflow_llm_provider.approvals.review import Decision
from airflow_llm_provider.documents.document import Reason
from airflow_llm_provider.documents.estimate import Estimate
from airflow_llm_provider.documents.formats import AFTER_DATA, columns
from airflow_llm_provider.documents.readers.custom import GROUP as ENTRY_POINTS
from airflow_llm_provider.documents.run import reason_of
from airflow_llm_provider.documents.sources import SUFFIXES
from airflow_llm_provider.errors import BY_KIND, AnswerError, LLMError
from airflow_llm_provider.hooks.branching import Decision as Choice
from airflow_llm_provider.hooks.branching import Proposal
from airflow_llm_provider.ledger import schema
from airflow_llm_provider.options import Budget
from airflow_llm_provider.pricing import Prices
from airflow_llm_provider.provider_info import get_provider_info

BILL = r"It cost \$[\d.]+ in \d+ calls?; the run has cost \$[\d.]+ so far(; \$[\d.]+ of the run's budget left)?\."


def one(language: str, page: str) -> str:
    [code] = [block.values[0] for block in blocks(language) if page in str(block.id)]
    return str(code)


def test_there_is_no_language_that_no_test_reads() -> None:
    assert languages() == {"python", "console", "json", "ini", "sql", "yaml", "text", "toml"}


def test_the_prices_are_taken_as_a_connection_takes_them() -> None:
    extra = json.loads(one("json", "budgets.md"))
    assert extra.keys() <= get_provider_info()["connection-types"][0]["conn-fields"].keys()
    prices = Prices.of(extra["prices"], extra["price_change_percent"])
    assert all(prices.card(model) for model in extra["prices"])


def test_the_record_of_a_branch_has_these_fields() -> None:
    said = json.loads(one("json", "branching.md"))
    fields = {field.name for field in dataclasses.fields(Choice)}
    proposal = Proposal(
        branches=("a",), reason="", confidence=1.0, confidence_is="", stated_confidence=1.0, usage={}
    )
    written = fields - {"feedback"}  # only where a person has written one
    assert said.keys() == proposal.record().keys() | written | {"cost_usd"}


def test_the_entry_points_are_those_that_are_read() -> None:
    said = tomllib.loads(one("toml", "formats.md"))
    assert said["project"]["entry-points"].keys() == {ENTRY_POINTS}


def test_the_options_of_the_configuration_exist() -> None:
    said = configparser.ConfigParser()
    said.read_string(one("ini", "ledger.md"))
    for name in said.sections():
        assert said[name].keys() <= get_provider_info()["config"][name]["options"].keys()


def test_the_pod_names_options_that_exist() -> None:
    [container] = yaml.safe_load(one("yaml", "many-machines.md"))["spec"]["containers"]
    assert container["name"] == "base"  # the one that KubernetesExecutor fills in
    names = {each["name"].removeprefix("AIRFLOW__LLM__").lower() for each in container["env"]}
    assert names <= get_provider_info()["config"]["llm"]["options"].keys()


def test_the_query_of_the_ledger_runs_and_adds_up(deployment: Any) -> None:
    deployment.ask(deployment.texts(3))
    engine = sa.create_engine(deployment.ledger_url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        [row] = connection.execute(sa.text(one("sql", "rows.md"))).mappings()
    engine.dispose()
    assert row["calls"] == 3
    assert row["usd"] == pytest.approx(deployment.server.invoice.cost_micro_usd / 1e6)


def test_the_line_about_the_cost_is_the_one_in_the_log(deployment: Any) -> None:
    assert re.fullmatch(BILL, one("text", "costs.md").strip())
    assert re.search(BILL, deployment.ask(deployment.texts(1), budget=Budget(run_usd=1)).log)


def test_a_row_has_these_columns() -> None:
    told = named(section("reference/rows.md", "A row").partition("\n### ")[0])
    assert told | {"cache_read_tokens", "cache_write_tokens"} == set(columns(list_type=True))
    # As the XCom llm_usage is told of: the fields from `model` to `trace_id`.
    assert [*AFTER_DATA][1] == "model"
    assert [*AFTER_DATA][-1] == "trace_id"


def test_a_manifest_and_a_dead_letter_have_these_fields(deployment: Any) -> None:
    deployment.server.fail(kind="refusal", matching="Letter 2")
    ran = deployment.ask(deployment.texts(3), model=None, route=["fast", "strong"], max_failed=1)
    assert named(section("reference/rows.md", "The manifest")) == {
        *ran.manifest,
        *("skipped", "limited", "reading"),  # only where there is something to say
    }
    said = named(section("reference/rows.md", "A dead letter"))
    reasons = {reason_of(kind("")) for kind in BY_KIND.values()} | set(get_args(Reason))
    assert said == set(ran.dead_letters[0]) | reasons


def test_a_dry_run_says_these_fields() -> None:
    assert named(section("reference/rows.md", "A dry run")) == Estimate().as_dict().keys()


def test_a_decision_has_these_fields() -> None:
    said = named(section("how-to/approval.md", "Ask only where it matters"))
    fields = {field.name for field in dataclasses.fields(Decision)}
    assert {name for name in said if "(" not in name} == fields


def test_the_ledger_has_these_tables_and_states() -> None:
    tables = set(schema.metadata.tables) - {schema.schema_version.name}
    assert named(section("explanation/ledger.md", "What it holds")) == tables
    states = {schema.OPEN, schema.SETTLED, schema.LATE, schema.FAILED, schema.UNPROVEN, schema.REOPENED}
    assert named(section("reference/rows.md", "The ledger")) == states


def test_these_formats_are_recognised() -> None:
    page = (ROOT / "docs" / "reference" / "formats.md").read_text().partition("\n## ")[0]
    rows = [
        line.split("|")[1] for line in page.splitlines() if line.startswith("| ") and "endings" not in line
    ]
    listed = [suffix for row in rows for suffix in row.partition(", and a file")[0].strip().split(", ")]
    assert sorted(listed) == sorted(SUFFIXES)


def test_these_are_the_example_dags() -> None:
    assert named((ROOT / "docs" / "how-to" / "dags.md").read_text()) == {
        file.stem for file in (ROOT / "dags").glob("*.py")
    }


def test_these_classes_of_error_have_policies() -> None:
    said = named(section("how-to/calls.md", "Errors by class"))
    assert said <= BY_KIND.keys()
    paid = {cls.kind for cls in BY_KIND.values() if issubclass(cls, AnswerError)} - {LLMError.kind}
    assert paid - said == {"tool_limit"}  # told under tools


def test_the_files_that_the_design_names_exist() -> None:
    package = ROOT / "airflow_llm_provider"
    said = set(re.findall(r"`([\w/]+(?:\.py|/))`", (ROOT / "docs" / "explanation" / "design.md").read_text()))
    assert len(said) > 25
    assert {name for name in said if not ((package / name).exists() or (ROOT / name).exists())} == set()


def test_the_tests_that_the_security_page_names_exist() -> None:
    page = (ROOT / "docs" / "explanation" / "security.md").read_text()
    files = {file.name: file for file in (ROOT / "tests").rglob("test_*.py")}
    said = re.findall(r"`(?:tests/\w+/)?(test_\w+\.py)`", page)
    assert len(said) > 15
    assert set(said) <= files.keys()
    code = "".join(files[name].read_text() for name in set(said))
    names = re.findall(r"`(test_\w+)(…?)`", page)
    missing = {name for name, more in names if f"def {name}" + ("" if more else "(") not in code}
    assert missing == set()
