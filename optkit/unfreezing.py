"""Which layers of a backbone are trained, in which order, and how fast."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit.data import Split
from optkit.errors import DataError
from optkit.models import is_batch_norm, variables_by_path
from optkit.probe import Probe, compare, probe
from optkit.runtime import tensorflow, tf_keras
from optkit.task import Task

__all__ = [
    "ENOUGH",
    "FEW",
    "Nearness",
    "blocks_of",
    "freeze",
    "layers_to_unfreeze",
    "measure_nearness",
    "nearness",
    "rate_factors",
    "stages_of",
    "tunable",
    "unfreeze",
]

#: Fewer samples than this are few. A validation split of a fifth then has 50 samples, and an
#: accuracy of 80 % on it a standard error of 5.7 points: early stopping could not see that
#: fine-tuning does harm.
FEW = 250
#: So many samples are enough: the size of the tasks of VTAB-1k (Zhai et al., 2019), on which
#: fine-tuned networks did better than linear models on their frozen features.
ENOUGH = 1000
#: Features are near where a linear model on them gets this share of what chance leaves open, and
#: far where it gets less than the other: halfway, and half of that.
_SKILLED, _UNSKILLED = 0.5, 0.25
_PROBED = 1000  # samples that are run through the backbone to judge how near it is
_ERRORS = 2.0  # a difference of so many standard errors is no accident
#: How many of the last layers are trained, by (number of samples, how near).
_RULE = {
    ("enough", "near"): 30,
    ("enough", "between"): 20,
    ("enough", "far"): 10,
    ("some", "near"): 20,
    ("some", "between"): 10,
    ("some", "far"): 5,
    ("few", "near"): 10,
    ("few", "between"): 5,
    ("few", "far"): 0,
}


@dataclass(frozen=True)
class Nearness:
    """How near a task is to what a backbone was trained for.

    Attributes:
        degree: ``"near"``, ``"between"`` or ``"far"``.
        reason: What was measured, in words.
        score: What a linear model on the last features got; ``None`` if it could not be measured.
    """

    degree: str
    reason: str
    score: float | None = None


def nearness(last: Probe | None, middle: Probe | None) -> Nearness:
    """Judges how near a task is to that of a backbone, by linear models on its frozen features.

    The last layers of a network are those that are made for its own task (Yosinski et al., 2014).
    Where features from the middle serve another task better than the last ones, the two are far
    apart; so they are where the last features hardly help at all. Where the last ones serve well
    and better than those of the middle, the tasks are near. How hard the task is alone does not
    decide, as both are measured on it.

    Args:
        last: What the last features give; ``None`` if that could not be measured.
        middle: The same of features from half the depth, for the same samples.

    Example:
        >>> import numpy as np
        >>> good, poor = np.tile([0.0, 0.2], 50), np.tile([0.9, 1.0], 50)
        >>> nearness(Probe(0.9, 0.1, good), Probe(0.3, 0.1, poor)).degree
        'near'
        >>> nearness(Probe(0.3, 0.1, poor), Probe(0.9, 0.1, good)).degree
        'far'
    """
    if last is None:
        return Nearness("between", "how far the task is from the backbone's could not be measured")
    told = f"a linear model on its last features gets {_in_words(last)}"
    if middle is None:
        gain, error = 0.0, math.inf
    else:
        gain, error = compare(last, middle)
        told += f", on those of half the depth {_figure(middle)}"
    if last.skill < _UNSKILLED or gain < -_ERRORS * error:
        return Nearness("far", told, last.score)
    served = last.skill >= _SKILLED
    # Nothing better than perfect: features of the middle may be as good for an easy task.
    better = gain > _ERRORS * error or last.skill >= 0.95
    return Nearness("near" if served and better else "between", told, last.score)


def measure_nearness(
    model: Any, features: Any, layers: Sequence[Any], split: Split, task: Task, *, seed: int
) -> Nearness:
    """Runs up to 1000 samples through a backbone once, and judges what comes out.

    Args:
        model: The model, from the raw input to a head that is not looked at.
        features: The tensor of its last features.
        layers: The layers of the backbone that could be trained, in order.
        split: The training split.
        task: What its targets mean.
        seed: Seed of which samples are taken, and of the folds.

    Raises:
        DataError: If features are not finite.
    """
    middle = _middle(layers)
    last, half, targets = _features(model, features, middle, split, seed)
    wrong = ~np.isfinite(last).all(1)
    if wrong.any():
        raise DataError(
            f"The backbone gives values that are not finite for {int(wrong.sum())} of {len(last)} "
            "training samples. Look for extreme values, and for texts without a single word where "
            "the backbone masks what is empty."
        )
    usable = half is not None and bool(np.isfinite(half).all())
    return nearness(
        probe(last, targets, task, seed=seed),
        probe(half, targets, task, seed=seed) if half is not None and usable else None,
    )


def _middle(layers: Sequence[Any]) -> Any:
    """The tensor behind the layer at half the depth, its normalization and activation included."""
    if len(layers) < 2:
        return None
    tensor = layers[(len(layers) - 1) // 2].get_output_at(0)
    known = {id(layer) for layer in layers}
    while tf_keras().backend.is_keras_tensor(tensor):
        nodes = [
            node
            for node in tensor.node.layer.outbound_nodes
            if any(tensor is given for given in node.keras_inputs)
        ]
        if len(nodes) != 1 or id(nodes[0].layer) in known or len(nodes[0].keras_inputs) != 1:
            break
        tensor = nodes[0].outputs
    usable = hasattr(tensor, "shape") and tensor.dtype.is_floating and len(tensor.shape) > 1
    return tensor if usable else None


def _features(
    model: Any, last: Any, middle: Any, split: Split, seed: int
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Last and middle features of training samples, one vector a sample, and their targets."""
    tf, keras = tensorflow(), tf_keras()
    part = keras.Model(model.inputs, [last] if middle is None else [last, middle])

    def run(*tensors: Any) -> list[Any]:
        given = [
            tensor if tensor.dtype == tf.string else tf.cast(tensor, wanted.dtype)
            for tensor, wanted in zip(tensors, model.inputs, strict=True)
        ]
        found = part(given[0] if len(given) == 1 else given, training=False)
        return [_pooled(tensor) for tensor in tf.nest.flatten(found)]

    step = tf.function(run, autograph=False, reduce_retracing=True)
    rows: list[list[np.ndarray]] = []
    targets: list[np.ndarray] = []
    seen = 0
    for x, y in split.training_batches(seed).take(split.steps):
        tensors = [x[name] for name in model.input_names] if isinstance(x, dict) else [x]
        rows.append([np.asarray(value, "float64") for value in step(*tensors)])
        targets.append(np.asarray(y))
        seen += len(targets[-1])
        if seen >= _PROBED:
            break
    joined = [np.concatenate(values)[:_PROBED] for values in zip(*rows, strict=True)]
    return joined[0], joined[1] if middle is not None else None, np.concatenate(targets)[:_PROBED]


def _pooled(tensor: Any) -> Any:
    """One vector a sample: the mean over positions, those that a mask leaves out not counted."""
    tf = tensorflow()
    values = tf.cast(tensor, tf.float32)
    axes = list(range(1, tensor.shape.rank - 1))
    if not axes:
        return values
    mask = getattr(tensor, "_keras_mask", None)
    if mask is None or tensor.shape.rank != 3:
        return tf.reduce_mean(values, axes)
    counted = tf.cast(mask, tf.float32)[..., None]
    return tf.math.divide_no_nan(tf.reduce_sum(values * counted, 1), tf.reduce_sum(counted, 1))


def _figure(found: Probe) -> str:
    return f"{found.score:.3f}"


def _in_words(found: Probe) -> str:
    if found.chance:
        return f"{_figure(found)} right (chance {found.chance:.3f})"
    return f"an R² of {_figure(found)}"


def layers_to_unfreeze(samples: int, degree: str, total: int) -> int:
    """The rule of ``unfreeze="auto"``: how many of the last layers of a backbone to train.

    Few samples (under 250) and far: the head alone. Enough (1000) and near: the last 30. Between,
    fewer. The first third of the layers, which are the most general ones, is left alone in any case.

    Args:
        samples: Number of training samples.
        degree: ``"near"``, ``"between"`` or ``"far"``, of `Nearness`.
        total: Number of layers of the backbone that could be trained.

    Example:
        >>> [layers_to_unfreeze(5000, degree, 52) for degree in ("near", "between", "far")]
        [30, 20, 10]
        >>> [layers_to_unfreeze(500, degree, 52) for degree in ("near", "between", "far")]
        [20, 10, 5]
        >>> [layers_to_unfreeze(100, degree, 52) for degree in ("near", "between", "far")]
        [10, 5, 0]
        >>> layers_to_unfreeze(5000, "near", 6)
        4
    """
    return min(_RULE[amount_of(samples), degree], math.ceil(2 * total / 3))


def amount_of(samples: int) -> str:
    """Whether samples are ``"few"``, ``"some"`` or ``"enough"``."""
    return "few" if samples < FEW else "some" if samples < ENOUGH else "enough"


def tunable(body: Sequence[Any]) -> list[Any]:
    """The layers of a backbone that could be trained: those with weights to train.

    Batch normalization is not among them, and neither are lookups, whose weights are words.
    """
    return [layer for layer in body if any(map(_learns, _parts(layer)))]


def _parts(layer: Any) -> list[Any]:
    return list(layer._flatten_layers())


def _learns(part: Any) -> bool:
    # `trainable_weights` is empty for a frozen layer; this list is not.
    return bool(part._trainable_weights) and not is_batch_norm(part)


def freeze(layers: Sequence[Any]) -> None:
    """Freezes layers, batch normalization in inference mode among it."""
    for layer in layers:
        layer.trainable = False


def unfreeze(layers: Sequence[Any]) -> None:
    """Makes layers trainable, the batch normalizations within them left out.

    A batch normalization that is not trainable runs in inference mode, in every later training too.
    """
    for layer in layers:
        layer.trainable = True
        for part in _parts(layer):
            if is_batch_norm(part):
                part.trainable = False


def blocks_of(model: Any, layers: Sequence[Any]) -> list[list[Any]]:
    """The blocks that layers belong to, from the input to the output.

    A block ends where a single tensor carries everything and is either taken by several layers or
    made of several: between two such places lies a residual block, an inception, a dense layer's
    concatenation. In a model without such places, a plain chain, each layer is a block.

    Args:
        model: A functional model, its layers called once or several times.
        layers: Layers of it.

    Example:
        >>> from optkit.testing import small_model
        >>> model = small_model()
        >>> [[layer.name for layer in block] for block in blocks_of(model, tunable(model.layers))]
        [['conv'], ['classes']]
    """
    nodes = [
        node
        for depth in sorted(model._nodes_by_depth, reverse=True)
        for node in model._nodes_by_depth[depth]
    ]
    place = {id(node): number for number, node in enumerate(nodes)}
    last_use = list(range(len(nodes)))
    uses = [0] * len(nodes)
    parents = [{place[id(before)] for before in node.parent_nodes} for node in nodes]
    for number, before in enumerate(parents):
        for parent in before:
            last_use[parent] = max(last_use[parent], number)
            uses[parent] += 1
    ends: list[int] = []
    reach = 0  # the last place that anything before this one is used at
    for number in range(len(nodes)):
        alone = number > 0 and reach <= number
        if alone and (uses[number] > 1 or len(parents[number]) > 1):
            ends.append(number)
        reach = max(reach, last_use[number])
    wanted = {id(layer) for layer in layers}
    found: dict[Any, list[Any]] = {}
    seen: set[int] = set()
    for number, node in enumerate(nodes):
        layer = node.layer
        if id(layer) not in wanted or id(layer) in seen:
            continue
        seen.add(id(layer))
        key = sum(end < number for end in ends) if ends else number
        found.setdefault(key, []).append(layer)
    return list(found.values())


def stages_of(blocks: Sequence[Sequence[Any]], epochs: int) -> list[tuple[list[Any], int]]:
    """Gradual unfreezing: what is opened at the start of each stage, and how long that stage is.

    From the last block downwards (Howard and Ruder, 2018). There are as many stages as blocks, or
    as epochs if these are fewer, and then several blocks are opened at once. Epochs that are left
    over go to the last stages, in which more is trained.

    Args:
        blocks: The blocks, from the input to the output.
        epochs: Epochs of all stages together.

    Returns:
        For each stage the layers that it opens, and its epochs.

    Example:
        >>> stages_of([["a"], ["b", "c"], ["d"]], 4)
        [(['d'], 1), (['b', 'c'], 1), (['a'], 2)]
        >>> stages_of([["a"], ["b"], ["c"]], 2)
        [(['b', 'c'], 1), (['a'], 1)]
    """
    count = min(len(blocks), epochs)
    found = []
    for number in range(count):
        # Counted from the output; earlier stages take what does not divide evenly.
        start = -(-number * len(blocks) // count)
        stop = -(-(number + 1) * len(blocks) // count)
        opened = blocks[len(blocks) - stop : len(blocks) - start]
        length = epochs // count + (number >= count - epochs % count)
        found.append(([layer for block in opened for layer in block], length))
    return found


def rate_factors(model: Any, blocks: Sequence[Sequence[Any]], decay: float) -> dict[str, float]:
    """Discriminative learning rates: each block's is a share of that of the block above it.

    The head keeps the full rate, the last block gets ``decay`` of it, the one below ``decay`` of
    that, and so on (Howard and Ruder, 2018).

    Args:
        model: The model.
        blocks: The blocks of the backbone, from the input to the output.
        decay: The share.

    Returns:
        What updates are multiplied by, by path of the variable, for `Context.fit`.
    """
    by_variable: dict[int, float] = {}
    for number, block in enumerate(reversed(blocks)):
        for layer in block:
            for weight in layer.trainable_weights:
                by_variable[id(weight)] = decay ** (number + 1)
    return {
        path: by_variable[id(variable)]
        for path, variable in variables_by_path(model).items()
        if id(variable) in by_variable
    }
