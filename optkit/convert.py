"""From a Keras model to a TFLite flatbuffer, by way of one traced function.

Converting one traced function skips the SavedModel that the stock converter writes, which traces
every layer on its own; the flatbuffer is the same. What such a function lacks, the named signature,
is put into the flatbuffer afterwards.

Some models need more than that:

- Loops over time (recurrent layers) convert to float32 for one sample at a time alone, and crash the
  calibrator. For full-integer files they are unrolled; a loop that is left (one in a layer of the
  user's) is calibrated in a process of its own.
- Models that compute in 16 bits are converted from a float32 twin of equal weights.
- Lookups of strings and categories are split off, and run before the file.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from optkit.artifact import KerasArtifact, TFLiteArtifact
from optkit.artifact.keras import inference_function
from optkit.artifact.tflite import front_function
from optkit.errors import OptkitError, first_line
from optkit.flatbuffer import packed, unpacked
from optkit.isolate import run_module
from optkit.lookups import Split, split_lookups
from optkit.models import Signature, clone, copy_state, mixed_precision_layers, signature
from optkit.runtime import locked, tensorflow, tf_keras

__all__ = ["Converted", "Samples", "Source", "convert", "convert_to_tflite", "source_of"]

#: Gives calibration samples, each a list of the inputs in the model's order, shape ``(1, …)``.
Samples = Callable[[], Iterator[list[np.ndarray]]]

_SIGNATURE_KEY = "serving_default"
_DEPRECATED_PATH = "Please consider providing the trackable_obj argument"
_LOOPS = ("While", "StatelessWhile")
_BRANCHES = ("If", "StatelessIf", "Case", "StatelessCase")
_IN_16_BITS = ("float16", "bfloat16", "mixed_float16", "mixed_bfloat16")
_SECONDS_APART = 1800.0  # how long a conversion in a process of its own may take


@dataclass(frozen=True)
class Converted:
    """What `convert` made.

    Attributes:
        artifact: The file, with its front where lookups were split off.
        notes: What the reader of a report should know of it.
    """

    artifact: TFLiteArtifact
    notes: tuple[str, ...]


def convert(
    model: Any,
    *,
    samples: Samples | None = None,
    io: Literal["int8", "float32"] = "float32",
    input_shapes: Mapping[str, tuple[int | None, ...]] | None = None,
) -> Converted:
    """Converts any model: lookups that TFLite cannot run are split off and run before the file.

    Args:
        model: A built tf_keras model, or an artifact with `signature` and `inference_function`.
        samples: As in `convert_to_tflite`; they are inputs of the model as it is given here.
        io: As in `convert_to_tflite`.
        input_shapes: Shapes by name of the file's inputs, without the batch, where the model leaves
            some open. The inputs of a file are those of the model, and, in place of those that a
            lookup takes, its outputs.

    Returns:
        The artifact and what to say of it.

    Raises:
        OptkitError: If it cannot be converted.

    Example:
        >>> from optkit.testing import small_model
        >>> convert(small_model()).artifact.inputs[0].name
        'image'
    """
    source = source_of(model, input_shapes)
    behind = None if samples is None else source.behind(samples)
    content = convert_to_tflite(
        source.rest,
        representative=behind,
        io=io,
        input_shapes=source.shapes if input_shapes else None,
    )
    return Converted(TFLiteArtifact(content, front=source.front), source.notes)


@dataclass(frozen=True)
class Source:
    """A model on its way to a file: what goes in, and what has to run before it.

    Attributes:
        rest: What the file is made of: the model, or of one with lookups what comes behind them.
        split: The two parts of a model with lookups; ``None`` for others.
        whole: Inputs and outputs of the model with its lookups.
        signature: Inputs and outputs of the file.
        shapes: Shapes of the file's inputs without the batch.
        notes: What the reader of a report should know of it.
    """

    rest: Any
    split: Split | None
    whole: Signature
    signature: Signature
    shapes: tuple[tuple[int | None, ...], ...]
    notes: tuple[str, ...]

    @property
    def front(self) -> KerasArtifact | None:
        """What runs before the file; ``None`` for nothing."""
        return None if self.split is None else KerasArtifact(self.split.front)

    def behind(self, samples: Samples) -> Samples:
        """Samples of the model as inputs of the file: without lookups they are the same."""
        if self.split is None:
            return samples
        return _behind_lookups(self.split, samples, self.whole, self.shapes)


def source_of(
    model: Any, input_shapes: Mapping[str, tuple[int | None, ...]] | None = None
) -> Source:
    """Splits lookups off, and says what the reader of a report should know of that.

    Args:
        model: A built tf_keras model, or an artifact with `signature` and `inference_function`.
        input_shapes: Shapes by name of the file's inputs, as in `convert`.
    """
    split = split_lookups(model) if _is_model(model) else None
    rest = model if split is None else split.rest
    described = _signature(rest)
    given = dict(input_shapes or {})
    notes = []
    if _is_model(rest) and mixed_precision_layers(rest):
        notes.append("converted from a float32 twin: the model computes in 16 bits")
    if split is not None:
        taken = ", ".join(port.name for port in described.inputs)
        notes.append(
            f"split off, as TFLite has no lookups: {', '.join(split.layers)}; the file takes "
            f"{taken}, and its size and speed are without them"
        )
    return Source(
        rest=rest,
        split=split,
        whole=_signature(model),
        signature=described,
        shapes=tuple(given.get(info.name, info.shape[1:]) for info in described.inputs),
        notes=tuple(notes),
    )


def _is_model(value: Any) -> bool:
    return isinstance(value, tf_keras().Model)


def _signature(source: Any) -> Signature:
    found: Signature = signature(source) if _is_model(source) else source.signature
    return found


def _behind_lookups(
    split: Split,
    samples: Samples,
    whole: Signature,
    shapes: tuple[tuple[int | None, ...], ...],
) -> Samples:
    """The samples as they are behind the front, brought to the shapes that the file will have."""
    front = front_function(KerasArtifact(split.front))
    described = signature(split.rest).inputs
    wanted = {info.name: shape for info, shape in zip(described, shapes, strict=True)}

    def passed() -> Iterator[list[np.ndarray]]:
        for leaves in samples():
            named = {info.name: leaf for info, leaf in zip(whole.inputs, leaves, strict=True)}
            values = front(named, wanted)
            yield [values[info.name].astype(info.dtype, copy=False) for info in described]

    return passed


def convert_to_tflite(
    model: Any,
    *,
    representative: Samples | None = None,
    io: Literal["int8", "float32"] = "float32",
    input_shapes: tuple[tuple[int | None, ...], ...] | None = None,
    unrolled: bool = False,
    tracing: Callable[[Any], contextlib.AbstractContextManager[Any]] | None = None,
) -> bytes:
    """Converts a model without lookups to a float32 flatbuffer, or to a full-integer one.

    Args:
        model: A built tf_keras model, or an artifact with `signature` and `inference_function`.
        representative: ``None`` for float32; else a function that gives calibration samples, each
            a list of the inputs in the model's order, shape ``(1, …)``, for full-integer INT8.
        io: Type of the inputs and outputs of a full-integer file. Inputs that are integers in the
            model stay what they are.
        input_shapes: Shapes of the inputs without the batch, where the model leaves some open.
        unrolled: Whether the loops of recurrent layers are written out, step by step. Those of a
            full-integer file always are.
        tracing: Called with the model that is converted, of equal layers as the one given; the
            context that it gives is entered while that is traced.

    Returns:
        The bytes of the ``.tflite`` file. Its batch dimension is open (but for a float32 file with
        loops over time, where it is 1), and its signature carries the names of the model's inputs
        and outputs.

    Raises:
        OptkitError: If TensorFlow cannot convert it.
    """
    described = _signature(model)
    plain = _plain(model) if _is_model(model) else model
    whole = representative is not None or unrolled
    around = contextlib.nullcontext() if tracing is None else tracing(plain)

    def trace(batch: int | None) -> tuple[Any, Any]:
        if _is_model(plain):
            function = inference_function(plain, batch=batch, shapes=input_shapes)
        else:
            function = plain.inference_function(batch=batch, shapes=input_shapes)
        try:
            return function, function.get_concrete_function()
        except Exception as error:
            raise OptkitError(
                f"The model cannot be run on inputs like those that it states. {first_line(error)}"
            ) from error

    with _unrolled() if whole else contextlib.nullcontext(), around:
        function, concrete = trace(None)
        operators = _operators(concrete)
        if representative is None and operators.intersection(_LOOPS):
            # The lists of a loop need a size, so a file of one takes one sample at a time.
            function, concrete = trace(1)
    floats = all(info.dtype.startswith("float") for info in described.inputs)
    if representative is not None and operators.intersection((*_LOOPS, *_BRANCHES)):
        content = _convert_apart(plain, function, representative, io, floats)
    else:
        content = _run([concrete], None, representative, io, floats)
    return _with_signature(content, described)


def _run(
    functions: list[Any], owner: Any, representative: Samples | None, io: str, floats: bool
) -> bytes:
    """Sets TensorFlow's converter and runs it."""
    tf = tensorflow()
    with warnings.catch_warnings(), _without(_DEPRECATED_PATH):
        # Says that no statistics were given by hand; they come from the representative samples.
        warnings.filterwarnings("ignore", message="Statistics for quantized inputs were expected")
        converter = tf.lite.TFLiteConverter.from_concrete_functions(functions, owner)
        if representative is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = representative
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            if io == "int8":
                converter.inference_output_type = tf.int8
                if floats:
                    converter.inference_input_type = tf.int8
        try:
            content: bytes = converter.convert()
        except OptkitError:
            raise
        except Exception as error:
            raise OptkitError(_explain(str(error) or repr(error), representative)) from error
    return content


def _explain(text: str, representative: Any) -> str:
    kind = "float32" if representative is None else "full-integer"
    start = f"TensorFlow's converter cannot make a {kind} file of this model."
    listed = re.findall(r"(?:TF Select|Custom) ops: ([^\n]+)", text)
    missing = {name.strip() for names in listed for name in names.split(",")}
    missing |= set(re.findall(r"'tf\.(\w+)' op is neither", text))
    if missing:
        return (
            f"{start} LiteRT has no operators for what it computes: {', '.join(sorted(missing))}. "
            "Replace the layers or functions that do, or take them out of the model and feed it "
            "what they give."
        )
    first = next((line for line in text.splitlines() if line.strip()), text)
    return f"{start} Its first words: {first[:300]}"


# ------------------------------------------------------------------------------- before converting


def _plain(model: Any) -> Any:
    """The model, or where TFLite cannot take it as it is a twin that computes the same."""
    layers = tf_keras().layers
    mixed = bool(mixed_precision_layers(model))
    crops = any(isinstance(layer, layers.RandomCrop) for layer in model._flatten_layers())
    if not mixed and not crops:
        return model

    def replace(layer: Any) -> Any:
        config = layer.get_config()
        if mixed:
            config = _in_float32(config)
        if isinstance(layer, layers.RandomCrop):
            # What it does outside of training, without the branch for training.
            return layers.Resizing(
                config["height"],
                config["width"],
                crop_to_aspect_ratio=True,
                name=config["name"],
                dtype=config["dtype"],
            )
        return type(layer).from_config(config)

    twin = clone(model, replace=replace)
    copy_state(model, twin)
    return twin


def _in_float32(config: Any) -> Any:
    """A configuration whose policies of 16 bits are float32, layers within it included."""
    if isinstance(config, dict):
        fresh = {}
        for key, value in config.items():
            policy = value
            if isinstance(value, dict) and value.get("class_name") in ("Policy", "DTypePolicy"):
                policy = value["config"]["name"]
            named = key == "dtype" and isinstance(policy, str)
            fresh[key] = "float32" if named and policy in _IN_16_BITS else _in_float32(value)
        return fresh
    if isinstance(config, list | tuple):
        return [_in_float32(value) for value in config]
    return config


@contextlib.contextmanager
def _unrolled() -> Iterator[None]:
    """Has recurrent layers write their steps one after another while they are traced.

    Keras has an argument for that, but not for convolutional ones, not for those that layers of the
    user's make, and only where every model within the model has a fixed length by itself. All of
    them loop through one function.
    """
    from tf_keras.src import backend

    loop = backend.rnn

    def steps(
        step: Any,
        inputs: Any,
        states: Any,
        *,
        mask: Any = None,
        go_backwards: bool = False,
        time_major: bool = False,
        zero_output_for_mask: bool = False,
        **others: Any,
    ) -> Any:
        if mask is not None:
            kept = tensorflow().unstack(mask, axis=0 if time_major else 1)
            step = _masked(step, kept[::-1] if go_backwards else kept, zero_output_for_mask)
        others |= {"go_backwards": go_backwards, "time_major": time_major, "unroll": True}
        return loop(step, inputs, states, **others)

    with locked():
        backend.rnn = steps
        try:
            yield
        finally:
            backend.rnn = loop


def _masked(step: Any, kept: list[Any], zeros: bool) -> Any:
    """A step of a loop that leaves what it holds as it is for the samples that are masked there.

    In arithmetic, where Keras selects: LiteRT's usual delegate refuses quantized files that select
    by a mask step by step.

    Args:
        step: From inputs and states (and constants behind them) to an output and new states.
        kept: The mask of each step, in the order in which they are taken.
        zeros: Whether the output of a masked step is 0, and not that of the step before.
    """
    tf = tensorflow()
    masks = iter(kept)
    last: list[Any] = []

    def blend(keep: Any, new: Any, before: Any) -> Any:
        keep = tf.cast(tf.reshape(keep, [-1, *[1] * (len(new.shape) - 1)]), new.dtype)
        return keep * new if before is None else before + keep * (new - before)

    def taken(inputs: Any, states: Any) -> Any:
        keep = next(masks)
        output, new = step(inputs, states)
        pairs = zip(tf.nest.flatten(new), tf.nest.flatten(states), strict=False)  # constants stay
        new = tf.nest.pack_sequence_as(new, [blend(keep, *pair) for pair in pairs])
        output = blend(keep, output, last[0] if last and not zeros else None)
        last[:] = [output]
        return output, new

    return taken


def _operators(concrete: Any) -> set[str]:
    """The kinds of operators that a function runs, those of functions that it calls included."""
    graph = concrete.graph.as_graph_def()
    bodies = {function.signature.name: function.node_def for function in graph.library.function}
    found: set[str] = set()
    seen: set[str] = set()

    def visit(nodes: Any) -> None:
        for node in nodes:
            found.add(node.op)
            for attribute in node.attr.values():
                for called in (attribute.func, *attribute.list.func):
                    if called.name in bodies and called.name not in seen:
                        seen.add(called.name)
                        visit(bodies[called.name])

    visit(graph.node)
    return found


# --------------------------------------------------------------------------- in a process of its own


def _convert_apart(
    source: Any, function: Any, representative: Samples, io: str, floats: bool
) -> bytes:
    """Converts in a fresh process, as calibrating branches and loops may crash it."""
    tf = tensorflow()
    with tempfile.TemporaryDirectory(prefix="optkit-") as name:
        folder = Path(name)
        module = tf.Module()
        module.run = function
        module.model = source if _is_model(source) else None
        with _without("", level=logging.ERROR):
            tf.saved_model.save(module, str(folder / "model"))
        arrays: dict[str, Any] = {
            f"{number}-{place}": leaf
            for number, leaves in enumerate(representative())
            for place, leaf in enumerate(leaves)
        }
        np.savez(folder / "samples.npz", **arrays)
        (folder / "settings.json").write_text(json.dumps({"io": io, "floats": floats}))
        try:
            run_module(
                "optkit.convert",
                name,
                what="Calibrating this model, in which a loop or a branch is left,",
                seconds=_SECONDS_APART,
            )
        except OptkitError as error:
            raise OptkitError(
                f"{error} Write the loop or branch of your own layer without TensorFlow's control "
                "flow (`tf.map_fn`, `tf.while_loop`, `tf.cond`), or leave out this pass."
            ) from error
        return (folder / "model.tflite").read_bytes()


def _main(name: str) -> None:
    """What the process of its own does with the folder that it is given."""
    tf = tensorflow()
    folder = Path(name)
    settings = json.loads((folder / "settings.json").read_text())
    loaded = tf.saved_model.load(str(folder / "model"))
    with np.load(folder / "samples.npz") as stored:
        arrays = dict(stored)
    count = 1 + max(int(key.partition("-")[0]) for key in arrays)
    width = len(arrays) // count

    def samples() -> Iterator[list[np.ndarray]]:
        for number in range(count):
            yield [arrays[f"{number}-{place}"] for place in range(width)]

    functions = loaded.run.concrete_functions[:1]
    content = _run(functions, loaded, samples, settings["io"], settings["floats"])
    (folder / "model.tflite").write_bytes(content)


# ------------------------------------------------------------------------------------ odds and ends


@contextlib.contextmanager
def _without(words: str, level: int = logging.NOTSET) -> Iterator[None]:
    """Keeps known messages of TensorFlow's out of the log: with these words, up to this level."""

    def unknown(record: logging.LogRecord) -> bool:
        return words not in record.getMessage() or (0 < level <= record.levelno)

    loggers = [logging.getLogger(name) for name in ("absl", "tensorflow")]
    for logger in loggers:
        logger.addFilter(unknown)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(unknown)


def _with_signature(content: bytes, names: Signature) -> bytes:
    """Adds a signature, so that inputs and outputs carry the model's own names."""
    from ai_edge_litert import schema_py_generated as schema

    model = unpacked(content)
    graph = model.subgraphs[0]

    def mapping(name: str, index: int) -> Any:
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name, int(index)
        return entry

    by_tensor_name = {graph.tensors[i].name.decode().partition(":")[0]: i for i in graph.inputs}
    # Where TensorFlow altered a name, the inputs are taken in the order of the model.
    named = all(info.name in by_tensor_name for info in names.inputs)
    indices = [by_tensor_name[info.name] for info in names.inputs] if named else graph.inputs
    entry = schema.SignatureDefT()
    entry.signatureKey, entry.subgraphIndex = _SIGNATURE_KEY, 0
    entry.inputs = [
        mapping(info.name, index) for info, index in zip(names.inputs, indices, strict=True)
    ]
    entry.outputs = [
        mapping(info.name, index) for info, index in zip(names.outputs, graph.outputs, strict=True)
    ]
    model.signatureDefs = [entry]
    return packed(model, len(content))


if __name__ == "__main__":
    _main(sys.argv[1])
