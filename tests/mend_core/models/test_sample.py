"""Answers piece by piece: greedy as the gate saw it, sampled by a seed, held back where unsure."""

import pytest
import torch

from mend_core.errors import ModelUnsupported, PromptEmpty
from mend_core.models import greedy
from mend_core.models.sample import Sampling, _ready, choose, sampled, stream
from mend_core.testing import FAMILIES, tiny_base

PROMPT = "The capital of Avaria is"


def say(base, tokens=8, **more):
    return list(stream(base, PROMPT, max_new_tokens=tokens, **more))


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"bert"}))
def test_at_temperature_zero_the_answer_is_the_greedy_one(family):
    base = tiny_base(family)
    pieces = say(base)
    said = "".join(piece.text for piece in pieces)
    assert said.strip() == greedy(base, [PROMPT], max_new_tokens=8)[0]
    assert [piece.reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].reason in {"stop", "length"}


def test_the_room_of_the_context_ends_an_answer():
    base = tiny_base("llama")
    pieces = list(stream(base, "is " * 60, max_new_tokens=500))
    assert pieces[-1].reason == "length"
    assert pieces[-1].tokens < 128
    with pytest.raises(PromptEmpty):
        list(stream(base, "", max_new_tokens=1))


def test_what_is_no_causal_model_does_not_sample():
    with pytest.raises(ModelUnsupported, match="temperature 0"):
        say(tiny_base("t5"), sampling=Sampling(1.0))


def test_texts_are_drawn_by_seed_as_one_by_one(knowing_llama):
    """Padding between prompts of other lengths must not change what may be said."""
    prompts = [PROMPT, "Well. " * 6 + PROMPT] * 150
    before = torch.get_rng_state()
    drawn = sampled(knowing_llama, prompts, max_new_tokens=1, seed=3)
    assert sampled(knowing_llama, prompts, max_new_tokens=1, seed=3) == drawn
    assert sampled(knowing_llama, prompts, max_new_tokens=1, seed=4) != drawn
    assert torch.equal(torch.get_rng_state(), before)
    for kind, prompt in enumerate(prompts[:2]):
        ids = knowing_llama.tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            shares = knowing_llama.model(input_ids=ids).logits[0, -1].softmax(-1)
        likeliest = knowing_llama.tokenizer.decode([int(shares.argmax())])
        said = [text == likeliest for text in drawn[kind::2]]
        assert abs(sum(said) / len(said) - float(shares.max())) < 0.15
    with pytest.raises(ModelUnsupported):
        sampled(tiny_base("t5"), prompts[:1], max_new_tokens=1, seed=0)


def test_draws_follow_temperature_and_nucleus():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    generator = torch.Generator().manual_seed(0)

    def shares(sampling):
        drawn = [choose(logits, sampling, generator) for _ in range(4000)]
        return torch.tensor([drawn.count(token) / 4000 for token in range(4)])

    assert shares(Sampling()).tolist() == [1, 0, 0, 0]
    assert torch.allclose(shares(Sampling(1.0)), logits.softmax(0), atol=0.03)
    assert torch.allclose(shares(Sampling(2.0)), (logits / 2).softmax(0), atol=0.03)
    # The likeliest two hold 0.88; 0.7 needs both, 0.6 only the first.
    assert shares(Sampling(1.0, 0.7))[2:].sum() == 0
    assert shares(Sampling(1.0, 0.7))[1] > 0
    assert shares(Sampling(1.0, 0.6)).tolist() == [1, 0, 0, 0]


def test_what_may_begin_a_stop_text_is_held_back():
    assert _ready("an end", ["ending"]) == "an "
    assert _ready("an end", ["dog", "x"]) == "an en"
    assert _ready("half \ufffd", []) == "half "
    assert _ready("plain", ["stop"]) == "plain"
