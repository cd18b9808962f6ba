"""Memory and the limits of a device: that they are measured, and really applied."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import optkit as ok
from optkit.convert import convert_to_tflite
from optkit.measuring import Device, Measure, check_device, measure
from optkit.measuring import memory as memory_module
from optkit.measuring.latency import LatencyProcess
from optkit.measuring.memory import DoesNotFitError
from optkit.testing import small_model

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def small_file():
    return ok.TFLiteArtifact(convert_to_tflite(small_model()))


@pytest.fixture(scope="module")
def big_file():
    """128 MB of weights, which LiteRT keeps a second time as its kernels want them."""
    import tf_keras as keras

    model = keras.Sequential([keras.Input((4096,), name="x"), keras.layers.Dense(8192, name="y")])
    return ok.TFLiteArtifact(convert_to_tflite(model))


def process_for(artifact, device=None, keras=False):
    shape = (1, *artifact.inputs[0].shape[1:])
    return LatencyProcess(device or Device(), np.zeros(shape, "float32"), keras=keras)


def test_the_limits_are_those_of_the_operating_system():
    """Asked of the process itself, which reads them back from the system."""
    (told,) = memory_module._ask(Device(cpus=1, memory_mb=300)).lines
    assert told["cpus"] == 1
    assert told["limit_bytes"] == 300 * MEGABYTE
    (free,) = memory_module._ask(Device()).lines
    assert free["cpus"] == len(os.sched_getaffinity(0))
    assert free["limit_bytes"] == -1  # RLIM_INFINITY
    with LatencyProcess(Device(cpus=1), np.zeros((1, 2)), keras=False) as process:
        assert process._ask(command="device") == {"cpus": 1}


def test_memory_grows_with_the_artifact(small_file, big_file):
    with process_for(small_file) as process:
        small = process.memory("small", small_file)
        assert process._process is None  # a flatbuffer needs no TensorFlow, nor its process
    with process_for(big_file) as process:
        big = process.memory("big", big_file)
    assert small.runtime_bytes == pytest.approx(big.runtime_bytes, rel=0.05)
    assert small.peak_bytes - small.runtime_bytes < 20 * MEGABYTE
    assert big.peak_bytes - big.runtime_bytes > big_file.size_bytes


def test_the_memory_of_a_keras_artifact_is_that_of_a_fresh_process(trained, small_file):
    artifact = ok.KerasArtifact(trained)
    with process_for(small_file, keras=True) as process:
        found = process.memory("a", artifact)
        again = process.memory("a", artifact)
        files = process._files["a"]
        # The same without any fork: a process that imports TensorFlow, loads and runs.
        script = (
            "import sys, tensorflow\n"
            "from optkit.measuring import probe, worker\n"
            "inputs = worker._read_inputs(sys.argv[2])\n"
            "run = worker._keras_runner(sys.argv[1], inputs, 1)\n"
            "run(), run(), run()\n"
            "print(probe.status_bytes('VmHWM'))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(files.path), str(files.inputs)],
            env=memory_module.probe_environment(1),
            capture_output=True,
            text=True,
            check=True,
        )
    assert found.peak_bytes == pytest.approx(int(done.stdout), rel=0.03)
    assert again.peak_bytes == pytest.approx(found.peak_bytes, rel=0.01)
    assert found.runtime_bytes < found.peak_bytes


def test_a_file_that_does_not_fit_is_said_and_one_that_does_is_measured(big_file, small_file):
    device = Device(memory_mb=256)
    with (
        process_for(big_file, device) as process,
        pytest.raises(DoesNotFitError, match=r"does not fit in 256 MB: .* peaks at \d{3} MB"),
    ):
        process.memory("big", big_file)
    x = np.random.default_rng(0).random((4, 4096), dtype=np.float32)
    found = measure(big_file, (x, big_file.predict(x)), measure=Measure(device=device))
    assert found.figures.peak_memory_bytes is found.figures.latency_ms is None
    assert found.figures.accuracy == 0  # the error of its own outputs
    assert "memory and latency not measured: the artifact does not fit" in found.notes[-1]
    with process_for(small_file, device) as process:
        assert process.memory("small", small_file).peak_bytes < 256 * MEGABYTE


def test_a_limit_that_the_runtime_cannot_keep_is_refused(small_file, data):
    with pytest.raises(ok.PipelineError, match=r"within `memory_mb=40`: .* takes \d+ MB"):
        check_device(Device(memory_mb=40))
    with pytest.raises(ok.PipelineError, match="LiteRT itself cannot start"):
        measure(small_file, data, measure=Measure(device=Device(memory_mb=40)))


def test_more_cores_than_there_are_is_refused():
    with pytest.raises(ok.PipelineError, match=r"`Device\(cpus=1000\)` asks for more cores"):
        check_device(Device(cpus=1000))


def test_a_keras_model_under_a_limit_is_refused_with_the_reason(trained, data):
    with pytest.raises(ok.PipelineError, match="TensorFlow itself does not start"):
        measure(trained, data, measure=Measure(device=Device(memory_mb=512)))


@pytest.mark.parametrize(
    "arguments", [{"threads": 0}, {"memory_mb": 0}, {"cpus": 0}, {"cpus": 1.5}, {"threads": "1"}]
)
def test_devices_that_cannot_be(arguments):
    with pytest.raises(ok.PipelineError, match=f"`{next(iter(arguments))}` must be"):
        Device(**arguments)


def test_a_failure_in_the_forked_process_is_said(trained, small_file):
    with process_for(small_file, keras=True) as process:
        with pytest.raises(ok.OptkitError, match="could not do it"):
            process._ask(command="memory", path="/no/such/model", inputs="/no/such/inputs")
        assert process.memory("a", ok.KerasArtifact(trained)).peak_bytes > 0
