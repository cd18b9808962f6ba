"""`QuantizeAware`: trains a model while its values are rounded as a full-integer file rounds them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from optkit import _validate
from optkit.artifact import Artifact, KerasArtifact, TFLiteArtifact
from optkit.base import TrainPass
from optkit.context import Context, Setting
from optkit.errors import OptkitError, PipelineError, first_line
from optkit.learned import LearnedRanges
from optkit.measuring.accuracy import score
from optkit.models import signature
from optkit.quantize import Scheme, calibrate, float_file, quantize
from optkit.quantize.aware import Twin, addressed, make_plan, make_twin
from optkit.quantize.judge import relative_error
from optkit.quantize.sources import CalibrationSamples, leaves_of
from optkit.quantize.trained import learned_bits, with_learned
from optkit.recipe import Recipe
from optkit.study import Study
from optkit.training import check_learning_rate, check_optimizer

__all__ = ["QuantizeAware"]

_CALIBRATED = 200
_COMPARED = 512


class QuantizeAware(TrainPass):
    """Quantization-aware training: the model learns to live with the rounding of an integer file.

    Use it before `QuantizeINT8` where quantizing after training alone costs too much accuracy, as
    it does with 4-bit weights and with small models. The model is trained as a twin whose weights
    and activations are rounded in every step, while the weights behind them stay float; what comes
    out is the model with these weights, and the ranges that its activations were rounded to, which
    `QuantizeINT8` takes over. Zeros of `Prune` stay zeros.

    Rounded are dense, convolutional and embedding layers, and what stands between them. Layers that
    tensorflow-model-optimization cannot round (recurrent and attention layers, for example) are
    trained along in float and listed in the row.

    Args:
        epochs: Epochs at most, at least 1. A trained model needs few.
        learning_rate: Peak learning rate, above 0; ``"auto"`` to look for one before the training
            begins (see `find_learning_rate`).
        weight_bits: Bits that weights are rounded to: 8, or 4, which dense and ordinary
            convolutional layers can have; others then stay at 8.
        skip: Names of layers, or of classes of layers, at which nothing is rounded. A layer of a
            model within the model is called ``"inner/layer"``, or by its own name.
        optimizer: As in `FineTune`.
        patience: Epochs without a better validation metric, measured with rounded values, after
            which training stops with the best weights; ``None`` trains all epochs and keeps the
            last ones.

    Example:
        >>> import optkit as ok
        >>> from optkit.testing import digits, small_model
        >>> pipeline = ok.Pipeline([ok.QuantizeAware(epochs=1, learning_rate=1e-3)])
        >>> result = pipeline.run(small_model(), digits(samples=400))
        >>> result.report.rows[0].notes[0]
        'rounded in training: weights of 2 layers to 8 bits, outputs of 3 layers to 8 bits'

    References:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", 2018.
    """

    def __init__(
        self,
        epochs: int = 3,
        learning_rate: float | str = 1e-4,
        *,
        weight_bits: int = 8,
        skip: list[str] | tuple[str, ...] = (),
        optimizer: Any = "adamw",
        patience: int | None = None,
    ):
        _validate.integer("epochs", epochs, minimum=1)
        check_learning_rate("learning_rate", learning_rate)
        if _validate.integer("weight_bits", weight_bits, minimum=1) not in (4, 8):
            raise PipelineError(f"`weight_bits` must be 8 or 4. Received: {weight_bits}.")
        _validate.texts("skip", skip)
        if optimizer not in (None, "adamw"):
            check_optimizer("optimizer", optimizer)
        _validate.optional(_validate.integer, "patience", patience, minimum=1)
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.weight_bits = weight_bits
        self.skip = skip
        self.optimizer = optimizer
        self.patience = patience

    @property
    def needs(self) -> tuple[str, ...]:
        """Validation only for early stopping."""
        return ("train",) if self.patience is None else ("train", "validation")

    def check(self, setting: Setting) -> None:
        """Refuses 16-bit models, unknown layer names, and models with nothing to round."""
        setting.require_float32()
        setting.require_trainable()
        if setting.model is not None:
            make_plan(setting.model, addressed(self.skip, setting.model, "skip"), self.weight_bits)

    def train(self, model: Any, recipe: Recipe, context: Context) -> Any:
        """Trains the twin and takes its weights."""
        split = context.data.train
        assert split is not None  # `needs` saw to it
        if recipe.precision is not None:
            recipe = replace(recipe, precision=None)
            context.note("trained in float32: in 16 bits, values would be rounded twice")
        twin = make_twin(model, addressed(self.skip, model, "skip"), self.weight_bits)
        for note in twin.plan.describe():
            context.note(note)
        twin.observe(
            split, context.derive_seed("observe"), self.epochs * context.steps(recipe).batches
        )
        trained = twin
        if context.crew.strategy is not None:
            # Keras cannot copy what rounds: the twin is made once more for all replicas.
            with context.crew.scope():
                trained = make_twin(model, addressed(self.skip, model, "skip"), self.weight_bits)
            trained.take(twin)
        history = context.fit(
            trained.model,
            recipe,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            optimizer=self.optimizer,
            patience=self.patience,
            callbacks=[trained.keep(model, context.constraints.values())],
        )
        if trained is not twin:
            twin.take(trained)
        # Statistics that follow the batches slowly do not fit weights that have just moved.
        context.reestimate_batch_norm(twin.model)
        twin.hand_back()
        learned = LearnedRanges(twin.learned(), twin.plan.weight_bits)
        if self.patience is not None and history.best_epoch < self.epochs:
            context.note(f"kept epoch {history.best_epoch} of {history.epochs}")
        compare(model, twin, learned, context)
        context.learn(learned)
        return model


def compare(model: Any, twin: Twin, learned: LearnedRanges, context: Context) -> None:
    """Shows what the model is worth as it is, as its twin, and as a full-integer file.

    Args:
        model: The trained model.
        twin: Its twin.
        learned: The ranges that the twin rounds to.
        context: That of the pass.
    """
    split = context.data.validation
    if split is None:
        context.note("no `validation` split to compare the rounded model with a file on")
        return
    x, _ = split.head(_COMPARED)
    artifacts: dict[str, Artifact] = {
        "float": KerasArtifact(model),
        "rounded in training": KerasArtifact(twin.model),
    }
    try:
        artifacts["full-integer file"] = integer_file(model, learned, context)
    except OptkitError as error:
        context.note(f"no full-integer file could be made to compare with: {first_line(error)}")
    rounded = _outputs(artifacts["rounded in training"], x)
    name = context.metric.name.replace("_", " ")
    rows = []
    for kind, artifact in artifacts.items():
        found = score(artifact, split, context.task, context.metric).mean
        pairs = zip(rounded, _outputs(artifact, x), strict=True)
        rows.append((kind, found, float(np.mean([relative_error(*pair) for pair in pairs]))))
    context.show(
        Study(
            "What rounding does",
            ("model", name, "difference"),
            tuple(rows),
            notes=(
                f"{name} on validation; difference: of outputs from those in training, over their spread",
            ),
        )
    )
    said = [f"{kind} {found:.4f}" for kind, found, _ in rows]
    context.note(f"{name} on validation: {', '.join(said)}")
    if len(rows) == len(artifacts) == 3:
        context.note(
            f"the file's outputs differ from those in training by {100 * rows[-1][2]:.2g} % of "
            "their spread"
        )


def integer_file(model: Any, learned: LearnedRanges, context: Context) -> TFLiteArtifact:
    """The full-integer file of a model, with learned ranges where there are any.

    Args:
        model: A built tf_keras model.
        learned: The ranges that it was trained with.
        context: That of the pass, for samples to measure the other ranges on.

    Raises:
        OptkitError: If it does not convert.
    """
    split = context.data.train
    assert split is not None  # `needs` saw to it
    described = signature(model)
    sample = leaves_of(next(split.single_inputs(1, 0)), described)
    shapes = {
        info.name: leaf.shape[1:]
        for info, leaf in zip(described.inputs, sample, strict=True)
        if None in info.shape[1:]
    }
    file = float_file(model, shapes)
    if file.has_control_flow:
        raise OptkitError("The file holds loops, which cannot be calibrated.")
    samples = CalibrationSamples(
        split, described, _CALIBRATED, context.derive_seed("calibration"), shapes
    )
    measured = calibrate(file, file.behind(samples))
    content = quantize(
        file,
        with_learned(file, measured, learned),
        scheme=Scheme(layer_weights=learned_bits(file, learned)),
    )
    return TFLiteArtifact(file.finish(content), file.front)


def _outputs(artifact: Artifact, x: Any) -> list[np.ndarray]:
    found = artifact.predict(x)
    return list(found.values()) if isinstance(found, dict) else [found]
