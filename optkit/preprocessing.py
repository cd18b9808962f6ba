"""What a model expects of the values that it is given, and whether data are like that.

Three things tell, of which only what a model really holds is asked:

- preprocessing layers at its front: a ``Rescaling(1 / 255)`` is there for values from 0 to 255;
- what its first batch normalization remembers of its own training. The activations that data give
  there are held to the stored mean and variance. Where they are far apart, the values are given in
  the other usual forms, too, and where one of these fits much better, that is the fault and its
  remedy. It works for every trained model with such a layer, whatever made it;
- its name, where the weights may be the published ones of ``tf_keras.applications``.

Of a model without any of that nothing is said.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit.models import LOOKUPS, batch_norms, is_graph
from optkit.runtime import tensorflow, tf_keras

__all__ = [
    "FORMS",
    "Form",
    "Mismatch",
    "distance_from_training",
    "form_of",
    "inputs_of_ids",
    "preprocessing_mismatch",
]

_VALUES = 2**22  # of inputs that are looked at, 16 MiB of float32
_SAMPLES = 512
_FAR = 0.4  # discrepancy up to which nothing else is tried
_NEARER = 0.5  # share of it that another form may have at most, to be what the model expects
_BEYOND = 4.0  # discrepancy that no other data of the same form have
_SHARES = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
_MOVING = (
    *("Resizing", "CenterCrop", "ZeroPadding2D", "RandomFlip", "RandomCrop"),
    *("RandomRotation", "RandomTranslation", "RandomZoom"),
)
_MEAN = np.array([0.485, 0.456, 0.406], "float32")
_DEVIATION = np.array([0.229, 0.224, 0.225], "float32")
_CAFFE_MEAN = np.array([103.939, 116.779, 123.68], "float32")


@dataclass(frozen=True)
class Form:
    """A usual form of pixel values.

    Attributes:
        name: In words.
        make: Function of values from 0 to 1 to this form.
        back: The inverse.
        ends: Lowest and highest value.
        colours: Whether it takes three channels.
    """

    name: str
    make: Callable[[np.ndarray], np.ndarray]
    back: Callable[[np.ndarray], np.ndarray]
    ends: tuple[float, float]
    colours: bool = False


#: The usual forms, the plainest first.
FORMS: dict[str, Form] = {
    "unit": Form("0 to 1", lambda u: u, lambda x: x, (0.0, 1.0)),
    "symmetric": Form("-1 to 1", lambda u: 2 * u - 1, lambda x: (x + 1) / 2, (-1.0, 1.0)),
    "bytes": Form("0 to 255", lambda u: 255 * u, lambda x: x / 255, (0.0, 255.0)),
    "imagenet": Form(
        "0 to 1 with ImageNet's mean taken off and divided by its deviation",
        lambda u: (u - _MEAN) / _DEVIATION,
        lambda x: x * _DEVIATION + _MEAN,
        (float((-_MEAN / _DEVIATION).min()), float(((1 - _MEAN) / _DEVIATION).max())),
        colours=True,
    ),
    "caffe": Form(
        "0 to 255, blue first, with ImageNet's mean taken off",
        lambda u: 255 * u[..., ::-1] - _CAFFE_MEAN,
        lambda x: (x + _CAFFE_MEAN)[..., ::-1] / 255,
        (float(-_CAFFE_MEAN.max()), float(255 - _CAFFE_MEAN.min())),
        colours=True,
    ),
    "divided twice": Form("0 to 1/255", lambda u: u / 255, lambda x: 255 * x, (0.0, 1 / 255)),
}
#: What tf_keras.applications without batch normalization were trained with.
_BY_NAME = {"vgg16": "caffe", "vgg19": "caffe"}


@dataclass(frozen=True)
class Mismatch:
    """Values that are not what the model expects.

    Attributes:
        message: What is wrong, how it was found, and what to do; a sentence or two.
        received: The form of the values, in words.
        expected: The form that the model expects, in words; ``None`` if that is not known.
        source: ``"layer"`` (a preprocessing layer says so), ``"statistics"`` (a batch normalization
            remembers other values) or ``"name"``.
        layer: Name of the layer that says so; empty for ``"name"``.
    """

    message: str
    received: str
    expected: str | None
    source: str
    layer: str = ""

    @property
    def certain(self) -> bool:
        """Whether the model itself shows it. A name does not: the weights may be others."""
        return self.source != "name"


def form_of(values: np.ndarray) -> str | None:
    """The key in `FORMS` of the form that pixel values have; ``None`` if it is none of them.

    The values must fill a form's range to more than half. ``uint8`` is 0 to 255 in any case.

    Args:
        values: Images, ``(n, height, width, channels)``.

    Example:
        >>> import numpy as np
        >>> form_of(np.linspace(0, 1, 48).reshape(1, 4, 4, 3)), form_of(np.full((1, 4, 4, 1), 7.0))
        ('unit', None)
    """
    if values.dtype == np.uint8:
        return "bytes"
    low, high = float(values.min()), float(values.max())
    if low == high:
        return None
    for key in ("divided twice", "unit", "symmetric", "bytes", "imagenet", "caffe"):
        form = FORMS[key]
        bottom, top = form.ends
        slack = 0.002 * (top - bottom)
        if form.colours and values.shape[-1] != 3:
            continue
        within = low >= bottom - slack and high <= top + slack
        if within and high > (bottom + top) / 2 and (bottom >= 0 or low < bottom / 2):
            return key
    return None


def preprocessing_mismatch(model: Any, inputs: Any) -> Mismatch | None:
    """Whether values are given to a model in a form that it was not trained for.

    It looks at the front of the model and at the first batch normalization that has learned
    something, to which it runs the values. It changes nothing and draws no random numbers.

    Args:
        model: A tf_keras model, or a backbone. Not changed.
        inputs: What the model is given, as in training: an array ``(n, …)`` of images or of rows of
            a table, or a dict of arrays by input name. A few dozen samples will do; of more than
            512, or more than four million values, the first are looked at.

    Returns:
        What does not fit, or ``None``: where it fits, and where nothing can be known.

    Example:
        >>> import numpy as np
        >>> from optkit.runtime import tf_keras
        >>> layers = tf_keras().layers
        >>> model = tf_keras().Sequential(
        ...     [tf_keras().Input((4, 4, 1)), layers.Rescaling(1 / 255), layers.Flatten()]
        ... )
        >>> images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1)).astype("float32")
        >>> preprocessing_mismatch(model, images) is None
        True
        >>> found = preprocessing_mismatch(model, images / 255)
        >>> found.received, found.expected
        ('0 to 1', '0 to 255')
    """
    given = _as_list(model, inputs)
    if given is None:
        return None
    for value, start in zip(given, model.inputs, strict=True):
        found = _by_front(model, start, value)
        if found is not None:
            return found
    learned = [layer for layer in batch_norms(model) if _has_learned(layer)]
    if learned:
        return _by_statistics(model, learned, given)
    return _by_name(model, given)


def distance_from_training(model: Any, inputs: Any) -> float | None:
    """How far values are from those that the model's first batch normalization remembers.

    Around 0.1 to 0.3 for other photographs of the form that it was trained on, 1 to 2 for values
    that are half or a third as wide as they should be, 5 and more for a factor of 255.

    Args:
        model: A tf_keras model. Not changed.
        inputs: As for `preprocessing_mismatch`.

    Returns:
        The mean over channels of ``log(1 + J)``, where ``J`` is the symmetric divergence of two
        normal distributions; ``None`` where no batch normalization has learned anything.
    """
    given = _as_list(model, inputs)
    learned = [layer for layer in batch_norms(model) if _has_learned(layer)]
    reached = None if given is None or not learned else _moments(model, learned, given)
    return None if reached is None else _discrepancy(*reached)


def inputs_of_ids(model: Any) -> frozenset[str]:
    """The names of the inputs that hold numbers of things, such as token ids, not quantities."""
    pairs = zip(model.input_names, model.inputs, strict=True)
    return frozenset(name for name, tensor in pairs if _looked_up(tensor))


def _as_list(model: Any, inputs: Any) -> list[np.ndarray] | None:
    """The first samples of each input in the model's order; ``None`` if one holds no quantities."""
    values = [inputs[name] for name in model.input_names] if isinstance(inputs, Mapping) else inputs
    values = list(values) if isinstance(values, list | tuple) else [values]
    size = max(1, sum(int(np.prod(np.shape(value)[1:])) for value in values))
    count = max(1, min(_SAMPLES, _VALUES // size))
    found = [np.asarray(value[:count]) for value in values]
    if len(found) != len(model.inputs) or any(value.dtype.kind not in "uif" for value in found):
        return None
    return None if any(map(_looked_up, model.inputs)) else found


# ------------------------------------------------------------------------------- the model's front


def _consumers(tensor: Any) -> list[Any]:
    """The layers that take a tensor, those inside of models within the model instead of these."""
    found = []
    history = getattr(tensor, "_keras_history", None)
    nodes = history.layer.outbound_nodes if history is not None else []
    for node in nodes:
        layer = node.outbound_layer
        if is_graph(layer) and len(layer.inputs) == 1:
            found += _consumers(layer.inputs[0])
        elif not any(layer is known for known in found):
            found.append(layer)
    return found


def _looked_up(tensor: Any) -> bool:
    """Whether an input holds numbers of things, not quantities."""
    return any(type(layer).__name__ in LOOKUPS for layer in _consumers(tensor))


def _front(model: Any, tensor: Any) -> Iterator[Any]:
    """The layers behind an input, as long as one follows the other."""
    known = set(map(id, _layers_within(model)))
    while True:
        following = [layer for layer in _consumers(tensor) if id(layer) in known]
        if len(following) != 1:
            return
        yield following[0]
        try:
            tensor = following[0].output
        except (AttributeError, RuntimeError):  # used in several places, or never called by itself
            return


def _layers_within(model: Any) -> Iterator[Any]:
    """The layers of a model and of the models within it."""
    for layer in model.layers:
        if is_graph(layer):
            yield from _layers_within(layer)
        else:
            yield layer


def _by_front(model: Any, start: Any, values: np.ndarray) -> Mismatch | None:
    """What the first layer that rescales or normalizes says; layers that only move pixels do not."""
    layers = tf_keras().layers
    moving = tuple(getattr(layers, name) for name in _MOVING)
    for layer in _front(model, start):
        if isinstance(layer, layers.Rescaling):
            return _by_rescaling(layer, values)
        if isinstance(layer, layers.Normalization):
            return _by_normalization(layer, values)
        if not isinstance(layer, moving):
            return None
    return None


def _by_rescaling(layer: Any, values: np.ndarray) -> Mismatch | None:
    received = form_of(values) if values.ndim == 4 else None
    if received is None:
        return None
    scale = float(np.mean(layer.scale))

    def sound(form: Form) -> bool:
        # Usual are widths of 1 and 2, of about 5 where a deviation is divided by, and of 255.
        width = abs(scale) * (form.ends[1] - form.ends[0])
        return 0.4 <= width <= 12 or 200 <= width <= 300

    if sound(FORMS[received]):
        return None
    fitting = [form for form in (FORMS["unit"], FORMS["bytes"]) if sound(form)]
    if not fitting:
        return None
    low, high = (scale * end + float(np.mean(layer.offset)) for end in FORMS[received].ends)
    return Mismatch(
        f"the layer {layer.name!r} at the front of the model (times {scale:.4g}) is made for "
        f"values of {fitting[0].name}; it is given {FORMS[received].name}, of which it makes "
        f"{low:.4g} to {high:.4g}. Give {fitting[0].name}, or leave the layer out",
        FORMS[received].name,
        fitting[0].name,
        "layer",
        str(layer.name),
    )


def _by_normalization(layer: Any, values: np.ndarray) -> Mismatch | None:
    if getattr(layer, "mean", None) is None or len(layer.mean.shape) != values.ndim:
        return None
    mean, variance = np.asarray(layer.mean), np.asarray(layer.variance)
    over = tuple(i for i, size in enumerate(mean.shape) if size == 1)
    own_mean = values.mean(over, dtype="float64").ravel()
    own = values.std(over, dtype="float64").ravel()
    mean, deviation = mean.ravel(), np.sqrt(np.maximum(variance.ravel(), 1e-12))
    informative = (own > 0) & (variance.ravel() > 0)
    if not informative.any():
        return None
    ratio = float(np.median((own / deviation)[informative]))
    shift = float(np.median((np.abs(own_mean - mean) / np.maximum(deviation, own))[informative]))
    if 1 / 20 <= ratio <= 20 and shift <= 10:
        return None
    return Mismatch(
        f"the layer {layer.name!r} at the front of the model takes off a mean of "
        f"{float(np.median(mean)):.4g} and divides by {float(np.median(deviation)):.4g}; the values "
        f"given have {float(np.median(own_mean)):.4g} and {float(np.median(own)):.4g} (medians over "
        "features). Give the values that the layer was adapted to, or adapt it to these",
        f"mean {float(np.median(own_mean)):.4g}, deviation {float(np.median(own)):.4g}",
        f"mean {float(np.median(mean)):.4g}, deviation {float(np.median(deviation)):.4g}",
        "layer",
        str(layer.name),
    )


# ---------------------------------------------------------------------------- stored statistics


def _has_learned(layer: Any) -> bool:
    mean, variance = np.asarray(layer.moving_mean), np.asarray(layer.moving_variance)
    return not (np.all(mean == 0) and np.all(variance == 1))


def _by_statistics(model: Any, learned: list[Any], given: list[np.ndarray]) -> Mismatch | None:
    reached = _moments(model, learned, given)
    if reached is None:
        return None
    layer, *own = reached
    as_given = _discrepancy(layer, *own)
    if as_given < _FAR:
        return None
    received, others = _other_forms(given)
    best, nearest = None, _NEARER * as_given
    for form, values in others:
        tried = _moments(model, [layer], values)
        if tried is None:
            continue
        found = _discrepancy(layer, *tried[1:])
        if found < nearest:
            best, nearest = form, found
    if best is None and (as_given < _BEYOND or len(given) > 1):
        return None
    told = (
        f"the activations that these values give at {layer.name!r}, the first batch normalization, "
        f"are far from those that it remembers of its training (discrepancy {as_given:.1f}, usual "
        f"is below {_FAR:g})"
    )
    if best is None:
        remedy = "Prepare the values as they were when the model was trained"
    else:
        told += f"; of values {best} they would be at {nearest:.1f}"
        remedy = f"Give values {best}, or put the layers that make them so at the model's front"
    return Mismatch(f"{told}. {remedy}", received, best, "statistics", str(layer.name))


class _Reached(BaseException):
    """Ends the run through a model at the layer that was looked for.

    No `Exception`, as Keras would take that for a fault of the layer and wrap it.
    """


def _moments(
    model: Any, wanted: list[Any], given: list[np.ndarray]
) -> tuple[Any, np.ndarray, np.ndarray] | None:
    """The first of the batch normalizations that values reach, with mean and variance there."""
    tf = tensorflow()
    tensors = [tf.cast(v, start.dtype) for v, start in zip(given, model.inputs, strict=True)]
    reached: list[Any] = []

    def look(layer: Any, values: Any, **_: Any) -> Any:
        axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
        kept = {axis % values.shape.rank for axis in axes}
        over = [axis for axis in range(values.shape.rank) if axis not in kept]
        mean, variance = tf.nn.moments(tf.cast(values, tf.float32), over)
        reached.extend([layer, np.asarray(mean), np.asarray(variance)])
        raise _Reached

    try:
        for layer in wanted:
            # On the object, where it hides the method of the class; as in `optkit.batch_norm`.
            layer.call = _looking(look, layer)
        with contextlib.suppress(_Reached):
            model(tensors[0] if len(tensors) == 1 else tensors, training=False)
    finally:
        for layer in wanted:
            if "call" in vars(layer):
                del layer.call
    if len(reached) != 3 or reached[1].shape != tuple(reached[0].moving_mean.shape):
        return None
    return reached[0], reached[1], reached[2]


def _looking(look: Callable[..., Any], layer: Any) -> Any:
    def call(inputs: Any, training: Any = None, mask: Any = None) -> Any:
        return look(layer, inputs)

    return tensorflow().autograph.experimental.do_not_convert(call)


def _discrepancy(layer: Any, mean: np.ndarray, variance: np.ndarray) -> float:
    """How far activations are from what a batch normalization remembers, on a logarithmic scale.

    For each channel the symmetric divergence of two normal distributions (Jeffreys, 1946), of which
    the mean over channels of log(1 + it) is taken. What is remembered may still hold a share of what
    it began with, mean 0 and variance 1, where training was short: the share that fits best counts,
    of those that leave every channel a variance of its own.
    """
    epsilon = float(layer.epsilon)
    stored_mean = np.asarray(layer.moving_mean, "float64")
    stored = np.asarray(layer.moving_variance, "float64") + epsilon
    best, most = np.inf, float(np.min(layer.moving_variance))
    for share in (share for share in _SHARES if share <= most):
        # A little of the typical variance, so that channels that are all but constant say little.
        floor = 1e-3 * float(np.median(stored)) + epsilon
        seen = (1 - share) * mean.astype("float64")
        spread = (1 - share) * variance.astype("float64") + share + floor
        wide = stored + floor
        apart = (seen - stored_mean) ** 2
        divergence = 0.5 * (spread / wide + wide / spread - 2 + apart * (1 / spread + 1 / wide))
        best = min(best, float(np.mean(np.log1p(divergence))))
    return best


def _other_forms(given: list[np.ndarray]) -> tuple[str, list[tuple[str, list[np.ndarray]]]]:
    """What the values are, in words, and the same values in the other usual forms."""
    images = [i for i, value in enumerate(given) if value.ndim == 4]
    tables = [i for i, value in enumerate(given) if value.ndim == 2]
    if not images:
        low, high = min(v.min() for v in given), max(v.max() for v in given)
        received = f"{float(low):.4g} to {float(high):.4g}"
        if not tables:
            return received, []
        scaled = [_standardised(v) if i in tables else v for i, v in enumerate(given)]
        return received, [("with mean 0 and deviation 1 for each feature", scaled)]
    first = given[images[0]]
    key = form_of(first)
    if key is None:
        return f"{float(first.min()):.4g} to {float(first.max()):.4g}", []
    found = []
    for other, form in FORMS.items():
        colour = all(given[i].shape[-1] == 3 for i in images)
        if other in (key, "divided twice") or (form.colours and not colour):
            continue
        values = [
            form.make(FORMS[key].back(v.astype("float32"))) if i in images else v
            for i, v in enumerate(given)
        ]
        found.append((form.name, values))
    return FORMS[key].name, found


def _standardised(table: np.ndarray) -> np.ndarray:
    deviation = table.std(0, dtype="float64")
    centred = table - table.mean(0, dtype="float64")
    scaled: np.ndarray = (centred / np.where(deviation > 0, deviation, 1)).astype("float32")
    return scaled


# ------------------------------------------------------------------------------------------- names


def _by_name(model: Any, given: list[np.ndarray]) -> Mismatch | None:
    """What the published weights of a model of this name expect, where nothing else tells."""
    received = form_of(given[0]) if len(given) == 1 and given[0].ndim == 4 else None
    models = [model, *(layer for layer in model.layers if is_graph(layer))]
    name = next((item.name for item in models if item.name in _BY_NAME), None)
    if name is None or received not in ("unit", "symmetric", "divided twice"):
        return None
    expected = FORMS[_BY_NAME[name]].name
    return Mismatch(
        f"a model named {name!r} is given values {FORMS[received].name}; if its weights are the "
        f"published ones, it expects {expected}",
        FORMS[received].name,
        expected,
        "name",
    )
