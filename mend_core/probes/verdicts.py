"""When an answer counts as right: the rules, stated once, on plain text and token ids.

* **A target is answered** when the free-running greedy answer, leading white space aside and runs
  of white space taken as one space, starts with the target, letter for letter and case for case,
  and no letter or digit follows at once: "Paris, of course" answers "Paris"; "Parisian" and
  "paris" do not. Scripts that write without spaces (Chinese, Japanese) have no such boundary.
* **An answer is unchanged** when it is the base's own greedy answer up to its natural stop (end
  token, line break, or the item's length limit), white space as above. Where an item compares the
  *lead* only, "Rome, Italy. It" and "Rome, which is" are the same answer; see `lead`.
* **A golden string is contained** whatever its case; white space as above.
* **Text is healthy** when it has at least `MIN_WORDS` words and at most `REPETITION_LIMIT` of its
  3-grams of tokens occurred before.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence

from mend_core.probes.suites import Compare

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


FUNCTION_WORDS = frozenset({
    "a", "an", "the", "of", "in", "on", "at", "to", "by", "for", "from", "with", "and", "or", "as",
    "is", "are", "was", "were", "be", "been", "it", "its", "this", "that", "these", "those",
    "their", "his", "her", "your", "our", "my", "one", "some", "any", "very", "most", "more",
    "also", "not", "no",
})  # fmt: skip
"""English words that say nothing by themselves at the beginning of an answer."""

_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")


def lead(answer: str) -> tuple[str, ...]:
    """The words of an answer up to the first that says something, lower case.

    A capitalised word takes the capitalised words and numbers after it along, as far as only space
    lies between: "a very large dog" → (a, very, large); "Mount Everest, with" → (mount, everest).
    An answer of signs only is its own lead.
    """
    words = list(_WORD.finditer(answer))
    taken: list[str] = []
    for place, word in enumerate(words):
        taken.append(word.group().casefold())
        if taken[-1] in FUNCTION_WORDS:
            continue
        if _begins_name(word.group()):
            for before, after in itertools.pairwise(words[place:]):
                between = answer[before.end() : after.start()]
                if between.strip() or not _begins_name(after.group()):
                    break
                taken.append(after.group().casefold())
        break
    return tuple(taken) if taken else (squeeze(answer),)


def has_words(answer: str) -> bool:
    """Whether an answer holds a word or a number at all."""
    return _WORD.search(answer) is not None


def _begins_name(word: str) -> bool:
    return word[0].isupper() or word[0].isdigit()


def unchanged(answer: str, own: str, compare: Compare) -> bool:
    """Whether an answer is still the base's own one."""
    if compare == "lead":
        return lead(answer) == lead(own)
    return squeeze(answer) == squeeze(own)


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
