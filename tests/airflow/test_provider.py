"""What Airflow discovers of this provider: the package, the connection's form, decorators and settings."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

import pytest
from airflow.sdk import task
from airflow.sdk.configuration import conf

from airflow_llm_provider.provider_info import get_provider_info

pytestmark = pytest.mark.usefixtures("airflow_home")


def airflow(capsys, *command: str):
    """Run an `airflow` command in this process, and return what it prints as JSON."""
    from airflow.cli.cli_parser import get_parser

    capsys.readouterr()
    arguments = get_parser().parse_args([*command, "--output", "json"])
    arguments.func(arguments)
    printed = capsys.readouterr().out
    return json.loads(printed[printed.index("[") :])


def test_the_entry_point_gives_the_info_and_the_name_of_the_distribution():
    (entry,) = [
        entry
        for entry in importlib.metadata.entry_points(group="apache_airflow_provider")
        if entry.value.startswith("airflow_llm_provider")
    ]
    assert entry.load()() == get_provider_info()
    assert entry.dist is not None
    assert get_provider_info()["package-name"] == entry.dist.name == "airflow-provider-llm"


def test_the_info_is_what_airflow_accepts():
    from importlib.resources import files

    import jsonschema

    schema = json.loads(files("airflow").joinpath("provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)


def test_the_provider_is_listed(capsys):
    (provider,) = [
        each
        for each in airflow(capsys, "providers", "list")
        if each["package_name"] == "airflow-provider-llm"
    ]
    assert "Claude" in provider["description"]
    assert provider["version"] == importlib.metadata.version("airflow-provider-llm")


def test_the_provider_can_be_shown(capsys):
    (shown,) = airflow(capsys, "providers", "get", "airflow-provider-llm", "--full")
    assert "airflow-provider-llm" in json.dumps(shown)


def test_the_connection_type_is_listed_with_its_hook(capsys):
    (hook,) = [each for each in airflow(capsys, "providers", "hooks") if each["connection_type"] == "claude"]
    assert hook["class"] == "airflow_llm_provider.hooks.claude.ClaudeHook"
    assert hook["conn_id_attribute_name"] == "claude_conn_id"
    assert hook["package_name"] == "airflow-provider-llm"


def test_every_class_that_the_info_names_can_be_imported():
    from airflow.sdk._shared.module_loading import import_string

    info = get_provider_info()
    for connection_type in info["connection-types"]:
        import_string(connection_type["hook-class-name"])
    for decorator in info["task-decorators"]:
        assert callable(import_string(decorator["class-name"]))
    for group in (*info["operators"], *info["sensors"], *info["hooks"]):
        for module in group["python-modules"]:
            importlib.import_module(module)


def test_the_form_of_the_connection_has_its_fields():
    from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService

    (meta,) = [each for each in HookMetaService.hook_meta_data() if each.connection_type == "claude"]
    assert list(meta.extra_fields or {}) == [
        *("fast", "balanced", "strong", "default_tier", "fallbacks", "timeout_s", "deadline_s"),
        *(
            "rpm",
            "itpm",
            "otpm",
            "burst_s",
            "prices",
            "price_change_percent",
            "proxy",
            "no_proxy",
            "ca_bundle",
            "ledger_url",
        ),
    ]
    assert meta.extra_fields["fast"]["value"] == "claude-haiku-5-5"
    assert meta.extra_fields["default_tier"]["schema"]["enum"] == ["fast", "balanced", "strong"]
    assert meta.extra_fields["ledger_url"]["schema"]["format"] == "password"
    standard = meta.standard_fields
    assert standard is not None
    assert standard.password.title == "API key"
    assert standard.host.title == "Base URL"
    assert standard.login.hidden
    assert standard.port.hidden


def test_the_form_and_the_hook_agree_on_the_defaults(monkeypatch):
    from airflow_llm_provider.hooks.claude import ClaudeHook

    (connection_type,) = get_provider_info()["connection-types"]
    defaults = {
        name: field["schema"]["default"]
        for name, field in connection_type["conn-fields"].items()
        if "default" in field["schema"]
    }

    def connection(extra):
        monkeypatch.setenv("AIRFLOW_CONN_CLAUDE_DEFAULT", json.dumps({"conn_type": "claude", "extra": extra}))
        return ClaudeHook().connection

    assert {"timeout_s", "deadline_s", "fast", "default_tier"} <= defaults.keys()
    assert connection(defaults) == connection({})


@pytest.mark.parametrize("name", ["payload", "synchronous", "deployment", "ledger_url", "roots"])
def test_the_options_have_their_defaults(name):
    options = get_provider_info()["config"]["llm"]["options"]
    assert conf.get("llm", name) == options[name]["default"]


def test_every_option_that_is_read_is_declared():
    import re
    from pathlib import Path

    import airflow_llm_provider

    declared = get_provider_info()["config"]["llm"]["options"].keys()
    sources = Path(airflow_llm_provider.__file__).parent.rglob("*.py")
    read = {
        name
        for source in sources
        for name in re.findall(r'conf\.get\w*\(\s*"llm",\s*"(\w+)"', source.read_text())
    }
    assert read
    assert read <= declared


def test_the_ledgers_url_is_masked_in_the_configuration():
    from airflow.configuration import conf as core

    assert ("llm", "ledger_url") in core.sensitive_config_values


def test_the_decorators_are_there_under_task():
    names = {decorator["name"] for decorator in get_provider_info()["task-decorators"]}
    assert "claude_documents" in names
    for name in names:
        assert getattr(task, name).__module__.startswith("airflow_llm_provider.")


def test_the_info_imports_nothing():
    code = (
        "import sys; before = set(sys.modules); import airflow_llm_provider.provider_info as info;"
        "info.get_provider_info(); print(*sorted(set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    others = {name for name in run.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names}
    assert others == {"airflow_llm_provider", "airflow_llm_provider.provider_info"}
