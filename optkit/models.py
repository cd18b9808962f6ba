"""What optkit needs to know about, and do with, tf_keras models: look at, copy, rebuild, name.

Nothing here trains or changes the model it is given.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit.errors import ModelError
from optkit.runtime import tensorflow, tf_keras

__all__ = [
    "LOOKUPS",
    "Signature",
    "TensorInfo",
    "batch_norms",
    "check_treatable",
    "clone",
    "compile_like",
    "compiled_loss_weights",
    "compiled_metrics",
    "constructor_config",
    "copy_learned_state",
    "copy_state",
    "final_activation",
    "flat_copy",
    "is_batch_norm",
    "is_compiled",
    "is_graph",
    "is_variable",
    "layers_by_path",
    "mixed_precision_layers",
    "nested_models",
    "output_names",
    "rewire",
    "signature",
    "sublayers",
    "variables_by_path",
    "walk_layers",
]

_PRUNING_PREFIX = "prune_low_magnitude_"

#: Layers that look numbers or texts up: what they take are names, between which nothing lies.
LOOKUPS = frozenset(
    {"CategoryEncoding", "Embedding", "Hashing", "IntegerLookup", "StringLookup"}
    | {"TextVectorization"}
)


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of a model: its name, its shape with the batch first, its dtype."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model, in the model's order."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    @property
    def variable_inputs(self) -> tuple[TensorInfo, ...]:
        """The inputs that leave a dimension other than the batch open."""
        return tuple(info for info in self.inputs if None in info.shape[1:])


def check_treatable(model: Any) -> None:
    """Refuses models that optkit cannot copy and train, each with its reason and a remedy.

    Raises:
        ModelError: For what is no Keras model, a Keras 3 model, a subclassed model, a model that
            is not built, and a model with ragged inputs.
    """
    keras = tf_keras()
    if not isinstance(model, keras.Model):
        keras3: Any = sys.modules.get("keras")
        if keras3 is not None and isinstance(model, keras3.Model):
            name = getattr(model, "name", "")
            raise ModelError(
                f"Model {name!r} is a Keras 3 model, and optkit works on tf_keras (Keras 2) "
                "models so far. Build it with `import tf_keras as keras` (package tf-keras), or "
                "set the environment variable TF_USE_LEGACY_KERAS=1 before TensorFlow is imported."
            )
        raise ModelError(
            "Expected a tf_keras model. Received: "
            f"{type(model).__module__}.{type(model).__qualname__}."
        )
    if not getattr(model, "_is_graph_network", False):
        if isinstance(model, keras.Sequential):
            raise ModelError(
                f"Sequential model {model.name!r} is not built, so its shapes are unknown. Give "
                "it an `Input(shape=…)` as its first layer, or call "
                "`model.build(input_shape=(None, …))` before `run`."
            )
        raise ModelError(
            f"Model {model.name!r} is subclassed ({type(model).__name__}): its layers are wired "
            "in Python code that no pass can copy or rewrite. Build it with the functional API "
            "(`tf_keras.Model(inputs, outputs)`) or as `Sequential`."
        )
    for name in ("call", "train_step", "test_step", "predict_step", "compute_loss"):
        if getattr(type(model), name).__module__.partition(".")[0] != "tf_keras":
            raise ModelError(
                f"Model {model.name!r} is of the class {type(model).__name__}, which has its own "
                f"`{name}()`; optkit would train it without. Take its graph alone: "
                "`tf_keras.Model(model.inputs, model.outputs)`."
            )
    ragged = [info.name for info in _ragged_inputs(model)]
    if ragged:
        raise ModelError(
            f"Inputs {', '.join(ragged)} of model {model.name!r} are ragged, and optkit gives "
            "models dense batches: what such a model makes of padding is not what it makes of "
            "ragged rows. Build it with dense inputs, and a mask (`mask_zero=True`, `Masking`) "
            "where padding must not count."
        )
    added = [kind for kind in ("AddLoss", "AddMetric") if _holds(model, kind)]
    if added:
        call = {"AddLoss": "add_loss", "AddMetric": "add_metric"}[added[0]]
        raise ModelError(
            f"Model {model.name!r} was given something by `model.{call}(…)`, which hangs beside its "
            f"outputs and would be left out of training. Call `self.{call}(…)` within the `call` "
            "of a layer of your own instead, or leave it out."
        )
    stateful = [layer.name for layer in sublayers(model) if getattr(layer, "stateful", False)]
    if stateful:
        raise ModelError(
            f"Layers {', '.join(stateful)} of model {model.name!r} are stateful: what they predict "
            "depends on earlier batches, so no figure would mean anything. Build them with "
            "`stateful=False`."
        )


def signature(model: Any) -> Signature:
    """The inputs and outputs of a built model."""

    def info(name: str, tensor: Any) -> TensorInfo:
        return TensorInfo(name, tuple(tensor.shape), tensor.dtype.name)

    return Signature(
        tuple(info(*pair) for pair in zip(model.input_names, model.inputs, strict=True)),
        tuple(info(*pair) for pair in zip(output_names(model), model.outputs, strict=True)),
    )


def output_names(model: Any) -> tuple[str, ...]:
    """The names of the outputs, in the order of ``model.outputs``.

    Where the model gives a dict these are its keys, by which losses, metrics and targets go;
    otherwise the names of the layers that the outputs come from.
    """
    nested = getattr(model, "_nested_outputs", None)
    if isinstance(nested, dict) and len(nested) == len(model.outputs):
        return tuple(sorted(nested))  # the order in which TensorFlow flattens dicts
    return tuple(model.output_names)


def _ragged_inputs(model: Any) -> Iterator[TensorInfo]:
    """The inputs that take ragged tensors."""
    ragged = tensorflow().RaggedTensorSpec
    for info, tensor in zip(signature(model).inputs, model.inputs, strict=True):
        if isinstance(getattr(tensor, "type_spec", None), ragged):
            yield info


def _holds(model: Any, kind: str) -> bool:
    """Whether a layer of some class, which Keras does not export, is in the model."""
    return any(type(layer).__name__ == kind for layer in walk_layers(model))


def is_graph(layer: Any) -> bool:
    """Whether it is a model whose layers are wired in a graph, not in Python code of its own."""
    keras = tf_keras()
    return (
        isinstance(layer, keras.Model)
        and getattr(layer, "_is_graph_network", False)
        and type(layer).call.__module__.partition(".")[0] == "tf_keras"
    )


def walk_layers(model: Any) -> Iterator[Any]:
    """Every layer, those of models within models included (the inner models themselves not).

    A subclassed model is a model like others here: its layers are those that it holds.
    """
    keras = tf_keras()
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from walk_layers(layer)
        else:
            yield layer


def sublayers(model: Any) -> Iterator[Any]:
    """Every layer once, those that a layer is built of included (the cell of a GRU, for one)."""
    seen: set[int] = set()
    for layer in model._flatten_layers(include_self=False):
        if id(layer) not in seen:
            seen.add(id(layer))
            yield layer


def layers_by_path(model: Any) -> dict[str, Any]:
    """The layers under the paths that `variables_by_path` gives to their variables.

    A layer of a model within the model is called ``"inner/layer"``; one that is used in several
    places is listed once.
    """
    keras = tf_keras()
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def visit(part: Any, prefix: str) -> None:
        for layer in part.layers:
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            if isinstance(layer, keras.Model):
                visit(layer, f"{prefix}{layer.name}/")
            else:
                found[prefix + layer.name] = layer

    visit(model, "")
    return found


def nested_models(model: Any) -> tuple[str, ...]:
    """The names of the models that are used as layers of this one."""
    keras = tf_keras()
    return tuple(layer.name for layer in model.layers if isinstance(layer, keras.Model))


def mixed_precision_layers(model: Any) -> tuple[str, ...]:
    """The names of the layers that compute in 16 bits."""
    return tuple(
        layer.name
        for layer in walk_layers(model)
        if any(
            getattr(part, "compute_dtype", None) in ("float16", "bfloat16")
            for part in layer._flatten_layers()
        )
    )


def is_variable(weight: Any) -> bool:
    """Whether a weight is a variable. Lookups list the words that they have learned as a weight."""
    return hasattr(weight, "shape")


def is_batch_norm(layer: Any) -> bool:
    """Whether a layer is a batch normalization, of whatever kind."""
    # `layers.BatchNormalization` of tf_keras is its own class; the base covers the synchronized one.
    return isinstance(layer, tf_keras().layers.BatchNormalization.__mro__[1])


def batch_norms(model: Any) -> tuple[Any, ...]:
    """The batch-normalization layers, those within layers included."""
    return tuple(layer for layer in sublayers(model) if is_batch_norm(layer))


def variables_by_path(model: Any) -> dict[str, Any]:
    """Every variable under a path that survives copying, such as ``"conv2d/kernel"``.

    The path is made of the names of the layers on the way and of the variable's own name. Wrappers
    that tfmot puts around layers while it prunes are looked through, and their own bookkeeping
    variables left out, so a path means the same variable before, during and after pruning.
    """
    keras = tf_keras()
    found: dict[str, Any] = {}
    seen: set[int] = set()  # a layer that is used in several places has its path in the first

    def put(variable: Any, owner: str, prefix: str) -> None:
        if id(variable) in seen or not is_variable(variable):
            return
        seen.add(id(variable))
        path = f"{prefix}{owner}/{_leaf(variable, owner)}"
        unique, number = path, 2
        while unique in found:
            unique, number = f"{path}_{number}", number + 1
        found[unique] = variable

    def visit(part: Any, prefix: str) -> None:
        for layer in part.layers:
            if layer.name.startswith(_PRUNING_PREFIX) and hasattr(layer, "layer"):
                layer = layer.layer
            if isinstance(layer, keras.Model):
                visit(layer, f"{prefix}{layer.name}/")
                continue
            for variable in _own_weights(layer):
                put(variable, layer.name, prefix)
        # What a model holds beside its layers, which few do.
        for variable in (*part._trainable_weights, *part._non_trainable_weights):
            put(variable, part.name, prefix)

    visit(model, "")
    return found


def _own_weights(layer: Any) -> Iterator[Any]:
    """The weights of a layer, in an order that its `trainable` flags do not change."""
    for part in layer._flatten_layers():
        yield from part._trainable_weights
        yield from part._non_trainable_weights
    yield from layer.weights  # those that a layer lists in its own way


def _leaf(variable: Any, owner: str) -> str:
    """The name of a variable within its layer, such as ``"kernel"`` or ``"cell/kernel"``."""
    leaf = str(variable.name).partition(":")[0]
    # A Keras variable is called "layer/kernel"; a copy of a layer may keep the scope of its first
    # life, so only what follows the layer's own name counts.
    _, found_name, rest = leaf.rpartition(f"{owner}/")
    leaf = rest if found_name else leaf.rpartition("/")[2]
    # Layers that a layer makes for itself are numbered through the whole process ("dense_7"), so
    # that their numbers are others in each copy.
    *scopes, last = leaf.split("/")
    return "/".join([*(re.sub(r"_\d+$", "", scope) for scope in scopes), last])


def clone(model: Any, replace: Any = None, *, inputs: Any = None) -> Any:
    """A copy with weights of its own: same architecture, names, values and `trainable` flags.

    Layers are rebuilt from their configurations; so are subclassed models within the model, whose
    layers `replace` does not see. What preprocessing layers have learned comes along.

    Args:
        model: A built functional or Sequential tf_keras model.
        replace: ``None``, or a function from a layer to the layer to put in its place. Where one
            has other weights than the layer it replaces, the caller sets the weights.
        inputs: Keras inputs to build the copy on, in the model's order; ``None`` for new ones like
            those of the model.

    Returns:
        An uncompiled model.
    """
    keras = tf_keras()

    copied: dict[int, Any] = {}  # what is shared in the model stays shared in the copy

    def copy_layer(layer: Any) -> Any:
        if id(layer) not in copied:
            if is_graph(layer):
                fresh = keras.models.clone_model(layer, clone_function=copy_layer)
            elif replace is None or isinstance(layer, keras.Model):
                fresh = type(layer).from_config(layer.get_config())
            else:
                fresh = replace(layer)
            if replace is None:
                fresh._name = layer.name  # which the configuration of some layers does not say
            copied[id(layer)] = fresh
        return copied[id(layer)]

    try:
        copy = keras.models.clone_model(model, inputs, clone_function=copy_layer)
    except Exception as error:
        if replace is not None:
            raise  # what was put in place may be at fault
        raise ModelError(
            f"Model {model.name!r} cannot be copied: {error} Custom layers must implement "
            "`get_config()` so that `from_config()` rebuilds them."
        ) from error
    if replace is None:
        copy_state(model, copy)
    return copy


def copy_state(source: Any, target: Any) -> None:
    """Brings weights, `trainable` flags and what was learned over to a model of equal layers.

    Raises:
        ModelError: If the models have other weights.
    """
    # Flags before weights: Keras lists trainable weights first, so they decide the order.
    for old, new in _pairs(source, target):
        new.trainable = old.trainable
    held = [[w for w in model.weights if is_variable(w)] for model in (source, target)]
    shapes = [[tuple(weight.shape) for weight in weights] for weights in held]
    if shapes[0] != shapes[1]:
        raise ModelError(
            f"Model {source.name!r} cannot be copied: rebuilt from its configuration, it has other "
            "weights. `get_config()` of its custom layers must say all that `build()` depends on, "
            "and a weight that two layers share must belong to a layer that both hold."
        )
    for kept, fresh in zip(*held, strict=True):
        same = kept.dtype.base_dtype == fresh.dtype.base_dtype  # a twin may be of another precision
        fresh.assign(kept if same else tensorflow().cast(kept, fresh.dtype))
    for old, new in zip(sublayers(source), sublayers(target), strict=True):
        if not isinstance(new, tf_keras().layers.InputLayer):  # those that a copy is built on
            new._name = old.name  # layers that a layer makes for itself are numbered anew in each
        copy_learned_state(old, new)


def copy_learned_state(old: Any, new: Any) -> None:
    """Brings over what a preprocessing layer has learned and keeps outside of its weights.

    Of either Keras.
    """
    if hasattr(old, "_lookup_layer"):  # TextVectorization
        copy_learned_state(old._lookup_layer, new._lookup_layer)
    elif hasattr(old, "bin_boundaries"):  # Discretization
        if not len(new.bin_boundaries or ()):
            new.bin_boundaries = old.bin_boundaries
    elif hasattr(old, "set_vocabulary"):  # lookups, whose base class Keras does not export
        if not new.input_vocabulary and old.vocabulary_size() > new.vocabulary_size():
            words = old.get_vocabulary(include_special_tokens=False)
            weights = np.asarray(old.idf_weights) if old.output_mode == "tf_idf" else None
            # Those of the words alone; the first are for words that are in no vocabulary.
            own = None if weights is None else weights[-len(words) :]
            new.set_vocabulary(words, idf_weights=own)
    elif hasattr(old, "finalize_state") and old.built:
        new.finalize_state()  # Normalization keeps tensors made from its weights


def _pairs(old: Any, new: Any) -> Iterator[tuple[Any, Any]]:
    """A layer and its copy, then those inside them: setting a flag of a parent sets its children's."""
    yield old, new

    def inside(layer: Any) -> list[Any]:
        if isinstance(layer, tf_keras().Model):
            return list(layer.layers)
        return list(layer._flatten_layers(recursive=False, include_self=False))

    for pair in zip(inside(old), inside(new), strict=True):
        yield from _pairs(*pair)


def flat_copy(model: Any, inputs: Any) -> Any:
    """Applies copies of a model's layers to other symbolic inputs; models within it are opened.

    Args:
        model: A built functional or Sequential tf_keras model.
        inputs: The Keras tensors to apply it to, in the order of the model's inputs.

    Returns:
        The output tensor (of several outputs a list) and the copied layers. The layers carry the
        weights of the originals.
    """
    copied = clone(model)
    _rename_equals(copied)

    def opened(layer: Any, arguments: Any, keywords: Any) -> Any:
        if not is_graph(layer):
            return layer(*arguments, **keywords)
        tensors = tensorflow().nest.flatten(arguments)
        training = keywords.get("training")
        if training is None:
            return rewire(layer, tensors, opened)

        def in_mode(part: Any, values: Any, settings: Any) -> Any:
            # The mode that a model within was called in is that of its layers.
            mode = {"training": training} if part._expects_training_arg else {}
            return opened(part, values, {**mode, **settings})

        return rewire(layer, tensors, in_mode)

    outputs = rewire(copied, inputs, opened)
    return outputs[0] if len(outputs) == 1 else outputs, tuple(walk_layers(copied))


def rewire(model: Any, inputs: Sequence[Any], call: Callable[[Any, Any, Any], Any]) -> list[Any]:
    """Goes through the graph of a model on other symbolic inputs.

    Args:
        model: A built functional or Sequential tf_keras model.
        inputs: The Keras tensors to start from, in the order of the model's inputs.
        call: What to do at each place where a layer is used: from the layer, and the arguments and
            keywords of its call, to its outputs.

    Returns:
        What comes out, in the order of the model's outputs.
    """
    uses = model._tensor_usage_count
    # Keras takes a tensor from its list each time a layer uses it; the output is one more use.
    values: dict[str, list[Any]] = {}

    def put(key: Any, tensor: Any) -> None:
        values[str(key)] = [tensor] * (uses[str(key)] + 1)

    for old, new in zip(model.inputs, inputs, strict=True):
        put(id(old), new)
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if node.is_input:
                continue
            arguments, keywords = node.map_arguments(values)
            result = tensorflow().nest.flatten(call(node.layer, arguments, keywords))
            for key, tensor in zip(node.flat_output_ids, result, strict=True):
                put(key, tensor)
    return [values[str(id(output))][0] for output in model.outputs]


def _rename_equals(model: Any) -> None:
    """Names layers of models within the model by their paths where their own names are taken."""
    taken: set[str] = set()
    named = sorted(layers_by_path(model).items(), key=lambda item: item[0].count("/"))
    for path, layer in named:
        name = layer.name if layer.name not in taken else path.replace("/", "_")
        while name in taken:
            name += "_"
        taken.add(name)
        layer._name = name


def final_activation(model: Any, output: int = 0) -> str:
    """The activation that an output goes through: ``"softmax"``, ``"sigmoid"``, ``"linear"``, ….

    Layers that only rearrange or drop values are looked through.

    Args:
        model: A built functional or Sequential tf_keras model.
        output: Number of the output in ``model.outputs``.
    """
    keras = tf_keras()
    passive = (
        keras.layers.Reshape,
        keras.layers.Flatten,
        keras.layers.Dropout,
        keras.layers.Permute,
    )
    tensor = model.outputs[output]
    while True:
        node = tensor.node
        layer = node.layer
        if is_graph(layer):
            tensor = layer.outputs[tensor._keras_history.tensor_index]
            continue
        activation = getattr(layer, "activation", None)
        name = getattr(activation, "__name__", None)
        looks_through = isinstance(layer, passive) or (
            isinstance(layer, keras.layers.Activation) and name == "linear"
        )
        if looks_through and node.keras_inputs:
            tensor = node.keras_inputs[0]
            continue
        if isinstance(layer, keras.layers.Softmax):
            return "softmax"
        if name is not None:
            return str(name)
        if type(layer).__module__.partition(".")[0] != "tf_keras":
            return _computed_activation(layer, tensor)
        symbol = str(getattr(layer, "symbol", ""))  # a plain TensorFlow function in the graph
        for known in ("softmax", "sigmoid"):
            if symbol.endswith(known):
                return known
        return "linear"


def _computed_activation(layer: Any, tensor: Any) -> str:
    """The activation at the end of what code other than Keras' own computes."""
    tf = tensorflow()
    node = tensor.node
    inputs = [tf.TensorSpec(i.shape, i.dtype) for i in node.keras_inputs]

    def run(*values: Any) -> Any:
        called = tf.nest.flatten((node.call_args, node.call_kwargs))
        tensors = iter(values)
        filled = [next(tensors) if _is_symbolic(item) else item for item in called]
        structure = (node.call_args, node.call_kwargs)
        arguments, keywords = tf.nest.pack_sequence_as(structure, filled)
        outputs = tf.nest.flatten(layer(*arguments, **keywords))
        return outputs[tensor._keras_history.tensor_index]

    operator = tf.function(run, input_signature=inputs).get_concrete_function().outputs[0].op
    while operator.type in ("Identity", "Reshape", "Squeeze", "Cast", "Transpose"):
        operator = operator.inputs[0].op
    return {"Softmax": "softmax", "Sigmoid": "sigmoid"}.get(operator.type, "linear")


def _is_symbolic(value: Any) -> bool:
    return bool(tf_keras().backend.is_keras_tensor(value)) if hasattr(value, "shape") else False


def constructor_config(part: Any) -> dict[str, Any]:
    """What ``get_config()`` says of a layer or model, as far as its constructor takes it.

    Keras 3 adds name, type and the like also where a constructor names its arguments one by one.
    """
    config = dict(part.get_config())
    taken = inspect.signature(type(part).__init__).parameters
    if any(item.kind is item.VAR_KEYWORD for item in taken.values()):
        return config
    added = ("name", "trainable", "dtype")
    return {key: value for key, value in config.items() if key in taken or key not in added}


def is_compiled(model: Any) -> bool:
    """Whether the caller compiled the model, so that its loss, optimizer and metrics count."""
    return (
        getattr(model, "optimizer", None) is not None and getattr(model, "loss", None) is not None
    )


def _compile_settings(model: Any) -> dict[str, Any]:
    settings = getattr(model, "_compile_config", None)
    return dict(settings.config) if settings is not None else {}


def compiled_metrics(
    model: Any, output: str | None = None, *, weighted: bool = False
) -> tuple[Any, ...]:
    """What the caller passed to ``compile(metrics=…)``, flattened.

    Args:
        model: A tf_keras model.
        output: Name of an output, for what is of it; ``None`` for all.
        weighted: Whether to look at ``compile(weighted_metrics=…)`` instead.
    """
    metrics = _compile_settings(model).get("weighted_metrics" if weighted else "metrics")
    if output is not None:
        metrics = _of_output(metrics, output_names(model).index(output), output)
    flat: list[Any] = []

    def visit(item: Any) -> None:
        if isinstance(item, dict):
            for value in item.values():
                visit(value)
        elif isinstance(item, list | tuple):
            for value in item:
                visit(value)
        elif item is not None:
            flat.append(item)

    visit(metrics)
    return tuple(flat)


def _of_output(metrics: Any, place: int, name: str) -> Any:
    """What is of one output: a flat list is of all of them, a nested one has an item for each."""
    if isinstance(metrics, dict):
        return metrics.get(name)
    if isinstance(metrics, list | tuple) and any(
        isinstance(item, list | tuple | dict) for item in metrics
    ):
        return metrics[place] if place < len(metrics) else None
    return metrics


def compiled_loss_weights(model: Any) -> Any:
    """What the caller passed to ``compile(loss_weights=…)``; ``None`` for nothing."""
    return _compile_settings(model).get("loss_weights")


def compile_like(model: Any, source: Any) -> None:
    """Compiles ``model`` as ``source`` is: same loss, metrics, and a fresh optimizer of its kind.

    Both are of the same Keras. A source that is not compiled leaves the model uncompiled.
    """
    if not is_compiled(source):
        return

    def fresh(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: fresh(value) for key, value in item.items()}
        if isinstance(item, list | tuple):
            return [fresh(value) for value in item]
        if hasattr(item, "update_state"):  # a metric
            return type(item).from_config(item.get_config())
        return item

    settings = _compile_settings(source)
    kept = ("loss_weights", "run_eagerly", "steps_per_execution", "jit_compile")
    model.compile(
        optimizer=type(source.optimizer).from_config(source.optimizer.get_config()),
        loss=source.loss,
        metrics=fresh(settings.get("metrics")),
        weighted_metrics=fresh(settings.get("weighted_metrics")),
        **{name: settings[name] for name in kept if settings.get(name) is not None},
    )
