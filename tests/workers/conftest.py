"""Tiny model and editor, once per session; a fresh service per test."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.inside import inside, make_service, tiny_editor, tiny_model

torch.set_num_threads(1)

__all__ = ["inside", "make_service", "tiny_editor", "tiny_model"]
