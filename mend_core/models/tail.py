"""A batch cut at one place per sequence: what lies before is read once, the rest again and again.

A value added at a token changes nothing before it. So an optimiser that looks for such values
reads the tokens before the place once, keeps their attention keys and values, and in every step
runs only the tokens from the place on, only through the blocks from the first edited one on, and
only for the sequences still wanted. The place is always column 0 of what runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from mend_core.models.base import Base
from mend_core.models.encode import IGNORE, Encoded
from mend_core.models.prefix import PrefixCache, keeping, starting_at


@dataclass(frozen=True, slots=True, eq=False)
class Tail:
    """The part of a causal batch from a place on; see the module.

    Attributes:
        base: The model, with its own weights.
        first_block: Blocks before it are skipped.
        past: Per block the keys and values of the tokens before the places, each
            (batch, heads, before, head size); empty if every place is 0.
        hidden: (batch, length, d_model) entering `first_block`, None where none is skipped.
        ids: (batch, length) int64, padded on the right.
        mask: (batch, before + length) int64.
        positions: (batch, length) int64.
        labels: (batch, length) int64, not shifted, -100 where nothing is predicted.
    """

    base: Base
    first_block: int
    past: tuple[tuple[Tensor, Tensor], ...]
    hidden: Tensor | None
    ids: Tensor
    mask: Tensor
    positions: Tensor
    labels: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, base: Base, encoded: Encoded, places: Sequence[int], prefix: PrefixCache) -> Tail:
        """Read what lies before the places.

        Args:
            base: A causal base.
            encoded: With labels.
            places: One per sequence, before its first label.
            prefix: Tells the first edited block; hidden states it holds are used.
        """
        lengths = encoded.attention_mask.sum(1).tolist()
        before, length = max(places), max(n - p for n, p in zip(lengths, places, strict=True))
        count, device = len(places), base.device
        assert encoded.labels is not None, "a tail needs targets"
        head = torch.full((count, before), base.tokenizer.pad_token_id, device=device)
        ids = torch.full((count, length), base.tokenizer.pad_token_id, device=device)
        labels = torch.full_like(ids, IGNORE)
        mask = torch.zeros(count, before + length, dtype=torch.int64, device=device)
        for row, (place, whole) in enumerate(zip(places, lengths, strict=True)):
            rest = whole - place
            head[row, before - place :] = encoded.input_ids[row, :place]
            ids[row, :rest] = encoded.input_ids[row, place:whole]
            labels[row, :rest] = encoded.labels[row, place:whole]
            mask[row, before - place : before + rest] = 1
        start = torch.tensor(places, device=device)[:, None]
        positions = start + torch.arange(length, device=device)
        hidden = None
        if prefix.supported:
            states = prefix.hidden(encoded)
            assert states is not None
            hidden = states.new_zeros(count, length, states.shape[-1])
            for row, (place, whole) in enumerate(zip(places, lengths, strict=True)):
                hidden[row, : whole - place] = states[row, place:whole]
        past = _read(base, head, mask[:, :before]) if before else ()
        first = prefix.first_block if prefix.supported else 0
        return cls(base, first, past, hidden, ids, mask, positions, labels)

    def __len__(self) -> int:
        """Number of sequences."""
        return self.ids.shape[0]

    def pick(self, rows: Tensor) -> Tail:
        """Some of the sequences, padding on the right cut to their longest. `rows`: (n,) int64."""
        before = self.mask.shape[1] - self.ids.shape[1]
        mask = self.mask[rows]
        length = int(mask[:, before:].sum(1).max())
        return Tail(
            self.base,
            self.first_block,
            tuple((keys[rows], values[rows]) for keys, values in self.past),
            None if self.hidden is None else self.hidden[rows, :length],
            self.ids[rows, :length],
            mask[:, : before + length],
            self.positions[rows, :length],
            self.labels[rows, :length],
        )

    def losses(self) -> Tensor:
        """Mean negative log-likelihood of each sequence's target, (batch,) nats. Differentiable."""
        wanted = self.labels != IGNORE
        predicting = torch.zeros_like(wanted)
        predicting[:, :-1] = wanted[:, 1:]
        logits = self._run(predicting).float()
        rows = predicting.nonzero()[:, 0]
        weight = 1.0 / torch.bincount(rows, minlength=len(self)).clamp(min=1)[rows]
        nll = torch.nn.functional.cross_entropy(logits, self.labels[wanted], reduction="none")
        return torch.zeros(len(self), device=nll.device).index_add(0, rows, nll * weight)

    def at_place(self) -> None:
        """Run the token at the place alone, for what hooks see there."""
        before = self.mask.shape[1] - self.ids.shape[1]
        one = Tail(
            self.base,
            self.first_block,
            self.past,
            None if self.hidden is None else self.hidden[:, :1],
            self.ids[:, :1],
            self.mask[:, : before + 1],
            self.positions[:, :1],
            self.labels[:, :1],
        )
        one._run(torch.zeros_like(one.ids, dtype=torch.bool))

    def _run(self, keep: Tensor) -> Tensor:
        cache = None
        if self.past:
            cache = DynamicCache()
            for block, (keys, values) in enumerate(self.past):
                cache.update(keys, values, block)

        def call() -> Tensor:
            with keeping(self.base, keep):
                out: Any = self.base.model(
                    input_ids=self.ids,
                    attention_mask=self.mask,
                    position_ids=self.positions,
                    past_key_values=cache,
                    use_cache=cache is not None,
                )
            logits: Tensor = out.logits
            return logits

        if self.hidden is None:
            return call()
        with starting_at(self.base, self.first_block, self.hidden):
            return call()


def _read(base: Base, ids: Tensor, mask: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """Keys and values of tokens padded on the left, block by block."""
    cache = DynamicCache()
    keep = torch.zeros_like(mask, dtype=torch.bool)
    with keeping(base, keep):
        base.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
        )
    # A sequence with nothing before its place is all padding here; nothing may come of it.
    return tuple(
        (layer.keys.nan_to_num(), layer.values.nan_to_num())
        for layer in cache.layers
        if layer.keys is not None and layer.values is not None
    )
