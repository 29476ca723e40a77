"""Which trainable a method's name stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mend_core.editors.malmen import MalmenConfig, MalmenNetworks
from mend_core.editors.mend import MendConfig, MendNetworks
from mend_core.errors import TrainingError
from mend_core.models import Base
from mend_core.training.config import TrainConfig
from mend_core.training.hypernetworks import MalmenTrainable, MendTrainable
from mend_core.training.trainable import Trainable


def make_trainable(
    base: Base, config: TrainConfig, shapes: Mapping[str, tuple[int, int]]
) -> Trainable:
    """The method of `config` for matrices of these shapes.

    Raises:
        TrainingError: The method's own settings have an unknown field.
    """
    options: dict[str, Any] = dict(config.editor)
    try:
        if config.method == "malmen":
            ridge = MalmenNetworks(shapes, MalmenConfig(**options), config.seed)
            return MalmenTrainable(base, ridge, shapes)
        make = MendConfig.as_released if config.released else MendConfig
        chosen = make(**options)
    except TypeError as error:
        raise TrainingError(f"settings of the editor: {error}") from error
    return MendTrainable(base, MendNetworks(shapes, chosen, config.seed), shapes)
