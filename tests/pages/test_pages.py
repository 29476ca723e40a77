"""Every command that a page shows is run, in order, from an empty home; or it says here why not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.pages.commands import PAGES, ROOT, commands
from tests.workers import tiny

NOT_RUN_HERE = {
    "make demo": "run by tests/e2e on a tiny model",
    "make test": "it is this very suite",
    "make lint": "run by continuous integration before the tests",
    "make fmt": "it would rewrite the checkout",
    "mend bench editors --model smollm2": "takes hours and data that is not shipped",
}
"""Beginnings of commands that are not run here, with the reason."""

SHORTER = {
    "mend editor train": ("--steps", "2", "--max-edits", "2", "--set", "validation=4"),
}
"""What is added so that a command takes seconds: fewer steps, on a tiny model in ./my-model."""

MAY_FAIL = {
    "mend submit facts.jsonl --model own --wait": (0, 1),
}
"""Exit codes of commands whose outcome hangs on an editor that was trained for two steps."""


def beginning(command, table):
    return next((value for start, value in table.items() if command.text.startswith(start)), None)


def test_every_command_of_a_page_is_run_or_says_why_not():
    shown = [command for page in PAGES for command in commands(page)]
    assert len(shown) > 20
    left = [c for c in shown if c.page != "README.md" and beginning(c, NOT_RUN_HERE) is None]
    assert not left, f"{left[0].page}, line {left[0].line}: nobody runs `{left[0].text}`"
    for start in NOT_RUN_HERE:
        assert any(c.text.startswith(start) for c in shown), f"no page shows `{start}` any more"


@pytest.fixture
def stranger(tmp_path):
    """Runs commands as somebody who has just come: an empty home, a folder of their own."""
    environment = {
        **os.environ,
        "HOME": str(tmp_path / "home"),
        "MEND_HOME": str(tmp_path / "home" / "mend"),
        # De-quantising the base takes half a minute; what a page says is not about that.
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
        "PYTHONPATH": str(ROOT),
    }
    for name in ("DATABASE_URL", "BROKER_URL", "MEND_ACTOR"):
        environment.pop(name, None)
    (tmp_path / "home").mkdir()
    folder = tmp_path / "work"
    folder.mkdir()
    tiny.make_model(folder / "my-model")
    with (folder / "facts.jsonl").open("w") as stream:
        for fact in tiny.facts(24):
            record = {"prompt": fact.prompt, "target": fact.target, "subject": fact.subject}
            stream.write(json.dumps(record | {"paraphrases": fact.paraphrases}) + "\n")

    def run(words):
        assert words[0] == "mend"
        return subprocess.run(
            [sys.executable, "-m", "gateway.cli", *words[1:]],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )

    yield run
    run(["mend", "down"])


@pytest.mark.smollm2
@pytest.mark.timeout(900)
def test_the_readme_word_for_word(stranger):
    for command in commands("README.md"):
        if beginning(command, NOT_RUN_HERE) is not None:
            continue
        ran = stranger([*command.words, *(beginning(command, SHORTER) or ())])
        told = f"README line {command.line}: `{command.text}` said {ran.stdout}{ran.stderr}"
        assert ran.returncode in (beginning(command, MAY_FAIL) or (0,)), told
        assert "Traceback" not in ran.stdout + ran.stderr, told
        if command.text.startswith("mend submit --prompt"):
            assert "Edit 1 is live in version 1" in ran.stdout, told
        if command.text.startswith("mend ask"):
            assert "Keir Starmer" in ran.stdout, told
