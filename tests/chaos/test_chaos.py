"""A short run of the chaos suite; `make chaos` is the long one."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.chaos.harness import Service
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
)
"""Kinds that start no new worker process, which on two cores costs more than all else."""


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_a_few_random_faults_lose_and_double_nothing(ledger_url, tmp_path):
    torch.set_num_threads(1)
    source = tiny.make_model(tmp_path / "model")
    editor = tmp_path / "editor.safetensors"
    tiny.make_editor(source, editor, learning_rate=0.2)
    service = Service(url=ledger_url, home=tmp_path / "home", source=source, editor_path=editor)
    lines = []
    try:
        chaos = Chaos(None, service, 7, lines.append)
        chaos.kinds = {kind: chaos.kinds[kind] for kind in QUICK}
        chaos.run(len(QUICK))
        summary = chaos.summary(7, 0.0)
    finally:
        service.stop()
    assert chaos.tally.findings == []
    assert summary["lost"] == summary["doubled"] == summary["invariants_failed"] == 0
    assert summary["accepted"] >= len(QUICK)
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
