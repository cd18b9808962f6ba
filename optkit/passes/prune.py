"""`Prune`: sets the smallest weights to zero while the model trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from optkit import _validate
from optkit.base import TrainPass
from optkit.constraint import KeepZeros
from optkit.context import Context, Setting
from optkit.errors import ArgumentTypeError, PipelineError
from optkit.models import layers_by_path, variables_by_path
from optkit.recipe import Recipe
from optkit.runtime import tensorflow, tf_keras
from optkit.training import Steps, check_learning_rate, check_optimizer

__all__ = ["Prune", "Schedule", "pruning_schedule", "smallest_out"]

_RAMP = 2 / 3  # share of the training in which sparsity grows; the rest recovers
_UPDATES = 50  # masks made anew on the way, at most
_KERNELS = ("kernel", "embeddings")  # names of variables that hold many weights of one kind
_SMALL_KERNELS = ("depthwise_kernel",)  # a few weights a channel, of which each one matters


class Schedule(NamedTuple):
    """When masks are made anew, in training steps counted from 1."""

    begin: int
    end: int
    frequency: int

    def due(self, step: int) -> bool:
        """Whether masks are made anew before this step."""
        return step in range(self.begin, self.end + 1, self.frequency)

    def share(self, step: int) -> float:
        """How much of the sparsity in the end there is from this step on: 1 at the end.

        Falls away fast at first and slowly in the end, by the cube (Zhu and Gupta, 2017).

        >>> schedule = Schedule(begin=10, end=30, frequency=5)
        >>> [schedule.share(step) for step in (10, 20, 30)]
        [0.0, 0.875, 1.0]
        """
        if step >= self.end:
            return 1.0
        return 1 - (1 - max(0, step - self.begin) / (self.end - self.begin)) ** 3


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


def smallest_out(value: np.ndarray, sparsity: float, kept: np.ndarray | None = None) -> np.ndarray:
    """The mask that sets a share of weights, the smallest, to zero.

    Args:
        value: The weights.
        sparsity: Share to set to zero, in ``[0, 1)``. At least one weight stays.
        kept: A mask made before; what it sets to zero stays so.

    Returns:
        True where a weight stays, of the shape of ``value``. Of weights of equal size the first
        ones stay.

    Example:
        >>> import numpy as np
        >>> smallest_out(np.array([0.1, -3.0, 2.0, 0.2]), 0.5)
        array([False,  True,  True, False])
    """
    size = np.abs(value).ravel()
    if kept is not None:
        size = np.where(kept.ravel(), size, -1.0)
    count = max(1, round(size.size * (1 - sparsity)))
    mask = np.zeros(size.size, dtype=bool)
    mask[np.argsort(-size, kind="stable")[:count]] = True
    return mask.reshape(value.shape) if kept is None else mask.reshape(value.shape) & kept


class Prune(TrainPass):
    """Magnitude pruning: the smallest weights become zero, gradually, while the rest adapts.

    Use it for a file that compresses better, or as the first step before quantization. Zeros stay
    zeros in every later training. The statistics of batch normalization are measured anew at the
    end (frozen layers keep theirs). Stored densely, as here, they make neither the file smaller nor
    inference faster: look at the gzipped size.

    Pruned are the kernels of every trainable layer: of dense, convolutional, recurrent, attention
    and embedding layers, of layers within your own layers, and of models within the model. The
    kernels of depthwise convolutions, biases and the weights of normalization are left alone.

    Args:
        sparsity: Share of weights to set to zero in each pruned layer, in ``(0, 1)``.
        epochs: Epochs of training, at least 1. Sparsity grows over the first two thirds.
        layers: Sparsity by layer name, for layers that should differ; 0 leaves one dense. A layer
            of a model within the model is called ``"inner/layer"``, or by its own name where no
            other has it; ``"inner"`` stands for all layers of that model. A layer that is named
            here is pruned in all its trainable weights of rank two and above, whatever their
            names.
        exclude: Names of layers to leave dense, in the same way.
        learning_rate: Learning rate, above 0; ``"auto"`` to look for one (see
            `find_learning_rate`); ``None`` for that of the compiled optimizer, else 0.001.
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
        compression", 2017.
    """

    def __init__(
        self,
        sparsity: float = 0.5,
        epochs: int = 2,
        *,
        layers: dict[str, float] | None = None,
        exclude: list[str] | tuple[str, ...] = (),
        learning_rate: float | str | None = None,
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
        check_learning_rate("learning_rate", learning_rate, optional=True)
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
        """Refuses unknown layer names, models with nothing to prune, and schedules without a peak."""
        if setting.recipe.schedule is not None:
            setting.require_peak(self.learning_rate, self.optimizer)
        if setting.model is not None:
            self.targets(setting.model)

    def targets(self, model: Any) -> dict[str, tuple[float, list[str]]]:
        """What of a model is pruned.

        Args:
            model: A built tf_keras model.

        Returns:
            By path of each layer to prune, the share of zeros and the paths of its kernels.

        Raises:
            PipelineError: If a layer is named that there is not, or nothing can be pruned.
        """
        layers = layers_by_path(model)
        wanted = dict.fromkeys(layers, self.sparsity)
        named: set[str] = set()
        for name, sparsity in (self.layers or {}).items():
            chosen = _addressed(name, layers, model)
            wanted |= dict.fromkeys(chosen, sparsity)
            named |= set(chosen) if name in (*chosen, chosen[0].rpartition("/")[2]) else set()
        for name in self.exclude:
            for path in _addressed(name, layers, model):
                wanted[path] = 0.0
        paths = {id(variable): path for path, variable in variables_by_path(model).items()}
        taken: set[str] = set()  # a weight that several layers use is pruned with the first
        targets = {}
        for path, layer in layers.items():
            if wanted[path] == 0:
                continue
            found = []
            for variable in _kernels(layer, whatever=path in named):
                if (weight := paths[id(variable)]) not in taken:
                    taken.add(weight)
                    found.append(weight)
            if found:
                targets[path] = (wanted[path], found)
            elif path in named:
                raise PipelineError(_no_kernels(path, layer))
        if not targets:
            raise PipelineError(
                f"Model {model.name!r} has no trainable layers that can be pruned (convolutions, "
                "dense, recurrent and attention layers, embeddings), or all of them are excluded."
            )
        return targets

    def train(self, model: Any, recipe: Recipe, context: Context) -> Any:
        """Prunes the model while it trains."""
        targets = self.targets(model)
        steps = context.steps(recipe)
        schedule = pruning_schedule(self.epochs * steps.updates)
        variables = variables_by_path(model)
        growing = []
        for sparsity, paths in targets.values():
            for path in paths:
                before = context.constraints.get((path, KeepZeros.name))
                mask = before.mask if isinstance(before, KeepZeros) else None
                growing.append(_GrowingZeros(path, variables[path].shape, sparsity, schedule, mask))
                context.attach(growing[-1])
        history = context.fit(
            model,
            recipe,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            optimizer=self.optimizer,
            patience=self.patience,
            # Weights from before the end of the schedule have too few zeros.
            settled_after=-(-schedule.end // steps.updates) - 1,
            callbacks=[_stepping(growing, steps)],
        )
        if self.patience is not None and history.best_epoch < self.epochs:
            context.note(f"kept epoch {history.best_epoch} of {history.epochs}")
        for item in growing:
            context.attach(KeepZeros(item.path, item.mask))
        self._report(model, targets, context)
        # Statistics gathered while weights still fell away do not fit those that are left.
        context.reestimate_batch_norm(model)
        return model

    def _report(
        self, model: Any, targets: dict[str, tuple[float, list[str]]], context: Context
    ) -> None:
        """Counts the zeros of every pruned layer."""
        variables = variables_by_path(model)
        reached = {}
        zeros = total = 0
        for layer, (_, paths) in targets.items():
            values = [variables[path].numpy() for path in paths]
            layer_total = sum(value.size for value in values)
            layer_zeros = layer_total - sum(np.count_nonzero(value) for value in values)
            reached[layer] = layer_zeros / layer_total
            zeros, total = zeros + layer_zeros, total + layer_total
        listed = sorted(reached.items(), key=lambda item: item[1])
        shown = ", ".join(f"{name} {share:.1%}".replace("%", " %") for name, share in listed[:6])
        rest = f", … ({len(listed)} in all)" if len(listed) > 6 else ""
        context.note(
            f"reached {100 * zeros / total:.1f} % zeros in {len(listed)} "
            f"layer{'s' * (len(listed) != 1)}: {shown}{rest}"
        )
        context.note("zeros stored densely: only the gzipped size shrinks, and nothing gets faster")


class _GrowingZeros(KeepZeros):
    """Zeros of a weight while they become more.

    Args:
        path: Path of the variable.
        shape: Shape of the variable.
        sparsity: Share of zeros at the end of the schedule.
        schedule: When there are how many.
        mask: What an earlier pass left, which is kept; ``None`` for nothing.
    """

    def __init__(
        self,
        path: str,
        shape: tuple[int, ...],
        sparsity: float,
        schedule: Schedule,
        mask: np.ndarray | None,
    ):
        tf = tensorflow()
        start = np.ones(shape, dtype=bool) if mask is None else mask
        super().__init__(path, start)
        self._before = mask
        self._sparsity, self._schedule = sparsity, schedule
        # Training projects in a compiled step, which sees a variable change, and no array.
        self._held = tf.Variable(start, trainable=False)

    def project(self, value: Any) -> Any:
        """The value with the weights that fell away so far set to zero."""
        return value * tensorflow().cast(self._held, value.dtype)

    def hold(self, mask: np.ndarray) -> None:
        """From here on weights stay zero where the mask is false."""
        self.mask = mask
        self._held.assign(mask)

    def step(self, number: int, variable: Any) -> None:
        """Has more weights fall away, where the schedule says so, before a training step from 1.

        Args:
            number: Number of the step.
            variable: The variable of the model that trains.
        """
        if not self._schedule.due(number):
            return
        value = variable.numpy()
        share = self._sparsity * self._schedule.share(number)
        self.hold(smallest_out(value, share, self._before))
        variable.assign(np.where(self.mask, value, 0))


def _stepping(growing: list[_GrowingZeros], steps: Steps) -> Any:
    """Goes through the schedule with the updates of the training."""

    class Stepping(tf_keras().callbacks.Callback):  # type: ignore[misc]
        epoch = number = 0

        def on_train_begin(self, logs: Any = None) -> None:
            self.variables = variables_by_path(self.model)  # perhaps those of a working copy

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.epoch = epoch

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            number = steps.update(self.epoch, batch) + 1
            if number == self.number:
                return  # a further batch of the same update: weights fall away between updates
            self.number = number
            for item in growing:
                item.step(number, self.variables[item.path])

        def state(self) -> dict[str, np.ndarray]:
            """For a training that goes on in another process."""
            masks = {str(i): item.mask for i, item in enumerate(growing)}
            return {"number": np.array(self.number), **masks}

        def restore(self, state: dict[str, np.ndarray]) -> None:
            self.number = int(state["number"])
            for i, item in enumerate(growing):
                item.hold(state[str(i)])

    return Stepping()


def _addressed(name: str, layers: Mapping[str, Any], model: Any) -> list[str]:
    """The paths of the layers that a name stands for.

    Raises:
        PipelineError: For a name that stands for none, or might stand for several.
    """
    if name in layers:
        return [name]
    inside = [path for path in layers if path.startswith(f"{name}/")]
    if inside:
        return inside
    same = [path for path in layers if path.rpartition("/")[2] == name]
    if len(same) > 1:
        raise PipelineError(
            f"Model {model.name!r} has several layers {name!r}. Say which: {', '.join(same)}."
        )
    if not same:
        raise PipelineError(
            f"Model {model.name!r} has no layers {[name]}. Its layers: {sorted(layers)}."
        )
    return same


def _kernels(layer: Any, *, whatever: bool = False) -> Iterator[Any]:
    """The trainable variables of a layer to prune; with ``whatever``, also those of other names."""
    trainable = {id(variable) for variable in layer.trainable_weights}
    for part in layer._flatten_layers():
        declared = getattr(
            part, "get_prunable_weights", None
        )  # tfmot's way for layers of one's own
        chosen = {id(variable) for variable in declared()} if callable(declared) else None
        for variable in part._trainable_weights:
            if id(variable) not in trainable:
                continue
            name = str(variable.name).partition(":")[0].rpartition("/")[2]
            if chosen is not None:
                fits = id(variable) in chosen
            else:
                fits = len(variable.shape) > 1 and (
                    whatever or (name.endswith(_KERNELS) and not name.endswith(_SMALL_KERNELS))
                )
            if fits:
                yield variable


def _no_kernels(path: str, layer: Any) -> str:
    if layer.weights and not layer.trainable_weights:
        return (
            f"Layer {path!r} is frozen, so it cannot be pruned. Set its `trainable = True`, or "
            "leave it out of `layers`."
        )
    return (
        f"Layer {path!r} ({type(layer).__name__}) has no weights that can be pruned. Leave it out "
        "of `layers`."
    )
