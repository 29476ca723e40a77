"""The command line of training."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from mend_core.arguments import count, positive
from mend_core.digests import file_digest, json_digest
from mend_core.errors import MendError, TrainingError
from mend_core.files import check_writable
from mend_core.models import load_base
from mend_core.training.card import write_card
from mend_core.training.config import METHODS, TrainConfig
from mend_core.training.examples import read_training_data, split
from mend_core.training.loop import Event, Trainer

USER_ERROR = 2

EPILOG = """\
example:
  mend editor train --model smollm2 --data facts.jsonl --out my-editor.safetensors --minutes 20

Killed or interrupted, the same command goes on where it stopped and ends with the same weights.
On several GPUs: accelerate launch -m mend_core.training --model … --data … --out …
"""


def parser() -> argparse.ArgumentParser:
    """All options."""
    p = argparse.ArgumentParser(
        prog="mend editor train",
        description="Train an editor for a base model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--model", default="smollm2", help="base: smollm2, a folder or a hub id")
    p.add_argument("--data", required=True, nargs="+", type=Path, help="files of edits")
    p.add_argument("--kind", default="auto", choices=["auto", "pararel", "fever"])
    p.add_argument("--out", required=True, type=Path, help="editor file to write (.safetensors)")
    p.add_argument("--config", type=Path, help="JSON file with any setting of TrainConfig")
    p.add_argument("--method", choices=METHODS)
    p.add_argument("--rank", type=int, help="rank of the editor network (mend, malmen)")
    p.add_argument(
        "--matrices", nargs="+", help="names of the matrices to edit, e.g. down_proj@-3:"
    )
    p.add_argument("--steps", type=int)
    p.add_argument("--minutes", type=_minutes, help="stop after this long")
    p.add_argument("--seed", type=int)
    p.add_argument("--max-edits", type=int, help="largest batch of edits to train for")
    p.add_argument(
        "--limit",
        type=count,
        help="use only this many edits, drawn by seed, as many from each file",
    )
    p.add_argument("--set", action="append", default=[], metavar="NAME=JSON", help="any setting")
    p.add_argument("--device", default="cpu", help="cpu or cuda")
    p.add_argument("--dtype", help="of the base; float32 on CPU, bfloat16 on CUDA")
    p.add_argument("--threads", type=count, help="CPU threads (part of what makes runs equal)")
    p.add_argument("--fresh", action="store_true", help="forget an earlier run of the same --out")
    p.add_argument("--json", action="store_true", help="print one JSON object at the end")
    return p


def _minutes(text: str) -> float:
    """A time longer than nothing."""
    try:
        return positive(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text} is no time to train for") from error


def settings(args: argparse.Namespace) -> TrainConfig:
    """The run's settings: file, then options.

    Raises:
        TrainingError: An unknown or wrong setting.
    """
    values: dict[str, Any] = {}
    if args.config:
        values = TrainConfig.read(args.config)
    for name in ("method", "matrices", "steps", "seed", "max_edits"):
        if getattr(args, name) is not None:
            values[name] = getattr(args, name)
    if args.rank is not None:
        values["editor"] = {**values.get("editor", {}), "rank": args.rank}
    for text in args.set:
        name, found, value = text.partition("=")
        try:
            values[name] = json.loads(value)
        except ValueError as error:
            raise TrainingError(f"--set {text!r}: expected NAME=JSON ({error})") from error
        if not found:
            raise TrainingError(f"--set {text!r}: expected NAME=JSON")
    return TrainConfig.from_dict(values, "options")


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 0 when an editor was written, 2 on a user's mistake, 130 when interrupted."""
    args = parser().parse_args(argv)
    try:
        return _train(args, list(argv if argv is not None else sys.argv[1:]))
    except MendError as error:
        return _say(str(error))
    except torch.OutOfMemoryError:
        return _say(
            "out of memory; make batches smaller with --max-edits or --set at_once=8, or use a "
            "smaller --rank. The same command goes on from the last checkpoint"
        )
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _say(
            f"{where}{error.strerror or error}; once that is mended, the same command goes on "
            "from the last checkpoint"
        )
    except KeyboardInterrupt:
        return _say("interrupted; the same command goes on from the last checkpoint", 130)


def _say(message: str, code: int = USER_ERROR) -> int:
    print(f"mend editor train: {message}", file=sys.stderr)  # noqa: T201 - the command's voice
    return code


def _train(args: argparse.Namespace, argv: list[str]) -> int:
    config = settings(args)
    check_writable(args.out)
    if args.threads:
        torch.set_num_threads(args.threads)
    accelerator = _accelerator(args.device)
    first = accelerator is None or accelerator.is_main_process
    console = Console(stderr=True, quiet=not first)
    device = args.device if accelerator is None else str(accelerator.device)
    dtype = args.dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    edits, skipped = read_training_data(args.data, args.kind, config.seed, args.limit)
    for line in skipped[:5]:
        console.print(f"skipped: {line}", markup=False)
    train, validation = split(edits, config.validation, config.seed)
    files = [{"name": p.name, "sha256": file_digest(p)} for p in args.data]
    base = load_base(args.model, device=device, dtype=dtype)
    folder = args.out.with_name(args.out.name + ".run")
    if args.fresh and first:
        shutil.rmtree(folder, ignore_errors=True)
    if accelerator is not None:  # nobody looks for a checkpoint that is being removed
        accelerator.wait_for_everyone()
    identity = json_digest({"files": files, "limit": args.limit, "kind": args.kind})
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[numbers]}"),
    )
    quiet = not console.is_terminal
    with Progress(*columns, console=console, disable=quiet) as bar:
        task = bar.add_task("training", total=config.steps, numbers="preparing")

        def report(event: Event) -> None:
            bar.update(task, completed=event.step, numbers=_numbers(event))
            if quiet and ("val" in event.values or event.step % 20 == 0):
                console.print(f"{event.step}/{event.steps} {_numbers(event)}", soft_wrap=True)

        trainer = Trainer(
            base,
            train,
            validation,
            config,
            folder,
            data_digest=identity,
            minutes=args.minutes,
            report=report,
            accelerator=accelerator,
        )
        editor = trainer.run()
    if not first:
        return 0
    digest = editor.save(args.out)
    card = write_card(
        args, argv, trainer, digest, files=files, train=len(train), validation=len(validation)
    )
    if args.json:
        print(json.dumps(card))  # noqa: T201 - the command's voice
    else:
        console.print(f"wrote {args.out} ({digest})")
    return 0


def _accelerator(device: str) -> Any:
    """An accelerator when started by ``accelerate launch``, else None."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return None
    from accelerate import Accelerator  # noqa: PLC0415 - a slow import, rarely needed

    return Accelerator(cpu=device == "cpu")


def _numbers(event: Event) -> str:
    """Time left, loss, and the newest scores on held-out edits by size of batch."""
    shown = [f"{clock(event.left)} left", f"loss {event.values['loss']:.3f}"]
    held = event.held_out
    sizes = sorted(int(k[3:-3]) for k in held if k.endswith("_es"))
    for n in sizes:
        es, gs, ls = (held[f"val{n}_{part}"] for part in ("es", "gs", "ls"))
        shown.append(f"held out, {n} at once: ES {es:.2f} GS {gs:.2f} LS {ls:.2f}")
    if not sizes:
        v = event.values
        shown.append(f"this batch: ES {v['es']:.2f} GS {v['gs']:.2f} LS {v['ls']:.2f}")
    return "  ".join(shown)


def clock(seconds: float) -> str:
    """h:mm:ss."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
