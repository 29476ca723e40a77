"""One safetensors file per editor: tensors, and one JSON string of metadata.

Identity is a digest over meaning (header and tensors), not over the file's bytes: the safetensors
writer does not promise those (blueprint §5).
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mend_core.digests import tensor_digest
from mend_core.errors import EditorCorrupt, EditorNotFound, StoreFull

FORMAT = 1
_KEY = "mend_editor"


@dataclass(frozen=True, slots=True)
class Header:
    """The JSON half of an editor file.

    Attributes:
        kind: Name of the method.
        base_digest: Base the editor was made for.
        shapes: Edited matrix → (d_out, d_in), in order.
        digest: Digest of everything else here and of the tensors.
        config: What the editor's class needs to rebuild itself.
    """

    kind: str
    base_digest: str
    shapes: dict[str, tuple[int, int]]
    digest: str
    config: dict[str, Any]

    @classmethod
    def of(
        cls,
        kind: str,
        base_digest: str,
        shapes: Mapping[str, tuple[int, int]],
        config: dict[str, Any],
        tensors: Mapping[str, Tensor],
    ) -> Header:
        """A header whose digest matches `tensors`."""
        plain = {
            "format": FORMAT,
            "kind": kind,
            "base_digest": base_digest,
            "shapes": [[name, d_out, d_in] for name, (d_out, d_in) in shapes.items()],
            "config": config,
        }
        digest = tensor_digest(tensors, plain)
        return cls(kind, base_digest, dict(shapes), digest, config)

    def to_json(self) -> str:
        """The metadata string."""
        return json.dumps(
            {
                "format": FORMAT,
                "kind": self.kind,
                "base_digest": self.base_digest,
                "shapes": [[name, *shape] for name, shape in self.shapes.items()],
                "config": self.config,
                "digest": self.digest,
            },
            sort_keys=True,
        )


def write_editor(path: Path, header: Header, tensors: Mapping[str, Tensor]) -> None:
    """Write atomically: temporary file, fsync, rename, fsync of the folder.

    Raises:
        StoreFull: No room left; the temporary file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = save(dict(tensors), metadata={_KEY: header.to_json()})
    write_atomically(path, data)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, whole or not at all.

    Raises:
        StoreFull: No room left on the device.
    """
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(f"no room left to write {path}; free space and run again") from error
        raise


def read_editor(path: Path) -> tuple[Header, dict[str, Tensor]]:
    """Header and tensors, digest checked.

    Raises:
        EditorNotFound: No such file.
        EditorCorrupt: Truncated, not an editor, of a newer format, or altered.
    """
    if not path.is_file():
        raise EditorNotFound(f"no editor file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise EditorCorrupt(f"{path} cannot be read as an editor file: {error}") from error
    if text is None:
        raise EditorCorrupt(f"{path} is a safetensors file, but not one of an editor")
    try:
        raw = json.loads(text)
        if raw["format"] != FORMAT:
            raise EditorCorrupt(
                f"{path} has format {raw['format']}, this release reads format {FORMAT}"
            )
        shapes = {str(name): (int(o), int(i)) for name, o, i in raw["shapes"]}
        header = Header.of(raw["kind"], raw["base_digest"], shapes, raw["config"], tensors)
        stored = raw["digest"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EditorCorrupt(f"{path} has a broken header: {error!r}") from error
    if stored != header.digest:
        raise EditorCorrupt(
            f"{path} is not what its digest says ({stored} recorded, {header.digest} found); "
            "copy or train it again"
        )
    return header, tensors
