"""The training loop: one function of (base, data, settings), whatever interrupts it."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mend_core.datasets import Edit
from mend_core.editors.base import Editor
from mend_core.errors import TrainingError
from mend_core.models import Base
from mend_core.training.change import Pairs
from mend_core.training.checkpoint import (
    METRICS,
    Progress,
    keep_metrics,
    load_checkpoint,
    save_checkpoint,
)
from mend_core.training.config import TrainConfig
from mend_core.training.examples import Example, ExampleCache, Item
from mend_core.training.methods import make_trainable
from mend_core.training.objective import (
    Losses,
    Objective,
    choose_items,
    descend,
    evaluate,
    in_parts,
    joined,
)
from mend_core.training.trainable import Trainable

IN_VAIN = 20
"""Steps in a row without an update, after which a run is given up."""


@dataclass(frozen=True, slots=True)
class Event:
    """What a progress display needs to know.

    Attributes:
        step: Steps done.
        steps: Steps to do.
        seconds: Spent so far, over all resumes.
        values: This step's numbers: loss, edit, locality, es, gs, ls of its own batch, edits,
            grad_norm; after a validation `held_out` too.
        left: Seconds until the run ends, at this pace, by steps or by the time allowed.
        held_out: Of the newest validation: val1_es, val1_gs, val1_ls, val1_hm (1: edits applied
            together), …, val; empty before the first.
    """

    step: int
    steps: int
    seconds: float
    values: dict[str, float]
    left: float = 0.0
    held_out: Mapping[str, float] = field(default_factory=dict)


class Trainer:
    """Trains one editor in a folder it can resume from.

    Args:
        base: The base, untouched.
        train: Training edits.
        validation: Held-out edits.
        config: Settings.
        folder: Where checkpoint and metrics go; a checkpoint found there is resumed.
        data_digest: Of the files the edits came from.
        minutes: Stop after this much time over all resumes; None for no limit. Settings do not
            depend on it, so a run that ends by `steps` gives the same weights however slow.
        report: Called after every step.
        accelerator: An `accelerate.Accelerator` for several processes, or None.
    """

    def __init__(
        self,
        base: Base,
        train: Sequence[Edit],
        validation: Sequence[Edit],
        config: TrainConfig,
        folder: Path,
        *,
        data_digest: str,
        minutes: float | None = None,
        report: Callable[[Event], None] = lambda _event: None,
        accelerator: Any = None,
    ) -> None:
        self.base, self.config, self.folder = base, config, folder
        self.minutes, self.report, self.accelerator = minutes, report, accelerator
        matrices = base.matrices(config.matrices)
        self.matrices = matrices
        shapes = {m.name: (m.d_out, m.d_in) for m in matrices}
        self.trainable: Trainable = make_trainable(base, config, shapes)
        options: dict[str, Any] = {
            "tokens": self.trainable.tokens,
            "max_bytes": config.cache_bytes,
            "max_rephrases": config.max_rephrases,
        }
        self.train = ExampleCache(base, matrices, train, **options)
        self.validation = ExampleCache(base, matrices, validation, **options)
        self.trainable.running = config.released
        self.objective = Objective(
            config.c_edit, config.c_loc, config.outer, config.locality_tokens
        )
        rate = config.lr if config.released else config.lr_lr
        self.parameters = [p for p in self.trainable.module.parameters() if p.requires_grad]
        groups = self.trainable.groups(config.lr, rate)
        self.rates = [float(group["lr"]) for group in groups]
        self.optimiser = torch.optim.Adam(groups)
        if config.released and self._processes > 1:
            raise TrainingError(
                "released training keeps running statistics of one process; start it without "
                "`accelerate launch`"
            )
        self.identity = {
            "settings": config.to_dict(),
            "base": base.digest,
            "dtype": str(base.dtype).removeprefix("torch."),
            "device": base.device.type,
            "data": data_digest,
            "processes": self._processes,
            "threads": torch.get_num_threads(),
        }
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}

    def run(self) -> Editor:
        """Train (or go on training) to the end and return the best editor.

        Raises:
            TrainingError: The checkpoint is of another run, or the loss stopped being a number.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint = self.folder / "checkpoint.safetensors"
        if checkpoint.is_file():
            self.progress, self.best = load_checkpoint(
                checkpoint, self.identity, self.trainable.module, self.optimiser
            )
        elif not self.config.released:
            self._warm_up()
        for number in self.progress.quarantined:
            self.train.quarantine(number)
        if self._rank == 0:
            keep_metrics(self.folder / METRICS, self.progress.step)
        begun, before = time.monotonic(), (self.progress.step, self.progress.seconds)
        held_out: dict[str, float] = {}
        over = self._done() or bool(self._agreed(self._out_of_time()))
        while not over:
            values = self._step(self.progress.step)
            self.progress.step += 1
            step = self.progress.step
            spent = time.monotonic() - begun
            self.progress.seconds = before[1] + spent
            over = bool(self._agreed(self._out_of_time()))
            last = step >= self.config.steps or over
            if step % self.config.validate_every == 0 or last:
                held_out = self._validate()
                values |= held_out
            over = over or self._done()
            self._log(step, values)
            left = self._left(spent / (step - before[0]))
            seconds = self.progress.seconds
            self.report(Event(step, self.config.steps, seconds, values, left, held_out))
            if step % self.config.checkpoint_every == 0 or over:
                self._save(checkpoint)
        return self.finish()

    def finish(self) -> Editor:
        """The editor of the best validation, what is fitted at the end fitted."""
        if self.best:
            self.trainable.module.load_state_dict(self.best)
        samples = [e for e in map(self.train.get, range(min(256, len(self.train.edits)))) if e]
        return self.trainable.editor(samples)

    @property
    def _processes(self) -> int:
        return 1 if self.accelerator is None else int(self.accelerator.num_processes)

    @property
    def _rank(self) -> int:
        return 0 if self.accelerator is None else int(self.accelerator.process_index)

    def _done(self) -> bool:
        p, c = self.progress, self.config
        return p.step >= c.steps or (c.patience > 0 and p.stale >= c.patience)

    def _out_of_time(self) -> bool:
        return self.minutes is not None and self.progress.seconds >= 60 * self.minutes

    def _left(self, pace: float) -> float:
        """Seconds to go at `pace` seconds a step."""
        by_steps = pace * (self.config.steps - self.progress.step)
        if self.minutes is None:
            return by_steps
        return min(by_steps, max(0.0, 60 * self.minutes - self.progress.seconds))

    def _agreed(self, mine: float) -> float:
        """The first process's answer: clocks differ, and one that stops alone hangs the others."""
        if self._processes == 1:
            return mine
        told = float(mine) if self._rank == 0 else 0.0
        tensor = torch.tensor(told, dtype=torch.float64, device=self.base.device)
        return float(self.accelerator.reduce(tensor, reduction="sum"))

    def _warm_up(self) -> None:
        wanted = min(self.config.warm_up, len(self.train.edits))
        found = [e for e in map(self.train.get, range(wanted)) if e]
        if not found:
            raise TrainingError(f"none of the edits can be used: {self._first_error()}")
        self.trainable.observe(found)

    def _first_error(self) -> str:
        return next((str(e) for e in self.train.errors.values()), "no edits")

    def draw(self, step: int) -> tuple[list[list[Example]], list[Example], list[int]]:
        """Groups of examples, one unrelated example and one pick per example, for a step.

        A function of seed, step and process alone. Batch sizes are log-uniform; small ones are
        repeated until about `per_step` edits are seen. All groups of a step have one size.
        """
        c = self.config
        rng = random.Random(f"{c.seed}:{step}:{self._rank}")  # noqa: S311 - sampling, not secrets
        size = min(c.max_edits, len(self.train.edits))
        n = min(size, math.floor(math.exp(rng.uniform(0.0, math.log(size + 1)))))
        groups = []
        for _ in range(max(1, c.per_step // n)):
            group = self._some(rng, n)
            if len(group) == n:
                groups.append(group)
        if not groups:
            raise TrainingError(f"too few usable edits for batches of {n}: {self._first_error()}")
        number = sum(map(len, groups))
        others = self._some(rng, number, distinct=False)
        return groups, others, [rng.randrange(1 << 16) for _ in range(number)]

    def _some(self, rng: random.Random, n: int, *, distinct: bool = True) -> list[Example]:
        """`n` usable examples; fewer if there are not so many."""
        found: list[Example] = []
        seen: set[int] = set()
        for _ in range(20 * n + 20):
            if len(found) == n:
                break
            number = rng.randrange(len(self.train.edits))
            if distinct and number in seen:
                continue
            seen.add(number)
            example = self.train.get(number)
            if example is not None:
                found.append(example)
        return found

    def _rate(self, step: int) -> float:
        if self.config.released:
            return 1.0
        ramp = min(1.0, (step + 1) / max(1, self.config.ramp))
        if not self.config.decay:
            return ramp
        share = min(1.0, step / self.config.steps)
        return ramp * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))

    def _boundary(self, step: int) -> bool:
        """Whether an update follows this step (released: after 11 steps, then every 10)."""
        if self.config.released:
            return step > 0 and step % self.config.accumulate == 0
        return (step + 1) % self.config.accumulate == 0

    def _step(self, step: int) -> dict[str, float]:
        c = self.config
        groups, others, picks = self.draw(step)
        examples = [e for g in groups for e in g]
        items = choose_items(examples, others, picks)
        result = descend(
            self.base,
            self.matrices,
            self.trainable.change(groups),
            items,
            self.objective,
            groups=len(groups),
            at_once=c.at_once,
            scale=1 / c.accumulate,
        )
        sound = bool(torch.isfinite(result.total))
        if not sound:
            self._isolate(examples, others, items, result)
        norm = 0.0
        if self._boundary(step):
            norm = self._update(step)
            sound = sound and math.isfinite(norm)
        self._count_in_vain(examples, sound=sound)
        return {
            "loss": float(result.total),
            "edit": float(result.edit),
            "locality": float(result.locality),
            "es": result.es,
            "gs": result.gs,
            "ls": result.ls,
            "edits": float(len(groups[0])),
            "grad_norm": norm,
        }

    def _isolate(
        self,
        examples: Sequence[Example],
        others: Sequence[Example],
        items: Sequence[Item],
        result: Losses,
    ) -> None:
        """Sets edits aside whose own texts give NaN or Inf at the base, where no editor had a say.

        Each text is asked alone, since what is beside it in a batch is not at fault.
        """
        for place, fine in enumerate(result.finite.tolist()):
            if fine:
                continue
            mine = items[3 * place : 3 * place + 3]
            for part, item in enumerate(mine):
                borrowed = part == 2 and not examples[place].of("locality")  # noqa: PLR2004
                owner = others[place] if borrowed else examples[place]
                with torch.no_grad():
                    alone = evaluate(
                        self.base, self.matrices, Pairs({}), [item] * 3, self.objective
                    )
                if not bool(alone.finite.all()) and owner.number not in self.progress.quarantined:
                    self.train.quarantine(owner.number)
                    self.progress.quarantined.append(owner.number)

    def _count_in_vain(self, examples: Sequence[Example], *, sound: bool) -> None:
        """Ends a run that goes nowhere.

        Raises:
            TrainingError: Too many steps in a row met NaN or Inf.
        """
        self.progress.in_vain = 0 if sound else self.progress.in_vain + 1
        in_vain = self._agreed(self.progress.in_vain)
        if in_vain < IN_VAIN:
            return
        names = ", ".join(e.edit.id for e in examples[:5])
        raise TrainingError(
            f"{IN_VAIN} steps in a row gave NaN or Inf (the last with edits {names}); make lr and "
            "lr_lr smaller, or load the model in float32, and start over with --fresh"
        )

    def _update(self, step: int) -> float:
        if self.accelerator is not None and self._processes > 1:
            for p in self.parameters:  # every process must take part, gradient or not
                grad = torch.zeros_like(p) if p.grad is None else p.grad
                p.grad = self.accelerator.reduce(grad, reduction="mean")
        grads = [p for p in self.parameters if p.grad is not None]
        norm = float(torch.nn.utils.clip_grad_norm_(grads, self.config.clip)) if grads else 0.0
        if math.isfinite(norm):  # a NaN or Inf gradient is dropped, as the reference does
            rate = self._rate(step)
            for group, lr in zip(self.optimiser.param_groups, self.rates, strict=True):
                group["lr"] = lr * rate
            self.optimiser.step()
        self.optimiser.zero_grad()
        return norm

    def _validate(self) -> dict[str, float]:
        """Scores on held-out edits at batch sizes 1, about 5 and the largest trained for."""
        usable = [e for e in map(self.validation.get, range(len(self.validation.edits))) if e]
        if not usable:
            raise TrainingError("none of the validation edits can be used")
        values: dict[str, float] = {}
        sizes = sorted({min(n, self.config.max_edits, len(usable)) for n in (1, 5, 1 << 30)})
        scores = []
        for n in sizes:
            totals = [0.0, 0.0, 0.0]
            batches = [usable[i : i + n] for i in range(0, len(usable) - n + 1, n)]
            per = max(1, 16 // n)
            for i in range(0, len(batches), per):
                groups = batches[i : i + per]
                flat = [e for g in groups for e in g]
                others = [usable[(usable.index(e) + n) % len(usable)] for e in flat]
                with torch.no_grad():
                    items = choose_items(flat, others, [0] * len(flat))
                    change = self.trainable.change(groups)
                    r = joined(
                        [
                            evaluate(self.base, self.matrices, part, mine, self.objective)
                            for part, mine in in_parts(
                                change, items, len(groups), self.config.at_once
                            )
                        ]
                    )
                for k, value in enumerate((r.es, r.gs, r.ls)):
                    totals[k] += value * len(flat)
            es, gs, ls = (t / (len(batches) * n) for t in totals)
            hm = 3 / sum(1 / max(v, 1e-6) for v in (es, gs, ls))
            scores.append(hm)
            values |= {f"val{n}_es": es, f"val{n}_gs": gs, f"val{n}_ls": ls, f"val{n}_hm": hm}
        score = self._agreed(sum(scores) / len(scores))
        values["val"] = score
        if score > self.progress.best:
            self.progress.best, self.progress.best_step = score, self.progress.step
            self.progress.stale = 0
            self.best = {
                k: v.detach().clone() for k, v in self.trainable.module.state_dict().items()
            }
        else:
            self.progress.stale += 1
        return values

    def _log(self, step: int, values: dict[str, float]) -> None:
        if self._rank != 0:
            return
        record: dict[str, float | None] = {"step": step, "seconds": round(self.progress.seconds, 3)}
        # JSON has no NaN.
        record |= {k: round(v, 6) if math.isfinite(v) else None for k, v in values.items()}
        with (self.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _save(self, path: Path) -> None:
        if self._rank == 0:
            save_checkpoint(
                path,
                self.identity,
                self.progress,
                module=self.trainable.module,
                optimiser=self.optimiser,
                best=self.best,
            )
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()
