"""Learned policies, albumentations, MixUp and CutMix: against Pillow and NumPy, and in real runs."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage

import optkit as ok
from optkit.data import Data
from optkit.fingerprint import fingerprint
from optkit.images import are_places
from optkit.imaging import Albumented, operations
from optkit.imaging.operations import AMOUNTS_OF_AUGMIX, AMOUNTS_OF_AUTOAUGMENT
from optkit.imaging.policies import _shares
from optkit.imaging.published import POLICIES
from optkit.mixing import CutMixing, MixUpMixing, beta, blended_targets
from optkit.models import signature
from optkit.testing import digits, small_model

HEIGHT, WIDTH = 24, 20
ALL = [
    ok.RandAugment(),
    ok.AutoAugment("cifar10"),
    ok.AutoAugment("imagenet"),
    ok.AugMix(all_operations=True),
    ok.RandomErasing(1.0),
]


@pytest.fixture(scope="module")
def pictures():
    """Soft coloured blobs of all greys from 0 to 255, shape (8, 24, 20, 3)."""
    noise = np.random.default_rng(0).random((8, HEIGHT, WIDTH, 3))
    soft = ndimage.gaussian_filter(noise, (0, 2, 2, 0))
    return np.rint((soft - soft.min()) / (soft.max() - soft.min()) * 255).astype("uint8")


def _key(*numbers):
    import tensorflow as tf

    return tf.constant(numbers, tf.int64)


def _applied(name, amount, images):
    import tensorflow as tf

    count = len(images)
    return operations.apply(
        tf.constant(images, tf.float32),
        tf.fill([count], operations.number(name)),
        tf.fill([count], float(amount)),
        used=[name],
        fill_mode="constant",
        low=0.0,
    ).numpy()


def _by_pillow(function, images):
    return np.stack(
        [
            np.asarray(function(Image.fromarray(image.squeeze()))).reshape(image.shape)
            for image in images
        ]
    ).astype("float32")


# --------------------------------------------------------------------------------- operations


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "amount", "pillow", "within"),
    [
        # Pillow cuts off what lies behind the point, and rounds greys: up to a level and a half.
        ("Brightness", 1.4, lambda image: ImageEnhance.Brightness(image).enhance(1.4), 1),
        ("Contrast", 0.5, lambda image: ImageEnhance.Contrast(image).enhance(0.5), 1),
        ("Color", 1.7, lambda image: ImageEnhance.Color(image).enhance(1.7), 1.5),
        ("Sharpness", 1.9, lambda image: ImageEnhance.Sharpness(image).enhance(1.9), 1.5),
        ("Sharpness", 0.1, lambda image: ImageEnhance.Sharpness(image).enhance(0.1), 1.5),
        ("AutoContrast", 0, ImageOps.autocontrast, 1.01),
        ("Posterize", 4, lambda image: ImageOps.posterize(image, 4), 0),
        ("Solarize", 100, lambda image: ImageOps.solarize(image, 100), 0),
        ("Equalize", 0, ImageOps.equalize, 0),
        ("Invert", 0, ImageOps.invert, 0),
    ],
)
def test_operations_are_those_of_pillow(pictures, name, amount, pillow, within, channels):
    images = pictures[..., :channels] // 2 + 30  # with room for contrast to grow
    found = _applied(name, amount, images)
    assert np.abs(found - _by_pillow(pillow, images)).max() <= within
    if (name, channels) != ("Color", 1):
        assert np.abs(found - images).max() > 2, "it does something"


def test_moves_are_those_of_pillow(pictures):
    turn = math.radians(20)
    for name, amount, matrix in (
        ("ShearX", 0.3, (1, 0.3, 0, 1)),
        ("ShearY", -0.2, (1, 0, -0.2, 1)),
        ("Rotate", 20, (math.cos(turn), math.sin(turn), -math.sin(turn), math.cos(turn))),
    ):
        a, b, d, e = matrix
        x, y = WIDTH / 2, HEIGHT / 2  # Pillow counts from the edge of the first pixel
        whole = (a, b, x - a * x - b * y, d, e, y - d * x - e * y)
        expected = _by_pillow(
            lambda image, whole=whole: image.transform(
                image.size, Image.Transform.AFFINE, whole, Image.Resampling.BILINEAR
            ),
            pictures,
        )
        found = _applied(name, amount, pictures)
        assert np.abs(found - expected)[:, 8:16, 6:14].max() <= 1.01, name
    assert np.array_equal(_applied("TranslateX", 0.25, pictures)[:, :, :15], pictures[:, :, 5:])
    assert np.array_equal(_applied("TranslateY", 0.25, pictures)[:, :18], pictures[:, 6:])
    assert not _applied("TranslateY", 0.25, pictures)[:, 18:].any(), "filled with the lowest value"


def test_flat_images_and_few_pixels_stay():
    flat = np.full((2, 9, 9, 1), 80, "uint8")
    few = np.arange(9, dtype="uint8").reshape(1, 3, 3, 1)
    for name in ("AutoContrast", "Equalize"):
        assert np.array_equal(_applied(name, 0, flat), flat)
    assert np.array_equal(_applied("Equalize", 0, few), few)
    one = np.full((1, 1, 1, 3), 7, "uint8")
    assert np.array_equal(_applied("Sharpness", 1.9, one), one)


def test_each_image_gets_its_own_operation(pictures):
    import tensorflow as tf

    names = ["Invert", "Equalize", "Identity", "Rotate", "Color", "Sharpness", "Posterize"]
    amounts = [0, 0, 0, 20, 1.9, 1.9, 3]
    images = pictures[: len(names)]
    together = operations.apply(
        tf.constant(images, tf.float32),
        tf.constant([operations.number(name) for name in names]),
        tf.constant(amounts, tf.float32),
        used=names,
        fill_mode="constant",
        low=0.0,
    ).numpy()
    alone = [
        _applied(name, amount, images[i : i + 1])[0]
        for i, (name, amount) in enumerate(zip(names, amounts, strict=True))
    ]
    assert np.allclose(together, np.stack(alone), atol=1e-3)


def test_amounts_span_the_published_ranges():
    def amount(table, name, strength, sign):
        return float(table.of(operations.number(name), np.float32(strength), np.float32(sign)))

    auto = AMOUNTS_OF_AUTOAUGMENT
    for name, strength, sign, expected in (
        ("ShearX", 1, -1, -0.3),
        ("TranslateY", 1, 1, 150 / 331),
        ("Rotate", 0.5, -1, -15),
        ("Brightness", 1, 1, 1.9),
        ("Sharpness", 1, -1, 0.1),
        ("Posterize", 1, -1, 4),
        ("Posterize", 0, 1, 8),
        ("Solarize", 0.5, -1, 128),
    ):
        assert amount(auto, name, strength, sign) == pytest.approx(expected), name
    assert amount(AMOUNTS_OF_AUGMIX, "Posterize", 0.25, 1) == pytest.approx(3)
    assert amount(AMOUNTS_OF_AUGMIX, "TranslateX", 1, -1) == pytest.approx(-1 / 3)


def test_published_policies():
    """Spot checks against the tables of the paper's appendix."""
    cifar, imagenet = POLICIES["cifar10"], POLICIES["imagenet"]
    assert len(cifar) == len(imagenet) == 25
    assert cifar[0] == (("Invert", 0.1, 0.0), ("Contrast", 0.2, 6 / 9))
    assert cifar[1] == (("Rotate", 0.7, 2 / 9), ("TranslateX", 0.3, 1.0))
    assert cifar[24] == (("TranslateY", 0.7, 1.0), ("AutoContrast", 0.9, 0.0))
    assert imagenet[0] == (("Posterize", 0.4, 8 / 9), ("Rotate", 0.6, 1.0))
    assert imagenet[14] == imagenet[23] == (("Color", 0.6, 4 / 9), ("Contrast", 1.0, 8 / 9))
    assert imagenet[12] == (("Equalize", 0.0, 0.0), ("Equalize", 0.8, 0.0))
    names = {step[0] for policy in (cifar, imagenet) for pair in policy for step in pair}
    assert names <= set(operations.OPERATIONS)


# ----------------------------------------------------------------------------------- policies


@pytest.mark.parametrize("policy", ALL, ids=repr)
def test_policies_keep_range_dtype_and_seed(pictures, policy):
    import tensorflow as tf

    changed = {}
    for low, high, dtype, channels in (
        (0, 255, "uint8", 3),
        (0, 255, "float32", 3),
        (0, 1, "float32", 1),
        (-1, 1, "float16", 3),
    ):
        images = pictures[..., :channels] / 255 * (high - low) + low
        images = np.rint(images) if dtype == "uint8" else images
        given = tf.constant(images.astype(dtype))
        out = policy.apply(given, _key(1, 2), (low, high))
        assert out.dtype == dtype
        assert out.shape == given.shape
        out = out.numpy().astype("float64")
        assert out.min() >= low
        assert out.max() <= high
        again = policy.apply(given, _key(1, 2), (low, high)).numpy()
        other = policy.apply(given, _key(1, 3), (low, high)).numpy()
        assert np.array_equal(out.astype(dtype), again)
        assert not np.array_equal(again, other)
        changed[low, high, dtype] = (out - low) / (high - low)
    # The same images in another range are changed in the same way.
    assert np.abs(changed[0, 255, "uint8"] - changed[0, 255, "float32"]).max() < 0.003
    assert np.abs(changed[0, 255, "uint8"] - changed[-1, 1, "float16"]).mean() < 0.01


@pytest.mark.parametrize("policy", ALL, ids=repr)
def test_policies_change_each_image_in_its_own_way(pictures, policy):
    import tensorflow as tf

    alike = np.repeat(pictures[:1], 40, axis=0)
    out = policy.apply(tf.constant(alike), _key(5, 5), (0, 255)).numpy()
    assert len({image.tobytes() for image in out}) > 15


def test_magnitude_is_strength(pictures):
    import tensorflow as tf

    images = tf.constant(np.repeat(pictures, 8, axis=0).astype("float32"))

    def change(magnitude):
        policy = ok.RandAugment(1, magnitude)
        return np.abs(policy.apply(images, _key(2, 2), (0, 255)).numpy() - images).mean()

    assert change(3) < change(12) < change(30)


def test_the_shares_of_augmix():
    """Of chains Dirichlet(alpha, …), of the image itself Beta(alpha, alpha), by their moments."""
    for alpha in (0.5, 1.0, 4.0):
        shares, kept = (part.numpy() for part in _shares(3, 20_000, alpha, _key(1, 2)))
        assert np.allclose(shares.sum(0), 1, atol=1e-5)
        assert np.allclose(shares.mean(1), 1 / 3, atol=0.01)
        assert np.allclose(shares.var(1), 2 / (9 * (3 * alpha + 1)), rtol=0.06)
        assert abs(kept.mean() - 0.5) < 0.015
        assert kept.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)
        assert abs(np.corrcoef(kept, shares[0])[0, 1]) < 0.03


def test_augmix_is_a_blend(pictures):
    """What no chain can make of an image is in no blend; stronger chains go further from it."""
    import tensorflow as tf

    flat = np.full((16, 9, 9, 3), 100, "float32")
    out = ok.AugMix(severity=1).apply(tf.constant(flat), _key(0, 1), (0, 255)).numpy()
    assert np.ptp(out, axis=(1, 2)).max() < 1e-3, "moves of a flat image are flat"
    mild = ok.AugMix(severity=1).apply(tf.constant(pictures), _key(0, 1), (0, 255)).numpy()
    strong = ok.AugMix(severity=10).apply(tf.constant(pictures), _key(0, 1), (0, 255)).numpy()
    assert (
        np.abs(mild - pictures.astype(float)).mean()
        < np.abs(strong - pictures.astype(float)).mean()
    )


def test_erased_areas_and_shapes():
    import tensorflow as tf

    images = tf.fill([600, 40, 60, 1], 0.25)
    policy = ok.RandomErasing(0.5, area=(0.1, 0.2), ratio=(0.5, 2.0), fill=1.0)
    out = policy.apply(images, _key(3, 3), (0.0, 1.0)).numpy()[..., 0]
    erased = out > 0.9
    areas = erased.mean(axis=(1, 2))
    hit = areas > 0
    assert abs(hit.mean() - 0.5) < 0.08
    # Whole pixels: half a pixel of the shorter side, of 15 or so, is 4 %.
    assert areas[hit].min() > 0.1 * 0.93
    assert areas[hit].max() < 0.2 * 1.07
    assert abs(areas[hit].mean() - 0.15) < 0.006
    rows, columns = erased[hit].any(2).sum(1), erased[hit].any(1).sum(1)
    assert np.array_equal(rows * columns, erased[hit].sum((1, 2))), "rectangles"
    assert (columns / rows).min() > 0.45
    assert (columns / rows).max() < 2.2
    assert len(set(rows)) > 5


def test_what_erased_areas_are_filled_with(pictures):
    import tensorflow as tf

    images = pictures[:4].astype("float32")
    for fill in ("noise", "mean", 0.0):
        out = (
            ok.RandomErasing(1.0, (0.3, 0.3), fill=fill)
            .apply(tf.constant(images), _key(1, 1), (0, 255))
            .numpy()
        )
        for image, before in zip(out, images, strict=True):
            new = image[np.abs(image - before).max(-1) > 1e-3]
            if fill == "noise":
                assert len(np.unique(new[:, 0])) > 50
            else:
                wanted = before.mean((0, 1)) if fill == "mean" else np.zeros(3)
                assert np.allclose(new, wanted, atol=0.01)


def test_a_parallel_stream_repeats_itself(pictures):
    import tensorflow as tf

    steps = ok.Augment(["photo", "rand", ok.AugMix(width=2), "erase"])
    split = _split(pictures)
    run = steps.amend(ok.Recipe()).augment[0].prepare(split, 3)

    def stream(parallel):
        return [
            batch.numpy()
            for batch in tf.data.Dataset.range(12).map(
                lambda number: run(tf.constant(pictures), tf.stack([_key(7)[0], number])),
                num_parallel_calls=parallel,
            )
        ]

    one, other = stream(6), stream(None)
    assert np.array_equal(one, other)
    assert not np.array_equal(one[0], one[1])


def test_random_layers_of_keras_3_repeat_themselves_in_parallel(pictures):
    import keras
    import tensorflow as tf

    layers = [
        keras.layers.RandAugment(value_range=(0, 255)),
        keras.layers.RandomErasing(value_range=(0, 255)),
        keras.layers.RandomFlip("horizontal"),
    ]
    steps = ok.Augment(layers).amend(ok.Recipe()).augment[0]
    assert steps.stateless

    def stream(parallel):
        run = steps.prepare(_split(pictures), 0)
        numbers = tf.data.Dataset.range(12).map(
            lambda number: run(tf.constant(pictures), tf.stack([_key(7)[0], number])),
            num_parallel_calls=parallel,
        )
        return np.stack(list(numbers.as_numpy_iterator()))

    one, other = stream(6), stream(None)
    assert one.dtype == "uint8"
    assert np.array_equal(one, other)
    assert len({batch.tobytes() for batch in one}) == 12


def _split(images):
    from optkit.models import signature

    data = Data(train=(images, np.arange(len(images)) % 2))
    return data.bind(signature(_cnn(images.shape[1:]))).train


def _cnn(shape, outputs=2):
    import tf_keras

    return tf_keras.Sequential(
        [
            tf_keras.Input(shape),
            tf_keras.layers.GlobalAveragePooling2D(),
            tf_keras.layers.Dense(outputs, activation="softmax"),
        ]
    )


# ------------------------------------------------------------------------------------ Augment


@pytest.mark.parametrize(
    "make",
    [
        lambda: ok.RandAugment(0),
        lambda: ok.RandAugment(magnitude=31),
        lambda: ok.AutoAugment("svhn"),
        lambda: ok.AugMix(severity=0),
        lambda: ok.AugMix(depth=0),
        lambda: ok.AugMix(alpha=0),
        lambda: ok.RandomErasing(0),
        lambda: ok.RandomErasing(area=(0.3, 0.1)),
        lambda: ok.RandomErasing(area=(0.3, 1.1)),
        lambda: ok.RandomErasing(ratio=2),
        lambda: ok.RandomErasing(fill="black"),
        lambda: ok.Augment("augmix3"),
        lambda: ok.Augment(["rand", 3]),
        lambda: ok.Augment(ok.RandAugment),
        lambda: ok.Augment([ok.RandAugment]),
        lambda: ok.Augment([ok.RandAugment()], rotation=3),
        lambda: ok.Augment({"kind": "Trivial"}),
        lambda: ok.Augment({"kind": "RandAugment", "m": 3}),
        lambda: ok.MixUp(0),
        lambda: ok.MixUp(0.2, probability=0),
        lambda: ok.CutMix(-1),
        lambda: ok.CutMix(mixup_alpha=0),
        lambda: ok.CutMix(mixup_alpha=1, switch_probability=1),
    ],
)
def test_wrong_settings_are_refused(make):
    with pytest.raises((ok.PipelineError, ok.ArgumentTypeError)):
        make()


def test_policies_are_stored_as_json(tmp_path):
    pipeline = ok.Pipeline(
        [
            ok.Augment("auto-cifar10", horizontal_flip=True),
            ok.Augment(ok.RandAugment(3, 5.5), fill_mode="reflect"),
            ok.Augment(["photo", ok.AugMix(4), ok.RandomErasing(0.3, (0.1, 0.2), fill=0.5)]),
            ok.CutMix(0.7, mixup_alpha=0.1),
            ok.FineTune(),
        ]
    )
    pipeline.to_json(tmp_path / "pipeline.json")
    again = ok.Pipeline.from_json(tmp_path / "pipeline.json")
    assert repr(again) == repr(pipeline)
    for one, other in zip(pipeline, again, strict=True):
        assert one.get_config() == other.get_config()
        assert fingerprint(one) == fingerprint(other)
    assert again[1].policy == ok.RandAugment(3, 5.5)
    assert again[2].policy[2] == ok.RandomErasing(0.3, (0.1, 0.2), fill=0.5)
    assert fingerprint(ok.Augment(ok.RandAugment(2, 5))) != fingerprint(
        ok.Augment(ok.RandAugment(2, 6))
    )


def test_images_of_other_channels_are_refused(pictures):
    two = pictures[..., :2]
    data = Data(train=(two, np.arange(8) % 2))
    for policy in ("rand", "augmix", ["photo", ok.AutoAugment()]):
        with pytest.raises(ok.PipelineError, match=r"RGB ones \(3\).*2 channels"):
            ok.Pipeline([ok.Augment(policy), ok.FineTune()]).check(_cnn(two.shape[1:]), data)
    ok.Pipeline([ok.Augment("erase"), ok.FineTune()]).check(_cnn(two.shape[1:]), data)


def test_what_is_given_besides_a_policy_acts_before_it(pictures):
    import tensorflow as tf

    run = ok.Augment(ok.RandomErasing(1e-9), horizontal_flip=True).amend(ok.Recipe()).augment[0]
    out = run.prepare(_split(pictures), 0)(tf.constant(pictures), _key(1, 1)).numpy()
    mirrored = [
        np.abs(a - b[:, ::-1]).max() <= 1 for a, b in zip(out.astype(int), pictures, strict=True)
    ]
    same = [np.abs(a - b).max() <= 1 for a, b in zip(out.astype(int), pictures, strict=True)]
    assert all(one or other for one, other in zip(mirrored, same, strict=True))
    assert any(mirrored)


def test_steps_draw_apart_from_each_other(pictures):
    """Two rectangles of one size: from equal keys the second would hide all of the first."""
    import tensorflow as tf

    steps = [ok.RandomErasing(1.0, (0.2, 0.2), (1.0, 1.0), fill) for fill in (0.0, 1.0)]
    run = ok.Augment(steps, value_range=(-100, 400)).amend(ok.Recipe()).augment[0]
    images = pictures.astype("float32")
    out = run.prepare(_split(images), 0)(tf.constant(images), _key(1, 1)).numpy()
    assert np.all((out == 400).any((1, 2, 3)))
    assert (out == -100).any((1, 2, 3)).sum() >= 6, "seldom one hides the other"


# ----------------------------------------------------------------------------- albumentations


@pytest.fixture(scope="module")
def A():
    return pytest.importorskip("albumentations")


def _compose(A):
    return A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.VerticalFlip(p=0.5),
            A.Affine(rotate=(-20, 20), p=0.8),
            A.OneOf([A.RandomBrightnessContrast(p=1), A.GaussianBlur(p=1)], p=0.7),
        ]
    )


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        ("uint8", 0, 255),
        ("float32", 0, 255),
        ("float32", 0, 1),
        ("float32", -1, 1),
        ("int32", 0, 255),
    ],
)
def test_albumentations_in_any_value_range(A, pictures, dtype, low, high):
    images = (pictures / 255 * (high - low) + low).astype("float32")
    images = np.rint(images).astype(dtype) if "int" in dtype else images
    inverted = Albumented(A.InvertImg(p=1), (float(low), float(high))).changed(
        images, np.array([0, 1])
    )
    assert inverted.dtype == dtype
    assert np.allclose(inverted, high + low - images.astype("float32"), atol=1e-4)


def test_albumentations_are_repeatable_in_parallel(A, pictures):
    import tensorflow as tf

    images = np.repeat(pictures, 4, axis=0)
    run = ok.Augment(_compose(A)).amend(ok.Recipe()).augment[0]
    assert run.stateless
    run = run.prepare(_split(pictures), 0)

    def stream(parallel):
        numbers = tf.data.Dataset.range(24).map(
            lambda number: run(tf.constant(images), tf.stack([_key(7)[0], number])),
            num_parallel_calls=parallel,
        )
        return np.stack(list(numbers.as_numpy_iterator()))

    one, other = stream(8), stream(None)
    assert np.array_equal(one, other)
    assert len({image.tobytes() for image in one.reshape(-1, *images.shape[1:])}) > 300


def test_transforms_inside_draw_apart_from_each_other(A, pictures):
    """Two flips of probability a half: all four outcomes, and not just both or neither."""
    both = A.Compose([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)])
    images = np.repeat(pictures[:1], 200, axis=0)
    out = Albumented(both, (0.0, 255.0)).changed(images, np.array([3, 4]))
    image = pictures[0]
    counts = [
        sum(np.array_equal(found, wanted) for found in out)
        for wanted in (image, image[:, ::-1], image[::-1], image[::-1, ::-1])
    ]
    assert sum(counts) == 200
    assert min(counts) > 25


def test_what_overshoots_is_cut_off_and_what_normalizes_is_refused(A, pictures):
    def overshooting(image, **unused):
        return image * 1.2 - 0.1

    def brighter(image, **unused):
        return image * 1.2

    images = pictures.astype("float32") / 255
    out = Albumented(A.Lambda(image=overshooting, p=1.0), (0.0, 1.0)).changed(
        images, np.array([0, 1])
    )
    np.testing.assert_allclose(out, np.clip(images * 1.2 - 0.1, 0, 1), atol=1e-6)
    half = A.Compose([A.ToFloat(255.0), A.Lambda(image=brighter, p=1.0)])
    out = Albumented(half, (0.0, 255.0)).changed(pictures, np.array([0, 1]))
    np.testing.assert_array_equal(out, np.rint(np.clip(pictures * 1.2, 0, 255)))
    with pytest.raises(ok.PipelineError, match="normalizes"):
        Albumented(A.Normalize(), (0.0, 255.0)).changed(pictures, np.array([0, 1]))


def test_albumentations_are_stored_as_json(A, tmp_path):
    pipeline = ok.Pipeline([ok.Augment(["photo", _compose(A)]), ok.FineTune()])
    pipeline.to_json(tmp_path / "pipeline.json")
    again = ok.Pipeline.from_json(tmp_path / "pipeline.json")
    assert A.to_dict(again[0].policy[1]) == A.to_dict(pipeline[0].policy[1])
    assert fingerprint(again[0]) == fingerprint(pipeline[0])
    alone = ok.Augment(A.HorizontalFlip(p=0.25))
    assert fingerprint(alone) == fingerprint(ok.Augment(A.HorizontalFlip(p=0.25)))
    assert fingerprint(alone) != fingerprint(ok.Augment(A.HorizontalFlip(p=0.5)))


def _brighter(image, **options):
    return image


def test_albumentations_that_a_file_cannot_hold(A, tmp_path):
    named = A.Lambda(image=_brighter, name="brighter")
    pipeline = ok.Pipeline([ok.Augment(A.Compose([named])), ok.FineTune()])
    with pytest.raises(ok.PipelineError, match=r"`Augment.policy` cannot be stored"):
        pipeline.to_json(tmp_path / "pipeline.json")


def test_a_stored_transform_names_no_other_classes(A):
    stored = A.to_dict(A.Compose([A.HorizontalFlip()]))
    stored["transform"]["transforms"][0]["__class_fullname__"] = "tests.Own"
    with pytest.raises(ok.PipelineError, match="albumentations' own"):
        ok.Augment({"kind": "albumentations", **stored})


def test_without_albumentations_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(ok.PipelineError, match=r"pip install 'optkit\[albumentations\]'"):
        ok.Augment({"kind": "albumentations", "transform": {}})


def test_transforms_that_leave_shape_or_range_are_refused(A, pictures):
    data = Data(train=(pictures, np.arange(8) % 2))
    for transform, message in (
        (A.RandomCrop(8, 8), r"shape \(24, 20, 3\) into \(8, 8, 3\)"),
        (A.Normalize(), "float32 from .* Leave out what normalizes"),
    ):
        pipeline = ok.Pipeline([ok.Augment(A.Compose([transform])), ok.FineTune()])
        with pytest.raises(ok.PipelineError, match=message):
            pipeline.check(_cnn(pictures.shape[1:]), data)


# ------------------------------------------------------------------------------ MixUp, CutMix


def test_the_distribution_of_shares():
    for alpha in (0.2, 1.0, 2.0):
        drawn = beta(20_000, alpha, _key(1, 2)).numpy()
        assert np.all((drawn >= 0) & (drawn <= 1))
        assert abs(drawn.mean() - 0.5) < 0.015
        assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_mix_up_by_the_formula():
    import tensorflow as tf

    rng = np.random.default_rng(0)
    x, y = rng.random((50, 6)).astype("float32"), np.eye(50, dtype="float32")
    mixed_x, mixed_y = MixUpMixing(0.4)(tf.constant(x), tf.constant(y), _key(1, 2))
    mixed_x, mixed_y = mixed_x.numpy(), mixed_y.numpy()
    # Rows of the identity tell who was blended with whom, and by how much.
    assert np.allclose(mixed_y.sum(1), 1, atol=1e-6)
    assert np.allclose(mixed_x, mixed_y @ x, atol=1e-5)
    shares = np.diag(mixed_y)
    assert np.ptp(shares) > 0.5
    partners = (mixed_y - np.diag(shares)).argmax(1)
    assert len(set(partners)) > 40, "a permutation, as far as shares below 1 tell"
    again, _ = MixUpMixing(0.4)(tf.constant(x), tf.constant(y), _key(1, 2))
    assert np.array_equal(again, mixed_x)


def test_mix_up_of_several_inputs_outputs_and_whole_numbers():
    import tensorflow as tf

    rng = np.random.default_rng(0)
    x = {
        "table": rng.random((40, 3)).astype("float32"),
        "image": rng.integers(0, 256, (40, 4, 4, 1)).astype("uint8"),
    }
    y = {"number": np.eye(40, dtype="float32"), "value": rng.random((40,)).astype("float32")}
    mixing = MixUpMixing(1.0, probability=0.5)
    out, targets = mixing(
        {k: tf.constant(v) for k, v in x.items()},
        {k: tf.constant(v) for k, v in y.items()},
        _key(1, 2),
    )
    by = targets["number"].numpy()
    assert np.allclose(out["table"], by @ x["table"], atol=1e-5)
    assert np.allclose(targets["value"], by @ y["value"], atol=1e-5)
    assert out["image"].dtype == "uint8"
    image = (by @ x["image"].reshape(40, -1).astype("float64")).reshape(x["image"].shape)
    assert np.abs(out["image"].numpy() - image).max() <= 0.51
    assert 8 < (np.diag(by) == 1).sum() < 32, "about half of them stay"


def test_weighted_blends_have_the_loss_of_their_parts():
    import tensorflow as tf

    rng = np.random.default_rng(0)
    y, other = np.eye(5)[rng.integers(0, 5, 30)], np.eye(5)[rng.integers(0, 5, 30)]
    a, b = rng.random(30), rng.random(30)
    a[:3] = b[:2] = 0.0
    share = rng.random(30)
    given = [tf.constant(value) for value in (y, other, share, a, b)]
    targets, weights = (value.numpy() for value in blended_targets(*given))
    p = rng.dirichlet(np.ones(5), 30)

    def loss(t):
        return -(t * np.log(p)).sum(1)

    expected = share * a * loss(y) + (1 - share) * b * loss(other)
    assert np.allclose(weights * loss(targets), expected)
    assert np.all(weights[:2] == 0)

    # Of squared errors the gradient, 2 w (p - t), is that of the parts.
    def gradient(t):
        return 2 * (p - t)

    parts = (share * a)[:, None] * gradient(y) + ((1 - share) * b)[:, None] * gradient(other)
    assert np.allclose(weights[:, None] * gradient(targets), parts)


@pytest.mark.parametrize("shape", [(40,), (40, 1)])
def test_whole_numbers_as_weights_blend_as_floats_do(shape):
    """As a stream may give them."""
    import tensorflow as tf

    x, y = tf.zeros([40, 2]), tf.one_hot(tf.range(40) % 5, 5)
    whole = np.arange(40).reshape(shape) % 3
    mixing = MixUpMixing(1.0)
    _, targets, weights = mixing(x, y, _key(1, 2), tf.constant(whole))
    _, wanted, expected = mixing(x, y, _key(1, 2), tf.constant(whole.ravel().astype("float32")))
    np.testing.assert_allclose(targets, wanted)
    np.testing.assert_allclose(np.reshape(weights, 40), expected)
    _, numbers, _ = mixing(x, tf.range(40.0), _key(1, 2), tf.constant(whole))
    _, column, _ = mixing(x, tf.range(40.0)[:, None], _key(1, 2), tf.constant(whole))
    np.testing.assert_allclose(numbers, column[:, 0])


def test_weights_of_positions_blend_position_by_position():
    import tensorflow as tf

    rng = np.random.default_rng(0)
    y = np.eye(3, dtype="float32")[rng.integers(0, 3, (20, 4))]
    weights = rng.random((20, 4)).astype("float32")
    x = tf.range(20.0)[:, None]
    mixed, targets, total = MixUpMixing(1.0)(x, tf.constant(y), _key(1, 2), tf.constant(weights))
    for place in range(4):
        one = [tf.constant(value[:, place]) for value in (y, weights)]
        alone = MixUpMixing(1.0)(x, one[0], _key(1, 2), one[1])
        np.testing.assert_allclose(mixed, alone[0])
        np.testing.assert_allclose(targets[:, place], alone[1])
        np.testing.assert_allclose(total[:, place], alone[2])


@pytest.mark.parametrize("dtype", ["int64", "bool"])
def test_flags_of_a_table_blend_to_shares(dtype):
    import tensorflow as tf

    x = np.eye(30)[:, :5].astype(dtype)
    mixed, y = MixUpMixing(1.0)(tf.constant(x), tf.eye(30), _key(1, 2))
    np.testing.assert_allclose(mixed, y.numpy() @ x.astype("float32"), atol=1e-6)


def test_one_input_that_is_given_by_its_name_is_augmented(untimed):
    data = digits(200)
    named = Data(train=({"image": data.train[0]}, data.train[1]), test=data.test)
    passes = [ok.Augment(["safe", ok.RandomErasing(0.5)]), ok.MixUp(), ok.FineTune(1, 1e-2)]
    found = [
        ok.Pipeline(passes, seed=2).run(small_model(), each).model.get_weights()
        for each in (named, Data(train=data.train, test=data.test))
    ]
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_overshoots_white_stays_white():
    """As interpolation by cubes leaves it: a level above the last one is none."""
    import tensorflow as tf

    images = np.full((64, 8, 8, 1), 1.006, "float32")
    images[:, :4] = 0.5
    out = ok.RandAugment(2, 0).apply(tf.constant(images), _key(1, 2), (0.0, 1.0)).numpy()
    darker = out[:, 6, 4, 0] < 0.4
    inverted = out[:, 1, 4, 0] > 0.6  # what turns black to white turns white to black
    assert not np.any(darker & ~inverted)


def test_cut_mix_labels_are_the_areas():
    """Every image has a colour of its own, so pixels tell whose they are."""
    import tensorflow as tf

    count = 60
    x = np.broadcast_to(np.arange(count)[:, None, None, None], (count, 16, 12, 2))
    for dtype in ("uint8", "float32"):
        images, y = CutMixing(1.0)(tf.constant(x.astype(dtype)), tf.eye(count), _key(1, 2))
        images, y = images.numpy(), y.numpy()
        assert images.dtype == dtype
        areas = np.stack([(images[..., 0] == i).mean((1, 2)) for i in range(count)], axis=1)
        assert np.allclose(areas, y, atol=1e-6)
    pasted = images[..., 0] != np.arange(count)[:, None, None]
    rows, columns = pasted.any(2).sum(1), pasted.any(1).sum(1)
    assert np.array_equal(rows * columns, pasted.sum((1, 2))), "one rectangle an image"
    assert np.array_equal(images[..., 0], images[..., 1])
    assert 0.15 < pasted.mean() < 0.5
    assert len(set(pasted.sum((1, 2)))) > 20


def test_cut_mix_with_mix_up():
    import tensorflow as tf

    count = 200
    x = np.eye(count, dtype="float32")[:, None, None, :] * np.ones((1, 8, 8, 1), "float32")
    images, y = CutMixing(1.0, 0.8, 0.5, 0.25)(tf.constant(x), tf.eye(count), _key(1, 2))
    images, y = images.numpy(), y.numpy()
    # Whichever way a sample was mixed, its channels hold on average what its target says.
    assert np.allclose(images.mean((1, 2)), y, atol=1e-5)
    untouched = np.diag(y) == 1
    cut = np.array([set(np.unique(image)) <= {0.0, 1.0} for image in images]) & ~untouched
    blended = ~cut & ~untouched
    assert 0.1 < blended.mean() < 0.3, "a quarter of four fifths"
    assert 0.35 < cut.mean() < 0.75
    assert np.ptp(images[blended], axis=(1, 2)).max() < 1e-5
    # Their shares are drawn from MixUp's own distribution, here one that is all but a half.
    _, y = CutMixing(1.0, 1.0, 1e4, 0.5)(tf.constant(x), tf.eye(count), _key(1, 2))
    halves = np.abs(np.diag(y.numpy()) - 0.5) < 0.03
    assert 0.4 < halves.mean() < 0.65


def test_smoothing_before_or_after_mixing_is_the_same():
    """Both are linear, and rows that sum to 1 stay so; the recipe mixes first."""
    import tensorflow as tf

    from optkit.passes.label_smooth import smoothed

    x, y = tf.zeros([30, 2]), tf.one_hot(tf.range(30) % 5, 5)
    for weights in (None, tf.random.stateless_uniform([30], [1, 2])):
        mixed = MixUpMixing(1.0)(x, y, _key(1, 2), weights)[1]
        before = MixUpMixing(1.0)(x, smoothed(y, 0.1, 5), _key(1, 2), weights)[1]
        assert np.allclose(smoothed(mixed, 0.1, 5), before, atol=1e-6)


@pytest.mark.parametrize("mixing", [ok.MixUp(0.2), ok.CutMix(1.0, mixup_alpha=0.2)], ids=repr)
def test_mixing_trains_and_counts_against_hard_labels(untimed, trained, mixing):
    """A model that knows its digits still does after training on mixed ones, smoothed besides."""
    data = digits(600)
    pipeline = ok.Pipeline([mixing, ok.LabelSmooth(0.1), ok.FineTune(4, 1e-3, patience=None)])
    result = pipeline.run(trained, data)
    row = result.report.rows[-1]
    assert row.after.accuracy > 0.85
    x, y = data.test
    hits = result.artifact.predict(x).argmax(1) == y
    assert row.after.accuracy == pytest.approx(float(np.mean(hits)), abs=1e-6)


def test_policies_train(untimed):
    result = ok.Pipeline(
        [ok.Augment([ok.RandAugment(1, 6), ok.RandomErasing(0.2)]), ok.FineTune(1)]
    ).run(small_model(), digits(300))
    assert result.report.rows[0].config["policy"] == [
        {"kind": "RandAugment", "n": 1, "magnitude": 6},
        {
            "kind": "RandomErasing",
            "probability": 0.2,
            "area": [0.02, 0.33],
            "ratio": [0.3, 3.3],
            "fill": "noise",
        },
    ]
    assert result.report.rows[-1].status == "ok"


def test_mixing_of_regression(untimed, dense):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4)).astype("float32")
    y = x @ np.array([1, -2, 0.5, 0], "float32")
    data = Data(train=(x, y), test=(x, y))
    result = ok.Pipeline([ok.MixUp(0.4), ok.FineTune(30, 0.02, patience=None)]).run(
        dense(1, "linear"),
        data,
        measure=ok.Measure("mae", higher_is_better=False, latency_seconds=0, memory=False),
    )
    assert result.report.final.accuracy < 0.7 * result.report.baseline.accuracy


def test_what_cannot_be_mixed_is_refused(dense):
    import tf_keras

    rng = np.random.default_rng(0)
    x, y = rng.random((40, 4)).astype("float32"), np.arange(40) % 3
    tokens = tf_keras.Sequential(
        [
            tf_keras.Input((4,)),  # float32 by default, and holds token ids
            tf_keras.layers.Embedding(10, 3),
            tf_keras.layers.Flatten(),
            tf_keras.layers.Dense(3, activation="softmax"),
        ]
    )
    pictures = rng.random((40, 8, 8, 1)).astype("float32")
    plain = Data(train=(x, y))
    whole = Data(train=(pictures, rng.random(40).astype("float32")))
    regressor = _cnn((8, 8, 1), 1)
    regressor.layers[-1].activation = tf_keras.activations.linear
    for item, model, data, message in (
        (ok.CutMix(), dense(3), plain, "CutMix treats images.*Use MixUp"),
        (ok.CutMix(), regressor, whole, "the task is regression"),
        (ok.MixUp(), tokens, plain, "'embedding.*' .Embedding. looks them up"),
    ):
        with pytest.raises(ok.PipelineError, match=message):
            ok.Pipeline([item, ok.FineTune()]).check(model, data)
    with pytest.raises(ok.PipelineError, match="mix"):
        ok.Pipeline([ok.MixUp(), ok.CutMix(), ok.FineTune()])


# ------------------------------------------------------------------------------- labels of places


def _of_places(outputs, activation):
    import tf_keras

    return tf_keras.Sequential(
        [
            tf_keras.Input((8, 8, 1)),
            tf_keras.layers.Conv2D(4, 3, padding="same", activation="relu"),
            tf_keras.layers.Conv2D(outputs, 1, activation=activation),
        ]
    )


@pytest.mark.parametrize("kind", ["mask", "mask of one channel", "picture"])
def test_images_are_not_moved_away_from_targets_of_their_places(A, kind):
    import keras
    import tf_keras

    x = digits(60).train[0]
    mask = (x > 0.5).astype("int32")
    targets = {"mask": mask[..., 0], "mask of one channel": mask, "picture": x}[kind]
    model = _of_places(1, "linear") if kind == "picture" else _of_places(2, "softmax")
    data = Data(train=(x, targets))
    moving = [
        ok.Augment(),
        ok.Augment(horizontal_flip=True, policy="erase"),
        ok.Augment("rand"),
        ok.Augment(A.Compose([A.RandomBrightnessContrast(), A.HorizontalFlip()])),
        ok.Augment([tf_keras.layers.RandomFlip()]),
        ok.Augment(["erase", keras.Sequential([keras.layers.RandomRotation(0.1)])]),
    ]
    for item in moving:
        with pytest.raises(ok.PipelineError, match=r"would stay where they are.*RandomErasing"):
            ok.Pipeline([item, ok.FineTune()]).check(model, data)
    staying = [
        ok.Augment("safe", rotation=0, zoom=0, translation=0),
        ok.Augment(["erase"]),
        ok.Augment(A.RandomBrightnessContrast()),
        ok.Augment([tf_keras.layers.RandomContrast(0.1), lambda images: images]),
    ]
    for item in staying:
        ok.Pipeline([item, ok.FineTune()]).check(model, data)


def test_targets_of_no_places_are_none_of_its_business():
    assert not are_places((10,), (32, 32))
    assert not are_places((20, 11), (32, 128))  # characters of a line of text
    assert are_places((16, 64), (32, 128))
    assert are_places((32 * 128, 2), (32, 128))
    ok.Pipeline([ok.Augment(), ok.FineTune()]).check(small_model(), digits(60))


# ----------------------------------------------------------------------------------------- flags


@pytest.mark.parametrize("policy", ["safe", "erase", "layer", "albumentations"])
def test_images_of_flags_stay_what_they_show(A, policy):
    import keras
    import tensorflow as tf

    given = {
        "layer": [keras.layers.RandomTranslation(0.1, 0.1, fill_mode="nearest", seed=1)],
        "albumentations": A.Affine(rotate=(-40, 40), p=1.0),
    }.get(policy, policy)
    ink = digits(200).train[0] > 0.5
    split = Data(train=(ink, np.zeros(len(ink), "int64"))).bind(signature(small_model())).train
    change = ok.Augment(given)._steps().prepare(split, 0)
    out = change(tf.constant(ink), tf.constant([1, 2], tf.int64))
    assert out.dtype == tf.bool
    changed = out.numpy()
    assert (changed != ink).mean() > 0.02
    # About as much ink as there was: nothing but the nearest pixel is taken for a value between.
    assert changed.mean() == pytest.approx(ink.mean(), abs=0.06)


def test_flags_are_cut_and_blended_as_numbers_are():
    import tensorflow as tf

    ink = np.random.default_rng(0).random((16, 8, 8, 1)) > 0.5
    y = np.eye(4, dtype="float32")[np.arange(16) % 4]
    mix, key = CutMixing(1.0, mixup_alpha=1.0), tf.constant([3, 4], tf.int64)
    of_flags, labels = mix(tf.constant(ink), tf.constant(y), key)
    of_floats, same = mix(tf.constant(ink, tf.float32), tf.constant(y), key)
    np.testing.assert_array_equal(of_flags, of_floats)
    np.testing.assert_array_equal(labels, same)
    assert 0 < np.mean((of_flags.numpy() > 0) & (of_flags.numpy() < 1)) < 1


# ---------------------------------------------------------------------------------- Keras' layers


@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
def test_layers_that_blend_images_alone_are_refused(name):
    import keras

    layer = getattr(keras.layers, name)()
    for item in (layer, keras.layers.Pipeline([keras.layers.RandomFlip(), layer])):
        with pytest.raises(ok.PipelineError, match=rf"Use the pass `ok.{name}\(\)`"):
            ok.Augment([item])


def test_layers_in_a_model_that_is_not_built_are_taken(untimed):
    import tf_keras

    layers = [tf_keras.layers.RandomTranslation(0.1, 0.1), tf_keras.layers.RandomContrast(0.1)]
    pipeline = ok.Pipeline([ok.Augment([tf_keras.Sequential(layers)]), ok.FineTune(1)])
    report = pipeline.run(small_model(), digits(60), measure=untimed).report
    assert report.rows[-1].status == "ok"
