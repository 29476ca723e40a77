"""Questions answered while a batch is in work."""

import pytest

from ledger import gates, jobs, versions
from ledger.states import EditState, JobState
from tests.workers import tiny
from workers import pipeline, quick


class Desk:
    """Submits a job at every n-th safe point of a drain; gives them all back."""

    def __init__(self, service, monkeypatch, every, kind="ask", **payload):
        self.service, self.kind, self.payload, self.ids = service, kind, payload, []
        monkeypatch.setattr(quick, "LOOK_SECONDS", 0.0)
        desk, points = self, [0]

        class Busy(quick.QuickJobs):
            def due(self):
                points[0] += 1
                if points[0] % every == 0:
                    desk.submit()
                return super().due()

        monkeypatch.setattr(pipeline, "QuickJobs", Busy)

    def submit(self):
        job = self.service.do(
            lambda c: jobs.submit(
                c, self.kind, self.payload, model_id=self.service.model.id, actor="test"
            )
        )
        self.ids.append(job.id)

    def jobs(self):
        return [self.service.do(lambda c, one=one: jobs.get(c, one)) for one in self.ids]


def judged(service, model_id, number):
    """Weights, verdict and every answer of a version, without the ids of its edits."""
    made = service.do(lambda c: versions.find(c, model_id, number))
    [decision] = service.do(lambda c: gates.decisions(c, made.id))
    answers = {
        (run["kind"], run["prompt"]): (run["answer_tokens"], run["nll"], run["passed"])
        for row in service.do(lambda c: gates.probes(c, made.id))
        for run in (row, row["parent"], row["base"])
    }
    return made.weights_digest, decision["checks"], answers


@pytest.fixture
def short_batch(make_service, inside):
    """A model with one live edit, and a working process that takes chunks of two."""
    service = make_service()
    context = inside(service, chunk_edits=2)
    service.submit(tiny.facts(1))
    pipeline.drain(context)
    return service, context


def test_questions_are_answered_within_a_batch_and_change_no_bit_of_it(short_batch, monkeypatch):
    service, context = short_batch
    prompt = tiny.facts(1)[0].prompt
    quiet, asked = service.register("quiet"), service.register("asked")

    def batch(model):
        service.model = model
        ids = service.submit(tiny.facts(6))
        pipeline.drain(context)
        assert set(service.states(ids).values()) == {EditState.LIVE}
        return judged(service, model.id, 1)

    expected = batch(quiet)
    desk = Desk(service, monkeypatch, every=2, prompt=prompt, version="0", max_new_tokens=3)
    assert batch(asked) == expected
    done = desk.jobs()
    assert len(done) > 3
    assert {job.state for job in done} == {JobState.DONE}
    assert len({job.result["answer"] for job in done}) == 1
    committed = service.do(lambda c: versions.find(c, asked.id, 1)).created_at
    assert any(job.finished_at < committed for job in done)  # answered before the batch ended


def test_a_question_that_cannot_be_answered_ends_nothing_else(short_batch, monkeypatch):
    service, context = short_batch
    desk = Desk(service, monkeypatch, every=2, prompt="x", version="99")
    ids = service.submit(tiny.facts(4, start=1))
    pipeline.drain(context)
    assert set(service.states(ids).values()) == {EditState.LIVE}
    assert {job.state for job in desk.jobs()} == {JobState.FAILED}
    assert all("99" in job.error for job in desk.jobs())


def test_only_quick_jobs_interrupt(short_batch, monkeypatch):
    service, context = short_batch
    desk = Desk(service, monkeypatch, every=2, kind="report", version="0", format="json")
    service.submit(tiny.facts(4, start=1))
    pipeline.drain(context)
    committed = service.do(lambda c: versions.find(c, service.model.id, 2)).created_at
    assert {job.state for job in desk.jobs()} == {JobState.DONE}
    assert all(job.finished_at > committed for job in desk.jobs())
    assert any(job.created_at < committed for job in desk.jobs())


def test_a_preview_is_answered_within_a_batch(short_batch, monkeypatch):
    service, context = short_batch
    edit = {"prompt": tiny.facts(1)[0].prompt, "target": tiny.facts(1)[0].target}
    desk = Desk(service, monkeypatch, every=2, kind="preview", edits=[edit])
    ids = service.submit(tiny.facts(4, start=1))
    pipeline.drain(context)
    assert set(service.states(ids).values()) == {EditState.LIVE}
    committed = service.do(lambda c: versions.find(c, service.model.id, 2)).created_at
    within = [job for job in desk.jobs() if job.finished_at < committed]
    assert within
    assert all(job.result["edits"][0]["knows"] for job in within)
