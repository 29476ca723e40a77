"""Prefix cache, overlay and greedy decoding: the same numbers, the same bytes, the same words."""

import pytest
import torch

from mend_core.errors import NoSuchMatrix, PromptEmpty
from mend_core.factors import materialise
from mend_core.models import (
    Overlay,
    PrefixCache,
    encode_pairs,
    encode_prompts,
    forward,
    greedy,
    overlay,
    with_delta,
)
from mend_core.testing import FACTS, FAMILIES, PARAPHRASES, tiny_base

PROMPTS = [prompt for prompt, _ in FACTS]
PAIRS = [*list(FACTS[:5]), ("A", "much longer answer than all of the others here")]


def pairs_for(base):
    return [(p, "1") for p, _ in PAIRS] if base.kind == "classifier" else PAIRS


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("first_block", [0, 1, 3])
def test_starting_in_the_middle_gives_the_same_logits(tiny, family, first_block):
    base = tiny(family)
    encoded = encode_pairs(base, pairs_for(base))
    prefix = PrefixCache(base, first_block)
    with torch.no_grad():
        whole = forward(base, encoded)
        for _ in range(2):
            started = forward(base, encoded, prefix=prefix)
            where = encoded.attention_mask.bool() if base.kind == "causal" else slice(None)
            assert torch.allclose(whole[where], started[where], atol=1e-5)
            kept = forward(base, encoded, prefix=prefix, keep=encoded.answer_mask)
            assert torch.allclose(whole[encoded.answer_mask], kept, atol=1e-5)
    works = base.family.prefix and first_block > 0
    assert (prefix.misses, prefix.hits) == ((6, 18) if works else (0, 0))
    assert all("forward" not in block.__dict__ for block in base.blocks)
    assert not base.blocks[first_block]._forward_pre_hooks


def test_the_cache_keeps_to_its_budget_and_drops_the_oldest(tiny):
    base = tiny("gpt2")
    probe = PrefixCache(base, 2)
    probe.hidden(encode_prompts(base, PROMPTS[:1]))
    prefix = PrefixCache(base, 2, max_bytes=probe.nbytes * 5 // 2)
    for prompt in PROMPTS[:3]:
        prefix.hidden(encode_prompts(base, [prompt]))
    prefix.hidden(encode_prompts(base, PROMPTS[2:3]))
    assert prefix.hits == 1
    prefix.hidden(encode_prompts(base, PROMPTS[:1]))
    assert prefix.misses == 4
    assert prefix.nbytes <= prefix.max_bytes
    batch = prefix.hidden(encode_prompts(base, PROMPTS))  # larger than the budget: still whole
    assert batch.shape[0] == len(PROMPTS)
    prefix.clear()
    assert prefix.nbytes == 0


def test_a_failing_forward_leaves_the_model_whole(tiny, monkeypatch):
    base = tiny("gpt2")
    encoded = encode_prompts(base, PROMPTS[:2])
    before = forward(base, encoded)
    prefix = PrefixCache(base, 2)
    prefix.hidden(encoded)

    def broken(*_args, **_kwargs):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(base.blocks[3], "forward", broken)
        with pytest.raises(RuntimeError, match="memory"):
            forward(base, encoded, prefix=prefix)
    assert torch.equal(forward(base, encoded), before)


def change_of(base, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        m.name: torch.randn(m.d_out, m.d_in, generator=generator, dtype=torch.float64) * 0.1
        for m in base.matrices()
    }


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bert"])
def test_overlay_restores_every_byte(family):
    base = tiny_base(family)
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    weights = materialise(base, change_of(base))
    encoded = encode_pairs(base, pairs_for(base))
    with torch.no_grad():
        plain = forward(base, encoded)
        with overlay(base, weights):
            edited = forward(base, encoded)
            for name, weight in weights.items():
                assert torch.equal(base.by_name[name].weight, weight)
        assert not torch.allclose(plain, edited, atol=1e-2)
        with with_delta(base, {n: c.float() for n, c in change_of(base).items()}):
            assert torch.allclose(forward(base, encoded), edited, atol=1e-3)
        assert torch.equal(forward(base, encoded), plain)
    for name, tensor in base.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_warm_worker_moves_between_versions():
    base = tiny_base("gpt2")
    first, second = (materialise(base, change_of(base, seed)) for seed in (1, 2))
    names = list(first)
    original = {name: base.by_name[name].weight.clone() for name in names}
    warm = Overlay(base)
    warm.activate(first)
    warm.activate({names[0]: second[names[0]]})
    assert torch.equal(base.by_name[names[0]].weight, second[names[0]])
    for name in names[1:]:
        assert torch.equal(base.by_name[name].weight, original[name])
    with pytest.raises(NoSuchMatrix, match="another model"):
        warm.activate({names[1]: torch.zeros(3, 3), names[0]: first[names[0]]})
    assert torch.equal(base.by_name[names[0]].weight, second[names[0]])
    with pytest.raises(NoSuchMatrix, match="no editable matrix"):
        warm.activate({"nope": torch.zeros(3, 3)})
    warm.restore()
    warm.restore()
    assert all(torch.equal(base.by_name[name].weight, original[name]) for name in names)


def test_gradients_reach_a_delta(tiny):
    base = tiny("gpt2")
    delta = {n: c.float().requires_grad_() for n, c in change_of(base).items()}
    encoded = encode_pairs(base, PAIRS)
    with with_delta(base, delta):
        forward(
            base, encoded, prefix=PrefixCache(base, 1), keep=encoded.answer_mask
        ).sum().backward()
    assert all(change.grad.abs().sum() > 0 for change in delta.values())
    assert all(p.grad is None for p in base.model.parameters())


def alone(base, prompts, **named):
    return [greedy(base, [prompt], **named)[0] for prompt in prompts]


@pytest.mark.parametrize("which", ["knowing_llama", "knowing_gpt2"])
def test_a_model_that_knows_says_it_and_stops(request, which):
    base = request.getfixturevalue(which)
    asked = PROMPTS + [PARAPHRASES[prompt] for prompt in PROMPTS]
    answers = greedy(base, asked, max_new_tokens=20, batch_size=5)
    assert answers == [answer for _, answer in FACTS] * 2
    assert answers == alone(base, asked, max_new_tokens=20)


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_and_padding_do_not_change_answers(tiny, family):
    base = tiny(family)
    asked = ["The", *PROMPTS[:4], "The leader of Avaria and of Belmark and of Cordania is"]
    together = greedy(base, asked, max_new_tokens=6)
    assert together == alone(base, asked, max_new_tokens=6)
    assert together == greedy(base, asked, max_new_tokens=6, batch_size=2)


def test_decoding_is_what_full_forwards_choose(tiny):
    base = tiny("gemma")
    ids = encode_prompts(base, PROMPTS[:1]).input_ids
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(6):
            ids = torch.cat([ids, base.model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    expected = base.tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip()
    assert greedy(base, PROMPTS[:1], max_new_tokens=6) == [expected]


@pytest.mark.parametrize("cached", [False, True])
def test_drafts_change_the_time_not_the_answers(knowing_gpt2, cached):
    base = knowing_gpt2
    expected = greedy(base, PROMPTS, max_new_tokens=12)
    prefix = PrefixCache(base, 1) if cached else None
    right = [answer for _, answer in FACTS]
    wrong = [*right[1:], right[0]]
    partly = [f"{answer} and more" for answer in right]
    none = [None, ""] * 8
    for drafts in (right, wrong, partly, none):
        assert greedy(base, PROMPTS, max_new_tokens=12, drafts=drafts, prefix=prefix) == expected
    short = greedy(base, PROMPTS, max_new_tokens=1)
    assert greedy(base, PROMPTS, max_new_tokens=1, drafts=right, prefix=prefix) == short


def test_decoding_ends_with_the_context(tiny):
    base = tiny("gpt2")
    length = len(base.tokenizer("word " * 20)["input_ids"])
    prompt = "word " * (20 * 120 // length)
    answer = greedy(base, [prompt, "The"], max_new_tokens=200)
    assert len(answer) == 2


def test_no_prompts_no_answers(tiny):
    assert greedy(tiny("llama"), []) == []
    with pytest.raises(PromptEmpty):
        greedy(tiny("llama"), ["A", " "])
