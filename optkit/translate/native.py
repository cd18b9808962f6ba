"""Which layer classes mean the same in both libraries, and how their configurations differ.

A class is listed only if both compute the same for every configuration that gets through; what does
not get through is carried instead (see `optkit.translate.carrier2` and `carrier3`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["NATIVE", "arguments", "policy_name"]

#: Layer classes that both libraries have and compute alike; every other one is carried.
NATIVE = frozenset(
    [
        "Activation",
        "ActivityRegularization",
        "Add",
        "AdditiveAttention",
        "AlphaDropout",
        "Attention",
        "Average",
        "AveragePooling1D",
        "AveragePooling2D",
        "AveragePooling3D",
        "BatchNormalization",
        "Bidirectional",
        "CategoryEncoding",
        "CenterCrop",
        "Concatenate",
        "Conv1D",
        "Conv1DTranspose",
        "Conv2D",
        "Conv2DTranspose",
        "Conv3D",
        "Conv3DTranspose",
        "ConvLSTM1D",
        "ConvLSTM2D",
        "ConvLSTM3D",
        "Cropping1D",
        "Cropping2D",
        "Cropping3D",
        "Dense",
        "DepthwiseConv1D",
        "DepthwiseConv2D",
        "Discretization",
        "Dot",
        "Dropout",
        "ELU",
        "EinsumDense",
        "Embedding",
        "Flatten",
        "GRU",
        "GRUCell",
        "GaussianDropout",
        "GaussianNoise",
        "GlobalAveragePooling1D",
        "GlobalAveragePooling2D",
        "GlobalAveragePooling3D",
        "GlobalMaxPooling1D",
        "GlobalMaxPooling2D",
        "GlobalMaxPooling3D",
        "GroupNormalization",
        "HashedCrossing",
        "Hashing",
        "Identity",
        "IntegerLookup",
        "LSTM",
        "LSTMCell",
        "LayerNormalization",
        "LeakyReLU",
        "Masking",
        "MaxPooling1D",
        "MaxPooling2D",
        "MaxPooling3D",
        "Maximum",
        "Minimum",
        "MultiHeadAttention",
        "Multiply",
        "Normalization",
        "PReLU",
        "Permute",
        "RNN",
        "RandomBrightness",
        "RandomContrast",
        "RandomFlip",
        "RandomRotation",
        "RandomTranslation",
        "RandomZoom",
        "ReLU",
        "RepeatVector",
        "Rescaling",
        "Reshape",
        "Resizing",
        "SeparableConv1D",
        "SeparableConv2D",
        "SimpleRNN",
        "SimpleRNNCell",
        "Softmax",
        "SpatialDropout1D",
        "SpatialDropout2D",
        "SpatialDropout3D",
        "StackedRNNCells",
        "StringLookup",
        "Subtract",
        "TextVectorization",
        "TimeDistributed",
        "UnitNormalization",
        "UpSampling1D",
        "UpSampling2D",
        "UpSampling3D",
        "ZeroPadding1D",
        "ZeroPadding2D",
        "ZeroPadding3D",
    ]
)

_ANY = object()

#: What may be left out where the other library has no such argument: the values that mean what it
#: does anyway. Random seeds do not count: the generators of the two libraries differ.
_SAME_WITHOUT: dict[str, tuple[Any, ...]] = {
    "autocast": (_ANY,),
    "batch_input_shape": (_ANY,),
    "crop_to_aspect_ratio": (False,),
    "antialias": (False,),
    "data_format": ("channels_last", None),
    "dynamic": (False,),
    "fill_mode": (_ANY,),  # of Resizing, and only with `pad_to_aspect_ratio`
    "fill_value": (_ANY,),
    "flash_attention": (None, False),
    "gptq_unpacked_column_size": (None,),
    "groups": (1,),
    "implementation": (_ANY,),
    "input_dim": (_ANY,),
    "input_length": (None,),
    "input_shape": (_ANY,),
    "is_quantized": (False,),
    "lora_alpha": (None,),
    "lora_rank": (None,),
    "kernel_constraint": (_ANY,),  # of separable convolutions, which have other kernels
    "kernel_initializer": (_ANY,),
    "kernel_regularizer": (_ANY,),
    "noise_shape": (None,),
    "oov_method": (None, "floormod"),
    "pad_to_aspect_ratio": (False,),
    "quantization_config": (None,),
    "quantization_mode": (None,),
    "ragged": (False,),
    "renorm": (False,),
    "renorm_clipping": (_ANY,),
    "renorm_momentum": (_ANY,),
    "rms_scaling": (False,),
    "rng_type": (_ANY,),
    "salt": (None,),
    "seed": (_ANY,),
    "sliding_window": (None,),
    "softmax_robust_masking": (_ANY,),
    "robust_masking": (_ANY,),
    "sparse": (False,),
    "time_major": (False,),
    "trainable": (_ANY,),  # copied with the flags
    "use_cudnn": (_ANY,),
    "use_gate": (False,),
    "vocabulary_size": (_ANY,),  # told by the vocabulary
    "value_range": ((0, 255), [0, 255]),
    "zero_output_for_mask": (False,),
    # shapes that tf_keras keeps for itself
    "query_shape": (_ANY,),
    "key_shape": (_ANY,),
    "value_shape": (_ANY,),
}

_RENAMED = {
    "LeakyReLU": {"negative_slope": "alpha"},  # Keras 3's name to that of tf_keras
    "ReLU": {},
}


def policy_name(policy: Any) -> str | None:
    """The name of a dtype policy, whichever library and form it is in; ``None`` if it has none."""
    if policy is None or isinstance(policy, str):
        return policy
    if isinstance(policy, dict):
        plain = policy.get("class_name") in ("DTypePolicy", "FloatDTypePolicy", "Policy")
        return policy["config"].get("name") if plain else None
    plain = type(policy).__name__ in ("DTypePolicy", "FloatDTypePolicy", "Policy", "PolicyV1")
    return str(policy.name) if plain else None


@functools.cache
def accepted(kind: type) -> frozenset[str]:
    """The arguments that a layer class can be made with, those of its bases included."""
    names: set[str] = set()
    for base in inspect.getmro(kind):
        init = base.__dict__.get("__init__")
        if init is None:
            continue
        parameters = inspect.signature(init).parameters.values()
        names |= {
            parameter.name
            for parameter in parameters
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        }
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    if "return_sequences" in names:
        names.add("zero_output_for_mask")  # taken out of the keywords by tf_keras
    return frozenset(names - {"self"})


def arguments(
    kind: str, config: dict[str, Any], target: type, *, forward: bool, convert: Callable[..., Any]
) -> dict[str, Any] | None:
    """The arguments for the other library's class of the same name.

    Args:
        kind: Name of the class.
        config: What ``get_config`` says, in the library that the layer is of.
        target: The class to make.
        forward: From Keras 3 to tf_keras, or back.
        convert: Gets a key and its value, and gives the value for the other library.

    Returns:
        The arguments, or ``None`` if an argument that the class lacks says something that it would
        not do.
    """
    names = accepted(target)
    renamed = _RENAMED.get(kind, {})
    if not forward:
        renamed = {new: old for old, new in renamed.items()}
    result = {}
    for key, value in config.items():
        key = renamed.get(key, key)
        if key == "dtype":
            value = policy_name(value)
            if value is None and config[key] is not None:
                return None
        elif key not in names:
            same = _SAME_WITHOUT.get(key, ())
            if _ANY not in same and not any(_equal(value, one) for one in same):
                return None
            continue
        result[key] = convert(key, value)
    return result


def _equal(value: Any, other: Any) -> bool:
    # Not so for a truth: 1 is no True here.
    return value is other or (bool(value == other) and not isinstance(value, bool))
