"""`measure`: the figures of one artifact, or of two against each other, without a pipeline."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit.artifact import Artifact, KerasArtifact, SavedModelArtifact, TFLiteArtifact, load
from optkit.data import BoundData, Data, Split
from optkit.errors import ArgumentTypeError, DataError, PipelineError
from optkit.measuring.measurement import ClassChange, Comparison, Measurement, worst_classes
from optkit.measuring.meter import Meter
from optkit.measuring.settings import Measure
from optkit.metric import resolve_metric
from optkit.models import Signature, TensorInfo, signature
from optkit.runtime import isolated, tf_keras
from optkit.task import Task, check_targets, infer_task, infer_task_of_outputs, one_hot_outputs
from optkit.translate import is_keras3

__all__ = ["EXAMPLE_SAMPLES", "Finding", "measure"]

#: Samples that a function given as a metric is tried on.
EXAMPLE_SAMPLES = 256
_SHOWN_CLASSES = 5


@dataclass(frozen=True)
class Finding:
    """What `measure` found.

    Attributes:
        figures: The artifact's figures.
        baseline: The baseline's figures; ``None`` without one.
        comparison: The artifact against the baseline; empty without one.
        metric: Name of the metric that "accuracy" stands for.
        split: The split that figures are of.
        device: The device that was simulated, in words.
        notes: What the reader should know, and what could not be measured.
    """

    figures: Measurement
    baseline: Measurement | None
    comparison: Comparison
    metric: str
    split: str
    device: str
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str | None:
        """``"faster"``, ``"slower"`` or ``"no measurable change"``; ``None`` if not measured."""
        return self.comparison.verdict

    def worst_classes(self, count: int = _SHOWN_CLASSES) -> list[ClassChange]:
        """The classes with the lowest accuracy and those that lost most, see `worst_classes`."""
        return worst_classes(self.baseline, self.figures, count)

    def __str__(self) -> str:
        columns = [self.figures] if self.baseline is None else [self.baseline, self.figures]
        rows = [("", *(["artifact"] if len(columns) == 1 else ["baseline", "artifact"]))]
        for label, show in _LINES:
            cells = [show(column) for column in columns]
            if any(cells):
                label = self.metric if label == "accuracy" else label
                rows.append((label, *(cell or "–" for cell in cells)))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        lines += ["", f"on {self.split}; {self.device}"]
        lines += _output_lines(self.baseline, self.figures, self.comparison)
        change, speed = self.comparison, self.comparison.speedup
        if change.accuracy_change is not None:
            reach = _reach(change.accuracy_change_ci, "+.4f")
            lines.append(f"{self.metric}: change {change.accuracy_change:+.4f}{reach}")
        if speed is not None:
            reach = _reach(change.speedup_ci, ".2f")
            lines.append(f"speed: {self.verdict}, {speed:.2f} times{reach}")
        if self.figures.per_class:
            lines.append("worst classes:")
            for item in self.worst_classes():
                gone = "" if item.change is None else f", change {item.change:+.4f}"
                lines.append(f"  {item.name}: {item.after:.4f}{gone} ({item.samples} samples)")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def measure(
    artifact: Any,
    data: Any,
    *,
    baseline: Any = None,
    measure: Measure | None = None,
    loss: Any = None,
) -> Finding:
    """Measures an artifact as a pipeline would measure it, against another where one is given.

    Args:
        artifact: An `Artifact`, a Keras model, or a path that `optkit.load` reads.
        data: `Data` with ``test`` or ``validation``, or ``(x, y)`` or ``(x, y, sample weights)``
            of arrays.
        baseline: What to compare with, in any of the same forms.
        measure: What to measure, and how.
        loss: A loss as ``compile`` takes it, where what the model is for does not follow from its
            outputs and the targets.

    Returns:
        The figures; ``print`` shows them.

    Raises:
        PipelineError: For settings that cannot be kept; `DataError` and `ModelError`, which are
            kinds of it, where the fault lies there.

    Example:
        >>> import optkit as ok
        >>> from optkit.measuring import Measure, measure
        >>> from optkit.testing import digits, small_model
        >>> settings = Measure(latency_seconds=0, memory=False)
        >>> found = measure(small_model(), digits(200), measure=settings)
        >>> found.figures.samples, found.figures.latency_ms
        (40, None)
    """
    settings = Measure() if measure is None else measure
    if not isinstance(settings, Measure):
        raise ArgumentTypeError(
            "`measure` must be an `optkit.Measure`, such as `Measure(threads=2)`. Received: "
            f"{measure!r} (of type {type(measure).__name__})."
        )
    if settings.baseline_runtime is not None:
        raise PipelineError(
            "`Measure(baseline_runtime=…)` is for `Pipeline.run`. Here, give the converted model as "
            "`baseline`. Received: "
            f"{settings!r}."
        )
    with isolated(0):
        subject = _as_artifact("artifact", artifact)
        other = None if baseline is None else _as_artifact("baseline", baseline)
        given = [subject] if other is None else [other, subject]
        _check_limits(given, settings)
        model = next((item.model for item in given if isinstance(item, KerasArtifact)), None)
        one_hot = frozenset[str]() if model is None else one_hot_outputs(model, loss)
        bound = _bind(data, _inputs_of(subject) if model is None else signature(model), one_hot)
        split = bound.report_split
        if split is None:
            raise DataError(
                "There is nothing to measure on: data has neither a `test` nor a `validation` split."
            )
        task = _task(model, subject, split, loss)
        check_targets(task, split.targets(EXAMPLE_SAMPLES), split.name)

        def example() -> tuple[Any, Any]:
            x, y = split.head(EXAMPLE_SAMPLES)
            return y, subject.predict(x)

        metric = resolve_metric(
            settings.metric,
            settings.higher_is_better,
            model,
            task,
            example=example,
            output=settings.output,
            weighted=settings.sample_weight,
        )
        by_tensorflow = any(not isinstance(item, TFLiteArtifact) for item in given)
        meter = Meter(bound, task, metric, settings, keras=by_tensorflow)
        with meter:
            before = None if other is None else meter.measure(other)
            found = meter.measure(subject)
        notes = [*bound.notes, *meter.notes]
        for name, part in metric.each.items():
            if part.note:
                notes.append(f"metric{f' of {name}' if name else ''}: {part.note}")
        if before is not None:
            notes += [f"baseline: {note}" for note in before.notes]
        return Finding(
            figures=found.figures,
            baseline=None if before is None else before.figures,
            comparison=found.comparison,
            metric=metric.name,
            split=split.name,
            device=settings.target.describe(),
            notes=(*notes, *found.notes),
        )


def _as_artifact(name: str, given: Any) -> Artifact:
    if isinstance(given, Artifact):
        return given
    if isinstance(given, str | os.PathLike):
        loaded = load(given)
        return loaded.treated() if isinstance(loaded, KerasArtifact) else loaded
    if isinstance(given, tf_keras().Model):
        return KerasArtifact(given)
    if is_keras3(given):
        return KerasArtifact(given).treated()
    raise ArgumentTypeError(
        f"`{name}` must be an artifact, a Keras model, or the path of a .keras or .tflite file. "
        f"Received: {given!r} (of type {type(given).__name__})."
    )


def _check_limits(artifacts: list[Artifact], settings: Measure) -> None:
    limit = settings.target.memory_mb
    if limit is None:
        return
    for item in artifacts:
        if item.kind != "tflite":
            raise PipelineError(
                f"A {item.kind} artifact cannot be measured under `memory_mb={limit}`: TensorFlow "
                "itself does not start under about 1000 MB of address space, and who deploys on so "
                "small a device runs LiteRT. Convert it (`QuantizeINT8`, for one), or leave the "
                "limit out."
            )


def _bind(data: Any, described: Signature, one_hot: frozenset[str]) -> BoundData:
    if not isinstance(data, Data):
        if not (isinstance(data, tuple) and len(data) in (2, 3)):
            raise ArgumentTypeError(
                "`data` must be an `optkit.Data` or a pair (x, y) of arrays. Received: "
                f"{type(data).__name__}."
            )
        return Data(test=data).bind(described, one_hot)
    return data.bind(described, one_hot)


def _inputs_of(artifact: Artifact) -> Signature:
    """The inputs of a file, in the types that `Artifact.predict` takes."""
    if isinstance(artifact, SavedModelArtifact):
        return artifact.signature
    if not isinstance(artifact, TFLiteArtifact):
        raise PipelineError(
            f"The inputs of a {artifact.kind} artifact are not known. Give a Keras model or its "
            "artifact as the `baseline`, from which they are taken."
        )

    def infos(ports: Any) -> tuple[TensorInfo, ...]:
        return tuple(
            TensorInfo(
                port.name,
                (None, *(None if size < 0 else size for size in port.shape[1:])),
                "float32" if port.scale else np.dtype(port.dtype).name,
            )
            for port in ports
        )

    taken = (
        infos(artifact.inputs) if artifact.front is None else signature(artifact.front.model).inputs
    )
    return Signature(taken, infos(artifact.outputs))


def _task(model: Any, artifact: Artifact, split: Split, loss: Any) -> Task:
    if model is not None:
        return infer_task(model, split.targets(EXAMPLE_SAMPLES), loss)
    x, y = split.head(EXAMPLE_SAMPLES)
    return infer_task_of_outputs(artifact.predict(x), y, loss)


def _output_lines(
    baseline: Measurement | None, figures: Measurement, comparison: Comparison
) -> list[str]:
    """A line for each output, where there are several."""
    lines = []
    for name, found in (figures.outputs or {}).items():
        line = f"{name}: {found.metric} {found.accuracy:.4g}{_reach(found.accuracy_ci, '.4g')}"
        before = None if baseline is None else (baseline.outputs or {}).get(name)
        change = (comparison.output_changes or {}).get(name)
        if before is not None and change is not None:
            line += (
                f", of the baseline {before.accuracy:.4g}, change {change.change:+.4f}"
                f"{_reach(change.change_ci, '+.4f')}"
            )
        lines.append(line)
    return lines


def _reach(interval: tuple[float, float] | None, form: str) -> str:
    if interval is None:
        return ""
    low, high = interval
    return f" [{low:{form}}, {high:{form}}]"


def _bytes(value: int | None) -> str | None:
    return None if value is None else f"{value / 1e6:.3f} MB"


def _figure(value: float | None, unit: str = "") -> str | None:
    return None if value is None else f"{value:.4g}{unit}"


def _throughput(figures: Measurement) -> str | None:
    found = figures.throughput
    if found is None:
        return None
    return (
        f"{found.requests_per_second:.4g}/s, {found.callers} callers, p50 {found.p50_ms:.3g} ms, "
        f"p95 {found.p95_ms:.3g} ms, p99 {found.p99_ms:.3g} ms, {found.error_rate:.1%} errors"
    )


def _accuracy(figures: Measurement) -> str | None:
    if figures.accuracy is None:
        return None
    reach = _reach(figures.accuracy_ci, ".4g")
    return f"{figures.accuracy:.4g}{reach} (n = {figures.samples})"


_LINES = (
    ("accuracy", _accuracy),
    ("latency, median", lambda f: _figure(f.latency_ms, " ms")),
    ("latency, p90", lambda f: _figure(f.latency_p90_ms, " ms")),
    ("latency, p99", lambda f: _figure(f.latency_p99_ms, " ms")),
    ("throughput", _throughput),
    ("size", lambda f: _bytes(f.size_bytes)),
    ("size, gzipped", lambda f: _bytes(f.compressed_bytes)),
    ("peak memory", lambda f: _bytes(f.peak_memory_bytes)),
    ("runtime's memory", lambda f: _bytes(f.runtime_memory_bytes)),
    ("parameters", lambda f: None if f.parameters is None else f"{f.parameters:,}"),
    ("sparsity", lambda f: None if f.sparsity is None else f"{f.sparsity:.1%}"),
)
