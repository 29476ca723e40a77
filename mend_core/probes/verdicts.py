"""When an answer counts as right: the rules, stated once, on plain text and token ids.

* **A target is answered** when the free-running greedy answer, leading white space aside and runs
  of white space taken as one space, starts with the target, letter for letter and case for case,
  and no letter or digit follows at once: "Paris, of course" answers "Paris"; "Parisian" and
  "paris" do not. Scripts that write without spaces (Chinese, Japanese) have no such boundary.
* **An answer is unchanged** when it is the base's own greedy answer up to its natural stop (end
  token, line break, or the item's length limit), white space as above.
* **A golden string is contained** whatever its case; white space as above.
* **Text is healthy** when it has at least `MIN_WORDS` words and at most `REPETITION_LIMIT` of its
  3-grams of tokens occurred before.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

MIN_WORDS = 3
"""Fewest words of a healthy free text."""

REPETITION_LIMIT = 0.5
"""Largest healthy share of repeated 3-grams. Greedy decoding repeats; this much it need not."""

GRAM = 3
"""Tokens per n-gram of the repetition measure."""


def squeeze(text: str) -> str:
    """Text with runs of white space as one space and none at the ends."""
    return re.sub(r"\s+", " ", text).strip()


def answers(answer: str, target: str) -> bool:
    """Whether a free-running answer gives the target."""
    got, wanted = squeeze(answer), squeeze(target)
    if not got.startswith(wanted):
        return False
    after = got[len(wanted) : len(wanted) + 1]
    # A target that ends in a sign ("C++") has its own boundary.
    return not (_joins(after) and _joins(wanted[-1:]))


def _joins(character: str) -> bool:
    """Whether a character would make one word with such a neighbour."""
    wide = bool(character) and unicodedata.east_asian_width(character) in "WF"
    return character.isalnum() and not wide


def contains(answer: str, text: str) -> bool:
    """Whether a golden string occurs in an answer."""
    return squeeze(text).casefold() in squeeze(answer).casefold()


def repetition(tokens: Sequence[int]) -> float:
    """Share of 3-grams that occurred before in the same answer; 0 for fewer than two."""
    grams = [tuple(tokens[i : i + GRAM]) for i in range(len(tokens) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def healthy(answer: str, tokens: Sequence[int]) -> bool:
    """Whether a free text is long enough and does not loop."""
    return len(answer.split()) >= MIN_WORDS and repetition(tokens) <= REPETITION_LIMIT
