"""Waiting for things to happen, without polling: the NOTIFY channel `mend_events`.

Every audit event is announced there at commit. An announcement is a hint: what counts is the
table, so after `wait` look there (and look once before waiting).
"""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any, Self

import psycopg

from ledger.errors import DatabaseDown
from ledger.home import libpq

CHANNEL = "mend_events"


class Listener:
    """One connection that listens.

    Example:
        >>> with Listener(url) as events:  # doctest: +SKIP
        ...     while not done():
        ...         events.wait(timeout=5)
    """

    def __init__(self, url: str) -> None:
        try:
            self._connection = psycopg.connect(libpq(url), autocommit=True, connect_timeout=5)
            self._connection.execute(f"LISTEN {CHANNEL}")
        except psycopg.OperationalError as error:
            raise DatabaseDown(f"cannot listen for events: {error}") from error

    def wait(self, timeout: float) -> list[dict[str, Any]]:
        """Events announced since the last call, waiting up to `timeout` seconds for the first.

        Raises:
            DatabaseDown: The connection was lost.
        """
        found: list[dict[str, Any]] = []
        try:
            for seconds, count in ((timeout, 1), (0.0, None)):
                notices = self._connection.notifies(timeout=seconds, stop_after=count)
                found.extend(json.loads(notice.payload) for notice in notices)
        except psycopg.OperationalError as error:
            raise DatabaseDown(
                f"the connection that listens for events was lost: {error}"
            ) from error
        return found

    def close(self) -> None:
        """Stop listening."""
        self._connection.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()
