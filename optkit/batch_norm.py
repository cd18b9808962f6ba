"""Re-estimation of batch-normalization statistics."""

from __future__ import annotations

from typing import Any

from optkit.data import Split
from optkit.models import batch_norms
from optkit.runtime import tensorflow

__all__ = ["reestimate_batch_norm"]


def reestimate_batch_norm(
    model: Any, split: Split, *, seed: int, include_frozen: bool = False
) -> tuple[str, ...]:
    """Sets the moving statistics of batch normalization to those of the data, in place.

    One pass over the split without augmentation. Every batch is normalized by its own statistics,
    as in training, while everything else (dropout, say) is in inference mode; the mean and variance
    of all samples seen become the new moving statistics.

    Args:
        model: A built tf_keras model, whose batch-normalization weights are changed.
        split: The data, taken in shuffled order, as sorted batches have statistics of their own.
        seed: Seed of the order.
        include_frozen: Whether to re-estimate layers that are not trainable, too.

    Returns:
        The names of the layers that were re-estimated.
    """
    tf = tensorflow()
    chosen = [layer for layer in batch_norms(model) if include_frozen or layer.trainable]
    if not chosen:
        return ()
    moments = [_Moments(layer) for layer in chosen]
    names = model.input_names

    def run(x: Any) -> None:
        inputs = [x[name] for name in names] if isinstance(x, dict) else x
        tensors = [
            tf.cast(tensor, wanted.dtype) if tensor.dtype != tf.string else tensor
            for tensor, wanted in zip(tf.nest.flatten(inputs), model.inputs, strict=True)
        ]
        model(tensors[0] if len(tensors) == 1 else tensors, training=False)

    batches = split.training_batches(seed).take(split.steps)
    # The signature covers the short last batch; there is no Python control flow to convert.
    step = tf.function(run, input_signature=[batches.element_spec[0]], autograph=False)
    try:
        for layer, collected in zip(chosen, moments, strict=True):
            # On the object, where it hides the method of the class. A copy of the model with
            # layers of another class would take several times as long to build as this to run.
            layer.call = collected.call
        for x, _ in batches:
            step(x)
    finally:
        for layer in chosen:
            if "call" in vars(layer):
                del layer.call
    return tuple(collected.name for collected in moments if collected.assign())


class _Moments:
    """Mean and variance of all that a batch normalization is given, over many batches.

    Args:
        layer: A built batch normalization.
    """

    def __init__(self, layer: Any):
        tf = tensorflow()
        axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
        rank = layer.input_spec.ndim
        kept = {axis % rank for axis in axes}
        self._layer = layer
        self._over = [axis for axis in range(rank) if axis not in kept]
        known = layer.input_spec.axes
        self._broadcast = [known[axis] if axis in kept else 1 for axis in range(rank)]
        shape = layer.moving_mean.shape
        self._total = tf.Variable(0.0, dtype=tf.float64, trainable=False)
        self._mean = tf.Variable(tf.zeros(shape, tf.float64), trainable=False)
        self._squares = tf.Variable(tf.zeros(shape, tf.float64), trainable=False)

    @property
    def name(self) -> str:
        """Name of the layer."""
        return str(self._layer.name)

    @property
    def call(self) -> Any:
        """The layer's ``call`` for the time of collecting: normalizes by the batch's own moments."""
        # There is no control flow to convert, and looking for some takes a while.
        return tensorflow().autograph.experimental.do_not_convert(self._normalize)

    def _normalize(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        tf, layer = tensorflow(), self._layer
        values = tf.cast(inputs, tf.float32)
        mean, variance = tf.nn.moments(values, self._over)
        self._collect(values, mean, variance)
        scale = tf.math.rsqrt(variance + layer.epsilon)
        if layer.scale:
            # In 16-bit models a layer sees its variables, which are float32, in 16 bits.
            scale *= tf.cast(tf.reshape(layer.gamma, scale.shape), scale.dtype)
        shift = -mean * scale
        if layer.center:
            shift += tf.cast(tf.reshape(layer.beta, shift.shape), shift.dtype)
        out = values * tf.reshape(scale, self._broadcast)
        return tf.cast(out + tf.reshape(shift, self._broadcast), inputs.dtype)

    def _collect(self, values: Any, mean: Any, variance: Any) -> None:
        tf = tensorflow()
        count = tf.cast(tf.size(values) / tf.size(mean), tf.float64)
        # Chan, Golub and LeVeque (1979): merges the moments of two groups.
        total = self._total + count
        delta = tf.reshape(tf.cast(mean, tf.float64), self._mean.shape) - self._mean
        inside = tf.reshape(tf.cast(variance, tf.float64), self._squares.shape) * count
        self._squares.assign_add(inside + delta**2 * self._total * count / total)
        self._mean.assign_add(delta * count / total)
        self._total.assign(total)

    def assign(self) -> bool:
        """Makes them the moving statistics of the layer, unless the model never ran it."""
        tf, layer = tensorflow(), self._layer
        if not self._total.numpy():
            return False
        layer.moving_mean.assign(tf.cast(self._mean, layer.moving_mean.dtype))
        variance = self._squares / self._total
        layer.moving_variance.assign(tf.cast(variance, layer.moving_variance.dtype))
        return True
