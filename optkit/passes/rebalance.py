"""`Rebalance`: gives the classes of the training split other shares."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optkit import _validate
from optkit.base import RecipePass
from optkit.context import Context, Setting, State
from optkit.data import ArraySplit, Split, StreamSplit
from optkit.errors import ArgumentTypeError, DataError, PipelineError, first_line
from optkit.recipe import Recipe
from optkit.sampling import (
    STRATEGIES,
    Drawn,
    Features,
    Strategy,
    as_samplers,
    balanced_weights,
    count_classes,
    draw_rows,
    draw_stream,
    draws_at_random,
    images_among,
    knows_categories,
    makes_rows,
    over_targets,
    require_classes,
    too_few,
    under_targets,
    weigh,
    whole_number_inputs,
)
from optkit.study import Chart, Study

__all__ = ["Rebalance"]

_TOLD = 10  # classes whose counts a note tells one by one
_COUNTED = 1024  # targets of a stream that are looked at before anything runs


@dataclass(frozen=True)
class _Sampling:
    """Fills the recipe's slot: function of the training split and a seed to what is drawn of it."""

    strategy: Any
    ratios: tuple[float | None, float | None]
    neighbors: int | None
    features: Features
    output: str
    # Samples a class of the split that was counted last, as a stream is read for it.
    counted: list[tuple[Split, dict[int, int]]] = field(
        default_factory=list, compare=False, repr=False
    )

    @property
    def weighs(self) -> bool:
        """Whether samples get weights by it."""
        return bool(self.strategy == "class_weight")

    def __call__(self, split: Split, seed: int) -> Split:
        drawn = self.draw(split, seed)
        if self.varies:
            counts = ", ".join(f"{number}: {count:,}" for number, count in drawn.after.items())
            if len(drawn.after) > _TOLD:
                counts = (
                    f"{min(drawn.after.values()):,} to {max(drawn.after.values()):,} of a class"
                )
            drawn.split.notes = (f"trained on {drawn.samples:,} samples an epoch ({counts})",)
        return drawn.split

    @property
    def varies(self) -> bool:
        """Whether another draw may give other counts."""
        if isinstance(self.strategy, str):
            return STRATEGIES[self.strategy].cleans
        return not all(map(draws_at_random, as_samplers(self.strategy, None, None, None)))

    def draw(self, split: Split, seed: int) -> Drawn:
        """Draws from the training split."""
        counts = self.counts(split)
        if self.weighs:
            return weigh(split, counts, balanced_weights(counts), self.output)
        if isinstance(split, StreamSplit):
            return draw_stream(split, counts, self._expected(counts), seed, self.output)
        if not isinstance(split, ArraySplit):
            raise DataError(f"Rebalance cannot draw from {type(split).__name__}.")
        samplers = as_samplers(self.strategy, *self.ratios, self.neighbors)
        return draw_rows(split, samplers, self.features, seed, self.output)

    def counts(self, split: Split) -> dict[int, int]:
        """Samples a class; a stream is read for it once."""
        for known, counts in self.counted:
            if known is split:
                return counts
        counts = count_classes(split, self.output)
        self.counted[:] = [(split, counts)]
        return counts

    def _expected(self, counts: Mapping[int, int]) -> dict[int, int]:
        defaults = STRATEGIES[self.strategy]
        if self.strategy == "over":
            return over_targets(counts, self.ratios[0] or defaults.over or 1.0)
        return under_targets(counts, self.ratios[1] or defaults.under or 1.0)


class Rebalance(RecipePass):
    """Makes rare classes count more in the trainings that follow: by weights, or by other samples.

    Use it where some classes have far fewer samples than others and matter as much. Watch
    `Measure(metric="balanced_accuracy")` and the accuracy by class: plain accuracy often falls a
    little, as it counts frequent classes most. Only the training split is changed, behind the cut of
    a validation split; validation, test, calibration, and re-estimated batch normalization see real
    samples alone. Each training draws anew, by its own seed.

    Class weights and random drawing take any input (images, text, tables, streams). Strategies that
    make samples between neighbours take numbers in memory: tables as they are, images as pixels, of
    which the result are blends of two images. Texts, token ids and categories have nothing between
    them, and are refused.

    Args:
        strategy: One of

            - ``"class_weight"``: each sample counts ``n / (classes * samples of its class)``;
            - ``"over"``: samples of rare classes come several times;
            - ``"under"``: samples of frequent classes are left out;
            - ``"smote"``, ``"borderline_smote"``, ``"adasyn"``, ``"svm_smote"``, ``"kmeans_smote"``:
              samples are made between neighbours of a rare class;
            - ``"smote_under"``: SMOTE to ``over_ratio``, then random under-sampling to
              ``under_ratio``;
            - ``"smote_tomek"``, ``"smote_enn"``: SMOTE, then samples near other classes go;
            - a sampler of imbalanced-learn, or any object with ``fit_resample``; a list of such to
              chain, or a ``Pipeline`` of imbalanced-learn that holds samplers alone. Copies are used,
              and every ``random_state`` that is ``None`` gets a seed of the run.
        over_ratio: Smaller classes are raised to this share of the largest one, in ``(0, 1]``;
            ``None`` for 1, with ``"smote_under"`` for 0.5.
        under_ratio: Larger classes are cut until the smallest is this share of each, in ``(0, 1]``;
            ``None`` for 1. With ``"smote_under"`` above ``over_ratio``, or nothing would be cut.
        k_neighbors: Neighbours between which samples are made, at least 1; ``None`` for 5, with
            ``"kmeans_smote"`` for 2.
        features: What neighbours are found by: ``"flat"`` (the values as they are), ``"scaled"``
            (each column over its standard deviation), ``"auto"`` (``"scaled"`` for tables with a
            strategy by name, else ``"flat"``), or a Keras model, or the path of one, whose output is
            compared. Samples are made of inputs in any case.
        output: Of a model with several outputs, the one whose classes are balanced.

    Example:
        >>> import optkit as ok
        >>> from optkit.testing import digits, small_model
        >>> pipeline = ok.Pipeline([ok.Rebalance("over"), ok.FineTune(epochs=1)])
        >>> report = pipeline.run(small_model(), digits(samples=200)).report
        >>> report.rows[0].studies[0].columns
        ('class', 'before', 'after')

    References:
        Chawla et al., "SMOTE: Synthetic Minority Over-sampling Technique", 2002.
        Batista, Prati and Monard, "A Study of the Behavior of Several Methods for Balancing Machine
        Learning Training Data", 2004 (SMOTE with cleaning).
        King and Zeng, "Logistic Regression in Rare Events Data", 2001 (class weights).
    """

    def __init__(
        self,
        strategy: Any = "class_weight",
        *,
        over_ratio: float | None = None,
        under_ratio: float | None = None,
        k_neighbors: int | None = None,
        features: Any = "auto",
        output: str | None = None,
    ):
        for name, value in (("over_ratio", over_ratio), ("under_ratio", under_ratio)):
            _validate.optional(_validate.number, name, value, minimum=0, maximum=1, exclusive="min")
        _validate.optional(_validate.integer, "k_neighbors", k_neighbors, minimum=1)
        _validate.optional(_validate.text, "output", output)
        self.strategy = strategy
        self.over_ratio = over_ratio
        self.under_ratio = under_ratio
        self.k_neighbors = k_neighbors
        self.features = features
        self.output = output
        self._check_arguments()

    def _check_arguments(self) -> None:
        given: dict[str, Any] = {
            "over_ratio": self.over_ratio,
            "under_ratio": self.under_ratio,
            "k_neighbors": self.k_neighbors,
        }
        plain = isinstance(self.features, str) and self.features == "auto"
        if isinstance(self.strategy, str):
            _validate.one_of("strategy", self.strategy, tuple(STRATEGIES))
            defaults = STRATEGIES[self.strategy]
            if not plain:
                given["features"] = self.features
            for name, value in given.items():
                if value is not None and not _takes(defaults, name):
                    having = [s for s, d in STRATEGIES.items() if _takes(d, name)]
                    raise PipelineError(
                        f"strategy={self.strategy!r} takes no `{name}`; these do: "
                        f"{', '.join(having)}."
                    )
            self._check_ratios(defaults)
        else:
            as_samplers(self.strategy, None, None, None)
            if extra := [name for name, value in given.items() if value is not None]:
                raise PipelineError(
                    f"A sampler says all by itself; it takes no {', '.join(extra)}. Set "
                    "`sampling_strategy` and the neighbours on the sampler."
                )
        if isinstance(self.features, str) and self.features in ("auto", "flat", "scaled"):
            return
        if not isinstance(self.features, str | os.PathLike) and not hasattr(
            self.features, "predict"
        ):
            raise ArgumentTypeError(
                "`features` must be 'auto', 'flat', 'scaled', a Keras model, or the path of one. "
                f"Received: {self.features!r} (of type {type(self.features).__name__})."
            )

    def _check_ratios(self, defaults: Strategy) -> None:
        """Refuses ratios of which the second one leaves nothing to do."""
        if defaults.over is None or defaults.under is None:
            return
        over = defaults.over if self.over_ratio is None else self.over_ratio
        under = defaults.under if self.under_ratio is None else self.under_ratio
        if under <= over:
            raise PipelineError(
                f"strategy={self.strategy!r} raises the smaller classes to {over:g} of the largest "
                f"one (`over_ratio`); cutting it until they are {under:g} of it (`under_ratio`) "
                "leaves nothing to cut. Give an `under_ratio` above `over_ratio`, or use 'smote'."
            )

    @property
    def needs(self) -> tuple[str, ...]:
        """What is drawn from."""
        return ("train",)

    # ------------------------------------------------------------------------------------- checks

    def check(self, setting: Setting) -> None:
        """Refuses what has no classes to balance, and samples that the strategy cannot treat."""
        split = setting.data.train
        if split is None:
            return
        in_memory = isinstance(split, ArraySplit)
        targets = split.y if isinstance(split, ArraySplit) else split.targets(_COUNTED)
        output = require_classes("Rebalance", setting.task, self.output, targets)
        if self.strategy == "class_weight":
            if in_memory:
                count_classes(split, output)
            return
        if not in_memory and self.strategy not in ("over", "under"):
            raise PipelineError(
                f"Rebalance({self._named()}) looks at all samples at once, and `train` is a stream, "
                "which optkit never loads whole. Use 'class_weight', 'over' or 'under', which draw "
                "on the way, or give arrays: `Data(train=(x, y))`."
            )
        if in_memory:
            self._check_rows(setting, split, output)

    def _check_rows(self, setting: Setting, split: Split, output: str) -> None:
        counts = count_classes(split, output)
        samplers = self._samplers()
        if not all(map(draws_at_random, samplers)):
            self._check_features(setting, split, samplers, output)
        self._check_counts(samplers, counts)

    def _check_features(
        self, setting: Setting, split: Split, samplers: list[Any], output: str
    ) -> None:
        """Refuses samplers that look at features, where these are none to look at."""
        making = [item for item in samplers if makes_rows(item)]
        features = self._features()
        names = whole_number_inputs(setting.model, split.inputs)
        texts = [info.name for info in split.inputs if info.dtype == "string"]
        told = all(knows_categories(item) or draws_at_random(item) for item in samplers)
        if names and (making or not features.embeds) and (texts or not told):
            raise PipelineError(self._no_numbers(names, texts, bool(making), len(split.inputs)))
        if making and setting.task.parts and len(setting.task.parts) > 1:
            raise PipelineError(
                f"Rebalance({self._named()}) makes samples by the classes of {output!r}, and the "
                "other outputs have no targets for them. Use 'class_weight', 'over' or 'under'."
            )
        features.check(split)
        self._check_columns(samplers)

    def _no_numbers(self, names: list[str], texts: list[str], making: bool, inputs: int) -> str:
        listed = ", ".join(map(repr, names))
        what = "texts" if texts else "whole numbers that stand for words or categories"
        text = f"Rebalance({self._named()}) "
        if making:
            text += f"makes samples between neighbours, and the input {listed} holds {what}: "
            text += "between two of them lies a third that has nothing to do with either. "
        else:
            text += f"compares samples, and the input {listed} holds {what}. "
        text += "Use 'class_weight', 'over' or 'under'"
        if not making:
            text += ", or give a model that embeds them as `features`"
        elif not texts and inputs == 1:
            text += (
                "; where only some columns are categories, give "
                "`imblearn.over_sampling.SMOTENC(categorical_features=[…])`"
            )
        return text + "."

    def _check_counts(self, samplers: list[Any], counts: Mapping[int, int]) -> None:
        """Refuses classes with too few samples, and shares that cannot be reached."""
        try:
            lack = too_few(samplers, counts)
        except ValueError as error:
            raise PipelineError(
                f"Rebalance({self._named()}) cannot reach what it is told to from "
                f"{dict(counts)} samples a class: {first_line(error).rstrip('.')}. Change "
                "`sampling_strategy`."
            ) from error
        if lack is None:
            return
        said = ", ".join(f"class {number} has {count}" for number, count in lack.classes.items())
        least = min(lack.classes.values())
        own = not isinstance(self.strategy, str) and hasattr(lack.sampler, "n_neighbors")
        keyword = "n_neighbors" if own else "k_neighbors"
        remedy = f"`{keyword}={least - 1}`" if least > 1 else "more samples"
        raise PipelineError(
            f"Rebalance({self._named()}) makes samples between a sample and its {lack.neighbors} "
            f"nearest of the class, which takes {lack.neighbors + 1}, and {said}. Use {remedy}, "
            "'over' or 'class_weight'."
        )

    def _check_columns(self, samplers: list[Any]) -> None:
        """Refuses names of columns: samplers get rows of an array."""
        for sampler in samplers:
            named = getattr(sampler, "categorical_features", None)
            listed = [named] if isinstance(named, str) else list(() if named is None else named)
            if any(isinstance(item, str) for item in listed):
                raise PipelineError(
                    f"{type(sampler).__name__}(categorical_features={named!r}) goes by names of "
                    "columns, and samplers are given rows of an array. Give the places of the "
                    "columns, from 0: `categorical_features=[0, 3]`."
                )

    # --------------------------------------------------------------------------------------- work

    def _named(self) -> str:
        if isinstance(self.strategy, str):
            return repr(self.strategy)
        return ", ".join(type(item).__name__ for item in self._samplers())

    def _samplers(self) -> list[Any]:
        return as_samplers(self.strategy, self.over_ratio, self.under_ratio, self.k_neighbors)

    def _features(self) -> Features:
        own = not isinstance(self.strategy, str)
        plain = isinstance(self.features, str) and self.features == "auto"
        # What the user's own sampler knows of columns, it knows of them as they are.
        return Features("flat" if own and plain else self.features)

    def amend(self, recipe: Recipe) -> Recipe:
        """Fills the slot ``sample``."""
        ratios = (self.over_ratio, self.under_ratio)
        return recipe.amended(
            sample=_Sampling(
                self.strategy, ratios, self.k_neighbors, self._features(), self.output or ""
            )
        )

    def apply(self, state: State, context: Context) -> State:
        """Amends the recipe, and shows the classes before and after."""
        amended = super().apply(state, context)
        split, sampling = context.data.train, amended.recipe.sample
        if split is None or not isinstance(sampling, _Sampling):
            raise DataError("Rebalance needs a `train` split.")
        drawn = sampling.draw(split, context.derive_seed("sample"))
        context.show(self._study(drawn, context))
        for note in self._notes(drawn, split, varies=sampling.varies):
            context.note(note)
        return amended

    def _study(self, drawn: Drawn, context: Context) -> Study:
        names = context.data.names_of(self.output or "")
        columns = ["class", "before", "after"]
        if drawn.weights is not None:
            columns.append("weight")
        if drawn.made:
            columns.append("of these made")
        rows = []
        for number, before in drawn.before.items():
            name = names[number] if number < len(names) else str(number)
            row: list[Any] = [name, before, drawn.after[number]]
            if drawn.weights is not None:
                row.append(round(drawn.weights[number], 4))
            if drawn.made:
                row.append(drawn.made.get(number, 0))
            rows.append(tuple(row))
        figures = ("weight",) if drawn.weights is not None else ("before", "after")
        return Study(
            "Classes of the training split",
            tuple(columns),
            tuple(rows),
            chart=Chart("bar", x="class", y=figures),
        )

    def _notes(self, drawn: Drawn, split: Split, *, varies: bool) -> list[str]:
        notes = []
        before = sum(drawn.before.values())
        if drawn.weights is not None:
            notes.append(
                f"trained on all {before:,} samples, which count {min(drawn.weights.values()):.3g} "
                f"to {max(drawn.weights.values()):.3g} by class"
            )
            if split.weighted:
                notes.append("weights by class and the weights of samples are multiplied")
        else:
            made = sum(drawn.made.values())
            made_of = f", {made:,} of them made" if made else ""
            about = "about " if isinstance(split, StreamSplit) else ""
            notes.append(
                f"trained on {about}{drawn.samples:,} samples an epoch{made_of}, instead of "
                f"{before:,}"
            )
            if drawn.after == drawn.before:
                notes.append("the classes have these shares already, or the sampler found nothing")
            if varies:
                notes.append(
                    "counts after are of one draw: each training draws anew, and its row says what "
                    "it was trained on"
                )
            if made and split.weighted:
                notes.append("samples that were made weigh what those of their class do on average")
        if isinstance(split, StreamSplit):
            notes.append("train was read once to count its classes")
        if drawn.made:
            notes += self._warnings(split)
        return notes

    def _warnings(self, split: Split) -> list[str]:
        if images := images_among(split.inputs):
            blends = (
                f"samples of {', '.join(images)} that were made are blends of two images, which no "
                "camera gives: where they do not help, use 'class_weight', or 'over' with Augment"
            )
            return [blends]
        if any(len(info.shape) > 2 for info in split.inputs):
            blends = (
                "samples that were made are blends of two series, step by step, which may be unlike "
                "any real one"
            )
            return [blends]
        return []


def _takes(defaults: Strategy, name: str) -> bool:
    own = {"over_ratio": defaults.over, "under_ratio": defaults.under}
    return own.get(name, defaults.neighbors) is not None
