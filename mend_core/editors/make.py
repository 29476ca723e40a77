"""Make an editor that needs no training: `python -m mend_core.editors.make --help`."""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from mend_core.arguments import count
from mend_core.datasets import Edit, read_edits
from mend_core.digests import file_digest
from mend_core.editors.base import FactorEditor
from mend_core.editors.card import card_path, made_card, write_card, write_page
from mend_core.editors.making import MADE_KINDS, SAMPLED, make_editor
from mend_core.editors.wordings import Wordings
from mend_core.errors import DataError, EditorError, MendError
from mend_core.files import check_writable
from mend_core.models import Base, load_base
from mend_core.progress import part

USER_ERROR, INTERRUPTED = 2, 130
LOADED = 0.05
"""Share of the time that loading the base takes."""


def parser() -> argparse.ArgumentParser:
    """All options."""
    p = argparse.ArgumentParser(
        prog="python -m mend_core.editors.make",
        description="Make an editor that needs no training, fitted to one base.",
        epilog="example: python -m mend_core.editors.make --model smollm2 --out editor.safetensors",
    )
    p.add_argument("--model", default="smollm2", help="`smollm2`, a folder, or a hub id")
    p.add_argument("--kind", choices=MADE_KINDS, default="subject")
    p.add_argument("--matrices", nargs="*", help="name patterns; default: the kind's own")
    p.add_argument(
        "--protect", type=Path, help="subject: a file of edits whose texts are protected"
    )
    p.add_argument("--protect-edits", type=count, default=3000, help="edits of it, at most")
    p.add_argument(
        "--wordings", type=Path, help="subject: a file of edits whose paraphrases are remembered"
    )
    p.add_argument(
        "--sampled",
        type=int,
        default=SAMPLED,
        help="subject: texts drawn from the base per opening",
    )
    p.add_argument("--seed", type=int, default=0, help="of the draw of edits and texts")
    p.add_argument("--device", default="cpu", help="cpu or cuda")
    p.add_argument("--out", type=Path, required=True, help="editor file (.safetensors)")
    p.add_argument("--json", action="store_true", help="print one JSON object at the end")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Make one editor file and a card beside it.

    Returns:
        0 when both were written, 2 where the arguments do not fit, 130 when interrupted.
    """
    given = parser().parse_args(argv)
    console = Console(stderr=True, highlight=False)
    started = time.monotonic()
    try:
        _check_place(given.out)
        with _Progress(console) as progress:
            base, editor = _make(given, progress)
        digest = editor.save(given.out)
        seconds = round(time.monotonic() - started, 1)
        card = _card(given, base, editor, seconds)
        write_card(given.out, card)
        write_page(given.out, card)
    except (MendError, OSError) as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        return USER_ERROR
    except KeyboardInterrupt:
        console.print("interrupted; nothing was written")
        return INTERRUPTED
    if given.json:
        size = given.out.stat().st_size
        done = {"editor": digest, "file": str(given.out), "bytes": size, "seconds": seconds}
        print(json.dumps(done))  # noqa: T201 - this is a command
    else:
        console.print(
            f"wrote {given.out} and its card ({digest}, {seconds:.0f} seconds)", soft_wrap=True
        )
    return 0


def _check_place(out: Path) -> None:
    """Refuse, before long work, a name or place that the editor could not be written to."""
    if out.suffix != ".safetensors":
        raise EditorError(f"{out} must end in .safetensors; its card is written beside it")
    for file in (out, card_path(out), out.with_suffix(".md")):
        check_writable(file)


def _make(given: argparse.Namespace, progress: _Progress) -> tuple[Base, FactorEditor]:
    subject = given.kind == "subject"
    texts = _protected(given.protect, given.protect_edits, given.seed) if subject else []
    wordings = Wordings.learn(_edits(given.wordings)) if subject and given.wordings else None
    base = load_base(given.model, device=given.device, progress=part(progress, 0.0, LOADED))
    editor = make_editor(
        base,
        given.kind,
        matrices=given.matrices or None,
        texts=texts,
        wordings=wordings,
        sampled=given.sampled,
        seed=given.seed,
        progress=part(progress, LOADED, 1.0),
    )
    return base, editor


def _card(
    given: argparse.Namespace, base: Base, editor: FactorEditor, seconds: float
) -> dict[str, object]:
    """What is to be known of the editor; paths of the machine stay out."""
    return made_card(base, editor) | {
        "base_source": _plain(given.model),
        "bytes": given.out.stat().st_size,
        "command": _command(given),
        "data": _data(given.protect),
        "wordings": _data(given.wordings) if given.wordings else None,
        "seconds": seconds,
    }


@dataclass
class _Progress:
    """A bar on a terminal, elsewhere a line for each stage; both with the time left."""

    console: Console
    started: float = field(default_factory=time.monotonic)
    stage: str = ""

    def __enter__(self) -> Self:
        columns = (
            TextColumn("{task.percentage:3.0f} %"),
            BarColumn(),
            TextColumn("{task.description}"),
            TextColumn("{task.fields[left]}"),
        )
        self.bar = Bar(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("", total=1.0, left="")
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, text: str, fraction: float) -> None:
        left = self._left(fraction)
        self.bar.update(self.task, completed=fraction, description=text, left=left)
        if text != self.stage and not self.console.is_terminal:
            self.console.print(f"{100 * fraction:3.0f} % {text} {left}".rstrip(), soft_wrap=True)
        self.stage = text

    def _left(self, fraction: float) -> str:
        """An estimate, once there is something to estimate from."""
        spent = time.monotonic() - self.started
        if fraction <= LOADED:
            return ""
        return f"about {spent * (1 - fraction) / fraction:.0f} s left"


def _protected(path: Path | None, edits: int, seed: int) -> list[list[str]]:
    """Prompts and paraphrases of edits drawn by seed; nothing without a file."""
    if path is None:
        return []
    found = sorted(_edits(path), key=lambda edit: (edit.prompt, edit.id))
    random.Random(seed).shuffle(found)  # noqa: S311 - sampling, not secrets
    drawn = found[:edits]
    prompts = sorted({edit.prompt for edit in drawn})
    paraphrases = sorted({text for edit in drawn for text in edit.paraphrases})
    return [kind for kind in (prompts, paraphrases) if kind]


def _edits(path: Path) -> list[Edit]:
    skipped: list[DataError] = []
    edits = list(read_edits(path, on_error=skipped.append))
    if not edits:
        raise DataError(str(path), None, None, "holds no edit that can be read")
    return edits


def _data(path: Path | None) -> str | dict[str, str]:
    if path is None:
        return "built in: mend_core/editors/calibration.py, and what the base says by itself"
    return {"name": path.name, "sha256": file_digest(path)}


def _plain(model: str) -> str:
    """A model's name or hub id; of a folder only its last part."""
    return Path(model).name if Path(model).is_dir() else model


def _command(given: argparse.Namespace) -> str:
    words = ["--model", _plain(given.model), "--kind", given.kind]
    if given.matrices:
        words += ["--matrices", *given.matrices]
    if given.kind == "subject":
        if given.protect:
            words += ["--protect", given.protect.name, "--protect-edits", str(given.protect_edits)]
        words += ["--sampled", str(given.sampled), "--seed", str(given.seed)]
        if given.wordings:
            words += ["--wordings", given.wordings.name]
    return shlex.join(["python", "-m", "mend_core.editors.make", *words, "--out", given.out.name])


if __name__ == "__main__":
    sys.exit(main())
