"""`TransferLearn`: a new head on a backbone that already knows something."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from optkit import _validate
from optkit.artifact import SavedModelArtifact, load_model
from optkit.base import TrainPass
from optkit.context import Context, Setting
from optkit.errors import ArgumentTypeError, ModelError, PipelineError
from optkit.images import ValueRange, value_range
from optkit.models import (
    check_treatable,
    clone,
    final_activation,
    flat_copy,
    is_batch_norm,
    signature,
)
from optkit.recipe import Recipe
from optkit.runtime import tf_keras
from optkit.task import Task
from optkit.training import check_optimizer
from optkit.translate import is_keras3, to_tf_keras

__all__ = ["TransferLearn", "preprocessing_of"]

#: What the applications of Keras expect of pixels that come in as 0 to 255; families that are not
#: listed have it built in.
_PREPROCESSING = {
    "tf": (
        *("MobileNet", "Inception", "NASNet", "Xception"),
        *("ResNet50V2", "ResNet101V2", "ResNet152V2"),
    ),
    "caffe": ("VGG", "ResNet50", "ResNet101", "ResNet152"),
    "torch": ("DenseNet",),
}
_BUILT_IN = ("EfficientNet", "ConvNeXt", "MobileNetV3", "RegNet", "ResNetRS")
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
_CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
_FILE_SUFFIXES = (".keras", ".h5", ".hdf5")


def preprocessing_of(application: str) -> str | None:
    """The kind of preprocessing that an application of Keras expects; ``None`` if it is built in.

    >>> preprocessing_of("MobileNetV2"), preprocessing_of("VGG16"), preprocessing_of("ResNet50V2")
    ('tf', 'caffe', 'tf')
    >>> preprocessing_of("MobileNetV3Small") is None
    True
    """
    if application.startswith(_BUILT_IN):
        return None
    return next(
        (kind for kind, names in _PREPROCESSING.items() if application.startswith(names)), None
    )


class TransferLearn(TrainPass):
    """Puts a new head on a backbone, trains the head, then the last layers of the backbone.

    Use it where there are few samples and a model that learned something related from many. Stage
    one trains the head on the frozen backbone, stage two unfreezes the last layers and trains them
    at a low learning rate. Batch normalization of the backbone stays in inference mode throughout.
    What the backbone needs done to pixels (scaling, resizing, gray to colour) is built into the
    model, so that the deployed file takes the same raw input as the model that came in. The result
    is one flat model; the layers that stage two left frozen stay frozen in later passes.

    Args:
        backbone: Name of a model in ``tf_keras.applications``, such as ``"MobileNetV2"``; the path of
            a saved model that `load_model` reads; a Keras model, of tf_keras or of Keras 3, built
            with the functional API; or ``None`` for the model that comes in.
            A classifier's last dense layer is cut off. A backbone that gives maps gets global
            average pooling, one that gives vectors does not.
        epochs: Epochs of stage one, at least 1.
        fine_tune_epochs: Epochs of stage two; 0 leaves it out.
        unfreeze: Number of last layers with weights, batch normalization not counted, that stage
            two trains; at least 1.
        learning_rate: Learning rate of stage one, above 0.
        fine_tune_learning_rate: Learning rate of stage two, above 0.
        dropout: Dropout before the head's dense layer, in ``[0, 1)``.
        weights: For a name: ``"imagenet"`` (downloaded by Keras), a file of weights, or ``None``
            for random ones.
        preprocessing: What the backbone expects of pixels: ``"tf"`` (-1 to 1), ``"torch"``
            (ImageNet mean and deviation), ``"caffe"`` (blue first, mean subtracted), ``None`` for
            the values as they come, or ``"auto"``: by name, else as they come.
        input_size: Height and width to resize images to, also where the backbone was built for
            another size, as far as its layers allow; ``None`` for the backbone's own size if it has
            one, else the data's, at least the smallest that the application allows.
        optimizer: As in `FineTune`; ``None`` for the recipe's, else the compiled class, else AdamW.
        patience: Epochs of a stage without a better validation metric after which it stops, best
            weights restored; ``None`` trains all epochs and keeps the last weights.

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
    """

    def __init__(
        self,
        backbone: Any = None,
        epochs: int = 5,
        *,
        fine_tune_epochs: int = 3,
        unfreeze: int = 20,
        learning_rate: float = 1e-3,
        fine_tune_learning_rate: float = 1e-5,
        dropout: float = 0.2,
        weights: str | os.PathLike[str] | None = "imagenet",
        preprocessing: str | None = "auto",
        input_size: int | None = None,
        optimizer: Any = None,
        patience: int | None = 3,
    ):
        _check_backbone(backbone)
        _validate.integer("epochs", epochs, minimum=1)
        _validate.integer("fine_tune_epochs", fine_tune_epochs, minimum=0)
        _validate.integer("unfreeze", unfreeze, minimum=1)
        _validate.number("learning_rate", learning_rate, minimum=0, exclusive="min")
        _validate.number(
            "fine_tune_learning_rate", fine_tune_learning_rate, minimum=0, exclusive="min"
        )
        _validate.number("dropout", dropout, minimum=0, maximum=1, exclusive="max")
        if weights is not None and not isinstance(weights, str | os.PathLike):
            raise ArgumentTypeError(
                f"`weights` must be 'imagenet', a file or None. Received: {weights!r}."
            )
        if preprocessing is not None:
            _validate.one_of("preprocessing", preprocessing, ("auto", "tf", "torch", "caffe"))
        _validate.optional(_validate.integer, "input_size", input_size, minimum=1)
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
        if setting.model is None:
            return None
        built, body, _ = self._build(setting.model, setting.data.train, setting.task)
        _freeze(body)
        if self.fine_tune_epochs:
            self._thaw(body)
        return built

    def train(self, model: Any, recipe: Recipe, context: Context) -> Any:
        """Builds the model and trains it in two stages."""
        built, body, notes = self._build(model, context.data.train, context.task)
        for note in notes:
            context.note(note)
        _freeze(body)
        context.fit(
            built,
            recipe,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            optimizer=self.optimizer,
            patience=self.patience,
        )
        if self.fine_tune_epochs:
            thawed = self._thaw(body)
            plural = "s" * (len(thawed) != 1)
            context.note(f"stage two trained the last {len(thawed)} layer{plural} of the backbone")
            context.fit(
                built,
                recipe,
                epochs=self.fine_tune_epochs,
                learning_rate=self.fine_tune_learning_rate,
                optimizer=self.optimizer,
                patience=self.patience,
            )
        return built

    def _thaw(self, body: list[Any]) -> list[Any]:
        """Makes the last layers of the backbone trainable, batch normalization left out."""
        thawed = [layer for layer in body if layer.weights and not is_batch_norm(layer)]
        for layer in thawed[-self.unfreeze :]:
            layer.trainable = True
        return thawed[-self.unfreeze :]

    def _build(self, incoming: Any, split: Any, task: Task) -> tuple[Any, list[Any], list[str]]:
        """The flat model with its new head, the layers of the backbone, and what to say of it."""
        keras = tf_keras()
        described = signature(incoming)
        if len(described.outputs) != 1:
            names = ", ".join(info.name for info in described.outputs)
            raise PipelineError(
                "TransferLearn puts one new head on a backbone, and the model has "
                f"{len(described.outputs)} outputs ({names}). Leave it out, or make a model of one "
                "output: `Model(model.inputs, model.outputs[0])`."
            )
        output = described.outputs[0].shape
        if len(output) != 2:
            raise PipelineError(
                "TransferLearn predicts one vector a sample, and the model's output has shape "
                f"{output}. Leave it out."
            )
        notes: list[str] = []
        inputs = [
            keras.Input(info.shape[1:], name=info.name, dtype=info.dtype)
            for info in described.inputs
        ]
        if self.backbone is None:
            features, body = flat_copy(incoming, inputs)
            classifier = True
        else:
            if len(inputs) != 1:
                raise PipelineError(
                    f"A backbone takes one input, and the model has {len(inputs)}. Use "
                    "`TransferLearn()` to transfer the model itself."
                )
            features, body, classifier = self._attach_backbone(inputs[0], split, notes)
        if classifier:
            features, cut = _before_classifier(features)
            notes.append(f"cut off the classifier: {', '.join(cut)}")
        kept = {layer.name for layer in keras.Model(inputs, features).layers}
        outputs = self._head(features, task, incoming, kept)
        # A clone, as the layers of the backbone still hang on the graph they came from, too.
        built = clone(keras.Model(inputs, outputs, name=incoming.name))
        return built, [built.get_layer(layer.name) for layer in body if layer.name in kept], notes

    def _attach_backbone(
        self, tensor: Any, split: Any, notes: list[str]
    ) -> tuple[Any, list[Any], bool]:
        backbone, kind = self._backbone_for(tuple(tensor.shape[1:]))
        wanted = signature(backbone).inputs[0].shape[1:]
        if len(wanted) == 3 and len(tensor.shape) == 4:
            taken = {layer.name for layer in backbone.layers}
            tensor = self._prepare_images(
                tensor, wanted, kind, split=split, notes=notes, taken=taken
            )
        got = tuple(tensor.shape[1:])
        same_rank = len(wanted) == len(got)
        if self.input_size and same_rank:
            wanted = (*got[:2], *wanted[2:])  # convolutions run at other sizes than built for
        if not same_rank or any(
            None not in (a, b) and a != b for a, b in zip(wanted, got, strict=True)
        ):
            raise PipelineError(
                f"The backbone takes inputs of shape {wanted}, and the data have shape {got}."
            )
        try:
            features, body = flat_copy(backbone, [tensor])
        except ValueError as error:
            raise PipelineError(
                f"The backbone {backbone.name!r} does not run on inputs of shape {got}: {error}"
            ) from error
        classifier = final_activation(backbone) in ("softmax", "sigmoid")
        return features, list(body), classifier

    def _backbone_for(self, shape: tuple[int | None, ...]) -> tuple[Any, str | None]:
        """The backbone model, and the preprocessing that belongs to it."""
        chosen = None if self.preprocessing == "auto" else self.preprocessing
        if _is_application(self.backbone):
            if self.preprocessing == "auto":
                chosen = preprocessing_of(self.backbone)
            elif self.preprocessing is not None and preprocessing_of(self.backbone) is None:
                raise PipelineError(
                    f"{self.backbone} has its preprocessing built in. Leave `preprocessing` as it is."
                )
            return self._application(shape), chosen
        if isinstance(self.backbone, str | os.PathLike):
            model = _load_backbone(Path(self.backbone))
        else:
            model = self.backbone
        if is_keras3(model):
            model = to_tf_keras(model)
        check_treatable(model)
        for side, tensors in (("inputs", model.inputs), ("outputs", model.outputs)):
            if len(tensors) != 1:
                raise ModelError(
                    f"The backbone {model.name!r} has {len(tensors)} {side}, not one. Make one of "
                    "it that has: `Model(model.inputs[0], features)`."
                )
        return model, chosen

    def _application(self, shape: tuple[int | None, ...]) -> Any:
        keras = tf_keras()
        make = getattr(keras.applications, self.backbone)
        size = self.input_size or (shape[0] if len(shape) == 3 and shape[0] == shape[1] else None)
        arguments: dict[str, Any] = {"include_top": False, "weights": self.weights}
        if isinstance(self.weights, os.PathLike):
            arguments["weights"] = os.fspath(self.weights)
        file = arguments["weights"]
        if file not in (None, "imagenet") and not Path(file).is_file():
            raise ModelError(f"There is no file of weights {file!r}.")
        try:
            for side in (size, 32, 75, 224) if size is not None else (224,):
                try:
                    return make(input_shape=(side, side, 3), **arguments)
                except ValueError as error:
                    # Applications refuse images below a size of their own: take the next one up.
                    if self.input_size or "at least" not in str(error) or side == 224:
                        raise
            raise AssertionError  # 224 either returned or raised
        except Exception as error:
            if self.weights == "imagenet":
                advice = (
                    "Its ImageNet weights could not be had by download. Pass a file: "
                    f"`TransferLearn({self.backbone!r}, weights='…')` with the weights without the "
                    "top, or a saved model as `backbone`."
                )
            else:
                advice = "Check `weights` and `input_size`."
            raise ModelError(f"{self.backbone} could not be built: {error} {advice}") from error

    def _prepare_images(
        self,
        tensor: Any,
        wanted: tuple[int | None, ...],
        kind: str | None,
        *,
        split: Any,
        notes: list[str],
        taken: set[str],
    ) -> Any:
        """Brings the user's raw images to what the backbone expects, inside the model."""
        keras = tf_keras()
        layers = keras.layers
        built_in = _is_application(self.backbone) and preprocessing_of(self.backbone) is None
        if tensor.dtype.name != "float32":
            tensor = layers.Rescaling(1.0, name=_free("to_float", taken))(tensor)
        if kind is not None or built_in:
            values = value_range(split)
            scale, offset = _rescaling(kind, values)
            notes.append(
                f"preprocessing built in: {kind or 'pixels to 0-255'}, from pixels "
                f"{values[0]:g} to {values[1]:g}"
            )
        size = (self.input_size, self.input_size) if self.input_size else tuple(wanted[:2])
        if None not in size and tuple(tensor.shape[1:3]) != size:
            notes.append(f"images resized to {size[0]}x{size[1]}")
            tensor = layers.Resizing(*size, name=_free("resize", taken))(tensor)
        if wanted[2] == 3 and tensor.shape[3] == 1:
            notes.append("gray images repeated to three channels")
            tensor = layers.Concatenate(name=_free("to_colour", taken))([tensor, tensor, tensor])
        if kind is not None or built_in:
            tensor = _preprocess_layer(kind, scale, offset, _free("preprocess", taken))(tensor)
        return tensor

    def _head(self, features: Any, task: Task, incoming: Any, taken: set[str]) -> Any:
        layers = tf_keras().layers

        rank = len(features.shape)
        if rank > 2:
            pooling = {
                3: layers.GlobalAveragePooling1D,
                4: layers.GlobalAveragePooling2D,
                5: layers.GlobalAveragePooling3D,
            }[rank]
            features = pooling(name=_free("head_pooling", taken))(features)
        features = layers.Dropout(self.dropout, name=_free("head_dropout", taken))(features)
        activation = final_activation(incoming)
        if activation not in ("softmax", "sigmoid") or task.kind == "regression":
            activation = "linear"
        return layers.Dense(task.outputs, activation=activation, name=_free("head", taken))(
            features
        )


def _freeze(layers: list[Any]) -> None:
    for layer in layers:
        layer.trainable = False


def _check_backbone(backbone: Any) -> None:
    if backbone is None:
        return
    if isinstance(backbone, str):
        _validate.text("backbone", backbone)
        path = Path(backbone)
        if path.suffix in _FILE_SUFFIXES or _is_application(backbone) or path.is_dir():
            return
        raise PipelineError(
            f"`backbone` {backbone!r} is neither a model in tf_keras.applications, such as "
            "'MobileNetV2', nor a saved model (.keras, .h5, a SavedModel folder)."
        )
    if isinstance(backbone, os.PathLike):
        return
    loaded = [sys.modules[name] for name in ("tf_keras", "keras") if name in sys.modules]
    if not any(isinstance(backbone, library.Model) for library in loaded):
        raise ArgumentTypeError(
            "`backbone` must be a name, a file, a Keras model, or None. "
            f"Received: {type(backbone).__module__}.{type(backbone).__qualname__}."
        )


def _is_application(backbone: Any) -> bool:
    if not isinstance(backbone, str) or not backbone.isidentifier():
        return False
    found = getattr(tf_keras().applications, backbone, None)
    return callable(found)


def _load_backbone(path: Path) -> Any:
    model = load_model(path)
    if isinstance(model, SavedModelArtifact):
        raise ModelError(
            f"{str(path)!r} holds a SavedModel that no Keras wrote: it can be run and converted, and "
            "has no layers to put a head on. Give the model as Keras saved it."
        )
    return model


def _rescaling(kind: str | None, values: ValueRange) -> tuple[Any, Any]:
    """Scale and offset a channel from pixels in a range to what a backbone expects.

    >>> _rescaling("tf", (0.0, 255.0)), _rescaling(None, (0.0, 1.0))
    ((0.00784313725490196, -1.0), (255.0, 0.0))
    """
    low, high = values
    unit, start = 1 / (high - low), (0 - low) / (high - low)  # to 0 … 1
    if kind == "tf":
        return 2 * unit, 2 * start - 1
    if kind == "torch":
        pairs = list(zip(_IMAGENET_MEAN, _IMAGENET_DEVIATION, strict=True))
        return [unit / s for _, s in pairs], [(start - mean) / s for mean, s in pairs]
    if kind == "caffe":
        return [255 * unit] * 3, [255 * start - mean for mean in _CAFFE_MEAN_BGR]
    return 255 * unit, 255 * start


def _free(name: str, taken: set[str]) -> str:
    """A name that no layer has yet: the backbone may be a result of this very pass."""
    while name in taken:
        name += "_new"
    return name


def _preprocess_layer(kind: str | None, scale: Any, offset: Any, name: str) -> Any:
    layers = tf_keras().layers
    if kind != "caffe":
        return layers.Rescaling(scale, offset, name=name)
    # Blue first: a fixed 1x1 convolution swaps, scales and shifts the channels at once, and, other
    # than slicing, can be saved and quantized.
    swap = layers.Conv2D(3, 1, name=name, trainable=False)
    swap.build((None, None, None, 3))
    swap.set_weights([np.fliplr(np.eye(3))[None, None] * np.array(scale), np.array(offset)])
    return swap


def _before_classifier(output: Any) -> tuple[Any, list[str]]:
    """The tensor that the last dense layer takes, dropout before it left out, too."""
    keras = tf_keras()
    cut: list[str] = []
    for layer, tensor in _chain(output):
        if isinstance(layer, keras.layers.Dense):
            cut.append(layer.name)
            for before, features in _chain(tensor):
                if not isinstance(before, keras.layers.Dropout):
                    break
                cut.append(before.name)
                tensor = features
            return tensor, cut
        if layer.weights or isinstance(layer, keras.layers.InputLayer):
            break
        cut.append(layer.name)
    raise ModelError(
        "The model does not end in a dense layer that could be replaced by a new head. Pass what "
        "comes before its head as `backbone`: `tf_keras.Model(model.inputs, features)`."
    )


def _chain(tensor: Any) -> Iterator[tuple[Any, Any]]:
    """The layers from a tensor back to the input, each with the tensor it takes."""
    while True:
        node = tensor.node
        before = node.keras_inputs
        yield node.layer, before[0] if before else None
        if len(before) != 1:
            return
        tensor = before[0]
