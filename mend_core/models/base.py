"""A loaded base model and its editable matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mend_core.models.families import Family, find_matrices


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """One editable weight matrix, always seen in Linear orientation (d_out, d_in).

    Attributes:
        name: Full parameter name, e.g. ``model.layers.29.mlp.down_proj.weight``.
        module: The module that multiplies with it (``nn.Linear`` or transformers' ``Conv1D``).
        d_in: Input width.
        d_out: Output width.
        block: Index into ``Base.blocks`` of the block it sits in.
        transposed: True for Conv1D, which keeps (d_in, d_out).
    """

    name: str
    module: nn.Module
    d_in: int
    d_out: int
    block: int
    transposed: bool

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter as the model keeps it (Conv1D: transposed)."""
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def weight(self) -> Tensor:
        """A view of the current weight in Linear orientation, (d_out, d_in)."""
        return self.parameter.data.t() if self.transposed else self.parameter.data


@dataclass(eq=False)
class Base:
    """An untouched checkpoint, ready to be edited: eval mode, no parameter requires a gradient.

    Attributes:
        model: The transformers model.
        tokenizer: Its tokenizer; has a pad token, pads right.
        family: What kind of architecture it is and which matrices are edited by default.
        digest: Digest over its tensors as stored in the folder.
        source: What `load_base` was asked for.
        folder: Where the files lie, or None for a model built in memory.
        device: Where it sits.
        dtype: Its floating type, e.g. ``float32``.
    """

    model: Any
    tokenizer: Any
    family: Family
    digest: str
    source: str
    folder: str | None
    device: torch.device
    dtype: torch.dtype

    @property
    def kind(self) -> str:
        """``causal``, ``seq2seq`` or ``classifier``."""
        return self.family.kind

    @property
    def blocks(self) -> list[nn.Module]:
        """Blocks in the order they run (seq2seq: encoder, then decoder)."""
        return [
            block for path in self.family.block_paths for block in self.model.get_submodule(path)
        ]

    @cached_property
    def by_name(self) -> dict[str, Matrix]:
        """Every editable matrix by its full parameter name."""
        return {matrix.name: matrix for matrix in find_matrices(self, ["*"])}

    @property
    def max_length(self) -> int:
        """Most tokens the model takes in one sequence."""
        config = self.model.config
        for key in ("n_positions", "max_position_embeddings"):
            value = getattr(config, key, None)
            if isinstance(value, int):
                return value
        limit = self.tokenizer.model_max_length  # T5 has none of its own
        return int(limit) if limit < 1 << 20 else 1 << 16

    def matrices(self, patterns: Sequence[str] | None = None) -> tuple[Matrix, ...]:
        """The matrices a pattern list names, in the order they run.

        Args:
            patterns: None for the family's default. Else each is a glob over parameter names
                (``*.29.mlp.down_proj``; the ending ``.weight`` may be left out), a full name, or
                ``suffix@slice``: ``down_proj@-6:`` is that matrix in the last six blocks.

        Raises:
            NoSuchMatrix: A pattern matches nothing.
        """
        return find_matrices(self, patterns)
