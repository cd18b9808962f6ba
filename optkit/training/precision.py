"""Which layers of a model compute in 16 bits under a policy of mixed precision, and which do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from optkit.models import is_graph, sublayers
from optkit.runtime import tensorflow, tf_keras

__all__ = ["in_16_bits", "replacement", "with_loss_scaling"]

#: Layers of Keras' that hold functions, which may do whatever they like.
_FUNCTIONS = frozenset({"Lambda", "ClassMethod", "InstanceMethod", "InstanceProperty"})
#: Those that stand for a function of TensorFlow's, which takes only tensors of one type.
_OPERATIONS = frozenset({"TFOpLambda", "SlicingOpLambda"})
#: Layers through which an output goes as it is.
_PASSIVE = frozenset({"Reshape", "Flatten", "Dropout", "Permute"})


def in_16_bits(model: Any) -> frozenset[int]:
    """The layers of a model, by identity, that are to compute in 16 bits.

    In float32 stay: the layers that outputs come from; whatever prepares inputs or looks ids up,
    with all that stands before it; layers of one's own, and functions; layers whose outputs are
    penalized; and layers that are not float32 as they come.

    Args:
        model: A built functional or Sequential tf_keras model.
    """
    chosen: set[int] = set()
    kept: set[int] = set()

    def visit(part: Any, *, gives_outputs: bool) -> None:
        if gives_outputs:
            kept.update(id(layer) for layer in _output_layers(part))
        for layer in _before(part, _needs_exact_inputs):
            kept.update(id(item) for item in (layer, *_inside(layer)))
        outer = {id(tensor.node.layer) for tensor in part.outputs}
        for layer in part.layers:
            if is_graph(layer):
                visit(layer, gives_outputs=gives_outputs and id(layer) in outer)
            elif _may(layer):
                chosen.add(id(layer))

    visit(model, gives_outputs=True)
    return frozenset(chosen - kept)


def replacement(model: Any, policy: str) -> Callable[[Any], Any]:
    """What `optkit.models.clone` puts in the place of each layer for a twin under a policy."""
    chosen = in_16_bits(model)

    def replace(layer: Any) -> Any:
        if type(layer).__name__ in _OPERATIONS:
            fresh = _in_float32(layer)
        else:
            config = layer.get_config()
            fresh = type(layer).from_config(
                _under(config, policy) if id(layer) in chosen else config
            )
        fresh._name = layer.name
        return fresh

    return replace


def with_loss_scaling(optimizer: Any, model: Any) -> Any:
    """The optimizer, within one that scales the loss where layers compute in float16.

    Gradients that would be too small for float16 are multiplied on their way, and steps in which
    they become too large are left out (Micikevicius et al., "Mixed Precision Training", 2018).
    bfloat16 has the range of float32, and needs none of it.
    """
    layers = sublayers(model)
    if not any(getattr(layer, "compute_dtype", None) == "float16" for layer in layers):
        return optimizer
    return tf_keras().mixed_precision.LossScaleOptimizer(optimizer)


def _under(config: Any, policy: str) -> Any:
    """A configuration in which float32 is the policy; layers within it included."""
    if isinstance(config, dict):
        return {
            key: policy if key == "dtype" and value == "float32" else _under(value, policy)
            for key, value in config.items()
        }
    if isinstance(config, tuple):
        return tuple(_under(value, policy) for value in config)
    return [_under(value, policy) for value in config] if isinstance(config, list) else config


def _may(layer: Any) -> bool:
    """Whether a layer can compute in 16 bits by itself."""
    keras = tf_keras()
    if isinstance(layer, keras.Model | keras.layers.InputLayer):
        return False
    if layer.dtype_policy.name != "float32":
        return False
    parts = list(layer._flatten_layers())
    return all(
        type(part).__module__.partition(".")[0] == "tf_keras"
        and type(part).__name__ not in _FUNCTIONS | _OPERATIONS
        and getattr(part, "activity_regularizer", None) is None
        and not _prepares(part)
        for part in parts
    )


def _prepares(layer: Any) -> bool:
    """Whether it is a preprocessing layer: values and words as they come in are exact numbers."""
    return ".preprocessing." in type(layer).__module__


def _needs_exact_inputs(layer: Any) -> bool:
    """Whether 16 bits could not hold what a layer is given: ids, or values not yet scaled."""
    return any(
        _prepares(part) or isinstance(part, tf_keras().layers.Embedding)
        for part in layer._flatten_layers()
    )


def _output_layers(model: Any) -> Iterator[Any]:
    """The layers that outputs come from, and the passive ones between them and the outputs."""
    for tensor in model.outputs:
        while True:
            layer = tensor.node.layer
            if is_graph(layer):
                yield from _output_layers(layer)
                break
            yield layer
            if type(layer).__name__ not in _PASSIVE or not tensor.node.keras_inputs:
                break
            tensor = tensor.node.keras_inputs[0]


def _before(model: Any, is_one: Callable[[Any], bool]) -> Iterator[Any]:
    """The layers of a model that stand before those of a kind; of models within, whole ones."""
    seen: set[int] = set()
    for layer in model.layers:
        if not is_one(layer):
            continue
        waiting = [
            tensor
            for node in _nodes(model)
            if node.layer is layer and not node.is_input
            for tensor in node.keras_inputs
        ]
        while waiting:
            node = waiting.pop().node
            if id(node) not in seen:
                seen.add(id(node))
                yield node.layer
                waiting += [] if node.is_input else node.keras_inputs


def _nodes(model: Any) -> Iterator[Any]:
    for nodes in model._nodes_by_depth.values():
        yield from nodes


def _inside(layer: Any) -> Iterator[Any]:
    yield from layer._flatten_layers(include_self=False)


def _in_float32(operation: Any) -> Any:
    """A layer that does what an operation does, in float32 whatever it is given."""
    fresh = type(operation).from_config(operation.get_config())
    run = fresh.call

    def call(*arguments: Any, **keywords: Any) -> Any:
        tf = tensorflow()

        def wide(value: Any) -> Any:
            narrow = tf.is_tensor(value) and value.dtype in (tf.float16, tf.bfloat16)
            return tf.cast(value, tf.float32) if narrow else value

        given = tf.nest.map_structure(wide, (arguments, keywords))
        return run(*given[0], **given[1])

    # On the object, where it hides the function that the layer was made of.
    fresh.call = tensorflow().autograph.experimental.do_not_convert(call)
    return fresh
