"""The worker's child process: starts once, then drains the ledger at every wake-up."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from typing import Any

from ledger import db
from ledger import workers as registry
from ledger.errors import DatabaseDown, LedgerError
from workers import faults, pipeline
from workers.context import Context, Stopping
from workers.runtime import WarmModels
from workers.settings import Settings
from workers.wake import STOP_SIGNAL

log = logging.getLogger("mend.child")

ORPHAN_SECONDS = 0.5
"""How often the child looks whether its parent is still there."""

HEARTBEAT_SECONDS = 5.0
"""How often the child tells the registry that it lives."""

PR_SET_PDEATHSIG = 1

_context: Context | None = None
_done = threading.Event()
_state = "idle"
_swept = -float("inf")


def _forget_parent_death_signal() -> None:
    """Undo Celery's PDEATHSIG.

    Linux sends it when the *thread* that started us ends, and a replaced child is started by a
    helper thread of the pool that ends early in a graceful stop: we would be killed in the middle
    of it. `_guard` does the same job by asking who our parent is.
    """
    import ctypes  # noqa: PLC0415 - Linux only

    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0)
    except (OSError, AttributeError):
        log.debug("no prctl on this system")


def _guard(parent: int) -> None:
    """End this process when its parent is gone: nobody would ever tell it to stop."""
    while not _done.wait(ORPHAN_SECONDS):
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)


def _beat(context: Context) -> None:
    """Tell the registry that this process lives; failing to is no reason to stop working."""
    while not _done.wait(HEARTBEAT_SECONDS):
        try:
            info = {"models": list(context.models.loaded())}
            context.transact(
                lambda conn, info=info: registry.heartbeat(conn, context.worker, _state, info)  # type: ignore[misc]  # mypy cannot type a default in a lambda
            )
        except LedgerError as error:
            log.warning("heartbeat not written: %s", error)


def open_context(config: Settings) -> Context:
    """Register a fresh worker instance and open its connections.

    Raises:
        DatabaseDown: Postgres does not answer.
    """
    engine = db.engine_from_url(config.database_url, pool_size=4, application_name="mend-worker")
    with db.transaction(engine) as conn:
        row = registry.register(
            conn,
            name=config.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            info={"device": config.device},
        )
    return Context(config, engine, row.instance, WarmModels(config))


def start(config: Settings) -> None:
    """Begin the life of a child; called once, before any task."""
    faults.install()
    _forget_parent_death_signal()
    stopping = threading.Event()
    signal.signal(STOP_SIGNAL, lambda *_: stopping.set())
    parent = os.getppid()
    threading.Thread(target=_guard, args=(parent,), name="mend-guard", daemon=True).start()
    global _context  # noqa: PLW0603 - one per process
    engine = db.engine_from_url(config.database_url, pool_size=1)
    db.wait_for_database(engine, timeout=60.0)
    engine.dispose()
    _context = open_context(config)
    _context.stopping = stopping
    threading.Thread(target=_beat, args=(_context,), name="mend-beat", daemon=True).start()
    log.info("worker %s (%s) is ready", config.name, _context.worker)


def stop() -> None:
    """End the life of a child in good order."""
    _done.set()
    if _context is None:
        return
    try:
        _context.transact(lambda conn: registry.stop(conn, _context.worker))
    except LedgerError as error:
        log.warning("goodbye not written: %s", error)
    _context.engine.dispose()


def drain(*, sweep_first: bool = False) -> None:
    """Do everything that is due; never raises for what a later wake-up can do again."""
    global _state, _swept  # noqa: PLW0603 - one per process; the heartbeat reads the state
    context = _context
    if context is None or context.stopping.is_set():
        return
    now = time.monotonic()
    if sweep_first and now - _swept < context.config.sweep_seconds / 2:
        return  # sweeps pile up where nobody was there to take them; one does for all
    if sweep_first:
        _swept = now
    _state = "busy"
    try:
        pipeline.drain(context, sweep_first=sweep_first)
    except Stopping:
        log.info("stopping: claims were given back")
    except DatabaseDown as error:
        log.warning("%s; the next wake-up goes on where this one stopped", error)
    finally:
        _state = "idle"


def context() -> Any:
    """This process's context, for tests."""
    return _context
