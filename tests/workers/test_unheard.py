"""A wake-up that a child took to its grave does not make its worker deaf."""

from types import SimpleNamespace

import pytest
from celery.worker import state

from workers import unheard
from workers.app import app
from workers.unheard import PATIENCE_SECONDS, Unheard, waiting_since


class Message:
    """What the parent keeps of a message: an id, and whether it is acknowledged."""

    def __init__(self, name):
        self.id = self.name = name
        self.acknowledged = False

    def acknowledge(self):
        self.acknowledged = True


@pytest.fixture
def clock(monkeypatch):
    time = SimpleNamespace(now=100.0)
    monkeypatch.setattr(unheard.time, "monotonic", lambda: time.now)
    yield time
    for request in tuple(state.reserved_requests):
        state.task_ready(request)


def test_what_nobody_works_on_is_acknowledged_after_a_while(clock):
    step, lost = Unheard(SimpleNamespace()), Message("lost")
    state.task_reserved(lost)
    step.look()
    clock.now += PATIENCE_SECONDS / 2
    step.look()
    assert not lost.acknowledged
    clock.now += PATIENCE_SECONDS / 2
    step.look()
    assert lost.acknowledged
    assert lost not in state.reserved_requests


def test_what_waits_behind_work_keeps_its_place(clock):
    step, working, next_one = Unheard(SimpleNamespace()), Message("works"), Message("next")
    for message in (working, next_one):
        state.task_reserved(message)
    state.task_accepted(working)
    for _ in range(3):
        step.look()
        clock.now += PATIENCE_SECONDS
    assert not next_one.acknowledged
    state.task_ready(working)
    step.look()  # its wait begins now
    assert not next_one.acknowledged


def test_a_message_that_was_taken_is_forgotten():
    assert waiting_since({"a": 1.0}, ["a", "b"], [], 5.0) == {"a": 1.0, "b": 5.0}
    assert waiting_since({"a": 1.0}, ["a"], ["a"], 5.0) == {}
    assert waiting_since({"a": 1.0}, [], [], 5.0) == {}


def test_every_worker_looks():
    assert "workers.unheard:Unheard" in {str(step) for step in app.steps["consumer"]}
