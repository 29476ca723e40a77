"""Make an editor that needs no training: `python -m mend_core.editors.make --help`."""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mend_core.arguments import count
from mend_core.datasets import Edit, read_edits
from mend_core.digests import file_digest
from mend_core.editors.calibration import sampled_texts
from mend_core.editors.subject import SubjectEditor
from mend_core.editors.ultra import UltraEditor
from mend_core.editors.wordings import Wordings
from mend_core.errors import DataError, MendError
from mend_core.files import check_writable
from mend_core.models import load_base


def main(argv: Sequence[str] | None = None) -> int:
    """Make one editor file and a card beside it; exit code 2 where the arguments do not fit."""
    parser = argparse.ArgumentParser(
        prog="python -m mend_core.editors.make",
        description="Make an editor that needs no training, fitted to one base.",
        epilog="example: python -m mend_core.editors.make --model smollm2 --out editor.safetensors",
    )
    parser.add_argument("--model", default="smollm2", help="`smollm2`, a folder, or a hub id")
    parser.add_argument("--kind", choices=["subject", "ultra"], default="subject")
    parser.add_argument("--matrices", nargs="*", help="name patterns; default: the kind's own")
    parser.add_argument(
        "--protect", type=Path, help="subject: a file of edits whose texts are protected"
    )
    parser.add_argument("--protect-edits", type=count, default=3000, help="edits of it, at most")
    parser.add_argument(
        "--wordings", type=Path, help="subject: a file of edits whose paraphrases are remembered"
    )
    parser.add_argument(
        "--sampled", type=int, default=5, help="subject: texts drawn from the base per opening"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw of edits and texts")
    parser.add_argument("--out", type=Path, required=True, help="editor file (.safetensors)")
    given = parser.parse_args(argv)
    started = time.monotonic()
    try:
        check_writable(given.out)
        base = load_base(given.model)
        matrices = given.matrices or None
        editor: SubjectEditor | UltraEditor
        if given.kind == "subject":
            texts = _protected(given.protect, given.protect_edits, given.seed)
            said = sampled_texts(base, given.sampled, seed=given.seed) if given.sampled else ()
            wordings = Wordings.learn(_edits(given.wordings)) if given.wordings else None
            editor = SubjectEditor.create(
                base, matrices=matrices, texts=texts, wordings=wordings, said=said
            )
        else:
            editor = UltraEditor.create(base, matrices=matrices)
        digest = editor.save(given.out)
    except (MendError, OSError) as error:
        print(f"mend: {error}", file=sys.stderr)  # noqa: T201 - this is a command
        return 2
    card = {
        "editor": digest,
        "kind": editor.kind,
        "base": base.digest,
        "base_source": given.model,
        "bytes": given.out.stat().st_size,
        "command": _command(given),
        "settings": asdict(editor.config),
        "matrices": list(editor.matrices),
        "data": _data(given.protect),
        "wordings": _data(given.wordings) if given.wordings else None,
        "seconds": round(time.monotonic() - started, 1),
    }
    given.out.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")
    done = {"editor": digest, "file": str(given.out), "bytes": card["bytes"]}
    print(json.dumps(done))  # noqa: T201 - this is a command
    return 0


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


def _command(given: argparse.Namespace) -> str:
    words = ["python -m mend_core.editors.make", f"--model {given.model}", f"--kind {given.kind}"]
    if given.matrices:
        words.append(f"--matrices {' '.join(given.matrices)}")
    if given.protect:
        words.append(f"--protect {given.protect.name} --protect-edits {given.protect_edits}")
    if given.kind == "subject":
        words.append(f"--sampled {given.sampled} --seed {given.seed}")
    if given.wordings:
        words.append(f"--wordings {given.wordings.name}")
    return " ".join([*words, f"--out {given.out.name}"])


if __name__ == "__main__":
    sys.exit(main())
