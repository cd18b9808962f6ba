"""A TensorFlow SavedModel as an artifact: what is no Keras model any more, or never was one."""

from __future__ import annotations

import functools
import gzip
import io
import os
import shutil
import tarfile
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from optkit.artifact import archive
from optkit.artifact.base import GraphArtifact, Layer, batches_of, named_inputs
from optkit.artifact.graph import check_saved_model
from optkit.artifact.reading import quietly, unreadable
from optkit.errors import DataError, ModelError, OptkitError
from optkit.models import Signature, TensorInfo
from optkit.runtime import tensorflow

__all__ = ["SavedModelArtifact"]

_DEFAULT_SIGNATURE = "serving_default"
_INDEX = "saved_model.pb"
_COMPRESSION = 6  # what the gzip program does when not told otherwise


class SavedModelArtifact(GraphArtifact):
    """A SavedModel: a traced graph with its weights, in a folder.

    TensorFlow Hub, `tf.Module` and Keras 3's ``model.export`` give such folders. The layers are
    gone, so nothing can train or prune it; it can be run, measured and converted. A SavedModel that
    tf_keras wrote still holds them: `optkit.load_model` gives the Keras model of it.

    Args:
        path: The folder. It is copied: what happens to it later changes nothing.
        signature: Which of its functions to serve; the default one where it is left out.
        trust: Whether its graph may read and write files and call Python. A folder whose graph
            does is refused otherwise.

    Raises:
        ModelError: If it cannot be read, has no such signature, or reaches out of the graph.

    Example:
        >>> import tempfile
        >>> import numpy as np, tensorflow as tf
        >>> import optkit as ok
        >>> class Double(tf.Module):
        ...     @tf.function(input_signature=[tf.TensorSpec((None, 2), name="x")])
        ...     def __call__(self, x):
        ...         return {"twice": 2 * x}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     module = Double()
        ...     tf.saved_model.save(module, folder, signatures=module.__call__)
        ...     artifact = ok.SavedModelArtifact(folder)
        >>> artifact.predict(np.ones((3, 2))).tolist()
        [[2.0, 2.0], [2.0, 2.0], [2.0, 2.0]]
    """

    kind = "saved_model"
    suffix = ""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        signature: str | None = None,
        trust: bool = False,
    ):
        source = Path(path)
        holder = tempfile.mkdtemp(prefix="optkit-")
        clean_up = weakref.finalize(self, shutil.rmtree, holder, True)
        self._folder = Path(holder) / "model"
        self._trust = trust
        try:
            archive.copy_folder(source, self._folder)
            check_saved_model(self._folder, trust=trust, named=source)
            self._name, self._loaded, self._function = _served(self._folder, source, signature)
        except BaseException:
            clean_up()
            raise

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_tar, (self.content, self._name, self._trust)

    @property
    def content(self) -> bytes:
        """The folder as the bytes of a tar archive, equal for equal contents."""
        return _tar(self._folder)

    @functools.cached_property
    def signature(self) -> Signature:
        """Names, shapes and types of the inputs and outputs that are served, sorted by name."""
        _, inputs = self._function.structured_input_signature
        outputs = self._function.structured_outputs

        def info(name: str, spec: Any) -> TensorInfo:
            rank = spec.shape.rank
            if rank is None:
                raise ModelError(
                    f"{name!r} of the signature {self._name!r} has a shape of any length, and a "
                    "batch needs one. Save the model with an `input_signature` that states it."
                )
            return TensorInfo(name, tuple(spec.shape.as_list()), spec.dtype.name)

        return Signature(
            tuple(info(name, inputs[name]) for name in sorted(inputs)),
            tuple(info(name, outputs[name]) for name in sorted(outputs)),
        )

    def inference_function(
        self, *, batch: int | None = None, shapes: tuple[tuple[int | None, ...], ...] | None = None
    ) -> Any:
        """The served function as a ``tf.function`` with one fixed input signature.

        Args:
            batch: Batch size to fix, or ``None`` to leave it as it is.
            shapes: Shapes of the inputs without the batch, where the model leaves some open.

        Returns:
            A ``tf.function`` of the inputs in the order of `signature`; it gives a tensor, or of
            several outputs a tuple in the order of `signature`.
        """
        tf = tensorflow()
        described = self.signature
        fixed = shapes or tuple(info.shape[1:] for info in described.inputs)
        specs = [
            tf.TensorSpec(
                (info.shape[0] if batch is None else batch, *shape), info.dtype, info.name
            )
            for info, shape in zip(described.inputs, fixed, strict=True)
        ]
        function = self._function

        def run(*tensors: Any) -> Any:
            names = (info.name for info in described.inputs)
            given = function(**dict(zip(names, tensors, strict=True)))
            outputs = tuple(given[info.name] for info in described.outputs)
            return outputs[0] if len(outputs) == 1 else outputs

        return tf.function(run, input_signature=specs)

    @property
    def trackable(self) -> Any:
        """What holds the weights; whoever saves `inference_function` again must hold it, too."""
        return self._loaded

    @functools.cached_property
    def _run(self) -> Any:
        return self.inference_function()

    def predict(self, x: Any, batch_size: int = 32) -> Any:
        """Runs the served function; of several outputs a dict by name.

        Where the signature fixes the batch, as many samples are run at a time.
        """
        tf = tensorflow()
        described = self.signature
        inputs = named_inputs(x, [info.name for info in described.inputs])
        for info in described.inputs:
            if inputs[info.name].ndim != len(info.shape):
                raise DataError(
                    f"Input {info.name!r} has shape {info.shape}. "
                    f"Received: {inputs[info.name].shape}."
                )
        size = next((info.shape[0] for info in described.inputs if info.shape[0]), batch_size)
        parts: list[tuple[np.ndarray, ...]] = []
        for batch in batches_of(inputs, size):
            tensors = [
                tf.convert_to_tensor(
                    batch[info.name]
                    if info.dtype == "string"
                    else batch[info.name].astype(info.dtype, copy=False)
                )
                for info in described.inputs
            ]
            given = self._call(tensors)
            parts.append(tuple(tensor.numpy() for tensor in given))
        found = {}
        for place, info in enumerate(described.outputs):
            if parts:
                values = np.concatenate([part[place] for part in parts])
            else:
                values = np.zeros((0, *[dimension or 0 for dimension in info.shape[1:]]))
            floating = values.dtype.kind == "f" and values.dtype != np.float64
            found[info.name] = values.astype(np.float32, copy=False) if floating else values
        return next(iter(found.values())) if len(found) == 1 else found

    def _call(self, tensors: list[Any]) -> tuple[Any, ...]:
        try:
            given = self._run(*tensors)
        except (ValueError, TypeError, tensorflow().errors.OpError) as error:
            shapes = [tuple(tensor.shape) for tensor in tensors]
            raise ModelError(
                f"The SavedModel could not run on inputs of shape {shapes}: {str(error)[:400]}"
            ) from error
        return given if isinstance(given, tuple) else (given,)

    def _weights(self) -> Iterator[tuple[str, Any]]:
        """Variables, and constants of rank two and above: frozen graphs hold their weights so."""
        tf = tensorflow()
        for variable in self._function.variables:
            yield variable.name.partition(":")[0], variable.numpy()
        graph = self._function.graph.as_graph_def()
        for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
            for node in nodes:
                if node.op != "Const":
                    continue
                tensor = node.attr["value"].tensor
                if len(tensor.tensor_shape.dim) > 1 and tf.as_dtype(tensor.dtype).is_floating:
                    yield node.name, tf.make_ndarray(tensor)

    @functools.cached_property
    def _counts(self) -> tuple[Layer, ...]:
        grouped: dict[str, list[Any]] = {}
        for name, value in self._weights():
            grouped.setdefault(name.rpartition("/")[0] or name, []).append(value)
        return tuple(_layer(name, values) for name, values in grouped.items())

    @property
    def parameters(self) -> int:
        """Number of weight values: variables, and constants of rank two and above."""
        return sum(layer.parameters for layer in self._counts)

    @property
    def sparsity(self) -> float | None:
        """Share of zeros in the weights of rank two and above."""
        kernels = [value for _, value in self._weights() if value.ndim > 1]
        total = sum(kernel.size for kernel in kernels)
        return float(1 - sum(np.count_nonzero(k) for k in kernels) / total) if total else None

    def layers(self) -> tuple[Layer, ...]:
        """What the weights take up, by the scope that their names share; layers are not known."""
        return self._counts

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the folder; a SavedModel that is there is replaced whole.

        Args:
            path: The folder to write.

        Returns:
            The folder.

        Raises:
            OptkitError: If something else than a SavedModel is there.
        """
        target = Path(path)
        taken = target.exists() and not (target / _INDEX).is_file()
        if taken and (not target.is_dir() or any(target.iterdir())):
            raise OptkitError(
                f"A saved_model artifact is saved as a folder of its own, and {str(target)!r} "
                "holds something else. Name an empty folder, or one that does not exist yet."
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".optkit-", dir=target.parent) as folder:
            fresh = Path(folder) / "new"
            self._write(fresh)
            if target.exists():  # a folder cannot be replaced in one step
                os.rename(target, Path(folder) / "old")
            os.rename(fresh, target)
        return target

    def _write(self, path: Path) -> None:
        shutil.copytree(self._folder, path)

    @functools.cached_property
    def _sizes(self) -> tuple[int, int]:
        size = sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file())
        return size, len(gzip.compress(self.content, _COMPRESSION, mtime=0))


def _layer(name: str, values: list[Any]) -> Layer:
    types: Counter[str] = Counter()
    for value in values:
        types[value.dtype.name] += value.size
    kernels = [value for value in values if value.ndim > 1]
    total = sum(kernel.size for kernel in kernels)
    return Layer(
        name=name,
        kind="variables",
        parameters=types.total(),
        bytes=sum(value.nbytes for value in values),
        sparsity=float(1 - sum(np.count_nonzero(k) for k in kernels) / total) if total else None,
        dtype=types.most_common(1)[0][0],
    )


def _served(folder: Path, source: Path, signature: str | None) -> tuple[str, Any, Any]:
    """The name of what is served, what holds its weights, and the function."""
    tf = tensorflow()
    try:
        with quietly():
            loaded = tf.saved_model.load(str(folder))
        functions = dict(loaded.signatures)
    except Exception as error:
        raise unreadable(
            source,
            f"TensorFlow cannot load the SavedModel: {type(error).__name__}: {str(error)[:600]}",
            "The folder is incomplete or damaged, or was written by another version of TensorFlow: "
            "get it from its source again.",
        ) from error
    names = ", ".join(map(repr, functions)) or "none"
    name = signature or (next(iter(functions)) if len(functions) == 1 else _DEFAULT_SIGNATURE)
    if name not in functions:
        wanted = f"the signature {signature!r}" if signature else "a default signature"
        raise ModelError(
            f"The SavedModel {str(source)!r} has not {wanted}. It has: {names}. Name one of them as "
            "`SavedModelArtifact(path, signature=…)`; one without any must be saved again with "
            "`tf.saved_model.save(module, path, signatures=…)`."
        )
    return name, loaded, functions[name]


def _tar(folder: Path) -> bytes:
    """The folder as one stretch of bytes, equal for equal contents."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(folder.rglob("*")):
            info = tarfile.TarInfo(path.relative_to(folder).as_posix())
            if path.is_dir():
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
            else:
                info.size = path.stat().st_size
                with path.open("rb") as file:
                    tar.addfile(info, file)
    return held.getvalue()


def _from_tar(content: bytes, signature: str, trust: bool) -> SavedModelArtifact:
    """The artifact whose folder has this content."""
    with tempfile.TemporaryDirectory(prefix="optkit-") as folder:
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            tar.extractall(folder, filter="data")
        return SavedModelArtifact(folder, signature=signature, trust=trust)
