"""The closed form: no training, statistics and least squares only (UltraEdit-style).

Rows z = [u; δ] at answer positions are normalised per shape to ū, δ̄; an edit's value is

    v = -η ‖ū‖² δ̄

on the raw key u, and all edits are fitted by ridge least squares. What the reference does per turn
on the changing model is done here once, at the base, from calibration edits: statistics do not
drift with what was edited before, so factors are independent of each other and of their order.

The step η is the one number to choose; `UltraEditor.create` picks it by a line search on the
calibration edits, no gradient involved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mend_core.datasets.edit import Edit
from mend_core.editors.calibration import calibration_edits
from mend_core.editors.lookahead import answer_scores
from mend_core.editors.mend import under
from mend_core.editors.normaliser import Normaliser
from mend_core.editors.ridge import RidgeEditor, mean_norm
from mend_core.errors import EditError, EmptyBatch
from mend_core.factors import Composition, FactorRows, Grid, compose, extract
from mend_core.models import Base, PrefixCache
from mend_core.progress import Progress, part, unheard

STEPS: tuple[float, ...] = tuple(4.0**k for k in range(-5, 4))
"""Multiples of the first guess that the line search tries."""


@dataclass(frozen=True, slots=True)
class UltraConfig:
    """Choices of the closed form.

    Attributes:
        tokens: Positions that give rows.
        eta: Step size; None for the line search.
        ridge: λ as a multiple of the mean squared length of calibration keys.
        per_shape: One normaliser per shape (reference); False: one per matrix.
    """

    tokens: Literal["all", "answer"] = "answer"
    eta: float | None = None
    ridge: float = 0.1
    per_shape: bool = True


class UltraEditor(RidgeEditor):
    """The closed-form editor; see the module."""

    kind: ClassVar[str] = "ultra"

    def __init__(
        self,
        base_digest: str,
        shapes: Mapping[str, tuple[int, int]],
        config: UltraConfig,
        norms: nn.ModuleDict,
        eta: float,
        *,
        grid: Grid,
        composition: Composition,
    ) -> None:
        super().__init__(
            base_digest, shapes, grid=grid, composition=composition, tokens=config.tokens
        )
        self.config, self.norms, self.eta = config, norms, eta

    @classmethod
    def create(
        cls,
        base: Base,
        edits: Sequence[Edit] | None = None,
        config: UltraConfig | None = None,
        *,
        matrices: Sequence[str] | None = None,
        progress: Progress = unheard,
    ) -> UltraEditor:
        """Make an editor from calibration edits; seconds, not hours.

        Args:
            base: The base it will edit.
            edits: Typical edits for statistics, grid and step; None for a built-in list.
            config: Choices.
            matrices: Name patterns; the family's default when None.
            progress: Called with a short text and a fraction in [0, 1].

        Raises:
            EmptyBatch: None of the edits can be used.
            NoSuchMatrix: A pattern matches nothing.
        """
        progress("reading typical edits", 0.0)
        config = config or UltraConfig()
        edits = calibration_edits() if edits is None else edits
        if not edits:
            raise EmptyBatch("the closed form needs calibration edits for its statistics")
        found = base.matrices(matrices)
        shapes = {m.name: (m.d_out, m.d_in) for m in found}
        raw = extract(base, edits, found, tokens=config.tokens)
        if len(raw.errors) == len(edits):
            raise EmptyBatch(f"none of the calibration edits can be used: {raw.errors[0]}")
        norms = nn.ModuleDict()
        for name, (d_out, d_in) in shapes.items():
            key = norm_key(name, shapes, config.per_shape)
            if key not in norms:
                norms[key] = Normaliser(d_in + d_out)
            norm = norms[key]
            assert isinstance(norm, Normaliser)
            norm.update(torch.cat((raw.rows[name].u, raw.rows[name].delta), dim=-1))
        ridge = {
            name: max(config.ridge * value, 1e-12)
            for name, value in mean_norm({n: r.u for n, r in raw.rows.items()}).items()
        }
        editor = cls(
            base.digest,
            shapes,
            config,
            norms,
            1.0 if config.eta is None else config.eta,
            grid=Grid({}),
            composition=Composition("ridge", ridge),
        )
        factors = [f for f in editor.transform_extraction(raw) if not isinstance(f, EditError)]
        if config.eta is None:
            good = [e for i, e in enumerate(edits) if i not in raw.errors]
            editor.eta = editor._search(base, good, factors, part(progress, 0.2, 1.0))
            factors = [f for f in editor.transform_extraction(raw) if not isinstance(f, EditError)]
        editor.grid = Grid.calibrate(factors)
        return editor

    def _search(
        self,
        base: Base,
        edits: Sequence[Edit],
        factors: Sequence[FactorRows],
        progress: Progress,
    ) -> float:
        """The η with the best harmonic mean of ES, GS and LS over all edits applied together."""
        grid = Grid.calibrate(factors)
        rows = [grid.encode(f) for f in factors]
        unit = compose(self.composition, grid, None, rows)
        # First guess: edits change a matrix by a hundredth of its own size.
        matrices = {m.name: m for m in self.matrices_of(base)}
        share = max(
            float(change.norm() / matrices[name].weight.double().norm().cpu())
            for name, change in unit.items()
        )
        guess = 0.01 / max(share, 1e-30)
        best, best_score = guess, -1.0
        prefix = PrefixCache(base, min(m.block for m in matrices.values()))
        for tried, step in enumerate(STEPS):
            progress("choosing the step", tried / len(STEPS))
            eta = guess * step
            score = answer_scores(
                base, edits, {n: d * eta for n, d in unit.items()}, prefix
            ).harmonic_mean
            if score > best_score:
                best, best_score = eta, score
        return best

    def transform(self, name: str, u: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """See `FactorEditor.transform`."""
        norm = self.norms[norm_key(name, self.shapes, self.config.per_shape)]
        z = norm(torch.cat((u, delta), dim=-1))
        key, gradient = z.split((u.shape[-1], delta.shape[-1]), dim=-1)
        return u, -self.eta * (key**2).sum(-1, keepdim=True) * gradient

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `Editor.state`."""
        tensors = {f"norms.{k}": v for k, v in self.norms.state_dict().items()}
        tensors |= self.grid.tensors() | self.composition.tensors()
        header = {
            "ultra": asdict(self.config),
            "eta": self.eta,
            "composition": self.composition.to_dict(),
        }
        return header, tensors

    @classmethod
    def from_state(
        cls,
        base_digest: str,
        shapes: Mapping[str, tuple[int, int]],
        header: dict[str, Any],
        tensors: dict[str, Tensor],
    ) -> UltraEditor:
        """See `Editor.from_state`."""
        config = UltraConfig(**header["ultra"])
        norms = nn.ModuleDict()
        for name, (d_out, d_in) in shapes.items():
            norms[norm_key(name, shapes, config.per_shape)] = Normaliser(d_in + d_out)
        norms.load_state_dict(under(tensors, "norms."))
        return cls(
            base_digest,
            shapes,
            config,
            norms,
            float(header["eta"]),
            grid=Grid.from_tensors(tensors),
            composition=Composition.from_dict(header["composition"], tensors),
        )


def norm_key(name: str, shapes: Mapping[str, tuple[int, int]], per_shape: bool) -> str:
    """Name of a matrix' normaliser (module names may hold no dots)."""
    d_out, d_in = shapes[name]
    return f"{d_in}x{d_out}" if per_shape else name.replace(".", "/")
