"""Models that already know something, brought to other data: what `TransferLearn` builds."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optkit import _validate
from optkit.artifact import SavedModelArtifact, load_model
from optkit.data import Split, first_leaf
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
from optkit.preprocessing import FORMS, preprocessing_mismatch
from optkit.runtime import tf_keras
from optkit.task import Task
from optkit.translate import is_keras3, to_tf_keras

__all__ = [
    "Backbone",
    "Transfer",
    "build_transfer",
    "check_preprocessing",
    "preprocessing_of",
    "trained_for",
]

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
_CHECKED = 64  # images that are held to what the backbone remembers
#: What makes pixels of a form.
_KIND_OF_FORM = {
    FORMS[form].name: kind
    for form, kind in (("symmetric", "tf"), ("imagenet", "torch"), ("caffe", "caffe"))
}
_FILE_SUFFIXES = (".keras", ".h5", ".hdf5")

#: The widths (alpha) and image sizes that ImageNet weights of Keras were trained for. At other
#: sizes Keras gives the weights of the last.
_TRAINED_FOR: dict[str, tuple[tuple[float, ...], tuple[int, ...]]] = {
    "MobileNet": ((0.25, 0.5, 0.75, 1.0), (128, 160, 192, 224)),
    "MobileNetV2": ((0.35, 0.5, 0.75, 1.0, 1.3, 1.4), (96, 128, 160, 192, 224)),
    "MobileNetV3Small": ((0.75, 1.0), (224,)),
    "MobileNetV3Large": ((0.75, 1.0), (224,)),
}


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


def trained_for(application: str) -> tuple[tuple[float, ...], tuple[int, ...]] | None:
    """Widths and image sizes that ImageNet weights exist for; ``None`` where that is not limited.

    >>> trained_for("MobileNetV2")
    ((0.35, 0.5, 0.75, 1.0, 1.3, 1.4), (96, 128, 160, 192, 224))
    >>> trained_for("ResNet50") is None
    True
    """
    return _TRAINED_FOR.get(application)


@dataclass(frozen=True)
class Backbone:
    """A backbone as the user names it, and how it is to be brought to the data.

    The values are checked when it is made. See `TransferLearn` for what each means.
    """

    given: Any = None
    weights: str | os.PathLike[str] | None = "imagenet"
    preprocessing: str | None = "auto"
    input_size: int | None = None
    alpha: float | None = None

    def __post_init__(self) -> None:
        _check_given(self.given)
        if self.weights is not None and not isinstance(self.weights, str | os.PathLike):
            raise ArgumentTypeError(
                f"`weights` must be 'imagenet', a file or None. Received: {self.weights!r}."
            )
        if self.preprocessing is not None:
            known = ("auto", "tf", "torch", "caffe")
            _validate.one_of("preprocessing", self.preprocessing, known)
        _validate.optional(_validate.integer, "input_size", self.input_size, minimum=1)
        if self.alpha is not None:
            _validate.number("alpha", self.alpha, minimum=0, exclusive="min")
            self._check_alpha(self.alpha)
        self._refuse_unused()

    def _refuse_unused(self) -> None:
        """Refuses settings that would do nothing."""
        if self.is_application:
            return
        if self.weights not in ("imagenet", None):
            whole = "The model that comes in" if self.given is None else "A given model or file"
            raise PipelineError(
                f"`weights` is for an application of tf_keras, such as 'MobileNetV2'. {whole} has "
                "the weights that it has: load others into it before, and leave `weights` out. "
                f"Received: {os.fspath(self.weights)!r}."
            )
        if self.given is not None:
            return
        for name, plain in (("preprocessing", ("auto", None)), ("input_size", (None,))):
            if (value := getattr(self, name)) not in plain:
                raise PipelineError(
                    f"`{name}` is for a backbone that is put in the place of the model. Without "
                    "one, the model that comes in is kept, and takes the data as it does. Leave it "
                    f"out. Received: {value!r}."
                )

    def _check_alpha(self, alpha: float) -> None:
        """Refuses a width that the backbone cannot be built with."""
        if not self.is_application:
            raise PipelineError(
                f"`alpha` makes an application of tf_keras narrower or wider, such as 'MobileNetV2'; "
                f"a given model has the width that it has. Leave it out. Received: {alpha}."
            )
        make = getattr(tf_keras().applications, self.given)
        if "alpha" not in inspect.signature(make).parameters:
            having = ", ".join(_TRAINED_FOR)
            raise PipelineError(
                f"{self.given} has no `alpha`; {having} have. Leave it out. Received: {alpha}."
            )
        trained = trained_for(self.given)
        if self.weights == "imagenet" and trained is not None and alpha not in trained[0]:
            widths = ", ".join(f"{width:g}" for width in trained[0])
            raise PipelineError(
                f"ImageNet weights of {self.given} exist for `alpha` {widths}. Take one of them, or "
                f"`weights` from a file of your own. Received: {alpha}."
            )

    @property
    def is_application(self) -> bool:
        """Whether it is the name of a model in ``tf_keras.applications``."""
        return _is_application(self.given)

    @property
    def built_in(self) -> bool:
        """Whether the application takes pixels from 0 to 255 and does the rest itself."""
        return self.is_application and preprocessing_of(self.given) is None

    def load(self, shape: tuple[int | None, ...]) -> tuple[Any, str | None]:
        """The backbone as a tf_keras model, and the preprocessing that belongs to it.

        Args:
            shape: Shape of a sample of the data.
        """
        chosen = None if self.preprocessing == "auto" else self.preprocessing
        if self.is_application:
            if self.preprocessing == "auto":
                chosen = preprocessing_of(self.given)
            elif self.preprocessing is not None and self.built_in:
                raise PipelineError(
                    f"{self.given} has its preprocessing built in. Leave `preprocessing` as it is."
                )
            return self._application(shape), chosen
        named = isinstance(self.given, str | os.PathLike)
        model = _load(Path(self.given)) if named else self.given
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

    def _size(self, shape: tuple[int | None, ...]) -> int | None:
        """Height and width to build an application for; ``None`` where the data do not say."""
        if self.input_size is not None:
            return self.input_size
        size = shape[0] if len(shape) == 3 and shape[0] == shape[1] else None
        trained = trained_for(self.given)
        if size is None or self.weights != "imagenet" or trained is None:
            return size
        # The weights were trained at these sizes; far below, the maps end at a pixel or two.
        return next((side for side in trained[1] if side >= size), size)

    def size_note(self, side: int | None) -> str | None:
        """What to say of a size that the weights were not trained for."""
        trained = trained_for(self.given) if self.is_application else None
        if self.weights != "imagenet" or trained is None or side is None or side in trained[1]:
            return None
        listed = ", ".join(map(str, trained[1]))
        return (
            f"ImageNet weights of {self.given} were trained at {listed} pixels; at {side} those "
            f"for {trained[1][-1]} are used, and may fit less well"
        )

    def _application(self, shape: tuple[int | None, ...]) -> Any:
        keras = tf_keras()
        make = getattr(keras.applications, self.given)
        size = self._size(shape)
        arguments: dict[str, Any] = {"include_top": False, "weights": self.weights}
        if self.alpha is not None:
            arguments["alpha"] = float(self.alpha)
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
                    f"`TransferLearn({self.given!r}, weights='…')` with the weights without the "
                    "top, or a saved model as `backbone`."
                )
            else:
                advice = "Check `weights`, `alpha` and `input_size`."
            raise ModelError(f"{self.given} could not be built: {error} {advice}") from error


@dataclass(frozen=True)
class Transfer:
    """A backbone with a new head, as one flat model.

    Attributes:
        model: The model, from the user's raw input to the new head.
        body: The layers of the backbone, in the order of the model they came from.
        source: Name of the model that the backbone is.
        entry: The tensor that the backbone takes.
        features: The tensor that the head's dropout takes: one vector a sample.
        notes: What to say of it in the report.
    """

    model: Any
    body: tuple[Any, ...]
    source: str
    entry: Any
    features: Any
    notes: tuple[str, ...]


def build_transfer(
    incoming: Any, backbone: Backbone, split: Split, task: Task, *, dropout: float
) -> Transfer:
    """Puts a new head on a backbone, and before it what brings the data to it.

    Args:
        incoming: The model that is replaced: it says what the input is like, and is the backbone
            itself where none is given.
        backbone: The backbone.
        split: The training split; the range of its pixels is looked at.
        task: What the head predicts.
        dropout: Dropout before the head's dense layer.

    Raises:
        PipelineError, ModelError: Where backbone, model and data do not fit together.
    """
    keras = tf_keras()
    described = signature(incoming)
    _check_incoming(described)
    notes: list[str] = []
    inputs = [
        keras.Input(info.shape[1:], name=info.name, dtype=info.dtype) for info in described.inputs
    ]
    entry, source = inputs[0], incoming
    if backbone.given is None:
        features, body = flat_copy(incoming, inputs)
        classifier = True
    else:
        if len(inputs) != 1:
            raise PipelineError(
                f"A backbone takes one input, and the model has {len(inputs)}. Use "
                "`TransferLearn()` to transfer the model itself."
            )
        source, kind = backbone.load(described.inputs[0].shape[1:])
        entry = _enter(backbone, source, kind, inputs[0], split=split, notes=notes)
        features, body = _attach(source, entry)
        classifier = final_activation(source) in ("softmax", "sigmoid")
    if classifier:
        features, cut = _before_classifier(features)
        notes.append(f"cut off the classifier: {', '.join(cut)}")
    if not features.dtype.is_floating:
        raise ModelError(
            f"The backbone gives {features.dtype.name} values of shape {tuple(features.shape)}, such "
            "as numbers of words, and a head needs features. Give a model that goes on to an "
            "embedding."
        )
    kept = {layer.name for layer in keras.Model(inputs, features).layers}
    names = {part: _free(f"head{part}", kept) for part in ("", "_pooling", "_dropout")}
    outputs = _head(features, task, incoming, names, dropout)
    # A clone, as the layers of the backbone still hang on the graph they came from, too.
    built = clone(keras.Model(inputs, outputs, name=incoming.name))
    return Transfer(
        model=built,
        body=tuple(built.get_layer(layer.name) for layer in body if layer.name in kept),
        source=source.name,
        entry=built.get_layer(entry.node.layer.name).output,
        features=built.get_layer(names["_dropout"]).input,
        notes=tuple(notes),
    )


def check_preprocessing(transfer: Transfer, backbone: Backbone, split: Split) -> str | None:
    """Holds what the backbone is given to what it remembers of its own training.

    Only where it is given by the user: an application of Keras is known by its name, and the model
    that came in takes the data as it always did.

    Args:
        transfer: The model that was built.
        backbone: The backbone as given.
        split: The training split.

    Returns:
        What to note: that it does not fit, where that is not certain, or was asked for.

    Raises:
        PipelineError: If it does not fit as it comes, and another kind of preprocessing would.
    """
    if backbone.given is None or backbone.is_application or len(transfer.entry.shape) != 4:
        return None
    keras = tf_keras()
    images, _ = split.head(_CHECKED)
    prepare = keras.Model(transfer.model.inputs, transfer.entry)
    given = np.asarray(prepare(first_leaf(images), training=False))
    # Up to there, as that is where it is looked: to wire all of a large backbone takes seconds.
    first = next((layer for layer in transfer.body if is_batch_norm(layer)), None)
    end = transfer.features if first is None else first.get_output_at(0)
    part = keras.Model(transfer.entry, end, name=transfer.source)
    found = preprocessing_mismatch(part, given)
    if found is None:
        return None
    kind = _KIND_OF_FORM.get(found.expected or "")
    if not found.certain or found.expected is None or backbone.preprocessing in _PREPROCESSING:
        return f"the pixels may not be as the backbone expects them: {found.message}"
    remedy = (
        f"Say preprocessing={kind!r}, which makes them so inside the model."
        if kind is not None
        else f"Give pixels of {found.expected}."
    )
    raise PipelineError(
        f"What reaches the backbone is not what it was trained on (preprocessing="
        f"{backbone.preprocessing!r}): {found.message}. {remedy}"
    )


def _check_incoming(described: Any) -> None:
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


def _enter(
    backbone: Backbone, model: Any, kind: str | None, tensor: Any, *, split: Split, notes: list[str]
) -> Any:
    """What the backbone takes: the user's input, brought to it."""
    info = signature(model).inputs[0]
    wanted = info.shape[1:]
    taken = {layer.name for layer in model.layers}
    if (info.dtype == "string") != (tensor.dtype.name == "string"):
        raise PipelineError(
            f"The backbone takes {_in_words(info.dtype)}, and the data are "
            f"{_in_words(tensor.dtype.name)}. "
            + (
                "Give a backbone with its own `TextVectorization` inside."
                if tensor.dtype.name == "string"
                else "Give a model and data of raw strings, or the part of the backbone behind its "
                "vectorization."
            )
        )
    if info.dtype == "string" and {tuple(wanted), tuple(tensor.shape[1:])} == {(), (1,)}:
        # One string a sample, with or without an axis of its own.
        tensor = tf_keras().layers.Reshape(wanted, name=_free("to_text", taken))(tensor)
    if len(wanted) != 3 or len(tensor.shape) != 4:
        _refuse_for_images_alone(backbone, wanted)
    else:
        tensor = _prepare_images(
            backbone, tensor, wanted, kind, split=split, notes=notes, taken=taken
        )
    got = tuple(tensor.shape[1:])
    same_rank = len(wanted) == len(got)
    if backbone.input_size and same_rank:
        wanted = (*got[:2], *wanted[2:])  # convolutions run at other sizes than built for
    if not same_rank or any(
        None not in (a, b) and a != b for a, b in zip(wanted, got, strict=True)
    ):
        raise PipelineError(
            f"The backbone takes inputs of shape {wanted}, and the data have shape {got}."
        )
    return tensor


def _refuse_for_images_alone(backbone: Backbone, wanted: tuple[int | None, ...]) -> None:
    for name, given in (
        ("preprocessing", backbone.preprocessing if backbone.preprocessing != "auto" else None),
        ("input_size", backbone.input_size),
    ):
        if given is not None:
            raise PipelineError(
                f"`{name}` is for backbones of images, and this one takes inputs of shape {wanted}. "
                f"Leave it out. Received: {given!r}."
            )


def _attach(model: Any, tensor: Any) -> tuple[Any, list[Any]]:
    """What the backbone gives, and its layers."""
    try:
        features, body = flat_copy(model, [tensor])
    except ValueError as error:
        raise PipelineError(
            f"The backbone {model.name!r} does not run on inputs of shape "
            f"{tuple(tensor.shape[1:])}: {error}"
        ) from error
    return features, list(body)


def _in_words(dtype: str) -> str:
    return "text" if dtype == "string" else "numbers"


def _prepare_images(
    backbone: Backbone,
    tensor: Any,
    wanted: tuple[int | None, ...],
    kind: str | None,
    *,
    split: Split,
    notes: list[str],
    taken: set[str],
) -> Any:
    """Brings the user's raw images to what the backbone expects, inside the model."""
    layers = tf_keras().layers
    scaled = kind is not None or backbone.built_in
    if kind in ("torch", "caffe") and wanted[2] not in (3, None):
        raise PipelineError(
            f"preprocessing={kind!r} is of three colours, and the backbone takes {wanted[2]} "
            "channels. Use 'tf', which knows no colours, or None for pixels as they are."
        )
    if tensor.dtype.name != "float32":
        tensor = layers.Rescaling(1.0, name=_free("to_float", taken))(tensor)
    if scaled:
        values = value_range(split)
        scale, offset = _rescaling(kind, values)
        notes.append(
            f"preprocessing built in: {kind or 'pixels to 0-255'}, from pixels "
            f"{values[0]:g} to {values[1]:g}"
        )
    side = backbone.input_size
    size = (side, side) if side else tuple(wanted[:2])
    if (note := backbone.size_note(size[0])) is not None:
        notes.append(note)
    if None not in size and tuple(tensor.shape[1:3]) != size:
        notes.append(f"images resized to {size[0]}x{size[1]}")
        tensor = layers.Resizing(*size, name=_free("resize", taken))(tensor)
    if wanted[2] == 3 and tensor.shape[3] == 1:
        notes.append("gray images repeated to three channels")
        tensor = layers.Concatenate(name=_free("to_colour", taken))([tensor, tensor, tensor])
    if scaled:
        tensor = _preprocess_layer(kind, scale, offset, _free("preprocess", taken))(tensor)
    return tensor


def _head(features: Any, task: Task, incoming: Any, names: dict[str, str], dropout: float) -> Any:
    """Pooling where there are maps or sequences, dropout, one dense layer.

    Of a sequence, what its mask leaves out does not count: Keras hands the mask on to the pooling.
    """
    layers = tf_keras().layers
    rank = len(features.shape)
    if rank > 2:
        pooling = {
            3: layers.GlobalAveragePooling1D,
            4: layers.GlobalAveragePooling2D,
            5: layers.GlobalAveragePooling3D,
        }[rank]
        features = pooling(name=names["_pooling"])(features)
    features = layers.Dropout(dropout, name=names["_dropout"])(features)
    activation = final_activation(incoming)
    if activation not in ("softmax", "sigmoid") or task.kind == "regression":
        activation = "linear"
    return layers.Dense(task.outputs, activation=activation, name=names[""])(features)


def _check_given(backbone: Any) -> None:
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


def _load(path: Path) -> Any:
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
