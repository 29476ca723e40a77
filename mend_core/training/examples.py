"""Training examples: what one edit contributes to a step, prepared once and kept.

Examples are prepared in fixed chunks of neighbours, always whole: floating-point results depend on
the shape of a batch, so this is what lets a resumed run, whose cache is empty, reach the same bits.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mend_core.datasets import Edit, read_edits, read_pararel
from mend_core.datasets.fever import flips, read_fever
from mend_core.errors import DataError, EditError, NonFinite, TrainingError
from mend_core.factors import extract
from mend_core.models import Base, Encoded, Matrix, PrefixCache, encode_pairs

Part = Literal["edit", "rephrase", "locality"]

CHUNK = 8
"""Examples prepared together."""


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One text of an example.

    Attributes:
        part: The edit's own prompt, a rephrase, or a locality prompt.
        input_ids: (length,) int64.
        labels: As in `Encoded`, unpadded; () for a classifier.
        hidden: (length, d_model) states entering the first edited block, or None.
    """

    part: Part
    input_ids: Tensor
    labels: Tensor
    hidden: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A prepared edit.

    Attributes:
        number: Of the edit in its cache.
        edit: The edit itself.
        items: The edit first, then rephrases, then locality prompts.
        rows: Matrix → raw (u, δ) rows of the edit at the base.
    """

    number: int
    edit: Edit
    items: tuple[Item, ...]
    rows: dict[str, tuple[Tensor, Tensor]]

    def of(self, part: Part) -> list[Item]:
        """Items of one part."""
        return [item for item in self.items if item.part == part]

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        tensors = [t for pair in self.rows.values() for t in pair]
        for item in self.items:
            tensors += [item.input_ids, item.labels]
            tensors += [] if item.hidden is None else [item.hidden]
        return sum(t.numel() * t.element_size() for t in tensors)


class ExampleCache:
    """Prepares examples on demand; least recently used out first, within a byte budget.

    Args:
        base: The base.
        matrices: Edited matrices, whose raw rows are wanted.
        edits: All edits, addressed by number.
        tokens: Positions that give rows.
        max_bytes: Budget.
        max_rephrases: Rephrases kept per edit.
        max_locality: Locality prompts kept per edit.
    """

    def __init__(
        self,
        base: Base,
        matrices: Sequence[Matrix],
        edits: Sequence[Edit],
        *,
        tokens: Literal["all", "answer"] = "all",
        max_bytes: int = 1 << 31,
        max_rephrases: int = 2,
        max_locality: int = 1,
    ) -> None:
        self.base, self.matrices, self.edits = base, tuple(matrices), edits
        self.tokens = tokens
        self.max_bytes = max_bytes
        self.max_rephrases, self.max_locality = max_rephrases, max_locality
        self.first_block = min(m.block for m in matrices)
        self.errors: dict[int, EditError] = {}
        self._kept: OrderedDict[int, dict[int, Example]] = OrderedDict()
        self._bytes = 0

    def get(self, number: int) -> Example | None:
        """The prepared example, or None if its edit cannot be used (see `errors`)."""
        if number in self.errors:
            return None
        chunk = number // CHUNK
        if chunk in self._kept:
            self._kept.move_to_end(chunk)
            return self._kept[chunk].get(number)
        made = self._prepare(range(chunk * CHUNK, min(len(self.edits), (chunk + 1) * CHUNK)))
        self._kept[chunk] = made
        self._bytes += sum(e.nbytes for e in made.values())
        while self._bytes > self.max_bytes and len(self._kept) > 1:
            _, old = self._kept.popitem(last=False)
            self._bytes -= sum(e.nbytes for e in old.values())
        return made.get(number)

    def quarantine(self, number: int) -> EditError:
        """Never give this example again: one of its texts gives NaN or Inf at the base."""
        error = NonFinite(
            self.edits[number].id,
            "NaN or Inf in the base's own answer to one of its texts; the edit is left out and "
            "the others go on. Reword it, or load the model in float32",
        )
        self.errors[number] = error
        return error

    def _prepare(self, numbers: Sequence[int]) -> dict[int, Example]:
        texts: list[tuple[int, Part, str, str]] = []
        for number in numbers:
            mine = self._texts(number)
            try:
                encode_pairs(
                    self.base, [t[2:] for t in mine], ids=[self.edits[number].id] * len(mine)
                )
            except EditError as error:
                self.errors[number] = error
            else:
                texts += mine
        if not texts:
            return {}
        encoded = encode_pairs(self.base, [t[2:] for t in texts])
        prefix = PrefixCache(self.base, self.first_block)
        with torch.no_grad():
            hidden = prefix.hidden(encoded)
        items = _items(encoded, [part for _, part, _, _ in texts], hidden)
        good = list(dict.fromkeys(number for number, *_ in texts))
        raw = extract(
            self.base,
            [self.edits[n] for n in good],
            self.matrices,
            prefix=prefix,
            tokens=self.tokens,
        )
        made: dict[int, Example] = {}
        for place, number in enumerate(good):
            if place in raw.errors:
                self.errors[number] = raw.errors[place]
                continue
            mine_items = tuple(i for i, t in zip(items, texts, strict=True) if t[0] == number)
            rows = {n: (r.u, r.v) for n, r in raw.of(place).items()}
            made[number] = Example(number, self.edits[number], mine_items, rows)
        return made

    def _texts(self, number: int) -> list[tuple[int, Part, str, str]]:
        edit = self.edits[number]
        texts: list[tuple[int, Part, str, str]] = [(number, "edit", edit.prompt, edit.target)]
        rephrases = edit.paraphrases[: self.max_rephrases]
        texts += [(number, "rephrase", prompt, edit.target) for prompt in rephrases]
        # Without a known answer the target stands in: only the base's predictions count.
        near = edit.locality[: self.max_locality]
        texts += [(number, "locality", p.prompt, p.answer or edit.target) for p in near]
        return texts


def _items(encoded: Encoded, parts: Sequence[Part], hidden: Tensor | None) -> tuple[Item, ...]:
    assert encoded.labels is not None
    items = []
    for i, part in enumerate(parts):
        length = int(encoded.attention_mask[i].sum())
        labels = encoded.labels[i]
        if encoded.kind == "causal":
            labels = labels[:length]
        elif encoded.kind == "seq2seq":
            labels = labels[labels != -100]  # noqa: PLR2004 - the ignored label of transformers
        items.append(
            Item(
                part,
                encoded.input_ids[i, :length].clone(),
                labels.clone(),
                None if hidden is None else hidden[i, :length].clone(),
            )
        )
    return tuple(items)


def stack(base: Base, items: Sequence[Item]) -> tuple[Encoded, Tensor | None]:
    """Items of any examples as one padded batch, with their hidden states."""
    pad = base.tokenizer.pad_token_id
    ids = torch.nn.utils.rnn.pad_sequence(
        [i.input_ids for i in items], batch_first=True, padding_value=pad
    )
    lengths = torch.tensor([len(i.input_ids) for i in items], device=ids.device)
    mask = (torch.arange(ids.shape[1], device=ids.device)[None] < lengths[:, None]).long()
    if base.kind == "classifier":
        labels = torch.stack([i.labels for i in items])
    else:
        labels = torch.nn.utils.rnn.pad_sequence(
            [i.labels for i in items], batch_first=True, padding_value=-100
        )
    encoded = Encoded(input_ids=ids, attention_mask=mask, labels=labels, kind=base.kind)
    states = [i.hidden for i in items if i.hidden is not None]
    if len(states) < len(items):
        return encoded, None
    return encoded, torch.nn.utils.rnn.pad_sequence(states, batch_first=True)


def read_training_data(
    paths: Sequence[Path], kind: str, seed: int, limit: int | None = None
) -> tuple[list[Edit], list[str]]:
    """Edits of all files in an order drawn by `seed`, and a line per skipped record.

    With a `limit`, about equally many edits of each file are drawn. A file with ``pararel`` in
    its name is read as ParaRel, one with ``fever`` as FEVER.

    Raises:
        DataError: A file is missing or broken, or holds no edit.
    """
    edits: list[Edit] = []
    skipped: list[str] = []
    rng = random.Random(f"data:{seed}")  # noqa: S311 - sampling, not secrets
    for path in paths:
        name = path.name.lower()
        if "pararel" in name or kind == "pararel":
            source: Iterable[Edit] = read_pararel(path, seed=seed)
        elif "fever" in name or kind == "fever":
            source = flips(read_fever(path))
        else:
            source = read_edits(path, on_error=lambda e: skipped.append(str(e)))
        found = list(source)
        if not found:
            raise DataError(str(path), None, None, "holds no edit that can be trained on")
        rng.shuffle(found)
        edits += found if limit is None else found[: -(-limit // len(paths))]
    rng.shuffle(edits)
    return edits, skipped


def split(edits: Sequence[Edit], validation: int, seed: int) -> tuple[list[Edit], list[Edit]]:
    """Training and validation edits; no subject (or, without one, prompt) is in both.

    Raises:
        TrainingError: Too few edits to hold any back.
    """
    keys = sorted({_key(e) for e in edits})
    random.Random(f"split:{seed}").shuffle(keys)  # noqa: S311 - sampling, not secrets
    wanted = min(validation, len(edits) // 5)
    if wanted < 1:
        raise TrainingError(
            f"{len(edits)} edits are too few to train on: 5 are the least, thousands are better"
        )
    by_key: dict[str, list[Edit]] = {}
    for edit in edits:
        by_key.setdefault(_key(edit), []).append(edit)
    held: list[Edit] = []
    taken: set[str] = set()
    for key in keys:
        if len(held) >= wanted:
            break
        held += by_key[key]
        taken.add(key)
    left = [e for e in edits if _key(e) not in taken]
    if not left:
        raise TrainingError(
            f"all {len(edits)} edits are about one subject, so none can be held back to validate "
            "on; add edits about others"
        )
    return left, held[:wanted]


def _key(edit: Edit) -> str:
    return (edit.subject or edit.prompt).casefold()
