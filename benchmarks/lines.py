"""Lines of the table of editors: how they are shown, drawn, and read back from earlier reports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from mend_core.files import check_writable


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


def said(line: Line) -> str:
    """One line for who waits."""
    if line.failed:
        return f"{line.method}, {line.edits} edits: {line.failed}"
    shares = " ".join("-" if x is None else f"{x:.3f}" for x in line.forced)
    return f"{line.method}, {line.edits} edits in {line.batches} batches: ES GS LS HM {shares}"


def earlier(path: Path, setting: Mapping[str, Any]) -> list[Line]:
    """Lines of a report that `mend bench editors --json` wrote for the same setting.

    Args:
        path: The report.
        setting: What must be equal for lines to stand in one table.

    Raises:
        ValueError: It cannot be read, is none, or was made in another setting, which is named.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        lines = [_line(fields) for fields in report["lines"]]
        found = report["setting"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"--beside {path}: cannot be read as a report of `mend bench editors --json` ({error})"
        ) from error
    for name, value in setting.items():
        if found.get(name) != value:
            raise ValueError(
                f"--beside {path}: its {name} is {found.get(name)!r}, not {value!r}; "
                "only lines of one setting can be compared"
            )
    return lines


def _line(fields: Mapping[str, Any]) -> Line:
    """A line as JSON wrote it, whose tuples came back as lists."""
    whole: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return Line(**whole)


def check_plot(path: Path) -> None:
    """Refuse, before hours of measuring, a place or form no plot can be written in.

    Raises:
        ValueError: An ending matplotlib does not know.
        StoreError: A folder, or not writable.
    """
    import matplotlib as mpl  # noqa: PLC0415 - slow, and only for --plot

    mpl.use("agg")
    from matplotlib.backend_bases import FigureCanvasBase  # noqa: PLC0415

    if path.suffix.lstrip(".").lower() not in FigureCanvasBase.get_supported_filetypes():
        raise ValueError(f"--plot {path}: name a file that ends in .png, .svg or .pdf")
    check_writable(path)


def table(lines: Sequence[Line]) -> Table:
    """One row a line."""
    shown = Table(title="Editors: teacher-forced tokens | whole answers | free-running")
    for head in ("method", "edits", "batches", "ES", "GS", "LS", "HM", "exact ES/GS/LS"):
        shown.add_column(head)
    for head in ("free ES/GS/LS", "free HM", "portability", "ppl ratio", "KL", "s/edit"):
        shown.add_column(head, justify="right")
    for head in ("peak MB", "editor MB"):
        shown.add_column(head, justify="right")
    for line in lines:
        if line.failed is not None:
            shown.add_row(line.method, str(line.edits), "0", f"failed: {line.failed}")
            continue
        shown.add_row(
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
    return shown


def _show(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"  # noqa: RUF001 - a dash for "nothing"


def plot(path: Path, lines: Sequence[Line]) -> None:
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
    axes[1].legend(loc="upper left", bbox_to_anchor=(1, 1))  # beside: it would hide lines
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
