"""The strategies by name, as samplers of imbalanced-learn; and the user's own samplers."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit.errors import ArgumentTypeError, PipelineError
from optkit.runtime import derive_seed
from optkit.sampling.classes import over_targets, under_targets

__all__ = [
    "STRATEGIES",
    "Lack",
    "Strategy",
    "as_samplers",
    "draws_at_random",
    "knows_categories",
    "makes_rows",
    "seeded",
    "too_few",
]


@dataclass(frozen=True)
class Strategy:
    """What a strategy takes, and what it is at most.

    Attributes:
        over: Default of ``over_ratio``; ``None`` where nothing is added.
        under: Default of ``under_ratio``; ``None`` where nothing is cut to a ratio.
        neighbors: Default of ``k_neighbors``; ``None`` where rows are not compared.
        cleans: Whether how many rows stay depends on the rows that were made.
    """

    over: float | None = None
    under: float | None = None
    neighbors: int | None = None
    cleans: bool = False


@dataclass(frozen=True)
class Lack:
    """Classes that a sampler cannot make rows of.

    Attributes:
        sampler: The sampler.
        neighbors: How many neighbours a sample needs.
        classes: Samples of the classes that have fewer.
    """

    sampler: Any
    neighbors: int
    classes: Mapping[int, int]


STRATEGIES = {
    "class_weight": Strategy(),
    "over": Strategy(over=1.0),
    "under": Strategy(under=1.0),
    "smote": Strategy(over=1.0, neighbors=5),
    "borderline_smote": Strategy(over=1.0, neighbors=5),
    "adasyn": Strategy(over=1.0, neighbors=5),
    "svm_smote": Strategy(over=1.0, neighbors=5),
    "kmeans_smote": Strategy(over=1.0, neighbors=2),
    "smote_under": Strategy(over=0.5, under=1.0, neighbors=5),
    "smote_tomek": Strategy(over=1.0, neighbors=5, cleans=True),
    "smote_enn": Strategy(over=1.0, neighbors=5, cleans=True),
}


def as_samplers(
    strategy: Any, over_ratio: float | None, under_ratio: float | None, k_neighbors: int | None
) -> list[Any]:
    """The samplers that a strategy stands for, in their order; those of the user's as they are.

    Args:
        strategy: A name in `STRATEGIES` but ``"class_weight"``, or what `Rebalance` takes besides.
        over_ratio: To which share of the largest class smaller ones are raised.
        under_ratio: Which share of the others the smallest class is to be.
        k_neighbors: Neighbours between which rows are made.
    """
    if not isinstance(strategy, str):
        return _steps(strategy)
    from imblearn import combine, over_sampling, under_sampling

    defaults = STRATEGIES[strategy]
    over = _targets(over_targets, defaults.over if over_ratio is None else over_ratio)
    under = _targets(under_targets, defaults.under if under_ratio is None else under_ratio)
    k = defaults.neighbors if k_neighbors is None else k_neighbors
    if strategy == "over":
        return [over_sampling.RandomOverSampler(sampling_strategy=over)]
    if strategy == "under":
        return [under_sampling.RandomUnderSampler(sampling_strategy=under)]
    kinds = {
        "borderline_smote": over_sampling.BorderlineSMOTE,
        "svm_smote": over_sampling.SVMSMOTE,
        "kmeans_smote": over_sampling.KMeansSMOTE,
    }
    if strategy == "adasyn":
        return [over_sampling.ADASYN(sampling_strategy=over, n_neighbors=k)]
    made = kinds.get(strategy, over_sampling.SMOTE)(sampling_strategy=over, k_neighbors=k)
    if strategy == "smote_tomek":
        return [combine.SMOTETomek(sampling_strategy=over, smote=made)]
    if strategy == "smote_enn":
        return [combine.SMOTEENN(sampling_strategy=over, smote=made)]
    if strategy == "smote_under":
        return [made, under_sampling.RandomUnderSampler(sampling_strategy=under)]
    return [made]


def _targets(rule: Callable[..., dict[int, int]], ratio: float | None) -> Any:
    """What imbalanced-learn takes as ``sampling_strategy``: a function of the targets."""
    return None if ratio is None else functools.partial(_wanted, rule=rule, ratio=ratio)


def _wanted(y: Any, *, rule: Callable[..., dict[int, int]], ratio: float) -> dict[int, int]:
    numbers, counts = np.unique(y, return_counts=True)
    return rule(dict(zip(numbers.tolist(), counts.tolist(), strict=True)), ratio)


def _steps(strategy: Any) -> list[Any]:
    """The samplers of a list, of a pipeline of imbalanced-learn, or the one given.

    Raises:
        ArgumentTypeError: If something there cannot resample, or nothing is there.
        PipelineError: If a pipeline changes features.
    """
    if isinstance(strategy, Sequence):
        given = [(f"strategy[{i}]", item) for i, item in enumerate(strategy)]
    elif hasattr(strategy, "steps") and not isinstance(strategy, type):
        given = [(f"strategy.{name}", item) for name, item in strategy.steps]
    else:
        given = [("strategy", strategy)]
    found: list[Any] = []
    for place, item in given:
        # What a pipeline of imbalanced-learn calls a step that does nothing.
        if place != "strategy" and (item is None or item == "passthrough"):
            continue
        if isinstance(item, type):
            raise ArgumentTypeError(
                f"`{place}` is the class {item.__name__}. Give an object of it: "
                f"`{item.__name__}()`."
            )
        if hasattr(item, "steps"):
            found += _steps(item)
        elif hasattr(item, "fit_resample"):
            found.append(item)
        elif hasattr(item, "transform"):
            raise PipelineError(
                f"`{place}` ({type(item).__name__}) changes features, and the model would be "
                "trained on others than it is used on. Give samplers alone; what features need "
                "belongs into the model, such as a `Normalization` layer."
            )
        else:
            raise ArgumentTypeError(
                f"`{place}` must be a sampler, with `fit_resample(X, y)`. Received: {item!r} (of "
                f"type {type(item).__name__}). Strategies by name: {', '.join(STRATEGIES)}."
            )
    if not found:
        raise ArgumentTypeError("`strategy` holds no sampler. Give at least one.")
    return found


def seeded(sampler: Any, seed: int) -> Any:
    """A copy of a sampler, in which every ``random_state`` that is ``None`` has a seed."""
    from sklearn.base import clone

    if not hasattr(sampler, "get_params"):
        found = copy.deepcopy(sampler)
        if getattr(found, "random_state", 0) is None:
            found.random_state = derive_seed(seed, "random_state")
        return found
    found = clone(sampler)
    open_ones = [
        name
        for name, value in found.get_params(deep=True).items()
        if value is None and name.rpartition("__")[2] == "random_state"
    ]
    return found.set_params(**{name: derive_seed(seed, name) for name in open_ones})


def too_few(samplers: Sequence[Any], counts: Mapping[int, int]) -> Lack | None:
    """The first sampler of a chain that makes rows of a class with too few neighbours, if any.

    It follows the counts as far as they depend on nothing but the classes: up to a sampler that
    cleans, or one that is not imbalanced-learn's.

    Args:
        samplers: In their order.
        counts: Samples a class.

    Raises:
        ValueError: If what a sampler is to reach cannot be reached.
    """
    from imblearn.base import SamplerMixin
    from imblearn.utils import check_sampling_strategy

    now = dict(counts)
    for sampler in samplers:
        kind = sampler._sampling_type if isinstance(sampler, SamplerMixin) else None
        if kind not in ("over-sampling", "under-sampling"):
            return None
        labels = np.repeat(list(now), list(now.values()))
        wanted = check_sampling_strategy(sampler.sampling_strategy, labels, kind)
        if kind == "under-sampling":
            now |= {number: min(count, now[number]) for number, count in wanted.items()}
            continue
        neighbors = _neighbors_of(sampler)
        few = {c: now[c] for c, made in wanted.items() if made > 0 and now[c] <= neighbors}
        if few:
            return Lack(sampler, neighbors, few)
        now |= {number: now[number] + made for number, made in wanted.items()}
    return None


def _neighbors_of(sampler: Any) -> int:
    """How many neighbours of its own class a sample needs; 0 where that cannot be known."""
    from imblearn.over_sampling import KMeansSMOTE

    if isinstance(sampler, KMeansSMOTE):  # it looks at clusters, of which nothing is known yet
        return 0
    given = sampler.get_params(deep=False)
    if "smote" in given:  # those that clean behind it
        return 5 if given["smote"] is None else _neighbors_of(given["smote"])
    found = given.get("k_neighbors", given.get("n_neighbors", 0))
    if isinstance(found, int | np.integer):
        return int(found)
    return int(getattr(found, "n_neighbors", 1)) - 1  # an estimator counts the sample itself


def draws_at_random(sampler: Any) -> bool:
    """Whether it looks at no feature: any sample will do for it, also a text."""
    from imblearn.over_sampling import RandomOverSampler
    from imblearn.under_sampling import RandomUnderSampler

    if isinstance(sampler, RandomOverSampler):
        return sampler.shrinkage is None
    return isinstance(sampler, RandomUnderSampler)


def makes_rows(sampler: Any) -> bool:
    """Whether it may make rows that were not there; of a class of the user's that is assumed."""
    from imblearn.under_sampling import ClusterCentroids
    from imblearn.under_sampling.base import BaseCleaningSampler, BaseUnderSampler

    if isinstance(sampler, ClusterCentroids):
        return True
    picks = isinstance(sampler, BaseUnderSampler | BaseCleaningSampler)
    return not picks and not draws_at_random(sampler)


def knows_categories(sampler: Any) -> bool:
    """Whether it takes a number for a name where it is told so."""
    from imblearn.over_sampling import SMOTEN, SMOTENC

    return isinstance(sampler, SMOTEN | SMOTENC)
