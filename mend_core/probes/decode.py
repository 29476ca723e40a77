"""Greedy answers, mostly without decoding.

A greedy answer is fixed by the arg max at each of its positions. So a guess (the target, the
base's or the parent's answer) is checked in *one* pass that starts at the cached prefix
activations: as far as every arg max is the guessed token, the guess is the answer, and the first
that is not is the next token. Only what is left after the best guess is decoded token by token.
Probes ask the same items of version after version, so there is nearly always a right guess.

An answer's **natural stop** is the model's end token or, for short answers, the first line break
after some text: what a model without chat training writes on the next line is another text.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from mend_core.models.base import Base
from mend_core.models.encode import IGNORE, Encoded
from mend_core.models.generate import stop_tokens
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


@dataclass(frozen=True, slots=True)
class Stops:
    """Where answers end.

    Attributes:
        ends: End tokens, as `models.generate` knows them.
        breaks: Tokens whose text holds a line break.
        blanks: Those of them with nothing but white space before the break.
    """

    ends: frozenset[int]
    breaks: frozenset[int]
    blanks: frozenset[int]

    @classmethod
    def of(cls, base: Base) -> Self:
        """Read them off a base."""
        # Byte-level vocabularies spell a line break as "Ċ", SentencePiece as "<0x0A>"; decoding
        # only tokens spelt so is what makes this quick.
        spelt = [
            number
            for token, number in base.tokenizer.get_vocab().items()
            if "\n" in token or "Ċ" in token or "<0x0A>" in token
        ]
        texts = {number: base.tokenizer.decode([number]) for number in spelt}
        breaks = {number for number, text in texts.items() if "\n" in text}
        blanks = {number for number in breaks if not texts[number].split("\n")[0].strip()}
        return cls(stop_tokens(base), frozenset(breaks), frozenset(blanks))

    def place(self, tokens: Sequence[int], *, lines: bool) -> int | None:
        """Place of the token at which an answer stops; None while it goes on.

        Args:
            tokens: The answer so far.
            lines: A line break stops it too.
        """
        text = False
        for place, token in enumerate(tokens):
            if token in self.ends:
                return place
            if lines and token in self.breaks and (text or token not in self.blanks):
                return place
            text = text or token not in self.blanks
        return None


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


@dataclass(frozen=True, slots=True)
class Goal:
    """How far an answer may go: most tokens of it, and whether a line break ends it."""

    limit: int
    lines: bool

    def reached(self, tokens: Sequence[int], stops: Stops) -> bool:
        """Whether an answer is complete."""
        return len(tokens) >= self.limit or stops.place(tokens, lines=self.lines) is not None

    def cut(self, tokens: tuple[int, ...], stops: Stops) -> tuple[int, ...]:
        """The answer without what lies past its stop (the stopping token stays) or limit."""
        place = stops.place(tokens[: self.limit], lines=self.lines)
        return tokens[: self.limit] if place is None else tokens[: place + 1]


@torch.no_grad()
def go_on(
    base: Base, tracks: Sequence[Track], goals: Sequence[Goal], stops: Stops
) -> list[tuple[tuple[int, ...], bool]]:
    """Decode greedily from the end of each track to its goal.

    Args:
        base: With whatever weights are in place now.
        tracks: One batch.
        goals: Of each whole answer, the track's continuation included.
        stops: Where answers end.

    Returns:
        Per track the whole answer (stopping token included) and whether every logit was finite.
    """
    if base.kind == "seq2seq":
        return _go_on_uncached(base, tracks, goals, stops)
    answers = [list(t.continuation) for t in tracks]
    ids, mask = _pad_left(base, [(*t.prompt, *t.continuation) for t in tracks])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    extra = _last_logits_only(base)
    finite = torch.ones(len(tracks), dtype=torch.bool)
    going = [not goal.reached(answer, stops) for goal, answer in zip(goals, answers, strict=True)]
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
        finite &= torch.isfinite(last).all(dim=-1).cpu() | ~torch.tensor(going)
        step = last.argmax(dim=-1)
        for row, token in enumerate(step.tolist()):
            if going[row]:
                answers[row].append(token)
                going[row] = not goals[row].reached(answers[row], stops)
        ids = step[:, None]
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        positions = positions[:, -1:] + 1
    return [(tuple(answer), bool(fine)) for answer, fine in zip(answers, finite, strict=True)]


def _pad_left(base: Base, rows: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """Token ids and mask (rows, length), so that every row's next token takes the same column."""
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), length), base.tokenizer.pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, length - len(row) :] = torch.tensor(row)
        mask[number, length - len(row) :] = 1
    return ids.to(base.device), mask.to(base.device)


def _last_logits_only(base: Base) -> dict[str, int]:
    """The argument that keeps the output layer to the last position, where the model has one."""
    known = "logits_to_keep" in inspect.signature(base.model.forward).parameters
    return {"logits_to_keep": 1} if known else {}


def _go_on_uncached(
    base: Base, tracks: Sequence[Track], goals: Sequence[Goal], stops: Stops
) -> list[tuple[tuple[int, ...], bool]]:
    """Decode by tracing ever longer continuations; answers of encoder-decoders are short."""
    answers = [t.continuation for t in tracks]
    finite = [True] * len(tracks)
    going = [row for row, goal in enumerate(goals) if not goal.reached(answers[row], stops)]
    while going:
        steps = trace(base, [Track(tracks[row].prompt, answers[row]) for row in going], None)
        for row, step in zip(going, steps, strict=True):
            answers[row] = (*answers[row], step.best[-1])
            finite[row] = finite[row] and step.finite
        going = [row for row in going if not goals[row].reached(answers[row], stops)]
    return list(zip(answers, finite, strict=True))
