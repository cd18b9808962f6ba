"""`QuantizeINT8`: a full-integer TFLite file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from optkit import _validate
from optkit.artifact import Artifact, GraphArtifact, KerasArtifact, TFLiteArtifact
from optkit.base import ConvertPass
from optkit.context import Context, Setting
from optkit.convert import convert
from optkit.data import Split
from optkit.errors import ArgumentTypeError, DataError, OptkitError, PipelineError
from optkit.lookups import split_lookups
from optkit.models import Signature, signature, walk_layers
from optkit.task import Task

__all__ = ["QuantizeINT8", "agreement"]

_FEW_SAMPLES = 50
_AGREEMENT_SAMPLES = 512
_RANGE_SAMPLES = 2048

#: Layers that are known to convert in whatever way they are built; for others it is tried out.
# fmt: off
_CONVERTING = frozenset({
    "Activation", "Add", "Average", "AveragePooling1D", "AveragePooling2D",
    "BatchNormalization", "Concatenate", "Conv1D", "Conv2D", "Conv2DTranspose", "Cropping1D",
    "Cropping2D", "Dense", "DepthwiseConv1D", "DepthwiseConv2D", "Dropout", "ELU", "Embedding",
    "Flatten", "GaussianDropout", "GaussianNoise", "GlobalAveragePooling1D",
    "GlobalAveragePooling2D", "GlobalMaxPooling1D", "GlobalMaxPooling2D", "InputLayer",
    "LayerNormalization", "LeakyReLU", "MaxPooling1D", "MaxPooling2D", "Maximum", "Minimum",
    "Multiply", "Permute", "PReLU", "ReLU", "RepeatVector", "Rescaling", "Reshape",
    "SeparableConv1D", "SeparableConv2D", "Softmax", "SpatialDropout1D", "SpatialDropout2D",
    "Subtract", "UpSampling1D", "UpSampling2D", "ZeroPadding1D", "ZeroPadding2D",
})
# fmt: on


class QuantizeINT8(ConvertPass):
    """Quantizes weights, activations, inputs and outputs to 8 bits: post-training quantization.

    Use it last: the file has about a quarter of the size, and runs in integers alone. Weights get a
    scale a channel; the range of every activation is measured on calibration samples. The file is
    read back through LiteRT, and the row says how well it agrees with the float model.

    Recurrent layers are unrolled: the file grows with the number of steps. A model that computes in
    16 bits is converted from a float32 twin. Lookups of strings and categories, which TFLite cannot
    run, are split off, and the artifact runs them before the file. What does not convert at all is
    tried out and refused before anything trains.

    Args:
        calibration_samples: Samples to calibrate on, at least 1, drawn from ``calibration``, else
            from ``train`` (of streams the first ones), else from ``validation``. A few hundred that look like the data in use are enough.
        io: Type of the file's input and output: ``"int8"``, or ``"float32"`` for callers that
            cannot quantize themselves. Whole-number inputs (token ids) stay what they are.
        input_shape: Shape of one input without the batch, for a model that leaves sizes or lengths
            open: ``(96, 96, 3)``; for several such inputs a dict by name. ``None`` where the model
            leaves none open. Inputs behind a lookup are filled up with zeros or cut off; others
            must have that shape.

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

    accepts = GraphArtifact
    produces = TFLiteArtifact

    def __init__(
        self,
        calibration_samples: int = 200,
        *,
        io: str = "int8",
        input_shape: tuple[int, ...] | list[int] | dict[str, Any] | None = None,
    ):
        _validate.integer("calibration_samples", calibration_samples, minimum=1)
        _validate.one_of("io", io, ("int8", "float32"))
        for name, shape in _named_shapes(input_shape).items():
            _check_shape(name, shape)
        self.calibration_samples = calibration_samples
        self.io = io
        self.input_shape = input_shape

    @property
    def needs(self) -> tuple[str, ...]:
        """Something to calibrate on."""
        return ("calibration",)

    def check(self, setting: Setting) -> None:
        """Refuses open shapes, and what does not convert: layers that may not are tried out."""
        model = setting.model
        if model is None:
            return
        _require_exact_masks(model, self.io)
        split = split_lookups(model)
        rest = model if split is None else split.rest
        shapes = self._shapes(signature(rest))
        if shapes:
            sample = next(setting.data.calibration_split().single_inputs(1, 0))
            fixed = {} if split is not None else shapes
            _require_shapes(_leaves(sample, signature(model)), signature(model), fixed)
        if split is None and all(type(x).__name__ in _CONVERTING for x in walk_layers(model)):
            return
        self._try_out(model, shapes)

    def _shapes(self, described: Signature) -> dict[str, tuple[int, ...]]:
        """The shapes of the inputs that the model leaves open."""
        opened = {info.name: info.shape[1:] for info in described.variable_inputs}
        given = _named_shapes(self.input_shape)
        if "" in given:
            if len(opened) > 1:
                raise PipelineError(
                    f"The model leaves the shapes of several inputs open: {sorted(opened)}. Pass "
                    "`input_shape` as a dict by name."
                )
            given = dict.fromkeys(opened or (described.inputs[0].name,), given[""])
        every = {info.name: info.shape[1:] for info in described.inputs}
        if unknown := sorted(set(given) - set(every)):
            raise PipelineError(
                f"`input_shape` names inputs {unknown}; those of the file are {sorted(every)}."
            )
        if missing := sorted(set(opened) - set(given)):
            shapes = ", ".join(f"{name} {opened[name]}" for name in missing)
            raise PipelineError(
                "A full-integer file needs fixed input shapes, and the model leaves some open: "
                f"{shapes}. Pass `input_shape=…`, the shape of one sample without the batch, as it "
                "will be used."
            )
        for name, shape in given.items():
            model = every[name]
            if len(model) != len(shape) or any(
                a is not None and a != b for a, b in zip(model, shape, strict=True)
            ):
                raise PipelineError(
                    f"`input_shape` {tuple(shape)} does not fit input {name!r} of shape {model}."
                )
        return {name: tuple(shape) for name, shape in given.items()}

    def _try_out(self, model: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Converts the model as it came, on a made-up sample, to learn whether it can be done."""
        described = signature(model)
        sample = [_made_up(info, shapes) for info in described.inputs]
        try:
            made = convert(
                model,
                samples=lambda: iter([sample, sample]),
                io="int8" if self.io == "int8" else "float32",
                input_shapes=shapes,
            )
            names = [info.name for info in described.inputs]
            made.artifact.predict(dict(zip(names, sample, strict=True)))
        except OptkitError as error:
            raise PipelineError(
                f"Model {model.name!r} was tried out and does not convert: {error}"
            ) from error

    def convert(self, artifact: Artifact, context: Context) -> Artifact:
        """Calibrates and converts."""
        source: Any = artifact.model if isinstance(artifact, KerasArtifact) else artifact
        described = signature(source) if isinstance(artifact, KerasArtifact) else source.signature
        split = split_lookups(source) if isinstance(artifact, KerasArtifact) else None
        shapes = self._shapes(described if split is None else signature(split.rest))
        calibration = context.data.calibration_split()
        drawn = 0

        def samples() -> Iterator[list[np.ndarray]]:
            nonlocal drawn
            drawn = 0
            seed = context.derive_seed("calibration")
            for x in calibration.single_inputs(self.calibration_samples, seed):
                drawn += 1
                leaves = _leaves(x, described)
                if split is None:
                    _require_shapes(leaves, described, shapes)
                yield leaves

        made = convert(
            source,
            samples=samples,
            io="int8" if self.io == "int8" else "float32",
            input_shapes=shapes,
        )
        origin = "" if calibration.name == "calibration" else f", drawn from {calibration.name}"
        context.note(f"calibrated on {drawn} samples{origin}")
        if drawn < _FEW_SAMPLES:
            context.note(
                f"few calibration samples ({drawn} < {_FEW_SAMPLES}): ranges may be too narrow"
            )
        for note in made.notes:
            context.note(note)
        return made.artifact

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
    pairs: list[tuple[Any, Any]] = []
    seen = 0
    for x, y in split.iterate():
        count = len(next(iter(y.values())) if isinstance(y, dict) else y)
        pairs.append((before.predict(x, count), after.predict(x, count)))
        seen += count
        if seen >= _AGREEMENT_SAMPLES:
            break

    def joined(side: int, name: str) -> np.ndarray:
        parts = [pair[side] for pair in pairs]
        return np.concatenate([part[name] if isinstance(part, dict) else part for part in parts])

    each = [
        f"{name}: " * bool(name) + _agrees(task, joined(0, name), joined(1, name))
        for name, task in context.task.each.items()
    ]
    return f"read back: {'; '.join(each)}"


def _agrees(task: Task, one: np.ndarray, other: np.ndarray) -> str:
    """In words, how well outputs agree with those of the float model."""
    if task.kind == "multiclass":
        same = float((one.argmax(-1) == other.argmax(-1)).mean())
    elif task.is_classification:
        threshold = 0.0 if task.from_logits else 0.5
        same = float(((one > threshold) == (other > threshold)).mean())
    else:
        spread = float(np.std(one)) or 1.0
        error = float(np.sqrt(np.mean((one - other) ** 2))) / spread
        return f"differs from the float model by {100 * error:.2g} % of its spread"
    return f"agrees with the float model on {100 * same:.1f} % of {len(one)} samples"


def _named_shapes(given: Any) -> dict[str, Any]:
    """Shapes by name of the input; under ``""`` that of the only one."""
    if given is None:
        return {}
    return dict(given) if isinstance(given, Mapping) else {"": given}


def _check_shape(name: str, shape: Any) -> None:
    what = f"input_shape[{name!r}]" if name else "input_shape"
    if not isinstance(shape, tuple | list):
        raise ArgumentTypeError(
            f"`{what}` must be a tuple of whole numbers, such as (96, 96, 3), or a dict of them by "
            f"name of the input. Received: {shape!r}."
        )
    for place, size in enumerate(shape):
        _validate.integer(f"{what}[{place}]", size, minimum=1)


def _leaves(x: Any, described: Signature) -> list[np.ndarray]:
    """The inputs of a sample in the model's order and types."""
    infos = described.inputs
    if isinstance(x, dict):
        leaves = [x[info.name] for info in infos]
    else:
        leaves = list(x) if isinstance(x, tuple) else [x]
    return [
        leaf if info.dtype == "string" else leaf.astype(info.dtype, copy=False)
        for leaf, info in zip(leaves, infos, strict=True)
    ]


def _require_shapes(
    leaves: list[np.ndarray], described: Signature, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    for info, leaf in zip(described.inputs, leaves, strict=True):
        if info.name in shapes and leaf.shape[1:] != shapes[info.name]:
            raise DataError(
                f"`input_shape` says {shapes[info.name]} for input {info.name!r}, and a sample has "
                f"shape {leaf.shape[1:]}. A full-integer file takes one shape alone: bring the data "
                "to it (resize images; pad or cut sequences), or pass the shape that they have."
            )


def _require_exact_masks(model: Any, io: str) -> None:
    """Refuses masks by a value that 8 bits do not hold exactly: no step would be masked."""
    in_floats = {id(node.layer) for node in _nodes_on_inputs(model)} if io == "float32" else set()
    for layer in walk_layers(model):
        if type(layer).__name__ != "Masking" or layer.mask_value == 0 or id(layer) in in_floats:
            continue
        raise PipelineError(
            f"Layer {layer.name!r} masks the steps that hold {layer.mask_value:g}, which 8 bits do "
            "not hold exactly, so the file would mask none. Mask by 0, which they do hold: "
            "`Masking(0.0)`, and 0 in the data; or have the layer take an input of the model, and "
            'the file take floats: `io="float32"`.'
        )


def _nodes_on_inputs(model: Any) -> list[Any]:
    """The calls of layers that take the model's inputs as they come."""
    given = {id(tensor) for tensor in model.inputs}
    return [
        node
        for nodes in model._nodes_by_depth.values()
        for node in nodes
        if node.keras_inputs and all(id(tensor) in given for tensor in node.keras_inputs)
    ]


def _made_up(info: Any, shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    """One sample for an input, of numbers that any model takes."""
    shape = (1, *(1 if size is None else size for size in shapes.get(info.name, info.shape[1:])))
    if info.dtype == "string":
        return np.full(shape, "a", dtype=object)
    if info.dtype.startswith("float"):
        return np.random.default_rng(0).random(shape).astype(info.dtype)
    return np.zeros(shape, info.dtype)
