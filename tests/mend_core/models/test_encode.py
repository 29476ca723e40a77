"""Prompts and targets as tokens: what is edited is what is asked."""

import pytest
import torch

from mend_core.datasets.edit import Edit
from mend_core.errors import EmptyBatch, PromptEmpty, PromptTooLong, TargetUnreachable
from mend_core.models import encode_edits, encode_pairs, encode_prompts

PAIRS = [("The capital of Avaria is", "Quill"), ("The leader of Drovia is now", "Tom Wick")]


def test_causal_labels_cover_the_target_and_the_prompt_is_as_asked(tiny):
    base = tiny("gpt2")
    encoded = encode_pairs(base, PAIRS)
    asked = encode_prompts(base, [prompt for prompt, _ in PAIRS])
    for row, (_, target) in enumerate(PAIRS):
        prompt = asked.input_ids[row][asked.attention_mask[row].bool()]
        assert torch.equal(encoded.input_ids[row, : len(prompt)], prompt)
        labels = encoded.labels[row][encoded.labels[row] != -100]
        assert base.tokenizer.decode(labels) == f" {target}"
        assert torch.equal(encoded.input_ids[row][encoded.labels[row] != -100], labels)
        before = encoded.answer_mask[row].nonzero()[:, 0]
        assert before[0] == len(prompt) - 1
        assert len(before) == len(labels)
    assert encoded.answer_rows.tolist() == sorted(encoded.answer_rows.tolist())
    assert len(encoded.answer_labels) == len(encoded.answer_rows)
    assert encoded.input_ids[0, -1] == base.tokenizer.pad_token_id


@pytest.mark.parametrize(
    ("prompt", "target", "text"),
    [
        ("A is", "B", "A is B"),
        ("A is ", "B", "A is B"),
        ("A is", " B", "A is B"),
        ("Q: A?\n", "B", "Q: A?\nB"),
        ("A is   ", "B", "A is B"),
    ],
)
def test_one_space_joins(tiny, prompt, target, text):
    base = tiny("llama")
    encoded = encode_pairs(base, [(prompt, target)])
    assert base.tokenizer.decode(encoded.input_ids[0]) == text


def test_the_end_token_can_be_part_of_the_target(tiny):
    base = tiny("llama")
    plain, ended = encode_pairs(base, PAIRS), encode_pairs(base, PAIRS, append_eos=True)
    assert (ended.labels == base.tokenizer.eos_token_id).sum() == 2
    assert ended.attention_mask.sum() == plain.attention_mask.sum() + 2


def test_picking_rows_cuts_the_padding(tiny):
    encoded = encode_pairs(tiny("llama"), PAIRS)
    part = encoded.pick(torch.tensor([0]))
    assert part.input_ids.shape[1] == int(encoded.attention_mask[0].sum())
    assert torch.equal(part.answer_labels, encoded.answer_labels[encoded.answer_rows == 0])


def test_seq2seq_targets_are_the_decoders(tiny):
    base = tiny("t5")
    encoded = encode_pairs(base, PAIRS)
    assert encoded.labels[0, 0] != -100
    assert (encoded.labels == base.tokenizer.eos_token_id).sum() == 2
    assert encoded.answer_mask.shape == encoded.labels.shape


@pytest.mark.parametrize(("target", "number"), [("SUPPORTS", 1), ("refutes", 0), ("1", 1)])
def test_classes_by_name_or_number(tiny, target, number):
    encoded = encode_pairs(tiny("bert"), [("A claim.", target)])
    assert encoded.labels.tolist() == [number]
    assert encoded.answer_mask.tolist() == [True]


@pytest.mark.parametrize("family", ["llama", "t5", "bert"])
def test_bad_text_is_named(tiny, family):
    base = tiny(family)
    good = "1" if family == "bert" else "x"
    with pytest.raises(PromptEmpty, match="edit e9"):
        encode_pairs(base, [("A", good), ("  \n", good)], ids=["e8", "e9"])
    with pytest.raises(TargetUnreachable, match="edit 0"):
        encode_pairs(base, [("A", "  ")])
    with pytest.raises(PromptTooLong, match="at most 128"):
        encode_pairs(base, [("word " * 200, good)])
    with pytest.raises(PromptTooLong, match="shorten"):
        encode_prompts(base, ["word " * 200])
    with pytest.raises(EmptyBatch):
        encode_pairs(base, [])
    with pytest.raises(EmptyBatch):
        encode_prompts(base, [])


def test_no_such_class(tiny):
    with pytest.raises(TargetUnreachable, match="refutes, supports"):
        encode_pairs(tiny("bert"), [("A claim.", "MAYBE")])


def test_a_target_of_unknown_tokens_is_unreachable(tiny):
    base = tiny("llama")
    with pytest.raises(TargetUnreachable):
        encode_pairs(base, [("A", base.tokenizer.unk_token)])


def test_bad_edits_are_set_aside(tiny):
    base = tiny("llama")
    edits = [Edit("a", "", "x"), Edit("b", "A", "x"), Edit("c", "A " * 200, "x")]
    encoded, numbers, errors = encode_edits(base, edits)
    assert len(encoded) == 1
    assert numbers == [1]
    assert {n: type(e) for n, e in errors.items()} == {0: PromptEmpty, 2: PromptTooLong}
    assert encode_edits(base, edits[:1])[0] is None
