"""Every pass of optkit meets the contract; a pass without an entry here fails the suite."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import optkit as ok
from optkit import passes
from optkit.testing import check_pass, pass_contract, small_model

TINY = [
    ok.AuditData(checks=("leakage", "balance"), near=0.2, samples=60),
    ok.Augment("photo", rotation=5),
    ok.BNReestimate(include_frozen=True),
    ok.CutMix(0.5, mixup_alpha=0.2, switch_probability=0.4),
    ok.CompileXLA(training=True, inference=True),
    ok.FineTune(epochs=1, learning_rate=1e-3, patience=1),
    ok.FirstThatMeets(
        [ok.QuantizeINT8(20), ok.QuantizeINT8(20, io="float32")],
        ok.Goals(max_size_mb=1e-6, max_accuracy_drop=0.5),
    ),
    ok.LRSchedule("cosine", warmup=0.2, end=0.1),
    ok.GradientAccumulation(2),
    ok.LabelSmooth("auto"),
    ok.MixUp(0.4, probability=0.8),
    ok.MixedPrecision("bfloat16"),
    ok.Prune(0.6, epochs=1, exclude=("classes",)),
    ok.QuantizeAware(1, 1e-3, skip=("classes",)),
    ok.QuantizeDynamic(4),
    ok.QuantizeFloat16(),
    ok.QuantizeINT16x8(20, io="float32"),
    ok.QuantizeINT8(20, io="float32"),
    ok.QuantizeWeights(4),
    ok.Rebalance("over", over_ratio=0.9),
    ok.SWA(epochs=2, learning_rate=1e-3, start=0.0),
    ok.TransferLearn(epochs=1, fine_tune_epochs=1),
]

#: Those that refuse images, on what they take.
TINY_TEXT = [
    ok.AugmentText(synonyms={"dull": ["boring"], "fine": ["good", "great"]}, share=1.0, swap=0.3),
]


@pass_contract(*TINY)
def test_contract(check):
    check()


def _texts() -> ok.Data:
    """Sentences of a few words that are good or bad ones."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 120)
    words = np.where(label[:, None] == 1, ["fine", "great"], ["dull", "boring"])
    filler = rng.choice(["a", "film", "of", "that", "year", "not"], (120, 6))
    texts = np.array([" ".join(rng.permutation(row)) for row in np.hstack([words, filler])])
    parts = {"train": slice(80), "validation": slice(80, 100), "test": slice(100, None)}
    return ok.Data(**{name: (texts[rows], label[rows]) for name, rows in parts.items()})


def _text_model() -> Any:
    import tf_keras

    layers = tf_keras.layers
    tf_keras.utils.set_random_seed(0)
    vectorize = layers.TextVectorization(output_sequence_length=8, name="vectorize")
    vectorize.adapt(_texts().train[0])
    model = tf_keras.Sequential(
        [
            tf_keras.Input((), dtype="string", name="text"),
            vectorize,
            layers.Embedding(vectorize.vocabulary_size(), 4, name="embedding"),
            layers.GlobalAveragePooling1D(name="pool"),
            layers.Dense(2, activation="softmax", name="classes"),
        ]
    )
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@pytest.mark.parametrize("item", TINY_TEXT, ids=lambda item: type(item).__name__)
def test_contract_on_texts(item):
    check_pass(item, model=_text_model(), data=_texts())


def test_every_pass_has_an_entry():
    passes.load_all()
    own = {
        kind
        for key, kind in ok.Pass.registry.items()
        if key.startswith("optkit.passes.") and not kind.__name__.startswith("_")
    }
    assert own == {type(item) for item in [*TINY, *TINY_TEXT]}


class _Stateful(ok.RewritePass):
    """Keeps count of its runs, and so does not give the same twice."""

    def __init__(self):
        self.runs = 0

    def rewrite(self, model, context):
        _Stateful.total = getattr(_Stateful, "total", 0) + 1
        model.layers[-1].bias.assign_add([_Stateful.total] * 10)
        return model


class _Forgetful(ok.RewritePass):
    """Stores its argument under another name."""

    def __init__(self, strength=1.0):
        self.power = strength

    def rewrite(self, model, context):
        return model


class _Liar(ok.ConvertPass):
    """Declares a flatbuffer and gives a Keras model."""

    produces = ok.TFLiteArtifact

    def convert(self, artifact, context):
        return artifact


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (_Stateful(), "two runs with one seed"),
        (_Forgetful(), "'strength' is not stored"),
    ],
)
def test_the_contract_finds_what_breaks_it(bad, found):
    with pytest.raises(AssertionError, match=found):
        check_pass(bad)


def test_a_false_declaration_is_found(data):
    with pytest.raises(ok.PassError, match="declares TFLiteArtifact and gave KerasArtifact"):
        ok.Pipeline([_Liar()]).run(small_model(), data)
