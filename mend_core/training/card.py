"""The model card beside an editor: how it was made and what it scored on held-out edits."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mend_core.editors.files import write_atomically
from mend_core.factors.materialise import platform_tag
from mend_core.training.loop import Trainer


def write_card(
    args: argparse.Namespace,
    argv: list[str],
    trainer: Trainer,
    digest: str,
    *,
    files: list[dict[str, str]],
    train: int,
    validation: int,
) -> dict[str, Any]:
    """Write ``<editor>.json`` and ``<editor>.md``; return the JSON.

    Paths of the machine stay out: data files go by name and SHA-256.
    """
    config = trainer.config
    best = _best_validation(trainer.folder / "metrics.jsonl", trainer.progress.best_step)
    card: dict[str, Any] = {
        "editor": digest,
        "file": args.out.name,
        "bytes": args.out.stat().st_size,
        "method": config.method,
        "base": trainer.base.digest,
        "model": args.model if "/" not in args.model else Path(args.model).name,
        "command": "mend editor train " + " ".join(_plain(a) for a in argv),
        "seed": config.seed,
        "data": files,
        "edits": {"train": train, "held_out": validation},
        "steps": trainer.progress.step,
        "best_step": trainer.progress.best_step,
        "hours": round(trainer.progress.seconds / 3600, 3),
        "device": str(trainer.base.device),
        "platform": platform_tag(),
        "settings": config.to_dict(),
        "held_out": best,
    }
    write_atomically(args.out.with_suffix(".json"), (json.dumps(card, indent=2) + "\n").encode())
    write_atomically(args.out.with_suffix(".md"), _markdown(card).encode())
    return card


def _plain(argument: str) -> str:
    return Path(argument).name if "/" in argument else argument


def _best_validation(path: Path, step: int) -> list[dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["step"] != step:
            continue
        for key, value in record.items():
            if key.startswith("val") and "_" in key:
                size, name = key.removeprefix("val").split("_")
                rows.setdefault(size, {"edits": float(size)})[name] = value
    return [rows[k] for k in sorted(rows, key=int)]


def _markdown(card: dict[str, Any]) -> str:
    lines = [
        f"# {Path(card['file']).stem}",
        "",
        f"An editor of kind {card['method']} for {card['model']} (base `{card['base']}`).",
        "",
        f"* editor: `{card['editor']}`, {card['bytes'] / 1e6:.1f} MB",
        f"* command: `{card['command']}`",
        (
            f"* seed {card['seed']}, {card['steps']} steps (best: {card['best_step']}), "
            f"{card['hours']} hours on {card['device']}"
            f" (`{card['platform']}`; another platform may give another digest)"
        ),
        f"* {card['edits']['train']} training edits, {card['edits']['held_out']} held out",
    ]
    lines += [f"* data: {f['name']}, SHA-256 `{f['sha256']}`" for f in card["data"]]
    lines += [
        "",
        (
            "Held-out edits, teacher-forced, share of target tokens; locality against the base's "
            "own predictions; `edits` applied together:"
        ),
        "",
        "| edits | ES | GS | LS | HM |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r['edits']:.0f} | {r['es']:.3f} | {r['gs']:.3f} | {r['ls']:.3f} | {r['hm']:.3f} |"
        for r in card["held_out"]
    ]
    return "\n".join(lines) + "\n"
