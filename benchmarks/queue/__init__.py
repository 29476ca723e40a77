"""What the queue costs: `python -m benchmarks queue [--json] [--quick] [--only PART] [--workers]`.

Every number is a ratio against raw SQL in the same run, or a time with the server's settings
beside it. Runs on DATABASE_URL where that is set, else on an embedded Postgres of its own in a
temporary folder. `--workers` adds what needs worker processes and a real model: two workers
extracting the factors of one batch against one worker.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.queue import accepting, claiming, rounds, side_by_side, waking
from benchmarks.queue.desk import QUICK, Sizes, server, settings
from ledger.db import engine_from_url

TARGETS: dict[str, tuple[str, float]] = {
    "bulk_accept_ratio": (">=", 0.5),
    "single_accept_ratio": (">=", 0.6),
    "claim_ratio": ("<=", 1.5),
    "overhead_ms_per_edit": ("<=", 1.0),
    "wake_p99_ms": ("<=", 100.0),
    "memory_growth_mib": ("<=", 8.0),
    "two_workers_speedup": (">=", 1.7),
}

PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "bulk": accepting.bulk_accept,
    "single": accepting.single_accept,
    "claims": claiming.claims,
    "overhead": rounds.overhead,
    "wake": waking.wake,
    "memory": rounds.memory,
}


def main(argv: list[str] | None = None) -> int:
    """Run and print; exit code 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="mend bench queue", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    parser.add_argument("--quick", action="store_true", help="small sizes, for a look")
    parser.add_argument(
        "--only", action="append", choices=[*PARTS, "workers"], help="only this part (repeatable)"
    )
    parser.add_argument("--workers", action="store_true", help="also two workers against one")
    options = parser.parse_args(argv)
    parts = {k: v for k, v in PARTS.items() if options.only is None or k in options.only}
    if options.workers or "workers" in (options.only or ()):
        parts["workers"] = side_by_side.two_workers
    with server() as url:
        measured = run(
            url, QUICK if options.quick else Sizes(), parts, say=None if options.json else _say
        )
    measured["missed"] = missed(measured)
    if options.json:
        print(json.dumps(measured))
    else:
        _table(measured)
    return 1 if measured["missed"] else 0


def run(
    url: str,
    sizes: Sizes,
    parts: dict[str, Callable[..., dict[str, Any]]] | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure parts (by default all that need no model) on a migrated database."""
    tell = say or (lambda _words: None)
    engine = engine_from_url(url)
    try:
        found: dict[str, Any] = {"server": settings(engine)}
        for title, part in (PARTS if parts is None else parts).items():
            began = time.perf_counter()
            found |= part(engine, url, sizes)
            tell(f"{title}: {time.perf_counter() - began:.1f} s")
        found["load"] = round(os.getloadavg()[0], 2)
        return found
    finally:
        engine.dispose()


def missed(measured: dict[str, Any]) -> list[str]:
    """Names of the measured targets that were not reached."""
    return [
        name
        for name, (sign, bound) in TARGETS.items()
        if name in measured and (measured[name] < bound if sign == ">=" else measured[name] > bound)
    ]


def _say(words: str) -> None:
    print(words, file=sys.stderr)


def _table(measured: dict[str, Any]) -> None:
    print("server:", ", ".join(f"{k}={v}" for k, v in measured["server"].items()))
    for name, value in measured.items():
        if not isinstance(value, int | float):
            continue
        target = ""
        if name in TARGETS:
            sign, bound = TARGETS[name]
            verdict = "MISSED" if name in measured["missed"] else "reached"
            target = f"  target {sign} {bound:g}: {verdict}"
        shown = f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
        print(f"{name:26} {shown:>14}{target}")
