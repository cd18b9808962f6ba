"""Pipelines: what is refused when they are built, what a run leaves behind, how it fails."""

from __future__ import annotations

import os
import random
import threading

import numpy as np
import pytest

import optkit as ok
from optkit.models import clone, is_compiled
from optkit.runtime import isolated
from optkit.testing import digits, small_model

pytestmark = pytest.mark.usefixtures("untimed")


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ([], "at least one pass"),
        ([ok.FineTune], r"Step 1 is the class FineTune; make a pass of it: `FineTune\(…\)`"),
        ([ok.FineTune(), 3], "Step 2 must be a pass. Received: 3"),
        (ok.FineTune(), "`passes` must be a list of passes"),
        ("FineTune", "Step 1 must be a pass"),
        (
            [ok.QuantizeINT8(), ok.FineTune()],
            "Step 2, FineTune, takes a keras artifact, and step 1, QuantizeINT8, gives a tflite",
        ),
        ([ok.QuantizeINT8(), ok.QuantizeINT8()], "Step 2, QuantizeINT8-2, takes a keras artifact"),
        ([ok.FineTune(), ok.LabelSmooth()], "Step 2, LabelSmooth, .* no training pass follows"),
        ([ok.Augment(), ok.QuantizeINT8()], "Step 1, Augment, .* no training pass follows"),
        (
            [ok.LabelSmooth(0.1), ok.Augment(), ok.LabelSmooth(0.2), ok.FineTune()],
            "Step 1, LabelSmooth, and step 3, LabelSmooth-2, both set",
        ),
        (
            [ok.FineTune(), ok.TransferLearn("MobileNetV2")],
            "Step 2, TransferLearn, puts another model in the place .* step 1, FineTune,",
        ),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_built(passes, message):
    with pytest.raises(ok.PipelineError, match=message):
        ok.Pipeline(passes)


def test_what_can_work_is_built():
    ok.Pipeline([ok.LabelSmooth(0.1), ok.FineTune(), ok.LabelSmooth(0.2), ok.FineTune()])
    ok.Pipeline([ok.Augment(), ok.Augment("photo"), ok.TransferLearn("MobileNetV2")])
    ok.Pipeline([ok.FineTune(), ok.TransferLearn()])


@pytest.mark.parametrize(
    "arguments", [{"seed": -1}, {"seed": 1.5}, {"goals": 0.1}, {"workdir": "a"}]
)
def test_arguments_that_do_nothing_or_make_no_sense_are_refused(arguments):
    with pytest.raises((ok.PipelineError, TypeError)):
        ok.Pipeline([ok.FineTune()], **arguments)


def test_a_pipeline_is_a_sequence():
    pipeline = ok.Pipeline([ok.Prune(), ok.Prune(0.8), ok.QuantizeINT8()], seed=3)
    assert len(pipeline) == 3
    assert [type(item).__name__ for item in pipeline] == ["Prune", "Prune", "QuantizeINT8"]
    assert pipeline.names == ("Prune", "Prune-2", "QuantizeINT8")
    assert pipeline[1].sparsity == 0.8
    assert len(pipeline[:2]) == 2
    assert pipeline[:2].seed == 3
    assert repr(pipeline) == "Pipeline([Prune(), Prune(sparsity=0.8), QuantizeINT8()], seed=3)"


def bad_runs():
    x, y = digits(100).train
    return {
        "no data": (lambda m: (m, (x, y)), "`data` must be"),
        "no train": (lambda m: (m, ok.Data(test=(x, y))), "cannot do without a `train` split"),
        "classes": (lambda m: (m, ok.Data(train=(x, y + 1))), "class numbers from 0 to 9"),
        "classes in test": (
            lambda m: (m, ok.Data(train=(x, y), test=(x, y + 1))),
            "In `test`: Targets must be class numbers",
        ),
        "shape": (lambda m: (m, ok.Data(train=(x[:, :4], y))), "expected shape"),
        "one-hot of other width": (
            lambda m: (m, ok.Data(train=(x, np.eye(7)[y % 7]))),
            "does not fit the targets",
        ),
        "calibration only": (lambda m: (m, ok.Data(calibration=x)), "cannot do without"),
    }


@pytest.mark.parametrize("case", list(bad_runs()))
def test_check_and_run_refuse_before_anything_trains(case):
    make, message = bad_runs()[case]
    model, data = make(small_model())
    pipeline = ok.Pipeline([ok.FineTune(1)])
    for call in (pipeline.check, pipeline.run):
        with pytest.raises(ok.PipelineError, match=message):
            call(model, data)


def test_check_accepts_what_can_work(trained, data):
    pipeline = ok.Pipeline([ok.Augment(), ok.TransferLearn(), ok.QuantizeINT8()])
    before = _globals()
    pipeline.check()
    pipeline.check(trained)
    pipeline.check(trained, data)
    assert _globals() == before


# ---------------------------------------------------------------------------------- the report


def test_a_whole_run(trained):
    data = digits(600)
    result = ok.Pipeline(
        [ok.LabelSmooth(), ok.FineTune(2, 1e-3), ok.Prune(0.5, 1), ok.QuantizeINT8()]
    ).run(trained, data, measure=ok.Measure())
    report = result.report
    assert [(row.index, row.name, row.family, row.status) for row in report.rows] == [
        (1, "LabelSmooth", "recipe", "recipe"),
        (2, "FineTune", "train", "ok"),
        (3, "Prune", "train", "ok"),
        (4, "QuantizeINT8", "convert", "ok"),
    ]
    assert list(result.stages) == ["FineTune", "Prune", "QuantizeINT8"]
    assert result.artifact is result.stages["QuantizeINT8"]
    assert report.rows[1].before == report.baseline
    assert report.rows[2].before == report.rows[1].after
    assert report.final == report.rows[-1].after
    assert report.rows[1].config["epochs"] == 2
    x, y = data.test
    for name, artifact in [("FineTune", 1), ("Prune", 2), ("QuantizeINT8", 3)]:
        right = result.stages[name].predict(x).argmax(1) == y
        after = report.rows[artifact].after
        assert after.accuracy == pytest.approx(right.mean(), abs=1e-12)
        assert after.samples == len(y)
        assert after.per_class["3"] == pytest.approx(right[y == 3].mean())
        base = ok.KerasArtifact(trained).predict(x).argmax(1) == y
        assert report.rows[artifact].accuracy_change == pytest.approx(
            right.mean() - base.mean(), abs=1e-9
        )
        assert after.size_bytes == result.stages[name].size_bytes
        assert after.latency_ms > 0
        assert after.latency_p90_ms >= after.latency_ms
        low, high = after.latency_ci
        assert low <= after.latency_ms <= high
        assert report.rows[artifact].speedup_ci[0] <= report.rows[artifact].speedup
    x, y = data.validation
    right = result.artifact.predict(x).argmax(1) == y
    assert report.rows[-1].validation_after == pytest.approx(right.mean())
    assert report.rows[-1].speedup > 1
    assert report.rows[-1].speed_verdict == "faster"
    environment = report.environment
    assert environment["seed"] == 0
    assert environment["loss"] == "sparse_categorical_crossentropy (compiled model)"
    assert environment["metric"] == "accuracy (compiled model)"
    assert environment["data"]["train"]["samples"] == 360
    assert environment["versions"]["tensorflow"]


def test_without_test_the_report_shows_validation_and_says_so():
    x, y = digits(300).train
    result = ok.Pipeline([ok.FineTune(1)]).run(small_model(), ok.Data(train=(x, y)))
    assert result.report.split == "validation"
    notes = " ".join(result.report.notes)
    assert "optimistic" in notes
    assert "cut from train (20%, stratified by class)" in notes
    assert result.report.final.samples == 36


def test_a_pipeline_that_needs_no_validation_cuts_none():
    data = digits(300)
    only = ok.Data(train=data.train, test=data.test)
    result = ok.Pipeline([ok.FineTune(1, patience=None)]).run(small_model(), only)
    assert result.report.environment["data"]["train"]["samples"] == 180
    assert result.report.rows[0].validation_after is None


def test_inference_only_needs_no_train_split(trained):
    data = digits(600)
    result = ok.Pipeline([ok.QuantizeINT8()]).run(
        trained, ok.Data(test=data.test, calibration=data.train[0])
    )
    assert result.report.final.accuracy > 0.8


def test_the_result_model_is_compiled_as_the_one_that_came_in(trained, data):
    result = ok.Pipeline([ok.FineTune(1)]).run(trained, data)
    x, y = data.test
    assert is_compiled(result.model)
    assert result.model.evaluate(x, y, verbose=0)[1] == pytest.approx(
        result.report.final.accuracy, abs=1e-6
    )
    assert not is_compiled(result.artifact.model)
    plain = ok.Pipeline([ok.FineTune(1)]).run(small_model(), data)
    assert not is_compiled(plain.model)
    converted = ok.Pipeline([ok.QuantizeINT8()]).run(trained, data)
    with pytest.raises(ok.ModelError, match="tflite artifact"):
        _ = converted.model


def test_result_save_and_load(trained, data, tmp_path):
    result = ok.Pipeline([ok.FineTune(1), ok.QuantizeINT8()]).run(trained, data)
    folder = result.save(tmp_path / "out")
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "artifact.tflite",
        "report.html",
        "report.json",
        "report.png",
        "stages/01-FineTune.keras",
        "stages/02-QuantizeINT8.tflite",
    }
    x, _ = data.test
    loaded = ok.load(folder)
    assert np.array_equal(loaded.predict(x), result.artifact.predict(x))
    stage = ok.load(folder / "stages/01-FineTune.keras")
    assert np.array_equal(stage.predict(x), result.stages["FineTune"].predict(x))
    again = ok.Pipeline([ok.FineTune(1)]).run(trained, data)
    again.save(folder)
    assert ok.load(folder).kind == "keras"
    assert not (folder / "artifact.tflite").exists()
    assert {path.name for path in (folder / "stages").iterdir()} == {"01-FineTune.keras"}


# ------------------------------------------------------------------------------- repeatability


def _weights(result):
    return [stage.model.get_weights() for stage in result.stages.values() if stage.kind == "keras"]


def _same(one, other):
    return all(
        np.array_equal(a, b)
        for left, right in zip(one, other, strict=True)
        for a, b in zip(left, right, strict=True)
    )


def _pipeline(seed=0):
    return ok.Pipeline(
        [ok.Augment(), ok.LabelSmooth(), ok.FineTune(2, 1e-3), ok.SWA(2), ok.QuantizeINT8(30)],
        seed=seed,
    )


def test_equal_seeds_give_equal_results_and_others_do_not():
    data = digits(200)
    one, again, other = (_pipeline(seed).run(small_model(), data) for seed in (0, 0, 1))
    assert _same(_weights(one), _weights(again))
    assert one.artifact.content == again.artifact.content
    accuracy = [[row.after and row.after.accuracy for row in r.report.rows] for r in (one, again)]
    assert accuracy[0] == accuracy[1]
    assert not _same(_weights(one), _weights(other))


def test_pipelines_in_threads_give_what_they_give_alone():
    data = digits(200)
    alone = {seed: _weights(_pipeline(seed).run(small_model(), data)) for seed in (0, 1)}
    found = {}

    def work(seed):
        found[seed] = _weights(_pipeline(seed).run(small_model(), data))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (0, 1):
        assert _same(alone[seed], found[seed])


# ------------------------------------------------------------------------------ what stays as it was


class Failing(ok.TrainPass):
    """Fails in the middle of its training."""

    def train(self, model, recipe, context):
        context.fit(model, recipe, epochs=1)
        context.note("got as far as this")
        raise ZeroDivisionError("on purpose")


def _globals():
    import tensorflow as tf
    import tf_keras

    numpy_state = np.random.get_state(legacy=False)["state"]
    return {
        "environment": dict(os.environ),
        "python": random.getstate(),
        "numpy": (numpy_state["key"].tolist(), numpy_state["pos"]),
        "tf.keras": tf.keras.__version__,
        "policy": tf_keras.mixed_precision.global_policy().name,
        "warnings": len(__import__("warnings").filters),
        "threads": tf.config.threading.get_intra_op_parallelism_threads(),
    }


@pytest.mark.parametrize("fails", [False, True])
def test_everything_of_the_process_stays_as_it_was(trained, data, fails):
    import tensorflow as tf
    import tf_keras

    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        passes = [ok.Prune(0.5, 1), Failing()] if fails else [ok.Prune(0.5, 1), ok.QuantizeINT8()]

        def draws(run):
            """TensorFlow's stream of numbers, with a run in its middle or without."""
            tf.random.set_seed(5)
            first = tf.random.uniform((2,)).numpy().tolist()
            if run:
                before = _globals()
                if fails:
                    with pytest.raises(ok.PassError):
                        ok.Pipeline(passes).run(trained, data)
                else:
                    ok.Pipeline(passes).run(trained, data)
                assert _globals() == before
            return first + tf.random.uniform((2,)).numpy().tolist()

        assert draws(run=True) == draws(run=False)
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")


@pytest.mark.parametrize("fails", [False, True])
def test_the_callers_model_and_data_stay_as_they_were(data, fails):
    import tf_keras

    model = small_model()
    model.layers[0].trainable = False
    model.compile(tf_keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", ["accuracy"])
    x, y = (array.copy() for array in data.train)
    model.fit(x, y, epochs=1, verbose=0)
    weights, optimizer = model.get_weights(), model.optimizer
    steps, loss = int(optimizer.iterations), model.loss
    slots = [variable.numpy().copy() for variable in optimizer.variables]
    passes = [ok.FineTune(1), ok.SWA(1), Failing() if fails else ok.QuantizeINT8()]
    try:
        ok.Pipeline(passes).run(model, data)
    except ok.PassError:
        assert fails
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights(), strict=True))
    assert model.optimizer is optimizer
    assert model.loss == loss
    assert int(optimizer.iterations) == steps
    assert all(
        np.array_equal(a, b.numpy()) for a, b in zip(slots, optimizer.variables, strict=True)
    )
    assert [layer.trainable for layer in model.layers] == [False, True, True, True, True]
    assert np.array_equal(data.train[0], x)
    assert np.array_equal(data.train[1], y)


# ------------------------------------------------------------------------------------- failures


def test_a_failure_in_the_middle_loses_nothing(trained, data):
    with pytest.raises(ok.PassError) as caught:
        ok.Pipeline([ok.FineTune(1), ok.Prune(0.5, 1), Failing(), ok.QuantizeINT8()]).run(
            trained, data
        )
    error = caught.value
    assert "Step 3, Failing, failed: ZeroDivisionError: on purpose" in str(error)
    assert (error.step, error.pass_name) == (3, "Failing")
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert [row.status for row in error.report.rows] == ["ok", "ok", "failed"]
    assert error.report.rows[2].after is None
    assert "got as far as this" in error.report.rows[2].notes
    assert list(error.stages) == ["FineTune", "Prune"]
    assert error.artifact is error.stages["Prune"]
    x, y = data.test
    accuracy = (error.artifact.predict(x).argmax(1) == y).mean()
    assert error.report.final.accuracy == pytest.approx(accuracy)
    assert "Failing (failed)" in str(error.report)


class Careless(ok.TrainPass):
    """Overwrites what an earlier pass left, going round `context.fit`."""

    def train(self, model, recipe, context):
        model.layers[0].kernel.assign(model.layers[0].kernel + 1.0)
        return model


class Rewriting(ok.RewritePass):
    """The same as a rewrite, which may: the constraint is dropped and the row says so."""

    def rewrite(self, model, context):
        model.layers[0].kernel.assign(model.layers[0].kernel + 1.0)
        return model


def test_the_core_verifies_constraints_after_every_pass(trained, data):
    with pytest.raises(ok.PassError, match="Careless broke the constraint 'keep_zeros'"):
        ok.Pipeline([ok.Prune(0.5, 1), Careless()]).run(trained, data)
    result = ok.Pipeline([ok.Prune(0.5, 1), Rewriting(), ok.FineTune(1)]).run(trained, data)
    (note,) = result.report.rows[1].notes
    assert note.startswith("constraints dropped on 1 weights")
    kernel = result.artifact.model.layers[0].kernel.numpy()
    assert np.count_nonzero(kernel) == kernel.size
    rest = result.artifact.model.layers[3].kernel.numpy()
    assert np.mean(rest == 0) == pytest.approx(0.5, abs=0.01)


def test_a_user_model_with_custom_layers(data):
    import tf_keras as keras

    class Scale(keras.layers.Layer):
        def __init__(self, by=2.0, **keywords):
            super().__init__(**keywords)
            self.by = by

        def build(self, shape):
            self.factor = self.add_weight("factor", (), initializer="ones")

        def call(self, x):
            return x * self.by * self.factor

        def get_config(self):
            return {**super().get_config(), "by": self.by}

    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            Scale(0.5),
            keras.layers.Conv2D(8, 3),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10),
        ]
    )
    result = ok.Pipeline([ok.FineTune(1, 1e-2), ok.Prune(0.5, 1), ok.QuantizeINT8()]).run(
        clone(model), data, measure=ok.Measure()
    )
    assert result.report.final.latency_ms > 0, "the measuring process needs no Python class"
    assert "logits" in result.report.environment["task"]


# ----------------------------------------------------------------------------------- progress


def test_events_tell_what_happens(data):
    events = []
    pipeline = ok.Pipeline([ok.LabelSmooth(), ok.FineTune(2, patience=None), ok.QuantizeINT8()])
    pipeline.run(small_model(), data, progress=events.append)
    told = [(e.kind, e.step, e.name, e.epoch) for e in events]
    assert told == [
        ("measured", 0, "baseline", 0),
        ("started", 1, "LabelSmooth", 0),
        ("finished", 1, "LabelSmooth", 0),
        ("started", 2, "FineTune", 0),
        ("epoch", 2, "FineTune", 1),
        ("epoch", 2, "FineTune", 2),
        ("finished", 2, "FineTune", 0),
        ("measured", 2, "FineTune", 0),
        ("started", 3, "QuantizeINT8", 0),
        ("finished", 3, "QuantizeINT8", 0),
        ("measured", 3, "QuantizeINT8", 0),
    ]
    assert dict(events[4].figures)["loss"] > 0
    assert dict(events[-1].figures)["size_bytes"] > 0
    assert {event.steps for event in events} == {3}


def test_a_bar_only_where_it_is_wanted(data, capsys):
    pipeline = ok.Pipeline([ok.BNReestimate()])
    pipeline.run(small_model(), data)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "pass/s" not in captured.err
    pipeline.run(small_model(), data, progress=True)
    assert "BNReestimate" in capsys.readouterr().err
    with pytest.raises(ok.ArgumentTypeError, match="`progress`"):
        pipeline.run(small_model(), data, progress=3)


# ------------------------------------------------------------------------------- serialization


def test_json_round_trip(tmp_path):
    import tf_keras as keras

    pipeline = ok.Pipeline(
        [
            ok.Augment("photo", rotation=7, value_range=(0, 1)),
            ok.Augment([keras.layers.RandomFlip("horizontal")]),
            ok.TransferLearn(tmp_path / "backbone.keras", optimizer=keras.optimizers.SGD(0.1)),
            ok.Prune(0.5, layers={"a": 0.3}, exclude=["b"]),
            ok.QuantizeINT8(np.int64(12)),
        ],
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        seed=9,
    )
    pipeline.to_json(tmp_path / "pipeline.json")
    again = ok.Pipeline.from_json(tmp_path / "pipeline.json")
    assert again.seed == 9
    assert again.loss.get_config() == pipeline.loss.get_config()
    assert repr(again[0]) == repr(pipeline[0])
    assert again[0].value_range == (0, 1)
    assert isinstance(again[0].value_range, tuple)
    assert again[1].policy[0].get_config() == pipeline[1].policy[0].get_config()
    assert again[2].backbone == tmp_path / "backbone.keras"
    assert float(again[2].optimizer.learning_rate) == pytest.approx(0.1)
    assert again[3].get_config() == pipeline[3].get_config()
    assert again[4].calibration_samples == 12


def test_config_round_trip():
    pipeline = ok.Pipeline([ok.LabelSmooth("auto"), ok.FineTune(3)], seed=2)
    again = ok.Pipeline.from_config(pipeline.get_config())
    assert repr(again) == repr(pipeline)


def test_what_json_cannot_hold_is_named(tmp_path, trained):
    for item, name in [
        (ok.Augment([lambda x: x]), "Augment.policy"),
        (ok.TransferLearn(trained), "TransferLearn.backbone"),
    ]:
        pipeline = ok.Pipeline([item, ok.FineTune()])
        with pytest.raises(ok.PipelineError, match=f"`{name}` cannot be stored"):
            pipeline.to_json(tmp_path / "a.json")
    assert not (tmp_path / "a.json").exists()


def test_a_stored_pipeline_imports_nothing(tmp_path):
    import json

    path = tmp_path / "evil.json"
    for entry in (
        {"class": "os:system", "config": {}},
        {
            "class": "optkit.passes.fine_tune:FineTune",
            "config": {
                "optimizer": {
                    "__optkit__": "keras",
                    "value": {
                        "module": "evil_module_that_must_not_be_imported",
                        "class_name": "Evil",
                        "config": {},
                        "registered_name": None,
                    },
                }
            },
        },
    ):
        path.write_text(json.dumps({"passes": [entry], "seed": 0}))
        with pytest.raises(ok.PipelineError, match=r"unknown here|not known here"):
            ok.Pipeline.from_json(path)
    path.write_text("{")
    with pytest.raises(ok.PipelineError, match="no pipeline"):
        ok.Pipeline.from_json(path)


def test_files_written_in_a_thread_are_of_the_same_format(tmp_path):
    import zipfile

    def work():
        ok.KerasArtifact(small_model()).save(tmp_path / "model.keras")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert zipfile.is_zipfile(tmp_path / "model.keras")


def test_the_root_logger_is_left_to_the_caller(monkeypatch):
    """absl sets it up where it logs first, and the caller's own `basicConfig` would do nothing."""
    import logging

    import absl.logging

    root = logging.getLogger()
    with monkeypatch.context() as patch:
        patch.setattr(root, "handlers", [])
        with isolated(0):
            absl.logging.error("something")
            assert root.handlers
        assert root.handlers == []
        mine = logging.StreamHandler()
        patch.setattr(root, "handlers", [mine])
        with isolated(0):
            absl.logging.error("something")
        assert root.handlers == [mine]
