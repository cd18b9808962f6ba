"""`find_learning_rate`: which learning rate suits a model, found before a pipeline is built."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from optkit import _validate
from optkit.base import RecipePass
from optkit.data import Data
from optkit.entrance import admit
from optkit.errors import ArgumentTypeError, DataError, ModelError, PipelineError
from optkit.models import clone
from optkit.prepare import Options, prepare
from optkit.recipe import Recipe
from optkit.runtime import derive_seed, isolated
from optkit.training import LearningRateSearch, RateRange, check_optimizer, fit

__all__ = ["LearningRateSearch", "find_learning_rate"]


def find_learning_rate(
    model: Any,
    data: Any,
    *,
    passes: Sequence[RecipePass] = (),
    optimizer: Any = None,
    weight_decay: float | None = None,
    loss: Any = None,
    low: float = 1e-6,
    high: float = 10.0,
    updates: int = 100,
    seed: int = 0,
) -> LearningRateSearch:
    """Trains a copy of the model over rising learning rates, and looks where the loss is lowest.

    The range test: the rate grows from ``low`` to ``high`` by the same factor with every update,
    and the loss of the next batch says what the update did. The test stops where the loss runs
    away. The suggestion is a tenth of the highest rate at which the smoothed loss is still as low
    as the lowest, within its noise; of the rates at which it falls fastest one is mostly chosen by
    noise. The model, the data and the global settings of the process stay as they are; ``test`` and
    ``validation`` are not looked at.

    Every training pass does the same by itself where it is given ``learning_rate="auto"``.

    Args:
        model: A Keras model, of tf_keras or of Keras 3, built in whatever way, or the path of a
            file that holds one.
        data: `Data` with ``train``, or ``(x, y)`` or ``(x, y, sample weights)`` of arrays, which are
            taken for ``train``.
        passes: Recipe passes that the training will have (`Augment`, `LabelSmooth`, …), as the rate
            depends on them.
        optimizer: As in `FineTune`: a name of a Keras optimizer, or an optimizer; ``None`` for the
            recipe's, else one of the class that the model is compiled with, else AdamW. A rate suits
            one optimizer alone: `FineTune` and `QuantizeAware` train by AdamW unless told otherwise.
        weight_decay: Decay of kernels, at least 0; ``None`` for the optimizer's own setting.
        loss: A loss as ``compile`` takes it; ``None`` for the compiled one, else that of the task.
        low: The rate to begin with, above 0.
        high: The rate to end with, above ``low``.
        updates: Updates, each with a rate of its own, at least 20. More of them tell more exactly.
        seed: Seed of what is drawn, in ``[0, 2**31)``.

    Returns:
        The rates, their losses and a suggestion; ``print`` shows the table, ``plot`` a picture.

    Raises:
        PipelineError: For arguments that cannot be meant; `DataError` and `ModelError`, which are
            kinds of it, where the fault lies there.
        OptkitError: If the loss runs away at once.

    Example:
        >>> import optkit as ok
        >>> from optkit.testing import digits, small_model
        >>> found = ok.find_learning_rate(small_model(), digits(400), updates=60)
        >>> 0.001 < found.suggestion < 0.5
        True
        >>> tune = ok.FineTune(epochs=5, learning_rate=found.suggestion)

    References:
        Smith, "Cyclical Learning Rates for Training Neural Networks", 2017.
    """
    recipe = Recipe()
    for item in _recipe_passes(passes):
        recipe = item.amend(recipe)
    check_optimizer("optimizer", optimizer)
    _validate.optional(_validate.number, "weight_decay", weight_decay, minimum=0)
    _validate.number("low", low, minimum=0, exclusive="min")
    _validate.number("high", high, minimum=low, exclusive="min")
    _validate.integer("updates", updates, minimum=20)
    _validate.integer("seed", seed, minimum=0, maximum=2**31 - 1)
    shown = _train_alone(data)
    with isolated(derive_seed(seed, "find_learning_rate")):
        admitted = admit(model, shown)
        if admitted.model is None:
            raise ModelError(
                "What came in is a traced graph without layers, which cannot be trained. Load the "
                "model from a file that Keras saved."
            )
        if not admitted.model.trainable_weights:
            raise ModelError(
                f"Every layer of model {admitted.model.name!r} is frozen, so there is nothing to "
                "train. Set `trainable = True` on the layers that may change."
            )
        steps = [(i, type(item).__name__, item) for i, item in enumerate(passes, 1)]
        prepared = prepare(steps, admitted, shown, loss, Options(seed=seed))
        history = fit(
            clone(admitted.model),
            recipe,
            data=prepared.data,
            task=prepared.task,
            metric=prepared.metric,
            loss=prepared.loss,
            source=admitted.model,
            constraints={},
            seed=derive_seed(seed, "range test"),
            epochs=0,
            learning_rate="auto",
            optimizer=optimizer,
            weight_decay=weight_decay,
            rates=RateRange(low, high, updates),
        )
        assert history.search is not None  # as "auto" was asked for
        return history.search


def _recipe_passes(passes: Any) -> Sequence[RecipePass]:
    if not isinstance(passes, list | tuple):
        raise ArgumentTypeError(
            f"`passes` must be a list of recipe passes, such as [Augment()]. Received: {passes!r}."
        )
    for item in passes:
        if not isinstance(item, RecipePass):
            raise PipelineError(
                "`passes` must hold recipe passes, which say how to train, such as Augment or "
                f"LabelSmooth. Received: {item!r}."
            )
    return passes


def _train_alone(data: Any) -> Data:
    """The data without ``test``; ``validation`` is bound like ``train``, and not looked at."""
    if isinstance(data, tuple) and len(data) in (2, 3):
        return Data(train=data)
    if not isinstance(data, Data):
        raise ArgumentTypeError(
            "`data` must be an `optkit.Data`, such as `Data(train=(x, y))`, or a pair (x, y) of "
            f"arrays. Received: {type(data).__name__}."
        )
    if data.train is None:
        raise DataError("A learning rate is looked for on `train`, and data has none. Give it.")
    shown = copy.copy(data)
    shown.test = None
    return shown
