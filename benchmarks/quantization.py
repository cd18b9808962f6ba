"""How good quantized files are: optkit against the stock converter, ai-edge-quantizer and tfmot.

Float models of six kinds are trained once (`benchmarks.models`) and kept. Every tool gets the same
weights and the same 200 calibration samples, each in a process of its own, so that one that crashes
is a row of the table and not the end of it. Every file is scored on the same test samples, through
LiteRT, by the same function. Changes are paired, sample by sample, with 95 % intervals.

Run it with ``python -m benchmarks.quantization``; ``--family`` adds the rest of optkit's quantizers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import common, models

#: INT8 may lose so much of the float file's accuracy, in points.
LIMIT_POINTS = 0.5
#: So much of the float file's bytes may be left, in models above `_LARGE` parameters.
LIMIT_SIZE = 0.30
_LARGE = 1_000_000
_SECONDS = 1800  # one tool on one model


@dataclass(frozen=True)
class Tool:
    """One row for every model.

    Attributes:
        name: What is shown.
        ways: Names in `quantization_tools.TOOLS`, tried in order until one gives a file that runs.
        recurrent: Further ways, for recurrent models.
        rival: Whether optkit must be at least as good.
        against: The row of optkit's that it is compared with.
        family: Whether it runs with ``--family`` alone.
    """

    name: str
    ways: tuple[str, ...]
    recurrent: tuple[str, ...] = ()
    rival: bool = False
    against: str = "QuantizeINT8"
    family: bool = False


_STOCK_MORE = ("stock, one sample", "stock, unrolled")
_AI_EDGE_MORE = ("ai-edge-quantizer, one sample", "ai-edge-quantizer, unrolled")

TOOLS: tuple[Tool, ...] = (
    Tool("float32", ("float32",)),
    Tool("QuantizeINT8", ("QuantizeINT8",)),
    Tool("QuantizeINT8, keep_float=auto", ("QuantizeINT8 auto",)),
    Tool("stock converter", ("stock",), _STOCK_MORE, rival=True),
    Tool("ai-edge-quantizer", ("ai-edge-quantizer",), _AI_EDGE_MORE, rival=True),
    Tool("QuantizeAware, QuantizeINT8", ("QuantizeAware",)),
    # Both of these train further: like is compared with like.
    Tool("tfmot QAT by hand", ("tfmot",), rival=True, against="QuantizeAware, QuantizeINT8"),
    Tool("QuantizeFloat16", ("QuantizeFloat16",), family=True),
    Tool("QuantizeDynamic 8", ("QuantizeDynamic",), family=True),
    Tool("QuantizeDynamic 4", ("QuantizeDynamic 4",), family=True),
    Tool("QuantizeINT16x8", ("QuantizeINT16x8",), family=True),
    Tool("QuantizeWeights 8", ("QuantizeWeights 8",), family=True),
    Tool("QuantizeWeights 4", ("QuantizeWeights 4",), family=True),
)


@dataclass
class Found:
    """What one tool gave for one model.

    Attributes:
        status: ``"ok"``, ``"fails"``, ``"crashes"``, ``"missing"``, …
        way: The way that gave the file.
        told: Why ways before it, or all, gave none.
        figures: What was measured.
        right: Whether each test sample was classified rightly.
    """

    status: str
    way: str = ""
    told: tuple[str, ...] = ()
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)
    right: Any = None


def _work(arguments: Sequence[str], out: Path, log: Path) -> dict[str, Any]:
    """One piece of work in a process of its own; what it found, or how it ended."""
    out.unlink(missing_ok=True)
    with log.open("a", encoding="utf-8") as file:
        try:
            common.child(
                ["-m", "benchmarks.quantization_tools", *arguments, "--out", str(out)],
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return {"status": "fails", "reason": f"not done after {_SECONDS} s"}
        except subprocess.CalledProcessError as error:
            if error.returncode < 0:
                return {"status": "crashes", "reason": signal.Signals(-error.returncode).name}
            return {"status": "fails", "reason": f"exit status {error.returncode}, see {log}"}
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def _quantize(subject: models.Subject, tool: Tool, cache: Path, folder: Path) -> Found:
    """One tool on one model: the first of its ways that gives a file that runs."""
    import numpy as np

    told: list[str] = []
    status = "fails"
    for way in (*tool.ways, *(tool.recurrent if subject.recurrent else ())):
        stem = f"{subject.name}-{way}".replace(", ", "-").replace(" ", "-")
        file, out = folder / f"{stem}.tflite", folder / f"{stem}.json"
        shared = [subject.name, "--file", str(file)]
        log = folder / f"{stem}.log"
        made = _work(["make", *shared, "--tool", way, "--cache", str(cache)], out, log)
        if made["status"] == "ok":
            scored = _work(["score", *shared], out, log)
            if scored["status"] == "ok":
                right = np.load(out.with_suffix(".npy"))
                return Found("ok", way, tuple(told), made | scored, right)
            made = scored
        if made["status"] == "missing":
            return Found("missing", way, (made["reason"],))
        if not told:
            status = made["status"]
        told.append(f"{way}: {made['status']} ({made['reason']})")
    return Found(status, "", tuple(told))


def _points(change: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{100 * change:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


class Table:
    """The rows of all models, and what optkit is held to.

    Args:
        outcome: Takes the figures and the targets.
    """

    def __init__(self, outcome: common.Outcome):
        self.outcome = outcome
        self.rows: list[tuple[str, ...]] = []
        self.notes: list[str] = []

    def add(self, subject: models.Subject, found: dict[str, Found]) -> None:
        """Puts what was found of one model into the table, and judges it."""
        from optkit.measuring.statistics import paired_change

        float32 = found["float32"]
        figures: dict[str, Any] = {}
        for tool in (tool for tool in TOOLS if tool.name in found):
            one = found[tool.name]
            figures[tool.name] = {"status": one.status, "way": one.way, "told": list(one.told)}
            self.notes += [f"{subject.title}, {tool.name}: {told}" for told in one.told]
            if one.status != "ok" or float32.status != "ok":
                self.rows.append((subject.title, tool.name, one.status, *[""] * 6))
                continue
            change, interval = paired_change(float32.right, one.right)
            ratio = one.figures["size_bytes"] / float32.figures["size_bytes"]
            figures[tool.name] |= one.figures | {
                "change": change,
                "change_ci": list(interval),
                "size_ratio": ratio,
            }
            other = self._counterpart(tool, found)
            beside = ""
            if other is not None:
                better, better_ci = paired_change(one.right, found[other].right)
                beside = _points(better, better_ci)
                figures[tool.name] |= {
                    "optkit": other,
                    "optkit_better": better,
                    "optkit_better_ci": list(better_ci),
                }
                self._hold_rival(subject, tool, other, better, better_ci)
            self.rows.append(
                (
                    subject.title,
                    tool.name,
                    f"{100 * one.figures['accuracy']:.2f}",
                    "" if tool.name == "float32" else _points(change, interval),
                    beside,
                    f"{one.figures['size_bytes'] / 1000:,.0f}",
                    f"{ratio:.3f}",
                    f"{one.figures['latency_ms']:.3f}",
                    f"{one.figures['seconds']:.1f}",
                )
            )
        self.outcome.figures[subject.name] = figures
        self._hold_int8(subject, figures)

    @staticmethod
    def _counterpart(tool: Tool, found: dict[str, Found]) -> str | None:
        """The row of optkit's that a tool is held against; without it, that of plain INT8."""
        if not tool.rival:
            return None
        for name in (tool.against, "QuantizeINT8"):
            if name in found and found[name].status == "ok":
                return name
        return None

    def _hold_rival(
        self,
        subject: models.Subject,
        tool: Tool,
        other: str,
        better: float,
        interval: Sequence[float],
    ) -> None:
        self.outcome.hold(
            f"{subject.title}: {other} not measurably worse than {tool.name}",
            f"{_points(better, interval)} points",
            interval[1] >= 0,
        )

    def _hold_int8(self, subject: models.Subject, figures: dict[str, Any]) -> None:
        one = figures.get("QuantizeINT8", {})
        if "change" not in one:
            self.outcome.hold(
                f"{subject.title}: INT8 within {LIMIT_POINTS:g} points of float",
                one.get("status", "not run"),
                False,
            )
            return
        self.outcome.hold(
            f"{subject.title}: INT8 within {LIMIT_POINTS:g} points of float",
            f"{_points(one['change'], one['change_ci'])} points",
            100 * one["change"] >= -LIMIT_POINTS,
        )
        if one["parameters"] > _LARGE:
            self.outcome.hold(
                f"{subject.title} ({one['parameters']:,} parameters): at most {LIMIT_SIZE:g} of "
                "the float file",
                f"{one['size_ratio']:.3f}",
                one["size_ratio"] <= LIMIT_SIZE,
            )

    def __str__(self) -> str:
        header = (
            "model",
            "tool",
            "accuracy, %",
            "change against float, points",
            "optkit minus tool, points",
            "kB",
            "of float",
            "ms",
            "made in s",
        )
        return common.table(header, self.rows)


def _chosen(options: argparse.Namespace) -> list[Tool]:
    wanted = [tool for tool in TOOLS if options.family or not tool.family]
    if options.tools:
        wanted = [tool for tool in wanted if tool.name in ("float32", *options.tools)]
    return wanted


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = common.parser(__doc__)
    names = [one.name for one in models.SUBJECTS]
    parser.add_argument("--cache", type=Path, default=models.default_cache(), help="of the models")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="these models")
    parser.add_argument(
        "--tools",
        nargs="+",
        choices=[tool.name for tool in TOOLS],
        help="these tools and the float file; all where left out",
    )
    parser.add_argument("--family", action="store_true", help="the rest of optkit's quantizers too")
    parser.add_argument(
        "--files", type=Path, default=None, help="folder to keep the files and logs in"
    )
    options = parser.parse_args(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    subjects = [models.subject(name) for name in (names[:1] if options.quick else options.only)]

    outcome = common.Outcome("quantization")
    made = Table(outcome)
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = options.files or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for subject in subjects:
            try:
                subject.model(options.cache)
                subject.load()
            except models.UnavailableError as error:
                print(f"{subject.title}: skipped, it {error}", file=sys.stderr, flush=True)
                outcome.figures[subject.name] = {"skipped": str(error)}
                continue
            found: dict[str, Found] = {}
            for tool in _chosen(options):
                one = found[tool.name] = _quantize(subject, tool, options.cache, folder)
                text = f"{100 * one.figures['accuracy']:.2f} %" if one.figures else one.status
                print(f"{subject.title}, {tool.name}: {text}", file=sys.stderr, flush=True)
            made.add(subject, found)
    print(made)
    if made.notes:
        print("\n" + "\n".join(f"- {note}" for note in made.notes))
    return common.finish(outcome, options)


if __name__ == "__main__":
    sys.exit(main())
