"""Random faults from one seed, against a whole service of real processes.

The order of faults, their points and the edits submitted with each depend on the seed alone; when
exactly they strike does not, as in life. Whatever happens, every accepted edit must be decided in
the end, none twice, and every invariant must hold.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import text

from ledger import doctor, versions
from ledger.embedded import EmbeddedPostgres
from ledger.home import libpq
from ledger.states import EditState
from mend_core.datasets.edit import Edit
from mend_core.errors import MendError
from mend_core.factors import FactorStore, version_digest
from tests.chaos.disk import SmallDisk
from tests.chaos.harness import Service, Worker, is_running
from tests.chaos.proxy import Proxy
from tests.workers.tiny import CITIES, COUNTRIES
from workers import faults
from workers.jobs.doctor import recomputer
from workers.settings import Settings

EDITS_PER_FAULT = (1, 4)
POISONOUS = 0.05
"""Share of submissions that hold an edit no model can take (its prompt is too long)."""

SKEW_SECONDS = 86_400.0

DECIDED_SECONDS = 180.0


@dataclass
class Tally:
    """What a run saw."""

    faults: Counter[str] = field(default_factory=Counter)
    accepted: set[int] = field(default_factory=set)
    findings: list[str] = field(default_factory=list)
    rebuilt: int = 0


class Chaos:
    """One run.

    Args:
        server: The Postgres server, ours to kill; None where it is not (then it is not killed).
        service: The service under test.
        seed: Of the order of faults.
        log: Receives a line per fault.
        proxy: What worker w2 reaches Postgres through; None: its network is not broken.
        disk: A small disk under the store; None: it is never really full.
    """

    def __init__(
        self,
        server: EmbeddedPostgres | None,
        service: Service,
        seed: int,
        log: Callable[[str], None],
        *,
        proxy: Proxy | None = None,
        disk: SmallDisk | None = None,
    ) -> None:
        self.server, self.service, self.log = server, service, log
        self.proxy, self.disk = proxy, disk
        self.random = random.Random(seed)
        self.tally = Tally()
        self.arm = service.home / "fault"
        self.fleet: dict[str, Worker] = {}
        self.kinds: dict[str, Callable[[], None]] = {
            "kill_child_at_point": lambda: self.at_point("kill"),
            "kill_parent_at_point": lambda: self.at_point("killparent"),
            "stop_child_past_lease": self.stop_child,
            "kill_child": self.kill_child,
            "kill_parent": self.kill_parent,
            "kill_beat": self.kill_beat,
            "disk_full": self.disk_full,
            "error_at_point": lambda: self.at_point("raise"),
            "connection_lost_at_point": lambda: self.at_point("db"),
            "connections_cut": self.cut_connections,
            "half_open_connection": self.half_open,
            "wakeups_lost": self.lose_wakeups,
            "wakeups_duplicated": self.duplicate_wakeups,
            "broker_gone": self.broker_gone,
            "same_name": self.same_name,
            "clock_skew": self.clock_skew,
        }
        if server is not None:
            self.kinds["kill_postmaster"] = self.kill_postmaster
        if proxy is not None:
            self.kinds["half_open_network"] = self.half_open_network
        if disk is not None:
            self.kinds["disk_really_full"] = self.disk_really_full

    # -- the fleet ---------------------------------------------------------------------------

    def keep_up(self) -> None:
        """What a supervisor does: start again whatever has died."""
        for name, role in (("w1", "worker"), ("w2", "worker"), ("beat", "beat")):
            worker = self.fleet.get(name)
            if worker is None or not worker.alive():
                self.fleet[name] = self.service.start(
                    role,
                    name=name,
                    url=self.proxy.url if self.proxy is not None and name == "w2" else None,
                    MEND_FAULT_FILE=str(self.arm),
                )

    def a_worker(self) -> Worker:
        return self.fleet[self.random.choice(["w1", "w2"])]

    # -- faults ------------------------------------------------------------------------------

    def at_point(self, action: str) -> None:
        # Only points that a batch passes on its way: others might never be reached.
        points = [p for p in faults.POINTS if p not in ("mid-bisect", "job-running")]
        self.arm.write_text(f"{self.random.choice(points)}:{action}")

    def stop_child(self) -> None:
        child = self.a_worker().child()
        if child is None:
            return
        os.kill(child, signal.SIGSTOP)
        time.sleep(self.service.lease_seconds * 1.5)
        if is_running(child):
            os.kill(child, signal.SIGCONT)

    def kill_child(self) -> None:
        child = self.a_worker().child()
        if child is not None and is_running(child):
            os.kill(child, signal.SIGKILL)

    def kill_parent(self) -> None:
        self.a_worker().signal(signal.SIGKILL)

    def kill_beat(self) -> None:
        self.fleet["beat"].signal(signal.SIGKILL)

    def kill_postmaster(self) -> None:
        assert self.server is not None
        pid = self.server.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        time.sleep(self.random.uniform(0, 1.0))
        self.server.stop()
        self.server.start()

    def disk_full(self) -> None:
        self.arm.write_text(f"{self.random.choice(['after-factor', 'before-rename'])}:enospc")

    def disk_really_full(self) -> None:
        """Not a byte left for a while: every write fails as it would on a full disk."""
        assert self.disk is not None
        self.disk.fill()
        time.sleep(self.service.lease_seconds)
        self.disk.free()

    def half_open_network(self) -> None:
        """The network of w2 swallows every packet of the connections it has; then they break."""
        assert self.proxy is not None
        self.proxy.freeze()
        time.sleep(self.service.lease_seconds * 1.5)
        self.proxy.drop()

    def _admin(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(libpq(self.service.url), autocommit=True) as admin:
            cursor = admin.execute(query, values)
            return cursor.fetchall() if cursor.description else []

    def cut_connections(self) -> None:
        self._admin(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND application_name <> 'mend-test'"
        )

    def half_open(self) -> None:
        """Freeze the server's end of one idle connection of a worker: packets vanish."""
        found = self._admin(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name = 'mend-worker' AND state = 'idle' ORDER BY pid"
        )
        if not found:
            return
        pid = self.random.choice(found)[0]
        os.kill(pid, signal.SIGSTOP)
        time.sleep(self.service.lease_seconds)
        os.kill(pid, signal.SIGCONT)
        self._admin("SELECT pg_terminate_backend(%s)", pid)

    def lose_wakeups(self) -> None:
        self._admin("DELETE FROM pgmq.q_mend")

    def duplicate_wakeups(self) -> None:
        self._admin(
            "INSERT INTO pgmq.q_mend (vt, message, headers) "
            "SELECT clock_timestamp(), message, headers FROM pgmq.q_mend, generate_series(1, 20)"
        )

    def broker_gone(self) -> None:
        """Take the broker's schema away; back it comes, or a restarted worker makes a new one."""
        self._admin("ALTER SCHEMA pgmq RENAME TO pgmq_gone")
        try:
            time.sleep(2.0)
        finally:
            if self._admin("SELECT 1 WHERE to_regnamespace('pgmq') IS NULL"):
                self._admin("ALTER SCHEMA pgmq_gone RENAME TO pgmq")
            else:
                self._admin("DROP SCHEMA pgmq_gone CASCADE")

    def same_name(self) -> None:
        twin = self.service.start(name="w1", MEND_FAULT_FILE=str(self.arm))
        self.fleet[f"twin{self.service.started}"] = twin
        self._retire(twin)

    def clock_skew(self) -> None:
        """A worker whose host's clock is a day off."""
        folder = self.service.home / "skew"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(
            "import time\nreal = time.time\n"
            f"time.time = lambda: real() + {self.random.choice([-1, 1]) * SKEW_SECONDS}\n"
        )
        skewed = self.service.start(
            name="skewed", PYTHONPATH=f"{folder}:{Path.cwd()}", MEND_FAULT_FILE=str(self.arm)
        )
        self._retire(skewed)

    def _retire(self, worker: Worker) -> None:
        """Let an extra worker live through one round; it is killed in the next."""
        self.extra.append((worker, self.round))

    extra: list[tuple[Worker, int]]
    round: int = 0

    # -- the run -----------------------------------------------------------------------------

    def plan(self, count: int) -> list[tuple[str, list[Edit]]]:
        """Faults and edits in order, a function of the seed alone.

        Every kind comes once before any comes twice.
        """
        kinds: list[str] = []
        while len(kinds) < count:
            deck = sorted(self.kinds)
            self.random.shuffle(deck)
            kinds += deck
        return [(kind, self._edits(number)) for number, kind in enumerate(kinds[:count])]

    def _edits(self, number: int) -> list[Edit]:
        chosen = self.random.sample(range(len(COUNTRIES)), self.random.randint(*EDITS_PER_FAULT))
        made = [
            Edit(
                id=f"{number}.{i}",
                prompt=f"The capital of {COUNTRIES[i]}",
                target=self.random.choice(CITIES),
            )
            for i in chosen
        ]
        if self.random.random() < POISONOUS:
            made.append(Edit(id=f"{number}.x", prompt=f"river {number} " * 40, target="city1"))
        return made

    def run(self, count: int) -> None:
        """Strike `count` times; wait after each until everything is decided."""
        self.extra = []
        self.keep_up()
        self.service.ask(["The river in city1"])  # up, and the broker's tables are made
        for number, (kind, batch) in enumerate(self.plan(count)):
            self.round = number
            began = time.monotonic()
            self.tally.faults[kind] += 1
            if kind.endswith("_at_point") or kind == "disk_full":
                self.kinds[kind]()
                self.tally.accepted.update(self.service.submit(batch))
            else:
                self.tally.accepted.update(self.service.submit(batch))
                time.sleep(self.random.uniform(0, 0.5))
                self.kinds[kind]()
            self._settle(kind)
            for worker, born in list(self.extra):
                if born < number:
                    worker.end()
                    self.extra.remove((worker, born))
            self._look(deep=False)
            self.log(f"{number + 1}/{count} {kind}: {time.monotonic() - began:.1f} s")
        self.arm.unlink(missing_ok=True)
        self.service.idle(DECIDED_SECONDS)
        self._look(deep=True)
        self._rebuild()

    def _settle(self, kind: str) -> None:
        """Keep the fleet up until every accepted edit is decided."""
        query = text(
            "SELECT count(*) FROM edits WHERE state IN "
            "('submitted', 'queued', 'claimed', 'applied', 'awaiting_approval')"
        )

        def done() -> bool:
            self.keep_up()
            return self.service.do(lambda c: c.execute(query).scalar_one()) == 0

        self.service.wait(done, f"deciding every edit after {kind}", DECIDED_SECONDS)
        self.arm.unlink(missing_ok=True)

    def _look(self, *, deep: bool) -> None:
        config = Settings(self.service.url, "pgmq://", self.service.home, "chaos")
        found = self.service.do(
            lambda c: doctor.check(c, deep=deep, recompute=recomputer(config) if deep else None)
        )
        self.tally.findings += [f"{f.rule}: {f.thing}: {f.problem}" for f in found]

    def _rebuild(self) -> None:
        """Build every version again from its factors alone and compare digests."""
        store = FactorStore(self.service.home / "store" / "factors")
        every = self.service.do(
            lambda c: [
                (v, versions.live_set(c, v.id))
                for v in versions.list_versions(c, self.service.model.id)
            ]
        )
        for version, members in every:
            try:
                digests = [store.get(m.factor_digest).digest for m in members]
            except MendError as error:
                self.tally.findings.append(f"version {version.number}: {error}")
                continue
            again = version_digest(
                version.base_digest, version.editor_digest, version.composition, digests
            )
            if again == version.digest:
                self.tally.rebuilt += 1
            else:
                self.tally.findings.append(f"version {version.number}: rebuilt as {again}")

    def summary(self, seed: int, seconds: float) -> dict[str, Any]:
        """The line a run ends with."""
        found = self.service.states(sorted(self.tally.accepted))
        states = Counter(found.values())
        production = self.service.do(
            lambda c: versions.live_set(c, versions.find(c, self.service.model.id, "production").id)
        )
        in_set = Counter(m.edit_id for m in production)
        live = {
            i
            for i, s in self.service.states(sorted(self.tally.accepted)).items()
            if s is EditState.LIVE
        }
        ended = sum(
            states[s]
            for s in (
                EditState.LIVE,
                EditState.QUARANTINED,
                EditState.FAILED,
                EditState.SUPERSEDED,
                EditState.REVERTED,
            )
        )
        lost = len(self.tally.accepted) - ended + len(live - set(in_set))
        doubled = sum(1 for n in in_set.values() if n > 1) + len(set(in_set) - live)
        return {
            "seed": seed,
            "faults": dict(sorted(self.tally.faults.items())),
            "accepted": len(self.tally.accepted),
            "live": states[EditState.LIVE],
            "quarantined": states[EditState.QUARANTINED],
            "failed": states[EditState.FAILED],
            "superseded": states[EditState.SUPERSEDED],
            "lost": lost,
            "doubled": doubled,
            "versions_rebuilt": self.tally.rebuilt,
            "invariants_failed": len(self.tally.findings),
            "seconds": round(seconds, 1),
        }
