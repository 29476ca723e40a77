"""Settings of a training run."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from mend_core.errors import TrainingError
from mend_core.training.objective import LocalityTokens, Outer

METHODS = ("mend", "malmen", "enn", "ke")

COUNTS = (
    *("steps", "max_edits", "per_step", "at_once", "accumulate", "validate_every"),
    *("checkpoint_every", "warm_up"),
)
"""Settings that count from 1."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "enn": {"max_edits": 1, "lr_lr": 1e-3},
    "ke": {"max_edits": 1, "lr": 1e-3},
}
"""Settings whose default depends on the method: ENN and KE are trained on single edits, ENN's step
sizes move ten times as fast as its weights, and KE's rate is as many times its paper's (1e-5) as
MEND's is."""


RELEASED: dict[str, Any] = {
    "outer": "rephrase",
    "locality_tokens": "all",
    "max_edits": 1,
    "per_step": 1,
    "accumulate": 10,
    "lr": 1e-6,
}
"""Settings whose default is that of MEND's authors' code where `TrainConfig.released` is asked."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything that decides the weights of a run, beside the data and the base.

    Attributes:
        method: Which editor.
        editor: Fields of the method's own config (`MendConfig`, `MalmenConfig`, `EnnConfig`,
            `KeConfig`).
        matrices: Name patterns; None for the family's default.
        seed: Of initial weights and of every draw.
        steps: Optimiser steps.
        max_edits: Batch sizes are drawn log-uniformly from 1 to this (see `DEFAULTS`).
        per_step: Small batches are grouped until a step sees about this many edits.
        at_once: Edits whose texts run through the model together. A step with more of them gives
            the same gradient in parts, so that memory does not grow with `max_edits`.
        outer: What the edit loss is taken on: a rephrase alone (paper), or the edit's own prompt
            and a rephrase alike.
        locality_tokens: Where the locality loss is taken: at the positions that predict an answer,
            or in decoders at all tokens of the locality prompt (released code).
        c_edit: Weight of the edit loss (paper: 0.1).
        c_loc: Weight of the locality loss (paper: 1).
        lr: Adam's rate for the networks (paper: 1e-6 over 500,000 steps; short runs need more).
        lr_lr: Rate of the learned step sizes.
        ramp: Steps over which both rates rise linearly from zero.
        decay: Cosine decay of both rates to a tenth over `steps`.
        clip: Largest gradient norm.
        accumulate: Steps whose gradients are averaged before an update (paper: 10).
        released: Reproduce the authors' training code: an update after 11 steps, then after every
            10, each divided by 10; the learned step sizes move at `lr`; rates are constant; the
            normaliser runs along with training, matrix by matrix. Brings `RELEASED` as defaults.
        warm_up: Examples that fix the normaliser before the first step (rows are made at the base,
            so their statistics do not depend on training). Ignored when `released`.
        validation: Edits held out.
        validate_every: Steps between validations.
        patience: Validations without a better score before stopping; 0 never stops early.
        checkpoint_every: Steps between checkpoints.
        max_rephrases: Rephrases per edit that training draws from.
        cache_bytes: Memory for prepared examples.
    """

    method: Literal["mend", "malmen", "enn", "ke"] = "mend"
    editor: dict[str, Any] = field(default_factory=dict)
    matrices: tuple[str, ...] | None = None
    seed: int = 0
    steps: int = 2000
    max_edits: int = 25
    per_step: int = 10
    at_once: int = 64
    outer: Outer = "both"
    locality_tokens: LocalityTokens = "answer"
    c_edit: float = 0.1
    c_loc: float = 1.0
    lr: float = 1e-4
    lr_lr: float = 1e-4
    ramp: int = 20
    decay: bool = True
    clip: float = 100.0
    accumulate: int = 1
    released: bool = False
    warm_up: int = 256
    validation: int = 100
    validate_every: int = 200
    patience: int = 0
    checkpoint_every: int = 100
    max_rephrases: int = 2
    cache_bytes: int = 1 << 31

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        plain = asdict(self)
        plain["matrices"] = None if self.matrices is None else list(self.matrices)
        return plain

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "config") -> TrainConfig:
        """From JSON, types checked; what is not given takes the method's default.

        Raises:
            TrainingError: An unknown field or a value of the wrong type or range.
        """
        known = {f.name for f in fields(cls)}
        for name, value in values.items():
            if name not in known:
                raise TrainingError(
                    f"{source}: unknown setting {name!r}; known: {', '.join(sorted(known))}"
                )
            if not _fits(name, value, getattr(cls(), name)):
                raise TrainingError(f"{source}: setting {name!r} cannot be {value!r}")
        own = RELEASED if values.get("released") else {}
        values = {**DEFAULTS.get(values.get("method", cls().method), {}), **own, **values}
        if values.get("matrices") is not None:
            values["matrices"] = tuple(values["matrices"])
        config = cls(**values)
        for name in COUNTS:
            if getattr(config, name) < 1:
                raise TrainingError(f"{source}: setting {name!r} must be at least 1")
        for name, choices in (("outer", Outer), ("locality_tokens", LocalityTokens)):
            if getattr(config, name) not in get_args(choices):
                raise TrainingError(
                    f"{source}: setting {name!r} cannot be {getattr(config, name)!r}; it is one of "
                    f"{', '.join(get_args(choices))}"
                )
        if config.method not in METHODS:
            raise TrainingError(
                f"{source}: method {config.method!r} is not trained; {', '.join(METHODS)} are"
            )
        return config

    @classmethod
    def read(cls, path: Path) -> dict[str, Any]:
        """The settings a JSON file gives, checked; those it leaves open are not in it.

        Raises:
            TrainingError: Missing, not JSON, or see `from_dict`.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TrainingError(f"cannot read the settings in {path}: {error}") from error
        if not isinstance(values, dict):
            raise TrainingError(f"{path}: expected an object of settings")
        cls.from_dict(values, str(path))
        return values


def _fits(name: str, value: Any, default: Any) -> bool:
    """Whether a JSON value has the type (and sign) of a setting."""
    if name == "matrices":
        return value is None or (
            isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value)
        )
    if isinstance(default, (bool, str, dict)):
        return isinstance(value, type(default))
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        return False
    return isinstance(value, int) or isinstance(default, float)
