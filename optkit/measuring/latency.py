"""Latency, throughput and memory, in fresh processes with a stated number of threads."""

from __future__ import annotations

import contextlib
import json
import select
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from optkit.artifact import Artifact, KerasArtifact, SavedModelArtifact, TFLiteArtifact
from optkit.artifact.base import named_inputs
from optkit.artifact.keras import inference_function
from optkit.data import first_leaf
from optkit.errors import OptkitError
from optkit.measuring.measurement import Throughput
from optkit.measuring.memory import Memory, probe_environment, probe_litert
from optkit.measuring.settings import Device
from optkit.measuring.statistics import Interval, bootstrap_median, mean_ratio
from optkit.measuring.worker import by_block
from optkit.models import TensorInfo, mixed_precision_layers, signature
from optkit.runtime import tensorflow

__all__ = ["Latency", "LatencyProcess", "Speedup"]

# Where a model lies in memory alone makes it a few per cent faster or slower, for as long as it
# lies there. So each is loaded several times, in turns with the other, and the copies, not the runs,
# are what intervals count.
_COPIES = 6  # even, so that either is loaded first as often as the other
# What is left of such effects: one artifact against itself still differs by up to so much, and no
# interval is narrower.
_RESOLUTION = 0.01
_PRECISION = 0.01
_MINIMUM_RUNS = 4
_MEMORY_RUNS = 3
_ANSWER_WITHIN_SECONDS = 300
# How far two runs of the same artifact may lie apart, as a share of its largest output. In float32
# another order of summation changes the fifth digit of a deep model's outputs; another model
# changes the first. Eight-bit activations are rounded to 1/127 of their range, and one that lies on
# the edge of two steps may fall to either.
_ROUNDING = 1e-3
_COARSE_ROUNDING = 2 / 127
_QUANTIZED_TYPES = ("int4", "int8", "uint8", "int16", "float16", "bfloat16")


@dataclass(frozen=True)
class Latency:
    """Time of one call, in milliseconds."""

    median_ms: float
    p90_ms: float
    p99_ms: float
    ci: Interval


@dataclass(frozen=True)
class Speedup:
    """How many times faster than the other: mean over the copies, and its interval."""

    ratio: float
    ci: Interval


@dataclass(frozen=True)
class _Files:
    """An artifact as the measuring processes read it."""

    artifact: Artifact
    folder: Path
    kind: str
    path: Path
    inputs: Path


class LatencyProcess:
    """A worker process that holds artifacts and times them, kept for a whole run.

    A Keras model runs there as a ``tf.function`` on a fixed input signature, a flatbuffer in
    LiteRT; both take and give NumPy arrays in the types that they are stored with. What each gives
    is compared with what `Artifact.predict` gives, so that nothing else than the artifact is timed.

    Args:
        device: Threads and cores, set before either runtime starts. Its limit of memory applies to
            `memory` alone.
        sample: The samples of one call, shape ``(batch_size, …)`` each; they pin open dimensions.
        seconds: Time to spend on the copies of one artifact, together.
        keras: Whether Keras artifacts are to come, for which TensorFlow is imported at the start.
    """

    def __init__(self, device: Device, sample: Any, *, seconds: float = 1.0, keras: bool = True):
        self.device, self.seconds, self.keras = device, seconds, keras
        self.batch_size = len(first_leaf(sample))
        self._sample = sample
        self._folder = tempfile.TemporaryDirectory(prefix="optkit-")
        self._process: subprocess.Popen[str] | None = None
        self._failure = ""
        self._log = Path(self._folder.name) / "worker.log"
        self._files: dict[str, _Files] = {}

    def __enter__(self) -> LatencyProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Starts the process, which then loads its libraries beside the caller's work."""
        if self._process is not None:
            return
        settings = {
            "threads": self.device.threads,
            "cpus": self.device.cpus,
            "keras": self.keras,
            "runs": _MEMORY_RUNS,
        }
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "optkit.measuring.worker", json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # Nothing but measuring is done there: keep it to the processor and quiet.
                env=probe_environment(self.device.threads),
            )

    def close(self) -> None:
        """Ends the process and removes its files."""
        self._end()
        self._folder.cleanup()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()  # it holds nothing worth an orderly end, which takes TensorFlow seconds
            process.wait()
            for pipe in _pipes(process):
                with contextlib.suppress(OSError):
                    pipe.close()

    def _ask(self, **request: Any) -> dict[str, Any]:
        if self._failure:
            raise OptkitError(self._failure)
        self.start()
        process = self._process
        if process is None:
            raise AssertionError("not started")
        stdin, stdout = _pipes(process)
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            ready, _, _ = select.select([stdout], [], [], _ANSWER_WITHIN_SECONDS)
            line = stdout.readline() if ready else ""
        except OSError:
            line = ""
        if not line:
            status = process.poll()
            reason = f"exit status {status}" if status is not None else "no answer in time"
            last_words = " ".join(self._log.read_text(errors="replace").split()[-30:])
            # A late answer would be taken for that to the next question: no more questions.
            self._failure = f"The measuring process failed ({reason}): {last_words}"
            self._end()
            raise OptkitError(self._failure)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise OptkitError(f"The measuring process could not do it: {answer['error']}")
        return answer

    def _write(self, key: str, artifact: Artifact) -> _Files:
        if key in self._files:
            return self._files[key]
        folder = Path(self._folder.name) / key
        folder.mkdir()
        try:
            kind = artifact.kind
            if isinstance(artifact, KerasArtifact):
                inputs = self._save_function(artifact, folder / "model")
                path = folder / "model"
            elif isinstance(artifact, SavedModelArtifact):
                inputs = self._save_graph(artifact, folder / "model")
                path, kind = folder / "model", KerasArtifact.kind  # the same runner
            elif isinstance(artifact, TFLiteArtifact):
                path = artifact.save(folder / "model.tflite")
                named = artifact.file_inputs(self._sample)  # what its front makes of the sample
                inputs = [port.quantize(named[port.name]) for port in artifact.inputs]
            else:
                raise OptkitError(
                    f"A {artifact.kind} artifact has no runtime that can be measured."
                )
            np.savez(folder / "inputs.npz", *map(_plain, inputs))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._files[key] = _Files(artifact, folder, kind, path, folder / "inputs.npz")
        return self._files[key]

    def load(self, key: str, artifact: Artifact) -> None:
        """Hands an artifact to the process under a name.

        Raises:
            OptkitError: For a kind of artifact that cannot be run there.
        """
        files = self._write(key, artifact)
        self._ask(
            command="load",
            key=key,
            kind=files.kind,
            path=str(files.path),
            inputs=str(files.inputs),
        )

    def _measured(self, names: list[str], **request: Any) -> dict[str, Any]:
        """What the process found, if it ran what it was given.

        Raises:
            OptkitError: If an artifact cannot be run there, or if what ran there gave other
                outputs than the artifact.
        """
        outputs = Path(self._folder.name) / "outputs.npz"
        answer = self._ask(outputs=str(outputs), **request)
        with np.load(outputs) as stored:
            for k, key in enumerate(names):
                given: dict[str, list[np.ndarray]] = {}  # by copy, an array an output
                for name in stored.files:
                    of, copy, _ = name.split("-")
                    if int(of) == k:
                        given.setdefault(copy, []).append(stored[name])
                _check_same(self._files[key].artifact, self._sample, list(given.values()))
        return answer

    def memory(self, key: str, artifact: Artifact) -> Memory:
        """Peak memory of a fresh process that loads and runs an artifact.

        A Keras artifact is run without the device's limit of memory.

        Raises:
            DoesNotFitError: If the artifact does not fit in the device's memory.
            OptkitError: If it cannot be run.
        """
        files = self._write(key, artifact)
        if files.kind == "tflite":
            return probe_litert(files.path, files.inputs, self.device)
        answer = self._ask(command="memory", path=str(files.path), inputs=str(files.inputs))
        return Memory(**answer)

    def _save_function(self, artifact: KerasArtifact, path: Path) -> list[np.ndarray]:
        """Saves the model as one traced function, which needs no Python class to load."""
        tf = tensorflow()
        inputs = self._typed(signature(artifact.model).inputs)
        module = tf.Module()
        module.held = list(artifact.model.variables)
        module.run = inference_function(
            artifact.model,
            batch=self.batch_size,
            shapes=tuple(value.shape[1:] for value in inputs),
            jit=artifact.jit,
        )
        try:
            tf.saved_model.save(module, str(path))
        except AssertionError:
            # The model holds more than variables (lookup tables): let Keras list it, which is slow.
            module.model = artifact.model
            tf.saved_model.save(module, str(path))
        return inputs

    def _save_graph(self, artifact: SavedModelArtifact, path: Path) -> list[np.ndarray]:
        """Saves what a SavedModel serves as one traced function."""
        tf = tensorflow()
        inputs = self._typed(artifact.signature.inputs)
        module = tf.Module()
        module.held = artifact.trackable
        module.run = artifact.inference_function(
            batch=self.batch_size, shapes=tuple(value.shape[1:] for value in inputs)
        )
        tf.saved_model.save(module, str(path))
        return inputs

    def _typed(self, infos: tuple[TensorInfo, ...]) -> list[np.ndarray]:
        named = named_inputs(self._sample, [info.name for info in infos])
        return [
            named[info.name] if info.dtype == "string" else named[info.name].astype(info.dtype)
            for info in infos
        ]

    def unload(self, key: str) -> None:
        """Forgets an artifact and removes its files."""
        files = self._files.pop(key, None)
        if files is not None:
            shutil.rmtree(files.folder, ignore_errors=True)
        if self._process is not None:
            self._ask(command="unload", key=key)

    def throughput(self, key: str, callers: int) -> Throughput:
        """Lets parallel callers use a loaded artifact, each waiting for its answer.

        Args:
            key: The name it was loaded under.
            callers: How many callers, at least 1. In LiteRT each has an interpreter of its own.

        Raises:
            OptkitError: If no request was answered.
        """
        found = self._measured(
            [key], command="throughput", key=key, callers=callers, seconds=self.seconds
        )
        answered, errors = found["answered"], found["errors"]
        if not answered:
            raise OptkitError(f"All {errors} requests failed, the last with {found['last_error']}.")
        p50, p95, p99 = (seconds * 1e3 for seconds in found["percentiles"])
        return Throughput(
            callers=callers,
            batch_size=self.batch_size,
            requests_per_second=answered / found["seconds"],
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
            error_rate=errors / (errors + answered),
        )

    def _times(self, keys: list[str]) -> list[list[np.ndarray]]:
        """For each copy, the times of each key in seconds, in order."""
        answer = self._measured(
            keys,
            command="time",
            keys=keys,
            copies=_COPIES,
            seconds=self.seconds / _COPIES,
            precision=_PRECISION,
            minimum=_MINIMUM_RUNS,
        )
        return [[np.array(times) for times in copy] for copy in answer["times"]]

    def time(self, key: str) -> Latency:
        """Times one artifact by itself."""
        return _latency(np.concatenate([times for (times,) in self._times([key])]))

    def time_against(self, key: str, other: str) -> tuple[Latency, Speedup]:
        """Times an artifact in turns with another, so that drift of the machine cancels."""
        copies = self._times([other, key])
        ratios = [np.median(by_block(others) / by_block(times)) for others, times in copies]
        latency = _latency(np.concatenate([times for _, times in copies]))
        ratio, (low, high) = mean_ratio(np.array(ratios))
        return latency, Speedup(ratio, (low / (1 + _RESOLUTION), high * (1 + _RESOLUTION)))


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    if process.stdin is None or process.stdout is None:
        raise AssertionError("started without pipes")
    return process.stdin, process.stdout


def _plain(values: np.ndarray) -> np.ndarray:
    """Texts in a type that NumPy writes to files."""
    if values.dtype.kind != "O":
        return values
    letters = [item if isinstance(item, bytes) else str(item).encode() for item in values.ravel()]
    return np.array(letters, dtype=bytes).reshape(values.shape)


def _latency(seconds: np.ndarray) -> Latency:
    milliseconds = seconds * 1e3
    median, p90, p99 = (float(value) for value in np.percentile(milliseconds, [50, 90, 99]))
    return Latency(median, p90, p99, bootstrap_median(milliseconds))


def _check_same(artifact: Artifact, sample: Any, given: list[list[np.ndarray]]) -> None:
    """Holds what copies gave in the process to what the artifact itself gives for the same.

    Args:
        artifact: The artifact.
        sample: What it was given.
        given: For each copy, what it gave: an array an output, in the order of the runtime.
    """
    expected = artifact.predict(sample, batch_size=len(first_leaf(sample)))
    ports = artifact.outputs if isinstance(artifact, TFLiteArtifact) else None
    share = _COARSE_ROUNDING if _computes_coarsely(artifact) else _ROUNDING
    names = list(expected) if isinstance(expected, dict) else [""]
    for copy in given:
        for place, name in enumerate(names):
            wanted, outputs = expected[name] if name else expected, copy[place]
            step = 0.0
            if ports is not None:
                step, outputs = ports[place].scale, ports[place].dequantize(outputs)
            largest = float(np.max(np.abs(wanted), initial=0.0))
            _check_close(outputs, wanted, max(2 * step, share * largest, 1e-6))


def _check_close(outputs: np.ndarray, expected: np.ndarray, allowed: float) -> None:
    if outputs.shape != expected.shape:
        raise OptkitError(
            "The measuring process ran something else than the artifact: its outputs have "
            f"shape {outputs.shape}, those of the artifact {expected.shape}."
        )
    apart = float(np.max(np.abs(outputs.astype(np.float64) - expected), initial=0.0))
    if not apart <= allowed:
        raise OptkitError(
            "The measuring process ran something else than the artifact: for the same samples "
            f"its outputs are up to {apart:.3g} apart, where rounding explains {allowed:.3g}."
        )


def _computes_coarsely(artifact: Artifact) -> bool:
    if isinstance(artifact, KerasArtifact):
        return bool(mixed_precision_layers(artifact.model))
    return any(layer.dtype in _QUANTIZED_TYPES for layer in artifact.layers() or ())
