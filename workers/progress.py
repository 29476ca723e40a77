"""Tells the ledger how far a batch is, for whoever waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from sqlalchemy import Connection

from ledger import batches as batch_rows
from ledger import db
from ledger.errors import LedgerError
from workers.context import Context

Tell = Callable[[str, int, int | None], None]
"""Takes a stage, the units of it that are done, and how many there are."""

TELL_SECONDS = 1.0
"""Within one stage, news is written at most this often."""


class Progress:
    """The progress of one batch; a `Tell`.

    Nothing depends on it: what cannot be written now is left out.
    """

    def __init__(self, context: Context, batch_id: int) -> None:
        self._context = context
        self._batch = batch_id
        self._stage = ""
        self._next = 0.0

    def __call__(self, stage: str, done: int, of: int | None) -> None:
        """Note how far the batch is."""
        if stage == self._stage and time.monotonic() < self._next:
            return

        def write(conn: Connection) -> None:
            db.recoverable(conn)
            batch_rows.tell(conn, self._batch, stage, done, of)

        with suppress(LedgerError):
            self._context.transact(write)
        self._stage, self._next = stage, time.monotonic() + TELL_SECONDS
