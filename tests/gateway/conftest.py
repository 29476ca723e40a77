"""The command line in this process, against a real ledger with one model and no worker."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from gateway import cli
from ledger import models
from ledger.db import transaction

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.inside import inside, make_service, tiny_editor, tiny_model

__all__ = ["inside", "make_service", "tiny_editor", "tiny_model"]

BASE = "sha256:" + "b" * 64
EDITOR = "sha256:" + "e" * 64


class Ran:
    """What a command did."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    monkeypatch.setenv("MEND_HOME", str(folder))
    monkeypatch.setenv("MEND_ACTOR", "tester")
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.delenv("MEND_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    return folder


@pytest.fixture
def mend(home, monkeypatch, capsys):
    """Runs `mend ARGS` as the console script does; returns exit code and output."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["mend", *map(str, args)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return Ran(code, said.out, said.err)

    return run


def add_model(engine, name="demo", **options):
    with transaction(engine) as connection:
        editor = models.register_editor(
            connection,
            digest=EDITOR,
            kind="mend",
            base_digest=BASE,
            path="/nowhere/editor.safetensors",
            meta={},
            actor="tester",
        )
        return models.register(
            connection,
            name=name,
            source="tiny",
            base_digest=BASE,
            editor_id=editor.id,
            composition={"kind": "sum"},
            version_digest="sha256:" + name.encode().hex().ljust(64, "0"),
            policy={"name": "test"},
            policy_digest="sha256:" + "d" * 64,
            actor="tester",
            **options,
        )


@pytest.fixture
def ledger(engine, ledger_url, home, monkeypatch):
    """A ledger with one model, which the command line finds through DATABASE_URL."""
    monkeypatch.setenv("DATABASE_URL", ledger_url)
    add_model(engine)
    return engine
