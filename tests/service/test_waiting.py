"""Waiting for edits and what came of them, with a worker in this process."""

from __future__ import annotations

import shutil

import pytest

from ledger import batches, chunks, edits, leases, models, queue, workers
from ledger.states import EditState
from service import summary, waiting
from service.errors import UserError
from service.session import Session
from service.summary import NextStep
from service.waiting import Hindrance
from tests.workers import tiny
from tests.workers.tiny import GOLDEN, GUARDED, POISON
from workers import pipeline


def progress(service, ids):
    return service.do(lambda c: waiting.progress(c, edits.get_many(c, ids)))


def came(service, ids):
    return service.do(lambda c: summary.summarise(c, ids))


def test_edits_that_went_live_are_told_with_what_was_asked(make_service, inside):
    service = make_service()
    context = inside(service)
    ids = service.submit(tiny.facts(3))
    assert progress(service, ids).counts == {"queued": 3}
    pipeline.drain(context)
    assert progress(service, ids).settled
    told = came(service, ids)
    assert told.all_live
    assert told.versions == (1,)
    assert told.others_asked == 3
    for edit, fact in zip(told.edits, tiny.facts(3), strict=True):
        assert edit.next is NextStep.NOTHING
        assert edit.own.good
        assert edit.own.after.startswith(fact.target)
        assert not edit.own.before.startswith(fact.target)
        assert [a.prompt for a in edit.paraphrases] == list(fact.paraphrases)
        assert [a.prompt for a in edit.neighbours] == [fact.locality[0].prompt]
    broke = {a.prompt for e in told.edits for a in e.neighbours if not a.good}
    assert {a.prompt for a in told.broken} == broke


def test_nothing_else_asked_is_not_nothing_broke(make_service, inside):
    service = make_service()
    context = inside(service)
    bare = tiny.facts(1)[0]
    [one] = service.submit([type(bare)(id="1", prompt=bare.prompt, target=bare.target)])
    pipeline.drain(context)
    told = came(service, [one])
    assert told.all_live
    assert (told.others_asked, told.broken) == (0, ())


def test_an_edit_that_was_set_aside_says_why_and_what_it_broke(make_service, inside):
    service = make_service(settings={"suite": [GOLDEN]}, policy=GUARDED)
    context = inside(service)
    [bad] = service.submit([POISON])
    pipeline.drain(context)
    told = came(service, [bad])
    [edit] = told.edits
    assert edit.state is EditState.QUARANTINED
    assert edit.why
    assert edit.next is NextStep.LOOK
    assert not told.all_live
    assert [a.prompt for a in told.broken] == [GOLDEN["prompt"]]


def test_what_keeps_edits_waiting_is_named(make_service, inside):
    service = make_service()
    ids = service.submit(tiny.facts(2))
    assert Hindrance.NO_WORKER in progress(service, ids).hindrances
    context = inside(service)
    gone = service.source.with_name("elsewhere")
    shutil.move(service.source, gone)
    try:
        pipeline.drain(context)
    finally:
        shutil.move(gone, service.source)
    assert str(service.source) in progress(service, ids).hindrances[Hindrance.PROBLEM]
    service.do(lambda c: models.pause(c, service.model.id, actor="op", reason="freeze"))
    session = Session(service.engine, service.url, service.home)
    with pytest.raises(UserError, match=f"{service.model.name} is paused"):
        waiting.for_edits(session, ids, 5)


def test_a_batch_in_work_is_told_with_stage_and_place_in_the_queue(make_service):
    service = make_service()
    ids = service.submit(tiny.facts(3))
    assert progress(service, ids[2:]).ahead == 2

    def claim(conn):
        worker = workers.register(conn, name="w", host="h", pid=1).instance
        lease = leases.take(conn, service.model.id, worker, ttl=60)
        found = queue.claim(conn, lease, limit=2)
        batches.tell(conn, found.batch.id, "factoring", 0, 2)
        chunks.take(conn, worker, batch_id=found.batch.id)
        return found.batch.id

    batch = service.do(claim)
    now = progress(service, ids)
    assert (now.batch, now.stage, now.done, now.of) == (batch, "factoring", 0, 2)
    service.do(lambda c: batches.tell(c, batch, "probing", 120, 512))
    now = progress(service, ids)
    assert (now.stage, now.done, now.of) == ("probing", 120, 512)
    assert now.seconds_left >= 0
