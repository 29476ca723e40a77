"""Wake-ups that no child will answer: their places are freed.

The pool hands a message to its child through a pipe. The child takes it and says so, and only then
is it acknowledged. A child killed between the two leaves a message that nobody works on and that
keeps the one place a worker prefetches: the parent lives, is connected, and fetches nothing more.
So a message that waits while no child is at work is acknowledged after a while, whatever became of
it. That is always safe: a wake-up says "look at the table", and the next one says it again. One
that is still in the pipe, because its child takes long to start, is answered later all the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from typing import Any

from celery import bootsteps
from celery.worker import state

log = logging.getLogger("mend.wake")

PATIENCE_SECONDS = 10.0
"""How long a message may wait for a child that has nothing else to do."""

LOOK_SECONDS = 2.0
"""How often the parent looks."""


def waiting_since(
    before: Mapping[str, float], reserved: Collection[str], active: Collection[str], now: float
) -> dict[str, float]:
    """Since when each message has been waiting for an idle child.

    Args:
        before: The answer of the last look.
        reserved: Messages handed to the pool and not yet done with.
        active: Those of them that a child is at work on.
        now: Monotonic seconds.
    """
    if active:
        return {}
    return {one: before.get(one, now) for one in reserved}


class Unheard(bootsteps.StartStopStep):  # type: ignore[misc]  # celery is untyped
    """Part of a worker's consumer: looks now and then; see the module."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._since: dict[str, float] = {}
        self._timer: Any = None

    def start(self, parent: Any) -> None:
        """Begin to look."""
        self._since = {}
        self._timer = parent.timer.call_repeatedly(LOOK_SECONDS, self.look)

    def stop(self, _parent: Any) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def look(self) -> None:
        """Free the place of every message that has waited too long."""
        now = time.monotonic()
        reserved = {request.id: request for request in tuple(state.reserved_requests)}
        active = {request.id for request in tuple(state.active_requests)}
        self._since = waiting_since(self._since, reserved, active, now)
        for one, began in tuple(self._since.items()):
            if now - began >= PATIENCE_SECONDS:
                log.warning("no child took wake-up %s; its place is free again", one)
                reserved[one].acknowledge()
                state.task_ready(reserved[one])
                del self._since[one]
