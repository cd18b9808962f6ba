"""The twin of a model in which values are rounded as a full-integer file will round them.

Quantization-aware training trains the twin and takes its weights back. The parts are those of
tensorflow-model-optimization: its wrapper, which has a layer compute with rounded weights, its
registry, which knows what layers can be rounded, and its interface of quantizers. The twin is wired
here and not by its ``quantize_apply``, which copies layers by their configurations (so that they
lose what they have learned), refuses models within models, and takes the rounding away from the
weights of a layer that a ``ReLU`` layer follows.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from optkit.constraint import Constraint
from optkit.data import Split
from optkit.errors import ModelError, PipelineError, first_line
from optkit.models import (
    flat_copy,
    is_batch_norm,
    is_graph,
    is_variable,
    layers_by_path,
    output_names,
    rewire,
    variables_by_path,
    walk_layers,
)
from optkit.runtime import tensorflow, tf_keras, tfmot

__all__ = ["Plan", "Role", "Twin", "addressed", "make_plan", "make_twin"]

#: Weights that are rounded, by class of the layer: the attribute, and what has a scale of its own.
_WEIGHTS: dict[str, tuple[tuple[str, str], ...]] = {
    "Conv1D": (("kernel", "last"),),
    "Conv2D": (("kernel", "last"),),
    "Conv2DTranspose": (("kernel", "third"),),
    "Dense": (("kernel", "last"),),
    "DepthwiseConv1D": (("depthwise_kernel", "last two"),),
    "DepthwiseConv2D": (("depthwise_kernel", "last two"),),
    "Embedding": (("embeddings", "whole"),),
    "SeparableConv1D": (("depthwise_kernel", "last two"), ("pointwise_kernel", "last")),
    "SeparableConv2D": (("depthwise_kernel", "last two"), ("pointwise_kernel", "last")),
}
#: Layers for which integer kernels take weights of four bits.
_FOUR_BITS = frozenset({"Conv1D", "Conv2D", "Dense"})
#: Layers without weights whose outputs are rounded, beside those that tfmot knows.
_ROUNDED = frozenset(
    {"Average", "BatchNormalization", "Maximum", "Minimum", "Multiply", "Rescaling", "Subtract"}
)
#: Layers that hand on the values that they are given, beside those that tfmot knows.
_HANDING_ON = frozenset(
    {
        *("AlphaDropout", "GaussianDropout", "GaussianNoise", "InputLayer", "MaxPooling1D"),
        *("MaxPooling3D", "RepeatVector", "UpSampling1D", "ZeroPadding3D"),
    }
)
#: Activations into which integer kernels put values of a scale of their own, whatever comes out.
_FIXED = frozenset({"softmax", "sigmoid", "tanh"})
#: Activations that integer kernels compute together with what stands before them.
_FUSED = frozenset({"relu", "relu6"})
#: Layers of Keras' that hold functions, which may do whatever they like.
_FUNCTIONS = frozenset({"Lambda", "SlicingOpLambda", "TFOpLambda"})
_MERGES = frozenset({"Add", "Subtract", "Multiply"})
_OBSERVED_BATCHES = 16
_SLOWEST = 0.999  # share that a range keeps of itself each step, where there are many
_FASTEST = 0.9


@dataclass(frozen=True)
class Role:
    """What is rounded at a layer.

    Attributes:
        weights: Attributes of the weights, each with what has a scale of its own in it.
        bits: Bits of the weights.
        before: Whether what goes into its activation is rounded.
        after: Whether its output is rounded.
    """

    weights: tuple[tuple[str, str], ...] = ()
    bits: int = 8
    before: bool = False
    after: bool = False


@dataclass(frozen=True)
class Plan:
    """What is rounded in a model.

    Attributes:
        roles: What is rounded, by path of the layer.
        left_out: Why nothing is, by path of the layer; layers that only hand values on are not
            here.
        kinds: The class of each layer.
    """

    roles: Mapping[str, Role]
    left_out: Mapping[str, str]
    kinds: Mapping[str, str]

    @property
    def weight_bits(self) -> dict[str, int]:
        """Bits of the weights that are rounded, by path of the layer."""
        return {path: role.bits for path, role in self.roles.items() if role.weights}

    def describe(self) -> Iterator[str]:
        """In words, what is rounded, and what is not, for which reason."""
        counts: dict[int, int] = {}
        for bits in self.weight_bits.values():
            counts[bits] = counts.get(bits, 0) + 1
        weights = " and ".join(
            f"of {_layers(count)} to {bits} bits" for bits, count in sorted(counts.items())
        )
        ranges = sum(role.before or role.after for role in self.roles.values())
        yield f"rounded in training: weights {weights}, outputs of {_layers(ranges)} to 8 bits"
        yield from self.describe_left_out()

    def describe_left_out(self) -> Iterator[str]:
        """A sentence for each reason."""
        by_reason: dict[str, list[str]] = {}
        for path, reason in self.left_out.items():
            by_reason.setdefault(reason, []).append(f"{path} ({self.kinds[path]})")
        for reason, layers in by_reason.items():
            more = f", … ({len(layers)} in all)" if len(layers) > 8 else ""
            yield f"left in float, {reason}: {', '.join(layers[:8])}{more}"


def _layers(count: int) -> str:
    return f"{count} layer{'s' * (count != 1)}"


@dataclass
class _Mode:
    """What quantizers of activations do.

    Attributes:
        observing: Whether they look at values, and let them through as they are.
        kept: Share that a range keeps of itself each training step.
    """

    observing: bool = False
    kept: float = _SLOWEST


@dataclass(frozen=True)
class Twin:
    """A model that computes with rounded values.

    Attributes:
        model: It, flat, with weights of its own; its inputs and outputs go by the same names.
        plan: What is rounded.
        pairs: Each variable of the original with its counterpart in the twin.
        ranges: The variables with the ends of the range to which a layer's output is rounded (of
            one that ends in an activation of a fixed scale, what goes into that), by its path.
    """

    model: Any
    plan: Plan
    pairs: tuple[tuple[Any, Any], ...]
    ranges: Mapping[str, tuple[Any, Any]]
    _mode: _Mode = field(default_factory=_Mode)

    def observe(self, split: Split, seed: int, steps: int) -> None:
        """Sets every range to what the first batches fill, before there is any rounding.

        Args:
            split: The data, taken in shuffled order.
            seed: Seed of the order.
            steps: Steps of the training to come: in a short one, ranges must follow faster.
        """
        tf = tensorflow()
        names = self.model.input_names

        def run(x: Any) -> None:
            inputs = [x[name] for name in names] if isinstance(x, dict) else x
            tensors = [
                tf.cast(tensor, wanted.dtype) if tensor.dtype != tf.string else tensor
                for tensor, wanted in zip(tf.nest.flatten(inputs), self.model.inputs, strict=True)
            ]
            self.model(tensors[0] if len(tensors) == 1 else tensors, training=False)

        batches = split.training_batches(seed).take(min(split.steps, _OBSERVED_BATCHES))
        step = tf.function(run, input_signature=[batches.element_spec[0]], autograph=False)
        self._mode.observing = True
        try:
            for x, _ in batches:
                step(x)
        finally:
            self._mode.observing = False
        # Some ten times within the training, the range has forgotten most of what it was.
        self._mode.kept = min(_SLOWEST, max(_FASTEST, 1 - 10 / max(1, steps)))

    def keep(self, model: Any, constraints: Iterable[Constraint]) -> Any:
        """A Keras callback that keeps constraints, which are on the original's variables.

        Args:
            model: The original.
            constraints: What must be kept.
        """
        tf = tensorflow()
        counterparts = {id(old): new for old, new in self.pairs}
        variables = variables_by_path(model)
        held = [
            (counterparts[id(variables[item.path])], item)
            for item in constraints
            if item.path in variables
        ]

        def run() -> None:
            for variable, constraint in held:
                variable.assign(constraint.project(variable))

        # In one compiled step: one after the other they would take longer than the training step.
        step = tf.function(run, autograph=False)

        class Projecting(tf_keras().callbacks.Callback):  # type: ignore[misc]
            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                if held:
                    step()

        return Projecting()

    def take(self, other: Twin) -> None:
        """Takes the weights and ranges of another twin of the same model."""
        for own, given in zip(self.model.weights, other.model.weights, strict=True):
            own.assign(given.numpy())
        self._mode.kept = other._mode.kept

    def hand_back(self) -> None:
        """Sets the variables of the original to those of the twin."""
        for old, new in self.pairs:
            old.assign(new)

    def learned(self) -> dict[str, tuple[float, float]]:
        """The range of each layer that has one, zero in it; those without extent are left out."""
        found = {path: (float(low), float(high)) for path, (low, high) in self.ranges.items()}
        return {path: ends for path, ends in found.items() if ends[0] < ends[1]}


def _by_replica() -> dict[str, Any]:
    """Arguments of a variable that each replica sets by itself, as batch normalization does."""
    tf = tensorflow()
    return {
        "synchronization": tf.VariableSynchronization.ON_READ,
        "aggregation": tf.VariableAggregation.MEAN,
    }


def addressed(names: Iterable[str], model: Any, what: str) -> frozenset[str]:
    """The paths of the layers that names stand for.

    Args:
        names: Paths, own names of layers, names of models within the model for all in them, or
            names of classes.
        model: The model.
        what: The argument that holds the names.

    Raises:
        PipelineError: For a name that stands for none, with the nearest ones.
    """
    layers = layers_by_path(model)
    found: set[str] = set()
    for name in names:
        same = {
            path
            for path, layer in layers.items()
            if name in (path, path.rpartition("/")[2], type(layer).__name__)
            or path.startswith(f"{name}/")
        }
        if not same:
            known = {*layers, *(type(layer).__name__ for layer in layers.values())}
            near = difflib.get_close_matches(name, sorted(known)) or sorted(layers)
            raise PipelineError(
                f"`{what}` names {name!r}, and model {model.name!r} has no layer of that name or "
                f"class. Did you mean one of these: {', '.join(near)}?"
            )
        found |= same
    return frozenset(found)


def make_plan(model: Any, skip: frozenset[str] = frozenset(), bits: int = 8) -> Plan:
    """What `make_twin` would round in a model.

    Args:
        model: A built functional or Sequential tf_keras model.
        skip: Paths of layers at which nothing is rounded.
        bits: Bits of the weights.

    Raises:
        PipelineError: If there are no layers whose weights can be rounded.
    """
    flat, _, named = _flat(model)
    return _plan(flat, named, skip, bits, {})


def make_twin(model: Any, skip: frozenset[str] = frozenset(), bits: int = 8) -> Twin:
    """Makes the twin of a model.

    Args:
        model: A built functional or Sequential tf_keras model, which stays as it is.
        skip: Paths of layers at which nothing is rounded.
        bits: Bits of the weights, 8 or 4, where integer kernels take four; 8 elsewhere.

    Raises:
        PipelineError: If there are no layers whose weights can be rounded.
    """
    refused: dict[str, str] = {}
    while True:
        try:
            return _wire(model, skip, bits, refused)
        except _RefusedError as refusal:
            refused[refusal.path] = f"as tfmot refuses it ({refusal})"


class _RefusedError(Exception):
    """A layer that tfmot does not take, for whatever reason."""

    def __init__(self, path: str, reason: str):
        super().__init__(reason)
        self.path = path


def _wire(model: Any, skip: frozenset[str], bits: int, refused: Mapping[str, str]) -> Twin:
    keras = tf_keras()
    flat, copies, named = _flat(model)
    # Before anything is wrapped: the wrapper puts tensors in the place of the layers' variables.
    pairs = tuple(_paired(model, flat, copies))
    plan = _plan(flat, named, skip, bits, refused)
    mode = _Mode()
    parts = _parts()
    wrapped: dict[int, Any] = {}
    ranges: dict[str, tuple[Any, Any]] = {}

    def call(layer: Any, arguments: Any, keywords: Any) -> Any:
        path = named.get(id(layer), "")
        role = plan.roles.get(path)
        if role is None:
            return layer(*arguments, **keywords)
        try:
            if id(layer) not in wrapped:
                wrapped[id(layer)] = parts.wrap(layer, role, mode)
            result = wrapped[id(layer)](*arguments, **keywords)
        except Exception as error:
            raise _RefusedError(path, first_line(error)) from error
        if (found := wrapped[id(layer)].quantize_config.range()) is not None:
            ranges[path] = found
        return result

    inputs = _inputs_like(model)
    rounded = []
    for tensor, name in zip(inputs, model.input_names, strict=True):
        if tensor.dtype != tensorflow().float32:
            rounded.append(tensor)
            continue
        quantizer = parts.Range(mode, widening=True)
        rounded.append(parts.QuantizeLayer(quantizer, name=f"rounded_{name}")(tensor))
        ranges[name] = quantizer.ends[-1]
    found = rewire(flat, rounded, call)
    names = output_names(model)
    single = len(found) == 1 and not isinstance(model._nested_outputs, dict)
    twin = keras.Model(
        inputs, found[0] if single else dict(zip(names, found, strict=True)), name=model.name
    )
    return Twin(twin, plan, pairs, ranges, mode)


def _flat(model: Any) -> tuple[Any, tuple[Any, ...], dict[int, str]]:
    """A flat copy of a model, its layers in order, and the paths of the originals by identity."""
    given = _inputs_like(model)
    outputs, copies = flat_copy(model, given)
    paths = {id(layer): path for path, layer in layers_by_path(model).items()}
    named = {
        id(copy): paths[id(layer)] for layer, copy in zip(walk_layers(model), copies, strict=True)
    }
    return tf_keras().Model(given, outputs, name=model.name), copies, named


def _inputs_like(model: Any) -> list[Any]:
    """Keras inputs like those of a model, under the same names."""
    return [
        tf_keras().Input(
            shape=tensor.shape[1:], batch_size=tensor.shape[0], dtype=tensor.dtype, name=name
        )
        for tensor, name in zip(model.inputs, model.input_names, strict=True)
    ]


def _paired(model: Any, flat: Any, copies: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Each variable of a model once, with its counterpart in the layers of its flat copy."""
    keras = tf_keras()
    layers = list(zip(walk_layers(model), copies, strict=True))
    # Models that are wired in Python stay whole, and may hold weights beside their layers.
    opened = {layer.name: layer for layer in flat.layers if isinstance(layer, keras.Model)}
    for part in model._flatten_layers(include_self=False):
        if isinstance(part, keras.Model) and not is_graph(part) and part.name in opened:
            layers.append((part, opened[part.name]))
    seen: set[int] = set()
    for layer, copy in layers:
        for old, new in zip(layer.weights, copy.weights, strict=True):
            if is_variable(old) and id(old) not in seen:
                seen.add(id(old))
                yield old, new
    missing = [path for path, item in variables_by_path(model).items() if id(item) not in seen]
    if missing:
        raise ModelError(
            f"Weights {', '.join(missing[:3])} of model {model.name!r} belong to none of its "
            "layers, so they cannot be trained in a copy of these. Put them into a layer."
        )


# --------------------------------------------------------------------------------- what is rounded


def _is_keras(layer: Any) -> bool:
    """Whether a layer is one of Keras' own, not one that a user derived from it."""
    return type(layer).__module__.partition(".")[0] == "tf_keras"


def _plan(
    flat: Any,
    named: Mapping[int, str],
    skip: frozenset[str],
    bits: int,
    refused: Mapping[str, str],
) -> Plan:
    """What is rounded in a flat model.

    Args:
        flat: The model, without models within.
        named: The path of each layer in the original, by identity.
        skip: Paths of layers to leave in float.
        bits: Bits of the weights.
        refused: Paths of layers that tfmot did not take, with the reason.
    """
    uses = _Uses(flat)
    roles: dict[str, Role] = {}
    left_out: dict[str, str] = {}
    kinds: dict[str, str] = {}
    for layer in flat.layers:
        path = named.get(id(layer), layer.name)
        kinds[path] = type(layer).__name__
        if not uses.gives_floats(layer) or (_is_keras(layer) and _hands_on(kinds[path])):
            continue
        if path in skip:
            left_out[path] = "as `skip` says"
            continue
        role = refused.get(path) or _role(layer, bits)
        if isinstance(role, Role):
            role = uses.hindrance(layer) or role
        if isinstance(role, str):
            left_out[path] = role
        elif role is not None:
            kept = _unrounded(role) if uses.goes_on(layer) else role
            if kept.weights or kept.after:
                roles[path] = kept
    if not any(role.weights for role in roles.values()):
        reasons = "; ".join(Plan(roles, left_out, kinds).describe_left_out())
        raise PipelineError(
            f"Model {flat.name!r} has no layer whose weights can be rounded in training: {reasons}. "
            "Quantize it after training alone, with `QuantizeINT8` or `QuantizeDynamic`."
        )
    return Plan(roles, left_out, kinds)


def _hands_on(kind: str) -> bool:
    # Random augmentation is in training alone.
    return kind in _HANDING_ON or kind.startswith("Random")


def _unrounded(role: Role) -> Role:
    """A role without rounding of the output."""
    return Role(role.weights, role.bits, role.before, False)


def _role(layer: Any, bits: int) -> Role | str | None:
    """What is rounded at a layer by itself; ``None`` for nothing, or the reason why not."""
    kind = type(layer).__name__
    if not _is_keras(layer) or kind in _FUNCTIONS:
        return "code of its own"
    if kind in _WEIGHTS:
        activation = _activation(layer)
        return Role(
            _WEIGHTS[kind],
            bits if kind in _FOUR_BITS else 8,
            before=activation in _FIXED,
            # The values of a table are on the scale of its weights.
            after=kind != "Embedding" and activation not in _FIXED,
        )
    if kind in _ROUNDED or is_batch_norm(layer):
        return Role(after=True)
    registry = tfmot().quantization.keras.default_8bit.Default8BitQuantizeRegistry()
    if not registry.supports(layer):
        return "as tfmot does not round such layers"
    try:
        config = registry.get_quantize_config(layer)
        after = bool(config.get_output_quantizers(layer))
    except ValueError:
        return "as tfmot does not round such activations"
    return Role(after=True) if after else None


def _activation(layer: Any) -> str:
    """The name of a layer's own activation; ``"linear"`` for none."""
    return str(getattr(getattr(layer, "activation", None), "__name__", "linear"))


class _Uses:
    """Where the layers of a flat model are used.

    Args:
        flat: The model.
    """

    def __init__(self, flat: Any):
        flatten = tensorflow().nest.flatten
        self._nodes: dict[int, list[Any]] = {}
        self._takers: dict[int, list[Any]] = {}
        self._outputs = {id(tensor) for tensor in flat.outputs}
        for nodes in flat._nodes_by_depth.values():
            for node in nodes:
                self._nodes.setdefault(id(node.layer), []).append(node)
                if not node.is_input:
                    for tensor in node.keras_inputs:
                        self._takers.setdefault(id(tensor), []).append(node.layer)
        self._given = {
            key: [tensor for node in nodes for tensor in flatten(node.outputs)]
            for key, nodes in self._nodes.items()
        }

    def gives_floats(self, layer: Any) -> bool:
        """Whether there is something to round: words and whole numbers stay what they are."""
        return any(tensor.dtype.is_floating for tensor in self._given[id(layer)])

    def hindrance(self, layer: Any) -> str | None:
        """Why a layer cannot be wrapped where it is used."""
        for node in self._nodes[id(layer)]:
            taken = () if node.is_input else node.keras_inputs
            tensors = [*taken, *self._given[id(layer)]]
            if any(getattr(tensor, "_keras_mask", None) is not None for tensor in tensors):
                return "as tfmot's wrapper drops masks"
            if any(tensor.dtype.name == "float64" for tensor in tensors):
                return "as it computes in 64 bits"
            if len(node.call_args) != 1 or set(node.call_kwargs) - {"training"}:
                return "as it takes more than its input"
        return None

    def _follower(self, layer: Any) -> Any:
        """The layer that alone takes what a layer gives; ``None`` where others see it, too."""
        given = self._given[id(layer)]
        if len(given) != 1 or id(given[0]) in self._outputs:
            return None
        takers = self._takers.get(id(given[0]), [])
        if len(takers) != 1 or len(self._nodes[id(takers[0])]) != 1:
            return None
        return takers[0]

    def goes_on(self, layer: Any) -> bool:
        """Whether a kernel computes the layer and the next one at once, without rounding between.

        Integer kernels do so with a batch normalization behind a convolution and with a ReLU; and
        what is concatenated has one scale, that of the whole.
        """
        after = self._follower(layer)
        if after is None or not _is_keras(after):
            return False
        if type(after).__name__ == "Concatenate":
            return True
        if _activation(layer) != "linear":
            return False
        kernel = type(layer).__name__ in _WEIGHTS and type(layer).__name__ != "Embedding"
        if is_batch_norm(after):
            # Behind a dense layer on sequences it stays an operation of its own.
            flat = type(layer).__name__ != "Dense" or len(self._given[id(layer)][0].shape) == 2
            return kernel and flat
        merges = type(layer).__name__ in _MERGES
        return _is_relu(after) and (kernel or merges or is_batch_norm(layer))


def _is_relu(layer: Any) -> bool:
    """Whether a layer only cuts off below zero, and perhaps above six."""
    kind = type(layer).__name__
    if kind == "Activation":
        return _activation(layer) in _FUSED
    if kind != "ReLU":
        return False
    return bool(
        not layer.negative_slope and not layer.threshold and layer.max_value in (None, 6, 6.0)
    )


# ------------------------------------------------------------------------------- with tfmot's parts


@dataclass(frozen=True)
class _Parts:
    """Classes derived from those of tfmot, which are known once it is imported."""

    Weights: Any
    Range: Any
    Config: Any
    Wrapper: Any
    QuantizeLayer: Any

    def wrap(self, layer: Any, role: Role, mode: _Mode) -> Any:
        """A layer that computes as another one with rounded values."""
        weights = [(name, self.Weights(role.bits, layout)) for name, layout in role.weights]
        ends = self.Range(mode) if role.before or role.after else None
        config = self.Config(weights, ends, before=role.before)
        return self.Wrapper(layer, config, name=layer.name)


@functools.cache
def _parts() -> _Parts:
    tf = tensorflow()
    quantize = tfmot().quantization.keras
    from tensorflow_model_optimization.python.core.quantization.keras import quantize_layer

    class Weights(quantize.quantizers.LastValueQuantizer):  # type: ignore[misc, name-defined]
        """Rounds weights symmetrically to the range that they fill at the time.

        Args:
            bits: Number of bits.
            layout: What has a range of its own: ``"last"`` axis, ``"third"`` axis, ``"last two"``
                axes taken together, or the ``"whole"``.
        """

        def __init__(self, bits: int, layout: str):
            super().__init__(
                num_bits=bits, per_axis=layout != "whole", symmetric=True, narrow_range=True
            )
            self.layout = layout

        def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
            *_, rows, last = tensor_shape
            channels = {"last": last, "third": rows, "last two": rows * last}.get(self.layout)
            shape = () if channels is None else (int(channels),)
            return {
                f"{end}_var": layer.add_weight(
                    f"{name}_{end}",
                    shape=shape,
                    initializer="zeros",
                    trainable=False,
                    **_by_replica(),
                )
                for end in ("min", "max")
            }

        def __call__(self, inputs: Any, training: Any, weights: Any, **keywords: Any) -> Any:
            # Always by the weights as they are: in inference tfmot would take the range of the
            # last training step, and in frozen layers the one that it begins with.
            if self.layout == "whole":
                return super().__call__(inputs, True, weights)
            flip = self.layout == "third"
            turned = tf.transpose(inputs, (0, 1, 3, 2)) if flip else inputs
            channels = weights["min_var"].shape[0]
            flat = tf.reshape(turned, (-1, channels))
            rounded = tf.reshape(super().__call__(flat, True, weights), turned.shape)
            return tf.transpose(rounded, (0, 1, 3, 2)) if flip else rounded

    class Range(quantize.quantizers.MovingAverageQuantizer):  # type: ignore[misc, name-defined]
        """Rounds to 256 values of a range, which follows what it is given in training.

        Args:
            mode: What it does.
            widening: Whether the range only ever becomes wider, as that of inputs should.
        """

        def __init__(self, mode: _Mode, widening: bool = False):
            super().__init__(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)
            self.mode, self.widening = mode, widening
            self.ends: list[tuple[Any, Any]] = []

        def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
            low, high = (
                layer.add_weight(
                    f"{name}_{end}",
                    shape=(),
                    initializer="zeros",
                    trainable=False,
                    **_by_replica(),
                )
                for end in ("min", "max")
            )
            self.ends.append((low, high))
            return {"min_var": low, "max_var": high}

        def __call__(self, inputs: Any, training: Any, weights: Any, **keywords: Any) -> Any:
            low, high = weights["min_var"], weights["max_var"]
            if self.mode.observing or training:
                # Zero is always in it: integer kernels fill the edges of images with it.
                least = tf.minimum(tf.reduce_min(inputs), 0.0)
                most = tf.maximum(tf.reduce_max(inputs), 0.0)
                if self.mode.observing or self.widening:
                    low, high = (
                        low.assign(tf.minimum(low, least)),
                        high.assign(tf.maximum(high, most)),
                    )
                else:
                    kept = self.mode.kept
                    low = low.assign(kept * low + (1 - kept) * least)
                    high = high.assign(kept * high + (1 - kept) * most)
            if self.mode.observing:
                return inputs
            return tf.quantization.fake_quant_with_min_max_vars(inputs, low, high, num_bits=8)

    class Config(quantize.QuantizeConfig):  # type: ignore[misc, name-defined]
        """Tells the wrapper what to round at a layer.

        Args:
            weights: Attributes of the layer, with what rounds them.
            ends: What rounds activations; ``None`` for nothing.
            before: Whether it rounds what goes into the layer's activation, not what comes out.
        """

        def __init__(self, weights: list[tuple[str, Any]], ends: Any, *, before: bool):
            self.weights, self.ends, self.before = weights, ends, before

        def range(self) -> tuple[Any, Any] | None:
            """The variables with the ends of the range."""
            return self.ends.ends[-1] if self.ends is not None else None

        def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
            return [(getattr(layer, name), quantizer) for name, quantizer in self.weights]

        def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
            for (name, _), value in zip(self.weights, quantize_weights, strict=True):
                setattr(layer, name, value)

        def get_activations_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
            return [(layer.activation, self.ends)] if self.before else []

        def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
            if self.before:
                layer.activation = quantize_activations[0]

        def get_output_quantizers(self, layer: Any) -> list[Any]:
            return [] if self.before or self.ends is None else [self.ends]

        def get_config(self) -> dict[str, Any]:
            return {"weights": self.weights, "ends": self.ends, "before": self.before}

    class Wrapper(quantize.QuantizeWrapperV2):  # type: ignore[misc, name-defined]
        """Computes as a layer with rounded values; a frozen layer stays frozen."""

        @property
        def trainable_weights(self) -> list[Any]:
            return super().trainable_weights if self.layer.trainable else []

    return _Parts(Weights, Range, Config, Wrapper, quantize_layer.QuantizeLayer)
