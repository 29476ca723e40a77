"""What a server loads is what we materialised."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from mend_core.errors import EmptyBatch, StoreError, StoreFull
from mend_core.factors import (
    Composition,
    FactorRows,
    Grid,
    Provenance,
    Rows,
    compose,
    export_merged,
    export_peft,
    materialise,
)
from mend_core.models import encode_prompts, forward, load_base, overlay
from mend_core.models.load import published_source
from mend_core.testing import FACTS, save_base, tiny_base


def _set(base, rows=3, edits=4, patterns=None):
    generator = torch.Generator().manual_seed(1)
    factors = [
        FactorRows(
            f"e{number}",
            {
                m.name: Rows(
                    torch.randn(rows, m.d_in, generator=generator),
                    torch.randn(rows, m.d_out, generator=generator) * 0.1,
                )
                for m in base.matrices(patterns)
            },
        )
        for number in range(edits)
    ]
    grid = Grid.calibrate(factors)
    return grid, [grid.encode(factor) for factor in factors]


def _compositions(base):
    m = base.matrices()[0]
    gram = torch.eye(m.d_in, dtype=torch.float64) * 3
    gram[0, 1] = gram[1, 0] = 0.5
    return [
        Composition("sum"),
        Composition("ridge", {"*": 0.7}, strength=1.5),
        Composition("ridge", {"*": 0.7}, {m.name: gram}),
    ]


# PEFT still asks transformers by an older name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("rows", [1, 30])
def test_peft_adapter_gives_the_same_logits(tmp_path, family, which, rows):
    base = tiny_base(family)
    composition = _compositions(base)[which]
    grid, factors = _set(base, rows=rows)
    report = export_peft(base, grid, composition, factors, tmp_path / "adapter")
    assert report.relative_error < 1e-6
    encoded = encode_prompts(base, [prompt for prompt, _ in FACTS[:4]])
    live = encoded.attention_mask.bool()
    with (
        torch.no_grad(),
        overlay(base, materialise(base, compose(composition, grid, None, factors))),
    ):
        ours = forward(base, encoded)[live]
    served = PeftModel.from_pretrained(tiny_base(family).model, tmp_path / "adapter").eval()
    with torch.no_grad():
        theirs = served(encoded.input_ids, attention_mask=encoded.attention_mask).logits[live]
    scale = ours.abs().max()
    assert (ours - theirs).abs().max() / scale < 1e-4
    with torch.no_grad():
        assert (forward(base, encoded)[live] - ours).abs().max() > 1e-2


def test_truncation_states_its_error(tmp_path):
    base = tiny_base("llama")
    grid, factors = _set(base)
    report = export_peft(base, grid, Composition("sum"), factors, tmp_path / "a", max_rank=5)
    assert (report.rank, report.exact_rank) == (5, 12)
    assert 0.1 < report.relative_error < 1
    whole = export_peft(base, grid, Composition("sum"), factors, tmp_path / "b", max_rank=64)
    assert whole.rank == 12
    assert whole.relative_error < 1e-6


def test_no_edits_is_no_adapter(tmp_path):
    base = tiny_base("llama")
    grid, _ = _set(base)
    with pytest.raises(EmptyBatch):
        export_peft(base, grid, Composition("sum"), [], tmp_path / "a")


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bert"])
def test_merged_folder_is_bitwise_our_weights(tmp_path, family):
    base = tiny_base(family)
    grid, factors = _set(base)
    weights = materialise(base, compose(Composition("sum"), grid, None, factors))
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    export_merged(base, weights, tmp_path / "merged")
    loaded = load_base(tmp_path / "merged")
    state = loaded.model.state_dict()
    for name, tensor in before.items():
        if name in weights:
            assert torch.equal(loaded.by_name[name].weight, weights[name])
        else:
            assert torch.equal(state[name], tensor)
        assert torch.equal(base.model.state_dict()[name], tensor)
    if family == "llama":
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        assert torch.equal(plain.lm_head.weight, plain.model.embed_tokens.weight)


def test_a_used_folder_is_refused(tmp_path):
    base = tiny_base("llama")
    grid, factors = _set(base)
    folder = save_base(base, tmp_path / "used")
    with pytest.raises(StoreError, match="not empty"):
        export_merged(base, {}, folder)
    with pytest.raises(StoreError, match="not empty"):
        export_peft(base, grid, Composition("sum"), factors, folder)


def test_a_full_disk_leaves_nothing(tmp_path, small_disk):
    base = tiny_base("llama", width=128)
    with pytest.raises(StoreFull, match="no room"):
        export_merged(base, {}, small_disk / "merged")
    assert not [path for path in small_disk.iterdir() if path.name != "ballast"]


def test_the_shipped_base_is_named_as_it_is_published(tmp_path):
    base = tiny_base("llama")
    base.source = "smollm2"
    assert published_source(base) == "HuggingFaceTB/SmolLM2-135M-Instruct"
    base.source = "owner/name"
    assert published_source(base) == "owner/name"
    base.source = str(tmp_path)
    assert published_source(base) == str(tmp_path)


def test_a_card_keeps_its_table_whatever_the_prompts_hold(tmp_path):
    base = tiny_base("llama")
    odd = {"id": 1, "prompt": "a | b\n# <script>", "target": "c"}
    many = [{"id": n, "prompt": f"p{n}", "target": "t"} for n in range(2, 302)]
    about = Provenance("sha256:v", "mend", "sha256:e", [odd, *many])
    export_merged(base, {}, tmp_path / "merged", about)
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "| 1 | a \\| b # &lt;script> | c |" in card.splitlines()
    assert "and 101 more in `mend.json`" in card
    assert len(json.loads((tmp_path / "merged" / "mend.json").read_text())["edits"]) == 301
