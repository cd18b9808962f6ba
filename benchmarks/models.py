"""Trained float models and their data, for benchmarks that judge accuracy.

Each model is trained once and kept as a ``.keras`` file in a cache folder; what is measured later is
the same weights every time. Data are found through ``OPTKIT_DATA``.

Train them all, without measuring anything, with ``python -m benchmarks.models``; it takes about a
quarter of an hour on two cores.
"""

from __future__ import annotations

import csv
import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import common

#: Trained models of another version are not used.
_VERSION = 1
_WORDS, _LENGTH = 8000, 32
IMAGENET_MEAN, IMAGENET_SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MOBILENET_SIZE = 96
_MOBILENET_TRAIN = 3000  # images at 96 by 96 that are handed on; the head is trained on all

Split = tuple[Any, Any]


class UnavailableError(Exception):
    """What a subject needs is not on this machine."""


@dataclass(frozen=True)
class Splits:
    """Arrays of one subject: inputs and whole-number classes."""

    train: Split
    validation: Split
    test: Split

    def calibration(self, samples: int = 200) -> Any:
        """Inputs to calibrate on, drawn from ``train`` with a fixed seed: the same for everyone."""
        import numpy as np

        x = self.train[0]
        return x[np.random.default_rng(0).permutation(len(x))[:samples]]


@dataclass(frozen=True)
class Subject:
    """A model to be quantized.

    Attributes:
        name: Short name, for the command line and files.
        title: What it is, for tables.
        load: Its data.
        train: Builds and trains it on its data.
        recurrent: Whether it loops over time.
    """

    name: str
    title: str
    load: Callable[[], Splits]
    train: Callable[[Splits], Any]
    recurrent: bool = False

    def model(self, cache: Path) -> Any:
        """The trained model: from the cache, else trained and put there."""
        import tf_keras as keras

        path = self.path(cache)
        if not path.exists():
            keras.utils.set_random_seed(0)
            model = self.train(self.load())
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name(f"{os.getpid()}-{path.name}")
            model.save(unfinished)
            unfinished.replace(path)
        return keras.models.load_model(path)

    def path(self, cache: Path) -> Path:
        """Where the trained model is kept."""
        return cache / f"{self.name}-{_VERSION}.keras"


def default_cache() -> Path:
    """The folder for trained models, among the user's caches."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "optkit-benchmarks"


def data_file(name: str) -> Path:
    folder = os.environ.get("OPTKIT_DATA")
    if not folder:
        raise UnavailableError(f"needs {name}, and OPTKIT_DATA is not set")
    path = Path(folder) / name
    if not path.exists():
        raise UnavailableError(f"needs {name}, and {folder} has none")
    return path


# ------------------------------------------------------------------------------------------ digits


def _digits() -> Splits:
    """scikit-learn's digits, with a large test split: half a point should be more than one image."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    loaded = load_digits()
    x, y = (loaded.images[..., None] / 16).astype("float32"), loaded.target.astype("int64")
    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=800, random_state=0, stratify=y
    )
    x_train, x_val, y_train, y_val = train_test_split(
        x_train, y_train, test_size=200, random_state=0, stratify=y_train
    )
    return Splits((x_train, y_train), (x_val, y_val), (x_test, y_test))


def _train_digits(splits: Splits, *, norm_last: bool) -> Any:
    import tf_keras as keras

    layers = keras.layers

    def block(filters: int, number: int) -> list[Any]:
        norm = layers.BatchNormalization(name=f"norm{number}")
        relu = layers.ReLU(name=f"relu{number}")
        convolution = layers.Conv2D(
            filters, 3, padding="same", use_bias=norm_last, name=f"conv{number}"
        )
        return [convolution, relu, norm] if norm_last else [convolution, norm, relu]

    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            *block(32, 1),
            *block(64, 2),
            layers.MaxPooling2D(name="pool"),
            *block(64, 3),
            layers.Flatten(name="flatten"),
            layers.Dense(64, activation="relu", name="dense"),
            layers.Dense(10, activation="softmax", name="classes"),
        ],
        name="digits_relu_bn" if norm_last else "digits",
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(*splits.train, batch_size=32, epochs=40, verbose=0)
    return model


# ---------------------------------------------------------------------------------------- CIFAR-10


@functools.cache
def cifar_images() -> tuple[Split, Split]:
    """CIFAR-10 as uint8: 12,000 images to train with and 3,000 to test with."""
    import numpy as np

    try:
        with np.load(data_file("data/cifar10_subset.npz")) as arrays:
            found = {name: arrays[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    except UnavailableError:
        import tf_keras as keras

        try:
            (x, y), (x_test, y_test) = keras.datasets.cifar10.load_data()
        except Exception as error:
            raise UnavailableError(
                "needs CIFAR-10: set OPTKIT_DATA, or let Keras load it"
            ) from error
        found = {"x_train": x[:12000], "y_train": y[:12000].ravel()}
        found |= {"x_test": x_test[:3000], "y_test": y_test[:3000].ravel()}
    train = found["x_train"], found["y_train"].astype("int64")
    return train, (found["x_test"], found["y_test"].astype("int64"))


_CIFAR_VALIDATION = 1500


def _cifar_splits(prepare: Callable[[Any], Any], train: int | None = None) -> Splits:
    (x, y), (x_test, y_test) = cifar_images()
    held, rest = slice(0, _CIFAR_VALIDATION), slice(_CIFAR_VALIDATION, None)
    return Splits(
        (prepare(x[rest][:train]), y[rest][:train]),
        (prepare(x[held]), y[held]),
        (prepare(x_test), y_test),
    )


def _cifar() -> Splits:
    return _cifar_splits(lambda x: (x / 255).astype("float32"))


def cnn(shape: tuple[int, ...], widths: Sequence[int], *, scale: float | None = None) -> Any:
    """A CNN for 10 classes that trains in seconds and learns its images by heart, untrained.

    Args:
        shape: Height, width and channels of the images.
        widths: Channels of its convolutions; each halves height and width.
        scale: What it multiplies its images by itself, for images as bytes.
    """
    import tf_keras as keras

    layers = keras.layers
    parts: list[Any] = [keras.Input(shape, name="image")]
    if scale is not None:
        parts.append(layers.Rescaling(scale))
    for width in widths:
        parts += [
            layers.Conv2D(width, 3, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.9),  # 0.99 lags behind in so few updates
            layers.ReLU(),
            layers.MaxPooling2D(),
        ]
    return keras.Sequential([*parts, layers.Flatten(), layers.Dense(10, activation="softmax")])


def cifar_cnn() -> Any:
    """A small CNN for 32 by 32 images of 10 classes, untrained."""
    import tf_keras as keras

    layers = keras.layers

    def block(filters: int, number: int) -> list[Any]:
        return [
            layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv{number}"),
            layers.BatchNormalization(name=f"norm{number}"),
            layers.ReLU(name=f"relu{number}"),
        ]

    return keras.Sequential(
        [
            keras.Input((32, 32, 3), name="image"),
            *block(32, 1),
            layers.MaxPooling2D(name="pool1"),
            *block(64, 2),
            layers.MaxPooling2D(name="pool2"),
            *block(128, 3),
            *block(128, 4),
            layers.GlobalAveragePooling2D(name="average"),
            layers.Dropout(0.2, name="dropout"),
            layers.Dense(10, activation="softmax", name="classes"),
        ],
        name="cifar",
    )


def _train_cifar(splits: Splits) -> Any:
    import tensorflow as tf
    import tf_keras as keras

    model = cifar_cnn()
    epochs, batch = 20, 64
    steps = -(-len(splits.train[0]) // batch) * epochs

    def vary(x: Any, y: Any) -> Any:
        x = tf.pad(tf.image.random_flip_left_right(x), [[0, 0], [3, 3], [3, 3], [0, 0]], "REFLECT")
        return tf.image.random_crop(x, [tf.shape(x)[0], 32, 32, 3]), y

    stream = tf.data.Dataset.from_tensor_slices(splits.train).shuffle(20_000).batch(batch)
    rate = keras.optimizers.schedules.CosineDecay(4e-3, steps)
    model.compile(
        keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    model.fit(stream.map(vary).prefetch(2), epochs=epochs, verbose=2)
    return model


# ------------------------------------------------------------------------------------- MobileNetV2


def _for_mobilenet(images: Any) -> Any:
    """Images brought to 96 by 96 and normalized as the weights want it."""
    import numpy as np
    import tensorflow as tf

    mean, spread = np.array(IMAGENET_MEAN, "float32"), np.array(IMAGENET_SPREAD, "float32")
    large = [
        tf.image.resize(images[i : i + 500], (_MOBILENET_SIZE, _MOBILENET_SIZE)).numpy()
        for i in range(0, len(images), 500)
    ]
    return (np.concatenate(large) / 255 - mean) / spread


def _mobilenet() -> Splits:
    return _cifar_splits(_for_mobilenet, _MOBILENET_TRAIN)


def _train_mobilenet(_: Splits) -> Any:
    import numpy as np
    import tf_keras as keras

    weights = data_file("models/mobilenet_v2_imagenet_notop.h5")
    backbone = keras.models.load_model(weights, compile=False)
    config = backbone.get_config()  # built for 224, and fully convolutional
    config["layers"][0]["config"]["batch_input_shape"] = (None, _MOBILENET_SIZE, _MOBILENET_SIZE, 3)
    twin = keras.Model.from_config(config)
    twin.set_weights(backbone.get_weights())
    x, y = (part[_CIFAR_VALIDATION:] for part in cifar_images()[0])
    features = np.concatenate(
        [
            twin.predict(_for_mobilenet(x[i : i + 500]), batch_size=50, verbose=0)
            for i in range(0, len(x), 500)
        ]
    )
    head = keras.layers.Dense(10, activation="softmax", name="classes")
    small = keras.Sequential(
        [keras.Input((features.shape[1],)), keras.layers.Dropout(0.3), head], name="head"
    )
    small.compile(
        keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    small.fit(features, y, batch_size=64, epochs=15, verbose=2)
    # Whoever trains the model further trains what was trained here: the head.
    twin.trainable = False
    model = keras.Model(twin.input, head(twin.output), name="mobilenet")
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


# ------------------------------------------------------------------------------------------- texts


@functools.cache
def _reviews() -> Splits:
    """Sentences of movie reviews, clearly good or clearly bad, as 32 numbers of words."""
    import tensorflow as tf
    import tf_keras as keras
    from sklearn.model_selection import train_test_split

    path = data_file("data/movie_review_sentences.tsv")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    rated = [(float(row["rating"]), row["text"]) for row in rows]
    texts = [text for rating, text in rated if abs(rating) > 0.5]
    classes = [int(rating > 0) for rating, _ in rated if abs(rating) > 0.5]
    rest, test, y_rest, y_test = train_test_split(
        texts, classes, test_size=3000, random_state=0, stratify=classes
    )
    known, held, y_known, y_held = train_test_split(
        rest, y_rest, test_size=1000, random_state=0, stratify=y_rest
    )
    numbers = keras.layers.TextVectorization(_WORDS, ragged=True)
    numbers.adapt(tf.constant(known))

    def split(sentences: list[str], labels: list[int]) -> Split:
        import numpy as np

        listed = numbers(tf.constant(sentences)).to_list()
        # Padding in front: what is read last is a word.
        x = keras.utils.pad_sequences(listed, _LENGTH, padding="pre", truncating="post")
        return x.astype("int32"), np.array(labels, dtype="int64")

    return Splits(split(known, y_known), split(held, y_held), split(test, y_test))


def _train_text(splits: Splits, *, kind: str) -> Any:
    import tf_keras as keras

    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((_LENGTH,), dtype="int32", name="words"),
            layers.Embedding(_WORDS, 64, name="embedding"),
            layers.SpatialDropout1D(0.3, name="dropout"),
            getattr(layers, kind)(64, name=kind.lower()),
            layers.Dense(2, activation="softmax", name="classes"),
        ],
        name=kind.lower(),
    )
    model.compile(
        keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    stop = keras.callbacks.EarlyStopping("val_accuracy", patience=2, restore_best_weights=True)
    model.fit(
        *splits.train,
        batch_size=32,
        epochs=8,
        validation_data=splits.validation,
        callbacks=[stop],
        verbose=2,
    )
    return model


# -------------------------------------------------------------------------------------------- all

SUBJECTS: tuple[Subject, ...] = (
    Subject("digits", "digits CNN", _digits, functools.partial(_train_digits, norm_last=False)),
    Subject(
        "digits_relu_bn",
        "digits CNN, batch norm after ReLU",
        _digits,
        functools.partial(_train_digits, norm_last=True),
    ),
    Subject("cifar", "CIFAR-10 CNN", _cifar, _train_cifar),
    Subject("mobilenet", "MobileNetV2, CIFAR-10 head", _mobilenet, _train_mobilenet),
    Subject("gru", "text GRU", _reviews, functools.partial(_train_text, kind="GRU"), True),
    Subject("lstm", "text LSTM", _reviews, functools.partial(_train_text, kind="LSTM"), True),
)


def subject(name: str) -> Subject:
    """A subject by its name."""
    return next(one for one in SUBJECTS if one.name == name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains what is not in the cache, and prints the accuracy of all; returns the exit status."""
    parser = common.parser(__doc__)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder of the models")
    names = [one.name for one in SUBJECTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="these alone")
    options = parser.parse_args(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    rows, figures = [], {}
    for name in options.only:
        began = time.perf_counter()
        try:
            model = subject(name).model(options.cache)
            _, accuracy = model.evaluate(*subject(name).load().test, verbose=0)
        except UnavailableError as error:
            print(f"{name}: skipped, it {error}", flush=True)
            continue
        seconds = time.perf_counter() - began
        figures[name] = {"accuracy": float(accuracy), "parameters": int(model.count_params())}
        rows.append((name, f"{model.count_params():,}", f"{accuracy:.4f}", f"{seconds:.0f} s"))
    print(common.table(("model", "parameters", "accuracy on test", "seconds here"), rows))
    if options.json is not None:
        common.write_json(options.json, {"models": figures, "environment": common.environment()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
