"""docker-compose.yaml holds what it should, and no secrets."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.metadata import version

import pytest
import yaml
from compose import ROOT, SECRETS, read

from tests.support.postgres import server_programs


def test_every_secret_comes_from_the_environment() -> None:
    with pytest.raises(KeyError, match=r"see \.env\.example"):
        read({})
    services = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())["services"]
    given = [item for service in services.values() for item in service.get("environment", {}).items()]
    secret = [value for name, value in given if re.search("PASSWORD|SECRET|KEY|CONN|URL$|BACKEND", name)]
    addresses = [value for value in secret if re.fullmatch(r"https?://[\w.-]+:\d+[/\w]*", value)]
    assert secret
    assert [value for value in secret if "${" not in value and value not in addresses] == []


def test_the_example_names_every_variable_and_no_value_of_a_secret() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    example = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert example.keys() == SECRETS.keys()
    assert {name for name, value in example.items() if value} == {"ALL_ADMINS"}
    used = re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yaml").read_text())
    assert set(used) == example.keys()


def test_every_service_says_how_it_is_well() -> None:
    services = read()["services"]
    assert {name for name, service in services.items() if "healthcheck" not in service} == {"init"}
    assert sum("celery worker" in str(service.get("command")) for service in services.values()) == 2
    assert services["stand-in"]["profiles"] == ["offline"]


def test_image_and_processes_are_of_the_same_versions() -> None:
    services = read()["services"]
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    assert f"apache/airflow:{version('apache-airflow')}-python3.11" in dockerfile
    postgres = subprocess.check_output([server_programs() / "postgres", "--version"], text=True)
    assert f" {services['postgres']['image'].removeprefix('postgres:')}." in postgres
    redis = subprocess.check_output([shutil.which("redis-server") or "redis-server", "--version"], text=True)
    assert f"v={services['redis']['image'].removeprefix('redis:')}." in redis
