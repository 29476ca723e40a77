"""MEND: Model Editor Networks with Gradient Decomposition (Mitchell et al., ICLR 2022).

The fine-tuning gradient of one edit at matrix W is Σ_t δ_t u_tᵀ over token positions. An editor
network g, shared by all matrices of one shape, maps each pair of rows to a pseudo pair, and

    ΔW_ℓ = -α_ℓ Σ_t δ̃_t ũ_tᵀ,      (ũ, δ̃) = g_ℓ(norm(u), norm(δ))

so an edit is stored as keys ũ and values -α δ̃, and a batch is their plain sum.

Where the paper's text and the authors' released code differ, `MendConfig` follows the text and
`MendConfig.as_released` the code:

==================  ======================================  =====================================
                    paper (default)                         released code
==================  ======================================  =====================================
sign                W - αG̃                                  W + αG̃
V at initialisation Xavier                                  N(0, 1)
bias                first layer only (eq. 3b has none)      both layers
σ in the 2nd layer  yes                                     yes, although a flag meant to drop it
α's learning rate   its own optimiser, 1e-4                 held by both optimisers; the editor's
                                                            clears the gradients first, so α moves
                                                            at the editor's 1e-6
accumulation        10                                      11 for the first step, then 10, each
                                                            divided by 10
edit loss           on rephrases                            the same; here on the prompt as well
                                                            unless ``released`` or ``outer`` is set
locality loss       at answer tokens                        in decoders at all tokens
normaliser          before training, on rows at the base    row by row along with training
"no sharing"        as shared, one network per matrix       without scale and shift: ``film=False``
"no identity init"  Xavier U and V                          U with ReLU's gain, nothing added back:
                                                            ``init="released_random"``
normaliser state    saved whole                             its "initialised" flag is not saved
n edits at once     each edit's gradient is its own         of the mean over all their tokens
==================  ======================================  =====================================

What concerns training (`mend_core.training`) is chosen by ``TrainConfig.released``. Two things are
never reproduced: a resumed run must equal an uninterrupted one, and an edit's factor must not
depend on its company. So a run of the authors' code is reproduced on single edits, as it trains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mend_core.editors.base import FactorEditor
from mend_core.editors.idmlp import IDMLP, Init
from mend_core.editors.normaliser import Normaliser
from mend_core.factors import Composition, Grid
from mend_core.models import Base

Sides = Literal["both", "apart", "u", "delta", "smaller"]


@dataclass(frozen=True, slots=True)
class MendConfig:
    """Choices that make a MEND editor; the defaults are the paper's.

    Attributes:
        rank: Rank of each low-rank layer (1920 in the paper), cut to the row width.
        layers: Residual layers (one hidden, one output).
        norm: Normalise u and δ ("no norm" is an ablation).
        init: "identity" (paper), "released" (V ~ N(0, 1)), "random" (ablation), "released_random"
            (the ablation as the released code has it).
        sides: What the network sees and changes: "both" concatenated (paper), each "apart" by a
            network of its own, only "u", only "delta", or only the "smaller" of the two
            (ablations; u where they are equal). The other side passes through, normalised.
        shared: One network per shape with a scale and shift per matrix; False: one per matrix.
        learning_rate: Initial α of every matrix (``edit_lr``).
        sign: -1: W - αG̃ (paper); +1: W + αG̃ (released code).
        bias_everywhere: Bias in the second layer too (released code).
        film: A scale and shift per matrix in each layer; the released code has none where
            networks are not shared.
        tokens: Positions that give rows.
    """

    rank: int = 1920
    layers: int = 2
    norm: bool = True
    init: Init = "identity"
    sides: Sides = "both"
    shared: bool = True
    learning_rate: float = 1e-4
    sign: Literal[-1, 1] = -1
    bias_everywhere: bool = False
    film: bool = True
    tokens: Literal["all", "answer"] = "all"

    @classmethod
    def as_released(cls, **changes: Any) -> MendConfig:
        """The authors' code, for reproducing one of its runs (see the module's table)."""
        film = bool(changes.get("shared", True))
        made = cls(init="released", sign=1, bias_everywhere=True, film=film)
        return replace(made, **changes)


class GradientNetwork(nn.Module):
    """Normaliser + IDMLP of one shape (or of one matrix, unshared).

    Args:
        d_in: Width of u.
        d_out: Width of δ.
        modes: Matrices that share it.
        config: The editor's choices.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        modes: int,
        config: MendConfig,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.d_in, self.d_out = d_in, d_out
        self.norm_u: Normaliser | None = Normaliser(d_in) if config.norm else None
        self.norm_delta: Normaliser | None = Normaliser(d_out) if config.norm else None
        self.sides: Sides = config.sides
        if self.sides == "smaller":
            self.sides = "delta" if d_out < d_in else "u"

        def network(width: int) -> IDMLP:
            return IDMLP(
                width,
                config.rank,
                modes,
                layers=config.layers,
                init=config.init,
                bias_everywhere=config.bias_everywhere,
                film=config.film,
                generator=generator,
            )

        widths = {"both": d_in + d_out, "apart": d_in, "u": d_in, "delta": d_out}
        self.net = network(widths[self.sides])
        self.net_delta = network(d_out) if self.sides == "apart" else None

    def update(self, u: Tensor, delta: Tensor) -> None:
        """Take raw rows into the statistics (training only)."""
        if self.norm_u is not None and self.norm_delta is not None:
            self.norm_u.update(u)
            self.norm_delta.update(delta)

    def forward(self, u: Tensor, delta: Tensor, mode: int) -> tuple[Tensor, Tensor]:
        """(rows, d_in), (rows, d_out) → pseudo rows of the same shapes."""
        if self.norm_u is not None and self.norm_delta is not None:
            u, delta = self.norm_u(u), self.norm_delta(delta)
        if self.net_delta is not None:
            return self.net(u, mode), self.net_delta(delta, mode)
        if self.sides == "u":
            return self.net(u, mode), delta
        if self.sides == "delta":
            return u, self.net(delta, mode)
        both = self.net(torch.cat((u, delta), dim=-1), mode)
        out_u, out_delta = both.split((self.d_in, self.d_out), dim=-1)
        return out_u, out_delta


class MendNetworks(nn.Module):
    """Everything of a MEND editor that is trained: networks by shape, and α per matrix."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, int]], config: MendConfig, seed: int = 0
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.config = config
        self.names = tuple(shapes)
        self.nets = nn.ModuleDict()
        self.place: dict[str, tuple[str, int]] = {}
        groups: dict[str, list[str]] = {}
        for name, (d_out, d_in) in shapes.items():
            key = f"{d_in}x{d_out}" if config.shared else f"m{len(groups)}"
            members = groups.setdefault(key, [])
            self.place[name] = (key, len(members))
            members.append(name)
        for key, members in groups.items():
            d_out, d_in = shapes[members[0]]
            self.nets[key] = GradientNetwork(d_in, d_out, len(members), config, generator)
        self.learning_rates = nn.Parameter(torch.full((len(shapes),), config.learning_rate))

    def update(self, name: str, u: Tensor, delta: Tensor) -> None:
        """Take raw rows of a matrix into its shape's statistics."""
        net = self.nets[self.place[name][0]]
        assert isinstance(net, GradientNetwork)
        net.update(u, delta)

    def forward(self, name: str, u: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Raw rows → keys (rows, d_in) and values (rows, d_out) with ΔW = Σ value keyᵀ."""
        key, mode = self.place[name]
        pseudo_u, pseudo_delta = self.nets[key](u, delta, mode)
        alpha = self.learning_rates[self.names.index(name)]
        return pseudo_u, (self.config.sign * alpha) * pseudo_delta


class MendEditor(FactorEditor):
    """A MEND editor for one base; see the module.

    Use `MendEditor.create` for an untrained one, `load_editor` for a trained one.
    """

    kind: ClassVar[str] = "mend"

    def __init__(
        self,
        base_digest: str,
        shapes: Mapping[str, tuple[int, int]],
        networks: MendNetworks,
        grid: Grid,
    ) -> None:
        super().__init__(
            base_digest,
            shapes,
            grid=grid,
            composition=Composition(kind="sum"),
            tokens=networks.config.tokens,
        )
        self.networks = networks

    @classmethod
    def create(
        cls,
        base: Base,
        config: MendConfig | None = None,
        *,
        matrices: Sequence[str] | None = None,
        seed: int = 0,
    ) -> MendEditor:
        """An untrained editor: the identity on normalised gradients; `calibrate` it before use.

        Args:
            base: The base it will edit.
            config: The paper's choices when None.
            matrices: Name patterns of the matrices to edit; the family's default when None.
            seed: Of the networks' initial weights.

        Raises:
            NoSuchMatrix: A pattern matches nothing.
        """
        found = base.matrices(matrices)
        shapes = {m.name: (m.d_out, m.d_in) for m in found}
        networks = MendNetworks(shapes, config or MendConfig(), seed)
        return cls(base.digest, shapes, networks.to(base.device), Grid({}))

    def transform(self, name: str, u: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """See `FactorEditor.transform`."""
        keys, values = self.networks(name, u, delta)
        return keys, values

    def observe(self, name: str, u: Tensor, delta: Tensor) -> None:
        """See `FactorEditor.observe`."""
        self.networks.update(name, u, delta)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `Editor.state`."""
        tensors = {f"networks.{k}": v for k, v in self.networks.state_dict().items()}
        settings = asdict(self.networks.config)
        if settings["film"]:  # left out where true, so that editors from before it keep their names
            del settings["film"]
        return {"mend": settings}, tensors | self.grid.tensors()

    @classmethod
    def from_state(
        cls,
        base_digest: str,
        shapes: Mapping[str, tuple[int, int]],
        header: dict[str, Any],
        tensors: dict[str, Tensor],
    ) -> MendEditor:
        """See `Editor.from_state`."""
        networks = MendNetworks(shapes, MendConfig(**header["mend"]))
        networks.load_state_dict(under(tensors, "networks."))
        networks.requires_grad_(requires_grad=False)
        return cls(base_digest, shapes, networks, Grid.from_tensors(tensors))


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, prefix taken off."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
