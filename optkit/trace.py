"""Subclassed models as functional ones, where that is exact, and as one layer otherwise.

A subclassed model is wired by Python code, which no pass can copy or rewrite. Called on symbolic
inputs, the code wires its layers into a graph. The graph is the model only where the code does
nothing else: no branches on data, on the mode or on its own state, no weights outside of layers.
That is proved here and not assumed, on samples, in both modes.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from optkit.errors import ModelError, first_line
from optkit.models import (
    clone,
    constructor_config,
    copy_learned_state,
    copy_state,
    is_graph,
    is_variable,
    rewire,
)
from optkit.runtime import isolated, keras, tensorflow, tf_keras

__all__ = [
    "NotTraceableError",
    "build",
    "is_wired",
    "opaque",
    "refuse_own_steps",
    "to_functional",
]

_CLOSE = 1e-5  # relative to the largest output; the same layers in the same order give the same
_SEED = 20_240


class NotTraceableError(ModelError):
    """A model that is more than its layers wired together; says why.

    `opaque` treats it as a whole, where it can be copied.
    """


def build(model: Any, example: Any) -> Any:
    """A model with weights: itself where it has them.

    A Sequential model without a known input shape is rebuilt with that of the example, on layers
    of its own; what layers know already (weights, vocabularies) comes along. A subclassed model is
    called once on the example, which makes the weights in the model itself, as its first use would:
    nobody but its own code knows how to make them.

    Args:
        model: A tf_keras or Keras 3 model.
        example: Inputs of a few samples, as the model takes them, in NumPy arrays.

    Raises:
        ModelError: If it cannot be called on the example.
    """
    if getattr(model, "built", False):
        return model
    if _is_sequential(model):
        return _built_sequential(model, example)
    try:
        model(_tensors(example))
    except Exception as error:
        raise ModelError(
            f"Model {model.name!r} has no weights yet, and cannot be called on the data: "
            f"{first_line(error)} Call it once on a batch before, so that it builds itself."
        ) from error
    return model


def to_functional(model: Any, example: Any) -> Any:
    """The functional model that a subclassed model amounts to.

    Args:
        model: A subclassed tf_keras or Keras 3 model; it must be built, see `build`. Nothing of it
            changes: while it is compared, its weights move in training mode, and are put back.
        example: Inputs of a few samples, as the model takes them, in NumPy arrays: one, a dict or a
            list.

    Returns:
        A functional model of the same Keras with copies of the layers, their names and weights.

    Raises:
        NotTraceableError: If the graph would not be the same model.
        ModelError: If its layers cannot be copied.

    Example:
        >>> import numpy as np, tf_keras
        >>> class Own(tf_keras.Model):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.hidden = tf_keras.layers.Dense(4, "relu")
        ...         self.scores = tf_keras.layers.Dense(2)
        ...
        ...     def call(self, x):
        ...         return self.scores(self.hidden(x))
        >>> x = np.ones((3, 5), "float32")
        >>> model = build(Own(), x)
        >>> [type(layer).__name__ for layer in to_functional(model, x).layers]
        ['InputLayer', 'Dense', 'Dense']
    """
    refuse_own_steps(model)
    with isolated(_SEED), _nodes_removed(model):
        graph = _traced(model, example)
        _require_all_weights(model, graph)
        _require_equal(model, graph, example)
        return _copied(graph)


def opaque(model: Any, example: Any) -> Any:
    """A functional model that holds a copy of a subclassed one as its only layer.

    For passes that treat a model as a whole. The copy is made from the configuration of the model:
    its ``get_config()``, or, where it has none, the arguments that its constructor was given, which
    Keras notes down where they are plain values.

    Args:
        model: A built subclassed model of either Keras. It is not changed.
        example: Inputs of a few samples, as the model takes them.

    Raises:
        ModelError: If the copy cannot be made, or computes something else.

    Example:
        >>> import numpy as np, tf_keras
        >>> class Gated(tf_keras.Model):
        ...     def __init__(self, units):
        ...         super().__init__()
        ...         self.dense = tf_keras.layers.Dense(units)
        ...
        ...     def call(self, x, training=False):
        ...         return self.dense(x) * (2.0 if training else 1.0)
        >>> x = np.ones((3, 5), "float32")
        >>> whole = opaque(build(Gated(units=2), x), x)
        >>> [type(layer).__name__ for layer in whole.layers], whole.output_shape
        (['InputLayer', 'Gated'], (None, 2))
    """
    refuse_own_steps(model)
    library = _library(model)
    called = f"Model {model.name!r} ({type(model).__name__})"
    try:
        fresh = type(model).from_config(constructor_config(model))
    except Exception as error:
        raise ModelError(
            f"{called} cannot be copied: {first_line(error)} Give it a `get_config()` that says all "
            "that its constructor takes, or build it with the functional API."
        ) from error
    if library is tf_keras():
        fresh._name = model.name
    else:
        fresh.name = model.name
    try:
        inputs = _symbolic(model, example)
        copy = library.Model(inputs, fresh(inputs), name=model.name)
    except Exception as error:
        raise ModelError(
            f"{called} cannot be a part of a graph: its `call` does not run on symbolic inputs. "
            f"{first_line(error)} Write what depends on data with TensorFlow's or Keras' own "
            "operations, or build the model with the functional API."
        ) from error
    _copy_all(model, fresh)
    with isolated(_SEED):
        if not _is_equal(model, copy, example, "inference", "training"):
            raise ModelError(
                f"{called} cannot be copied: rebuilt from its `get_config()` it computes something "
                "else. That must say all that the constructor takes."
            )
    return copy


def _copy_all(model: Any, fresh: Any) -> None:
    """Weights, flags, names and the states of random generators for a model rebuilt of its own."""
    if isinstance(model, tf_keras().Model):
        copy_state(model, fresh)
        return
    for old, new in zip(model.variables, fresh.variables, strict=True):
        new.assign(old)  # the states of generators, too, which are no weights
    for old, new in zip(model._flatten_layers(), fresh._flatten_layers(), strict=True):
        new.name = old.name
        new.trainable = old.trainable


# --------------------------------------------------------------------------------------------- build


def _is_sequential(model: Any) -> bool:
    keras3 = sys.modules.get("keras")
    kinds = (tf_keras().Sequential, *((keras3.Sequential,) if keras3 is not None else ()))
    return isinstance(model, kinds)


def _library(model: Any) -> Any:
    """The Keras that a model is of."""
    return tf_keras() if isinstance(model, tf_keras().Model) else keras()


def _built_sequential(model: Any, example: Any) -> Any:
    library = _library(model)
    leaves = tensorflow().nest.flatten(example)
    if len(leaves) != 1:
        raise ModelError(
            f"Sequential model {model.name!r} takes one input, and the data have {len(leaves)}."
        )
    shape, dtype = _described(leaves[0])
    try:
        layers = [type(layer).from_config(layer.get_config()) for layer in model.layers]
        name = _free("input", {layer.name for layer in layers})
        first = library.Input(shape, dtype=dtype, name=name)
        fresh = library.Sequential([first, *layers], name=model.name)
    except Exception as error:
        raise ModelError(
            f"Sequential model {model.name!r} does not go with inputs of shape {shape}: "
            f"{first_line(error)} Give it an `Input(shape=…)` as its first layer."
        ) from error
    for old, new in zip(model.layers, layers, strict=True):
        if old.built and old.weights:
            _copy_weights(old, new)
        copy_learned_state(old, new)
        new.trainable = old.trainable
    return fresh


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _described(leaf: Any) -> tuple[tuple[int | None, ...], str]:
    """The shape of one sample and the type that a model would take it in."""
    array = np.asarray(leaf)
    if array.dtype.kind in "OSU":
        return array.shape[1:], "string"
    if array.dtype.kind in "iub" and array.ndim == 2:
        return array.shape[1:], array.dtype.name  # token ids, say
    return array.shape[1:], "float32"


# --------------------------------------------------------------------------------------------- trace


def refuse_own_steps(model: Any) -> None:
    """Refuses a model whose class trains or predicts in a way of its own.

    Raises:
        ModelError: Naming the method.
    """
    home = _library(model).__name__
    for name in ("train_step", "test_step", "predict_step", "compute_loss"):
        own = getattr(type(model), name, None)
        if own is not None and own.__module__.partition(".")[0] not in (home, "keras", "tf_keras"):
            raise ModelError(
                f"Model {model.name!r} is of the class {type(model).__name__}, which has its own "
                f"`{name}()`; optkit would train it without. Take it out, or wrap what is to be "
                "trained in a class without it."
            )


def _symbolic(model: Any, example: Any) -> Any:
    """Keras inputs like the example, in its structure."""
    library = _library(model)
    tf = tensorflow()
    count = len(tf.nest.flatten(example))
    if isinstance(example, dict):
        names: list[str] = sorted(example)
    else:
        # Names of their own: automatic ones differ from run to run, and with them kept stages.
        names = ["input"] if count == 1 else [f"input_{n}" for n in range(1, count + 1)]
        taken = {layer.name for layer in model._flatten_layers()}
        names = [_free(name, taken) for name in names]
    inputs = []
    for name, leaf in zip(names, tf.nest.flatten(example), strict=True):
        shape, dtype = _described(leaf)
        inputs.append(library.Input(shape, dtype=dtype, name=name))
    return tf.nest.pack_sequence_as(example, inputs)


def _traced(model: Any, example: Any) -> Any:
    """The layers of a model wired by its code, over the same weights."""
    inputs = _symbolic(model, example)
    arguments = inspect.signature(type(model).call).parameters
    try:
        keywords = {"training": None} if "training" in arguments else {}
        call = getattr(model.call, "python_function", model.call)  # what `tf.function` decorates
        outputs = call(inputs, **keywords)
        graph = _library(model).Model(inputs, outputs, name=model.name)
    except Exception as error:
        raise NotTraceableError(
            f"Model {model.name!r} ({type(model).__name__}) cannot be wired into a graph: its "
            f"`call` does not run on symbolic inputs. {first_line(error)}"
        ) from error
    return _opened(graph, example)


def _opened(graph: Any, example: Any) -> Any:
    """The graph with the subclassed models within it traced as well."""
    library = _library(graph)
    inner = {
        id(layer): layer
        for layer in graph.layers
        if isinstance(layer, library.Model) and not is_wired(layer)
    }
    if not inner:
        return graph
    if library is not tf_keras():
        names = ", ".join(layer.name for layer in inner.values())
        raise NotTraceableError(
            f"Model {graph.name!r} holds subclassed models ({names}), which are not traced within a "
            "Keras 3 model. Build them with the functional API."
        )
    traced = {}
    for layer in inner.values():
        node = next(node for node in _nodes(graph) if node.layer is layer)
        given = library.Model(graph.input, node.call_args[0])
        inside = given(_tensors(example), training=False)
        traced[id(layer)] = _traced(layer, tensorflow().nest.map_structure(np.asarray, inside))
    inputs = _symbolic(graph, example)

    def call(layer: Any, arguments: Any, keywords: Any) -> Any:
        return traced.get(id(layer), layer)(*arguments, **keywords)

    outputs = rewire(graph, tensorflow().nest.flatten(inputs), call)
    packed = tensorflow().nest.pack_sequence_as(graph.output, outputs)
    return library.Model(inputs, packed, name=graph.name)


def _nodes(graph: Any) -> Iterator[Any]:
    for nodes in graph._nodes_by_depth.values():
        yield from nodes


def is_wired(layer: Any) -> bool:
    """Whether it is a model of either Keras whose layers are wired in a graph."""
    if isinstance(layer, tf_keras().Model):
        return is_graph(layer)
    library = keras()
    return isinstance(layer, library.Sequential | library.src.models.functional.Functional)


def _require_all_weights(model: Any, graph: Any) -> None:
    held = {id(weight) for weight in _variables(graph)}
    missing = [weight for weight in _variables(model) if id(weight) not in held]
    if missing:
        names = ", ".join(str(getattr(w, "path", w.name)) for w in missing[:5])
        raise NotTraceableError(
            f"Model {model.name!r} ({type(model).__name__}) has weights that are not in its graph: "
            f"{names}. Its own code uses them, or nothing does."
        )


def _variables(model: Any) -> list[Any]:
    return [weight for weight in model.weights if is_variable(weight)]


def _require_equal(model: Any, graph: Any, example: Any) -> None:
    for mode in ("inference", "training"):
        if not _is_equal(model, graph, example, mode):
            raise NotTraceableError(
                f"Model {model.name!r} ({type(model).__name__}) is more than its layers wired "
                f"together: in {mode} mode its graph gives something else. Its `call` may branch on "
                "the mode, on data or on the size of the batch, or keep a state."
            )


def _is_equal(model: Any, other: Any, example: Any, *modes: str) -> bool:
    """Compares outputs, losses and updated weights on batches of several sizes."""
    tf = tensorflow()
    count = len(tf.nest.flatten(example)[0])
    sizes = dict.fromkeys([count, 1, max(1, count // 2)])
    rng = np.random.default_rng(_SEED)

    def changed(leaf: Any) -> Any:
        array = np.asarray(leaf)
        if array.dtype.kind != "f":
            return array[::-1]
        return (array + rng.normal(0, 1 + array.std(), array.shape)).astype(array.dtype)

    batches = [
        tf.nest.map_structure(lambda leaf, n=n: np.asarray(leaf)[:n], example) for n in sizes
    ]
    batches.append(tf.nest.map_structure(changed, example))
    for mode in modes:
        for batch in batches:
            wanted = _run(model, batch, mode == "training")
            found = _run(other, batch, mode == "training")
            if len(wanted) != len(found) or not all(map(_close, wanted, found)):
                return False
    return True


def _run(model: Any, batch: Any, training: bool) -> list[np.ndarray]:
    """Outputs, losses and weights after a call; the weights are put back."""
    tf = tensorflow()
    states = [*_variables(model), *_generators(model)]
    before = [np.asarray(state) for state in states]
    _library(model).utils.set_random_seed(_SEED)
    compiled = tf.config.functions_run_eagerly()
    try:
        tf.config.run_functions_eagerly(True)  # losses that are made within one have no value else
        outputs = model(_tensors(batch), training=training)
        losses = sorted(float(loss) for loss in model.losses)
        moved = sorted(
            float(np.abs(np.asarray(variable, np.float64) - old).sum())
            for variable, old in zip(_variables(model), before, strict=False)
        )
        return [*map(np.asarray, tf.nest.flatten(outputs)), np.array(losses), np.array(moved)]
    finally:
        tf.config.run_functions_eagerly(compiled)
        for state, old in zip(states, before, strict=True):
            state.assign(old)


def _generators(model: Any) -> list[Any]:
    """The states of the random generators in a model."""
    found = []
    for layer in model._flatten_layers():
        own = getattr(layer, "_random_generator", None)
        generator = getattr(own, "_generator", None)
        if generator is not None:
            found.append(generator.state)
    found += [v for v in getattr(model, "non_trainable_variables", ()) if "seed" in v.name]
    return found


def _close(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape:
        return False
    if one.dtype.kind not in "fc":
        return bool(np.array_equal(one, other))
    scale = float(np.max(np.abs(one), initial=0.0)) or 1.0
    return bool(np.allclose(one, other, rtol=0, atol=_CLOSE * scale, equal_nan=True))


def _copied(graph: Any) -> Any:
    if isinstance(graph, tf_keras().Model):
        return clone(graph)
    copy = keras().models.clone_model(graph)
    copy.set_weights(graph.get_weights())
    return copy


# ------------------------------------------------------------------------------------ odds and ends


def _tensors(example: Any) -> Any:
    tf = tensorflow()

    def tensor(leaf: Any) -> Any:
        dtype = _described(leaf)[1]
        array = np.asarray(leaf)
        return tf.constant(array.astype(object) if dtype == "string" else array.astype(dtype))

    return tf.nest.map_structure(tensor, example)


@contextlib.contextmanager
def _nodes_removed(model: Any) -> Iterator[None]:
    """Takes the places in graphs that layers were given meanwhile from them again."""
    lists: list[tuple[list[Any], int]] = []
    for layer in model._flatten_layers():
        for name in ("_inbound_nodes", "_outbound_nodes"):
            nodes = getattr(layer, name, None)
            if nodes is not None:
                lists.append((nodes, len(nodes)))
    try:
        yield
    finally:
        for nodes, length in lists:
            del nodes[length:]


def _copy_weights(old: Any, new: Any) -> None:
    for kept, fresh in zip(_variables(old), _variables(new), strict=True):
        fresh.assign(kept)
