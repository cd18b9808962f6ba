"""Activation ranges of a float file, measured on samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit.convert import Samples
from optkit.errors import DataError, OptkitError, first_line
from optkit.quantize.floatfile import FloatFile

__all__ = ["Histogram", "Ranges", "batches", "calibrate", "histograms", "observe", "runs"]

#: The lowest and highest value of each activation, by name of the tensor.
Ranges = dict[str, tuple[float, float]]

_BATCH_BYTES = 2**21  # inputs of about this size are run at once
_BATCH = 16
_THREADS = 2
_BINS = 2048
_VALUES_A_SAMPLE = 16384


def calibrate(file: FloatFile, samples: Samples) -> Ranges:
    """Measures the lowest and highest value of every activation.

    Runs LiteRT's own kernels with a profiler, as ai-edge-quantizer's calibration does, and takes
    extremes over all samples (its moving average cuts off what few samples reach).

    Args:
        file: The float file.
        samples: Gives inputs of the file, each a list in its order, shape ``(1, …)``.

    Returns:
        The extremes by name of the tensor, of all activations, inputs and outputs among them.

    Raises:
        DataError: If there is no sample, or one holds NaN or infinity.
        OptkitError: If the file does not run on the samples.
    """
    from ai_edge_quantizer import calibrator, recipe_manager
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    try:
        made = calibrator.Calibrator(
            file.content,
            num_threads=_THREADS,
            mode=calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED,
            qsv_update_func=min_max_update,
        )
    except (ValueError, RuntimeError) as error:
        raise OptkitError(f"LiteRT cannot run the float file. {first_line(error)}") from error
    # It counts operations for a progress bar, and reads all samples into a list for that.
    made._get_total_operations = lambda _: 0
    recipe = recipe_manager.RecipeManager()
    key = next(iter(made.get_signature_list()))
    names = [info.name for info in file.signature.inputs]
    for leaves in batches(file, samples):
        sample = dict(zip(names, leaves, strict=True))
        try:
            made.calibrate({key: [sample]}, recipe)
        except (ValueError, RuntimeError) as error:
            shapes = {name: leaf.shape for name, leaf in sample.items()}
            raise OptkitError(
                f"LiteRT could not run the float file on calibration samples of shape {shapes}. "
                f"{first_line(error)}"
            ) from error
    return _checked(
        {
            name: (float(np.min(found["min"])), float(np.max(found["max"])))
            for name, found in made.get_model_qsvs().items()
        },
        file,
    )


def batches(file: FloatFile, samples: Samples) -> Iterator[list[np.ndarray]]:
    """Samples in batches, checked.

    Args:
        file: The float file that will take them.
        samples: As for `calibrate`.

    Yields:
        Inputs in the order of the file's signature, up to 16 samples or about 2 MB at once.

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


def runs(
    file: FloatFile, samples: Iterator[list[np.ndarray]], content: bytes | None = None
) -> Iterator[Any]:
    """Runs a file batch by batch, every activation kept until the next one.

    Args:
        file: The float file.
        samples: Its inputs in the order of its signature, in batches: floats, or as they are stored.
        content: The bytes of a file made of it, to run in its place.

    Yields:
        The interpreter, behind each batch; what it holds is of that batch alone.

    Raises:
        OptkitError: If the file does not run on the samples.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    with warnings.catch_warnings():
        # Says that this is for debugging; the memory is what one batch takes.
        warnings.filterwarnings("ignore", message=".*experimental_preserve_all_tensors")
        interpreter = Interpreter(
            model_content=content or file.content,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            experimental_preserve_all_tensors=True,
            num_threads=_THREADS,
        )
    entry = next(iter(interpreter._get_full_signature_list().values()))
    places = [int(entry["inputs"][info.name]) for info in file.signature.inputs]
    details = {detail["index"]: detail for detail in interpreter.get_input_details()}
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
                interpreter.set_tensor(place, _stored(leaf, details[place]))
            interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise OptkitError(
                f"LiteRT could not run the file on samples of shape {list(fresh)}. "
                f"{first_line(error)}"
            ) from error
        yield interpreter


def _stored(leaf: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    """An input as the file takes it."""
    scale, zero_point = detail["quantization"]
    if not scale or leaf.dtype == detail["dtype"]:
        return leaf.astype(detail["dtype"], copy=False)
    limits = np.iinfo(detail["dtype"])
    steps = np.rint(leaf / np.float32(scale)) + zero_point
    return np.asarray(np.clip(steps, limits.min, limits.max).astype(detail["dtype"]))


def observe(
    file: FloatFile,
    samples: Iterator[list[np.ndarray]],
    visit: Callable[[str, np.ndarray], Any],
    content: bytes | None = None,
    *,
    names: Collection[str] | None = None,
) -> None:
    """Runs a file and shows the activations that it computes, batch by batch.

    Args:
        file: The float file.
        samples: As for `runs`.
        visit: Called with the name of a tensor and its values as they are stored.
        content: The bytes of a file made of it, to run in its place.
        names: The tensors to show; ``None`` for all, constants among them.

    Raises:
        OptkitError: If the file does not run on the samples.
    """
    for interpreter in runs(file, samples, content):
        for detail in interpreter.get_tensor_details():
            if names is not None and detail["name"] not in names:
                continue
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

    Returns:
        Histograms of 2048 bins by name of the tensor; none of what never changes.
    """
    found: dict[str, Histogram] = {}

    def visit(name: str, values: np.ndarray) -> None:
        low, high = ranges[name]
        flat = values.ravel()
        step = max(1, flat.size // (_VALUES_A_SAMPLE * max(1, len(values))))
        # An odd step, so that it does not fall in with the channels, which are often even.
        part = flat[:: step | 1]
        # In 64 bits, as the width of a bin may be less than 32 bits hold.
        scaled = (part.astype(np.float64) - low) * (_BINS / (high - low))
        bins = np.clip(scaled.astype(np.int64), 0, _BINS - 1)
        counts = np.bincount(bins, minlength=_BINS)
        if name in found:
            found[name].counts += counts
        else:
            found[name] = Histogram(low, high, counts)

    counted = {
        name for name, (low, high) in ranges.items() if high > low and name in file.float_tensors
    }
    observe(file, batches(file, samples), visit, names=counted)
    return found
