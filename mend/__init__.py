"""Edit a language model's facts in a notebook: load, edit, ask, take back, save.

    import mend
    model = mend.load("smollm2")
    edit = model.edit("The Eiffel Tower is located in the city of", "Lyon", subject="Eiffel Tower")
    print(model.ask("The Eiffel Tower is located in the city of"))
    model.take_back(edit)

Nothing heavy is imported before `load` is called. Errors are those of `mend_core.errors`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mend.edited import Answer, Edited
    from mend.model import Model, load
    from mend_core.datasets import read_edits
    from mend_core.errors import MendError

__all__ = ["Answer", "Edited", "MendError", "Model", "load", "read_edits"]

_WHERE = {
    "Answer": "mend.edited",
    "Edited": "mend.edited",
    "MendError": "mend_core.errors",
    "Model": "mend.model",
    "load": "mend.model",
    "read_edits": "mend_core.datasets",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in _WHERE:
        raise AttributeError(f"module 'mend' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_WHERE[name]), name)
    return found


def __dir__() -> list[str]:
    """Names the public ones, also those not imported yet."""
    return sorted({*globals(), *__all__})
