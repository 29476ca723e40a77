"""Prefix cache: the hidden states entering the first edited block, once per prompt.

They are the same in every version (DESIGN 2.3), so probes, training and extraction start there.

How a run starts in the middle, for every architecture alike: the model's own forward is called, so
masks, positions and rotary tables are its own, but blocks before the first edited one hand on what
they get, and the last of them puts the cached states in its place.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mend_core.models.base import Base
from mend_core.models.encode import Encoded


class _Reached(Exception):
    """The block whose input was wanted has been reached."""


class PrefixCache:
    """Hidden states entering block `first_block`, kept per token sequence, least recent out first.

    Families without support (seq2seq) hold nothing: `hidden` gives None and `forward` runs the
    whole model, so callers need not care.

    Attributes:
        base: The model.
        first_block: Index into ``base.blocks``.
        max_bytes: Budget; the newest batch always fits.
        nbytes: Bytes held.
        hits: Sequences found.
        misses: Sequences computed.
    """

    def __init__(self, base: Base, first_block: int, *, max_bytes: int = 1 << 30) -> None:
        self.base = base
        self.first_block = first_block
        self.max_bytes = max_bytes
        self.nbytes = 0
        self.hits = 0
        self.misses = 0
        self._kept: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    @property
    def supported(self) -> bool:
        """Whether a run can start here: the family allows it and there is something to skip."""
        return self.base.family.prefix and self.first_block > 0

    def hidden(self, encoded: Encoded) -> Tensor | None:
        """Hidden states of a batch, (batch, length, d_model), zeros on padding.

        None if the family does not support it.

        Must be called with the base's own weights up to `first_block`, as any version has.
        """
        if not self.supported:
            return None
        lengths = encoded.attention_mask.sum(1).tolist()
        rows = encoded.input_ids.tolist()
        keys = [tuple(row[:length]) for row, length in zip(rows, lengths, strict=True)]
        missing = [number for number, key in enumerate(keys) if key not in self._kept]
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        found = {key: self._kept[key] for key in keys if key in self._kept}
        if missing:
            part = encoded.pick(torch.tensor(missing, device=encoded.input_ids.device))
            states = prefix_states(self.base, part, self.first_block)
            for place, number in enumerate(missing):
                found[keys[number]] = states[place, : lengths[number]].clone()
        first = found[keys[0]]
        out = first.new_zeros(len(keys), encoded.input_ids.shape[1], first.shape[-1])
        for number, key in enumerate(keys):
            out[number, : lengths[number]] = found[key]
        self._keep(found)
        return out

    def _keep(self, found: dict[tuple[int, ...], Tensor]) -> None:
        for key, states in found.items():
            if key not in self._kept:
                self.nbytes += states.numel() * states.element_size()
                self._kept[key] = states
            self._kept.move_to_end(key)
        while self.nbytes > self.max_bytes and len(self._kept) > len(found):
            _, states = self._kept.popitem(last=False)
            self.nbytes -= states.numel() * states.element_size()

    def clear(self) -> None:
        """Forgets everything."""
        self._kept.clear()
        self.nbytes = 0


@torch.no_grad()
def prefix_states(base: Base, encoded: Encoded, first_block: int) -> Tensor:
    """Runs the blocks before `first_block` only: (batch, length, d_model)."""
    caught: list[Tensor] = []

    def catch(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(args[0] if args else kwargs["hidden_states"])
        raise _Reached

    handle = base.blocks[first_block].register_forward_pre_hook(catch, with_kwargs=True)
    try:
        _run(base, encoded)
    except _Reached:
        return caught[0]
    finally:
        handle.remove()
    raise AssertionError("the block was never reached")


def _run(base: Base, encoded: Encoded) -> Tensor:
    """The model's own forward; logits."""
    named: dict[str, Any] = {
        "input_ids": encoded.input_ids,
        "attention_mask": encoded.attention_mask,
    }
    if encoded.kind == "seq2seq":
        labels = encoded.labels
        assert labels is not None, "an encoder-decoder needs its targets"
        named["decoder_input_ids"] = decoder_input(base, labels)
    if encoded.kind != "classifier":
        named["use_cache"] = False
    logits: Tensor = base.model(**named).logits
    return logits


def decoder_input(base: Base, labels: Tensor) -> Tensor:
    """What the decoder reads to predict `labels`: the same, one to the right."""
    config = base.model.config
    start = config.decoder_start_token_id
    if start is None:
        start = config.pad_token_id
    shifted = torch.full_like(labels, start)
    shifted[:, 1:] = labels[:, :-1]
    return shifted.masked_fill(shifted < 0, base.tokenizer.pad_token_id)


@contextmanager
def starting_at(base: Base, first_block: int, hidden: Tensor) -> Iterator[None]:
    """For the length of the block, the model's forward starts at `first_block` with `hidden`."""
    skipped = base.blocks[:first_block]
    as_tuple = base.family.tuple_output

    def passing(states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        return (states, None) if as_tuple else states

    def starting(_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        return (hidden, None) if as_tuple else hidden

    # An attribute on the instance goes before the class's method, and before nothing else.
    replaced: list[tuple[Any, Callable[..., Any]]] = [(block, passing) for block in skipped[:-1]]
    replaced.append((skipped[-1], starting))
    try:
        for block, function in replaced:
            block.forward = function
        yield
    finally:
        for block, _ in replaced:
            block.__dict__.pop("forward", None)


@contextmanager
def keeping(base: Base, keep: Tensor | None) -> Iterator[None]:
    """For the length of the block, the output layer runs on the kept positions only."""
    if keep is None:
        yield
        return

    def select(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][keep], *args[1:])

    handle = base.model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def forward(
    base: Base, encoded: Encoded, *, prefix: PrefixCache | None = None, keep: Tensor | None = None
) -> Tensor:
    """Logits of a batch, from the prefix cache where given. Differentiable.

    Args:
        base: The model with whatever weights are in place now.
        encoded: The batch; seq2seq needs its labels.
        prefix: Start from these hidden states.
        keep: Bool mask of the positions wanted, e.g. ``encoded.answer_mask``. The output layer
            runs on those only, which for a small model is most of its time.

    Returns:
        (batch, length, vocabulary), or (kept, vocabulary) in row-major order with `keep`;
        classifier: (batch, classes).
    """
    if prefix is None:
        return suffix(base, None, 0, encoded, keep=keep)
    return suffix(base, prefix.hidden(encoded), prefix.first_block, encoded, keep=keep)


def suffix(
    base: Base,
    hidden: Tensor | None,
    first_block: int,
    encoded: Encoded,
    *,
    keep: Tensor | None = None,
) -> Tensor:
    """Logits from the hidden states entering `first_block`; only the blocks from there run.

    Args:
        base: The model with whatever weights are in place now.
        hidden: (batch, length, d_model); None runs the whole model.
        first_block: Index into ``base.blocks``, at least 1.
        encoded: The batch the states belong to.
        keep: As in `forward`.
    """
    if encoded.kind == "classifier":
        keep = None
    start = nullcontext() if hidden is None else starting_at(base, first_block, hidden)
    with start, keeping(base, keep):
        return _run(base, encoded)
