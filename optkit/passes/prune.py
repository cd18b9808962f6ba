"""`Prune`: sets the smallest weights to zero while the model trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from optkit import _validate
from optkit.base import TrainPass
from optkit.constraint import KeepZeros
from optkit.context import Context, Setting
from optkit.errors import ArgumentTypeError, OptkitError, PipelineError
from optkit.models import clone, nested_models, variables_by_path
from optkit.recipe import Recipe
from optkit.runtime import tf_keras, tfmot
from optkit.training import check_optimizer

__all__ = ["Prune", "Schedule", "pruning_schedule"]

_RAMP = 2 / 3  # share of the training in which sparsity grows; the rest recovers
_UPDATES = 50  # masks made anew on the way, at most


class Schedule(NamedTuple):
    """When masks are made anew, in training steps counted from 1."""

    begin: int
    end: int
    frequency: int


def pruning_schedule(steps: int) -> Schedule:
    """A schedule that reaches its target inside a training of so many steps.

    Sparsity grows over the first two thirds, in at most fifty updates, the last of which falls
    exactly on the end: a schedule whose end is missed by its own frequency never gets there.

    >>> pruning_schedule(300)
    Schedule(begin=4, end=200, frequency=4)
    >>> pruning_schedule(1)
    Schedule(begin=1, end=1, frequency=1)
    """
    last = max(1, int(steps * _RAMP))
    frequency = max(1, -(-last // _UPDATES))
    end = max(frequency, last - last % frequency) if last >= frequency else last
    return Schedule(min(frequency, end), end, frequency)


class Prune(TrainPass):
    """Magnitude pruning: the smallest weights become zero, gradually, while the rest adapts.

    Use it for a file that compresses better, or as the first step before quantization. Zeros stay
    zeros in every later training. The statistics of batch normalization are measured anew at the
    end (frozen layers keep theirs). Stored densely, as here, they make neither the file smaller nor
    inference faster: look at the gzipped size.

    Args:
        sparsity: Share of weights to set to zero in each pruned layer, in ``(0, 1)``.
        epochs: Epochs of training, at least 1. Sparsity grows over the first two thirds.
        layers: Sparsity by layer name, for layers that should differ; 0 leaves one dense.
        exclude: Names of layers to leave dense.
        learning_rate: Learning rate, above 0; ``None`` for that of the compiled optimizer, else
            0.001.
        optimizer: As in `FineTune`; ``None`` for the recipe's, else the compiled class, else AdamW.
        patience: Epochs without a better validation metric, counted from the end of the schedule
            on, after which training stops with the best weights of that part; ``None`` trains all
            epochs and keeps the last weights.

    Example:
        >>> import optkit as ok
        >>> from optkit.testing import digits, small_model
        >>> pipeline = ok.Pipeline([ok.Prune(0.8, epochs=1, exclude=["classes"])])
        >>> result = pipeline.run(small_model(), digits(samples=400))
        >>> result.report.rows[0].notes[0]
        'reached 80.6 % zeros in 1 layer: conv 80.6 %'

    References:
        Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model
        compression", 2017. Done by tensorflow-model-optimization.
    """

    def __init__(
        self,
        sparsity: float = 0.5,
        epochs: int = 2,
        *,
        layers: dict[str, float] | None = None,
        exclude: list[str] | tuple[str, ...] = (),
        learning_rate: float | None = None,
        optimizer: Any = None,
        patience: int | None = None,
    ):
        _validate.number("sparsity", sparsity, minimum=0, maximum=1, exclusive="min max")
        _validate.integer("epochs", epochs, minimum=1)
        if layers is not None and not isinstance(layers, Mapping):
            raise ArgumentTypeError(
                f"`layers` must be a dict of sparsity by layer name. Received: {layers!r}."
            )
        for name, value in (layers or {}).items():
            _validate.number(f"layers[{name!r}]", value, minimum=0, maximum=1, exclusive="max")
        _validate.texts("exclude", exclude)
        if both := sorted(set(exclude) & set(layers or {})):
            raise PipelineError(f"Layers {both} are in `layers` and in `exclude`.")
        _validate.optional(
            _validate.number, "learning_rate", learning_rate, minimum=0, exclusive="min"
        )
        check_optimizer("optimizer", optimizer)
        _validate.optional(_validate.integer, "patience", patience, minimum=1)
        self.sparsity = sparsity
        self.epochs = epochs
        self.layers = layers
        self.exclude = exclude
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.patience = patience

    @property
    def needs(self) -> tuple[str, ...]:
        """Validation only for early stopping."""
        return ("train",) if self.patience is None else ("train", "validation")

    def check(self, setting: Setting) -> None:
        """Refuses models within models, unknown layer names, models with nothing to prune."""
        setting.require_float32()
        if setting.model is not None:
            self._targets(setting.model)

    def _targets(self, model: Any) -> dict[str, float]:
        """Sparsity by name of each layer to prune."""
        nested = nested_models(model)
        if nested:
            raise PipelineError(
                f"Model {model.name!r} uses models as layers ({', '.join(nested)}), which tfmot "
                "cannot prune. Build it flat: apply the inner model's layers to the outer tensors."
            )
        names = {layer.name for layer in model.layers}
        unknown = sorted({*(self.layers or {}), *self.exclude} - names)
        if unknown:
            raise PipelineError(
                f"Model {model.name!r} has no layers {unknown}. Its layers: {sorted(names)}."
            )
        targets = {}
        for layer in model.layers:
            wanted = (self.layers or {}).get(layer.name, self.sparsity)
            if layer.name in self.exclude or wanted == 0:
                continue
            if not layer.trainable:
                if layer.name in (self.layers or {}):
                    raise PipelineError(
                        f"Layer {layer.name!r} is frozen, so it cannot be pruned. Set its "
                        "`trainable = True`, or leave it out of `layers`."
                    )
                continue
            if _prunable_weights(layer):
                targets[layer.name] = wanted
            elif layer.name in (self.layers or {}):
                raise PipelineError(
                    f"Layer {layer.name!r} ({type(layer).__name__}) has no weights that can be "
                    "pruned. Leave it out of `layers`."
                )
        if not targets:
            raise PipelineError(
                f"Model {model.name!r} has no trainable layers that can be pruned (convolutions, "
                "dense layers, embeddings), or all of them are excluded."
            )
        return targets

    def train(self, model: Any, recipe: Recipe, context: Context) -> Any:
        """Prunes the model while it trains."""
        sparsity = tfmot().sparsity.keras
        targets = self._targets(model)
        split = context.data.train
        assert split is not None  # `needs` saw to it
        schedule = pruning_schedule(self.epochs * split.steps)

        def wrap(layer: Any) -> Any:
            copy = type(layer).from_config(layer.get_config())
            if layer.name not in targets:
                return copy
            growing = sparsity.PolynomialDecay(
                initial_sparsity=0.0,
                final_sparsity=targets[layer.name],
                begin_step=schedule.begin,
                end_step=schedule.end,
                frequency=schedule.frequency,
            )
            return sparsity.prune_low_magnitude(copy, growing)

        wrapped = clone(model, replace=wrap)
        incoming = variables_by_path(model)
        for path, variable in variables_by_path(wrapped).items():
            variable.assign(incoming[path])
        history = context.fit(
            wrapped,
            recipe,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            optimizer=self.optimizer,
            patience=self.patience,
            # Weights from before the end of the schedule have too few zeros.
            settled_after=-(-schedule.end // split.steps) - 1,
            callbacks=[sparsity.UpdatePruningStep()],
        )
        if self.patience is not None and history.best_epoch < self.epochs:
            context.note(f"kept epoch {history.best_epoch} of {history.epochs}")
        trained = variables_by_path(wrapped)
        for path, variable in variables_by_path(model).items():
            variable.assign(trained[path])
        self._verify(model, targets, context)
        # Statistics gathered while weights still fell away do not fit those that are left.
        context.reestimate_batch_norm(model)
        return model

    def _verify(self, model: Any, targets: dict[str, float], context: Context) -> None:
        """Counts the zeros of every pruned layer, and has them kept from now on."""
        paths = {id(variable): path for path, variable in variables_by_path(model).items()}
        reached = {}
        zeros = total = 0
        for layer in model.layers:
            if layer.name not in targets:
                continue
            layer_zeros = layer_total = 0
            for variable in _prunable_weights(layer):
                value = variable.numpy()
                missing = int(value.size - np.count_nonzero(value))
                expected = value.size - round(value.size * (1 - targets[layer.name]))
                if missing < expected - 1:  # tfmot keeps at least one weight of each kernel
                    raise OptkitError(
                        f"Layer {layer.name!r} has {missing} zeros of {value.size} weights and "
                        f"should have {expected}. Many weights of equal size cannot be ranked; "
                        "train longer, or exclude the layer."
                    )
                context.attach(KeepZeros(paths[id(variable)], value != 0))
                layer_zeros, layer_total = layer_zeros + missing, layer_total + value.size
            reached[layer.name] = layer_zeros / layer_total
            zeros, total = zeros + layer_zeros, total + layer_total
        listed = sorted(reached.items(), key=lambda item: item[1])
        shown = ", ".join(f"{name} {share:.1%}".replace("%", " %") for name, share in listed[:6])
        rest = f", … ({len(listed)} in all)" if len(listed) > 6 else ""
        context.note(
            f"reached {100 * zeros / total:.1f} % zeros in {len(listed)} "
            f"layer{'s' * (len(listed) != 1)}: {shown}{rest}"
        )
        context.note("zeros stored densely: only the gzipped size shrinks, and nothing gets faster")


def _prunable_weights(layer: Any) -> list[Any]:
    """The variables of a layer that tfmot prunes; none for a layer that it does not support."""
    tfmot()  # first, so that importing parts of it has no side effects
    from tensorflow_model_optimization.python.core.sparsity.keras import (
        prunable_layer,
        prune_registry,
    )

    keras = tf_keras()
    if isinstance(layer, prunable_layer.PrunableLayer):
        return list(layer.get_prunable_weights())
    registry = prune_registry.PruneRegistry
    if isinstance(layer, keras.layers.RNN) or not registry.supports(layer):
        # tfmot knows recurrent cells, but its wrapper cannot be stripped from a copy of them.
        return []
    names = registry._weight_names(layer)
    if any("." in name for name in names):
        # Weights of layers within the layer (attention), which tfmot's wrapper does not find again.
        return []
    return [getattr(layer, name) for name in names]
