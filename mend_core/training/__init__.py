"""Meta-training of editors: data, loss, loop, resume."""

from mend_core.training.config import TrainConfig
from mend_core.training.loop import Event, Trainer

__all__ = ["Event", "TrainConfig", "Trainer"]
