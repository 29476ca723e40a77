"""`python -m benchmarks NAME …`: runs one benchmark; `mend bench NAME` does the same."""

from __future__ import annotations

import importlib
import signal
import sys

from benchmarks import NAMES
from mend_core.errors import MendError

REFUSED = 2
"""Exit code where what was given cannot be used."""

INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C, as shells give it."""


def main(argv: list[str] | None = None) -> int:
    """Hands the rest of the command line to the benchmark named first."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] not in NAMES:
        known = ", ".join(NAMES)
        print(f"usage: python -m benchmarks NAME [options]; NAME is one of: {known}")
        return 0 if words[:1] in (["-h"], ["--help"]) else 2
    try:
        code: int = importlib.import_module(f"benchmarks.{words[0]}").main(words[1:])
    except MendError as error:
        print(f"error: benchmark {words[0]}: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print(f"\nbenchmark {words[0]}: stopped before its end", file=sys.stderr)
        return INTERRUPTED
    return code


if __name__ == "__main__":
    sys.exit(main())
