"""Random small models through `QuantizeINT8`: each converts, reads back, and rounds as its scales say.

What is held to is derived from the scales alone, one operator at a time, and so stays sharp however
deep a model is. An operator of the file takes numbers ``x = s (q - z)`` and constants ``c`` that
were rounded to steps of their own:

1. Rounded to the nearest, a constant is at most half a step from the float one. For a scale a
   channel that covers the largest weight of the channel, none is clipped.
2. What the operator computes in real numbers from ``x`` and the rounded ``c`` is rounded to the
   scale of its output: half a step away at most. Kernels multiply by the quotient of the scales in
   fixed point, or look values up, which is allowed another half. What lies beyond the 256 numbers
   of the output is clipped to the outermost one.

By the triangle inequality both together bound how far an operator is from the float one on the same
inputs: by ``s_out + sum |x| s_w / 2 + s_b / 2`` for sums of products.
"""

from __future__ import annotations

import warnings

import numpy as np
import tf_keras as keras
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import optkit as ok
from optkit.flatbuffer import FLOAT32, operator_name, packed, unpacked
from optkit.quantize import float_operations, quantize
from optkit.quantize.calibrate import observe
from optkit.quantize.int8 import EXACT, Int8, Settings

layers = keras.layers

STEPS = (
    "convolution", "depthwise", "separable", "norm", "relu", "relu6", "leaky", "swish", "sigmoid",
    "residual", "branches", "average", "maximum",
)  # fmt: skip
ENDS = ("average", "maximum", "flatten")
HEADS = ("none", "softmax", "sigmoid", "two outputs")
COUNT = 12


@st.composite
def designs(draw):
    """What a model is made of, so that it can be made again."""
    step = st.tuples(st.sampled_from(STEPS), st.integers(1, 5), st.integers(1, 3), st.booleans())
    return {
        "shape": (draw(st.integers(4, 9)), draw(st.integers(4, 9)), draw(st.integers(1, 4))),
        "steps": draw(st.lists(step, min_size=1, max_size=6)),
        "end": draw(st.sampled_from(ENDS)),
        "hidden": draw(st.integers(0, 8)),
        "head": draw(st.sampled_from(HEADS)),
        "seed": draw(st.integers(0, 10_000)),
    }


def build(design):
    def norm(y):
        return layers.BatchNormalization()(y)

    def step(y, kind, width, size, odd):
        padding = "same" if odd or min(y.shape[1:3]) < size else "valid"
        stride = 2 if odd and size > 1 else 1
        if kind == "convolution":
            return layers.Conv2D(width, size, stride, padding)(y)
        if kind == "depthwise":
            return layers.DepthwiseConv2D(size, stride, padding, depth_multiplier=1 + width % 2)(y)
        if kind == "separable":
            return layers.SeparableConv2D(width, size, padding=padding)(y)
        if kind == "norm":
            return norm(y)
        if kind == "residual":
            return layers.Add()([y, layers.Conv2D(y.shape[-1], size, padding="same")(y)])
        if kind == "branches":
            one = layers.Conv2D(width, size, padding="same", activation="relu")(y)
            return layers.Concatenate()([one, y, norm(layers.Conv2D(2, 1)(y))])
        if kind == "average":
            return layers.AveragePooling2D(size, padding=padding)(y)
        if kind == "maximum":
            return layers.MaxPooling2D(size, padding=padding)(y)
        made = {
            "relu": layers.ReLU,
            "relu6": lambda: layers.ReLU(6.0),
            "leaky": lambda: layers.LeakyReLU(0.1 * width),
            "swish": lambda: layers.Activation("swish"),
            "sigmoid": lambda: layers.Activation("sigmoid"),
        }
        return made[kind]()(y)

    x = y = keras.Input(design["shape"], name="x")
    for each in design["steps"]:
        y = step(y, *each)
    ends = {
        "average": layers.GlobalAveragePooling2D,
        "maximum": layers.GlobalMaxPooling2D,
        "flatten": layers.Flatten,
    }
    y = ends[design["end"]]()(y)
    if design["hidden"]:
        y = norm(layers.Dense(design["hidden"], activation="relu")(y))
    head = design["head"]
    end = layers.Dense(3, activation=None if head in ("none", "two outputs") else head)(y)
    outputs = {"one": end, "two": layers.Dense(1)(y)} if head == "two outputs" else end
    model = keras.Model(x, outputs)
    rng = np.random.default_rng(design["seed"])
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            size = layer.gamma.shape
            layer.moving_mean.assign(rng.normal(size=size))
            layer.moving_variance.assign(rng.uniform(0.05, 3, size))
            layer.gamma.assign(rng.choice([-1, 1], size) * rng.uniform(0.2, 2, size))
            layer.beta.assign(rng.normal(size=size))
            continue
        for weight in layer.weights:
            fan = max(1, int(np.prod(weight.shape[:-1])))
            weight.assign(rng.normal(scale=fan**-0.5, size=weight.shape))
    return model, rng.normal(size=(COUNT, *design["shape"])).astype("f")


# ------------------------------------------------------------------------- one operator by itself


def one_by_one(content):
    """For each operator of a file: its kind, the tensors it takes, and the one it gives."""
    model = unpacked(content)
    graph = model.subgraphs[0]
    for place, operator in enumerate(graph.operators):
        taken = [graph.tensors[int(t)] for t in operator.inputs if t >= 0]
        kind = operator_name(model.operatorCodes[operator.opcodeIndex])
        yield place, kind, taken, [graph.tensors[int(t)] for t in operator.outputs]


def constant(model, tensor):
    data = model.buffers[tensor.buffer].data
    if data is None or not len(data):
        return None
    kinds = {0: np.float32, 2: np.int32, 9: np.int8}
    shape = () if tensor.shape is None else tuple(tensor.shape)
    return np.asarray(data, np.uint8).view(kinds[tensor.type]).reshape(shape)


def real(tensor, stored):
    """The real numbers that stored ones stand for."""
    entry = tensor.quantization
    if entry is None or entry.scale is None or not len(entry.scale):
        return stored
    shape = [1] * stored.ndim
    if len(entry.scale) > 1:
        shape[entry.quantizedDimension] = -1
    zero = np.asarray(entry.zeroPoint, np.float64).reshape(shape)
    return ((stored - zero) * np.asarray(entry.scale, np.float64).reshape(shape)).astype("f")


def alone(content, place, values):
    """Runs one operator of the float file on floats, its constants included in what it is given."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    model = unpacked(content)
    graph = model.subgraphs[0]
    operator = graph.operators[place]
    given = {}
    for tensor, value in zip((int(t) for t in operator.inputs if t >= 0), values, strict=True):
        if graph.tensors[tensor].type == FLOAT32:
            given[tensor] = value.astype("f")
            graph.tensors[tensor].buffer = 0
    graph.operators, graph.inputs = [operator], np.array(sorted(given), np.int32)
    graph.outputs, model.signatureDefs = np.asarray(operator.outputs), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interpreter = Interpreter(
            model_content=packed(model, len(content)),
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
    details = interpreter.get_input_details()
    ordered = [given[tensor] for tensor in sorted(given)]
    for detail, value in zip(details, ordered, strict=True):
        interpreter.resize_tensor_input(detail["index"], value.shape)
    interpreter.allocate_tensors()
    for detail, value in zip(details, ordered, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def assert_rounded(wanted, tensor, stored):
    """Within a step of what it should be, clipped to the numbers that there are."""
    scale = float(tensor.quantization.scale[0])
    zero = int(tensor.quantization.zeroPoint[0])
    low, high = (-128 - zero) * scale, (127 - zero) * scale
    away = np.abs(real(tensor, stored) - np.clip(wanted, low, high))
    assert away.max() <= 1.0001 * scale, f"{tensor.name} is {away.max() / scale:.3g} steps away"


def assert_within_scales(file, content, x):
    """Holds every operator of a quantized file to the bound at the top of this file."""
    artifact = ok.TFLiteArtifact(content)
    inputs = [port.quantize(x) for port in artifact.inputs]
    seen = {}
    observe(file, iter([inputs]), lambda name, values: seen.update({name: values.copy()}), content)
    quantized, floats = unpacked(content), unpacked(file.content)
    ours = list(one_by_one(content))
    theirs = iter(one_by_one(file.content))
    checked = 0
    for _, kind, taken, results in ours:
        values = []
        for tensor in taken:
            fixed = constant(quantized, tensor)
            values.append(seen[tensor.name.decode()] if fixed is None else fixed)
        reals = [real(tensor, value) for tensor, value in zip(taken, values, strict=True)]
        (made,) = results
        stored = seen[made.name.decode()]
        if kind in ("QUANTIZE", "DEQUANTIZE"):
            assert kind == "QUANTIZE"
            assert_rounded(reals[0], made, stored)
            continue
        place, wanted_kind, originals, _ = next(theirs)
        assert kind == wanted_kind
        for tensor, original, value in zip(taken, originals, reals, strict=True):
            exact = constant(floats, original)
            if exact is None or original.type != FLOAT32:
                continue
            steps = np.asarray(tensor.quantization.scale)
            shape = [1] * exact.ndim
            if len(steps) > 1:
                shape[tensor.quantization.quantizedDimension] = -1
            slack = 0.501 * steps.reshape(shape) + 1e-6 * np.abs(exact)
            assert (np.abs(value - exact) <= slack).all(), f"constant of {kind}"
        assert_rounded(alone(file.content, place, reals), made, stored)
        checked += 1
    assert next(theirs, None) is None
    assert checked == len(file.operations)


# --------------------------------------------------------------------------------------- the test


@settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(designs())
def test_random_models_round_as_their_scales_say(design):
    model, x = build(design)
    work = Int8(
        model,
        lambda: iter([x[i : i + 1]] for i in range(COUNT)),
        Settings(ranges="minmax", repairs=EXACT),
    )
    file, finished = work.make()
    assert float_operations(finished) == ()
    # With the names that the tensors have in the float file, to tell which operator is which.
    content = quantize(file, work.final.ranges)
    assert file.finish(content) == finished
    assert_within_scales(file, content, x)
    artifact = ok.TFLiteArtifact(finished)
    found = artifact.predict(x)
    shapes = model.output_shape
    for name, one in found.items() if isinstance(found, dict) else [("", found)]:
        assert one.shape[1:] == (shapes[name] if name else shapes)[1:]
        assert np.isfinite(one).all()
        assert len(one) == COUNT
