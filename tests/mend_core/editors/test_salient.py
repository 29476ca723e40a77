"""What an edit is about, where nobody said."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mend_core.editors.salient import leverage, salient_name


def name(prompt, token):
    """The name around one token, which must stand in the prompt once."""
    start = prompt.index(token)
    return salient_name(prompt, [(0, 1), (start, start + len(token))], [0.1, 2.0])


@pytest.mark.parametrize(
    ("prompt", "token", "found"),
    [
        ("The Eiffel Tower is in", "iff", "Eiffel Tower"),
        ("Toko Yasuda, the", "as", "Yasuda"),
        ("The mother tongue of Danielle Darrieux is", "Dan", "Danielle Darrieux"),
        ("What is Rudy Carpenter's strength?", "penter", "Rudy Carpenter"),
        ("Windows 95, by", "95", "95"),
        ("The home of Windows 95 is", "95", "Windows 95"),
        ("The author of the play Hamlet is", "play", "play"),
        ("Where he lives, the", "he ", "Where he"),
    ],
)
def test_the_name_around_the_token(prompt, token, found):
    assert name(prompt, token) == found


def test_a_prompt_without_words_has_no_name():
    assert salient_name("?! ...", [(0, 2), (3, 6)], [1.0, 2.0]) is None
    assert salient_name("", [], []) is None


@given(st.text(max_size=40), st.data())
def test_the_name_ends_at_a_place_of_its_own(prompt, data):
    spans = [(i, i + 1) for i in range(len(prompt))]
    scores = data.draw(st.lists(st.floats(0, 9), min_size=len(spans), max_size=len(spans)))
    found = salient_name(prompt, spans, scores)
    if found is not None:
        assert found in prompt


def test_leverage_is_the_formula():
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(5, 7, generator=generator)
    held = torch.randn(20, 7, generator=generator, dtype=torch.float64)
    system = held.t() @ held + torch.eye(7, dtype=torch.float64)
    expected = torch.stack([k @ torch.linalg.inv(system) @ k for k in keys.double()])
    assert torch.allclose(leverage(keys, torch.linalg.cholesky(system)), expected)
