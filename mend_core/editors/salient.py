"""What an edit is about, where nobody said: the words ordinary text resembles least.

An early block's key at a prompt's last token ("is") is the key of every such token, so an edit put
there would change all text. With the protected keys' A = C + λI, kᵀA⁻¹k is a token's *leverage*:
how far its key lies from ordinary ones. The token with the largest, and the name around it, is
taken for the subject. On CounterFact and zsRE it lies in the subject in nine prompts of ten.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

_WORD = re.compile(r"[^\W_](?:\S*[^\W_])?")
"""A word without the punctuation around it."""

_POSSESSIVE = re.compile(r"['\u2019]s$")


def leverage(keys: Tensor, root: Tensor) -> Tensor:
    """kᵀA⁻¹k of each key, (tokens,) float64.

    Args:
        keys: (tokens, d_in).
        root: Lower Cholesky factor of A, (d_in, d_in) float64.
    """
    half = torch.linalg.solve_triangular(root, keys.double().t().contiguous(), upper=False)
    squares: Tensor = half.pow(2).sum(0)
    return squares


def salient_name(
    prompt: str, spans: Sequence[tuple[int, int]], scores: Sequence[float]
) -> str | None:
    """The name around the token with the largest score; None where no token is in a word.

    A capitalised word takes its capitalised neighbours along, but not the first word of the prompt,
    which is capitalised in any case. A name that stands in the prompt again, further on, comes with
    all that is before it.

    Args:
        prompt: The text.
        spans: First and last character (exclusive) of each token.
        scores: One for each token.
    """
    words = [(m.start(), m.end()) for m in _WORD.finditer(prompt)]
    inside = [
        (score, number)
        for (start, end), score in zip(spans, scores, strict=True)
        for number, (first, last) in enumerate(words)
        if start < last and end > first
    ]
    if not inside:
        return None
    number = max(inside, key=lambda pair: (pair[0], -pair[1]))[1]
    first = last = number
    if _is_name(prompt, words[number]):
        while first > 1 and _joined(prompt, words[first - 1], words[first]):
            first -= 1
        while last + 1 < len(words) and _joined(prompt, words[last], words[last + 1]):
            last += 1
    name = _POSSESSIVE.sub("", prompt[words[first][0] : words[last][1]])
    # A short word can be part of a later one; with all before it, it cannot be taken for that.
    return name if prompt.rfind(name) == words[first][0] else prompt[: words[first][0]] + name


def _is_name(prompt: str, word: tuple[int, int]) -> bool:
    return prompt[word[0]].isupper() or prompt[word[0]].isdigit()


def _joined(prompt: str, one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two neighbours are names with nothing but space between them."""
    both = _is_name(prompt, one) and _is_name(prompt, other)
    return both and not prompt[one[1] : other[0]].strip()
