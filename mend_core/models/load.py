"""Loading a base: the shipped SmolLM2, a folder, or a hub id."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mend_core.digests import PREFIX, json_digest, update_with_tensor
from mend_core.errors import (
    ModelBroken,
    ModelError,
    ModelMismatch,
    ModelNotFound,
    ModelUnsupported,
    StoreError,
)
from mend_core.files import full_disk, write_atomic
from mend_core.models.base import Base
from mend_core.models.families import family_of
from mend_core.models.identity import forward_settings, read_config
from mend_core.models.shipped import SMOLLM2, SMOLLM2_HUB_ID, cache_root, smollm2_folder
from mend_core.progress import Progress, part, unheard

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def load_base(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    expected_digest: str | None = None,
    progress: Progress = unheard,
) -> Base:
    """Loads a base model, frozen and in eval mode.

    Args:
        source: ``smollm2`` for the shipped SmolLM2-135M-Instruct, a Hugging Face folder, or a hub
            id.
        device: Where to put it.
        dtype: ``float32``, ``bfloat16`` or ``float16`` (``float64`` for checks).
        expected_digest: Refuse a model whose tensors have another digest.
        progress: Called with a short text and a fraction in [0, 1].

    Raises:
        ModelNotFound: No such folder, hub id or shipped model.
        ModelBroken: Files missing, truncated or unreadable; or not safetensors.
        ModelUnsupported: An architecture with no family.
        ModelMismatch: The digest is not `expected_digest`.
    """
    if dtype not in _DTYPES:
        raise ModelError(f"dtype {dtype!r} is unknown; use one of {', '.join(_DTYPES)}")
    folder = resolve(source, part(progress, 0.0, 0.8))
    progress("checking the digest", 0.8)
    digest = base_digest(folder)
    if expected_digest is not None and digest != expected_digest:
        raise ModelMismatch(
            f"{source} has digest {digest}, but {expected_digest} was expected: these are other "
            "weights. Register them as another model, or rebase the edits onto them."
        )
    progress("loading the weights", 0.9)
    where = _device(device)
    model, tokenizer = _load(folder, _DTYPES[dtype])
    family = family_of(model.config)
    model.to(where)
    progress("ready", 1.0)
    return make_base(
        model, tokenizer, digest=digest, source=str(source), folder=str(folder), family=family
    )


def make_base(
    model: Any,
    tokenizer: Any,
    *,
    digest: str,
    source: str,
    folder: str | None = None,
    family: Any = None,
) -> Base:
    """Wraps a model already in memory: frozen, eval mode, right padding with a pad token.

    Raises:
        ModelUnsupported: An architecture with no family.
    """
    model.eval()
    model.requires_grad_(False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise ModelUnsupported(f"the tokenizer of {source} has no pad, end or unknown token")
    tokenizer.padding_side = "right"
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    weight = next(model.parameters())
    return Base(
        model=model,
        tokenizer=tokenizer,
        family=family or family_of(model.config),
        digest=digest,
        source=source,
        folder=folder,
        device=weight.device,
        dtype=weight.dtype,
    )


def resolve(source: str | Path, progress: Progress = unheard) -> Path:
    """The local folder of a source, unpacked or downloaded where needed.

    Raises:
        ModelNotFound: No such model.
        ModelBroken: The shipped model's file is damaged.
    """
    if str(source) == SMOLLM2:
        return smollm2_folder(progress)
    folder = Path(source).expanduser()
    if str(source) and folder.is_dir():
        return folder
    if folder.exists():
        raise ModelNotFound(f"{source} is a file; give the folder that holds config.json")
    name = str(source)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise ModelNotFound(f"no folder at {name!r}; give a Hugging Face folder or {SMOLLM2!r}")
    return _from_hub(name)


def published_source(base: Base) -> str:
    """Where others find a base: its hub id, or the absolute folder it was loaded from."""
    if base.source == SMOLLM2:
        return SMOLLM2_HUB_ID
    folder = Path(base.source).expanduser()
    return str(folder.absolute()) if base.source and folder.is_dir() else base.source


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - needed for hub ids alone

    for local in (True, False):
        # Whatever the hub's client raises (network, 404, bad name) means the same to the user.
        with contextlib.suppress(Exception):
            return Path(snapshot_download(name, allow_patterns=_HUB_FILES, local_files_only=local))
    raise ModelNotFound(
        f"no folder {name!r} here, and it could not be had from the Hugging Face hub (no such id, "
        f"or no network); give a folder, a hub id, or {SMOLLM2!r}"
    )


def _remedy(folder: Path) -> str:
    """What to do about a damaged folder."""
    if cache_root() in folder.resolve().parents:
        return f"remove {folder} and start again: it is unpacked anew"
    return "download the model again"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint.

    Raises:
        ModelBroken: None, or the index names one that is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelBroken(f"{index} is no weight index; {_remedy(folder)}") from error
        files = [folder / str(name) for name in names]
    else:
        files = [folder / "model.safetensors"]
    for path in files:
        if path.is_file():
            continue
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
            raise ModelBroken(
                f"{folder} holds pickled weights only; we load safetensors alone. Convert it: "
                "AutoModel.from_pretrained(...).save_pretrained(...)"
            )
        raise ModelBroken(f"{path} is missing; {_remedy(folder)}")
    return files


def base_digest(source: str | Path) -> str:
    """Digest over a checkpoint's tensors and the settings it computes with, ``sha256:…``.

    Raises:
        ModelNotFound: No such model.
        ModelBroken: A file cannot be read.
    """
    folder = resolve(source)
    files = weight_files(folder)
    with quiet():
        settings = forward_settings(read_config(folder))
    return json_digest({"settings": settings, "tensors": tensors_digest(folder, files)})


def tensors_digest(folder: Path, files: list[Path]) -> str:
    """Digest over the tensors alone; cached by the files' size and time."""
    stamp = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
    place = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    sidecar = cache_root() / "digests" / f"{place}.json"
    try:
        known = json.loads(sidecar.read_text())
        if known["files"] == stamp and str(known["digest"]).startswith(PREFIX):
            return str(known["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no sidecar, or a damaged one: compute
    digest = _digest_files(files)
    # A read-only or full cache costs time on the next start, nothing else.
    with contextlib.suppress(StoreError):
        write_atomic(sidecar, json.dumps({"files": stamp, "digest": digest}).encode())
    return digest


def _digest_files(files: list[Path]) -> str:
    where: dict[str, Path] = {}
    try:
        for path in files:
            with safe_open(path, framework="pt") as handle:
                where.update(dict.fromkeys(handle.keys(), path))
        hasher = hashlib.sha256()
        with contextlib.ExitStack() as stack:
            handles = {path: stack.enter_context(safe_open(path, framework="pt")) for path in files}
            for name in sorted(where):
                update_with_tensor(hasher, name, handles[where[name]].get_tensor(name))
    except (SafetensorError, OSError, ValueError) as error:
        names = ", ".join(str(path) for path in files)
        raise ModelBroken(f"{names}: not readable ({error}); {_remedy(files[0].parent)}") from error
    return PREFIX + hasher.hexdigest()


def _device(device: str | torch.device) -> torch.device:
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"device {device!r} is unknown; use cpu or cuda") from error
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {device!r} was asked for, but no GPU is there; use cpu")
    return where


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars or load reports of transformers: we have our own words for both."""
    from transformers.utils import logging  # noqa: PLC0415 - heavy

    bars = logging.is_progress_bar_enabled()
    level = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _load(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    import transformers  # noqa: PLC0415 - heavy

    with quiet():
        config = read_config(folder)
    family = family_of(config)
    auto = {
        "causal": transformers.AutoModelForCausalLM,
        "seq2seq": transformers.AutoModelForSeq2SeqLM,
        "classifier": transformers.AutoModelForSequenceClassification,
    }[family.kind]
    weight_files(folder)
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model, info = auto.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:  # transformers raises any type on a damaged folder
        if full_disk(error):
            raise
        raise ModelBroken(f"{folder} cannot be loaded: {error}") from error
    missing = sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"])
    if missing:
        raise ModelBroken(
            f"{folder} lacks {len(missing)} of the model's tensors ({', '.join(missing[:3])}…); "
            "it would run on random numbers. Download it again, or load the right task's model."
        )
    return model, tokenizer
