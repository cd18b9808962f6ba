"""The tables in which a quantizer shows what it tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optkit.quantize.judge import Judge, Judgement
from optkit.quantize.scan import Found
from optkit.study import Chart, Study

__all__ = ["REPAIR_NAMES", "ranges_table", "repairs_table", "samples_table", "scan_table"]

#: Repairs in words.
REPAIR_NAMES = {
    "none": "none of these",
    "balance": "channels centred and widened",
    "equalize": "cross-layer equalization",
    "bias": "bias correction, worked out",
    "settle": "bias correction, measured",
    "batch_norm": "batch norm measured anew",
    "float_output": "last operator in float",
}


def _how(judge: Judge) -> str:
    return (
        f"on {judge.samples} samples set aside for choosing; output error: root mean square "
        "difference to the float model, relative to the spread of its outputs"
    )


def ranges_table(judge: Judge, judged: Mapping[str, Judgement | None], taken: str) -> Study:
    """Ways to choose ranges, and which was taken."""
    rows = tuple(
        (kind, found.error, found.score, kind == taken)
        for kind, found in judged.items()
        if found is not None
    )
    columns = ("ranges", "output error", judge.metric.name, "taken")
    return Study("Ways to choose ranges", columns, rows, notes=(_how(judge),))


def repairs_table(judge: Judge, tried: Sequence[tuple[str, Judgement, bool]]) -> Study:
    """Repairs in the order in which they were tried, and which were kept."""
    rows = tuple(
        (REPAIR_NAMES[name], judged.error, judged.score, kept) for name, judged, kept in tried
    )
    columns = ("repair", "output error", judge.metric.name, "kept")
    return Study("Repairs, one on top of the other", columns, rows, notes=(_how(judge),))


def samples_table(judge: Judge, rows: Sequence[tuple[int, float, float | None]]) -> Study:
    """How the result changes with the number of calibration samples."""
    return Study(
        "Calibration samples",
        ("samples", "output error", judge.metric.name),
        tuple(rows),
        notes=("ranges from the lowest to the highest value", _how(judge)),
        chart=Chart("line", x="samples", y=("output error",)),
    )


def scan_table(judge: Judge, found: Found) -> Study:
    """What each layer gives in float by itself, and which are kept so."""
    metric, start = judge.metric.name, found.start
    rows = tuple(
        (
            item.layer,
            item.judged.error,
            start.error - item.judged.error,
            item.judged.score,
            item.layer in found.kept,
        )
        for item in found.scanned
    )
    every = f"all in 8 bits: output error {start.error:.4g}"
    if start.score is not None and judge.float.score is not None:
        every += f", {metric} {start.score:.4g} (float {judge.float.score:.4g})"
    return Study(
        "Layers in float, one at a time",
        ("layer in float", "output error", "error saved", metric, "kept in float"),
        rows,
        notes=(every, _how(judge)),
        chart=Chart("bar", x="layer in float", y=("output error",), mark="kept in float"),
    )
