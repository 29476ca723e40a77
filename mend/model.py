"""A model with a set of edits in it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from torch import Tensor

from mend.edited import Answer, Edited
from mend.requests import Request, read_request
from mend_core.datasets import Edit
from mend_core.editors import FactorEditor, load_factor_editor
from mend_core.editors.making import MADE_KINDS, make_editor
from mend_core.editors.shipped import shipped_editor, shipped_editor_for
from mend_core.errors import EditError, EmptyBatch
from mend_core.factors import (
    Delta,
    ExportReport,
    GridRows,
    Provenance,
    compose,
    export_merged,
    export_peft,
    materialise,
    version_digest,
)
from mend_core.models import Base, Overlay, greedy, load_base
from mend_core.progress import Progress, part, unheard

SHIPPED = "shipped"
ANSWER_TOKENS = 24
"""Most tokens of an answer, unless asked otherwise."""

LOADED = 0.1
"""Share of the time of `load` that the base takes, where an editor is made after it."""


def load(
    source: str | Path,
    editor: str | Path = SHIPPED,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    progress: Progress = unheard,
) -> Model:
    """Loads a model to edit.

    Args:
        source: ``smollm2`` (shipped), a Hugging Face folder, or a hub id.
        editor: ``shipped`` for ours for this base; ``ultra`` (seconds) or ``subject`` (minutes,
            better, causal models) to have one made; ``shipped:NAME``; or an editor file.
        device: Where to put it.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        progress: Called with a short text and a fraction in [0, 1]; ``print`` will do.

    Raises:
        ModelError: The base cannot be loaded.
        EditorError: The editor cannot be loaded or made, or was made for another base.
    """
    base = load_base(source, device=device, dtype=dtype, progress=part(progress, 0.0, LOADED))
    which = str(editor)
    if which in MADE_KINDS:
        found = make_editor(base, which, progress=part(progress, LOADED, 1.0))
    elif which == SHIPPED:
        found = load_factor_editor(shipped_editor_for(base.digest))
    elif which.startswith(f"{SHIPPED}:"):
        found = load_factor_editor(shipped_editor(which.partition(":")[2]))
    else:
        found = load_factor_editor(Path(editor).expanduser())
    progress("ready", 1.0)
    return Model(base, found)


class Model:
    """A base with a set of edits, whose weights are in place.

    The weights are a function of the set alone. Taking an edit out composes the others anew, so
    what is left is bit for bit the model that never had it.

    Args:
        base: The base, with its own weights in place; from now on the model's.
        editor: Made for it.

    Raises:
        EditorMismatch: The editor was made for another base.
    """

    def __init__(self, base: Base, editor: FactorEditor) -> None:
        editor.check(base)
        self._base, self._editor = base, editor
        self._overlay = Overlay(base)
        self._rows: dict[str, GridRows] = {}
        self._edited: dict[str, Edited] = {}
        self._numbers = itertools.count(1)

    @property
    def base(self) -> Base:
        """The base; its model has the edited weights while there are edits."""
        return self._base

    @property
    def editor(self) -> FactorEditor:
        """The editor."""
        return self._editor

    @property
    def transformer(self) -> Any:
        """The transformers model, edits included, for whatever else takes one."""
        return self._base.model

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self._base.tokenizer

    @property
    def edits(self) -> tuple[Edited, ...]:
        """The edits in the model, oldest first."""
        return tuple(self._edited.values())

    @property
    def digest(self) -> str:
        """Name of base, editor and set: equal digests are equal weights on one machine."""
        return version_digest(
            self._base.digest,
            self._editor.digest,
            self._editor.composition,
            [rows.digest for rows in self._rows.values()],
        )

    @overload
    def edit(
        self,
        what: str,
        target: str,
        *,
        subject: str | None = None,
        paraphrases: Sequence[str] = (),
        locality: Sequence[str] = (),
    ) -> Edited: ...

    @overload
    def edit(self, what: Iterable[Request]) -> list[Edited]: ...

    def edit(
        self,
        what: str | Iterable[Request],
        target: str | None = None,
        *,
        subject: str | None = None,
        paraphrases: Sequence[str] = (),
        locality: Sequence[str] = (),
    ) -> Edited | list[Edited]:
        """Puts edits into the model; all of them, or none where one is at fault.

        An edit of a prompt that an earlier edit has takes the earlier one's place.

        Args:
            what: A prompt; or several edits, each (prompt, target), a dict with the fields of
                `mend_core.datasets.Edit`, or such an edit (``mend.read_edits(FILE)``).
            target: What the prompt should answer.
            subject: Entity the fact is about, as the prompt has it.
            paraphrases: Other ways to ask, to see whether they follow.
            locality: Prompts whose answers should not change, to see whether they do.

        Returns:
            What each edit changed: one, or a list where several were given.

        Raises:
            DataError: A field is missing or wrong.
            EmptyBatch: No edits.
            EditError: One edit is at fault; it is named.
        """
        if isinstance(what, str):
            request = {"prompt": what, "target": target, "subject": subject}
            return self._add([request | {"paraphrases": paraphrases, "locality": locality}])[0]
        return self._add(list(what))

    def _add(self, requests: Sequence[Request]) -> list[Edited]:
        edits = self._read(requests)
        prompts = list(dict.fromkeys(text for edit in edits for text in _asked(edit)))
        before = dict(zip(prompts, self.ask(prompts), strict=True))
        rows = self._factor(edits)
        replaced = {e.prompt for e in edits}
        gone = [i for i, old in self._edited.items() if old.edit.prompt in replaced]
        kept = {name: row for name, row in self._rows.items() if name not in gone}
        self._put(kept | rows)
        now = dict(zip(prompts, self.ask(prompts), strict=True))
        self._edited = {name: old for name, old in self._edited.items() if name not in gone}

        def answer(prompt: str) -> Answer:
            return Answer(prompt, before[prompt], now[prompt])

        made = [
            Edited(
                id=edit.id,
                edit=edit,
                own=answer(edit.prompt),
                paraphrases=tuple(answer(text) for text in edit.paraphrases),
                locality=tuple(answer(pair.prompt) for pair in edit.locality),
            )
            for edit in edits
        ]
        self._edited |= {edited.id: edited for edited in made}
        return made

    def _read(self, requests: Sequence[Request]) -> list[Edit]:
        """The edits, with ids of their own and prompts that do not contradict each other."""
        if not requests:
            raise EmptyBatch("there is no edit; give a prompt and a target, or a list of edits")
        edits = []
        for place, request in enumerate(requests, 1):
            free = next(str(n) for n in self._numbers if str(n) not in self._edited)
            edits.append(read_request(request, place, free))
        replaced = {edit.prompt for edit in edits}
        ids = {i for i, old in self._edited.items() if old.edit.prompt not in replaced}
        prompts: set[str] = set()
        for edit in edits:
            if edit.id in ids:
                raise EditError(edit.id, "another edit has this id; give it one of its own")
            if edit.prompt in prompts:
                raise EditError(edit.id, "another edit given with it has the same prompt")
            ids.add(edit.id)
            prompts.add(edit.prompt)
        return edits

    def _factor(self, edits: Sequence[Edit]) -> dict[str, GridRows]:
        """The edits' rows, made at the base; the edited weights are back afterwards."""
        weights = self._weights()
        self._overlay.restore()
        try:
            factors = self._editor.factor(self._base, edits)
        finally:
            self._overlay.activate(weights)
        made = {}
        for edit, factor in zip(edits, factors, strict=True):
            if isinstance(factor, EditError):
                raise factor
            made[edit.id] = self._editor.grid.encode(factor)
        return made

    def _weights(self) -> dict[str, Tensor]:
        """A copy of the edited matrices that are in place."""
        names = sorted(self._overlay.active)
        return {name: self._base.by_name[name].weight.clone().contiguous() for name in names}

    def _put(self, rows: Mapping[str, GridRows]) -> None:
        """Puts the weights of exactly this set in place; on an error all stays as it was."""
        delta = self._delta(rows)
        self._overlay.restore()
        try:
            # Added to the base's own weights, never to edited ones: so a set has one result.
            weights = materialise(self._base, delta)
        except BaseException:
            self._overlay.activate(materialise(self._base, self._delta(self._rows)))
            raise
        self._overlay.activate(weights)
        self._rows = dict(rows)

    def _delta(self, rows: Mapping[str, GridRows]) -> Delta:
        if not rows:
            return {}
        return compose(self._editor.composition, self._editor.grid, None, rows.values())

    @overload
    def ask(self, prompt: str, *, max_new_tokens: int = ANSWER_TOKENS) -> str: ...

    @overload
    def ask(self, prompt: list[str], *, max_new_tokens: int = ANSWER_TOKENS) -> list[str]: ...

    def ask(
        self, prompt: str | list[str], *, max_new_tokens: int = ANSWER_TOKENS
    ) -> str | list[str]:
        """What the model answers now: greedy, until it stops by itself.

        Args:
            prompt: One, or several.
            max_new_tokens: Most tokens of each answer.

        Raises:
            PromptEmpty: A prompt has no tokens.
            PromptTooLong: A prompt does not fit the context.
        """
        if isinstance(prompt, str):
            return greedy(self._base, [prompt], max_new_tokens=max_new_tokens)[0]
        return greedy(self._base, prompt, max_new_tokens=max_new_tokens)

    def take_back(self, *edits: Edited | str) -> None:
        """Takes edits out: the model is, bit for bit, the one that never had them.

        Args:
            edits: What `edit` returned, or ids. All: ``model.take_back(*model.edits)``.

        Raises:
            EmptyBatch: None was named.
            EditError: One is not in the model; nothing is taken out then.
        """
        names = [edit.id if isinstance(edit, Edited) else str(edit) for edit in edits]
        if not names:
            raise EmptyBatch("name the edits to take back; all are model.edits")
        for name, given in zip(names, edits, strict=True):
            if name not in self._edited or given not in (name, self._edited[name]):
                raise EditError(name, "is not in the model; model.edits lists those that are")
        self._put({name: row for name, row in self._rows.items() if name not in names})
        for name in set(names):
            del self._edited[name]

    def save(self, folder: str | Path) -> Path:
        """Writes a Hugging Face model folder with a card and ``mend.json``.

        Raises:
            StoreError: The folder exists and is not empty, or cannot be written.
        """
        place = Path(folder).expanduser()
        export_merged(self._base, self._weights(), place, self._provenance())
        return place

    def save_adapter(self, folder: str | Path, *, max_rank: int | None = None) -> ExportReport:
        """Writes the edits as a LoRA adapter for PEFT, with a card and ``mend.json``.

        Args:
            folder: A new or empty folder.
            max_rank: Cut the rank; None: exact.

        Raises:
            EmptyBatch: There are no edits.
            StoreError: The folder exists and is not empty, or cannot be written.
        """
        return export_peft(
            self._base,
            self._editor.grid,
            self._editor.composition,
            self._rows.values(),
            Path(folder).expanduser(),
            max_rank=max_rank,
            about=self._provenance(),
        )

    def _provenance(self) -> Provenance:
        return Provenance(
            digest=self.digest,
            editor=self._editor.kind,
            editor_digest=self._editor.digest,
            edits=[
                {"id": e.id, "prompt": e.edit.prompt, "target": e.edit.target}
                | {"subject": e.edit.subject}
                for e in self.edits
            ],
            composition=self._editor.composition.to_dict(),
        )

    def __repr__(self) -> str:
        """Says what it is in one line."""
        count = len(self._edited)
        edits = "1 edit" if count == 1 else f"{count or 'no'} edits"
        return f"<mend.Model {self._base.source}, {self._editor.kind} editor, {edits}>"


def _asked(edit: Edit) -> tuple[str, ...]:
    return (edit.prompt, *edit.paraphrases, *(pair.prompt for pair in edit.locality))
