"""For authors of passes: the contract that every pass meets, and small real material to test on."""

from __future__ import annotations

import inspect
import json
import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np

import optkit
from optkit.artifact import Artifact, KerasArtifact, TFLiteArtifact
from optkit.base import InspectPass, Pass, RecipePass, RewritePass, TrainPass
from optkit.context import Context, State
from optkit.data import Data
from optkit.errors import PipelineError
from optkit.measuring import Measure
from optkit.models import clone, is_compiled
from optkit.pipeline import Pipeline
from optkit.recipe import Recipe
from optkit.result import Result
from optkit.runtime import isolated, tensorflow, tf_keras

__all__ = ["CHECKS", "check_pass", "digits", "pass_contract", "small_model"]


def digits(samples: int = 1797, *, seed: int = 0) -> Data:
    """scikit-learn's digits as images of shape ``(8, 8, 1)`` with values from 0 to 1.

    Args:
        samples: How many of the 1797, at least 100; split 60 : 20 : 20, stratified by class.
        seed: Seed of the choice.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    loaded = load_digits()
    x, y = (loaded.images[..., None] / 16).astype("float32"), loaded.target.astype("int64")
    if samples < len(x):
        x, _, y, _ = train_test_split(x, y, train_size=samples, random_state=seed, stratify=y)
    x_train, x_rest, y_train, y_rest = train_test_split(
        x, y, test_size=0.4, random_state=seed, stratify=y
    )
    x_val, x_test, y_val, y_test = train_test_split(
        x_rest, y_rest, test_size=0.5, random_state=seed, stratify=y_rest
    )
    return Data(train=(x_train, y_train), validation=(x_val, y_val), test=(x_test, y_test))


def small_model(seed: int = 0) -> Any:
    """A small convolutional tf_keras classifier of the digits, not trained, not compiled."""
    keras = tf_keras()
    layers = keras.layers
    with isolated(seed):
        return keras.Sequential(
            [
                keras.Input((8, 8, 1), name="image"),
                layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv"),
                layers.BatchNormalization(name="norm"),
                layers.ReLU(name="relu"),
                layers.GlobalAveragePooling2D(name="pool"),
                layers.Dense(10, activation="softmax", name="classes"),
            ],
            name="small",
        )


def _run(item: Pass, model: Any, data: Data) -> Result:
    passes = [item]
    if isinstance(item, RecipePass):
        from optkit.passes.fine_tune import FineTune

        passes.append(FineTune(epochs=1, learning_rate=1e-3))
    # What passes do is looked at, not how fast it makes anything.
    measure = Measure(latency_seconds=0, memory=False)
    return Pipeline(passes, seed=3).run(model, data, progress=False, measure=measure)


def _same_value(one: Any, other: Any) -> bool:
    if one is other:
        return True
    try:
        return bool(one == other)
    except ValueError:  # arrays
        return bool(np.array_equal(one, other))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _check_parameters(item: Pass, model: Any, data: Data) -> None:
    """Hyperparameters are explicit arguments, stored under their own names."""
    for name in item.parameters():
        _require(hasattr(item, name), f"argument {name!r} is not stored as an attribute")
    _require(bool(inspect.getdoc(type(item))), "the class has no docstring")


def _check_config(item: Pass, model: Any, data: Data) -> None:
    """The configuration rebuilds the pass."""
    config = item.get_config()
    _require(set(config) == set(item.parameters()), "get_config() differs from the arguments")
    again = type(item).from_config(config).get_config()
    for name, value in config.items():
        _require(_same_value(value, again[name]), f"{name!r} does not survive from_config()")


def _check_repr(item: Pass, model: Any, data: Data) -> None:
    """The repr reads like the call that makes it."""
    text = repr(item)
    _require(text.startswith(f"{type(item).__name__}(") and text.endswith(")"), f"repr is {text}")
    if "<" not in text:
        # What it holds may be passes, goals and policies themselves.
        known: dict[str, Any] = {kind.__name__: kind for kind in Pass.registry.values()}
        known |= {name: getattr(optkit, name) for name in optkit.__all__ if f"{name}(" in text}
        rebuilt = eval(text, {**known, type(item).__name__: type(item)})
        _require(repr(rebuilt) == text, f"repr {text} does not rebuild the pass")


def _check_pure_amend(item: Pass, model: Any, data: Data) -> None:
    """A recipe pass amends a copy, and fills something."""
    if isinstance(item, RecipePass):
        recipe = Recipe()
        amended = item.amend(recipe)
        _require(recipe == Recipe(), "amend() changed the recipe it was given")
        _require(isinstance(amended, Recipe) and amended != recipe, "amend() amends nothing")


def _check_runs(item: Pass, model: Any, data: Data) -> None:
    """It gives what it declares, changes nothing of the caller's, and gives the same again."""
    config = repr(item)
    before = _surroundings(model, data)
    first = _run(item, model, data)
    for name, value in _surroundings(model, data).items():
        _require(_same_value(before[name], value), f"{name} changed")
    _require(config == repr(item), "the pass changed itself while it ran")
    _require_true_result(item, first)
    tensorflow().random.uniform((3,))
    np.random.random(3)
    second = _run(type(item).from_config(item.get_config()), model, data)
    _require(_equal(first.artifact, second.artifact), "two runs with one seed differ")
    one, other = first.report.final.accuracy, second.report.final.accuracy
    _require(one == other, f"two runs with one seed report {one} and {other}")


def _surroundings(model: Any, data: Data) -> dict[str, Any]:
    """Everything of the caller's and of the process that a run must leave as it was."""
    from tensorflow.python.eager import context as eager_context

    numpy_state = np.random.get_state(legacy=False)["state"]
    found: dict[str, Any] = {
        "the compile state of the caller's model": (is_compiled(model), model.optimizer),
        "a `trainable` flag of the caller's model": [layer.trainable for layer in model.layers],
        "the environment": dict(os.environ),
        "TensorFlow's global seed": eager_context.global_seed(),
        "what `tf.keras` means": tensorflow().keras.__version__,
        "the dtype policy": tf_keras().mixed_precision.global_policy().name,
        "Python's global generator": random.getstate(),
        "NumPy's global generator": (numpy_state["key"].tolist(), numpy_state["pos"]),
    }
    for number, weight in enumerate(model.get_weights()):
        found[f"weight {number} of the caller's model"] = weight.copy()
    for name in ("train", "validation", "test"):
        if isinstance(split := getattr(data, name), tuple):
            found |= {f"array {i} of `{name}`": np.array(leaf) for i, leaf in enumerate(split)}
    return found


def _require_true_result(item: Pass, result: Result) -> None:
    row = result.report.rows[0]
    _require(json.loads(result.report.to_json()) is not None, "the report is no JSON")
    if isinstance(item, RecipePass):
        _require(row.status == "recipe" and row.after is None, "a recipe row has figures")
        return
    if isinstance(item, InspectPass):
        _require(
            row.status == "ok" and row.after is None, "the row of a pass that looks has figures"
        )
        _require(not result.stages, "a pass that looks made a stage")
        return
    stage = result.stages[row.name]
    _require(isinstance(stage, item.produces), f"produced {stage!r}, not {item.produces.__name__}")
    _require(row.status == "ok" and row.after is not None, "the stage was not measured")
    if isinstance(stage, KerasArtifact) and isinstance(item, TrainPass | RewritePass):
        _require(not is_compiled(stage.model), "the model was left compiled")
        finite = all(np.all(np.isfinite(weight)) for weight in stage.model.get_weights())
        _require(finite, "the model has weights that are not finite")
        clone(stage.model)  # raises where the model cannot be copied for the next pass


def _equal(one: Artifact, other: Artifact) -> bool:
    if isinstance(one, KerasArtifact) and isinstance(other, KerasArtifact):
        pairs = zip(one.model.get_weights(), other.model.get_weights(), strict=True)
        return all(np.array_equal(a, b) for a, b in pairs)
    if isinstance(one, TFLiteArtifact) and isinstance(other, TFLiteArtifact):
        return one.content == other.content
    return one.size_bytes == other.size_bytes


def _check_wrong_artifact(item: Pass, model: Any, data: Data) -> None:
    """What the pass does not accept is refused when the pipeline is built."""
    if isinstance(item, RecipePass) or issubclass(_Other, item.accepts):
        return
    try:
        Pipeline([_ToOther(), item])
    except PipelineError as error:
        _require(type(item).__name__ in str(error), "the refusal does not name the pass")
    else:
        raise AssertionError("an artifact of a wrong kind is not refused")


class _Other(Artifact):
    """A kind of artifact that no pass knows."""

    kind = "other"
    suffix = ".other"


class _ToOther(Pass):
    """Declares that it makes one; never run."""

    family = "convert"
    produces = _Other

    def apply(self, state: State, context: Context) -> State:
        raise AssertionError("never run")


def _check_streams(item: Pass, model: Any, data: Data) -> None:
    """It runs on a stream as it runs on arrays."""
    tf = tensorflow()
    if data.test is None or not isinstance(data.train, tuple):
        raise ValueError("the contract is checked on data of arrays, with `train` and `test`")
    train = tf.data.Dataset.from_tensor_slices(data.train).batch(16)
    validation = tf.data.Dataset.from_tensor_slices(data.validation or data.test)
    streamed = Data(train=train, validation=validation, test=data.test)
    _require(_run(item, model, streamed).report.final.accuracy is not None, "no figures")


#: The checks of the contract, by what they hold a pass to.
CHECKS: dict[str, Callable[[Pass, Any, Data], None]] = {
    "parameters": _check_parameters,
    "config": _check_config,
    "repr": _check_repr,
    "amend": _check_pure_amend,
    "wrong_artifact": _check_wrong_artifact,
    "runs": _check_runs,
    "streams": _check_streams,
}


def check_pass(pass_instance: Pass, *, model: Any = None, data: Data | None = None) -> None:
    """Holds a pass to the contract that all passes of optkit meet.

    It runs the pass for real, several times: give it settings that are quick.

    Args:
        pass_instance: The pass, with its settings.
        model: A tf_keras model to run it on; `small_model` by default.
        data: Data that fit the model; 200 `digits` by default.

    Raises:
        AssertionError: With the name of the check that failed and what was found.

    Example:
        >>> import optkit as ok
        >>> from optkit.testing import check_pass
        >>> class Halve(ok.RewritePass):
        ...     "Halves the last bias."
        ...
        ...     def __init__(self, by: float = 0.5):
        ...         self.by = by
        ...
        ...     def rewrite(self, model, context):
        ...         bias = model.layers[-1].bias
        ...         bias.assign(bias * self.by)
        ...         return model
        >>> check_pass(Halve())
    """
    for name in CHECKS:
        _hold_to(name, pass_instance, model, data)


def _hold_to(name: str, item: Pass, model: Any, data: Data | None) -> None:
    if not isinstance(item, Pass):
        raise AssertionError(f"not a pass: {item!r}")
    if model is None:
        model = small_model()
        model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    try:
        CHECKS[name](item, model, data or digits(200))
    except AssertionError as error:
        raise AssertionError(f"{type(item).__name__} fails the check {name!r}: {error}") from error


def pass_contract(*passes: Pass) -> Callable[[Any], Any]:
    """A pytest decorator: one test for each check of the contract and each pass.

    Args:
        passes: The passes to hold to the contract, with quick settings.

    Example:
        In a test module::

            @optkit.testing.pass_contract(MyPass(epochs=1), MyOtherPass())
            def test_contract(check):
                check()
    """
    import pytest

    cases = [
        pytest.param(
            lambda item=item, name=name: _hold_to(name, item, None, None),
            id=f"{type(item).__name__}-{name}",
        )
        for item in passes
        for name in CHECKS
    ]
    return pytest.mark.parametrize("check", cases)
