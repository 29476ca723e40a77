"""A ledger with one model and one transaction a call, as the ledger's own tests have it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.ledger.conftest import Desk


@pytest.fixture
def desk(engine):
    return Desk(engine)


@pytest.fixture
def new_desk(engine):
    return lambda **settings: Desk(engine, **settings)
