"""Values found by optimisation at the subject's last token, in early blocks (MEMIT family).

Where the hypernetworks read one gradient, this editor takes several steps: per edit it looks for
vectors added to the edited matrices' outputs at the subject's last token that make the base answer
the target, in turn for the prompt and for other wordings of it (`wordings`), or behind neutral
texts where no wording is known. An edit whose loss is small
enough in all of them is left as it is: a longer vector would only leak further. Of vectors that
answer, those are preferred that ordinary text would mind least (`sensitivity`). The key is the
matrix' input at that token *with the vectors of the blocks below in place*, as far as a fit puts
them there (`SubjectConfig.delivered`), since that is what the edited model will see.
Keys and values are rows like any other: stored, summed and removed, composed by ridge least squares
with the principal keys of ordinary text protected.

Each edit is optimised alone (Adam works element by element). Its company can only change the
padding, and so the last bits of its values; rows are made once and kept by digest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from mend_core.datasets.edit import Edit
from mend_core.editors.calibration import calibration_edits, ordinary_texts
from mend_core.editors.principal import PrincipalKeys
from mend_core.editors.ridge import RidgeEditor, mean_gram, prompt_keys
from mend_core.editors.salient import leverage, salient_name
from mend_core.editors.sensitivity import output_fisher
from mend_core.editors.values import Search, find_values, keys_with
from mend_core.editors.wordings import Wordings
from mend_core.errors import EditError, EditorMismatch, EmptyBatch, NonFinite
from mend_core.factors import Composition, FactorRows, Grid, Rows
from mend_core.factors.extract import subject_position
from mend_core.models import Base, Matrix, PrefixCache, encode_edits
from mend_core.models.encode import prompt_text
from mend_core.models.tail import Tail
from mend_core.progress import Progress, part, unheard

CHUNK = 32
"""Edits optimised together."""

READ, MINDED = 0.15, 0.65
"""Shares of the time `create` takes: reading text, and measuring what the base minds."""


@dataclass(frozen=True, slots=True)
class SubjectConfig:
    """Settings; defaults from a prototype on a 30-block Llama.

    Attributes:
        prefixes: Texts before the prompt, one a step in turn; the first should be empty. The others
            stand in where an edit has too few wordings.
        wordings: Other wordings of the prompt asked in turn with it.
        steps: Optimiser steps at most.
        lr: Adam's rate at the first step, as a share of the root mean square of the matrix' output.
        lr_end: The same at the last step; it falls in a straight line.
        enough: NLL per token, in nats, below which (under every prefix) an edit is done.
        decay: Weight of the values' squared length, in units of the output's mean square, as
            ordinary text feels it: under the Fisher information where the editor has it.
        share: Part of its value an edit gets in another wording or behind a prefix, where its key
            would match only partly.
        delivered: Part of the values below that stands when an edit's keys are read. A fit with
            protected keys delivers its values in part, the less the larger the set, and a key read
            under whole values is not the one the edited model comes to.
        strength: Factor on the composed change.
        ridge: λ as a share of the mean squared key length.
        protect: Rows the protected text counts as in a set without edits.
        growth: Part of itself that the protection gains with each edit.
        protect_keys: Principal keys that stand for the generic Gram matrix; its remaining
            directions, which hold little, are added to λ at their mean.
    """

    prefixes: tuple[str, ...] = (
        "",
        "The report was published on Monday. ",
        "We talked about it for a while. ",
    )
    wordings: int = 2
    steps: int = 24
    lr: float = 0.45
    lr_end: float = 0.2
    enough: float = 0.05
    decay: float = 0.6
    share: float = 0.6
    delivered: float = 0.6
    strength: float = 1.0
    ridge: float = 0.01
    protect: float = 450.0
    growth: float = 0.003
    protect_keys: int = 256


class SubjectEditor(RidgeEditor):
    """Optimised values at subject tokens; see the module."""

    kind: ClassVar[str] = "subject"

    def __init__(
        self,
        base_digest: str,
        shapes: Mapping[str, tuple[int, int]],
        config: SubjectConfig,
        scale: Mapping[str, float],
        *,
        ridge: Mapping[str, float],
        protected: Mapping[str, PrincipalKeys],
        grid: Grid,
        wordings: Wordings | None = None,
        sensitivity: Mapping[str, PrincipalKeys] | None = None,
    ) -> None:
        grams = {name: keys.gram() for name, keys in protected.items()}
        composition = Composition("ridge", dict(ridge), grams, config.strength, config.growth)
        super().__init__(base_digest, shapes, grid=grid, composition=composition, tokens="all")
        self.config = config
        self.scale = dict(scale)
        self.protected = dict(protected)
        self.wordings = wordings or Wordings({})
        self.sensitivity = dict(sensitivity or {})
        self._written: dict[str, Any] = {}

    @staticmethod
    def check_kind(base: Base) -> None:
        """Refuse a base of a kind that no subject editor can be made for.

        Raises:
            EditorMismatch: The base is not causal.
        """
        if base.kind != "causal":
            raise EditorMismatch(
                "the subject editor needs a left-to-right model; use mend, malmen or ultra"
            )

    @classmethod
    def create(
        cls,
        base: Base,
        config: SubjectConfig | None = None,
        *,
        matrices: Sequence[str] | None = None,
        texts: Sequence[Sequence[str]] = (),
        edits: Sequence[Edit] | None = None,
        wordings: Wordings | None = None,
        said: Sequence[str] = (),
        progress: Progress = unheard,
    ) -> SubjectEditor:
        """Make an editor; there is nothing to train.

        Args:
            base: The base it will edit; causal.
            config: Settings.
            matrices: Name patterns; None for the MLP outputs of the blocks from a tenth to a
                quarter of the model.
            texts: More kinds of text to protect, such as the prompts of a data set; each counts
                as much as sentences of our own, which the base carries on (`ordinary_texts`).
            edits: Typical edits for the grid; None for a built-in list.
            wordings: How else statements are put (`Wordings.learn`); None knows none.
            said: Text drawn from the base (`sampled_texts`), protected as one more kind. What it
                minds decides between values (`sensitivity`); without it, their length does.
            progress: Called with a short text and a fraction in [0, 1].

        Raises:
            EditorMismatch: The base is not causal.
            NoSuchMatrix: A pattern matches nothing.
        """
        cls.check_kind(base)
        config = config or SubjectConfig()
        typical = calibration_edits() if edits is None else list(edits)
        if not typical:
            raise EmptyBatch("there is no edit to calibrate on")
        found = base.matrices(matrices) if matrices else _early(base)
        shapes = {m.name: (m.d_out, m.d_in) for m in found}
        progress("reading ordinary text", 0.0)
        kinds = [ordinary_texts(base), *texts, *([said] if said else [])]
        grams = [mean_gram(base, kind, found) for kind in kinds]
        gram = {m.name: torch.stack([g[m.name] for g in grams]).mean(0) for m in found}
        weights = {m.name: m.weight.double().cpu() for m in found}
        scale = {
            name: math.sqrt(float(((w @ gram[name]) * w).sum()) / len(w))
            for name, w in weights.items()
        }
        protected = {
            n: PrincipalKeys.of(g * config.protect, config.protect_keys) for n, g in gram.items()
        }
        ridge = {
            name: max(config.ridge * float(g.trace()), 1e-12) + protected[name].rest
            for name, g in gram.items()
        }
        felt = part(progress, READ, READ + MINDED)
        minds = _sensitivity(base, said, found, felt) if said else None
        editor = cls(
            base.digest,
            shapes,
            config,
            scale,
            ridge=ridge,
            protected=protected,
            grid=Grid({}),
            wordings=wordings,
            sensitivity=minds,
        )
        progress("trying typical edits", READ + MINDED)
        made = editor.factor(base, typical[:CHUNK])
        good = [f for f in made if isinstance(f, FactorRows)]
        if not good:
            raise EmptyBatch(f"none of the calibration edits can be used: {made[0]}")
        editor.grid = Grid.calibrate(good)
        return editor

    def transform(self, name: str, u: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Not a function of one gradient: `factor` makes the rows. Gives a single gradient step."""
        return u, -self.config.lr * self.scale[name] * delta.sign()

    def factor(
        self, base: Base, edits: Sequence[Edit], *, prefix: Any = None
    ) -> list[FactorRows | EditError]:
        """See `FactorEditor.factor`."""
        if not edits:
            raise EmptyBatch("there is no edit to factor")
        self.check(base)
        matrices = self.matrices_of(base)
        if prefix is None:
            prefix = PrefixCache(base, min(m.block for m in matrices))
        made: dict[int, FactorRows | EditError] = {}
        # Alike lengths side by side: the work goes by the longest of a chunk.
        order = sorted(range(len(edits)), key=lambda i: len(edits[i].prompt + edits[i].target))
        for start in range(0, len(order), CHUNK):
            chunk = order[start : start + CHUNK]
            found = self._chunk(base, [edits[i] for i in chunk], matrices, prefix)
            made |= dict(zip(chunk, found, strict=True))
        return [made[i] for i in range(len(edits))]

    def _chunk(
        self,
        base: Base,
        edits: Sequence[Edit],
        matrices: Sequence[Matrix],
        prefix: PrefixCache,
    ) -> list[FactorRows | EditError]:
        edits = [replace(edit, subject=self.subject_of(base, edit)) for edit in edits]
        variants = [list(column) for column in zip(*map(self._asked, edits), strict=True)]
        errors: dict[int, EditError] = dict(encode_edits(base, variants[0])[2])
        good = [i for i in range(len(edits)) if i not in errors]
        for variant in variants[1:]:
            for number in encode_edits(base, variant)[2]:
                variant[number] = variants[0][number]  # too long with more words around it
        rows: dict[int, FactorRows | EditError] = dict(errors)
        if good:
            kept = [[variant[i] for i in good] for variant in variants]
            rows |= dict(zip(good, self._optimise(base, kept, matrices, prefix), strict=True))
        return [rows[i] for i in range(len(edits))]

    def subject_of(self, base: Base, edit: Edit) -> str | None:
        """See `FactorEditor.subject_of`; where nobody named it, what stands out in the prompt.

        A prompt that cannot be asked is left as it is, for its error to be told later.
        """
        named = edit.subject and edit.subject in edit.prompt
        if named or not base.tokenizer.is_fast or encode_edits(base, [edit])[2]:
            return edit.subject
        matrices = self.matrices_of(base)
        matrix = matrices[len(matrices) // 2]
        text = prompt_text(edit.prompt)
        keys = prompt_keys(base, [text], [matrix])[matrix.name]
        spans = base.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        scores = leverage(keys, self.composition.root_of(matrix.name)).tolist()
        return salient_name(text, spans, scores)

    def _asked(self, edit: Edit) -> list[Edit]:
        """The edit's prompt, then as many other ways to ask it as the settings want."""
        first, *others = (replace(edit, prompt=text + edit.prompt) for text in self.config.prefixes)
        found = self.wordings.of(edit, self.config.wordings)
        count = max(len(others), self.config.wordings)
        stand_in = [(others or [first])[i % max(len(others), 1)] for i in range(count)]
        return [first, *(replace(edit, prompt=w) for w in found), *stand_in[len(found) :]]

    def _optimise(
        self,
        base: Base,
        variants: Sequence[Sequence[Edit]],
        matrices: Sequence[Matrix],
        prefix: PrefixCache,
    ) -> list[FactorRows | EditError]:
        """Rows of each edit, in the order of the variants' lists."""
        contexts = []
        for variant in variants:
            encoded = encode_edits(base, variant)[0]
            assert encoded is not None
            places = [subject_position(base, e) for e in variant]
            contexts.append(Tail.of(base, encoded, places, prefix))
        c = self.config
        search = Search(c.steps, c.lr, c.lr_end, c.enough, c.decay, c.share)
        metric = {n: whole.to(base.device) for n, whole in self._metric.items()}
        values = find_values(contexts, matrices, self.scale, search, metric)
        keys = keys_with(contexts[0], matrices, {n: v * c.delivered for n, v in values.items()})
        return [self._rows(edit.id, i, keys, values) for i, edit in enumerate(variants[0])]

    def _rows(
        self,
        edit_id: str,
        place: int,
        keys: Mapping[str, Tensor],
        values: Mapping[str, Tensor],
    ) -> FactorRows | EditError:
        rows = {}
        for name, key in keys.items():
            u, v = key[place : place + 1].cpu(), values[name][place : place + 1].cpu()
            if not (torch.isfinite(u).all() and torch.isfinite(v).all()):
                return NonFinite(edit_id, f"optimising its values gave NaN or Inf at {name}")
            rows[name] = Rows(u, v)
        return FactorRows(edit_id, rows)

    @cached_property
    def _metric(self) -> dict[str, Tensor]:
        """Full parameter name → (d_out, d_out) float32, of mean eigenvalue 1."""
        grams = {name: keys.gram() for name, keys in self.sensitivity.items()}
        return {name: (g * (len(g) / g.trace())).float() for name, g in grams.items()}

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `Editor.state`. What came from a file goes back as it was written there."""
        header = {
            "subject": asdict(self.config) | {"prefixes": list(self.config.prefixes)},
            "scale": self.scale,
            "ridge": dict(self.composition.ridge),
            "protected": {n: [k.exponent, k.rest] for n, k in self.protected.items()},
            "wordings": self.wordings.to_dict(),
        }
        if self.sensitivity:
            header["sensitivity"] = {n: k.exponent for n, k in self.sensitivity.items()}
        keys = {f"protected.{n}": k.grid for n, k in self.protected.items()}
        minds = {f"sensitivity.{n}": k.grid for n, k in self.sensitivity.items()}
        return self._written or header, self.grid.tensors() | keys | minds

    @classmethod
    def from_state(
        cls,
        base_digest: str,
        shapes: Mapping[str, tuple[int, int]],
        header: dict[str, Any],
        tensors: dict[str, Tensor],
    ) -> SubjectEditor:
        """See `Editor.from_state`."""
        # Files from before these settings worked and were composed without them.
        before = {"share": 1.0, "strength": 1.0, "growth": 0.0, "wordings": 0, "delivered": 1.0}
        settings: dict[str, Any] = before | dict(header["subject"])
        settings.setdefault("lr_end", settings["lr"])
        settings["prefixes"] = tuple(settings["prefixes"])
        protected = {
            str(n): PrincipalKeys(tensors[f"protected.{n}"], int(exponent), float(rest))
            for n, (exponent, rest) in header["protected"].items()
        }
        sensitivity = {
            str(n): PrincipalKeys(tensors[f"sensitivity.{n}"], int(exponent), 0.0)
            for n, exponent in header.get("sensitivity", {}).items()
        }
        ours = ("protected.", "sensitivity.")
        rest = {n: t for n, t in tensors.items() if not n.startswith(ours)}
        editor = cls(
            base_digest,
            shapes,
            SubjectConfig(**settings),
            {str(n): float(s) for n, s in header["scale"].items()},
            ridge={str(n): float(r) for n, r in header["ridge"].items()},
            protected=protected,
            grid=Grid.from_tensors(rest),
            wordings=Wordings(header.get("wordings", {})),
            sensitivity=sensitivity,
        )
        editor._written = header  # settings added since then must not change its digest
        return editor


def _sensitivity(
    base: Base, said: Sequence[str], matrices: Sequence[Matrix], progress: Progress
) -> dict[str, PrincipalKeys]:
    """Fisher information of each matrix' output, whole, as integers that a file can hold."""
    found = output_fisher(base, said, matrices, progress=progress)
    return {n: PrincipalKeys.of(fisher, len(fisher)) for n, fisher in found.items()}


def _early(base: Base) -> tuple[Matrix, ...]:
    """The MLP outputs of the blocks between a tenth and a quarter of the model.

    The family's default pattern names the matrix kind; only its blocks change.
    """
    kinds = {pattern.partition("@")[0] for pattern in base.family.defaults}
    depth = len(base.blocks)
    blocks = range(depth // 10, max(depth // 10, depth // 4) + 1)
    found = base.matrices([f"{kind}@:" for kind in sorted(kinds)])
    outputs = [m for m in found if m.block in blocks]
    widths = {m.d_out for m in outputs}
    return tuple(m for m in outputs if m.d_out == min(widths))
