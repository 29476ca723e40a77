"""Leases, fences, and what becomes of a vanished worker's edits."""

from __future__ import annotations

from uuid import uuid4

import pytest

from ledger import (
    aliases,
    batches,
    chunks,
    doctor,
    edits,
    leases,
    models,
    queue,
    sweep,
    versions,
    workers,
)
from ledger.errors import BatchChanged, StaleFence, StaleParent, WrongState
from ledger.records import FactorRecord


def test_one_holder_and_a_growing_fence(desk):
    first = desk.lease()
    assert desk.lease(worker=uuid4()) is None
    again = desk.lease()
    assert again.fence > first.fence
    with pytest.raises(StaleFence):
        desk.do(leases.check, first)
    renewed = desk.do(leases.renew, again)
    assert renewed.until >= again.until
    assert desk.do(leases.release, again)
    assert not desk.do(leases.release, again)


def test_two_workers_with_one_name(desk):
    a = desk.do(workers.register, name="w", host="h", pid=1)
    b = desk.do(workers.register, name="w", host="h", pid=1)
    assert a.instance != b.instance
    lease = desk.lease(worker=a.instance)
    assert desk.lease(worker=b.instance) is None
    assert desk.do(workers.heartbeat, a.instance, "busy")
    assert not desk.do(workers.heartbeat, uuid4(), "busy")
    assert [w.alive for w in desk.do(workers.list_workers)] == [True, True]
    desk.do(leases.release, lease)


def test_stale_commit_changes_nothing(desk):
    desk.submit_n(3)
    old = desk.lease()
    claim = desk.claim(old)
    desk.factor(claim.batch.id)
    draft = desk.draft(old, claim.batch.id)
    desk.expire_lease()
    with pytest.raises(StaleFence, match="nothing was changed"):
        desk.do(versions.commit, old, draft, actor="w")
    new = desk.lease(worker=uuid4())
    with pytest.raises(StaleFence):
        desk.do(versions.commit, old, draft, actor="w")
    assert len(desk.do(versions.list_versions, desk.model_id)) == 1
    assert desk.do(batches.get, claim.batch.id).state == "lost"
    desk.do(leases.release, new)
    assert desk.do(doctor.check, deep=True) == []


def test_a_fence_makes_one_version(desk):
    desk.submit_n(2)
    lease = desk.lease()
    claim = desk.claim(lease)
    desk.factor(claim.batch.id)
    draft = desk.draft(lease, claim.batch.id)
    done = desk.do(versions.commit, lease, draft, actor="w")
    assert done.lease.fence == lease.fence + 1
    with pytest.raises(StaleFence):
        desk.do(versions.commit, lease, draft, actor="w")
    assert desk.do(leases.renew, lease).fence == done.lease.fence


def test_cancelled_edit_and_moved_candidate_ask_for_a_new_plan(desk):
    desk.round() if desk.submit("Fact z is", "T") else None
    ids = desk.submit_n(2)
    lease = desk.lease()
    claim = desk.claim(lease)
    desk.factor(claim.batch.id)
    draft = desk.draft(lease, claim.batch.id)
    desk.do(edits.cancel, ids[0], actor="ann", reason="typo")
    with pytest.raises(BatchChanged):
        desk.do(versions.commit, lease, draft, actor="w")
    draft = desk.draft(lease, claim.batch.id)
    desk.do(aliases.rollback, desk.model_id, actor="op", reason="no")
    with pytest.raises(StaleParent):
        desk.do(versions.commit, lease, draft, actor="w")
    done = desk.build(lease, claim.batch.id)
    assert done.version.parent_number == 0
    assert [m.edit_id for m in desk.do(versions.live_set, done.version.id)] == [ids[1]]


def test_poison_is_found_by_splitting_and_the_rest_goes_on(new_desk):
    desk = new_desk(max_attempts=2)
    ids = desk.submit_n(8)
    poison = ids[5]
    for _ in range(40):
        lease = desk.lease(worker=uuid4())
        claim = desk.claim(lease)
        if claim is None:
            desk.do(leases.release, lease)
            break
        if poison in [one.id for one in claim.edits]:
            desk.expire_lease()  # this worker died
            desk.do(sweep.sweep)
            continue
        desk.factor(claim.batch.id)
        done = desk.build(lease, claim.batch.id)
        desk.judge(done.version.id)
        desk.promote(done.version.id)
        desk.do(batches.finish, done.lease, claim.batch.id, actor="w")
        desk.do(leases.release, done.lease)
    states = {one: desk.state(one) for one in ids}
    assert states.pop(poison) == "failed"
    assert set(states.values()) == {"live"}
    assert desk.do(edits.redrive_all, desk.model_id, actor="op", reason="fixed") == [poison]
    assert desk.do(doctor.check, deep=True) == []


def test_graceful_stop_returns_the_claim_uncounted(desk):
    ids = desk.submit_n(3)
    lease = desk.lease()
    claim = desk.claim(lease)
    newer = desk.submit("Fact 0 is", "newer").edit_id
    desk.do(queue.return_claim, lease, claim.batch.id, actor="w", reason="SIGTERM")
    desk.do(leases.release, lease)
    assert desk.state(ids[0]) == "superseded"
    assert {desk.state(one) for one in (*ids[1:], newer)} == {"queued"}
    assert desk.do(edits.get, ids[1]).attempts == 0
    assert desk.do(doctor.check, deep=True) == []


def test_retry_backs_off_and_ends(new_desk):
    desk = new_desk(max_attempts=2)
    one = desk.submit().edit_id
    for expected in ("submitted", "failed"):
        lease = desk.lease()
        claim = desk.claim(lease)
        state = desk.do(queue.retry, lease, claim.batch.id, one, error="odd", actor="w")
        assert state == expected
        desk.do(batches.finish, lease, claim.batch.id, actor="w")
        desk.do(leases.release, lease)
        desk.sql("UPDATE edits SET not_before = clock_timestamp()")
    assert desk.do(edits.get, one).error == "odd"


def test_a_version_being_judged_survives_its_worker(desk):
    desk.submit_n(2)
    lease = desk.lease()
    claim = desk.claim(lease)
    desk.factor(claim.batch.id)
    version = desk.build(lease, claim.batch.id).version
    desk.expire_lease()
    swept = desk.do(sweep.sweep)
    assert (swept.leases, swept.ready) == (1, (desk.model_id,))
    other = desk.lease(worker=uuid4())
    assert [v.id for v in desk.do(versions.pending, desk.model_id)] == [version.id]
    with pytest.raises(WrongState, match="still open"):
        desk.claim(other)
    desk.judge(version.id)
    desk.do(batches.finish, other, claim.batch.id, actor="w")
    desk.do(leases.release, other)
    assert desk.do(doctor.check, deep=True) == []


def test_pause_and_priority(desk):
    low, high = desk.submit_n(1)[0], desk.submit("Fact h is", "T", priority=5).edit_id
    desk.do(models.pause, desk.model_id, actor="op", reason="night")
    lease = desk.lease()
    assert desk.claim(lease) is None
    assert desk.do(queue.ready) == []
    desk.do(models.resume, desk.model_id, actor="op", reason="day")
    assert [e.id for e in desk.claim(lease, limit=2).edits] == [high, low]


def test_chunks_are_shared_and_a_poisonous_edit_does_not_hold_up_the_batch(desk):
    ids = desk.submit_n(6)
    lease = desk.lease()
    batch = desk.claim(lease).batch
    one, two = uuid4(), uuid4()
    a = desk.do(chunks.take, one, limit=2)
    b = desk.do(chunks.take, two, limit=4)
    assert not {e.id for e in a.edits} & {e.id for e in b.edits}
    assert desk.do(chunks.take, uuid4()) is None
    made = [FactorRecord(e.id, f"sha256:f{e.id}") for e in b.edits]
    assert desk.do(chunks.record, b, made) == 4
    for _ in range(20):  # the first edit kills whoever computes it
        desk.sql("UPDATE batch_edits SET until = now() - interval '1 hour' WHERE until IS NOT NULL")
        chunk = desk.do(chunks.take, two, limit=2)
        if chunk is None:
            break
        if ids[0] in [e.id for e in chunk.edits]:
            continue
        desk.do(chunks.record, chunk, [FactorRecord(e.id, f"sha256:f{e.id}") for e in chunk.edits])
    with pytest.raises(StaleFence):
        desk.do(chunks.record, a, [FactorRecord(ids[0], "sha256:late")])
    progress = desk.do(chunks.progress, batch.id)
    assert (progress.factored, progress.failed, progress.pending) == (5, 1, 0)
    assert "died" in desk.do(batches.problems, batch.id)[ids[0]]
