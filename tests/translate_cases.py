"""Every layer class of Keras 3 with configurations other than the default, for test_translate*.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Case:
    """A layer, how it is called, and what goes in."""

    layer: Callable[[Any], Any]  # from `keras.layers` to the layer
    shapes: tuple[tuple[int | None, ...], ...] = ((6,),)
    call: Callable[..., Any] | None = None  # of the layer and the input tensors
    dtype: str = "float32"
    data: Callable[[np.random.Generator], list[np.ndarray]] | None = None
    adapt: Any = None


def case(layer, *shapes, call=None, dtype="float32", data=None, adapt=None):
    return Case(layer, shapes or ((6,),), call, dtype, data, adapt)


def randomize(model: Any, seed: int = 0) -> None:
    """Random weights: variances positive, the rest small."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if "float" not in str(variable.dtype) or "count" in variable.name:
            continue
        shape = tuple(variable.shape)
        if "variance" in variable.name or "gamma" in variable.name or "scale" in variable.name:
            variable.assign(rng.uniform(0.5, 1.5, shape))
        else:
            variable.assign(rng.normal(0, 0.4, shape))


def build3(case: Case) -> tuple[Any, list[Any]]:
    """A Keras 3 model of one layer, with random weights, and a batch for it."""
    import keras

    rng = np.random.default_rng(1)
    layer = case.layer(keras.layers)
    if case.adapt is not None:
        layer.adapt(case.adapt)
    inputs = [
        keras.Input(shape, dtype=case.dtype, name=f"in_{number}")
        for number, shape in enumerate(case.shapes)
    ]
    if case.call is not None:
        outputs = case.call(layer, *inputs)
    else:
        outputs = layer(inputs[0] if len(inputs) == 1 else inputs)
    model = keras.Model(inputs[0] if len(inputs) == 1 else inputs, outputs)
    if case.adapt is None:  # what was learned from data is the state
        randomize(model)
    if case.data is not None:
        batch = case.data(rng)
    else:
        shapes = [(3, *[5 if d is None else d for d in shape]) for shape in case.shapes]
        batch = [
            rng.integers(0, 4, shape).astype(case.dtype)
            if "int" in case.dtype
            else rng.normal(0, 1.5, shape).astype(case.dtype)
            for shape in shapes
        ]
    return model, batch[0] if len(batch) == 1 else batch


def images(rng):
    return [rng.uniform(0, 255, (2, 8, 8, 3)).astype("float32")]


def unit_images(rng):
    return [rng.uniform(0, 1, (2, 8, 8, 3)).astype("float32")]


def texts(rng):
    return [np.array([["the cat sat"], ["a dog! sat the"], ["zebra"]], dtype=object)]


def words(rng):
    return [np.array([["cat", "dog"], ["zebra", "sat"], ["dog", "dog"]], dtype=object)]


def tokens(rng):
    return [np.array([[1, 2, 0, 0], [3, 3, 1, 0], [2, 1, 1, 3]], "int32")]


def _image(make):
    return [case(make, (8, 8, 3), data=images)]


def _masked(make, **kwargs):
    """A layer behind an embedding with a mask."""

    def call(layer, ids):
        import keras

        return layer(keras.layers.Embedding(5, 6, mask_zero=True)(ids), **kwargs)

    return case(make, (4,), call=call, dtype="int32", data=tokens)


def _pool(name, rank):
    shape = (8,) * rank + (3,)
    return [
        case(lambda L: getattr(L, name)(2), shape),
        case(lambda L: getattr(L, name)(3, strides=2, padding="same"), shape),
    ]


def _rnn(name, **more):
    return [
        case(lambda L: getattr(L, name)(4, activation="relu", **more), (5, 3)),
        case(
            lambda L: getattr(L, name)(
                4, return_sequences=True, go_backwards=True, use_bias=False, dropout=0.2, **more
            ),
            (None, 3),
        ),
        case(
            lambda L: (
                getattr(L, name)(4, return_state=True, recurrent_activation="hard_sigmoid")
                if name != "SimpleRNN"
                else L.SimpleRNN(4, return_state=True)
            ),
            (5, 3),
        ),
        _masked(lambda L: getattr(L, name)(4)),
        _masked(lambda L: getattr(L, name)(4, return_sequences=True, unroll=True)),
    ]


def _initial_state(make, count):
    def call(layer, x, *states):
        return layer(x, initial_state=list(states) if count > 1 else states[0])

    return case(make, (5, 3), *((4,),) * count, call=call)


def _conv(name, rank, transposed=False):
    shape = (9,) * rank + (3,)
    made = [
        case(lambda L: getattr(L, name)(4, 3, strides=2, activation="hard_silu"), shape),
        case(lambda L: getattr(L, name)(4, 3, padding="same", use_bias=False), shape),
    ]
    if not transposed:
        made.append(case(lambda L: getattr(L, name)(4, 3, dilation_rate=2), shape))
    if not transposed and rank < 3:
        made.append(
            case(lambda L: getattr(L, name)(6, 2, groups=3, activation="gelu"), shape)
            if name.startswith("Conv")
            else case(lambda L: getattr(L, name)(6, 2, depth_multiplier=2), shape)
        )
    if name == "Conv1D":
        made.append(case(lambda L: L.Conv1D(4, 3, padding="causal"), shape))
    if transposed:
        made.append(case(lambda L: getattr(L, name)(4, 3, strides=2, padding="same"), shape))
    return made


def _merge(name):
    return [
        case(lambda L: getattr(L, name)(), (4, 3), (4, 3)),
        case(lambda L: getattr(L, name)(), (4, 3), (1, 3)),
    ]


def _mha(**more):
    return [
        case(
            lambda L: L.MultiHeadAttention(2, 3, **more), (4, 6), call=lambda layer, x: layer(x, x)
        ),
        case(
            lambda L: L.MultiHeadAttention(2, 3, value_dim=4, output_shape=5, **more),
            (4, 6),
            (5, 7),
            call=lambda layer, x, y: layer(x, y, use_causal_mask=True),
        ),
        case(
            lambda L: L.MultiHeadAttention(2, 3, use_bias=False, **more),
            (4, 6),
            (5, 7),
            (5, 2),
            call=lambda layer, x, y, z: layer(x, y, z, return_attention_scores=True),
        ),
        _twice(lambda L: L.MultiHeadAttention(2, 3, **more)),
    ]


def _twice(make):
    """Self-attention on masked sequences."""

    def call(layer, ids):
        import keras

        x = keras.layers.Embedding(5, 6, mask_zero=True)(ids)
        return layer(x, x)

    return case(make, (4,), call=call, dtype="int32", data=tokens)


def _dense(L, **more):
    return L.Dense(4, **more)


_PREPROCESS = ["the cat sat", "the dog sat", "a dog"]

CASES: dict[str, list[Case]] = {
    "Activation": [
        case(lambda L, name=name: L.Activation(name), (4, 6))
        for name in [
            "celu",
            "elu",
            "exponential",
            "gelu",
            "glu",
            "hard_shrink",
            "hard_sigmoid",
            "hard_silu",
            "hard_tanh",
            "leaky_relu",
            "linear",
            "log_sigmoid",
            "log_softmax",
            "mish",
            "relu",
            "relu6",
            "selu",
            "sigmoid",
            "silu",
            "softmax",
            "soft_shrink",
            "softplus",
            "softsign",
            "sparse_plus",
            "sparsemax",
            "squareplus",
            "swish",
            "tanh",
            "tanh_shrink",
            "sparse_sigmoid",
            "hard_swish",
        ]
    ],
    "ActivityRegularization": [case(lambda L: L.ActivityRegularization(l1=0.1, l2=0.2))],
    "Add": _merge("Add"),
    "AdditiveAttention": [
        case(lambda L: L.AdditiveAttention(), (4, 6), (5, 6)),
        case(lambda L: L.AdditiveAttention(use_scale=False, dropout=0.2), (4, 6), (5, 6)),
    ],
    "AlphaDropout": [case(lambda L: L.AlphaDropout(0.3, seed=3))],
    "Attention": [
        case(lambda L: L.Attention(use_scale=True), (4, 6), (5, 6)),
        case(lambda L: L.Attention(score_mode="concat"), (4, 6), (5, 6), (5, 6)),
        case(
            lambda L: L.Attention(dropout=0.1, seed=1),
            (4, 6),
            (5, 6),
            call=lambda layer, x, y: layer([x, y], use_causal_mask=True),
        ),
        case(
            lambda L: L.Attention(),
            (4, 6),
            (4, 6),
            call=lambda layer, x, y: layer([x, y], return_attention_scores=True),
        ),
    ],
    "Average": _merge("Average"),
    **{f"AveragePooling{n}D": _pool(f"AveragePooling{n}D", n) for n in (1, 2, 3)},
    **{f"MaxPooling{n}D": _pool(f"MaxPooling{n}D", n) for n in (1, 2, 3)},
    "BatchNormalization": [
        case(lambda L: L.BatchNormalization(epsilon=0.01, momentum=0.8), (4, 4, 3)),
        case(lambda L: L.BatchNormalization(axis=1, scale=False, center=False), (4, 3)),
        case(lambda L: L.BatchNormalization(renorm=True), (3,)),
    ],
    "Bidirectional": [
        case(lambda L: L.Bidirectional(L.LSTM(3, return_sequences=True)), (5, 2)),
        case(lambda L: L.Bidirectional(L.GRU(3), merge_mode="ave"), (None, 2)),
        case(
            lambda L: L.Bidirectional(
                L.LSTM(3, name="ahead"),
                backward_layer=L.GRU(3, go_backwards=True, name="behind"),
                merge_mode="sum",
            ),
            (5, 2),
        ),
        case(lambda L: L.Bidirectional(L.SimpleRNN(3, return_state=True), merge_mode=None), (5, 2)),
        _masked(lambda L: L.Bidirectional(L.LSTM(3, return_sequences=True))),
    ],
    "CategoryEncoding": [
        case(lambda L: L.CategoryEncoding(5, "multi_hot"), (3,), dtype="int64"),
        case(lambda L: L.CategoryEncoding(5, "one_hot"), (1,), dtype="int32"),
        case(lambda L: L.CategoryEncoding(5, "count"), (3,), dtype="int32"),
    ],
    "CenterCrop": [
        case(lambda L: L.CenterCrop(4, 5), (8, 8, 3)),
        case(lambda L: L.CenterCrop(10, 12), (8, 8, 3)),
    ],
    "Concatenate": [
        case(lambda L: L.Concatenate(axis=1), (4, 3), (2, 3)),
        case(lambda L: L.Concatenate(), (4, 3), (4, 1)),
    ],
    **{f"Conv{n}D": _conv(f"Conv{n}D", n) for n in (1, 2, 3)},
    **{f"Conv{n}DTranspose": _conv(f"Conv{n}DTranspose", n, True) for n in (1, 2, 3)},
    **{
        f"ConvLSTM{n}D": [
            case(
                lambda L, n=n: getattr(L, f"ConvLSTM{n}D")(2, 3, padding="same"),
                (3, *(5,) * n, 2),
            ),
            case(
                lambda L, n=n: getattr(L, f"ConvLSTM{n}D")(
                    2, 2, return_sequences=True, recurrent_activation="hard_sigmoid"
                ),
                (3, *(5,) * n, 2),
            ),
        ]
        for n in (1, 2, 3)
    },
    "Cropping1D": [case(lambda L: L.Cropping1D((1, 2)), (6, 2))],
    "Cropping2D": [case(lambda L: L.Cropping2D(((1, 2), (0, 1))), (6, 6, 2))],
    "Cropping3D": [case(lambda L: L.Cropping3D(((1, 2), (0, 1), (1, 1))), (6, 6, 6, 2))],
    "Dense": [
        case(lambda L: L.Dense(4, activation="hard_sigmoid", kernel_regularizer="l2")),
        case(lambda L: L.Dense(4, activation="leaky_relu", use_bias=False), (3, 6)),
        case(lambda L: L.Dense(4, kernel_constraint="max_norm", dtype="mixed_float16")),
        case(lambda L: L.Dense(4, activation=L.PReLU())),
    ],
    "DepthwiseConv1D": [
        case(lambda L: L.DepthwiseConv1D(3, strides=2, depth_multiplier=2), (9, 3)),
        case(lambda L: L.DepthwiseConv1D(3, padding="same", activation="silu"), (9, 3)),
    ],
    "DepthwiseConv2D": [
        case(lambda L: L.DepthwiseConv2D(3, strides=2, depth_multiplier=2), (9, 9, 3)),
        case(lambda L: L.DepthwiseConv2D(3, padding="same", dilation_rate=2), (9, 9, 3)),
    ],
    "Discretization": [
        case(lambda L: L.Discretization([-1.0, 0.0, 2.0]), (3,)),
        case(
            lambda L: L.Discretization(num_bins=4),
            (3,),
            adapt=np.random.default_rng(0).normal(size=(50, 1)).astype("float32"),
        ),
        case(lambda L: L.Discretization([-1.0, 0.5], output_mode="multi_hot"), (3,)),
    ],
    "Dot": [
        case(lambda L: L.Dot(axes=1, normalize=True), (6,), (6,)),
        case(lambda L: L.Dot(axes=(2, 1)), (4, 3), (3, 5)),
    ],
    "Dropout": [case(lambda L: L.Dropout(0.4, noise_shape=(None, 1), seed=1))],
    "ELU": [case(lambda L: L.ELU(alpha=0.5))],
    "EinsumDense": [
        case(
            lambda L: L.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d", activation="silu"),
            (4, 6),
        )
    ],
    "Embedding": [
        case(lambda L: L.Embedding(5, 3), (4,), dtype="int32"),
        case(lambda L: L.Embedding(5, 3, mask_zero=True), (4,), dtype="int64"),
    ],
    "Flatten": [case(lambda L: L.Flatten(), (4, 3)), case(lambda L: L.Flatten(), (None, 3))],
    "GRU": [
        *_rnn("GRU"),
        case(lambda L: L.GRU(4, reset_after=False), (5, 3)),
        _initial_state(lambda L: L.GRU(4), 1),
    ],
    "GRUCell": [case(lambda L: L.RNN(L.GRUCell(4, reset_after=False)), (5, 3))],
    "GaussianDropout": [case(lambda L: L.GaussianDropout(0.3, seed=2))],
    "GaussianNoise": [case(lambda L: L.GaussianNoise(0.3, seed=2))],
    **{
        f"Global{kind}Pooling{n}D": [
            case(lambda L, k=kind, n=n: getattr(L, f"Global{k}Pooling{n}D")(), (4,) * n + (3,)),
            case(
                lambda L, k=kind, n=n: getattr(L, f"Global{k}Pooling{n}D")(keepdims=True),
                (4,) * n + (3,),
            ),
        ]
        for kind in ("Average", "Max")
        for n in (1, 2, 3)
    },
    "GroupNormalization": [
        case(lambda L: L.GroupNormalization(2, epsilon=0.01), (4, 4, 6)),
        case(lambda L: L.GroupNormalization(-1, scale=False), (4, 6)),
    ],
    "GroupQueryAttention": [
        case(
            lambda L: L.GroupQueryAttention(4, 6, 3, dropout=0.1),
            (4, 8),
            (5, 8),
            call=lambda layer, x, y: layer(x, y),
        ),
        _twice(lambda L: L.GroupQueryAttention(4, 4, 2)),
    ],
    "HashedCrossing": [
        case(
            lambda L: L.HashedCrossing(7),
            (1,),
            (1,),
            dtype="int64",
            call=lambda layer, x, y: layer((x, y)),
        ),
        case(
            lambda L: L.HashedCrossing(7, output_mode="one_hot"),
            (1,),
            (1,),
            dtype="int64",
            call=lambda layer, x, y: layer((x, y)),
        ),
    ],
    "Hashing": [
        case(lambda L: L.Hashing(5), (2,), dtype="int64"),
        case(lambda L: L.Hashing(5, salt=[1, 2]), (2,), dtype="string", data=words),
        case(lambda L: L.Hashing(5, output_mode="multi_hot", mask_value=1), (2,), dtype="int64"),
    ],
    "Identity": [case(lambda L: L.Identity())],
    "IntegerLookup": [
        case(lambda L: L.IntegerLookup(vocabulary=[1, 3, 7]), (4,), dtype="int64"),
        case(
            lambda L: L.IntegerLookup(num_oov_indices=2, mask_token=0),
            (4,),
            dtype="int64",
            adapt=np.array([1, 1, 2, 3, 3, 3]),
        ),
        case(
            lambda L: L.IntegerLookup(vocabulary=[1, 3], output_mode="multi_hot"),
            (4,),
            dtype="int64",
        ),
    ],
    "LSTM": [*_rnn("LSTM", unit_forget_bias=False), _initial_state(lambda L: L.LSTM(4), 2)],
    "LSTMCell": [case(lambda L: L.RNN(L.LSTMCell(4), return_sequences=True), (5, 3))],
    "Lambda": [
        case(lambda L: L.Lambda(lambda x: x * 2.0 + 1.0)),
        case(lambda L: L.Lambda(lambda x, power: x**power, arguments={"power": 3})),
    ],
    "LayerNormalization": [
        case(lambda L: L.LayerNormalization(epsilon=0.01), (4, 6)),
        case(lambda L: L.LayerNormalization(axis=(1, 2), center=False), (4, 6)),
    ],
    "LeakyReLU": [case(lambda L: L.LeakyReLU(negative_slope=0.15))],
    "Masking": [
        case(
            lambda L: L.Masking(1.0),
            (3, 2),
            call=lambda layer, x: __import__("keras").layers.LSTM(3)(layer(x)),
            data=lambda rng: [np.array([[[1, 1], [2, 3], [1, 1]], [[4, 1], [1, 1], [0, 0]]], "f")],
        )
    ],
    "Maximum": _merge("Maximum"),
    "MelSpectrogram": [
        case(lambda L: L.MelSpectrogram(fft_length=64, sequence_stride=16, num_mel_bins=8), (400,))
    ],
    "Minimum": _merge("Minimum"),
    "MultiHeadAttention": [*_mha(), *_mha(dropout=0.1)],
    "Multiply": _merge("Multiply"),
    "Normalization": [
        case(
            lambda L: L.Normalization(),
            (3,),
            adapt=np.random.default_rng(0).normal(2, 3, (40, 3)).astype("float32"),
        ),
        case(lambda L: L.Normalization(mean=1.5, variance=4.0), (3,)),
        case(
            lambda L: L.Normalization(axis=None, invert=True),
            (3,),
            adapt=np.random.default_rng(0).normal(2, 3, (40, 3)).astype("float32"),
        ),
    ],
    "PReLU": [case(lambda L: L.PReLU(shared_axes=[1]), (4, 6))],
    "Permute": [case(lambda L: L.Permute((2, 1)), (4, 6))],
    "RMSNormalization": [case(lambda L: L.RMSNormalization(epsilon=0.01), (4, 6))],
    "RNN": [
        case(lambda L: L.RNN(L.SimpleRNNCell(3), go_backwards=True), (5, 2)),
        case(lambda L: L.RNN([L.GRUCell(3), L.LSTMCell(4)], return_state=True), (5, 2)),
    ],
    "ReLU": [case(lambda L: L.ReLU(max_value=1.0, negative_slope=0.1, threshold=0.2))],
    "RandomBrightness": _image(lambda L: L.RandomBrightness(0.3, seed=1)),
    "RandomContrast": _image(lambda L: L.RandomContrast(0.3, seed=1)),
    "RandomCrop": [
        case(lambda L: L.RandomCrop(4, 5, seed=1), (8, 8, 3), data=images),
        case(lambda L: L.RandomCrop(6, 3, seed=1), (8, 12, 3)),
    ],
    "RandomFlip": _image(lambda L: L.RandomFlip("horizontal", seed=1)),
    "RandomRotation": _image(lambda L: L.RandomRotation(0.2, fill_mode="nearest", seed=1)),
    "RandomTranslation": _image(lambda L: L.RandomTranslation(0.2, 0.1, seed=1)),
    "RandomZoom": _image(lambda L: L.RandomZoom(0.2, seed=1)),
    **{
        name: _image(lambda L, name=name, options=options: getattr(L, name)(**options, seed=1))
        for name, options in {
            "AugMix": {},
            "CutMix": {},
            "MixUp": {},
            "RandAugment": {},
            "RandomColorDegeneration": {"factor": 0.5},
            "RandomColorJitter": {},
            "RandomElasticTransform": {},
            "RandomErasing": {},
            "RandomGaussianBlur": {},
            "RandomGrayscale": {},
            "RandomHue": {"factor": 0.3},
            "RandomInvert": {},
            "RandomPerspective": {},
            "RandomPosterization": {"factor": 4},
            "RandomSaturation": {"factor": 0.3},
            "RandomSharpness": {"factor": 0.3},
            "RandomShear": {"x_factor": 0.2},
        }.items()
    },
    "AutoContrast": _image(lambda L: L.AutoContrast()),
    "ContrastLimitedAdaptiveHistogramEqualization": _image(
        lambda L: L.ContrastLimitedAdaptiveHistogramEqualization()
    ),
    "Solarization": _image(lambda L: L.Solarization()),
    "RepeatVector": [case(lambda L: L.RepeatVector(3), (6,))],
    "Rescaling": [
        case(lambda L: L.Rescaling(1 / 127.5, offset=-1.0), (4, 4, 3)),
        case(lambda L: L.Rescaling([0.5, 1.0, 2.0], offset=[0.0, 1.0, 2.0]), (4, 4, 3)),
        case(lambda L: L.Rescaling(0.5), (4, 4, 3), dtype="int32"),
    ],
    "Reshape": [
        case(lambda L: L.Reshape((3, -1)), (6,)),
        case(lambda L: L.Reshape((-1, 2)), (None, 4)),
    ],
    "Resizing": [
        case(lambda L: L.Resizing(5, 7), (8, 8, 3)),
        case(lambda L: L.Resizing(16, 12, interpolation="bicubic"), (8, 8, 3)),
        case(lambda L: L.Resizing(5, 5, crop_to_aspect_ratio=True), (8, 12, 3)),
        case(lambda L: L.Resizing(5, 5, pad_to_aspect_ratio=True, fill_value=0.5), (8, 12, 3)),
        case(lambda L: L.Resizing(5, 5, interpolation="nearest"), (8, 8, 3), dtype="int32"),
        case(lambda L: L.Resizing(4, 4, antialias=True), (8, 8, 3)),
    ],
    "ReversibleEmbedding": [
        case(lambda L: L.ReversibleEmbedding(5, 3), (4,), dtype="int32"),
    ],
    "SeparableConv1D": _conv("SeparableConv1D", 1),
    "SeparableConv2D": _conv("SeparableConv2D", 2),
    "SimpleRNN": [*_rnn("SimpleRNN"), _initial_state(lambda L: L.SimpleRNN(4), 1)],
    "SimpleRNNCell": [case(lambda L: L.RNN(L.SimpleRNNCell(4, activation="silu")), (5, 3))],
    "Softmax": [
        case(lambda L: L.Softmax(axis=1), (4, 6)),
        case(lambda L: L.Softmax(axis=(1, 2)), (4, 6)),
        case(
            lambda L: L.Softmax(),
            (4, 6),
            (4, 6),
            call=lambda layer, x, y: layer(x, mask=y > 0.5),
        ),
    ],
    **{
        f"SpatialDropout{n}D": [
            case(lambda L, n=n: getattr(L, f"SpatialDropout{n}D")(0.3), (4,) * n + (3,))
        ]
        for n in (1, 2, 3)
    },
    "SpectralNormalization": [
        case(lambda L: L.SpectralNormalization(L.Conv2D(4, 3), power_iterations=2), (6, 6, 3)),
        case(lambda L: L.SpectralNormalization(L.Dense(4)), (6,)),
    ],
    "STFTSpectrogram": [
        case(lambda L: L.STFTSpectrogram(frame_length=40, frame_step=20, fft_length=64), (200, 1))
    ],
    "StackedRNNCells": [
        case(lambda L: L.RNN(L.StackedRNNCells([L.LSTMCell(3), L.LSTMCell(2)])), (5, 2))
    ],
    "StringLookup": [
        case(lambda L: L.StringLookup(vocabulary=["cat", "dog"]), (2,), dtype="string", data=words),
        case(
            lambda L: L.StringLookup(output_mode="tf_idf"),
            (2,),
            dtype="string",
            data=words,
            adapt=np.array([["cat", "dog"], ["cat", "sat"]], dtype=object),
        ),
        case(
            lambda L: L.StringLookup(vocabulary=["cat", "dog"], mask_token="", num_oov_indices=2),
            (2,),
            dtype="string",
            data=words,
        ),
    ],
    "Subtract": _merge("Subtract"),
    "TextVectorization": [
        case(
            lambda L: L.TextVectorization(output_sequence_length=4),
            (1,),
            dtype="string",
            data=texts,
            adapt=_PREPROCESS,
        ),
        case(
            lambda L: L.TextVectorization(output_mode="tf_idf", ngrams=2, max_tokens=9),
            (1,),
            dtype="string",
            data=texts,
            adapt=_PREPROCESS,
        ),
        case(
            lambda L: L.TextVectorization(
                vocabulary=["cat", "dog"], output_mode="multi_hot", split="whitespace"
            ),
            (1,),
            dtype="string",
            data=texts,
        ),
    ],
    "TimeDistributed": [
        case(lambda L: L.TimeDistributed(L.Dense(3, activation="hard_silu")), (5, 6)),
        case(lambda L: L.TimeDistributed(L.Conv2D(2, 3)), (3, 6, 6, 2)),
        case(lambda L: L.TimeDistributed(L.RMSNormalization()), (5, 6)),
    ],
    "UnitNormalization": [case(lambda L: L.UnitNormalization(axis=1), (4, 6))],
    "UpSampling1D": [case(lambda L: L.UpSampling1D(3), (4, 2))],
    "UpSampling2D": [
        case(lambda L: L.UpSampling2D((2, 3)), (4, 4, 2)),
        case(lambda L: L.UpSampling2D(2, interpolation="bilinear"), (4, 4, 2)),
    ],
    "UpSampling3D": [case(lambda L: L.UpSampling3D(2), (3, 3, 3, 2))],
    "ZeroPadding1D": [case(lambda L: L.ZeroPadding1D((1, 2)), (4, 2))],
    "ZeroPadding2D": [case(lambda L: L.ZeroPadding2D(((1, 2), (0, 1))), (4, 4, 2))],
    "ZeroPadding3D": [case(lambda L: L.ZeroPadding3D(((1, 2), (0, 1), (1, 1))), (3, 3, 3, 2))],
    **{
        f"Adaptive{kind}Pooling{n}D": [
            case(lambda L, k=kind, n=n: getattr(L, f"Adaptive{k}Pooling{n}D")(3), (7,) * n + (2,))
        ]
        for kind in ("Average", "Max")
        for n in (1, 2, 3)
    },
}
