"""Handing a version to a server: merged weights, or a LoRA adapter.

ΔW has no more rank than the set has rows, so the adapter is exact without a singular value
decomposition: A is an orthonormal basis of the rows' keys, B = ΔW·Aᵀ.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mend_core.errors import EmptyBatch, StoreError
from mend_core.factors.compose import Composition, compose, one_thread
from mend_core.factors.grid import Grid
from mend_core.factors.materialise import weights_digest
from mend_core.factors.provenance import Provenance, write_provenance
from mend_core.factors.rows import GridRows
from mend_core.files import safetensors_bytes, write_folder_atomic
from mend_core.models.base import Base
from mend_core.models.load import published_source, quiet
from mend_core.models.overlay import overlay


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written.

    Attributes:
        folder: Where.
        rank: LoRA rank; one for all matrices, smaller ones are padded with zeros (vLLM wants one).
        exact_rank: Rank an exact adapter needs.
        relative_error: ‖ΔW - BA‖ / ‖ΔW‖ (Frobenius) as written in float32, of the worst matrix.
    """

    folder: str
    rank: int
    exact_rank: int
    relative_error: float


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder} exists and is not empty; name a new folder, or remove it first")


def export_merged(
    base: Base, weights: Mapping[str, Tensor], folder: Path, about: Provenance | None = None
) -> None:
    """Writes a Hugging Face folder with these weights, bitwise equal when loaded.

    Args:
        base: With any weights in place; they are put back.
        weights: From `materialise`.
        folder: A new or empty folder.
        about: What its card and ``mend.json`` tell; None writes neither.

    Raises:
        StoreFull: No room left; nothing half-written remains.
        StoreError: The folder exists and is not empty.
    """
    _check_free(folder)

    def fill(work: Path) -> None:
        with overlay(base, weights), quiet():
            base.model.save_pretrained(work)
        base.tokenizer.save_pretrained(work)
        if about is not None:
            details = {"weights_digest": weights_digest(weights)}
            write_provenance(work, base, about, "merged", details)

    write_folder_atomic(folder, fill)


def export_peft(
    base: Base,
    grid: Grid,
    composition: Composition,
    rows: Iterable[GridRows],
    folder: Path,
    *,
    max_rank: int | None = None,
    about: Provenance | None = None,
) -> ExportReport:
    """Writes a PEFT LoRA adapter of a set of edits.

    Args:
        base: The base the adapter is for.
        grid: The editor's.
        composition: The editor's.
        rows: The set's factors.
        folder: A new or empty folder.
        max_rank: Truncate to the best approximation of this rank (by singular values); None: exact.
        about: What its card and ``mend.json`` tell; None writes neither.

    Raises:
        EmptyBatch: No edits, so no adapter.
        StoreFull: No room left; nothing half-written remains.
        StoreError: The folder exists and is not empty.
    """
    _check_free(folder)
    factors = list(rows)
    delta = compose(composition, grid, None, factors)
    if not delta:
        raise EmptyBatch("a version without edits is the base itself: there is no adapter to write")
    sides: dict[str, tuple[Tensor, Tensor]] = {}
    exact_rank = 0
    for name, change in delta.items():
        keys = torch.cat([f.rows[name].u for f in factors if name in f.rows]).double()
        keys *= grid.of(name).key_step  # (n, d_in)
        needed = min(len(keys), *change.shape)
        exact_rank = max(exact_rank, needed)
        spans_keys = composition.kind == "sum" or name not in composition.protected
        with one_thread():
            sides[name] = _thin(change, keys if spans_keys else None, needed, max_rank)
    rank = max(a.shape[0] for a, _ in sides.values())
    error = max(_relative_error(delta[name], *sides[name]) for name in delta)
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in sides.items():
        module = name.removesuffix(".weight")
        missing = rank - a.shape[0]
        # PEFT's names; A is (rank, d_in), B is (d_out, rank), for Conv1D too.
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.nn.functional.pad(
            a, (0, 0, 0, missing)
        )
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.nn.functional.pad(
            b, (0, missing)
        )
    config = _config(base, sorted(sides), rank)

    def fill(work: Path) -> None:
        (work / "adapter_model.safetensors").write_bytes(safetensors_bytes(tensors, "{}"))
        (work / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
        if about is not None:
            details = {"rank": rank, "exact_rank": exact_rank, "relative_error": error}
            write_provenance(work, base, about, "peft", details)

    write_folder_atomic(folder, fill)
    return ExportReport(str(folder), rank, exact_rank, error)


def _thin(
    change: Tensor, keys: Tensor | None, needed: int, max_rank: int | None
) -> tuple[Tensor, Tensor]:
    """A (rank, d_in) and B (d_out, rank), float32, of ΔW (d_out, d_in) float64."""
    d_out, d_in = change.shape
    if max_rank is not None and max_rank < needed:
        left, size, right = torch.linalg.svd(change, full_matrices=False)
        a, b = right[:max_rank], left[:, :max_rank] * size[:max_rank]
    elif keys is not None and len(keys) < min(d_out, d_in):
        # Orthonormal keys: nearly parallel rows would need huge opposite coefficients in float32.
        a = torch.linalg.qr(keys.t()).Q.t()
        b = change @ a.t()
    elif needed < min(d_out, d_in):  # protected keys turn the span of the rows
        left, size, right = torch.linalg.svd(change, full_matrices=False)
        a, b = right[:needed], left[:, :needed] * size[:needed]
    elif d_out <= d_in:  # full rank: one side is the identity
        a, b = change, torch.eye(d_out, dtype=change.dtype)
    else:
        a, b = torch.eye(d_in, dtype=change.dtype), change
    return a.float().contiguous(), b.float().contiguous()


def _relative_error(change: Tensor, a: Tensor, b: Tensor) -> float:
    whole = float(change.norm())
    return float((change - b.double() @ a.double()).norm()) / whole if whole else 0.0


def _config(base: Base, names: list[str], rank: int) -> dict[str, object]:
    tasks = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}
    return {
        "peft_type": "LORA",
        # PEFT adds a trainable head to classifiers it knows; ours stays the base's.
        "task_type": tasks.get(base.kind),
        "base_model_name_or_path": published_source(base),
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(base.by_name[name].transposed for name in names),
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "target_modules": [name.removesuffix(".weight") for name in names],
        "use_dora": False,
        "use_rslora": False,
    }
