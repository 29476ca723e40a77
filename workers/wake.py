"""From a committed row to a wake-up message, within milliseconds and with nothing to lose.

Whoever adds work (CLI, API, another worker) just commits rows; the ledger sends a NOTIFY on
``mend_events`` in the same transaction. Every worker parent listens and turns notifications into
``mend.wake`` messages on the broker, one at once and at most one more per `QUIET_SECONDS`. Any idle
worker takes the message. A listener that loses its connection publishes once after it is back,
since it cannot know what it missed; and beat's sweep is the net under all of it.

Why the hop through the broker, when the parent could call its own child: the broker hands the
message to an *idle* child, on any host, and it is the path that is tested on all three brokers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from pathlib import Path

from celery import Celery

from ledger import errors as ledger_errors
from ledger.events import Listener
from workers.settings import Settings

log = logging.getLogger("mend.wake")

QUIET_SECONDS = 0.05
"""Notifications within this time of a published wake-up share one more wake-up."""

LISTEN_SECONDS = 1.0
"""How long one wait for notifications lasts; bounds the time a stop takes."""

RECONNECT_SECONDS = 0.5
"""Pause between attempts to listen again."""

STOP_SIGNAL = signal.SIGURG
"""Asks a child for a graceful stop. The pool takes every signal that ends a process for ending the
child at once; this one is ignored by whoever does not know it, such as the pool's helpers."""

QUIET_EVENTS = frozenset(
    {
        "batch.done",
        "chunk.done",
        "edit.cancelled",
        "edit.erased",
        "edit.expired",
        "edit.failed",
        "edit.quarantined",
        "edit.rejected",
        "gate.recorded",
        "job.cancelled",
        "job.done",
        "job.failed",
        "version.committed",
    }
)
"""Kinds of event that leave nothing to do; any other kind, known or new, is worth a look."""


def publish(app: Celery) -> bool:
    """Publish one wake-up, best effort.

    It carries no expiry: that would be compared with another host's clock, and a few seconds of
    skew would silence all wake-ups. A stale one costs a few queries.

    Returns:
        False where the broker did not take it; the sweep makes up for it.
    """
    try:
        app.send_task("mend.wake", retry=False, ignore_result=True)
    except Exception as error:  # noqa: BLE001 - three brokers, three error trees, one meaning
        log.warning("wake-up not published (%s); the next sweep makes up for it", error)
        return False
    return True


class WakeListener(threading.Thread):
    """Turns notifications into wake-ups until stopped."""

    def __init__(self, app: Celery, config: Settings) -> None:
        super().__init__(name="mend-listen", daemon=True)
        self._app = app
        self._config = config
        self._stopping = threading.Event()
        self._last = 0.0
        self.listening = threading.Event()

    def stop(self) -> None:
        """Stop soon."""
        self._stopping.set()

    def _publish(self) -> None:
        rest = self._last + QUIET_SECONDS - time.monotonic()
        if rest > 0 and self._stopping.wait(rest):
            return
        self._last = time.monotonic()
        publish(self._app)

    def run(self) -> None:
        """Listen, and listen again after every loss."""
        while not self._stopping.is_set():
            try:
                with Listener(self._config.database_url) as listener:
                    self.listening.set()
                    self._publish()  # whatever was committed before we listened
                    while not self._stopping.is_set():
                        events = listener.wait(LISTEN_SECONDS)
                        if any(event.get("kind") not in QUIET_EVENTS for event in events):
                            self._publish()
            except ledger_errors.LedgerError as error:
                log.warning("not listening (%s); trying again", error)
                self._stopping.wait(RECONNECT_SECONDS)


_listener: WakeListener | None = None


def start_listening(app: Celery, config: Settings) -> None:
    """Start this worker parent's listener."""
    global _listener  # noqa: PLW0603 - one per process, like the worker it belongs to
    _listener = WakeListener(app, config)
    _listener.start()


def stop_listening() -> None:
    """Stop this worker parent's listener."""
    if _listener is not None:
        _listener.stop()


def _children(parent: int) -> list[int]:
    """Process ids of the direct children of a process (Linux; elsewhere none are found)."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The command name may hold spaces and brackets: fields count from its last ')'.
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def tell_children_to_stop() -> None:
    """Ask the children for a graceful stop: they finish the step or return their claim."""
    for pid in _children(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, STOP_SIGNAL)
