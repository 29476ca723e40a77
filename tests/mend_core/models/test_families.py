"""Which matrices a name means, in every family."""

import pytest

from mend_core.errors import ModelUnsupported, NoSuchMatrix
from mend_core.models.families import family_of
from mend_core.testing import FAMILIES

EXPECTED = {
    "gpt2": [f"transformer.h.{b}.mlp.{m}.weight" for b in (1, 2, 3) for m in ("c_fc", "c_proj")],
    "gpt_neo": [f"transformer.h.{b}.mlp.{m}.weight" for b in (1, 2, 3) for m in ("c_fc", "c_proj")],
    "gptj": [f"transformer.h.{b}.mlp.{m}.weight" for b in (1, 2, 3) for m in ("fc_in", "fc_out")],
    "t5": [
        f"{stack}.block.{b}.layer.{layer}.DenseReluDense.{m}.weight"
        for stack, layer in (("encoder", 1), ("decoder", 2))
        for b in (2, 3)
        for m in ("wi_0", "wo")
    ],
    "bart": [
        f"model.{stack}.layers.{b}.{m}.weight"
        for stack in ("encoder", "decoder")
        for b in (2, 3)
        for m in ("fc1", "fc2")
    ],
    "bert": [
        f"bert.encoder.layer.{b}.{m}.dense.weight"
        for b in (1, 2, 3)
        for m in ("intermediate", "output")
    ],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_follow_the_papers(tiny, family):
    base = tiny(family)
    names = [matrix.name for matrix in base.matrices()]
    expected = EXPECTED.get(family) or [f"model.layers.{b}.mlp.down_proj.weight" for b in range(4)]
    assert names == expected
    for matrix in base.matrices():
        assert matrix.weight.shape == (matrix.d_out, matrix.d_in)
        assert base.model.get_parameter(matrix.name) is matrix.parameter
        assert base.blocks[matrix.block] in list(base.model.modules())
        assert matrix.transposed == (family == "gpt2")


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["down_proj@-1"], ["3.mlp.down_proj"]),
        (["down_proj@0:2"], ["0.mlp.down_proj", "1.mlp.down_proj"]),
        (["up_proj@-1:", "gate_proj@3"], ["3.mlp.gate_proj", "3.mlp.up_proj"]),
        (["*.2.mlp.*"], ["2.mlp.gate_proj", "2.mlp.up_proj", "2.mlp.down_proj"]),
        (["model.layers.1.self_attn.o_proj.weight"], ["1.self_attn.o_proj"]),
        (["model.layers.1.self_attn.o_proj", "*.1.self_attn.o_proj"], ["1.self_attn.o_proj"]),
    ],
)
def test_patterns(tiny, patterns, expected):
    found = [matrix.name for matrix in tiny("llama").matrices(patterns)]
    assert found == [f"model.layers.{name}.weight" for name in expected]


@pytest.mark.parametrize("pattern", ["nothing", "down_proj@9:", "down_proj@x", "lm_head", "@", ""])
def test_a_pattern_that_names_nothing_is_refused(tiny, pattern):
    with pytest.raises(NoSuchMatrix):
        tiny("llama").matrices(["down_proj@-1", pattern])
    with pytest.raises(NoSuchMatrix):
        tiny("llama").matrices([])


def test_an_unknown_architecture_lists_the_known_ones():
    class Config:
        model_type = "mamba"

    with pytest.raises(ModelUnsupported, match="gpt2"):
        family_of(Config())
