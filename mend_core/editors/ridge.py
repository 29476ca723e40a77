"""What the ridge editors share: raw keys, least squares, protections.

An edit's keys are the raw inputs u of its matrices at chosen positions, its values what those
keys should add to the output. A batch (or all live edits) is the least-squares fit

    ΔWᵀ = (UᵀU + C + λI)⁻¹ Uᵀ V

with C the Gram matrix of *protected* keys. A protected key is a row whose value is zero: ΔW is
asked to send it to nothing. C can come from generic text (`protect_texts`, kept inside the editor),
and a person's own "never change these prompts" are rows with zero values (`protection`), stored,
summed and removed like any edit's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mend_core.editors.base import FactorEditor
from mend_core.errors import EmptyBatch
from mend_core.factors import FactorRows, Rows
from mend_core.models import Base, Encoded, Matrix, encode_pairs, encode_prompts, forward
from mend_core.models.prefix import prefix_states

Gram = dict[str, Tensor]
"""Full parameter name → Σ u uᵀ over protected keys, (d_in, d_in) float64."""


class RidgeEditor(FactorEditor):
    """A `FactorEditor` whose composition is ridge least squares."""

    def protection(self, base: Base, prompts: Sequence[str], *, name: str) -> FactorRows:
        """A factor that holds prompts still: their keys with zero values.

        Args:
            base: The base this editor was made for.
            prompts: What must not change; every position gives a key.
            name: The factor's id.

        Raises:
            EmptyBatch: No prompts.
            EditError: A prompt is empty or too long.
            EditorMismatch: See `check`.
        """
        self.check(base)
        keys = prompt_keys(base, prompts, self.matrices_of(base))
        return FactorRows(
            name,
            {m: Rows(u, torch.zeros(len(u), self.shapes[m][0])) for m, u in keys.items()},
        )

    def protect_texts(self, base: Base, texts: Sequence[str], *, weight: float) -> None:
        """Add generic text to C, so that no edit moves the model on it.

        Args:
            base: The base this editor was made for.
            texts: Passages of ordinary text.
            weight: Number of rows C shall count as: the Gram matrix is scaled to this many keys.
        """
        self.check(base)
        gram = mean_gram(base, texts, self.matrices_of(base))
        protected = {
            n: self.composition.protected.get(n, 0.0) + g * weight for n, g in gram.items()
        }
        self.composition = replace(self.composition, protected=protected)


@torch.no_grad()
def prompt_keys(
    base: Base, prompts: Sequence[str], matrices: Sequence[Matrix], *, batch_size: int = 16
) -> dict[str, Tensor]:
    """Inputs of each matrix at every position of the prompts: name → (keys, d_in) float32.

    An encoder-decoder reads each text on both sides.
    """
    found: dict[str, list[Tensor]] = {m.name: [] for m in matrices}
    for start in range(0, len(prompts), batch_size):
        texts = prompts[start : start + batch_size]
        if base.kind == "seq2seq":
            encoded = encode_pairs(base, [(text, text) for text in texts])
        else:
            encoded = encode_prompts(base, texts)
        mask = encoded.attention_mask.bool()
        caught: dict[str, Tensor] = {}

        def hook_for(name: str, caught: dict[str, Tensor] = caught) -> Any:
            def hook(_module: Any, args: tuple[Tensor, ...]) -> None:
                caught[name] = args[0]

            return hook

        handles = [m.module.register_forward_pre_hook(hook_for(m.name)) for m in matrices]
        try:
            _run_up_to(base, encoded, max(m.block for m in matrices))
        finally:
            for handle in handles:
                handle.remove()
        for name, u in caught.items():
            in_decoder = base.kind == "seq2seq" and not name.startswith(base.family.block_paths[0])
            found[name].append(u[encoded.answer_mask if in_decoder else mask].float().cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def _run_up_to(base: Base, encoded: Encoded, block: int) -> None:
    """Runs the model as far as `block`, where it can be told to stop."""
    if base.family.prefix and block + 1 < len(base.blocks):
        prefix_states(base, encoded, block + 1)
        return
    keep = torch.zeros_like(encoded.attention_mask, dtype=torch.bool)
    forward(base, encoded, keep=keep if base.kind == "causal" else None)


def mean_gram(
    base: Base, texts: Sequence[str], matrices: Sequence[Matrix], *, at_once: int = 64
) -> Gram:
    """Mean of u uᵀ over every key of the texts; its trace is the keys' mean squared length.

    Args:
        base: Whose keys.
        texts: At least one.
        matrices: Which keys.
        at_once: Texts whose keys are held in memory together.

    Raises:
        EmptyBatch: No texts.
    """
    if not texts:
        raise EmptyBatch("there is no text to take keys from")
    total: Gram = {}
    count = dict.fromkeys((m.name for m in matrices), 0)
    for start in range(0, len(texts), at_once):
        for name, keys in prompt_keys(base, texts[start : start + at_once], matrices).items():
            u = keys.double()
            total[name] = total.get(name, 0.0) + u.T @ u
            count[name] += len(u)
    return {name: gram / count[name] for name, gram in total.items()}


def mean_norm(samples: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean squared length of sample keys per matrix: the natural unit of λ."""
    return {name: float((u.double() ** 2).sum(-1).mean()) for name, u in samples.items()}
