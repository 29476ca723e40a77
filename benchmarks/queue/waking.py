"""From a submission to the claimed batch in an idle worker process, over the default broker."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from sqlalchemy import Engine

from benchmarks.queue.desk import Sizes
from benchmarks.queue.fleet import register, scalar, wait, worker
from ledger import edits
from ledger.db import database_now, transaction
from ledger.requests import EditRequest
from mend_core.datasets.edit import Edit
from mend_core.editors import MendConfig, MendEditor
from mend_core.models import load_base
from mend_core.testing import FACTS, save_base, tiny_base

WARM = 3
REST_SECONDS = (0.05, 0.6)
"""An idle worker sees edits at any moment of its broker's polling interval."""


def wake(engine: Engine, url: str, sizes: Sizes) -> dict[str, Any]:
    """Milliseconds from before the submitting commit to the claim, both by the database's clock.

    Postgres, one worker process of the embedded default (pgmq), nothing else to do; each edit is
    brought to its end before the next is submitted.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mend-bench-") as folder:
        home = Path(folder)
        source, editor = tiny_model(home)
        model_id = register(engine, "wake", source, editor)
        with worker(url, home, "wake"):
            taken = [_once(engine, model_id, turn) for turn in range(WARM + sizes.wakes)][WARM:]
    taken.sort()
    return {
        "wakes": len(taken),
        "wake_p50_ms": 1e3 * statistics.median(taken),
        "wake_p99_ms": 1e3 * taken[min(len(taken) - 1, int(len(taken) * 0.99))],
        "wake_max_ms": 1e3 * taken[-1],
    }


def _once(engine: Engine, model_id: int, turn: int) -> float:
    prompt, answer = FACTS[turn % len(FACTS)]
    request = EditRequest(prompt=f"{prompt} {turn}", target=answer)
    with transaction(engine) as conn:
        began = database_now(conn)
        edit_id = edits.submit(conn, model_id, request, actor="bench").edit_id
    done = """SELECT b.claimed_at FROM batch_edits AS c JOIN batches AS b ON b.id = c.batch_id
               WHERE c.edit_id = :edit AND b.state <> 'open'
                 AND NOT EXISTS (SELECT FROM leases WHERE worker IS NOT NULL)"""
    claimed = wait(lambda: scalar(engine, done, edit=edit_id), "the worker waking")
    time.sleep(random.uniform(*REST_SECONDS))  # noqa: S311 - a moment, not a secret
    return float((claimed - began).total_seconds())


def tiny_model(home: Path) -> tuple[Path, Path]:
    """A tiny Llama and an untrained editor for it."""
    source = save_base(tiny_base("llama"), home / "model")
    base = load_base(source)
    editor = MendEditor.create(base, MendConfig(rank=4))
    editor.calibrate(base, [Edit(str(i), *fact) for i, fact in enumerate(FACTS)])
    path = home / "editor.safetensors"
    editor.save(path)
    return source, path
