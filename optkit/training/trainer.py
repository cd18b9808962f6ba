"""The model that Keras trains: over the same layers, with what belongs to every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from optkit.constraint import Constraint
from optkit.data import first_leaf
from optkit.models import output_names, variables_by_path
from optkit.runtime import tensorflow, tf_keras
from optkit.training.accumulation import GradientWindow
from optkit.training.steps import Steps
from optkit.training.xla import is_compile_failure, reason_of

__all__ = ["make_trainer"]


def make_trainer(
    model: Any,
    constraints: Mapping[Any, Constraint],
    rate_factors: Mapping[str, float],
    *,
    by_name: bool,
    accumulate: int = 1,
    replicas: int = 1,
) -> Any:
    """A model over the same layers, which does after every update what is not the optimizer's.

    Compiled with ``jit_compile=True`` it goes on without XLA where that cannot compile its steps;
    ``not_compiled`` then says why, and is ``None`` otherwise.

    Args:
        model: The model.
        constraints: What must be kept: weights are projected.
        rate_factors: By path of a variable, what its updates are multiplied by.
        by_name: Whether it gives a dict by output name, as the targets are one.
        accumulate: Batches whose gradients make one update. The last update of an epoch takes what
            is left.
        replicas: Copies of the model that train together, each on its share of a batch.
    """
    adjust = _adjustment(model, constraints, rate_factors)
    outputs = model.outputs
    if by_name:
        outputs = dict(zip(output_names(model), outputs, strict=True))
    trainer = _trainer_class(adjust, accumulate, replicas)(model.inputs, outputs, name=model.name)
    if by_name:
        # Keras names losses and metrics by the layers otherwise, which may be other names.
        trainer.output_names = sorted(outputs)
    return trainer


def _trainer_class(adjust: _Adjustment | None, accumulate: int, replicas: int) -> Any:
    """The class of a model that trains in steps of its own.

    Steps that end an update and steps that do not are functions apart, between which Python
    chooses: a condition in the graph would keep XLA, and strategies of distribution, from it.
    """

    class Trainer(tf_keras().Model):  # type: ignore[misc]
        not_compiled: str | None = None
        train_function: Any
        jit_compile: Any

        def fit(self, *arguments: Any, steps_per_epoch: int, **keywords: Any) -> Any:
            """Trains, each epoch so many batches."""
            self.begin(steps_per_epoch)
            history = super().fit(*arguments, steps_per_epoch=steps_per_epoch, **keywords)
            if adjust is not None:
                # An optimizer that averages weights has put averages in their place, at the end.
                adjust.hold()
            return history

        def begin(self, steps_per_epoch: int) -> None:
            """Forgets what an earlier training has made; `fit` begins with it."""
            self._own = _Progress(Steps(steps_per_epoch, accumulate))
            self.train_function = None

        def settle(self) -> None:
            """Takes weights that were set from outside for those before the next update."""
            if adjust is not None:
                adjust.settle()

        @property
        def traced(self) -> list[Any]:
            """The compiled functions of its steps, once it has trained."""
            return list(self._own.functions.values())

        def train_step(self, data: Any) -> Any:
            """One batch, as Keras has it, or as a part of an update."""
            window = self._own.window
            if window is None:
                return super().train_step(data)
            return window.step(self, data, applies=self._own.applies)

        def compute_loss(
            self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None
        ) -> Any:
            """The loss, which counts by samples where replicas have shares of several sizes.

            Keras takes the mean of the replicas' means. Accumulated gradients are weighed when
            they are put together.
            """
            loss = super().compute_loss(x, y, y_pred, sample_weight)
            if replicas == 1 or accumulate > 1:
                return loss
            return loss * tensorflow().cast(_share(x), loss.dtype)

        def make_train_function(self, force: bool = False) -> Any:
            """The function that Keras calls for every batch, with its iterator."""
            if self.train_function is None or force:
                self._own.functions.clear()
                if accumulate > 1:
                    self._own.window = GradientWindow(self.trainable_variables)
                self.train_function = self._train_on_next
            return self.train_function

        def _train_on_next(self, iterator: Any) -> Any:
            own = self._own
            own.applies = next(own.ends)
            if own.applies not in own.functions:
                function, logs = self._first(iterator)
                own.functions[own.applies] = function
                return logs
            return own.functions[own.applies](iterator)

        def _first(self, iterator: Any) -> tuple[Any, Any]:
            """A function for such steps, and what it gave for the next batch."""
            function = self._made()
            if not self.jit_compile:
                return function, function(iterator)
            again = _repeating(iterator)
            try:
                return function, function(again())
            except Exception as error:
                if not is_compile_failure(error):
                    raise
                self.not_compiled = reason_of(error)
            dispatch = self.train_function
            self.jit_compile = False  # Keras forgets all functions with it
            self._own.functions.clear()
            self.train_function = dispatch
            function = self._made()
            return function, function(again())

        def _made(self) -> Any:
            """A compiled function of one step, for an update as it now stands."""
            dispatch = self.train_function
            step = super().make_train_function(force=True)
            self.train_function = dispatch
            if adjust is None or not self._own.applies:
                return step

            def adjusted(iterator: Any) -> Any:
                logs = step(iterator)
                adjust.step()
                return logs

            return tensorflow().function(adjusted)

    return Trainer


def _share(x: Any) -> Any:
    """How many samples this replica has, as a multiple of the mean over all replicas."""
    tf = tensorflow()
    samples = tf.cast(tf.shape(first_leaf(x))[0], tf.float32)
    together = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, samples)
    return samples / together


class _Progress:
    """Where a training stands, and what it runs.

    Args:
        steps: What an epoch consists of.
    """

    def __init__(self, steps: Steps):
        self.ends = _ends(steps)
        self.applies = True
        self.window: GradientWindow | None = None
        self.functions: dict[bool, Any] = {}


def _ends(steps: Steps) -> Iterator[bool]:
    """For every batch of a training, whether it is the last of an update."""
    while True:
        for batch in range(steps.batches):
            yield steps.ends_update(batch)


def _repeating(iterator: Any) -> Callable[[], Any]:
    """A function that gives iterators with the next batch of one, the same each time.

    One that is spread over devices has no such, and goes on with the batch behind it.
    """
    data = tensorflow().data
    if not isinstance(iterator, data.Iterator):
        return lambda: iterator
    batch, spec = next(iterator), iterator.element_spec
    # Of the very same signature, so that functions are compiled once.
    once = data.Dataset.from_generator(lambda: iter([batch]), output_signature=spec)
    return lambda: iter(once)


class _Adjustment:
    """What is done to variables after every update.

    A factor takes the optimizer's whole update, decay and momentum included, so that it means the
    same for every optimizer.

    Args:
        variables: The variables by path.
        held: What is kept of them.
        factors: By path, what updates are multiplied by.
    """

    def __init__(
        self,
        variables: Mapping[str, Any],
        held: Sequence[Constraint],
        factors: Mapping[str, float],
    ):
        self._variables, self._held, self._factors = variables, held, factors
        make = tensorflow().Variable
        self._before = {path: make(variables[path], trainable=False) for path in factors}

    def step(self) -> None:
        """To be called after an update, in its graph."""
        for path, factor in self._factors.items():
            variable, before = self._variables[path], self._before[path]
            variable.assign(before + factor * (variable - before))
        self.hold()
        self.settle()

    def hold(self) -> None:
        """Projects what must be kept."""
        for item in self._held:
            self._variables[item.path].assign(item.project(self._variables[item.path]))

    def settle(self) -> None:
        """Takes the weights as they are for those before the next update."""
        for path, before in self._before.items():
            before.assign(self._variables[path])


def _adjustment(
    model: Any, constraints: Mapping[Any, Constraint], rate_factors: Mapping[str, float]
) -> _Adjustment | None:
    """What is done to variables after every update; ``None`` for nothing."""
    variables = variables_by_path(model)
    held = [item for item in constraints.values() if item.path in variables]
    factors = {path: factor for path, factor in rate_factors.items() if factor != 1.0}
    return _Adjustment(variables, held, factors) if held or factors else None
