"""Latency of one sample, in a fresh process with a stated number of threads."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from optkit.artifact import Artifact, KerasArtifact, TFLiteArtifact
from optkit.artifact.base import named_inputs
from optkit.artifact.keras import inference_function
from optkit.errors import OptkitError
from optkit.measuring.statistics import Interval, bootstrap_median, mean_ratio
from optkit.models import signature
from optkit.runtime import tensorflow

__all__ = ["Latency", "LatencyProcess", "Speedup"]

# Where a model lies in memory alone makes it a few per cent faster or slower, for as long as it
# lies there. So each is loaded several times, and the copies, not the runs, are what intervals
# count.
_COPIES = 5
# What is left of such effects between copies that were loaded earlier and later: one artifact
# against itself differs by up to so much, so no interval is narrower.
_RESOLUTION = 0.01
_SECONDS = 1.0  # for all copies together
_PRECISION = 0.01
_MINIMUM_RUNS = 4
_ANSWER_WITHIN_SECONDS = 300


@dataclass(frozen=True)
class Latency:
    """Time of one sample, in milliseconds."""

    median_ms: float
    p90_ms: float
    ci: Interval


@dataclass(frozen=True)
class Speedup:
    """How many times faster than the other: mean over the copies, and its interval."""

    ratio: float
    ci: Interval


class LatencyProcess:
    """A worker process that holds artifacts and times them, kept for a whole run.

    A Keras model runs there as a ``tf.function`` on a fixed input signature, a flatbuffer in
    LiteRT; both take and give NumPy arrays in the types that they are stored with.

    Args:
        threads: Threads for either runtime, set before it starts.
        sample: One sample of the inputs, shape ``(1, …)`` each; it pins open dimensions.
    """

    def __init__(self, threads: int, sample: Any):
        self.threads = threads
        self._sample = sample
        self._folder = tempfile.TemporaryDirectory(prefix="optkit-")
        self._process: subprocess.Popen[str] | None = None
        self._failure = ""
        self._log = Path(self._folder.name) / "worker.log"

    def __enter__(self) -> LatencyProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Starts the process, which then loads its libraries beside the caller's work."""
        if self._process is not None:
            return
        package_parent = str(Path(__file__).resolve().parents[2])
        search = os.pathsep.join([package_parent, *(path for path in sys.path if path)])
        # Nothing but latency is measured there: keep it to the processor and quiet.
        environment = os.environ | {
            "PYTHONPATH": search,
            "CUDA_VISIBLE_DEVICES": "-1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "optkit.measuring.worker", str(self.threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
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

    def load(self, key: str, artifact: Artifact) -> None:
        """Hands an artifact to the process under a name.

        Raises:
            OptkitError: If the artifact cannot be run there.
        """
        folder = Path(self._folder.name) / key
        folder.mkdir()
        if isinstance(artifact, KerasArtifact):
            inputs = self._save_function(artifact, folder / "model")
            path = folder / "model"
        elif isinstance(artifact, TFLiteArtifact):
            path = artifact.save(folder / "model.tflite")
            named = named_inputs(self._sample, [port.name for port in artifact.inputs])
            inputs = [port.quantize(named[port.name]) for port in artifact.inputs]
        else:
            raise OptkitError(f"The latency of a {artifact.kind} artifact cannot be measured.")
        stored = folder / "inputs.npz"
        np.savez(stored, *inputs)
        self._ask(
            command="load",
            key=key,
            kind=artifact.kind,
            path=str(path),
            inputs=str(stored),
            copies=_COPIES,
        )

    def _save_function(self, artifact: KerasArtifact, path: Path) -> list[np.ndarray]:
        """Saves the model as one traced function, which needs no Python class to load."""
        tf = tensorflow()
        infos = signature(artifact.model).inputs
        named = named_inputs(self._sample, [info.name for info in infos])
        inputs = [named[info.name].astype(info.dtype) for info in infos]
        module = tf.Module()
        module.held = list(artifact.model.variables)
        module.run = inference_function(
            artifact.model, batch=1, shapes=tuple(value.shape[1:] for value in inputs)
        )
        try:
            tf.saved_model.save(module, str(path))
        except AssertionError:
            # The model holds more than variables (lookup tables): let Keras list it, which is slow.
            module.model = artifact.model
            tf.saved_model.save(module, str(path))
        return inputs

    def unload(self, key: str) -> None:
        """Forgets an artifact."""
        self._ask(command="unload", key=key)

    def _times(self, keys: list[str]) -> list[list[np.ndarray]]:
        """For each copy, the times of each key in seconds, in order."""
        answer = self._ask(
            command="time",
            keys=keys,
            seconds=_SECONDS / _COPIES,
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
        # Two rounds, A B and B A, make one pair: whoever runs second finds warmer caches.
        ratios = [np.median(_by_two(others) / _by_two(times)) for others, times in copies]
        latency = _latency(np.concatenate([times for _, times in copies]))
        ratio, (low, high) = mean_ratio(np.array(ratios))
        return latency, Speedup(ratio, (low / (1 + _RESOLUTION), high * (1 + _RESOLUTION)))


def _by_two(figures: np.ndarray) -> np.ndarray:
    return np.asarray(figures[: len(figures) // 2 * 2].reshape(-1, 2).sum(axis=1))


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    if process.stdin is None or process.stdout is None:
        raise AssertionError("started without pipes")
    return process.stdin, process.stdout


def _latency(seconds: np.ndarray) -> Latency:
    milliseconds = seconds * 1e3
    low, high = bootstrap_median(milliseconds)
    return Latency(
        float(np.median(milliseconds)), float(np.percentile(milliseconds, 90)), (low, high)
    )
