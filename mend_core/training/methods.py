"""Which trainable a method's name stands for, and its own settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mend_core.editors.enn import EnnConfig, EnnNetworks
from mend_core.editors.ke import KeConfig, KeNetworks
from mend_core.editors.malmen import MalmenConfig, MalmenNetworks
from mend_core.editors.mend import MendConfig, MendNetworks
from mend_core.errors import TrainingError
from mend_core.models import Base
from mend_core.training.config import TrainConfig
from mend_core.training.hypernetworks import MalmenTrainable, MendTrainable
from mend_core.training.peers import EnnTrainable, KeTrainable
from mend_core.training.trainable import Trainable

Shapes = Mapping[str, tuple[int, int]]


def make_trainable(base: Base, config: TrainConfig, shapes: Shapes) -> Trainable:
    """The method of `config` for matrices of these shapes.

    Raises:
        TrainingError: One of the method's own settings is unknown or wrong.
    """
    return _MAKERS[config.method](base, config, shapes)


def _mend(base: Base, config: TrainConfig, shapes: Shapes) -> Trainable:
    make = MendConfig.as_released if config.released else MendConfig
    chosen = make(**_options(MendConfig, config))
    return MendTrainable(base, MendNetworks(shapes, chosen, config.seed), shapes)


def _malmen(base: Base, config: TrainConfig, shapes: Shapes) -> Trainable:
    chosen = MalmenConfig(**_options(MalmenConfig, config))
    return MalmenTrainable(base, MalmenNetworks(shapes, chosen, config.seed), shapes)


def _enn(base: Base, config: TrainConfig, shapes: Shapes) -> Trainable:
    chosen = EnnConfig(**_options(EnnConfig, config))
    return EnnTrainable(base, EnnNetworks(shapes, chosen), shapes)


def _ke(base: Base, config: TrainConfig, shapes: Shapes) -> Trainable:
    chosen = KeConfig(**_options(KeConfig, config))
    width = base.model.get_input_embeddings().weight.shape[1]
    return KeTrainable(base, KeNetworks(shapes, width, chosen, config.seed), shapes)


_MAKERS: dict[str, Callable[[Base, TrainConfig, Shapes], Trainable]] = {
    "mend": _mend,
    "malmen": _malmen,
    "enn": _enn,
    "ke": _ke,
}


def _options(kind: type[Any], config: TrainConfig) -> dict[str, Any]:
    """The editor's own settings of a run, checked against its config class.

    Raises:
        TrainingError: A name it does not have, or a value of the wrong type or range.
    """
    types = get_type_hints(kind)
    known = [field.name for field in fields(kind)]
    for name, value in config.editor.items():
        if name not in known:
            raise TrainingError(
                f"settings of the editor: {config.method} has no {name!r}; it has: "
                f"{', '.join(known)}"
            )
        if not _fits(value, types[name]):
            raise TrainingError(f"settings of the editor: {name!r} cannot be {value!r}")
    return dict(config.editor)


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a JSON value suits a field: a choice, a switch, a count from 1, a number from 0."""
    if get_origin(wanted) is Literal:
        return value in get_args(wanted)
    if wanted is bool or isinstance(value, bool):
        return wanted is bool and isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and value >= 1
    return isinstance(value, (int, float)) and math.isfinite(value) and value >= 0
