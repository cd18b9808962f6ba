"""Fingerprints: what a value, a model or the code of a pass comes down to, the same in every process.

Equal things have equal fingerprints, wherever and whenever they are taken. What differs in a way
that could change a result has another one. What cannot be told raises `Unfingerprintable`: whoever
asks must then not rely on anything stored.

Code counts by what it does: bytecode, constants, defaults, closures, and the globals it refers to,
followed through the user's own modules. Code of installed libraries counts by their version.
"""

from __future__ import annotations

import ast
import contextlib
import copyreg
import dis
import enum
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from optkit.artifact import Artifact, KerasArtifact, SavedModelArtifact, TFLiteArtifact
from optkit.models import is_compiled, is_variable

__all__ = [
    "Unfingerprintable",
    "artifact_fingerprint",
    "fingerprint",
    "library_versions",
    "own_parts",
]

_BYTES = 20
_FOLDER_FILES = 10_000
_PACKAGES = (
    "tensorflow",
    "tf_keras",
    "keras",
    "tensorflow-model-optimization",
    "numpy",
    "ai-edge-litert",
    "ai-edge-quantizer",
    "scikit-learn",
    "imbalanced-learn",
    "albumentations",
    "nltk",
)

#: What a class holds that is not of its doing, or says where it stands in a file.
_NOT_OF_A_CLASS = frozenset(
    {
        *("__module__", "__dict__", "__weakref__", "__doc__", "__annotations__", "__qualname__"),
        *("__firstlineno__", "__static_attributes__", "__orig_bases__", "__parameters__"),
        *("__annotate__", "__annotate_func__", "__annotations_cache__", "__classcell__"),
        *("__abstractmethods__", "_abc_impl", "__dataclass_fields__"),
    }
)
_GLOBAL_LOADS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_CACHED_FUNCTION = type(functools.lru_cache(lambda: None))
_DESCRIPTORS = (
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
)


class Unfingerprintable(Exception):  # noqa: N818 (told to the user as a reason, never as an error)
    """Something has no fingerprint: whether it changes cannot be known."""


def fingerprint(value: Any) -> str:
    """The fingerprint of a value of a configuration, as a hexadecimal string.

    Args:
        value: Plain values and containers of them; arrays and tensors; paths, which count together
            with the content of the file or folder that is there (so does text that is the path of
            one); Keras models, by config, weights, ``trainable`` flags, custom code, and by how
            they are compiled; layers, optimizers, losses; passes; functions and classes;
            objects of which everything they are made of has a fingerprint.

    Raises:
        Unfingerprintable: For open files, generators, locks, datasets and whatever holds one.

    Example:
        >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
        True
        >>> fingerprint(lambda x: x + 1) == fingerprint(lambda x: x + 2)
        False
    """
    return _Walk().visit(value).hex()


def artifact_fingerprint(artifact: Artifact) -> str:
    """The fingerprint of a Keras model, or of the bytes of a flatbuffer.

    Raises:
        Unfingerprintable: For a kind of artifact that is neither, or a model that has none.
    """
    return _Walk().artifact(artifact).hex()


def library_versions() -> dict[str, str]:
    """The versions that a result may depend on; optkit's own with a hash of its source."""
    found = {"python": ".".join(platform.python_version_tuple()[:2]), "optkit": _own_source()}
    return found | {name: version for name in _PACKAGES if (version := _version(name))}


def own_parts(model: Any) -> dict[str, Any]:
    """The classes and functions of the user's that a model is made of, by name.

    Needed to read the model back from a file where they are not registered. Two of one name are
    left out: a file could not tell them apart.
    """
    found: dict[str, list[Any]] = {}

    def add(part: Any) -> None:
        if _library(part.__module__) is None:
            known = found.setdefault(part.__name__, [])
            if not any(part is item for item in known):
                known.append(part)

    for layer in model._flatten_layers():
        add(type(layer))
        for part in _carried_parts(layer):
            add(type(part))
        for value in _parts_of_layer(layer).values():
            add(value if isinstance(value, types.FunctionType) else type(value))
    return {name: parts[0] for name, parts in found.items() if len(parts) == 1}


class _Walk:
    """One walk through a value and what it is made of.

    Attributes:
        files: Which text is looked up as a path: ``"all"``, only the path of a file (``"files"``,
            within code), or ``"none"``.
    """

    def __init__(self) -> None:
        self.files = "all"
        self._open: dict[Any, int] = {}
        self._done: dict[tuple[int, str], bytes] = {}
        self._kept: list[Any] = []  # an id means an object only as long as that lives

    def visit(self, value: Any) -> bytes:
        """The digest of a value."""
        kind = type(value)
        if value is None or value is Ellipsis or value is NotImplemented:
            return _digest("constant", repr(value))
        if kind in (bool, int):
            return _digest(kind.__name__, str(value))
        if kind is float:
            return _digest("float", value.hex())
        if kind is complex:
            return _digest("complex", value.real.hex(), value.imag.hex())
        if kind is str:
            return _digest("str", value, self._file_content(value, folders=self.files == "all"))
        if kind in (bytes, bytearray):
            return _digest("bytes", bytes(value))
        identity = (id(value), self.files)
        if identity in self._done:
            return self._done[identity]
        with self._guarded(identity) as again:
            found = again or self._look(value)
        if again is None:
            self._done[identity] = found
            self._kept.append(value)
        return found

    @contextlib.contextmanager
    def _guarded(self, key: Any) -> Iterator[bytes | None]:
        """Yields a digest in place of what is being looked at already, so that cycles end."""
        if key in self._open:
            yield _digest("again", str(self._open[key]))
            return
        self._open[key] = len(self._open)
        try:
            yield None
        finally:
            del self._open[key]

    @contextlib.contextmanager
    def _looking_at_files(self, which: str) -> Iterator[None]:
        before, order = self.files, ("all", "files", "none")
        self.files = max(before, which, key=order.index)
        try:
            yield
        finally:
            self.files = before

    def _look(self, value: Any) -> bytes:
        kind = type(value)
        if kind in (list, tuple):
            return _digest(kind.__name__, *map(self.visit, value))
        if kind in (dict, types.MappingProxyType):
            return self._mapping(value)
        if kind in (set, frozenset):
            return _digest("set", *sorted(self._alone(item) for item in value))
        if isinstance(value, enum.Enum):
            return _digest("enum", self.visit(kind), value.name, self.visit(value._value_))
        if isinstance(value, PurePath):
            folders = self.files != "none"
            return _digest("path", str(value), self._file_content(str(value), folders=folders))
        if kind is np.ndarray or isinstance(value, np.generic):
            return self._array(value)
        found = self._code_like(value)
        if found is None:
            found = self._of_tensorflow(value)
        if found is None:
            found = self._of_keras(value)
        if found is not None:
            return found
        if isinstance(value, logging.Logger):
            return _digest("logger", value.name)
        if isinstance(value, Artifact):
            return self.artifact(value)
        if _is_pass(value):
            own = {} if _library(kind.__module__) else vars(value)  # may hold more than arguments
            return _digest("pass", self.visit(kind), *map(self.visit, (value.get_config(), own)))
        return self._object(value)

    def _alone(self, value: Any) -> bytes:
        """Looks at an element of a set, whose order must not matter, with what is known so far."""
        known = self._done.copy()
        try:
            return self.visit(value)
        finally:
            self._done = known

    def _mapping(self, value: Mapping[Any, Any]) -> bytes:
        with self._looking_at_files("none"):
            keys = sorted(((self.visit(key), key) for key in value), key=lambda pair: pair[0])
        return _digest(
            "dict", *(part for found, key in keys for part in (found, self.visit(value[key])))
        )

    def _array(self, value: Any) -> bytes:
        array = np.asarray(value)
        if array.dtype.hasobject:
            return _digest("array", str(array.shape), self.visit(array.tolist()))
        content = np.ascontiguousarray(array)
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return _digest(kind, str(array.dtype), str(array.shape), content.tobytes())

    def _file_content(self, text: str, *, folders: bool) -> bytes:
        """What lies at a path, as empty bytes where nothing does."""
        if self.files == "none" or not text or "\0" in text or len(text) > 4096:
            return b""
        try:
            if os.path.isfile(text):
                return _file_digest(text)
            return _folder_digest(text) if folders and os.path.isdir(text) else b""
        except (OSError, ValueError) as error:
            raise Unfingerprintable(f"{text!r} cannot be read: {error}") from error

    # Code

    def _code_like(self, value: Any) -> bytes | None:
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, types.MethodType):
            return _digest("method", self.visit(value.__func__), self.visit(value.__self__))
        if isinstance(value, functools.partial):
            return _digest(
                "partial",
                *map(self.visit, (value.func, value.args, value.keywords, vars(value))),
            )
        if isinstance(value, types.BuiltinFunctionType):
            owner = value.__self__
            of_module = owner is None or isinstance(owner, types.ModuleType)
            return _digest(
                "builtin",
                str(value.__module__),
                value.__qualname__,
                _library(value.__module__) or "",
                b"" if of_module else self.visit(owner),
            )
        if isinstance(value, types.ModuleType):
            return self._module(value, frozenset())
        if isinstance(value, types.CodeType):
            return self._code(value)
        if isinstance(value, staticmethod | classmethod):
            return _digest(type(value).__name__, self.visit(value.__func__))
        if isinstance(value, property):
            return _digest("property", *map(self.visit, (value.fget, value.fset, value.fdel)))
        if isinstance(value, functools.cached_property):
            return _digest("cached property", self.visit(value.func))
        if isinstance(value, _CACHED_FUNCTION):
            return _digest("cached", self.visit(value.__wrapped__))
        if isinstance(value, _DESCRIPTORS):
            return _digest("descriptor", value.__qualname__)
        return None

    def _function(self, function: types.FunctionType) -> bytes:
        name, home = function.__qualname__, _library(function.__module__)
        if home is not None and "<" not in name:  # not made within another function, not a lambda
            return _digest("function", home, function.__module__, name)
        cells = []
        for cell in function.__closure__ or ():
            try:
                cells.append(cell.cell_contents)
            except ValueError:  # not filled yet
                cells.append(None)
        module = function.__globals__.get("__name__")
        with self._looking_at_files("files"):
            parts = [self._code(function.__code__)]
            if (library := _library(module)) is not None:
                parts.append(_digest(library, str(module)))
            else:
                parts += self._globals_of(function)
            parts += [
                self.visit(function.__defaults__),
                self.visit(function.__kwdefaults__),
                self.visit(function.__dict__),
                *self._named(zip(function.__code__.co_freevars, cells, strict=True), name),
            ]
        return _digest("function", *parts)

    def _code(self, code: types.CodeType) -> bytes:
        """Everything of bytecode but where it stands in which file."""
        numbers = (
            code.co_argcount,
            code.co_posonlyargcount,
            code.co_kwonlyargcount,
            code.co_flags,
        )
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        with self._looking_at_files("files"):
            constants = [self.visit(constant) for constant in code.co_consts]
        return _digest(
            "code",
            code.co_name,
            code.co_code,
            code.co_exceptiontable,
            repr(numbers),
            repr(names),
            *constants,
        )

    def _globals_of(self, function: types.FunctionType) -> list[bytes]:
        code, space = function.__code__, function.__globals__
        attributes = frozenset(_all_names(code))
        loaded, imported = _references(code)
        found = []
        for name in sorted(loaded):
            if name not in space:
                found.append(_digest("not of the module", name))
            elif isinstance(space[name], types.ModuleType):
                found.append(_digest(name, self._module(space[name], attributes)))
            else:
                found += self._named([(name, space[name])], function.__qualname__)
        package = space.get("__package__") or str(space.get("__name__", "")).rpartition(".")[0]
        for level, members, name in sorted(imported):
            found.append(self._import(level, members, name, package, attributes))
        return found

    def _named(self, items: Any, where: str) -> list[bytes]:
        found = []
        for name, value in items:
            try:
                found.append(_digest(name, self.visit(value)))
            except Unfingerprintable as error:
                raise Unfingerprintable(f"`{where}` refers to `{name}`: {error}") from error
        return found

    def _import(
        self, level: int, members: tuple[str, ...], name: str, package: str, names: frozenset[str]
    ) -> bytes:
        """A module that a function imports when it is called."""
        absolute = name
        if level:
            try:
                absolute = importlib.util.resolve_name("." * level + name, package)
            except ImportError:
                return _digest("no module", name)
        if (library := _library(absolute)) is not None:
            return _digest("import", absolute, library)
        try:
            module = importlib.import_module(absolute)
            for member in members:
                if not hasattr(module, member) and hasattr(module, "__path__"):
                    importlib.import_module(f"{absolute}.{member}")
        except Exception as error:
            raise Unfingerprintable(f"module {absolute!r} cannot be imported: {error}") from error
        top = sys.modules[absolute.partition(".")[0]]
        return _digest("import", self._module(module, names), self._module(top, names))

    def _module(self, module: types.ModuleType, names: frozenset[str]) -> bytes:
        """A module of the user's: its code, and what it holds under the names that are asked for."""
        name = module.__name__
        if (library := _library(name)) is not None:
            return _digest("module", name, library)
        with self._guarded(("module", name)) as again:
            if again is not None:
                return again
            held = vars(module)
            found = []
            for wanted in sorted(names & held.keys()):
                value = held[wanted]
                if isinstance(value, types.ModuleType):
                    found.append(_digest(wanted, self._module(value, names)))
                else:
                    found += self._named([(wanted, value)], f"module {name}")
            return _digest("module", _module_source(module), *found)

    def _class(self, kind: type) -> bytes:
        home = _library(kind.__module__)
        if home is not None and "<" not in kind.__qualname__:
            return _digest("class", home, kind.__module__, kind.__qualname__)
        with self._looking_at_files("files"):
            return _digest(
                "class",
                kind.__qualname__,
                *(self.visit(base) for base in kind.__bases__),
                self.visit(type(kind)),
                *self._named(
                    (
                        (name, value)
                        for name, value in sorted(vars(kind).items())
                        if name not in _NOT_OF_A_CLASS
                    ),
                    kind.__qualname__,
                ),
            )

    # TensorFlow and Keras

    def _of_tensorflow(self, value: Any) -> bytes | None:
        tf: Any = sys.modules.get("tensorflow")
        if tf is None or _top(type(value).__module__) not in ("tensorflow", "tf_keras", "keras"):
            return None
        if isinstance(value, tf.data.Dataset | tf.data.Iterator):
            raise Unfingerprintable(f"a {type(value).__name__} is a stream of unknown content")
        if isinstance(value, tf.Tensor | tf.Variable):
            try:
                content = value.numpy()
            except Exception as error:
                raise Unfingerprintable(f"{type(value).__name__} without a value") from error
            kind = "variable" if isinstance(value, tf.Variable) else "tensor"
            return _digest(kind, value.dtype.name, self._array(np.asarray(content)))
        if hasattr(value, "python_function"):  # what `tf.function` makes
            return _digest(
                "tf.function",
                self.visit(value.python_function),
                self.visit(getattr(value, "input_signature", None)),
                self.visit(getattr(value, "_jit_compile", None)),
            )
        return None

    def _of_keras(self, value: Any) -> bytes | None:
        kind = type(value)
        tops = {_top(base.__module__) for base in kind.__mro__}
        if not tops & {"tf_keras", "keras"} or not hasattr(value, "get_config"):
            return None
        if hasattr(value, "layers") and hasattr(value, "get_weights"):
            return self.model(value)
        if hasattr(value, "get_weights") and hasattr(value, "_flatten_layers"):
            return self._layers("layer", value)
        # Besides its config: the functions it was given, and whatever a class of the user's that
        # says too little in its config keeps to itself. (Optimizers and initializers keep their
        # progress there, and are copied from their config.)
        kept = _settings(value) | {
            name: item for name, item in vars(value).items() if name in ("_fn", "_fn_kwargs")
        }
        copied = hasattr(value, "apply_gradients") or hasattr(value, "_random_generator")
        if _library(kind.__module__) is None and not copied:
            kept = dict(sorted(vars(value).items()))
        try:
            config = self._config(value)
        except Unfingerprintable:
            if not any(callable(item) for item in kept.values()):
                raise
            config = b""  # Keras refuses to serialize a lambda, which is among the rest
        parts = self._named(kept.items(), kind.__qualname__)
        return _digest("keras object", self.visit(kind), config, *parts)

    def _config(self, value: Any) -> bytes:
        try:
            config = value.get_config()
        except Exception as error:
            raise Unfingerprintable(
                f"`get_config()` of {type(value).__name__} fails: {error}"
            ) from error
        with self._looking_at_files("none"):
            return self.visit(config)

    def model(self, model: Any) -> bytes:
        """A tf_keras model."""
        found = [self._layers("model", model)]
        if is_compiled(model):
            settings = getattr(model, "_compile_config", None)
            config = settings.config if settings is not None else {}
            with self._looking_at_files("none"):
                found.append(
                    self.visit({"optimizer": model.optimizer} | _without(config, "optimizer"))
                )
        return _digest("model", *found)

    def _layers(self, what: str, layer: Any) -> bytes:
        parts = [self.visit(type(layer)), self._config(layer)]
        for inner in layer._flatten_layers():
            parts.append(_digest(str(bool(inner.trainable)), self.visit(type(inner))))
            parts += self._named(_parts_of_layer(inner).items(), inner.name)
            parts += [self.visit(type(part)) for part in _carried_parts(inner)]
            if hasattr(inner, "get_vocabulary"):  # kept in a table, which is no weight
                parts.append(self.visit([str(word) for word in inner.get_vocabulary()]))
            if hasattr(inner, "bin_boundaries"):  # which an adapted layer does not tell otherwise
                parts.append(self.visit([float(edge) for edge in inner.bin_boundaries or ()]))
        # Lookups list their words among the weights, in an order that changes.
        weights = [np.asarray(weight) for weight in layer.weights if is_variable(weight)]
        return _digest(what, *parts, *map(self._array, weights))

    def artifact(self, artifact: Artifact) -> bytes:
        """An artifact."""
        if isinstance(artifact, KerasArtifact):
            return _digest("keras", self.model(artifact.treated().model))
        if isinstance(artifact, TFLiteArtifact):
            return _digest("tflite", artifact.content, artifact.front_content or b"")
        if isinstance(artifact, SavedModelArtifact):
            return _digest("saved model", artifact.content)
        raise Unfingerprintable(f"an artifact of the class {type(artifact).__qualname__}")

    # Everything else

    def _object(self, value: Any) -> bytes:
        """An object by what it would be pickled as; nothing is pickled.

        That protocol knows which objects hold more than Python can see, and refuses them.
        """
        kind = type(value)
        try:
            reduce = copyreg.dispatch_table.get(kind)
            form = reduce(value) if reduce is not None else value.__reduce_ex__(2)
        except Unfingerprintable:
            raise
        except Exception as error:
            raise Unfingerprintable(f"an object of {_name(kind)}: {error}") from error
        if isinstance(form, str):  # the name of something that there is one of
            home = getattr(value, "__module__", None) or kind.__module__
            library = _library(home)
            if library is None or getattr(sys.modules.get(home), form, None) is not value:
                raise Unfingerprintable(f"an object of {_name(kind)}, known by name alone")
            return _digest("global", library, home, form)
        make, arguments, *rest = form
        state, items, pairs = (*rest, None, None, None)[:3]
        parts = [
            self.visit(make),
            self.visit(tuple(arguments)),
            self.visit(state),
            self.visit(None if items is None else list(items)),
            self.visit(None if pairs is None else dict(pairs)),
        ]
        if _library(kind.__module__) is None:
            # Whatever a class of the user's leaves out when it is pickled may matter all the same.
            parts.append(self.visit(object.__getstate__(value)))
        return _digest("object", self.visit(kind), *parts)


def _digest(*parts: str | bytes) -> bytes:
    found = hashlib.blake2b(digest_size=_BYTES)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        found.update(len(data).to_bytes(8, "little"))
        found.update(data)
    return found.digest()


def _file_digest(path: str | os.PathLike[str]) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_BYTES)).digest()


def _folder_digest(folder: str) -> bytes:
    files = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        files += [os.path.join(parent, name) for name in sorted(names)]
        if len(files) > _FOLDER_FILES:
            raise Unfingerprintable(f"the folder {folder!r} holds more than {_FOLDER_FILES} files")
    found = [
        part
        for file in files
        if os.path.isfile(file)
        for part in (os.path.relpath(file, folder), _file_digest(file))
    ]
    return _digest("folder", *found)


def _module_source(module: types.ModuleType) -> bytes:
    """The source of a module without comments and line numbers."""
    path = getattr(module, "__file__", None)
    if path is None or not os.path.isfile(path):
        return b""
    if not path.endswith(".py"):
        return _file_digest(path)
    try:
        return _digest(ast.dump(ast.parse(Path(path).read_bytes())))
    except (SyntaxError, ValueError):
        return _file_digest(path)


def _all_names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _all_names(constant)


def _references(code: types.CodeType) -> tuple[set[str], set[tuple[int, tuple[str, ...], str]]]:
    """The globals that code loads and the modules that it imports, in functions within it too."""
    loaded: set[str] = set()
    imported: set[tuple[int, tuple[str, ...], str]] = set()
    constants: list[Any] = [0, None]
    for step in dis.get_instructions(code):
        if step.opname in _GLOBAL_LOADS:
            loaded.add(step.argval)
        elif step.opname == "LOAD_CONST":
            constants.append(step.argval)
        elif step.opname == "IMPORT_NAME":  # after its level and the names it takes
            imported.add((constants[-2], constants[-1] or (), step.argval))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            further = _references(constant)
            loaded |= further[0]
            imported |= further[1]
    return loaded, imported


def _settings(value: Any) -> dict[str, Any]:
    """The public attributes of a Keras object that are no state."""
    tf: Any = sys.modules.get("tensorflow")
    keras3: Any = sys.modules.get("keras")
    variables = (tf.Variable,) if tf is not None else ()
    if keras3 is not None:
        variables += (keras3.Variable,)
    return {
        name: item
        for name, item in sorted(vars(value).items())
        if not name.startswith("_") and name != "call" and not isinstance(item, variables)
    }


def _parts_of_layer(layer: Any) -> dict[str, Any]:
    """The functions, initializers and the like that a layer was given."""
    if hasattr(layer, "layers"):  # a model, whose layers are looked at one by one
        return {}
    keras3: Any = sys.modules.get("keras")
    # The seed of a generator is in the layer's config; its name counts those of the process.
    counted = (keras3.random.SeedGenerator,) if keras3 is not None else ()
    return {
        name: value
        for name, value in _settings(layer).items()
        if isinstance(value, types.FunctionType)
        or (
            hasattr(value, "get_config")
            and not hasattr(value, "get_weights")
            and not isinstance(value, counted)
        )
    }


def _carried_parts(layer: Any) -> list[Any]:
    """The layers inside a layer that holds one of the other Keras."""
    carried: Any = getattr(layer, "operation", None)
    return list(carried._flatten_layers()) if hasattr(carried, "_flatten_layers") else []


def _without(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != name}


def _is_pass(value: Any) -> bool:
    """Whether it is a pass; the module that defines them stands below this one."""
    base: Any = sys.modules.get("optkit.base")
    return base is not None and isinstance(value, base.Pass)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _top(module: str | None) -> str:
    return (module or "").partition(".")[0]


def _library(module: str | None) -> str | None:
    """Name and version of the library that a module belongs to; ``None`` for the user's own."""
    return _library_of_top(_top(module)) if module else None


@functools.cache
def _library_of_top(top: str) -> str | None:
    if top == "optkit":
        return "optkit"  # by its version and source, which `library_versions` tells
    if top == "__main__":
        return None
    module = sys.modules.get(top)
    try:
        spec = getattr(module, "__spec__", None) or importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    origin = getattr(module, "__file__", None) or getattr(spec, "origin", None)
    places = [origin] if origin else list(getattr(spec, "submodule_search_locations", None) or ())
    installed = any({"site-packages", "dist-packages"} & set(Path(p).parts) for p in places)
    if top in sys.stdlib_module_names and not installed:
        roots = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
        resolved = [os.path.realpath(place) for place in places]
        inside = any(
            path.startswith(os.path.realpath(root) + os.sep) for path in resolved for root in roots
        )
        if inside or origin in (None, "built-in", "frozen"):
            return f"python {'.'.join(platform.python_version_tuple()[:2])}"
    if not installed:
        return None
    names = importlib.metadata.packages_distributions().get(top)
    if not names:
        return None
    return ", ".join(f"{name} {_version(name)}" for name in sorted(set(names)))


@functools.cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _own_source() -> str:
    import optkit

    folder = Path(__file__).parent
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".html") and p.is_file())
    parts = [part for p in files for part in (str(p.relative_to(folder)), p.read_bytes())]
    return f"{optkit.__version__} {_digest(*parts).hex()[:16]}"
