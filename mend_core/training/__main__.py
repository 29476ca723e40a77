"""``python -m mend_core.training``: what ``mend editor train`` runs."""

from __future__ import annotations

import sys

from mend_core.training.cli import main

if __name__ == "__main__":
    sys.exit(main())
