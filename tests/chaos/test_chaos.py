"""A short run of the chaos suite; `make chaos` is the long one."""

import sys
from pathlib import Path

import psycopg
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ledger.home import libpq
from tests.chaos.disk import SmallDisk
from tests.chaos.harness import Service
from tests.chaos.proxy import Proxy
from tests.chaos.runner import Chaos
from tests.workers import tiny

QUICK = (
    "wakeups_duplicated",
    "wakeups_lost",
    "connections_cut",
    "disk_full",
    "connection_lost_at_point",
    "error_at_point",
    "kill_beat",
    "disk_really_full",
    "half_open_network",
)
"""Kinds that start few new worker processes, which on two cores cost more than all else."""


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_a_few_random_faults_lose_and_double_nothing(ledger_url, tmp_path):
    torch.set_num_threads(1)
    source = tiny.make_model(tmp_path / "model")
    editor = tmp_path / "editor.safetensors"
    tiny.make_editor(source, editor, learning_rate=0.2)
    disk = SmallDisk(tmp_path / "home" / "store")
    reason = disk.mount()
    if reason is not None:
        sys.stderr.write(f"disk_really_full is left out, no small disk can be mounted: {reason}\n")
    proxy = Proxy(ledger_url)
    service = Service(url=ledger_url, home=tmp_path / "home", source=source, editor_path=editor)
    lines = []
    try:
        chaos = Chaos(
            None, service, 7, lines.append, proxy=proxy, disk=disk if reason is None else None
        )
        chaos.kinds = {k: v for k, v in chaos.kinds.items() if k in QUICK}
        chaos.run(len(chaos.kinds))
        summary = chaos.summary(7, 0.0)
    finally:
        service.stop()
        proxy.close()
        disk.unmount()
    assert chaos.tally.findings == []
    assert summary["lost"] == summary["doubled"] == summary["invariants_failed"] == 0
    assert summary["accepted"] >= len(chaos.kinds)
    assert summary["versions_rebuilt"] >= 1


def test_one_seed_gives_one_order_of_faults():
    class Home:
        home = Path("/nowhere")
        lease_seconds = 1.0

    def plan(seed):
        return Chaos(None, Home, seed, print).plan(40)

    assert plan(3) == plan(3)
    assert plan(3) != plan(4)
    assert {kind for kind, _ in plan(5)} == set(Chaos(None, Home, 5, print).kinds)


def test_a_frozen_connection_hangs_and_new_ones_work(ledger_url):
    proxy = Proxy(ledger_url)
    try:
        with psycopg.connect(libpq(proxy.url), autocommit=True) as old:
            assert old.execute("SELECT 1").fetchone() == (1,)
            assert proxy.freeze() == 1
            old.pgconn.send_query(b"SELECT 2")
            with psycopg.connect(libpq(proxy.url)) as new:
                assert new.execute("SELECT 3").fetchone() == (3,)
            old.pgconn.consume_input()
            assert old.pgconn.is_busy()  # asked before the other was answered, and still waiting
            proxy.drop()
            with pytest.raises(psycopg.OperationalError):
                old.wait(psycopg.generators.fetch(old.pgconn))
    finally:
        proxy.close()


def test_a_full_small_disk_is_full_until_it_is_freed(tmp_path):
    disk = SmallDisk(tmp_path / "small")
    reason = disk.mount()
    if reason is not None:
        pytest.skip(f"no small disk can be mounted: {reason}")
    try:
        disk.fill()
        with pytest.raises(OSError, match="No space left"):
            (disk.folder / "one").write_bytes(bytes(4096))
        disk.free()
        (disk.folder / "two").write_bytes(bytes(4096))
    finally:
        disk.unmount()
