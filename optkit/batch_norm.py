"""Re-estimation of batch-normalization statistics."""

from __future__ import annotations

from typing import Any

from optkit.data import Split
from optkit.models import batch_norms, clone
from optkit.runtime import tensorflow, tf_keras

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
    chosen = {layer.name for layer in batch_norms(model) if include_frozen or layer.trainable}
    if not chosen:
        return ()
    collected: dict[str, tuple[Any, Any, Any]] = {}
    twin = clone(model, replace=lambda layer: _collecting_copy(layer, chosen, collected))
    twin.set_weights(model.get_weights())
    names = twin.input_names

    def run(x: Any) -> None:
        inputs = [x[name] for name in names] if isinstance(x, dict) else x
        tensors = [
            tf.cast(tensor, wanted.dtype) if tensor.dtype != tf.string else tensor
            for tensor, wanted in zip(tf.nest.flatten(inputs), twin.inputs, strict=True)
        ]
        twin(tensors[0] if len(tensors) == 1 else tensors, training=False)

    batches = split.training_batches(seed).take(split.steps)
    # The signature covers the short last batch; there is no Python control flow to convert.
    step = tf.function(run, input_signature=[batches.element_spec[0]], autograph=False)
    for x, _ in batches:
        step(x)
    for layer in batch_norms(model):
        if layer.name in collected:
            count, mean, squares = collected[layer.name]
            layer.moving_mean.assign(tf.cast(mean, layer.moving_mean.dtype))
            layer.moving_variance.assign(tf.cast(squares / count, layer.moving_variance.dtype))
    return tuple(collected)


def _collecting_copy(
    layer: Any, chosen: set[str], collected: dict[str, tuple[Any, Any, Any]]
) -> Any:
    """A copy of a layer; a chosen batch normalization collects statistics as it normalizes."""
    tf, keras = tensorflow(), tf_keras()
    if layer.name not in chosen:
        return type(layer).from_config(layer.get_config())

    class Collecting(keras.layers.BatchNormalization):  # type: ignore[misc, name-defined]
        def build(self, input_shape: Any) -> None:
            super().build(input_shape)
            axes = self.axis if isinstance(self.axis, list | tuple) else [self.axis]
            rank = len(input_shape)
            kept = {axis % rank for axis in axes}
            self._over = [axis for axis in range(rank) if axis not in kept]
            self._broadcast = [input_shape[axis] if axis in kept else 1 for axis in range(rank)]
            shape = self.moving_mean.shape
            # Kept outside the layer, so that its weights stay those of the original.
            with tf.init_scope():
                collected[self.name] = (
                    tf.Variable(0.0, dtype=tf.float64, trainable=False),
                    tf.Variable(tf.zeros(shape, tf.float64), trainable=False),
                    tf.Variable(tf.zeros(shape, tf.float64), trainable=False),
                )

        # There is no control flow to convert, and looking for some takes a while.
        @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
        def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
            values = tf.cast(inputs, tf.float32)
            mean, variance = tf.nn.moments(values, self._over)
            self._collect(values, mean, variance)
            scale = tf.math.rsqrt(variance + self.epsilon)
            if self.scale:
                scale *= tf.reshape(self.gamma, scale.shape)
            shift = -mean * scale
            if self.center:
                shift += tf.reshape(self.beta, shift.shape)
            out = values * tf.reshape(scale, self._broadcast)
            return tf.cast(out + tf.reshape(shift, self._broadcast), inputs.dtype)

        def _collect(self, values: Any, mean: Any, variance: Any) -> None:
            total, running_mean, squares = collected[self.name]
            count = tf.cast(tf.size(values) / tf.size(mean), tf.float64)
            # Chan, Golub and LeVeque (1979): merges the moments of two groups.
            new_total = total + count
            delta = tf.reshape(tf.cast(mean, tf.float64), running_mean.shape) - running_mean
            inside = tf.reshape(tf.cast(variance, tf.float64), squares.shape) * count
            squares.assign_add(inside + delta**2 * total * count / new_total)
            running_mean.assign_add(delta * count / new_total)
            total.assign(new_total)

    return Collecting.from_config(layer.get_config())
