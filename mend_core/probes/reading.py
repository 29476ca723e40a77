"""Texts in windows: which are read together, and what they add up to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from mend_core.probes.decode import Track

TEXT_TOKENS = 512
"""Tokens of text per forward pass: their logits over the whole vocabulary are kept twice for KL."""


def filled(windows: Sequence[tuple[str, Track]]) -> Iterator[list[tuple[str, Track]]]:
    """Windows of like length together, as many as `TEXT_TOKENS` allows, padding included."""
    batch: list[tuple[str, Track]] = []
    for item_id, track in sorted(windows, key=lambda pair: (-len(pair[1].continuation), pair[0])):
        longest = batch[0][1] if batch else track
        if batch and (len(batch) + 1) * (len(longest.continuation) + 1) > TEXT_TOKENS:
            yield batch
            batch = []
        batch.append((item_id, track))
    if batch:
        yield batch


@dataclass(slots=True)
class TextSum:
    """Loss and drift of one text, window by window."""

    tokens: int = 0
    nll: float = 0.0
    drift: float = 0.0
    finite: bool = True

    def add(self, drift: Tensor, loss: Tensor, fine: Tensor) -> None:
        """Add one window: KL, loss and finiteness of each of its tokens."""
        self.tokens += len(loss)
        self.nll += float(loss.sum())
        self.drift += float(drift.sum())
        self.finite = self.finite and bool(fine.all())
