"""Celery's prefork pool with one repair: a killed child leaves no lock held.

Where the broker is polled (pgmq), parent and children share one pipe, and a child waits for its
next message *holding* the pipe's read lock. Killed there, by the kernel for want of memory or by us
for a lease it could not renew, it holds the lock for ever: the child that follows it starts, says
that it is ready and never hears of anything. The parent knows when a child is dead, so it lets go
in its name. Redis and RabbitMQ go another way (a pipe for each child) and need none of this.
"""

from __future__ import annotations

import logging
from typing import Any

from celery.concurrency import prefork

log = logging.getLogger("mend.worker")


class SharedPipePool(prefork.BlockingPool):  # type: ignore[misc]  # celery is untyped
    """The pool of a polled broker; see the module."""

    def process_flush_queues(self, worker: Any) -> None:
        """Called for each child that has ended, before another is started."""
        super().process_flush_queues(worker)
        if any(other is not worker and other.exitcode is None for other in self._pool):
            return  # it may be the living one that holds them
        locks = {"read": self._inqueue._rlock, "write": self._outqueue._wlock}  # noqa: SLF001 - billiard offers no other way to them
        for name, lock in locks.items():
            if lock is not None and not lock.acquire(block=False):
                log.info("child %s ended with the %s lock; it is free again", worker.pid, name)
            if lock is not None:
                lock.release()


class TaskPool(prefork.TaskPool):  # type: ignore[misc]  # celery is untyped
    """What Celery is told to use (`worker_pool`)."""

    BlockingPool = SharedPipePool
