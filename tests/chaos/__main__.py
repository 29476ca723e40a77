"""``python -m tests.chaos --faults N --seed S``: ends with one JSON line; 0 where nothing broke."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

from ledger.embedded import EmbeddedPostgres
from tests.chaos.disk import SmallDisk
from tests.chaos.harness import Service
from tests.chaos.proxy import Proxy
from tests.chaos.runner import Chaos
from tests.workers import tiny


def say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", help="only these kinds of fault, comma separated")
    parser.add_argument("--keep", action="store_true", help="leave the folder behind")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp(prefix="mend-chaos-"))
    root.chmod(0o711)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        if not arguments.keep:
            stack.callback(shutil.rmtree, root, ignore_errors=True)
        source = tiny.make_model(root / "model")
        editor = root / "editor.safetensors"
        tiny.make_editor(source, editor, learning_rate=0.2)
        server = stack.enter_context(EmbeddedPostgres(root / "pg" / "pgdata"))
        disk: SmallDisk | None = SmallDisk(root / "home" / "store")
        reason = disk.mount()
        if reason is None:
            stack.callback(disk.unmount)
        else:
            say(f"disk_really_full is left out, no small disk can be mounted: {reason}")
            disk = None
        proxy = Proxy(server.url())
        stack.callback(proxy.close)
        service = Service(url=server.url(), home=root / "home", source=source, editor_path=editor)
        stack.callback(service.stop)
        chaos = Chaos(server, service, arguments.seed, say, proxy=proxy, disk=disk)
        if arguments.kinds:
            chaos.kinds = {k: chaos.kinds[k] for k in arguments.kinds.split(",")}
        try:
            chaos.run(arguments.faults)
        except AssertionError as stuck:
            chaos.tally.findings.append(f"stuck: {stuck}")
        for finding in chaos.tally.findings:
            say(finding)
        summary = chaos.summary(arguments.seed, time.monotonic() - began)
    sys.stdout.write(json.dumps(summary) + "\n")
    return int(bool(summary["lost"] or summary["doubled"] or summary["invariants_failed"]))


if __name__ == "__main__":
    sys.exit(main())
