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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from mend_core.models.base import Base
from mend_core.models.encode import IGNORE, Encoded
from mend_core.models.generate import stop_tokens
from mend_core.models.prefix import PrefixCache, forward
from mend_core.safepoints import safe_point


@dataclass(frozen=True, slots=True)
class Track:
    """A prompt with a continuation, both as token ids (seq2seq: source and decoder target).

    Attributes:
        prompt: What is asked.
        continuation: What may follow.
        after: Ask what comes after the continuation too; not needed where it is a whole answer.
    """

    prompt: tuple[int, ...]
    continuation: tuple[int, ...]
    after: bool = True

    def __len__(self) -> int:
        """Places at which a token is predicted."""
        return len(self.continuation) + self.after


@dataclass(frozen=True, slots=True)
class Trace:
    """What the model predicts along a track.

    Attributes:
        best: Arg max at each position of the continuation, and at the one after it if asked.
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
        The batch, and a bool mask of the logits' first axes, true at every predicting position.
    """
    pad = base.tokenizer.pad_token_id
    if base.kind == "seq2seq":
        return _encode_seq2seq(base, tracks, pad)
    rows = [(*t.prompt, *t.continuation)[: len(t.prompt) + len(t) - 1] for t in tracks]
    length = max(len(row) for row in rows)
    ids = torch.full((len(tracks), length), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    keep = torch.zeros_like(ids, dtype=torch.bool)
    for number, (row, track) in enumerate(zip(rows, tracks, strict=True)):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
        keep[number, len(track.prompt) - 1 : len(row)] = True
    moved = [tensor.to(base.device) for tensor in (ids, mask, keep)]
    return Encoded(moved[0], moved[1], None, base.kind), moved[2]


def _encode_seq2seq(base: Base, tracks: Sequence[Track], pad: int) -> tuple[Encoded, Tensor]:
    rows = len(tracks)
    source = torch.full((rows, max(len(t.prompt) for t in tracks)), pad, dtype=torch.long)
    mask = torch.zeros_like(source)
    labels = torch.full((rows, max(len(t) for t in tracks)), IGNORE, dtype=torch.long)
    for row, track in enumerate(tracks):
        source[row, : len(track.prompt)] = torch.tensor(track.prompt)
        mask[row, : len(track.prompt)] = 1
        # The last label is only a place: decoders predict it from the tokens before, never from it.
        labels[row, : len(track)] = torch.tensor((*track.continuation, pad)[: len(track)])
    moved = [tensor.to(base.device) for tensor in (source, mask, labels)]
    return Encoded(moved[0], moved[1], moved[2], base.kind), moved[2] != IGNORE


@contextmanager
def sparing(base: Base, keep: Tensor) -> Iterator[None]:
    """For the length of the block, the last MLP runs on the kept positions only.

    Nothing reads its output elsewhere, and in a suffix of few blocks it is a good part of the work.
    Families whose last block has no `mlp` run as ever.
    """
    mlp = getattr(base.blocks[-1], "mlp", None)
    if mlp is None or base.kind != "causal":
        yield
        return

    def select(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][keep], *args[1:])

    def spread(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor:
        whole = output.new_zeros(*keep.shape, output.shape[-1])
        whole[keep] = output
        return whole

    handles = [mlp.register_forward_pre_hook(select), mlp.register_forward_hook(spread)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def kept_logits(base: Base, tracks: Sequence[Track], prefix: PrefixCache | None) -> Tensor:
    """Logits (sum of the tracks' lengths, vocabulary) fp32 at every predicting position."""
    safe_point()
    encoded, keep = encode_tracks(base, tracks)
    # Filled before the last MLP is restrained: the cache may run the model itself.
    if prefix is not None:
        prefix.hidden(encoded)
    with sparing(base, keep):
        return forward(base, encoded, prefix=prefix, keep=keep).float()


@torch.no_grad()
def trace(base: Base, tracks: Sequence[Track], prefix: PrefixCache | None) -> list[Trace]:
    """Run one batch of tracks through whatever weights are in place now."""
    logits = kept_logits(base, tracks, prefix)
    # The place after the continuation has no token to score; any id will do there.
    wanted = [(*t.continuation, 0)[: len(t)] for t in tracks]
    target = torch.tensor([token for row in wanted for token in row], device=logits.device)
    best = logits.argmax(dim=-1).cpu()
    # One pass over the vocabulary gives the loss and, since NaN and Inf go through it, finiteness.
    total = logits.logsumexp(dim=-1)
    nll = (total - logits.gather(-1, target[:, None])[:, 0]).double().cpu()
    finite = torch.isfinite(total).cpu()
    traces, start = [], 0
    for track in tracks:
        stop = start + len(track)
        scored = start + len(track.continuation)
        traces.append(
            Trace(
                tuple(best[start:stop].tolist()),
                tuple(nll[start:scored].tolist()),
                bool(finite[start:stop].all()),
            )
        )
        start = stop
    return traces


@dataclass(frozen=True, slots=True)
class Goal:
    """How far an answer goes.

    Attributes:
        limit: Most tokens of it.
        lines: A line break ends it.
        target: Once the answer holds these tokens and one more (which shows where the last word
            ends), its verdict cannot change and it goes no further.
    """

    limit: int
    lines: bool
    target: tuple[int, ...] = ()

    def length(self, tokens: Sequence[int], stops: Stops) -> int | None:
        """Tokens of the complete answer that `tokens` begins with; None while it goes on."""
        ends = [self.limit] if len(tokens) >= self.limit else []
        place = stops.place(tokens, lines=self.lines)
        if place is not None:
            ends.append(place + 1)
        told = len(self.target) + 1
        if self.target and len(tokens) >= told and tuple(tokens[: told - 1]) == self.target:
            ends.append(told)
        return min(ends, default=None)

    def reached(self, tokens: Sequence[int], stops: Stops) -> bool:
        """Whether an answer is complete."""
        return self.length(tokens, stops) is not None

    def cut(self, tokens: tuple[int, ...], stops: Stops) -> tuple[int, ...]:
        """The answer without what lies past its end (a stopping token stays)."""
        return tokens[: self.length(tokens, stops)]


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
        safe_point()
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
