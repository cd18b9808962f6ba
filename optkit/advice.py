"""What to try where goals were missed."""

from __future__ import annotations

from optkit.goals import Goal
from optkit.report import Report, Row
from optkit.report.outputs import report_of
from optkit.report.text import goal_text

__all__ = ["advise", "missed_goals"]

#: Passes whose files are of whole numbers alone; smaller or quicker ones there are none.
_SMALLEST = ("QuantizeINT8", "FirstThatMeets")


def missed_goals(report: Report) -> str:
    """A table of the goals that were missed, with a hint for each; empty where none was.

    Example:
        >>> from optkit.goals import Goal
        >>> from optkit.measuring import Measurement
        >>> goal = Goal("max_size_mb", 1.0, 1.5, unit="MB")
        >>> print(missed_goals(Report((), Measurement(size_bytes=1_500_000), goals=(goal,))))
        goal               reached
        size at most 1 MB  1.5 MB   missed by 0.5
        - size: add QuantizeINT8, which makes files about a quarter of their size.
    """
    missed = [goal for goal in report.goals if not goal.met]
    if not missed:
        return ""
    table = [("goal", "reached", ""), *(tuple(goal_text(report, goal)) for goal in missed)]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    return "\n".join([*lines, *(f"- {hint}" for hint in advise(report))])


def advise(report: Report) -> list[str]:
    """A hint for each goal that was missed: which pass to weaken, which to add."""
    hints = [_hint(goal, report) for goal in report.goals if not goal.met]
    return list(dict.fromkeys(hints))


def _hint(goal: Goal, report: Report) -> str:
    report = report_of(report, goal.output)
    if goal.figure is None:
        what = goal.name.partition("_")[2].removesuffix("_mb").removesuffix("_ms")
        what = what.replace("_", " ")
        return f"{what}: it was not measured; the notes of the report say why."
    if goal.name in ("min_accuracy", "max_accuracy_drop"):
        of = f" of {goal.output}" if goal.output else ""
        return f"accuracy{of}: {_accuracy_hint(goal, report)}"
    if goal.name == "min_class_accuracy":
        classes = report.final.per_class or {}
        worst = min(classes, key=lambda name: classes[name], default="?")
        return (
            f"classes: the worst class{f' of {goal.output}' if goal.output else ''} is {worst!r}. More samples of it, Augment, or weaker "
            "compression may help."
        )
    what = goal.name.partition("_")[2].rpartition("_")[0] or goal.name.partition("_")[2]
    converted = [row for row in report.rows if row.family == "convert"]
    kept = [row.name for row in converted if row.status == "ok"]
    if any(name.partition("-")[0] in _SMALLEST for name in kept):
        return (
            f"{what}: the file is quantized already; a smaller architecture is what is left "
            "(TransferLearn with a smaller backbone)."
        )
    if kept:
        return f"{what}: put QuantizeINT8 in the place of {kept[-1]}."
    undone = [row.name for row in converted if row.status == "rolled back"]
    if undone:
        return (
            f"{what}: {', '.join(undone)} was undone for its accuracy. Keep the layers in float that "
            'cost it (QuantizeINT8(keep_float="auto")), put QuantizeAware before it, or allow a '
            "larger `max_accuracy_drop`."
        )
    gain = {
        "size": "which makes files about a quarter of their size",
        "memory": "whose weights and activations take a quarter of the memory",
    }.get(what, "whose file runs in LiteRT")
    return f"{what}: add QuantizeINT8, {gain}."


def _accuracy_hint(goal: Goal, report: Report) -> str:
    harmful = _most_harmful(report)
    if harmful is not None:
        row, loss = harmful
        points = f"{100 * loss:.1f} points" if "accuracy" in report.metric else f"{loss:.3g}"
        return (
            f"{row.name} cost most ({points}): weaken it, leave it out, or put a training pass "
            "such as FineTune behind it."
        )
    if any(row.family == "train" and row.status == "ok" for row in report.rows):
        return (
            "no pass cost any; the model itself falls short. Train longer, or add Augment, SWA or "
            "TransferLearn."
        )
    return "no pass trains; add FineTune, with Augment and LabelSmooth before it, or TransferLearn."


def _most_harmful(report: Report) -> tuple[Row, float] | None:
    """The kept row that lost most of the metric against what came in, and how much."""
    sign = 1 if report.higher_is_better else -1
    losses = [
        (row, sign * (row.before.accuracy - row.after.accuracy))
        for row in report.rows
        if row.status == "ok"
        and row.before is not None
        and row.after is not None
        and row.before.accuracy is not None
        and row.after.accuracy is not None
    ]
    worst = max(losses, key=lambda pair: pair[1], default=None)
    return worst if worst is not None and worst[1] > 0 else None
