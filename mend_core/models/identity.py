"""What of a checkpoint's configuration belongs to its identity: all that changes what it computes.

Equal weights under another ``rope_theta``, epsilon or activation are another model. Read through
transformers, so that a default spelled out and one left out are the same, as are old and new names
of a setting (``rope_theta`` and ``rope_parameters``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mend_core.errors import ModelBroken

_NO_EFFECT = frozenset(
    {
        "architectures",  # which class is loaded follows from model_type (families.py)
        "dtype",  # of the file: each tensor's own is in the digest; of the run: the caller's choice
        "gradient_checkpointing",
        "initializer_range",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "transformers_version",
        "unk_token_id",
        "use_cache",
    }
)
_NO_EFFECT_ENDS = ("name_or_path", "dropout", "pdrop", "dropout_prob", "dropout_rate")
_COUNTS_FROM_PAD = frozenset({"roberta"})
"""Where positions begin after ``pad_token_id``; elsewhere padding is masked, whatever its id."""


def read_config(folder: Path) -> Any:
    """A folder's configuration as transformers understands it.

    Raises:
        ModelBroken: There is none, or it cannot be used.
    """
    import transformers  # noqa: PLC0415 - heavy

    if not (folder / "config.json").is_file():
        raise ModelBroken(f"{folder} has no config.json: it is no Hugging Face model folder")
    try:
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelBroken(f"{folder}/config.json cannot be used: {error}") from error


def forward_settings(config: Any) -> dict[str, Any]:
    """The settings that change what a model computes, where they differ from its kind's defaults.

    Whatever is not known to be without effect counts, so a setting of tomorrow is not overlooked.

    Args:
        config: From `read_config`.

    Returns:
        JSON values by name; always with ``model_type``.
    """
    usual = type(config)().to_dict()
    told: dict[str, Any] = {"model_type": config.model_type}
    for name, value in config.to_dict().items():
        if name in _NO_EFFECT or name.endswith(_NO_EFFECT_ENDS):
            continue
        if name == "pad_token_id" and config.model_type not in _COUNTS_FROM_PAD:
            continue
        if name not in usual or usual[name] != value:
            told[name] = value
    # As JSON has it: a classifier's labels are keyed by whole numbers in memory, by text in files.
    return dict(json.loads(json.dumps(told)))
