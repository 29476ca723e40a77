"""What every editor is: a saved transformation of edits into weight changes of one base."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mend_core.datasets.edit import Edit
from mend_core.editors.files import Header, read_editor, write_editor
from mend_core.errors import (
    BatchError,
    EditError,
    EditorCorrupt,
    EditorMismatch,
    EmptyBatch,
    MendError,
    NonFinite,
)
from mend_core.factors import (
    Composition,
    Delta,
    Extraction,
    FactorRows,
    Grid,
    GridRows,
    Rows,
    compose,
    extract,
)
from mend_core.models import Base, Matrix

_KINDS: dict[str, type[Editor]] = {}


class Editor(ABC):
    """A transformation of edits into weight changes, made for one base.

    Attributes:
        kind: Name of the method, the word in tables, files and metrics.
        base_digest: The base it was made for.
        shapes: Edited matrix name → (d_out, d_in), in the base's order.
    """

    kind: ClassVar[str]

    def __init__(self, base_digest: str, shapes: Mapping[str, tuple[int, int]]) -> None:
        self.base_digest = base_digest
        self.shapes = dict(shapes)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Makes the kind known to `load_editor`."""
        super().__init_subclass__(**kwargs)
        if "kind" in cls.__dict__:
            _KINDS[cls.kind] = cls

    @property
    def matrices(self) -> tuple[str, ...]:
        """Full parameter names of the edited matrices."""
        return tuple(self.shapes)

    @property
    def digest(self) -> str:
        """``sha256:…`` over header and tensors (name, dtype, shape, bytes); not over the file."""
        return self._packed()[0].digest

    @property
    def parameters_bytes(self) -> int:
        """Bytes of everything the editor has to keep."""
        return sum(t.numel() * t.element_size() for t in self.state()[1].values())

    def check(self, base: Base) -> None:
        """Refuse a base the editor was not made for.

        Raises:
            EditorMismatch: Another base digest, a missing matrix or another shape.
        """
        if base.digest != self.base_digest:
            raise EditorMismatch(
                f"this {self.kind} editor was made for base {self.base_digest}, but the loaded "
                f"base is {base.digest}; train an editor for it with `mend editor train`"
            )
        self.matrices_of(base)

    def matrices_of(self, base: Base) -> tuple[Matrix, ...]:
        """The base's matrices this editor edits, shapes compared.

        Raises:
            EditorMismatch: A matrix is missing or has another shape.
        """
        found = {m.name: m for m in base.matrices(self.matrices)}
        for name, (d_out, d_in) in self.shapes.items():
            matrix = found.get(name)
            if matrix is None:
                raise EditorMismatch(f"the base has no matrix {name!r} that this editor edits")
            if (matrix.d_out, matrix.d_in) != (d_out, d_in):
                raise EditorMismatch(
                    f"matrix {name!r} is {matrix.d_out} x {matrix.d_in} in the base, "
                    f"but {d_out} x {d_in} in the editor"
                )
        return tuple(found[name] for name in self.shapes)

    @abstractmethod
    def delta(self, base: Base, edits: Sequence[Edit]) -> Delta:
        """The weight change that applies `edits` together to `base`.

        Raises:
            EmptyBatch: No edits.
            EditError: One edit is at fault; it is named.
            BatchError: No edit is, and still no weight change came out.
            EditorMismatch: See `check`.
        """

    @abstractmethod
    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON header (without kind, base and shapes: `save` adds them) and tensors."""

    @classmethod
    @abstractmethod
    def from_state(
        cls,
        base_digest: str,
        shapes: Mapping[str, tuple[int, int]],
        header: dict[str, Any],
        tensors: dict[str, Tensor],
    ) -> Editor:
        """Rebuild from what `state` gave."""

    def save(self, path: str | Path) -> str:
        """Write one safetensors file, atomically, and return the editor's digest.

        Raises:
            StoreFull: No room left; nothing half-written stays behind.
        """
        header, tensors = self._packed()
        write_editor(Path(path), header, tensors)
        return header.digest

    def _packed(self) -> tuple[Header, dict[str, Tensor]]:
        config, tensors = self.state()
        tensors = {n: t.detach().cpu().contiguous() for n, t in tensors.items()}
        return Header.of(self.kind, self.base_digest, self.shapes, config, tensors), tensors


class FactorEditor(Editor):
    """An editor whose edits are factor rows, one set per edit, made at the base.

    Attributes:
        grid: The integer grid rows are stored on.
        composition: How rows of many edits become one weight change.
        tokens: Positions that give rows: "all", or "answer" (those that predict the target).
    """

    def __init__(
        self,
        base_digest: str,
        shapes: Mapping[str, tuple[int, int]],
        *,
        grid: Grid,
        composition: Composition,
        tokens: Literal["all", "answer"],
    ) -> None:
        super().__init__(base_digest, shapes)
        self.tokens = tokens
        self.grid = grid
        self.composition = composition

    @abstractmethod
    def transform(self, name: str, u: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Raw rows of one matrix → the rows an edit is stored as.

        Args:
            name: The matrix.
            u: Inputs of the matrix, (rows, d_in) fp32.
            delta: Gradient of the edit's NLL at the matrix' outputs, (rows, d_out) fp32.

        Returns:
            Keys (rows', d_in) and values (rows', d_out), fp32; row-wise, so that edits do not
            touch each other.
        """

    def subject_of(self, base: Base, edit: Edit) -> str | None:  # noqa: ARG002 - for others
        """The words of the prompt an edit is put at; None where the editor reads all of it."""
        return None

    def observe(self, name: str, u: Tensor, delta: Tensor) -> None:
        """Take raw rows of a matrix into the editor's statistics; nothing where it keeps none."""

    def calibrate(self, base: Base, edits: Sequence[Edit], *, observe: bool = True) -> None:
        """Fit statistics (with `observe`) and grid to typical edits, without training.

        Raises:
            EmptyBatch: None of the edits can be used.
        """
        if not edits:
            raise EmptyBatch("there is no edit to calibrate on")
        raw = extract(base, edits, self.matrices_of(base), tokens=self.tokens)
        if len(raw.errors) == len(edits):
            raise EmptyBatch(f"none of the calibration edits can be used: {raw.errors[0]}")
        if observe:
            for name, rows in raw.rows.items():
                self.observe(name, rows.u, rows.delta)
        made = self.transform_extraction(raw)
        self.grid = Grid.calibrate([f for f in made if not isinstance(f, EditError)])

    def factor(
        self, base: Base, edits: Sequence[Edit], *, prefix: Any = None
    ) -> list[FactorRows | EditError]:
        """Factor rows of every edit, each computed at the base and independent of the others.

        Args:
            base: The base this editor was made for.
            edits: At least one edit.
            prefix: Optional `PrefixCache` to take hidden states from.

        Returns:
            One entry per edit, in order; a bad edit gives its error instead of raising.

        Raises:
            EmptyBatch: No edits.
            EditorMismatch: See `check`.
        """
        if not edits:
            raise EmptyBatch("there is no edit to factor")
        self.check(base)
        raw = extract(base, edits, self.matrices_of(base), prefix=prefix, tokens=self.tokens)
        return self.transform_extraction(raw)

    def transform_extraction(self, raw: Extraction) -> list[FactorRows | EditError]:
        """`factor` from rows already extracted; `transform` runs once per matrix over all edits."""
        picked: list[dict[str, Rows]] = [{} for _ in raw.edits]
        for name in self.matrices:
            stacked = raw.rows[name]
            with torch.no_grad():
                keys, values = self.transform(name, stacked.u, stacked.delta)
            for number, rows in enumerate(picked):
                mine = stacked.edit == number
                rows[name] = Rows(u=keys[mine].cpu(), v=values[mine].cpu())
        return [
            raw.errors.get(number) or _finite(FactorRows(edit_id=edit.id, rows=rows))
            for number, (edit, rows) in enumerate(zip(raw.edits, picked, strict=True))
        ]

    def delta(self, base: Base, edits: Sequence[Edit]) -> Delta:
        """Compose the grid rows of `edits`; see `Editor.delta`."""
        rows: list[GridRows] = []
        for factor in self.factor(base, edits):
            if isinstance(factor, EditError):
                raise factor
            rows.append(self.grid.encode(factor))
        return compose(self.composition, self.grid, None, rows)


def not_finite(
    base: Base, edits: Sequence[Edit], matrices: Sequence[Matrix], otherwise: str
) -> MendError:
    """The error of a weight change that came out with NaN or Inf: of the edit at fault if one is.

    Args:
        base: The base, with its own weights.
        edits: What the change was made for.
        matrices: The edited ones.
        otherwise: What to say where no edit gives NaN or Inf by itself.
    """
    raw = extract(base, edits, matrices)
    if raw.errors:
        return raw.errors[min(raw.errors)]
    return BatchError(otherwise)


def all_finite(delta: Delta) -> bool:
    """Whether a weight change holds numbers only."""
    return all(bool(torch.isfinite(change).all()) for change in delta.values())


def _finite(factor: FactorRows) -> FactorRows | EditError:
    for name, rows in factor.rows.items():
        if not (torch.isfinite(rows.u).all() and torch.isfinite(rows.v).all()):
            return NonFinite(factor.edit_id, f"the editor gave NaN or Inf at {name}")
    return factor


def load_editor(path: str | Path) -> Editor:
    """Read an editor file of any kind.

    Raises:
        EditorNotFound: No such file.
        EditorCorrupt: Unreadable, of an unknown kind, or not what its digest says.
    """
    header, tensors = read_editor(Path(path))
    kind = _KINDS.get(header.kind)
    if kind is None:
        raise EditorCorrupt(
            f"{path}: unknown kind of editor {header.kind!r}; known: {', '.join(sorted(_KINDS))}"
        )
    try:
        return kind.from_state(header.base_digest, header.shapes, header.config, tensors)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise EditorCorrupt(
            f"{path}: the file does not hold a whole {header.kind} editor: {error}"
        ) from error


def load_factor_editor(path: str | Path) -> FactorEditor:
    """Read an editor file whose edits are factor rows, as versions need them.

    Raises:
        EditorNotFound: No such file.
        EditorCorrupt: See `load_editor`.
        EditorMismatch: An editor of another sort, such as one trained for comparison.
    """
    editor = load_editor(path)
    if not isinstance(editor, FactorEditor):
        able = sorted(kind for kind, made in _KINDS.items() if issubclass(made, FactorEditor))
        raise EditorMismatch(
            f"{path}: an editor of kind {editor.kind!r} gives whole weight changes, not factors, "
            f"so no version can be made with it (`mend bench editors` compares it); use one of "
            f"kind {', '.join(able)}"
        )
    return editor
