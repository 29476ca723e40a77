"""What a move of production changes is told beforehand, and is what then happens."""

import pytest

from ledger import aliases, audit, doctor, models, versions
from ledger.errors import AliasMoved, Unproven, WrongState
from service import promotion


def model_of(desk):
    return desk.do(models.get, desk.model_id)


def version(desk, number):
    return desk.do(versions.find, desk.model_id, number)


def back(desk, to=None):
    target = None if to is None else version(desk, to)
    return promotion.rollback(model_of(desk), target, actor="op", reason="look")


def forth(desk, to):
    return promotion.promotion(model_of(desk), version(desk, to), actor="op", reason="look")


def foresee(desk, move):
    return desk.do(promotion.foresee, model_of(desk), move)


def ids(changes):
    return [change.id for change in changes]


def line(desk):
    """Two edits live in version 1, two more live in version 2, one in the candidate 3."""
    first = desk.submit_n(2)
    desk.round()
    second = desk.submit_n(2, start=2)
    desk.round()
    waiting = desk.submit_n(1, start=4)
    desk.round(promote=False)
    return first, second, waiting


def test_a_rollback_tells_what_leaves_and_what_the_candidate_loses(desk):
    first, second, waiting = line(desk)
    before = desk.do(audit.last)
    told = foresee(desk, back(desk))
    assert (told.move.from_number, told.move.to_number) == (2, 1)
    assert (told.candidate.from_number, told.candidate.to_number) == (3, 1)
    assert ids(told.leaves) == second
    assert ids(told.reverted) == waiting
    assert not told.comes
    assert told.asks
    # Nothing was done, to the last event of the trail.
    assert desk.do(audit.last) == before
    assert version(desk, "production").number == 2
    assert {desk.state(one) for one in first + second} == {"live"}
    desk.do(back(desk), told.seen)
    assert {one: desk.state(one) for one in first} == dict.fromkeys(first, "live")
    for change in (*told.leaves, *told.reverted):
        assert desk.state(change.id) == change.after == "reverted"
    assert desk.do(doctor.check, deep=True) == []


def test_what_only_comes_is_not_asked_and_what_is_replaced_is_told_apart(desk):
    old = desk.submit("The king of Avaria is", "Otto").edit_id
    desk.round()
    new = desk.submit("The king of Avaria is", "Ivo").edit_id
    other = desk.submit("Fact is", "T").edit_id
    desk.round(promote=False)
    told = foresee(desk, forth(desk, 2))
    assert ids(told.comes) == [new, other]
    assert [(one.id, one.replaced_by) for one in told.replaced] == [(old, new)]
    assert not told.leaves
    assert not told.asks


def test_a_promotion_onto_another_line_tells_what_it_takes_away(desk):
    desk.submit_n(1)
    desk.round()
    desk.do(back(desk), {})
    other = desk.submit_n(2, start=5)
    desk.round()
    told = foresee(desk, forth(desk, 1))
    assert ids(told.leaves) == other
    assert told.asks


def test_a_decision_on_an_old_picture_is_refused(desk):
    first, second, _ = line(desk)
    told = foresee(desk, back(desk))
    desk.promote(version(desk, 3).id)
    with pytest.raises(AliasMoved, match="production moved from version 2 to version 3"):
        desk.do(back(desk), told.seen)
    assert {desk.state(one) for one in first + second} == {"live"}
    told = foresee(desk, back(desk, 1))
    desk.do(aliases.move, desk.model_id, "candidate", version(desk, 2).id, actor="op", reason="x")
    with pytest.raises(AliasMoved, match="candidate moved"):
        desk.do(back(desk, 1), told.seen)


def test_what_would_be_refused_is_refused_beforehand(desk):
    desk.submit()
    lease = desk.lease()
    claim = desk.claim(lease)
    desk.factor(claim.batch.id)
    desk.build(lease, claim.batch.id)
    with pytest.raises(Unproven):
        foresee(desk, forth(desk, 1))
    with pytest.raises(WrongState, match="already"):
        foresee(desk, forth(desk, 0))
