"""How much a base minds a push: Fisher information of a matrix' output on text of its own.

A value leaks onto other tokens in part, ε·v. To second order that costs the base ½ε²·vᵀFv nats of
its own text, F the Fisher information of the output there (Amari 1998; the output's side of K-FAC,
Martens & Grosse 2015). Values that are short under F answer their target and are felt less
elsewhere than values that are short in every direction alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mend_core.errors import EmptyBatch
from mend_core.models import Base, Matrix, encode_prompts
from mend_core.progress import Progress, unheard


def output_fisher(
    base: Base,
    texts: Sequence[str],
    matrices: Sequence[Matrix],
    *,
    batch_size: int = 4,
    progress: Progress = unheard,
) -> dict[str, Tensor]:
    """Mean of g gᵀ over the texts' tokens: full parameter name → (d_out, d_out) float64.

    g is the gradient of a text's negative log-likelihood, summed over its tokens, by the matrix'
    output at one token. On text drawn from `base` itself the mean is the Fisher information. A
    text's first token is left out: every later one attends to it and to nothing like it.

    Args:
        base: A causal base.
        texts: Drawn from the base at temperature 1 (`sampled_texts`).
        matrices: Whose outputs.
        batch_size: Texts read together.
        progress: Called with a short text and a fraction in [0, 1].

    Raises:
        EmptyBatch: No text has two tokens.
    """
    total = {m.name: torch.zeros(m.d_out, m.d_out, dtype=torch.float64) for m in matrices}
    count = 0
    for start in range(0, len(texts), batch_size):
        progress("measuring what the base minds", start / len(texts))
        encoded = encode_prompts(base, texts[start : start + batch_size])
        ids, mask = encoded.input_ids, encoded.attention_mask
        told = mask[:, 1:].bool()  # (batch, length - 1)
        outputs: dict[str, Tensor] = {}

        def hook_for(name: str, outputs: dict[str, Tensor] = outputs) -> Any:
            def hook(_module: Any, _args: Any, out: Tensor) -> Tensor:
                outputs[name] = out if out.requires_grad else out.detach().requires_grad_()
                return outputs[name]

            return hook

        handles = [m.module.register_forward_hook(hook_for(m.name)) for m in matrices]
        try:
            with torch.enable_grad():
                logits = base.model(input_ids=ids, attention_mask=mask).logits[:, :-1]
                lost = torch.nn.functional.cross_entropy(
                    logits[told].float(), ids[:, 1:][told], reduction="sum"
                )
                found = torch.autograd.grad(lost, [outputs[m.name] for m in matrices])
        finally:
            for handle in handles:
                handle.remove()
        for matrix, gradient in zip(matrices, found, strict=True):
            g = gradient[:, 1:][told].double().cpu()  # (tokens, d_out)
            total[matrix.name] += g.T @ g
        count += int(told.sum())
    if not count:
        raise EmptyBatch("there is no text of two tokens or more to take gradients from")
    return {name: fisher / count for name, fisher in total.items()}
