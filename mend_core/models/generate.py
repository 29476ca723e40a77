"""Greedy decoding: deterministic, batched, with a natural stop."""

from __future__ import annotations

from collections.abc import Sequence

from mend_core.models.base import Base


def greedy(
    base: Base,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    drafts: Sequence[str | None] | None = None,
) -> list[str]:
    """What the model answers by itself: greedy, stopping at its end token.

    Args:
        base: The model with whatever weights are in place now.
        prompts: In any number; an empty list gives an empty list.
        max_new_tokens: Most tokens per answer.
        batch_size: Sequences decoded together.
        drafts: A guess per prompt (the target, the base's own answer). A right guess is confirmed
            in one forward; a wrong one costs nothing but time. The answers are the same.

    Returns:
        The new text of each, without the prompt and without special tokens. Classifier: the label.

    Raises:
        PromptEmpty: A prompt has no tokens.
        PromptTooLong: A prompt does not fit the context.
    """
    raise NotImplementedError
