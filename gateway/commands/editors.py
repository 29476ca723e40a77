"""`mend editor make`: an editor without training, made by the science's own program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.commands.tools import hand_over
from service.errors import UserError

app = typer.Typer(rich_markup_mode="markdown")

MADE_KINDS = ("ultra", "subject")
"""Editors that need no training; where an editor is asked for, these words have one made."""


@app.command(name="make")
def editor_make(
    *,
    out: Annotated[Path, typer.Option(help="Editor file to write (.safetensors).")],
    model: Annotated[
        str, typer.Option(help="Base: `smollm2`, a Hugging Face folder, or a hub id.")
    ] = "smollm2",
    kind: Annotated[
        str, typer.Option(help="`ultra` (seconds) or `subject` (minutes, better; causal models).")
    ] = "ultra",
    matrices: Annotated[
        list[str] | None,
        typer.Option(help="Matrices to edit, e.g. `down_proj@-3:`; may be given again."),
    ] = None,
    protect: Annotated[
        Path | None, typer.Option(help="subject: a file of edits whose texts it must not move.")
    ] = None,
    wordings: Annotated[
        Path | None, typer.Option(help="subject: a file of edits with paraphrases to learn from.")
    ] = None,
    seed: Annotated[int, typer.Option(help="subject: of the text drawn from the base.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document at the end.")
    ] = False,
) -> None:
    """Make an editor for any base, without training and without data.

    Shows its stages and the time left, and writes a card beside the editor. `mend model register
    --editor ultra` makes one by itself.

    Examples:
    `mend editor make --model ./my-gpt2 --out editors/my-gpt2.safetensors`

    `mend editor make --kind subject --out editors/smollm2-own.safetensors`
    """
    if kind not in MADE_KINDS:
        raise UserError(f"--kind is {kind!r}; it must be {' or '.join(MADE_KINDS)}")
    words = ["--model", model, "--kind", kind, "--seed", str(seed), "--device", device]
    words += ["--out", str(out.expanduser())]
    for option, file in (("--protect", protect), ("--wordings", wordings)):
        if file is None:
            continue
        if kind != "subject":
            raise UserError(f"{option} is for --kind subject; an ultra editor learns nothing of it")
        if not file.expanduser().is_file():
            raise UserError(f"there is no file {file}")
        words += [option, str(file.expanduser())]
    if matrices:
        words += ["--matrices", *matrices]
    hand_over("mend_core.editors.make", [*words, "--json"] if as_json else words)
