"""Tiny models for the science's tests: real architectures, random or trained for a few seconds."""

import subprocess

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


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a device with 64 KB of room: a real one (tmpfs), so root only."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, check=False, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no small device can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
