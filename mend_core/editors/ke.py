"""KE: KnowledgeEditor (De Cao et al., EMNLP 2021), as the MEND paper runs it ("EFK").

A bidirectional LSTM reads "prediction >> target || prompt" (the base's frozen embeddings) into a
condition h. Per edited matrix (m × n) a small network of h gives 2(m + n) + 1 numbers: two row and
two column vectors and a gate,

    a = softmax(row_a) ⊗ col_a,   b = softmax(row_b) ⊗ col_b,   ΔW = s · σ(c) · (∇W ⊙ a + b)

with ∇W the gradient of the edit's NLL at the base and s a fixed largest scale. It adds, not
subtracts. The original edits one fact at a time; a batch here is the sum of its edits' changes.

ΔW need not be formed to be felt: a has rank one, so with raw rows u_t, δ_t

    ΔW = Σ_t (s σ(c) softmax(row_a) ⊙ δ_t) (col_a ⊙ u_t)ᵀ + (s σ(c) softmax(row_b)) col_bᵀ

is as many pairs of rows as the edit has, and one more. Training keeps to those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mend_core.datasets.edit import Edit
from mend_core.editors.base import Editor
from mend_core.errors import EmptyBatch, NonFinite
from mend_core.factors import Delta, extract
from mend_core.models import Base, Encoded, PrefixCache, encode_edits, suffix


@dataclass(frozen=True, slots=True)
class KeConfig:
    """Settings of KE; the defaults are the released code's.

    Attributes:
        lstm: Hidden width of the LSTM, per direction.
        condition: Width of the condition h.
        hidden: Width of the per-matrix network's hidden layer.
        max_scale: Largest scale s.
    """

    lstm: int = 512
    condition: int = 768
    hidden: int = 512
    max_scale: float = 1.0


class KeNetworks(nn.Module):
    """Everything of KE that is trained."""

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        width: int,
        config: KeConfig,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.width = config, width
        self.shapes = dict(shapes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.lstm = nn.LSTM(width, config.lstm, batch_first=True, bidirectional=True)
            self.reduce = nn.Sequential(
                nn.Linear(2 * config.lstm, config.condition),
                nn.Tanh(),
            )
            self.heads = nn.ModuleList(
                nn.Sequential(
                    nn.utils.parametrizations.weight_norm(
                        nn.Linear(config.condition, config.hidden)
                    ),
                    nn.Tanh(),
                    nn.utils.parametrizations.weight_norm(
                        nn.Linear(config.hidden, 2 * (d_out + d_in) + 1)
                    ),
                )
                for d_out, d_in in shapes.values()
            )

    def forward(
        self, embedded: Tensor, rows: Mapping[str, tuple[Tensor, Tensor]]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """One edit's change.

        Args:
            embedded: The condition's token embeddings, (tokens, width) float32.
            rows: Matrix → raw (u, δ) rows of the edit, (rows, d_in) and (rows, d_out).

        Returns:
            Matrix → keys (rows + 1, d_in) and values (rows + 1, d_out) with ΔW = Σ value keyᵀ.
        """
        _, (last, _) = self.lstm(embedded[None])
        h = self.reduce(torch.cat((last[0, 0], last[1, 0])))
        pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for head, (name, (d_out, d_in)) in zip(self.heads, self.shapes.items(), strict=True):
            numbers = torch.split(head(h), [d_out, d_in, d_out, d_in, 1])
            row_a, col_a, row_b, col_b, gate = numbers
            u, g = rows[name]
            keys = torch.cat((u * col_a, col_b[None]))
            values = torch.cat((g * row_a.softmax(-1), row_b.softmax(-1)[None]))
            pairs[name] = (keys, self.config.max_scale * gate.sigmoid() * values)
        return pairs


class KeEditor(Editor):
    """A KE editor; see the module."""

    kind: ClassVar[str] = "ke"

    def __init__(
        self, base_digest: str, shapes: Mapping[str, tuple[int, int]], networks: KeNetworks
    ) -> None:
        super().__init__(base_digest, shapes)
        self.networks = networks

    @classmethod
    def create(
        cls,
        base: Base,
        config: KeConfig | None = None,
        *,
        matrices: Sequence[str] | None = None,
        seed: int = 0,
    ) -> KeEditor:
        """An untrained editor.

        Raises:
            NoSuchMatrix: A pattern matches nothing.
        """
        shapes = {m.name: (m.d_out, m.d_in) for m in base.matrices(matrices)}
        width = base.model.get_input_embeddings().weight.shape[1]
        networks = KeNetworks(shapes, width, config or KeConfig(), seed).to(base.device)
        return cls(base.digest, shapes, networks)

    def delta(self, base: Base, edits: Sequence[Edit]) -> Delta:
        """See `Editor.delta`."""
        if not edits:
            raise EmptyBatch("there is no edit to apply")
        self.check(base)
        matrices = self.matrices_of(base)
        prefix = PrefixCache(base, min(m.block for m in matrices))
        raw = extract(base, edits, matrices, prefix=prefix)
        if raw.errors:
            raise raw.errors[min(raw.errors)]
        total: Delta = {n: torch.zeros(s, device=base.device) for n, s in self.shapes.items()}
        encoded, _, _ = encode_edits(base, edits)
        assert encoded is not None
        read = conditions(base, edits, encoded, prefix.hidden(encoded), prefix.first_block)
        for number, embedded in enumerate(read):
            rows = {n: (r.u, r.v) for n, r in raw.of(number).items()}
            with torch.no_grad():
                made = self.networks(embedded, rows)
            for name, (keys, values) in made.items():
                change = values.T @ keys
                if not bool(torch.isfinite(change).all()):
                    raise NonFinite(edits[number].id, f"the editor gave NaN or Inf at {name}")
                total[name] += change
        return total

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `Editor.state`."""
        header = {"ke": asdict(self.networks.config), "width": self.networks.width}
        return header, dict(self.networks.state_dict())

    @classmethod
    def from_state(
        cls,
        base_digest: str,
        shapes: Mapping[str, tuple[int, int]],
        header: dict[str, Any],
        tensors: dict[str, Tensor],
    ) -> KeEditor:
        """See `Editor.from_state`."""
        networks = KeNetworks(shapes, int(header["width"]), KeConfig(**header["ke"]))
        networks.load_state_dict(tensors)
        networks.requires_grad_(requires_grad=False)
        return cls(base_digest, shapes, networks)


@torch.no_grad()
def conditions(
    base: Base,
    edits: Sequence[Edit],
    encoded: Encoded,
    hidden: Tensor | None,
    first_block: int,
) -> list[Tensor]:
    """Embeddings of "prediction >> target || prompt" of each edit, (tokens, width) float32.

    The prediction is the base's own answer, token by token beside the target.

    Args:
        base: The base, with its own weights in place.
        edits: At least one.
        encoded: Their prompts with targets, in the same order.
        hidden: States entering block `first_block`, (batch, length, d_model); None runs the whole
            model.
        first_block: Index into ``base.blocks``.
    """
    guess = suffix(base, hidden, first_block, encoded, keep=encoded.answer_mask).argmax(-1)
    embeddings = base.model.get_input_embeddings()
    read = []
    for number, edit in enumerate(edits):
        said = guess[encoded.answer_rows == number].tolist()
        if base.kind == "classifier":
            said = base.tokenizer(str(said[0]), add_special_tokens=False)["input_ids"]
        text = base.tokenizer(f" >> {edit.target} || {edit.prompt}", add_special_tokens=False)
        ids = torch.tensor([[*said, *text["input_ids"]]], device=base.device)
        read.append(embeddings(ids)[0].float())
    return read
