"""`Meter`: measures every stage of a run the same way, against the same baseline."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optkit.artifact import Artifact, TFLiteArtifact
from optkit.data import BoundData, Split, first_leaf, map_leaves
from optkit.errors import OptkitError
from optkit.measuring.accuracy import Scores, compare_scores, score, score_interval
from optkit.measuring.latency import LatencyProcess
from optkit.measuring.measurement import (
    Comparison,
    Measurement,
    OutputChange,
    OutputFigures,
)
from optkit.measuring.memory import DoesNotFitError, check_device
from optkit.measuring.settings import Measure
from optkit.measuring.statistics import Interval
from optkit.metric import Metric
from optkit.task import Task

__all__ = ["Measured", "Meter"]

_LOG = logging.getLogger("optkit")
_BASELINE = "baseline"


@dataclass(frozen=True)
class Measured:
    """What `Meter.measure` found.

    Attributes:
        figures: The artifact's figures on the split that is reported.
        comparison: Against the baseline; empty for the baseline itself.
        validation: The metric on ``validation``, on which decisions are made; ``None`` without one.
        validation_change: Its change against the baseline; ``None`` for the baseline.
        validation_change_ci: The interval of the change, paired by sample.
        validation_outputs: Of a model with several outputs, the change on ``validation`` of each,
            by name; empty for the baseline.
        notes: What could not be measured, and why.
        missing: What could not be measured for a reason that may be gone the next time.
        scores: The metric sample by sample; ``None`` without a split to report.
        validation_scores: The same on ``validation``.
    """

    figures: Measurement
    comparison: Comparison
    validation: float | None = None
    validation_change: float | None = None
    validation_change_ci: Interval | None = None
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    scores: Scores | None = None
    validation_scores: Scores | None = None
    validation_outputs: dict[str, OutputChange] = field(default_factory=dict)

    def to_plain(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Plain values, fit for JSON, and arrays, fit for `numpy.savez`."""
        values = {
            "figures": self.figures.to_dict(),
            "comparison": dataclasses.asdict(self.comparison),
            "validation": self.validation,
            "validation_change": self.validation_change,
            "validation_change_ci": self.validation_change_ci,
            "validation_outputs": {
                name: dataclasses.asdict(item) for name, item in self.validation_outputs.items()
            },
            "notes": list(self.notes),
            "missing": list(self.missing),
            "one_split": self.scores is self.validation_scores,
        }
        arrays: dict[str, np.ndarray] = {}
        sides = {"scores": self.scores}
        if not values["one_split"]:
            sides["validation_scores"] = self.validation_scores
        for side, scores in sides.items():
            if scores is not None:
                arrays |= {f"{side}.{key}": part for key, part in scores.to_arrays().items()}
        return values, arrays

    @classmethod
    def from_plain(cls, values: dict[str, Any], arrays: dict[str, np.ndarray]) -> Measured:
        """What `to_plain` gave, also after a round trip through JSON and an ``.npz`` file."""

        def scores(side: str) -> Scores | None:
            own = {
                key.removeprefix(f"{side}."): arrays[key]
                for key in arrays
                if key.startswith(f"{side}.")
            }
            return Scores.from_arrays(own) if own else None

        comparison = dict(values["comparison"])
        for name in ("speedup_ci", "accuracy_change_ci"):
            comparison[name] = _interval(comparison[name])
        if comparison.get("output_changes") is not None:
            comparison["output_changes"] = _changes(comparison["output_changes"])
        reported = scores("scores")
        return cls(
            figures=Measurement.from_dict(values["figures"]),
            comparison=Comparison(**comparison),
            validation=values["validation"],
            validation_change=values["validation_change"],
            validation_change_ci=_interval(values["validation_change_ci"]),
            validation_outputs=_changes(values.get("validation_outputs", {})),
            notes=tuple(values["notes"]),
            missing=tuple(values["missing"]),
            scores=reported,
            validation_scores=reported if values["one_split"] else scores("validation_scores"),
        )


def _interval(values: Any) -> Interval | None:
    return None if values is None else (float(values[0]), float(values[1]))


def _changes(values: dict[str, Any]) -> dict[str, OutputChange]:
    return {name: OutputChange.from_dict(item) for name, item in values.items()}


class Meter:
    """Measures artifacts on the data of a run, each through its own runtime.

    Args:
        data: The bound data; figures are of `BoundData.report_split`.
        task: What the model is for.
        metric: The metric that "accuracy" stands for.
        measure: What to measure, and how.
        keras: Whether Keras artifacts are to come; without, TensorFlow is not started for them.
        eager: Whether the measuring process starts at once, beside the caller's work, and not
            only when something has to be measured there.
    """

    def __init__(
        self,
        data: BoundData,
        task: Task,
        metric: Metric,
        measure: Measure | None = None,
        *,
        keras: bool = True,
        eager: bool = True,
    ):
        self.data, self.task, self.metric = data, task, metric
        self.settings = measure if measure is not None else Measure()
        self.keras, self.eager = keras, eager
        #: What the user should know of the measuring, for the report.
        self.notes: list[str] = []
        self._baseline: Measured | None = None
        self._baseline_artifact: Artifact | None = None
        self._baseline_timed: bool | None = None  # None: it was not tried yet
        self._process: LatencyProcess | None = None
        self._stages = 0
        self._lead = metric.output if metric.parts else ""

    @property
    def threads(self) -> int:
        """Threads of the runtimes that are measured."""
        return self.settings.target.threads

    def check(self) -> None:
        """Refuses limits of the device that cannot be kept.

        Raises:
            PipelineError: With the reason.
        """
        check_device(self.settings.target)

    def __enter__(self) -> Meter:
        settings = self.settings
        if not (settings.timed or settings.memory):
            return self
        self.check()
        split = self.data.report_split or self.data.train
        if split is None:
            split = self.data.calibration_split()
        sample, _ = split.head(settings.batch_size)
        rows = np.arange(settings.batch_size) % len(first_leaf(sample))
        sample = map_leaves(lambda leaf: leaf[rows], sample)  # repeats where the split is shorter
        opened = [info for info in split.inputs if None in info.shape[1:]]
        if opened:
            shapes = ", ".join(str(np.shape(leaf)) for leaf in _leaves(sample))
            what = "sample" if settings.batch_size == 1 else "samples"
            self.notes.append(
                f"latency: open input shape pinned to {shapes}, that of the first {what}"
            )
        if settings.target.memory_mb is not None and self.keras:
            self.notes.append(
                f"the limit of {settings.target.memory_mb} MB holds for LiteRT artifacts; Keras "
                "models are measured without it, as TensorFlow itself does not start under about "
                "1000 MB"
            )
        self._process = LatencyProcess(
            settings.target,
            sample,
            seconds=settings.latency_seconds or Measure.latency_seconds,
            keras=self.keras,
        )
        if self.eager and (settings.timed or self.keras):
            self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.close()

    def measure(self, artifact: Artifact) -> Measured:
        """Measures an artifact; the first one becomes the baseline of the others.

        Raises:
            ModelError, DataError: If it cannot be run on the data, or gives values not finite.
            PipelineError: If the user's own metric fails.
        """
        notes: list[str] = []
        figures: dict[str, Any] = {
            "size_bytes": artifact.size_bytes,
            "compressed_bytes": artifact.compressed_bytes,
            "parameters": artifact.parameters,
            "sparsity": artifact.sparsity,
            "layers": artifact.layers() or None,
        }
        against: dict[str, Any] = {}
        split, decisive = self.data.report_split, self.data.validation
        before = self._baseline
        scores = None
        if split is not None:
            scores = self._score(artifact, split)
            figures |= self._accuracy(scores)
            if before is not None and before.scores is not None:
                changes = self._changes(before.scores, scores, split, notes)
                lead = changes[self._lead]
                against |= {"accuracy_change": lead.change, "accuracy_change_ci": lead.change_ci}
                if self.metric.parts:
                    against["output_changes"] = changes
        decided: Scores | None = None
        moved: tuple[float | None, Interval | None] = (None, None)
        moved_outputs: dict[str, OutputChange] = {}
        if decisive is not None and decisive is split:
            decided = scores
            moved = against.get("accuracy_change"), against.get("accuracy_change_ci")
            moved_outputs = against.get("output_changes", {})
        elif decisive is not None:
            decided = self._score(artifact, decisive)
            if before is not None and before.validation_scores is not None:
                changes = self._changes(before.validation_scores, decided, decisive, notes)
                moved = changes[self._lead].change, changes[self._lead].change_ci
                moved_outputs = changes if self.metric.parts else {}
        self._stages += 1
        missing: list[str] = []
        if self._process is not None:
            said, missing = self._run_elsewhere(self._process, artifact, figures, against)
            notes += [*said, *_without_lookups(artifact, self._baseline_artifact)]
        measured = Measured(
            figures=Measurement(**figures),
            comparison=Comparison(**against),
            validation=decided.mean if decided is not None else None,
            validation_change=moved[0],
            validation_change_ci=moved[1],
            notes=tuple(notes),
            missing=tuple(missing),
            scores=scores,
            validation_scores=decided,
            validation_outputs=moved_outputs,
        )
        if before is None:
            self._set_baseline(artifact, measured)
        return measured

    def restore_baseline(self, artifact: Artifact, measured: Measured) -> None:
        """Makes what was measured before, in another run, the baseline of what follows.

        The artifact is run again only when a later one has to be timed against it.

        Args:
            artifact: The baseline.
            measured: What `measure` found of it, on the same data with the same settings.
        """
        self._stages += 1
        self._baseline_timed = None if measured.figures.latency_ms is not None else False
        self._set_baseline(artifact, measured)

    def _set_baseline(self, artifact: Artifact, measured: Measured) -> None:
        self._baseline, self._baseline_artifact = measured, artifact
        for name in self.metric.each:
            said = self._no_better_than_chance(measured, name)
            if said is not None:
                _LOG.warning("%s", said)
                self.notes.append(said)

    def _no_better_than_chance(self, measured: Measured, name: str) -> str | None:
        """Says so of an output (``""`` for the only one); ``None`` where it is better."""
        split, figures = self.data.report_split, measured.figures
        if measured.scores is None or split is None:
            return None
        scores = measured.scores.each[name]
        interval = figures.outputs[name].accuracy_ci if figures.outputs else figures.accuracy_ci
        if scores.chance is None or interval is None:
            return None
        metric = self.metric.each[name]
        better = interval[0] > scores.chance
        what = "always naming the most frequent class"
        if not metric.higher_is_better:
            better = interval[1] < scores.chance
            what = "always answering with the same value"
        elif self.task.each[name].kind == "multilabel":
            what = "always giving each label its more frequent value"
        if better:
            return None
        of = f" for the output {name!r}" if name else ""
        return (
            f"no better than chance{of}, as far as can be shown: what came in has {metric.name} "
            f"{scores.mean:.4g}, interval {interval[0]:.4g} to {interval[1]:.4g}, on `{split.name}`, "
            f"and {what} has {scores.chance:.4g}. Is it trained, and are its inputs scaled as in "
            "its training?"
        )

    def _accuracy(self, scores: Scores) -> dict[str, Any]:
        """The figures that follow from scores."""
        found = {
            name: OutputFigures(
                metric=metric.name,
                higher_is_better=metric.higher_is_better,
                accuracy=scores.each[name].mean,
                accuracy_ci=score_interval(scores.each[name], metric),
                per_class=self._named(scores.each[name].per_class, name),
                class_samples=self._named(scores.each[name].counts, name),
            )
            for name, metric in self.metric.each.items()
        }
        lead = found[self._lead]
        figures: dict[str, Any] = {
            name: getattr(lead, name)
            for name in ("accuracy", "accuracy_ci", "per_class", "class_samples")
        }
        if self.metric.parts:
            figures["outputs"] = found
        return figures | {"samples": scores.samples}

    def _changes(
        self, before: Scores, after: Scores, split: Split, notes: list[str]
    ) -> dict[str, OutputChange]:
        """The change of each output by name; of the only one under ``""``."""
        if before.order != after.order:
            notes.append(
                f"`{split.name}` came in another order than for the baseline, so the "
                "change is not taken sample by sample: give it without `.shuffle()`"
            )
        return {
            name: OutputChange(*compare_scores(before.each[name], after.each[name], metric))
            for name, metric in self.metric.each.items()
        }

    def _run_elsewhere(
        self,
        process: LatencyProcess,
        artifact: Artifact,
        figures: dict[str, Any],
        against: dict[str, Any],
    ) -> tuple[list[str], list[str]]:
        """Memory, latency and throughput, in processes of their own.

        Returns:
            What failed and why, in words; and what of it may go well another time.
        """
        settings = self.settings
        is_baseline = self._baseline is None
        key = _BASELINE if is_baseline else f"stage-{self._stages}"
        failures: dict[str, list[str]] = {}
        timed = ["latency"] * (settings.latency_seconds > 0)
        timed += ["throughput"] * (settings.callers is not None)

        def attempt(what: list[str], work: Callable[[], None]) -> Exception | None:
            try:
                work()
            except Exception as error:
                # A figure that could not be had is missing from the report; the run goes on.
                failures.setdefault(str(error), []).extend(what)
                return error
            return None

        def weigh() -> None:
            memory = process.memory(key, artifact)
            figures["peak_memory_bytes"] = memory.peak_bytes
            figures["runtime_memory_bytes"] = memory.runtime_bytes

        trouble = attempt(["memory"], weigh) if settings.memory else None
        ready = False
        if timed and isinstance(trouble, DoesNotFitError):
            failures[str(trouble)] += timed  # what the device cannot run has no latency on it
        elif timed:
            ready = attempt(timed, lambda: process.load(key, artifact)) is None
        if ready and settings.latency_seconds:
            attempt(["latency"], lambda: self._time(process, key, figures, against))
        if ready and settings.callers is not None:
            callers = settings.callers

            def ask() -> None:
                figures["throughput"] = process.throughput(key, callers)

            attempt(["throughput"], ask)
        if is_baseline:
            self._baseline_timed = "latency_ms" in figures
        if not (is_baseline and self._baseline_timed):
            with contextlib.suppress(OptkitError):  # of a process that ended, which was said
                process.unload(key)
        notes = [f"{' and '.join(what)} not measured: {why}" for why, what in failures.items()]
        for note in notes:
            _LOG.warning("%s", note)
        lasting = str(trouble) if isinstance(trouble, DoesNotFitError) else None
        missing = [name for why, what in failures.items() if why != lasting for name in what]
        return notes, missing

    def _time(
        self,
        process: LatencyProcess,
        key: str,
        figures: dict[str, Any],
        against: dict[str, Any],
    ) -> None:
        if key != _BASELINE and self._baseline_is_loaded(process):
            latency, speedup = process.time_against(key, _BASELINE)
            against |= {"speedup": speedup.ratio, "speedup_ci": speedup.ci}
        else:
            latency = process.time(key)
        figures |= {
            "latency_ms": latency.median_ms,
            "latency_p90_ms": latency.p90_ms,
            "latency_p99_ms": latency.p99_ms,
            "latency_ci": latency.ci,
        }

    def _baseline_is_loaded(self, process: LatencyProcess) -> bool:
        """Whether there is a baseline to time against; a restored one is only loaded here."""
        if self._baseline_timed is None and self._baseline_artifact is not None:
            try:
                process.load(_BASELINE, self._baseline_artifact)
                self._baseline_timed = True
            except OptkitError as error:
                self._baseline_timed = False
                self.notes.append(f"latency: not compared with the baseline: {error}")
        return bool(self._baseline_timed)

    def _score(self, artifact: Artifact, split: Split) -> Scores:
        scores = score(artifact, split, self.task, self.metric)
        if split.samples is None:
            split.samples = scores.samples
        return scores

    def _named(self, by_class: dict[int, Any] | None, output: str) -> dict[str, Any] | None:
        if by_class is None:
            return None
        names = self.data.names_of(output)
        return {
            names[number] if number < len(names) else str(number): value
            for number, value in by_class.items()
        }


def _without_lookups(artifact: Artifact, baseline: Artifact | None) -> list[str]:
    """Says what the figures of a file leave out, where lookups run before it."""

    def split(item: Artifact) -> bool:
        return isinstance(item, TFLiteArtifact) and item.front_content is not None

    if not split(artifact):
        return []
    note = "latency, memory and size are those of the file, without the lookups that run before it"
    if baseline is not None and not split(baseline):
        note += "; the baseline's are of the whole model"
    return [note]


def _leaves(x: Any) -> list[Any]:
    if isinstance(x, dict):
        return list(x.values())
    return list(x) if isinstance(x, list | tuple) else [x]
