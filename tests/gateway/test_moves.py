"""Promotion, rollback and review on the command line: what they say, ask and refuse."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gateway.commands import registry
from tests.ledger.conftest import Desk


@pytest.fixture
def desk(engine, ledger_url, home, monkeypatch):
    """A model with an edit live in version 1, two in version 2, one more in the candidate 3."""
    monkeypatch.setenv("DATABASE_URL", ledger_url)
    made = Desk(engine)
    made.ids = []
    for count, promote in ((1, True), (2, True), (1, False)):
        made.ids += made.submit_n(count, start=len(made.ids))
        made.round(promote=promote)
    return made


def production(mend):
    return {a["name"]: a["number"] for a in mend("alias", "list", "--json").json}["production"]


class Terminal(io.StringIO):
    """Standard input at which a person types."""

    def isatty(self):
        return True


def test_a_rollback_names_what_leaves_and_wants_a_yes(mend, desk):
    ran = mend("rollback")
    assert ran.code == 2
    assert "2 facts would leave production and 1 more would be reverted" in ran.err
    for words in ("version 2 → 1", "version 3 → 1", "Leave production (2)", "Fact 1 is → T1"):
        assert words in ran.out
    assert production(mend) == 2
    ran = mend("rollback", "--yes", "--reason", "complaints", "--json")
    assert ran.code == 0
    assert (ran.json["alias"], ran.json["from_number"], ran.json["to_number"]) == (
        "production", 2, 1,
    )  # fmt: skip
    assert [one["id"] for one in ran.json["leaves"]] == desk.ids[1:3]
    assert [one["id"] for one in ran.json["reverted"]] == desk.ids[3:]
    assert ran.json["candidate"]["to_number"] == 1
    assert ran.json["comes"] == []
    assert "complaints" in mend("history", "production").out


def test_a_person_at_a_terminal_is_asked(mend, desk, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    ran = mend("rollback")
    assert ran.code == 1
    assert "Nothing was changed" in ran.out
    assert production(mend) == 2
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert mend("rollback").code == 0
    assert production(mend) == 1


def test_nothing_is_asked_where_facts_only_come(mend, desk):
    ran = mend("promote")
    assert ran.code == 0
    assert "Come into production (1)" in ran.out
    assert "production is now version 3 (was 2)" in ran.out
    assert mend("alias", "set", "production", "1").code == 2
    assert production(mend) == 3
    assert mend("alias", "set", "production", "1", "--yes").code == 0
    assert production(mend) == 1


def test_of_many_edits_some_are_shown_and_the_rest_counted(mend, desk, monkeypatch):
    monkeypatch.setattr(registry, "SHOWN", 1)
    ran = mend("rollback", "0")
    assert "Leave production (3)" in ran.out
    assert "and 2 more" in ran.out


def test_the_third_rollback_says_why_not(mend, desk):
    assert mend("rollback", "--yes").code == 0
    assert mend("rollback", "--yes").code == 0
    ran = mend("rollback", "--yes")
    assert ran.code == 2
    assert "back at its first version, 0" in ran.err
    assert "never another version" not in ran.err


def test_the_trail_shows_reasons_and_is_filtered_newest_first(mend, desk):
    desk.submit("Fact x is", "X", actor="bob")
    mend("cancel", desk.ids[-1] + 1, "--reason", "typo in the target")
    newest, *_, oldest = mend("audit", "events", "--json").json
    assert newest["seq"] > oldest["seq"]
    assert newest["kind"] == "edit.cancelled"
    said = mend("audit", "events", "--edit", desk.ids[-1] + 1).out
    assert "typo in the target" in said
    assert "alias.promote" not in said
    kinds = {e["kind"] for e in mend("audit", "events", "--version", "2", "--json").json}
    assert {"version.committed", "alias.promote"} <= kinds
    [one] = mend("audit", "events", "--by", "bob", "--json").json
    assert one["kind"] == "edit.submitted"
    assert mend("audit", "events", "--until", "2020-01-01", "--json").json == []
    [first] = mend("audit", "events", "--oldest", "--limit", "1", "--json").json
    assert first["seq"] == 1


def test_an_approval_shows_what_it_contradicts(mend, desk):
    desk.sql("UPDATE models SET approval = true")
    new = desk.submit("Fact 0 is", "Z").edit_id
    other = desk.submit("Fact 9 is", "T9").edit_id
    ran = mend("approve", f"{new}-{other}", "--reason", "checked")
    assert ran.code == 0
    assert f"approved: {new}, {other}" in ran.out
    assert f"takes the place of edit {desk.ids[0]}, live: Fact 0 is → T0" in ran.out
    ran = mend("pause", "--reason", "freeze")
    assert "2 queued" in ran.out
