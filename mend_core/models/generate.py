"""Greedy decoding: deterministic, batched, with a natural stop.

A draft (the base's own answer, the edit's target) is checked in one forward, from the prefix cache
where there is one: at each of its positions the model's first choice must be the draft's token.
Tokens up to the first difference are the greedy answer; only the rest is decoded step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mend_core.errors import EditError
from mend_core.models.base import Base
from mend_core.models.encode import (
    IGNORE,
    Encoded,
    encode_pairs,
    encode_prompts,
)
from mend_core.models.prefix import PrefixCache, forward


@dataclass(slots=True)
class _Row:
    """One sequence being decoded."""

    prompt: list[int]
    answer: list[int] = field(default_factory=list)
    done: bool = False


def stop_tokens(base: Base) -> frozenset[int]:
    """Tokens at which the model itself stops."""
    found: set[int] = set()
    for config in (base.model.config, getattr(base.model, "generation_config", None)):
        value = getattr(config, "eos_token_id", None)
        found.update([value] if isinstance(value, int) else value or [])
    tokenizer = base.tokenizer
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    # Chat models end a turn with one token and a plain text with another (SmolLM2, Qwen).
    for token, number in zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True):
        if token == "<|endoftext|>":  # noqa: S105 - a vocabulary entry, no password
            found.add(number)
    return frozenset(found)


@torch.no_grad()
def greedy(
    base: Base,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    drafts: Sequence[str | None] | None = None,
    prefix: PrefixCache | None = None,
) -> list[str]:
    """What the model answers by itself: greedy, stopping at its end token.

    Args:
        base: The model with whatever weights are in place now.
        prompts: In any number; an empty list gives an empty list.
        max_new_tokens: Most tokens per answer.
        batch_size: Sequences decoded together.
        drafts: A guess per prompt (the target, the base's own answer). A right guess is confirmed
            in one forward; a wrong one costs that forward and nothing else.
        prefix: Check drafts from these cached states.

    Returns:
        The new text of each, without the prompt, special tokens and surrounding white space.
        Classifier: the label.

    Raises:
        PromptEmpty: A prompt has no tokens.
        PromptTooLong: A prompt does not fit the context.
    """
    if not prompts:
        return []
    if base.kind == "classifier":
        return _labels(base, prompts, batch_size)
    if base.kind == "seq2seq":
        return _seq2seq(base, prompts, max_new_tokens, batch_size)
    rows = _rows(base, prompts)
    if drafts is not None:
        _check_drafts(
            base,
            _encode_drafts(base, prompts, drafts),
            rows,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            prefix=prefix,
        )
    _finish(base, rows, max_new_tokens)
    # Like lengths together: less padding. The order of the answers is the prompts'.
    open_rows = sorted((row for row in rows if not row.done), key=lambda row: len(row.prompt))
    for start in range(0, len(open_rows), batch_size):
        _decode(base, open_rows[start : start + batch_size], max_new_tokens)
    texts: list[str] = base.tokenizer.batch_decode(
        [row.answer for row in rows], skip_special_tokens=True
    )
    return [text.strip() for text in texts]


def _rows(base: Base, prompts: Sequence[str]) -> list[_Row]:
    encoded = encode_prompts(base, prompts)
    lengths = encoded.attention_mask.sum(1).tolist()
    ids = encoded.input_ids.tolist()
    return [_Row(row[:length]) for row, length in zip(ids, lengths, strict=True)]


def _finish(base: Base, rows: Sequence[_Row], max_new_tokens: int) -> None:
    """Marks rows that have no room left."""
    for row in rows:
        length = len(row.prompt) + len(row.answer)
        row.done = row.done or len(row.answer) >= max_new_tokens or length >= base.max_length


def _decode(base: Base, rows: Sequence[_Row], max_new_tokens: int) -> None:
    """Step by step with a key-value cache; finished rows leave the batch."""
    stops = stop_tokens(base)
    live = list(rows)
    texts = [row.prompt + row.answer for row in live]
    width = max(len(text) for text in texts)
    pad = base.tokenizer.pad_token_id
    # Padded left, so that every row's next token is in the same column.
    ids = torch.tensor([[pad] * (width - len(t)) + t for t in texts], device=base.device)
    mask = torch.tensor([[0] * (width - len(t)) + [1] * len(t) for t in texts], device=base.device)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    cache: Any = None
    while live:
        out = base.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
        chosen = out.logits[:, -1].argmax(-1)
        for row, token in zip(live, chosen.tolist(), strict=True):
            if token in stops:
                row.done = True
            else:
                row.answer.append(token)
        _finish(base, live, max_new_tokens)
        keep = [number for number, row in enumerate(live) if not row.done]
        position = position[:, -1:] + 1
        if len(keep) < len(live):
            live = [live[number] for number in keep]
            if not live:
                return
            index = torch.tensor(keep, device=base.device)
            cache.batch_select_indices(index)
            chosen, mask, position = chosen[index], mask[index], position[index]
        ids = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)


def _encode_drafts(
    base: Base, prompts: Sequence[str], drafts: Sequence[str | None]
) -> list[tuple[int, Encoded]]:
    """Each sayable draft after its prompt with the end token, shortest first, by prompt number."""
    wanted: list[tuple[int, Encoded]] = []
    for number, draft in enumerate(drafts):
        if not draft or not draft.strip():
            continue
        try:
            wanted.append((number, encode_pairs(base, [(prompts[number], draft)], append_eos=True)))
        except EditError:
            continue  # a draft that cannot be said is a wrong guess
    return sorted(wanted, key=lambda item: item[1].input_ids.shape[1])


def _check_drafts(
    base: Base,
    wanted: Sequence[tuple[int, Encoded]],
    rows: Sequence[_Row],
    *,
    max_new_tokens: int,
    batch_size: int,
    prefix: PrefixCache | None,
) -> None:
    """Gives each row the part of its draft that is the model's own greedy answer."""
    stops = stop_tokens(base)
    for start in range(0, len(wanted), batch_size):
        part = wanted[start : start + batch_size]
        encoded = _merge(base, [item for _, item in part])
        logits = forward(base, encoded, prefix=prefix, keep=encoded.answer_mask)
        chosen = logits.argmax(-1).tolist()
        guessed = encoded.answer_labels.tolist()
        owners = encoded.answer_rows.tolist()
        agreed = [True] * len(part)
        for token, guess, owner in zip(chosen, guessed, owners, strict=True):
            row = rows[part[owner][0]]
            if not agreed[owner] or row.done:
                continue
            if token in stops:
                row.done = True
            elif len(row.answer) < max_new_tokens:
                row.answer.append(token)
            agreed[owner] = token == guess


def _merge(base: Base, parts: Sequence[Encoded]) -> Encoded:
    """One padded batch of single sequences."""

    def pad(tensors: Sequence[Tensor], value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(
            [tensor[0] for tensor in tensors], batch_first=True, padding_value=value
        )

    return Encoded(
        pad([part.input_ids for part in parts], base.tokenizer.pad_token_id),
        pad([part.attention_mask for part in parts], 0),
        pad([part.labels for part in parts if part.labels is not None], IGNORE),
        base.kind,
    )


def _labels(base: Base, prompts: Sequence[str], batch_size: int) -> list[str]:
    names = base.model.config.id2label
    answers: list[str] = []
    for start in range(0, len(prompts), batch_size):
        encoded = encode_prompts(base, prompts[start : start + batch_size])
        answers += [str(names[number]) for number in forward(base, encoded).argmax(-1).tolist()]
    return answers


def _seq2seq(base: Base, prompts: Sequence[str], max_new_tokens: int, batch_size: int) -> list[str]:
    answers: list[str] = []
    for start in range(0, len(prompts), batch_size):
        encoded = encode_prompts(base, prompts[start : start + batch_size])
        ids = base.model.generate(
            input_ids=encoded.input_ids,
            attention_mask=encoded.attention_mask,
            max_new_tokens=max_new_tokens,
            num_beams=1,
            do_sample=False,
            pad_token_id=base.tokenizer.pad_token_id,
        )
        answers += base.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [answer.strip() for answer in answers]
