"""The queue's benchmark at small sizes: that it runs and says what it should, not how fast."""

import torch

from benchmarks import queue
from benchmarks.queue.desk import Sizes

SMALL = Sizes(bulk=200, bulk_turns=1, single=3, few=300, many=600, rounds=2, drain=1_500)


def test_every_part_without_processes_runs(ledger_url):
    torch.set_num_threads(1)
    parts = {name: part for name, part in queue.PARTS.items() if name != "wake"}
    found = queue.run(ledger_url, SMALL, parts)
    wanted = set(queue.TARGETS) - {"wake_p99_ms", "two_workers_speedup"}
    assert wanted <= set(found)
    assert found["server"]["fsync"] == "on"
    assert found["memory_edits"] == 1_500
    assert set(queue.missed(found)) <= wanted
