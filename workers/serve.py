"""A small OpenAI-style server over any version by name: ``python -m workers.serve``.

For trying things out and for a playground; vLLM stays the answer for production. A model is named
``NAME`` (its production version) or ``NAME@WHICH`` with an alias, a number or a digest prefix.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
from collections.abc import Sequence

import uvicorn

from ledger.errors import LedgerError
from workers.openai import make_api
from workers.serving import Serving
from workers.settings import SettingsInvalid, from_environment

DEFAULT_PORT = 8787


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m workers.serve", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    parser.add_argument("--database-url")
    parser.add_argument("--home")
    parser.add_argument("--device")
    arguments = parser.parse_args(argv)
    for variable, value in (
        ("DATABASE_URL", arguments.database_url),
        ("MEND_HOME", arguments.home),
        ("MEND_DEVICE", arguments.device),
    ):
        if value:
            os.environ[variable] = value
    logging.basicConfig(level="INFO", stream=sys.stderr)
    try:
        serving = Serving(from_environment())
        serving.names()
    except (SettingsInvalid, LedgerError) as error:
        sys.stderr.write(f"mend serve: {error}\n")
        return 2
    threading.Thread(target=serving.follow, name="mend-follow", daemon=True).start()
    try:
        uvicorn.run(make_api(serving), host=arguments.host, port=arguments.port, log_level="info")
    finally:
        serving.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
