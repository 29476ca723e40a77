"""The base's answers to probe items, kept: they never change, and asking is most of a judgement.

In memory for the process, and in `$XDG_CACHE_HOME/mend/answers/<base>/<setting>/` for the next one.
Each file holds what one probe run added and is named by its content; one that does not match its
name is removed and its items are asked again. Everything that could change an answer is in the
folder's name: tensors, tokenizer, configuration, precision, device, machine and libraries.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import transformers

from mend_core.digests import bytes_digest, json_digest
from mend_core.errors import StoreError
from mend_core.factors import platform_tag
from mend_core.files import write_atomic
from mend_core.models import Base
from mend_core.models.generate import stop_tokens
from mend_core.probes import ProbeResult
from mend_core.probes.results import Question, question
from mend_core.probes.scoring import SCORING

log = logging.getLogger("mend.answers")

LIMIT_BYTES = 64 * 1024 * 1024
"""Most bytes of kept answers, of all bases together; the oldest files go first."""

SUFFIX = ".jsonl"


def setting_of(base: Base) -> str:
    """Hex name of everything beside the tensors that a base's answers depend on."""
    fast = getattr(base.tokenizer, "backend_tokenizer", None)
    if fast is not None:
        words = bytes_digest(fast.to_str().encode())
    else:
        words = json_digest({str(k): int(v) for k, v in base.tokenizer.get_vocab().items()})
    config = base.model.config.to_dict()
    for where in ("_name_or_path", "name_or_path", "transformers_version"):
        config.pop(where, None)
    digest = json_digest(
        {
            "scoring": SCORING,
            "tokenizer": words,
            "specials": {k: str(v) for k, v in base.tokenizer.special_tokens_map.items()},
            "stops": sorted(stop_tokens(base)),
            "config": json.dumps(config, sort_keys=True, default=str),
            "dtype": str(base.dtype),
            "device": str(base.device),
            "platform": platform_tag(),
            "transformers": transformers.__version__,
        }
    )
    return digest.removeprefix("sha256:")


class Answers:
    """What one base answered, to every item it was ever asked.

    Args:
        base: The base, its own weights in place.
        root: Folder of all bases' answers; None keeps them in memory only.
        limit_bytes: Most bytes below `root`.
    """

    def __init__(self, base: Base, root: Path | None, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self._root = root
        self._limit = limit_bytes
        self._found: dict[Question, ProbeResult] = {}
        self._read: set[str] = set()
        if root is not None:
            self._folder = root / base.digest.removeprefix("sha256:") / setting_of(base)[:32]

    def known(self) -> Sequence[ProbeResult]:
        """All answers so far, those that other processes kept meanwhile included."""
        if self._root is not None:
            with suppress(OSError):
                for path in sorted(self._folder.glob(f"*{SUFFIX}")):
                    if path.name not in self._read:
                        self._load(path)
        return tuple(self._found.values())

    def keep(self, results: Iterable[ProbeResult]) -> None:
        """Remember answers; a folder that cannot be written costs a line in the log."""
        new = {question(r): r for r in results if question(r) not in self._found}
        self._found |= new
        if self._root is None or not new:
            return
        lines = [json.dumps(r.to_dict(), sort_keys=True, allow_nan=False) for r in new.values()]
        data = ("\n".join(sorted(lines)) + "\n").encode()
        path = self._folder / (hashlib.sha256(data).hexdigest() + SUFFIX)
        self._read.add(path.name)
        try:
            # Prompts may be private; the folder of the whole cache is open to whom umask allows.
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(path, data)
            self._prune()
        except (StoreError, OSError) as error:
            log.warning("the base's answers are not kept: %s", error)

    def remembered(self, name: str) -> dict[str, str] | None:
        """What `remember` kept under a name; None where nothing readable is kept."""
        if self._root is None:
            return None
        try:
            found = json.loads(self._note(name).read_bytes())
        except (OSError, ValueError):
            return None
        if not isinstance(found, dict) or found.pop("", None) != name:
            return None
        return {str(key): str(value) for key, value in found.items()}

    def remember(self, name: str, found: Mapping[str, str]) -> None:
        """Keep something found out about this base; as `keep`, a full disk costs a line only."""
        if self._root is None:
            return
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(self._note(name), json.dumps({"": name, **found}).encode())
        except (StoreError, OSError) as error:
            log.warning("what was found out about the base is not kept: %s", error)

    def _note(self, name: str) -> Path:
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()}.json"

    def _load(self, path: Path) -> None:
        self._read.add(path.name)
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != path.stem:
                raise ValueError("its content does not match its name")  # noqa: TRY301 - one way out for all that is wrong with a file
            results = [ProbeResult.from_dict(json.loads(line)) for line in data.splitlines()]
        except FileNotFoundError:
            return  # another process made room
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("%s: %s; its items are asked again", path, error)
            with suppress(OSError):
                path.unlink()
            return
        for result in results:
            self._found.setdefault(question(result), result)

    def _prune(self) -> None:
        assert self._root is not None
        files = []
        for path in self._root.glob(f"*/*/*{SUFFIX}"):
            with suppress(OSError):
                found = path.stat()
                files.append((found.st_mtime_ns, found.st_size, path))
        size = sum(one[1] for one in files)
        for _, length, path in sorted(files):
            if size <= self._limit:
                break
            with suppress(OSError):
                path.unlink()
            size -= length
