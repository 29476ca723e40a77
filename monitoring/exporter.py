"""Serves the ledger's state to Prometheus: `python -m monitoring.exporter --port 9464`.

A custom collector reads Postgres when it is scraped, so the numbers are right after any crash and
need no bookkeeping in the workers. When Postgres does not answer, `/metrics` still does, with
`mend_up 0`; `/healthz` then says 503.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.core import (
    Metric as Family,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from ledger import db
from ledger.errors import LedgerError
from ledger.home import Home
from monitoring.metrics import CATALOGUE, Metric

log = logging.getLogger("mend.exporter")

POOL_SIZE = 2
STATEMENT_TIMEOUT = "5s"
"""A scrape never holds a slow query on the ledger for longer."""


def family_of(metric: Metric) -> GaugeMetricFamily | CounterMetricFamily | InfoMetricFamily:
    """Makes the empty Prometheus family of a catalogue entry."""
    if metric.kind == "counter":
        return CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
    if metric.kind == "info":
        return InfoMetricFamily(metric.name, metric.help)
    return GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)


def read(connection: Connection, metric: Metric) -> Family:
    """Runs a metric's query and fills its family.

    Raises:
        SQLAlchemyError: The query failed.
    """
    family = family_of(metric)
    for row in connection.execute(text(metric.sql)):
        *labels, value = row
        names = ["" if label is None else str(label) for label in labels]
        if isinstance(family, InfoMetricFamily):
            family.add_metric([], dict(zip(metric.labels, names, strict=True)))
        else:
            family.add_metric(names, float(value))
    return family


class LedgerCollector(Collector):
    """Reads every metric of the catalogue in one read-only transaction per scrape.

    Args:
        engine: The ledger.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> Iterator[Family]:
        """Names the families without touching the database."""
        for metric in CATALOGUE:
            yield family_of(metric)

    def collect(self) -> Iterator[Family]:
        """Yields every family; the ledger's are left out when Postgres does not answer."""
        began = time.perf_counter()
        families: list[Family] = []
        up = 1.0
        try:
            with db.transaction(self._engine) as connection:
                connection.execute(
                    text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                )
                connection.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}'"))
                families = [read(connection, metric) for metric in CATALOGUE if metric.sql]
        except (LedgerError, SQLAlchemyError) as error:
            up = 0.0
            families = []
            log.warning("the ledger could not be read: %s", error)
        yield GaugeMetricFamily("mend_up", _help("mend_up"), value=up)
        yield GaugeMetricFamily(
            "mend_scrape_duration_seconds",
            _help("mend_scrape_duration_seconds"),
            value=time.perf_counter() - began,
        )
        yield from families

    def healthy(self) -> bool:
        """Says whether the ledger answers."""
        try:
            with db.transaction(self._engine) as connection:
                db.database_now(connection)
        except LedgerError:
            return False
        return True


def _help(name: str) -> str:
    return next(metric.help for metric in CATALOGUE if metric.name == name)


class Handler(BaseHTTPRequestHandler):
    """Answers `/metrics` and `/healthz`; everything else is 404."""

    registry: ClassVar[CollectorRegistry]
    collector: ClassVar[LedgerCollector]
    server_version = "mend-exporter"
    sys_version = ""

    def do_GET(self) -> None:
        """Answers one request."""
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encoder, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._answer(200, content_type, encoder(self.registry))
        elif path == "/healthz":
            healthy = self.collector.healthy()
            body = b"ok\n" if healthy else b"the ledger does not answer\n"
            self._answer(200 if healthy else 503, "text/plain; charset=utf-8", body)
        else:
            self._answer(404, "text/plain; charset=utf-8", b"see /metrics or /healthz\n")

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Keeps scrapes out of the log."""


class Server(ThreadingHTTPServer):
    """The exporter's HTTP server; takes its port over at once after a restart."""

    daemon_threads = True
    allow_reuse_address = True


def make_server(engine: Engine, host: str, port: int) -> Server:
    """Binds the exporter to an address.

    Raises:
        OSError: The address is in use or not ours.
    """
    collector = LedgerCollector(engine)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    handler = type("BoundHandler", (Handler,), {"registry": registry, "collector": collector})
    return Server((host, port), handler)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m monitoring.exporter",
        description="Serve the ledger's state to Prometheus on /metrics.",
        epilog="example: python -m monitoring.exporter --host 0.0.0.0 --port 9464",
    )
    parser.add_argument("--database-url", help="default: DATABASE_URL, else the running service")
    parser.add_argument("--host", default=os.environ.get("MEND_METRICS_HOST") or "127.0.0.1")
    parser.add_argument(
        "--port", type=int, default=int(os.environ.get("MEND_METRICS_PORT") or 9464)
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT; returns 2 when it cannot start."""
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    try:
        url = args.database_url or Home.from_env().resolve_database_url()
        engine = db.engine_from_url(url, pool_size=POOL_SIZE, application_name="mend-exporter")
        server = make_server(engine, args.host, args.port)
    except LedgerError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a command's one error line
        return 2
    except OSError as error:
        print(  # noqa: T201 - a command's one error line
            f"error: cannot listen on {args.host}:{args.port}: {error.strerror}; choose another "
            "with --host and --port",
            file=sys.stderr,
        )
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    log.info("serving http://%s:%s/metrics", args.host, server.server_address[1])
    server.serve_forever(poll_interval=0.1)
    server.server_close()
    engine.dispose()
    return 0


if __name__ == "__main__":
    sys.exit(main())
