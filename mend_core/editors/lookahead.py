"""Cheap teacher-forced scores of a candidate change, for choosing an editor's step size.

Published scores come from `mend_core.probes`; nothing is reported from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mend_core.datasets.edit import Edit
from mend_core.models import Base, PrefixCache, encode_pairs, forward, with_delta


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """Shares of answer tokens, each prompt counting once."""

    es: float
    gs: float
    ls: float

    @property
    def harmonic_mean(self) -> float:
        """Of the three; 0 when one is 0."""
        values = (self.es, self.gs, self.ls)
        return 0.0 if min(values) <= 0 else 3 / sum(1 / v for v in values)


@torch.no_grad()
def answer_scores(
    base: Base,
    edits: Sequence[Edit],
    delta: Mapping[str, Tensor],
    prefix: PrefixCache | None = None,
) -> AnswerScores:
    """ES on prompts, GS on paraphrases, LS as agreement with the base on locality prompts.

    Parts an edit lacks are taken from its prompt (GS) or count as unchanged (LS).
    """
    prompts = [(e.prompt, e.target) for e in edits]
    rephrased = [((e.paraphrases or (e.prompt,))[0], e.target) for e in edits]
    near = [(p.prompt, p.answer or e.target) for e in edits for p in e.locality[:1]]
    change = {n: d.to(base.device, torch.float32) for n, d in delta.items()}
    with with_delta(base, change):
        es, _ = _right(base, prompts, prefix)
        gs, _ = _right(base, rephrased, prefix)
        after = _right(base, near, prefix)[1] if near else []
    before = _right(base, near, prefix)[1] if near else []
    same = [float((a == b).float().mean()) for a, b in zip(after, before, strict=True)]
    return AnswerScores(es, gs, sum(same) / len(same) if same else 1.0)


def _right(
    base: Base, pairs: Sequence[tuple[str, str]], prefix: PrefixCache | None
) -> tuple[float, list[Tensor]]:
    """Mean share of right target tokens, and each pair's predictions."""
    shares: list[float] = []
    guesses: list[Tensor] = []
    for start in range(0, len(pairs), 32):
        encoded = encode_pairs(base, pairs[start : start + 32])
        keep = None if base.kind == "classifier" else encoded.answer_mask
        predicted = forward(base, encoded, prefix=prefix, keep=keep).argmax(-1)
        for row in range(len(encoded)):
            mine = encoded.answer_rows == row
            guesses.append(predicted[mine])
            shares.append(float((predicted[mine] == encoded.answer_labels[mine]).float().mean()))
    return sum(shares) / len(shares), guesses
