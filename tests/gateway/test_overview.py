"""What can be asked of `mend` without any service."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
from typer.main import get_command

from gateway.cli import COMMANDS


def built(module):
    command = get_command(importlib.import_module(f"gateway.commands.{module}").app)
    return getattr(command, "commands", None) or {command.name: command}


def test_the_overview_is_complete_and_says_what_the_commands_say():
    for name, entry in COMMANDS.items():
        command = built(entry.module)[name]
        first = " ".join((command.help or "").strip().partition("\n\n")[0].split())
        assert first == entry.summary, name
    listed = {(entry.module, name) for name, entry in COMMANDS.items()}
    for module in {entry.module for entry in COMMANDS.values()}:
        for name in built(module):
            assert (module, name) in listed


def leaves(command, path):
    inner = getattr(command, "commands", None)
    if not inner:
        yield path, command
        return
    for name, below in inner.items():
        yield from leaves(below, [*path, name])


def all_leaves():
    for name, entry in COMMANDS.items():
        yield from leaves(built(entry.module)[name], [name])


@pytest.mark.parametrize(("path", "command"), list(all_leaves()), ids=lambda x: str(x)[:40])
def test_every_command_teaches_by_example_and_speaks_json(path, command):
    assert "`mend" in (command.help or ""), f"{' '.join(path)} shows no example"
    options = {option for parameter in command.params for option in parameter.opts}
    hands_over = {"serve", "bench", "editor train"}
    assert "--json" in options or " ".join(path) in hands_over


def test_help_is_quick_because_it_imports_nothing_heavy():
    code = (
        "import sys; from gateway.cli import main; sys.argv = ['mend', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'sqlalchemy', 'psycopg', 'pydantic', 'celery'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []"
    for name in COMMANDS:
        assert name in done.stdout


def test_no_command_imports_torch():
    modules = sorted({entry.module for entry in COMMANDS.values()})
    code = (
        "import sys, importlib\n"
        f"for m in {modules!r}: importlib.import_module('gateway.commands.' + m)\n"
        "print(sorted({'torch', 'transformers', 'mend_core', 'workers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_unknown_commands_and_options_are_refused(mend):
    assert mend("sumbit").code == 2
    assert mend("edits", "--frobnicate").code == 2


def test_version(mend):
    assert mend("--version").out.startswith("mend ")


@pytest.mark.parametrize(
    "args",
    [
        ("edits",),
        ("versions",),
        ("ask", "x"),
        ("submit", "--prompt", "a", "--target", "b"),
        ("audit", "verify"),
        ("doctor",),
        ("status",),
        ("model", "list"),
    ],
)
def test_without_a_service_every_command_says_how_to_start_one(mend, args):
    ran = mend(*args)
    assert ran.code == 2
    assert "mend up" in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_down_and_json_status_without_a_service(mend):
    assert mend("down").code == 0
    ran = mend("status", "--json")
    assert ran.json["running"] is False


def test_a_home_that_cannot_be_made(mend, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEND_HOME", str(tmp_path / "file" / "home"))
    ran = mend("edits")
    assert ran.code == 2
    assert "MEND_HOME" in ran.err


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mysql://u@h/d", "Postgres"),
        ("not a url", "DATABASE_URL"),
        ("postgresql://nobody@127.0.0.1:1/none", "Postgres"),
    ],
)
def test_a_database_that_cannot_be_used(mend, monkeypatch, url, says):
    monkeypatch.setenv("DATABASE_URL", url)
    ran = mend("edits")
    assert ran.code == 2
    assert says in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_a_database_without_a_schema(mend, monkeypatch, empty_url):
    monkeypatch.setenv("DATABASE_URL", empty_url)
    assert mend("edits").code == 2
    assert mend("migrate", "--check").code == 2
    assert mend("migrate").code == 0
    assert mend("migrate", "--check").code == 0
    ran = mend("edits")
    assert ran.code == 2
    assert "mend model register" in ran.err
