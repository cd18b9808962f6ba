"""What each strategy of `Rebalance` gives where some classes are rare: the figures of its card.

Real data made imbalanced, with a test part that is left as it is: the digits, of which every seed
makes five classes rare (a tenth of their training samples stays); scikit-learn's breast cancer table
with a tenth of its malignant tumours; and, where ``OPTKIT_DATA`` is set, CIFAR-10 with a long tail.
Every seed has its own split, its own rare classes and its own first weights, which all strategies of
the seed share: differences are within a seed. Each training makes the same number of updates, so
that nothing is won by training longer. Prints Markdown.

Run it with ``python -m benchmarks.rebalance``; it takes some minutes.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import common, models

_SHARE = 10  # of so many samples of a rare class one stays
_BASELINE = "none"


@dataclass(frozen=True)
class Scenario:
    """Data with rare classes, and how a model learns them.

    Attributes:
        name: What is shown.
        data: Makes training and test parts, and the set of rare classes, of a seed.
        model: Makes the model.
        updates: Updates of the weights in each training.
        rate: Learning rate.
        seeds: Number of seeds.
        ways: Names of the ways to train, among `WAYS`.
    """

    name: str
    data: Callable[[int], tuple[Any, Any, set[int]]]
    model: Callable[[], Any]
    updates: int
    rate: float
    seeds: int
    ways: tuple[str, ...]


def _ways() -> dict[str, Callable[[], list[Any]]]:
    """The passes in front of the training, by what is shown."""
    import optkit as ok

    plain = [name for name in _STRATEGIES if name != "over, with Augment"]
    made: dict[str, Callable[[], list[Any]]] = {_BASELINE: list}
    made |= {name: (lambda name=name: [ok.Rebalance(name)]) for name in plain}  # type: ignore[misc]
    made["over, with Augment"] = lambda: [ok.Rebalance("over"), ok.Augment("safe")]
    made["Augment alone"] = lambda: [ok.Augment("safe")]
    return made


_STRATEGIES = (
    *("class_weight", "over", "over, with Augment", "under", "smote", "borderline_smote"),
    *("adasyn", "svm_smote", "kmeans_smote", "smote_under", "smote_tomek", "smote_enn"),
)
_IMAGES = (_BASELINE, "Augment alone", *_STRATEGIES)
_TABLE = (_BASELINE, *(name for name in _STRATEGIES if "Augment" not in name))
_FEW = (_BASELINE, "Augment alone", "class_weight", "over", "over, with Augment", "smote")


def _thinned(x: Any, y: Any, rare: set[int], seed: int) -> tuple[Any, Any]:
    """A part in which of each rare class every tenth sample stays."""
    import numpy as np

    generator = np.random.default_rng(seed)
    kept = []
    for number in np.unique(y):
        rows = generator.permutation(np.flatnonzero(y == number))
        kept.append(rows[: math.ceil(len(rows) / _SHARE)] if int(number) in rare else rows)
    rows = generator.permutation(np.concatenate(kept))
    return x[rows], y[rows]


def _digits(seed: int) -> tuple[Any, Any, set[int]]:
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    loaded = load_digits()
    x, y = (loaded.images[..., None] / 16).astype("float32"), loaded.target
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.4, random_state=seed, stratify=y)
    rare = set(np.random.default_rng(seed).choice(10, 5, replace=False).tolist())
    return _thinned(x, y, rare, seed), (x_test, y_test), rare


def _cancer(seed: int) -> tuple[Any, Any, set[int]]:
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split

    loaded = load_breast_cancer()
    x, y = loaded.data.astype("float32"), loaded.target
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.4, random_state=seed, stratify=y)
    x, y = _thinned(x, y, {0}, seed)
    mean, deviation = x.mean(0), x.std(0)
    return ((x - mean) / deviation, y), ((x_test - mean) / deviation, y_test), {0}


def _cifar(seed: int) -> tuple[Any, Any, set[int]]:
    """From 400 samples of one class down to 40 of another, in even ratios; which is drawn."""
    import numpy as np

    with np.load(Path(os.environ["OPTKIT_DATA"]) / "data" / "cifar10_subset.npz") as loaded:
        x, y = loaded["x_train"], loaded["y_train"].astype("int64")
        test = (
            loaded["x_test"][::2].astype("float32") / 255,
            loaded["y_test"][::2].astype("int64"),
        )
    generator = np.random.default_rng(seed)
    rows, rare = [], set()
    for place, number in enumerate(generator.permutation(10)):
        count = round(400 * (1 / _SHARE) ** (place / 9))
        rows.append(generator.permutation(np.flatnonzero(y == number))[:count])
        if place >= 5:
            rare.add(int(number))
    chosen = generator.permutation(np.concatenate(rows))
    return (x[chosen].astype("float32") / 255, y[chosen]), test, rare


def _perceptron() -> Any:
    import tf_keras as keras

    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((30,), name="row"),
            layers.Dense(16, activation="relu"),
            layers.Dense(1, activation="sigmoid"),
        ]
    )


def scenarios(quick: bool) -> list[Scenario]:
    """All that can be run here."""
    found = [
        Scenario(
            "digits, five classes at a tenth",
            _digits,
            lambda: models.cnn((8, 8, 1), (16, 32)),
            updates=60 if quick else 400,
            rate=3e-3,
            seeds=1 if quick else 8,
            ways=_IMAGES,
        ),
        Scenario(
            "breast cancer, malignant at a tenth",
            _cancer,
            _perceptron,
            updates=60 if quick else 400,
            rate=3e-3,
            seeds=1 if quick else 10,
            ways=_TABLE,
        ),
    ]
    if os.environ.get("OPTKIT_DATA"):
        cifar = Scenario(
            "CIFAR-10, a long tail of 400 to 40",
            _cifar,
            lambda: models.cnn((32, 32, 3), (16, 32, 64)),
            updates=20 if quick else 1200,
            rate=2e-3,
            seeds=1 if quick else 6,
            ways=_FEW,
        )
        found.append(cifar)
    return found


def measure(scenario: Scenario) -> dict[str, list[dict[str, float] | str]]:
    """Figures by way and seed; in place of those of a strategy that refused, its reason."""
    import tf_keras as keras

    found: dict[str, list[dict[str, float] | str]] = {name: [] for name in scenario.ways}
    for seed in range(scenario.seeds):
        train, test, rare = scenario.data(seed)
        keras.utils.set_random_seed(seed)
        model = scenario.model()
        for name in scenario.ways:
            began = time.perf_counter()
            found[name].append(
                _figures(scenario, _ways()[name](), model, (train, test, rare), seed)
            )
            print(
                f"{scenario.name}, seed {seed}, {name}: {time.perf_counter() - began:.1f} s",
                file=sys.stderr,
                flush=True,
            )
    return found


def _figures(
    scenario: Scenario, passes: list[Any], model: Any, parts: tuple[Any, Any, set[int]], seed: int
) -> dict[str, float] | str:
    import optkit as ok
    from optkit.models import signature
    from optkit.recipe import Recipe

    train, test, rare = parts
    data = ok.Data(train=train, test=test)
    recipe = Recipe()
    for item in passes:
        recipe = item.amend(recipe)
    split: Any = data.bind(signature(model)).train
    measured = ok.Measure(latency_seconds=0, memory=False)
    try:
        steps = (split if recipe.sample is None else recipe.sample(split, 0)).steps
        # No decision is made on validation: the last weights stay.
        training = ok.FineTune(
            epochs=max(1, round(scenario.updates / steps)),
            learning_rate=scenario.rate,
            patience=None,
        )
        # Comes to rest: at a constant rate the last weights are those of an accident.
        pipeline = ok.Pipeline([*passes, ok.LRSchedule("cosine"), training], seed=seed)
        report = pipeline.run(model, data, measure=measured, progress=False).report
    except ok.OptkitError as error:
        return str(error)
    final = report.final
    by_class = final.per_class
    return {
        "balanced": sum(by_class.values()) / len(by_class),
        "plain": final.accuracy,
        "rare": sum(by_class[str(number)] for number in rare) / len(rare),
        "frequent": sum(v for k, v in by_class.items() if int(k) not in rare)
        / (len(by_class) - len(rare)),
    }


def _row(name: str, runs: Sequence[Any], baseline: Sequence[Any]) -> tuple[str, ...]:
    pairs = [(a, b) for a, b in zip(runs, baseline, strict=True) if isinstance(a, dict)]
    if not pairs:
        return (name, "refused", *[""] * 5)
    of = "" if len(pairs) == len(runs) else f" ({len(pairs)} of {len(runs)} seeds)"
    columns = [
        f"{100 * sum(run[field] for run, _ in pairs) / len(pairs):.1f}"
        for field in ("balanced", "plain", "rare", "frequent")
    ]
    changes = [
        "" if name == _BASELINE else _change([100 * (a[field] - b[field]) for a, b in pairs])
        for field in ("balanced", "plain")
    ]
    return (f"{name}{of}", columns[0], changes[0], columns[1], changes[1], *columns[2:])


def _change(values: Sequence[float]) -> str:
    """Mean of the differences and its interval by Student's t."""
    import numpy as np
    from scipy import stats

    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:+.1f}"
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return f"{mean:+.1f} ({mean - half:+.1f} – {mean + half:+.1f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints the tables; returns the exit status."""
    parser = common.parser(__doc__)
    parser.add_argument("--only", default="", help="words in the names of the scenarios to run")
    options = parser.parse_args(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("optkit").setLevel(logging.ERROR)  # what comes in is not trained
    header = (
        "strategy",
        "balanced accuracy, %",
        "change, points",
        "plain accuracy, %",
        "change, points",
        "rare classes, %",
        "frequent, %",
    )
    found = {}
    for scenario in scenarios(options.quick):
        if options.only not in scenario.name:
            continue
        runs = found[scenario.name] = measure(scenario)
        rows = [_row(name, each, runs[_BASELINE]) for name, each in runs.items()]
        print(f"\n{scenario.name} ({scenario.seeds} seeds, {scenario.updates} updates each)\n")
        print(common.table(header, rows), flush=True)
        for name, each in runs.items():
            for reason in dict.fromkeys(item for item in each if isinstance(item, str)):
                print(f"\n{name}: {reason}")
    print(
        "\nMeans over the seeds, on a test part with the shares of the data as they came; changes "
        "against no rebalancing are within a seed, with 95 % intervals by Student's t."
    )
    if options.json is not None:
        common.write_json(
            options.json,
            {"name": "rebalance", "runs": found, "environment": common.environment()},
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
