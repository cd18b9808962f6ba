"""Activations brought into better shape for one scale a tensor, by what was seen of them."""

from __future__ import annotations

from typing import Any

from optkit.quantize.repairs.bench import Bench, Repaired
from optkit.quantize.repairs.center import center, centered_layers
from optkit.quantize.repairs.fold import fold_batch_norms
from optkit.quantize.repairs.seen import Batches, look
from optkit.quantize.repairs.widen import Ties, widen

__all__ = ["balance"]


def balance(model: Any, batches: Batches) -> Repaired:
    """Centers and widens the channels of activations, each as its neighbours allow.

    An activation has one scale for all of its channels, and loses accuracy where they differ.
    Batch normalizations are folded first, as `fold_batch_norms` does. Then

    - channels of layers without an activation are centered: their means, as seen on the samples,
      are taken off, and the biases of all layers that take them make up for it. Sums of residual
      blocks, concatenation, pooling and the like may lie between; an activation or padding with
      zeros may not. This is exact for every input.
    - narrow channels in front of depthwise convolutions are widened to the range of the widest,
      each by a factor of its own, up to 64 times. Kernels on both sides have a scale for each
      channel, so that they lose nothing. Through ReLU this is exact for every input.

    Where ReLU6 (any `ReLU` with a ``max_value``) lies behind a widened channel, it is exact as long
    as no value of that channel is above twice the largest one of the samples; above that it may be
    cut off, so that outputs differ. `Repaired.exact` is then ``False``, and whether it helps is to
    be measured on other samples. (An 8-bit file cuts off what the samples did not reach, anyway.)

    Args:
        model: A built functional or Sequential tf_keras model. It is not changed.
        batches: Inputs to look at activations on, some hundred samples like those of the use to
            come: batches, or a function that gives them, each a list of arrays in the order of the
            model's inputs. An array alone will do where there is one input.

    Returns:
        The repaired model; its layers keep their names. `left` names layers without an activation
        that could not be centered, and depthwise convolutions whose channels could not be widened.

    Raises:
        DataError: If there is no sample, one does not fit the model, or activations are no numbers.

    Example:
        >>> import numpy as np
        >>> import tf_keras as keras
        >>> model = keras.Sequential([
        ...     keras.Input((8, 8, 3)),
        ...     keras.layers.Conv2D(4, 1, activation="relu", name="expand"),
        ...     keras.layers.DepthwiseConv2D(3, activation="relu", name="depthwise"),
        ...     keras.layers.Conv2D(2, 1, name="project"),
        ...     keras.layers.Conv2D(4, 1, activation="relu", name="behind"),
        ... ])
        >>> model.get_layer("expand").set_weights([np.ones((1, 1, 3, 4)), np.arange(4.0)])
        >>> images = np.random.default_rng(0).random((20, 8, 8, 3), "float32")
        >>> balance(model, [images]).done
        ('project: centered', "expand: widened for 'depthwise'")

    References:
        Nagel et al. (2019), "Data-Free Quantization Through Weight Equalization and Bias
        Correction", sections 4.1 and 4.1.3; the summands and factors there come from weights and
        batch norms alone, here from samples.
    """
    folded = fold_batch_norms(model)
    bench = Bench(folded.model)
    nodes, left = centered_layers(bench)
    ties = Ties(bench)
    wanted = {id(node.outputs): node.outputs for node in nodes}
    wanted |= {id(place.tensor): place.tensor for place in ties.places}
    seen = look(bench.model, wanted, batches)
    centered, moved = center(bench, nodes, seen)
    seen |= {key: seen[key].moved(shift) for key, shift in moved.items() if key in seen}
    widened, unwidened, exact = widen(bench, ties, seen)
    for name, why in unwidened.items():
        left[name] = f"{left[name]}; {why}" if name in left else why
    repaired, names = bench.build()
    done = folded.done + centered + widened
    return Repaired(repaired, done, {**folded.left, **left}, folded.names or names, exact)
