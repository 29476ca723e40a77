"""Durable, all-or-nothing writes (DESIGN 5).

temporary name → fsync → rename → fsync of the parent. A reader sees the old thing or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save, save_file
from torch import Tensor

from mend_core.errors import StoreError, StoreFull

_FULL = (errno.ENOSPC, errno.EDQUOT)


def full_disk(error: BaseException) -> bool:
    """Whether an exception, or one it came from, means that the device is full."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return True
        if "No space left on device" in str(seen):  # safetensors' own exception has no errno
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def check_writable(file: Path) -> None:
    """Refuse, before long work, a place where its file could not be written; makes its folder.

    Raises:
        StoreError: A folder, or not writable.
    """
    if file.is_dir():
        raise StoreError(f"{file} is a folder; name a file in it")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise StoreError(
            f"{file.parent} cannot be written to ({error.strerror}); choose a folder that can"
        ) from error


def store_error(path: Path, error: OSError) -> StoreError:
    """The store error that says what an `OSError` while writing means."""
    if full_disk(error):
        return StoreFull(f"no room left on the device while writing {path}; free some and retry")
    return StoreError(f"cannot write {path}: {error.strerror or error}")


def fsync_folder(folder: Path) -> None:
    """Makes a folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def settle_tree(folder: Path) -> None:
    """Makes everything under a folder durable, with the modes the umask allows.

    safetensors writes files only their owner can read; whoever may read the folder may read them.
    """
    mode = 0o666 & ~_umask()
    for where, _, names in os.walk(folder):
        Path(where).chmod(0o777 & ~_umask())
        for name in names:
            path = Path(where) / name
            path.chmod(mode)
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        fsync_folder(Path(where))


def temporary(path: Path) -> Path:
    """A name beside `path` that no reader takes for a finished thing."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def write_durable(path: Path, data: bytes) -> None:
    """Writes and fsyncs a file in place (for names nobody reads yet). Mode follows the umask."""
    with path.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def write_atomic(path: Path, data: bytes, *, sync_parent: bool = True) -> None:
    """Writes a file all or nothing; durable when this returns.

    Args:
        path: Its name; the parent folder is made.
        data: Its content.
        sync_parent: False when the caller syncs the parent after several writes.

    Raises:
        StoreFull: No room left; nothing remains.
        StoreError: The folder cannot be written.
    """
    scratch = temporary(path)
    try:
        make_folder(path.parent)
        write_durable(scratch, data)
        scratch.replace(path)
        if sync_parent:
            fsync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise store_error(path, error) from error


def make_folder(folder: Path) -> None:
    """Makes a folder with its parents, each durable."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    fsync_folder(folder.parent)


def replace_folder(work: Path, folder: Path) -> None:
    """Renames a finished, synced folder to its name; a folder already there is what it would be."""
    try:
        work.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not folder.is_dir():
            raise
        shutil.rmtree(work, ignore_errors=True)
    fsync_folder(folder.parent)


def write_folder_atomic(folder: Path, fill: Callable[[Path], None]) -> None:
    """Makes a folder all or nothing: `fill` writes into a temporary one, then it is renamed.

    Raises:
        StoreFull: No room left; nothing remains.
        StoreError: The parent cannot be written.
    """
    work = temporary(folder)
    try:
        make_folder(folder.parent)
        work.mkdir()
        fill(work)
        settle_tree(work)
        replace_folder(work, folder)
    except OSError as error:
        raise store_error(folder, error) from error
    except Exception as error:
        if full_disk(error):
            raise StoreFull(
                f"no room left on the device while writing {folder}; free some and retry"
            ) from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # The format wants at least one tensor.
    return plain or {"empty": torch.zeros(0, dtype=torch.int8)}


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: str) -> bytes:
    """A safetensors file's bytes with one metadata key, ``mend``.

    One key only: with more, the format's bytes are not deterministic.
    """
    data: bytes = save(_plain(tensors), metadata={"mend": metadata})
    return data


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: str) -> None:
    """The same, straight into a file nobody reads yet (the caller syncs it)."""
    save_file(_plain(tensors), path, metadata={"mend": metadata})
