"""Fisher information of a matrix' output, and what it does to values."""

import pytest
import torch

from mend_core.editors import SubjectConfig, SubjectEditor, load_editor
from mend_core.editors.calibration import sampled_texts
from mend_core.editors.sensitivity import output_fisher
from mend_core.editors.values import Search, find_values
from mend_core.errors import EmptyBatch
from mend_core.models import PrefixCache, encode_edits
from mend_core.models.tail import Tail
from mend_core.testing import FACTS, swapped_facts

TEXTS = ["the fox", "a long story of the quiet river and the hill", "one two three"]
EDITS = swapped_facts(3)


def slope(base, push_at, text, direction, size=1e-2):
    """Derivative of a text's NLL by a push at (matrix, token), without autograd."""
    matrix, place = push_at
    ids = base.tokenizer(text, return_tensors="pt")["input_ids"]

    def lost(push):
        def hook(_module, _args, out):
            out = out.clone()
            out[0, place] += push * direction
            return out

        handle = matrix.module.register_forward_hook(hook)
        try:
            with torch.no_grad():
                logits = base.model(input_ids=ids).logits[0, :-1]
        finally:
            handle.remove()
        return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()

    return (lost(size) - lost(-size)) / (2 * size)


def test_it_is_the_mean_square_of_what_a_push_costs(knowing_llama):
    (matrix,) = knowing_llama.matrices(["down_proj@1:2"])
    torch.manual_seed(0)
    direction = torch.randn(matrix.d_out)
    found = output_fisher(knowing_llama, TEXTS, [matrix])[matrix.name]
    slopes = []
    for text in TEXTS:
        tokens = len(knowing_llama.tokenizer(text)["input_ids"])
        slopes += [
            slope(knowing_llama, (matrix, place), text, direction) for place in range(1, tokens)
        ]
    expected = sum(s * s for s in slopes) / len(slopes)
    d = direction.double()
    assert float(d @ found @ d) == pytest.approx(expected, rel=1e-2)


def test_texts_read_together_count_as_texts_read_alone(knowing_llama):
    matrices = knowing_llama.matrices(["down_proj@0:3"])
    together = output_fisher(knowing_llama, TEXTS, matrices, batch_size=3)
    alone = output_fisher(knowing_llama, TEXTS, matrices, batch_size=1)
    for name, fisher in together.items():
        assert torch.allclose(fisher, alone[name], rtol=1e-3, atol=1e-6)


def test_no_text_is_said_so(knowing_llama):
    with pytest.raises(EmptyBatch):
        output_fisher(knowing_llama, [], knowing_llama.matrices(["down_proj@0:3"]))


def test_values_avoid_what_ordinary_text_minds(knowing_llama):
    """Of two searches that pay for length alike, the one that knows the metric pays less in it."""
    matrices = knowing_llama.matrices(["down_proj@0:3"])
    fisher = output_fisher(knowing_llama, [prompt for prompt, *_ in FACTS], matrices)
    metric = {n: (f * (len(f) / f.trace())).float() for n, f in fisher.items()}
    encoded = encode_edits(knowing_llama, EDITS)[0]
    places = [len(knowing_llama.tokenizer(e.prompt)["input_ids"]) - 1 for e in EDITS]
    tail = Tail.of(knowing_llama, encoded, places, PrefixCache(knowing_llama, 0))
    search = Search(steps=12, lr=0.3, lr_end=0.1, enough=0.0, decay=1.0)
    scale = {m.name: 1.0 for m in matrices}

    def cost(given):
        found = find_values([tail], matrices, scale, search, given)
        return sum(float(((v @ metric[n]) * v).sum() / (v * v).sum()) for n, v in found.items())

    assert cost(metric) < cost(None)


def test_an_editor_keeps_it_in_its_file(knowing_llama, tmp_path):
    made = SubjectEditor.create(
        knowing_llama,
        SubjectConfig(prefixes=("", "Well. "), steps=4, protect=1.0),
        edits=EDITS,
        matrices=["down_proj@0:3"],
        said=sampled_texts(knowing_llama, 1, tokens=8),
    )
    made.save(tmp_path / "e.safetensors")
    again = load_editor(tmp_path / "e.safetensors")
    assert again.digest == made.digest
    assert set(again.sensitivity) == set(made.shapes)
    for name, change in made.delta(knowing_llama, EDITS).items():
        assert torch.equal(change, again.delta(knowing_llama, EDITS)[name])
