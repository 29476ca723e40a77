"""The one record type every data source is read into."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PromptAnswer:
    """A prompt with the answer expected of it, or None where any unchanged answer will do."""

    prompt: str
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class Edit:
    """One correction: this prompt should answer that.

    Attributes:
        id: Name of the edit, unique within a batch; errors and factors carry it.
        prompt: Text the model is asked.
        target: Answer it should give, without the leading space that joins it to the prompt.
        subject: Entity the fact is about, a substring of the prompt, where known.
        paraphrases: Other ways to ask the same thing (generality).
        locality: Prompts whose answers must not change.
        portability: Prompts whose answers follow from the edit.
    """

    id: str
    prompt: str
    target: str
    subject: str | None = None
    paraphrases: tuple[str, ...] = ()
    locality: tuple[PromptAnswer, ...] = ()
    portability: tuple[PromptAnswer, ...] = ()
