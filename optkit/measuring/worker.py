"""The process in which latency is measured: ``python -m optkit.measuring.worker THREADS``.

A process of its own, because TensorFlow refuses to change its threads once started. It reads one
JSON request a line from standard input and answers each with one line on what was its standard
output; everything that libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Runner = Callable[[], Any]

_CHUNK = 20  # pairs between two looks at the clock and the interval


def _keras_runner(path: str, inputs: list[np.ndarray], threads: int) -> Runner:
    import tensorflow as tf

    if not getattr(tf, "_optkit_threads_set", False):
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        tf._optkit_threads_set = True
    module = tf.saved_model.load(path)
    function = module.run

    def run() -> Any:
        return function(*[tf.constant(value) for value in inputs]).numpy()

    run.module = module  # type: ignore[attr-defined]  # holds the variables
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
    output = interpreter.get_output_details()[0]["index"]

    def run() -> Any:
        for place, value in zip(places, inputs, strict=True):
            interpreter.set_tensor(place, value)
        interpreter.invoke()
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
        minimum: Rounds to make in any case, as long as they do not take ten times as long.

    Returns:
        For each runner its times in seconds, in order.
    """
    for run in runners:
        _warm_up(run, seconds / 4)
    turn = range(len(runners))
    times: list[list[float]] = [[] for _ in runners]
    start = time.perf_counter()
    while True:
        for i in range(_CHUNK):
            # A B, B A, A B, …: who runs second finds other things in the caches.
            for k in turn if i % 2 else reversed(turn):
                began = time.perf_counter()
                runners[k]()
                times[k].append(time.perf_counter() - began)
            elapsed = time.perf_counter() - start
            if i % 2 == 0:
                continue  # a round is whole when each has gone first
            if elapsed > 10 * seconds or (elapsed > seconds and len(times[0]) >= minimum):
                return times
        figures = np.array(times[0]).reshape(-1, 2).sum(1)
        if len(times) > 1:
            figures = figures / np.array(times[1]).reshape(-1, 2).sum(1)
        if len(figures) >= max(minimum, 40) and _relative_width(figures) < precision:
            return times


def main() -> None:
    """Serves requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threads = int(sys.argv[1])
    copies: dict[str, list[Runner]] = {}
    loaders = {"keras": _keras_runner, "tflite": _tflite_runner}
    for line in sys.stdin:
        try:
            request = json.loads(line)
            if request["command"] == "load":
                with np.load(request["inputs"]) as stored:
                    inputs = [stored[name] for name in stored.files]
                load = loaders[request["kind"]]
                copies[request["key"]] = [
                    load(request["path"], inputs, threads) for _ in range(request["copies"])
                ]
                answer: dict[str, Any] = {}
            elif request["command"] == "unload":
                copies.pop(request["key"], None)
                answer = {}
            else:
                chosen = zip(*(copies[key] for key in request["keys"]), strict=True)
                answer = {
                    "times": [
                        time_in_turns(
                            list(runners),
                            seconds=request["seconds"],
                            precision=request["precision"],
                            minimum=request["minimum"],
                        )
                        for runners in chosen
                    ]
                }
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
