"""Warm models of one process: base, editor, prefix cache, and any version's weights on demand.

Loading a base takes seconds, activating a version one memcpy of the edited matrices; so a process
keeps what it has loaded and the exact weights of the versions it used last.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ledger.records import Edit as LedgerEdit
from ledger.records import Model
from mend_core.datasets.edit import Edit, PromptAnswer
from mend_core.digests import json_digest
from mend_core.editors.base import FactorEditor, load_factor_editor
from mend_core.errors import EditorCorrupt
from mend_core.factors import Composition, FactorStore, VersionStore
from mend_core.models import Base, Overlay, PrefixCache, load_base
from mend_core.models.shipped import cache_root
from mend_core.probes import ProbeItem, ProbeResult
from workers.answers import Answers
from workers.settings import Settings

log = logging.getLogger("mend.runtime")

MODELS_WARM = 2
"""Models one process keeps loaded."""

WEIGHTS_BYTES = 512 * 1024 * 1024
"""Bytes of materialised weights one model keeps, least recently used out first."""

RESULTS_WARM = 4
"""Versions whose probe results one model keeps, least recently made out first."""

Weights = Mapping[str, Tensor]


def core_edit(edit: LedgerEdit) -> Edit:
    """A ledger's edit as mend_core's; its id is the row's id."""
    return Edit(
        id=str(edit.id),
        prompt=edit.prompt,
        target=edit.target,
        subject=edit.subject,
        paraphrases=edit.paraphrases,
        locality=tuple(PromptAnswer(p, a) for p, a in edit.locality),
        portability=tuple(PromptAnswer(p, a) for p, a in edit.portability),
    )


def answers_of(base: Base, config: Settings) -> Answers:
    """What a base answered to probe items, as far as this process keeps it."""
    return Answers(base, cache_root() / "answers" if config.keep_answers else None)


class WarmModel:
    """One registered model, loaded.

    Attributes:
        base: The base, with its own weights in place whenever nobody is using it.
        editor: Its editor.
        composition: The model's composition settings with the editor's tensors.
        prefix: Hidden states entering the first edited block.
        factors: The factor store.
        versions: The version store.
        answers: What the base answered to probe items.
        askable: The model's own probe items as they were last seen to fit the base.
    """

    def __init__(self, model: Model, config: Settings, base: Base | None = None) -> None:
        dtype = str(model.settings.get("dtype", "float32"))
        self.base: Base = base or load_base(
            model.source, device=config.device, dtype=dtype, expected_digest=model.base_digest
        )
        editor = load_factor_editor(model.editor.path)
        if editor.digest != model.editor.digest:
            raise EditorCorrupt(
                f"{model.editor.path}: is {editor.digest}, but model {model.name} was registered "
                f"with {model.editor.digest}; restore the file or register the new editor"
            )
        editor.check(self.base)
        self.name = model.name
        self.editor = editor
        self.composition = self._composition(model, editor)
        first = min(m.block for m in editor.matrices_of(self.base))
        self.prefix = PrefixCache(self.base, first)
        self.factors = FactorStore(config.factors)
        self.versions = VersionStore(config.versions)
        self.answers = answers_of(self.base, config)
        self.askable: tuple[ProbeItem, ...] = ()
        self._results: OrderedDict[str, tuple[ProbeResult, ...]] = OrderedDict()
        self._overlay = Overlay(self.base)
        self._weights: OrderedDict[str, Weights] = OrderedDict()

    @staticmethod
    def _composition(model: Model, editor: FactorEditor) -> Composition:
        settings = dict(model.composition)
        if not settings or settings == editor.composition.to_dict():
            return editor.composition
        return Composition.from_dict(settings, editor.composition.tensors())

    def remember(self, digest: str, weights: Weights) -> None:
        """Keep a version's materialised weights for the next use."""
        self._weights[digest] = weights
        self._weights.move_to_end(digest)
        size = sum(t.nbytes for w in self._weights.values() for t in w.values())
        while size > WEIGHTS_BYTES and len(self._weights) > 1:
            _, dropped = self._weights.popitem(last=False)
            size -= sum(t.nbytes for t in dropped.values())

    def recall(self, digest: str) -> Weights | None:
        """A version's materialised weights, where this process still has them."""
        weights = self._weights.get(digest)
        if weights is not None:
            self._weights.move_to_end(digest)
        return weights

    def keep_results(self, digest: str, results: Sequence[ProbeResult]) -> None:
        """Keep a version's complete probe results: it may be the parent of the next."""
        self._results[digest] = tuple(results)
        self._results.move_to_end(digest)
        while len(self._results) > RESULTS_WARM:
            self._results.popitem(last=False)

    def results_of(self, digest: str) -> tuple[ProbeResult, ...]:
        """A version's probe results, where this process still has them; else none."""
        return self._results.get(digest, ())

    @contextmanager
    def active(self, weights: Weights | None) -> Iterator[Base]:
        """The base with these weights in place; its own exact bytes are back afterwards."""
        with self._overlay.in_place(weights or {}):
            yield self.base

    def norms(self, delta: Weights) -> dict[str, float]:
        """Per edited matrix, Frobenius norm of ΔW relative to the base's matrix."""
        own = {m.name: m.weight for m in self.editor.matrices_of(self.base)}
        return {
            name: float(change.norm() / own[name].double().norm().clamp_min(1e-300))
            for name, change in delta.items()
        }


class WarmModels:
    """The loaded models of a process, least recently used out first."""

    def __init__(self, config: Settings) -> None:
        self._config = config
        self._models: OrderedDict[tuple[int, str, str, str], WarmModel] = OrderedDict()
        if config.threads:
            torch.set_num_threads(config.threads)

    def get(self, model: Model, base: Base | None = None) -> WarmModel:
        """A registered model, loaded now if need be (from `base` where the caller has loaded it).

        Raises:
            ModelError: The base cannot be loaded, or is not the registered one.
            EditorError: The editor cannot be loaded, or is not the registered one.
        """
        # Composition is part of the key: reconfiguring a model must not leave a stale one warm.
        key = (
            model.id,
            model.base_digest,
            model.editor.digest,
            json_digest(dict(model.composition)),
        )
        warm = self._models.get(key)
        if warm is None:
            log.info("loading model %s", model.name)
            warm = WarmModel(model, self._config, base)
            self._models[key] = warm
            while len(self._models) > MODELS_WARM:
                self._models.popitem(last=False)
        self._models.move_to_end(key)
        return warm

    def loaded(self) -> Sequence[str]:
        """Names of the models that are loaded."""
        return [warm.name for warm in self._models.values()]
