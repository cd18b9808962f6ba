"""`TransferLearn`: a new head on a backbone that already knows something."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from optkit import _validate
from optkit.backbones import (
    Backbone,
    Transfer,
    build_transfer,
    check_preprocessing,
    preprocessing_of,
)
from optkit.base import TrainPass
from optkit.collapse import CollapseGuard, put_back, snapshot
from optkit.context import Context, Setting
from optkit.data import Split
from optkit.errors import OptkitError
from optkit.models import batch_norms
from optkit.recipe import Recipe
from optkit.training import History, check_learning_rate, check_optimizer
from optkit.unfreezing import (
    Nearness,
    blocks_of,
    freeze,
    layers_to_unfreeze,
    measure_nearness,
    rate_factors,
    stages_of,
    tunable,
    unfreeze,
)

__all__ = ["TransferLearn", "preprocessing_of"]


class TransferLearn(TrainPass):
    """Puts a new head on a backbone, trains the head, then the last layers of the backbone.

    Use it where there are few samples and a model that learned something related from many. Stage
    one trains the head on the frozen backbone, stage two unfreezes the last layers and trains them
    at a low learning rate. Batch normalization of the backbone stays in inference mode throughout.
    What the backbone needs done to pixels (scaling, resizing, gray to colour) is built into the
    model, so that the deployed file takes the same raw input as the model that came in. The result
    is one flat model; the layers that stage two left frozen stay frozen in later passes.

    Where the first steps of stage two destroy what the model knew, it is stopped, the weights of
    before are kept, and the row says so.

    Args:
        backbone: Name of a model in ``tf_keras.applications``, such as ``"MobileNetV2"``; the path of
            a saved model that `load_model` reads; a Keras model, of tf_keras or of Keras 3, built
            with the functional API; or ``None`` for the model that comes in. Of images, text, token
            numbers or tables, as the data are.
            A classifier's last dense layer is cut off. A backbone that gives maps or sequences gets
            global average pooling, which leaves out what a mask leaves out; one that gives vectors
            does not.
        epochs: Epochs of stage one, at least 1.
        fine_tune_epochs: Epochs of stage two; 0 leaves it out.
        unfreeze: Number of last layers with weights, batch normalization not counted, that stage
            two trains, at least 1; or ``"auto"``: by the number of samples and by how near the task
            is to the backbone's, which a linear model on its frozen features tells. See
            `optkit.unfreezing.layers_to_unfreeze` for the rule.
        learning_rate: Learning rate of stage one, above 0; ``"auto"`` finds one.
        fine_tune_learning_rate: Learning rate of stage two, above 0; ``"auto"`` finds one.
        dropout: Dropout before the head's dense layer, in ``[0, 1)``.
        weights: For a name: ``"imagenet"`` (downloaded by Keras), a file of weights, or ``None``
            for random ones.
        preprocessing: What the backbone expects of pixels: ``"tf"`` (-1 to 1), ``"torch"``
            (ImageNet mean and deviation), ``"caffe"`` (blue first, mean subtracted), ``None`` for
            the values as they come, or ``"auto"``: by name, else as they come. Where the first batch
            normalization of the backbone remembers other values than it would be given, it is
            refused before anything trains.
        input_size: Height and width to resize images to, also where the backbone was built for
            another size, as far as its layers allow; ``None`` for the backbone's own size if it has
            one, else the data's, at least the smallest that the application allows, and of
            ImageNet weights of a MobileNet the next size that they were trained at.
        alpha: Width of a MobileNet given by name, 1 for the published size; ``None`` for that.
        gradual: Whether stage two opens the layers from the last block downwards, block by block
            over its epochs, instead of all at once. Each step of it is a training of its own.
        discriminative: What a block's learning rate is of that of the block above it, above 0 and
            at most 1; the head has the full rate. ``None`` for one rate. See
            `optkit.unfreezing.blocks_of` for what a block is.
        optimizer: As in `FineTune`; ``None`` for the recipe's, else the compiled class, else AdamW.
        patience: Epochs of a stage without a better validation metric after which it stops, best
            weights restored; a stage two without any better epoch is undone. ``None`` trains all
            epochs and keeps the last weights.

    Example:
        >>> import optkit as ok
        >>> from optkit.testing import digits, small_model
        >>> backbone = small_model()
        >>> pipeline = ok.Pipeline([ok.TransferLearn(backbone, epochs=1, fine_tune_epochs=1)])
        >>> result = pipeline.run(small_model(), digits(samples=200))
        >>> [layer.name for layer in result.model.layers][-2:]
        ['head_dropout', 'head']

    References:
        Yosinski et al., "How transferable are features in deep neural networks?", 2014.
        Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification", 2018.
        Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform
        Out-of-Distribution", 2022.
    """

    def __init__(
        self,
        backbone: Any = None,
        epochs: int = 5,
        *,
        fine_tune_epochs: int = 3,
        unfreeze: int | str = "auto",
        learning_rate: float | str = 1e-3,
        fine_tune_learning_rate: float | str = 1e-5,
        dropout: float = 0.2,
        weights: str | os.PathLike[str] | None = "imagenet",
        preprocessing: str | None = "auto",
        input_size: int | None = None,
        alpha: float | None = None,
        gradual: bool = False,
        discriminative: float | None = None,
        optimizer: Any = None,
        patience: int | None = 3,
    ):
        self._backbone = Backbone(backbone, weights, preprocessing, input_size, alpha)
        _validate.integer("epochs", epochs, minimum=1)
        _validate.integer("fine_tune_epochs", fine_tune_epochs, minimum=0)
        if isinstance(unfreeze, str):
            _validate.one_of("unfreeze", unfreeze, ("auto",))
        else:
            _validate.integer("unfreeze", unfreeze, minimum=1)
        check_learning_rate("learning_rate", learning_rate)
        check_learning_rate("fine_tune_learning_rate", fine_tune_learning_rate)
        _validate.number("dropout", dropout, minimum=0, maximum=1, exclusive="max")
        _validate.boolean("gradual", gradual)
        _validate.optional(
            _validate.number,
            "discriminative",
            discriminative,
            minimum=0,
            maximum=1,
            exclusive="min",
        )
        check_optimizer("optimizer", optimizer)
        _validate.optional(_validate.integer, "patience", patience, minimum=1)
        self.backbone = backbone
        self.epochs = epochs
        self.fine_tune_epochs = fine_tune_epochs
        self.unfreeze = unfreeze
        self.learning_rate = learning_rate
        self.fine_tune_learning_rate = fine_tune_learning_rate
        self.dropout = dropout
        self.weights = weights
        self.preprocessing = preprocessing
        self.input_size = input_size
        self.alpha = alpha
        self.gradual = gradual
        self.discriminative = discriminative
        self.optimizer = optimizer
        self.patience = patience

    @property
    def needs(self) -> tuple[str, ...]:
        """Validation only for early stopping."""
        return ("train",) if self.patience is None else ("train", "validation")

    @property
    def replaces_model(self) -> bool:
        """Whether the backbone is another than the model that comes in."""
        return self.backbone is not None

    def check(self, setting: Setting) -> Any:
        """Builds the model once, so that whatever cannot fit is said before anything trains."""
        if setting.model is None or setting.data.train is None:
            return None
        transfer = self._build(setting.model, setting.data.train, setting.task)
        check_preprocessing(transfer, self._backbone, setting.data.train)
        freeze(transfer.body)
        if self.fine_tune_epochs:
            # As many as it may be: which of them, is known only once the features are there.
            unfreeze(self._last(transfer, self._number(setting.data.train, transfer, "near")))
        return transfer.model

    def train(self, model: Any, recipe: Recipe, context: Context) -> Any:
        """Builds the model and trains it in two stages."""
        split = context.data.train
        if split is None:
            raise OptkitError("TransferLearn needs a `train` split.")
        transfer = self._build(model, split, context.task)
        told = check_preprocessing(transfer, self._backbone, split)
        for note in (*transfer.notes, *([told] if told else [])):
            context.note(note)
        freeze(transfer.body)
        _note_batch_norms(transfer, context)
        chosen, measured = self._choose(transfer, context)
        guard = CollapseGuard(context.task, context.data.validation or split, context.crew)
        history = self._fit(transfer, recipe, context, self.epochs, self.learning_rate)
        _note_head(transfer.model, guard, measured, context)
        if chosen:
            self._fine_tune(transfer, chosen, recipe, context, guard=guard, before=history)
        return transfer.model

    def _build(self, model: Any, split: Split, task: Any) -> Transfer:
        return build_transfer(model, self._backbone, split, task, dropout=self.dropout)

    def _number(self, split: Split, transfer: Transfer, degree: str) -> int:
        """How many layers to train, as given or by the rule."""
        total = len(tunable(transfer.body))
        if isinstance(self.unfreeze, str):
            return layers_to_unfreeze(_count(split), degree, total)
        return min(self.unfreeze, total)

    def _last(self, transfer: Transfer, number: int) -> list[Any]:
        layers = tunable(transfer.body)
        return layers[len(layers) - number :]

    def _choose(self, transfer: Transfer, context: Context) -> tuple[list[Any], Nearness | None]:
        """The layers that stage two will train, and what was measured for that."""
        split = context.data.train
        if not self.fine_tune_epochs or split is None:
            return [], None
        measured = None
        degree = "near"
        if self.unfreeze == "auto":
            measured = measure_nearness(
                transfer.model,
                transfer.features,
                tunable(transfer.body),
                split,
                context.task,
                seed=context.derive_seed("probe"),
            )
            degree = context.crew.same(measured.degree)  # other machines, other last digits
        chosen = self._last(transfer, self._number(split, transfer, degree))
        if measured is not None:
            what = f"the last {_layers(len(chosen))}" if chosen else "the head alone"
            context.note(
                f"unfreeze='auto' chose {what}: {_count(split)} samples, and a task "
                f"{_HOW_NEAR[degree]} the backbone's ({measured.reason})"
            )
        return chosen, measured

    def _fit(
        self,
        transfer: Transfer,
        recipe: Recipe,
        context: Context,
        epochs: int,
        learning_rate: Any,
        **settings: Any,
    ) -> History:
        return context.fit(
            transfer.model,
            recipe,
            epochs=epochs,
            learning_rate=learning_rate,
            optimizer=self.optimizer,
            patience=self.patience,
            **settings,
        )

    def _fine_tune(
        self,
        transfer: Transfer,
        chosen: list[Any],
        recipe: Recipe,
        context: Context,
        *,
        guard: CollapseGuard,
        before: History,
    ) -> None:
        """Stage two: trains the chosen layers, at once or block by block, guarded."""
        model = transfer.model
        blocks = blocks_of(model, chosen)
        stages = [(chosen, self.fine_tune_epochs)]
        if self.gradual:
            stages = stages_of(blocks, self.fine_tune_epochs)
        opened: list[Any] = []
        best = (_score(before, context), snapshot(model))
        for layers, epochs in stages:
            unfreeze(layers)
            opened += layers
            factors = rate_factors(model, blocks, self.discriminative or 1.0)
            try:
                history = self._fit(
                    transfer,
                    recipe,
                    context,
                    epochs,
                    self.fine_tune_learning_rate,
                    rate_factors=factors if self.discriminative else None,
                    callbacks=[guard.callback()],
                )
            except OptkitError:
                # A collapse often ends in a loss that is not finite; it was stopped before.
                if guard.collapse is None:
                    raise
            if guard.collapse is not None:
                guard.restore(model)
                break
            score = _score(history, context)
            if score is None or best[0] is None or score > best[0]:
                best = (score, snapshot(model))
        context.note(self._told(opened, blocks, stages))
        if guard.collapse is not None:
            context.note(_told_of_collapse(guard, self.fine_tune_learning_rate))
            unfreeze(chosen)  # what later passes may train does not depend on it
        elif best[0] is not None and score is not None and score < best[0]:
            put_back(model, best[1])
            kept = "stage one" if best[0] == _score(before, context) else "an earlier step of it"
            context.note(
                f"stage two ended worse on `validation` than it had been: the weights of {kept} are "
                "kept. Lower `fine_tune_learning_rate`, or leave it out with `fine_tune_epochs=0`"
            )

    def _told(
        self,
        opened: Sequence[Any],
        blocks: Sequence[Sequence[Any]],
        stages: Sequence[tuple[Sequence[Any], int]],
    ) -> str:
        text = f"stage two trained the last {_layers(len(opened))} of the backbone"
        if self.gradual:
            steps = len(stages)
            text += f", in {steps} step{'s' * (steps != 1)} from the last block downwards"
        if self.discriminative:
            last, first = self.discriminative, self.discriminative ** len(blocks)
            text += (
                f", {len(blocks)} block{'s' * (len(blocks) != 1)} at {last:g} of the head's learning "
                f"rate in the last one to {first:.2g} of it in the first"
            )
        return text


_HOW_NEAR = {"near": "near", "between": "neither near nor far from", "far": "far from"}


def _layers(number: int) -> str:
    return f"{number} layer{'s' * (number != 1)}"


def _count(split: Split) -> int:
    return split.samples if split.samples is not None else split.steps * split.batch_size


def _note_batch_norms(transfer: Transfer, context: Context) -> None:
    inside = {id(part) for layer in transfer.body for part in layer._flatten_layers()}
    found = [layer for layer in batch_norms(transfer.model) if id(layer) in inside]
    if found:
        plural = "s stay" if len(found) != 1 else " stays"
        context.note(
            f"{len(found)} batch normalization{plural} in inference mode, in later passes too"
        )


def _note_head(
    model: Any, guard: CollapseGuard, measured: Nearness | None, context: Context
) -> None:
    """Says where the head stayed far behind what a linear model made of the same features."""
    if measured is None or measured.score is None or not context.task.is_classification:
        return
    figure, error = guard.figure(model)
    if figure + 3 * error < measured.score:
        context.note(
            f"stage one's head gets {figure:.3f} of `{guard.split.name}` right, a linear model on "
            f"the same features {measured.score:.3f} in cross-validation: train it for more "
            "`epochs`, or at another `learning_rate`"
        )


def _score(history: History, context: Context) -> tuple[float, float] | None:
    """How good the weights are that a training kept, on validation; ``None`` if it did not look."""
    curves, place = history.curves, history.best_epoch - 1
    if "val_loss" not in curves:
        return None
    metric = curves.get("val_metric")
    figure = context.metric.sign() * metric[place] if metric else 0.0
    return figure, -curves["val_loss"][place]


def _told_of_collapse(guard: CollapseGuard, rate: Any) -> str:
    advice = (
        f"Try fine_tune_learning_rate={rate / 10:g}"
        if not isinstance(rate, str)
        else ("Give `fine_tune_learning_rate` a number, such as 1e-5")
    )
    return (
        f"stage two was stopped: {guard.collapse}. The learning rate destroys what the backbone "
        f"knows; the best weights from before are kept. {advice}"
    )
