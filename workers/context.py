"""What every step of a worker's work has at hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import UUID

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from ledger import db, footing
from ledger import leases as lease_rows
from ledger.errors import StaleFence
from ledger.records import Committed, Lease, Version, VersionDraft
from workers import faults
from workers.lease_keeper import LeaseKeeper, LeaseLost, die
from workers.runtime import WarmModel, WarmModels
from workers.settings import Settings

T = TypeVar("T")

REST_LIMIT_SECONDS = 300.0
"""Longest rest of a model that cannot be worked on."""

DEADLOCK_TRIES = 4
ROLLED_BACK = frozenset({"40001", "40P01"})
"""Serialization failure and deadlock: nothing was changed, so trying again is safe."""


class Stopping(Exception):
    """A graceful stop was asked for; claims go back, nothing is counted against an edit."""


@dataclass(eq=False)
class Context:
    """One working process.

    Attributes:
        config: Its settings.
        engine: Its connections to the ledger.
        worker: Its instance in the ledger's registry: fresh per process, so that two workers of
            the same name stay two.
        models: Its warm models.
        stopping: Set when a graceful stop was asked for.
        on_lost: What to do when a lease cannot be kept; ends the process outside tests.
        resting: Models that could not be worked on: model id → (monotonic time from which they are
            tried again, seconds of the next rest).
    """

    config: Settings
    engine: Engine
    worker: UUID
    models: WarmModels
    stopping: threading.Event = field(default_factory=threading.Event)
    on_lost: Callable[[str], None] = die
    resting: dict[int, tuple[float, float]] = field(default_factory=dict)

    def rest(self, model_id: int) -> None:
        """Leave a model alone for a while, twice as long each time: a full disk stays full.

        Without it, giving a claim back would wake the next claim at once, for ever.
        """
        _, pause = self.resting.get(model_id, (0.0, self.config.sweep_seconds))
        self.resting[model_id] = (time.monotonic() + pause, min(pause * 2, REST_LIMIT_SECONDS))

    def rests(self, model_id: int) -> bool:
        """Whether a model is to be left alone now."""
        return self.resting.get(model_id, (0.0, 0.0))[0] > time.monotonic()

    @property
    def actor(self) -> str:
        """Who the audit trail names."""
        return f"worker:{self.config.name}"

    def check(self) -> None:
        """Leave here if a graceful stop was asked for.

        Raises:
            Stopping: It was.
        """
        if self.stopping.is_set():
            raise Stopping

    def transact(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one transaction; again where Postgres chose it to end a deadlock.

        Raises:
            DatabaseDown: The server does not answer; the transaction may have been committed.
        """
        for attempt in range(DEADLOCK_TRIES):
            try:
                with db.transaction(self.engine) as conn:
                    return work(conn)
            except DBAPIError as error:
                rolled_back = getattr(error.orig, "sqlstate", None) in ROLLED_BACK
                if not rolled_back or attempt == DEADLOCK_TRIES - 1:
                    raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    def warm(self, version: Version) -> WarmModel:
        """A version's base and editor, loaded now if need be: after a rebase, not the model's own.

        Raises:
            ModelError: The base cannot be loaded, or is not the one it was made on.
            EditorError: The editor cannot be loaded, or is not the one it was made with.
        """
        return self.models.get(self.transact(lambda conn: footing.of(conn, version)))

    def keep(self, renew: Callable[[Connection], object], taken_at: float) -> LeaseKeeper:
        """A keeper for anything that is renewed by a transaction (a chunk, a job)."""

        def beat() -> None:
            try:
                self.transact(renew)
            except StaleFence as error:
                raise LeaseLost(str(error)) from error

        return LeaseKeeper(
            beat, ttl=self.config.lease_seconds, taken_at=taken_at, on_lost=self.on_lost
        )


class Held:
    """A model's lease, kept alive by a heartbeat while it is held."""

    def __init__(self, context: Context, lease: Lease, taken_at: float) -> None:
        self.context = context
        self._lease = lease
        # A commit changes the fence: a renewal in between would carry the old one and look stale.
        self._swap = threading.Lock()
        self.keeper = LeaseKeeper(
            self._renew,
            ttl=context.config.lease_seconds,
            taken_at=taken_at,
            on_lost=context.on_lost,
        )

    @property
    def lease(self) -> Lease:
        """The lease with its present fence."""
        return self._lease

    def _renew(self) -> None:
        with self._swap:
            try:
                self._lease = self.context.transact(
                    lambda conn: lease_rows.renew(conn, self._lease)
                )
            except StaleFence as error:
                raise LeaseLost(str(error)) from error

    def commit(
        self, commit: Callable[[Connection, Lease, VersionDraft], Committed], draft: VersionDraft
    ) -> Committed:
        """Commit a version and go on with the lease's next fence."""
        with self._swap:
            faults.point("before-commit")
            committed = self.context.transact(lambda conn: commit(conn, self._lease, draft))
            self._lease = committed.lease
        faults.point("after-commit")
        return committed

    @staticmethod
    def take(context: Context, model_id: int) -> Held | None:
        """Take a model's lease, or None where somebody else has it."""
        asked_at = time.monotonic()
        lease = context.transact(
            lambda conn: lease_rows.take(
                conn, model_id, context.worker, ttl=context.config.lease_seconds
            )
        )
        return None if lease is None else Held(context, lease, asked_at)

    def release(self) -> None:
        """Give the lease back."""
        with self._swap:
            self.context.transact(self._give_back)

    def _give_back(self, conn: Connection) -> bool:
        db.recoverable(conn)  # lost, it runs out by itself
        return lease_rows.release(conn, self._lease)
