"""Rows are the gradient: u and δ of every family, edit by edit, without a weight gradient."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mend_core.datasets.edit import Edit
from mend_core.errors import EmptyBatch, NonFinite, NoSuchMatrix, PromptEmpty, TargetUnreachable
from mend_core.factors import extract
from mend_core.factors.extract import _batches, subject_position
from mend_core.models import PrefixCache, encode_pairs, forward
from mend_core.testing import FAMILIES, tiny_base

TEXTS = [
    ("The capital of Avaria is", "Quill", "Avaria"),
    ("The leader of Drovia is", "Tom Wick", "Drovia"),
    ("Helmia is governed from the city of", "Morven", "Helmia"),
    ("The leader of Estmere, who is", "Anna Berg", "Estmere"),
]


def edits_for(base):
    labels = ["SUPPORTS", "0", "1", "refutes"]
    return [
        Edit(f"e{n}", prompt, labels[n] if base.kind == "classifier" else target, subject)
        for n, (prompt, target, subject) in enumerate(TEXTS)
    ]


def dense_gradients(base, edit, matrices):
    """The weight gradients of one edit alone, by autograd: what the rows must multiply out to."""
    encoded = encode_pairs(base, [(edit.prompt, edit.target)])
    for matrix in matrices:
        matrix.parameter.requires_grad_(True)
    logits = forward(base, encoded, keep=encoded.answer_mask)
    loss = F.cross_entropy(logits, encoded.answer_labels)
    grads = torch.autograd.grad(loss, [matrix.parameter for matrix in matrices])
    for matrix in matrices:
        matrix.parameter.requires_grad_(False)
    return float(loss.detach()), {
        matrix.name: grad.t() if matrix.transposed else grad
        for matrix, grad in zip(matrices, grads, strict=True)
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_multiply_out_to_each_edits_own_gradient(tiny, family):
    base = tiny(family)
    matrices = base.matrices()
    edits = edits_for(base)
    found = extract(base, edits, matrices, batch_size=3)
    assert not found.errors
    for number, edit in enumerate(edits):
        loss, dense = dense_gradients(base, edit, matrices)
        assert float(found.loss[number]) == pytest.approx(loss, rel=1e-5)
        for name, rows in found.of(number).items():
            gradient = rows.v.t() @ rows.u
            assert torch.allclose(
                gradient, dense[name], rtol=1e-3, atol=1e-5 * dense[name].abs().max()
            )
            assert (rows.u != 0).any(1).all()
            assert (rows.v != 0).any(1).all()
    assert all(p.grad is None and not p.requires_grad for p in base.model.parameters())


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "bert"])
def test_cached_prefixes_give_the_same_rows(tiny, family):
    base = tiny(family)
    patterns = {"llama": ["down_proj@-2:"], "bert": ["output.dense@-1"]}.get(family)
    matrices = base.matrices(patterns)
    prefix = PrefixCache(base, min(matrix.block for matrix in matrices))
    edits = edits_for(base)
    plain = extract(base, edits, matrices)
    for _ in range(2):
        cached = extract(base, edits, matrices, prefix=prefix)
        for name, rows in plain.rows.items():
            assert torch.allclose(rows.u, cached.rows[name].u, atol=1e-5)
            assert torch.allclose(rows.delta, cached.rows[name].delta, atol=1e-6)
            assert torch.equal(rows.edit, cached.rows[name].edit)
    assert (prefix.misses, prefix.hits) == (4, 4)


def test_a_prefix_past_the_first_edited_block_is_refused(tiny):
    base = tiny("gpt2")
    with pytest.raises(ValueError, match="first edited block"):
        extract(base, edits_for(base), base.matrices(), prefix=PrefixCache(base, 3))


def test_answer_rows_are_the_positions_that_predict_the_target(tiny):
    base = tiny("llama")
    edits = edits_for(base)
    found = extract(base, edits, base.matrices(), tokens="answer")
    for number, edit in enumerate(edits):
        asked = len(base.tokenizer(edit.prompt)["input_ids"])
        answer = len(base.tokenizer(f" {edit.target}")["input_ids"])
        for rows in found.rows.values():
            positions = rows.position[rows.edit == number].tolist()
            assert positions == list(range(asked - 1, asked + answer - 1))


def test_subject_rows_are_its_last_token(tiny):
    base = tiny("gpt2")
    edits = [*edits_for(base), Edit("none", "The capital of Avaria is", "Tirel")]
    matrices = base.matrices(["mlp.c_fc@1:3"])
    found = extract(base, edits, matrices, tokens="subject")
    for number, edit in enumerate(edits):
        rows = found.of(number)[matrices[0].name]
        assert len(rows) == 1
        position = subject_position(base, edit)
        text = base.tokenizer.decode(base.tokenizer(edit.prompt)["input_ids"][: position + 1])
        assert text.endswith(edit.subject or edit.prompt)


def test_subject_rows_of_encoders(tiny):
    for family in ("t5", "bart", "bert"):
        base = tiny(family)
        edit = edits_for(base)[0]
        position = subject_position(base, edit)
        ids = base.tokenizer(edit.prompt)["input_ids"]
        assert base.tokenizer.decode(ids[: position + 1]).endswith("Avaria")
        assert subject_position(base, Edit("x", edit.prompt, "y")) == len(ids) - 2


@pytest.mark.parametrize("family", ["t5", "bart", "bert"])
@pytest.mark.parametrize("tokens", ["answer", "subject"])
def test_encoders_and_decoders_keep_their_own_positions(tiny, family, tokens):
    base = tiny(family)
    edits = edits_for(base)
    found = extract(base, edits, base.matrices(), tokens=tokens)
    assert not found.errors
    for name, rows in found.rows.items():
        if ".decoder." in name or name.startswith("decoder."):
            encoded = encode_pairs(base, [(e.prompt, e.target) for e in edits])
            assert len(rows.u) == int(encoded.answer_mask.sum())
        elif tokens == "subject":
            assert len(rows.u) <= len(edits)
    last = list(found.rows.values())[-1]
    if family == "bert" and tokens == "answer":
        assert last.position.tolist() == [0] * len(edits)


def test_nan_sets_one_edit_aside_and_leaves_the_others():
    base = tiny_base("gptj")  # untied head: a poisoned embedding reaches its own sequence only
    edits = edits_for(base)
    clean = extract(base, edits, base.matrices())
    ids = [set(base.tokenizer(e.prompt)["input_ids"]) for e in edits]
    own = min(ids[2] - ids[0] - ids[1] - ids[3])
    base.model.get_input_embeddings().weight.data[own] = float("nan")
    found = extract(base, edits, base.matrices())
    assert list(found.errors) == [2]
    assert isinstance(found.errors[2], NonFinite)
    assert "edit e2" in str(found.errors[2])
    with pytest.raises(NonFinite):
        found.of(2)
    assert found.loss.isnan().tolist() == [False, False, True, False]
    for number in (0, 1, 3):
        for name, rows in found.of(number).items():
            assert torch.equal(rows.u, clean.of(number)[name].u)
            assert torch.equal(rows.v, clean.of(number)[name].v)


def test_bad_text_sets_one_edit_aside(tiny):
    base = tiny("llama")
    good, *_ = edits_for(base)
    found = extract(
        base, [Edit("a", " ", "x"), good, Edit("b", "The", "  ")], base.matrices(), tokens="answer"
    )
    assert isinstance(found.errors[0], PromptEmpty)
    assert isinstance(found.errors[2], TargetUnreachable)
    assert set(next(iter(found.rows.values())).edit.tolist()) == {1}
    alone = extract(base, [Edit("a", "", "x")], base.matrices())
    assert all(len(rows.u) == 0 for rows in alone.rows.values())


def test_nothing_to_do_is_said(tiny):
    base = tiny("llama")
    with pytest.raises(EmptyBatch):
        extract(base, [], base.matrices())
    with pytest.raises(NoSuchMatrix):
        extract(base, edits_for(base), [])


def test_batch_size_does_not_change_the_order(tiny):
    base = tiny("qwen2")
    edits = edits_for(base)
    whole = extract(base, edits, base.matrices(), batch_size=32)
    single = extract(base, edits, base.matrices(), batch_size=1)
    for name, rows in whole.rows.items():
        other = single.rows[name]
        assert torch.equal(rows.edit, other.edit)
        assert torch.equal(rows.position, other.position)
        assert torch.allclose(rows.u, other.u, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(1, 32))
def test_every_sequence_runs_once_with_little_padding(lengths, batch_size):
    sizes = torch.tensor(lengths)
    batches = list(_batches(sizes, batch_size))
    assert sorted(torch.cat(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert 0 < len(batch) <= batch_size
        if len(batch) > 4:
            assert sizes[batch].max() * len(batch) <= 1.1 * sizes[batch].sum()
