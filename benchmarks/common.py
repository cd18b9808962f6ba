"""What the benchmarks share: timing in turns, intervals, targets, tables, results.

A benchmark is a module that can be run by itself (``python -m benchmarks.import_time``). It measures
figures, holds them to targets, prints both, and writes them as JSON where ``--json`` says.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"

Interval = tuple[float, float]

# Taken now, so that it tells of what else the machine was doing, and not of the benchmark.
_LOAD_BEFORE = list(os.getloadavg()) if hasattr(os, "getloadavg") else None


@dataclass(frozen=True)
class Target:
    """A figure that was promised, and what was measured.

    Attributes:
        text: What was promised.
        measured: What was measured, in words.
        met: Whether it was kept.
    """

    text: str
    measured: str
    met: bool


@dataclass
class Outcome:
    """What one benchmark found.

    Attributes:
        name: Name of the benchmark.
        targets: What it holds optkit to.
        figures: Everything measured, fit for JSON.
    """

    name: str
    targets: list[Target] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def hold(self, text: str, measured: str, met: bool) -> None:
        """Adds a target and whether it was met."""
        self.targets.append(Target(text, measured, bool(met)))

    @property
    def met(self) -> bool:
        """Whether every target was met."""
        return all(target.met for target in self.targets)


@dataclass(frozen=True)
class Turns:
    """Seconds of two things that were run in turns, pair by pair."""

    first: tuple[float, ...]
    second: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """First to second, of each pair."""
        return [a / b for a, b in zip(self.first, self.second, strict=True)]

    @property
    def differences(self) -> list[float]:
        """First minus second, of each pair."""
        return [a - b for a, b in zip(self.first, self.second, strict=True)]

    @property
    def ratio(self) -> float:
        """Median of the ratios."""
        return median(self.ratios)

    @property
    def ratio_ci(self) -> Interval:
        """Bootstrap interval (95 %) of the median ratio."""
        return interval_of_median(self.ratios)

    def to_dict(self) -> dict[str, Any]:
        """Every repetition, and what they come to."""
        return {
            "first_seconds": list(self.first),
            "second_seconds": list(self.second),
            "ratios": self.ratios,
            "ratio": self.ratio,
            "ratio_ci": list(self.ratio_ci),
        }


def median(values: Sequence[float]) -> float:
    """The median."""
    import numpy as np

    return float(np.median(values))


def interval_of_median(values: Sequence[float]) -> Interval:
    """Bootstrap interval (95 %) of a median, as optkit's own reports have it."""
    import numpy as np

    from optkit.measuring.statistics import bootstrap_median

    return bootstrap_median(np.asarray(values, dtype=float))


def seconds_of(function: Callable[[], Any]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def in_turns(
    first: Callable[[], float],
    second: Callable[[], float],
    pairs: int,
    *,
    warm_up: int = 1,
    label: str = "",
) -> Turns:
    """Runs two things in turns: A B, B A, A B, … so that drift of the machine cancels.

    Args:
        first: Runs the one thing and returns the seconds that count.
        second: Runs the other thing and returns the seconds that count.
        pairs: Number of pairs.
        warm_up: Runs of each before those that count.
        label: Name for the lines that tell how far it is; empty for silence.
    """
    for _ in range(warm_up):
        first()
        second()
    times: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            times[which].append((first, second)[which]())
        if label:
            a, b = times[0][-1], times[1][-1]
            print(
                f"{label}: pair {pair + 1}/{pairs}: {a:.3f} s and {b:.3f} s, ratio {a / b:.3f}",
                flush=True,
            )
    return Turns(tuple(times[0]), tuple(times[1]))


def shown(value: float, interval: Interval, digits: int = 3) -> str:
    """A figure with its interval."""
    low, high = interval
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with its columns aligned."""
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = f"|{'|'.join('-' * (width + 2) for width in widths)}|"
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def targets_table(outcomes: Sequence[Outcome]) -> str:
    """All targets of some benchmarks."""
    rows = [
        (outcome.name, target.text, target.measured, "met" if target.met else "MISSED")
        for outcome in outcomes
        for target in outcome.targets
    ]
    return table(("benchmark", "target", "measured", ""), rows)


def environment() -> dict[str, Any]:
    """What it takes to repeat the figures: versions, processor, cores, load."""
    # The same facts, found the same way, as in optkit's own reports.
    from optkit.environment import describe_system

    return describe_system() | {"load_average_before": _LOAD_BEFORE}


def child(arguments: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs Python in a fresh process, on the same optkit and with a quiet TensorFlow.

    Raises:
        subprocess.CalledProcessError: If it fails.
    """
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    return subprocess.run(
        [sys.executable, *arguments],
        check=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"},
        **options,
    )


def parser(description: str | None) -> argparse.ArgumentParser:
    """The command line that all benchmarks have."""
    made = argparse.ArgumentParser(
        description=(description or "").split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument(
        "--quick",
        action="store_true",
        help="smoke test: as few repetitions as possible; targets are shown, but do not count",
    )
    made.add_argument("--json", type=Path, default=None, help="file to write the figures to")
    return made


def write_json(path: Path, content: Any) -> None:
    """Writes plain values as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def finish(outcome: Outcome, arguments: argparse.Namespace) -> int:
    """Prints the targets, writes the JSON, and says with which status to exit."""
    print(f"\n{targets_table([outcome])}")
    if arguments.json is not None:
        write_json(
            arguments.json,
            dataclasses.asdict(outcome) | {"quick": arguments.quick, "environment": environment()},
        )
    return 0 if outcome.met or arguments.quick else 1
