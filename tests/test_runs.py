"""Runs that survive: kept stages, kills, cancels, threads, and what must be done anew."""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import optkit as ok
from optkit.testing import digits, small_model

SCRIPT = Path(__file__).with_name("killed_run.py")
QUICK = ok.Measure(latency_seconds=0, memory=False)

TIMES = ("seconds", "latency_ms", "latency_p90_ms", "latency_p99_ms", "latency_ci", "speedup")
TIMES += ("speedup_ci", "throughput", "peak_memory_bytes", "runtime_memory_bytes", "resumed")


def without_times(value):
    """A report as plain values, but for what another run of the same would not repeat."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    if isinstance(value, list | tuple):
        return [without_times(item) for item in value]
    return value


def kinds(events, name):
    return [event.kind for event in events if event.name == name and event.kind != "epoch"]


class Scale(ok.RewritePass):
    """Multiplies the last kernel; fails where a file says so."""

    def __init__(self, factor: float = 1.0, flag: str | None = None):
        self.factor = factor
        self.flag = flag

    def rewrite(self, model, context):
        if self.flag is not None and Path(self.flag).is_dir():
            raise RuntimeError("told to fail")
        model.trainable_variables[-2].assign(model.trainable_variables[-2] * self.factor)
        return model


# ------------------------------------------------------------------------------------- resuming


def test_a_run_that_died_goes_on_and_ends_with_the_same_report(tmp_path):
    flag = tmp_path / "flag"
    flag.mkdir()
    model, data = small_model(), digits(300)
    pipeline = ok.Pipeline(
        [ok.LabelSmooth(), ok.FineTune(1, 1e-2, patience=None), Scale(1.1, str(flag)), ok.Prune()],
        seed=3,
    )
    measure = ok.Measure(latency_seconds=0.1)
    with pytest.raises(ok.PassError, match="told to fail") as caught:
        pipeline.run(model, data, workdir=tmp_path / "run", measure=measure)
    assert list(caught.value.stages) == ["FineTune"]
    assert [row.status for row in ok.Run(tmp_path / "run").report.rows] == [
        "recipe",
        "ok",
        "failed",
    ]
    flag.rmdir()
    events = []
    resumed = pipeline.run(
        model, data, workdir=tmp_path / "run", measure=measure, progress=events.append
    )
    assert kinds(events, "FineTune") == ["started", "reused", "measured"]
    assert kinds(events, "Prune") == ["started", "finished", "measured"]
    whole = pipeline.run(model, data, workdir=tmp_path / "other", measure=measure)
    assert without_times(resumed.report.to_dict()) == without_times(whole.report.to_dict())
    for one, other in zip(
        resumed.artifact.model.get_weights(), whole.artifact.model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    # Figures that were kept are the figures of the first run, times included.
    kept = caught.value.report.rows[1]
    assert resumed.report.rows[1].after == kept.after
    assert resumed.report.rows[1].seconds == kept.seconds
    assert resumed.report.rows[1].curves == kept.curves
    assert resumed.report.rows[3].speedup is not None


def runs(tmp_path):
    model, data = small_model(), digits(300)
    calibrated = ok.Data(
        train=data.train,
        validation=data.validation,
        test=data.test,
        calibration=data.train[0][:40],
    )
    pipeline = ok.Pipeline([ok.FineTune(1, 1e-2), ok.QuantizeINT8(calibration_samples=40)], seed=1)

    def run(model=model, data=calibrated, pipeline=pipeline, measure=QUICK):
        events = []
        result = pipeline.run(
            model, data, workdir=tmp_path / "run", measure=measure, progress=events.append
        )
        work = [e.name for e in events if e.kind == "finished" and e.name in result.stages]
        return work, result

    return run, model, calibrated, pipeline


def replaced(data, **splits):
    names = ("train", "validation", "test", "calibration")
    return ok.Data(**({name: getattr(data, name) for name in names} | splits))


def test_what_changed_is_done_anew_and_nothing_else(tmp_path):
    run, model, data, pipeline = runs(tmp_path)
    assert run()[0] == ["FineTune", "QuantizeINT8"]
    work, first = run()
    assert work == []

    x_test, y_test = data.test
    work, other = run(data=replaced(data, test=(x_test[:30], y_test[:30])))
    assert work == []  # no pass sees the test split
    assert other.report.final.samples == 30

    work, other = run(data=replaced(data, calibration=data.train[0][:40] * 3))
    assert work == ["QuantizeINT8"]
    assert other.artifact.predict(x_test).tolist() != first.artifact.predict(x_test).tolist()

    assert run(pipeline=ok.Pipeline(pipeline.passes, seed=2))[0] == ["FineTune", "QuantizeINT8"]
    assert run(pipeline=ok.Pipeline([pipeline[0], ok.QuantizeINT8(30)], seed=1))[0] == [
        "QuantizeINT8"
    ]
    smooth = ok.Pipeline([ok.LabelSmooth(), *pipeline.passes], seed=1)
    assert run(pipeline=smooth)[0] == ["FineTune", "QuantizeINT8"]
    x, y = data.train
    assert run(data=replaced(data, train=(x, np.roll(y, 1))))[0] == ["FineTune", "QuantizeINT8"]

    weights = model.get_weights()
    weights[0] = weights[0] + 1
    changed = small_model()
    changed.set_weights(weights)
    assert run(model=changed)[0] == ["FineTune", "QuantizeINT8"]
    assert run()[0] == []  # the first ones are still there


def test_other_ways_of_measuring_do_not_train_again(tmp_path):
    run, *_ = runs(tmp_path)
    first = run()[1].report
    work, other = run(measure=ok.Measure(latency_seconds=0.1, memory=False))
    assert work == []
    assert first.final.latency_ms is None
    assert other.report.final.latency_ms > 0
    # Training watches the metric, so another one is another training.
    worse = ok.Measure(metric="mae", latency_seconds=0, memory=False)
    assert run(measure=worse)[0] == ["FineTune", "QuantizeINT8"]


PASS = """
import optkit as ok

def amount():
    return {amount}

class Shift(ok.RewritePass):
    "Adds to the last bias."

    def rewrite(self, model, context):
        model.trainable_variables[-1].assign_add([amount()] * 10)
        return model
"""


def test_other_code_of_a_custom_pass_is_noticed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    model, data, found = small_model(), digits(200), []
    for amount in (0.0, 0.0, 2.0):
        (tmp_path / "own_pass.py").write_text(PASS.format(amount=amount))
        sys.modules.pop("own_pass", None)
        import importlib

        importlib.invalidate_caches()
        own = importlib.import_module("own_pass")
        events = []
        ok.Pipeline([own.Shift()]).run(
            model, data, workdir=tmp_path / "run", measure=QUICK, progress=events.append
        )
        found.append(kinds(events, "Shift")[1])
    assert found == ["finished", "reused", "finished"]


def test_streams_are_reused_by_the_users_fingerprint_alone(tmp_path):
    import tensorflow as tf

    def run(fingerprint, batch=20, steps=None):
        x, y = digits(200).train
        stream = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch)
        data = ok.Data(train=stream, test=digits(200).test, fingerprint=fingerprint, steps=steps)
        events = []
        result = ok.Pipeline([ok.FineTune(1, patience=None)]).run(
            small_model(),
            data,
            workdir=tmp_path / "run",
            measure=QUICK,
            progress=events.append,
        )
        return kinds(events, "FineTune")[1], " ".join(result.report.notes)

    assert run(None)[0] == "finished"
    again, notes = run(None)
    assert again == "finished"
    assert "`train` is a stream without a fingerprint" in notes
    assert run({"train": "v1"})[0] == "finished"
    assert run({"train": "v1"})[0] == "reused"
    assert run({"train": "v1"}, batch=10)[0] == "finished"
    assert run({"train": "v1"}, steps={"train": 2})[0] == "finished"
    assert run({"train": "v2"})[0] == "finished"


def test_rollback_is_repeated_without_the_work(tmp_path, trained, data):
    """A resumed run takes the same decisions from the same figures."""
    model = trained
    pipeline = ok.Pipeline(
        [ok.FineTune(1, 1e-4, patience=None), Scale(-1.0), ok.QuantizeINT8()],
        goals=ok.Goals(max_accuracy_drop=0.02),
    )
    found = []
    for _ in range(2):
        events = []
        result = pipeline.run(
            model, data, workdir=tmp_path / "run", measure=QUICK, progress=events.append
        )
        found.append(result.report)
        run = ok.Run(tmp_path / "run")
        assert run.current_name == "QuantizeINT8"
        assert {stage.name: stage.status for stage in run.stages}["Scale"] == "rolled back"
    assert [row.status for row in found[0].rows] == ["ok", "rolled back", "ok"]
    assert not any(event.kind == "finished" for event in events)
    assert without_times(found[0].to_dict()) == without_times(found[1].to_dict())


# ---------------------------------------------------------------------------------------- killed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The report of the run that is killed elsewhere, and how long it takes from its first line."""
    folder = tmp_path_factory.mktemp("undisturbed")
    seconds = _run_script(folder / "run", folder / "report.json")
    report = json.loads((folder / "report.json").read_text())
    statuses = {row["name"]: row["status"] for row in report["rows"]}
    assert (statuses["Spoil"], statuses["QuantizeINT8"]) == ("rolled back", "ok")
    return report, seconds, folder


def _run_script(workdir, report, kill_after=None):
    """Runs the script; kills it so many seconds after it said the first thing."""
    import time

    with subprocess.Popen(
        [sys.executable, "-W", "ignore", str(SCRIPT), str(workdir), str(report)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout.readline()
        began = time.monotonic()
        if kill_after is not None:
            time.sleep(kill_after)
            process.kill()
        process.stdout.read()
        status = process.wait()
    assert kill_after is not None or status == 0
    return time.monotonic() - began


def _killed_and_resumed(seed, undisturbed, tmp_path):
    expected, seconds, folder = undisturbed
    after = random.Random(seed).uniform(0, seconds)
    workdir, report = tmp_path / "run", tmp_path / "report.json"
    _run_script(workdir, report, kill_after=after)
    if not report.exists():
        _run_script(workdir, report)
    found = json.loads(report.read_text())
    assert without_times(found) == without_times(expected), f"killed after {after:.3f} s"
    one, other = (path.with_suffix(".tflite").read_bytes() for path in (report, folder / "report"))
    assert one == other


@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_is_killed_ends_as_if_it_had_not_been(seed, undisturbed, tmp_path):
    _killed_and_resumed(seed, undisturbed, tmp_path)


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_so_do_two_hundred(undisturbed, tmp_path):
    for seed in range(100, 300):
        (tmp_path / str(seed)).mkdir()
        _killed_and_resumed(seed, undisturbed, tmp_path / str(seed))


# ------------------------------------------------------------------------------------- cancelled


def test_a_run_that_is_stopped_keeps_what_is_finished(tmp_path):
    asked = []
    pipeline = ok.Pipeline([ok.FineTune(1, 1e-2), ok.Prune(epochs=50), ok.QuantizeINT8()])
    model, data, seen = small_model(), digits(300), []

    def stop():
        asked.append(1)
        return any(e.kind == "epoch" and e.name == "Prune" for e in seen)

    result = pipeline.run(
        model, data, stop=stop, progress=seen.append, workdir=tmp_path / "run", measure=QUICK
    )
    report = result.report
    assert [row.status for row in report.rows] == ["ok", "cancelled", "skipped"]
    assert list(result.stages) == ["FineTune"]
    assert result.artifact is result.stages["FineTune"]
    assert report.final == report.rows[0].after
    assert "the run was stopped on request in step 2, Prune" in " ".join(report.notes)
    epochs = [e for e in seen if e.kind == "epoch" and e.name == "Prune"]
    assert len(epochs) == 1
    assert len(asked) > 10  # every batch
    assert ok.Run(tmp_path / "run").current_name == "FineTune"
    shorter = ok.Pipeline([pipeline[0], ok.Prune(epochs=1)])
    events = []
    shorter.run(model, data, workdir=tmp_path / "run", measure=QUICK, progress=events.append)
    assert kinds(events, "FineTune")[1] == "reused"


def test_what_breaks_the_goal_is_undone_although_the_run_is_interrupted(trained, data):
    def interrupt(event):
        if event.kind == "measured" and event.name == "Scale":
            raise KeyboardInterrupt

    goals = ok.Goals(max_accuracy_drop=0.05)
    result = ok.Pipeline([Scale(-1.0), ok.BNReestimate()], goals=goals).run(
        trained, data, progress=interrupt, measure=QUICK
    )
    assert [row.status for row in result.report.rows] == ["rolled back", "skipped"]
    assert result.report.final == result.report.baseline


def test_a_progress_function_that_raises_does_not_end_the_run(data, caplog):
    calls = []

    def progress(event):
        calls.append(event)
        raise ValueError("from the progress function")

    result = ok.Pipeline([ok.BNReestimate()]).run(
        small_model(), data, progress=progress, measure=QUICK
    )
    assert [row.status for row in result.report.rows] == ["ok"]
    assert len(calls) == 1
    assert "is not called any more" in caplog.text


def test_a_stop_function_that_raises_ends_the_run_and_says_so(data):
    def stop():
        raise ValueError("from the stop function")

    result = ok.Pipeline([ok.BNReestimate()]).run(small_model(), data, stop=stop, measure=QUICK)
    assert [row.status for row in result.report.rows] == ["cancelled"]
    assert result.report.rows[0].notes[0].endswith("raised ValueError('from the stop function')")
    assert "'), in step 1" in result.report.notes[-1]


def test_a_run_that_ends_in_training_leaves_no_profiler_behind(tmp_path, data):
    import tensorflow as tf

    batches = []

    def stop():
        batches.append(1)
        return len(batches) > 6  # while the profile is taken

    result = ok.Pipeline([ok.FineTune(3, patience=None)]).run(
        small_model(), data, stop=stop, tensorboard=tmp_path, measure=QUICK
    )
    assert [row.status for row in result.report.rows] == ["cancelled"]
    with pytest.raises(tf.errors.UnavailableError):  # there is none to stop
        tf.profiler.experimental.stop()


def test_the_last_good_artifact_is_one_that_was_measured(trained, data):
    passes = [ok.BNReestimate(), Scale(float("nan"))]
    with pytest.raises(ok.PassError, match="NaN or infinite") as caught:
        ok.Pipeline(passes).run(trained, data, measure=QUICK)
    error = caught.value
    assert error.artifact is error.stages["BNReestimate"]
    again = pickle.loads(pickle.dumps(error.artifact))
    x, _ = data.test
    np.testing.assert_array_equal(again.predict(x), error.artifact.predict(x))


def test_a_stage_of_a_pass_that_asks_for_the_goals_depends_on_them(trained, data, tmp_path):
    class Asks(ok.RewritePass):
        """Looks at the goals."""

        def rewrite(self, model, context):
            context.note(f"limit {context.goals.max_size_mb}")
            return model

    def run(limit):
        events = []
        ok.Pipeline([Asks(), ok.BNReestimate()], goals=ok.Goals(max_size_mb=limit)).run(
            trained, data, workdir=tmp_path / "run", measure=QUICK, progress=events.append
        )
        return [event.name for event in events if event.kind == "finished"]

    assert run(1) == ["Asks", "BNReestimate"]
    assert run(1) == []
    assert run(2) == ["Asks"]


@pytest.mark.parametrize("kind", ["started", "epoch", "finished", "measured"])
def test_an_interrupt_at_any_event_keeps_what_is_finished(kind, data):
    def interrupt(event):
        if event.kind == kind and event.name == "Prune":
            raise KeyboardInterrupt

    passes = [ok.FineTune(1, 1e-2), ok.Prune(epochs=1), ok.BNReestimate()]
    result = ok.Pipeline(passes).run(small_model(), data, progress=interrupt, measure=QUICK)
    first, second, third = (row.status for row in result.report.rows)
    assert (first, third) == ("ok", "skipped")
    if kind == "measured":
        assert second == "ok"
        assert result.artifact is result.stages["Prune"]
    else:
        assert second == "cancelled"
        assert result.artifact is result.stages["FineTune"]
    assert result.report.final.accuracy is not None


def test_an_interrupt_before_anything_is_finished_is_passed_on(data):
    def interrupt(event):
        if event.step == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ok.Pipeline([ok.FineTune(1)]).run(small_model(), data, progress=interrupt, measure=QUICK)


def test_arguments_of_a_run_are_checked(data, tmp_path):
    pipeline = ok.Pipeline([ok.BNReestimate()])
    with pytest.raises(ok.PipelineError, match="`stop` must be a function"):
        pipeline.run(small_model(), data, stop=True)
    with pytest.raises(ok.PipelineError, match=r"`measure` must be an `optkit.Measure`"):
        pipeline.run(small_model(), data, measure={"threads": 2})
    (tmp_path / "file").write_text("")
    with pytest.raises(ok.PipelineError):
        pipeline.run(small_model(), data, workdir=tmp_path / "file")


# --------------------------------------------------------------------------------------- threads


def test_runs_in_threads_give_what_each_gives_alone(tmp_path):
    data = digits(200)

    def run(seed, folder=None):
        return ok.Pipeline([ok.FineTune(1, 1e-2, patience=None)], seed=seed).run(
            small_model(), data, measure=QUICK, workdir=folder
        )

    found, errors = {}, []

    def work(seed):
        try:
            found[seed] = run(seed, tmp_path / str(seed))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for seed in range(8):
        alone = run(seed, tmp_path / f"alone-{seed}")
        assert without_times(found[seed].report.to_dict()) == without_times(alone.report.to_dict())
        for one, other in zip(
            found[seed].artifact.model.get_weights(),
            alone.artifact.model.get_weights(),
            strict=True,
        ):
            np.testing.assert_array_equal(one, other)
    accuracies = {found[seed].report.rows[0].curves[0]["loss"][0] for seed in range(8)}
    assert len(accuracies) > 1


# ----------------------------------------------------------------------------------- tensorboard


def scalars(folder):
    """Every scalar in the event files of a folder: name to values in order of the step."""
    import tensorflow as tf

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            for value in event.summary.value:
                if value.HasField("tensor") and value.tensor.dtype == tf.float32.as_datatype_enum:
                    number = float(tf.make_ndarray(value.tensor))
                    found.setdefault(value.tag, []).append((event.step, number))
    return {tag: [v for _, v in sorted(values)] for tag, values in found.items()}


def test_without_tensorboard_the_error_names_the_extra(data):
    script = (
        "import sys; sys.modules['tensorboard'] = None\n"
        "import importlib.util\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda n, *a: None if n == 'tensorboard' else find(n, *a)\n"
        "import optkit as ok\n"
        "from optkit.testing import digits, small_model\n"
        "ok.Pipeline([ok.BNReestimate()]).run(small_model(), digits(200), tensorboard='logs')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "pip install 'optkit[tensorboard]'" in done.stderr.splitlines()[-1]


def test_tensorboard_gets_the_figures_and_a_profile(tmp_path, data):
    result = ok.Pipeline(
        [ok.LabelSmooth(), ok.FineTune(3, 1e-3, patience=3), ok.BNReestimate()]
    ).run(small_model(), data, measure=QUICK, tensorboard=tmp_path)
    curves = result.report.rows[1].curves[0]
    folder = tmp_path / "02-FineTune"
    assert scalars(folder / "train")["epoch_loss"] == pytest.approx(curves["loss"])
    assert scalars(folder / "validation")["epoch_loss"] == pytest.approx(curves["val_loss"])
    assert scalars(folder / "validation")["epoch_metric"] == pytest.approx(curves["val_metric"])
    stages = scalars(tmp_path / "stages")
    rows = result.report.rows
    assert stages["stage/accuracy"] == pytest.approx(
        [result.report.baseline.accuracy, rows[1].after.accuracy, rows[2].after.accuracy]
    )
    assert stages["stage/size_bytes"] == pytest.approx(
        [result.report.baseline.size_bytes, rows[1].after.size_bytes, rows[2].after.size_bytes]
    )
    profiles = list(folder.rglob("*.xplane.pb"))
    assert profiles
    assert profiles[0].stat().st_size > 1000
