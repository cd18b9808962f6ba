"""Every pass of optkit meets the contract; a pass without an entry here fails the suite."""

from __future__ import annotations

import pytest

import optkit as ok
from optkit import passes
from optkit.testing import check_pass, pass_contract, small_model

TINY = [
    ok.Augment("photo", rotation=5),
    ok.BNReestimate(include_frozen=True),
    ok.FineTune(epochs=1, learning_rate=1e-3, patience=1),
    ok.FirstThatMeets(
        [ok.QuantizeINT8(20), ok.QuantizeINT8(20, io="float32")],
        ok.Goals(max_size_mb=1e-6, max_accuracy_drop=0.5),
    ),
    ok.LabelSmooth("auto"),
    ok.Prune(0.6, epochs=1, exclude=("classes",)),
    ok.QuantizeAware(1, 1e-3, skip=("classes",)),
    ok.QuantizeDynamic(4),
    ok.QuantizeFloat16(),
    ok.QuantizeINT16x8(20, io="float32"),
    ok.QuantizeINT8(20, io="float32"),
    ok.QuantizeWeights(4),
    ok.SWA(epochs=2, learning_rate=1e-3, start=0.0),
    ok.TransferLearn(epochs=1, fine_tune_epochs=1),
]


@pass_contract(*TINY)
def test_contract(check):
    check()


def test_every_pass_has_an_entry():
    passes.load_all()
    own = {
        kind
        for key, kind in ok.Pass.registry.items()
        if key.startswith("optkit.passes.") and not kind.__name__.startswith("_")
    }
    assert own == {type(item) for item in TINY}


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
