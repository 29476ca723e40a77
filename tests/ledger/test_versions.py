"""Promotion, rollback, gates, retention: nothing unproven gets out, anything can be undone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from ledger import (
    aliases,
    batches,
    doctor,
    edits,
    gates,
    leases,
    planning,
    retention,
    sweep,
    versions,
)
from ledger.db import transaction
from ledger.errors import (
    AliasProtected,
    NoSuchVersion,
    RequestInvalid,
    Unproven,
    VersionCollected,
    WrongState,
)


def half(desk, outcome):
    """A version built and judged, its batch still open."""
    lease = desk.lease()
    claim = desk.claim(lease)
    desk.factor(claim.batch.id)
    done = desk.build(lease, claim.batch.id)
    desk.judge(done.version.id, outcome)
    return done.lease, claim.batch.id, done.version


def healthy(desk):
    assert desk.do(doctor.check, deep=True) == []


def test_failed_gate_quarantines_culprits_and_the_rest_goes_on(desk):
    ids = desk.submit_n(4)
    lease, batch, version = half(desk, "fail")
    with pytest.raises(Unproven, match="gate fail"):
        desk.promote(version.id)
    evidence = {ids[2]: {"reason": "broke 3 probes", "items": ["a", "b"]}}
    again = desk.do(versions.reject, lease, version.id, evidence, actor="w")
    assert again == [ids[0], ids[1], ids[3]]
    assert desk.do(edits.get, ids[2]).evidence["items"] == ["a", "b"]
    done = desk.build(lease, batch)
    desk.judge(done.version.id)
    desk.promote(done.version.id)
    desk.do(batches.finish, done.lease, batch, actor="w")
    assert [desk.state(one) for one in ids] == ["live", "live", "quarantined", "live"]
    assert (done.version.number, done.version.parent_number) == (2, 0)
    healthy(desk)


def test_worker_lost_after_a_failed_gate(desk):
    ids = desk.submit_n(2)
    half(desk, "fail")
    desk.expire_lease()
    desk.do(sweep.sweep)
    assert {desk.state(one) for one in ids} == {"queued"}
    healthy(desk)


def test_inconclusive_waits_for_a_person(desk):
    one = desk.submit().edit_id
    lease, batch, version = half(desk, "inconclusive")
    desk.do(batches.finish, lease, batch, actor="w")
    desk.do(leases.release, lease)
    healthy(desk)
    with pytest.raises(RequestInvalid):
        desk.do(gates.override, version.id, actor="boss", reason=" ")
    with pytest.raises(WrongState, match="someone else"):
        desk.do(gates.override, version.id, actor="ann", reason="my own edit is fine")
    over = desk.do(gates.override, version.id, actor="boss", reason="looked at all 40")
    assert over.proven
    desk.promote(version.id)
    assert desk.state(one) == "live"
    two = desk.submit("Fact is", "T").edit_id
    lease, batch, version = half(desk, "inconclusive")
    desk.do(batches.finish, lease, batch, actor="w")
    desk.do(gates.decline, version.id, actor="boss", reason="no")
    assert desk.state(two) == "quarantined"
    healthy(desk)


def test_protected_alias_needs_a_second_person(desk):
    desk.submit()
    version = desk.round(promote=False)
    desk.do(aliases.protect, desk.model_id, "production", True, actor="op", reason="audit")
    for approver in (None, "op"):
        with pytest.raises(AliasProtected):
            desk.promote(version.id, approved_by=approver)
    desk.promote(version.id, approved_by="boss")
    move = desk.do(aliases.history, desk.model_id, "production")[0]
    assert (move.from_number, move.to_number, move.approved_by) == (0, 1, "boss")
    for approver in (None, "op"):
        with pytest.raises(AliasProtected, match="not any more"):
            desk.do(
                aliases.protect,
                desk.model_id,
                "production",
                False,
                actor="op",
                reason="in the way",
                approved_by=approver,
            )
    with pytest.raises(RequestInvalid):
        desk.do(aliases.move, desk.model_id, "Base!", version.id, actor="op", reason="x")
    desk.do(aliases.move, desk.model_id, "staging", version.id, actor="op", reason="x")
    assert desk.do(versions.find, desk.model_id, "staging").number == 1
    assert desk.do(versions.find, desk.model_id, "previous").number == 0
    with pytest.raises(NoSuchVersion, match="versions 0 to 1"):
        desk.do(versions.find, desk.model_id, "17")
    healthy(desk)


def test_revert_gives_the_digest_of_the_remaining_set(desk):
    a = desk.submit("Fact a is", "A").edit_id
    first = desk.round()
    b = desk.submit("Fact b is", "B").edit_id
    desk.round()
    lease = desk.lease()
    done = desk.build(lease, remove_edits=[b])
    assert done.version.digest == first.digest
    desk.judge(done.version.id)
    desk.promote(done.version.id)
    assert [desk.state(a), desk.state(b)] == ["live", "reverted"]
    with pytest.raises(WrongState, match="nothing to revert"):
        desk.do(planning.plan, done.lease, remove_edits=[b])
    healthy(desk)


def test_retention_keeps_what_is_needed(desk):
    made = []
    for number in range(6):
        desk.submit(f"Fact {number} is", "T")
        made.append(desk.round())
    desk.do(retention.hold, made[1].id, actor="legal", reason="case 7")
    free = desk.do(retention.collectable, desk.model_id, keep_last=1, keep_moves=2)
    assert [one.number for one in free] == [1, 3, 4]
    with pytest.raises(WrongState, match="needed"):
        desk.do(retention.mark_collected, made[5].id, actor="gc")
    desk.do(retention.mark_collected, made[2].id, actor="gc")
    with pytest.raises(VersionCollected, match="kept version"):
        desk.do(aliases.rollback, desk.model_id, to_version_id=made[2].id, actor="op", reason="x")
    assert made[2].path not in desk.do(retention.needed_paths)
    with pytest.raises(VersionCollected):
        desk.do(retention.hold, made[2].id, actor="legal", reason="case 8")
    healthy(desk)


def test_all_that_is_listed_as_collectable_can_be_collected(desk):
    desk.submit("Fact 0 is", "T")
    desk.round()
    desk.submit("Fact 1 is", "T")
    *_, failed = half(desk, "fail")
    listed = desk.do(retention.collectable, desk.model_id, keep_last=0)
    assert [one.number for one in listed] == [failed.number]
    desk.do(retention.mark_collected, failed.id, actor="gc")
    assert desk.do(versions.get, failed.id).collected_at is not None


@pytest.mark.parametrize("wish", ["alias", "hold"])
def test_a_version_being_collected_is_not_taken_at_the_same_moment(desk, wish):
    desk.submit("Fact 0 is", "T")
    version = desk.round(promote=False)
    desk.do(
        aliases.move,
        desk.model_id,
        "candidate",
        desk.do(versions.find, desk.model_id, 0).id,
        actor="op",
        reason="free it",
    )

    def ask():
        if wish == "hold":
            return desk.do(retention.hold, version.id, actor="legal", reason="case 9")
        return desk.do(
            aliases.move, desk.model_id, "staging", version.id, actor="op", reason="look"
        )

    with ThreadPoolExecutor(1) as pool:
        with transaction(desk.engine) as conn:
            retention.mark_collected(conn, version.id, actor="gc")
            asked = pool.submit(ask)
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            while not asked.done() and not desk.sql(waiting)[0][0]:
                pass
        with pytest.raises(VersionCollected):
            asked.result()
    healthy(desk)


def test_a_proof_stands_only_as_long_as_the_parents(desk):
    made = []
    for number in range(3):
        desk.submit(f"Fact {number} is", "T")
        made.append(desk.round())
    first, second, third = made
    with pytest.raises(WrongState, match="roll back"):
        desk.do(gates.withdraw, second.id, actor="boss", reason="the suite was wrong")
    desk.do(aliases.rollback, desk.model_id, to_version_id=first.id, actor="op", reason="odd")
    with pytest.raises(RequestInvalid):
        desk.do(gates.withdraw, second.id, actor="boss", reason=" ")
    assert not desk.do(gates.withdraw, second.id, actor="boss", reason="the suite was wrong").proven
    # The second lost its proof; the third was judged against the second.
    with pytest.raises(Unproven, match="withdrawn"):
        desk.promote(second.id)
    with pytest.raises(Unproven, match=f"version {second.number}"):
        desk.promote(third.id)
    with pytest.raises(Unproven):
        desk.do(aliases.move, desk.model_id, "candidate", third.id, actor="op", reason="x")
    with pytest.raises(Unproven):
        desk.do(
            aliases.rollback, desk.model_id, to_version_id=third.id, actor="op", reason="forward"
        )
    with pytest.raises(WrongState):
        desk.do(gates.withdraw, second.id, actor="boss", reason="again")
    # The line goes on from what stands.
    desk.submit("Fact 7 is", "T")
    fourth = desk.round()
    assert fourth.parent_number == first.number
    desk.do(aliases.rollback, desk.model_id, actor="op", reason="and back")
    healthy(desk)


def test_each_rollback_goes_further_back_and_says_where_the_line_begins(desk):
    made = []
    for number in range(3):
        desk.submit(f"Fact {number} is", "T")
        made.append(desk.round())

    def back(to=None):
        move = desk.do(
            aliases.rollback,
            desk.model_id,
            to_version_id=None if to is None else to.id,
            actor="op",
            reason="odd",
        )
        return move.to_number

    assert [back(), back()] == [2, 1]
    # Promoted twice, the same version is two steps of the line; no step is gone forth again.
    desk.promote(made[2].id)
    desk.promote(made[0].id)
    assert desk.do(versions.find, desk.model_id, "previous").number == 3
    assert [back(), back(), back()] == [3, 1, 0]
    for ask in (back, lambda: desk.do(versions.find, desk.model_id, "previous")):
        with pytest.raises(NoSuchVersion, match="first version, 0"):
            ask()
    # A rollback to a version outside the line is a step forward in it.
    assert back(made[1]) == 2
    assert back() == 0
    healthy(desk)


def test_production_that_never_moved_has_nothing_before_it(desk):
    with pytest.raises(NoSuchVersion, match="never another version"):
        desk.do(aliases.rollback, desk.model_id, actor="op", reason="odd")
