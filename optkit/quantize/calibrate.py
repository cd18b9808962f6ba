"""Activation ranges of a float file, measured on samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit.convert import Samples
from optkit.errors import DataError, OptkitError, first_line
from optkit.quantize.floatfile import FloatFile

__all__ = ["Histogram", "Ranges", "calibrate", "histograms", "observe"]

#: The lowest and highest value of each activation, by name of the tensor.
Ranges = dict[str, tuple[float, float]]

_BATCH_BYTES = 2**21  # inputs of about this size are run at once
_BATCH = 16
_BINS = 2048
_VALUES_A_SAMPLE = 16384


def calibrate(file: FloatFile, samples: Samples, *, threads: int = 2) -> Ranges:
    """Measures the lowest and highest value of every activation.

    Runs LiteRT's own kernels with a profiler, as ai-edge-quantizer's calibration does, and takes
    extremes over all samples (its moving average cuts off what few samples reach).

    Args:
        file: The float file.
        samples: Gives inputs of the file, each a list in its order, shape ``(1, …)``.
        threads: Threads to run on.

    Raises:
        DataError: If there is no sample, or one holds NaN or infinity.
        OptkitError: If the file does not run on the samples.
    """
    from ai_edge_quantizer import calibrator, recipe_manager
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    try:
        runs = calibrator.Calibrator(
            file.content,
            num_threads=threads,
            mode=calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED,
            qsv_update_func=min_max_update,
        )
    except (ValueError, RuntimeError) as error:
        raise OptkitError(f"LiteRT cannot run the float file. {first_line(error)}") from error
    # It counts operations for a progress bar, and reads all samples into a list for that.
    runs._get_total_operations = lambda _: 0
    recipe = recipe_manager.RecipeManager()
    key = runs.get_signature_list()
    names = [info.name for info in file.signature.inputs]
    for leaves in batches(file, samples):
        sample = dict(zip(names, leaves, strict=True))
        try:
            runs.calibrate({next(iter(key)): [sample]}, recipe)
        except (ValueError, RuntimeError) as error:
            shapes = {name: leaf.shape for name, leaf in sample.items()}
            raise OptkitError(
                f"LiteRT could not run the float file on calibration samples of shape {shapes}. "
                f"{first_line(error)}"
            ) from error
    return _checked(
        {
            name: (float(np.min(found["min"])), float(np.max(found["max"])))
            for name, found in runs.get_model_qsvs().items()
        },
        file,
    )


def batches(file: FloatFile, samples: Samples) -> Iterator[list[np.ndarray]]:
    """Samples in batches, checked.

    Raises:
        DataError: If there is no sample, or one holds NaN or infinity.
    """
    waiting: list[list[np.ndarray]] = []
    number = size = 0
    # Loops fix the batch at 1, as lists need a size.
    most = 1 if file.has_control_flow else _BATCH
    for leaves in samples():
        for info, leaf in zip(file.signature.inputs, leaves, strict=True):
            if leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
                raise DataError(
                    f"Calibration sample {number} holds NaN or infinity in input {info.name!r}: "
                    "the range of activations cannot be measured on it. Leave such samples out, "
                    "or give `Data(calibration=…)` without them."
                )
        number += 1
        if waiting and any(a.shape != b.shape for a, b in zip(waiting[-1], leaves, strict=True)):
            yield _stacked(waiting)
            waiting, size = [], 0
        waiting.append(leaves)
        size += sum(leaf.nbytes for leaf in leaves)
        if len(waiting) >= most or size >= _BATCH_BYTES:
            yield _stacked(waiting)
            waiting, size = [], 0
    if waiting:
        yield _stacked(waiting)
    if not number:
        raise DataError(
            "There is no sample to calibrate on. Give `Data(calibration=…)` or `train` with samples."
        )


def _stacked(samples: list[list[np.ndarray]]) -> list[np.ndarray]:
    return [np.concatenate(leaves) for leaves in zip(*samples, strict=True)]


def _checked(ranges: Ranges, file: FloatFile) -> Ranges:
    made = [name for item in file.operations for name in item.outputs if name in ranges]
    for name in dict.fromkeys([*made, *ranges]):  # what overflows first spoils all that follows
        low, high = ranges[name]
        if not (np.isfinite(low) and np.isfinite(high)):
            raise OptkitError(
                f"Activation {file.readable(name).partition(';')[0]!r} reaches {low:g} to {high:g} on the calibration "
                "samples, which are finite themselves: the model overflows on them, and what it "
                "gives there is no number. Check how inputs are scaled."
            )
    return ranges


def open_file(file: FloatFile, content: bytes | None = None) -> tuple[Any, list[int]]:
    """An interpreter that keeps every activation, and the indices of its inputs.

    Args:
        file: The float file.
        content: The bytes of a file made of it, to open in its place.

    Returns:
        The interpreter, not yet allocated, and its inputs in the order of the file's signature.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    with warnings.catch_warnings():
        # Says that this is for debugging; the memory is what one batch takes.
        warnings.filterwarnings("ignore", message=".*experimental_preserve_all_tensors")
        interpreter = Interpreter(
            model_content=content or file.content,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            experimental_preserve_all_tensors=True,
            num_threads=2,
        )
    entry = next(iter(interpreter._get_full_signature_list().values()))
    return interpreter, [int(entry["inputs"][info.name]) for info in file.signature.inputs]


def observe(
    file: FloatFile,
    samples: Iterator[list[np.ndarray]],
    visit: Callable[[str, np.ndarray], Any],
    content: bytes | None = None,
) -> None:
    """Runs a file and shows every activation that it computes, batch by batch.

    Args:
        file: The float file.
        samples: Its inputs in the order of its signature, in batches, as they are stored.
        visit: Called with the name of a tensor and its values as they are stored.
        content: The bytes of a file made of it, to run in its place.

    Raises:
        OptkitError: If the file does not run on the samples.
    """
    interpreter, places = open_file(file, content)
    shapes: Any = None
    for leaves in samples:
        fresh = tuple(leaf.shape for leaf in leaves)
        try:
            if fresh != shapes:
                for place, shape in zip(places, fresh, strict=True):
                    interpreter.resize_tensor_input(place, shape)
                interpreter.allocate_tensors()
                shapes = fresh
            for place, leaf in zip(places, leaves, strict=True):
                interpreter.set_tensor(place, leaf)
            interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise OptkitError(
                f"LiteRT could not run the file on samples of shape {list(fresh)}. "
                f"{first_line(error)}"
            ) from error
        for detail in interpreter.get_tensor_details():
            try:
                values = interpreter.get_tensor(detail["index"])
            except ValueError:  # constants that are packed, and what was never computed
                continue
            visit(detail["name"], values)


@dataclass
class Histogram:
    """How often an activation takes which values.

    Attributes:
        low: Lower end of the first bin.
        high: Upper end of the last bin.
        counts: Number of values in each bin, all bins of one width.
    """

    low: float
    high: float
    counts: np.ndarray

    @property
    def centers(self) -> np.ndarray:
        """The middle of each bin."""
        edges = np.linspace(self.low, self.high, len(self.counts) + 1)
        return np.asarray((edges[:-1] + edges[1:]) / 2)


def histograms(
    file: FloatFile, samples: Samples, ranges: Mapping[str, tuple[float, float]]
) -> dict[str, Histogram]:
    """Counts the values of every activation within its range, from a share of each sample.

    Args:
        file: The float file.
        samples: As for `calibrate`.
        ranges: The extremes that `calibrate` found; values outside are counted at the ends.
    """
    found: dict[str, Histogram] = {}

    def visit(name: str, values: np.ndarray) -> None:
        if name not in ranges or values.dtype != np.float32:
            return
        low, high = ranges[name]
        if not high > low:
            return
        flat = values.ravel()
        step = max(1, flat.size // (_VALUES_A_SAMPLE * max(1, len(values))))
        # An odd step, so that it does not fall in with the channels, which are often even.
        part = flat[:: step | 1]
        scaled = (part - low) * (_BINS / (high - low))
        bins = np.clip(scaled.astype(np.int64), 0, _BINS - 1)
        counts = np.bincount(bins, minlength=_BINS)
        if name in found:
            found[name].counts += counts
        else:
            found[name] = Histogram(low, high, counts)

    observe(file, batches(file, samples), visit)
    return found
