"""Nothing in a file is run: malicious files of each format, made here, with proof that they work.

Every payload leaves a mark. A test that finds no mark proves something only if the same file leaves
one where it is trusted, or where Keras alone reads it; that is tested too.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import pickle
import re
import shutil
import sys
import zipfile

import h5py
import numpy as np
import pytest
from test_model_files import PAIRS, library, nested, save

import optkit as ok
from optkit.safety import find_unsafe, is_plain_function

ARCHIVES = ["keras", "tf_keras"]


@pytest.fixture
def mark(tmp_path):
    """A file that payloads make."""
    return tmp_path / "it-ran"


@pytest.fixture
def evil_module(tmp_path, mark, monkeypatch):
    """The name of a module that leaves the mark when it is imported."""
    folder = tmp_path / "importable"
    folder.mkdir()
    (folder / "evil_module.py").write_text(
        f"open({str(mark)!r}, 'w').close()\n"
        "class Evil:\n"
        "    from_config = classmethod(lambda cls, config: cls())\n"
        "def evil(*anything):\n"
        "    return anything[0]\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    yield "evil_module"
    sys.modules.pop("evil_module", None)


def refused(path, mark, match, **settings):
    with pytest.raises(ok.ModelError, match=match) as caught:
        ok.load_model(path, **settings)
    assert not mark.exists(), "the payload ran"
    return str(caught.value)


# ------------------------------------------------------------------------------- code in the file


def lambda_model(keras, mark, wrapped):
    """A model whose Lambda layer leaves the mark when it is called."""
    source = f"lambda x: (open({str(mark)!r}, 'w').close(), x)[1]"
    layer = keras.layers.Lambda(eval(source), output_shape=(4,), name="evil")
    if wrapped:
        layer = keras.layers.TimeDistributed(layer, name="over")
    inner = keras.Sequential([keras.Input((2, 4)), layer], name="inner")
    return keras.Sequential([keras.Input((2, 4)), inner, keras.layers.Dense(2)])


@pytest.mark.parametrize(("name", "form"), PAIRS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_code_of_lambda_layers(tmp_path, mark, name, form, wrapped):
    path = save(lambda_model(library(name), mark, wrapped), name, form, tmp_path)
    mark.unlink(missing_ok=True)  # it ran when the model was made
    message = refused(path, mark, r"evil \(Lambda\): its `function` is Python code.*trust=True")
    assert "nothing in it was run" in message
    refused(path, mark, "Lambda", custom_objects={"unused": int})
    loaded = ok.load_model(path, trust=True)
    loaded(np.ones((1, 2, 4), "float32"))
    assert mark.exists(), "this file does nothing, so the test proves nothing"


@pytest.mark.parametrize("name", ARCHIVES)
def test_weights_of_a_lambda_model_are_data(tmp_path, mark, name):
    keras = library(name)
    model = lambda_model(keras, mark, False)
    path = save(model, name, "keras", tmp_path)

    def build():
        inner = keras.Sequential([keras.Input((2, 4)), keras.layers.ReLU()], name="inner")
        return keras.Sequential([keras.Input((2, 4)), inner, keras.layers.Dense(2)])

    mark.unlink(missing_ok=True)
    loaded = ok.load_model(path, builder=build)
    assert not mark.exists()
    for one, other in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_named_functions_of_lambda_layers_are_the_callers(tmp_path):
    import tf_keras

    def double(x):
        return 2 * x

    double.__name__ = "double"
    layer = tf_keras.layers.Lambda(double, name="named")
    config = layer.get_config()
    assert config["function_type"] == "lambda"  # by code, even so
    config |= {"function": "double", "function_type": "function", "module": "os"}
    entry = {"class_name": "Lambda", "config": config}
    assert find_unsafe(entry, library="tf_keras")
    assert not find_unsafe(entry, library="tf_keras", custom_objects={"double": double})


def test_code_of_lambda_layers_that_claims_to_be_data(tmp_path, mark):
    """Keras 3 unpacks what an old HDF5 file holds as a function, whatever type it states."""
    import keras
    from keras.src.utils import python_utils

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="dense")])
    path = save(model, "keras", "h5", tmp_path)
    source = f"lambda x: (open({str(mark)!r}, 'w').close(), x)[1]"
    evil = entry(
        "Lambda",
        {
            "name": "evil",
            "function": [python_utils.func_dump(eval(source))[0], None, None],
            "function_type": "raw",
            "output_shape": None,
        },
    )
    for name in ARCHIVES:
        assert find_unsafe(evil, library=name)
    assert not find_unsafe(
        entry(
            "Lambda",
            {
                "function": entry("function", "relu"),
                "output_shape": [4],
                "output_shape_type": "raw",
            },
        ),
        library="keras",
    )
    with h5py.File(path, "a") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"].append(evil)
        file.attrs["model_config"] = json.dumps(config)
    refused(path, mark, r"evil \(Lambda\): its `function` is Python code")
    ok.load_model(path, trust=True)(np.ones((1, 4), "float32"))
    assert mark.exists(), "this file does nothing, so the test proves nothing"


def test_pickled_weights(tmp_path, mark):
    class Payload:
        def __reduce__(self):
            return exec, (f"open({str(mark)!r}, 'w').close()",)

    stored = io.BytesIO()
    np.savez(stored, __root__=np.array([Payload()], dtype=object))
    np.load(io.BytesIO(stored.getvalue()), allow_pickle=True)["__root__"]
    assert mark.exists(), "this file does nothing, so the test proves nothing"
    mark.unlink()
    for name in ARCHIVES:
        path = save(nested(library(name)), name, "keras", tmp_path)
        rewrite(path, {"model.weights.h5": None, "model.weights.npz": stored.getvalue()})
        refused(path, mark, "lacks model.weights.h5.*NumPy's format", trust=False)
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(Payload()))
    refused(path, mark, "pickle", trust=True)


# ----------------------------------------------------------------------- what a configuration names


def rewrite(path, changes, edit=None):
    """Writes an archive anew, with some entries replaced or left out, and its config edited."""
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    for name, content in changes.items():
        entries.pop(name, None)
        if content is not None:
            entries[name] = content
    if edit is not None:
        entries["config.json"] = json.dumps(edit(json.loads(entries["config.json"]))).encode()
    with zipfile.ZipFile(path, "w") as new:
        for name, content in entries.items():
            new.writestr(name, content)


def entry(kind, config=None, **more):
    return {"class_name": kind, "config": {} if config is None else config, **more}


def crafted(config, evil):
    """The config of the nested model with something else in the place of a layer's initializer."""

    def visit(value):
        if isinstance(value, dict):
            if "kernel_initializer" in value:
                value["kernel_initializer"] = evil
            for item in value.values():
                visit(item)
        elif isinstance(value, list):
            for item in value:
                visit(item)

    visit(config)
    return config


def called(symbol):
    """A layer of tf_keras that calls a function of TensorFlow."""
    module = "tf_keras.src.layers.core.tf_op_layer"
    return entry("TFOpLambda", {"function": symbol}, module=module, registered_name="TFOpLambda")


FOREIGN = {
    "a class of a module": entry("Popen", {"args": "true"}, module="subprocess"),
    "a function of a module": entry("function", "system", module="os", registered_name="system"),
    "a registered name": entry("X", module="evil_module", registered_name="other>Evil"),
    "a download": entry("function", "get_file", module="keras.utils", registered_name="get_file"),
    "a class in its place": entry("get_file", module="keras.utils"),
    "Keras' own loader": entry("function", "load_model", module="keras.saving"),
    "an inner module": entry("function", "run", module="keras.src.utils.file_utils"),
    "deserializing": entry("function", "deserialize", module="keras.losses"),
    "unsafe mode": entry("function", "enable_unsafe_deserialization", module="keras.config"),
    "code": entry("__lambda__", {"value": ["x", None, None]}),
    "another file": entry("StringLookup", {"vocabulary": "/etc/hostname"}, module="keras.layers"),
    "a graph": entry("TFSMLayer", {"filepath": "/tmp/graph"}, module="keras.layers"),
    "a pickled network": entry("TorchModuleWrapper", {"module": "AA"}, module="keras.layers"),
    "a JAX function": entry("JaxLayer", {"call_fn": "AA"}, module="keras.layers"),
    "a type": entry(
        "__typespec__", [], spec_name="Popen", module="subprocess", registered_name=None
    ),
    "data by name": entry("TensorShape", module="evil_module"),
    "a tuple by name": entry("__tuple__", module="evil_module", items=[]),
    "a function under two names": entry(
        "function", "relu", module="keras.activations", registered_name="get_file"
    ),
    "a Lambda under another name": entry(
        "Lambda",
        {"function": ["x", None, None], "function_type": "lambda"},
        module="keras.layers",
        registered_name="Custom>Adam",
    ),
    "a graph under another name": entry(
        "TFSMLayer",
        {"filepath": "/tmp/graph"},
        module="keras.layers",
        registered_name="Custom>Adam",
    ),
    "a method of everything": entry("InstanceMethod", {"attr_name": "eval"}),
    "a class that is no string": {"class_name": ["os"], "config": {}},
    "a constant of no type": entry("__numpy__", {"value": [1], "dtype": "O"}),
    "reading a file": called("io.read_file"),
    "writing a file": called("io.write_file"),
    "Python in a graph": called("numpy_function"),
    "a library": called("load_op_library"),
    "a raw operation": called("raw_ops.ReadFile"),
    "NumPy's ways for the process": called("experimental.numpy.experimental_enable_numpy_behavior"),
    "its ways as a function": entry(
        "function", "enable_numpy_behavior", module="tensorflow.python.ops.numpy_ops.np_config"
    ),
    "the types of the process": entry(
        "function", "set_prefer_float32", module="tensorflow.python.ops.numpy_ops.np_dtypes"
    ),
    "a seed": called("experimental.numpy.random.seed"),
    "a seed as a function": entry(
        "function", "seed", module="tensorflow.python.ops.numpy_ops.np_random"
    ),
    "training for the process": called("keras.backend.set_learning_phase"),
    "a function called as a class": entry("deserialize", {"config": "relu"}),
    "such a function under a known name": entry("deserialize", registered_name="Custom>Adam"),
    "a class under another's name": entry("Unheard", registered_name="Custom>Adam"),
    "a file under another's name": entry(
        "IndexLookup", {"vocabulary": "/etc/hostname"}, registered_name="Custom>Adam"
    ),
    "a method": entry("ClassMethod", {"cls_symbol": "io.gfile.GFile", "method_name": "read"}),
    "an attribute": entry("InstanceProperty", {"attr_name": "__class__"}),
    "an old operation": entry("TensorFlowOpLayer", {"node_def": '{"op": "ReadFile"}'}),
}


TF_KERAS_ALONE = ("TFOpLambda", "InstanceMethod", "InstanceProperty", "ClassMethod")


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("what", FOREIGN)
def test_what_a_configuration_may_not_name(tmp_path, mark, evil_module, name, what):
    keras = library(name)
    evil = FOREIGN[what]
    if name == "keras" and evil["class_name"] in TF_KERAS_ALONE:
        pytest.skip("no class of Keras 3")
    assert find_unsafe([{"deep": evil}], library=name)
    model = nested(keras)
    archive = save(model, name, "keras", tmp_path)
    rewrite(archive, {}, lambda config: crafted(config, evil))
    message = refused(archive, mark, "was not loaded, and nothing in it was run")
    assert "dense" in message  # the place
    old = save(model, name, "h5", tmp_path)
    with h5py.File(old, "a") as file:
        config = crafted(json.loads(file.attrs["model_config"]), evil)
        file.attrs["model_config"] = json.dumps(config)
    refused(old, mark, "was not loaded, and nothing in it was run")


def test_functions_of_tensors_may_be_called():
    import tensorflow as tf

    assert callable(tf.experimental.numpy.abs)  # loaded when it is first asked for
    for symbol in ("math.add", "nn.softmax", "experimental.numpy.abs", "keras.backend.softmax"):
        assert not find_unsafe(called(symbol), library="tf_keras"), symbol
    for symbol in ("experimental.numpy.random.seed", "keras.backend.clear_session"):
        assert find_unsafe(called(symbol), library="tf_keras"), symbol


def test_modules_are_imported_by_keras_and_not_by_optkit(tmp_path, mark, evil_module):
    import tf_keras

    evil = entry("function", "evil", module=evil_module, registered_name="evil")
    layer = tf_keras.layers.Lambda(lambda x: x, name="named").get_config()
    layer |= {"function": evil, "function_type": "function", "output_shape_type": "raw"}

    def swap(config):
        part = config["config"]["layers"][-1]
        part |= entry("Lambda", layer | {"name": part["config"]["name"]}, registered_name=None)
        return config

    path = save(nested(tf_keras), "tf_keras", "keras", tmp_path)
    rewrite(path, {}, swap)
    refused(path, mark, "names 'evil' of module 'evil_module'")
    assert evil_module not in sys.modules
    # Keras' own safe mode lets it happen: this is what the list of optkit's is for.
    with contextlib.suppress(Exception):  # of the object that it made
        tf_keras.models.load_model(path)
    assert mark.exists(), "this file does nothing, so the test proves nothing"


@pytest.mark.parametrize(("name", "form"), PAIRS)
def test_how_it_was_compiled_runs_nothing_either(tmp_path, mark, evil_module, caplog, name, form):
    keras = library(name)
    model = nested(keras)
    model.compile("sgd", "mse")
    path = save(model, name, form, tmp_path)
    evil = entry("function", "evil", module=evil_module, registered_name="evil")

    def edit(config):
        config["compile_config"]["loss"] = evil
        return config

    if form == "keras":
        rewrite(path, {}, edit)
    elif form == "folder":
        config = path / "config.json"
        config.write_text(json.dumps(edit(json.loads(config.read_text()))))
    elif form == "h5":
        with h5py.File(path, "a") as file:
            settings = json.loads(file.attrs["training_config"])
            file.attrs["training_config"] = json.dumps(settings | {"loss": evil})
    else:
        edit_nodes(path, lambda facts: edit_training(facts, evil))
    with caplog.at_level(logging.WARNING, "optkit"):
        loaded = ok.load_model(path)
    assert not mark.exists()
    assert evil_module not in sys.modules
    assert getattr(loaded, "optimizer", None) is None
    assert "names 'evil' of module 'evil_module'" in caplog.text


def edit_training(facts, evil):
    if facts.get("training_config"):
        facts["training_config"]["loss"] = evil
    return facts


def edit_nodes(path, edit):
    from tf_keras.protobuf import saved_metadata_pb2

    file = path / "keras_metadata.pb"
    metadata = saved_metadata_pb2.SavedMetadata.FromString(file.read_bytes())
    for node in metadata.nodes:
        node.metadata = json.dumps(edit(json.loads(node.metadata)))
    file.write_bytes(metadata.SerializeToString())


def test_names_that_formats_read_differently(tmp_path, mark, evil_module):
    """Keras looks for data or registered names where another of its formats imports a module."""
    import tf_keras

    model = nested(tf_keras)
    path = save(model, "tf_keras", "keras", tmp_path)
    layer = tf_keras.layers.Lambda(lambda x: x, name="named").get_config()
    for kind in ("TensorShape", "__tuple__"):
        evil = entry(kind, module=evil_module)
        named = layer | {"function": evil, "function_type": "function"}

        def swap(config, named=named):
            part = config["config"]["layers"][-1]
            part |= entry("Lambda", named | {"name": "named"}, registered_name=None)
            return config

        rewrite(path, {}, swap)
        refused(path, mark, "was not loaded")
        with contextlib.suppress(Exception):  # of the object that it made
            tf_keras.models.load_model(path)
        assert mark.exists(), "this file does nothing, so the test proves nothing"
        mark.unlink()
        sys.modules.pop(evil_module)

    # A Lambda layer that calls itself registered: HDF5 is read by the name of the class alone.
    mark.unlink(missing_ok=True)
    evil = lambda_model(tf_keras, mark, False)
    old = save(evil, "tf_keras", "h5", tmp_path)
    mark.unlink(missing_ok=True)
    with h5py.File(old, "a") as file:
        text = file.attrs["model_config"]
        config = json.loads(text)
        inner = config["config"]["layers"][1]["config"]["layers"][1]
        assert inner["class_name"] == "Lambda"
        inner |= {"registered_name": "Custom>Adam"}
        inner.pop("module", None)
        file.attrs["model_config"] = json.dumps(config)
    refused(old, mark, "its `function` is Python code")
    tf_keras.models.load_model(old)
    assert mark.exists(), "this file does nothing, so the test proves nothing"


def test_modules_named_in_a_saved_model(tmp_path, mark, evil_module):
    import tf_keras

    path = save(nested(tf_keras), "tf_keras", "saved_model", tmp_path)
    evil = entry("Evil", module=evil_module, registered_name="Evil")
    edit_nodes(path, lambda facts: crafted(facts, evil))
    refused(path, mark, "names 'Evil' of module 'evil_module'")
    assert evil_module not in sys.modules


def test_a_model_that_reads_files(tmp_path):
    import tensorflow as tf
    import tf_keras
    from tf_keras.src.layers.core.tf_op_layer import TFOpLambda

    secret = tmp_path / "secret"
    secret.write_text("the secret")
    inputs = tf_keras.Input((1,), dtype="string")
    model = tf_keras.Model(inputs, TFOpLambda(tf.io.read_file)(inputs[0, 0]))
    path = save(model, "tf_keras", "keras", tmp_path)
    with pytest.raises(ok.ModelError, match=r"calls 'io\.read_file' of TensorFlow"):
        ok.load_model(path)
    trusted = ok.load_model(path, trust=True)
    assert trusted(tf.constant([[str(secret)]])).numpy() == b"the secret"


@contextlib.contextmanager
def registered(keras, thing, name):
    """Registers a class or function with Keras, for a while."""
    keras.saving.register_keras_serializable(package="safety", name=name)(thing)
    try:
        yield f"safety>{name}"
    finally:
        keras.saving.get_custom_objects().pop(f"safety>{name}")


@pytest.mark.parametrize("name", ARCHIVES)
def test_registered_names_cover_one_class_and_no_call(tmp_path, mark, name):
    keras = library(name)

    def maker(**anything):
        mark.touch()
        return keras.initializers.Zeros()

    class Own(keras.initializers.Zeros):
        pass

    path = save(nested(keras), name, "h5", tmp_path)

    def put(evil):
        with h5py.File(path, "a") as file:
            config = crafted(json.loads(file.attrs["model_config"]), evil)
            file.attrs["model_config"] = json.dumps(config)

    def judged(kind, **more):
        return find_unsafe(entry(kind, **more), library=name)

    with registered(keras, maker, "maker") as full:
        put(entry(full, {"text": "x"}))
        refused(path, mark, "names 'safety>maker'")
        assert judged("maker", registered_name=full, module="tests")
        assert not find_unsafe(entry("function", full), library=name)
    with registered(keras, Own, "Own") as full:
        assert not judged(full)
        assert not judged("Own", registered_name=full, module="tests")
        for other in ("Unheard", "deserialize", "relu", "IndexLookup"):
            assert judged(other, registered_name=full)
        assert judged("Dense", registered_name=full, module="keras.layers")
        # A class that has another name by now is the caller's to vouch for.
        old = entry("Former", registered_name=full, module="tests")
        assert find_unsafe(old, library=name)
        assert not find_unsafe(old, library=name, custom_objects={"Former": Own})
        put(entry(full))
        assert ok.load_model(path) is not None


def test_a_registered_function_would_be_called(tmp_path, mark):
    import tf_keras

    def maker(**anything):
        mark.touch()
        return tf_keras.initializers.Zeros()

    path = save(nested(tf_keras), "tf_keras", "h5", tmp_path)
    with registered(tf_keras, maker, "maker") as full:
        with h5py.File(path, "a") as file:
            config = crafted(json.loads(file.attrs["model_config"]), entry(full, {"text": "x"}))
            file.attrs["model_config"] = json.dumps(config)
        tf_keras.models.load_model(path)
        assert mark.exists(), "this file does nothing, so the test above proves nothing"


def test_no_function_that_changes_the_process_is_plain():
    import tensorflow as tf
    from tensorflow.python.util import tf_export

    assert callable(tf.experimental.numpy.abs)  # loaded when it is first asked for
    changes = re.compile(
        r"seed|enable|disable|set_|reset|register|config|global|print|session|py_func|save|"
        r"restore|load|write|file|delete|assign|variable|learning_phase"
    )
    harmless = re.compile(
        r"(compat\.v1\.)?(fingerprint|linalg\.(set_diag|global_norm)|matrix_set_diag|sets\.set_\w+|global_norm|"
        r"clip_by_global_norm|nn\.batch_norm_with_global_normalization|sparse(\.|_)reset_shape|"
        r"ragged\.\w+|keras\.\w+\.\w*)"
    )
    names = [name for name in tf_export._NAME_TO_SYMBOL_MAPPING if "raw_ops." not in name]
    plain = [name for name in names if is_plain_function(name)]
    assert {"math.add", "nn.relu", "image.random_crop", "signal.rfft"} <= set(plain)
    found = [name for name in plain if changes.search(name) and not harmless.fullmatch(name)]
    assert found == []
    keras_names = {name.rpartition(".")[2] for name in plain if "keras.backend" in name}
    assert "softmax" in keras_names
    assert not [name for name in keras_names if changes.search(name)]


@pytest.mark.parametrize(
    "symbol",
    [
        "random.set_global_generator",
        "random.get_global_generator",
        "random.set_seed",
        "random.create_rng_state",
        "nn.fixed_unigram_candidate_sampler",
        "random.Generator",
    ],
)
def test_functions_that_a_keras_3_file_may_not_run(tmp_path, symbol):
    import keras
    import tensorflow as tf

    from optkit.translate.carrier3 import TensorFlowFunction

    inputs = keras.Input((4,))
    call = {"args": [{"tensor": 0}], "kwargs": {}}
    model = keras.Model(inputs, TensorFlowFunction("math.abs", [call], name="called")(inputs))
    path = save(model, "keras", "keras", tmp_path)
    assert ok.load_model(path).get_layer("called").symbol == "math.abs"
    text = b'"symbol": "math.abs"'
    with zipfile.ZipFile(path) as archive:
        config = archive.read("config.json")
    assert text in config
    rewrite(path, {"config.json": config.replace(text, f'"symbol": "{symbol}"'.encode())})
    before = tf.random.get_global_generator()
    with pytest.raises(ok.ModelError, match=rf"called \(TensorFlowFunction\): it calls '{symbol}'"):
        ok.load_model(path)
    assert tf.random.get_global_generator() is before
    with pytest.raises(ok.ModelError, match=r"not among|has no function"):
        TensorFlowFunction(symbol, [call])


# --------------------------------------------------------------------------------------- carriers


def own_layer(keras):
    """A layer of the user's own, of either Keras."""
    import tensorflow as tf

    class Own(keras.layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(shape[-1], 4), name="kernel")
            super().build(shape)

        def call(self, x):
            return tf.matmul(x, tf.convert_to_tensor(self.kernel))

    return Own


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("form", ["keras", "h5"])
def test_what_is_carried_is_judged_by_the_keras_that_reads_it(tmp_path, name, form):
    from optkit.translate import to_keras3, to_tf_keras

    keras = library(name)
    other = ARCHIVES[1 - ARCHIVES.index(name)]
    kind = own_layer(keras)
    with registered(keras, kind, "Own"):
        model = keras.Sequential([keras.Input((6,)), kind(name="own")])
        model.compile("sgd", "mse")
        translated = (to_tf_keras if name == "keras" else to_keras3)(model)
        path = save(translated, other, form, tmp_path)
        loaded = ok.load_model(path)
    x = np.random.default_rng(0).random((3, 6)).astype("float32")
    np.testing.assert_array_equal(loaded(x), translated(x))
    # Known to the Keras that does not read it is not known.
    with registered(library(other), own_layer(library(other)), "Own"):
        with pytest.raises(ok.ModelError, match="names 'Own'") as caught:
            ok.load_model(path)
        assert f"`{name}.saving.register_keras_serializable`" in str(caught.value)
        assert "custom_objects" not in str(caught.value)


def test_only_what_a_carrier_hands_on_is_read_by_the_other_keras(mark, evil_module):
    import keras

    from optkit.translate import carrier2  # noqa: F401

    with registered(keras, own_layer(keras), "Own") as full:
        evil = entry("Own", module=evil_module, registered_name=full)
        fine = {"operation": evil, "name": "box"}
        for box in (
            entry("KerasOperation", fine, module="optkit", registered_name="optkit>KerasOperation"),
            entry("optkit>KerasOperation", fine),
        ):
            assert not find_unsafe(box, library="tf_keras")
            assert find_unsafe(box, library="keras")
        bad = [
            entry("optkit>KerasOperation", {"dtype": evil}),
            entry("optkit>KerasOperation", {"forms": [evil], "operation": evil}),
            entry("optkit>KerasOperation", {"operation": evil}, build_config={"x": evil}),
            entry("optkit>KerasOperation", [evil]),
            entry("optkit>KerasOperation", fine, registered_name="Custom>Adam"),
            entry("Dense", fine, module="keras.layers", registered_name="optkit>KerasOperation"),
            entry("optkit>KerasOperation", {"operation": entry("Popen", module="subprocess")}),
        ]
        for box in bad:
            assert find_unsafe(box, library="tf_keras"), box
    assert not mark.exists()


# ---------------------------------------------------------------------------------------- archives


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize(
    ("entry_name", "match"),
    [
        ("../outside.txt", "leads out of the archive"),
        ("assets/../../outside.txt", "leads out of the archive"),
        ("/tmp/outside.txt", "leads out of the archive"),
        ("..\\outside.txt", "leads out of the archive"),
        ("C:/outside.txt", "leads out of the archive"),
    ],
)
def test_names_that_lead_out_of_an_archive(tmp_path, mark, name, entry_name, match):
    path = save(nested(library(name)), name, "keras", tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(entry_name), b"content")
    refused(path, mark, match)
    refused(path, mark, match, trust=True)
    assert not list(tmp_path.parent.glob("outside*"))


def test_links_and_doubles_in_an_archive(tmp_path, mark):
    import keras

    path = save(nested(keras), "keras", "keras", tmp_path)
    whole = path.read_bytes()
    link = zipfile.ZipInfo("assets/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/hostname")
    refused(path, mark, "it is a link")
    path.write_bytes(whole)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("config.json", "{}")
    refused(path, mark, "it is there twice")


def test_an_archive_that_unpacks_to_more_than_fits(tmp_path, mark):
    import keras

    path = save(nested(keras), "keras", "keras", tmp_path)
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open("assets/bomb", "w", force_zip64=True) as file,
    ):
        for _ in range(600):
            file.write(bytes(2**20))
    assert path.stat().st_size < 2 * 2**20
    refused(path, mark, "claims 600 MB of content")


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("form", ["keras", "h5"])
def test_layers_that_claim_more_than_the_file_holds(tmp_path, mark, name, form):
    model = nested(library(name))

    def grow(config):
        text = json.dumps(config)
        assert '"units": 5' in text
        return json.loads(text.replace('"units": 5', '"units": 50000000000'))

    path = save(model, name, form, tmp_path)
    if form == "keras":
        rewrite(path, {}, grow)
    else:
        with h5py.File(path, "a") as file:
            file.attrs["model_config"] = json.dumps(grow(json.loads(file.attrs["model_config"])))
    message = refused(path, mark, "MB of weights, and the file has")
    assert "fills the memory" in message


def test_too_deep_and_too_odd_descriptions(tmp_path, mark):
    import keras

    path = save(nested(keras), "keras", "keras", tmp_path)
    for text, match in (
        ("[" * 100_000 + "]" * 100_000, "no valid JSON"),
        ("[1, 2]", "must hold an object"),
        ("{", "no valid JSON"),
        ("{}", "cannot build"),
        ('{"class_name": "Dense", "config": null, "module": "keras.layers"}', "cannot b"),
    ):
        rewrite(path, {"config.json": text.encode()})
        refused(path, mark, match)


# -------------------------------------------------------------------------------------------- HDF5


def holes(file, group, tmp_path):
    """Ways in which an HDF5 file reaches out of itself or lies."""

    def external_link():
        group["extra"] = h5py.ExternalLink("other.h5", "/x")

    def soft_link():
        group["extra"] = h5py.SoftLink("/")

    def external_values():
        group.create_dataset("extra", (4,), "u1", external=[(str(tmp_path / "secret"), 0, 4)])

    def virtual_values():
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (4,))
        group.create_virtual_dataset("extra", layout)

    def huge_values():
        group.create_dataset("extra", (10**6, 10**6), "f4", chunks=(1000, 1000))

    def huge_plain_values():
        group.create_dataset("extra", (10**12,), "f4")

    def cycle():
        group["extra"] = file["/"]

    def named_type():
        group["extra"] = np.dtype("f4")

    return locals()


HOLES = {
    "external_link": "ExternalLink",
    "soft_link": "SoftLink",
    "external_values": "from another file",
    "virtual_values": "from another file",
    "huge_values": "claims 3,814,697 MB",
    "huge_plain_values": "claims 3,814,697 MB",
    "cycle": "under two names",
    "named_type": "Datatype",
}


@pytest.mark.parametrize("hole", HOLES)
@pytest.mark.parametrize(
    "form", ["keras-keras", "tf_keras-keras", "tf_keras-h5", "keras-h5", "weights"]
)
def test_hdf5_that_reaches_out_or_lies(tmp_path, mark, hole, form):
    (tmp_path / "secret").write_bytes(b"abcd")
    name, _, kind = form.partition("-")
    settings = {}
    if form == "weights":
        import tf_keras

        path = tmp_path / "model.weights.h5"
        nested(tf_keras).save_weights(path)
        settings = {"builder": lambda: nested(tf_keras)}
    else:
        path = save(nested(library(name)), name, kind, tmp_path)
    target = path
    if kind == "keras":
        target = tmp_path / "weights.h5"
        with zipfile.ZipFile(path) as archive:
            target.write_bytes(archive.read("model.weights.h5"))
    with h5py.File(target, "a") as file:
        group = file[next(iter(file))]
        holes(file, group, tmp_path)[hole]()
    if kind == "keras":
        rewrite(path, {"model.weights.h5": target.read_bytes()})
    for trust in (False, True):
        message = refused(path, mark, HOLES[hole], trust=trust, **settings)
        assert str(path) in message


# ------------------------------------------------------------------------------------- SavedModels


def saved(tmp_path, body, shape=(None, 2)):
    import tensorflow as tf

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec(shape, name="x")])
        def __call__(self, x):
            return {"y": body(x)}

    module = Module()
    path = tmp_path / "graph"
    shutil.rmtree(path, ignore_errors=True)
    tf.saved_model.save(module, str(path), signatures=module.__call__)
    return path


def test_graphs_that_reach_out(tmp_path, mark):
    import tensorflow as tf

    def write(x):
        tf.io.write_file(str(mark), "x")
        return x

    def printed(x):
        tf.print("x", output_stream=f"file://{mark}")
        return x

    def branch(x):
        return tf.cond(tf.reduce_sum(x) > 0, lambda: write(x), lambda: x)

    def mapped(x):
        return tf.map_fn(write, x)

    bodies = {
        "WriteFile": [write, branch, mapped],
        "writes a file": [printed],
        "ReadFile": [lambda x: tf.io.read_file("/etc/hostname")],
        "MatchingFiles": [lambda x: tf.io.matching_files("/etc/*")],
        "EagerPyFunc": [lambda x: tf.py_function(lambda v: v, [x], tf.float32)],
        "PyFunc": [lambda x: tf.numpy_function(lambda v: v, [x], tf.float32)],
        "ImmutableConst": [
            lambda x: tf.raw_ops.ImmutableConst(
                dtype=tf.uint8, shape=[4], memory_region_name="/etc/hostname"
            )
        ],
        "TextLineDataset": [
            lambda x: tf.data.TextLineDataset("/etc/hostname").reduce("", lambda a, b: a + b)
        ],
        "SaveV2": [
            lambda x: [
                tf.raw_ops.SaveV2(
                    prefix=str(mark), tensor_names=["a"], shape_and_slices=[""], tensors=[x]
                ),
                x,
            ][1]
        ],
        "RestoreV2": [
            lambda x: tf.raw_ops.RestoreV2(
                prefix="/tmp/x", tensor_names=["a"], shape_and_slices=[""], dtypes=[tf.float32]
            )[0]
        ],
    }
    for match, variants in bodies.items():
        for body in variants:
            path = saved(tmp_path, body)
            refused(path, mark, match)
            with pytest.raises(ok.ModelError, match=match):
                ok.SavedModelArtifact(path)
    path = saved(tmp_path, write)
    assert not mark.exists()
    ok.load_model(path, trust=True).predict(np.ones((1, 2)))
    assert mark.exists(), "this file does nothing, so the test proves nothing"


def test_graphs_that_reach_out_while_they_are_loaded(tmp_path, mark):
    import tensorflow as tf
    from tensorflow.python.trackable import resource

    class Evil(resource.TrackableResource):
        def _create_resource(self):
            return tf.raw_ops.AnonymousMutableHashTable(key_dtype=tf.string, value_dtype=tf.int64)

        def _initialize(self):
            tf.io.write_file(str(mark), "x")

    class Module(tf.Module):
        def __init__(self):
            self.evil = Evil()

        @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
        def __call__(self, x):
            return {
                "y": tf.raw_ops.LookupTableFindV2(
                    table_handle=self.evil.resource_handle,
                    keys=x,
                    default_value=tf.constant(0, tf.int64),
                )
            }

    module = Module()
    path = tmp_path / "graph"
    tf.saved_model.save(module, str(path), signatures=module.__call__)
    mark.unlink(missing_ok=True)
    refused(path, mark, "WriteFile")
    tf.saved_model.load(str(path))
    assert mark.exists(), "this graph does nothing, so the test proves nothing"


def test_old_graphs_that_reach_out(tmp_path, mark):
    import tensorflow as tf

    def store(path, evil):
        graph = tf.Graph()
        with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
            x = tf.compat.v1.placeholder(tf.float32, (None, 2), name="x")
            w = tf.compat.v1.get_variable("w", initializer=np.ones((2, 3), "float32"))
            before = [tf.io.write_file(str(mark), "x")] if evil else []
            with tf.control_dependencies(before):
                y = tf.matmul(x, w)
            session.run(tf.compat.v1.global_variables_initializer())
            builder = tf.compat.v1.saved_model.Builder(str(path))
            info = tf.compat.v1.saved_model.build_tensor_info
            signature = tf.compat.v1.saved_model.build_signature_def({"x": info(x)}, {"y": info(y)})
            builder.add_meta_graph_and_variables(
                session, ["serve"], signature_def_map={"serving_default": signature}
            )
            builder.save()

    store(tmp_path / "good", False)
    assert ok.load_model(tmp_path / "good").predict(np.ones((1, 2))).tolist() == [[2, 2, 2]]
    store(tmp_path / "evil", True)
    refused(tmp_path / "evil", mark, "WriteFile")
    ok.load_model(tmp_path / "evil", trust=True).predict(np.ones((1, 2)))
    assert mark.exists()


def edit_graph(path, edit):
    from tensorflow.core.protobuf import saved_model_pb2

    file = path / "saved_model.pb"
    graph = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    edit(graph.meta_graphs[0])
    file.write_bytes(graph.SerializeToString())


def lookup(tmp_path):
    """A SavedModel with a vocabulary among its files."""
    import tensorflow as tf

    words = tmp_path / "words.txt"
    words.write_text("a\nb\n")

    class Module(tf.Module):
        def __init__(self):
            source = tf.lookup.TextFileInitializer(str(words), tf.string, 0, tf.int64, -1)
            self.table = tf.lookup.StaticHashTable(source, -1)

        @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
        def __call__(self, x):
            return {"y": self.table.lookup(x)}

    module = Module()
    path = tmp_path / "lookup"
    tf.saved_model.save(module, str(path), signatures=module.__call__)
    words.unlink()
    return path


def test_vocabularies_come_from_the_folder_alone(tmp_path, mark):
    path = lookup(tmp_path)
    assert ok.load_model(path).predict(np.array(["b", "z"])).tolist() == [1, -1]
    (tmp_path / "elsewhere.txt").write_text("b\n")
    whole = (path / "saved_model.pb").read_bytes()

    def rename(graph):
        for asset in graph.asset_file_def:
            asset.filename = "../../elsewhere.txt"

    edit_graph(path, rename)
    refused(path, mark, "as a file of its own, which is none")
    (path / "saved_model.pb").write_bytes(whole)

    def replace(graph):  # the name of the file as a constant in the function
        for function in graph.graph_def.library.function:
            for node in function.node_def:
                if node.op == "InitializeTableFromTextFileV2":
                    fixed = function.node_def.add(name="fixed", op="Const")
                    fixed.attr["dtype"].type = 7
                    fixed.attr["value"].tensor.dtype = 7
                    fixed.attr["value"].tensor.string_val.append(b"/etc/hostname")
                    node.input[1] = "fixed:output:0"

    edit_graph(path, replace)
    refused(path, mark, "reads a file that is not in the folder")
    (path / "saved_model.pb").write_bytes(whole)
    asset = next((path / "assets").iterdir())
    asset.unlink()
    asset.symlink_to(tmp_path / "elsewhere.txt")
    refused(path, mark, "outside of the folder")


def test_graphs_that_claim_more_than_they_hold(tmp_path, mark):
    path = saved(tmp_path, lambda x: x + 1)
    whole = (path / "saved_model.pb").read_bytes()

    def constant(graph):
        node = graph.graph_def.library.function[0].node_def.add(name="huge", op="Const")
        tensor = node.attr["value"].tensor
        node.attr["dtype"].type = tensor.dtype = 1
        tensor.tensor_shape.dim.add(size=10**12)
        tensor.float_val.append(1)

    edit_graph(path, constant)
    refused(path, mark, "its constants claim")
    (path / "saved_model.pb").write_bytes(whole)

    def variable(graph):
        node = graph.object_graph_def.nodes.add()
        node.variable.dtype = 1
        node.variable.shape.dim.add(size=10**12)

    edit_graph(path, variable)
    refused(path, mark, "its variables claim")


def test_operations_that_are_not_there(tmp_path, mark):
    path = saved(tmp_path, lambda x: x + 1)

    def add(graph):
        for function in graph.graph_def.library.function:
            function.node_def.add(name="odd", op="NoSuchOperation")

    edit_graph(path, add)
    refused(path, mark, "'NoSuchOperation', which this TensorFlow does not have")
    refused(path, mark, "TensorFlow cannot load", trust=True)


# ---------------------------------------------------------------------------------- what is damaged


@pytest.mark.parametrize("name", ARCHIVES)
def test_damage_gives_a_model_error_or_no_harm(tmp_path, name):
    path = save(nested(library(name)), name, "h5", tmp_path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(12):
        changed = bytearray(whole)
        for place in rng.integers(len(whole), size=4):
            changed[place] = rng.integers(256)
        path.write_bytes(bytes(changed))
        try:
            outcomes.add(type(ok.load_model(path)).__name__)
        except ok.ModelError as error:
            outcomes.add("named" if str(path) in str(error) else "nameless")
    assert "named" in outcomes
    assert "nameless" not in outcomes
    at = whole.index(b'"layers"') + 2
    path.write_bytes(whole[:at] + b"\xff\xfe" + whole[at + 2 :])  # no text in any encoding
    with pytest.raises(ok.ModelError, match="damaged"):
        ok.load_model(path)
