"""Real processes: a Celery worker and beat over a real broker, killed where it hurts."""

import os
import signal
import socket

import pytest
from sqlalchemy import text

from ledger import doctor, versions, workers
from ledger.states import EditState
from tests.chaos.harness import is_running
from tests.workers import tiny
from workers.jobs.doctor import recomputer
from workers.settings import Settings


def healthy(service):

    config = Settings(service.url, "pgmq://", service.home, "doctor")
    assert service.do(lambda c: doctor.check(c, deep=True, recompute=recomputer(config))) == []


def test_the_main_job_runs_end_to_end_and_stops_in_good_order(make_service):
    service = make_service(sweep_seconds=60.0)  # wake-ups alone must do
    worker = service.start()
    facts = tiny.facts(5)
    ids = service.submit(facts)
    assert set(service.decided(ids).values()) == {EditState.LIVE}
    assert service.ask([facts[0].prompt])[0].startswith(facts[0].target)
    assert not service.ask([facts[0].prompt], "0")[0].startswith(facts[0].target)
    # Work that nobody announces (no NOTIFY, so no wake-up) is found by a sweep.
    service.do(
        lambda c: c.execute(
            text(
                "INSERT INTO jobs (kind, payload, requested_by, model_id) "
                "VALUES ('ask', '{\"prompt\": \"The river in city1\"}', 'silent', :m)"
            ),
            {"m": service.model.id},
        )
    )
    service.sweep_seconds = 0.5
    beat = service.start("beat")
    query = "SELECT count(*) FROM jobs WHERE requested_by = 'silent' AND state = 'done'"
    service.wait(lambda: service.scalar(query), "the sweep finding a silent job")
    # The worker may have met the job by itself, before beat was up and could stop in good order.
    service.wait(lambda: b"Sending due task" in beat.log.read_bytes(), "beat's first sweep")
    beat.signal(signal.SIGTERM)
    assert beat.process.wait(timeout=60) == 0
    child = worker.child()
    worker.signal(signal.SIGTERM)
    assert worker.process.wait(timeout=60) == 0
    assert not is_running(child)
    states = {w.state for w in service.do(workers.list_workers)}
    assert states == {"stopped"}
    log = worker.log.read_bytes()
    assert b"succeeded in" not in log
    assert b"] received" not in log
    healthy(service)


@pytest.mark.chaos
def test_child_then_parent_killed_and_it_still_ends_right(make_service):
    service = make_service(sweep_seconds=0.5, lease_seconds=4.0)
    path = service.home / "fault"
    service.start("beat")
    worker = service.start(MEND_FAULT_FILE=str(path))
    facts = tiny.facts(4)
    all_ids = []
    for number, (point, action) in enumerate(
        [("before-commit", "kill"), ("after-commit", "killparent")]
    ):
        path.write_text(f"{point}:{action}")
        ids = service.submit(facts[2 * number : 2 * number + 2])
        all_ids += ids
        service.wait(lambda: not path.exists(), f"the fault {point}:{action} to fire")
        if action == "killparent":
            worker.process.wait(timeout=30)
            service.start()
        assert set(service.decided(ids).values()) == {EditState.LIVE}, point
    service.idle()
    made = service.do(lambda c: versions.find(c, service.model.id, "production"))
    members = service.do(lambda c: versions.live_set(c, made.id))
    assert {m.edit_id for m in members} == set(all_ids)
    healthy(service)


@pytest.mark.chaos
def test_an_idle_child_killed_leaves_no_deaf_worker(make_service):
    """An idle child waits with its pipe's lock held; the next one has to get it."""
    service = make_service()
    worker = service.start(log_level="DEBUG")  # each message is logged there only
    facts = tiny.facts(6)

    def is_idle():
        log = worker.log.read_bytes()
        return log.count(b"succeeded in") == log.count(b"] received") > 0

    for turn in range(3):
        ids = service.submit(facts[2 * turn : 2 * turn + 2])
        assert set(service.decided(ids).values()) == {EditState.LIVE}, turn
        service.wait(is_idle, "the child to have nothing to do")
        os.kill(worker.child(), signal.SIGKILL)
    healthy(service)


@pytest.mark.chaos
def test_a_worker_stopped_past_its_lease_ends_itself_and_another_goes_on(make_service):
    service = make_service(sweep_seconds=0.5, lease_seconds=4.0)
    path = service.home / "fault"
    first = service.start(MEND_FAULT_FILE=str(path))
    service.ask(["The river in city1"])  # up and warm
    frozen = first.child()
    path.write_text("before-commit:stop")
    ids = service.submit(tiny.facts(3))
    service.wait(lambda: not path.exists(), "the worker to be stopped")
    service.start("beat")
    service.start()
    assert set(service.decided(ids).values()) == {EditState.LIVE}
    os.kill(frozen, signal.SIGCONT)
    service.wait(lambda: not is_running(frozen), "the stale worker to end itself")
    service.idle()
    made = service.do(lambda c: versions.find(c, service.model.id, "production"))
    members = service.do(lambda c: versions.live_set(c, made.id))
    assert [m.edit_id for m in members] == ids  # each once, whoever built it
    healthy(service)


def answers(port):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


@pytest.mark.parametrize(
    ("broker", "port"),
    [("redis://127.0.0.1:6379/9", 6379), ("amqp://guest:guest@127.0.0.1:5672//", 5672)],
)
def test_wake_ups_travel_over_other_brokers_too(make_service, broker, port):
    if not answers(port):
        pytest.skip(f"nothing answers on port {port}: {broker.split(':')[0]} is not tested here")
    service = make_service(broker=broker, sweep_seconds=60.0)
    worker = service.start()
    ids = service.submit(tiny.facts(3))
    assert set(service.decided(ids).values()) == {EditState.LIVE}
    worker.signal(signal.SIGTERM)
    assert worker.process.wait(timeout=60) == 0
