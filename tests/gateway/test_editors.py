"""`mend editor make`, and leaving a job that a worker goes on with."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from ledger import jobs, workers
from ledger.db import transaction
from ledger.events import Listener
from mend_core.editors import load_editor
from mend_core.testing import save_base, tiny_base


def test_editor_make_hands_a_tiny_gpt2_to_the_science(home, tmp_path):
    source = save_base(tiny_base("gpt2"), tmp_path / "gpt2")
    out = tmp_path / "new" / "mine.safetensors"
    words = ["editor", "make", "--model", str(source), "--out", str(out), "--json"]
    ran = subprocess.run(
        [sys.executable, "-m", "gateway.cli", *words],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["editor"] == load_editor(out).digest
    assert "s left" in ran.stderr
    assert out.with_suffix(".md").is_file()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--kind", "mend"), "must be ultra or subject"),
        (("--wordings", "/nowhere"), "is for --kind subject"),
        (("--kind", "subject", "--wordings", "/nowhere"), "there is no file /nowhere"),
    ],
)
def test_what_editor_make_cannot_use_is_said_at_once(mend, words, told):
    ran = mend("editor", "make", "--out", "x.safetensors", *words)
    assert ran.code == 2
    assert told in ran.err


def test_ctrl_c_during_export_says_that_the_job_goes_on(mend, ledger, tmp_path, monkeypatch):
    with transaction(ledger) as connection:
        workers.register(connection, name="w", host="h", pid=1)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Listener, "wait", interrupted)  # a real Ctrl-C would come at any moment
    ran = mend("export", tmp_path / "adapter", "--version", "0")
    assert ran.code == 130
    with transaction(ledger) as connection:
        (job,) = jobs.list_jobs(connection)
    assert f"job {job.id} (export) goes on" in ran.err
    assert str(tmp_path / "adapter") in ran.err
