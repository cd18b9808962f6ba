"""What a configuration from a file would run if Keras were given it, found before Keras is.

A configuration is JSON that names classes and functions. Keras looks them up, and both versions of
it can be made to look in the wrong places: to unpack Python bytecode, import modules that the file
names, or call functions of TensorFlow that read and write files. Here everything named is held to a
list of what may be named: what belongs to Keras' own layers, losses, optimizers and the like, and
what the caller registered. Nothing is imported or built for that.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from optkit.runtime import keras, tensorflow, tf_keras

__all__ = ["Library", "Unsafe", "find_unsafe", "is_plain_operation"]

Library = Literal["tf_keras", "keras"]

# Where Keras' own classes that may be named live, below `keras.src` or `tf_keras.src`. What lies
# elsewhere (`utils`, `export`, `backend`) wraps models of other libraries, downloads and saves.
_CLASS_HOMES = (
    "applications",
    "constraints",
    "dtype_policies",
    "engine",
    "initializers",
    "layers",
    "losses",
    "metrics",
    "mixed_precision",
    "models",
    "ops",
    "optimizers",
    "quantizers",
    "random",
    "regularizers",
    "trainers",
)
_FUNCTION_HOMES = (
    "activations",
    "constraints",
    "initializers",
    "losses",
    "metrics",
    "ops",
    "random",
    "regularizers",
)
# Modules of TensorFlow whose functions take tensors and give tensors, and do nothing else.
_PLAIN_TENSORFLOW = re.compile(
    r"tensorflow\.python\.(?:ops\.(?:(?:gen_)?(?:array|bitwise|clip|image|linalg|manip|math|nn|"
    r"random|sets|sort|sparse|special_math|spectral|string|stateless_random)_(?:ops|impl)(?:_impl|"
    r"_stack|_v2)?|nn_impl|array_ops_stack|batch_norm_benchmark|bincount_ops|check_ops|clip_ops|"
    r"confusion_matrix|ctc_ops|embedding_ops|histogram_ops|sets_impl|weak_tensor_ops|"
    r"tensor_math_operator_overrides|tensor_getitem_override|"
    r"(?:linalg|math|numpy_ops|ragged|signal|structured)(?:\.\w+)*)|"
    r"framework\.(?:tensor_conversion|constant_op))$"
)
_TENSORFLOW_INITIALIZERS = ("tensorflow.python.ops.init_ops", "tensorflow.python.ops.init_ops_v2")
# Of tf_keras' backend, what computes; the rest changes the state of the process or evaluates.
_PLAIN_BACKEND = "tf_keras.src.backend"
_BACKEND_STATE = re.compile(
    r"(?:set|get|clear|reset|enable|disable|manual|function|print|eval|in|is|learning|init|batch_set"
    r"|track|observe|unique|name|configure|control|graph|track|symbolic|to_dense|rnn|map_fn|fold)"
)
_OUTSIDE = re.compile(  # operations that reach out of the graph, as far as they claim to be pure
    r"File|Dataset|Reader|PyFunc|Sql|Rpc|Summary|Save|Restore|Snapshot|Gcs|TPU|Send|Recv|Remote|"
    r"Launch|Collective|Debug|Print|Iterator|Immutable|Xla|LoadAndRemap|Checkpoint|Nccl|Distributed"
)
_STATEFUL = re.compile(  # operations with state that stays within the process
    r"(?:_?VarHandles?Op|_?ReadVariables?Op|Assign(?:Add|Sub)?VariableOp|VarIsInitializedOp|"
    r"VariableShape|Variable(?:V2)?|TemporaryVariable|Resource(?:Gather|Scatter|Apply|SparseApply|"
    r"StridedSlice).*|(?:Anonymous)?(?:Mutable)?(?:Dense)?HashTable.*|LookupTable.*|"
    r"InitializeTable(?:V2)?|Random.*|Stateful.*|StatelessRandomGetAlg|TruncatedNormal|"
    r"ParameterizedTruncatedNormal|Multinomial|Rng.*Skip|NonDeterministicInts|.*CandidateSampler|"
    r"TensorArray.*|Stack.*|_?If|_?While|Case|Assert|CheckNumerics.*|CudnnRNN.*|"
    r"SampleDistortedBoundingBox.*|GuaranteeConst|_Arg|_Retval|_Device(?:Arg|Retval)|Empty|DeepCopy|"
    r"DisableCopyOnRead|DestroyResourceOp|BoostedTrees.*|IteratorGetNext(?:Sync|AsOptional)?)$"
)
_DTYPES = re.compile(r"(?:bool|string|b?float\d+|u?int\d+|complex\d+)$")
# Of ragged and sparse tensors, what tf_keras makes layers of.
_ATTRIBUTES = frozenset(
    [
        "bounding_shape",
        "dense_shape",
        "flat_values",
        "indices",
        "merge_dims",
        "nested_row_lengths",
        "nested_row_splits",
        "nrows",
        "row_lengths",
        "row_limits",
        "row_splits",
        "row_starts",
        "to_sparse",
        "to_tensor",
        "value_rowids",
        "values",
        "with_flat_values",
        "with_row_splits_dtype",
        "with_values",
    ]
)
_SPECS = ("TensorSpec", "RaggedTensorSpec", "SparseTensorSpec", "tf.TensorSpec")
_SPECS_REGISTERED = tuple(f"tf.{name}" for name in _SPECS[:3])
_DATA = (
    "__bytes__",
    "__ellipsis__",
    "__keras_tensor__",
    "__numpy__",
    "__slice__",
    "__tensor__",
    "__tuple__",
    "TensorShape",
    "TypeSpec",
)
_TRUST = "Pass `trust=True` if you know who made the file and trust them."


@dataclass(frozen=True)
class Unsafe:
    """Something in a configuration that could run code or reach out of the file.

    Attributes:
        place: Where it is, in names of layers from the outside in.
        what: What it is.
        remedy: What the caller can do.
    """

    place: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}. {self.remedy}"


def find_unsafe(
    config: Any,
    *,
    library: Library,
    custom_objects: Mapping[str, Any] | None = None,
    revived: bool = False,
) -> tuple[Unsafe, ...]:
    """Everything in a configuration that may not be handed to Keras.

    Args:
        config: What `json.loads` gave.
        library: Which Keras is to read it.
        custom_objects: The caller's own classes and functions by name, which may be named.
        revived: Whether classes that are not known are restored from a graph instead of by their
            name, as in a SavedModel; then they are no harm as long as they name no module.

    Returns:
        What was found, in order; nothing for a configuration that only names what is known.

    Example:
        >>> bad = {"class_name": "Popen", "module": "subprocess", "config": {"args": "ls"}}
        >>> [found.what for found in find_unsafe(bad, library="keras")]
        ["the file names 'Popen' of module 'subprocess', which is not known here"]
    """
    judge = _Judge(library, dict(custom_objects or {}), revived)
    found: list[Unsafe] = []
    stack: list[tuple[Any, tuple[str, ...]]] = [(config, ())]
    while stack:  # not by recursion, which a deep file could drive too far
        value, place = stack.pop()
        if isinstance(value, dict):
            if "class_name" in value:
                place = (*place, _named(value))
                bad = [Unsafe("/".join(place), *words) for words in judge.unsafe(value)]
                found.extend(bad)
                if bad and value["class_name"] == "Lambda":
                    continue  # the code in it has been named
            stack.extend((item, place) for item in reversed(value.values()))
        elif isinstance(value, list | tuple):
            stack.extend((item, place) for item in reversed(value))
    return tuple(dict.fromkeys(found))


def is_plain_operation(name: str, *, stateful: bool) -> bool:
    """Whether an operation of TensorFlow keeps to the tensors and variables of its graph.

    Args:
        name: The operation, for example ``"MatMul"``.
        stateful: Whether TensorFlow registers it as one with side effects.

    Example:
        >>> [is_plain_operation(op, stateful=state) for op, state in
        ...  [("MatMul", False), ("ReadVariableOp", True), ("ReadFile", False), ("PyFunc", True)]]
        [True, True, False, False]
    """
    if stateful:
        return _STATEFUL.match(name) is not None
    return _OUTSIDE.search(name) is None


def _named(value: dict[str, Any]) -> str:
    config = value.get("config")
    name = value.get("name")
    if not isinstance(name, str) and isinstance(config, dict):
        name = config.get("name")
    kind = str(value["class_name"])[:80]
    return f"{name[:80]} ({kind})" if isinstance(name, str) and name else kind


class _Judge:
    """Tells what is unsafe about one entry of a configuration, for one Keras."""

    def __init__(self, library: Library, custom_objects: dict[str, Any], revived: bool):
        self.library, self.custom, self.revived = library, custom_objects, revived

    def unsafe(self, value: dict[str, Any]) -> Iterator[tuple[str, str]]:
        kind, config, module = value["class_name"], value.get("config"), value.get("module")
        if not isinstance(kind, str):
            yield f"a class is named by {type(kind).__name__}, not by a string", _TRUST
        elif kind == "__lambda__":
            yield "it holds Python code (a lambda)", _TRUST
        elif kind == "__typespec__":
            known = value.get("spec_name") in _SPECS and str(module) in sys.modules
            if not known or not str(module).startswith("tensorflow."):
                yield f"it holds a type {value.get('spec_name')!r} of module {module!r:.80}", _TRUST
        elif kind in _DATA:
            # Where one format knows data, another one may look for a class of that name.
            if module or value.get("registered_name"):
                yield _unknown(kind, module, "class")
            yield from self._data(kind, value, config)
        elif kind == "function":
            yield from self._function(value)
        else:
            yield from self._class(value)

    def _data(self, kind: str, value: dict[str, Any], config: Any) -> Iterator[tuple[str, str]]:
        if kind in ("__tensor__", "__numpy__", "__keras_tensor__"):
            dtype = config.get("dtype") if isinstance(config, dict) else None
            if not isinstance(dtype, str) or not _DTYPES.match(dtype):
                yield f"a constant has the type {str(dtype)[:80]!r}, which is none", _TRUST
        elif kind == "TypeSpec" and value.get("type_spec") not in _SPECS_REGISTERED:
            yield f"it holds a TypeSpec {str(value.get('type_spec'))[:80]!r}", _TRUST

    def _registered(self, name: Any) -> Any:
        if not isinstance(name, str):
            return None
        library: Any = keras() if self.library == "keras" else tf_keras()
        return library.saving.get_registered_object(name, custom_objects=self.custom)

    def _function(self, value: dict[str, Any]) -> Iterator[tuple[str, str]]:
        name, module = value.get("config"), value.get("module")
        other = value.get("registered_name")
        if other not in (None, "function", name) and self._registered(other) is None:
            yield _unknown(other, module, "function")  # some ways of reading look it up instead
        elif self._registered(name) is None and not (
            isinstance(name, str) and self._known_function(name, module) is not None
        ):
            yield _unknown(name, module, "function")

    def _known_function(self, name: str, module: Any) -> Any:
        if module in (None, "builtins"):
            homes: tuple[str, ...] = tuple(f"keras.{home}" for home in _FUNCTION_HOMES)
        elif isinstance(module, str):
            homes = (module,)
        else:
            return None
        for library in self._libraries():
            for home in homes:
                found = _of_keras(library, home, name)
                if found is None and _PLAIN_TENSORFLOW.match(home):
                    found = vars(sys.modules[home]).get(name) if home in sys.modules else None
                if callable(found) and not isinstance(found, type) and _is_plain(found):
                    return found
        return None

    def _libraries(self) -> tuple[Library, ...]:
        # Translated models carry parts of the other Keras in their configuration. The one that
        # reads the file comes first; what it knows by that name is what would be used.
        return ("keras", "tf_keras") if self.library == "keras" else ("tf_keras", "keras")

    def _class(self, value: dict[str, Any]) -> Iterator[tuple[str, str]]:
        name, module = value["class_name"], value.get("module")
        # Which of its names a class is looked up by depends on the format, so all of them count.
        by_module, by_name = self._found(name, module), self._found(name, None)
        config = value.get("config")
        for found in {by_module, by_name} - {None}:
            if not _is_allowed(found):
                yield _unknown(name, module, "class")
                return
            if isinstance(config, dict):
                yield from self._own(found, config)
        if by_module is not None:
            return
        if self._registered(value.get("registered_name", name)) is not None:
            return
        if not module and (self._registered(name) is not None or self.revived):
            return
        yield _unknown(name, module, "class")

    def _found(self, name: str, module: Any) -> Any:
        """What Keras has under that name, whatever it is."""
        if module and not isinstance(module, str):
            return None
        for library in self._libraries():
            found = _of_keras(library, module, name) if module else _bare_class(library, name)
            if found is not None:
                return found
        if module in _TENSORFLOW_INITIALIZERS:
            return vars(sys.modules[module]).get(name)
        return None

    def _own(self, kind: type, config: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """What is unsafe about the configuration of one of Keras' own classes."""
        name = kind.__name__
        if name == "Lambda":
            for part in ("function", "output_shape", "mask"):
                if self._holds_code(config, part):
                    yield (
                        f"its `{part}` is Python code",
                        (f"{_TRUST} Better build the model with a layer class instead of Lambda."),
                    )
        elif name in ("TFOpLambda", "SlicingOpLambda"):
            if not _is_plain_symbol(config.get("function")):
                yield _reaching(config.get("function"))
        elif name == "ClassMethod":
            symbol, method = config.get("cls_symbol"), config.get("method_name")
            known = symbol in ("RaggedTensor", "SparseTensor", "sparse.SparseTensor")
            if not known or not str(method).startswith("from_"):
                yield _reaching(f"{symbol}.{method}")
        elif name in ("InstanceProperty", "InstanceMethod"):
            if config.get("attr_name") not in _ATTRIBUTES:
                yield _reaching(config.get("attr_name"))
        elif name == "TensorFlowOpLayer":
            yield from _unsafe_node(config.get("node_def"))
        for key in ("vocabulary", "idf_weights"):
            if isinstance(config.get(key), str):
                yield f"its `{key}` is read from another file, {config[key][:80]!r}", _TRUST

    def _holds_code(self, config: dict[str, Any], part: str) -> bool:
        """Whether a part of a Lambda layer is anything but data or the name of a known function."""
        value = config.get(part)
        if value is None or config.get(f"{part}_type") == "raw":
            return False
        if isinstance(value, dict):
            return bool(value.get("class_name") != "function")  # named functions are judged apart
        if isinstance(value, str):
            return config.get(f"{part}_type") == "lambda" or self._registered(value) is None
        is_shape = isinstance(value, list) and all(
            size is None or isinstance(size, int) for size in value
        )
        return not (part == "output_shape" and is_shape and f"{part}_type" not in config)


def _is_allowed(found: Any) -> bool:
    """Whether a file may name one of Keras' own things as a class."""
    if not isinstance(found, type):
        return False
    if found.__module__ in _TENSORFLOW_INITIALIZERS:
        return hasattr(found, "from_config")
    library, _, home = found.__module__.partition(".src.")
    return library in ("keras", "tf_keras") and home.partition(".")[0] in _CLASS_HOMES


def _unknown(name: Any, module: Any, what: str) -> tuple[str, str]:
    of = f" of module {str(module)[:80]!r}" if module not in (None, "builtins") else ""
    remedy = (
        f"Import what registers this {what} (`register_keras_serializable`), or give it in "
        f"`custom_objects={{{str(name)[:80]!r}: …}}`. Modules that a file names are not imported "
        "unless you pass `trust=True`."
    )
    return f"the file names {str(name)[:80]!r}{of}, which is not known here", remedy


def _reaching(name: Any) -> tuple[str, str]:
    return f"it calls {str(name)[:80]!r} of TensorFlow, which may reach out of the model", _TRUST


def _home(function: Any) -> tuple[str, str]:
    """Module and name of a function beneath its decorators."""
    _, plain = tensorflow().__internal__.decorator.unwrap(function)
    return str(getattr(plain, "__module__", "")), str(getattr(plain, "__name__", ""))


def _is_plain(function: Any) -> bool:
    """Whether a function computes on tensors and does nothing else."""
    module, name = _home(function)
    package, _, rest = module.partition(".src.")
    if package in ("keras", "tf_keras") and rest.partition(".")[0] in _FUNCTION_HOMES:
        # What builds objects from configurations would open the door again.
        return not re.match(r"(?:de)?serialize|get$|_", name)
    if module == _PLAIN_BACKEND:
        return not _BACKEND_STATE.match(name)
    return _PLAIN_TENSORFLOW.match(module) is not None and not name.startswith("immutable")


def _is_plain_symbol(symbol: Any) -> bool:
    """Whether a public name of TensorFlow's, as in ``"math.add"``, is that of a plain function."""
    if not isinstance(symbol, str) or symbol.startswith(("raw_ops.", "compat.v1.raw_ops.")):
        return False
    from tensorflow.python.util import tf_export

    function = tf_export.get_symbol_from_name(symbol)
    return callable(function) and not isinstance(function, type) and _is_plain(function)


def _unsafe_node(definition: Any) -> Iterator[tuple[str, str]]:
    """What is unsafe about a single operation that an old file holds as a layer."""
    import json

    from tensorflow.python.framework import op_def_registry

    try:
        node = json.loads(definition) if isinstance(definition, str) else definition
        name = str(node["op"])
    except (ValueError, KeyError, TypeError):
        yield "it holds an operation that cannot be read", _TRUST
        return
    registered = op_def_registry.get(name)
    if registered is None or not is_plain_operation(name, stateful=registered.is_stateful):
        yield _reaching(name)


def _of_keras(library: Library, module: str, name: str) -> Any:
    """What Keras finds under a module and a name, of modules that are loaded already."""
    if not module.startswith(("keras", "tf_keras")):
        return None
    if library == "keras":
        found = keras().src.api_export.get_symbol_from_name(f"{module}.{name}")
        home = module
    else:
        from tensorflow.python.util import tf_export

        tf_keras()
        public = module.removeprefix("tf_")
        public = f"compat.v1.{public}" if "__internal__.legacy" in public else public
        found = tf_export.get_symbol_from_name(f"{public}.{name}")
        home = f"tf_{public}"
    if found is None and home in sys.modules:
        found = vars(sys.modules[home]).get(name)
    return found


def _bare_class(library: Library, name: str) -> Any:
    """What Keras finds where a file names a class alone, as its older formats do."""
    places: tuple[str, ...] = (
        "layers",
        "models",
        "",
        "optimizers",
        "optimizers.schedules",
        "optimizers.legacy",
        "losses",
        "metrics",
        "initializers",
        "regularizers",
        "constraints",
        "mixed_precision",
        "dtype_policies",
        "layers.experimental.preprocessing",
    )
    if library == "tf_keras":
        from tf_keras.src.layers import serialization

        tf_keras()
        serialization.populate_deserializable_objects()
        found = serialization.LOCAL.ALL_OBJECTS.get(name)
        if found is not None:
            return found
    for place in places:
        module = sys.modules.get(f"{library}.{place}" if place else library)
        found = getattr(module, name, None)
        if isinstance(found, type):
            return found
    return None
