"""What training minimises: c_edit · NLL of the rephrased edit + c_loc · KL(base ‖ edited)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mend_core.models import Base, Matrix, suffix
from mend_core.training.change import Change
from mend_core.training.examples import Example, Item, stack


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


def evaluate(
    base: Base, matrices: Sequence[Matrix], change: Change, items: Sequence[Item]
) -> Losses:
    """One forward of the edited blocks over all items, and one of the base over locality items.

    Args:
        base: The base with its own weights.
        matrices: Edited matrices.
        change: The change of each group.
        items: From `choose_items`, group after group: edit, rephrase, locality, edit, …
    """
    encoded, hidden = stack(base, items)
    first = min(m.block for m in matrices)
    with change.applied(base):
        logits = suffix(base, hidden, first, encoded, keep=encoded.answer_mask)
    near = list(items)[2::3]
    near_encoded, near_hidden = stack(base, near)
    with torch.no_grad():
        keep = near_encoded.answer_mask
        reference = suffix(base, near_hidden, first, near_encoded, keep=keep).float()
        reference = reference.log_softmax(-1)
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
