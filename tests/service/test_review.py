"""Several edits decided at once."""

import pytest

from ledger import audit, models, queue
from service import pausing, review
from service.errors import UserError


@pytest.fixture
def desk(new_desk):
    return new_desk(approval=True)


def decide(desk, verb, *words, **options):
    options = {"model": None, "actor": "boss", "reason": "seen"} | options
    return desk.do(review.decide, verb, list(words), **options)


def test_a_range_goes_on_at_once_and_leaves_the_rest_as_it_is(desk):
    ids = desk.submit_n(6)
    decide(desk, review.REJECT, str(ids[2]))
    told = decide(desk, review.APPROVE, f"{ids[0]}-{ids[3]}", str(ids[5]))
    assert [edit.id for edit in told.done] == [ids[0], ids[1], ids[3], ids[5]]
    assert not told.failed
    assert [desk.state(one) for one in ids] == [
        "queued", "queued", "rejected", "queued", "awaiting_approval", "queued",
    ]  # fmt: skip
    assert len(desk.claim(desk.lease()).edits) == 4


def test_one_that_fails_is_told_and_the_others_go_on(desk):
    ids = desk.submit_n(2)
    mine = desk.submit("Mine is", "M", actor="boss").edit_id
    told = decide(desk, review.APPROVE, *map(str, [*ids, mine, 999]))
    assert [edit.id for edit in told.done] == ids
    assert "someone else must approve" in told.failed[mine]
    assert "no edit 999" in told.failed[999]
    events = desk.do(audit.events, kinds=["edit.approved"])
    assert [event.subject for event in events] == [f"edit:{one}" for one in ids]


def test_all_means_those_of_the_model_that_wait(desk, new_desk):
    ids = desk.submit_n(3)
    told = decide(desk, review.APPROVE, everything=True)
    assert [edit.id for edit in told.done] == ids
    with pytest.raises(UserError, match="no edit of demo is awaiting_approval"):
        decide(desk, review.APPROVE, everything=True)
    new_desk(name="other", approval=True).submit_n(1)
    with pytest.raises(UserError, match="several models"):
        decide(desk, review.APPROVE, everything=True)
    assert len(decide(desk, review.APPROVE, everything=True, model="other").done) == 1


def test_an_approval_names_the_live_edit_it_contradicts(desk):
    old = desk.submit("The king of Avaria is", "Otto").edit_id
    decide(desk, review.APPROVE, str(old))
    desk.round()
    new = desk.submit("The king of Avaria is", "Ivo").edit_id
    plain = desk.submit("Fact is", "T").edit_id
    told = decide(desk, review.APPROVE, f"{new}-{plain}")
    assert {one: other.id for one, other in told.contradicts.items()} == {new: old}
    assert told.contradicts[new].target == "Otto"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "give ids"),
        (("twelve",), "'twelve' is no edit"),
        (("3-",), "'3-' is no edit"),
        (("9-3",), "write 3-9"),
        (("3-9",), "no edit of 3-9 of demo is awaiting_approval"),
    ],
)
def test_what_names_no_edit_is_one_clear_sentence(desk, words, says):
    with pytest.raises(UserError, match=says):
        decide(desk, review.APPROVE, *words)


def test_cancel_and_redrive_take_ranges(desk):
    ids = desk.submit_n(4)
    every = f"{ids[0]}-{ids[-1]}"
    decide(desk, review.APPROVE, every)
    lease = desk.lease()
    batch = desk.claim(lease, limit=2).batch.id
    hopeless = dict.fromkeys(ids[:2], "too long")
    desk.do(queue.fail, lease, batch, hopeless, actor="w")
    assert [desk.state(one) for one in ids] == ["failed", "failed", "queued", "queued"]
    assert len(decide(desk, review.REDRIVE, every).done) == 2
    assert {desk.state(one) for one in ids} == {"queued"}
    assert len(decide(desk, review.CANCEL, every).done) == 4


def test_pausing_says_what_waits(desk):
    ids = desk.submit_n(3)
    decide(desk, review.APPROVE, *map(str, ids[:2]))
    model = desk.do(models.get, desk.model_id)
    told = desk.do(pausing.pause, model, actor="op", reason="freeze")
    assert (told.queued, told.awaiting_approval, told.in_work) == (2, 1, 0)
    assert desk.do(models.get, desk.model_id).paused
    assert desk.do(pausing.resume, model, actor="op", reason="go on") == told
