"""Editors: transformations of gradients into edits."""

from mend_core.editors.base import Editor, FactorEditor, load_editor, load_factor_editor
from mend_core.editors.enn import EnnConfig, EnnEditor
from mend_core.editors.finetune import FinetuneConfig, FinetuneEditor, FinetuneKLEditor
from mend_core.editors.ke import KeConfig, KeEditor
from mend_core.editors.malmen import MalmenConfig, MalmenEditor
from mend_core.editors.mend import MendConfig, MendEditor
from mend_core.editors.ridge import RidgeEditor
from mend_core.editors.subject import SubjectConfig, SubjectEditor
from mend_core.editors.ultra import UltraConfig, UltraEditor
from mend_core.factors import Delta

__all__ = [
    "Delta",
    "Editor",
    "EnnConfig",
    "EnnEditor",
    "FactorEditor",
    "FinetuneConfig",
    "FinetuneEditor",
    "FinetuneKLEditor",
    "KeConfig",
    "KeEditor",
    "MalmenConfig",
    "MalmenEditor",
    "MendConfig",
    "MendEditor",
    "RidgeEditor",
    "SubjectConfig",
    "SubjectEditor",
    "UltraConfig",
    "UltraEditor",
    "load_editor",
    "load_factor_editor",
]
