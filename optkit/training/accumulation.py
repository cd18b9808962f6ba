"""Gradients of several batches in one update: that of the batch that they would be together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optkit.data import first_leaf
from optkit.runtime import tensorflow, tf_keras

__all__ = ["GradientWindow"]


class GradientWindow:
    """The sum of gradients since the last update, each counted as often as its batch has samples.

    Losses are means over a batch. Of batches of ``n_k`` samples with gradients ``g_k`` the batch
    that they make together has the gradient ``sum(n_k * g_k) / sum(n_k)``, also where the last one
    is shorter. Penalties on weights, which every batch has whole, come out once.

    Args:
        variables: The trainable variables. Under a strategy each replica has sums of its own.
    """

    def __init__(self, variables: Sequence[Any]):
        tf = tensorflow()

        def zeros(shape: Any, dtype: Any) -> Any:
            return tf.Variable(
                tf.zeros(shape, dtype),
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.SUM,
            )

        self._variables = list(variables)
        self._sums = [zeros(variable.shape, variable.dtype) for variable in self._variables]
        self._samples = zeros((), tf.float32)

    def step(self, trainer: Any, data: Any, *, applies: bool) -> dict[str, Any]:
        """One batch of a training, in a graph.

        Args:
            trainer: The compiled model that trains.
            data: The batch, as Keras hands it to ``train_step``.
            applies: Whether the batch is the last of its update.

        Returns:
            The metrics so far, by name.
        """
        tf = tensorflow()
        x, y, weights = tf_keras().utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            outputs = trainer(x, training=True)
            loss = trainer.compute_loss(x, y, outputs, weights)
        trainer._validate_target_and_loss(y, loss)
        gradients = _gradients(trainer.optimizer, loss, self._variables, tape)
        samples = tf.cast(tf.shape(first_leaf(x))[0], tf.float32)
        together = self._samples + samples
        sums = [
            None if gradient is None else held + _times(gradient, samples, held)
            for gradient, held in zip(gradients, self._sums, strict=True)
        ]
        if applies:
            # Replicas may have had other numbers of samples; their gradients are added up.
            shared = tf.distribute.get_replica_context().all_reduce(
                tf.distribute.ReduceOp.MEAN, together
            )
            means = [
                None
                if total is None
                else tf.math.divide_no_nan(total, tf.cast(shared, total.dtype))
                for total in sums
            ]
            trainer.optimizer.apply_gradients(list(zip(means, self._variables, strict=True)))
        for held, total in zip([self._samples, *self._sums], [together, *sums], strict=True):
            if total is not None:
                held.assign(tf.zeros_like(total) if applies else total)
        metrics: dict[str, Any] = trainer.compute_metrics(x, y, outputs, weights)
        return metrics


def _gradients(optimizer: Any, loss: Any, variables: Sequence[Any], tape: Any) -> list[Any]:
    """The gradients as the optimizer takes them, before clipping; scaled losses scaled back."""
    compute = getattr(optimizer, "compute_gradients", None)
    if compute is None:  # a legacy optimizer
        pairs = optimizer._compute_gradients(loss, variables, tape=tape)
    else:
        pairs = compute(loss, variables, tape)
    return [gradient for gradient, _ in pairs]


def _times(gradient: Any, samples: Any, held: Any) -> Any:
    """A gradient as a whole tensor, times a number of samples, which may be 0 on a replica."""
    tf = tensorflow()
    if isinstance(gradient, tf.IndexedSlices):  # of the rows of a table that a batch looked up
        gradient = tf.math.unsorted_segment_sum(gradient.values, gradient.indices, held.shape[0])
    return tf.math.multiply_no_nan(gradient, tf.cast(samples, gradient.dtype))
