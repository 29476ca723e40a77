"""kill -9 at every named point, in a forked process; whoever comes next ends it right."""

import multiprocessing
import os
import signal

import pytest

from ledger import doctor, versions
from ledger.states import EditState
from tests.workers import tiny
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


@pytest.mark.chaos
# Forking here is safe: the victim opens connections of its own, runs one torch thread and dies.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_killed_at_every_named_point(make_service, inside):
    service = make_service()
    fork = multiprocessing.get_context("fork")
    facts = tiny.facts(2 * len(POINTS))
    context = inside(service, lease_seconds=30.0)
    everything = []
    for number, point in enumerate(POINTS):
        ids = service.submit(facts[2 * number : 2 * number + 2])
        everything += ids
        process = fork.Process(target=victim, args=(inside, service, point))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, point

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
    findings = service.do(
        lambda c: doctor.check(c, deep=True, recompute=recomputer(context.config))
    )
    assert findings == []
