"""What to measure, and on what kind of device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from optkit import _validate
from optkit.errors import ArgumentTypeError, PipelineError
from optkit.metric import check_metric, metric_name

__all__ = ["Device", "Measure"]

_RUNTIMES = ("tflite",)


@dataclass(frozen=True)
class Device:
    """A small target, simulated by the limits that the operating system puts on a process.

    What it cannot simulate is another processor: times are those of this machine's cores.

    Args:
        threads: Threads that the runtime may use, at least 1.
        memory_mb: Address space of the process, in units of 2**20 bytes; ``None`` for no limit. It
            holds the interpreter of Python, NumPy and LiteRT too, which take about 120 without any
            artifact. Only LiteRT artifacts are run under it: TensorFlow does not start under
            about 1000.
        cpus: Number of processor cores that the process may use; ``None`` for all.

    Raises:
        PipelineError: For a value out of range; `ArgumentTypeError` for one of the wrong type.

    Example:
        >>> from optkit.measuring import Device
        >>> Device(memory_mb=512, cpus=1).describe()
        '1 thread, 1 core, 512 MB'
    """

    threads: int = 1
    memory_mb: int | None = None
    cpus: int | None = None

    def __post_init__(self) -> None:
        _validate.integer("threads", self.threads, minimum=1)
        _validate.optional(_validate.integer, "memory_mb", self.memory_mb, minimum=1)
        _validate.optional(_validate.integer, "cpus", self.cpus, minimum=1)

    def describe(self) -> str:
        """A line for the report."""
        parts = [f"{self.threads} thread{'s' * (self.threads != 1)}"]
        if self.cpus is not None:
            parts.append(f"{self.cpus} core{'s' * (self.cpus != 1)}")
        if self.memory_mb is not None:
            parts.append(f"{self.memory_mb} MB")
        return ", ".join(parts)


@dataclass(frozen=True)
class Measure:
    """What a run measures, and how.

    Args:
        metric: What "accuracy" stands for. ``None``: the compiled model's metric, else the one for
            the task. A name that tf_keras knows (``"mae"``, ``"top_k_categorical_accuracy"``) or a
            tf_keras metric, if it is the mean of a function of each sample. Or
            ``"balanced_accuracy"``: the mean of the accuracies of the classes, for classes of unlike
            size. Or a function of ``(y_true, y_pred)``, NumPy arrays with the batch first, to one
            value a sample, shape ``(n,)``, or to one figure of the whole split (F1, an area under a
            curve, …); for the latter the outputs of the whole split are kept in memory. For a model
            with several outputs one for ``output``, or for all of them, or a dict by output name.
        higher_is_better: Whether more of the metric is better; to be given with a function, and
            with a metric of which it is not known. A dict, where ``metric`` is one.
        output: Of a model with several outputs, the name of the one that accuracy stands for: goals
            are judged on it, the guard and early stopping watch it. ``None``: each is shown, goals
            of accuracy must hold for every output whose metric is an accuracy (where none is, for
            every output), early stopping watches the loss of all where these are several, and the
            figure in the table is that of the first.
        sample_weight: Whether figures count samples by the weights that came with the data, as
            Keras' ``weighted_metrics`` do; otherwise each sample counts once.
        batch_size: Samples a call, for latency, throughput and memory; at least 1.
        threads: Threads of the runtime; at least 1. With a ``device``, its threads count.
        latency_seconds: Time to spend on the latency of a stage, at most, in seconds; it ends
            earlier where the interval is tight. 0 measures no latency.
        memory: Whether to measure peak memory.
        baseline_runtime: ``"tflite"`` also measures the model that came in as a float32 TFLite
            file, so that what the runtime gave and what the passes gave can be told apart.
        callers: Parallel callers to measure throughput with; ``None`` measures none.
        device: The device to simulate; ``None`` for this machine with ``threads``.

    Raises:
        PipelineError: For a value out of range, a function without ``higher_is_better``, or
            settings that contradict each other; `ArgumentTypeError` for a wrong type.

    Example:
        >>> from optkit.measuring import Measure
        >>> Measure(metric="mae", latency_seconds=0, memory=False)
        Measure(metric='mae', latency_seconds=0.0, memory=False)
    """

    metric: str | Callable[[Any, Any], Any] | Any = None
    higher_is_better: bool | dict[str, bool] | None = None
    batch_size: int = 1
    threads: int = 1
    latency_seconds: float = 1.0
    memory: bool = True
    baseline_runtime: str | None = None
    callers: int | None = None
    device: Device | None = None
    output: str | None = None
    sample_weight: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.higher_is_better, Mapping):
            for name, value in self.higher_is_better.items():
                _validate.boolean(f"higher_is_better[{name!r}]", value)
        else:
            _validate.optional(_validate.boolean, "higher_is_better", self.higher_is_better)
        _validate.optional(_validate.text, "output", self.output)
        _validate.boolean("sample_weight", self.sample_weight)
        check_metric(self.metric, self.higher_is_better)
        _validate.integer("batch_size", self.batch_size, minimum=1)
        _validate.integer("threads", self.threads, minimum=1)
        seconds = _validate.number("latency_seconds", self.latency_seconds, minimum=0)
        object.__setattr__(self, "latency_seconds", seconds)
        _validate.boolean("memory", self.memory)
        _validate.optional(
            _validate.one_of, "baseline_runtime", self.baseline_runtime, choices=_RUNTIMES
        )
        _validate.optional(_validate.integer, "callers", self.callers, minimum=1)
        if self.device is not None and not isinstance(self.device, Device):
            raise ArgumentTypeError(
                "`device` must be an `optkit.Device`, such as `Device(cpus=1)`. Received: "
                f"{self.device!r} (of type {type(self.device).__name__})."
            )
        if self.device is not None and self.threads not in (1, self.device.threads):
            raise PipelineError(
                f"`threads` is {self.threads} and the device's threads are {self.device.threads}. "
                "Give the number once: `Device(threads=…)`."
            )
        if self.device is not None and self.device.memory_mb is not None and not self.memory:
            raise PipelineError(
                "A limit of memory only counts where memory is measured. Received: `memory=False` "
                f"and `Device(memory_mb={self.device.memory_mb})`. Leave one of them out."
            )

    def __repr__(self) -> str:
        given = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) is not field.default
            and getattr(self, field.name) != field.default
        ]
        return f"Measure({', '.join(given)})"

    @property
    def target(self) -> Device:
        """The device that figures are of: ``device``, or this machine with ``threads``."""
        return self.device or Device(threads=self.threads)

    @property
    def timed(self) -> bool:
        """Whether latency or throughput is measured."""
        return self.latency_seconds > 0 or self.callers is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the report, the metric by its name."""
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("metric", "threads", "device", "output", "sample_weight")
        }
        # What only some models and data have is told where it was asked for.
        if self.output is not None:
            values["output"] = self.output
        if self.sample_weight:
            values["sample_weight"] = True
        values["metric"] = None if self.metric is None else metric_name(self.metric)
        values["device"] = dataclasses.asdict(self.target)
        return values
