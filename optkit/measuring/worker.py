"""The process in which artifacts are timed: ``python -m optkit.measuring.worker SETTINGS``.

A process of its own, because TensorFlow refuses to change its threads once started. It reads one
JSON request a line from standard input and answers each with one line on what was its standard
output; everything that libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from optkit.measuring.probe import limit
from optkit.measuring.zygote import Zygote

Runner = Callable[[], Any]

# Who goes first in each round of a block. A B, B A alone would leave the one always in the middle
# of four and the other at their ends, which are not equally fast; B A, A B then trade the places.
_ORDER = (0, 1, 1, 0)
BLOCK = len(_ORDER)
_BLOCKS = 6  # between two looks at the interval


def _keras_runner(path: str, inputs: list[np.ndarray], threads: int) -> Runner:
    import tensorflow as tf

    if not getattr(tf, "_optkit_threads_set", False):
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        tf._optkit_threads_set = True
    module = tf.saved_model.load(path)
    function = module.run

    def run() -> Any:
        given = function(*[tf.constant(value) for value in inputs])
        if isinstance(given, list | tuple | dict):
            return [one.numpy() for one in tf.nest.flatten(given)]
        return given.numpy()

    run.module = module  # type: ignore[attr-defined]  # holds the variables
    run.shared = True  # type: ignore[attr-defined]  # one function serves callers in parallel
    return run


def _tflite_runner(path: str, inputs: list[np.ndarray], threads: int) -> Runner:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=threads)
    details = interpreter.get_input_details()
    for detail, value in zip(details, inputs, strict=True):
        if tuple(detail["shape"]) != value.shape:
            interpreter.resize_tensor_input(detail["index"], value.shape)
    interpreter.allocate_tensors()
    places = [detail["index"] for detail in details]
    outputs = [detail["index"] for detail in interpreter.get_output_details()]
    output = outputs[0]

    def run() -> Any:
        for place, value in zip(places, inputs, strict=True):
            interpreter.set_tensor(place, value)
        interpreter.invoke()
        if len(outputs) > 1:
            return [interpreter.get_tensor(index) for index in outputs]
        return interpreter.get_tensor(output)

    return run


def _warm_up(run: Runner, seconds: float) -> None:
    end = time.perf_counter() + seconds
    runs = 0
    while runs < 3 or (time.perf_counter() < end and runs < 1000):
        run()
        runs += 1


def _relative_width(ratios: np.ndarray) -> float:
    """Half-width of the interval of the median, relative to it, from order statistics."""
    ordered = np.sort(ratios)
    n = len(ordered)
    reach = 0.98 * np.sqrt(n)
    low, high = ordered[max(0, int(n / 2 - reach))], ordered[min(n - 1, int(n / 2 + reach))]
    return float((high - low) / 2 / np.median(ordered))


def time_in_turns(
    runners: list[Runner], *, seconds: float, precision: float, minimum: int
) -> list[list[float]]:
    """Times runners in turns until the interval is tight or the time is up.

    Args:
        runners: One or two functions.
        seconds: Time after which to stop.
        precision: Relative half-width of the interval of the median (of the ratio, for two) at
            which to stop earlier.
        minimum: Rounds to make in any case; a block of four is always made.

    Returns:
        For each runner its times in seconds, in order, in whole blocks of four.
    """
    for run in runners:
        _warm_up(run, seconds / 4)
    times: list[list[float]] = [[] for _ in runners]
    orders = [range(len(runners)), range(len(runners))[::-1]]
    start = time.perf_counter()
    while True:
        for block in range(_BLOCKS):
            for first in _ORDER:
                for k in orders[first ^ block % 2]:
                    if len(runners) > 1:
                        # Not timed: it finds the caches as the other left them, which nothing does
                        # that runs by itself. A small model beside a large one would look slower.
                        runners[k]()
                    began = time.perf_counter()
                    runners[k]()
                    times[k].append(time.perf_counter() - began)
            elapsed = time.perf_counter() - start
            if elapsed > seconds and len(times[0]) >= minimum:
                return times
        figures = by_block(times[0])
        if len(times) > 1:
            figures = figures / by_block(times[1])
        if len(figures) >= max(minimum / BLOCK, 20) and _relative_width(figures) < precision:
            return times


def by_block(times: Sequence[float] | np.ndarray) -> np.ndarray:
    """Sums over the whole blocks of rounds, in which nobody has the better places."""
    return np.asarray(np.asarray(times).reshape(-1, BLOCK).sum(axis=1))


def time_callers(runners: list[Runner], *, seconds: float) -> dict[str, Any]:
    """Lets parallel callers ask, each again as soon as it is answered.

    Args:
        runners: One for each caller.
        seconds: How long to go on asking.

    Returns:
        ``seconds`` from the first question to the last answer, number of requests ``answered``,
        their ``percentiles`` (50, 95 and 99) in seconds, number of ``errors``, and the
        ``last_error`` in words.
    """
    for run in runners:
        try:
            _warm_up(run, seconds / 10)
        except Exception:
            break  # it is counted below
    times: list[list[float]] = [[] for _ in runners]
    errors: list[Exception] = []
    gate = threading.Barrier(len(runners) + 1)

    def call(run: Runner, mine: list[float]) -> None:
        gate.wait()
        end = time.perf_counter() + seconds
        began = time.perf_counter()
        while began < end:
            try:
                run()
            except Exception as error:
                errors.append(error)
            else:
                mine.append(time.perf_counter() - began)
            began = time.perf_counter()

    callers = [
        threading.Thread(target=call, args=pair, daemon=True)
        for pair in zip(runners, times, strict=True)
    ]
    for caller in callers:
        caller.start()
    gate.wait()
    start = time.perf_counter()
    for caller in callers:
        caller.join()
    lasted = time.perf_counter() - start
    answered = np.array([value for mine in times for value in mine])
    return {
        "seconds": lasted,
        "answered": len(answered),
        "percentiles": np.percentile(answered, [50, 95, 99]).tolist() if len(answered) else [],
        "errors": len(errors),
        "last_error": f"{type(errors[-1]).__name__}: {errors[-1]}" if errors else None,
    }


def _read_inputs(path: str) -> list[np.ndarray]:
    with np.load(path) as stored:
        return [stored[name] for name in stored.files]


def _by_output(name: str, given: Any) -> dict[str, Any]:
    """What a copy gave under names of their own: one array an output, in the runtime's order."""
    arrays = given if isinstance(given, list) else [given]
    return {f"{name}-{place}": array for place, array in enumerate(arrays)}


class _Server:
    """What the process holds, and a method for each command."""

    def __init__(self, threads: int, zygote: Zygote | None):
        self.threads, self.zygote = threads, zygote
        self.loaders: dict[str, Callable[[], Runner]] = {}

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Takes note of an artifact; copies of it are loaded when they are timed."""
        inputs = _read_inputs(request["inputs"])
        load = {"keras": _keras_runner, "tflite": _tflite_runner}[request["kind"]]
        self.loaders[request["key"]] = lambda: load(request["path"], inputs, self.threads)
        return {}

    def unload(self, request: dict[str, Any]) -> dict[str, Any]:
        """Forgets an artifact."""
        self.loaders.pop(request["key"], None)
        return {}

    def time(self, request: dict[str, Any]) -> dict[str, Any]:
        """Times artifacts in turns, copy by copy, and writes what each copy gave."""
        keys = request["keys"]
        copies = []
        for i in range(request["copies"]):
            # Loaded in turns, too: of ten equal copies those that were loaded earlier can all be
            # a few per cent faster or slower than those that were loaded later.
            order = keys if i % 2 == 0 else keys[::-1]
            loaded = {key: self.loaders[key]() for key in order}
            copies.append([loaded[key] for key in keys])
        given: dict[str, Any] = {}
        for i, runners in enumerate(copies):
            for k in range(len(keys)):
                given |= _by_output(f"{k}-{i}", runners[k]())
        np.savez(request["outputs"], **given)
        settings = {name: request[name] for name in ("seconds", "precision", "minimum")}
        return {"times": [time_in_turns(runners, **settings) for runners in copies]}

    def throughput(self, request: dict[str, Any]) -> dict[str, Any]:
        """Lets parallel callers use an artifact, and writes what it gave."""
        load, callers = self.loaders[request["key"]], request["callers"]
        runners = [load()]
        if getattr(runners[0], "shared", False):
            runners *= callers
        else:
            runners += [load() for _ in range(callers - 1)]
        np.savez(request["outputs"], **_by_output("0-0", runners[0]()))
        return time_callers(runners, seconds=request["seconds"])

    def memory(self, request: dict[str, Any]) -> dict[str, Any]:
        """Measures the memory of a Keras artifact in a fresh process."""
        if self.zygote is None:
            raise ValueError("this process was started without TensorFlow")
        return self.zygote.question(path=request["path"], inputs=request["inputs"])

    def device(self, request: dict[str, Any]) -> dict[str, Any]:
        """What this process may use, as the operating system says."""
        available = getattr(os, "sched_getaffinity", None)
        return {"cpus": len(available(0)) if available else os.cpu_count()}


def main() -> None:
    """Serves requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    settings = json.loads(sys.argv[1])
    limit(settings["cpus"])
    zygote = None
    if settings["keras"]:
        import tensorflow  # noqa: F401 (which takes seconds; nothing of it is started)

        if os.path.exists("/proc/self/pagemap"):

            def work(question: dict[str, Any]) -> Runner:
                inputs = _read_inputs(question["inputs"])
                run = _keras_runner(question["path"], inputs, settings["threads"])
                for _ in range(settings["runs"]):
                    run()
                return run

            # Before anything is loaded, and without the ends of pipes that are for this process.
            zygote = Zygote(work, close=(0, answers.fileno()))
    server = _Server(settings["threads"], zygote)
    commands = {
        name: getattr(server, name)
        for name in ("load", "unload", "time", "throughput", "memory", "device")
    }
    for line in sys.stdin:
        try:
            request = json.loads(line)
            answer = commands[request["command"]](request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
