"""Reading back what optkit saved."""

from __future__ import annotations

import os
from pathlib import Path

from optkit.artifact.base import Artifact
from optkit.artifact.keras import KerasArtifact
from optkit.artifact.tflite import TFLiteArtifact
from optkit.errors import ModelError
from optkit.runtime import tf_keras

__all__ = ["load"]


def load(path: str | os.PathLike[str]) -> Artifact:
    """Loads what `Artifact.save` or `Result.save` wrote.

    Args:
        path: A ``.keras`` or ``.tflite`` file, or the folder that `Result.save` wrote. Keras files
            are read in Keras' safe mode: code stored in them is not run.

    Returns:
        The artifact; of a folder, the one to deploy.

    Raises:
        ModelError: If there is no such file, or it cannot be read.

    Example:
        >>> import tempfile, tf_keras
        >>> import optkit as ok
        >>> model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(2)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = ok.KerasArtifact(model).save(f"{folder}/model.keras")
        ...     ok.load(path)
        KerasArtifact(10 parameters)
    """
    source = Path(path)
    if source.is_dir():
        found = sorted(p for p in source.glob("artifact.*") if p.suffix in (".keras", ".tflite"))
        if len(found) != 1:
            raise ModelError(
                f"The folder {str(source)!r} holds {len(found)} files called 'artifact'; "
                "expected the one that `Result.save` writes."
            )
        source = found[0]
    if not source.is_file():
        raise ModelError(f"There is no file {str(source)!r}.")
    if source.suffix == ".tflite":
        return TFLiteArtifact(source.read_bytes())
    if source.suffix == ".keras":
        try:
            return KerasArtifact(tf_keras().models.load_model(source, compile=False))
        except Exception as error:
            raise ModelError(
                f"{str(source)!r} cannot be read as a Keras model: {error} Custom layers must be "
                "registered with `tf_keras.saving.register_keras_serializable` before."
            ) from error
    raise ModelError(f"optkit loads .keras and .tflite files. Received: {source.name!r}.")
