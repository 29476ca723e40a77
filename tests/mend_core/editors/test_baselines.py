"""FT, FT+KL, ENN and KE on tiny models that know a few facts."""

import pytest
import torch

from mend_core.datasets import Edit
from mend_core.editors import (
    EnnConfig,
    EnnEditor,
    FinetuneConfig,
    FinetuneEditor,
    FinetuneKLEditor,
    KeConfig,
    KeEditor,
)
from mend_core.editors.base import all_finite
from mend_core.editors.finetune import answer_logits, edit_loss
from mend_core.editors.ke import conditions
from mend_core.errors import BatchError, EmptyBatch, NonFinite, PromptTooLong
from mend_core.factors import extract
from mend_core.models import encode_edits, encode_pairs, greedy, with_delta
from mend_core.testing import FACTS, PARAPHRASES, swapped_facts, tiny_base

EDITS = swapped_facts(4)


def loss_of(base, edits, delta):
    encoded, _, _ = encode_edits(base, edits)
    with with_delta(base, {n: d.float() for n, d in delta.items()}):
        return edit_loss(base, encoded, None)


def drift(base, delta):
    encoded = encode_pairs(base, [FACTS[i] for i in range(8, 16)])
    with torch.no_grad():
        before = answer_logits(base, encoded, None).log_softmax(-1)
        with with_delta(base, delta):
            after = answer_logits(base, encoded, None).log_softmax(-1)
    return (before.exp() * (before - after)).sum(-1).mean()


@pytest.mark.parametrize("fixture", ["knowing_llama", "knowing_gpt2"])
def test_fine_tuning_makes_the_edits(request, fixture):
    base = request.getfixturevalue(fixture)
    before = [m.weight.clone() for m in base.matrices()]
    delta = FinetuneEditor.create(base, FinetuneConfig(lr=2e-3, steps=100)).delta(base, EDITS)
    _, done = loss_of(base, EDITS, delta)
    assert done
    for matrix, weight in zip(base.matrices(), before, strict=True):
        assert torch.equal(matrix.weight, weight)


def test_a_kl_term_keeps_fine_tuning_nearer_to_the_base(knowing_llama):
    base = knowing_llama
    config = FinetuneConfig(lr=2e-3, steps=25, locality_batch=4, c_edit=0.05)
    plain = FinetuneEditor.create(base, config).delta(base, EDITS[:1])
    kept = FinetuneKLEditor.create(base, config, train=EDITS).delta(base, EDITS[:1])
    assert drift(base, kept) < drift(base, plain)


def test_ft_kl_needs_something_to_keep(tiny):
    with pytest.raises(EmptyBatch, match="locality"):
        FinetuneKLEditor.create(tiny("llama"))


def test_an_ft_run_names_the_bad_edit_and_refuses_none(tiny):
    base = tiny("llama")
    editor = FinetuneEditor.create(base)
    with pytest.raises(EmptyBatch):
        editor.delta(base, [])
    with pytest.raises(PromptTooLong, match="long"):
        editor.delta(base, [EDITS[0], Edit(id="long", prompt="x " * 4000, target="y")])


@pytest.mark.parametrize("method", ["finetune", "finetune_kl", "enn", "ke"])
def test_the_edit_that_gives_nan_is_named_not_the_first(method):
    """The service takes the named one out and tries the others again."""
    base = tiny_base("gptj")  # untied head: a poisoned embedding reaches its own sequence only
    edits = [EDITS[0], Edit(id="sick", prompt="What is 5 % of", target="Tirel"), EDITS[1]]
    for token in set(base.tokenizer(" %")["input_ids"]) - set(base.tokenizer(" ")["input_ids"]):
        base.model.get_input_embeddings().weight.data[token] = float("nan")
    make = {
        "finetune": lambda: FinetuneEditor.create(base, FinetuneConfig(steps=2)),
        "finetune_kl": lambda: FinetuneKLEditor.create(base, FinetuneConfig(steps=2), train=EDITS),
        "enn": lambda: EnnEditor.create(base),
        "ke": lambda: KeEditor.create(base, KeConfig(lstm=8, condition=8, hidden=8)),
    }
    editor = make[method]()
    with pytest.raises(NonFinite) as caught:
        editor.delta(base, edits)
    assert caught.value.edit_id == "sick"
    assert all_finite(editor.delta(base, [edits[0], edits[2]]))


@pytest.mark.parametrize("steps", [1, 30])
def test_fine_tuning_that_diverges_blames_no_edit(tiny, steps):
    editor = FinetuneEditor.create(tiny("llama"), FinetuneConfig(lr=1e38, steps=steps))
    with pytest.raises(BatchError, match=f"{len(EDITS)} edits.*lr") as caught:
        editor.delta(tiny("llama"), EDITS)
    assert not isinstance(caught.value, EmptyBatch)


def test_a_sick_editor_blames_no_edit_or_names_it(tiny):
    base = tiny("llama")
    enn = EnnEditor.create(base)
    enn.networks.learning_rates.data.fill_(float("inf"))
    with pytest.raises(BatchError, match="the editor gave NaN"):
        enn.delta(base, EDITS)
    ke = KeEditor.create(base, KeConfig(lstm=8, condition=8, hidden=8))
    ke.networks.reduce[0].bias.data.fill_(float("nan"))
    with pytest.raises(NonFinite, match="the editor gave NaN"):
        ke.delta(base, EDITS)


def test_untrained_enn_is_one_gradient_step(knowing_llama):
    base = knowing_llama
    editor = EnnEditor.create(base, EnnConfig(learning_rate=0.1))
    delta = editor.delta(base, EDITS[:1])
    raw = extract(base, EDITS[:1], base.matrices())
    for name, rows in raw.rows.items():
        assert torch.allclose(delta[name], -0.1 * rows.delta.T @ rows.u, atol=1e-5)


def test_enn_takes_its_second_step_from_where_the_first_ended(knowing_llama):
    base = knowing_llama
    once, twice = (
        EnnEditor.create(base, EnnConfig(steps, learning_rate=0.5)).delta(base, EDITS[:1])
        for steps in (1, 2)
    )
    between = {name: change.requires_grad_() for name, change in once.items()}
    loss, _ = loss_of(base, EDITS[:1], between)
    grads = torch.autograd.grad(loss, list(between.values()))
    for name, grad in zip(between, grads, strict=True):
        step = twice[name] - between[name].detach()
        assert torch.allclose(step, -0.5 * grad, atol=1e-5 + 1e-3 * grad.abs().max().item())
    first, _ = loss_of(base, EDITS[:1], {n: torch.zeros_like(d) for n, d in once.items()})
    assert loss < 0.9 * first  # else both steps would be alike


@pytest.mark.parametrize("steps", [1, 2])
def test_enn_gradient_is_of_second_order(steps):
    """Against a central difference through the whole inner step, in float64."""
    base = tiny_base("llama")  # of its own: dtype changes
    base.model.double()
    base.dtype = torch.float64
    edits = EDITS[:1]
    encoded, _, _ = encode_edits(base, edits)
    outer = encode_pairs(base, [(PARAPHRASES[edits[0].prompt], edits[0].target)])
    first = EnnEditor.create(base, EnnConfig(steps, learning_rate=0.5, first_order=True))
    editor = EnnEditor.create(base, EnnConfig(steps, learning_rate=0.5))
    for e in (first, editor):
        e.networks.double()

    def value(networks):
        with with_delta(base, networks.dense(networks(base, encoded, None))):
            return torch.nn.functional.cross_entropy(
                answer_logits(base, outer, None), outer.answer_labels
            )

    def gradient(networks):
        return torch.autograd.grad(value(networks), networks.shifts[0])[0]

    exact, rough = gradient(editor.networks), gradient(first.networks)
    place = int(exact.abs().argmax())
    shift = editor.networks.shifts[0].data.view(-1)
    step = 1e-2  # logits are computed in float32
    shift[place] += step
    up = value(editor.networks).item()
    shift[place] -= 2 * step
    down = value(editor.networks).item()
    shift[place] += step
    numeric = (up - down) / (2 * step)
    assert numeric == pytest.approx(exact.view(-1)[place].item(), rel=0.05)
    assert not torch.allclose(exact, rough, rtol=1e-2)


def test_ke_follows_its_formula(tiny):
    base = tiny("gpt2")
    config = KeConfig(lstm=8, condition=8, hidden=8)
    editor = KeEditor.create(base, config)
    edit = EDITS[0]
    delta = editor.delta(base, [edit])
    networks = editor.networks
    rows = extract(base, [edit], base.matrices()).of(0)
    encoded, _, _ = encode_edits(base, [edit])
    with torch.no_grad():
        states, _ = networks.lstm(conditions(base, [edit], encoded, None, 0)[0][None])
        width = config.lstm
        h = networks.reduce(torch.cat((states[0, -1, :width], states[0, 0, width:])))
        name = editor.matrices[0]
        d_out, d_in = editor.shapes[name]
        numbers = networks.heads[0](h)
        row_a, col_a = numbers[:d_out].softmax(0), numbers[d_out : d_out + d_in]
        row_b = numbers[d_out + d_in : 2 * d_out + d_in].softmax(0)
        col_b = numbers[2 * d_out + d_in : -1]
        gradient = sum(torch.outer(v, u) for u, v in zip(rows[name].u, rows[name].v, strict=True))
        change = row_a[:, None] * col_a * gradient + row_b[:, None] * col_b
    assert torch.allclose(delta[name], change * numbers[-1].sigmoid(), atol=1e-6)


def test_ke_reads_prediction_target_and_prompt(knowing_llama):
    base = knowing_llama
    edits = [EDITS[2], EDITS[0]]
    encoded, _, _ = encode_edits(base, edits)
    for edit, read in zip(edits, conditions(base, edits, encoded, None, 0), strict=True):
        target = base.tokenizer(f" {edit.target}", add_special_tokens=False)["input_ids"]
        said = greedy(base, [edit.prompt], max_new_tokens=len(target))[0]
        assert said.strip()
        # What the base says beside a false target begins as its own answer does.
        first = base.tokenizer(f" {said.strip()}", add_special_tokens=False)["input_ids"][0]
        text = f" >> {edit.target} || {edit.prompt}"
        ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
        embed = base.model.get_input_embeddings()
        assert torch.equal(read[0], embed(torch.tensor(first)))
        assert torch.equal(read[-len(ids) :], embed(torch.tensor(ids)))
        assert len(read) == len(target) + len(ids)


def test_enn_groups_are_independent_batches(knowing_llama):
    base = knowing_llama
    networks = EnnEditor.create(base, EnnConfig(learning_rate=0.1, steps=2)).networks
    encoded, _, _ = encode_edits(base, EDITS)
    whole = networks(base, encoded, None, 2)
    for number in range(2):
        mine, _, _ = encode_edits(base, EDITS[2 * number : 2 * number + 2])
        alone = networks.dense(networks(base, mine, None))
        for name, change in alone.items():
            here, other = (whole[name][1][n].T @ whole[name][0][n] for n in (number, 1 - number))
            assert torch.allclose(here, change, atol=1e-5)
            assert not torch.allclose(other, change, atol=1e-3)


def test_ke_of_a_batch_is_the_sum_of_its_edits(tiny):
    base = tiny("gpt2")
    editor = KeEditor.create(base, KeConfig(lstm=8, condition=8, hidden=8))
    together = editor.delta(base, EDITS[:2])
    one, two = editor.delta(base, EDITS[:1]), editor.delta(base, EDITS[1:2])
    for name in editor.matrices:
        assert torch.allclose(together[name], one[name] + two[name], atol=1e-5)
