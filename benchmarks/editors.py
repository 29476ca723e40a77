"""Editors side by side: `python -m benchmarks editors --data FILE --sizes 1,10,100 --methods all`.

One table, method × number of edits applied together. Scores come from `mend_core.probes`, the same
code that gates a version: teacher-forced tokens, teacher-forced whole answers and free-running
answers; locality is against the base's own answers. For small sizes several independent batches are
averaged. The same seed gives the same batches and scores.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mend_core.datasets import Edit, read_edits
from mend_core.digests import file_digest
from mend_core.editors import (
    Editor,
    FinetuneConfig,
    FinetuneEditor,
    FinetuneKLEditor,
    UltraEditor,
    load_editor,
)
from mend_core.editors.shipped import shipped_editor, shipped_editors
from mend_core.errors import DataError, MendError
from mend_core.factors import materialise
from mend_core.models import Base, load_base
from mend_core.probes import ProbeItem, ProbeKind, build_suite, summarise
from mend_core.probes.asking import unaskable
from mend_core.probes.results import harmonic_mean
from mend_core.probes.scoring import Scorer

UNTRAINED = ("ultra", "finetune", "finetune_kl")
"""Methods that need no editor file."""

CALIBRATION_EDITS = 64
TEXT_CHARACTERS = 1500
USER_ERROR = 2


@dataclass(frozen=True, slots=True)
class Line:
    """One method at one size; shares are means over batches, None where nothing was asked.

    Attributes:
        method: Name of the method or editor file.
        edits: Edits applied together.
        batches: Independent batches averaged.
        forced: ES, GS, LS and their harmonic mean, teacher-forced, share of tokens.
        exact: The same for whole answers, teacher-forced.
        free: The same for free-running answers.
        portability: What follows from the edits: shares teacher-forced by tokens, by whole answers,
            and free-running; None where the data ask nothing of the sort.
        perplexity_ratio: Edited over base on the texts; None without `--texts`.
        kl: KL(base ‖ edited) on the texts, nats per token.
        seconds_per_edit: Making the weight change, wall time.
        peak_mb: Memory above what the loaded base takes, while making it.
        editor_mb: Size of the editor's tensors.
        failed: Why there are no numbers, if so.
    """

    method: str
    edits: int
    batches: int
    forced: tuple[float | None, ...] = ()
    exact: tuple[float | None, ...] = ()
    free: tuple[float | None, ...] = ()
    portability: tuple[float | None, ...] = ()
    perplexity_ratio: float | None = None
    kl: float | None = None
    seconds_per_edit: float | None = None
    peak_mb: float | None = None
    editor_mb: float | None = None
    failed: str | None = None


def parser() -> argparse.ArgumentParser:
    """All options."""
    p = argparse.ArgumentParser(prog="mend bench editors", description=__doc__.split("\n")[0])
    p.add_argument("--model", default="smollm2", help="base: smollm2, a folder or a hub id")
    p.add_argument("--data", required=True, type=Path, help="edits to apply and score")
    p.add_argument("--train", type=Path, help="edits for FT+KL's locality and ultra's statistics")
    p.add_argument("--texts", type=Path, help="plain text for the perplexity ratio")
    p.add_argument("--sizes", default="1,10,100", help="numbers of edits, e.g. 1,10,100,1000")
    p.add_argument("--methods", default="all", help="all, or names: ultra,finetune,mend,…")
    p.add_argument("--editors", nargs="*", default=[], type=Path, help="more editor files")
    p.add_argument("--matrices", nargs="+", help="matrices of the untrained methods")
    p.add_argument("--probed", type=_count, default=100, help="edits scored per batch, at most")
    p.add_argument("--batches", type=_count, default=20, help="independent batches, at most")
    p.add_argument("--lr", type=_positive, default=1e-4, help="step size of FT and FT+KL")
    p.add_argument("--steps", type=_count, default=100, help="steps of FT and FT+KL")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="cpu")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    p.add_argument("--plot", type=Path, help="write a plot of HM against edits (.png, .svg)")
    return p


def _count(text: str) -> int:
    """A whole number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _positive(text: str) -> float:
    """A number above 0."""
    number = float(text)
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return number


def main(argv: Sequence[str]) -> int:
    """Run; 0, or 2 on a user's mistake."""
    args = parser().parse_args(argv)
    try:
        return _run(args)
    except (MendError, ValueError) as error:
        print(f"mend bench editors: {error}", file=sys.stderr)
        return USER_ERROR


def _run(args: argparse.Namespace) -> int:
    console = Console(stderr=True)
    sizes = _sizes(args.sizes)
    if args.plot:
        _check_plot(args.plot)
    edits = _read(args.data, console)
    if max(sizes) > len(edits):
        raise DataError(
            str(args.data), None, None, f"holds {len(edits)} edits, fewer than {max(sizes)}"
        )
    train = _read(args.train, console) if args.train else []
    texts = _texts(args.texts)
    base = load_base(args.model, device=args.device)
    edits = _usable(base, edits, max(sizes), args, console)
    editors = _editors(args, base, train)
    lines = []
    for size in sizes:
        batches = [
            # The text is asked of one batch; the base's own answers serve every method.
            Batch(edits, Scorer(base, build_suite(edits[: args.probed], () if number else texts)))
            for number, edits in enumerate(_batches(edits, size, args))
        ]
        for name, editor in editors.items():
            line = _measure(base, name, editor, batches)
            lines.append(line)
            console.print(_said(line), highlight=False)
    report = {
        "model": args.model,
        "base": base.digest,
        "data": {"name": args.data.name, "sha256": file_digest(args.data), "edits": len(edits)},
        "seed": args.seed,
        "threads": torch.get_num_threads(),
        "lines": [asdict(line) for line in lines],
    }
    if args.plot:
        _plot(args.plot, lines)
    if args.json:
        print(json.dumps(report))
    else:
        Console(width=170).print(_table(lines))
    return 0


def _sizes(text: str) -> list[int]:
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise ValueError(f"--sizes {text!r}: expected numbers such as 1,10,100") from error
    if sizes[0] < 1:
        raise ValueError(f"--sizes {text!r}: a size must be at least 1")
    return sizes


def _read(path: Path, console: Console) -> list[Edit]:
    """The edits of a file; records that are none are told and passed over."""
    skipped: list[DataError] = []
    edits = list(read_edits(path, on_error=skipped.append))
    for error in skipped[:3]:
        console.print(f"skipped: {error}", markup=False, highlight=False)
    if len(skipped) > 3:  # noqa: PLR2004 - those just told
        console.print(f"skipped: {len(skipped) - 3} more of {path}", markup=False)
    return edits


def _usable(
    base: Base, edits: Sequence[Edit], least: int, args: argparse.Namespace, console: Console
) -> list[Edit]:
    """The edits this model can be asked; one that is too long shall not fail its whole batch.

    Raises:
        DataError: Fewer are left than the largest size.
    """
    drawn = {e.id: e for size in _sizes(args.sizes) for b in _batches(edits, size, args) for e in b}
    bad = unaskable(base, list(drawn.values()))
    for number, reason in list(bad.items())[:3]:
        console.print(f"left out: edit {number}: {reason}", markup=False, highlight=False)
    if not bad:
        return list(edits)
    left = [e for e in edits if e.id not in bad]
    if len(left) < least:
        raise DataError(
            str(args.data), None, None, f"holds {len(left)} usable edits, fewer than {least}"
        )
    return _usable(base, left, least, args, console)


def _check_plot(path: Path) -> None:
    """Refuse, before hours of measuring, a place or form no plot can be written in.

    Raises:
        ValueError: An ending matplotlib does not know, or a folder that cannot be written to.
    """
    import matplotlib as mpl  # noqa: PLC0415 - slow, and only for --plot

    mpl.use("agg")
    from matplotlib.backend_bases import FigureCanvasBase  # noqa: PLC0415

    if path.suffix.lstrip(".").lower() not in FigureCanvasBase.get_supported_filetypes():
        raise ValueError(f"--plot {path}: name a file that ends in .png, .svg or .pdf")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"--plot {path}: cannot be written ({error.strerror})") from error


def _texts(path: Path | None) -> list[ProbeItem]:
    """About 6,000 characters of the file, in passages."""
    if path is None:
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(str(path), None, None, f"cannot be read as text: {error}") from error
    passages = [
        text[start : start + TEXT_CHARACTERS]
        for start in range(0, min(len(text), 4 * TEXT_CHARACTERS), TEXT_CHARACTERS)
    ]
    return [
        ProbeItem(f"text:{i}", ProbeKind.PERPLEXITY, passage)
        for i, passage in enumerate(passages)
        if passage.strip()
    ]


def _editors(args: argparse.Namespace, base: Base, train: Sequence[Edit]) -> dict[str, Editor]:
    """The methods asked for, by name; "all" means all that can be had for this base."""
    config = FinetuneConfig(lr=args.lr, steps=args.steps, seed=args.seed)
    make: dict[str, Callable[[], Editor]] = {
        "ultra": lambda: UltraEditor.create(
            base, train[:CALIBRATION_EDITS] or None, matrices=args.matrices
        ),
        "finetune": lambda: FinetuneEditor.create(base, config, matrices=args.matrices),
        "finetune_kl": lambda: FinetuneKLEditor.create(
            base, config, matrices=args.matrices, train=train
        ),
    }
    found: dict[str, Editor] = {}
    files = [shipped_editor(name) for name in shipped_editors()] + list(args.editors)
    for path in files:
        editor = load_editor(path)
        if editor.base_digest == base.digest or path in args.editors:
            editor.check(base)
            found[editor.kind if editor.kind not in found else path.stem] = editor
    wanted = None if args.methods == "all" else args.methods.split(",")
    for name, maker in make.items():
        if wanted is None and name == "finetune_kl" and not train:
            continue
        if wanted is None or name in wanted:
            found[name] = maker()
    if wanted is None:
        return found
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(
            f"--methods: no editor for {', '.join(missing)}; give trained ones with --editors "
            f"(without a file there are: {', '.join(UNTRAINED)})"
        )
    return {name: found[name] for name in wanted}


def _batches(edits: Sequence[Edit], size: int, args: argparse.Namespace) -> list[list[Edit]]:
    """Disjoint batches drawn by seed; no two edits of a batch share a prompt."""
    rng = random.Random(f"{args.seed}:{size}")  # noqa: S311 - sampling, not secrets
    order = list(edits)
    rng.shuffle(order)
    number = max(1, min(args.batches, 2 * args.probed // size, len(order) // size))
    batches: list[list[Edit]] = []
    source = iter(order)
    for _ in range(number):
        batch: dict[str, Edit] = {}
        for edit in source:
            batch.setdefault(edit.prompt, edit)
            if len(batch) == size:
                batches.append(list(batch.values()))
                break
    if not batches:
        raise ValueError(f"there are not {size} edits with different prompts")
    return batches


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Edits applied together, and what scores them.

    Attributes:
        edits: All of them.
        scorer: On the probes of those that are probed.
    """

    edits: Sequence[Edit]
    scorer: Scorer


def _measure(base: Base, name: str, editor: Editor, batches: Sequence[Batch]) -> Line:
    scores: list[dict[str, tuple[float | None, ...]]] = []
    ported: list[tuple[float | None, ...]] = []
    seconds: list[float] = []
    peak = 0.0
    ratio: float | None = None
    kl: float | None = None
    size = len(batches[0].edits)
    for batch in batches:
        before = _start_peak(base)
        start = time.perf_counter()
        try:
            delta = editor.delta(base, batch.edits)
        except MendError as error:
            return Line(name, size, 0, failed=str(error))
        seconds.append((time.perf_counter() - start) / size)
        peak = max(peak, (_peak(base) - before) / 1e6)
        results = batch.scorer.score(materialise(base, delta), complete=False)
        made = summarise(results, batch.scorer.reference())
        ratio = made.perplexity_ratio if ratio is None else ratio
        kl = made.kl if kl is None else kl
        families = (made.forced_token, made.forced_exact, made.free)
        ported.append(tuple(f.portability for f in families))
        scores.append(
            {
                kind: (f.edit_success, f.generality, f.locality, f.harmonic_mean)
                for kind, f in (
                    ("forced", made.forced_token),
                    ("exact", made.forced_exact),
                    ("free", made.free),
                )
            }
        )
    return Line(
        name,
        size,
        len(batches),
        forced=_mean(s["forced"] for s in scores),
        exact=_mean(s["exact"] for s in scores),
        free=_mean(s["free"] for s in scores),
        portability=_columns(ported),
        perplexity_ratio=ratio,
        kl=kl,
        seconds_per_edit=sum(seconds) / len(seconds),
        peak_mb=peak,
        editor_mb=editor.parameters_bytes / 1e6,
    )


def _said(line: Line) -> str:
    """One line for who waits."""
    if line.failed:
        return f"{line.method}, {line.edits} edits: {line.failed}"
    shares = " ".join("-" if x is None else f"{x:.3f}" for x in line.forced)
    return f"{line.method}, {line.edits} edits in {line.batches} batches: ES GS LS HM {shares}"


def _mean(scores: Iterable[tuple[float | None, ...]]) -> tuple[float | None, ...]:
    """ES, GS and LS averaged over batches; HM of the averages."""
    means = _columns([row[:3] for row in scores])
    return (*means, harmonic_mean(*means))


def _columns(rows: Sequence[tuple[float | None, ...]]) -> tuple[float | None, ...]:
    """Mean of each column over the rows that have it."""
    found = []
    for column in zip(*rows, strict=True):
        values = [v for v in column if v is not None]
        found.append(sum(values) / len(values) if values else None)
    return tuple(found)


def _start_peak(base: Base) -> float:
    """Start the high-water mark anew; bytes in use now."""
    if base.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(base.device)
        return float(torch.cuda.memory_allocated(base.device))
    reset = Path("/proc/self/clear_refs")
    with suppress(OSError):  # not everywhere may a process reset its own
        reset.write_text("5", encoding="ascii")
    return _status("VmRSS")


def _peak(base: Base) -> float:
    if base.device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(base.device))
    return _status("VmHWM")


def _status(key: str) -> float:
    """A field of the process's status in bytes; 0 where the system has none."""
    path = Path("/proc/self/status")
    if path.exists():
        for line in path.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{key}:"):
                return float(line.split()[1]) * 1024
    return 0.0


def _table(lines: Sequence[Line]) -> Table:
    table = Table(title="Editors: teacher-forced tokens | whole answers | free-running")
    for head in ("method", "edits", "batches", "ES", "GS", "LS", "HM", "exact ES/GS/LS"):
        table.add_column(head)
    for head in ("free ES/GS/LS", "free HM", "portability", "ppl ratio", "KL", "s/edit"):
        table.add_column(head, justify="right")
    for head in ("peak MB", "editor MB"):
        table.add_column(head, justify="right")
    for line in lines:
        if line.failed is not None:
            table.add_row(line.method, str(line.edits), "0", f"failed: {line.failed}")
            continue
        table.add_row(
            line.method,
            str(line.edits),
            str(line.batches),
            *(_show(v) for v in line.forced),
            "/".join(_show(v) for v in line.exact[:3]),
            "/".join(_show(v) for v in line.free[:3]),
            _show(line.free[3]),
            "/".join(_show(v) for v in line.portability),
            _show(line.perplexity_ratio, 3),
            _show(line.kl, 3),
            _show(line.seconds_per_edit, 3),
            _show(line.peak_mb, 0),
            _show(line.editor_mb, 1),
        )
    return table


def _show(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"  # noqa: RUF001 - a dash for "nothing"


def _plot(path: Path, lines: Sequence[Line]) -> None:
    """Harmonic mean against number of edits, forced and free side by side."""
    from matplotlib import pyplot as plt  # noqa: PLC0415 - slow, and only for --plot

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    parts: tuple[tuple[Any, str], ...] = ((axes[0], "forced"), (axes[1], "free"))
    for axis, part in parts:
        for method in dict.fromkeys(line.method for line in lines):
            mine = [x for x in lines if x.method == method and x.failed is None]
            values = [(x.edits, getattr(x, part)[3]) for x in mine]
            axis.plot(*zip(*values, strict=True), marker="o", label=method) if values else None
        axis.set_xscale("log")
        axis.set_xlabel("edits applied together")
        axis.set_title("teacher-forced tokens" if part == "forced" else "free-running answers")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("harmonic mean of ES, GS, LS")
    axes[0].set_ylim(0, 1)
    axes[1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
