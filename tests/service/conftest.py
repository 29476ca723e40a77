"""A ledger with one model, and a service with a worker in the process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.inside import inside, make_service, tiny_editor, tiny_model
from tests.ledger.conftest import Desk

torch.set_num_threads(1)

__all__ = ["inside", "make_service", "tiny_editor", "tiny_model"]


@pytest.fixture
def desk(engine):
    return Desk(engine)


@pytest.fixture
def new_desk(engine):
    return lambda **settings: Desk(engine, **settings)
