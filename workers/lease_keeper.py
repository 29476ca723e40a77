"""The heartbeat of a lease, off the work thread.

A worker may hold a lease for hours as long as its heart beats; nobody rescues it by a timer. The
other side of that bargain: when the heart cannot beat in time (database unreachable, connection
half open, process stopped and continued), the process ends itself before anybody else may take the
lease, so nothing stale goes on computing. The fence checked at commit is the second, independent
barrier (issue 4; OPS research A4.1, B.11e).

Two threads, because a renewal can itself hang in a dead connection: one renews, one watches the
deadline. Time is measured with the monotonic clock from the moment a renewal was *sent*; the
database decides what the lease is worth.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

log = logging.getLogger("mend.lease")

RENEWALS_PER_TTL = 4
"""Renewals sent in one time-to-live: three may be lost before the lease is."""

WATCH_SECONDS = 0.1
"""How often the watchdog looks at the deadline."""

SAFETY = 0.1
"""Share of the time-to-live kept as margin: we die this early, never late."""


class LeaseLost(Exception):
    """Raised by a renewal that found the lease in other hands."""


def die(reason: str) -> None:
    """End this process at once, without clean-up that could still write something."""
    sys.stderr.write(f"mend worker {os.getpid()}: {reason}; ending this process\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)


class LeaseKeeper:
    """Keeps one lease alive while the work thread works.

    Args:
        renew: Renews the lease on a connection of its own; raises `LeaseLost` when the lease is
            no longer ours, anything else when the database could not be asked.
        ttl: Seconds one renewal is worth.
        taken_at: `time.monotonic()` from just before the lease was taken.
        on_lost: What to do when it is lost; `die` outside tests.
    """

    def __init__(
        self,
        renew: Callable[[], None],
        *,
        ttl: float,
        taken_at: float,
        on_lost: Callable[[str], None] = die,
    ) -> None:
        self._renew = renew
        self._ttl = ttl
        self._deadline = taken_at + ttl * (1 - SAFETY)
        self._on_lost = on_lost
        self._done = threading.Event()
        self._threads = [
            threading.Thread(target=self._beat, name="mend-lease-beat", daemon=True),
            threading.Thread(target=self._watch, name="mend-lease-watch", daemon=True),
        ]

    @property
    def seconds_left(self) -> float:
        """Seconds until this process would end itself."""
        return self._deadline - time.monotonic()

    def _beat(self) -> None:
        while not self._done.wait(self._ttl / RENEWALS_PER_TTL):
            sent = time.monotonic()
            if sent > self._deadline:
                return  # too late to ask (we were stopped and continued): the watchdog ends us
            try:
                self._renew()
            except LeaseLost as lost:
                if not self._done.is_set():
                    self._lose(f"lease lost: {lost}")
                return
            except Exception as error:  # noqa: BLE001 - whatever it was, the deadline decides
                log.warning("lease not renewed (%s); trying again", str(error).split("\n", 1)[0])
                continue
            self._deadline = sent + self._ttl * (1 - SAFETY)

    def _watch(self) -> None:
        while not self._done.wait(WATCH_SECONDS):
            if time.monotonic() > self._deadline:
                self._lose(f"lease could not be renewed within {self._ttl:g} s")
                return

    def _lose(self, reason: str) -> None:
        self._done.set()
        self._on_lost(reason)

    def start(self) -> None:
        """Start beating."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop beating; the caller releases the lease."""
        self._done.set()
        current = threading.current_thread()
        for thread in self._threads:
            if thread is not current and thread.is_alive():
                # A renewal hanging in a dead connection must not hang the work thread too.
                thread.join(timeout=WATCH_SECONDS * 5)

    def __enter__(self) -> Self:
        """Start beating."""
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop beating."""
        self.stop()
