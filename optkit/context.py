"""What passes hand on and work with: `State`, `Setting`, `Context`."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from optkit import training
from optkit.artifact import Artifact
from optkit.batch_norm import reestimate_batch_norm
from optkit.constraint import Constraint
from optkit.data import BoundData
from optkit.distribute import ALONE, Crew
from optkit.errors import ArgumentTypeError, DataError, OptkitError, PipelineError
from optkit.goals import Goals
from optkit.learned import LearnedRanges
from optkit.metric import Metric
from optkit.models import batch_norms, is_compiled, mixed_precision_layers, variables_by_path
from optkit.recipe import Recipe
from optkit.runtime import derive_seed
from optkit.study import Study
from optkit.task import Loss, Task
from optkit.trial import Verdict, needs_timing

__all__ = ["Context", "Setting", "State"]


@dataclass(frozen=True)
class State:
    """What passes hand on: the artifact, how the next training is done, what must be kept.

    Attributes:
        artifact: The model, in the form in which it would be deployed.
        recipe: How the next training is done.
        constraints: What earlier passes did to weights and later ones must not undo.
        learned: What training for quantization has found out about these very weights.
    """

    artifact: Artifact
    recipe: Recipe = field(default_factory=Recipe)
    constraints: Mapping[tuple[str, str], Constraint] = field(default_factory=dict)
    learned: LearnedRanges | None = None


@dataclass(frozen=True)
class Setting:
    """What is known before anything runs, for a pass to check itself against.

    Attributes:
        model: The model that came in; ``None`` behind a pass that puts another in its place.
        data: The bound data.
        task: What the model is for.
        loss: The loss it will train with.
        recipe: The recipe as it will be when the pass runs.
        goals: What the result must reach; ``None`` where that is not known.
        source: The tf_keras model that came into the pipeline, whose compiled optimizer is the
            default of every training; ``None`` where that is not known.
    """

    model: Any
    data: BoundData
    task: Task
    loss: Loss
    recipe: Recipe
    goals: Goals | None = None
    source: Any = None

    def require_float32(self) -> None:
        """Refuses a model that computes in 16 bits."""
        names = mixed_precision_layers(self.model) if self.model is not None else ()
        if names:
            raise PipelineError(
                f"Layers {', '.join(names[:3])}{', …' if len(names) > 3 else ''} of model "
                f"{self.model.name!r} compute in 16 bits (mixed precision), which this pass cannot "
                "treat. Build the model under the policy 'float32' and copy the weights over with "
                "`set_weights`: they are float32 already."
            )

    def require_trainable(self) -> None:
        """Refuses a model in which every layer is frozen."""
        if self.model is not None and not self.model.trainable_weights:
            raise PipelineError(
                f"Every layer of model {self.model.name!r} is frozen, so there is nothing to "
                "train. Set `trainable = True` on the layers that may change."
            )

    def require_peak(self, learning_rate: float | str | None, optimizer: Any) -> None:
        """Refuses a training whose learning rate is to follow a course, and has no peak.

        Args:
            learning_rate: What the pass was given.
            optimizer: What the pass was given.
        """
        if learning_rate is None:
            compiled = None
            if self.source is not None and is_compiled(self.source):
                compiled = self.source.optimizer
            training.peak_learning_rate((optimizer, self.recipe.optimizer, compiled), None)


class Context:
    """What a pass works with while it runs.

    Attributes:
        data: The splits, bound to the model's inputs.
        task: What the model is for.
        metric: The metric that decisions are made on.
        loss: The loss of the run; the recipe may replace it in training.
        seed: Seed of this step, derived from the run's seed and the position of the pass.
        model: The tf_keras model that came into the pipeline; its compiled optimizer is the
            default of every training. Not to be changed.
        log: Logger of the pass. A pass never prints.
        notes: What the row of this pass will say.
        studies: What the row of this pass will show.
        curves: For each training so far its figures by name, one value an epoch.
        trainings: For each training so far what is known of it besides; see `Row.trainings`.
        places: Where trainings keep how far they are; ``None`` for nowhere.
        crew: Those who train together.
        newly_learned: Those that this pass has learned, for what it makes.
        goals_seen: Whether the pass asked for the goals.
        learned_seen: Whether the pass asked for what was learned.
        timing_seen: Whether figures that depend on the machine have decided something, or are told.
        seconds_aside: Time that does not count as the pass's own work.
    """

    def __init__(
        self,
        *,
        data: BoundData,
        task: Task,
        metric: Metric,
        loss: Loss,
        seed: int,
        model: Any,
        constraints: Mapping[tuple[str, str], Constraint] | None = None,
        goals: Goals | None = None,
        on_epoch: Callable[[int, int, dict[str, float]], None] | None = None,
        watchers: Callable[[int], Sequence[Any]] | None = None,
        learned: LearnedRanges | None = None,
        judge: Callable[[Artifact, Goals], Verdict] | None = None,
        places: training.Places | None = None,
        crew: Crew = ALONE,
    ):
        self.data, self.task, self.metric, self.loss = data, task, metric, loss
        self.seed, self.model = seed, model
        self.constraints = dict(constraints or {})
        self.log = logging.getLogger("optkit")
        self.notes: list[str] = []
        self.studies: list[Study] = []
        self._learned = learned
        self.newly_learned: LearnedRanges | None = None
        self.curves: list[dict[str, list[float]]] = []
        self.trainings: list[dict[str, Any]] = []
        self._on_epoch = on_epoch
        self._watchers = watchers
        self._trainings = 0
        self._goals = goals if goals is not None else Goals()
        self._judge = judge
        self.places, self.crew = places, crew
        self._parent: Context | None = None
        self.goals_seen = self.learned_seen = self.timing_seen = False
        self.seconds_aside = 0.0

    @property
    def goals(self) -> Goals:
        """What the result must reach. A stage of a pass that asks for them depends on them."""
        self.goals_seen = True
        return self._goals

    @property
    def learned(self) -> LearnedRanges | None:
        """What an earlier pass has learned about quantizing the weights that came in, if one has.

        Of a conversion that does not ask for it, the row says that it was not used.
        """
        self.learned_seen = True
        return self._learned

    def note(self, text: str) -> None:
        """Adds a sentence to the row of this pass in the report."""
        self.notes.append(str(text))

    def show(self, study: Study) -> None:
        """Adds a table, perhaps with a chart, to the row of this pass in the report."""
        if not isinstance(study, Study):
            raise ArgumentTypeError(f"`show` takes an `optkit.Study`. Received: {study!r}.")
        self.studies.append(study)

    def learn(self, ranges: LearnedRanges) -> None:
        """Hands on what the pass has learned about quantizing the model that it makes.

        The next pass finds it in `learned`. A pass behind it that changes the model drops it, as
        it is true of these weights alone.
        """
        if not isinstance(ranges, LearnedRanges):
            raise ArgumentTypeError(f"`learn` takes `LearnedRanges`. Received: {ranges!r}.")
        self.newly_learned = ranges

    def attach(self, constraint: Constraint) -> None:
        """Makes every later pass keep a condition; one of its kind on the same path gives way."""
        self.constraints[(constraint.path, constraint.name)] = constraint

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What happens within is not the pass's own work, and does not count for its time."""
        began = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - began
            context: Context | None = self
            while context is not None:
                context.seconds_aside += took
                context = context._parent

    def depend_on_machine(self) -> None:
        """Says that times taken on this machine have decided something, or stand in a note.

        A kept stage of the pass is then not used on another machine.
        """
        context: Context | None = self
        while context is not None:
            context.timing_seen = True
            context = context._parent

    def judge(self, artifact: Artifact, goals: Goals) -> Verdict:
        """Measures an artifact that might be kept, as far as goals ask for it, and judges it.

        Accuracy is that on ``validation``, changes are against the model that came into the
        pipeline; ``test`` is not looked at. It does not count for the time of the pass.

        Args:
            artifact: What the pass might return.
            goals: What it must reach.

        Returns:
            The figures, and which goals were met.

        Raises:
            OptkitError: Outside of a run, or if the artifact cannot be run.
        """
        if self._judge is None:
            raise OptkitError("An artifact can be judged only while a pipeline runs.")
        if needs_timing(goals):
            self.depend_on_machine()
        with self.aside():
            return self._judge(artifact, goals)

    def branch(self, purpose: str, *, needs: Sequence[str], goals: Goals) -> Context:
        """A context for one of several ways to do the work of this pass.

        What is said, attached or learned there stays there, until `adopt` takes it over. Its seed
        is its own, so that what it gives does not depend on what was tried before.

        Args:
            purpose: What tells it from the other ways.
            needs: The splits that it cannot do without, as `Pass.needs` gives them.
            goals: The goals that it sees.
        """
        data = self.data if "calibration" in needs else replace(self.data, calibration=None)
        made = Context(
            data=data,
            task=self.task,
            metric=self.metric,
            loss=self.loss,
            seed=self.derive_seed(purpose),
            model=self.model,
            constraints=self.constraints,
            goals=goals,
            on_epoch=self._on_epoch,
            watchers=None if self._watchers is None else self._watchers_of_branch,
            learned=self._learned,
            judge=self._judge,
            places=None if self.places is None else self.places.of_branch(purpose),
            crew=self.crew,
        )
        made._parent = self
        return made

    def _watchers_of_branch(self, training: int) -> Sequence[Any]:
        """Trainings of all branches are counted on: each has curves of its own."""
        self._trainings += 1
        return () if self._watchers is None else self._watchers(self._trainings)

    def adopt(self, branch: Context) -> None:
        """Takes over what was said in a branch: notes, studies and trainings."""
        self.notes += branch.notes
        self.studies += branch.studies
        self.curves += branch.curves
        self.trainings += branch.trainings

    def project(self, model: Any) -> None:
        """Brings the weights of a model back to what the constraints demand, in place."""
        variables = variables_by_path(model)
        for constraint in self.constraints.values():
            if (variable := variables.get(constraint.path)) is not None:
                variable.assign(constraint.project(variable))

    def reestimate_batch_norm(self, model: Any, *, include_frozen: bool = False) -> None:
        """Measures the statistics of batch normalization anew on ``train``, in place, and notes it.

        Whatever changes weights other than by training (averaging, pruning, editing) leaves
        statistics behind that no longer fit. See `optkit.batch_norm.reestimate_batch_norm`.
        """
        if self.data.train is None:
            raise DataError("Re-estimating batch normalization needs a `train` split.")
        names = reestimate_batch_norm(
            model,
            self.data.train,
            seed=self.derive_seed("batch norm"),
            include_frozen=include_frozen,
        )
        if names:
            total = len(batch_norms(model))
            self.note(f"re-estimated {len(names)} of {total} batch-normalization layers")

    def derive_seed(self, purpose: str) -> int:
        """A seed of its own for a purpose within this pass."""
        return derive_seed(self.seed, purpose)

    def steps(self, recipe: Recipe) -> training.Steps:
        """What an epoch of the next training consists of: batches, and updates of the weights.

        The recipe may draw other samples than there are in ``train``, and let several batches make
        one update; who plans by steps asks here.

        Args:
            recipe: The recipe that `fit` will be given.
        """
        if self.data.train is None:
            raise DataError("Training needs a `train` split.")
        seed = derive_seed(self.seed, "fit", self._trainings + 1)
        return training.steps_of(training.sampled(self.data.train, recipe, seed), recipe)

    def fit(
        self,
        model: Any,
        recipe: Recipe,
        *,
        epochs: int,
        learning_rate: float | str | None = None,
        optimizer: Any = None,
        weight_decay: float | None = None,
        patience: int | None = None,
        settled_after: int = 0,
        rate_factors: Mapping[str, float] | None = None,
        callbacks: Sequence[Any] = (),
    ) -> training.History:
        """Trains a model in place: by the recipe, seeded, with every constraint kept.

        Args:
            model: A tf_keras model that belongs to the pass. It stays uncompiled.
            recipe: How to train.
            epochs: Epochs at most, at least 1.
            learning_rate: Peak learning rate; ``None`` for that of the compiled optimizer, else
                0.001. ``"auto"`` looks for one before the training begins, by the range test of
                `find_learning_rate`, with everything that the recipe holds; weights and random
                states are put back before the training begins.
            optimizer: A name or a tf_keras optimizer, of which a fresh copy is used; ``None`` for
                the recipe's, else one of the compiled model's class, else AdamW.
            weight_decay: Decay of kernels; ``None`` for the optimizer's own setting.
            patience: Epochs without a better validation metric after which to stop; the best
                weights are restored. ``None`` trains all epochs and keeps the last weights.
            settled_after: Epochs at the start that early stopping does not look at.
            rate_factors: By path of a variable, what every update of it is multiplied by, at least
                0: learning rates that differ by layer, whatever the optimizer.
            callbacks: Further Keras callbacks. They reach weights through ``self.model``.

        Returns:
            How the training went.

        Raises:
            OptkitError: If the loss stops being finite.
        """
        self._trainings += 1
        watchers = () if self._watchers is None else self._watchers(self._trainings)
        try:
            history = training.fit(
                model,
                recipe,
                data=self.data,
                task=self.task,
                metric=self.metric,
                loss=self.loss,
                source=self.model,
                constraints=self.constraints,
                seed=derive_seed(self.seed, "fit", self._trainings),
                epochs=epochs,
                learning_rate=learning_rate,
                optimizer=optimizer,
                weight_decay=weight_decay,
                patience=patience,
                settled_after=settled_after,
                rate_factors=rate_factors,
                callbacks=(*callbacks, *watchers),
                on_epoch=self._on_epoch,
                place=None if self.places is None else self.places.training(self._trainings),
                crew=self.crew,
            )
        except BaseException:
            # Keras tells callbacks nothing of it; a profiler would go on running in the process.
            for watcher in watchers:
                with contextlib.suppress(Exception):
                    watcher.on_train_end()
            raise
        self.curves.append(history.curves)
        self.trainings.append(history.describe())
        for note in history.notes:
            self.note(note)
        if history.search is not None:
            self.note(f"learning rate {history.search.suggestion:g}, found by a range test")
            self.show(history.search.study)
        return history
