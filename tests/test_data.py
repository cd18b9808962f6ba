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


@pytest.mark.parametrize("samples", [6, 7, 8])
def test_few_samples_are_cut_by_class_where_each_class_can_be_in_both(samples):
    x, _ = images(samples)
    bound = Data(train=(x, np.arange(samples) % 2)).bind(ONE)
    bound.require_validation(stratify=True)
    assert "stratified" in bound.notes[0]
    assert sorted(np.concatenate([y for _, y in bound.validation.iterate()])) == [0, 1]


def test_batches_of_a_stream_keep_their_size_when_it_is_cut():
    import tensorflow as tf

    x, y = images(200)
    x = x + np.random.default_rng(0).random(x.shape).astype(x.dtype)
    bound = Data(train=tf.data.Dataset.from_tensor_slices((x, y)).batch(16)).bind(ONE)
    assert bound.train.batch_size == 16
    bound.require_validation(stratify=True)
    assert next(len(b) for _, b in bound.train.iterate()) == 16


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


# ------------------------------------------------------------------------------- further forms

SEQUENCES = Signature((TensorInfo("tokens", (None, None), "float32"),), ())
TEXT = Signature((TensorInfo("text", (None, 1), "string"),), ())
MIXED = Signature(
    (TensorInfo("age", (None, 1), "float32"), TensorInfo("city", (None,), "string")), ()
)
CLASSES = Signature(
    (TensorInfo("image", (None, 4, 4, 1), "float32"),),
    (TensorInfo("scores", (None, 5), "float32"),),
)
OUTPUTS = Signature(
    (TensorInfo("image", (None, 4, 4, 1), "float32"),),
    (TensorInfo("scores", (None, 5), "float32"), TensorInfo("size", (None, 1), "float32")),
)


def weighted_forms():
    import keras
    import tensorflow as tf
    import tf_keras

    x, y = images()
    w = np.linspace(0, 2, 50, dtype=np.float32)

    def batch(i):
        return x[10 * i : 10 * i + 10], y[10 * i : 10 * i + 10], w[10 * i : 10 * i + 10]

    class Old(tf_keras.utils.Sequence):
        def __len__(self):
            return 5

        def __getitem__(self, i):
            return batch(i)

    class New(keras.utils.PyDataset):
        def __len__(self):
            return 5

        def __getitem__(self, i):
            return batch(i)

    class Numbered(keras.utils.PyDataset):
        num_batches = 5

        def __getitem__(self, i):
            return batch(i)

    class Endless(keras.utils.PyDataset):
        num_batches = None

        def __getitem__(self, i):
            return batch(i % 5)

    def generator():
        yield from map(batch, range(5))

    dataset = tf.data.Dataset.from_tensor_slices((x, y, w))
    return {
        "arrays": ((x, y, w), None),
        "column of weights": ((x, y, w[:, None]), None),
        "samples": (dataset, None),
        "batches": (dataset.batch(10), None),
        "Sequence": (Old(), None),
        "PyDataset": (New(workers=2, use_multiprocessing=False), None),
        "PyDataset by num_batches": (Numbered(), None),
        "PyDataset without end": (Endless(), 5),
        "generator": (generator, 5),
    }


@pytest.mark.parametrize("form", list(weighted_forms()))
def test_weights_come_with_their_samples(form):
    given, steps = weighted_forms()[form]
    split = Data(train=given, batch_size=10, steps=steps).bind(ONE).train
    x, y = images()
    assert split.weighted
    parts = [np.concatenate(part) for part in zip(*split.iterate_weighted(), strict=True)]
    assert np.array_equal(parts[0], x)
    assert np.array_equal(parts[1], y)
    assert parts[2].ravel() == pytest.approx(np.linspace(0, 2, 50))
    assert len(split.batches().element_spec) == 2
    assert len(split.batches(weighted=True).element_spec) == 3
    for a, b, w in split.training_batches(0, weighted=True).take(split.steps):
        for image, label, weight in zip(a.numpy(), b.numpy(), w.numpy(), strict=True):
            place = int(np.flatnonzero((x == image).all(axis=(1, 2, 3)))[0])
            assert (label, weight.item()) == (y[place], pytest.approx(place / 49 * 2))


@pytest.mark.parametrize("form", ["arrays", "batches"])
def test_a_cut_keeps_weights_with_their_samples(form):
    given, steps = weighted_forms()[form]
    bound = Data(train=given, batch_size=10, steps=steps).bind(ONE)
    bound.require_validation(stratify=True)
    x, _ = images()
    for split in (bound.train, bound.validation):
        for batch, _, weights in split.iterate_weighted():
            for image, weight in zip(batch, weights, strict=True):
                place = int(np.flatnonzero((x == image).all(axis=(1, 2, 3)))[0])
                assert weight == pytest.approx(place / 49 * 2)


def test_weights_count_for_the_fingerprint():
    (x, y, w), _ = weighted_forms()["arrays"]
    prints = {
        Data(train=part).bind(ONE).train.fingerprint for part in ((x, y), (x, y, w), (x, y, w + 1))
    }
    assert len(prints) == 3


def class_weighted(train, activation="softmax", **settings):
    import tf_keras

    from optkit.data import weigh_classes
    from optkit.task import infer_task

    model = tf_keras.Sequential(
        [
            tf_keras.Input((4, 4, 1)),
            tf_keras.layers.Flatten(),
            tf_keras.layers.Dense(5, activation, name="scores"),
        ]
    )
    bound = Data(train=train, **settings).bind(CLASSES)
    weigh_classes(bound, infer_task(model, bound.train.targets(50)))
    return bound


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("one_hot", [False, True])
def test_class_weights_multiply_the_weights_of_samples(stream, one_hot):
    import tensorflow as tf

    (x, y, w), _ = weighted_forms()["arrays"]
    targets = np.eye(5, dtype="float32")[y] if one_hot else y
    given = (x, targets, w)
    if stream:
        given = tf.data.Dataset.from_tensor_slices(given).batch(10)
    bound = class_weighted(
        given, class_weight={0: 3.0, "four": 0.5}, class_names=["zero", "a", "b", "c", "four"]
    )
    weights = np.concatenate([part for _, _, part in bound.train.iterate_weighted()])
    assert weights == pytest.approx(w * np.array([3, 1, 1, 1, 0.5])[y])
    assert "class weights, zero: 3, four: 0.5" in bound.notes[0]


def test_class_weights_multiply_weights_in_rows_of_one():
    import tensorflow as tf

    (x, y, w), _ = weighted_forms()["arrays"]
    stream = tf.data.Dataset.from_tensor_slices((x, y, w[:, None])).batch(10)
    bound = class_weighted(stream, class_weight={0: 3.0})
    weights = np.concatenate([part for _, _, part in bound.train.iterate_weighted()])
    assert weights == pytest.approx(w * np.where(y == 0, 3, 1))


def test_class_weights_of_what_is_not_there_are_refused():
    x, y = images()
    with pytest.raises(ok.DataError, match="there are 5"):
        class_weighted((x, y), class_weight={7: 1.0})
    with pytest.raises(ok.DataError, match="`class_names` knows"):
        class_weighted((x, y), class_weight={"cat": 1.0})
    with pytest.raises(ok.DataError, match="the task is regression"):
        class_weighted((x, np.random.default_rng(0).random((50, 5))), None, class_weight={0: 1.0})
    with pytest.raises(ok.DataError, match="all classes in `class_weight` are 0"):
        class_weighted((x, y), class_weight=dict.fromkeys(range(5), 0.0))
    with pytest.raises(ok.DataError, match="names class 0 twice"):
        class_weighted((x, y), class_weight={0: 3.0, "a": 7.0}, class_names=list("abcde"))
    with pytest.raises(TypeError, match=r"a whole number. Received: 0\.5"):
        class_weighted((x, y), class_weight={0.5: 3.0})
    assert class_weighted((x, y), class_weight={1.0: 3.0}).class_weight == {"": {1: 3.0}}


NAMES = ["ant", "bee", "cat", "dog", "eel"]


@pytest.mark.parametrize("kind", ["texts", "bytes", "list", "Series", "categories", "stream"])
def test_names_become_the_numbers_of_class_names(kind):
    import pandas
    import tensorflow as tf

    x, y = images()
    texts = np.array(NAMES)[y]
    given = {
        "texts": lambda: (x, texts),
        "bytes": lambda: (x, texts.astype("S")),
        "list": lambda: (x, texts.tolist()),
        "Series": lambda: (x, pandas.Series(texts)),
        "categories": lambda: (x, pandas.Series(texts, dtype="category")),
        "stream": lambda: tf.data.Dataset.from_tensor_slices((x, texts)).batch(10),
    }[kind]()
    bound = Data(train=given, class_names=NAMES).bind(CLASSES)
    assert np.array_equal(np.concatenate([b for _, b in bound.train.iterate()]), y)
    with pytest.raises(ok.DataError, match="class_names="):
        Data(train=given).bind(CLASSES)


def test_a_name_that_class_names_lacks_is_refused_in_arrays_and_streams():
    import tensorflow as tf

    x, y = images()
    texts = np.array(NAMES)[y]
    with pytest.raises(ok.DataError, match="eel"):
        Data(train=(x, texts), class_names=NAMES[:4]).bind(CLASSES)
    late = tf.data.Dataset.from_tensor_slices((x[::-1], np.sort(texts))).batch(30)
    names = ["ant", "bee", "cat", "rüde"]
    told = (
        "Reading `train` failed: its targets hold 'dog', 'eel', not among .*: ant, bee, cat, rüde$"
    )
    with pytest.raises(ok.DataError, match=told):
        list(Data(train=late, class_names=names).bind(CLASSES).train.iterate())


@pytest.mark.parametrize("stream", [False, True])
def test_class_numbers_are_widened_where_the_loss_takes_rows_alone(stream):
    import tensorflow as tf

    x, y = images()
    given = (x, y)
    if stream:
        given = tf.data.Dataset.from_tensor_slices(given).batch(10)
    bound = Data(train=given).bind(CLASSES, frozenset([""]))
    assert np.array_equal(np.concatenate([b for _, b in bound.train.iterate()]), np.eye(5)[y])


def test_true_and_false_are_numbers():
    x, y = images()
    split = Data(train=(x, y % 2 == 0)).bind(ONE).train
    assert split.y.dtype == np.int32
    assert np.array_equal(split.y, y % 2 == 0)


@pytest.mark.parametrize(
    "form", ["dict", "list", "frame", "stream of dicts", "stream of tuples", "generator", "partial"]
)
def test_targets_by_output(form):
    import pandas
    import tensorflow as tf

    x, y = images()
    sizes = np.arange(50, dtype="float32")
    both = {"size": sizes, "scores": y}
    slices = tf.data.Dataset.from_tensor_slices
    given = {
        "dict": lambda: (x, both),
        "list": lambda: (x, [y, sizes]),
        "frame": lambda: (x, pandas.DataFrame(both)),
        "stream of dicts": lambda: slices((x, both)).batch(10),
        "stream of tuples": lambda: slices((x, (y, sizes))).batch(10),
        "generator": lambda: lambda: iter([(x, [y, sizes])]),
        "partial": lambda: (x, {"size": sizes}),
    }[form]()
    steps = 1 if form == "generator" else None
    split = Data(train=given, batch_size=10, steps=steps).bind(OUTPUTS).train
    found = split.targets(50)
    assert list(found) == (["size"] if form == "partial" else ["scores", "size"])
    assert np.array_equal(found["size"], sizes)
    if form != "partial":
        assert np.array_equal(found["scores"], y)


def test_targets_that_do_not_go_with_the_outputs_are_refused():
    x, y = images()
    for given, message in (
        (y, "as a dict by output name"),
        ([y], "as a dict by output name"),
        ({"scores": y, "colour": y}, "are named"),
        ({"scores": y, "size": y[:-1]}, "different lengths"),
    ):
        with pytest.raises(ok.DataError, match=message):
            Data(train=(x, given)).bind(OUTPUTS)


def test_names_and_weights_by_output():
    x, y = images()
    texts = np.array(NAMES)[y]
    weights = {"size": np.arange(50.0)}
    given = (x, {"scores": texts, "size": y}, weights)
    bound = Data(train=given, class_names=NAMES).bind(OUTPUTS)
    assert bound.names_of("scores") == tuple(NAMES)
    assert bound.names_of("size") == ()
    assert np.array_equal(bound.train.y["scores"], y)
    assert np.array_equal(bound.train.weights["size"], np.arange(50.0))
    with pytest.raises(ok.DataError, match="unknown outputs"):
        Data(train=given, class_names={"colour": NAMES}).bind(OUTPUTS)
    with pytest.raises(ok.DataError, match="as many classes"):
        Data(train=given, class_names=["a", "b", "c"]).bind(OUTPUTS)


ROWS = [[3, 1, 2], [5], [7, 8], [9, 9, 9, 4]]
PADDED = np.array([[3, 1, 2, 0], [5, 0, 0, 0], [7, 8, 0, 0], [9, 9, 9, 4]])


@pytest.mark.parametrize("form", ["ragged", "lists", "arrays", "stream", "batches", "generator"])
def test_ragged_inputs_are_padded_at_the_end(form):
    import tensorflow as tf

    y = np.arange(4) % 2
    ragged = tf.ragged.constant(ROWS)
    slices = tf.data.Dataset.from_tensor_slices((ragged, y))

    def samples():
        yield from ((np.array(row), label) for row, label in zip(ROWS, y, strict=True))

    given = {
        "ragged": lambda: (ragged, y),
        "lists": lambda: (ROWS, y),
        "arrays": lambda: ([np.array(row) for row in ROWS], y),
        "stream": lambda: slices,
        "batches": lambda: slices.batch(4),
        "generator": lambda: samples,
    }[form]()
    for wide, signature in (
        (0, SEQUENCES),
        (2, Signature((TensorInfo("tokens", (None, 6), "int32"),), ())),
    ):
        data = Data(train=given, steps=1 if form == "generator" else None)
        if form == "generator" and wide:  # arrays that do not fit are no ragged ones
            with pytest.raises(ok.DataError, match="expected shape"):
                data.bind(signature)
            continue
        bound = data.bind(signature)
        x, found = bound.train.head(4)
        assert np.array_equal(x, np.pad(PADDED, ((0, 0), (0, wide))))
        assert np.array_equal(found, y)
        if form != "generator":
            assert "padded with zeros" in bound.notes[0]
    short = Signature((TensorInfo("tokens", (None, 3), "int32"),), ())
    if form != "generator":
        with pytest.raises(ok.DataError, match="longe"):
            list(data.bind(short).train.iterate())


def test_samples_with_two_open_dimensions_are_not_padded():
    inputs = Signature((TensorInfo("image", (None, None, None, 1), "float32"),), ())
    x = [np.zeros((4, 5, 1)), np.zeros((5, 4, 1))]
    with pytest.raises(ok.DataError, match=r"different shapes|more than their first"):
        Data(train=([x[0], x[1][:, :3]], np.zeros(2))).bind(inputs)


def test_batches_of_different_lengths_are_read_trained_on_and_cut():
    rng = np.random.default_rng(0)
    batches = [(rng.integers(1, 9, (6, n)), np.arange(6) % 2) for n in (3, 5, 4)]
    bound = Data(train=lambda: iter(batches), steps=3, batch_size=4).bind(SEQUENCES)
    assert [x.shape[1] for x, _ in bound.train.iterate()] == [3, 5, 4]
    assert [x.shape[1] for x, _ in bound.train.training_batches(0).take(3)] == [3, 5, 4]
    bound.require_validation(stratify=True)

    def bare(split):
        return {tuple(row[row > 0]) for x, _ in split.iterate() for row in x}

    everything = {tuple(row) for x, _ in batches for row in x}
    assert bare(bound.train) | bare(bound.validation) == everything
    assert not bare(bound.train) & bare(bound.validation)


def test_what_a_sample_was_padded_with_does_not_decide_where_it_goes():
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 9, rng.integers(1, 9)) for _ in range(200)]

    def cut(width, order):
        x = np.zeros((200, width), int)
        for place, number in enumerate(order):
            x[place, : len(rows[number])] = rows[number]
        stream = lambda: iter([(x, np.zeros(200))])  # noqa: E731
        bound = Data(train=stream, steps=1, batch_size=50).bind(SEQUENCES)
        bound.require_validation(stratify=False)
        return {tuple(row[row > 0]) for batch, _ in bound.validation.iterate() for row in batch}

    assert cut(8, range(200)) == cut(20, rng.permutation(200))


def test_tables_are_features_or_a_column_an_input():
    import pandas

    frame = pandas.DataFrame({"a": [1, 2, 3], "b": [0.5, 1.5, 2.5], "c": [True, False, True]})
    three = Signature((TensorInfo("row", (None, 3), "float32"),), ())
    x, y = Data(train=(frame, pandas.Series([0, 1, 0]))).bind(three).train.head(3)
    assert np.array_equal(x, [[1, 0.5, 1], [2, 1.5, 0], [3, 2.5, 1]])
    assert np.array_equal(y, [0, 1, 0])
    people = pandas.DataFrame({"city": ["Ulm", "Bonn", "Ulm"], "age": [31, 52, 8]})
    x, _ = Data(train=(people, [0, 1, 1])).bind(MIXED).train.head(3)
    assert np.array_equal(x["age"], [[31], [52], [8]])
    assert x["city"].tolist() == ["Ulm", "Bonn", "Ulm"]
    with pytest.raises(ok.DataError, match="'city' hold texts"):
        Data(train=(people, [0, 1, 1])).bind(
            Signature((TensorInfo("row", (None, 2), "float32"),), ())
        )
    holes = pandas.DataFrame({"city": ["Ulm", None, "Ulm"], "age": [31, 52, 8]})
    with pytest.raises(ok.DataError, match="missing value"):
        Data(train=(holes, [0, 1, 1])).bind(MIXED)


def test_a_stream_of_columns_is_known_to_be_batched():
    import tensorflow as tf

    columns = {"age": np.array([31, 52, 8]), "city": np.array(["Ulm", "Bonn", "Ulm"])}
    slices = tf.data.Dataset.from_tensor_slices((columns, np.array([0, 1, 1])))
    for stream in (slices, slices.batch(2), slices.batch(3, drop_remainder=True)):
        x, _ = Data(train=stream).bind(MIXED).train.head(2)
        assert np.array_equal(x["age"], [[31], [52]])
        assert [city.decode() for city in x["city"]] == ["Ulm", "Bonn"]


@pytest.mark.parametrize("form", ["list", "array", "objects", "stream", "generator"])
def test_texts_are_inputs(form):
    import tensorflow as tf

    texts = ["good", "bad and long", "für gut befunden", "so"]
    y = np.arange(4) % 2
    given = {
        "list": lambda: (texts, y),
        "array": lambda: (np.array(texts), y),
        "objects": lambda: (np.array(texts, dtype=object)[:, None], y),
        "stream": lambda: tf.data.Dataset.from_tensor_slices((np.array(texts), y)),
        "generator": lambda: lambda: iter([(np.array(texts), y)]),
    }[form]()
    bound = Data(train=given, steps=1 if form == "generator" else None).bind(TEXT)
    ((x, _),) = bound.train.batches().as_numpy_iterator()
    assert [text.decode() for text in x[:, 0]] == texts
    if form in ("list", "array", "objects"):
        again = Data(train=(list(texts), y)).bind(TEXT).train
        other = Data(train=([*texts[:3], "no"], y)).bind(TEXT).train
        assert again.fingerprint != other.fingerprint
        assert again.fingerprint == Data(train=(list(texts), y)).bind(TEXT).train.fingerprint
    bound.require_validation(stratify=False)
    parts = [
        len(np.concatenate([y for _, y in s.iterate()])) for s in (bound.train, bound.validation)
    ]
    assert sum(parts) == 4


@pytest.mark.parametrize(
    "dtype", ["uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
)
def test_tokens_of_any_width_train_and_predict(dtype):
    import tf_keras

    tokens = np.random.default_rng(0).integers(0, 20, (12, 5)).astype(dtype)
    model = tf_keras.Sequential(
        [
            tf_keras.Input((None,), dtype="int32"),
            tf_keras.layers.Embedding(20, 4),
            tf_keras.layers.GlobalAveragePooling1D(),
            tf_keras.layers.Dense(2),
        ]
    )
    data = ok.Data(train=(tokens, np.arange(12) % 2), validation=(tokens, np.arange(12) % 2))
    result = ok.Pipeline([ok.FineTune(epochs=1)]).run(
        model, data, measure=ok.Measure(latency_seconds=0, memory=False)
    )
    assert result.artifact.predict(tokens).shape == (12, 2)


def test_nothing_is_read_further_than_it_must_be():
    """A stream that would never end: binding looks at its first batch, an epoch at its steps."""
    read = []

    def endless():
        for number in range(10**9):
            read.append(number)
            assert number < 20, "the stream was read far beyond what was asked for"
            yield images(10)

    data = Data(train=endless, steps=3)
    assert data.example().shape == (10, 4, 4, 1)
    assert max(read) == 0
    split = data.bind(ONE).train
    assert len(list(split.iterate())) == 3


def test_a_function_that_gives_the_same_iterator_is_refused_unread():
    x, y = images()
    iterator = iter([(x, y), (x, y)])
    data = Data(train=lambda: iterator, steps=2)
    for use in (data.example, lambda: data.bind(ONE)):
        with pytest.raises(ok.DataError, match="same iterator"):
            use()
    assert len(list(iterator)) == 2, "somebody took from it"


@pytest.mark.parametrize("form", [*forms(), "PyDataset"])
def test_examples_are_raw_first_inputs(form):
    x, _ = images()
    given = weighted_forms()[form][0] if form == "PyDataset" else forms()[form][0]
    example = Data(train=given, steps=5).example(2)
    if form in ("arrays", "lists"):
        assert np.array_equal(example, x[:2])
    elif form in ("dataset of samples", "generator of samples"):
        assert np.array_equal(example, x[0])
    else:
        assert np.array_equal(example, x[:10])


def test_examples_keep_their_structure():
    import pandas
    import tensorflow as tf

    left, right = np.ones((6, 3), "float32"), np.zeros((6, 2), "float32")
    y = np.zeros(6)
    by_name = Data(train=({"left": left, "right": right}, y)).example()
    assert {name: part.shape for name, part in by_name.items()} == {"left": (2, 3), "right": (2, 2)}
    listed = Data(train=([left, right], y)).example()
    assert [part.shape for part in listed] == [(2, 3), (2, 2)]
    dataset = tf.data.Dataset.from_tensor_slices(((left, right), y)).batch(4)
    assert [part.shape for part in Data(train=dataset).example()] == [(4, 3), (4, 2)]
    people = pandas.DataFrame({"city": ["Ulm", "Bonn", "Ulm"], "age": [31, 52, 8]})
    example = Data(train=(people, y[:3])).example()
    assert example["age"].tolist() == [31, 52]
    assert example["city"].tolist() == ["Ulm", "Bonn"]
    assert Data(train=(people[["age"]], y[:3])).example().shape == (2, 1)
    assert Data(train=(tf.ragged.constant(ROWS), y[:4])).example().tolist() == [
        [3, 1, 2],
        [5, 0, 0],
    ]
    assert Data(calibration=left).example().shape == (2, 3)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.full(50, -1.0), "at least 0"),
        (np.zeros(50), "some above"),
        (np.full(50, np.nan), "NaN"),
        (np.ones(49), "another length"),
        (np.array(["a"] * 50), "numbers"),
    ],
)
def test_bad_weights_are_refused(weights, message):
    import tensorflow as tf

    x, y = images()
    with pytest.raises(ok.DataError, match=message):
        Data(train=(x, y, weights)).bind(ONE)
    if len(weights) == 50:
        stream = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(10)
        with pytest.raises(ok.DataError, match=message):
            Data(train=stream).bind(ONE)


def test_weights_of_a_stream_are_looked_at_batch_by_batch():
    import tensorflow as tf

    x, y = images()
    late = np.r_[np.ones(30), -2.5, np.ones(19)]
    stream = tf.data.Dataset.from_tensor_slices((x, y, late)).batch(10)
    split = Data(train=stream).bind(ONE).train
    with pytest.raises(ok.DataError, match=r"Reading `train` failed: its .*; one is -2\.5$"):
        list(split.iterate_weighted())
    with pytest.raises(ok.DataError, match=r"one is -2\.5$"):
        Data(train=stream).bind(ONE).require_validation(stratify=False)
    last = np.r_[np.zeros(49), 1.0]
    stream = tf.data.Dataset.from_tensor_slices((x, y, last)).batch(10)
    assert Data(train=stream).bind(ONE).train.steps == 5, "one that counts is enough"
    weights = {"scores": np.ones(50), "size": np.zeros(50)}
    targets = {"scores": y, "size": x.mean((1, 2, 3))}
    stream = tf.data.Dataset.from_tensor_slices((x, targets, weights)).batch(10)
    with pytest.raises(ok.DataError, match="`train` for 'size' are 0"):
        Data(train=stream).bind(OUTPUTS)


@pytest.mark.parametrize("container", [list, tuple])
@pytest.mark.parametrize("form", ["arrays", "dataset", "PyDataset"])
def test_targets_of_one_output_may_stand_in_a_list_of_one(form, container):
    import keras
    import tensorflow as tf

    x, y = images()

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 5

        def __getitem__(self, i):
            rows = slice(10 * i, 10 * i + 10)
            return container([x[rows]]), container(part[rows] for part in targets)

    def given():
        if form == "arrays":
            return x, container(targets)
        if form == "PyDataset":
            return Batches()
        return tf.data.Dataset.from_tensor_slices((x, tuple(targets))).batch(10)

    targets = [y]
    pairs = list(Data(train=given()).bind(CLASSES).train.iterate())
    assert np.array_equal(np.concatenate([b for _, b in pairs]), y)
    targets = [y, y]
    with pytest.raises(ok.DataError, match=r"one output|different lengths"):
        Data(train=given()).bind(CLASSES)


def test_dates_are_no_numbers():
    import pandas

    x, y = images()
    days = pandas.date_range("2020-01-01", periods=50)
    row = Signature((TensorInfo("row", (None, 2), "float32"),), ())
    for given, signature in (
        ((pandas.DataFrame({"a": days, "b": 1.0}), y), row),
        ((pandas.DataFrame({"age": days, "city": "Ulm"}), y), MIXED),
        ((x, pandas.Series(days)), ONE),
        ((x, y, pandas.Series(days)), ONE),
    ):
        with pytest.raises(ok.DataError, match="Turn dates and times into numbers first"):
            Data(train=given).bind(signature)


@pytest.mark.parametrize("form", ["PyDataset", "generator"])
def test_tables_in_batches(form):
    import keras
    import pandas

    people = pandas.DataFrame({"city": ["Ulm", "Bonn"] * 10, "age": range(20)})
    labels = pandas.DataFrame({"scores": ["ant", "bee"] * 10, "size": np.arange(20) / 2})
    weights = pandas.Series(np.arange(20.0))

    def batch(i):
        rows = slice(8 * i, 8 * i + 8)
        return people[rows], labels[rows], weights[rows]

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return batch(i)

    given = Batches() if form == "PyDataset" else lambda: map(batch, range(3))
    steps = None if form == "PyDataset" else 3
    outputs = (TensorInfo("scores", (None, 5), "float32"), TensorInfo("size", (None, 1), "float32"))
    data = Data(train=given, steps=steps, class_names={"scores": NAMES})
    batches = list(data.bind(Signature(MIXED.inputs, outputs)).train.iterate_weighted())
    assert [len(w) for _, _, w in batches] == [8, 8, 4]
    assert np.array_equal(np.concatenate([x["age"][:, 0] for x, _, _ in batches]), range(20))
    assert [c.decode() for x, _, _ in batches for c in x["city"]] == ["Ulm", "Bonn"] * 10
    assert np.concatenate([y["scores"] for _, y, _ in batches]).tolist() == [0, 1] * 10
    assert np.array_equal(np.concatenate([w for _, _, w in batches]), range(20))
    features = Signature((TensorInfo("row", (None, 2), "float32"),), ())
    numbers = pandas.DataFrame({"a": range(20), "b": 0.5})
    one = Data(train=lambda: iter([(numbers, weights)]), steps=1).bind(features).train
    x, y = one.head(20)
    assert np.array_equal(x, numbers.to_numpy())
    assert np.array_equal(y, range(20))
