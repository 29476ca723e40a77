"""docker-compose.yml, parsed and checked against the code (no Docker engine needed)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

import gateway
from gateway.cli import COMMANDS
from monitoring.exporter import parse

ROOT = Path(gateway.__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
OURS = {name: s for name, s in SERVICES.items() if "build" in s}

KNOWN = {"DATABASE_URL", "BROKER_URL", "MEND_HOME", "XDG_CACHE_HOME"}


def test_what_the_issue_asks_for_is_there():
    assert set(SERVICES) >= {
        "postgres",
        "redis",
        "worker",
        "beat",
        "exporter",
        "prometheus",
        "grafana",
    }


def test_images_are_pinned():
    for name, service in SERVICES.items():
        tag = service["image"].rpartition(":")[2]
        assert re.search(r"\d+\.\d+", tag), f"{name}: {service['image']} is not pinned"


def test_our_services_know_the_same_variables_as_the_code():
    text = "".join(
        path.read_text()
        for room in ("ledger", "workers", "mend_core")
        for path in (ROOT / room).rglob("*.py")
    )
    for service in OURS.values():
        assert set(service["environment"]) <= KNOWN
        for variable in service["environment"]:
            assert f'"{variable}"' in text


def test_servers_named_in_addresses_are_services_with_that_port():
    worker = SERVICES["worker"]["environment"]
    assert "@postgres:5432/" in worker["DATABASE_URL"]
    assert worker["BROKER_URL"].startswith("redis://redis:6379")
    prometheus = yaml.safe_load((ROOT / "monitoring/prometheus/prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in prometheus["scrape_configs"]}
    [target] = jobs["mend"]["static_configs"][0]["targets"]
    host, _, port = target.partition(":")
    assert host in SERVICES
    assert port in SERVICES[host]["command"]


def test_volumes_exist():
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
            else:
                assert source in COMPOSE["volumes"]


def test_dependencies_exist():
    for service in SERVICES.values():
        needs = service.get("depends_on", {})
        assert set(needs) <= set(SERVICES)
        for name, how in needs.items() if isinstance(needs, dict) else ():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[name]


@pytest.mark.parametrize("name", sorted(OURS))
def test_commands_are_valid(name):
    command = [str(word) for word in OURS[name]["command"]]
    if command[0] == "mend":
        if command[1] == "--help":
            return
        entry = COMMANDS[command[1]]
        built = get_command(__import__(f"gateway.commands.{entry.module}", fromlist=["app"]).app)
        leaf = getattr(built, "commands", {command[1]: built})[command[1]]
        options = {option for parameter in leaf.params for option in parameter.opts}
        assert {word for word in command[2:] if word.startswith("--")} <= options
    elif command[2] == "workers":
        assert command[3] in {"worker", "beat"}
    else:
        assert command[:3] == ["python", "-m", "monitoring.exporter"]
        assert parse(command[3:]).port == 9464


def test_the_dockerfile_copies_every_room():
    text = (ROOT / "Dockerfile").read_text()
    for room in ("mend", "mend_core", "ledger", "workers", "gateway", "monitoring", "migrations"):
        assert f"COPY {room} {room}" in text
