"""All benchmarks, one after another, each in a fresh process: ``python -m benchmarks``.

Prints one table of targets, writes ``benchmarks/results/benchmarks.json``, and exits with a status
other than 0 if a target was missed or a benchmark failed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import common

BENCHMARKS = ("import_time", "conversion", "overhead", "memory", "self_check")


def _run(name: str, quick: bool, path: Path) -> bool:
    """Runs one benchmark, which writes its figures to ``path``; whether it got to the end."""
    path.unlink(missing_ok=True)
    print(f"== {name}", flush=True)
    arguments = ["-m", f"benchmarks.{name}", "--json", str(path), *(["--quick"] * quick)]
    try:
        common.child(arguments, cwd=common.ROOT)
    except subprocess.CalledProcessError as error:
        # A missed target is an exit status, too, but then the figures were written before.
        if not path.is_file():
            print(f"{name} failed with exit status {error.returncode}", file=sys.stderr)
            return False
    print(flush=True)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmarks; returns the exit status."""
    parser = common.parser(__doc__)
    parser.set_defaults(json=common.RESULTS / "benchmarks.json")
    parser.add_argument(
        "--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), help="run these"
    )
    options = parser.parse_args(arguments)

    outcomes, written, failed = [], {}, []
    for name in options.only:
        path = options.json.parent / f"{name}.json"
        if not _run(name, options.quick, path):
            failed.append(name)
            continue
        written[name] = json.loads(path.read_text(encoding="utf-8"))
        targets = [common.Target(**target) for target in written[name]["targets"]]
        outcomes.append(common.Outcome(written[name]["name"], targets))

    if outcomes:
        print(common.targets_table(outcomes))
    if options.quick:
        print("A smoke test: too few repetitions for the targets to count.")
    if failed:
        print(f"Failed: {', '.join(failed)}.")
    met = all(outcome.met for outcome in outcomes)
    common.write_json(
        options.json,
        {"quick": options.quick, "met": met, "failed": failed, "benchmarks": written},
    )
    print(f"Written to {options.json}")
    return 1 if failed or not (met or options.quick) else 0


if __name__ == "__main__":
    sys.exit(main())
