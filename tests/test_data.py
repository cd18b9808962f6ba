"""`Data`: every form of a split, bound to a model, cut and drawn from."""

from __future__ import annotations

import numpy as np
import pytest

import optkit as ok
from optkit.data import ArraySplit, Data, StreamSplit
from optkit.models import Signature, TensorInfo

ONE = Signature((TensorInfo("image", (None, 4, 4, 1), "float32"),), ())
TWO = Signature(
    (TensorInfo("left", (None, 3), "float32"), TensorInfo("right", (None, 2), "float32")), ()
)


def images(n=50, classes=5):
    rng = np.random.default_rng(0)
    return rng.random((n, 4, 4, 1), dtype=np.float32), np.arange(n) % classes


def forms():
    import tensorflow as tf
    import tf_keras

    x, y = images()

    class Batches(tf_keras.utils.Sequence):
        def __len__(self):
            return 5

        def __getitem__(self, i):
            return x[10 * i : 10 * i + 10], y[10 * i : 10 * i + 10]

    def batches():
        for i in range(5):
            yield x[10 * i : 10 * i + 10], y[10 * i : 10 * i + 10]

    def samples():
        yield from zip(x, y, strict=True)

    dataset = tf.data.Dataset.from_tensor_slices((x, y))
    return {
        "arrays": ((x, y), None),
        "lists": ((list(x), list(y)), None),
        "dataset of samples": (dataset, None),
        "dataset of batches": (dataset.batch(10), None),
        "dataset of unknown length": (dataset.filter(lambda a, b: True).batch(10), None),
        "endless dataset": (dataset.batch(10).repeat(), 5),
        "sequence": (Batches(), None),
        "generator of batches": (batches, 5),
        "generator of samples": (samples, 5),
    }


@pytest.mark.parametrize("form", list(forms()))
def test_every_form_gives_the_same_samples(form):
    split, steps = forms()[form]
    bound = Data(train=split, batch_size=10, steps=steps).bind(ONE).train
    x, y = images()
    pairs = list(bound.iterate())
    assert bound.steps == len(pairs) == 5
    assert np.array_equal(np.concatenate([a for a, _ in pairs]), x)
    assert np.array_equal(np.concatenate([b for _, b in pairs]), y)
    head_x, head_y = bound.head(13)
    assert np.array_equal(head_x, x[:13])
    assert np.array_equal(head_y, y[:13])
    singles = list(bound.single_inputs(7, seed=0))
    assert len(singles) == 7
    assert all(single.shape == (1, 4, 4, 1) for single in singles)


@pytest.mark.parametrize("form", ["arrays", "sequence"])
def test_training_order_is_shuffled_seeded_and_new_each_epoch(form):
    split, steps = forms()[form]
    bound = Data(train=split, batch_size=10, steps=steps).bind(ONE).train

    def labels(seed, epochs=2):
        batches = bound.training_batches(seed).take(epochs * bound.steps)
        return [int(first) for first in np.concatenate([x[:, 0, 0, 0] * 1e6 for x, _ in batches])]

    one, again, other = labels(1), labels(1), labels(2)
    assert one == again
    assert one != other
    assert one[:50] != one[50:]
    assert sorted(one[:50]) == sorted(one[50:]), "an epoch sees every sample once"


@pytest.mark.parametrize("form", list(forms()))
def test_cut_gives_two_disjoint_splits_that_cover_all(form):
    split, steps = forms()[form]
    bound = Data(train=split, batch_size=10, steps=steps).bind(ONE)
    bound.require_validation(stratify=True)
    parts = []
    for part in (bound.train, bound.validation):
        parts.append({x.tobytes() for batch, _ in part.iterate() for x in batch})
    assert not parts[0] & parts[1]
    assert len(parts[0] | parts[1]) == 50
    assert 2 <= len(parts[1]) <= 20
    assert "cut from train" in bound.notes[0]


def test_the_cut_of_a_stream_holds_in_whatever_order_it_comes():
    import tensorflow as tf

    x, y = images(200)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(200, seed=3).batch(10)
    bound = Data(train=dataset).bind(ONE)
    bound.require_validation(stratify=True)
    for _ in range(2):
        train = {a.tobytes() for batch, _ in bound.train.iterate() for a in batch}
        held = {a.tobytes() for batch, _ in bound.validation.iterate() for a in batch}
        assert not train & held
    assert "by a hash" in bound.notes[0]


def test_the_cut_of_arrays_keeps_the_share_of_classes_and_depends_on_the_seed():
    x, y = images(100)

    def cut(seed):
        bound = Data(train=(x, y), seed=seed).bind(ONE)
        bound.require_validation(stratify=True)
        return bound.validation

    assert np.bincount(np.concatenate([b for _, b in cut(0).iterate()])).tolist() == [4] * 5
    assert np.array_equal(cut(0).index, cut(0).index)
    assert not np.array_equal(cut(0).index, cut(1).index)


def test_a_class_with_one_sample_makes_the_cut_plain():
    x, y = images(50)
    y = y.copy()
    y[0] = 7
    bound = Data(train=(x, y)).bind(ONE)
    bound.require_validation(stratify=True)
    assert "random" in bound.notes[0]


def test_calibration_is_drawn_from_train_and_seeded():
    x, y = images()
    bound = Data(train=(x, y)).bind(ONE)
    split = bound.calibration_split()
    one, again, other = (np.concatenate(list(split.single_inputs(10, seed))) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert len({a.tobytes() for a in one}) == 10, "drawn without repeats"


def test_calibration_may_come_without_targets():
    x, _ = images()
    bound = Data(train=images(), calibration=x).bind(ONE)
    assert bound.calibration_split().name == "calibration"
    assert np.array_equal(bound.calibration_split().head(50)[0], x)


def test_several_inputs_by_name_and_by_order():
    left, right = np.ones((6, 3), "float32"), np.zeros((6, 2), "float32")
    for x in ({"right": right, "left": left}, [left, right]):
        ((got, _),) = Data(train=(x, np.zeros(6))).bind(TWO).train.iterate()
        assert np.array_equal(got["left"], left)
        assert np.array_equal(got["right"], right)


def test_several_inputs_as_a_stream_of_tuples_are_named():
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices(
        ((np.ones((6, 3), "float32"), np.zeros((6, 2), "float32")), np.zeros(6))
    )
    x, _ = Data(train=dataset.batch(3)).bind(TWO).train.head(6)
    assert sorted(x) == ["left", "right"]


def test_fingerprints_follow_the_content():
    x, y = images()

    def fingerprint(x, y):
        return Data(train=(x, y)).bind(ONE).train.fingerprint

    assert fingerprint(x, y) == fingerprint(x.copy(), y.copy())
    changed = x.copy()
    changed[3, 1, 1, 0] += 1
    assert fingerprint(x, y) != fingerprint(changed, y)
    assert fingerprint(x, y) != fingerprint(x, y[::-1])
    stream, _ = forms()["dataset of batches"]
    assert Data(train=stream).bind(ONE).train.fingerprint is None
    assert Data(train=stream, fingerprint="v1").bind(ONE).train.fingerprint == "v1"


def test_the_callers_sequence_is_not_told_of_epochs():
    import tf_keras

    x, y = images()

    class Counting(tf_keras.utils.Sequence):
        ended = 0

        def __len__(self):
            return 5

        def __getitem__(self, i):
            return x[10 * i : 10 * i + 10], y[10 * i : 10 * i + 10]

        def on_epoch_end(self):
            Counting.ended += 1

    bound = Data(train=Counting()).bind(ONE).train
    assert len(list(bound.training_batches(0).take(11))) == 11
    assert Counting.ended == 0


def bad_data():
    import tensorflow as tf

    x, y = images()
    nan, infinite = x.copy(), x.copy()
    nan[3, 0, 0, 0], infinite[4, 0, 0, 0] = np.nan, np.inf
    dataset = tf.data.Dataset.from_tensor_slices((x, y))
    return {
        "nothing": (Data, "at least one split"),
        "empty": (lambda: Data(train=(x[:0], y[:0])), "`train` is empty"),
        "lengths": (lambda: Data(train=(x, y[:-1])), "different lengths"),
        "four": (lambda: Data(train=(x, y, y, y)), "must be a pair"),
        "NaN": (lambda: Data(train=(nan, y)).bind(ONE), "NaN or infinite"),
        "infinity": (lambda: Data(train=(infinite, y)).bind(ONE), "NaN or infinite"),
        "NaN targets": (
            lambda: Data(train=(x, np.full(50, np.nan))).bind(ONE),
            "targets of `train`",
        ),
        "NaN stream": (
            lambda: Data(train=tf.data.Dataset.from_tensor_slices((nan, y)).batch(10)).bind(ONE),
            "NaN or infinite",
        ),
        "shape": (lambda: Data(train=(x[:, :2], y)).bind(ONE), "expected shape"),
        "no channel": (lambda: Data(train=(x[..., 0], y)).bind(ONE), r"x\[..., None\]"),
        "stream shape": (
            lambda: Data(train=dataset.map(lambda a, b: (a[:2], b)).batch(5)).bind(ONE),
            "expected shape",
        ),
        "endless": (lambda: Data(train=dataset.repeat()).bind(ONE), "infinite tf.data.Dataset"),
        "generator": (
            lambda: Data(train=lambda: iter([(x, y)])).bind(ONE),
            "a generator, whose length cannot be known",
        ),
        "empty generator": (lambda: Data(train=lambda: iter([]), steps=1).bind(ONE), "is empty"),
        "empty dataset": (lambda: Data(train=dataset.take(0)).bind(ONE), "is empty"),
        "four in a stream": (
            lambda: Data(train=dataset.map(lambda a, b: (a, b, b, b)).batch(5)).bind(ONE),
            "pairs",
        ),
        "names": (
            lambda: Data(train=({"a": x, "b": x}, y)).bind(TWO),
            "are named",
        ),
        "count": (lambda: Data(train=([x], y)).bind(TWO), "2 inputs"),
        "strings": (lambda: Data(train=(np.full((5, 4, 4, 1), "a"), y[:5])).bind(ONE), "dtype"),
        "steps for arrays": (
            lambda: Data(train=(x, y), steps={"train": 2}).bind(ONE),
            "takes no `steps`",
        ),
        "unknown split": (lambda: Data(train=(x, y), steps={"trian": 2}), "unknown splits"),
    }


@pytest.mark.parametrize("case", list(bad_data()))
def test_bad_data_is_refused_with_the_reason(case):
    make, message = bad_data()[case]
    with pytest.raises(ok.DataError, match=message):
        make()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "at least 1"),
        ({"batch_size": 2.5}, "whole number"),
        ({"seed": -1}, "from 0"),
        ({"class_names": "abc"}, "list of strings"),
        ({"train": 3}, "must be"),
        ({"train": {"a": 1}}, "must be"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ok.PipelineError, match=message):
        Data(**{"train": images(), **arguments})


def test_kinds_of_splits():
    bound = Data(train=images(), test=forms()["dataset of batches"][0]).bind(ONE)
    assert isinstance(bound.train, ArraySplit)
    assert isinstance(bound.test, StreamSplit)
    assert bound.report_split is bound.test
