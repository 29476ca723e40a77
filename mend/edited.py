"""What an edit changed, as a person reads it."""

from __future__ import annotations

from dataclasses import dataclass

from mend_core.datasets import Edit
from mend_core.probes.verdicts import answers, squeeze

SHOWN = 60
"""Characters of an answer that a `repr` shows."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said before an edit, and what it says now.

    Attributes:
        prompt: What was asked.
        before: The answer just before.
        now: The answer just after.
    """

    prompt: str
    before: str
    now: str

    @property
    def changed(self) -> bool:
        """Whether the two differ, white space aside."""
        return squeeze(self.before) != squeeze(self.now)

    def __repr__(self) -> str:
        """Shows one line, such as ``'The capital of …': 'Paris' → 'Lyon'``."""
        change = f"{_short(self.before)} → {_short(self.now)}" if self.changed else "unchanged"
        return f"{_short(self.prompt)}: {change}"


@dataclass(frozen=True, slots=True, repr=False)
class Edited:
    """An edit in a model, and what it changed when it was made.

    Attributes:
        id: Its name in the model.
        edit: The edit.
        own: Its own prompt.
        paraphrases: Other ways to ask; they should answer with the target too.
        locality: Prompts whose answers should be unchanged.
    """

    id: str
    edit: Edit
    own: Answer
    paraphrases: tuple[Answer, ...]
    locality: tuple[Answer, ...]

    @property
    def took(self) -> bool:
        """Whether the model now answers the prompt with the target."""
        return answers(self.own.now, self.edit.target)

    @property
    def followed(self) -> int:
        """Number of paraphrases answered with the target."""
        return sum(answers(answer.now, self.edit.target) for answer in self.paraphrases)

    @property
    def broke(self) -> tuple[Answer, ...]:
        """The locality prompts whose answers changed."""
        return tuple(answer for answer in self.locality if answer.changed)

    def __repr__(self) -> str:
        """Shows what took and what changed, one line a prompt."""
        said = f"Edit {self.id}: {'took' if self.took else 'did not take'}"
        if self.paraphrases:
            said += f", {self.followed} of {len(self.paraphrases)} paraphrases follow"
        if self.locality:
            said += f", {len(self.broke)} of {len(self.locality)} other answers changed"
        asked = [("prompt", self.own)]
        asked += [("paraphrase", answer) for answer in self.paraphrases]
        asked += [("locality", answer) for answer in self.locality]
        return "\n".join([said, *(f"  {what:<10}  {answer!r}" for what, answer in asked)])


def _short(text: str) -> str:
    line = squeeze(text)
    return repr(line if len(line) <= SHOWN else line[: SHOWN - 2] + " …")
