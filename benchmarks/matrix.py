"""Kinds of models times passes: ``python -m benchmarks.matrix`` runs every cell, for both Keras.

Each cell trains, converts and reads back a small model, or is refused before it trains. Writes the
page of the documentation, ``docs/matrix.md``; the same cells are the tests of ``tests/test_matrix.py``.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import traceback
from collections.abc import Sequence

from benchmarks import common

sys.path.insert(0, str(common.ROOT / "tests"))

from matrix import KINDS, LIBRARIES, PASSES, cell, expected

PAGE = common.ROOT / "docs" / "matrix.md"

_INTRODUCTION = """# Which models, which passes

Every kind of model below, built with tf_keras and with Keras 3, went through every pass: trained on
digits, converted where the pass converts, read back, and its outputs compared with those of the Keras
model. **yes**: it works end to end. A number: it is refused before anything trains, for the reason
below. There is no third outcome.

This page is made by `python -m benchmarks.matrix`; `nox -s full` runs the same cells as tests.

```{rst-class} matrix
```

"""


def _reason(kind: str, item: str) -> tuple[str | None, list[str]]:
    """Why a cell refuses, with both libraries, and what is not as the tests expect."""
    found: list[str | None] = []
    wrong = []
    for library in LIBRARIES:
        try:
            found.append(cell(kind, item, library))
        except Exception as error:
            traceback.print_exc()
            wrong.append(f"{kind}, {item}, {library}: {type(error).__name__}: {error}")
            continue
        wanted = expected(kind, item)
        right = (
            found[-1] is None
            if wanted is None
            else found[-1] is not None and re.search(wanted, found[-1])
        )
        if not right:
            wrong.append(f"{kind}, {item}, {library}: {found[-1] or 'works'}")
    return next((reason for reason in found if reason), None), wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cells; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--passes", nargs="+", choices=list(PASSES), default=list(PASSES))
    options = parser.parse_args(arguments)
    reasons: dict[str, str] = {}  # by what tests expect of them: model names and shapes differ
    lines, wrong = [], []
    for kind in options.kinds:
        cells = []
        for item in options.passes:
            began = time.perf_counter()
            reason, faults = _reason(kind, item)
            wrong += faults
            if reason is None:
                cells.append("yes")
            else:
                key = expected(kind, item) or reason
                reasons.setdefault(key, reason.removeprefix(f"Step 1, {item}: "))
                cells.append(str(list(reasons).index(key) + 1))
            said = f"{kind}, {item}: {'works' if reason is None else reason}"
            print(f"{said} ({time.perf_counter() - began:.1f} s)", flush=True)
        lines.append(f"| **{kind}**: {KINDS[kind].about} | {' | '.join(cells)} |")
    for fault in wrong:
        print(f"NOT AS EXPECTED: {fault}", file=sys.stderr)
    if wrong or set(options.kinds) != set(KINDS) or set(options.passes) != set(PASSES):
        return bool(wrong)
    header = [
        f"| kind | {' | '.join(PASSES)} |",
        f"|---|{'---|' * len(PASSES)}",
    ]
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons.values(), 1)]
    text = "\n".join([*header, *lines, "", "Why not, each as first met:", "", *notes, ""])
    PAGE.write_text(_INTRODUCTION + text, "utf-8")
    print(f"wrote {PAGE.relative_to(common.ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
