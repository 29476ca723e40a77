"""Connections and transactions.

Every ledger function takes a `Connection` in a transaction that the caller opens with
`transaction`; so several of them can be made one change. Connection trouble comes out as
`DatabaseDown` with words a person can use; `retrying` repeats a function that is safe to repeat.
"""

from __future__ import annotations

import random
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any, TypeVar, cast

import psycopg
from sqlalchemy import Connection, Engine, TextClause, create_engine, event
from sqlalchemy import text as parse_text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InvalidatePoolError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry

from ledger.errors import DatabaseDown
from ledger.home import normalise_url

T = TypeVar("T")

CONNECT_TIMEOUT_SECONDS = 5
RETRY_ATTEMPTS = 5
RETRY_FIRST_SECONDS = 0.1
WAIT_POLL_SECONDS = 0.05
RESTED_SECONDS = 1.0
"""A pooled connection that was not used for so long is pinged before it is."""
_RETRYABLE_STATES = frozenset({"40001", "40P01"})  # serialization failure, deadlock


@lru_cache(maxsize=1_000)
def text(statement: str) -> TextClause:
    """A statement, parsed once: finding the bind names takes longer than some statements run.

    Only for the literal statements of this package (the cache would keep any other for ever).
    """
    return parse_text(statement)


def engine_from_url(
    url: str, *, pool_size: int = 5, application_name: str = "mend", echo: bool = False
) -> Engine:
    """An engine for a Postgres URL; connects on first use.

    Dead pooled connections are found by a look at their socket before use, and by a ping where they
    have rested; half-open ones by TCP keep-alives.
    """
    engine = create_engine(
        normalise_url(url),
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=30,
        echo=echo,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "application_name": application_name,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,  # milliseconds
        },
    )

    @event.listens_for(engine, "connect")
    def _utc(connection: Any, _record: Any) -> None:
        # Timestamps come back in UTC whatever the server's setting.
        with connection.cursor() as cursor:
            cursor.execute("SET TIME ZONE 'UTC'")
        connection.commit()

    _watch(engine)
    return engine


def _watch(engine: Engine) -> None:
    """Find dead pooled connections as they are handed out; all are replaced where one is dead.

    SQLAlchemy's `pool_pre_ping` asks the server each time: as long as many a statement takes. A
    server that went away has closed the socket, which the kernel tells for nothing.
    """

    @event.listens_for(engine, "checkin")
    def _rests(_connection: Any, record: ConnectionPoolEntry) -> None:
        record.info["since"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _is_there(connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
        since = record.info.pop("since", None)
        if since is None:  # just connected
            return
        if time.monotonic() - since < RESTED_SECONDS and not _said_something(connection):
            return
        try:
            engine.dialect.do_ping(connection)
        except psycopg.Error as error:
            raise InvalidatePoolError from error


def _said_something(connection: psycopg.Connection[Any]) -> bool:
    """Whether an idle connection's socket has something to read: an end, or the words before it."""
    if connection.closed:
        return True
    looker = select.poll()
    looker.register(connection.fileno(), select.POLLIN)
    return bool(looker.poll(0))


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """One transaction: committed at the end, rolled back on any error.

    Raises:
        DatabaseDown: The server does not answer or the connection was lost. Where it was lost
            during the commit, the transaction may or may not have been committed: repeat only
            what is idempotent.
    """
    with _plainly(engine), engine.begin() as connection:
        yield connection


@contextmanager
def alone(engine: Engine) -> Iterator[psycopg.Connection[Any]]:
    """A connection for one statement that is a transaction by itself: no BEGIN, no COMMIT to send.

    For a statement that does all it has to in one call, e.g. `submit_edit`. It is psycopg's own
    connection: SQLAlchemy's way to the same costs a third of such a call's time on this side.

    Raises:
        DatabaseDown: As `transaction`; the statement may or may not have been committed.
    """
    with _plainly(engine):
        pooled = engine.raw_connection()
        driver = cast("psycopg.Connection[Any]", pooled.driver_connection)
        try:
            driver.autocommit = True
            yield driver
        finally:
            try:
                driver.autocommit = False
            except psycopg.Error:  # it broke, or is in the middle of something
                pooled.invalidate()
            pooled.close()


@contextmanager
def _plainly(engine: Engine) -> Iterator[None]:
    """Connection trouble as `DatabaseDown`."""
    try:
        yield
    except PoolTimeout as error:
        raise _down(engine, error) from error
    except DBAPIError as error:
        # psycopg files deadlocks and serialization failures under OperationalError too.
        if getattr(error.orig, "sqlstate", None) in _RETRYABLE_STATES:
            raise
        if error.connection_invalidated or isinstance(error.orig, psycopg.OperationalError):
            raise _down(engine, error) from error
        raise
    except psycopg.OperationalError as error:  # from a statement on the raw connection
        if error.sqlstate in _RETRYABLE_STATES:
            raise
        raise _down(engine, error) from error


def recoverable(connection: Connection) -> None:
    """Let this transaction's commit not wait for the disk: a crash of the server may lose it.

    Only for what can be done again and nobody was promised (which chunk is whose, a lease given
    back); never for a change of state. Nothing committed later survives without it: the log keeps
    its order, so a version is never there without its factors' rows.
    """
    connection.execute(text("SET LOCAL synchronous_commit TO off"))


def retrying(
    engine: Engine,
    function: Callable[[Connection], T],
    *,
    attempts: int = RETRY_ATTEMPTS,
    first_delay: float = RETRY_FIRST_SECONDS,
) -> T:
    """Run `function` in a transaction, again after lost connections, deadlocks and restarts.

    Only for functions that are safe to run twice (claims, renewals, anything with its own key):
    after a lost connection the first try may have been committed.

    Raises:
        DatabaseDown: Still down after the last attempt.
    """
    for attempt in range(attempts):
        try:
            with transaction(engine) as connection:
                return function(connection)
        except DatabaseDown:
            if attempt == attempts - 1:
                raise
        except (DBAPIError, psycopg.Error) as error:
            state = getattr(getattr(error, "orig", error), "sqlstate", None)
            if state not in _RETRYABLE_STATES or attempt == attempts - 1:
                raise
        delay = first_delay * 2**attempt
        time.sleep(delay * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not secrecy
    raise AssertionError("unreachable: the last attempt returns or raises")


def wait_for_database(engine: Engine, timeout: float) -> None:
    """Wait until the server answers.

    Raises:
        DatabaseDown: It does not within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            with transaction(engine) as connection:
                connection.execute(text("SELECT 1"))
        except DatabaseDown:
            if time.monotonic() > deadline:
                raise
            time.sleep(WAIT_POLL_SECONDS)
        else:
            return


def raw(connection: Connection) -> psycopg.Connection[Any]:
    """The psycopg connection below, in the same transaction (for COPY)."""
    driver = connection.connection.driver_connection
    assert driver is not None
    return cast("psycopg.Connection[Any]", driver)


def database_now(connection: Connection) -> datetime:
    """The database's clock: the only one that counts."""
    return cast("datetime", connection.execute(text("SELECT clock_timestamp()")).scalar_one())


def _down(engine: Engine, error: Exception) -> DatabaseDown:
    url = make_url(str(engine.url))
    where = url.query.get("host") or url.host or "the local socket"
    if isinstance(error, PoolTimeout):
        return DatabaseDown(
            f"no free connection to Postgres at {where} within 30 s: too many at once; try again"
        )
    orig = getattr(error, "orig", None) or error
    lines = str(orig).strip().splitlines()
    reason = lines[0] if lines else type(orig).__name__
    return DatabaseDown(
        f"Postgres at {where}, database {url.database!r}, does not answer ({reason}): "
        "check that it runs (mend status), then try again"
    )
