"""What XLA can compile, and what it says where it cannot."""

from __future__ import annotations

import re
from typing import Any

from optkit.errors import first_line
from optkit.runtime import tensorflow

__all__ = ["hindrance", "is_compile_failure", "reason_of"]

_NO_KERNEL = re.compile(r"No registered '(\w+)' OpKernel for XLA")
_OF_XLA = re.compile(r"XLA|xla|trying to compile graph|compile-time constant")


def hindrance(model: Any, strategy: Any = None) -> str | None:
    """Why a model is not even given to XLA; ``None`` where it may be.

    Args:
        model: A built tf_keras model.
        strategy: The ``tf.distribute`` strategy under which it trains; ``None`` for none.
    """
    # XLA would end the whole process on them, where it refuses other things with an error.
    if any(tensor.dtype == tensorflow().string for tensor in model.inputs):
        return "the model takes texts, of which XLA knows nothing"
    if strategy is not None and strategy.num_replicas_in_sync > 1:
        devices = strategy.extended.worker_devices
        if not any("GPU" in device.upper() for device in devices):
            return "the replicas of this strategy are processors, whose sums XLA cannot compile"
    return None


def is_compile_failure(error: BaseException) -> bool:
    """Whether an error says that XLA could not compile something."""
    tf = tensorflow()
    kinds = (
        *(tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, tf.errors.InternalError),
        *(tf.errors.NotFoundError, tf.errors.FailedPreconditionError),
    )
    return isinstance(error, kinds) and bool(_OF_XLA.search(str(error)))


def reason_of(error: BaseException) -> str:
    """In a few words, why XLA could not compile something."""
    missing = sorted(set(_NO_KERNEL.findall(str(error))))
    if missing:
        return f"XLA has no operation {', '.join(missing[:3])}"
    lines = [line.strip() for line in str(error).splitlines() if "://" not in line]
    said = [line for line in lines if _OF_XLA.search(line)]
    return said[0][:300] if said else first_line(error)
