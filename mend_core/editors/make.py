"""Make an editor that needs no training: `python -m mend_core.editors.make --help`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mend_core.editors.subject import SubjectEditor
from mend_core.editors.ultra import UltraEditor
from mend_core.errors import MendError
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
    parser.add_argument("--out", type=Path, required=True, help="editor file (.safetensors)")
    given = parser.parse_args(argv)
    started = time.monotonic()
    try:
        base = load_base(given.model)
        kind = SubjectEditor if given.kind == "subject" else UltraEditor
        editor = kind.create(base, matrices=given.matrices or None)
        digest = editor.save(given.out)
    except (MendError, OSError) as error:
        print(f"mend: {error}", file=sys.stderr)  # noqa: T201 - this is a command
        return 2
    matrices = f" --matrices {' '.join(given.matrices)}" if given.matrices else ""
    card = {
        "editor": digest,
        "kind": editor.kind,
        "base": base.digest,
        "base_source": given.model,
        "bytes": given.out.stat().st_size,
        "command": f"python -m mend_core.editors.make --model {given.model} --kind {given.kind}"
        f"{matrices} --out {given.out.name}",
        "settings": asdict(editor.config),
        "matrices": list(editor.matrices),
        "data": "built in: mend_core/editors/calibration.py, and what the base says by itself",
        "seconds": round(time.monotonic() - started, 1),
    }
    given.out.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")
    done = {"editor": digest, "file": str(given.out), "bytes": card["bytes"]}
    print(json.dumps(done))  # noqa: T201 - this is a command
    return 0


if __name__ == "__main__":
    sys.exit(main())
