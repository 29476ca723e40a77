"""What lies before a place is read once; the rest gives the losses of the whole."""

import pytest
import torch

from mend_core.models import PrefixCache, encode_pairs, forward
from mend_core.models.tail import Tail
from mend_core.testing import FACTS

CAUSAL = ("gpt2", "gpt_neo", "gptj", "llama", "mistral", "qwen2", "gemma")
PAIRS = [(prompt, answer) for prompt, answer in FACTS[:5]]


def whole_losses(base, encoded):
    logits = forward(base, encoded, keep=encoded.answer_mask).float()
    nll = torch.nn.functional.cross_entropy(logits, encoded.answer_labels, reduction="none")
    rows = encoded.answer_rows
    return torch.stack([nll[rows == row].mean() for row in range(len(encoded))])


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("first_block", [0, 2])
def test_losses_are_those_of_the_whole_batch(tiny, family, first_block):
    base = tiny(family)
    encoded = encode_pairs(base, PAIRS)
    places = [0, 2, 1, 3, 1]
    with torch.no_grad():
        tail = Tail.of(base, encoded, places, PrefixCache(base, first_block))
        assert torch.allclose(tail.losses(), whole_losses(base, encoded), atol=1e-5)
        some = torch.tensor([3, 1])
        expected = whole_losses(base, encoded)[some]
        assert torch.allclose(tail.pick(some).losses(), expected, atol=1e-5)


def test_places_at_the_very_start_need_no_past(tiny):
    base = tiny("llama")
    encoded = encode_pairs(base, PAIRS)
    with torch.no_grad():
        tail = Tail.of(base, encoded, [0] * len(PAIRS), PrefixCache(base, 2))
        assert tail.past == ()
        assert torch.allclose(tail.losses(), whole_losses(base, encoded), atol=1e-5)
