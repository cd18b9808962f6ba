"""What `AuditData` finds in real data, how long it takes, and whether it knows what a model expects.

The first table: public data as they are, cut into ``train`` and ``test`` by their makers or at random; seconds are the processor's.
The second, where ``OPTKIT_DATA`` has the ImageNet MobileNetV2: how far photographs in each form of
values are from what its first batch normalization remembers, and what is said. Prints Markdown.

Run it with ``python -m benchmarks.audit``; it takes less than a minute.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

_FORMS = ("imagenet", "symmetric", "unit", "bytes", "caffe")


def _folder() -> Path | None:
    return Path(os.environ["OPTKIT_DATA"]) if os.environ.get("OPTKIT_DATA") else None


def _halves(x: Any, y: Any, share: float = 0.75) -> Any:
    """Data of a random cut."""
    import optkit as ok

    order = np.random.default_rng(0).permutation(len(y))
    cut = int(share * len(y))
    first, rest = order[:cut], order[cut:]
    return ok.Data(train=(x[first], y[first]), test=(x[rest], y[rest]))


def _model(shape: tuple[int, ...], classes: int, words: Any = None) -> Any:
    """The smallest model that takes such inputs; it is not trained."""
    import tf_keras

    layers = tf_keras.layers
    source = tf_keras.Input(shape, dtype="float32" if words is None else "string")
    x = source
    if words is not None:
        vectorize = layers.TextVectorization(1000, output_sequence_length=32)
        vectorize.adapt(words)
        x = layers.Embedding(1000, 4)(vectorize(x))
    x = layers.Flatten()(x)
    return tf_keras.Model(source, layers.Dense(classes, activation="softmax")(x))


def _cases() -> list[tuple[str, Any, Any, dict[str, Any]]]:
    from sklearn.datasets import load_breast_cancer, load_wine

    import optkit as ok
    from optkit.testing import digits

    cases: list[tuple[str, Any, Any, dict[str, Any]]] = [
        ("digits", digits(), _model((8, 8, 1), 10), {}),
    ]
    for name, load in (("breast cancer", load_breast_cancer), ("wine", load_wine)):
        x, y = load(return_X_y=True)
        model = _model(x.shape[1:], len(np.unique(y)))
        cases.append((name, _halves(x.astype("float32"), y), model, {}))
    folder = _folder()
    if folder is None:
        return cases
    with np.load(folder / "data" / "cifar10_subset.npz") as loaded:
        cifar = ok.Data(
            train=(loaded["x_train"], loaded["y_train"]), test=(loaded["x_test"], loaded["y_test"])
        )
    for near in (None, 0.15):
        name = "CIFAR-10 subset" + ("" if near is None else f", near={near:g}")
        cases.append((name, cifar, _model((32, 32, 3), 10), {"near": near}))
    lines = (folder / "data" / "movie_review_sentences.tsv").read_text("utf-8").splitlines()[1:]
    ratings, texts = zip(*(line.split("\t", 1) for line in lines), strict=True)
    words = np.array(texts, dtype=object)
    reviews = _halves(words, np.array([float(rating) > 0 for rating in ratings]).astype(int))
    cases.append(("movie-review sentences", reviews, _model((), 2, words[:200]), {}))
    return cases


def _found() -> list[str]:
    import optkit as ok

    class Timed(ok.AuditData):
        """Takes the processor's time, which other work on the machine does not prolong."""

        seconds = 0.0

        def inspect(self, artifact: Any, context: Any) -> None:
            began = time.process_time()
            super().inspect(artifact, context)
            Timed.seconds = time.process_time() - began

    lines = ["| data | seconds | found |", "|---|---|---|"]
    for name, data, model, settings in _cases():
        report = (
            ok.Pipeline([Timed(**settings)])
            .run(
                model,
                data,
                progress=False,
                measure=ok.Measure(latency_seconds=0, memory=False),
            )
            .report
        )
        row = report.rows[0]
        samples = row.notes[-1].partition(";")[0].removeprefix("looked at ")
        found = "; ".join(row.notes[:-1]) or "nothing"
        lines.append(f"| {name} ({samples}) | {Timed.seconds:.2f} | {found} |")
    return lines


def _expected(path: Path, images: Any) -> list[str]:
    import tensorflow as tf
    import tf_keras

    from optkit.preprocessing import FORMS, distance_from_training, preprocessing_mismatch

    model = tf_keras.models.load_model(path, compile=False)
    resized = np.asarray(tf.image.resize(images[:64], (224, 224))) / 255
    lines = ["| values given | distance | said |", "|---|---|---|"]
    for form in _FORMS:
        values = FORMS[form].make(resized)
        found = preprocessing_mismatch(model, values)
        said = "nothing" if found is None else f"expects {found.expected}"
        lines.append(
            f"| {FORMS[form].name} | {distance_from_training(model, values):.2f} | {said} |"
        )
    return lines


def main() -> None:
    """Prints both tables."""
    print("\n".join(_found()))
    folder = _folder()
    if folder is None:
        return
    with np.load(folder / "data" / "cifar10_subset.npz") as loaded:
        images = loaded["x_test"]
    path = folder / "models" / "mobilenet_v2_imagenet_notop.h5"
    print("\n" + "\n".join(_expected(path, images)))


if __name__ == "__main__":
    main()
