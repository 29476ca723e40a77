"""Submitting and steering edits, good input and bad, against a real ledger without a worker."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest
from sqlalchemy import text

from ledger import edits
from ledger.db import transaction


def count(engine):
    with transaction(engine) as connection:
        return sum(edits.counts(connection).values())


def one_line(ran):
    return len(ran.err.strip().splitlines()) == 1


def test_submit_list_show_and_cancel_one_edit(mend, ledger):
    ran = mend("submit", "--prompt", "The capital of Mars is", "--target", "Olympus", "--json")
    assert ran.code == 0
    assert ran.json["accepted"] == 1
    [edit] = ran.json["edit_ids"]
    [listed] = mend("edits", "--json").json
    assert (listed["id"], listed["state"], listed["submitted_by"]) == (edit, "queued", "tester")
    shown = mend("show", edit, "--json").json
    assert shown["edit"]["target"] == "Olympus"
    assert shown["history"]
    assert "Olympus" in mend("show", edit).out
    assert mend("cancel", edit, "--reason", "typo").code == 0
    assert mend("edits", "--state", "cancelled", "--json").json[0]["id"] == edit
    ran = mend("cancel", edit)
    assert ran.code == 2
    assert str(edit) in ran.err


def test_why_an_edit_was_set_aside_is_told_in_words(mend, ledger):
    [edit] = mend("submit", "--prompt", "a is", "--target", "b", "--json").json["edit_ids"]
    flip = {"item_id": "golden:1", "prompt": "Water is", "expect": ["wet"]}
    evidence = {
        "reason": "Its paraphrases did not follow: 0 of 1",
        "why": {"kind": "fails alone"},
        "checks": [
            {
                "name": "hard.golden",
                "outcome": "fail",
                "sentence": "1 of 2 fail",
                "plain": "one fell",
            }
        ],
        "broke": [flip | {"before": "wet", "after": "dry", "base": "moist"}],
        "broke_by": "edit",
        "broke_count": 30,
        "group_size": 1,
        "own": [flip | {"kind": "paraphrase", "before": "x", "after": "damp", "passed": False}],
    }
    said = shown_with(mend, ledger, edit, evidence)
    for words in (
        evidence["reason"],
        "1 of 2 fail",
        "one fell",
        "This edit alone broke (30, 1 shown",
    ):
        assert words in said
    for words in ("Water is", "wet", "dry", "moist", "damp"):
        assert words in said
    assert "{" not in said
    assert mend("show", edit, "--json").json["edit"]["evidence"] == evidence
    said = shown_with(mend, ledger, edit, evidence | {"broke_by": "group", "group_size": 10})
    assert "The 10 edits set aside together broke" in said
    # An earlier release said "edit" of what a whole group broke, and listed items twice.
    old = {"reason": "r", "broke": [flip, flip], "broke_by": "edit"}
    assert "not told apart by edit) (1)" in shown_with(mend, ledger, edit, old)


def shown_with(mend, ledger, edit, evidence):
    with transaction(ledger) as connection:
        connection.execute(
            text("UPDATE edits SET evidence = CAST(:said AS jsonb) WHERE id = :edit"),
            {"said": json.dumps(evidence), "edit": edit},
        )
    return mend("show", edit).out


def test_the_same_key_gives_the_first_edit_and_says_so(mend, ledger):
    args = ("submit", "--prompt", "p is", "--target", "t", "--key", "k-1")
    first = mend(*args, "--json").json
    again = mend(*args)
    assert again.code == 0
    assert "submitted before" in again.out
    assert mend(*args, "--json").json["edit_ids"] == first["edit_ids"]
    assert count(ledger) == 1


def test_a_jsonl_file_is_taken_whole(mend, ledger, tmp_path):
    file = tmp_path / "facts.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": f"Fact {n} is", "target": f"t{n}"}) + "\n" for n in range(30))
    )
    ran = mend("submit", file, "--json")
    assert ran.json["accepted"] == 30
    assert count(ledger) == 30


def test_csv_and_standard_input(mend, ledger, tmp_path, monkeypatch):
    file = tmp_path / "facts.csv"
    file.write_text("prompt,target\nThe sky is,green\nThe sea is,red\n")
    assert mend("submit", file, "--json").json["accepted"] == 2
    line = json.dumps({"prompt": "Grass is", "target": "blue"}).encode() + b"\n"
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(line)))
    assert mend("submit", "-", "--json").json["accepted"] == 1


GOOD = b'{"prompt": "a is", "target": "b"}\n'
BAD_FILES = {
    "not json": (GOOD + b"{oops\n", "line 2"),
    "not an object": (GOOD + b"[1, 2]\n", "line 2"),
    "no target": (GOOD + b'{"prompt": "x"}\n', "target"),
    "empty prompt": (b'{"prompt": "  ", "target": "x"}\n', "prompt"),
    "prompt of the wrong type": (b'{"prompt": 3, "target": "x"}\n', "prompt"),
    "unknown field": (b'{"prompt": "a", "target": "x", "colour": 1}\n', "colour"),
    "too long": (b'{"prompt": "' + b"a" * 9000 + b'", "target": "x"}\n', "prompt"),
    "a 10 MB line": (b'{"prompt": "' + b"a" * 10_000_000 + b'", "target": "x"}\n', "line 1"),
    "not utf-8": (GOOD + b'{"prompt": "\xff\xfe", "target": "x"}\n', "line 2"),
    "nul": (b'{"prompt": "a\\u0000b", "target": "x"}\n', "prompt"),
    "empty": (b"", ""),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_whole_with_line_and_field(mend, ledger, tmp_path, name):
    content, says = BAD_FILES[name]
    file = tmp_path / "bad.jsonl"
    file.write_bytes(content)
    ran = mend("submit", file)
    assert ran.code == 2
    assert says in ran.err
    assert one_line(ran)
    assert len(ran.err) < 2000
    assert count(ledger) == 0


def test_keep_going_takes_the_good_lines_and_names_the_bad_ones(mend, ledger, tmp_path):
    file = tmp_path / "mixed.jsonl"
    file.write_bytes(GOOD + b"{oops\n" + b'{"prompt": "c is", "target": "d"}\n')
    ran = mend("submit", file, "--keep-going", "--json")
    assert ran.code == 2
    assert ran.json["accepted"] == 2
    assert "line 2" in ran.err
    assert count(ledger) == 2


@pytest.mark.parametrize(
    "args",
    [
        ("submit",),
        ("submit", "--prompt", "x"),
        ("submit", "/nowhere/facts.jsonl"),
        ("submit", "/"),
        ("submit", "--prompt", "x", "--target", ""),
        ("submit", "--prompt", "x", "--target", "y", "--model", "nope"),
        ("submit", "--prompt", "x", "--target", "y", "--priority", "100000"),
        ("show", "999"),
        ("show", "abc"),
        ("approve", "999"),
        ("reject", "999", "--reason", "r"),
        ("redrive",),
        ("redrive", "999"),
        ("promote", "7"),
        ("rollback",),
        ("rollback", "7"),
        ("lineage", "nope"),
        ("gate", "show", "77"),
        ("gate", "override", "0", "--reason", "x"),
        ("gate", "policy", "default"),
        ("gate", "policy", "/nowhere.yaml", "--reason", "x"),
        ("alias", "set", "Bad Name", "0"),
        ("history", "nope"),
        ("hold", "add", "9", "--reason", "r"),
        ("suite", "add", "/nowhere.jsonl"),
        ("audit", "prove", "9999"),
        ("audit", "prove"),
        ("audit", "verify", "--export", "/nowhere"),
        ("audit", "export", "/nowhere/trail.jsonl"),
        ("jobs", "show", "9"),
        ("model", "register", "x", "--source", "/nowhere"),
        ("model", "register", "x", "--source", "smollm2", "--editor", "/nowhere"),
        ("model", "configure", "--reason", "x"),
        ("model", "configure", "--folder", "zip", "--reason", "x"),
        ("model", "configure", "--webhook", "ops", "--reason", "x"),
        ("model", "configure", "--webhook-secret-env", "KEY", "--reason", "x"),
        ("export", "/nowhere/deep/folder"),
        ("export", "/tmp/x", "--format", "gguf"),
        ("bench", "nonsense"),
        ("demo", "--pack", "/nowhere"),
        ("demo", "--policy", "lax"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_done_is_one_clear_line(mend, ledger, args):
    ran = mend(*args)
    assert ran.code == 2, ran.out + ran.err
    assert ran.err.strip()
    assert "bug in mend" not in ran.err


@pytest.mark.parametrize(
    "args",
    [
        ("ask", "x"),
        ("verify",),
        ("report",),
        ("diff", "0", "0"),
        ("revert", "1", "-r", "x"),
        ("gate", "policy"),
    ],
)
def test_jobs_without_a_worker_say_so(mend, ledger, args):
    ran = mend(*args)
    assert ran.code == 2
    assert "no worker is alive" in ran.err
    assert mend("jobs", "list", "--json").json == []


def test_pause_resume_and_status(mend, ledger):
    assert mend("pause", "--reason", "freeze").code == 0
    assert mend("status", "--json").json["models"][0]["paused"] is True
    assert mend("resume").code == 0
    assert mend("status", "--json").json["models"][0]["paused"] is False
    assert "No worker is alive" in mend("status").err


def test_hooks_are_set_changed_and_removed_one_by_one(mend, ledger):
    def set_(*options):
        ran = mend("model", "configure", *options, "--reason", "serving", "--json")
        return ran.json["settings"]["hooks"]

    key = {"kind": "webhook", "url": "https://ops/in", "secret_env": "KEY"}
    assert set_("--webhook", "https://ops/in", "--webhook-secret-env", "KEY") == [key]
    folder = {"kind": "folder", "format": "merged"}
    assert set_("--folder", "merged") == [key, folder]
    vllm = {"kind": "vllm", "url": "http://gpu:8000"}
    assert set_("--folder", "peft", "--vllm", "http://gpu:8000") == [
        key,
        vllm,
        folder | {"format": "peft"},
    ]
    assert set_("--folder", "", "--webhook", "") == [vllm]


def test_approval_and_rejection(mend, ledger):
    mend("model", "configure", "--approval", "--reason", "four eyes")
    ids = [
        mend("submit", "--prompt", f"q{n} is", "--target", "a", "--json").json["edit_ids"][0]
        for n in range(2)
    ]
    states = {e["id"]: e["state"] for e in mend("edits", "--json").json}
    assert set(states.values()) == {"awaiting_approval"}
    assert mend("reject", ids[0], "--reason", "not confirmed").code == 0
    assert "not confirmed" in mend("show", ids[0]).out
    # Whoever submitted an edit cannot be the one who approves it.
    assert mend("approve", ids[1]).code == 2


def test_a_second_person_approves(mend, ledger, monkeypatch):
    mend("model", "configure", "--approval", "--reason", "four eyes")
    [edit] = mend("submit", "--prompt", "q is", "--target", "a", "--json").json["edit_ids"]
    monkeypatch.setenv("MEND_ACTOR", "somebody else")
    assert mend("approve", edit, "--reason", "checked").code == 0
    assert mend("edits", "--state", "queued", "--json").json[0]["id"] == edit


def test_versions_aliases_and_history_of_a_fresh_model(mend, ledger):
    [base] = mend("versions", "--json").json
    assert (base["number"], base["gate"]) == (0, "pass")
    names = {a["name"]: a["number"] for a in mend("alias", "list", "--json").json}
    assert names == {"production": 0, "candidate": 0}
    assert mend("alias", "set", "canary", "0").code == 0
    assert mend("alias", "protect", "production").code == 0
    assert mend("history", "--json").json
    assert mend("lineage", "--json").json[0]["version"]["number"] == 0
    assert mend("gc", "--dry-run", "--json").json == {"would_collect": []}


def test_the_trail_is_verified_exported_and_proved(mend, ledger, tmp_path):
    mend("submit", "--prompt", "a is", "--target", "b")
    found = mend("audit", "verify", "--json").json
    assert found["events"] >= 3
    trail = tmp_path / "trail.jsonl"
    assert mend("audit", "export", trail).code == 0
    assert mend("audit", "verify", "--export", trail, "--json").json["root"] == found["root"]
    proof = tmp_path / "proof.json"
    proof.write_text(mend("audit", "prove", "2", "--json").out)
    assert mend("audit", "prove", "--check", proof).code == 0
    proof.write_text("{}")
    assert mend("audit", "prove", "--check", proof).code in (1, 2)
    trail.write_bytes(trail.read_bytes().replace(b"tester", b"nobody", 1))
    ran = mend("audit", "verify", "--export", trail)
    assert ran.code == 2
    assert mend("audit", "checkpoint", "--json").json
    assert mend("doctor", "--json").json["healthy"] is True


def test_suites_are_checked_before_they_are_kept(mend, ledger, tmp_path):
    file = tmp_path / "suite.jsonl"
    for bad in (
        "",
        "{",
        '{"id": "a", "kind": "unheard-of", "prompt": "x"}',
        '{"id": "a", "kind": "must_contain", "prompt": "x"}',
        '{"id": "", "kind": "protected", "prompt": "x"}',
        '{"id": "a", "kind": "protected", "prompt": "x"}\n' * 2,
    ):
        file.write_text(bad)
        assert mend("suite", "add", file).code == 2
    file.write_text('{"id": "a", "kind": "protected", "prompt": "Water is"}\n')
    assert mend("suite", "add", file, "--json").json == {"added": 1, "items": 1}
    assert mend("suite", "add", file).code == 2
    assert mend("suite", "list", "--json").json[0]["id"] == "a"
