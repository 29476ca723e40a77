"""Accepting requests: keys, facts, times, approval, one by one and in bulk."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from ledger import audit, doctor, edits, queue
from ledger.db import transaction
from ledger.errors import KeyReused, NoSuchEdit, NoSuchModel, RequestInvalid, WrongState
from ledger.requests import EditRequest

PAST = datetime(2020, 1, 1, tzinfo=UTC)
FUTURE = datetime.now(UTC) + timedelta(days=30)


def many(desk, *requests, actor="ann"):
    return desk.do(edits.submit_many, desk.model_id, requests, actor=actor)


def test_a_known_key_returns_the_first(desk):
    first = desk.submit(idempotency_key="k")
    again = desk.submit(idempotency_key="k")
    assert again.duplicate
    assert again.edit_id == first.edit_id
    assert len(desk.do(edits.list_edits)) == 1


def test_a_key_names_one_request(desk):
    desk.submit(idempotency_key="k")
    with pytest.raises(KeyReused, match="key k was used for edit 1 with other content"):
        desk.submit("Something else", "entirely", idempotency_key="k")
    assert len(desk.do(edits.list_edits)) == 1


def test_the_same_request_again_adds_nothing_unless_something_else_was_asked_since(desk):
    first = desk.submit(target="Glorbia")
    again = desk.submit(target="Glorbia", source="elsewhere")
    assert (again.duplicate, again.edit_id) == (True, first.edit_id)
    bulk = many(desk, *(EditRequest(prompt=desk_prompt(desk), target="Glorbia") for _ in range(2)))
    assert (bulk.accepted, bulk.duplicates) == (0, 2)
    desk.submit(target="Florbia")
    back = desk.submit(target="Glorbia")
    assert not back.duplicate
    assert desk.state(back.edit_id) == "queued"


def test_ids_follow_the_order_of_the_requests(desk):
    desk.submit("Fact 1 is", "old")
    done = many(desk, *(EditRequest(prompt=f"Fact {n} is", target="new") for n in range(4)))
    assert list(done.edit_ids) == sorted(done.edit_ids)
    assert [desk.do(edits.get, i).prompt for i in done.edit_ids] == [
        f"Fact {n} is" for n in range(4)
    ]


@pytest.mark.parametrize("bulk", [False, True])
def test_what_was_set_aside_is_not_tried_again_by_being_sent_again(desk, bulk):
    first = desk.submit("Fact 9 is", "old").edit_id
    desk.do(edits.cancel, first, actor="ann", reason="typo")
    again = desk.submit("Fact 9 is", "old").edit_id
    assert again != first  # withdrawn on purpose, asked for on purpose
    lease = desk.lease()
    batch = desk.claim(lease).batch.id
    desk.do(queue.quarantine, lease, batch, {again: {"reason": "it broke"}}, actor="worker")
    assert desk.state(again) == "quarantined"
    request = EditRequest(prompt="Fact 9 is", target="old")
    if bulk:
        done = many(desk, request, EditRequest(prompt="Fact 8 is", target="new"))
        assert (done.accepted, done.duplicates, done.edit_ids[0]) == (1, 1, again)
    else:
        done = desk.do(edits.submit, desk.model_id, request, actor="ann")
        assert (done.duplicate, done.edit_id, done.state) == (True, again, "quarantined")


def test_another_person_does_not_replace_a_fact_by_naming_its_source(desk):
    desk.submit(target="Glorbia", source="wiki")
    request = EditRequest(prompt=desk_prompt(desk), target="Norbia", source="wiki")
    assert desk.do(edits.submit, desk.model_id, request, actor="bob").state == "awaiting_approval"


def test_two_named_sources_that_disagree_wait_for_a_person(desk):
    desk.submit(target="Glorbia", source="wiki")
    assert desk.submit(target="Norbia", source="crm").state == "awaiting_approval"


def desk_prompt(desk):
    return desk.do(edits.list_edits)[0].prompt


def test_a_person_corrects_what_is_their_own_however_it_came(desk):
    desk.submit(target="Glorbia", source="file:facts.csv")
    assert desk.submit(target="Florbia", source="cli").state == "queued"
    others = desk.do(
        edits.submit,
        desk.model_id,
        EditRequest(prompt=desk_prompt(desk), target="Norbia", source="cli"),
        actor="bob",
    )
    assert others.state == "awaiting_approval"


def test_newer_supersedes_waiting_and_contradiction_waits(desk):
    old = desk.submit(target="Glorbia")
    new = desk.submit(target="Florbia")
    assert new.superseded == (old.edit_id,)
    assert desk.state(old.edit_id) == "superseded"
    request = EditRequest(prompt=desk_prompt(desk), target="Norbia", source="wiki")
    rival = desk.do(edits.submit, desk.model_id, request, actor="bob")
    assert rival.state == "awaiting_approval"
    assert rival.contradicts == new.edit_id
    agreeing = desk.submit(target=" florbia ", source="wiki")
    assert agreeing.state == "queued"
    with pytest.raises(WrongState, match="someone else"):
        desk.do(edits.approve, rival.edit_id, actor="bob", reason="mine")
    desk.do(edits.approve, rival.edit_id, actor="ann", reason="checked")
    assert desk.state(rival.edit_id) == "queued"
    assert desk.state(agreeing.edit_id) == "superseded"


def test_bulk_stores_what_one_by_one_stores(desk):
    def told(place):
        return EditRequest(
            prompt=f'Tab\t, newline\n, \\N, "quote" {place} 雪 is',
            target="é\u0301 🌍",
            subject=None if place else "S",
            relation="r",
            paraphrases=('a "b"', "\\c"),
            locality=[("who?", None), ("what?", "that")],
            portability=[("so?", "yes")],
            reason=None,
            idempotency_key=f"k{place}",
            priority=-7,
            not_before=FUTURE,
            expires_at=FUTURE + timedelta(microseconds=1),
        )

    (bulk,) = desk.do(edits.submit_many, desk.model_id, [told(0)], actor="ann").edit_ids
    single = desk.do(edits.submit, desk.model_id, told(1), actor="ann").edit_id
    first, second = desk.do(edits.get_many, [bulk, single])
    own = {"id", "created_at", "updated_at", "content_digest", "fact_key", "idempotency_key"}
    for name in first.__slots__:
        if name not in own | {"prompt", "subject"}:
            assert getattr(first, name) == getattr(second, name), name
    assert first.prompt == told(0).prompt
    assert (first.fact_key, first.idempotency_key) == (told(0).fact_key, "k0")


def test_repeats_in_every_chunk_of_a_file(desk, monkeypatch):
    monkeypatch.setattr("ledger.bulk.CHUNK", 4)
    asked = [EditRequest(prompt=f"Fact {i // 2} is", target=f"T{i}") for i in range(14)]
    done = many(desk, *asked, actor="ann")
    assert (done.accepted, done.superseded) == (14, 7)
    states = [desk.state(one) for one in done.edit_ids]
    assert states == ["superseded", "queued"] * 7


def test_subject_and_relation_name_the_fact(desk):
    a = desk.submit("The capital of X is", "A", subject="X", relation="capital")
    b = desk.submit("X's capital city is", "B", subject="x ", relation="Capital")
    assert b.superseded == (a.edit_id,)


def test_times(desk):
    later = desk.submit(not_before=FUTURE)
    assert later.state == "submitted"
    assert desk.submit("Fact 1 is", "T", not_before=PAST).state == "queued"
    with pytest.raises(RequestInvalid, match="past"):
        desk.submit("Fact 2 is", "T", expires_at=PAST)
    dying = desk.submit("Fact 3 is", "T", expires_at=FUTURE).edit_id
    desk.sql("UPDATE edits SET expires_at = clock_timestamp() WHERE id = :e", e=dying)
    desk.sql("UPDATE edits SET not_before = clock_timestamp() WHERE id = :e", e=later.edit_id)
    assert desk.do(queue.expire) == [dying]
    assert desk.do(queue.release_due) == [later.edit_id]
    assert desk.state(dying) == "cancelled"
    assert desk.do(doctor.check, deep=True) == []


def test_model_with_approval(new_desk):
    desk = new_desk(approval=True)
    one = desk.submit().edit_id
    two = desk.submit("Fact is", "T").edit_id
    assert desk.state(one) == "awaiting_approval"
    desk.do(edits.approve, one, actor="bob", reason="fine")
    desk.do(edits.reject, two, actor="bob", reason="wrong")
    assert [desk.state(one), desk.state(two)] == ["queued", "rejected"]
    with pytest.raises(WrongState):
        desk.do(edits.approve, two, actor="bob", reason="again")


def test_bulk_names_a_waiting_rival_where_everything_needs_approval(new_desk):
    desk = new_desk(approval=True)
    waiting = desk.submit("Fact 0 is", "old").edit_id
    desk.do(edits.approve, waiting, actor="bob", reason="fine")
    done = many(
        desk,
        EditRequest(prompt="Fact 0 is", target="other", source="wiki"),
        EditRequest(prompt="Fact 1 is", target="t"),
        actor="carl",
    )
    assert done.awaiting_approval == 2
    rival, plain = (desk.do(edits.history, one)[0] for one in done.edit_ids)
    assert rival.data["contradicts"] == waiting
    assert "contradicts" not in plain.data
    assert desk.state(waiting) == "queued"


def test_cancel_and_redrive(desk):
    one = desk.submit().edit_id
    desk.do(edits.cancel, one, actor="ann", reason="typo")
    assert desk.state(one) == "cancelled"
    with pytest.raises(WrongState):
        desk.do(edits.redrive, one, actor="ann", reason="no")
    with pytest.raises(NoSuchEdit, match="mend edits"):
        desk.do(edits.cancel, 999_999, actor="ann", reason="x")
    with pytest.raises(NoSuchModel):
        desk.do(edits.submit, 999, EditRequest(prompt="a", target="b"), actor="ann")


def test_bulk_same_rules_as_single(desk):
    desk.submit("Fact 0 is", "old", idempotency_key="k0")
    done = many(
        desk,
        EditRequest(prompt="Fact 0 is", target="new"),  # supersedes the waiting one
        EditRequest(prompt="Fact 1 is", target='a\tb\\n\n"é"', idempotency_key="k1"),
        EditRequest(prompt="Fact 1 is", target="c"),  # same fact, later in the file
        EditRequest(prompt="Fact 0 is", target="old", idempotency_key="k0"),  # duplicate
        EditRequest(prompt="Fact 2 is", target="t", paraphrases=("p\\q",), locality=("l",)),
    )
    assert (done.accepted, done.duplicates, done.superseded, done.awaiting_approval) == (4, 1, 2, 0)
    rival = EditRequest(prompt="Fact 0 is", target="other", source="wiki")
    assert many(desk, rival, actor="bob").awaiting_approval == 1
    found = desk.do(edits.get_many, done.edit_ids)
    texts = {one.prompt: one for one in found if one.state == "queued"}
    assert texts["Fact 0 is"].target == "new"
    assert texts["Fact 1 is"].target == "c"
    assert texts["Fact 2 is"].paraphrases == ("p\\q",)
    assert texts["Fact 2 is"].locality == (("l", None),)
    assert desk.do(edits.get, done.edit_ids[1]).target == 'a\tb\\n\n"é"'
    assert desk.do(doctor.check, deep=True) == []


def test_bulk_is_one_event_and_all_or_nothing(desk):
    before = desk.do(audit.verify).events
    requests = [EditRequest(prompt=f"Fact {i} is", target="t") for i in range(500)]
    done = many(desk, *requests)
    assert desk.do(audit.verify).events == before + 1
    event = desk.do(edits.history, done.edit_ids[250])[0]
    assert event.data["count"] == 500
    bad = EditRequest(prompt="Fact x is", target="t", expires_at=PAST)
    good = EditRequest(prompt="Fact y is", target="t")
    with pytest.raises(RequestInvalid):
        many(desk, good, bad)
    assert len(desk.do(edits.list_edits, limit=10_000)) == 500


def test_contents_are_fixed_and_edits_are_kept(desk):
    one = desk.submit().edit_id
    with transaction(desk.engine) as conn:
        for statement in (
            "UPDATE edits SET target = 'evil'",
            "DELETE FROM edits",
            "UPDATE edits SET state = 'live'",
        ):
            with pytest.raises(DBAPIError), conn.begin_nested():
                conn.execute(text(statement))
    desk.do(edits.cancel, one, actor="ann", reason="erase me")
    desk.do(edits.erase, one, actor="op", reason="GDPR")
    assert desk.do(edits.get, one).prompt == "(erased)"
    assert desk.do(doctor.check, deep=True) == []
