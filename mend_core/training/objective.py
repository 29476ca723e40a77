"""What training minimises: c_edit · NLL of the rephrased edit + c_loc · KL(base ‖ edited)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mend_core.models import Base, Encoded, Matrix, forward, suffix
from mend_core.training.examples import Example, Item, stack

Pairs = Mapping[str, tuple[Tensor, Tensor]]
"""Matrix → keys (groups, rows, d_in) and values (groups, rows, d_out): per group ΔW = Σ value keyᵀ.

Groups are independent batches of edits whose losses are computed in one forward pass."""


@contextmanager
def low_rank(matrices: Sequence[Matrix], pairs: Pairs) -> Iterator[None]:
    """Adds each group's ΔW to its share of the batch, without forming ΔW; differentiable.

    The batch must hold the groups one after the other, equally many sequences each.
    """

    def hook_for(keys: Tensor, values: Tensor) -> Any:
        def hook(_module: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            x = args[0]
            grouped = x.reshape(keys.shape[0], -1, x.shape[-1]).to(keys.dtype)
            change = (grouped @ keys.transpose(1, 2)) @ values
            return out + change.reshape(out.shape).to(out.dtype)

        return hook

    handles = [m.module.register_forward_hook(hook_for(*pairs[m.name])) for m in matrices]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, slots=True, eq=False)
class Losses:
    """Results of one step, means over edits.

    Attributes:
        edit: NLL of the target after prompt and rephrase, nats per token, () with gradient.
        locality: KL(base ‖ edited) on locality prompts, nats per token, () with gradient.
        es: Share of target tokens right after the prompt (teacher-forced argmax).
        gs: The same after a rephrase.
        ls: Share of positions whose argmax is the base's.
    """

    edit: Tensor
    locality: Tensor
    es: float
    gs: float
    ls: float


def choose_items(
    examples: Sequence[Example], others: Sequence[Example], picks: Sequence[int]
) -> list[Item]:
    """Three items per example: the edit, one rephrase (or the edit again), one locality prompt.

    An example without locality prompts borrows the edit of one of `others`, unrelated examples
    outside the batch (MEND samples x_loc independently).
    """
    items: list[Item] = []
    for example, other, pick in zip(examples, others, picks, strict=True):
        edit = example.of("edit")[0]
        rephrases = example.of("rephrase") or [edit]
        near = example.of("locality") or other.of("edit")
        items += [edit, rephrases[pick % len(rephrases)], near[pick % len(near)]]
    return items


def evaluate(base: Base, matrices: Sequence[Matrix], pairs: Pairs, items: Sequence[Item]) -> Losses:
    """One forward of the edited blocks over all items, and one of the base over locality items.

    Args:
        base: The base with its own weights.
        matrices: Edited matrices.
        pairs: The change of each group.
        items: From `choose_items`, group after group: edit, rephrase, locality, edit, …
    """
    encoded, hidden = stack(base, items)
    first = min(m.block for m in matrices)
    with low_rank(matrices, pairs):
        logits = _logits(base, encoded, hidden, first)
    near = list(items)[2::3]
    near_encoded, near_hidden = stack(base, near)
    with torch.no_grad():
        reference = _logits(base, near_encoded, near_hidden, first).float().log_softmax(-1)
    part = torch.tensor([0, 1, 2], device=logits.device).repeat(len(near))
    row, target = encoded.answer_rows, encoded.answer_labels
    counts = torch.bincount(row, minlength=len(items)).clamp(min=1)
    weight = 1.0 / counts[row]  # (answers,): each item counts once
    part = part[row]
    logp = logits.float().log_softmax(-1)  # (answers, vocabulary)
    wanted = part < 2  # noqa: PLR2004 - edit and rephrase
    nll = F.nll_loss(logp[wanted], target[wanted], reduction="none")
    far = logp[~wanted]
    kl = (reference.exp() * (reference - far)).sum(-1)
    number = len(near)
    right = (logp.argmax(-1) == target).float() * weight
    same = (far.argmax(-1) == reference.argmax(-1)).float() * weight[~wanted]
    return Losses(
        edit=(nll * weight[wanted]).sum() / (2 * number),
        locality=(kl * weight[~wanted]).sum() / number,
        es=float(right[part == 0].sum() / number),
        gs=float(right[part == 1].sum() / number),
        ls=float(same.sum() / number),
    )


def _logits(base: Base, encoded: Encoded, hidden: Tensor | None, first_block: int) -> Tensor:
    keep = None if base.kind == "classifier" else encoded.answer_mask
    if hidden is None:
        return forward(base, encoded, keep=keep)
    return suffix(base, hidden, first_block, encoded, keep=keep)
