"""Dockerfile and compose.yaml, as far as they can be held to anything without a container engine."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from recmeta.cli import app
from recmeta.settings import load_settings

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("recmeta:")}


def test_the_image_runs_as_an_ordinary_user_and_is_built_in_two_stages() -> None:
    *_, last = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert not last.startswith(("root", "0"))
    assert len(re.findall(r"^FROM ", DOCKERFILE, re.MULTILINE)) == 2


def test_the_build_context_holds_what_the_dockerfile_copies_and_nothing_else() -> None:
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    }
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignore[1] == "*"
    assert {line[1:] for line in ignore if line.startswith("!")} == copied
    assert all((ROOT / path).exists() for path in copied)


def test_every_port_is_bound_to_this_machine_alone() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_airflow_option_is_one_that_airflow_has() -> None:
    package = importlib.util.find_spec("airflow")
    assert package is not None
    assert package.submodule_search_locations is not None
    folder = Path(package.submodule_search_locations[0])
    known = yaml.safe_load((folder / "config_templates" / "config.yml").read_text(encoding="utf-8"))
    asked = re.findall(r"\b(AIRFLOW__\w+)", DOCKERFILE) + [
        name for service in OURS.values() for name in service["environment"] if name.startswith("AIRFLOW__")
    ]
    assert asked
    for name in asked:
        _, section, option = name.lower().split("__")
        assert option in known[section]["options"], name


def test_the_settings_take_every_recmeta_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SERVICES["serve"]["environment"].items():
        monkeypatch.setenv(name, value)
    stores = load_settings(tmp_path).stores
    assert (stores.online, stores.redis) == ("redis", "redis:6379,db=0")


def test_every_recmeta_command_is_one_that_the_command_line_has() -> None:
    commands = [service["command"] for service in OURS.values() if service["command"][0] == "recmeta"]
    assert len(commands) == 2
    verbs = get_command(app)
    for _, verb, *arguments in commands:
        context = verbs.make_context("recmeta", [verb], resilient_parsing=True)
        command = verbs.get_command(context, verb)  # type: ignore[attr-defined]
        command.make_context(verb, ["--workspace", "/var/lib/recmeta", *arguments])


def test_only_airflow_holds_airflows_secrets() -> None:
    for name in ("serve", "ingest"):
        assert not [key for key in SERVICES[name]["environment"] if key.startswith("AIRFLOW")]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_what_a_service_waits_for_exists_and_can_become_so(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        if how["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[other]
        else:
            assert how["condition"] == "service_completed_successfully"
            assert SERVICES[other]["restart"] == "no"
