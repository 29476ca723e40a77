"""What training minimises: c_edit · NLL of the edit reworded + c_loc · KL(base ‖ edited).

The paper and its code take the first from rephrases alone (``outer="rephrase"``); by default the
edit's own prompt counts as much as a rephrase does (``"both"``), which short runs need. The second
is taken at the positions that predict an answer, or as the authors' code does for decoders at every
token of the locality prompt (``locality_tokens="all"``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mend_core.models import Base, Encoded, Matrix, suffix
from mend_core.training.change import Change
from mend_core.training.examples import Example, Item, stack

Outer = Literal["both", "rephrase"]
LocalityTokens = Literal["answer", "all"]


@dataclass(frozen=True, slots=True)
class Objective:
    """What counts, and how much.

    Attributes:
        c_edit: Weight of the edit loss.
        c_loc: Weight of the locality loss.
        outer: Texts the edit loss is taken on; see the module.
        locality_tokens: Positions the locality loss is taken at; see the module.
    """

    c_edit: float = 0.1
    c_loc: float = 1.0
    outer: Outer = "both"
    locality_tokens: LocalityTokens = "answer"


@dataclass(frozen=True, slots=True, eq=False)
class Losses:
    """Results of one step, means over edits.

    Attributes:
        total: What is minimised, () with gradient.
        edit: NLL of the target, nats per token, ().
        locality: KL(base ‖ edited) on locality prompts, nats per token, ().
        es: Share of target tokens right after the prompt (teacher-forced argmax).
        gs: The same after a rephrase.
        ls: Share of positions whose argmax is the base's.
        finite: Per edit, whether its own losses are numbers: (edits,) bool.
    """

    total: Tensor
    edit: Tensor
    locality: Tensor
    es: float
    gs: float
    ls: float
    finite: Tensor


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
    base: Base,
    matrices: Sequence[Matrix],
    change: Change,
    items: Sequence[Item],
    objective: Objective | None = None,
) -> Losses:
    """One forward of the edited blocks over all items, and one of the base over locality items.

    Args:
        base: The base with its own weights.
        matrices: Edited matrices.
        change: The change of each group.
        items: From `choose_items`, group after group: edit, rephrase, locality, edit, …
        objective: What counts.
    """
    objective = objective or Objective()
    encoded, hidden = stack(base, items)
    first = min(m.block for m in matrices)
    number = len(items) // 3
    part = torch.tensor([0, 1, 2], device=encoded.input_ids.device).repeat(number)
    keep = _kept(encoded, part == 2, objective)  # noqa: PLR2004 - locality
    with change.applied(base):
        logits = suffix(base, hidden, first, encoded, keep=keep)
    near_encoded, near_hidden = stack(base, list(items)[2::3])
    with torch.no_grad():
        near = _kept(near_encoded, torch.ones_like(part[:number], dtype=torch.bool), objective)
        reference = suffix(base, near_hidden, first, near_encoded, keep=near).float()
        reference = reference.log_softmax(-1)
    row = keep.nonzero()[:, 0]
    weight = 1.0 / torch.bincount(row, minlength=len(items)).clamp(min=1)[row]
    part = part[row]  # (kept,); each item counts once
    logp = logits.float().log_softmax(-1)  # (kept, vocabulary)
    asked = part < 2  # noqa: PLR2004 - edit and rephrase
    target = encoded.answer_labels if asked.all() else _targets(encoded, keep)
    nll = F.nll_loss(logp[asked], target[asked], reduction="none") * weight[asked]
    if objective.outer == "rephrase":
        edit = nll[part[asked] == 1].sum() / number
    else:
        edit = nll.sum() / (2 * number)
    far = logp[~asked]
    kl = (reference.exp() * (reference - far)).sum(-1) * weight[~asked]
    locality = kl.sum() / number
    right = (logp.argmax(-1) == target).float() * weight
    same = (far.argmax(-1) == reference.argmax(-1)).float() * weight[~asked]
    each = torch.cat((nll.detach(), kl.detach()))
    edit_of = torch.cat((row[asked], row[~asked])) // 3
    broken = torch.bincount(edit_of, weights=(~each.isfinite()).double(), minlength=number)
    return Losses(
        total=objective.c_edit * edit + objective.c_loc * locality,
        edit=edit,
        locality=locality,
        es=float(right[part == 0].sum() / number),
        gs=float(right[part == 1].sum() / number),
        ls=float(same.sum() / number),
        finite=broken == 0,
    )


def _kept(encoded: Encoded, near: Tensor, objective: Objective) -> Tensor:
    """Positions whose logits count: bool, the shape of the logits' first axes."""
    mask = encoded.answer_mask
    if objective.locality_tokens == "all" and encoded.kind == "causal":
        mask = mask | (near[:, None] & encoded.attention_mask.bool())
    return mask


def _targets(encoded: Encoded, keep: Tensor) -> Tensor:
    """Target token of each kept position, 0 where there is none: (kept,)."""
    mask = encoded.answer_mask
    found = torch.zeros_like(mask, dtype=torch.int64)
    found[mask] = encoded.answer_labels
    return found[keep]


def in_parts(
    change: Change, items: Sequence[Item], groups: int, at_once: int
) -> Iterator[tuple[Change, Sequence[Item]]]:
    """A step's items in parts of about `at_once` edits, each with the change it feels.

    Args:
        change: The change of each group.
        items: Three per edit, group after group.
        groups: How many groups, equally large.
        at_once: Most edits per part; several whole groups where they fit.
    """
    size = len(items) // groups  # items of a group
    together = max(1, 3 * at_once // size)
    for start in range(0, groups, together):
        stop = min(groups, start + together)
        mine = change.of_groups(start, stop)
        whole = items[start * size : stop * size]
        step = len(whole) if stop - start > 1 else 3 * at_once
        for place in range(0, len(whole), step):
            yield mine, whole[place : place + step]


def joined(parts: Sequence[Losses]) -> Losses:
    """The losses of a whole step from those of its parts."""
    sizes = [len(part.finite) for part in parts]
    share = [n / sum(sizes) for n in sizes]

    def mean(name: str) -> Tensor:
        return torch.stack(
            [s * getattr(part, name).detach() for s, part in zip(share, parts, strict=True)]
        ).sum()

    return Losses(
        total=mean("total"),
        edit=mean("edit"),
        locality=mean("locality"),
        es=sum(s * part.es for s, part in zip(share, parts, strict=True)),
        gs=sum(s * part.gs for s, part in zip(share, parts, strict=True)),
        ls=sum(s * part.ls for s, part in zip(share, parts, strict=True)),
        finite=torch.cat([part.finite for part in parts]),
    )


def descend(
    base: Base,
    matrices: Sequence[Matrix],
    change: Change,
    items: Sequence[Item],
    objective: Objective,
    *,
    groups: int,
    at_once: int,
    scale: float,
) -> Losses:
    """A step's losses, their gradient added to what is trained; not if it is NaN or Inf.

    More than `at_once` edits are worked off in parts: the gradient with respect to the change is
    collected over them and taken back through the method once. That is the same gradient (MALMEN's
    decoupling), in the memory of one part.

    Args:
        base: The base with its own weights.
        matrices: Edited matrices.
        change: The change of each group, with its graph.
        items: From `choose_items`.
        objective: What is minimised.
        groups: How many groups.
        at_once: Most edits whose texts run through the model together.
        scale: Factor on the gradient.
    """
    if len(items) <= 3 * at_once:
        result = evaluate(base, matrices, change, items, objective)
        if bool(torch.isfinite(result.total.detach())):
            (result.total * scale).backward()  # type: ignore[no-untyped-call] # torch's stub
        return joined([result])
    cut, ends = change.cut()
    done: list[Losses] = []
    for part, mine in in_parts(cut, items, groups, at_once):
        result = evaluate(base, matrices, part, mine, objective)
        (result.total * (scale * len(mine) / len(items))).backward()  # type: ignore[no-untyped-call]
        done.append(joined([result]))
    whole = joined(done)
    live = [(made, leaf.grad) for made, leaf in ends if leaf.grad is not None]
    if bool(torch.isfinite(whole.total)) and live:
        torch.autograd.backward([made for made, _ in live], [grad for _, grad in live])
    return whole
