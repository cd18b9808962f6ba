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

__all__ = ["Library", "Unsafe", "find_unsafe", "is_plain_function", "is_plain_operation"]

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
# Modules of TensorFlow whose public functions take tensors and give tensors, and do nothing else.
_PLAIN_TENSORFLOW = re.compile(
    r"tensorflow\.python\.(?:ops\.(?:(?:gen_)?(?:array|bitwise|clip|image|linalg|manip|math|nn|"
    r"random|random_crop|sets|sort|sparse|special_math|spectral|string|stateless_random)_"
    r"(?:ops|impl)(?:_impl|_stack|_v2)?|nn_impl|array_ops_stack|bincount_ops|check_ops|clip_ops|"
    r"confusion_matrix|ctc_ops|embedding_ops|histogram_ops|sets_impl|weak_tensor_ops|"
    r"tensor_math_operator_overrides|tensor_getitem_override|"
    r"(?:linalg|math|ragged|signal|structured)(?:\.\w+)*|"
    r"numpy_ops\.np_(?:array_ops|math_ops|random|utils))|"
    r"framework\.(?:tensor_conversion|constant_op))$"
)
_TENSORFLOW_INITIALIZERS = ("tensorflow.python.ops.init_ops", "tensorflow.python.ops.init_ops_v2")
# Of tf_keras' backend, what computes; the rest changes the state of the process or evaluates.
_BACKEND = "tf_keras.src.backend"
_PLAIN_BACKEND = re.compile(
    r"(?:"
    r"abs|all|any|arange|argmax|argmin|batch_dot|batch_flatten|batch_normalization|"
    r"bias_add|binary_crossentropy|binary_focal_crossentropy|cast|cast_to_floatx|"
    r"categorical_crossentropy|categorical_focal_crossentropy|clip|concatenate|constant|"
    r"conv1d|conv2d|conv2d_transpose|conv3d|conv3d_transpose|cos|count_params|"
    r"ctc_batch_cost|ctc_decode|ctc_label_dense_to_sparse|cumprod|cumsum|"
    r"depthwise_conv2d|dot|dropout|dtype|elu|equal|exp|expand_dims|eye|flatten|"
    r"gather|greater|greater_equal|hard_sigmoid|identity|in_top_k|int_shape|"
    r"l2_normalize|less|less_equal|local_conv|local_conv1d|local_conv2d|log|"
    r"logsumexp|max|maximum|mean|min|minimum|ndim|normalize_batch_in_training|"
    r"not_equal|one_hot|ones|ones_like|permute_dimensions|pool2d|pool3d|pow|prod|"
    r"random_bernoulli|random_binomial|random_normal|random_uniform|relu|repeat|"
    r"repeat_elements|reshape|resize_images|resize_volumes|reverse|round|"
    r"separable_conv1d|separable_conv2d|shape|sigmoid|sign|sin|softmax|softplus|"
    r"softsign|sparse_categorical_crossentropy|spatial_2d_padding|spatial_3d_padding|"
    r"sqrt|square|squeeze|stack|std|stop_gradient|sum|switch|tanh|temporal_padding|"
    r"tile|to_dense|transpose|truncated_normal|var|zeros|zeros_like"
    r")$"
)
# Of Keras' functions, what draws on the state of the process or builds objects from configurations,
# which would open the door again; of TensorFlow's, what seeds and what maps a file into memory.
_KERAS_STATE = re.compile(
    r"(?:de)?serialize|populate|_|(?:get|draw_seed|global_seed_generator|make_default_seed)$"
)
_TENSORFLOW_STATE = re.compile(r"immutable|seed$")
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
_FUNCTION_CARRIER = "optkit.translate.carrier3"
_OWN = "optkit>"  # what optkit's own classes are registered under
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
    custom = dict(custom_objects or {})
    judges: dict[Library | None, _Judge] = {
        None: _Judge(library, custom, revived),
        # What carriers hold; `optkit.translate.revive` makes it, and knows classes seen before.
        "keras": _Judge("keras", custom, False, carried=True),
        "tf_keras": _Judge("tf_keras", custom, False, carried=True),
    }
    found: list[Unsafe] = []
    stack: list[tuple[Any, tuple[str, ...], Library | None]] = [(config, (), None)]
    while stack:  # not by recursion, which a deep file could drive too far
        value, place, reader = stack.pop()
        if isinstance(value, dict):
            if "class_name" in value:
                place = (*place, _named(value))
                bad = [Unsafe("/".join(place), *words) for words in judges[reader].unsafe(value)]
                found.extend(bad)
                if bad and value["class_name"] == "Lambda":
                    continue  # the code in it has been named
                key, other = _carried(value)
                if key is not None and key in value["config"]:
                    stack.append((value["config"][key], place, other))
                    rest = {name: item for name, item in value["config"].items() if name != key}
                    value = {**value, "config": rest}
            stack.extend((item, place, reader) for item in reversed(value.values()))
        elif isinstance(value, list | tuple):
            stack.extend((item, place, reader) for item in reversed(value))
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


def _carried(value: dict[str, Any]) -> tuple[str | None, Library | None]:
    """Where one of optkit's carriers holds what the other Keras reads, and which one that is.

    The rest of its configuration is read by the Keras that reads the carrier.
    """
    name = value["class_name"]
    registered = value.get("registered_name", name)
    if not isinstance(name, str) or not isinstance(value.get("config"), dict):
        return None, None
    name = name.removeprefix(_OWN)
    if registered != f"{_OWN}{name}":
        return None, None
    if name == "KerasOperation":
        return "operation", "keras"
    if name == "TfKerasLayer":
        return "layer", "tf_keras"
    if name.startswith("Keras3"):
        return "carried", "keras"
    return ("carried", "tf_keras") if name.startswith("TfKeras") else (None, None)


class _Judge:
    """Tells what is unsafe about one entry of a configuration, for one Keras."""

    def __init__(
        self,
        library: Library,
        custom_objects: dict[str, Any],
        revived: bool,
        *,
        carried: bool = False,
    ):
        self.library, self.custom, self.revived = library, custom_objects, revived
        self.carried = carried

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
                yield self._unknown(kind, module, "class")
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

    def _unknown(self, name: Any, module: Any, what: str) -> tuple[str, str]:
        shown = f"{str(name)[:80]!r}"
        of = f" of module {str(module)[:80]!r}" if module not in (None, "builtins") else ""
        given = "" if self.carried else f", or give it in `custom_objects={{{shown}: …}}`"
        remedy = (
            f"Import what registers this {what} (`{self.library}.saving."
            f"register_keras_serializable`){given}. Modules that a file names are not imported "
            "unless you pass `trust=True`."
        )
        return f"the file names {shown}{of}, which is not known here", remedy

    def _registered(self, name: Any) -> Any:
        if not isinstance(name, str):
            return None
        library: Any = keras() if self.library == "keras" else tf_keras()
        return library.saving.get_registered_object(name, custom_objects=self.custom)

    def _function(self, value: dict[str, Any]) -> Iterator[tuple[str, str]]:
        name, module = value.get("config"), value.get("module")
        other = value.get("registered_name")
        if other not in (None, "function", name) and self._registered(other) is None:
            yield self._unknown(
                other, module, "function"
            )  # some ways of reading look it up instead
        elif self._registered(name) is None and not (
            isinstance(name, str) and self._known_function(name, module) is not None
        ):
            yield self._unknown(name, module, "function")

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
        name, module, config = value["class_name"], value.get("module"), value.get("config")
        # Which of its names a class is looked up by depends on the format, so all of them count.
        by_module, by_name = self._found(name, module), self._found(name, None)
        for found in dict.fromkeys((*by_module, *by_name)):
            if not _is_allowed(found):
                yield self._unknown(name, module, "class")
                return
            if isinstance(config, dict) and (unsafe := list(self._own(found, config))):
                yield from unsafe
                return
        registered = value.get("registered_name", name)
        own, bare = self._registered(registered), self._registered(name)
        # HDF5 calls whatever is registered under the name, be it a function.
        callables = any(known is not None and not isinstance(known, type) for known in (own, bare))
        if callables or (own is not None and not self._covers(registered, own, name)):
            yield self._unknown(name, module, "class")
            return
        if getattr(own, "__module__", None) == _FUNCTION_CARRIER and isinstance(config, dict):
            symbol = config.get("symbol")
            if own.__name__ == "TensorFlowFunction" and not is_plain_function(symbol):
                yield _reaching(symbol)
        if by_module or own is not None:
            return
        if not module and (bare is not None or self.revived):
            return
        yield self._unknown(name, module, "class")

    def _covers(self, registered: Any, own: Any, name: str) -> bool:
        """Whether a registered name vouches for the name of the class, by which HDF5 looks."""
        return name in (registered, own.__name__) or name in self.custom

    def _found(self, name: str, module: Any) -> list[Any]:
        """What either Keras has under that name, whatever it is."""
        if module and not isinstance(module, str):
            return []
        found = [
            _of_keras(library, module, name) if module else _bare_class(library, name)
            for library in self._libraries()
        ]
        if module in _TENSORFLOW_INITIALIZERS:
            found.append(vars(sys.modules[module]).get(name))
        return [one for one in found if one is not None]

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
            if not is_plain_function(config.get("function")):
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
        if value is None:
            return False
        # A function is never data: Keras 3 unpacks a list as code without looking at the type.
        if part != "function" and config.get(f"{part}_type") == "raw":
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
        return not _KERAS_STATE.match(name)
    if module == _BACKEND:
        return _PLAIN_BACKEND.match(name) is not None
    if not _PLAIN_TENSORFLOW.match(module) or _TENSORFLOW_STATE.match(name):
        return False
    return _is_public(function)


def _is_public(function: Any) -> bool:
    """Whether TensorFlow has a public name for a function of its own."""
    from tensorflow.python.util import tf_export

    name = tf_export.get_canonical_name_for_symbol(function, add_prefix_to_v1_names=True)
    return name is not None


def is_plain_function(symbol: Any) -> bool:
    """Whether a public name of TensorFlow's is that of a function of tensors that does no more.

    Args:
        symbol: The name without the leading ``tf.``, for example ``"math.add"``.

    Example:
        >>> [is_plain_function(name) for name in ("math.add", "io.read_file", "random.set_seed")]
        [True, False, False]
    """
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
        # Keras 3 looks among all that its modules import, not only what is public.
        for home in (library, f"{library}.src"):
            module = sys.modules.get(f"{home}.{place}" if place else home)
            found = getattr(module, name, None)
            # A function counts as well: it would be called with what the file says.
            if isinstance(found, type) or (callable(found) and place):
                return found
    return None
