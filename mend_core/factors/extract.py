"""Raw rows of edits: module inputs and output gradients, never a weight gradient.

MEND's decomposition (EDITING.md A.1): a linear layer's gradient is Σ δ uᵀ over tokens, with u the
layer's input and δ the loss's gradient at its output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mend_core.datasets.edit import Edit
from mend_core.errors import EditError
from mend_core.factors.rows import Rows
from mend_core.models.base import Base, Matrix
from mend_core.models.prefix import PrefixCache

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
        prefix: Start from cached hidden states.
        tokens: Which positions to keep: ``all`` with a gradient (MEND), ``answer`` positions
            (those that predict a target token: MALMEN, UltraEdit), or the ``subject``'s last token.
        append_eos: See `encode_pairs`.
        batch_size: Edits per backward.

    Raises:
        EmptyBatch: No edits.
        NoSuchMatrix: No matrices.
    """
    raise NotImplementedError
