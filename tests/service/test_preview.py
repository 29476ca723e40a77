"""What would come of edits, before they are submitted, with a worker in this process."""

from __future__ import annotations

from collections import Counter

import pytest
from sqlalchemy import text

from ledger import edits, models
from ledger.requests import EditRequest
from ledger.states import EditState
from service import preview as previews
from service import waiting
from service.preview import Fate, subject_problem
from service.session import Session
from service.waiting import Hindrance
from tests.workers import tiny
from workers import pipeline
from workers.jobs import run_one

WRITTEN_BY_A_JOB = {"jobs", "workers"}


def rows(conn):
    """A digest of every table but those that a job and its audit trail are written to."""
    names = conn.execute(
        text("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
    ).scalars()
    return {
        name: conn.execute(text(f"SELECT md5(string_agg(t::text, '|')) FROM {name} AS t")).scalar()
        for name in names
        if name not in WRITTEN_BY_A_JOB and not name.startswith("audit")
    }


@pytest.fixture
def ready(make_service, inside, monkeypatch):
    """A service whose worker takes each job as soon as it is submitted."""
    service = make_service()
    service.context = inside(service)
    submit = waiting.submit_job

    def at_once(*args, **options):
        job = submit(*args, **options)
        assert run_one(service.context)
        return job

    monkeypatch.setattr(waiting, "submit_job", at_once)
    return service


def request(fact, **fields):
    fields = {"subject": fact.subject, "source": "manual"} | fields
    return EditRequest(
        prompt=fact.prompt,
        target=fields.pop("target", fact.target),
        paraphrases=fact.paraphrases,
        locality=tuple(one.prompt for one in fact.locality),
        **fields,
    )


def look(service, requests):
    session = Session(service.engine, service.url, service.home)
    model = service.do(lambda c: models.get(c, service.model.id))
    return previews.preview(session, model, requests, actor="test")


def test_each_fate_is_told_and_nothing_is_written(ready):
    live, waiting_one, new, late = tiny.facts(4)
    ready.submit([live], idempotency_key="k", source="wiki")
    pipeline.drain(ready.context)
    [queued] = ready.submit([waiting_one])
    before = ready.do(rows)
    past = "2020-01-01T00:00:00Z"
    found = look(
        ready,
        [
            request(new),
            request(live, idempotency_key="k"),
            request(live, target="city70", source="wiki"),
            request(live, target="city71", source="somebody else"),
            request(waiting_one),
            request(new, target="city72"),
            request(late, expires_at=past),
        ],
    )
    assert ready.do(rows) == before
    assert [edit.fate for edit in found.edits] == [
        Fate.NEW,
        Fate.DUPLICATE,
        Fate.REPLACES_LIVE,
        Fate.CONTRADICTS,
        Fate.DUPLICATE,
        Fate.REPLACES_WAITING,
        Fate.REFUSED,
    ]
    assert [edit.edit for edit in found.edits[:2]] == [None, 1]
    assert [one.state for one in found.edits[2].same_fact] == [EditState.LIVE]
    assert [one.id for one in found.edits[4].same_fact] == [queued]
    assert [edit.same_as for edit in found.edits] == [None, None, 2, 3, None, 1, None]
    assert "past" in found.edits[6].problems[0]
    counts = found.counts
    assert (counts.known, counts.of_live_facts, counts.of_waiting_facts) == (1, 3, 1)
    assert (counts.duplicates, counts.need_approval, counts.with_problems) == (2, 1, 1)
    assert found.version == 1


def test_todays_answers_are_those_of_production(ready):
    fact, other = tiny.facts(2)
    ready.submit([fact])
    pipeline.drain(ready.context)
    known, unknown = look(ready, [request(fact), request(other)]).edits
    assert (known.knows, unknown.knows) == (True, False)
    assert known.answer.startswith(fact.target)
    assert all(one.answer is not None for one in (*unknown.paraphrases, *unknown.locality))
    assert known.subject is None  # this editor reads all of a prompt


def test_a_model_that_wants_approval_and_is_paused_says_so(ready):
    ready.do(lambda c: models.configure(c, 1, actor="op", reason="r", approval=True))
    ready.do(lambda c: models.pause(c, 1, actor="op", reason="freeze"))
    found = look(ready, [request(tiny.facts(1)[0])])
    assert found.edits[0].fate is Fate.NEEDS_APPROVAL
    assert Hindrance.PAUSED in found.hindrances


def test_what_only_the_tokenizer_knows_is_a_problem_of_that_edit_alone(ready):
    good, bad, worse = tiny.facts(3)
    long = EditRequest(prompt=bad.prompt, target=bad.target, paraphrases=("The " * 100,))
    longer = EditRequest(prompt="of " * 100 + worse.prompt, target=worse.target)
    found = look(ready, [request(good), long, longer]).edits
    assert [bool(edit.problems) for edit in found] == [False, True, True]
    assert [edit.answer is None for edit in found] == [False, True, True]
    assert "probes cannot be asked" in found[1].problems[0]
    assert not found[2].problems[0].startswith("edit")  # there is no edit yet


def test_few_prompts_are_asked_and_own_ones_first(ready):
    found = look(ready, [request(fact) for fact in tiny.facts(70)])
    asked = Counter(edit.answer is not None for edit in found.edits)
    assert asked == {True: 64, False: 6}
    assert found.counts.asked == 64
    assert not any(one.answer for edit in found.edits for one in edit.paraphrases)


def test_without_a_worker_the_ledgers_half_is_told(make_service):
    service = make_service()
    service.submit(tiny.facts(1))
    found = look(service, [request(tiny.facts(1)[0])])
    assert found.edits[0].fate is Fate.DUPLICATE
    assert found.edits[0].answer is None
    assert "no worker" in found.not_asked
    assert service.do(edits.counts)["queued"] == 1


@pytest.mark.parametrize(
    ("prompt", "subject", "told"),
    [
        ("The capital of France is", "France", None),
        ("The capital of France is", None, None),
        ("The capital of Fran", "France", "ends inside the subject"),
        ("The capital of France is", "france", "is not in the prompt"),
    ],
)
def test_a_subject_that_does_not_fit_its_prompt(prompt, subject, told):
    problem = subject_problem(prompt, subject)
    assert (problem is None) if told is None else (told in problem)
