"""Raw rows of edits: module inputs and output gradients, never a weight gradient.

MEND's decomposition (EDITING.md A.1): a linear layer's gradient is Σ δ uᵀ over tokens, with u the
layer's input and δ the loss's gradient at its output.

The first edited matrix's output is cut off from what came before it and made the leaf the gradient
stops at; no parameter requires a gradient, so neither do the blocks before it nor any weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mend_core.datasets.edit import Edit
from mend_core.errors import EditError, EmptyBatch, NonFinite, NoSuchMatrix
from mend_core.factors.rows import Rows
from mend_core.models.base import Base, Matrix
from mend_core.models.encode import Encoded, encode_edits, prompt_text
from mend_core.models.prefix import PrefixCache, forward
from mend_core.safepoints import safe_point

Tokens = Literal["all", "answer", "subject"]


@dataclass(frozen=True, slots=True, eq=False)
class StackedRows:
    """All edits' rows of one matrix, one after the other, in the order of edits then positions.

    Attributes:
        u: Module inputs, (rows, d_in) float32.
        delta: Gradients of each edit's own mean loss at the module's output, (rows, d_out) float32.
        edit: Which edit each row belongs to (its number in the list given), (rows,) int64.
        position: Token position in that edit's sequence, (rows,) int64.
    """

    u: Tensor  # (rows, d_in)
    delta: Tensor  # (rows, d_out)
    edit: Tensor  # (rows,)
    position: Tensor  # (rows,)

    def pick(self, mask: Tensor) -> StackedRows:
        """The rows a mask or an order of numbers names."""
        return StackedRows(self.u[mask], self.delta[mask], self.edit[mask], self.position[mask])


@dataclass(frozen=True, slots=True, eq=False)
class Extraction:
    """Raw rows of a list of edits.

    Attributes:
        edits: The list given.
        rows: Full parameter name → stacked rows of the good edits.
        loss: Mean negative log-likelihood of each edit's target in nats, (edits,) float32; NaN for
            a bad edit.
        errors: Number of a bad edit → what is wrong with it.
    """

    edits: Sequence[Edit]
    rows: Mapping[str, StackedRows]
    loss: Tensor
    errors: Mapping[int, EditError]

    def of(self, number: int) -> dict[str, Rows]:
        """One edit's rows per matrix, v = δ.

        Raises:
            EditError: This edit is a bad one.
        """
        if number in self.errors:
            raise self.errors[number]
        picked: dict[str, Rows] = {}
        for name, stacked in self.rows.items():
            mine = stacked.edit == number
            picked[name] = Rows(stacked.u[mine], stacked.delta[mine])
        return picked


class Taps:
    """Catches each matrix's input and output during one forward.

    Attributes:
        graph: Inputs keep their graph, for a second derivative.
        inputs: Full parameter name → the module's input.
        outputs: Full parameter name → its output, which requires a gradient.
    """

    def __init__(self, *, graph: bool) -> None:
        self.graph = graph
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        """The forward hook of one matrix."""

        def catch(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            self.inputs[name] = args[0] if self.graph else args[0].detach()
            leaf = output if output.requires_grad else output.detach().requires_grad_()
            self.outputs[name] = leaf
            return leaf

        return catch


@contextmanager
def tapped(matrices: Sequence[Matrix], *, graph: bool = False) -> Iterator[Taps]:
    """Taps on these matrices for the length of the block, after whatever hooks they have by then.

    Args:
        matrices: From ``base.matrices``.
        graph: See `Taps`.
    """
    taps = Taps(graph=graph)
    handles = [matrix.module.register_forward_hook(taps.hook(matrix.name)) for matrix in matrices]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()


def answer_losses(logits: Tensor, encoded: Encoded) -> Tensor:
    """Each sequence's mean negative log-likelihood of its target, in nats: (batch,).

    Args:
        logits: At the answer positions, (answers, vocabulary); classifier: (batch, classes).
        encoded: With labels.
    """
    each = F.cross_entropy(logits.float(), encoded.answer_labels, reduction="none")
    rows = encoded.answer_rows
    total = each.new_zeros(len(encoded)).index_add(0, rows, each)
    return total / torch.bincount(rows, minlength=len(encoded))


def extract(
    base: Base,
    edits: Sequence[Edit],
    matrices: Sequence[Matrix],
    *,
    prefix: PrefixCache | None = None,
    tokens: Tokens = "all",
    append_eos: bool = False,
    batch_size: int = 32,
) -> Extraction:
    """Extracts every edit's (u, δ) rows with one backward per batch of edits.

    The loss is the sum of per-edit mean losses, so each edit's rows are those it would have alone.
    The backward runs only from the loss to the first edited matrix's output.

    Args:
        base: The base, with its own weights in place.
        edits: At least one.
        matrices: From ``base.matrices``.
        prefix: Start from cached hidden states; its first block is none after the first edited one.
        tokens: Which positions to keep: ``all`` with a gradient (MEND), ``answer`` positions
            (those that predict a target token: MALMEN, UltraEdit; in an encoder all its tokens, in
            a classifier the first), or the ``subject``'s last token (the prompt's last where no
            subject is given; in a decoder the answer positions).
        append_eos: See `encode_pairs`.
        batch_size: Edits per backward.

    Raises:
        EmptyBatch: No edits.
        NoSuchMatrix: No matrices.
    """
    if not edits:
        raise EmptyBatch("there are no edits to extract factors from")
    if not matrices:
        raise NoSuchMatrix("no matrix was named to extract factors at")
    if prefix is not None and prefix.first_block > min(matrix.block for matrix in matrices):
        raise ValueError("the prefix cache starts after the first edited block")
    encoded, numbers, errors = encode_edits(base, edits, append_eos=append_eos)
    loss = torch.full((len(edits),), float("nan"))
    parts: dict[str, list[StackedRows]] = {matrix.name: [] for matrix in matrices}
    job = _Job(base, edits, matrices, prefix, tokens)
    if encoded is not None:
        # Sequences of like length share a batch: less padding, the same rows.
        for chosen in _batches(encoded.attention_mask.sum(1).cpu(), batch_size):
            safe_point()
            mine = [numbers[place] for place in chosen.tolist()]
            part = encoded.pick(chosen.to(base.device))
            losses = _extract_batch(job, mine, part, parts)
            loss[mine] = losses
    rows = {name: _join(stacked, matrices, name) for name, stacked in parts.items()}
    return _isolate(edits, rows, loss, numbers, errors)


def _batches(lengths: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Numbers of sequences to run together: of like length, a tenth of padding at most.

    Args:
        lengths: (sequences,) int64.
        batch_size: Most sequences per batch; fewer than four are not split for their padding.
    """
    order = lengths.argsort(stable=True)
    start, tokens = 0, 0
    for place, length in enumerate(lengths[order].tolist()):
        count = place - start
        padded = length * (count + 1)
        wasteful = count >= _FEW and padded > 1.1 * (tokens + length)
        if count == batch_size or wasteful:
            yield order[start:place]
            start, tokens = place, 0
        tokens += length
    yield order[start:]


_FEW = 4


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """What every batch of one `extract` shares."""

    base: Base
    edits: Sequence[Edit]
    matrices: Sequence[Matrix]
    prefix: PrefixCache | None
    tokens: Tokens


def _extract_batch(
    job: _Job, numbers: Sequence[int], encoded: Encoded, parts: dict[str, list[StackedRows]]
) -> Tensor:
    """One forward and one backward; appends the rows to `parts`, gives the losses."""
    with torch.enable_grad(), tapped(job.matrices) as taps:
        logits = forward(job.base, encoded, prefix=job.prefix, keep=encoded.answer_mask)
        losses = answer_losses(logits, encoded)
        names = list(taps.outputs)
        deltas = torch.autograd.grad(losses.sum(), [taps.outputs[name] for name in names])
    where = torch.tensor(numbers)
    in_encoder = _encoder_names(job.base, job.matrices)
    for name, delta in zip(names, deltas, strict=True):
        u = taps.inputs[name]
        wanted = _positions(job, numbers, encoded, encoder=name in in_encoder)
        live = wanted & (u != 0).any(-1) & (delta != 0).any(-1)
        row, position = live.nonzero(as_tuple=True)
        parts[name].append(
            StackedRows(u[live].float(), delta[live].float(), where[row.cpu()], position.cpu())
        )
    return losses.detach().float().cpu()


def _encoder_names(base: Base, matrices: Sequence[Matrix]) -> set[str]:
    """Names of matrices in an encoder-decoder's encoder."""
    if base.kind != "seq2seq":
        return set()
    encoder = base.family.block_paths[0]
    return {matrix.name for matrix in matrices if matrix.name.startswith(f"{encoder}.")}


def _positions(job: _Job, numbers: Sequence[int], encoded: Encoded, *, encoder: bool) -> Tensor:
    """Which positions of a matrix's input may give rows: bool (batch, length)."""
    tokens = job.tokens
    present = encoded.attention_mask.bool()
    if encoded.kind == "seq2seq" and not encoder:
        return encoded.answer_mask
    if tokens == "all" or (tokens == "answer" and encoder):
        return present
    if tokens == "answer" and encoded.kind == "causal":
        return encoded.answer_mask
    mask = torch.zeros_like(present)
    if tokens == "answer":  # classifier: the position its head reads
        mask[:, 0] = True
        return mask
    for row, number in enumerate(numbers):
        mask[row, subject_position(job.base, job.edits[number])] = True
    return mask


def subject_position(base: Base, edit: Edit) -> int:
    """Token position of the subject's last token in the prompt; the prompt's last if unknown."""
    text = prompt_text(edit.prompt)
    ids = base.tokenizer(text)["input_ids"]
    start = text.rfind(edit.subject) if edit.subject else -1
    last = len(ids) - 1
    if ids[-1] in base.tokenizer.all_special_ids and len(ids) > 1:
        last -= 1  # BERT's [SEP], T5's </s>
    if start < 0 or not edit.subject or not base.tokenizer.is_fast:
        return last
    end = start + len(edit.subject) - 1
    position = base.tokenizer(text).char_to_token(end)
    return last if position is None else int(position)


def _join(stacked: Sequence[StackedRows], matrices: Sequence[Matrix], name: str) -> StackedRows:
    if not stacked:
        matrix = next(matrix for matrix in matrices if matrix.name == name)
        none = torch.zeros(0, dtype=torch.int64)
        return StackedRows(torch.zeros(0, matrix.d_in), torch.zeros(0, matrix.d_out), none, none)
    whole = StackedRows(
        torch.cat([part.u for part in stacked]),
        torch.cat([part.delta for part in stacked]),
        torch.cat([part.edit for part in stacked]),
        torch.cat([part.position for part in stacked]),
    )
    return whole.pick(whole.edit.argsort(stable=True))


def _isolate(
    edits: Sequence[Edit],
    rows: Mapping[str, StackedRows],
    loss: Tensor,
    numbers: Sequence[int],
    errors: dict[int, EditError],
) -> Extraction:
    """Sets edits with NaN or Inf aside; the others keep their rows."""
    bad: dict[int, str] = {
        number: "loss" for number in numbers if not bool(loss[number].isfinite())
    }
    for name, stacked in rows.items():
        broken = ~(stacked.u.isfinite().all(1) & stacked.delta.isfinite().all(1))
        for number in set(stacked.edit[broken.cpu()].tolist()):
            bad.setdefault(number, f"gradient at {name}")
    for number, where in bad.items():
        errors[number] = NonFinite(
            edits[number].id,
            f"NaN or Inf in the {where}; the other edits of its batch are not touched. "
            "Reword the edit, or load the model in float32.",
        )
        loss[number] = float("nan")
    clean = dict(rows)
    if bad:
        gone = torch.tensor(sorted(bad))
        clean = {
            name: stacked.pick(~torch.isin(stacked.edit, gone)) for name, stacked in rows.items()
        }
    return Extraction(edits, clean, loss, errors)
