"""Training under strategies: the same numbers, one report, nobody waits for ever."""

from __future__ import annotations

import dataclasses
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from distributed_material import MEASURE, data, model, pipeline
from test_runs import without_times

import optkit as ok
from optkit.bundle import Bundle, BundleError
from optkit.distribute import ALONE, Crew, crew_of

SCRIPT = Path(__file__).with_name("distributed_run.py")


def free_ports(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    for item in sockets:
        item.bind(("127.0.0.1", 0))
    ports = [str(item.getsockname()[1]) for item in sockets]
    for item in sockets:
        item.close()
    return ports


def start(how: str, folder: Path, *more: str) -> subprocess.Popen:
    folder.mkdir(parents=True, exist_ok=True)
    name = "-".join([how, *more[:1]])
    with (folder / f"{name}.out").open("w") as told, (folder / f"{name}.err").open("w") as said:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", str(SCRIPT), how, str(folder), *more],
            stdout=told,
            stderr=said,
        )


def start_two(how: str, folder: Path) -> list[subprocess.Popen]:
    ports = free_ports(2)
    return [start(how, folder, str(number), *ports) for number in range(2)]


def ended(processes: list[subprocess.Popen], folder: Path, seconds: float = 300) -> None:
    try:
        for process in processes:
            assert process.wait(seconds) == 0, "".join(
                file.read_text()[-2000:] for file in folder.glob("*.err")
            )
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One process, two devices, two processes: at the same time, as each waits for much."""
    folder = tmp_path_factory.mktemp("runs")
    started = {
        "one": [start("one", folder / "one")],
        "mirrored": [start("mirrored", folder / "mirrored")],
        "workers": start_two("workers", folder / "workers"),
    }
    for name, processes in started.items():
        ended(processes, folder / name)
    return folder


def weights(folder: Path, name: str, number: int = 0) -> list[np.ndarray]:
    return ok.load(folder / f"{name}-{number}.keras").model.get_weights()


def report(folder: Path, number: int = 0) -> dict:
    return json.loads((folder / f"report-{number}.json").read_text())


@pytest.mark.parametrize("how", ["mirrored", "workers"])
def test_two_replicas_train_what_one_trains(how, runs):
    for name in ("FineTune", "Prune", "SWA"):
        found, expected = weights(runs / how, name), weights(runs / "one", name)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-6)
    # Behind `SWA` values are rounded, which makes the last digits the first ones.
    pairs = zip(report(runs / how)["rows"][:5], report(runs / "one")["rows"][:5], strict=True)
    for row, alone in pairs:
        for curves, others in zip(row["curves"], alone["curves"], strict=True):
            assert set(curves) == set(others)
            for name, values in curves.items():
                assert values == pytest.approx(others[name], rel=1e-4), name


@pytest.mark.parametrize("how", ["mirrored", "workers"])
def test_zeros_of_pruning_are_kept_on_all_replicas(how, runs):
    for name in ("Prune", "SWA"):
        kernels = [value for value in weights(runs / how, name) if value.ndim > 1]
        expected = [value for value in weights(runs / "one", name) if value.ndim > 1]
        for kernel, other in zip(kernels, expected, strict=True):
            assert np.mean(kernel == 0) == pytest.approx(0.6, abs=0.02)
            assert np.array_equal(kernel == 0, other == 0)


def test_two_processes_give_one_report_and_one_folder(runs):
    folder = runs / "workers"
    assert (folder / "report-0.json").read_bytes() == (folder / "report-1.json").read_bytes()
    assert (folder / "artifact-0.tflite").read_bytes() == (
        folder / "artifact-1.tflite"
    ).read_bytes()
    assert [
        np.array_equal(*pair)
        for pair in zip(weights(folder, "Prune", 0), weights(folder, "Prune", 1), strict=True)
    ] == [True] * 4
    assert (folder / "run-0").is_dir()
    assert not (folder / "run-1").exists()
    assert (folder / "workers-1.out").read_text() == "", "only the chief tells of progress"
    found = report(folder)["environment"]["strategy"]
    assert found == {"name": "MultiWorkerMirroredStrategy", "replicas": 2, "workers": 2}
    assert report(runs / "mirrored")["environment"]["strategy"]["replicas"] == 2
    assert "strategy" not in report(runs / "one")["environment"]


def test_a_kept_run_is_taken_up_by_all_processes(runs, tmp_path):
    import shutil

    shutil.copytree(runs / "workers" / "run-0", tmp_path / "run-0")
    ended(start_two("workers", tmp_path), tmp_path)
    kinds = {line.split()[0] for line in (tmp_path / "workers-0.out").read_text().splitlines()}
    assert "reused" in kinds
    assert "epoch" not in kinds
    for number in range(2):
        again, before = report(tmp_path, number), report(runs / "workers")
        assert without_times(again["rows"]) == without_times(before["rows"])


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_process_that_dies_ends_the_others_and_the_run_goes_on_afterwards(tmp_path):
    whole = tmp_path / "whole"
    ended(start_two("slow", whole), whole)
    folder = tmp_path / "killed"
    processes = start_two("slow", folder)
    told = folder / "slow-0.out"
    deadline = time.monotonic() + 120
    while "epoch 4" not in told.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    processes[1].kill()
    processes[1].wait()
    began = time.monotonic()
    assert processes[0].wait(120) != 0
    assert time.monotonic() - began < 60
    assert "another one has failed" in (folder / "slow-0.err").read_text()
    ended(start_two("slow", folder), folder)
    assert "epoch 1\n" not in told.read_text()
    for one, other in zip(weights(folder, "FineTune"), weights(whole, "FineTune"), strict=True):
        np.testing.assert_array_equal(one, other)
    assert report(folder)["rows"][-1]["trainings"][0]["resumed"]


# ---------------------------------------------------------------------------------- what is refused


def test_strategies_under_which_replicas_are_not_equal_are_refused(monkeypatch):
    import tensorflow as tf

    began = []
    monkeypatch.setattr(ok.FineTune, "train", lambda *arguments: began.append(arguments))
    with pytest.raises(ok.PipelineError, match="CentralStorageStrategy is not supported"):
        pipeline().run(
            model(), data(), strategy=tf.distribute.experimental.CentralStorageStrategy()
        )
    with pytest.raises(ok.PipelineError, match=r"tf\.distribute.*Received: 'mirrored'"):
        pipeline().run(model(), data(), strategy="mirrored")
    assert not began


def test_sums_are_refused_where_replicas_average():
    import tf_keras

    summed = tf_keras.losses.SparseCategoricalCrossentropy(reduction="sum")
    pipeline = ok.Pipeline([ok.FineTune(1)], loss=summed)
    options, crew = pipeline._options(MEASURE), Crew()
    pipeline._prepare(model(), data(), options)
    crew.replicas = 2
    with pytest.raises(ok.PipelineError, match=r"FineTune.*reduction 'sum'.*replicas average"):
        pipeline._prepare(model(), data(), dataclasses.replace(options, crew=crew))


def test_one_device_is_a_crew_of_one():
    import tensorflow as tf

    crew = crew_of(tf.distribute.OneDeviceStrategy("cpu:0"))
    assert (crew.replicas, crew.workers, crew.chief, crew.alone) == (1, 1, True, True)
    result = ok.Pipeline([ok.FineTune(1, 1e-2)], seed=5).run(
        model(), data(), measure=MEASURE, strategy=crew.strategy
    )
    plain = ok.Pipeline([ok.FineTune(1, 1e-2)], seed=5).run(model(), data(), measure=MEASURE)
    pairs = zip(result.model.get_weights(), plain.model.get_weights(), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_a_second_strategy_in_a_process_is_explained():
    import tensorflow as tf

    said = "Shape mismatch in the collective instance 101. Op at device CPU:0 expected shape [550]"
    error = tf.errors.InvalidArgumentError(None, None, said)
    assert "make one strategy" in ALONE.explain(error)
    assert (
        ALONE.explain(ValueError(said))
        == ALONE.explain(tf.errors.UnavailableError(None, None, ""))
        == ""
    )


def test_who_is_alone_shares_with_nobody():
    made = Bundle({"a": 1})
    assert ALONE.share(lambda: made) is made
    assert [ALONE.agreed(True), ALONE.agreed(False), ALONE.any_of(True)] == [True, False, True]
    assert ALONE.describe() == {}


# -------------------------------------------------------------------------------------------- bundles


def test_a_bundle_is_what_was_put_into_it():
    arrays = {
        "a/b": np.arange(6, dtype=np.int16).reshape(2, 3)[:, ::2],
        "empty": np.zeros((0, 4)),
        "number": np.array(2.5),
        "texts": np.array(["one", "länger"]),
        "truth": np.array([True, False]),
    }
    read = Bundle.from_bytes(Bundle({"x": [1, None, float("inf")]}, arrays).to_bytes())
    assert read.values == {"x": [1, None, float("inf")]}
    assert list(read.arrays) == list(arrays)
    for name, array in arrays.items():
        assert read.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(read.arrays[name], array)
        assert read.arrays[name].flags.writeable


def test_a_bundle_that_was_changed_anywhere_is_not_believed(tmp_path):
    content = Bundle({"x": 1}, {"a": np.arange(4)}).to_bytes()
    for place in range(0, len(content), 7):
        broken = bytearray(content)
        broken[place] ^= 1
        with pytest.raises(BundleError):
            Bundle.from_bytes(bytes(broken))
    with pytest.raises(BundleError):
        Bundle.from_bytes(content[:-5])
    assert Bundle.read(tmp_path / "nothing") is None
