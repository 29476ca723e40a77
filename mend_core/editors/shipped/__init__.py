"""Trained editors that come with the project."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from mend_core.editors.files import read_editor
from mend_core.errors import EditorMismatch, EditorNotFound

BEST_FIRST = ("smollm2-135m-subject", "smollm2-135m-mend")
"""Order of preference where only "the shipped editor of this base" is asked for."""


def shipped_editors() -> tuple[str, ...]:
    """Names of the editors that come with the project, the best of each base first."""
    found = {p.stem for p in _folder().glob("*.safetensors")}
    return tuple(n for n in BEST_FIRST if n in found) + tuple(sorted(found - set(BEST_FIRST)))


def shipped_editor(name: str) -> Path:
    """The file of a shipped editor, for example ``smollm2-135m-mend``.

    Raises:
        EditorNotFound: No shipped editor has this name.
    """
    path = _folder() / f"{name}.safetensors"
    if not path.is_file():
        known = ", ".join(shipped_editors()) or "none"
        raise EditorNotFound(f"no shipped editor is called {name!r}; there are: {known}")
    return path


def shipped_editor_for(base_digest: str) -> Path:
    """The file of the best shipped editor that was made for a base.

    Raises:
        EditorMismatch: None was.
    """
    for name in shipped_editors():
        path = shipped_editor(name)
        if read_editor(path)[0].base_digest == base_digest:
            return path
    raise EditorMismatch(
        f"none of the shipped editors ({', '.join(shipped_editors()) or 'none'}) was made for base "
        f"{base_digest}; give the file of an editor trained for it, or 'ultra' (seconds) or "
        "'subject' (minutes; causal models) to have one made"
    )


def _folder() -> Path:
    return Path(str(files(__package__)))
