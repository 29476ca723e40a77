"""A run's folder: one checkpoint file, replaced whole, and the metrics beside it.

Everything the next step depends on is in the file: parameters, statistics, optimiser moments and
the step number (draws are a function of seed and step, so no random state needs keeping).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mend_core.digests import tensor_digest
from mend_core.editors.files import write_atomically
from mend_core.errors import TrainingError

_KEY = "mend_training"

METRICS = "metrics.jsonl"
"""File of one JSON object a step, beside the checkpoint."""


@dataclass(slots=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: Steps done.
        seconds: Seconds spent, over all resumes.
        best: Best validation score so far.
        best_step: When it was reached.
        stale: Validations since then.
        in_vain: Steps in a row that gave no update, NaN or Inf in the way.
        quarantined: Numbers of training edits whose own texts give NaN or Inf.
    """

    step: int = 0
    seconds: float = 0.0
    best: float = -1.0
    best_step: int = 0
    stale: int = 0
    in_vain: int = 0
    quarantined: list[int] = field(default_factory=list)


def save_checkpoint(
    path: Path,
    identity: dict[str, Any],
    progress: Progress,
    *,
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    best: dict[str, Tensor],
) -> None:
    """Write atomically.

    Args:
        path: The file.
        identity: What a resuming run must share: settings, base and data digests.
        progress: Where the run stands.
        module: Parameters and statistics.
        optimiser: Its moments are saved by parameter number.
        best: State of the module at the best validation.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        tensors[f"now|{name}"] = value
    for name, value in best.items():
        tensors[f"best|{name}"] = value
    for number, state in optimiser.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"adam|{number}|{key}"] = torch.as_tensor(value)
    plain: dict[str, Any] = {
        "identity": identity,
        "progress": {name: getattr(progress, name) for name in Progress.__slots__},
    }
    copies = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}
    plain["digest"] = tensor_digest(copies, plain)
    write_atomically(path, save(copies, metadata={_KEY: json.dumps(plain)}))


def load_checkpoint(
    path: Path,
    identity: dict[str, Any],
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
) -> tuple[Progress, dict[str, Tensor]]:
    """Put a checkpoint's state into module and optimiser.

    Returns:
        Where the run stood, and the best state.

    Raises:
        TrainingError: Unreadable, altered, or of a run with other settings, base or data.
    """
    try:
        with safe_open(path, framework="pt") as file:
            plain = json.loads((file.metadata() or {})[_KEY])
            tensors = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118 - not a dict
        claimed = plain.pop("digest")
        theirs = dict(plain["identity"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(
            f"checkpoint {path} cannot be read ({error}); start over with --fresh"
        ) from error
    if tensor_digest(tensors, plain) != claimed:
        raise TrainingError(
            f"checkpoint {path} was altered: it is not what its digest says; start over with "
            "--fresh"
        )
    differs = [_difference(k, theirs.get(k), v) for k, v in identity.items() if theirs.get(k) != v]
    if differs:
        raise TrainingError(
            f"checkpoint {path} is of a run with other {', '.join(differs)}; "
            "use the same to resume, or --fresh to start over"
        )
    module.load_state_dict(_under(tensors, "now|"))
    packed = optimiser.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _under(tensors, "adam|").items():
        number, key = name.split("|")
        state.setdefault(int(number), {})[key] = value
    packed["state"] = state
    optimiser.load_state_dict(packed)
    kept = {k: v for k, v in plain["progress"].items() if k in Progress.__slots__}
    return Progress(**kept), _under(tensors, "best|")


def _difference(name: str, then: Any, now: Any) -> str:
    """What a person has to look at: the setting that differs, or the two values."""
    if isinstance(then, dict) and isinstance(now, dict):
        unlike = sorted(k for k in {*then, *now} if then.get(k) != now.get(k))
        return f"{name} ({', '.join(unlike)})"
    return name if name in ("base", "data") else f"{name} ({then}, now {now})"


def keep_metrics(path: Path, step: int) -> None:
    """Take out of a run's metrics what it is about to do again.

    A killed run has steps after its last checkpoint, and perhaps half a line.

    Args:
        path: One JSON object a line.
        step: The last step that counts.
    """
    if not path.is_file():
        return
    kept: dict[int, str] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            number = int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
        if number <= step:
            kept[number] = line
    write_atomically(path, "".join(f"{line}\n" for line in kept.values()).encode())


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
