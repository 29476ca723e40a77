"""Starts the service's processes, keeps them alive, and stops them in order.

    python -m gateway.supervisor [--events-fd FD] [--lifeline-fd FD] [--metrics-port PORT] ...

`mend up` runs it detached and `mend demo` runs it attached. It speaks JSON lines on `--events-fd`
(what starts, what is ready, what failed) and ends when it gets SIGTERM or SIGINT, or when
`--lifeline-fd` reads end-of-file because its owner is gone. While it lives it holds a lock on
`run/supervisor.lock` in the home folder, so that there is one per home, and a stale file can never
be mistaken for a running service.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from gateway.exit_codes import FAILED, NOT_POSSIBLE
from gateway.guard import PR_SET_CHILD_SUBREAPER, prctl
from gateway.processes import Child, Spec
from gateway.rundir import RunDir, ServiceInfo, make_home
from ledger import db, migrate, workers
from ledger.errors import LedgerError
from service.errors import ServiceError, ServiceFailed, UserError

LOOP_SECONDS = 0.1
"""How often readiness is asked while something is not ready yet."""

WATCH_SECONDS = 1.0
"""How long a quiet supervisor sleeps; a child's death wakes it at once."""

START_TRIES = 3
"""A child that ends this often before it was ever ready stops the start."""

PROBE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Options:
    """What to run.

    Attributes:
        home: Folder of the service (logs, run files, stores, embedded Postgres).
        database_url: A server to use in place of the embedded Postgres.
        broker_url: Celery's broker; None is `pgmq://` in the same database.
        metrics_port: Port of the exporter; 0 takes a free one.
        metrics_host: Address the exporter listens on.
        worker_count: How many worker processes.
    """

    home: Path
    database_url: str | None = None
    broker_url: str | None = None
    metrics_port: int = 9464
    metrics_host: str = "127.0.0.1"
    worker_count: int = 1


def free_port(host: str) -> int:
    """Asks the system for a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def port_taken(host: str, port: int) -> bool:
    """Says whether something already listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


class Supervisor:
    """The service's parent process.

    Args:
        options: What to run.
        tell: Receives progress events as small dicts with an `event` key.
    """

    def __init__(self, options: Options, tell: Callable[[dict[str, Any]], None]) -> None:
        self.options = options
        self.home = options.home
        self.rundir = RunDir(options.home)
        self.children: list[Child] = []
        self._tell = tell
        self._stopping: str | None = None
        self._database_url = options.database_url or ""
        self._metrics_port = options.metrics_port
        # The read end is handed to every guard; the write end stays here and dies with us.
        self._lifeline, self._lifeline_keep = os.pipe()
        self._wake_read, self._wake_write = os.pipe()
        self._owner: int | None = None
        self._started_at = time.time()

    def run(self, lifeline: int | None = None) -> None:
        """Starts everything, keeps it running, and stops it.

        Args:
            lifeline: A pipe of the owner; end-of-file on it means stop.

        Raises:
            UserError: Another supervisor owns the home, or the port is taken.
            ServiceFailed: A child could not be brought up.
        """
        with self._lock():
            self._listen_to_signals()
            self._owner = lifeline
            prctl(PR_SET_CHILD_SUBREAPER, 1)
            try:
                self._start()
                while self._stopping is None:
                    self._keep_alive()
                    self._sleep(WATCH_SECONDS if self._all_ready() else LOOP_SECONDS)
            finally:
                self._stop()

    # -- start -----------------------------------------------------------------------------

    def _start(self) -> None:
        if self._metrics_port == 0:
            self._metrics_port = free_port(self.options.metrics_host)
        elif port_taken(self.options.metrics_host, self._metrics_port):
            raise UserError(
                f"port {self._metrics_port} is in use; choose another with --metrics-port, "
                "or 0 for a free one"
            )
        if not self._database_url:
            self._bring_up([self._postgres()])
            if self._stopping is None:
                self._database_url = self.rundir.database_url() or ""
        if self._stopping is None:
            self._tell({"event": "starting", "what": "migrations"})
            migrate.upgrade(self._database_url)
            self._tell({"event": "ready", "what": "migrations"})
            self._write_info("starting")
            names = [f"worker-{n}" for n in range(1, self.options.worker_count + 1)]
            self._bring_up([self._exporter(), self._beat(), *map(self._worker, names)])
        if self._stopping is None:
            self._write_info("ready")
            self._tell({"event": "up", **self._info("ready").to_dict()})

    def _bring_up(self, specs: list[Spec]) -> None:
        """Starts children side by side and waits until each is ready."""
        started = [
            Child(spec, self._lifeline, self.home / "logs" / f"{spec.name}.log") for spec in specs
        ]
        for child in started:
            self._tell({"event": "starting", "what": child.spec.name})
            child.start()
            self.children.append(child)
        waiting = list(started)
        while waiting and self._stopping is None:
            self._keep_alive(starting=True)
            for child in list(waiting):
                if child.ask_ready():
                    waiting.remove(child)
                    self._tell({"event": "ready", "what": child.spec.name})
                elif child.overdue():
                    raise ServiceFailed(
                        f"{child.spec.name} was not ready after {child.spec.ready_seconds:.0f} s; "
                        f"its last words: {child.last_words()} (log: {child.log})"
                    )
            if waiting:
                self._sleep(LOOP_SECONDS)

    def _environment(self) -> dict[str, str]:
        """What every child is told; the environment reaches spawned grandchildren too."""
        return {
            "MEND_HOME": str(self.home),
            "DATABASE_URL": self._database_url,
            "BROKER_URL": self.options.broker_url or "pgmq://",
            "PYTHONUNBUFFERED": "1",
            # Threads of a matrix product that wait must sleep: on a busy machine spinning ones
            # take the very core the others need.
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        }

    def _postgres(self) -> Spec:
        return Spec(
            name="postgres",
            argv=[sys.executable, "-m", "gateway.postgres"],
            env={"MEND_HOME": str(self.home), "DATABASE_URL": ""},
            ready=lambda: self._database_answers(self.rundir.database_url()),
        )

    def _worker(self, name: str) -> Spec:
        return Spec(
            name=name,
            argv=[sys.executable, "-m", "workers", "worker"],
            env={**self._environment(), "MEND_WORKER_NAME": f"{name}@{socket.gethostname()}"},
            ready=lambda: self._worker_alive(f"{name}@{socket.gethostname()}"),
            stop_seconds=20.0,
        )

    def _beat(self) -> Spec:
        return Spec(
            name="beat",
            argv=[sys.executable, "-m", "workers", "beat"],
            env=self._environment(),
            # Beat has no signal of its own; what it does (waking, sweeping) the workers show.
            ready=lambda: True,
        )

    def _exporter(self) -> Spec:
        options = self.options
        return Spec(
            name="exporter",
            argv=[
                sys.executable,
                "-m",
                "monitoring.exporter",
                "--host",
                options.metrics_host,
                "--port",
                str(self._metrics_port),
            ],
            env=self._environment(),
            ready=self._exporter_answers,
        )

    # -- readiness -------------------------------------------------------------------------

    def _database_answers(self, url: str | None) -> bool:
        if url is None:
            return False
        engine = db.engine_from_url(url, pool_size=1, application_name="mend-supervisor")
        try:
            with db.transaction(engine) as connection:
                db.database_now(connection)
        except LedgerError:
            return False
        finally:
            engine.dispose()
        return True

    def _worker_alive(self, name: str) -> bool:
        engine = db.engine_from_url(
            self._database_url, pool_size=1, application_name="mend-supervisor"
        )
        try:
            with db.transaction(engine) as connection:
                known = workers.list_workers(connection)
        except LedgerError:
            return False
        finally:
            engine.dispose()
        mine = [w for w in known if w.name == name and w.alive]
        return any(w.started_at.timestamp() >= self._started_at - 1 for w in mine)

    def _exporter_answers(self) -> bool:
        url = f"http://{self.options.metrics_host}:{self._metrics_port}/healthz"
        try:
            with urlopen(url, timeout=PROBE_SECONDS) as answer:
                return bool(answer.status == 200)  # noqa: PLR2004 - HTTP's OK
        except (URLError, OSError):
            return False

    # -- watching --------------------------------------------------------------------------

    def _all_ready(self) -> bool:
        return all(child.ask_ready() for child in self.children)

    def _keep_alive(self, *, starting: bool = False) -> None:
        """Notices ended children, kills what they orphaned, starts them again."""
        for child in self.children:
            status = child.ended()
            if status is not None and self._stopping is None:
                self._kill_orphans()
                self._tell({"event": "died", "what": child.spec.name, "status": status})
                if starting and child.restarts + 1 >= START_TRIES:
                    raise ServiceFailed(
                        f"{child.spec.name} ended {START_TRIES} times while starting; "
                        f"its last words: {child.last_words()} (log: {child.log})"
                    )
            if child.due() and self._stopping is None:
                child.restart()
                self._tell({"event": "restarted", "what": child.spec.name})
                self._write_info("starting" if starting else "ready")

    def _kill_orphans(self) -> None:
        """Kills what a killed guard left behind: it was adopted by us (subreaper)."""
        known = {child.pid for child in self.children}
        with contextlib.suppress(OSError):
            listing = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
            for process in map(int, listing.split()):
                if process not in known:
                    with contextlib.suppress(OSError):
                        os.kill(process, signal.SIGKILL)
                        os.waitpid(process, 0)

    def _sleep(self, seconds: float) -> None:
        """Waits, but wakes at once for a signal, a child's death or a cut lifeline."""
        watched = [self._wake_read] + ([self._owner] if self._owner is not None else [])
        ready, _, _ = select.select(watched, [], [], seconds)
        if self._wake_read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
        if self._owner is not None and self._owner in ready:
            self._stopping = "owner gone"

    def _listen_to_signals(self) -> None:
        os.set_blocking(self._wake_write, False)
        os.set_blocking(self._wake_read, False)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)

        def stop(number: int, _frame: object) -> None:
            self._stopping = signal.Signals(number).name

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    # -- stop ------------------------------------------------------------------------------

    def _stop(self) -> None:
        """Stops children last to first, so that Postgres outlives those that write to it."""
        for child in reversed(self.children):
            self._quietly({"event": "stopping", "what": child.spec.name})
            child.stop()
        self._kill_orphans()
        self.rundir.forget()
        self._quietly({"event": "down", "why": self._stopping or "failed"})

    def _quietly(self, event: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # whoever listened may be gone by now
            self._tell(event)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Holds the home's lock for as long as the supervisor lives."""
        self.rundir.folder.mkdir(parents=True, exist_ok=True)
        with self.rundir.lock_path.open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"the service is already running in {self.home}; see `mend status`"
                ) from None
            lock.seek(0)
            lock.truncate()
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            yield

    def _info(self, state: str) -> ServiceInfo:
        host = self.options.metrics_host
        return ServiceInfo(
            pid=os.getpid(),
            state=state,
            database_url=self._database_url,
            broker_url=self.options.broker_url or "pgmq://",
            metrics_url=f"http://{host}:{self._metrics_port}/metrics",
            logs=str(self.home / "logs"),
            children={child.spec.name: child.pid or 0 for child in self.children},
            restarts={child.spec.name: child.restarts for child in self.children},
        )

    def _write_info(self, state: str) -> None:
        self.rundir.write(self._info(state))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line of `python -m gateway.supervisor`."""
    parser = argparse.ArgumentParser(prog="python -m gateway.supervisor", description=__doc__)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--database-url")
    parser.add_argument("--broker-url")
    parser.add_argument("--metrics-port", type=int, default=9464)
    parser.add_argument("--metrics-host", default="127.0.0.1")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--events-fd", type=int)
    parser.add_argument("--lifeline-fd", type=int)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the supervisor; returns the process's exit code."""
    args = parse(argv)

    def tell(event: dict[str, Any]) -> None:
        line = json.dumps({"at": time.time(), **event}) + "\n"
        if args.events_fd is not None:
            with contextlib.suppress(BrokenPipeError):
                os.write(args.events_fd, line.encode())
        sys.stderr.write(line)
        sys.stderr.flush()

    options = Options(
        home=make_home(args.home),
        database_url=args.database_url or None,
        broker_url=args.broker_url or None,
        metrics_port=args.metrics_port,
        metrics_host=args.metrics_host,
        worker_count=args.workers,
    )
    try:
        Supervisor(options, tell).run(args.lifeline_fd)
    except (ServiceError, LedgerError, OSError) as error:
        tell({"event": "failed", "message": str(error), "user_error": isinstance(error, UserError)})
        return NOT_POSSIBLE if isinstance(error, UserError) else FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
