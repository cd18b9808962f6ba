"""Fingerprints: equal things have equal ones in every process, anything that matters changes them."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import random
import re
import subprocess
import sys
import textwrap
import threading
import tomllib
from pathlib import Path

import numpy as np
import pytest

import optkit as ok
from optkit.constraint import KeepZeros
from optkit.fingerprint import (
    Unfingerprintable,
    artifact_fingerprint,
    fingerprint,
    library_versions,
    own_parts,
)
from optkit.models import clone
from optkit.testing import digits, small_model


@dataclasses.dataclass(frozen=True)
class Setting:
    rate: float
    names: tuple[str, ...] = ()


class Plain:
    def __init__(self, value):
        self.value = value


def _scale(x):
    return x * 2


def _uses_scale(x):
    return _scale(x) + 1


def _closing_over(value):
    return lambda x: x + value


def _same(one, other):
    return fingerprint(one) == fingerprint(other)


def test_values_that_are_equal_and_values_that_are_not():
    values = [
        *(None, True, 1, 1.0, -0.0, 0.0, "1", b"1", float("nan"), 1j, ...),
        *((), [], {}, set(), (1,), [1], {1}, {"a": 1}, {"a": 2}, {"b": 1}, [[1], 2], [1, [2]]),
        *(Setting(0.1), Setting(0.2), Setting(0.1, ("a",)), Plain(1), Plain(2)),
        *(np.float32(1), np.float64(1), np.zeros(3), np.zeros((3, 1)), np.zeros(3, "float32")),
        *(np.array(["a"]), np.array(["b"]), np.array([None, "a"], object)),
        *(np.random.default_rng(0), np.random.default_rng(1), random.Random(1), random.Random(2)),
        *(logging.getLogger("a"), logging.getLogger("b"), Path("nowhere"), Path("elsewhere")),
        *(_scale, _uses_scale, _closing_over(1), _closing_over(2), np.add, np.subtract, len),
        *(functools.partial(_scale, 1), functools.partial(_scale, 2), Plain, Setting),
        *(Plain(1).__init__, Plain(2).__init__, [].append, [1].append, np, json),
        *(ok.LabelSmooth(0.1), ok.LabelSmooth(0.2), ok.Prune(0.5), ok.Recipe()),
        *(ok.LabelSmooth(0.1).amend(ok.Recipe()), ok.LabelSmooth(0.2).amend(ok.Recipe())),
    ]
    found = [fingerprint(value) for value in values]
    assert len(set(found)) == len(values)
    assert found == [fingerprint(value) for value in values]


def test_what_is_equal_in_another_order_or_layout_is_equal():
    assert _same({"a": 1, "b": [2]}, {"b": [2], "a": 1})
    assert _same({"x", "y", "z"}, {"z", "y", "x"})
    array = np.arange(12).reshape(3, 4)
    assert _same(array.T, np.ascontiguousarray(array.T))
    shared = [1, 2]
    assert _same([shared, shared], [[1, 2], [1, 2]])
    assert _same(_closing_over([1]), _closing_over([1]))


def test_a_cycle_ends():
    loop: list = [1]
    loop.append(loop)
    again: list = [1]
    again.append(again)
    assert _same(loop, again)


@pytest.mark.parametrize(
    "make",
    [
        lambda: open(os.devnull),  # noqa: SIM115
        lambda: (i for i in ()),
        threading.Lock,
        lambda: Plain(threading.Lock()),
        threading.Thread,
        lambda: {"deep": [_closing_over(threading.Lock())]},
        lambda: np.frompyfunc(lambda x: x, 1, 1),
    ],
)
def test_what_cannot_be_told_is_said(make):
    value = make()
    with pytest.raises(Unfingerprintable):
        fingerprint(value)
    if hasattr(value, "close"):
        value.close()


def test_a_stream_cannot_be_told():
    import tensorflow as tf

    with pytest.raises(Unfingerprintable, match="stream of unknown content"):
        fingerprint({"data": tf.data.Dataset.range(3)})


def test_what_hides_state_from_pickle_still_counts():
    class Hides:
        def __init__(self, value):
            self.value = value

        def __getstate__(self):
            return {}

    assert not _same(Hides(1), Hides(2))


def test_a_path_counts_with_what_lies_there(tmp_path):
    file = tmp_path / "weights.bin"
    before = fingerprint(file), fingerprint(str(file)), fingerprint(tmp_path)
    file.write_bytes(b"one")
    after = fingerprint(file), fingerprint(str(file)), fingerprint(tmp_path)
    file.write_bytes(b"two")
    last = fingerprint(file), fingerprint(str(file)), fingerprint(tmp_path)
    assert len({*before, *after, *last}) == 9
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a").write_text("a")
    with_inner = fingerprint(str(tmp_path))
    (tmp_path / "inner" / "a").rename(tmp_path / "inner" / "b")
    assert len({last[2], with_inner, fingerprint(str(tmp_path))}) == 3


def test_models_count_by_everything_that_decides_what_they_do():
    import tf_keras

    model = small_model()
    found = [fingerprint(model)]
    assert fingerprint(clone(model)) == found[0] == fingerprint(small_model())
    assert fingerprint({"backbone": model}) == fingerprint({"backbone": clone(model)})

    changed = clone(model)
    kernel = changed.get_layer("conv").kernel
    kernel.assign(np.nextafter(kernel.numpy(), 1))
    found.append(fingerprint(changed))
    changed = clone(model)
    changed.get_layer("norm").moving_mean.assign_add(np.ones(8))
    found.append(fingerprint(changed))
    changed = clone(model)
    changed.get_layer("conv").trainable = False
    found.append(fingerprint(changed))
    for optimizer in (tf_keras.optimizers.Adam(0.1), tf_keras.optimizers.Adam(0.2)):
        for loss in ("mse", _closing_over(1), _closing_over(2)):
            changed = clone(model)
            changed.compile(optimizer, loss)
            found.append(fingerprint(changed))
    found.append(artifact_fingerprint(ok.KerasArtifact(model)))
    assert len(set(found)) == len(found)


def test_keras_objects_count_by_config_and_by_what_they_keep_to_themselves():
    import tf_keras
    from tf_keras.src.losses import LossFunctionWrapper

    class Focal(tf_keras.losses.Loss):
        def __init__(self, gamma):
            super().__init__()
            self._gamma = gamma  # and no `get_config`

        def call(self, y_true, y_pred):
            return self._gamma * (y_true - y_pred)

    values = [
        *(
            tf_keras.optimizers.SGD(0.1),
            tf_keras.optimizers.SGD(0.2),
            tf_keras.optimizers.Adam(0.1),
        ),
        *(tf_keras.losses.MeanAbsoluteError(reduction=how) for how in ("sum", "none")),
        *(LossFunctionWrapper(_closing_over(i)) for i in (1, 2)),
        *(Focal(1), Focal(2), tf_keras.losses.MeanSquaredError()),
        *(tf_keras.regularizers.L2(0.1), tf_keras.regularizers.L2(0.2)),
        *(tf_keras.metrics.MeanMetricWrapper(_closing_over(i), name="m") for i in (1, 2)),
        *(tf_keras.callbacks.EarlyStopping(patience=i) for i in (1, 2)),
        *(tf_keras.optimizers.schedules.CosineDecay(i, 10) for i in (0.1, 0.2)),
    ]
    assert len({fingerprint(value) for value in values}) == len(values)
    assert _same(Focal(1), Focal(1))


def test_custom_layers_count_with_their_code():
    import tf_keras

    def model_with(factor):
        class Scaled(tf_keras.layers.Layer):
            def call(self, x):
                return x * factor

        return tf_keras.Sequential(
            [tf_keras.Input((4,), name="x"), Scaled(name="scaled")], name="m"
        )

    def activated(function):
        layer = tf_keras.layers.Dense(2, activation=function, name="d", kernel_initializer="zeros")
        return tf_keras.Sequential([tf_keras.Input((4,), name="x"), layer], name="m")

    def adding(value):
        def added(x):
            return x + value

        return added

    assert fingerprint(model_with(2)) == fingerprint(model_with(2))
    assert fingerprint(model_with(2)) != fingerprint(model_with(3))
    one, other = activated(adding(1)), activated(adding(2))
    assert fingerprint(one) != fingerprint(other)
    assert set(own_parts(model_with(2))) == {"Scaled"}
    assert set(own_parts(activated(_scale))) == {"_scale"}


def test_an_artifact_with_a_file_counts_by_its_bytes(tmp_path):
    result = ok.Pipeline([ok.QuantizeINT8(20)]).run(small_model(), digits(200), progress=False)
    artifact = result.artifact
    again = ok.load(artifact.save(tmp_path / "a.tflite"))
    assert artifact_fingerprint(again) == artifact_fingerprint(artifact) == fingerprint(artifact)
    assert artifact_fingerprint(artifact) != artifact_fingerprint(ok.KerasArtifact(small_model()))


def test_constraints_count_by_path_and_content():
    def found(path, *mask):
        one = KeepZeros(path, np.array(mask, bool))
        return fingerprint({(path, one.name): one})

    kinds = {found("a", 1, 0), found("b", 1, 0), found("a", 1, 1), fingerprint({})}
    assert len(kinds) == 4
    assert found("a", 1, 0) == found("a", 1, 0)


def test_versions_name_every_library_that_matters():
    found = library_versions()
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))
    needed = {re.split("[<>=]", item)[0] for item in project["project"]["dependencies"]}
    # These show results, draw intervals, or read and write files in a form that others define.
    showing = {"jinja2", "matplotlib", "pandas", "tqdm", "scipy", "h5py", "flatbuffers"}
    assert {"python", "optkit", "keras"} <= set(found)
    assert needed - showing <= {name.replace("_", "-") for name in found}
    version, source = found["optkit"].split()
    assert version == ok.__version__
    assert len(source) == 16


BASE = """
    import math
    import optkit as ok
    import helpers
    from helpers import factor
    LIMIT = 3
    TABLE = {"a": [1, 2]}

    def deep(x):
        return x * LIMIT

    def outer(x):
        return deep(x) + math.pi

    class Base:
        share = 0.5

        def half(self, x):
            return x * self.share

    def make(value):
        def inner(x):
            return x + value
        return inner

    closed = make(1)

    class Halve(Base, ok.RewritePass):
        "Halves."

        rate = 2

        def __init__(self, by: float = 0.5, names=("b", "a")):
            self.by, self.names = by, names

        def rewrite(self, model, context):
            from inside import used
            unused = {"z", "y", "x"}
            return [outer(x) for x in (helpers.scale(1), factor(2), closed(3), used(4))] + TABLE["a"]
"""
HELPERS = """
    import inside

    def scale(x):
        return x + inside.used(x)

    def factor(x):
        return x - 1

    def another(x):
        return x
"""
INSIDE = """
    def used(x):
        return x * 5
"""
SCRIPT = """
    import sys
    sys.path.insert(0, sys.argv[1])
    import module
    from optkit.fingerprint import fingerprint
    print(fingerprint(module.Halve), fingerprint(module.Halve()))
"""


def _fingerprints_of(folder: Path, seed="0", script=SCRIPT, **changes) -> list[str]:
    """The fingerprints of the pass in another process, with one thing changed in its sources."""
    folder.mkdir(exist_ok=True)
    texts = {"module": BASE, "helpers": HELPERS, "inside": INSIDE}
    for name, (old, new) in changes.items():
        assert old in texts[name]
        texts[name] = texts[name].replace(old, new)
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    done = subprocess.run(
        [sys.executable, "-B", "-c", textwrap.dedent(script), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_code_is_equal_in_every_process_and_wherever_it_stands(tmp_path):
    first = _fingerprints_of(tmp_path / "a", "1")
    assert first == _fingerprints_of(tmp_path / "b", "2")
    moved = _fingerprints_of(
        tmp_path / "c",
        module=("    def deep(x):\n", "    # A comment,\n    # and another.\n    def deep(x):\n"),
        helpers=("import inside", "import inside  # comment"),
    )
    assert moved == first
    unrelated = _fingerprints_of(tmp_path / "d", module=("import math", "import math\n    A = 1"))
    assert unrelated == first


@pytest.mark.parametrize(
    ("where", "old", "new"),
    [
        ("module", "x * LIMIT", "x / LIMIT"),  # what a function that the method calls calls
        ("module", "LIMIT = 3", "LIMIT = 4"),
        ("module", '"a": [1, 2]', '"a": [1, 3]'),
        ("module", "math.pi", "math.e"),
        ("module", "share = 0.5", "share = 0.6"),
        ("module", "x * self.share", "x + self.share"),
        ("module", "rate = 2", "rate = 3"),
        ("module", "closed = make(1)", "closed = make(2)"),
        ("module", "x + value", "x - value"),
        ("module", '"y"', '"v"'),
        ("module", "by: float = 0.5", "by: float = 0.4"),
        ("helpers", "x + inside", "x - inside"),
        ("helpers", "x - 1", "x - 2"),
        ("inside", "x * 5", "x * 6"),
    ],
)
def test_whatever_a_pass_refers_to_changes_it(tmp_path, where, old, new):
    first = _fingerprints_of(tmp_path / "a")
    changed = _fingerprints_of(tmp_path / "a", **{where: (old, new)})
    assert changed[0] != first[0]
    assert changed[1] != first[1]


def test_a_pass_of_a_notebook_changes_with_its_helpers():
    """What is defined in `__main__`, and defined anew there, as notebooks do."""
    source = """
        import optkit as ok
        from optkit.fingerprint import fingerprint

        def helper(x):
            return x + 1

        class Own(ok.RewritePass):
            def __init__(self, by: float = 0.5):
                self.by = by

            def rewrite(self, model, context):
                return helper(model)

        found = [fingerprint(Own()), fingerprint(Own()), fingerprint(Own(0.4))]

        def helper(x):
            return x + 2

        found.append(fingerprint(Own()))
        print(*found)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)], capture_output=True, text=True, check=True
    )
    one, again, other, redefined = done.stdout.split()
    assert one == again
    assert len({one, other, redefined}) == 3


def test_what_code_refers_to_is_named_where_it_cannot_be_told():
    lock = threading.Lock()

    def helper():
        return lock

    class Own(ok.RewritePass):
        def rewrite(self, model, context):
            return helper()

    with pytest.raises(Unfingerprintable, match=r"`.*rewrite` refers to `helper`.* to `lock`"):
        fingerprint(Own)


@pytest.mark.parametrize("library", ["tf_keras", "keras"])
@pytest.mark.filterwarnings("ignore:.*retracing.*")
def test_what_preprocessing_layers_have_learned_counts(library):
    keras = pytest.importorskip(library)

    def make(words, values):
        text, number = keras.Input((), dtype="string", name="text"), keras.Input((1,), name="n")
        vectorize = keras.layers.TextVectorization(10, output_sequence_length=3, name="vectorize")
        vectorize.adapt(words)
        edges = keras.layers.Discretization(num_bins=3, name="edges")
        edges.adapt(np.array(values, "float32").reshape(-1, 1))
        return keras.Model([text, number], [vectorize(text), edges(number)], name="learned")

    one = fingerprint(make(["a b", "c"], range(9)))
    assert one == fingerprint(make(["a b", "c"], range(9)))
    assert one != fingerprint(make(["a d", "c"], range(9)))
    assert one != fingerprint(make(["a b", "c"], range(0, 90, 10)))


def test_random_layers_of_keras_3_are_the_same_whenever_they_are_made():
    import keras

    def pair(seed):
        inner = keras.layers.RandomRotation(0.1, seed=seed, name="turn")
        return fingerprint(inner), fingerprint(ok.Augment([inner]))

    assert pair(1) == pair(1)
    assert not set(pair(1)) & set(pair(2))
