"""Kinds of models times passes: what each cell must do, and the doing of it.

A cell works end to end, or refuses before anything trains for a reason that is written here. The
test runs a chosen sample of cells, ``nox -s full`` all of them, and ``python -m benchmarks.matrix``
makes the page of the documentation from all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import optkit as ok
from optkit.entrance import admit
from optkit.errors import PipelineError
from optkit.runtime import derive_seed, isolated
from optkit.testing import digits

__all__ = ["KINDS", "LIBRARIES", "PASSES", "REFUSED", "Kind", "cell", "expected"]

SAMPLES = 150
_SEED = 1
LIBRARIES = ("tf_keras", "keras")

#: Every pass by name, small. `{}` stands for the shape of the input, where one must be fixed.
PASSES: dict[str, Callable[[], list[ok.Pass]]] = {
    "AuditData": lambda: [ok.AuditData()],
    "Augment": lambda: [ok.Augment("photo"), ok.FineTune(epochs=1)],
    "AugmentText": lambda: [ok.AugmentText(), ok.FineTune(epochs=1)],
    "BNReestimate": lambda: [ok.BNReestimate()],
    "CompileXLA": lambda: [ok.CompileXLA(), ok.FineTune(epochs=1)],
    "CutMix": lambda: [ok.CutMix(), ok.FineTune(epochs=1)],
    "FineTune": lambda: [ok.FineTune(epochs=1)],
    "FirstThatMeets": lambda: [
        ok.FirstThatMeets(
            [ok.Prune(0.5, epochs=1), ok.Prune(0.3, epochs=1)], ok.Goals(max_size_mb=1e-6)
        )
    ],
    "GradientAccumulation": lambda: [ok.GradientAccumulation(2), ok.FineTune(epochs=1)],
    "LRSchedule": lambda: [ok.LRSchedule("cosine", warmup=0.1), ok.FineTune(epochs=1)],
    "LabelSmooth": lambda: [ok.LabelSmooth(0.1), ok.FineTune(epochs=1)],
    "MixUp": lambda: [ok.MixUp(), ok.FineTune(epochs=1)],
    "MixedPrecision": lambda: [ok.MixedPrecision("bfloat16"), ok.FineTune(epochs=1)],
    "Prune": lambda: [ok.Prune(0.5, epochs=2)],
    "QuantizeAware": lambda: [ok.QuantizeAware(epochs=1)],
    "QuantizeDynamic": lambda: [ok.QuantizeDynamic()],
    "QuantizeFloat16": lambda: [ok.QuantizeFloat16()],
    "QuantizeINT16x8": lambda: [ok.QuantizeINT16x8(40)],
    "QuantizeINT8": lambda: [ok.QuantizeINT8(40)],
    "QuantizeWeights": lambda: [ok.QuantizeWeights(4)],
    "Rebalance": lambda: [ok.Rebalance("over"), ok.FineTune(epochs=1)],
    "SWA": lambda: [ok.SWA(epochs=2, learning_rate=1e-3)],
    "TransferLearn": lambda: [ok.TransferLearn(epochs=1)],
}


@dataclass(frozen=True)
class Kind:
    """A way in which a model can be built.

    Attributes:
        about: What it stands for, for the page.
        model: Function of a Keras (``tf_keras`` or ``keras``) to the model.
        data: Its data.
        passes: Passes by name that are given otherwise for this kind.
        loss: Loss of the pipeline.
    """

    about: str
    model: Callable[[Any], Any]
    data: Callable[[], ok.Data]
    passes: dict[str, Callable[[], list[ok.Pass]]] | None = None
    loss: Any = None


# ------------------------------------------------------------------------------------------- data


def _mapped(
    x: Callable[[np.ndarray], Any], y: Callable[[np.ndarray], Any], **settings: Any
) -> ok.Data:
    """The digits, images of shape ``(n, 8, 8, 1)`` from 0 to 1 and their numbers, in other forms."""
    plain = digits(SAMPLES)
    return ok.Data(
        **{
            name: (x(images), y(numbers))
            for name in ("train", "validation", "test")
            for images, numbers in [getattr(plain, name)]
        },
        batch_size=16,
        **settings,
    )


def _same(value: np.ndarray) -> np.ndarray:
    return value


def _images() -> ok.Data:
    return _mapped(_same, _same)


def _rows() -> ok.Data:
    """Each image as eight steps of eight values."""
    return _mapped(lambda x: x[..., 0], _same)


_SYNONYMS = {"zero": ["nil", "nought"], "one": ["single"], "two": ["pair"]}
_WORDS = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])


def _tokens() -> ok.Data:
    """Grey values as token ids, the brightest pixel of each row."""
    return _mapped(lambda x: (x[..., 0].argmax(-1) + 1).astype("int32"), _same)


def _texts() -> ok.Data:
    def texts(x: np.ndarray) -> np.ndarray:
        rows = x[..., 0].argmax(-1)
        return np.array([" ".join(_WORDS[row]) for row in rows])

    return _mapped(texts, _same)


# ----------------------------------------------------------------------------------------- models


def _stem(keras: Any, x: Any) -> Any:
    layers = keras.layers
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(x)
    x = layers.BatchNormalization(name="norm")(x)
    return layers.ReLU(name="relu")(x)


def _head(keras: Any, x: Any) -> Any:
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.layers.Dense(10, activation="softmax", name="classes")(x)


def _sequential(keras: Any) -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(10, activation="softmax", name="classes"),
        ],
        name="sequential",
    )


def _unbuilt(keras: Any) -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Conv2D(8, 3, activation="relu", name="conv"),
            layers.Flatten(name="flat"),
            layers.Dense(10, activation="softmax", name="classes"),
        ],
        name="unbuilt",
    )


def _functional(keras: Any) -> Any:
    image = keras.Input((8, 8, 1), name="image")
    x = _stem(keras, image)
    y = keras.layers.Conv2D(8, 3, padding="same", name="conv2")(x)
    x = keras.layers.Add(name="skip")([x, y])
    return keras.Model(image, _head(keras, x), name="functional")


def _nested(keras: Any) -> Any:
    inside = keras.Input((8, 8, 1), name="inside")
    inner = keras.Model(inside, _stem(keras, inside), name="inner")
    image = keras.Input((8, 8, 1), name="image")
    return keras.Model(image, _head(keras, inner(image)), name="nested")


def _shared(keras: Any) -> Any:
    layers = keras.layers
    left, right = keras.Input((8, 4, 1), name="left"), keras.Input((8, 4, 1), name="right")
    conv, dense = layers.Conv2D(8, 3, name="conv"), layers.Dense(16, activation="relu", name="both")
    flat = layers.Flatten(name="flat")
    x = layers.Concatenate(name="join")([dense(flat(conv(part))) for part in (left, right)])
    out = layers.Dense(10, activation="softmax", name="classes")(x)
    return keras.Model([left, right], out, name="shared")


def _halves() -> ok.Data:
    return _mapped(lambda x: {"left": x[:, :, :4], "right": x[:, :, 4:]}, _same)


def _outputs(keras: Any) -> Any:
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Flatten(name="flat")(_stem(keras, image))
    classes = keras.layers.Dense(10, activation="softmax", name="classes")(x)
    odd = keras.layers.Dense(1, activation="sigmoid", name="odd")(x)
    return keras.Model(image, [classes, odd], name="outputs")


def _two_targets() -> ok.Data:
    return _mapped(_same, lambda y: {"classes": y, "odd": y % 2})


def _subclassed(keras: Any) -> Any:
    layers = keras.layers

    class Plain(keras.Model):
        """A model wired in Python, without branches."""

        def __init__(self, **keywords: Any):
            super().__init__(**keywords)
            self.conv = layers.Conv2D(8, 3, activation="relu", name="conv")
            self.pool = layers.GlobalAveragePooling2D(name="pool")
            self.drop = layers.Dropout(0.2, name="drop")
            self.classes = layers.Dense(10, activation="softmax", name="classes")

        def call(self, inputs: Any, training: Any = None) -> Any:
            return self.classes(self.drop(self.pool(self.conv(inputs)), training=training))

    return Plain(name="plain")


def _branching(keras: Any) -> Any:
    layers = keras.layers

    class Branching(keras.Model):
        """A model that does something else in training, which no graph of layers can say."""

        def __init__(self, **keywords: Any):
            super().__init__(**keywords)
            self.flat = layers.Flatten(name="flat")
            self.hidden = layers.Dense(16, activation="relu", name="hidden")
            self.classes = layers.Dense(10, activation="softmax", name="classes")

        def call(self, inputs: Any, training: Any = None) -> Any:
            x = self.hidden(self.flat(inputs))
            if training:
                x = x * 1.5
            return self.classes(x)

        def get_config(self) -> dict[str, Any]:
            return {"name": self.name}

    return Branching(name="branching")


def _sequence(cell: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def build(keras: Any) -> Any:
        rows = keras.Input((8, 8), name="rows")
        x = cell(keras.layers)(rows)
        out = keras.layers.Dense(10, activation="softmax", name="classes")(x)
        return keras.Model(rows, out, name="recurrent")

    return build


def _attention(keras: Any) -> Any:
    layers = keras.layers
    rows = keras.Input((8, 8), name="rows")
    x = layers.MultiHeadAttention(2, 4, name="attention")(rows, rows)
    x = layers.LayerNormalization(name="norm")(layers.Add(name="skip")([rows, x]))
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    out = layers.Dense(10, activation="softmax", name="classes")(x)
    return keras.Model(rows, out, name="attention")


def _conv1d(keras: Any) -> Any:
    layers = keras.layers
    rows = keras.Input((8, 8), name="rows")
    x = layers.Conv1D(8, 3, activation="relu", name="conv")(rows)
    x = layers.GlobalMaxPooling1D(name="pool")(x)
    out = layers.Dense(10, activation="softmax", name="classes")(x)
    return keras.Model(rows, out, name="conv1d")


def _conv3d(keras: Any) -> Any:
    layers = keras.layers
    volume = keras.Input((4, 4, 4, 1), name="volume")
    x = layers.Conv3D(4, 2, activation="relu", name="conv")(volume)
    x = layers.Flatten(name="flat")(x)
    out = layers.Dense(10, activation="softmax", name="classes")(x)
    return keras.Model(volume, out, name="conv3d")


def _volumes() -> ok.Data:
    return _mapped(lambda x: x.reshape(-1, 4, 4, 4, 1), _same)


def _transposed(keras: Any) -> Any:
    layers = keras.layers
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu", name="down")(image)
    out = layers.Conv2DTranspose(1, 3, strides=2, padding="same", name="up")(x)
    return keras.Model(image, out, name="transposed")


def _to_images() -> ok.Data:
    plain = digits(SAMPLES)
    return ok.Data(
        **{
            name: (x, 1 - x)
            for name in ("train", "validation", "test")
            for x, _ in [getattr(plain, name)]
        },
        batch_size=16,
    )


def _separable(keras: Any) -> Any:
    layers = keras.layers
    image = keras.Input((8, 8, 1), name="image")
    x = layers.SeparableConv2D(8, 3, padding="same", name="separable")(image)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise")(x)
    return keras.Model(image, _head(keras, x), name="separable")


def _embedding(keras: Any) -> Any:
    layers = keras.layers
    tokens = keras.Input((8,), dtype="int32", name="tokens")
    x = layers.Embedding(10, 8, name="embedding")(tokens)
    x = layers.Flatten(name="flat")(x)
    out = layers.Dense(10, activation="softmax", name="classes")(x)
    return keras.Model(tokens, out, name="embedding")


def _strings(keras: Any) -> Any:
    layers = keras.layers
    vectorize = layers.TextVectorization(output_sequence_length=8, name="vectorize")
    vectorize.adapt(_WORDS)
    text = keras.Input((), dtype="string", name="text")
    x = layers.Embedding(12, 8, name="embedding")(vectorize(text))
    x = layers.Flatten(name="flat")(x)
    out = layers.Dense(10, activation="softmax", name="classes")(x)
    return keras.Model(text, out, name="strings")


def _preprocessing(keras: Any) -> Any:
    layers = keras.layers
    normalize = layers.Normalization(axis=None, name="normalize")
    normalize.adapt(digits(SAMPLES).train[0] * 16.0)
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Rescaling(16.0, name="rescale")(image)
    x = layers.RandomTranslation(0.1, 0.1, seed=1, name="shift")(normalize(x))
    return keras.Model(image, _head(keras, _stem(keras, x)), name="preprocessing")


def _any_size(keras: Any) -> Any:
    image = keras.Input((None, None, 1), name="image")
    return keras.Model(image, _head(keras, _stem(keras, image)), name="any_size")


def _any_length(keras: Any) -> Any:
    layers = keras.layers
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = layers.GlobalAveragePooling1D(name="pool")(
        layers.Embedding(10, 8, name="embedding")(tokens)
    )
    out = layers.Dense(10, activation="softmax", name="classes")(x)
    return keras.Model(tokens, out, name="any_length")


def _mixed(keras: Any) -> Any:
    half = "mixed_bfloat16"
    layers = keras.layers
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(8, 3, activation="relu", dtype=half, name="conv")(image)
    x = layers.GlobalAveragePooling2D(dtype=half, name="pool")(x)
    x = layers.Dense(10, dtype=half, name="scores")(x)
    out = layers.Activation("softmax", dtype="float32", name="classes")(x)
    return keras.Model(image, out, name="mixed")


def _frozen(keras: Any) -> Any:
    model = _functional(keras)
    for name in ("conv", "norm"):
        model.get_layer(name).trainable = False
    return model


def _custom_layer(keras: Any) -> Any:
    class Scale(keras.layers.Layer):
        """Multiplies each channel by a weight."""

        def __init__(self, start: float = 1.0, **keywords: Any):
            super().__init__(**keywords)
            self.start = start

        def build(self, shape: Any) -> None:
            self.factor = self.add_weight(
                name="factor",
                shape=(shape[-1],),
                initializer=keras.initializers.Constant(self.start),
            )
            super().build(shape)

        def call(self, inputs: Any) -> Any:
            return inputs * self.factor

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "start": self.start}

    image = keras.Input((8, 8, 1), name="image")
    x = Scale(1.5, name="scale")(_stem(keras, image))
    return keras.Model(image, _head(keras, x), name="custom_layer")


def _custom_compile(keras: Any) -> Any:
    class Sharp(keras.losses.Loss):
        """Cross-entropy, doubled."""

        def call(self, y_true: Any, y_pred: Any) -> Any:
            return 2 * keras.losses.sparse_categorical_crossentropy(y_true, y_pred)

    def sure(y_true: Any, y_pred: Any) -> Any:
        return y_pred[:, 0]

    model = _sequential(keras)
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss=Sharp(name="sharp"),
        metrics=["accuracy", sure],
        weighted_metrics=["accuracy"],
    )
    return model


def _weighted() -> ok.Data:
    plain = digits(SAMPLES)
    parts = {name: getattr(plain, name) for name in ("train", "validation", "test")}
    x, y = parts["train"]
    parts["train"] = (x, y, np.where(y == 3, 3.0, 1.0).astype("float32"))
    return ok.Data(**parts, batch_size=16)


def _functions(keras: Any) -> Any:
    image = keras.Input((8, 8, 1), name="image")
    if hasattr(keras, "ops"):
        ops = keras.ops
        x = ops.concatenate([image, 1.0 - image], axis=-1)
        x = ops.mean(ops.reshape(x, (-1, 8, 16)), axis=1)
    else:
        import tensorflow as tf

        x = tf.concat([image, 1.0 - image], axis=-1)
        x = tf.reduce_mean(tf.reshape(x, (-1, 8, 16)), axis=1)
    out = keras.layers.Dense(10, activation="softmax", name="classes")(x)
    return keras.Model(image, out, name="functions")


def _multilabel(keras: Any) -> Any:
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.GlobalAveragePooling2D(name="pool")(_stem(keras, image))
    out = keras.layers.Dense(3, activation="sigmoid", name="bits")(x)
    return keras.Model(image, out, name="multilabel")


def _bits() -> ok.Data:
    return _mapped(_same, lambda y: np.stack([y & 1, y >> 1 & 1, y >> 2 & 1], -1).astype("float32"))


def _stateful(keras: Any) -> Any:
    layers = keras.layers
    rows = keras.Input(batch_shape=(2, 8, 8), name="rows")
    x = layers.GRU(4, stateful=True, name="memory")(rows)
    out = layers.Dense(10, activation="softmax", name="classes")(x)
    return keras.Model(rows, out, name="stateful")


def _table(keras: Any) -> Any:
    layers = keras.layers
    columns = {name: keras.Input((1,), name=name) for name in ("mean", "top", "left")}
    normalize = layers.Normalization(axis=None, mean=0.3, variance=0.1, name="normalize")
    x = layers.Concatenate(name="join")(list(columns.values()))
    x = layers.Dense(16, activation="relu", name="hidden")(normalize(x))
    out = layers.Dense(10, activation="softmax", name="classes")(x)
    return keras.Model(columns, out, name="table")


def _frames() -> ok.Data:
    import pandas as pd

    def frame(x: np.ndarray) -> Any:
        parts = {"mean": x, "top": x[:, :4], "left": x[:, :, :4]}
        means = {name: part.mean(axis=(1, 2, 3)) for name, part in parts.items()}
        return pd.DataFrame(means).astype("float32")

    return _mapped(frame, lambda y: pd.Series(_WORDS[y]), class_names=list(_WORDS))


KINDS: dict[str, Kind] = {
    "sequential": Kind("`Sequential` with an `Input`", _sequential, _images),
    "unbuilt": Kind("`Sequential` that was never built", _unbuilt, _images),
    "functional": Kind("functional, with a skip connection", _functional, _images),
    "nested": Kind("a model within a model", _nested, _images),
    "shared": Kind("two inputs through shared layers", _shared, _halves),
    "outputs": Kind("two outputs", _outputs, _two_targets),
    "subclassed": Kind("subclassed, without branches", _subclassed, _images),
    "branching": Kind("subclassed, other in training than else", _branching, _images),
    "functions": Kind("functions of tensors (`keras.ops`, `tf`)", _functions, _images),
    "custom layer": Kind("a layer of the user's", _custom_layer, _images),
    "custom loss": Kind("loss and metric of the user's", _custom_compile, _images),
    "sample weights": Kind("data with sample weights", _sequential, _weighted),
    "multi-label": Kind("several labels a sample", _multilabel, _bits),
    "LSTM": Kind("LSTM", _sequence(lambda n: n.LSTM(8, name="memory")), _rows),
    "GRU": Kind(
        "bidirectional GRU",
        _sequence(lambda n: n.Bidirectional(n.GRU(4), name="memory")),
        _rows,
    ),
    "attention": Kind("multi-head attention", _attention, _rows),
    "Conv1D": Kind("Conv1D", _conv1d, _rows),
    "Conv3D": Kind("Conv3D", _conv3d, _volumes),
    "transposed": Kind("transposed convolution, images out", _transposed, _to_images),
    "separable": Kind("separable and depthwise convolutions", _separable, _images),
    "embedding": Kind("whole-number inputs, embedding", _embedding, _tokens),
    "strings": Kind(
        "raw text, `TextVectorization`",
        _strings,
        _texts,
        {"AugmentText": lambda: [ok.AugmentText(synonyms=_SYNONYMS), ok.FineTune(epochs=1)]},
    ),
    "preprocessing": Kind(
        "`Rescaling`, `Normalization`, random augmentation inside", _preprocessing, _images
    ),
    "any size": Kind(
        "image size left open",
        _any_size,
        _images,
        {"QuantizeINT8": lambda: [ok.QuantizeINT8(40, input_shape=(8, 8, 1))]},
    ),
    "any length": Kind(
        "sequence length left open",
        _any_length,
        _tokens,
        {"QuantizeINT8": lambda: [ok.QuantizeINT8(40, input_shape=(8,))]},
    ),
    "mixed precision": Kind("mixed precision (bfloat16)", _mixed, _images),
    "frozen part": Kind("some layers frozen", _frozen, _images),
    "table": Kind("columns of a data frame, names as labels", _table, _frames),
    "stateful": Kind("stateful recurrent layers", _stateful, _rows),
}

#: Words of the reason for which a cell refuses, by kind and pass; everything else works.
_NO_BATCH_NORM = r"has no batch normalization\. Leave this pass out"
_NO_IMAGES = r"Augment treats images, one input of shape"
_NO_TEXTS = r"AugmentText treats texts \(strings\), or token ids"
REFUSED: dict[tuple[str, str], str] = {
    **{
        (kind, "BNReestimate"): _NO_BATCH_NORM
        for kind in (
            *("unbuilt", "shared", "subclassed", "branching", "functions", "LSTM", "GRU"),
            *("attention", "Conv1D", "Conv3D", "transposed", "separable", "embedding"),
            *("strings", "any length", "mixed precision", "table"),
        )
    },
    ("frozen part", "BNReestimate"): r"All batch normalization of model 'functional' is frozen",
    **{
        (kind, item): reason
        for item, reason in (("Augment", _NO_IMAGES), ("CutMix", r"CutMix treats images"))
        for kind in (
            *("shared", "LSTM", "GRU", "attention", "Conv1D", "Conv3D", "embedding", "strings"),
            *("any length", "table"),
        )
    },
    **{
        (kind, "MixUp"): r"MixUp blends inputs, and the (input|layer) '"
        for kind in ("embedding", "strings", "any length")
    },
    **{
        ("custom loss", item): r"Soft targets need one-hot rows, and the loss 'sharp"
        for item in ("CutMix", "MixUp")
    },
    ("transposed", "CutMix"): r"the task is regression",
    **{
        (kind, "AugmentText"): _NO_TEXTS
        for kind in (
            *("sequential", "unbuilt", "functional", "nested", "outputs", "subclassed"),
            *("branching", "functions", "custom layer", "custom loss", "sample weights"),
            *("multi-label", "LSTM", "GRU", "attention", "Conv1D", "Conv3D", "transposed"),
            *("separable", "preprocessing", "any size", "mixed precision", "frozen part"),
        )
    },
    **{(kind, "AugmentText"): r"told which of them are texts" for kind in ("shared", "table")},
    **{("stateful", item): r"memory of model 'stateful' are stateful" for item in PASSES},
    ("custom loss", "LabelSmooth"): r"Soft targets need one-hot rows, and the loss 'sharp",
    ("transposed", "Rebalance"): r"needs classes of which a sample has one, and the task is regr",
    (
        "multi-label",
        "Rebalance",
    ): r"needs classes of which a sample has one, and the task is multil",
    ("outputs", "Rebalance"): r"balances the classes of one output, and the model has 2",
    ("transposed", "LabelSmooth"): r"spreads certainty over classes, and the task is regression",
    ("transposed", "TransferLearn"): r"predicts one vector a sample",
    ("outputs", "TransferLearn"): r"outputs",
    **{
        (kind, "MixedPrecision"): r"No layer of model '\w+' can compute in bfloat16"
        for kind in ("branching", "functions", "mixed precision")
    },
    ("branching", "QuantizeAware"): r"no layer whose weights can be rounded in training",
    ("mixed precision", "QuantizeAware"): r"compute in 16 bits \(mixed precision\)",
    ("branching", "TransferLearn"): r"does not end in a dense layer that could be replaced",
}


def expected(kind: str, item: str) -> str | None:
    """Words of the reason for which the cell refuses; ``None`` where it works."""
    return REFUSED.get((kind, item))


# ------------------------------------------------------------------------------------------ cells


def cell(kind: str, item: str, library: str) -> str | None:
    """Runs a cell and checks what comes out.

    Returns:
        ``None`` where it works, else the reason for which it refused before anything trained.

    Raises:
        AssertionError: If what came out is not sound.
    """
    import importlib

    described = KINDS[kind]
    keras = importlib.import_module(library)
    keras.utils.set_random_seed(5)
    model, data = described.model(keras), described.data()
    make = (described.passes or {}).get(item, PASSES[item])
    pipeline = ok.Pipeline(make(), seed=_SEED, loss=described.loss)
    trained: list[str] = []

    def watch(event: ok.ProgressEvent) -> None:
        trained.append(event.kind)

    measure = ok.Measure(latency_seconds=0, memory=False)
    try:
        result = pipeline.run(model, data, progress=watch, measure=measure)
    except PipelineError as error:
        if "started" in trained:
            raise AssertionError(f"refused after it began: {error}") from error
        return str(error)
    _check(result, model, data, keras)
    return None


def _check(result: ok.Result, model: Any, data: ok.Data, keras: Any) -> None:
    row = result.report.rows[-1]
    assert row.status == "ok", row
    x = _as_given(data.test[0])
    found = _leaves(result.artifact.predict(x))
    assert all(np.all(np.isfinite(leaf)) for leaf in found)
    if isinstance(result.artifact, ok.KerasArtifact):
        again = result.model
        assert isinstance(again, keras.Model), type(again)
        # XLA puts operations together: what is kept in 16 bits between them is rounded elsewhere.
        compiled = isinstance(result.artifact, ok.KerasArtifact) and result.artifact.jit
        short = any(layer.compute_dtype == "bfloat16" for layer in again._flatten_layers())
        apart = (0.02 if short else 1e-3) if compiled else 1e-5
        _close(_leaves(again.predict(_tensors(x), verbose=0)), found, apart)
        return
    # The file by itself, read anew, against the Keras model that it was made of.
    assert isinstance(result.artifact, ok.TFLiteArtifact)
    assert result.artifact.size_bytes == row.after.size_bytes
    with isolated(derive_seed(_SEED, "run")):  # which a model is built under that was not built
        before = ok.KerasArtifact(admit(model, data).model)
    _close(_leaves(before.predict(x)), found, 0.15)


def _as_given(x: Any) -> Any:
    """Columns of a data frame as the inputs that they are."""
    if hasattr(x, "columns"):
        return {name: x[[name]].to_numpy() for name in x.columns}
    return x


def _tensors(x: Any) -> Any:
    import tensorflow as tf

    return tf.constant(x) if getattr(x, "dtype", np.dtype("f")).kind in "OSU" else x


def _leaves(value: Any) -> list[np.ndarray]:
    if isinstance(value, dict):
        return [np.asarray(value[name]) for name in sorted(value)]
    if isinstance(value, list | tuple):
        return [np.asarray(item) for item in value]
    return [np.asarray(value)]


def _close(wanted: list[np.ndarray], found: list[np.ndarray], share: float) -> None:
    """Root mean square of the differences, over that of the outputs around their mean."""
    assert len(wanted) == len(found)
    for one, other in zip(wanted, found, strict=True):
        assert one.shape == other.shape, (one.shape, other.shape)
        error = np.sqrt(np.mean((one.astype("f8") - other) ** 2))
        spread = np.sqrt(np.mean(one.astype("f8") ** 2))
        assert error <= share * spread, (error, spread)
