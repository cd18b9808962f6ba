"""The folder of a run: whole stages or none, one process at a time, versions and going back."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

import optkit as ok
from optkit.constraint import KeepZeros
from optkit.convert import convert_to_tflite
from optkit.fingerprint import artifact_fingerprint, own_parts
from optkit.measuring import Measurement
from optkit.models import clone
from optkit.report import Row
from optkit.testing import small_model
from optkit.workdir import Run, Workdir, stage_key, unique_key

KEY, OTHER = (stage_key(number=i)[0] for i in range(2))
FACTS = {"seconds": 1.25, "notes": ["a – b"], "curves": [{"loss": [0.1, 1 / 3]}]}
FIGURES = Measurement(accuracy=0.9, accuracy_ci=(0.8, 1.0), size_bytes=1234, latency_ms=0.5)


@pytest.fixture(scope="module")
def model():
    model = small_model()
    model.get_layer("norm").moving_mean.assign(np.linspace(-1, 1, 8))
    return model


@pytest.fixture(scope="module")
def flatbuffer(model):
    return ok.TFLiteArtifact(convert_to_tflite(model))


def constraints_of(model):
    constraint = KeepZeros("conv/kernel", model.get_layer("conv").kernel.numpy() > 0)
    return {(constraint.path, constraint.name): constraint}


def put(workdir, key, item, name="Prune", facts=FACTS, constraints=None):
    artifact = item if isinstance(item, ok.Artifact) else ok.KerasArtifact(item)
    found = artifact_fingerprint(artifact)
    return workdir.put(key, name, artifact, constraints or {}, facts, found)


def put_figures(workdir, key, figures=FIGURES, measure_key="how"):
    facts, arrays = {"figures": figures.to_dict()}, {"outputs": np.arange(5.0)}
    workdir.put_measured(key, measure_key, facts, arrays)


def same_weights(one, other):
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def flags(model):
    return [(layer.name, layer.trainable) for layer in model._flatten_layers()]


def folder_of(workdir, key=KEY):
    return workdir.path / "stages" / key[:20]


def report(*names):
    rows = tuple(Row(i, name, "train", {}, "ok", after=FIGURES) for i, name in enumerate(names, 1))
    return ok.Report(rows=rows, baseline=FIGURES)


def recorded(path, *names, model):
    """A folder with a run of these stages in it."""
    with Workdir(path) as workdir:
        stages = [("baseline", stage_key(name="baseline")[0], "ok")]
        stages += [(name, stage_key(name=name)[0], "ok") for name in names]
        for name, key, _ in stages:
            changed = clone(model)
            changed.get_layer("classes").bias.assign(np.full(10, float(len(name))))
            put(workdir, key, changed, name)
            put_figures(workdir, key, dataclasses.replace(FIGURES, accuracy=len(name) / 100))
        workdir.record(stages, report(*names), current=names[-1])
    return Run(path)


def bias(artifact):
    return artifact.model.get_layer("classes").bias.numpy()[0]


# ------------------------------------------------------------------------------ there and back again


def test_keys_are_made_of_every_part():
    found = {
        stage_key(seed=1, data="a"),
        stage_key(data="a", seed=1),
        stage_key(seed=2, data="a"),
        stage_key(seed=1, data="b"),
        stage_key(seed="a", data=1),
        stage_key(seed=1),
    }
    assert len(found) == 5
    key, reason = stage_key(seed=1, item=(i for i in ()))
    assert key is None
    assert reason.startswith("item: an object of builtins.generator")
    assert unique_key() != unique_key()


def test_a_stage_comes_back_as_it_was(tmp_path, model):
    constraints = constraints_of(model)
    with Workdir(tmp_path / "new" / "run") as workdir:
        assert workdir.find(KEY) is None
        assert put(workdir, KEY, model, constraints=constraints) is None
        assert workdir.find(OTHER) is None
    with Workdir(tmp_path / "new" / "run") as workdir:
        stored = workdir.find(KEY)
        assert same_weights(stored.artifact.model, model)
        assert stored.artifact.model.get_config() == model.get_config()
        assert stored.fingerprint == artifact_fingerprint(ok.KerasArtifact(model))
        assert stored.facts == FACTS
        (kept,) = stored.constraints.values()
        assert list(stored.constraints) == list(constraints)
        np.testing.assert_array_equal(kept.mask, constraints["conv/kernel", "keep_zeros"].mask)
        assert stored.measured("how") is None
        again = clone(model)
        again.get_layer("classes").bias.assign(np.ones(10))
        put(workdir, KEY, again)
        assert same_weights(workdir.find(KEY).artifact.model, again)
        assert len(list((workdir.path / "stages").iterdir())) == 1


def test_a_flatbuffer_comes_back_as_it_was(tmp_path, flatbuffer):
    with Workdir(tmp_path) as workdir:
        put(workdir, KEY, flatbuffer)
        stored = workdir.find(KEY)
        assert stored.artifact.content == flatbuffer.content
        assert stored.fingerprint == artifact_fingerprint(stored.artifact)


def test_models_of_every_kind_come_back_as_they_were(tmp_path):
    import tf_keras

    layers = tf_keras.layers

    @tf_keras.saving.register_keras_serializable("test_workdir")
    class Registered(layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight("scale", (shape[-1],))
            self.inner = layers.Dense(5, name="within")

        def call(self, x):
            return self.inner(x * self.scale)

    class Own(layers.Layer):
        def __init__(self, units=5, **keywords):
            super().__init__(**keywords)
            self.units = units

        def build(self, shape):
            self.kernel = self.add_weight("kernel", (shape[-1], self.units))

        def call(self, x):
            return x @ self.kernel

        def get_config(self):
            return super().get_config() | {"units": self.units}

    def make():
        inner = tf_keras.Sequential(
            [
                tf_keras.Input((4,), name="x"),
                layers.Dense(5, name="first"),
                layers.BatchNormalization(name="inner_norm"),
                layers.BatchNormalization(name="second_norm"),
            ],
            name="inner",
        )
        one, other = tf_keras.Input((4,), name="one"), tf_keras.Input((4,), name="other")
        joined = layers.Add(name="add")([inner(one), Own(name="own")(other)])
        joined = layers.BatchNormalization(name="norm")(Registered(name="registered")(joined))
        out = layers.Dense(2, name="out")(joined)
        return tf_keras.Model([one, other], out, name="many")

    def frozen(model, *names):
        for name in names:
            part = model
            for step in name.split("/"):
                part = part.get_layer(step)
            part.trainable = False
        return model

    thawed = make()
    thawed.trainable = False
    thawed.get_layer("inner").get_layer("first").trainable = True
    models = [
        make(),
        frozen(make(), "norm", "own", "inner/first", "registered"),
        frozen(make(), "inner"),
        thawed,
    ]
    x = [np.random.default_rng(0).normal(size=(3, 4)).astype("float32") for _ in range(2)]
    for number, model in enumerate(models):
        random_state = np.random.default_rng(number)
        model.set_weights([random_state.normal(size=w.shape) ** 2 for w in model.get_weights()])
        key = stage_key(number=number)[0]
        with Workdir(tmp_path) as workdir:
            put(workdir, key, model)
            found = workdir.find(key, own_parts(make())).artifact.model
        assert flags(found) == flags(model)
        assert same_weights(found, model)
        for one, other in zip(found.get_weights(), clone(model).get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(found.predict(x, verbose=0), model.predict(x, verbose=0))


def test_a_model_that_cannot_be_read_back_is_done_again(tmp_path, caplog):
    import tf_keras

    class Unknown(tf_keras.layers.Layer):
        def call(self, x):
            return x

    model = tf_keras.Sequential([tf_keras.Input((4,)), Unknown()])
    with Workdir(tmp_path) as workdir:
        put(workdir, KEY, model)
        with caplog.at_level(logging.WARNING, "optkit"):
            assert workdir.find(KEY) is None
        assert "cannot be read back and will be done again" in caplog.text
        assert workdir.find(KEY, {"Unknown": Unknown}) is not None

        class Unknown(tf_keras.layers.Dense):  # another class of that name
            pass

        assert workdir.find(KEY, {"Unknown": Unknown}) is None


def test_what_cannot_be_kept_is_said_and_leaves_nothing(tmp_path):
    class Odd(ok.TFLiteArtifact.__mro__[1]):
        kind, suffix = "odd", ".odd"
        predict = parameters = sparsity = _write = None

    with Workdir(tmp_path) as workdir:
        said = workdir.put(KEY, "Odd", Odd(), {}, {}, "")
        assert said == (
            "workdir: the stage Odd cannot be kept: optkit does not read odd artifacts back."
        )
        assert list((tmp_path / "stages").iterdir()) == []
        put_figures(workdir, KEY)
        assert workdir.measured(KEY, "how") is None


def test_figures_are_kept_under_their_own_key(tmp_path, flatbuffer):
    with Workdir(tmp_path) as workdir:
        put(workdir, KEY, flatbuffer)
        put_figures(workdir, KEY)
        facts, arrays = workdir.find(KEY).measured("how")
        assert Measurement.from_dict(facts["figures"]) == FIGURES
        np.testing.assert_array_equal(arrays["outputs"], np.arange(5.0))
        assert workdir.measured(KEY, "how")[0] == facts
        assert workdir.measured(KEY, "in another way") is None
        put_figures(workdir, KEY, Measurement(accuracy=0.1), "in another way")
        assert workdir.measured(KEY, "how")[0] == facts
        assert workdir.measured(KEY, "in another way")[0]["figures"]["accuracy"] == 0.1
        put(workdir, KEY, flatbuffer)  # done again: figures of before are not of this one
        assert workdir.measured(KEY, "in another way") is None


# ---------------------------------------------------------------------------------------- damage


def damages(path):
    content = path.read_bytes()
    yield lambda: path.write_bytes(content[: len(content) // 2])
    yield lambda: path.write_bytes(b"")
    for place in (0, len(content) // 3, len(content) - 2):
        flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        yield lambda flipped=flipped: path.write_bytes(flipped)
    yield path.unlink


@pytest.mark.parametrize("name", ["stage.json", "artifact.keras", "constraints.npz"])
def test_a_damaged_stage_is_done_again(tmp_path, model, name, caplog):
    with Workdir(tmp_path) as workdir:
        put(workdir, KEY, model, constraints=constraints_of(model))
        whole = tmp_path / "whole"
        shutil.copytree(folder_of(workdir), whole)
        for damage in list(damages(folder_of(workdir) / name)):
            damage()
            caplog.clear()
            with caplog.at_level(logging.WARNING, "optkit"):
                assert workdir.find(KEY) is None
            assert f"is damaged ({name}" in caplog.text
            assert not folder_of(workdir).exists()
            shutil.copytree(whole, folder_of(workdir))
            assert workdir.find(KEY) is not None


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_damaged_figures_are_taken_again(tmp_path, flatbuffer, suffix):
    with Workdir(tmp_path) as workdir:
        put(workdir, KEY, flatbuffer)
        put_figures(workdir, KEY)
        (path,) = folder_of(workdir).glob(f"measured-*{suffix}")
        whole = path.read_bytes()
        for damage in list(damages(path)):
            damage()
            assert workdir.measured(KEY, "how") is None
            assert workdir.find(KEY) is not None
            path.write_bytes(whole)
            assert workdir.measured(KEY, "how") is not None


def test_a_stage_under_the_name_of_another_is_not_taken_for_it(tmp_path, flatbuffer):
    with Workdir(tmp_path) as workdir:
        put(workdir, KEY, flatbuffer)
        put_figures(workdir, KEY)
        shutil.copytree(folder_of(workdir), folder_of(workdir, OTHER))
        assert workdir.measured(OTHER, "how") is None
        assert workdir.find(OTHER) is None
        assert workdir.find(KEY) is not None


def test_a_damaged_list_of_stages_is_begun_anew_and_the_stages_kept(tmp_path, model, caplog):
    run = recorded(tmp_path, "Prune", model=model)
    path = tmp_path / "run.json"
    path.write_text(path.read_text().replace('"current": "Prune"', '"current": "baseline"'))
    for look in (lambda: Run(tmp_path), run.current, lambda: run.rollback("baseline")):
        with pytest.raises(ok.PipelineError, match=r"run.json' is damaged: .* Run the pipeline"):
            look()
    with caplog.at_level(logging.WARNING, "optkit"), Workdir(tmp_path) as workdir:
        assert workdir.find(stage_key(name="Prune")[0]) is not None
    assert "begun anew" in caplog.text
    assert [stage.name for stage in Run(tmp_path).stages] == ["baseline", "Prune"]


def test_what_a_killed_process_left_is_removed(tmp_path, flatbuffer):
    with Workdir(tmp_path) as workdir:
        put(workdir, KEY, flatbuffer)
        stage = folder_of(workdir)
    (tmp_path / "stages" / ".new-1" / "deep").mkdir(parents=True)
    (tmp_path / "stages" / ".old-1").mkdir()
    (stage / ".new-2").write_text("half")
    (tmp_path / ".new-3").write_text("half")
    with Workdir(tmp_path) as workdir:
        left = [path.name for path in tmp_path.rglob("*") if path.name.startswith(".")]
        assert left == []
        assert workdir.find(KEY) is not None


# -------------------------------------------------------------------------------- unusable folders


def test_a_folder_with_something_else_in_it_is_refused(tmp_path):
    (tmp_path / "photo.jpg").write_text("")
    with pytest.raises(ok.PipelineError, match=r"holds other files \(photo.jpg\) and no run"):
        Workdir(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]
    (tmp_path / "run.json").write_text('{"of": "another program"}')
    with pytest.raises(ok.PipelineError, match="and no run of optkit's"):
        Workdir(tmp_path)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / ".DS_Store").write_text("")
    Workdir(hidden).close()
    (hidden / "photo.jpg").write_text("")
    Workdir(hidden).close()


def test_another_format_is_refused_and_left_alone(tmp_path):
    Workdir(tmp_path).close()
    path = tmp_path / "run.json"
    later = path.read_text().replace('"optkit": 1', '"optkit": 2')
    path.write_text(later)
    for look in (Workdir, Run):
        with pytest.raises(ok.PipelineError, match="its format is 2, and this one reads 1"):
            look(tmp_path)
    assert path.read_text() == later


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/optkit")):
        with pytest.raises(ok.PipelineError, match="`workdir`"):
            Workdir(path)
    folder = tmp_path / "closed"
    Workdir(folder).close()
    folder.chmod(0o500)
    (folder / "stages").chmod(0o500)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("permissions do not hold for this user")
        with pytest.raises(ok.PipelineError, match=r"cannot be written: .* Permission is missing"):
            Workdir(folder)
        assert Run(folder).stages == []
    finally:
        folder.chmod(0o700)
        (folder / "stages").chmod(0o700)


def python(script, *arguments):
    """Starts a script in another process that says a line when it is ready."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_a_file_that_the_system_refuses_to_write_is_said_and_leaves_nothing(tmp_path, flatbuffer):
    """A limit on the size of files makes writes fail half-way, as a full disk does."""
    script = """
        import resource, signal, sys
        import numpy as np
        import optkit as ok
        from optkit.workdir import Workdir
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        artifact = ok.TFLiteArtifact(open(sys.argv[2], "rb").read())
        with Workdir(sys.argv[1]) as workdir:
            workdir.put("first", "First", artifact, {}, {}, "1")
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(artifact.content) // 2, hard))
            for write in (
                lambda: workdir.put("second", "Second", artifact, {}, {}, "2"),
                lambda: workdir.put("first", "First", artifact, {}, {}, "2"),
                lambda: workdir.put_measured("first", "how", {}, {"a": np.zeros(10**5)}),
                lambda: workdir.put_measured("first", "how", {"a": "a" * 10**5}, {}),
            ):
                try:
                    write()
                except ok.OptkitError as error:
                    print(error)
    """
    file = flatbuffer.save(tmp_path / "model.tflite")
    folder = tmp_path / "run"
    said, errors = python(script, folder, file).communicate()
    assert len(said.splitlines()) == 4, errors
    for line in said.splitlines():
        assert line.startswith(f"`workdir` {str(folder)!r} cannot be written: [Errno 27]")
        assert "A file would be larger than the system allows" in line
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]
    with Workdir(folder) as workdir:
        assert workdir.find("second") is None
        assert workdir.find("first").fingerprint == "1"
        assert workdir.measured("first", "how") is None


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=256k", "none"]
    if shutil.which("mount") is None or mount(*options, folder).returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def mount(*arguments):
    return subprocess.run(["mount", *arguments], capture_output=True, check=False)


# NumPy 2.0's `savez` leaves a ZipFile behind that cannot be closed when it fails.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function ZipFile:pytest.PytestUnraisableExceptionWarning"
)
def test_a_full_disk_is_said_and_costs_no_stage(small_disk, model):
    with Workdir(small_disk / "run") as workdir:
        keys = [stage_key(number=number)[0] for number in range(100)]

        def fill():
            for key in keys:
                put(workdir, key, model)

        for _ in range(2):
            with pytest.raises(ok.OptkitError, match="The disk is full: free some space"):
                fill()
        found = [workdir.find(key) is not None for key in keys]
        kept = sum(found)
        assert found == [True] * kept + [False] * (100 - kept)
        assert 0 < kept < 100
        with pytest.raises(ok.OptkitError, match="The disk is full"):
            workdir.put_measured(keys[0], "how", {}, {"a": np.zeros(10**6)})
        shutil.rmtree(folder_of(workdir, keys[0]))
        put(workdir, keys[kept], model)
        assert workdir.find(keys[kept]) is not None


def test_a_read_only_disk_is_said_and_can_be_read(small_disk, model):
    run = recorded(small_disk / "run", "Prune", model=model)
    assert mount("-o", "remount,ro", small_disk).returncode == 0
    message = r"cannot be written: .* It is on a read-only file system: choose a folder elsewhere"
    for use, argument in (
        (Workdir, run.path),
        (Workdir, small_disk / "new"),
        (run.rollback, "baseline"),
    ):
        with pytest.raises(ok.PipelineError, match=message):
            use(argument)
    assert bias(run.current()) == len("Prune")


# ------------------------------------------------------------------------------ several processes


def test_a_second_process_is_refused_and_a_dead_one_leaves_no_lock(tmp_path, model):
    recorded(tmp_path, "Prune", model=model)
    script = """
        import sys, time
        from optkit.workdir import Workdir
        with Workdir(sys.argv[1]):
            print("ready", flush=True)
            time.sleep(100)
    """
    process = python(script, tmp_path)
    try:
        assert process.stdout.readline() == "ready\n"
        message = rf"is in use: process {process.pid} since 20\S+ holds it. Wait until"
        with pytest.raises(ok.PipelineError, match=message):
            Workdir(tmp_path)
        run = Run(tmp_path)
        with pytest.raises(ok.PipelineError, match=message):
            run.rollback("baseline")
        assert run.current_name == "Prune"
        assert bias(run.current()) == len("Prune")
    finally:
        process.kill()
        process.communicate()
    with Workdir(tmp_path), pytest.raises(ok.PipelineError, match=f"process {os.getpid()} since"):
        Workdir(tmp_path)
    run.rollback("baseline")


def test_a_process_killed_at_any_moment_leaves_whole_stages_or_none(tmp_path, model, flatbuffer):
    script = """
        import sys
        import numpy as np
        import optkit as ok
        from optkit.constraint import KeepZeros
        from optkit.workdir import Workdir, stage_key
        artifact = ok.TFLiteArtifact(open(sys.argv[2], "rb").read())
        mask = {("a", "keep_zeros"): KeepZeros("a", np.eye(9) > 0)}
        with Workdir(sys.argv[1]) as workdir:
            print("ready", flush=True)
            for number in range(10**6):
                key = stage_key(number=number % 5)[0]
                facts = {"number": number}
                workdir.put(key, str(number), artifact, mask, facts, str(number))
                workdir.put_measured(key, "how", facts, {"number": np.full(99, number)})
    """
    file, folder = flatbuffer.save(tmp_path / "model.tflite"), tmp_path / "run"
    keys = [stage_key(number=number)[0] for number in range(5)]
    moments, caught_half_way, whole = random.Random(0), 0, 0
    for _ in range(20):
        process = python(script, folder, file)
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.communicate()
        caught_half_way += any(path.name.startswith(".new-") for path in folder.rglob("*"))
        with Workdir(folder) as workdir:
            assert not [path for path in folder.rglob("*") if path.name.startswith(".")]
            for key in keys:
                stored = workdir.find(key)
                if stored is None:
                    continue
                whole += 1
                assert stored.artifact.content == flatbuffer.content
                assert stored.fingerprint == str(stored.facts["number"])
                np.testing.assert_array_equal(
                    stored.constraints["a", "keep_zeros"].mask, np.eye(9, dtype=bool)
                )
                if (figures := stored.measured("how")) is not None:
                    assert figures[0] == stored.facts
                    assert set(figures[1]["number"]) == {stored.facts["number"]}
    assert caught_half_way
    assert whole


# ------------------------------------------------------------------------------ versions, going back


def test_a_run_lists_its_stages_and_loads_any(tmp_path, model):
    run = recorded(tmp_path, "Prune", "QAT<8>", model=model)
    assert [(s.name, s.status, s.kind) for s in run.stages] == [
        ("baseline", "ok", "keras"),
        ("Prune", "ok", "keras"),
        ("QAT<8>", "ok", "keras"),
    ]
    assert [stage.figures.accuracy for stage in run.stages] == [0.08, 0.05, 0.06]
    assert run.stages[1].figures.accuracy_ci == (0.8, 1.0)
    assert run.stages[0].when < run.stages[1].when < run.stages[2].when
    assert repr(run.stages[1]) == "Stage(Prune, ok, keras, 0.0500, 0.001 MB, 0.5 ms)"
    assert [bias(run.load(name)) for name in ("baseline", "Prune", "prune")] == [8, 5, 5]
    assert run.report.to_dict() == report("Prune", "QAT<8>").to_dict()
    assert "QAT&lt;8&gt;" in (tmp_path / "report.html").read_text()
    assert "<td>QAT&lt;8&gt;</td>" in run._repr_html_()
    lines = str(run).splitlines()
    assert lines[0] == f"Run in {tmp_path}"
    assert [line.startswith("*") for line in lines[2:]] == [False, False, True]
    assert repr(run).endswith("stages=['baseline', 'Prune', 'QAT<8>'], current='QAT<8>')")


def test_going_back_makes_a_stage_the_current_one(tmp_path, model):
    run = recorded(tmp_path, "Prune", "Prune-2", "SWA", model=model)
    assert (run.current_name, bias(run.current())) == ("SWA", 3)
    run.rollback(to="prune")
    assert (run.current_name, bias(run.current())) == ("Prune", 5)
    run.rollback(to="baseline")
    assert bias(Run(tmp_path).current()) == 8
    assert [(entry.what, entry.stage) for entry in run.history] == [
        ("run", "SWA"),
        ("rollback", "Prune"),
        ("rollback", "baseline"),
    ]
    moments = [entry.when for entry in run.history]
    assert moments == sorted(moments)
    assert all(moment.endswith("+00:00") for moment in moments)
    assert len(run.stages) == 4
    recorded(tmp_path, "SWA", model=model)
    assert run.current_name == "SWA"
    assert len(run.history) == 4
    with pytest.raises(ok.PipelineError, match=r"No stage is called 'Prune' .* baseline, SWA\."):
        run.rollback("Prune")
    assert len(run.history) == 4


def test_names_that_fit_none_or_several_are_refused(tmp_path, model):
    run = recorded(tmp_path, "Own", "own", model=model)
    assert run.load("own") is not None
    with pytest.raises(
        ok.PipelineError, match=r"2 stages are called 'OWN' .* baseline, Own, own\."
    ):
        run.load("OWN")
    with pytest.raises(ok.PipelineError, match="No stage is called 'SWA'"):
        run.rollback("SWA")


def test_a_damaged_stage_is_listed_and_neither_loaded_nor_gone_back_to(tmp_path, model):
    run = recorded(tmp_path, "Prune", "SWA", model=model)
    next((tmp_path / "stages" / run.stages[1].key[:20]).glob("artifact.*")).write_bytes(b"PK")
    assert [stage.kind for stage in run.stages] == ["keras", None, "keras"]
    assert "not there" in repr(run.stages[1])
    for use in (run.load, run.rollback):
        with pytest.raises(ok.ModelError, match=r"The stage 'Prune' is damaged or missing"):
            use("Prune")
    assert run.current_name == "SWA"


def test_a_report_that_is_not_of_these_stages_is_refused(tmp_path, model):
    run = recorded(tmp_path, "Prune", model=model)
    report("SWA").to_json(tmp_path / "report.json")
    with pytest.raises(ok.OptkitError, match="is not the report of the stages"):
        run.report  # noqa: B018
    assert "accuracy" in str(run)


def test_stages_of_a_first_run_that_was_killed_are_shown(tmp_path, model, flatbuffer):
    with Workdir(tmp_path) as workdir:
        run = Run(tmp_path)
        assert (run.stages, run.report, run.current_name, run.history) == ([], None, None, [])
        with pytest.raises(ok.PipelineError, match="Stages: none yet"):
            run.load("Prune")
        put(workdir, KEY, model, "baseline")
        put(workdir, OTHER, flatbuffer, "QuantizeINT8")
        assert [stage.name for stage in run.stages] == ["baseline", "QuantizeINT8"]
        assert run.load("QuantizeINT8").content == flatbuffer.content
        with pytest.raises(ok.PipelineError, match="No run has ended"):
            run.current()


def test_stages_without_a_key_stay_as_long_as_they_are_shown(tmp_path, flatbuffer):
    with Workdir(tmp_path) as workdir:
        for current in ("First", "Second"):
            key = unique_key()
            put(workdir, key, flatbuffer, current)
            workdir.record([(current, key, "ok")], report(current), current=current)
            assert Run(tmp_path).current().content == flatbuffer.content
            assert len(list((tmp_path / "stages").iterdir())) == 1


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(ok.PipelineError, match=r"There is no folder .*nowhere"):
        Run(tmp_path / "nowhere")
    with pytest.raises(ok.PipelineError, match=r"holds no run of optkit's: 'run.json' is missing"):
        Run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(ok.PipelineError, match="is damaged"):
        Run(tmp_path)
