"""A hypothesis state machine: any order of calls keeps every invariant."""

from __future__ import annotations

import hashlib
from uuid import uuid4

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ledger import (
    aliases,
    batches,
    chunks,
    doctor,
    edits,
    gates,
    leases,
    planning,
    queue,
    sweep,
    versions,
)
from ledger.db import transaction
from ledger.errors import Conflict, KeyReused, NoSuchVersion
from ledger.records import FactorRecord, VersionDraft
from ledger.requests import EditRequest


def digest_of(members):
    words = "\n".join(sorted(one.factor_digest for one in members))
    return "sha256:" + hashlib.sha256(words.encode()).hexdigest()


def recompute(version, members):
    return version.digest if version.number == 0 else digest_of(members)


OUTCOMES = ["pass", "pass", "fail", "inconclusive"]


class QueueMachine(RuleBasedStateMachine):
    """One model, one worker at a time that may die at any point, people who interfere."""

    new_desk = None

    def __init__(self):
        super().__init__()
        self.desk = self.new_desk()  # a model of its own: one example must not see another's edits
        self.lease = self.batch = self.version = None
        self.accepted = self.kept()

    def kept(self):
        found = self.desk.do(edits.list_edits, self.desk.model_id, limit=100_000)
        return {one.id for one in found}

    def do(self, function, *args, **kwargs):
        """The call, or None where the ledger refuses it: refusals must change nothing."""
        try:
            return self.desk.do(function, *args, **kwargs)
        except (Conflict, NoSuchVersion):
            return None

    @rule(
        fact=st.integers(0, 5),
        answer=st.sampled_from("AB"),
        source=st.sampled_from(["x", "y"]),
        key=st.none() | st.integers(0, 3),
    )
    def submit(self, fact, answer, source, key):
        request = EditRequest(
            prompt=f"Fact {fact} is",
            target=answer,
            source=source,
            idempotency_key=None if key is None else f"k{key}",
        )
        try:
            done = self.desk.do(edits.submit, self.desk.model_id, request, actor="ann")
        except KeyReused:
            return  # the key names another request; nothing was added
        assert done.duplicate == (done.edit_id in self.accepted)
        self.accepted.add(done.edit_id)

    @rule(facts=st.lists(st.integers(0, 5), max_size=5))
    def submit_many(self, facts):
        requests = [EditRequest(prompt=f"Fact {one} is", target="B") for one in facts]
        done = self.desk.do(edits.submit_many, self.desk.model_id, requests, actor="ann")
        self.accepted |= set(done.edit_ids)

    @precondition(lambda self: self.accepted)
    @rule(
        data=st.data(),
        verb=st.sampled_from([edits.cancel, edits.approve, edits.reject, edits.redrive]),
    )
    def person(self, data, verb):
        one = data.draw(st.sampled_from(sorted(self.accepted)))
        self.do(verb, one, actor="bob", reason="because")

    @rule(dies=st.booleans())
    def take(self, dies):
        if dies:
            self.desk.expire_lease()
        taken = self.do(leases.take, self.desk.model_id, uuid4())
        if taken is not None:
            self.lease, self.batch, self.version = taken, None, None

    @precondition(lambda self: self.lease)
    @rule(limit=st.integers(1, 4))
    def claim(self, limit):
        claim = self.do(queue.claim, self.lease, limit=limit)
        if claim is not None:
            self.batch = claim.batch.id

    @precondition(lambda self: self.batch)
    @rule()
    def factor(self):
        chunk = self.do(chunks.take, uuid4(), batch_id=self.batch, limit=2)
        if chunk is not None:
            made = [FactorRecord(one.id, f"sha256:f{one.id}") for one in chunk.edits]
            self.do(chunks.record, chunk, made)

    @precondition(lambda self: self.batch)
    @rule()
    def commit(self):
        plan = self.do(planning.plan, self.lease, batch_id=self.batch)
        if plan is None:
            return
        members = {m.edit_id: m for m in self.desk.do(versions.live_set, plan.parent.id)}
        for one in plan.removes:
            del members[one.edit_id]
        members |= {m.edit_id: m for m in plan.adds}
        digest = digest_of(members.values())
        draft = VersionDraft(plan, digest, f"versions/{digest}", batch_id=self.batch)
        done = self.do(versions.commit, self.lease, draft, actor="w")
        if done is not None:
            self.lease, self.version = done.lease, done.version.id

    @precondition(lambda self: self.version)
    @rule(outcome=st.sampled_from(OUTCOMES), promote=st.booleans())
    def judge(self, outcome, promote):
        with_outcome = {
            "outcome": outcome,
            "policy_digest": "p",
            "suite_digest": "s",
            "checks": [],
            "scores": {},
            "actor": "w",
        }
        self.do(gates.record, self.version, **with_outcome)
        if outcome == "fail":
            adds, _ = self.desk.do(versions.changes, self.version)
            culprits = {adds[0].edit_id: {"reason": "bad"}} if adds else {}
            self.do(versions.reject, self.lease, self.version, culprits, actor="w")
        if promote:
            self.do(aliases.promote, self.desk.model_id, self.version, actor="w", reason="r")

    @precondition(lambda self: self.version)
    @rule(verb=st.sampled_from([gates.override, gates.decline]))
    def decide(self, verb):
        self.do(verb, self.version, actor="boss", reason="r")

    @rule()
    def rollback(self):
        self.do(aliases.rollback, self.desk.model_id, actor="op", reason="r")

    @precondition(lambda self: self.batch)
    @rule(verb=st.sampled_from(["finish", "return", "retry"]))
    def close(self, verb):
        if verb == "finish":
            self.do(batches.finish, self.lease, self.batch, actor="w")
        elif verb == "return":
            self.do(queue.return_claim, self.lease, self.batch, actor="w", reason="r")
        else:
            for one in self.desk.do(batches.edits_of, self.batch, states=["claimed"])[:1]:
                self.do(queue.retry, self.lease, self.batch, one.id, error="e", actor="w")
            self.desk.sql(
                "UPDATE edits SET not_before = now() - interval '1s' WHERE state = 'submitted'"
            )

    @rule()
    def sweep(self):
        self.desk.do(sweep.sweep)

    @invariant()
    def nothing_is_broken(self):
        with transaction(self.desk.engine) as conn:
            found = doctor.check(conn, deep=True, recompute=recompute, grace=3600)
        assert found == []
        assert self.accepted <= self.kept()


def test_any_order_of_calls_keeps_every_invariant(desk):
    QueueMachine.new_desk = lambda _self: type(desk)(desk.engine, name=uuid4().hex)
    run_state_machine_as_test(
        QueueMachine, settings=settings(max_examples=6, stateful_step_count=30)
    )
