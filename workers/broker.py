"""Which broker carries the wake-ups, and what each needs to be told.

A wake-up has no payload: it says "look at the table". So no setting here is about safety, only
about how soon an idle worker looks. Defaults per transport follow OPS research B and G.3:

* ``pgmq://`` (default): queue tables in the ledger's own database. The libpq form of the
  connection string is used because pgmq 1.1.4 loses ``?host=/socket/folder`` of a URL; the schema
  is installed once from the SQL that the client package carries, under an advisory lock.
* ``redis://``: short visibility timeout (messages are acknowledged at once and carry nothing).
* ``amqp://``: publisher confirms.
"""

from __future__ import annotations

import logging
from typing import Any

import psycopg
from celery.app.amqp import AMQP
from kombu import Connection

from ledger.home import libpq

log = logging.getLogger("mend.broker")

PGMQ_LOCK = 0x6D656E64
"""Advisory lock key ("mend" in ASCII) under which the pgmq schema is installed."""

POLL_SECONDS = 0.25
"""How often a pgmq worker looks without having been notified."""

STOP_SECONDS = 0.25
"""Longest wait for a message; Celery looks only between two waits whether it is to stop."""

QUEUE = "mend"
"""Name of the one queue."""


class BrokerUnsupported(ValueError):
    """A broker URL of a kind this project does not run on."""


class PromptConnection(Connection):  # type: ignore[misc]  # kombu is untyped
    """A broker connection whose waits are short: Celery's own of 2 s would delay every stop.

    Over pgmq it uses `workers.pgmq_transport`.
    """

    def get_transport_cls(self) -> Any:
        """Kombu's transport for the URL, ours for pgmq."""
        if self.transport_cls == "pgmq":
            from workers.pgmq_transport import Transport  # noqa: PLC0415 - only where pgmq is used

            return Transport
        return super().get_transport_cls()

    def drain_events(self, **options: Any) -> Any:
        """Wait for a message, `STOP_SECONDS` at most where the wait is bounded at all."""
        if options.get("timeout") is not None:
            options["timeout"] = min(options["timeout"], STOP_SECONDS)
        return super().drain_events(**options)


class PromptAmqp(AMQP):  # type: ignore[misc]  # celery is untyped
    """Celery's way to the broker, over `PromptConnection`."""

    Connection = PromptConnection


def celery_settings(broker_url: str, database_url: str) -> dict[str, Any]:
    """Celery configuration for a broker URL.

    Raises:
        BrokerUnsupported: A scheme that is not pgmq, redis(s) or amqp(s).
    """
    scheme = broker_url.split(":", 1)[0]
    if scheme == "pgmq":
        own_database = broker_url.rstrip("/") in ("pgmq:", "pgmq")
        source = database_url if own_database else "postgresql" + broker_url[len("pgmq") :]
        return {
            "broker_url": "pgmq://",
            "broker_transport_options": {
                "conn_string": libpq(source),
                "init_extension": False,
                "use_notify": True,
                # A wake-up published while an earlier one was announced must be announced too.
                "notify_throttle_interval_ms": 0,
                "wait_time_seconds": 0,
                "polling_interval": POLL_SECONDS,
                "visibility_timeout": 30,
                "pool_size": 2,
                "pool_timeout": 5,
            },
        }
    if scheme in ("redis", "rediss"):
        return {
            "broker_url": broker_url,
            "broker_transport_options": {"visibility_timeout": 60},
        }
    if scheme in ("amqp", "amqps"):
        return {
            "broker_url": broker_url,
            "broker_transport_options": {"confirm_publish": True},
        }
    raise BrokerUnsupported(
        f"BROKER_URL starts with {scheme!r}; use pgmq://, redis:// or amqp:// "
        "(polling transports lose messages when a worker dies)"
    )


def prepare(broker_url: str, database_url: str) -> None:
    """Make the broker usable: for pgmq, install its schema once; for others, nothing.

    Safe to call from any number of processes at once.
    """
    if not broker_url.startswith("pgmq"):
        return
    from pgmq.install import get_embedded_install_sql, install_pgmq_sql  # noqa: PLC0415 - only here

    settings = celery_settings(broker_url, database_url)["broker_transport_options"]
    with psycopg.connect(settings["conn_string"]) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (PGMQ_LOCK,))
        row = connection.execute(
            "SELECT to_regproc('pgmq.send') IS NULL AND to_regnamespace('pgmq') IS NULL"
        ).fetchone()
        if row is not None and row[0]:
            log.info("installing the pgmq schema")
            install_pgmq_sql(get_embedded_install_sql(), conn=connection)
