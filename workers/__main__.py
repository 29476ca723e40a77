"""Process entry points: ``python -m workers worker|beat``, started by ``mend up`` or by hand."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m workers",
        description="Run a worker (builds and proves versions) or beat (sweeps every few seconds).",
    )
    parser.add_argument("role", choices=("worker", "beat"))
    parser.add_argument("--database-url", help="ledger; default: the environment's DATABASE_URL")
    parser.add_argument("--broker-url", help="broker of wake-ups; default: BROKER_URL or pgmq://")
    parser.add_argument(
        "--home", help="folder of stores and caches; default: MEND_HOME or the user's data folder"
    )
    parser.add_argument("--name", help="name of this worker in logs and tables")
    parser.add_argument("--device", help="torch device, e.g. cuda:0; default: cpu")
    parser.add_argument("--log-level", default="INFO", help="default: %(default)s")
    return parser


def _export(arguments: argparse.Namespace) -> None:
    """Put the options where a spawned child finds them."""
    for variable, value in (
        ("DATABASE_URL", arguments.database_url),
        ("BROKER_URL", arguments.broker_url),
        ("MEND_HOME", arguments.home),
        ("MEND_WORKER_NAME", arguments.name),
        ("MEND_DEVICE", arguments.device),
    ):
        if value:
            os.environ[variable] = value


def main(argv: Sequence[str] | None = None) -> int:
    """Run one process until it is told to stop.

    Returns:
        0 after a graceful stop, 2 where the settings are not usable.
    """
    arguments = _parser().parse_args(argv)
    # Until Celery's own handlers are in place, a stop is simply the end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _export(arguments)
    logging.basicConfig(level=arguments.log_level, format=LOG_FORMAT, stream=sys.stderr)
    # Imported now: the application reads the environment written above.
    from ledger import db  # noqa: PLC0415 - see above
    from ledger.errors import LedgerError  # noqa: PLC0415 - see above
    from workers import broker, faults, settings  # noqa: PLC0415 - see above

    try:
        config = settings.from_environment()
        faults.parse(os.environ.get("MEND_FAULT", ""))
        engine = db.engine_from_url(config.database_url, pool_size=1)
        db.wait_for_database(engine, timeout=60.0)
        engine.dispose()
        broker.prepare(config.broker_url, config.database_url)
    except (ValueError, LedgerError) as error:
        sys.stderr.write(f"mend {arguments.role}: {error}\n")
        return 2
    from workers.app import app  # noqa: PLC0415 - see above

    if arguments.role == "beat":
        app.Beat(loglevel=arguments.log_level, quiet=True, pidfile=None).run()
        return 0
    # Two workers of one name are two workers: Celery's node name carries the process id.
    node = f"{config.name.partition('@')[0]}-{os.getpid()}@%h"
    app.worker_main(
        [
            "worker",
            f"--loglevel={arguments.log_level}",
            f"--hostname={node}",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
        ]
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
