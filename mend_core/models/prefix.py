"""Prefix cache: the hidden states entering the first edited block, once per prompt.

They are the same in every version (DESIGN 2.3), so probes, training and extraction start there.
"""

from __future__ import annotations

from torch import Tensor

from mend_core.models.base import Base
from mend_core.models.encode import Encoded


class PrefixCache:
    """Hidden states entering block `first_block`, kept per token sequence, least recent out first.

    Families without support (seq2seq) hold nothing: `hidden` gives None and `forward` runs the
    whole model, so callers need not care.

    Attributes:
        first_block: Index into ``base.blocks``.
        max_bytes: Budget; the newest batch always fits.
        hits: Sequences found.
        misses: Sequences computed.
    """

    def __init__(self, base: Base, first_block: int, *, max_bytes: int = 1 << 30) -> None:
        self.base = base
        self.first_block = first_block
        self.max_bytes = max_bytes
        self.hits = 0
        self.misses = 0

    def hidden(self, encoded: Encoded) -> Tensor | None:
        """Hidden states of a batch, (batch, length, d_model), zeros on padding; None if unsupported.

        Must be called with the base's own weights up to `first_block`, as any version has.
        """
        raise NotImplementedError

    def clear(self) -> None:
        """Forgets everything."""
        raise NotImplementedError


def forward(
    base: Base, encoded: Encoded, *, prefix: PrefixCache | None = None, keep: Tensor | None = None
) -> Tensor:
    """Logits of a batch, from the prefix cache where given. Differentiable.

    Args:
        base: The model with whatever weights are in place now.
        encoded: The batch; seq2seq needs its labels.
        prefix: Start from these hidden states.
        keep: Bool mask of the positions wanted, e.g. ``encoded.answer_mask``. The output layer
            runs on those only, which for a small model is most of its time.

    Returns:
        (batch, length, vocabulary), or (kept, vocabulary) in row-major order with `keep`;
        classifier: (batch, classes).
    """
    raise NotImplementedError


def suffix(
    base: Base, hidden: Tensor, first_block: int, encoded: Encoded, *, keep: Tensor | None = None
) -> Tensor:
    """Logits from the hidden states entering `first_block`; only the blocks from there run.

    Args:
        base: The model with whatever weights are in place now.
        hidden: (batch, length, d_model).
        first_block: Index into ``base.blocks``.
        encoded: The batch the states belong to.
        keep: As in `forward`.
    """
    raise NotImplementedError
