"""`mend submit --wait`: each way it can end, in words and by its exit code."""

from __future__ import annotations

import pytest

from ledger import models
from ledger.db import transaction
from service import waiting
from tests.workers import tiny
from tests.workers.tiny import GOLDEN, GUARDED, POISON
from workers import pipeline


@pytest.fixture
def settled(mend, make_service, inside, monkeypatch):
    """Submits facts, lets a worker decide them, and asks again with --wait: the same keys."""

    def run(facts, *options, **service_options):
        service = make_service(**service_options)
        monkeypatch.setenv("DATABASE_URL", service.url)
        monkeypatch.setenv("COLUMNS", "80")
        for number, fact in enumerate(facts):
            service.submit([fact], idempotency_key=f"k{number}")
        pipeline.drain(inside(service))
        fact = facts[0]
        asked = ["submit", "--prompt", fact.prompt, "--target", fact.target, "--key", "k0"]
        asked += ["--subject", fact.subject] if fact.subject else []
        asked += [word for one in fact.paraphrases for word in ("--paraphrase", one)]
        asked += [word for one in fact.locality for word in ("--locality", one.prompt)]
        return mend(*asked, "--wait", *options)

    return run


def test_live_edits_are_told_in_one_screen_and_end_well(settled):
    fact = tiny.facts(1)[0]
    ran = settled([fact])
    assert ran.code == 0, ran.err
    for words in ("Edit 1 is live in version 1", fact.target, "paraphrase", "neighbour", "Other"):
        assert words in ran.out
    assert all(len(line) <= 80 for line in ran.out.splitlines())
    assert len(ran.out.splitlines()) <= 24


def test_a_quarantined_edit_ends_badly_with_the_reason_and_what_it_broke(settled):
    ran = settled([POISON], settings={"suite": [GOLDEN]}, policy=GUARDED)
    assert ran.code == 1
    for words in ("quarantined", "because", "1 of 1 broke", "Next: mend show 1"):
        assert words in ran.out


def test_json_is_one_document_with_the_summary(settled):
    ran = settled([tiny.facts(1)[0]], "--json")
    assert ran.code == 0, ran.err
    assert ran.json["summary"]["edits"][0]["state"] == "live"
    assert ran.json["summary"]["others_asked"] == 1


FACT = ("submit", "--prompt", "The sky is", "--target", "green")


def test_an_edit_that_waits_for_approval_says_who_must_decide(mend, ledger):
    with transaction(ledger) as connection:
        models.configure(connection, 1, actor="op", reason="r", approval=True)
    ran = mend(*FACT, "--wait")
    assert ran.code == 1
    assert "approval" in ran.out
    assert "mend approve 1" in ran.out
    assert "No version was built" in ran.out
    assert "approval" in mend("edits").out


def test_without_a_worker_the_ids_are_told_and_then_that_nothing_will_happen(
    mend, ledger, monkeypatch
):
    monkeypatch.setattr(waiting, "WORKER_GONE_SECONDS", -1.0)
    ran = mend(*FACT, "--wait")
    assert ran.code == 2
    assert "1 accepted for demo: edit 1." in ran.out
    assert "no worker is alive" in ran.err


def test_a_paused_model_or_one_with_a_problem_is_said_wherever_one_looks(mend, ledger, monkeypatch):
    with transaction(ledger) as connection:
        models.set_problem(connection, 1, "no folder at /gone")
    mend(*FACT)
    for command in ("status", "doctor", "edits"):
        ran = mend(command)
        assert "no folder at /gone" in ran.out + ran.err, command
    with transaction(ledger) as connection:
        models.pause(connection, 1, actor="op", reason="freeze")
    ran = mend("submit", "--prompt", "The sea is", "--target", "red", "--wait")
    assert ran.code == 2
    assert "model demo is paused" in ran.err


def test_ctrl_c_says_that_the_work_goes_on(mend, ledger, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(waiting, "for_edits", interrupted)
    ran = mend(*FACT, "--wait")
    assert ran.code == 130
    assert "edit 1" in ran.out
    assert "The work goes on" in ran.err
