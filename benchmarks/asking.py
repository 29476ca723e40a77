"""How long a question waits beside a batch: `python -m benchmarks asking [--json]`.

One worker process of one torch thread makes a batch of edits live; meanwhile questions are asked
one after the other with short rests. Each is timed from before its submission until its answer is
in the ledger. Before the batch the same question is asked of the idle worker.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sqlalchemy import Engine

from benchmarks.editing import edits_of
from benchmarks.queue import fleet
from benchmarks.queue.desk import server
from benchmarks.queue.waking import tiny_model
from benchmarks.timing import machine
from ledger import edits, jobs, models
from ledger.db import engine_from_url, transaction
from ledger.requests import Asked, EditRequest
from ledger.states import JobState
from mend_core.datasets import Edit, read_edits

TINY = "tiny"
QUESTION = "The capital of France is"
GOAL_SECONDS = 5.0
"""The 95th percentile to reach beside a batch."""

IDLE_QUESTIONS = 10
REST_SECONDS = (0.2, 1.5)
"""Rest between two questions: they come at any moment of the batch."""

OPEN = """SELECT count(*) FROM edits AS e LEFT JOIN batches AS b ON b.id = e.batch_id
 WHERE e.model_id = :model AND (e.state IN ('submitted', 'queued', 'claimed')
       OR (e.state = 'applied' AND b.state = 'open'))"""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured.

    Attributes:
        source: "smollm2", a folder, or "tiny" for a random model made on the spot.
        editor: As at registration; ignored for "tiny".
        edits: The batch.
        policy: Name of the shipped gate policy.
        patience: Seconds after which the measurement ends, batch or no batch.
    """

    source: str
    editor: str
    edits: Sequence[Edit]
    policy: str = "default"
    patience: float = 3600.0


def measure(engine: Engine, url: str, setting: Setting) -> dict[str, Any]:
    """Seconds that questions wait, beside an idle worker and beside a batch."""
    with tempfile.TemporaryDirectory(prefix="mend-bench-") as folder:
        home = Path(folder)
        source, editor = setting.source, setting.editor
        if source == TINY:
            source, editor = (str(path) for path in tiny_model(home))
        with fleet.worker(url, home, "asking"):
            payload = {"name": "asked", "source": source, "editor": editor}
            payload["policy"] = setting.policy
            _run(engine, None, "register", payload)
            with transaction(engine) as conn:
                model_id = models.get(conn, "asked").id
            _ask(engine, model_id)
            idle = [_ask(engine, model_id) for _ in range(IDLE_QUESTIONS)]
            with transaction(engine) as conn:
                requests = [_request(edit) for edit in setting.edits]
                edits.submit_many(conn, model_id, requests, actor="bench")
            began, beside = time.monotonic(), []
            while fleet.scalar(engine, OPEN, model=model_id):
                beside.append(_ask(engine, model_id))
                time.sleep(random.uniform(*REST_SECONDS))  # noqa: S311 - a moment, not a secret
                if time.monotonic() - began > setting.patience:
                    break
            took = time.monotonic() - began
            with transaction(engine) as conn:
                states = {s: n for s, n in edits.counts(conn, model_id).items() if n}
    return {
        "source": setting.source,
        "edits": len(setting.edits),
        "states": states,
        "batch_seconds": round(took, 1),
        "questions": len(beside),
        "idle": _told(idle),
        "beside": _told(beside),
        "goal_p95_seconds": GOAL_SECONDS,
    }


def _told(taken: list[float]) -> dict[str, float]:
    ordered = sorted(taken)
    return {
        "p50_seconds": round(statistics.median(ordered), 2),
        "p95_seconds": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))], 2),
        "max_seconds": round(ordered[-1], 2),
    }


def _request(edit: Edit) -> EditRequest:
    return EditRequest(
        prompt=edit.prompt,
        target=edit.target,
        subject=edit.subject,
        paraphrases=edit.paraphrases,
        locality=tuple(Asked(prompt=p.prompt, answer=p.answer) for p in edit.locality),
        reason="benchmark",
    )


def _ask(engine: Engine, model_id: int) -> float:
    """Seconds from before the submission of a question until its answer is there."""
    began = time.perf_counter()
    _run(engine, model_id, "ask", {"prompts": [QUESTION]})
    return time.perf_counter() - began


def _run(engine: Engine, model_id: int | None, kind: str, payload: dict[str, Any]) -> None:
    with transaction(engine) as conn:
        job = jobs.submit(conn, kind, payload, model_id=model_id, actor="bench")
    ended = (JobState.DONE, JobState.FAILED)

    def look() -> Any:
        with transaction(engine) as conn:
            found = jobs.get(conn, job.id)
        return found if found.state in ended else None

    found = fleet.wait(look, f"the job {kind}", patience=600.0)
    assert found.state is JobState.DONE, found.error


def main(argv: list[str] | None = None) -> int:
    """Run and print; exit code 1 where the goal is missed."""
    parser = argparse.ArgumentParser(prog="mend bench asking", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    parser.add_argument(
        "--model", default=TINY, help="tiny (default), smollm2, or a model's folder"
    )
    parser.add_argument(
        "--editor", default="shipped", help="shipped, shipped:NAME or a file; not for tiny"
    )
    parser.add_argument("--edits", type=int, default=100, help="edits in the batch (default 100)")
    parser.add_argument("--data", type=Path, help="file of edits; default: invented facts")
    parser.add_argument("--policy", default="default", help="gate policy (default: default)")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = edits_of(options.edits) if options.data is None else _first(options.data, options.edits)
    setting = Setting(options.model, options.editor, found, options.policy)
    with server() as url:
        engine = engine_from_url(url)
        try:
            before = os.getloadavg()[0]
            measured = measure(engine, url, setting)
        finally:
            engine.dispose()
    measured |= {"machine": machine() | {"load_before": round(before, 1)}}
    missed = measured["beside"]["p95_seconds"] > GOAL_SECONDS
    if options.json:
        print(json.dumps(measured))
    else:
        print(f"asking  ({', '.join(f'{k} {v}' for k, v in measured['machine'].items())})")
        print(f"  {len(found)} edits on {options.model}: {measured['batch_seconds']} s, "
              f"{', '.join(f'{n} {s}' for s, n in measured['states'].items())}")  # fmt: skip
        for name in ("idle", "beside"):
            said = ", ".join(f"{k.partition('_')[0]} {v} s" for k, v in measured[name].items())
            print(f"  {name:<7} {said}")
        print(f"  goal: p95 beside the batch <= {GOAL_SECONDS:g} s: "
              f"{'MISSED' if missed else 'reached'}")  # fmt: skip
    return 1 if missed else 0


def _first(path: Path, count: int) -> list[Edit]:
    """The first edits of a file; records that are none are passed over."""
    found = []
    for edit in read_edits(path, on_error=lambda _error: None):
        found.append(edit)
        if len(found) == count:
            break
    return found


if __name__ == "__main__":
    sys.exit(main())
