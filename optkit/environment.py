"""What it takes to repeat a run: versions, processor, threads, seed, what was inferred."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from optkit.data import BoundData
from optkit.goals import Goals
from optkit.measuring import Measure
from optkit.metric import Metric
from optkit.models import is_compiled
from optkit.runtime import tensorflow
from optkit.task import Loss, Task

__all__ = ["describe_run", "describe_system", "switches", "training_threads"]

_PACKAGES = (
    "optkit",
    "tensorflow",
    "tf_keras",
    "keras",
    "tensorflow-model-optimization",
    "ai-edge-litert",
    "ai-edge-quantizer",
    "numpy",
    "scikit-learn",
)


def describe_run(
    *,
    model: Any,
    data: BoundData,
    task: Task,
    metric: Metric,
    loss: Loss,
    seed: int,
    measure: Measure,
    goals: Goals,
    pipeline: str,
) -> dict[str, Any]:
    """Plain values, fit for JSON.

    Args:
        model: The model that came in; ``None`` for what has no layers.
        data: The bound data.
        task: What the model is for.
        metric: The metric of the report.
        loss: The loss of the run.
        seed: Seed of the run.
        measure: How figures were taken.
        goals: What was asked for.
        pipeline: The pipeline as the call that makes it.
    """
    compiled = model is not None and is_compiled(model)
    return {
        "pipeline": pipeline,
        "seed": seed,
        "model": "a graph without layers" if model is None else model.name,
        "task": task.describe(),
        "loss": f"{loss.name} ({loss.source})",
        "metric": f"{metric.name} ({metric.source})",
        "optimizer": (
            f"{type(model.optimizer).__name__} (compiled model)" if compiled else "AdamW (default)"
        )
        + ", unless a pass names another",
        "data": data.describe() | {"batch_size": data.batch_size, "seed": data.seed},
        **describe_system(),
        "training_threads": training_threads(),
        "latency_threads": measure.device.threads if measure.device else measure.threads,
        "measure": measure.to_dict(),
        "goals": {name: value for name, value in goals.to_dict().items() if value is not None},
    }


def switches() -> dict[str, Any]:
    """What else of a process changes the numbers that TensorFlow computes."""
    from tensorflow.python.framework import config  # asked for nowhere else

    tf = tensorflow()
    names = ("TF_ENABLE_ONEDNN_OPTS", "TF_DETERMINISTIC_OPS", "TF_XLA_FLAGS", "XLA_FLAGS")
    return {
        "variables": {name: os.environ.get(name) for name in names},
        "deterministic": config.is_op_determinism_enabled(),
        "eager": tf.config.functions_run_eagerly(),
        "jit": tf.config.optimizer.get_jit(),
        "tensor_float_32": tf.config.experimental.tensor_float_32_execution_enabled(),
        "gpus": len(tf.config.list_physical_devices("GPU")),
    }


def training_threads() -> int:
    """Threads that one operation of TensorFlow is spread over in this process."""
    config = tensorflow().config.threading
    return int(config.get_intra_op_parallelism_threads() or os.cpu_count() or 1)


def describe_system() -> dict[str, Any]:
    """Versions, operating system, processor and cores."""
    return {
        "versions": {"python": platform.python_version()}
        | {name: version for name in _PACKAGES if (version := _version(name))},
        "system": platform.platform(terse=True),
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:  # Linux; `platform.processor()` only says the architecture there
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
