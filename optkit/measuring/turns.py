"""Two TFLite files in turns, in this process: a quick look for the notes of a pass.

What a report's figures are taken from is measured in processes of their own (`latency`), against the
Keras model. This tells what storing a file in another way did to it, in half a second.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from optkit.artifact import TFLiteArtifact
from optkit.measuring.latency import Speedup
from optkit.measuring.statistics import bootstrap_median
from optkit.measuring.worker import by_block, time_in_turns

__all__ = ["in_turns"]

# Where a file lies in memory makes it a few per cent faster or slower, and each is loaded once.
_RESOLUTION = 0.04
_SECONDS = 0.25
_ROUNDS = 8


def in_turns(file: TFLiteArtifact, other: TFLiteArtifact, sample: Any) -> Speedup:
    """How many times faster a file runs one sample than another, each on one thread.

    Args:
        file: The file.
        other: What it is held against; it takes the same.
        sample: Inputs of one sample, shape ``(1, …)`` each, as `predict` takes them.

    Example:
        >>> from optkit.convert import convert
        >>> from optkit.testing import digits, small_model
        >>> file = convert(small_model()).artifact
        >>> in_turns(file, file, digits(100).train[0][:1]).ratio > 0
        True
    """
    runners = [_runner(item, sample) for item in (other, file)]
    others, times = time_in_turns(runners, seconds=_SECONDS, precision=0.02, minimum=_ROUNDS)
    ratios = by_block(others) / by_block(times)
    low, high = bootstrap_median(ratios)
    return Speedup(float(np.median(ratios)), (low / (1 + _RESOLUTION), high * (1 + _RESOLUTION)))


def _runner(file: TFLiteArtifact, sample: Any) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    named = file.file_inputs(sample)
    stored = [(port.index, port.quantize(named[port.name])) for port in file.inputs]
    interpreter = Interpreter(model_content=file.content, num_threads=1)
    for index, value in stored:
        interpreter.resize_tensor_input(index, value.shape)
    interpreter.allocate_tensors()

    def run() -> None:
        for index, value in stored:
            interpreter.set_tensor(index, value)
        interpreter.invoke()

    return run
