"""An edit's whole life, from submission to live and back."""

from __future__ import annotations

import hashlib

from ledger import aliases, audit, doctor, edits, versions


def test_edit_goes_live_and_back(desk):
    first = desk.submit()
    assert (first.state, first.duplicate) == ("queued", False)
    one = desk.round()
    assert one.number == 1
    assert one.gate == "pass"
    assert desk.state(first.edit_id) == "live"
    second = desk.submit("The king of Freedonia is", "Rufus")
    two = desk.round()
    assert (two.number, two.parent_number, two.edit_count) == (2, 1, 2)
    desk.do(aliases.rollback, desk.model_id, actor="op", reason="oops")
    assert desk.state(first.edit_id) == "live"
    assert desk.state(second.edit_id) == "reverted"
    assert desk.do(aliases.get, desk.model_id, "candidate").number == 1
    desk.do(aliases.rollback, desk.model_id, actor="op", reason="oops again")
    assert desk.do(aliases.get, desk.model_id, "production").number == 0
    assert desk.state(first.edit_id) == "reverted"
    desk.promote(two.id)
    assert desk.state(second.edit_id) == "live"
    verified = desk.do(audit.verify)
    assert verified.events > 10
    kinds = [e.kind for e in desk.do(edits.history, first.edit_id)]
    assert kinds[:3] == ["edit.submitted", "batch.claimed", "version.committed"]


def test_what_is_built_after_an_undone_rollback_holds_all_that_is_live(desk):
    first = desk.submit("Fact a is", "A").edit_id
    one = desk.round()
    second = desk.submit("Fact b is", "B").edit_id
    two = desk.round()
    desk.do(aliases.rollback, desk.model_id, to_version_id=one.id, actor="op", reason="odd")
    desk.promote(two.id)
    third = desk.submit("Fact c is", "C").edit_id
    made = desk.round()
    assert made.parent_number == two.number
    assert {m.edit_id for m in desk.do(versions.live_set, made.id)} == {first, second, third}
    assert {desk.state(i) for i in (first, second, third)} == {"live"}
    assert desk.do(doctor.check, deep=True) == []


def test_newer_edit_of_a_fact_replaces_the_older_in_the_version(desk):
    old = desk.submit(target="Glorbia").edit_id
    desk.round()
    new = desk.submit(target="Florbia").edit_id
    version = desk.round()
    assert version.edit_count == 1
    assert desk.state(old) == "superseded"
    assert desk.state(new) == "live"
    assert desk.do(edits.get, old).superseded_by == new
    adds, removes = desk.do(versions.changes, version.id)
    assert [m.edit_id for m in adds] == [new]
    assert [m.edit_id for m in removes] == [old]
    desk.do(aliases.rollback, desk.model_id, actor="op", reason="no")
    assert desk.state(old) == "live"
    assert desk.state(new) == "reverted"


def test_doctor_finds_nothing_wrong_with_a_healthy_ledger(desk):
    desk.submit()
    desk.round()
    desk.submit(target="Florbia")
    desk.round()
    desk.submit("The king is", "Rufus")
    desk.do(aliases.rollback, desk.model_id, actor="op", reason="no")
    assert desk.do(doctor.check, deep=True, recompute=digest_for) == []


def digest_for(version, members):
    if version.number == 0:
        return version.digest
    words = "\n".join(sorted(m.factor_digest for m in members))
    return "sha256:" + hashlib.sha256(words.encode()).hexdigest()
