"""`python -m benchmarks NAME …`: runs one benchmark; `mend bench NAME` does the same."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

_HELPERS = {"__init__", "__main__", "timing"}


def names() -> list[str]:
    """Benchmarks there are: the modules and packages of this folder that can be run."""
    here = Path(__file__).parent
    found = {path.stem for path in here.glob("*.py")} | {
        path.parent.name for path in here.glob("*/__init__.py")
    }
    return sorted(found - _HELPERS)


def main(argv: list[str] | None = None) -> int:
    """Hands the rest of the command line to the benchmark named first."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] not in names():
        known = ", ".join(names())
        print(f"usage: python -m benchmarks NAME [options]; NAME is one of: {known}")
        return 0 if words[:1] in (["-h"], ["--help"]) else 2
    code: int = importlib.import_module(f"benchmarks.{words[0]}").main(words[1:])
    return code


if __name__ == "__main__":
    sys.exit(main())
