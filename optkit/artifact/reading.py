"""Keras models out of files: `.keras`, HDF5, and weights of either, looked through beforehand."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import math
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optkit.artifact import archive
from optkit.errors import ModelError, OptkitError, first_line
from optkit.runtime import keras, tensorflow, tf_keras
from optkit.safety import Library, Unsafe, find_unsafe

__all__ = [
    "Terms",
    "know_carriers",
    "quietly",
    "read_checkpoint",
    "read_hdf5",
    "read_keras_archive",
    "refuse_lying_checkpoint",
    "refuse_unsafe",
    "unreadable",
    "warn_uncompiled",
]

_LOG = logging.getLogger("optkit")
_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
# What translated models are made of beside layers; registered with Keras when they are imported.
_CARRIERS = ("activations2", "activations3", "carried2", "carried3", "carrier2", "carrier3")
_KERAS_2_ENGINE = "keras.engine."  # where Keras 2.12 said that its classes were


@dataclass(frozen=True)
class Terms:
    """On what terms a file is read.

    Attributes:
        trust: Whether code in the file may be run.
        builder: A function without arguments that gives the model to put the weights into; without
            one the file describes the model itself.
        custom_objects: The caller's own classes and functions by name.
        compile: Whether to read how the model was compiled.
    """

    trust: bool = False
    builder: Callable[[], Any] | None = None
    custom_objects: Mapping[str, Any] | None = None
    compile: bool = True

    def find_unsafe(self, config: Any, library: Library) -> tuple[Unsafe, ...]:
        """What may not be handed to Keras on these terms."""
        if self.trust:
            return ()
        return find_unsafe(config, library=library, custom_objects=self.custom_objects)


def know_carriers(content: bytes) -> None:
    """Registers what optkit puts into translated models, where a description names it."""
    if b"optkit>" in content:
        for name in _CARRIERS:
            importlib.import_module(f"optkit.translate.{name}")


def unreadable(path: Path, reason: object, remedy: str) -> ModelError:
    """The error for a file that cannot be read."""
    text = str(reason).strip() or repr(reason)
    return ModelError(f"{str(path)!r} cannot be read: {text.rstrip('.')}. {remedy}")


def _damaged(path: Path, error: Exception) -> ModelError:
    return unreadable(
        path,
        f"{type(error).__name__}: {str(error)[:600]}",
        "The file is damaged or incomplete: get it from its source again, or save the model again.",
    )


def refuse_unsafe(path: Path, found: tuple[Unsafe, ...]) -> None:
    """Raises where something was found.

    Raises:
        ModelError: That lists it.
    """
    if not found:
        return
    listed = "\n".join(f"  - {item}" for item in found[:10])
    more = f"\n  … and {len(found) - 10} more" if len(found) > 10 else ""
    raise ModelError(
        f"{str(path)!r} was not loaded, and nothing in it was run. What loading it would run:\n"
        f"{listed}{more}"
    )


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keeps what Keras and TensorFlow say while they read out of the log; errors are raised."""
    loggers = [logging.getLogger(name) for name in ("tensorflow", "absl")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def _bounded_weights(path: Path, stored: int) -> Iterator[None]:
    """Lets models have no more weights than the file has room for, before they are made."""
    tf = tensorflow()
    allowed = archive.allowed_bytes(stored)
    claimed = 0

    def create(next_creator: Callable[..., Any], **arguments: Any) -> Any:
        nonlocal claimed
        claimed += _variable_bytes(arguments)
        if claimed > allowed:
            raise ModelError(
                f"{str(path)!r} is refused: the layers that it describes have more than "
                f"{allowed / 2**20:,.0f} MB of weights, and the file has "
                f"{stored / 2**20:,.3f} MB. Such a file fills the memory when it is "
                "read. Get it from its source again, or save the model again."
            )
        return next_creator(**arguments)

    with tf.variable_creator_scope(create):
        yield


def _variable_bytes(arguments: dict[str, Any]) -> int:
    """How large a variable will be, found without making it."""
    tf = tensorflow()
    value: Any = arguments.get("initial_value")
    shape, dtype = arguments.get("shape"), arguments.get("dtype")
    if callable(value) and (shape is None or dtype is None):
        from tensorflow.python.framework.func_graph import FuncGraph

        # Traced instead of called: a graph knows the shape and holds no values.
        with FuncGraph("shape").as_default():
            value = tf.convert_to_tensor(value(), dtype=dtype)
    elif not callable(value) and not hasattr(value, "shape"):
        value = np.asarray(value)
    known = tf.TensorShape(value.shape if shape is None else shape)
    size = tf.as_dtype(value.dtype if dtype is None else dtype).size or 1
    return math.prod(dimension or 1 for dimension in known.as_list()) * size if known.rank else size


# ----------------------------------------------------------------------------------------- .keras


def read_keras_archive(path: Path, terms: Terms) -> Any:
    """The model in a ``.keras`` archive, or in a folder with what such an archive holds.

    Raises:
        ModelError: If it cannot be read, or would run something on being read.
    """
    with tempfile.TemporaryDirectory(prefix="optkit-") as folder:
        source = path
        if path.is_dir():
            archive.check_folder(path)
            source = Path(shutil.make_archive(str(Path(folder) / "folder"), "zip", path))
        try:
            with zipfile.ZipFile(source) as opened:
                return _read_opened(opened, source, path, Path(folder), terms)
        except OptkitError:
            raise
        except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError) as error:
            raise _damaged(path, error) from error


def _read_opened(
    opened: zipfile.ZipFile, source: Path, path: Path, folder: Path, terms: Terms
) -> Any:
    names = archive.zip_names(opened, source)
    missing = [name for name in (_CONFIG, _METADATA) if name not in names]
    if missing or _WEIGHTS not in names:
        pickled = " Weights in NumPy's format are not read." if "model.weights.npz" in names else ""
        listed = ", ".join((missing or [_WEIGHTS])[:3])
        raise ModelError(
            f"{str(path)!r} is no Keras file: it lacks {listed}. Expected a .keras archive with "
            f"{_CONFIG}, {_METADATA} and {_WEIGHTS}. Received: {', '.join(names[:5]) or 'nothing'}."
            f"{pickled} Save the model with `model.save('name.keras')`."
        )
    metadata = archive.read_json(opened.read(_METADATA), _METADATA, path)
    described = opened.read(_CONFIG)
    know_carriers(described)
    config = archive.read_json(described, _CONFIG, path)
    if not isinstance(metadata, dict) or not isinstance(config, dict):
        raise ModelError(
            f"{str(path)!r} is no Keras file: {_CONFIG} and {_METADATA} must hold an object each. "
            f"Received: {type(config).__name__} and {type(metadata).__name__}."
        )
    library = _library(metadata.get("keras_version"), config)
    compiled = config.pop("compile_config", None)
    _settle(config)
    if terms.builder is None:
        refuse_unsafe(path, terms.find_unsafe(config, library))
    if compiled and terms.compile and terms.builder is None:
        left_out = terms.find_unsafe(compiled, library)
        if left_out:
            warn_uncompiled(path, str(left_out[0]))
            compiled = None
    else:
        compiled = None
    target = folder / "model.keras"

    content = {**config, **({"compile_config": compiled} if compiled else {})}
    archive.repack(opened, target, {_CONFIG: json.dumps(content).encode()})
    with zipfile.ZipFile(target) as copy:
        copy.extract(_WEIGHTS, folder)
    _checked_hdf5(folder / _WEIGHTS, path)
    (folder / _WEIGHTS).unlink()
    if terms.builder is not None:
        return _with_weights(path, target, terms.builder)
    return _built_model(path, target, terms, library, compiled=bool(compiled))


def _library(version: Any, config: Any) -> Library:
    """Which Keras wrote a file: by the version it states, else by the modules that it names."""
    number = str(version or "").partition(".")[0]
    if number.isdigit():
        return "keras" if int(number) >= 3 else "tf_keras"
    module = str(config.get("module") or "") if isinstance(config, dict) else ""
    return "keras" if module.startswith(("keras.src.models", "keras.models")) else "tf_keras"


def _module(library: Library) -> Any:
    if library == "tf_keras":
        return tf_keras()
    module = keras()
    backend = module.backend.backend()
    if backend != "tensorflow":
        raise ModelError(
            f"Keras 3 runs on {backend} in this process, and optkit works on TensorFlow. Set the "
            "environment variable KERAS_BACKEND=tensorflow before Keras is imported, and load the "
            "file again; files do not depend on the backend."
        )
    return module


def _built_model(
    path: Path, copy: Path, terms: Terms, library: Library, *, compiled: bool, said: str = ""
) -> Any:
    """The model of a file that has been looked through, compiled where that can be read.

    Args:
        path: What the caller named.
        copy: What Keras is to read.
        terms: On what terms.
        library: Which Keras.
        compiled: Whether to read how it was compiled.
        said: What the file says of that, for the warning where it cannot be read.
    """
    module = _module(library)

    def load(with_compiled: bool) -> Any:
        try:
            return module.saving.load_model(
                copy,
                custom_objects=dict(terms.custom_objects or {}),
                compile=with_compiled,
                safe_mode=not terms.trust,
            )
        except ModelError:
            raise
        except Exception as error:
            raise _not_built(path, error, library) from error

    stored = copy.stat().st_size
    if compiled:
        try:
            with quietly(), _bounded_weights(path, stored):
                return load(True)
        except ModelError as error:
            if error.__cause__ is None:
                raise
            reason = first_line(error.__cause__)
    with quietly(), _bounded_weights(path, stored):
        model = load(False)
    if compiled:
        warn_uncompiled(path, f"{reason} {said}".strip())
    return model


def _not_built(path: Path, error: Exception, library: Library) -> ModelError:
    name = "Keras 3" if library == "keras" else "tf_keras (Keras 2)"
    return unreadable(
        path,
        f"{name} cannot build its model: {first_line(error)}",
        "Classes of your own must be registered (`register_keras_serializable`) or given in "
        "`custom_objects`, as they were when it was saved; otherwise the file is damaged, or of "
        "another version of Keras: build the model in code and load its weights with `builder=`.",
    )


def warn_uncompiled(path: Path, reason: str) -> None:
    """Says that a model comes without what it was compiled with, and why."""
    _LOG.warning(
        "%s is loaded without its loss, optimizer and metrics, which cannot be read: %s Compile "
        "the model, or give `Pipeline(loss=…)`.",
        path,
        reason,
    )


def _settle(config: Any) -> None:
    """Puts right the names of modules that moved after Keras 2.12, and lets models within be data.

    How an inner model was compiled has no use in the outer one.
    """
    stack = [config]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            module = value.get("module")
            if isinstance(module, str) and module.startswith(_KERAS_2_ENGINE):
                value["module"] = f"keras.src.{module.removeprefix('keras.')}"
            if "class_name" in value:
                value.pop("compile_config", None)
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)


# ------------------------------------------------------------------------------------------- HDF5


def _checked_hdf5(path: Path, named: Path) -> None:
    try:
        archive.check_hdf5(path)
    except ModelError as error:
        raise ModelError(str(error).replace(repr(str(path)), repr(str(named)))) from error
    except Exception as error:  # HDF5 answers damage with whatever it was about to do
        raise _damaged(named, error) from error


def read_hdf5(path: Path, terms: Terms) -> Any:
    """The model in an HDF5 file; of one that holds weights alone, with the builder's layers.

    Raises:
        ModelError: If it cannot be read, or would run something on being read.
    """
    with tempfile.TemporaryDirectory(prefix="optkit-") as folder:
        # A copy of its own: what was looked at is what Keras gets, under a name that it knows.
        copy = Path(folder) / "model.h5"
        try:
            shutil.copyfile(path, copy)
        except OSError as error:
            raise unreadable(
                path, error, "It is copied to a temporary folder to be read."
            ) from error
        _checked_hdf5(copy, path)
        described, compiled, version, layered = _attributes(copy, path)
        if terms.builder is not None:
            # By the name alone Keras tells its two layouts of weights apart.
            if not layered:
                copy = copy.rename(copy.with_name("model.weights.h5"))
            return _with_weights(path, copy, terms.builder)
        if described is None:
            raise ModelError(
                f"{str(path)!r} holds weights alone, not the layers that they belong to. Pass "
                "`builder=`, a function without arguments that gives the model they were saved "
                "from: `ok.load_model(path, builder=build)`."
            )
        know_carriers(described)
        config = archive.read_json(described, "model_config", path)
        library = _library(version, config)
        refuse_unsafe(path, terms.find_unsafe(config, library))
        settings: Any = None
        if terms.compile and compiled is not None:
            settings = archive.read_json(compiled, "training_config", path)
            left_out = terms.find_unsafe(settings, library)
            if left_out:
                warn_uncompiled(path, str(left_out[0]))
                settings = None
        said = ""
        if isinstance(settings, dict):
            named = f"loss {settings.get('loss')!r}, metrics {settings.get('metrics')!r}"
            said = f"It was compiled with {named[:200]}."
        return _built_model(path, copy, terms, library, compiled=settings is not None, said=said)


def _attributes(copy: Path, path: Path) -> tuple[bytes | None, bytes | None, str | None, bool]:
    """What an HDF5 file says of its model: layers, training, version; whether of the old layout."""
    import h5py

    def plain(value: Any) -> bytes | None:
        return value if value is None or isinstance(value, bytes) else str(value).encode()

    try:
        with h5py.File(copy, "r") as file:
            given = {name: file.attrs.get(name) for name in ("model_config", "training_config")}
            weights = file.get("model_weights", file)
            version = file.attrs.get("keras_version", weights.attrs.get("keras_version"))
            layered = "layer_names" in weights.attrs or "layer_names0" in weights.attrs
        text = plain(version)
        return (
            plain(given["model_config"]),
            plain(given["training_config"]),
            None if text is None else text.decode(errors="replace"),
            layered,
        )
    except Exception as error:  # HDF5 answers damage with whatever it was about to do
        raise _damaged(path, error) from error


# ---------------------------------------------------------------------------------------- weights


def _built(builder: Callable[[], Any]) -> tuple[Any, Library]:
    if isinstance(builder, tf_keras().Model | keras().Model) or not callable(builder):
        raise ModelError(
            "`builder` must be a function without arguments that gives a Keras model. Received: "
            f"{type(builder).__name__}. For a model that you have, pass `lambda: model`; its "
            "weights are overwritten."
        )
    try:
        model = builder()
    except Exception as error:
        raise ModelError(
            f"`builder` failed: {first_line(error)} It must be a function without arguments that "
            "gives a Keras model."
        ) from error
    if isinstance(model, tf_keras().Model):
        library: Library = "tf_keras"
    elif isinstance(model, keras().Model):
        library = "keras"
        _module(library)
    else:
        raise ModelError(
            f"`builder` must give a Keras model. It gave: {type(model).__module__}."
            f"{type(model).__qualname__}."
        )
    if not model.built or not model.weights:
        raise ModelError(
            f"`builder` gave the model {model.name!r} without weights to load into: it is not "
            "built. Give it an `Input`, or call `model.build(…)` in the builder."
        )
    return model, library


def _with_weights(path: Path, weights: Path, builder: Callable[[], Any]) -> Any:
    model, _ = _built(builder)
    try:
        with quietly():
            loaded = model.load_weights(str(weights))
            if hasattr(loaded, "assert_existing_objects_matched"):
                # A checkpoint may hold an optimizer, too, which the model has no use for.
                loaded.assert_existing_objects_matched().expect_partial()
    except Exception as error:
        raise unreadable(
            path,
            f"its weights do not fit the model {model.name!r} that `builder` gave: "
            f"{first_line(error)}",
            "The builder must give the model as it was when the weights were saved, in the same "
            "Keras: the same layers, in the same order, of the same sizes.",
        ) from error
    return model


def read_checkpoint(prefix: Path, terms: Terms) -> Any:
    """The builder's model with the weights of a TensorFlow checkpoint.

    Args:
        prefix: Path of the checkpoint, without ``.index``.
        terms: With a builder that gives a tf_keras model.

    Raises:
        ModelError: Without a builder, and if the weights cannot be read or do not fit.
    """
    if terms.builder is None:
        raise ModelError(
            f"{str(prefix)!r} is a TensorFlow checkpoint, which holds weights alone. Pass "
            "`builder=`, a function without arguments that gives the tf_keras model they were "
            "saved from."
        )
    refuse_lying_checkpoint(prefix, prefix)
    model, library = _built(terms.builder)
    if library == "keras":
        raise ModelError(
            f"{str(prefix)!r} is a TensorFlow checkpoint, as Keras 2 writes it, and Keras 3 does "
            "not read it into its models. Let `builder` give the same model built with tf_keras."
        )
    return _with_weights(prefix, prefix, lambda: model)


def refuse_lying_checkpoint(prefix: Path, path: Path) -> None:
    """Refuses a checkpoint whose index does not fit its data.

    Raises:
        ModelError: If it cannot be read, or claims more than its files hold.
    """
    tf = tensorflow()
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        shapes, types = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    except Exception as error:
        raise _damaged(path, error) from error
    stored = sum(file.stat().st_size for file in prefix.parent.glob(f"{prefix.name}.data-*"))
    claimed = sum(math.prod(shapes[name]) * (types[name].size or 0) for name in shapes)
    if claimed > stored:
        raise ModelError(
            f"{str(path)!r} is refused: its index claims {claimed:,} bytes of weights, and its "
            f"data files hold {stored:,}. It is incomplete or damaged: get all of its files again."
        )
