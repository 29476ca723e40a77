"""Values by optimisation: what to add at one token so that the base answers a target.

Each edit is optimised alone (Adam works element by element), many at a time. An edit whose loss is
small enough in every context is done and leaves the batch: a longer vector would only leak further.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mend_core.models import Matrix
from mend_core.models.tail import Tail
from mend_core.safepoints import safe_point


@dataclass(frozen=True, slots=True)
class Search:
    """How values are looked for.

    Attributes:
        steps: Optimiser steps at most.
        lr: Adam's rate at the first step, as a share of the root mean square of the matrix' output.
        lr_end: The same at the last of `steps`; between them it falls in a straight line.
        enough: NLL per token, in nats, below which (in every context) an edit is done.
        decay: Weight of the values' squared length, in units of the output's mean square; the
            length is taken under the metric that `find_values` is given.
        share: Part of its value an edit gets in every context but the first: another wording's key
            matches only partly, and the value must do there too.
    """

    steps: int
    lr: float
    lr_end: float
    enough: float
    decay: float
    share: float = 1.0

    def rate(self, step: int) -> float:
        """Adam's rate at a step, counted from 0."""
        return self.lr + (self.lr_end - self.lr) * step / max(self.steps - 1, 1)


def find_values(
    contexts: Sequence[Tail],
    matrices: Sequence[Matrix],
    scale: Mapping[str, float],
    search: Search,
    metric: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Values of each edit: full parameter name → (edits, d_out) float32.

    Args:
        contexts: The same edits in several contexts, asked in turn, one a step.
        matrices: To whose outputs the values are added, at the place of each tail.
        scale: Root mean square of each matrix' output.
        search: Settings.
        metric: Full parameter name → (d_out, d_out) float32, symmetric and positive, of mean
            eigenvalue 1: how long a value counts as. None or a name left out: as long as it is.
    """
    metric = metric or {}
    count, device = len(contexts[0]), contexts[0].ids.device
    values = {m.name: torch.zeros(count, m.d_out, device=device) for m in matrices}
    moments = {name: (torch.zeros_like(v), torch.zeros_like(v)) for name, v in values.items()}
    last = torch.full((len(contexts), count), torch.inf, device=device)
    for step in range(search.steps):
        safe_point()
        going = (~(last.amax(0) < search.enough)).nonzero()[:, 0]
        if len(going) == 0:
            break
        asked = step % len(contexts)
        part = {name: v[going].requires_grad_() for name, v in values.items()}
        with torch.enable_grad():
            share = search.share if asked else 1.0
            with added(matrices, {name: v * share for name, v in part.items()}):
                losses = contexts[asked].pick(going).losses()
            total = losses.sum()
            if search.decay:
                lengths = [_length(v / scale[n], metric.get(n)) for n, v in part.items()]
                total = total + search.decay * torch.stack(lengths).sum()
            gradients = torch.autograd.grad(total, list(part.values()))
        last[asked, going] = losses.detach()
        still = ~(last[:, going].amax(0) < search.enough)
        moved = going[still]
        for (name, value), gradient in zip(part.items(), gradients, strict=True):
            # Who goes on now has gone on in every step before, so its step is the loop's.
            first, second = (moment[moved] for moment in moments[name])
            move = _adam(first, second, gradient[still], step + 1)
            moments[name][0][moved], moments[name][1][moved] = first, second
            values[name][moved] = value.detach()[still] - search.rate(step) * scale[name] * move
    return values


def _length(values: Tensor, metric: Tensor | None) -> Tensor:
    """Mean squared length per dimension of each value, (edits, d_out) → (edits,)."""
    return (values * (values if metric is None else values @ metric)).mean(-1)


def _adam(first: Tensor, second: Tensor, gradient: Tensor, step: int) -> Tensor:
    """Adam's direction (Kingma & Ba 2015, algorithm 1; β₁ .9, β₂ .999); moments in place."""
    first.mul_(0.9).add_(gradient, alpha=0.1)
    second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    root = (second / (1 - 0.999**step)).sqrt() + 1e-8
    return first / (1 - 0.9**step) / root


def keys_with(
    context: Tail, matrices: Sequence[Matrix], values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Each matrix' input at the place with all values in place: name → (edits, d_in) float32."""
    keys: dict[str, Tensor] = {}
    with torch.no_grad(), added(matrices, values, keys):
        context.at_place()
    return keys


@contextmanager
def added(
    matrices: Sequence[Matrix], values: Mapping[str, Tensor], keys: dict[str, Tensor] | None = None
) -> Iterator[None]:
    """Adds each sequence's value at its first token to the matrices' outputs.

    Args:
        matrices: Hooked for the length of the block.
        values: Full parameter name → (batch, d_out); a matrix without one is left as it is.
        keys: Filled with each matrix' inputs there, (batch, d_in).
    """

    def hook_for(name: str) -> Any:
        def hook(_module: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            if keys is not None:
                keys[name] = args[0][:, 0].detach().float()
            if name not in values:
                return out
            first = out[:, :1] + values[name][:, None].to(out.dtype)
            return torch.cat([first, out[:, 1:]], dim=1)

        return hook

    handles = [m.module.register_forward_hook(hook_for(m.name)) for m in matrices]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
