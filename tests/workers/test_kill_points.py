"""kill -9 at every named point, in a forked process; whoever comes next ends it right."""

import multiprocessing
import os
import signal

import pytest

from ledger import doctor, jobs, versions
from ledger.states import EditState, JobState
from tests.workers import tiny
from tests.workers.tiny import GOLDEN, GUARDED, POISON
from workers import faults, pipeline
from workers.building import digest_of
from workers.jobs.doctor import recomputer

POINTS = [
    "after-lease",
    "after-claim",
    "mid-factor",
    "after-factor",
    "before-rename",
    "after-rename",
    "before-commit",
    "after-commit",
    "before-gate",
    "after-gate",
]


def victim(make, service, point):
    """A worker that kills itself at a point."""
    os.environ["MEND_FAULT"] = f"{point}:kill"
    faults.install()
    pipeline.drain(make(service, lease_seconds=1.0))


# Forking here is safe: the victim opens connections of its own, runs one torch thread and dies.
pytestmark = [
    pytest.mark.chaos,
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


def kill_at(make, service, point):
    """Let a process work until it kills itself at a point."""
    process = multiprocessing.get_context("fork").Process(
        target=victim, args=(make, service, point)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, point


def healthy(service, context):
    findings = service.do(
        lambda c: doctor.check(c, deep=True, recompute=recomputer(context.config))
    )
    assert findings == []


def test_every_point_is_killed_at_somewhere():
    assert {*POINTS, "mid-bisect", "job-running"} == set(faults.POINTS)


def test_killed_in_the_middle_of_a_bisection(make_service, inside):
    service = make_service(settings={"suite": [GOLDEN]}, policy=GUARDED)
    context = inside(service)
    good, bad = service.submit(tiny.facts(3)), service.submit([POISON])
    kill_at(inside, service, "mid-bisect")
    assert set(service.states(good + bad).values()) == {EditState.APPLIED}  # committed, not judged

    def done():
        pipeline.drain(context, sweep_first=True)
        return EditState.LIVE in service.states(good).values()

    service.wait(done, "judging again after a kill in the middle of a bisection")
    assert set(service.states(good).values()) == {EditState.LIVE}
    assert service.states(bad) == {bad[0]: EditState.QUARANTINED}
    healthy(service, context)


def test_killed_while_a_job_runs(make_service, inside):
    service = make_service()
    context = inside(service)
    payload = {"prompts": ["The river in city1"], "max_new_tokens": 1}
    job = service.do(
        lambda c: jobs.submit(c, "ask", payload, model_id=service.model.id, actor="test")
    )
    kill_at(inside, service, "job-running")
    assert service.do(lambda c: jobs.get(c, job.id)).state is JobState.RUNNING

    def done():
        pipeline.drain(context, sweep_first=True)
        return service.do(lambda c: jobs.get(c, job.id)).state is JobState.DONE

    service.wait(done, "the job being taken over")
    ended = service.do(lambda c: jobs.get(c, job.id))
    assert len(ended.result["answers"]) == 1
    assert ended.attempts == 2
    healthy(service, context)


def test_killed_at_every_named_point(make_service, inside):
    service = make_service()
    facts = tiny.facts(2 * len(POINTS))
    context = inside(service, lease_seconds=30.0)
    everything = []
    for number, point in enumerate(POINTS):
        ids = service.submit(facts[2 * number : 2 * number + 2])
        everything += ids
        kill_at(inside, service, point)

        def done(wanted=tuple(ids)):
            pipeline.drain(context, sweep_first=True)  # finds nothing until the lease ran out
            return set(service.states(wanted).values()) == {EditState.LIVE}

        service.wait(done, f"going on after a kill at {point}")
    made = service.do(lambda c: versions.find(c, service.model.id, "production"))
    members = service.do(lambda c: versions.live_set(c, made.id))
    assert {m.edit_id for m in members} == set(everything)
    warm = context.models.get(service.model)
    assert digest_of(warm, [m.factor_digest for m in members]) == made.digest
    assert service.scalar("SELECT count(*) FROM edits WHERE attempts > 0") == 0
    healthy(service, context)
