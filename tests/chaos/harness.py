"""A whole service of real processes on a tiny model, to be used and abused by tests.

`Service` owns a ledger database, a home folder, a registered tiny model, and any number of worker
and beat processes, each in its own process group so that nothing outlives a test.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import text

from ledger import db, edits, jobs, migrate, models
from ledger.errors import DatabaseDown
from ledger.events import Listener
from ledger.records import Job, Model
from ledger.requests import Asked, EditRequest
from ledger.states import EditState, JobState

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mend_core.datasets.edit import Edit  # noqa: E402 - the path is set above
from mend_core.editors import load_editor  # noqa: E402
from mend_core.factors import version_digest  # noqa: E402
from mend_core.models import base_digest  # noqa: E402
from mend_core.probes import parse_policy  # noqa: E402

T = TypeVar("T")

ENDED = frozenset(
    {
        EditState.LIVE,
        EditState.QUARANTINED,
        EditState.FAILED,
        EditState.SUPERSEDED,
        EditState.REJECTED,
        EditState.CANCELLED,
        EditState.REVERTED,
    }
)
"""States in which an edit is decided."""

POLICY = """
name: chaos
hard: {update_norm: null, own_prompt: true}
success: null
generality: null
parent: null
drift: null
"""
"""Every new edit's own prompt must be answered; nothing else is asked of a random model."""


def children_of(pid: int) -> list[int]:
    """Direct children of a process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@dataclass
class Worker:
    """One started process of the service."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def child(self) -> int | None:
        """The spawned child that does the work (the youngest child that runs our code)."""
        kids = [pid for pid in children_of(self.pid) if b"spawn_main" in _command(pid)]
        return max(kids, default=None)

    def alive(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def end(self) -> None:
        """Kill the whole process group and reap it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(timeout=30)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@dataclass
class Service:
    """See the module."""

    url: str
    home: Path
    source: Path
    editor_path: Path
    broker: str = "pgmq://"
    sweep_seconds: float = 1.0
    lease_seconds: float = 3.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    policy: str = POLICY
    max_attempts: int = 5
    auto_promote: bool = True
    workers: list[Worker] = field(default_factory=list)
    started: int = 0

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        migrate.upgrade(self.url)
        self.engine = db.engine_from_url(self.url, pool_size=3, application_name="mend-test")
        self.model = self.register("tiny")

    def do(self, work: Callable[[Any], T]) -> T:
        """One transaction, tried again while the database is down."""
        deadline = time.monotonic() + 60
        while True:
            try:
                with db.transaction(self.engine) as conn:
                    return work(conn)
            except DatabaseDown:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def register(self, name: str) -> Model:
        editor = load_editor(self.editor_path)
        digest = base_digest(self.source)
        policy = parse_policy(self.policy)
        composition = editor.composition.to_dict()

        def write(conn: Any) -> Model:
            row = models.register_editor(
                conn,
                digest=editor.digest,
                kind=editor.kind,
                base_digest=digest,
                path=str(self.editor_path),
                meta={},
                actor="test",
            )
            return models.register(
                conn,
                name=name,
                source=str(self.source),
                base_digest=digest,
                editor_id=row.id,
                composition=composition,
                version_digest=version_digest(digest, editor.digest, composition, ()),
                policy=policy.to_dict(),
                policy_digest=policy.digest,
                settings=dict(self.settings),
                auto_promote=self.auto_promote,
                max_attempts=self.max_attempts,
                actor="test",
            )

        return self.do(write)

    # -- processes ---------------------------------------------------------------------------

    def start(
        self,
        role: str = "worker",
        *,
        name: str | None = None,
        url: str | None = None,
        log_level: str = "INFO",
        **env: str,
    ) -> Worker:
        """Start a worker or beat process; variables in `env` go to it alone, `url` too."""
        self.started += 1
        name = name or f"{role}{self.started}"
        log = self.home / f"{name}-{self.started}.log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MEND_")} | {
            "MEND_SWEEP_SECONDS": str(self.sweep_seconds),
            "MEND_LEASE_SECONDS": str(self.lease_seconds),
            "MEND_CHUNK_EDITS": "4",
            "MEND_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            **env,
        }
        with log.open("wb") as out:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "workers",
                    role,
                    "--database-url",
                    url or self.url,
                    "--broker-url",
                    self.broker,
                    "--home",
                    str(self.home),
                    "--name",
                    name,
                    "--log-level",
                    log_level,
                ],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        worker = Worker(name, process, log)
        self.workers.append(worker)
        return worker

    def stop(self) -> None:
        """End every process that was started."""
        for worker in self.workers:
            worker.end()
        self.workers.clear()
        self.engine.dispose()

    # -- work --------------------------------------------------------------------------------

    def submit(self, facts: Sequence[Edit], **more: Any) -> list[int]:
        """Submit edits in one transaction; gives their ids."""

        def write(conn: Any) -> list[int]:
            return [
                edits.submit(conn, self.model.id, request_of(fact, **more), actor="test").edit_id
                for fact in facts
            ]

        return self.do(write)

    def states(self, ids: Sequence[int]) -> dict[int, EditState]:
        return self.do(lambda conn: {e.id: e.state for e in edits.get_many(conn, ids)})

    def wait(self, check: Callable[[], T], what: str, timeout: float = 60.0) -> T:
        """Wait until `check` gives something true, woken by the ledger's notifications."""
        deadline = time.monotonic() + timeout
        while True:
            found = check()
            if found:
                return found
            left = deadline - time.monotonic()
            if left <= 0:
                raise AssertionError(f"{what}: not within {timeout:g} s\n{self.tails()}")
            try:
                with Listener(self.url) as listener:
                    listener.wait(min(left, 0.3))
            except DatabaseDown:
                time.sleep(0.1)

    def decided(self, ids: Sequence[int], timeout: float = 90.0) -> dict[int, EditState]:
        """Wait until every edit is decided."""

        def check() -> dict[int, EditState] | None:
            states = self.states(ids)
            return states if set(states.values()) <= ENDED else None

        return self.wait(check, f"deciding {len(ids)} edits", timeout)

    def idle(self, timeout: float = 60.0) -> None:
        """Wait until no batch is open and no job waits or runs."""
        query = text(
            "SELECT NOT EXISTS (SELECT FROM batches WHERE state = 'open') AND NOT EXISTS "
            "(SELECT FROM jobs WHERE state IN ('queued', 'running'))"
        )
        self.wait(
            lambda: self.do(lambda c: c.execute(query).scalar_one()), "coming to rest", timeout
        )

    def job(self, kind: str, payload: Mapping[str, Any], timeout: float = 60.0) -> Job:
        """Submit a job and wait for its end."""
        job = self.do(
            lambda c: jobs.submit(c, kind, dict(payload), model_id=self.model.id, actor="test")
        )

        def check() -> Job | None:
            now = self.do(lambda c: jobs.get(c, job.id))
            return (
                now if now.state in (JobState.DONE, JobState.FAILED, JobState.CANCELLED) else None
            )

        return self.wait(check, f"job {kind}", timeout)

    def ask(self, prompts: Sequence[str], version: str = "production") -> list[str]:
        job = self.job("ask", {"prompts": list(prompts), "version": version, "max_new_tokens": 4})
        assert job.result is not None, job.error
        return list(job.result["answers"])

    def scalar(self, query: str, **params: Any) -> Any:
        return self.do(lambda c: c.execute(text(query), params).scalar_one())

    def tails(self, lines: int = 25) -> str:
        """The ends of all logs, for a failure message."""
        return "\n".join(
            f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
            for log in sorted(self.home.glob("*.log"))
        )


def request_of(fact: Edit, **more: Any) -> EditRequest:
    return EditRequest(
        prompt=fact.prompt,
        target=fact.target,
        subject=fact.subject,
        paraphrases=fact.paraphrases,
        locality=tuple(Asked(prompt=p.prompt, answer=p.answer) for p in fact.locality),
        **more,
    )


@contextlib.contextmanager
def service(**options: Any) -> Iterator[Service]:
    """A service that is gone at the end of the block, whatever happened in it."""
    made = Service(**options)
    try:
        yield made
    finally:
        made.stop()
