"""Text to tensors: prompts, and prompts with the target that should follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mend_core.datasets.edit import Edit
from mend_core.errors import EditError
from mend_core.models.base import Base


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A padded batch.

    Attributes:
        input_ids: (batch, length) int64, padded on the right. Causal: prompt then target.
        attention_mask: (batch, length) int64, 1 where there is a token.
        labels: Causal: (batch, length), the target's token ids at the target's own positions and
            -100 elsewhere (not shifted). Seq2seq: (batch, target length), -100 on padding.
            Classifier: (batch,) class numbers. None for prompts alone.
        kind: The base's kind.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor | None
    kind: str

    def __len__(self) -> int:
        """Number of sequences."""
        return self.input_ids.shape[0]

    @property
    def answer_mask(self) -> Tensor:
        """Logit positions that predict a target token: bool, the shape of the logits' first axes.

        Causal: (batch, length), the position *before* each target token. Seq2seq: (batch, target
        length). Classifier: (batch,), all true.
        """
        labels = self._labels()
        if self.kind == "classifier":
            return torch.ones_like(labels, dtype=torch.bool)
        mask = labels != IGNORE
        if self.kind == "causal":
            shifted = torch.zeros_like(mask)
            shifted[:, :-1] = mask[:, 1:]
            return shifted
        return mask

    @property
    def answer_labels(self) -> Tensor:
        """Target token ids in the order of `answer_mask`'s true positions: (answers,) int64."""
        labels = self._labels()
        return labels if self.kind == "classifier" else labels[labels != IGNORE]

    @property
    def answer_rows(self) -> Tensor:
        """Which sequence each answer position belongs to: (answers,) int64."""
        mask = self.answer_mask
        return mask.nonzero()[:, 0]

    def _labels(self) -> Tensor:
        assert self.labels is not None, "encoded without targets"
        return self.labels


IGNORE = -100


def encode_prompts(
    base: Base, prompts: Sequence[str], *, ids: Sequence[str] | None = None
) -> Encoded:
    """Encodes prompts alone, padded right.

    Args:
        base: Whose tokenizer.
        prompts: At least one.
        ids: Names for error messages; default is the prompt's number.

    Raises:
        EmptyBatch: No prompts.
        PromptEmpty: A prompt has no tokens.
        PromptTooLong: A prompt does not fit the context.
    """
    raise NotImplementedError


def encode_pairs(
    base: Base,
    pairs: Sequence[tuple[str, str]],
    *,
    ids: Sequence[str] | None = None,
    append_eos: bool = False,
) -> Encoded:
    """Encodes (prompt, target) pairs; one space joins them where neither side brings one.

    The prompt's tokens are exactly those `encode_prompts` gives, so that what was edited is what is
    asked later.

    Args:
        base: Whose tokenizer.
        pairs: At least one. Classifier: the target is a label's name or number.
        ids: Names for error messages; default is the pair's number.
        append_eos: Causal only: the end token is part of the target (teaches the model to stop).

    Raises:
        EmptyBatch: No pairs.
        PromptEmpty: A prompt has no tokens.
        PromptTooLong: Prompt and target do not fit the context.
        TargetUnreachable: The target tokenises to nothing, or is no label of the classifier.
    """
    raise NotImplementedError


def encode_edits(
    base: Base, edits: Sequence[Edit], *, append_eos: bool = False
) -> tuple[Encoded | None, list[int], dict[int, EditError]]:
    """Encodes each edit's (prompt, target), setting bad ones aside instead of failing the batch.

    Returns:
        The batch of good edits (None if there is none), their numbers in `edits`, and the error of
        each bad one by its number.
    """
    raise NotImplementedError
