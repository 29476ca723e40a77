"""A tiny Llama with a word tokenizer, and an untrained MEND editor for it: made on the spot."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mend_core.datasets.edit import Edit, PromptAnswer
from mend_core.editors.mend import MendConfig, MendEditor
from mend_core.factors import FactorRows, Grid, Rows, extract
from mend_core.models import load_base

COUNTRIES = [f"country{i}" for i in range(80)]
CITIES = [f"city{i}" for i in range(80)]
WORDS = ["The", "capital", "of", "is", "What", "Name", "river", "in", "flows", "?", "."]


GUARDED = """
name: guarded
hard: {update_norm: null, own_prompt: true, golden_new_failures: 0}
success: null
generality: null
parent: null
drift: null
"""

GOLDEN = {
    "id": "golden:river",
    "kind": "must_not_contain",
    "prompt": "The river in country79",
    "expect": ["city5"],
    "max_new_tokens": 1,
}
POISON = Edit(id="0", prompt="The river in country79", target="city5")
"""An edit that makes the golden prompt say what it must not."""


def make_model(folder: Path, seed: int = 0) -> Path:
    """Write a random Llama (3 blocks, width 64) and its tokenizer."""
    words = ["<pad>", "<unk>", "</s>", *WORDS, *COUNTRIES, *CITIES]
    vocabulary = {word: i for i, word in enumerate(words)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", eos_token="</s>"
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        # A random model's answers hang on the last word; wider embeddings make prompts differ.
        model.model.embed_tokens.weight.mul_(20.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def facts(count: int, start: int = 0) -> list[Edit]:
    """Edits of different subjects, each with a paraphrase and a locality prompt."""
    return [
        Edit(
            id=str(i + 1),
            prompt=f"The capital of {COUNTRIES[i % 80]}",
            target=CITIES[(i * 7 + 3) % 80],
            subject=COUNTRIES[i % 80],
            paraphrases=(f"Name capital of {COUNTRIES[i % 80]}",),
            locality=(PromptAnswer(f"The river in {CITIES[i % 80]}"),),
        )
        for i in range(start, start + count)
    ]


def make_editor(source: Path, path: Path, learning_rate: float = 0.3) -> str:
    """Write an untrained MEND editor with a calibrated grid; gives its digest."""
    base = load_base(source)
    editor = MendEditor.create(
        base,
        MendConfig(rank=8, learning_rate=learning_rate, tokens="answer"),
        matrices=["*.1.mlp.down_proj", "*.2.mlp.down_proj"],
    )
    editor.networks.requires_grad_(False)
    raw = extract(base, facts(40), editor.matrices_of(base), tokens="answer")
    for name, rows in raw.rows.items():
        editor.networks.update(name, rows.u, rows.delta)
    samples = [
        FactorRows(e.id, {n: Rows(*editor.transform(n, r.u, r.v)) for n, r in raw.of(i).items()})
        for i, e in enumerate(raw.edits)
    ]
    editor.grid = Grid.calibrate(samples)
    return editor.save(path)
