"""Runs the embedded Postgres until told to stop: `python -m gateway.postgres`.

A process of its own, so that the supervisor treats Postgres like every other child: started under
a guard, restarted when it dies, stopped last.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys

from gateway.rundir import make_home
from ledger.embedded import EmbeddedPostgres
from ledger.errors import LedgerError
from ledger.home import Home

ASK_SECONDS = 1.0


def main() -> int:
    """Starts the server, writes its address, and waits for SIGTERM or for the server to end."""
    home = Home(make_home(None)).make()
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: stopping.append(received))
    signal.signal(signal.SIGCHLD, lambda *_: None)
    server = EmbeddedPostgres(home.pgdata)
    try:
        with server:
            home.write_endpoint(server.url())
            # SIGCHLD wakes the wait when the server dies; the pid then reads None.
            while not stopping and server.pid is not None:
                select.select([wake_read], [], [], ASK_SECONDS)
                with contextlib.suppress(BlockingIOError):
                    os.set_blocking(wake_read, False)
                    os.read(wake_read, 512)
    except LedgerError as error:
        print(error, file=sys.stderr)  # noqa: T201 - this is the child's log
        return 1
    finally:
        home.clear_endpoint()
    if not stopping:
        print("Postgres ended by itself", file=sys.stderr)  # noqa: T201 - this is the child's log
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
