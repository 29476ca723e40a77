"""Give an editor file its base's present digest: `python -m mend_core.editors.readdress --help`.

For editors made when a base was named by its tensors alone. The tensors are compared first, and
nothing but the header changes: same weights, another name of the base, hence another digest.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mend_core.editors.files import Header, read_editor, write_editor
from mend_core.errors import EditorMismatch, MendError
from mend_core.models.load import base_digest, resolve, tensors_digest, weight_files


def readdress(path: Path, source: str | Path) -> tuple[Header, Header]:
    """Rewrite one file's header, and the names in its cards (.json, .md) beside it.

    Args:
        path: The editor file.
        source: The base it was made for.

    Returns:
        The header before and after; equal where there was nothing to do.

    Raises:
        EditorMismatch: It was made for other weights.
    """
    old, tensors = read_editor(path)
    folder = resolve(source)
    present = base_digest(folder)
    if old.base_digest == present:
        return old, old
    if old.base_digest != tensors_digest(folder, weight_files(folder)):
        raise EditorMismatch(f"{path} was made for base {old.base_digest}, not for {source}")
    new = Header.of(old.kind, present, old.shapes, old.config, tensors)
    write_editor(path, new, tensors)
    for card in (path.with_suffix(".json"), path.with_suffix(".md")):
        if card.is_file():
            words = card.read_text(encoding="utf-8")
            words = words.replace(old.base_digest, present).replace(old.digest, new.digest)
            card.write_text(words, encoding="utf-8")
    return old, new


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite the files named; exit code 2 where one was made for another base."""
    parser = argparse.ArgumentParser(
        prog="python -m mend_core.editors.readdress",
        description="Write a base's present digest into editors made for its weights.",
    )
    parser.add_argument("files", nargs="+", type=Path, help="editor files (.safetensors)")
    parser.add_argument("--base", default="smollm2", help="`smollm2`, a folder, or a hub id")
    given = parser.parse_args(argv)
    for path in given.files:
        try:
            old, new = readdress(path, given.base)
        except (MendError, OSError) as error:
            print(f"mend: {error}", file=sys.stderr)  # noqa: T201 - this is a command
            return 2
        print(json.dumps({"file": str(path), "from": old.digest, "to": new.digest}))  # noqa: T201 - as above
    return 0


if __name__ == "__main__":
    sys.exit(main())
