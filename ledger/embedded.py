"""Our own Postgres: a direct child process, safe against every way its owner can die.

The server listens on a Unix socket in a folder of its own only, keeps fsync on, and gets SIGINT (a
fast, clean shutdown) from the kernel when its owner dies. Who owns a data folder is settled by a
file lock, never by process ids: a server found running on a folder whose lock is free is an orphan
and is stopped. Whether the server is up is asked by connecting.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import quote

import psycopg
from psycopg import sql

from ledger.errors import EmbeddedFailed
from ledger.pgbinaries import (
    Identity,
    RunAs,
    binaries_for,
    choose_identity,
    data_folder_for,
    death_prefix,
    find_binaries,
)

SUPERUSER = "postgres"
START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 30.0
POLL_SECONDS = 0.02
_SOCKET_PATH_LIMIT = 100  # sun_path holds 107 bytes; Postgres adds a lock file's suffix
_PRIVATE = 0o700

DEFAULT_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "fsync": "on",
    "synchronous_commit": "on",
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "jit": "off",  # our statements are short; planning for jit costs more than it gives
    "max_wal_size": "1GB",
    "idle_in_transaction_session_timeout": "10min",
}


class EmbeddedPostgres:
    """A Postgres server that lives and dies with this process.

    Args:
        data_dir: Data folder; made on first start. Its parent holds the lock, the log and, where
            the path is short enough, the socket.
        port: Names the socket file only; nothing listens on TCP.
        databases: Databases to create on start.
        settings: Server settings over `DEFAULT_SETTINGS`.
        run_as: Force a way of running as root ("namespace", "nobody"); None chooses.

    Example:
        >>> with EmbeddedPostgres(Path("/tmp/x/pgdata")) as server:  # doctest: +SKIP
        ...     print(server.url())
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int = 5432,
        databases: Sequence[str] = ("mend",),
        settings: Mapping[str, str] | None = None,
        run_as: RunAs | None = None,
    ) -> None:
        self.identity: Identity = choose_identity(run_as)
        self.data_dir = data_folder_for(self.identity, Path(data_dir).absolute())
        self.root = self.data_dir.parent
        self.port = port
        self.databases = tuple(databases)
        self.settings = {**DEFAULT_SETTINGS, **(settings or {})}
        self.log_path = self.root / "postgres.log"
        self.socket_dir = _socket_folder(self.root, self.data_dir, port)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the server we started, or None."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def url(self, database: str = "mend") -> str:
        """SQLAlchemy URL of a database of this server."""
        host = quote(str(self.socket_dir), safe="")
        return f"postgresql+psycopg://{SUPERUSER}@/{database}?host={host}&port={self.port}"

    def alive(self, timeout: float = 5.0) -> bool:
        """Whether the server answers a connection."""
        try:
            self._connect(timeout=timeout).close()
        except psycopg.OperationalError:
            return False
        return True

    def start(self, timeout: float = START_TIMEOUT_SECONDS) -> Self:
        """Start the server, waiting out crash recovery; does nothing where it already runs.

        Raises:
            EmbeddedFailed: Another process owns the folder, or the server does not come up.
        """
        if self.pid is not None and self.alive():
            return self
        self._end_process(STOP_TIMEOUT_SECONDS)  # ours, but dying or deaf
        deadline = time.monotonic() + timeout
        self._make_folders()
        self._take_lock()
        try:
            programs = binaries_for(self.identity, find_binaries())
            if not (self.data_dir / "PG_VERSION").exists():
                self._initdb(programs)
            self._stop_orphan(deadline)
            self._launch(programs, deadline)
            self._create_databases()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self, timeout: float = STOP_TIMEOUT_SECONDS) -> None:
        """Shut down: fast (SIGINT), then immediate (SIGQUIT), then by force."""
        self._end_process(timeout)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _end_process(self, timeout: float) -> None:
        """End our server and reap it: a zombie would keep the lock files of its number valid."""
        process, self._process = self._process, None
        if process is None:
            return
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            if process.poll() is not None:
                return
            process.send_signal(number)
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                continue

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        self.stop()

    # -- folders and lock ---------------------------------------------------------------------

    def _make_folders(self) -> None:
        """Make our own folders; parents above `root` keep the permissions they have."""
        if self.identity.uid is not None:
            self.root.parent.mkdir(parents=True, exist_ok=True)
            if self.root.parent.stat().st_uid == os.geteuid() and self.root.parent.name.startswith(
                "mend"
            ):
                self.root.parent.chmod(0o755)
        for folder in (self.root, self.socket_dir):
            new = not folder.exists()
            folder.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            if new and self.identity.uid is not None and self.identity.gid is not None:
                os.chown(folder, self.identity.uid, self.identity.gid)
        info = self.socket_dir.lstat()
        owner = os.geteuid() if self.identity.uid is None else self.identity.uid
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != owner:
            raise EmbeddedFailed(
                f"the socket folder {self.socket_dir} belongs to someone else: remove it and retry"
            )

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        handle = (self.root / "owner.lock").open("a+", encoding="ascii")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            owner = handle.read().strip() or "unknown"
            handle.close()
            raise EmbeddedFailed(
                f"the data folder {self.data_dir} is in use by process {owner}: use that server, "
                "stop it (mend down), or choose another MEND_HOME"
            ) from None
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        self._lock = handle

    # -- processes ----------------------------------------------------------------------------

    def _environment(self) -> dict[str, str]:
        """A small environment: no PG* variable of the caller reaches the server."""
        kept = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
        return {name: os.environ[name] for name in kept if name in os.environ} | {"TZ": "UTC"}

    def _initdb(self, programs: Path) -> None:
        """Make the data folder beside its place, then rename: no half-made one is ever used."""
        unfinished = self.data_dir.with_name(f".{self.data_dir.name}.new-{os.getpid()}")
        command = [
            *self.identity.prefix,
            *death_prefix(),
            str(programs / "initdb"),
            f"--pgdata={unfinished}",
            f"--username={SUPERUSER}",
            "--auth-local=trust",
            "--auth-host=reject",
            "--encoding=UTF8",
            "--locale=C",
            "--data-checksums",
            "--no-instructions",
        ]
        done = subprocess.run(  # noqa: S603 - our own programs and arguments
            command,
            capture_output=True,
            check=False,
            cwd="/",
            env=self._environment(),
            user=self.identity.uid,
            group=self.identity.gid,
            extra_groups=_no_groups(self.identity),
        )
        if done.returncode != 0:
            message = done.stderr.decode(errors="replace").strip().splitlines()
            raise EmbeddedFailed(
                f"initdb could not make {self.data_dir}: {message[-1] if message else 'no message'}"
            )
        unfinished.rename(self.data_dir)

    def _stop_orphan(self, deadline: float) -> None:
        """Stop a server left over by a dead owner (we hold the lock, so nobody owns it).

        A `postmaster.pid` naming a process that is not a server on this folder is stale: the number
        may have been given to another program, which would make Postgres refuse to start.
        """
        pid_file = self.data_dir / "postmaster.pid"
        while pid_file.exists():
            try:
                pid = int(pid_file.read_text(encoding="ascii").split()[0])
            except (ValueError, IndexError, FileNotFoundError):
                pid = 0
            if not _serves(pid, self.data_dir):
                pid_file.unlink(missing_ok=True)
                break
            if time.monotonic() > deadline:
                raise EmbeddedFailed(
                    f"an orphaned server (process {pid}) on {self.data_dir} does not stop: "
                    f"stop it with kill -QUIT {pid}"
                )
            os.kill(pid, signal.SIGINT)
            time.sleep(POLL_SECONDS)
        # Its socket's lock file may name a number that was given away, or a zombie's.
        for left in self.socket_dir.glob(".s.PGSQL.*"):
            left.unlink(missing_ok=True)

    def _launch(self, programs: Path, deadline: float) -> None:
        command = [
            *self.identity.prefix,
            *death_prefix(),
            str(programs / "postgres"),
            "-D",
            str(self.data_dir),
            "-p",
            str(self.port),
            "-c",
            f"unix_socket_directories={self.socket_dir}",
        ]
        for name, value in self.settings.items():
            command += ["-c", f"{name}={value}"]
        while True:
            self._process = self._spawn(command)
            while self._process.poll() is None:
                if self.alive(timeout=1.0):
                    return
                if time.monotonic() > deadline:
                    raise EmbeddedFailed(
                        f"Postgres on {self.data_dir} did not answer in time: {self._last_log()}"
                    )
                time.sleep(POLL_SECONDS)
            # Children of a killed server may hold its shared memory for a moment: try again.
            if time.monotonic() > deadline or "shared memory" not in self._last_log():
                raise EmbeddedFailed(
                    f"Postgres on {self.data_dir} stopped while starting: {self._last_log()}"
                )
            time.sleep(POLL_SECONDS * 10)

    def _spawn(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start the server from a thread that lives as long as this process.

        The kernel sends the parent-death signal when the *thread* that forked ends, so a server
        started from a short-lived thread would be stopped with it.
        """
        if threading.current_thread() is threading.main_thread():
            return self._popen(command)
        box: list[subprocess.Popen[bytes] | BaseException] = []
        ready = threading.Event()

        def body() -> None:
            try:
                process = self._popen(command)
            except OSError as error:
                box.append(error)
                ready.set()
                return
            box.append(process)
            ready.set()
            process.wait()

        threading.Thread(target=body, name="postgres-owner", daemon=True).start()
        ready.wait()
        got = box[0]
        if isinstance(got, BaseException):
            raise EmbeddedFailed(f"Postgres could not be started: {got}") from got
        return got

    def _popen(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with self.log_path.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own programs and arguments
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=self._environment(),
                # Ctrl-C in a terminal goes to its whole process group; the owner decides when to
                # stop.
                process_group=0,
                user=self.identity.uid,
                group=self.identity.gid,
                extra_groups=_no_groups(self.identity),
            )

    def _last_log(self) -> str:
        try:
            lines = self.log_path.read_text(errors="replace").strip().splitlines()
        except OSError:
            return "no log"
        fatal = [line for line in lines[-30:] if "FATAL" in line or "PANIC" in line]
        return (fatal or lines or ["empty log"])[-1] + f" (log: {self.log_path})"

    # -- databases ----------------------------------------------------------------------------

    def _connect(self, *, timeout: float) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host=str(self.socket_dir),
            port=self.port,
            user=SUPERUSER,
            dbname="postgres",
            connect_timeout=max(2, int(timeout)),
            autocommit=True,
        )

    def _create_databases(self) -> None:
        with self._connect(timeout=10) as connection:
            rows = connection.execute("SELECT datname FROM pg_database").fetchall()
            present = {row[0] for row in rows}
            for name in self.databases:
                if name not in present:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def _no_groups(identity: Identity) -> list[int] | None:
    """No supplementary groups where the user changes; only root may ask for that."""
    return None if identity.uid is None else []


def _serves(pid: int, data_dir: Path) -> bool:
    """Whether process `pid` is a live server on `data_dir` (a server works in its data folder)."""
    if pid <= 0:
        return False
    process = Path(f"/proc/{pid}")
    if not Path("/proc/self").exists():  # not Linux: let Postgres judge its own pid file
        try:
            os.kill(pid, 0)
        except OSError:
            return False
        return True
    try:
        return (process / "cwd").readlink() == data_dir.resolve()
    except OSError:  # gone, a zombie, or not ours
        return False


def _socket_folder(root: Path, data_dir: Path, port: int) -> Path:
    """A folder for the socket whose path fits into a socket address."""
    own = root / "run"
    if len(str(own / f".s.PGSQL.{port}.lock")) < _SOCKET_PATH_LIMIT:
        return own
    name = f"mend-{os.geteuid()}-{hashlib.sha256(str(data_dir).encode()).hexdigest()[:10]}"
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and os.access(runtime, os.W_OK) and len(runtime) < _SOCKET_PATH_LIMIT // 2:
        return Path(runtime) / name
    return Path(tempfile.gettempdir()) / name
