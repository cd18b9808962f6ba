"""Samples a second of each way to augment, through the stream that training reads.

Each of optkit's policies runs in turns with the same thing made of plain Keras 3 layers in a
``tf.data`` map, and a `Compose` of albumentations with the two ways in which it is used by itself: a
loop in Python, and a ``tf.data`` map over samples with ``numpy_function``. All read the same images
(random ones, CIFAR-10's size unless told otherwise) in batches of 32, and nothing trains meanwhile.

What training needs is measured in the same run: samples a second of a small CNN that trains on images
which lie ready. The stream starves it only if it gives fewer.

Run it with ``python -m benchmarks.augmentation``. With ``--accuracy`` it trains another CNN
instead, one with batch normalization, from scratch on a part of CIFAR-10, once a seed and policy: the
accuracies of the method cards. That takes half an hour.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks import common

BATCH = 32
CLASSES = 10


def small_cnn(size: int) -> Any:
    """A CNN that trains fast, and so needs many samples a second."""
    import tf_keras

    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            tf_keras.Input((size, size, 3), dtype="uint8"),
            layers.Rescaling(1 / 255),
            *(
                layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")
                for filters in (32, 64, 128)
            ),
            layers.GlobalAveragePooling2D(),
            layers.Dense(CLASSES, activation="softmax"),
        ]
    )


class Streams:
    """Ways to read the same images, each a ``tf.data.Dataset`` or an iterator of batches.

    Args:
        size: Height and width.
        samples: Number of images.
    """

    def __init__(self, size: int, samples: int):
        import optkit as ok
        from optkit.models import signature
        from optkit.task import infer_loss, infer_task
        from optkit.training.plan import Plan

        rng = np.random.default_rng(0)
        self.x = rng.integers(0, 256, (samples, size, size, 3), dtype="uint8")
        self.y = rng.integers(0, CLASSES, samples)
        self.model = small_cnn(size)
        data = ok.Data(train=(self.x, self.y), batch_size=BATCH)
        self.split = data.bind(signature(self.model)).train
        task = infer_task(self.model, self.y)
        self.plan = Plan(task, infer_loss(self.model, task), {}, {"": CLASSES})

    def optkit(self, item: Any) -> Any:
        """The stream that training by a recipe with one pass reads."""
        import optkit as ok
        from optkit.training.stream import training_batches

        return training_batches(self.split, item.amend(ok.Recipe()), self.plan, 0)

    def keras(self, make: Callable[[Any], list[Any]], *, mixes: bool = False) -> Any:
        """Plain layers of Keras 3 in a map over the batches."""
        import keras
        import tensorflow as tf

        layers = make(keras.layers)

        def augmented(x: Any, y: Any) -> Any:
            if mixes:
                out = layers[0]({"images": x, "labels": tf.one_hot(y, CLASSES)}, training=True)
                return out["images"], out["labels"]
            for layer in layers:
                x = layer(x, training=True)
            return x, y

        batches = self.split.training_batches(0)
        return batches.map(augmented, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    def loop(self, transform: Any) -> Iterator[Any]:
        """A transform of albumentations in a loop, stacked to batches."""
        order = np.random.default_rng(0)
        while True:
            rows = order.permutation(len(self.x))
            for start in range(0, len(rows) - BATCH + 1, BATCH):
                chosen = rows[start : start + BATCH]
                yield (
                    np.stack([transform(image=self.x[i])["image"] for i in chosen]),
                    self.y[chosen],
                )

    def mapped(self, transform: Any) -> Any:
        """The same in a parallel map over the samples, as guides show it."""
        import tensorflow as tf

        @tf.autograph.experimental.do_not_convert
        def augmented(x: Any, y: Any) -> Any:
            out = tf.numpy_function(lambda image: transform(image=image)["image"], [x], tf.uint8)
            return tf.ensure_shape(out, x.shape), y

        samples = tf.data.Dataset.from_tensor_slices((self.x, self.y)).repeat()
        samples = samples.shuffle(len(self.x), seed=0).map(augmented, tf.data.AUTOTUNE)
        return samples.batch(BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def seconds_to_read(stream: Any, batches: int) -> Callable[[], float]:
    """A function that tells how long some batches of a stream take.

    Every turn reads from a new iterator, and drops it: what was read ahead while the other side had
    its turn would come for nothing, and reading ahead would take the processor from the other side.
    """

    def run() -> float:
        iterator = iter(stream)
        for _ in itertools.islice(iterator, 2):  # starting it does not count
            pass
        began = time.perf_counter()
        for _ in itertools.islice(iterator, batches):
            pass
        return time.perf_counter() - began

    return run


def seconds_to_train(streams: Streams, batches: int) -> Callable[[], float]:
    """The same of training on images that lie ready."""
    model = streams.model
    model.compile("adam", "sparse_categorical_crossentropy")
    ready = iter(streams.split.training_batches(0).take(8).cache().repeat())
    step = model.make_train_function()

    def run() -> float:
        began = time.perf_counter()
        for _ in range(batches):
            loss = step(ready)
        float(loss["loss"])
        return time.perf_counter() - began

    return run


def compose() -> Any:
    """What people write for photographs."""
    import albumentations as A  # noqa: N812

    return A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.Affine(rotate=(-15, 15), scale=(0.9, 1.1), p=0.8),
            A.RandomBrightnessContrast(p=0.5),
            A.CoarseDropout(p=0.3),
        ]
    )


def _cases(streams: Streams) -> list[tuple[str, Callable[[], Any], str, Callable[[], Any]]]:
    import optkit as ok

    whole = (0, 255)

    def keras(*names: str, **settings: Any) -> Callable[[], Any]:
        def make(layers: Any) -> list[Any]:
            return [getattr(layers, name)(value_range=whole, **settings) for name in names]

        return lambda: streams.keras(make)

    def photo(layers: Any) -> list[Any]:
        return [
            layers.RandomFlip("horizontal"),
            layers.RandomRotation(15 / 360),
            layers.RandomZoom(0.15),
            layers.RandomTranslation(0.1, 0.1),
            layers.RandomContrast(0.2, value_range=whole),
            layers.RandomBrightness(0.15, value_range=whole),
        ]

    def ours(*arguments: Any, of: Any = ok.Augment) -> Callable[[], Any]:
        return lambda: streams.optkit(of(*arguments))

    def mixed(name: str) -> Callable[[], Any]:
        return lambda: streams.keras(lambda layers: [getattr(layers, name)()], mixes=True)

    found = [
        ("photo", ours("photo"), "six Keras layers", lambda: streams.keras(photo)),
        ("rand", ours("rand"), "keras RandAugment", keras("RandAugment", factor=0.3)),
        ("auto-cifar10", ours("auto-cifar10"), "keras RandAugment", keras("RandAugment")),
        ("auto-imagenet", ours("auto-imagenet"), "keras RandAugment", keras("RandAugment")),
        ("augmix", ours("augmix"), "keras AugMix", keras("AugMix")),
        ("erase", ours("erase"), "keras RandomErasing", keras("RandomErasing")),
        ("MixUp", ours(of=ok.MixUp), "keras MixUp", mixed("MixUp")),
        ("CutMix", ours(of=ok.CutMix), "keras CutMix", mixed("CutMix")),
    ]
    try:
        transform = compose()
    except ImportError:
        print("albumentations is not installed: left out")
        return found
    ready = ours(transform)
    return [
        *found,
        ("albumentations", ready, "a loop", lambda: streams.loop(transform)),
        ("albumentations", ready, "numpy_function a sample", lambda: streams.mapped(transform)),
    ]


def show_accuracy(seeds: int, epochs: int, samples: int) -> dict[str, list[float]]:
    """Trains from scratch with each policy; prints a table of the accuracies on ``test``."""
    import tf_keras

    import optkit as ok
    from benchmarks.models import cifar_images, cnn

    (x, y), test = cifar_images()
    cases: dict[str, list[Any]] = {
        "none": [],
        'Augment("photo")': [ok.Augment("photo")],
        'Augment("rand", horizontal_flip=True)': [ok.Augment("rand", horizontal_flip=True)],
        'Augment("auto-cifar10", horizontal_flip=True)': [
            ok.Augment("auto-cifar10", horizontal_flip=True)
        ],
        'Augment("augmix", horizontal_flip=True)': [ok.Augment("augmix", horizontal_flip=True)],
        'Augment(["photo", "erase"])': [ok.Augment(["photo", "erase"])],
        "MixUp()": [ok.MixUp()],
        "CutMix()": [ok.CutMix()],
        'MixUp(), Augment("photo")': [ok.MixUp(), ok.Augment("photo")],
        'CutMix(), Augment("photo")': [ok.CutMix(), ok.Augment("photo")],
        'CutMix(mixup_alpha=0.2), Augment("photo")': [
            ok.CutMix(mixup_alpha=0.2),
            ok.Augment("photo"),
        ],
    }
    found: dict[str, list[float]] = {name: [] for name in cases}
    for seed in range(seeds):
        rows = np.random.default_rng(seed).permutation(len(x))[:samples]
        data = ok.Data(train=(x[rows], y[rows]), test=test, batch_size=BATCH)
        for name, passes in cases.items():
            tf_keras.utils.set_random_seed(seed)
            pipeline = ok.Pipeline(
                # The schedule ends at zero: every training comes to rest.
                [*passes, ok.LRSchedule("cosine"), ok.FineTune(epochs, 3e-3, patience=None)],
                loss="sparse_categorical_crossentropy",
                seed=seed,
            )
            measure = ok.Measure(latency_seconds=0, memory=False)
            result = pipeline.run(
                cnn((32, 32, 3), (16, 32, 64), scale=1 / 255), data, measure=measure
            )
            found[name].append(result.report.final.accuracy)
            print(f"seed {seed}, {name}: {found[name][-1]:.3f}", flush=True)
    plain = found["none"]
    table = []
    for name, values in found.items():
        gains = [100 * (one - other) for one, other in zip(values, plain, strict=True)]
        table.append(
            (
                name,
                f"{100 * np.mean(values):.1f} ({100 * min(values):.1f} – {100 * max(values):.1f})",
                f"{np.mean(gains):+.1f} ({min(gains):+.1f} – {max(gains):+.1f})",
            )
        )
    print("\n" + common.table(("recipe", "accuracy, %", "change, points"), table))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    parser = common.parser(__doc__)
    parser.add_argument("--pairs", type=int, default=10, help="pairs of turns")
    parser.add_argument("--batches", type=int, default=60, help="batches a turn")
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--accuracy", action="store_true", help="train with each instead")
    parser.add_argument("--seeds", type=int, default=3, help="with --accuracy: trainings of each")
    parser.add_argument("--epochs", type=int, default=60, help="with --accuracy: epochs of each")
    parser.add_argument("--samples", type=int, default=4000, help="with --accuracy: images")
    options = parser.parse_args(arguments)
    if options.accuracy:
        seeds, epochs, samples = (
            (1, 1, 200)
            if options.quick
            else (
                options.seeds,
                options.epochs,
                options.samples,
            )
        )
        found = show_accuracy(seeds, epochs, samples)
        if options.json is not None:
            common.write_json(
                options.json, {"accuracy": found, "environment": common.environment()}
            )
        return 0
    pairs, batches = (2, 5) if options.quick else (options.pairs, options.batches)

    streams = Streams(options.size, 2048 if options.size <= 64 else 256)
    outcome = common.Outcome("augmentation")
    rows: list[tuple[str, ...]] = []
    train = seconds_to_train(streams, batches)
    for name, make, other, make_other in _cases(streams):
        read = seconds_to_read(make(), batches)
        turns = common.in_turns(seconds_to_read(make_other(), batches), read, pairs)
        demand = common.in_turns(train, read, pairs)
        samples = BATCH * batches
        rate, rate_other = (samples / common.median(side) for side in (turns.second, turns.first))
        takes = samples / common.median(demand.first)
        outcome.figures[f"{name} against {other}"] = {
            "samples_per_second": rate,
            "samples_per_second_other": rate_other,
            "samples_per_second_training": takes,
            **turns.to_dict(),
            "against_training": demand.to_dict(),
        }
        rows.append(
            (
                name,
                f"{rate:,.0f}",
                other,
                f"{rate_other:,.0f}",
                common.shown(turns.ratio, turns.ratio_ci, 2),
                common.shown(demand.ratio, demand.ratio_ci, 1),
            )
        )
        print(f"{name} against {other}: {rows[-1][4]} (training takes {takes:,.0f}/s)", flush=True)
        outcome.hold(
            f"{name} gives more samples than training takes",
            f"{rows[-1][5]} times as many",
            demand.ratio_ci[0] >= 1,
        )
        if not name.startswith("auto-"):  # Keras has no such layer; its nearest is shown
            outcome.hold(
                f"{name} is no slower than {other}",
                f"{rows[-1][4]} times as fast",
                turns.ratio_ci[1] >= 1,
            )
    header = ("policy", "samples/s", "against", "samples/s", "times as fast", "of training's need")
    print(f"\n{options.size} x {options.size} pixels\n\n{common.table(header, rows)}")
    return common.finish(outcome, options)


if __name__ == "__main__":
    sys.exit(main())
