"""Text to tensors: prompts, and prompts with the target that should follow.

Trailing spaces of a prompt are dropped and one space joins prompt and target: a space belongs to
the token after it, so "Paris is " would otherwise be asked in tokens no model saw in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mend_core.datasets.edit import Edit
from mend_core.errors import EditError, EmptyBatch, PromptEmpty, PromptTooLong, TargetUnreachable
from mend_core.models.base import Base

IGNORE = -100
"""Label of a position that is no part of the target."""


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A padded batch.

    Attributes:
        input_ids: (batch, length) int64, padded on the right. Causal: prompt then target.
        attention_mask: (batch, length) int64, 1 where there is a token.
        labels: Causal: (batch, length), the target's token ids at the target's own positions and
            -100 elsewhere (not shifted). Seq2seq: (batch, target length), -100 on padding.
            Classifier: (batch,) class numbers. None for prompts alone.
        kind: The base's kind.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor | None
    kind: str

    def __len__(self) -> int:
        """Number of sequences."""
        return self.input_ids.shape[0]

    @property
    def answer_mask(self) -> Tensor:
        """Logit positions that predict a target token: bool, the shape of the logits' first axes.

        Causal: (batch, length), the position *before* each target token. Seq2seq: (batch, target
        length). Classifier: (batch,), all true.
        """
        labels = self._labels()
        if self.kind == "classifier":
            return torch.ones_like(labels, dtype=torch.bool)
        mask = labels != IGNORE
        if self.kind == "causal":
            shifted = torch.zeros_like(mask)
            shifted[:, :-1] = mask[:, 1:]
            return shifted
        return mask

    @property
    def answer_labels(self) -> Tensor:
        """Target token ids in the order of `answer_mask`'s true positions: (answers,) int64."""
        labels = self._labels()
        return labels if self.kind == "classifier" else labels[labels != IGNORE]

    @property
    def answer_rows(self) -> Tensor:
        """Which sequence each answer position belongs to: (answers,) int64."""
        return self.answer_mask.nonzero()[:, 0]

    def pick(self, rows: Tensor) -> Encoded:
        """The batch of some rows, its padding cut to their longest. `rows`: (n,) int64."""
        mask = self.attention_mask[rows]
        length = int(mask.sum(1).max())
        labels = self.labels[rows] if self.labels is not None else None
        if labels is not None and self.kind == "causal":
            labels = labels[:, :length]
        return Encoded(self.input_ids[rows, :length], mask[:, :length], labels, self.kind)

    def _labels(self) -> Tensor:
        if self.labels is None:
            raise ValueError("this batch was encoded without targets")
        return self.labels


def prompt_text(prompt: str) -> str:
    """The prompt as it is asked: trailing spaces dropped."""
    return prompt.rstrip(" ")


def joined_target(prompt: str, target: str) -> str:
    """The target with the space that joins it to its prompt, unless a side brings white space."""
    prompt = prompt_text(prompt)
    joins = not prompt or prompt[-1].isspace() or target[:1].isspace()
    return target if joins else f" {target}"


def _prompt_ids(base: Base, prompt: str, name: str) -> list[int]:
    text = prompt_text(prompt)
    if not text.strip():
        raise PromptEmpty(name, "the prompt is empty; write the text the model will be asked")
    ids: list[int] = base.tokenizer(text, add_special_tokens=True)["input_ids"]
    if base.kind == "causal" and ids and ids[-1] == base.tokenizer.eos_token_id:
        ids = ids[:-1]  # some tokenizers end every text; an ended prompt cannot be continued
    if not ids:
        raise PromptEmpty(name, f"the prompt {prompt!r} has no tokens in this model's vocabulary")
    return ids


def _target_ids(
    base: Base, prompt: str, target: str, prompt_ids: list[int], name: str
) -> list[int]:
    """The target's tokens after the prompt's own; never merges across the boundary."""
    if not target.strip():
        raise TargetUnreachable(name, "the target is empty; write the answer the model should give")
    tokenizer = base.tokenizer
    tail = joined_target(prompt, target)
    if base.kind == "seq2seq":
        ids: list[int] = tokenizer(text_target=target.strip())["input_ids"]
        inner = [token for token in ids if token not in tokenizer.all_special_ids]
    else:
        whole: list[int] = tokenizer(prompt_text(prompt) + tail)["input_ids"]
        if whole and whole[-1] == tokenizer.eos_token_id:
            whole = whole[:-1]
        if whole[: len(prompt_ids)] == prompt_ids:
            ids = whole[len(prompt_ids) :]
        else:  # the tokenizer merges across the boundary: keep the prompt's tokens as asked
            ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
        inner = ids
    unknown = tokenizer.unk_token_id
    if not inner or unknown in inner:
        raise TargetUnreachable(
            name,
            f"the target {target!r} tokenises to nothing this model can say, or holds a "
            "character it does not know; reword it",
        )
    return ids


def class_number(base: Base, target: str, name: str) -> int:
    """The class a classifier's target names, by label or number.

    Raises:
        TargetUnreachable: No such class.
    """
    config = base.model.config
    labels = {str(label).casefold(): int(n) for label, n in (config.label2id or {}).items()}
    wanted = target.strip()
    number = labels.get(wanted.casefold())
    if number is None and wanted.isdigit():
        number = int(wanted)
    if number is None or number >= config.num_labels:
        names = ", ".join(sorted(labels)) or f"0 to {config.num_labels - 1}"
        raise TargetUnreachable(name, f"{target!r} is no class of this classifier; it has: {names}")
    return number


def _pad(base: Base, rows: Sequence[Sequence[int]], value: int) -> Tensor:
    out = torch.full((len(rows), max(len(row) for row in rows)), value, dtype=torch.int64)
    for number, row in enumerate(rows):
        out[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return out.to(base.device)


def _check_length(base: Base, length: int, name: str) -> None:
    if length > base.max_length:
        raise PromptTooLong(
            name,
            f"{length} tokens, but {base.source} takes at most {base.max_length}; shorten the text",
        )


@dataclass(frozen=True, slots=True)
class _Pair:
    """One sequence: its input and its labels, unpadded."""

    ids: list[int]
    labels: list[int]


def _encode_pair(base: Base, prompt: str, target: str, name: str, *, append_eos: bool) -> _Pair:
    prompt_ids = _prompt_ids(base, prompt, name)
    _check_length(base, len(prompt_ids), name)
    if base.kind == "classifier":
        return _Pair(prompt_ids, [class_number(base, target, name)])
    target_ids = _target_ids(base, prompt, target, prompt_ids, name)
    if base.kind == "seq2seq":
        _check_length(base, len(target_ids), name)
        return _Pair(prompt_ids, target_ids)
    if append_eos and base.tokenizer.eos_token_id is not None:
        target_ids = [*target_ids, base.tokenizer.eos_token_id]
    _check_length(base, len(prompt_ids) + len(target_ids), name)
    return _Pair(prompt_ids + target_ids, [IGNORE] * len(prompt_ids) + target_ids)


def _stack(base: Base, pairs: Sequence[_Pair]) -> Encoded:
    ids = _pad(base, [pair.ids for pair in pairs], base.tokenizer.pad_token_id)
    mask = _pad(base, [[1] * len(pair.ids) for pair in pairs], 0)
    labels = _pad(base, [pair.labels for pair in pairs], IGNORE)
    if base.kind == "classifier":
        labels = labels[:, 0]
    return Encoded(ids, mask, labels, base.kind)


def encode_prompts(
    base: Base, prompts: Sequence[str], *, ids: Sequence[str] | None = None
) -> Encoded:
    """Encodes prompts alone, padded right.

    Args:
        base: Whose tokenizer.
        prompts: At least one.
        ids: Names for error messages; default is the prompt's number.

    Raises:
        EmptyBatch: No prompts.
        PromptEmpty: A prompt has no tokens.
        PromptTooLong: A prompt does not fit the context.
    """
    if not prompts:
        raise EmptyBatch("there are no prompts to encode")
    names = ids or [str(number) for number in range(len(prompts))]
    rows = []
    for prompt, name in zip(prompts, names, strict=True):
        row = _prompt_ids(base, prompt, name)
        _check_length(base, len(row), name)
        rows.append(row)
    mask = _pad(base, [[1] * len(row) for row in rows], 0)
    return Encoded(_pad(base, rows, base.tokenizer.pad_token_id), mask, None, base.kind)


def encode_pairs(
    base: Base,
    pairs: Sequence[tuple[str, str]],
    *,
    ids: Sequence[str] | None = None,
    append_eos: bool = False,
) -> Encoded:
    """Encodes (prompt, target) pairs; one space joins them where neither side brings one.

    The prompt's tokens are exactly those `encode_prompts` gives, so that what was edited is what is
    asked later.

    Args:
        base: Whose tokenizer.
        pairs: At least one. Classifier: the target is a label's name or number.
        ids: Names for error messages; default is the pair's number.
        append_eos: Causal only: the end token is part of the target (teaches the model to stop).

    Raises:
        EmptyBatch: No pairs.
        PromptEmpty: A prompt has no tokens.
        PromptTooLong: Prompt and target do not fit the context.
        TargetUnreachable: The target tokenises to nothing, or is no label of the classifier.
    """
    if not pairs:
        raise EmptyBatch("there are no prompts with targets to encode")
    names = ids or [str(number) for number in range(len(pairs))]
    return _stack(
        base,
        [
            _encode_pair(base, prompt, target, name, append_eos=append_eos)
            for (prompt, target), name in zip(pairs, names, strict=True)
        ],
    )


def encode_edits(
    base: Base, edits: Sequence[Edit], *, append_eos: bool = False
) -> tuple[Encoded | None, list[int], dict[int, EditError]]:
    """Encodes each edit's (prompt, target), setting bad ones aside instead of failing the batch.

    Returns:
        The batch of good edits (None if there is none), their numbers in `edits`, and the error of
        each bad one by its number.
    """
    good: list[_Pair] = []
    numbers: list[int] = []
    errors: dict[int, EditError] = {}
    for number, edit in enumerate(edits):
        try:
            good.append(
                _encode_pair(base, edit.prompt, edit.target, edit.id, append_eos=append_eos)
            )
            numbers.append(number)
        except EditError as error:
            errors[number] = error
    return (_stack(base, good) if good else None), numbers, errors
