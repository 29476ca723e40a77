"""Greedy answers, mostly without decoding.

A greedy answer is fixed by the arg max at each of its positions. So a guess (the target, the
base's or the parent's answer) is checked in *one* pass that starts at the cached prefix activations:
as far as every arg max is the guessed token, the guess is the answer, and the first that is not is
the next token. Only what is left after the best guess is decoded token by token. Probes ask the
same items of version after version, so there is nearly always a right guess.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mend_core.models.base import Base
from mend_core.models.encode import IGNORE, Encoded
from mend_core.models.prefix import PrefixCache, forward


@dataclass(frozen=True, slots=True)
class Track:
    """A prompt with a continuation, both as token ids (seq2seq: source and decoder target)."""

    prompt: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """What the model predicts along a track.

    Attributes:
        best: Arg max at each position of the continuation, and at the one after it.
        nll: Negative log-likelihood of each continuation token, nats.
        finite: Every logit looked at was finite.
    """

    best: tuple[int, ...]
    nll: tuple[float, ...]
    finite: bool

    def accepted(self, continuation: Sequence[int]) -> tuple[int, ...]:
        """The greedy answer as far as this trace proves it: one token past the agreement."""
        agreed = 0
        while agreed < len(continuation) and self.best[agreed] == continuation[agreed]:
            agreed += 1
        return self.best[: agreed + 1]


def stop_tokens(base: Base) -> frozenset[int]:
    """Tokens that end an answer: the generation settings' and the tokenizer's end tokens."""
    config = getattr(base.model, "generation_config", None)
    ends = [getattr(config, "eos_token_id", None), base.tokenizer.eos_token_id]
    found: set[int] = set()
    for end in ends:
        if isinstance(end, int):
            found.add(end)
        elif end is not None:
            found.update(end)
    return frozenset(found)


def encode_tracks(base: Base, tracks: Sequence[Track]) -> tuple[Encoded, Tensor]:
    """A padded batch of tracks and the mask of the logit positions that predict them.

    Returns:
        The batch, and a bool mask (batch, length) true at every position that predicts a token of
        the continuation or the one after it.
    """
    pad = base.tokenizer.pad_token_id
    if base.kind == "seq2seq":
        return _encode_seq2seq(base, tracks, pad)
    length = max(len(t.prompt) + len(t.continuation) for t in tracks)
    ids = torch.full((len(tracks), length), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    keep = torch.zeros_like(ids, dtype=torch.bool)
    labels = torch.full_like(ids, IGNORE)
    for row, track in enumerate(tracks):
        start, stop = len(track.prompt), len(track.prompt) + len(track.continuation)
        ids[row, :stop] = torch.tensor((*track.prompt, *track.continuation))
        mask[row, :stop] = 1
        keep[row, start - 1 : stop] = True
        labels[row, start:stop] = ids[row, start:stop]
    moved = [tensor.to(base.device) for tensor in (ids, mask, labels, keep)]
    return Encoded(moved[0], moved[1], moved[2], base.kind), moved[3]


def _encode_seq2seq(base: Base, tracks: Sequence[Track], pad: int) -> tuple[Encoded, Tensor]:
    rows = len(tracks)
    source = torch.full((rows, max(len(t.prompt) for t in tracks)), pad, dtype=torch.long)
    mask = torch.zeros_like(source)
    width = max(len(t.continuation) for t in tracks) + 1
    labels = torch.full((rows, width), IGNORE, dtype=torch.long)
    for row, track in enumerate(tracks):
        source[row, : len(track.prompt)] = torch.tensor(track.prompt)
        mask[row, : len(track.prompt)] = 1
        # The last label is only a place: decoders predict it from the tokens before, never from it.
        labels[row, : len(track.continuation) + 1] = torch.tensor((*track.continuation, pad))
    moved = [tensor.to(base.device) for tensor in (source, mask, labels)]
    return Encoded(moved[0], moved[1], moved[2], base.kind), moved[2] != IGNORE


@torch.no_grad()
def trace(base: Base, tracks: Sequence[Track], prefix: PrefixCache | None) -> list[Trace]:
    """Run one batch of tracks through whatever weights are in place now."""
    encoded, keep = encode_tracks(base, tracks)
    logits = forward(base, encoded, prefix=prefix, keep=keep).float()
    finite = torch.isfinite(logits).all(dim=-1).cpu()
    best = logits.argmax(dim=-1).cpu()
    counts = [len(t.continuation) + 1 for t in tracks]
    # The place after the continuation has no token to score; any id will do there.
    wanted = [(*t.continuation, 0) for t in tracks]
    target = torch.tensor([token for row in wanted for token in row], device=logits.device)
    nll = F.cross_entropy(logits, target, reduction="none").double().cpu()
    traces, start = [], 0
    for count in counts:
        stop = start + count
        traces.append(
            Trace(
                tuple(best[start:stop].tolist()),
                tuple(nll[start : stop - 1].tolist()),
                bool(finite[start:stop].all()),
            )
        )
        start = stop
    return traces


@torch.no_grad()
def go_on(
    base: Base, tracks: Sequence[Track], limits: Sequence[int]
) -> list[tuple[tuple[int, ...], bool]]:
    """Decode greedily from the end of each track to its natural stop or limit.

    Args:
        base: With whatever weights are in place now.
        tracks: One batch.
        limits: Most tokens of each whole answer, the track's continuation included.

    Returns:
        Per track the whole answer (end token included) and whether every logit was finite.
    """
    if base.kind == "seq2seq":
        return _go_on_uncached(base, tracks, limits)
    stops = stop_tokens(base)
    pad = base.tokenizer.pad_token_id
    rows = len(tracks)
    answers = [list(t.continuation) for t in tracks]
    length = max(len(t.prompt) + len(t.continuation) for t in tracks)
    ids = torch.full((rows, length), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    # Padded on the left, so that every row's next token goes into the same column.
    for row, track in enumerate(tracks):
        whole = (*track.prompt, *track.continuation)
        ids[row, length - len(whole) :] = torch.tensor(whole)
        mask[row, length - len(whole) :] = 1
    ids, mask = ids.to(base.device), mask.to(base.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    extra = _last_logits_only(base)
    finite = torch.ones(rows, dtype=torch.bool)
    going = [len(answers[row]) < limits[row] for row in range(rows)]
    cache: Any = None
    while any(going):
        out = base.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **extra,
        )
        cache = out.past_key_values
        last = out.logits[:, -1].float()
        alive = torch.tensor(going)
        finite &= torch.isfinite(last).all(dim=-1).cpu() | ~alive
        step = last.argmax(dim=-1)
        for row, token in enumerate(step.tolist()):
            if going[row]:
                answers[row].append(token)
                going[row] = token not in stops and len(answers[row]) < limits[row]
        ids = step[:, None]
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        positions = positions[:, -1:] + 1
    return [(tuple(answers[row]), bool(finite[row])) for row in range(rows)]


def _last_logits_only(base: Base) -> dict[str, int]:
    """The argument that keeps the output layer to the last position, where the model has one."""
    known = "logits_to_keep" in inspect.signature(base.model.forward).parameters
    return {"logits_to_keep": 1} if known else {}


def _go_on_uncached(
    base: Base, tracks: Sequence[Track], limits: Sequence[int]
) -> list[tuple[tuple[int, ...], bool]]:
    """Decode by tracing ever longer continuations; answers of encoder-decoders are short."""
    stops = stop_tokens(base)
    answers = [t.continuation for t in tracks]
    finite = [True] * len(tracks)
    going = [row for row in range(len(tracks)) if len(answers[row]) < limits[row]]
    while going:
        steps = trace(base, [Track(tracks[row].prompt, answers[row]) for row in going], None)
        for row, step in zip(going, steps, strict=True):
            answers[row] = (*answers[row], step.best[-1])
            finite[row] = finite[row] and step.finite
        going = [
            row
            for row in going
            if answers[row][-1] not in stops and len(answers[row]) < limits[row]
        ]
    return list(zip(answers, finite, strict=True))
