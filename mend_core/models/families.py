"""Families of architectures: where their blocks lie and which matrices are edited by default.

Defaults follow the papers (MEND's released configs; MALMEN and UltraEdit for the llama family).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from mend_core.errors import ModelUnsupported, NoSuchMatrix

if TYPE_CHECKING:
    from mend_core.models.base import Base, Matrix


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture.

    Attributes:
        name: transformers' ``model_type``.
        kind: ``causal``, ``seq2seq`` or ``classifier``.
        block_paths: Module lists of blocks, in the order they run.
        defaults: Patterns of the matrices edited by default; those that match nothing are passed
            over, since sizes of one family differ in their parts (T5 has ``wi`` or ``wi_0``).
        tuple_output: Whether a block returns a tuple that starts with the hidden states.
        prefix: Whether a run can start at the hidden states entering a block. Not so for
            encoder-decoders: T5's first block makes the position bias of all others, and a decoder
            depends on the whole encoder.
    """

    name: str
    kind: str
    block_paths: tuple[str, ...]
    defaults: tuple[str, ...]
    tuple_output: bool = False
    prefix: bool = True


_LLAMA_LIKE = ("llama", "mistral", "qwen2", "gemma")
_BERT_LIKE = ("bert", "roberta")

FAMILIES: dict[str, Family] = {
    "gpt2": Family("gpt2", "causal", ("transformer.h",), ("mlp.c_fc@-3:", "mlp.c_proj@-3:")),
    "gpt_neo": Family(
        "gpt_neo",
        "causal",
        ("transformer.h",),
        ("mlp.c_fc@-3:", "mlp.c_proj@-3:"),
        tuple_output=True,
    ),
    "gptj": Family(
        "gptj",
        "causal",
        ("transformer.h",),
        ("mlp.fc_in@-3:", "mlp.fc_out@-3:"),
        tuple_output=True,
    ),
    **{
        name: Family(name, "causal", ("model.layers",), ("mlp.down_proj@-6:",))
        for name in _LLAMA_LIKE
    },
    "t5": Family(
        "t5",
        "seq2seq",
        ("encoder.block", "decoder.block"),
        ("DenseReluDense.wi@-2:", "DenseReluDense.wi_0@-2:", "DenseReluDense.wo@-2:"),
        prefix=False,
    ),
    "bart": Family(
        "bart",
        "seq2seq",
        ("model.encoder.layers", "model.decoder.layers"),
        ("fc1@-2:", "fc2@-2:"),
        prefix=False,
    ),
    **{
        name: Family(
            name,
            "classifier",
            (f"{name}.encoder.layer",),
            ("intermediate.dense@-3:", "output.dense@-3:"),
        )
        for name in _BERT_LIKE
    },
}


def family_of(config: Any) -> Family:
    """The family of a transformers config.

    Raises:
        ModelUnsupported: None of ours.
    """
    name = getattr(config, "model_type", None)
    family = FAMILIES.get(str(name))
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise ModelUnsupported(
            f"architecture {name!r} has no family here; supported: {known}. "
            "Other sizes and fine-tunings of these work as they are."
        )
    return family


def _candidates(base: Base) -> list[tuple[Matrix, str, int, int]]:
    """Every linear weight in a block: matrix, path in its block, place in its stack, stack size."""
    from mend_core.models.base import Matrix  # noqa: PLC0415 - base.py imports this module

    found: list[tuple[Matrix, str, int, int]] = []
    number = 0
    for path in base.family.block_paths:
        stack = base.model.get_submodule(path)
        for place, block in enumerate(stack):
            for inner, module in block.named_modules():
                if isinstance(module, Conv1D):
                    d_in, d_out = module.weight.shape
                elif isinstance(module, nn.Linear):
                    d_out, d_in = module.weight.shape
                else:
                    continue
                name = f"{path}.{place}.{inner}.weight"
                transposed = isinstance(module, Conv1D)
                matrix = Matrix(name, module, d_in, d_out, number, transposed)
                found.append((matrix, inner, place, len(stack)))
            number += 1
    return found


def _slice(pattern: str, text: str) -> slice:
    parts = text.split(":")
    try:
        numbers = [int(part) if part else None for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) == 1 and numbers[0] is not None:
        start = numbers[0]
        return slice(start, None if start == -1 else start + 1)
    if len(numbers) in (2, 3):
        return slice(*numbers)
    raise NoSuchMatrix(
        f"pattern {pattern!r}: {text!r} after '@' is no slice of blocks; write e.g. down_proj@-6:"
    )


def _matcher(
    pattern: str, candidates: Sequence[tuple[Matrix, str, int, int]]
) -> Callable[[tuple[Matrix, str, int, int]], bool]:
    if "@" not in pattern:
        globs = (pattern, f"{pattern}.weight")
        return lambda item: any(fnmatch.fnmatchcase(item[0].name, glob) for glob in globs)
    suffix, text = pattern.rsplit("@", 1)
    suffix = suffix.removesuffix(".weight")
    chosen = _slice(pattern, text)
    # BERT's "output.dense" is also the end of "attention.output.dense": a whole path wins.
    whole = any(inner == suffix for _, inner, _, _ in candidates)

    def matches(item: tuple[Matrix, str, int, int]) -> bool:
        _, inner, place, size = item
        named = inner == suffix or (not whole and inner.endswith(f".{suffix}"))
        return named and place in range(*chosen.indices(size))

    return matches


def find_matrices(base: Base, patterns: Sequence[str] | None) -> tuple[Matrix, ...]:
    """See `Base.matrices`."""
    candidates = _candidates(base)
    chosen: set[str] = set()
    for pattern in base.family.defaults if patterns is None else patterns:
        matches = _matcher(pattern, candidates)
        found = [item[0].name for item in candidates if matches(item)]
        if not found and patterns is not None:
            inner = ", ".join(sorted({item[1] for item in candidates}))
            raise NoSuchMatrix(
                f"pattern {pattern!r} matches no editable matrix of {base.source}; "
                f"its blocks hold: {inner}. Write e.g. {base.family.defaults[0]!r}."
            )
        chosen.update(found)
    if not chosen:
        raise NoSuchMatrix(f"no pattern was given that names a matrix of {base.source}")
    return tuple(item[0] for item in candidates if item[0].name in chosen)
