"""The card beside an editor that was made without training, and reading the card of any editor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mend_core.editors.base import FactorEditor
from mend_core.factors import platform_tag
from mend_core.files import write_atomic
from mend_core.models import Base


def card_path(editor: Path) -> Path:
    """Where an editor file's card lies; the same for people ends in ``.md``."""
    return editor.with_suffix(".json")


def read_card(editor: Path, digest: str) -> dict[str, Any]:
    """The card beside an editor file; empty where there is none, or it is another editor's.

    Args:
        editor: The editor's file.
        digest: The editor's.
    """
    try:
        card = json.loads(card_path(editor).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) and card.get("editor") == digest else {}


def made_card(base: Base, editor: FactorEditor) -> dict[str, Any]:
    """What a card says of any editor made for a base without training."""
    return {
        "editor": editor.digest,
        "kind": editor.kind,
        "base": base.digest,
        "platform": platform_tag(),
        "settings": editor.state()[0][editor.kind],
        "matrices": list(editor.matrices),
    }


def write_card(editor: Path, card: Mapping[str, Any]) -> None:
    """Write an editor's card beside its file.

    Raises:
        StoreError: The folder cannot be written.
    """
    write_atomic(card_path(editor), (json.dumps(card, indent=1) + "\n").encode())


def write_page(editor: Path, card: Mapping[str, Any]) -> None:
    """Write the card of a made editor for people.

    Args:
        editor: The editor's file.
        card: `made_card`, and how the command made it.

    Raises:
        StoreError: The folder cannot be written.
    """
    write_atomic(editor.with_suffix(".md"), _markdown(editor.stem, card).encode())


def _markdown(name: str, card: Mapping[str, Any]) -> str:
    lines = [
        f"# {name}",
        "",
        f"An editor of kind {card['kind']} for {card['base_source']} (base `{card['base']}`).",
        "",
        f"* editor: `{card['editor']}`, {card['bytes'] / 1e6:.1f} MB",
        f"* command: `{card['command']}`",
        f"* platform: `{card['platform']}`, {card['seconds']:.0f} seconds; the digests hold there",
        f"* matrices: {', '.join(f'`{name}`' for name in card['matrices'])}",
        f"* protected text: {_said(card['data'])}",
    ]
    if card["wordings"]:
        lines.append(f"* wordings learnt from: {_said(card['wordings'])}")
    lines += ["", "Fitted, not trained; how well it edits this base was not measured here."]
    return "\n".join(lines) + "\n"


def _said(data: str | Mapping[str, str]) -> str:
    return data if isinstance(data, str) else f"{data['name']}, SHA-256 `{data['sha256']}`"
