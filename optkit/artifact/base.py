"""`Artifact`: the interface that every form of a model has."""

from __future__ import annotations

import abc
import functools
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from optkit.errors import DataError, OptkitError
from optkit.models import Signature

__all__ = ["Artifact", "GraphArtifact", "Layer", "batches_of", "named_inputs", "write_atomically"]

_GZIP_LEVEL = 6  # what the gzip program does when not told otherwise


@dataclass(frozen=True)
class Layer:
    """What one layer takes up; of a flatbuffer, one operator with its constant tensors.

    Attributes:
        name: Its name.
        kind: Its class, or the name of the operator.
        parameters: Number of weight values.
        bytes: Bytes of its weights as stored.
        sparsity: Share of zeros in its weights of rank two and above; ``None`` without any.
        dtype: Type that most of its weight values are stored in; ``None`` without weights.
    """

    name: str
    kind: str
    parameters: int
    bytes: int
    sparsity: float | None
    dtype: str | None


class Artifact(abc.ABC):
    """A model in the form in which it would be deployed.

    Immutable from the outside. Its figures are those of the file that `save` writes.

    Attributes:
        kind: Short name of the form, for example ``"keras"`` or ``"tflite"``.
        suffix: File name suffix that `save` writes.
    """

    kind: ClassVar[str]
    suffix: ClassVar[str]

    @abc.abstractmethod
    def predict(self, x: Any, batch_size: int = 32) -> np.ndarray:
        """Runs the model as it would run when deployed.

        Args:
            x: Inputs on the model's own scale, shape ``(n, …)``; for several inputs a dict by
                name, or a list in the artifact's order.
            batch_size: Samples at a time, at least 1.

        Returns:
            Outputs as floats on the model's own scale, shape ``(n, …)``; of a model with several
            outputs a dict of them by name.
        """

    @abc.abstractmethod
    def _write(self, path: Path) -> None:
        """Writes the file."""

    @property
    @abc.abstractmethod
    def parameters(self) -> int:
        """Number of weight values, the statistics of batch normalization included."""

    @property
    @abc.abstractmethod
    def sparsity(self) -> float | None:
        """Share of zeros in the weights of rank two and above; ``None`` where there are none."""

    def layers(self) -> tuple[Layer, ...]:
        """What each layer takes up, in the order of the model.

        The parameters add up to `parameters`; layers without weights are listed with 0 of them.

        Returns:
            The layers; empty for a kind of artifact that does not know them.
        """
        return ()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the file to deploy; a file that is there is replaced whole or not at all.

        Args:
            path: Where to. The artifact's suffix is added where the name has none.

        Returns:
            The path that was written.

        Raises:
            OptkitError: For a suffix of another kind of file.
        """
        target = Path(path)
        if not target.suffix:
            target = target.with_suffix(self.suffix)
        if target.suffix != self.suffix:
            raise OptkitError(
                f"A {self.kind} artifact is saved as {self.suffix}. Received: {target.name!r}."
            )
        write_atomically(target, self._write)
        return target

    @functools.cached_property
    def _sizes(self) -> tuple[int, int]:
        with tempfile.TemporaryDirectory(prefix="optkit-") as folder:
            path = Path(folder) / f"model{self.suffix}"
            self._write(path)
            compressor = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 31)
            compressed = 0
            with path.open("rb") as file:
                while chunk := file.read(2**20):
                    compressed += len(compressor.compress(chunk))
            return path.stat().st_size, compressed + len(compressor.flush())

    @property
    def size_bytes(self) -> int:
        """Bytes of the file that `save` writes."""
        return self._sizes[0]

    @property
    def compressed_bytes(self) -> int:
        """Bytes of the same file gzipped."""
        return self._sizes[1]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.parameters:,} parameters)"


class GraphArtifact(Artifact):
    """An artifact that TensorFlow runs, and that can be converted.

    Attributes:
        kind: ``"keras"``, the form in which models come that any of them would do for.
    """

    kind = "keras"

    @property
    @abc.abstractmethod
    def signature(self) -> Signature:
        """Names, shapes and types of the inputs and outputs."""

    @abc.abstractmethod
    def inference_function(
        self, *, batch: int | None = None, shapes: tuple[tuple[int | None, ...], ...] | None = None
    ) -> Any:
        """What it computes, as a ``tf.function`` of the inputs in order.

        Args:
            batch: Batch size to fix, or ``None`` to leave it open.
            shapes: Shapes of the inputs without the batch, where the model leaves some open.
        """


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes through a temporary file beside ``path``, so that no half-written file is ever seen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".optkit-", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        write(temporary)
        os.replace(temporary, path)


def named_inputs(x: Any, names: list[str]) -> dict[str, np.ndarray]:
    """The inputs by name, checked to be as many as the model has and of one length.

    Raises:
        DataError: For missing, unknown or differently long inputs.
    """
    if isinstance(x, dict):
        if sorted(x) != sorted(names):
            raise DataError(f"Expected inputs {sorted(names)}. Received: {sorted(x)}.")
        found = {name: np.asarray(x[name]) for name in names}
    elif len(names) == 1:
        single = x[0] if isinstance(x, list | tuple) and len(x) == 1 and np.ndim(x[0]) > 1 else x
        found = {names[0]: np.asarray(single)}
    else:
        if not isinstance(x, list | tuple) or len(x) != len(names):
            raise DataError(f"Expected a dict or list of {len(names)} inputs: {names}.")
        found = {name: np.asarray(value) for name, value in zip(names, x, strict=True)}
    if len({len(value) for value in found.values()}) != 1:
        raise DataError(f"The inputs {names} have different numbers of samples.")
    return found


def batches_of(x: dict[str, np.ndarray], size: int) -> Iterator[dict[str, np.ndarray]]:
    """Slices of at most ``size`` samples, in order."""
    if size < 1:
        raise DataError(f"`batch_size` must be at least 1. Received: {size}.")
    total = len(next(iter(x.values())))
    for start in range(0, total, size):
        yield {name: value[start : start + size] for name, value in x.items()}
