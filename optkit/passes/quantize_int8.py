"""`QuantizeINT8`: a full-integer TFLite file."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from optkit import _validate
from optkit.artifact import Artifact, KerasArtifact, TFLiteArtifact
from optkit.base import ConvertPass
from optkit.context import Context, Setting
from optkit.convert import convert_to_tflite
from optkit.data import Split
from optkit.errors import PipelineError
from optkit.models import recurrent_layers, signature

__all__ = ["QuantizeINT8", "agreement"]

_FEW_SAMPLES = 50
_AGREEMENT_SAMPLES = 512
_RANGE_SAMPLES = 2048


class QuantizeINT8(ConvertPass):
    """Quantizes weights, activations, inputs and outputs to 8 bits: post-training quantization.

    Use it last: the file has about a quarter of the size, and runs in integers alone. Weights get a scale a channel; the range of every activation is measured on
    calibration samples. The file is read back through LiteRT, and the row says how well it agrees
    with the float model.

    Args:
        calibration_samples: Samples to calibrate on, at least 1, drawn from ``calibration``, else
            from ``train`` (of streams the first ones), else from ``validation``. A few hundred that look like the data in use are enough.
        io: Type of the file's input and output: ``"int8"``, or ``"float32"`` for callers that
            cannot quantize themselves. Whole-number inputs (token ids) stay what they are.

    Example:
        >>> import optkit as ok
        >>> from optkit.testing import digits, small_model
        >>> result = ok.Pipeline([ok.QuantizeINT8()]).run(small_model(), digits(samples=400))
        >>> result.artifact.inputs[0].dtype
        dtype('int8')

    References:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", 2018. Done by TensorFlow's converter.
    """

    accepts = KerasArtifact
    produces = TFLiteArtifact

    def __init__(self, calibration_samples: int = 200, *, io: str = "int8"):
        _validate.integer("calibration_samples", calibration_samples, minimum=1)
        _validate.one_of("io", io, ("int8", "float32"))
        self.calibration_samples = calibration_samples
        self.io = io

    @property
    def needs(self) -> tuple[str, ...]:
        """Something to calibrate on."""
        return ("calibration",)

    def check(self, setting: Setting) -> None:
        """Refuses recurrent layers, string inputs and open shapes, which do not convert."""
        model = setting.model
        if model is None:
            return
        setting.require_float32()
        recurrent = recurrent_layers(model)
        if recurrent:
            raise PipelineError(
                f"Layers {', '.join(recurrent)} loop over time, and a full-integer file of such a "
                "loop cannot be calibrated. Build them with `unroll=True` and a fixed length."
            )
        described = signature(model)
        strings = [info.name for info in described.inputs if info.dtype == "string"]
        if strings:
            raise PipelineError(
                f"Inputs {', '.join(strings)} are strings, which a full-integer file cannot take. "
                "Take the lookup or vectorizing layer out of the model and feed its output."
            )
        opened = described.variable_inputs
        if opened:
            shapes = ", ".join(f"{info.name} {info.shape}" for info in opened)
            raise PipelineError(
                f"A full-integer file needs fixed input shapes, and the model leaves some open: "
                f"{shapes}. Build the model with the size it will be used with."
            )

    def convert(self, artifact: Artifact, context: Context) -> Artifact:
        """Calibrates and converts."""
        assert isinstance(artifact, KerasArtifact)  # `accepts` saw to it
        split = context.data.calibration_split()
        drawn = 0

        def samples() -> Iterator[list[np.ndarray]]:
            nonlocal drawn
            drawn = 0
            infos = signature(artifact.model).inputs
            seed = context.derive_seed("calibration")
            for x in split.single_inputs(self.calibration_samples, seed):
                drawn += 1
                if isinstance(x, dict):
                    leaves = [x[info.name] for info in infos]
                else:
                    leaves = list(x) if isinstance(x, tuple) else [x]
                yield [
                    leaf.astype(info.dtype, copy=False)
                    for leaf, info in zip(leaves, infos, strict=True)
                ]

        content = convert_to_tflite(
            artifact.model,
            representative=samples,
            io="int8" if self.io == "int8" else "float32",
        )
        converted = TFLiteArtifact(content)
        source = "" if split.name == "calibration" else f", drawn from {split.name}"
        context.note(f"calibrated on {drawn} samples{source}")
        if drawn < _FEW_SAMPLES:
            context.note(
                f"few calibration samples ({drawn} < {_FEW_SAMPLES}): ranges may be too narrow"
            )
        return converted

    def review(self, before: Artifact, after: Artifact, context: Context) -> None:
        """Reads the file back, and compares calibration with training data."""
        split = context.data.calibration_split()
        if split.name == "calibration":
            _compare_ranges(split, context)
        context.note(agreement(before, after, context))


def _compare_ranges(split: Split, context: Context) -> None:
    """Says so where calibration samples leave the range of the training data."""
    train = context.data.train
    if train is None or len(split.inputs) != 1 or not split.inputs[0].dtype.startswith("float"):
        return
    low, high = split.extent(_RANGE_SAMPLES)
    train_low, train_high = train.extent(_RANGE_SAMPLES)
    slack = 0.01 * (train_high - train_low)
    if low < train_low - slack or high > train_high + slack:
        context.note(
            f"calibration inputs range from {low:g} to {high:g}, outside the training data's "
            f"{train_low:g} to {train_high:g}: are they scaled alike?"
        )


def agreement(before: Artifact, after: Artifact, context: Context) -> str:
    """In words, how well two artifacts agree on samples of validation, else of what there is."""
    data = context.data
    split = data.validation or data.calibration_split()
    outputs: list[tuple[np.ndarray, np.ndarray]] = []
    for x, y in split.iterate():
        outputs.append((before.predict(x, len(y)), after.predict(x, len(y))))
        if sum(len(one) for one, _ in outputs) >= _AGREEMENT_SAMPLES:
            break
    one, other = (np.concatenate(side) for side in zip(*outputs, strict=True))
    task = context.task
    if task.kind == "multiclass":
        same = float((one.argmax(-1) == other.argmax(-1)).mean())
    elif task.is_classification:
        threshold = 0.0 if task.from_logits else 0.5
        same = float(((one > threshold) == (other > threshold)).mean())
    else:
        spread = float(np.std(one)) or 1.0
        error = float(np.sqrt(np.mean((one - other) ** 2))) / spread
        return f"read back: differs from the float model by {100 * error:.2g} % of its spread"
    return f"read back: agrees with the float model on {100 * same:.1f} % of {len(one)} samples"
