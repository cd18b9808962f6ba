"""(a) What ``import optkit`` costs: fresh processes, against the interpreter alone, in turns.

Run it with ``python -m benchmarks.import_time``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from benchmarks import common

LIMIT_SECONDS = 0.1
HEAVY = ("tensorflow", "keras", "tf_keras", "numpy", "sklearn", "pandas", "matplotlib")
_IMPORT = "import optkit"
_LIST = "import optkit, sys, json; print(json.dumps(sorted(sys.modules)))"


def _seconds(code: str) -> float:
    return common.seconds_of(lambda: common.child(["-c", code]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = common.parser(__doc__)
    parser.add_argument("--pairs", type=int, default=20, help="pairs of processes")
    options = parser.parse_args(arguments)
    pairs = 3 if options.quick else options.pairs

    # The warm-up also writes the bytecode, as the first import after an installation does.
    turns = common.in_turns(lambda: _seconds(_IMPORT), lambda: _seconds("pass"), pairs, warm_up=2)
    cost, interval = (
        common.median(turns.differences),
        common.interval_of_median(turns.differences),
    )
    listed = json.loads(common.child(["-c", _LIST], stdout=subprocess.PIPE).stdout)
    loaded = [name for name in HEAVY if name in listed]

    outcome = common.Outcome("import time")
    outcome.figures = {
        "import_seconds": list(turns.first),
        "bare_seconds": list(turns.second),
        "cost_seconds": cost,
        "cost_seconds_ci": list(interval),
        "modules_loaded": len(listed),
        "heavy_modules_loaded": loaded,
    }
    outcome.hold(
        f"`import optkit` under {LIMIT_SECONDS} s",
        f"{common.shown(cost, interval)} s over a bare interpreter ({pairs} pairs)",
        interval[1] < LIMIT_SECONDS,
    )
    outcome.hold(
        f"imports none of {', '.join(HEAVY)}",
        f"imports {', '.join(loaded) if loaded else 'none of them'}",
        not loaded,
    )
    return common.finish(outcome, options)


if __name__ == "__main__":
    sys.exit(main())
