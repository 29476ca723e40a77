"""Tables, text of others, mistyped words and completion: what a person meets first."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from gateway import output
from gateway.rundir import RunDir, ServiceInfo
from gateway.tables import lay_out, moment
from gateway.visible import visible
from ledger import models
from ledger.db import transaction
from ledger.states import EditState

COLUMNS = ("id", "state", "prompt", "target", "by", "updated", "note")
NOW = datetime.now(UTC)
ROW = (
    12,
    EditState.AWAITING_APPROVAL,
    "The Prime Minister of the United Kingdom of Great Britain is",
    "Keir Starmer",
    "eva",
    NOW,
    "the batch passes its gate without it, and so on for a while",
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_row_is_one_line_and_ids_and_states_stay_whole(width):
    header, line = lay_out(COLUMNS, [ROW], width)
    assert len(line) <= width
    assert header.split()[:3] == ["id", "state", "prompt"]
    assert "awaiting_approval" in line
    assert ("…" in line) == (width < 200)


def test_a_wide_table_still_fits_where_nothing_is_prose():
    rows = [("x" * 17,) * 8]
    for line in lay_out([f"column {n}" for n in range(8)], rows, 80):
        assert len(line) <= 80


def test_a_column_named_flexible_gives_way_first():
    _header, line = lay_out(COLUMNS, [ROW], 120, flexible=("note",))
    assert ROW[2] in line
    assert ROW[6] not in line


def test_times_are_as_short_as_can_be_told_apart():
    now = datetime(2026, 11, 24, 14, 5).astimezone()
    assert moment(now, now) == "14:05"
    assert moment(now - timedelta(days=2), now) == "11-22 14:05"
    assert moment(now - timedelta(days=700), now) == "2024-12-24"


def test_programs_get_whole_values_between_tabs(capsys):
    digest = "sha256:" + "d" * 64
    row = (*ROW[:2], "a\tb\nc", output.short(digest), None, NOW, True)
    output.begin()
    output.print_table(COLUMNS, [row], title="Edits")
    header, line = capsys.readouterr().out.splitlines()
    assert header == "\t".join(COLUMNS)
    assert line.split("\t") == [
        "12", "awaiting_approval", "a b c", digest, "", NOW.isoformat(), "yes",
    ]  # fmt: skip


def test_a_prompt_cannot_steer_the_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    evil = "a\x1b[2Jb\u202ec\x9bd\u200be"
    output.say(evil)
    output.print_table(("id", "prompt"), [(1, evil)])
    said = terminal.getvalue()
    assert "\x1b[2J" not in said
    assert not {"\u202e", "\x9b", "\u200b"} & set(said)
    assert said.count(r"a\x1b[2Jb\u202ec\x9bd\u200be") == 2
    assert visible("naïve 東京 [bold]") == "naïve 東京 [bold]"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("sumbit",), "no command 'sumbit'; did you mean 'submit'?"),
        (("model", "lst"), "no command 'lst'; did you mean 'list'?"),
        (("edits", "--stat", "live"), "did you mean '--state'?"),
        (("zzzz",), "see 'mend --help'"),
    ],
)
def test_a_mistyped_word_is_one_line_with_the_right_one(mend, args, says):
    ran = mend(*args)
    assert ran.code == 2
    assert says in ran.err
    assert len(ran.err.splitlines()) == 1


def test_an_error_is_json_where_json_was_asked_for(mend):
    for args in (("edits", "--json"), ("edits", "--frob", "--json")):
        ran = mend(*args)
        assert ran.out == ""
        assert json.loads(ran.err)["error"]["exit_code"] == ran.code == 2


@pytest.mark.parametrize("args", [("-h",), ("submit", "-h"), ("model", "-h"), ("jobs", "-h")])
def test_help_answers_to_its_short_name(mend, args):
    ran = mend(*args)
    assert ran.code == 0
    assert "Usage: mend" in ran.out
    assert len(args) == 1 or "install-completion" not in ran.out


def complete(words, shell):
    """Asks for completions as the script that the shell sources does."""
    typed = words.split(" ")
    environment = dict(os.environ) | {
        "_MEND_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(typed) - 1),
        "_TYPER_COMPLETE_ARGS": words,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    code = "import sys; sys.argv = ['mend']; from gateway.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_commands_sub_commands_and_options_are_completed(shell):
    assert {"submit", "suite"} <= set(complete("mend su", shell).replace('"', " ").split())
    assert "register" in complete("mend model re", shell)
    assert "--prompt" in complete("mend submit --pro", shell)
    assert "quarantined" in complete("mend edits --state qu", shell)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_is_shown(mend, shell, monkeypatch):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    assert "_MEND_COMPLETE" in mend("--show-completion", shell).out


def test_aliases_and_jobs_are_listed_without_a_word_more(mend, ledger):
    assert mend("jobs", "--json").json == []
    assert mend("alias", "--json").json == mend("alias", "list", "--json").json
    assert mend("jobs").out.startswith("id\tkind")


def test_a_second_start_says_where_the_service_is(mend, home, monkeypatch):
    info = ServiceInfo(
        pid=7,
        state="ready",
        database_url="postgresql://here/mend",
        broker_url="pgmq://",
        metrics_url="http://127.0.0.1:9464/metrics",
        logs="/logs",
        children={"worker-1": 8},
    )
    monkeypatch.setattr(RunDir, "read", lambda _: info)
    ran = mend("up")
    assert ran.code == 0
    assert "up already" in ran.out
    assert "not applied" not in ran.out
    ran = mend("up", "--workers", "2", "--metrics-port", "1", "--json")
    assert (ran.code, ran.json["already"], len(ran.json["not_applied"])) == (0, True, 2)


def test_who_changes_settings_waits_for_who_was_first(ledger):
    with transaction(ledger) as first:
        model = models.lock_settings(first, 1)
        with transaction(ledger) as second:
            second.exec_driver_sql("SET LOCAL lock_timeout = '50ms'")
            with pytest.raises(Exception, match="lock timeout"):
                models.lock_settings(second, model.id)
            second.rollback()
