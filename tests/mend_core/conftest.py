"""Tiny models for the science's tests: real architectures, random or trained for a few seconds."""

import pytest
import torch

from mend_core.testing import memorise, tiny_base


@pytest.fixture(autouse=True)
def one_thread_each():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny():
    """family -> a tiny random base, one per family and session. Leave its weights as they are."""
    made = {}

    def get(family):
        if family not in made:
            made[family] = tiny_base(family)
        return made[family]

    return get


@pytest.fixture(scope="session")
def knowing_llama():
    """A tiny Llama (tied head) that knows `mend_core.testing.FACTS`."""
    torch.set_num_threads(1)
    return memorise(tiny_base("llama", width=64))


@pytest.fixture(scope="session")
def knowing_gpt2():
    """A tiny GPT-2 (Conv1D) that knows `mend_core.testing.FACTS`."""
    torch.set_num_threads(1)
    return memorise(tiny_base("gpt2", width=64))
