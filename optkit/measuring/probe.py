"""The process in which the memory of a LiteRT artifact is measured.

Run as a file, ``python -P probe.py REQUEST``, so that nothing of optkit is loaded: what counts is the
memory of the artifact and of the runtime. It limits itself first, says that the runtime is ready,
then loads and runs the artifact. It writes one line of JSON after each of the two.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

__all__ = ["limit", "status_bytes"]


def status_bytes(name: str) -> int:
    """A field of ``/proc/self/status``, such as ``VmHWM``, the peak of the resident memory.

    Not ``ru_maxrss``, which a process inherits from the one that started it.
    """
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def limit(cpus: int | None, memory_bytes: int | None = None) -> None:
    """Keeps this process to so many cores and so much address space."""
    if cpus is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cpus])
    if memory_bytes is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def _tell(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Answers one request."""
    request = json.loads(sys.argv[1])
    limit(request["cpus"], request["memory_bytes"])
    import resource

    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    before = status_bytes("VmRSS")
    _tell(
        runtime_bytes=before,
        address_bytes=status_bytes("VmPeak"),
        cpus=len(os.sched_getaffinity(0)),
        limit_bytes=resource.getrlimit(resource.RLIMIT_AS)[0],
    )
    if request["path"] is None:
        return
    with np.load(request["inputs"]) as stored:
        inputs = [stored[name] for name in stored.files]
    interpreter = Interpreter(model_path=request["path"], num_threads=request["threads"])
    details = interpreter.get_input_details()
    for detail, value in zip(details, inputs, strict=True):
        if tuple(detail["shape"]) != value.shape:
            interpreter.resize_tensor_input(detail["index"], value.shape)
    interpreter.allocate_tensors()
    for _ in range(request["runs"]):
        for detail, value in zip(details, inputs, strict=True):
            interpreter.set_tensor(detail["index"], value)
        interpreter.invoke()
        interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    _tell(peak_bytes=status_bytes("VmHWM"))


if __name__ == "__main__":
    main()
