"""Folding of batch normalizations into the layers around them, exactly.

When a model predicts, a batch normalization is a factor and a summand of each channel. Right behind
a layer with a matrix, both go back into that layer. Behind a ReLU that is impossible, and the
flatbuffer gets a multiplication and an addition of its own, with 8 bits for factors that may differ
a thousandfold; in some models this costs more accuracy than all other layers together. But

- a positive factor passes a ReLU, backward, into the layer before it,
- what is left, at least the summand, passes pooling and the like, forward, into the layers behind
  it, unless they pad with zeros,
- where they do, the summand alone stays: the factor goes back, or where no ReLU but another
  activation is in the way, forward.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from optkit.models import is_batch_norm
from optkit.quantize.repairs.bench import Bench, Repaired
from optkit.quantize.repairs.norm import Norm, is_norm_layer
from optkit.quantize.repairs.walk import Way

__all__ = ["fold_all", "fold_batch_norms"]


def fold_batch_norms(model: Any) -> Repaired:
    """Folds batch normalizations into the layers before and behind them, where that is exact.

    The outputs stay what they are, up to rounding, when the model predicts. Trained on, it is
    another model: without the folded normalizations.

    Args:
        model: A built functional or Sequential tf_keras model. It is not changed.

    Returns:
        The repaired model. Layers keep their names; folded batch normalizations are gone. One of
        which the summand alone could not be folded stays as that summand, frozen. Batch
        normalizations that stay as they are, are named with the reason.

    Example:
        >>> import tf_keras as keras
        >>> model = keras.Sequential([
        ...     keras.Input((8, 8, 1)),
        ...     keras.layers.Conv2D(4, 3, activation="relu", name="first"),
        ...     keras.layers.BatchNormalization(name="norm"),
        ...     keras.layers.Conv2D(2, 3, name="second"),
        ... ])
        >>> _ = model.get_layer("norm").beta.assign([0.1, 0.2, 0.3, 0.4])
        >>> repaired = fold_batch_norms(model)
        >>> repaired.done
        ("norm: into 'first' and 'second'",)
        >>> [layer.name for layer in repaired.model.layers][1:]
        ['first', 'second']

    References:
        Jacob et al. (2018), "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", section 3.2, for the folding backward.
    """
    bench = Bench(model)
    done, left = fold_all(bench)
    repaired, names = bench.build()
    return Repaired(repaired, done, left, names)


def fold_all(bench: Bench) -> tuple[tuple[str, ...], dict[str, str]]:
    """Folds what can be folded on the bench.

    Returns:
        What was done, and the batch normalizations that stay, with the reason.
    """
    done: dict[str, str] = {}
    left: dict[str, str] = {}
    found = {id(n.layer): n for n in bench.graph.nodes if is_batch_norm(n.layer)}
    waiting = list(found.values())
    while waiting:
        again = []
        for node in waiting:
            name = node.layer.name
            text, why = _fold(bench, node)
            if text:
                done[name] = text
            if why:
                left[name] = why
                again.append(node)
            else:
                left.pop(name, None)
        # One that is gone may have been in the way of another.
        waiting = again if len(again) < len(waiting) else []
    return tuple(f"{name}: {text}" for name, text in done.items()), left


def _fold(bench: Bench, node: Any) -> tuple[str, str]:
    """Folds one; returns what was done, and why it (or the rest of it) stays."""
    layer, graph = node.layer, bench.graph
    if not is_norm_layer(layer):
        return "", "it is not a plain one over the last axis, in float32"
    why = graph.why_not(node)
    if why:
        return "", why
    norm = bench.norm(layer)
    scale, shift = norm.scale, norm.shift
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        return "", "its statistics are not finite"
    if graph.is_output(node.outputs):
        return "", "an output of the model is called after it"
    behind = graph.forward(node.outputs, scale.size)
    before = graph.backward(node.keras_inputs[0], scale.size, node)
    if _goes_back(before, scale, shift):
        _into_outputs(bench, before, scale, shift)
        bench.remove(layer)
        return f"into {_names(before)}", ""
    # What goes back past a ReLU keeps the ranges of the channels as training made them, and costs
    # nothing: kernels have a scale for each channel of their output. The sign cannot pass.
    none = np.zeros_like(shift)
    back = np.ones_like(scale) if before.blocked else np.abs(scale)
    rest = scale if before.blocked else np.where(scale < 0, -1.0, 1.0)
    why = _obstacle(bench, behind, rest, shift)
    if not why:
        takers = [behind]
        if (back != 1).any():
            _into_outputs(bench, before, back, none)
            takers.insert(0, before)
        _into_inputs(bench, behind, rest, shift)
        bench.remove(layer)
        return f"into {_names(*takers)}", ""
    # The factors alone, so that the flatbuffer has one operation less, and one that is exact.
    if (scale == 1).all():
        return "", why
    if before.blocked:
        # y = scale * (x + shift / scale)
        if _obstacle(bench, behind, scale, none) or not _divisible(norm):
            return "", f"{before.blocked}, and {why}"
        norm.become_shift(shift / scale)
        _into_inputs(bench, behind, scale, none)
        return f"its factors into {_names(behind)}", why
    # y = sign * (|scale| * x + sign * shift)
    turned = bool((rest != 1).any())
    if turned and _obstacle(bench, behind, rest, none):
        return "", why
    _into_outputs(bench, before, back, none)
    norm.become_shift(rest * shift)
    if turned:
        _into_inputs(bench, behind, rest, none)
    takers = [before, behind] if turned else [before]
    return f"its factors into {_names(*takers)}", why


def _divisible(norm: Norm) -> bool:
    """Whether summands divided by the factors stay within the range of what they are added to.

    All channels of a tensor share one scale when they are quantized: a channel that hardly counts,
    with a factor near zero, would get a summand that makes the scale too coarse for the others.
    """
    scale, shift = norm.scale, norm.shift
    return bool((np.abs(shift) <= norm.reach * np.abs(scale)).all() and (scale != 0).all())


def _goes_back(way: Way, scale: np.ndarray, shift: np.ndarray) -> bool:
    """Whether both factors and summands can go a way backward."""
    bent = (way.positive and (scale < 0).any()) or (way.unshifted and shift.any())
    return not way.blocked and not bent


def _obstacle(bench: Bench, way: Way, scale: np.ndarray, shift: np.ndarray) -> str:
    """Why factors and summands cannot go a way forward; empty where they can."""
    if way.blocked:
        return way.blocked
    if way.positive and (scale < 0).any():
        return f"no negative factor passes {way.positive!r}, behind it"
    if shift.any():
        if way.unshifted:
            return f"no summand passes {way.unshifted!r}, behind it"
        for end in way.ends:
            layer = end.node.layer
            if not bench.linear(layer).takes_shift(tuple(end.node.keras_inputs[0].shape)[1:-1]):
                return f"{layer.name!r} behind it pads with zeros"
    return ""


def _into_outputs(bench: Bench, way: Way, scale: np.ndarray, shift: np.ndarray) -> None:
    for end in way.ends:
        bench.linear(end.node.layer).scale_outputs(scale[end.index], shift[end.index])


def _into_inputs(bench: Bench, way: Way, scale: np.ndarray, shift: np.ndarray) -> None:
    for end in way.ends:
        own = end.index >= 0
        linear = bench.linear(end.node.layer)
        linear.scale_inputs(
            np.where(own, scale[end.index], 1.0), np.where(own, shift[end.index], 0.0)
        )


def _names(*ways: Way) -> str:
    layers: Iterable[str] = (repr(end.node.layer.name) for way in ways for end in way.ends)
    return " and ".join(dict.fromkeys(layers))
