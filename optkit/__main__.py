"""``python -m optkit``: the quick start."""

from __future__ import annotations

import sys

from optkit.quickstart import main

if __name__ == "__main__":
    sys.exit(main())
