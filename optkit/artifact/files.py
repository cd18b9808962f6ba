"""Models out of files: what optkit saved, and what others did."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optkit import _validate
from optkit.artifact import archive
from optkit.artifact.base import Artifact
from optkit.artifact.graph import check_saved_model, keras_nodes
from optkit.artifact.keras import KerasArtifact, is_jit_file
from optkit.artifact.reading import (
    Terms,
    know_carriers,
    quietly,
    read_checkpoint,
    read_hdf5,
    read_keras_archive,
    refuse_unsafe,
    warn_uncompiled,
)
from optkit.artifact.saved_model import SavedModelArtifact
from optkit.artifact.tflite import TFLiteArtifact
from optkit.errors import ModelError
from optkit.runtime import tf_keras
from optkit.safety import find_unsafe

__all__ = ["load", "load_model", "read_model"]

_LOG = logging.getLogger("optkit")
_KNOWN = (
    "a .keras archive, an .h5 or .hdf5 file, a SavedModel folder, or weights together with "
    "`builder=`"
)
_ZIP, _HDF5, _TFLITE = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"TFL3"
_GRAPH, _CONFIG, _INDEX = "saved_model.pb", "config.json", ".index"
_FOREIGN = {
    ".onnx": "an ONNX file",
    ".pb": "a graph; of a SavedModel name the folder, not the file in it",
    ".pbtxt": "a graph as text",
    ".pt": "a PyTorch file",
    ".pth": "a PyTorch file",
    ".pkl": "a pickle, which cannot be read without running what is in it",
    ".pickle": "a pickle, which cannot be read without running what is in it",
    ".joblib": "a pickle, which cannot be read without running what is in it",
    ".npz": "NumPy arrays",
    ".json": "a description without weights",
    ".safetensors": "weights of another library",
    ".mlmodel": "a Core ML file",
}


def load(
    path: str | os.PathLike[str],
    *,
    trust: bool = False,
    custom_objects: Mapping[str, Any] | None = None,
) -> Artifact:
    """Loads what `Artifact.save` or `Result.save` wrote.

    Args:
        path: A ``.keras`` or ``.tflite`` file, a SavedModel folder, or the folder that
            `Result.save` wrote.
        trust: Whether code that is stored in the file may be run; see `load_model`.
        custom_objects: Classes and functions of your own by name, where they are not registered
            with Keras.

    Returns:
        The artifact; of a folder, the one to deploy.

    Raises:
        ModelError: If there is no such file, it cannot be read, or would run something on being
            read.

    Example:
        >>> import tempfile, tf_keras
        >>> import optkit as ok
        >>> model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(2)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = ok.KerasArtifact(model).save(f"{folder}/model.keras")
        ...     ok.load(path)
        KerasArtifact(10 parameters)
    """
    source = _validate.path("path", path)
    if source.is_dir() and not (source / _GRAPH).is_file() and not (source / _CONFIG).is_file():
        source = _deployed(source)
    _refuse_absent(source)
    if source.is_file() and (source.suffix == ".tflite" or _head(source)[4:8] == _TFLITE):
        return _read_tflite(source)
    terms = Terms(trust=trust, custom_objects=custom_objects, compile=False)
    model = read_model(source, terms)
    if isinstance(model, Artifact):
        return model
    return KerasArtifact(model, jit=source.is_file() and is_jit_file(source))


def load_model(
    path: str | os.PathLike[str],
    *,
    trust: bool = False,
    builder: Callable[[], Any] | None = None,
    custom_objects: Mapping[str, Any] | None = None,
) -> Any:
    """Loads a model that any Keras saved, without running anything that is in the file.

    What kind of file it is shows in its content, not in its name. Which Keras reads it depends on
    which one wrote it: a file of Keras 3 gives a Keras 3 model, one of Keras 2 a tf_keras model.
    How the model was compiled is kept; where that names functions that are not known here, the
    model comes uncompiled, with a warning in the log.

    Args:
        path: A ``.keras`` archive, an HDF5 file (``.h5``, ``.hdf5``), a SavedModel folder, or,
            together with ``builder``, weights: ``.weights.h5``, older ``.h5`` weights, or the
            prefix of a TensorFlow checkpoint.
        trust: Whether the file may do what it likes: unpack Python code of Lambda layers, import
            modules, read and write files. Only for files whose maker you trust as you would trust
            their program.
        builder: A function without arguments that gives the built model to put the weights into. A
            file of a whole model then gives its weights alone.
        custom_objects: Classes and functions of your own by name, where they are not registered
            with ``register_keras_serializable``.

    Returns:
        A Keras 3 or tf_keras model; of a SavedModel that no Keras can rebuild a
        `SavedModelArtifact`, which can be measured and converted, not trained.

    Raises:
        ModelError: If there is no such file, it cannot be read, claims more than it holds, or would
            run something on being read. Nothing of it was run.

    Example:
        >>> import tempfile, keras
        >>> import optkit as ok
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="scores")])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(f"{folder}/model.keras")
        ...     loaded = ok.load_model(f"{folder}/model.keras")
        >>> isinstance(loaded, keras.Model), loaded.get_layer("scores").units
        (True, 2)
    """
    if isinstance(path, str) and "://" in path:
        raise ModelError(
            f"{path!r} is not on this machine, and optkit downloads nothing. Download the file and "
            "pass its path."
        )
    _validate.boolean("trust", trust)
    source = _validate.path("path", path)
    terms = Terms(trust=trust, builder=builder, custom_objects=custom_objects)
    return read_model(source, terms)


def read_model(source: Path, terms: Terms) -> Any:
    """The model in a file or folder, on given terms; all reading goes through here.

    Raises:
        ModelError: If it cannot be read, or would run something on being read.
    """
    prefix = _checkpoint(source)
    if prefix is not None:
        return read_checkpoint(prefix, terms)
    _refuse_absent(source)
    if source.is_dir():
        return _read_folder(source, terms)
    head = _head(source)
    if head.startswith(_ZIP):
        return read_keras_archive(source, terms)
    if _is_hdf5(source):
        return read_hdf5(source, terms)
    if head[4:8] == _TFLITE:
        raise ModelError(
            f"{str(source)!r} is a TFLite file: it holds no Keras model any more, so nothing can "
            "train it. `optkit.load` reads it as an artifact, to run and to measure."
        )
    foreign = _FOREIGN.get(source.suffix.lower())
    what = "it is empty" if not head else f"it begins with {head[:8]!r}, as none of them does"
    if foreign:
        what = f"it looks like {foreign}"
    raise ModelError(
        f"{str(source)!r} cannot be read as a Keras model: {what}. Expected {_KNOWN}. If it is "
        "meant to be one, get it from its source again, or save the model again."
    )


def _refuse_absent(source: Path) -> None:
    """Refuses what is not there, may not be read, or is neither a file nor a folder."""
    try:
        mode = source.stat().st_mode
    except FileNotFoundError as error:
        near = f" {str(source.parent)!r} is not there either." if not source.parent.exists() else ""
        raise ModelError(
            f"There is no file {str(source)!r}.{near} Expected {_KNOWN}. Check the path."
        ) from error
    except OSError as error:
        raise ModelError(f"{str(source)!r} cannot be reached: {error}. Check the path.") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ModelError(
            f"{str(source)!r} is neither a file nor a folder, but a pipe, socket or device. "
            f"Expected {_KNOWN}."
        )
    if not os.access(source, os.R_OK):
        raise ModelError(
            f"{str(source)!r} may not be read by this user. Change its permissions, or copy it."
        )


def _read_tflite(source: Path) -> TFLiteArtifact:
    try:
        return TFLiteArtifact.read(source)
    except OSError as error:
        raise ModelError(f"{str(source)!r} cannot be read: {error}.") from error


def _head(source: Path) -> bytes:
    try:
        with source.open("rb") as file:
            return file.read(16)
    except OSError as error:
        raise ModelError(f"{str(source)!r} cannot be read: {error}.") from error


def _is_hdf5(source: Path) -> bool:
    """Whether the mark of HDF5 stands at one of the places that the format allows."""
    with source.open("rb") as file:
        size, place = source.stat().st_size, 0
        while place < size:
            file.seek(place)
            if file.read(len(_HDF5)) == _HDF5:
                return True
            place = place * 2 or 512
    return False


def _checkpoint(source: Path) -> Path | None:
    """The prefix of a TensorFlow checkpoint, where the path means one."""
    if source.suffix == _INDEX and source.is_file():
        return source.with_suffix("")
    # The file called "checkpoint" is TensorFlow's note of the newest one, whatever that is called.
    if (not source.exists() or source.name == "checkpoint") and Path(f"{source}{_INDEX}").is_file():
        return source
    return None


def _deployed(folder: Path) -> Path:
    """The artifact in a folder that `Result.save` wrote."""
    files = [folder / f"artifact{kind.suffix}" for kind in (KerasArtifact, TFLiteArtifact)]
    found = [path for path in files if path.is_file()]
    if (folder / "artifact" / _GRAPH).is_file():
        found.append(folder / "artifact")
    if len(found) != 1:
        raise ModelError(
            f"The folder {str(folder)!r} holds {len(found)} files called 'artifact'; "
            "expected the one that `Result.save` writes."
        )
    return found[0]


def _read_folder(source: Path, terms: Terms) -> Any:
    if (source / _GRAPH).is_file():
        return _read_saved_model(source, terms)
    if (source / _CONFIG).is_file():
        return read_keras_archive(source, terms)
    try:
        inside = sorted(path.name for path in source.iterdir())
    except OSError as error:
        raise ModelError(f"The folder {str(source)!r} cannot be read: {error}.") from error
    shown = ", ".join(inside[:5]) + (", …" if len(inside) > 5 else "")
    hint = ""
    if any(name.startswith("artifact") for name in inside):
        hint = " `optkit.load` reads folders that `Result.save` wrote."
    elif any(name.endswith(_INDEX) for name in inside):
        hint = " For a TensorFlow checkpoint, name its prefix and pass `builder=`."
    raise ModelError(
        f"The folder {str(source)!r} is no SavedModel: it lacks {_GRAPH}. Received: a folder with "
        f"{shown or 'nothing in it'}. Expected {_KNOWN}.{hint}"
    )


def _read_saved_model(source: Path, terms: Terms) -> Any:
    """The Keras model in a SavedModel, where tf_keras can rebuild it, else the artifact."""
    if terms.builder is not None:
        return read_checkpoint(source / "variables" / "variables", terms)
    with tempfile.TemporaryDirectory(prefix="optkit-") as folder:
        # A copy of its own: what was looked at is what TensorFlow gets.
        copy = Path(folder) / "model"
        archive.copy_folder(source, copy)
        check_saved_model(copy, trust=terms.trust, named=source)
        nodes = keras_nodes(copy, source)
        root = next((node for node in nodes if node.node_path == "root"), None)
        model = None
        if root is not None:
            compiled = _check_nodes(nodes, root, source, terms)
            model = _rebuilt(copy, source, terms, compiled=compiled)
    return SavedModelArtifact(source, trust=terms.trust) if model is None else model


def _check_nodes(nodes: list[Any], root: Any, source: Path, terms: Terms) -> bool:
    """Refuses what Keras' objects in a SavedModel would run; whether how it was compiled is known.

    Raises:
        ModelError: With what was found.
    """
    compiled = False
    for node in nodes:
        know_carriers(node.metadata.encode())
        facts = archive.read_json(node.metadata.encode(), "keras_metadata.pb", source)
        if not isinstance(facts, dict):
            continue
        settings = facts.pop("training_config", None)
        if not terms.trust:
            refuse_unsafe(
                source,
                find_unsafe(
                    facts,
                    library="tf_keras",
                    custom_objects=terms.custom_objects,
                    revived=True,
                ),
            )
        if node is root and terms.compile and settings is not None:
            left_out = terms.find_unsafe(settings, "tf_keras")
            if left_out:
                warn_uncompiled(source, str(left_out[0]))
            compiled = not left_out
    return compiled


def _rebuilt(copy: Path, source: Path, terms: Terms, *, compiled: bool) -> Any:
    """The Keras model of a SavedModel; ``None`` where parts of it are only there as a graph."""
    module = tf_keras()

    def attempt(with_compiled: bool) -> Any:
        with quietly():
            return module.models.load_model(
                str(copy),
                custom_objects=dict(terms.custom_objects or {}),
                compile=with_compiled,
            )

    try:
        try:
            model = attempt(compiled)
        except Exception as error:
            if not compiled:
                raise
            warn_uncompiled(source, f"{type(error).__name__}: {str(error)[:300]}")
            compiled, model = False, attempt(False)
    except Exception as error:
        raise ModelError(
            f"{str(source)!r} cannot be read: tf_keras cannot rebuild the model of this SavedModel: "
            f"{type(error).__name__}: {str(error)[:600]} Classes of your own must be registered, or "
            "given in `custom_objects`; otherwise the folder is incomplete or damaged. As a graph "
            "alone, `optkit.SavedModelArtifact(path)` may still read it."
        ) from error
    if not isinstance(model, module.Model):
        return None
    home = "tf_keras.src.saving.legacy.saved_model"
    revived = [
        layer.name for layer in model._flatten_layers() if type(layer).__module__.startswith(home)
    ]
    if revived:
        _LOG.warning(
            "%s comes as a graph that can be run and converted, not trained: the classes of %s are "
            "not known here. Register them (`register_keras_serializable`) or give them in "
            "`custom_objects` to get the Keras model.",
            source,
            ", ".join(revived[:5]),
        )
    if not compiled and getattr(model, "optimizer", None) is not None:
        model.optimizer = None  # what is left of one has no use without its loss
    return None if revived else model
