"""A Keras model as an artifact: of tf_keras, or of Keras 3."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, Self

import numpy as np

from optkit.artifact.archive import repack
from optkit.artifact.base import GraphArtifact, Layer, batches_of, named_inputs
from optkit.errors import DataError, ModelError, first_line
from optkit.models import Signature, clone, is_compiled, is_variable, signature
from optkit.runtime import keras, tensorflow, tf_keras
from optkit.translate import is_keras3, register_carriers, to_keras3, to_tf_keras

__all__ = ["KerasArtifact", "TreatedArtifact", "from_file", "inference_function", "is_jit_file"]

_METADATA, _OWN = "metadata.json", "optkit"


class KerasArtifact(GraphArtifact):
    """A Keras model. Saved by its own Keras as a ``.keras`` file without optimizer state.

    Args:
        model: A built functional or Sequential model, of tf_keras or of Keras 3. It is kept, not
            copied.
        jit: Whether it is run compiled by XLA, for each shape of inputs once. The file says so, and
            `optkit.load` reads it; who loads the model with Keras sees nothing of it.

    Example:
        >>> import numpy as np, tf_keras
        >>> import optkit as ok
        >>> model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(2)])
        >>> artifact = ok.KerasArtifact(model)
        >>> artifact.predict(np.zeros((5, 4))).shape, artifact.parameters
        ((5, 2), 10)
    """

    kind = "keras"
    suffix = ".keras"

    def __init__(self, model: Any, *, jit: bool = False):
        self._given = model
        self._jit = jit

    @property
    def model(self) -> Any:
        """The model as it was given. Training it would change the artifact: train a copy."""
        return self._given

    @property
    def jit(self) -> bool:
        """Whether it is run compiled by XLA."""
        return self._jit

    def with_jit(self, jit: bool) -> Self:
        """An artifact of the same model that is run compiled by XLA, or is not."""
        return type(self)(self._given, jit=jit)

    @functools.cached_property
    def _model(self) -> Any:
        """The model as tf_keras."""
        return to_tf_keras(self._given) if is_keras3(self._given) else self._given

    @property
    def signature(self) -> Signature:
        """Names, shapes and types of the inputs and outputs."""
        return signature(self._model)

    def inference_function(
        self, *, batch: int | None = None, shapes: tuple[tuple[int | None, ...], ...] | None = None
    ) -> Any:
        """The model in inference mode as a ``tf.function`` of the inputs in order."""
        return inference_function(self._model, batch=batch, shapes=shapes, jit=self._jit)

    def treated(self) -> KerasArtifact:
        """The same artifact with a tf_keras model, as passes take it; itself where it has one."""
        return TreatedArtifact(self._model, jit=self._jit) if is_keras3(self._given) else self

    def finished(self) -> KerasArtifact:
        """The artifact to hand out at the end of a run, with a model of the Keras it came from."""
        return self

    @functools.cached_property
    def _function(self) -> Any:
        return inference_function(self._model, batch=None, jit=self._jit)

    def predict(self, x: Any, batch_size: int = 32) -> Any:
        """Runs the model in inference mode through one compiled ``tf.function``.

        Of a model with several outputs it gives a dict by output name, in the model's order.
        """
        tf = tensorflow()
        described = signature(self._model)
        infos = described.inputs
        inputs = named_inputs(x, [info.name for info in infos])
        parts = []
        for batch in batches_of(inputs, batch_size):
            tensors = []
            for info in infos:
                value = batch[info.name]
                if len(value.shape) != len(info.shape):
                    raise DataError(
                        f"Input {info.name!r} has shape {info.shape}. Received: {value.shape}."
                    )
                plain = value if info.dtype == "string" else value.astype(info.dtype, copy=False)
                tensors.append(tf.convert_to_tensor(plain))
            parts.append([one.numpy() for one in tf.nest.flatten(self._function(*tensors))])
        found = {}
        for place, info in enumerate(described.outputs):
            if not parts:
                found[info.name] = np.zeros((0, *[d or 0 for d in info.shape[1:]]))
                continue
            outputs = np.concatenate([part[place] for part in parts])
            narrow = outputs.dtype != np.float64
            found[info.name] = outputs.astype(np.float32, copy=False) if narrow else outputs
        return found if len(found) > 1 else next(iter(found.values()))

    def __reduce__(self) -> tuple[Any, ...]:
        # As its file: compiled functions cannot travel, and are made anew.
        with tempfile.TemporaryDirectory(prefix="optkit-") as folder:
            path = Path(folder) / f"model{self.suffix}"
            self._write(path)
            return from_file, (path.read_bytes(), is_keras3(self._given))

    def _write(self, path: Path) -> None:
        # A compiled model would take its optimizer's state, twice the size of the weights, along.
        model = clone(self._model) if is_compiled(self._given) else self._model
        if is_keras3(self._given):
            given = self._given if model is self._model else to_keras3(model)
            given.save(path)
        else:
            tf_keras().models.save_model(model, path, save_format="keras")
        _finish(path, jit=self._jit)

    @property
    def parameters(self) -> int:
        """Number of weight values, the statistics of batch normalization included."""
        return sum(_count(weight) for weight in _variables(self._model))

    @property
    def sparsity(self) -> float | None:
        """Share of zeros in the weights of rank two and above."""
        kernels = [weight.numpy() for weight in _variables(self._model) if len(weight.shape) > 1]
        total = sum(kernel.size for kernel in kernels)
        return float(1 - sum(np.count_nonzero(k) for k in kernels) / total) if total else None

    def layers(self) -> tuple[Layer, ...]:
        """What each layer takes up; layers of models within the model are called ``inner/layer``.

        Example:
            >>> import tf_keras
            >>> import optkit as ok
            >>> model = tf_keras.Sequential(
            ...     [tf_keras.Input((4,)), tf_keras.layers.Dense(2, name="scores")]
            ... )
            >>> layer, = ok.KerasArtifact(model).layers()
            >>> layer.name, layer.kind, layer.parameters, layer.bytes, layer.dtype
            ('scores', 'Dense', 10, 40, 'float32')
        """
        found: list[Layer] = []
        counted: set[int] = set()  # a layer or a weight in use at several places is stored once

        def collect(part: Any, prefix: str) -> None:
            for layer in part.layers:
                if id(layer) in counted:
                    continue
                counted.add(id(layer))
                if isinstance(layer, tf_keras().Model):
                    collect(layer, f"{prefix}{layer.name}/")
                else:
                    found.append(_describe(layer, prefix + layer.name, counted))
            # What a model holds beside its layers, which few do, is listed under its own name.
            if any(id(weight) not in counted for weight in _variables(part)):
                found.append(_describe(part, prefix + part.name, counted))

        collect(self._model, "")
        return tuple(found)


class TreatedArtifact(KerasArtifact):
    """A Keras 3 model on its way through a pipeline: its model is the translation to tf_keras.

    Everything else is that of the Keras 3 model it goes back to: its file, its size.
    """

    @functools.cached_property
    def _keras3(self) -> Any:
        return to_keras3(self._given)

    def finished(self) -> KerasArtifact:
        """The artifact of the Keras 3 model."""
        return KerasArtifact(self._keras3, jit=self._jit)

    def __reduce__(self) -> tuple[Any, ...]:
        return _treated, (self.finished(),)

    def _write(self, path: Path) -> None:
        self.finished()._write(path)


def _treated(artifact: KerasArtifact) -> KerasArtifact:
    return artifact.treated()


def _variables(part: Any) -> list[Any]:
    """The weights that are numbers: lookups list the words that they know among theirs."""
    return [weight for weight in part.weights if is_variable(weight)]


def _count(weight: Any) -> int:
    """The number of values of a weight; of some lookups' the static shape is open."""
    return int(np.prod(weight.shape if None not in weight.shape else weight.numpy().shape))


def _describe(layer: Any, name: str, counted: set[int]) -> Layer:
    """A layer's weights that are not yet counted."""
    weights = [weight for weight in _variables(layer) if id(weight) not in counted]
    counted.update(id(weight) for weight in weights)
    values: Counter[str] = Counter()
    for weight in weights:
        values[weight.dtype.base_dtype.name] += _count(weight)
    kernels = [weight.numpy() for weight in weights if len(weight.shape) > 1]
    total = sum(kernel.size for kernel in kernels)
    return Layer(
        name=name,
        kind=type(layer).__name__,
        parameters=values.total(),
        bytes=sum(_count(w) * w.dtype.base_dtype.size for w in weights),
        sparsity=float(1 - sum(np.count_nonzero(k) for k in kernels) / total) if total else None,
        dtype=values.most_common(1)[0][0] if values else None,
    )


def from_file(content: bytes, keras3: bool) -> KerasArtifact:
    """The artifact whose file has this content."""
    with tempfile.TemporaryDirectory(prefix="optkit-") as folder:
        path = Path(folder) / f"model{KerasArtifact.suffix}"
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            repack(archive, path, {})
        library = keras() if keras3 else tf_keras()
        register_carriers()
        try:
            model = library.models.load_model(path, compile=False)
            return KerasArtifact(model, jit=is_jit_file(path))
        except Exception as error:
            raise ModelError(
                f"The Keras model cannot be made again from its file: {first_line(error)} Layers and "
                f"functions of your own must be registered with "
                f"`{library.__name__}.saving.register_keras_serializable`."
            ) from error


def is_jit_file(path: Path) -> bool:
    """Whether a ``.keras`` file is of an artifact that is run compiled by XLA.

    Args:
        path: A file that was looked through; one of another form says no.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive, archive.open(_METADATA) as entry:
        said = json.load(entry).get(_OWN)
    return isinstance(said, dict) and said.get("jit") is True


def _finish(path: Path, *, jit: bool) -> None:
    """Takes the time of writing out of a ``.keras`` file, and says in it how it is to be run.

    Equal models, equal bytes.
    """
    finished = path.with_name(f"{path.name}.finished")
    with zipfile.ZipFile(path) as dated, zipfile.ZipFile(finished, "w") as target:
        for old in dated.infolist():
            info = zipfile.ZipInfo(old.filename)  # of 1980, the first date that the format knows
            info.file_size = old.file_size  # decides whether the entry is one for large files
            with dated.open(old) as source, target.open(info, "w") as entry:
                if old.filename == _METADATA:
                    metadata = json.load(source)
                    metadata["date_saved"] = "1980-01-01@00:00:00"
                    if jit:
                        metadata[_OWN] = {"jit": True}
                    entry.write(json.dumps(metadata).encode())
                else:
                    shutil.copyfileobj(source, entry, 2**20)
    os.replace(finished, path)


def inference_function(
    model: Any,
    *,
    batch: int | None,
    shapes: tuple[tuple[int | None, ...], ...] | None = None,
    jit: bool = False,
) -> Any:
    """The model in inference mode as a ``tf.function`` with one fixed input signature.

    Args:
        model: A built tf_keras model.
        batch: Batch size to fix, or ``None`` to leave it open.
        shapes: Shapes of the inputs without the batch, where the model leaves some open.
        jit: Whether XLA compiles it.

    Returns:
        A ``tf.function`` of the inputs in the model's order.
    """
    tf = tensorflow()
    infos = signature(model).inputs
    fixed = shapes or tuple(info.shape[1:] for info in infos)
    specs = [
        tf.TensorSpec((batch, *shape), info.dtype, name=info.name)
        for info, shape in zip(infos, fixed, strict=True)
    ]

    def run(*tensors: Any) -> Any:
        return model(tensors[0] if len(tensors) == 1 else list(tensors), training=False)

    return tf.function(run, input_signature=specs, jit_compile=jit or None)
