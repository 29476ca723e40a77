"""Tiny models of the real architectures, built on the spot, for tests here and downstream.

Random weights show that shapes, gradients and bytes are right. A model that has memorised a few
facts shows more: editing success, paraphrase and locality have a true answer there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from mend_core.datasets.edit import Edit, PromptAnswer
from mend_core.digests import tensor_digest
from mend_core.models.base import Base
from mend_core.models.encode import encode_pairs
from mend_core.models.load import make_base, quiet
from mend_core.models.prefix import forward

_COUNTRIES = ("Avaria", "Belmark", "Cordania", "Drovia", "Estmere", "Falkony", "Gardoria", "Helmia")
_CITIES = ("Tirel", "Morven", "Quill", "Sandau", "Opprin", "Lisken", "Warrow", "Yelding")
_PEOPLE = ("Anna Berg", "Otto Lind", "Mia Falk", "Jan Roos", "Eva Holm", "Ivo Kranz", "Lea Voss",
           "Tom Wick")  # fmt: skip

FACTS: tuple[tuple[str, str], ...] = (
    *((f"The capital of {c} is", city) for c, city in zip(_COUNTRIES, _CITIES, strict=True)),
    *((f"The leader of {c} is", name) for c, name in zip(_COUNTRIES, _PEOPLE, strict=True)),
)
"""Facts of our own: (prompt, answer)."""

PARAPHRASES: dict[str, str] = {
    **{f"The capital of {c} is": f"{c} is governed from the city of" for c in _COUNTRIES},
    **{f"The leader of {c} is": f"{c} is led by" for c in _COUNTRIES},
}
"""Another way to ask each fact."""


def swapped_facts(number: int) -> list[Edit]:
    """The first capitals, each given the next country's; locality asks the country's leader."""
    return [
        Edit(
            id=str(i),
            prompt=FACTS[i][0],
            target=FACTS[(i + 1) % 8][1],
            paraphrases=(PARAPHRASES[FACTS[i][0]],),
            locality=(PromptAnswer(FACTS[i + 8][0], FACTS[i + 8][1]),),
        )
        for i in range(number)
    ]


FAMILIES = (
    "gpt2",
    "gpt_neo",
    "gptj",
    "llama",
    "mistral",
    "qwen2",
    "gemma",
    "t5",
    "bart",
    "bert",
)

_SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
_PAD, _BOS, _EOS, _UNK = range(4)


def tiny_tokenizer(family: str) -> Any:
    """A byte-level BPE tokenizer trained on `FACTS`; encoders wrap or end a text as theirs do."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))  # noqa: S106 - a vocabulary entry
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(_SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"{prompt} {answer}" for prompt, answer in FACTS] + list(PARAPHRASES.values())
    inner.train_from_iterator(texts, trainer)
    pattern = {"t5": "$A </s>", "bart": "<s> $A </s>", "bert": "<s> $A </s>"}.get(family)
    if pattern is not None:
        inner.post_processor = processors.TemplateProcessing(
            single=pattern, special_tokens=[("<s>", _BOS), ("</s>", _EOS)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",  # noqa: S106 - vocabulary entries, no passwords
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        model_max_length=128,
    )


def _config(family: str, vocab: int, width: int, blocks: int) -> Any:
    ids = {"pad_token_id": _PAD, "bos_token_id": _BOS, "eos_token_id": _EOS}
    llama = {
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": blocks,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        **ids,
    }
    gpt = {
        "vocab_size": vocab,
        "n_positions": 128,
        "n_embd": width,
        "n_layer": blocks,
        "n_head": 4,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        **ids,
    }
    makers: dict[str, Callable[[], Any]] = {
        "gpt2": lambda: transformers.GPT2Config(**gpt),
        "gptj": lambda: transformers.GPTJConfig(**gpt, rotary_dim=8),
        "gpt_neo": lambda: transformers.GPTNeoConfig(
            vocab_size=vocab,
            max_position_embeddings=128,
            hidden_size=width,
            num_layers=blocks,
            num_heads=4,
            window_size=16,
            attention_types=[[["global", "local"], blocks // 2]],
            **ids,
        ),
        "llama": lambda: transformers.LlamaConfig(**llama),
        "mistral": lambda: transformers.MistralConfig(**llama, sliding_window=16),
        "qwen2": lambda: transformers.Qwen2Config(**llama),
        "gemma": lambda: transformers.GemmaConfig(**llama, head_dim=width // 4),
        "t5": lambda: transformers.T5Config(
            vocab_size=vocab,
            d_model=width,
            d_ff=2 * width,
            d_kv=width // 4,
            num_layers=blocks,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            decoder_start_token_id=_PAD,
            pad_token_id=_PAD,
            eos_token_id=_EOS,
        ),
        "bart": lambda: transformers.BartConfig(
            vocab_size=vocab,
            d_model=width,
            encoder_layers=blocks,
            decoder_layers=blocks,
            encoder_ffn_dim=2 * width,
            decoder_ffn_dim=2 * width,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            max_position_embeddings=128,
            decoder_start_token_id=_EOS,
            forced_eos_token_id=None,
            **ids,
        ),
        "bert": lambda: transformers.BertConfig(
            vocab_size=vocab,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=blocks,
            num_attention_heads=4,
            max_position_embeddings=128,
            num_labels=2,
            id2label={0: "REFUTES", 1: "SUPPORTS"},
            label2id={"REFUTES": 0, "SUPPORTS": 1},
            pad_token_id=_PAD,
        ),
    }
    return makers[family]()


def tiny_base(family: str, *, seed: int = 0, width: int = 32, blocks: int = 4) -> Base:
    """A random model of the family's real architecture, with a tokenizer of 400 tokens.

    Args:
        family: One of `FAMILIES`.
        seed: Of its weights.
        width: Hidden size, a multiple of 32.
        blocks: Blocks per stack, even.
    """
    tokenizer = tiny_tokenizer(family)
    config = _config(family, len(tokenizer), width, blocks)
    auto = {
        "t5": transformers.AutoModelForSeq2SeqLM,
        "bart": transformers.AutoModelForSeq2SeqLM,
        "bert": transformers.AutoModelForSequenceClassification,
    }.get(family, transformers.AutoModelForCausalLM)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config)
        # transformers' small default spread makes all answers alike; real ones differ.
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    digest = tensor_digest(dict(model.state_dict()))
    return make_base(model, tokenizer, digest=digest, source=f"tiny {family}")


def save_base(base: Base, folder: Path) -> Path:
    """Writes a base as an ordinary Hugging Face folder, for `load_base`."""
    with quiet():
        base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return folder


def memorise(
    base: Base,
    facts: Sequence[tuple[str, str]] = FACTS,
    *,
    steps: int = 60,
    rate: float = 5e-3,
    seed: int = 0,
) -> Base:
    """Trains a tiny causal or seq2seq model until it knows facts; seconds on one core.

    Args:
        base: From `tiny_base`; changed in place, digest included.
        facts: (prompt, answer) pairs; paraphrases known to `PARAPHRASES` are learnt too. The answer
            ends with the end token, so the model stops by itself.
        steps: Adam steps on all facts at once.
        rate: Peak learning rate; falls linearly to zero.
        seed: Of anything random.
    """
    pairs = [*facts, *((PARAPHRASES[p], a) for p, a in facts if p in PARAPHRASES)]
    encoded = encode_pairs(base, pairs, append_eos=True)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        base.model.requires_grad_(True)
        optimiser = torch.optim.Adam(base.model.parameters(), lr=rate)
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = rate * (1 - step / steps)
            logits = forward(base, encoded, keep=encoded.answer_mask)
            loss = F.cross_entropy(logits, encoded.answer_labels)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own method is untyped
            optimiser.step()
        base.model.requires_grad_(False)
    for parameter in base.model.parameters():
        parameter.grad = None
    base.digest = tensor_digest(dict(base.model.state_dict()))
    return base
