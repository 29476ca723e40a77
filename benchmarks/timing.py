"""Ratios in one run: ours against a baseline, turn by turn, with their spread.

Turns alternate, so that a busy machine slows both; the ratio of each pair is taken and the median
shown with the smallest and largest. Compute is timed in CPU seconds, which a neighbour's work
hardly moves; work that waits for a disk is timed by the wall.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Measure:
    """One number against its goal.

    Attributes:
        name: What was measured.
        value: Median.
        low: Smallest of the repeats.
        high: Largest.
        goal: The number to reach, or None for information only.
        better: ``<=`` or ``>=``.
        unit: ``x`` for a ratio, ``s`` for seconds.
        detail: Medians behind it, in seconds, or a note.
    """

    name: str
    value: float
    low: float
    high: float
    goal: float | None
    better: str
    unit: str
    detail: str

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        if self.goal is None:
            return None
        return self.value <= self.goal if self.better == "<=" else self.value >= self.goal


def compare(
    name: str,
    ours: Callable[[], object],
    baseline: Callable[[], object],
    *,
    goal: float | None,
    better: str = "<=",
    repeats: int = 7,
    wall: bool = False,
) -> Measure:
    """Times two functions turn by turn: a cost ratio (``<=``), or a speed-up (``>=``)."""
    clock = time.perf_counter if wall else time.process_time
    ours()
    baseline()
    pairs = [(_seconds(ours, clock), _seconds(baseline, clock)) for _ in range(repeats)]
    ratios = [(mine / theirs if better == "<=" else theirs / mine) for mine, theirs in pairs]
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Measure(
        name,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        goal,
        better,
        "x",
        f"{mine * 1e3:.1f} ms against {theirs * 1e3:.1f} ms",
    )


def seconds(
    name: str, work: Callable[[], object], *, goal: float | None, repeats: int = 5
) -> Measure:
    """Times one function by the wall."""
    work()
    taken = [_seconds(work, time.perf_counter) for _ in range(repeats)]
    middle = statistics.median(taken)
    return Measure(name, middle, min(taken), max(taken), goal, "<=", "s", f"{repeats} repeats")


def ratio(name: str, value: float, *, goal: float | None, detail: str) -> Measure:
    """A ratio that needs no clock (bytes)."""
    return Measure(name, value, value, value, goal, "<=", "x", detail)


def _seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    work()
    return clock() - start


def peak_bytes(work: Callable[[], object]) -> tuple[int, int]:
    """Peak resident memory while `work` runs, and the resident memory before it (Linux).

    Runs in a forked child, whose heap holds nothing freed by earlier work.
    """
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # starts the high-water mark anew
            before = _status("VmRSS")
            work()
            os.write(theirs, f"{_status('VmHWM')} {before}".encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as answer:
        peak, idle = (int(number) for number in answer.read().split())
    os.waitpid(child, 0)
    return peak, idle


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = found[0].split(":", 1)[1].strip() if found else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }


def show(title: str, measures: Sequence[Measure], *, as_json: bool) -> int:
    """Prints a table or one JSON object; 1 if a goal is missed."""
    missed = [m.name for m in measures if m.met is False]
    if as_json:
        rows = [{**asdict(m), "met": m.met} for m in measures]
        report = {"benchmark": title, "machine": machine(), "measures": rows, "missed": missed}
        print(json.dumps(report))
        return 1 if missed else 0
    print(f"{title}  ({', '.join(f'{k} {v}' for k, v in machine().items())})")
    for m in measures:
        goal = f"{m.better} {m.goal:g}" if m.goal is not None else "-"
        mark = {True: "ok", False: "MISSED", None: ""}[m.met]
        print(
            f"  {m.name:<58} {m.value:>8.3f} {m.unit} [{m.low:.3f}, {m.high:.3f}]  "
            f"goal {goal:<8} {mark:<7} {m.detail}"
        )
    return 1 if missed else 0
