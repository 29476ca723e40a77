"""Editors side by side: `python -m benchmarks editors --data FILE --sizes 1,10,100 --methods all`.

One table, method × number of edits applied together. Scores come from `mend_core.probes`, the same
code that gates a version: teacher-forced tokens, teacher-forced whole answers and free-running
answers; locality is against the base's own answers. For small sizes several independent batches are
averaged. The same seed gives the same batches and scores.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.lines import Line, check_plot, earlier, plot, said, table
from mend_core.arguments import count, positive
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
TEXT_PASSAGES = 20
USER_ERROR = 2


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
    p.add_argument("--probed", type=count, default=100, help="edits scored per batch, at most")
    p.add_argument("--batches", type=count, default=20, help="independent batches, at most")
    p.add_argument("--lr", type=positive, default=1e-4, help="step size of FT and FT+KL")
    p.add_argument("--steps", type=count, default=100, help="steps of FT and FT+KL")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="cpu")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    p.add_argument(
        "--beside",
        nargs="*",
        default=[],
        type=Path,
        help="reports of earlier runs (--json) in this setting, shown in the same table and plot",
    )
    p.add_argument("--plot", type=Path, help="write a plot of HM against edits (.png, .svg)")
    return p


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
        check_plot(args.plot)
    edits = _read(args.data, console)
    if max(sizes) > len(edits):
        raise DataError(
            str(args.data), None, None, f"holds {len(edits)} edits, fewer than {max(sizes)}"
        )
    train = _read(args.train, console) if args.train else []
    texts = _texts(args.texts)
    base = load_base(args.model, device=args.device)
    edits = _usable(base, edits, max(sizes), args, console)
    setting = {
        "base": base.digest,
        "data": file_digest(args.data),
        "texts": file_digest(args.texts) if args.texts else None,
        "probed": args.probed,
        "batches": args.batches,
        "seed": args.seed,
    }
    lines = [line for path in args.beside for line in earlier(path, setting)]
    editors = _editors(args, base, train)
    for size in sizes:
        batches = [
            # The text is asked of one batch; the base's own answers serve every method.
            Batch(edits, Scorer(base, build_suite(edits[: args.probed], () if number else texts)))
            for number, edits in enumerate(_batches(edits, size, args))
        ]
        for name, editor in editors.items():
            line = _measure(base, name, editor, batches)
            lines.append(line)
            console.print(said(line), highlight=False)
    lines.sort(key=lambda line: line.edits)
    report = {
        "model": args.model,
        "data": args.data.name,
        "edits": len(edits),
        "setting": setting,
        "threads": torch.get_num_threads(),
        "lines": [asdict(line) for line in lines],
    }
    if args.plot:
        plot(args.plot, lines)
    if args.json:
        print(json.dumps(report))
    else:
        Console(width=170).print(table(lines))
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


def _texts(path: Path | None) -> list[ProbeItem]:
    """Up to `TEXT_PASSAGES` passages from all over the file.

    One place is not enough: 1,000 edits raised the perplexity of WikiText-2's first 1,500
    characters by 16 %, that of 45,000 later ones by 8 %.
    """
    if path is None:
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(str(path), None, None, f"cannot be read as text: {error}") from error
    wanted = max(1, min(TEXT_PASSAGES, len(text) // TEXT_CHARACTERS))
    starts = [number * len(text) // wanted for number in range(wanted)]
    passages = [text[start : start + TEXT_CHARACTERS] for start in starts]
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
