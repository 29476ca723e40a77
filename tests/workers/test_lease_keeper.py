import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from workers.lease_keeper import LeaseKeeper, LeaseLost


class Lost:
    """Records that a lease was lost, in place of ending the test's own process."""

    def __init__(self):
        self.happened = threading.Event()
        self.reason = ""

    def __call__(self, reason):
        self.reason = reason
        self.happened.set()


def test_a_renewed_lease_outlives_many_times_its_time_to_live():
    lost, beats = Lost(), threading.Semaphore(0)
    keeper = LeaseKeeper(beats.release, ttl=0.4, taken_at=time.monotonic(), on_lost=lost)
    with keeper:
        for _ in range(12):  # three times the time to live
            assert beats.acquire(timeout=10)
        assert keeper.seconds_left > 0
    assert not lost.happened.is_set()


def test_a_lease_in_other_hands_is_lost_at_once():
    lost = Lost()

    def renew():
        raise LeaseLost("fence 7 was passed by 8")

    with LeaseKeeper(renew, ttl=0.4, taken_at=time.monotonic(), on_lost=lost):
        assert lost.happened.wait(10)
    assert "fence 7" in lost.reason


def test_a_database_that_cannot_be_asked_loses_the_lease_before_it_runs_out():
    lost = Lost()
    taken_at = time.monotonic()

    def renew():
        raise ConnectionError("no route to host")

    with LeaseKeeper(renew, ttl=1.0, taken_at=taken_at, on_lost=lost):
        assert lost.happened.wait(10)
    assert "could not be renewed" in lost.reason


def test_a_renewal_that_hangs_in_a_dead_connection_does_not_hide_the_deadline():
    lost, never = Lost(), threading.Event()
    keeper = LeaseKeeper(
        lambda: never.wait(30) and None, ttl=0.5, taken_at=time.monotonic(), on_lost=lost
    )
    with keeper:
        assert lost.happened.wait(10)
        never.set()


def test_a_failed_renewal_is_tried_again():
    lost, calls, good = Lost(), [], threading.Event()

    def renew():
        calls.append(time.monotonic())
        if len(calls) == 1:
            raise ConnectionError("once")
        good.set()

    with LeaseKeeper(renew, ttl=2.0, taken_at=time.monotonic(), on_lost=lost):
        assert good.wait(10)
    assert not lost.happened.is_set()


PROGRAM = """
import sys, time, threading
from workers.lease_keeper import LeaseKeeper
beaten = threading.Event()
keeper = LeaseKeeper(beaten.set, ttl=1.0, taken_at=time.monotonic())
keeper.start()
beaten.wait()
print("beating", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs POSIX signals")
def test_a_process_stopped_past_its_lease_ends_itself_when_it_wakes():
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "beating\n"
        os.kill(process.pid, signal.SIGSTOP)
        stopped = threading.Event()
        stopped.wait(1.3)  # the time to live is the thing under test
        os.kill(process.pid, signal.SIGCONT)
        assert process.wait(timeout=20) == -signal.SIGKILL
        assert "lease could not be renewed" in process.stderr.read()
