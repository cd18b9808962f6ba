"""What quantizing passes ask of the model and the data before them, and say of the file after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optkit import _validate
from optkit.artifact import Artifact, KerasArtifact
from optkit.context import Context
from optkit.data import ArraySplit, BoundData, Split, batch_length, join_leaves, map_leaves
from optkit.errors import ArgumentTypeError, DataError, PipelineError
from optkit.lookups import split_lookups
from optkit.models import Signature, TensorInfo, signature, walk_layers
from optkit.task import Task, stratified_by

__all__ = [
    "CONVERTING",
    "FEW_SAMPLES",
    "CalibrationSamples",
    "Taken",
    "agreement",
    "agrees",
    "always_converts",
    "check_input_shape",
    "compare_ranges",
    "input_shapes",
    "leaves_of",
    "made_up",
    "require_exact_masks",
    "require_shapes",
    "signature_of",
    "take",
    "to_calibrate_on",
]

#: Fewer calibration samples than that are said in the row.
FEW_SAMPLES = 50

_AGREEMENT_SAMPLES = 512
_RANGE_SAMPLES = 2048

#: Layers that are known to convert in whatever way they are built; for others it is tried out.
# fmt: off
CONVERTING = frozenset({
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


def always_converts(model: Any) -> bool:
    """Whether every layer of a tf_keras model is known to convert, so nothing need be tried out."""
    return all(type(layer).__name__ in CONVERTING for layer in walk_layers(model))


def signature_of(artifact: Artifact) -> Signature:
    """Inputs and outputs of an artifact that can be converted."""
    source: Any = artifact
    found: Signature = (
        signature(source.model) if isinstance(artifact, KerasArtifact) else source.signature
    )
    return found


# ------------------------------------------------------------------------------------------ shapes


def _named_shapes(given: Any) -> dict[str, Any]:
    """Shapes by name of the input; under ``""`` that of the only one."""
    if given is None:
        return {}
    return dict(given) if isinstance(given, Mapping) else {"": given}


def check_input_shape(given: Any) -> None:
    """Checks the argument `input_shape` of a pass: a shape, a dict of shapes by name, or ``None``.

    Raises:
        ArgumentTypeError, PipelineError: If it is none of these.
    """
    for name, shape in _named_shapes(given).items():
        what = f"input_shape[{name!r}]" if name else "input_shape"
        if not isinstance(shape, tuple | list):
            raise ArgumentTypeError(
                f"`{what}` must be a tuple of whole numbers, such as (96, 96, 3), or a dict of them "
                f"by name of the input. Received: {shape!r}."
            )
        for place, size in enumerate(shape):
            _validate.integer(f"{what}[{place}]", size, minimum=1)


def input_shapes(
    given: Any, described: Signature, *, required: str | None = "A full-integer file"
) -> dict[str, tuple[int, ...]]:
    """The shapes of inputs that the argument `input_shape` of a pass fixes, by name.

    Args:
        given: The argument.
        described: The inputs of the file to be.
        required: What needs every shape fixed, in words; ``None`` where open ones may stay open.

    Raises:
        PipelineError: If it does not fit the inputs, or leaves one open that must be fixed.

    Example:
        >>> from optkit.testing import small_model
        >>> input_shapes(None, signature(small_model()))
        {}
    """
    opened = {info.name: info.shape[1:] for info in described.variable_inputs}
    named = _named_shapes(given)
    if "" in named:
        if len(opened) > 1:
            raise PipelineError(
                f"The model leaves the shapes of several inputs open: {sorted(opened)}. Pass "
                "`input_shape` as a dict by name."
            )
        named = dict.fromkeys(opened or (described.inputs[0].name,), named[""])
    every = {info.name: info.shape[1:] for info in described.inputs}
    if unknown := sorted(set(named) - set(every)):
        raise PipelineError(
            f"`input_shape` names inputs {unknown}; those of the file are {sorted(every)}."
        )
    if required and (missing := sorted(set(opened) - set(named))):
        shapes = ", ".join(f"{name} {opened[name]}" for name in missing)
        raise PipelineError(
            f"{required} needs fixed input shapes, and the model leaves some open: {shapes}. Pass "
            "`input_shape=…`, the shape of one sample without the batch, as it will be used."
        )
    for name, shape in named.items():
        model = every[name]
        if len(model) != len(shape) or any(
            a is not None and a != b for a, b in zip(model, shape, strict=True)
        ):
            raise PipelineError(
                f"`input_shape` {tuple(shape)} does not fit input {name!r} of shape {model}."
            )
    return {name: tuple(shape) for name, shape in named.items()}


def require_shapes(
    leaves: list[np.ndarray], described: Signature, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Holds a sample to the shapes that a file will take.

    Raises:
        DataError: If it has another shape.
    """
    for info, leaf in zip(described.inputs, leaves, strict=True):
        if info.name in shapes and leaf.shape[1:] != shapes[info.name]:
            raise DataError(
                f"`input_shape` says {shapes[info.name]} for input {info.name!r}, and a sample has "
                f"shape {leaf.shape[1:]}. A full-integer file takes one shape alone: bring the data "
                "to it (resize images; pad or cut sequences), or pass the shape that they have."
            )


# ----------------------------------------------------------------------------------------- samples


def leaves_of(x: Any, described: Signature) -> list[np.ndarray]:
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


def made_up(info: TensorInfo, shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    """One sample for an input, of numbers that any model takes; open sizes are 1."""
    shape = (1, *(1 if size is None else size for size in shapes.get(info.name, info.shape[1:])))
    if info.dtype == "string":
        return np.full(shape, "a", dtype=object)
    if info.dtype.startswith("float"):
        return np.random.default_rng(0).random(shape).astype(info.dtype)
    return np.zeros(shape, info.dtype)


@dataclass
class CalibrationSamples:
    """The samples that ranges are measured on; called, they start anew, always the same ones.

    Attributes:
        split: Where they are drawn from.
        described: The inputs of the model that came in.
        count: How many at most.
        seed: Which are drawn, where the split can be drawn from at random.
        shapes: Shapes by name that each must have.
        drawn: How many there were, of those that were gone through so far.
    """

    split: Split
    described: Signature
    count: int
    seed: int
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    drawn: int = 0

    def __call__(self) -> Iterator[list[np.ndarray]]:
        """The samples, each a list of the inputs in the model's order, shape ``(1, …)``."""
        for number, x in enumerate(self.split.single_inputs(self.count, self.seed), start=1):
            self.drawn = max(self.drawn, number)
            leaves = leaves_of(x, self.described)
            require_shapes(leaves, self.described, self.shapes)
            yield leaves

    def notes(self) -> tuple[str, ...]:
        """What the row of a pass says of them, once they were gone through."""
        name = self.split.name
        origin = "" if name == "calibration" else f", drawn from {name}"
        said = [f"calibrated on {self.drawn} sample{'s' * (self.drawn != 1)}{origin}"]
        if self.drawn < FEW_SAMPLES:
            said.append(
                f"few calibration samples ({self.drawn} < {FEW_SAMPLES}): ranges may be too narrow"
            )
        return tuple(said)


def to_calibrate_on(
    artifact: Artifact,
    context: Context,
    count: int,
    input_shape: Any,
    *,
    required: str | None = "A full-integer file",
) -> tuple[Any, CalibrationSamples, dict[str, tuple[int, ...]]]:
    """What comes into a pass that calibrates.

    Args:
        artifact: A Keras model, or a graph.
        context: Of the pass.
        count: Samples to calibrate on, at most.
        input_shape: The argument of the pass.
        required: As in `input_shapes`.

    Returns:
        The tf_keras model, or the graph; the samples; and the shapes of the file's inputs that are
        fixed, by name.

    Raises:
        PipelineError: If ``input_shape`` does not fit.
    """
    described = signature_of(artifact)
    source = artifact.model if isinstance(artifact, KerasArtifact) else artifact
    split = split_lookups(source) if isinstance(artifact, KerasArtifact) else None
    rest = described if split is None else signature(split.rest)
    shapes = input_shapes(input_shape, rest, required=required)
    samples = CalibrationSamples(
        context.data.calibration_split(),
        described,
        count,
        context.derive_seed("calibration"),
        shapes if split is None else {},  # what lookups give is brought to the shape behind them
    )
    return source, samples, shapes


@dataclass(frozen=True)
class Taken:
    """Samples to compare on, in memory.

    Attributes:
        x: Inputs, as batches of the split have them.
        y: Targets; ``None`` where there are none.
        weights: Weights of the samples; ``None`` where there are none.
        count: How many samples they are.
    """

    x: Any
    y: Any
    weights: Any
    count: int


def take(split: Split, task: Task, count: int, seed: int) -> Taken:
    """Samples of a split, drawn with the shares of the classes kept where that can be done.

    Args:
        split: Where they are drawn from; of a stream they are the first ones.
        task: What the model is for.
        count: How many at most; fewer where batches of a stream have other shapes.
        seed: Which are drawn.
    """
    if isinstance(split, ArraySplit) and split.samples is not None and split.samples > count:
        # A split may be sorted by class, so the first samples will not do.
        _, split, _ = split.cut(count / split.samples, seed, stratified_by(task))
    batches = list(_alike(split, count))
    parts: list[Any] = []
    for place in range(3):
        found = [batch[place] for batch in batches]
        joined = None if found[0] is None else join_leaves(found)
        parts.append(None if joined is None else map_leaves(lambda leaf: leaf[:count], joined))
    x, y, weights = parts
    return Taken(x, y, weights, batch_length(x))


def _alike(split: Split, count: int) -> Iterator[tuple[Any, Any, Any]]:
    """Batches up to so many samples, as long as they are of one shape."""
    shapes = None
    for x, y, weights in split.iterate_weighted():
        own = [np.shape(leaf)[1:] for part in (x, y) for leaf in _leaves(part)]
        if shapes not in (None, own):
            return
        shapes = own
        yield x, y, weights
        count -= batch_length(x)
        if count <= 0:
            return


def _leaves(part: Any) -> list[Any]:
    if isinstance(part, dict):
        return list(part.values())
    return list(part) if isinstance(part, tuple) else [part]


def compare_ranges(split: Split, train: Split | None) -> str | None:
    """Says so where calibration samples leave the range of the training data."""
    if train is None or len(split.inputs) != 1 or not split.inputs[0].dtype.startswith("float"):
        return None
    low, high = split.extent(_RANGE_SAMPLES)
    train_low, train_high = train.extent(_RANGE_SAMPLES)
    slack = 0.01 * (train_high - train_low)
    if low >= train_low - slack and high <= train_high + slack:
        return None
    return (
        f"calibration inputs range from {low:g} to {high:g}, outside the training data's "
        f"{train_low:g} to {train_high:g}: are they scaled alike?"
    )


# ------------------------------------------------------------------------------------------- masks


def require_exact_masks(model: Any, *, floats_in: bool) -> None:
    """Refuses masks by a value that 8 bits do not hold exactly: no step would be masked.

    Args:
        model: The tf_keras model.
        floats_in: Whether the file takes floats, so that layers on its inputs may compare them.

    Raises:
        PipelineError: If there is such a mask.
    """
    in_floats = {id(node.layer) for node in _nodes_on_inputs(model)} if floats_in else set()
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


# --------------------------------------------------------------------------------------- agreement


def agreement(before: Artifact, after: Artifact, data: BoundData, task: Task) -> str:
    """In words, how well two artifacts agree on samples of validation, else of what there is.

    Args:
        before: The artifact that came in.
        after: The artifact that was made of it.
        data: The splits of the run.
        task: What the model is for.
    """
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
        f"{name}: " * bool(name) + agrees(part, joined(0, name), joined(1, name))
        for name, part in task.each.items()
    ]
    return f"read back: {'; '.join(each)}"


def agrees(task: Task, one: np.ndarray, other: np.ndarray) -> str:
    """In words, how well outputs agree with those of the float model."""
    if task.kind == "multiclass":
        alike = one.argmax(-1) == other.argmax(-1)
    elif task.is_classification:
        threshold = 0.0 if task.from_logits else 0.5
        alike = (one > threshold) == (other > threshold)
    else:
        spread = float(np.std(one)) or 1.0
        error = float(np.sqrt(np.mean((one - other) ** 2))) / spread
        return f"differs from the float model by {100 * error:.2g} % of its spread"
    several = "the answers for " * (alike.size > len(one))  # labels, steps, pixels
    return (
        f"agrees with the float model on {100 * alike.mean():.1f} % of {several}{len(one)} samples"
    )
