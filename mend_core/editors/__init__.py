"""Editors: transformations of gradients into edits."""

from mend_core.editors.base import Delta, Editor, FactorEditor, load_editor
from mend_core.editors.mend import MendConfig, MendEditor

__all__ = ["Delta", "Editor", "FactorEditor", "MendConfig", "MendEditor", "load_editor"]
