"""Peak memory of an artifact in a fresh process, under the limits of a device."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optkit.errors import OptkitError, PipelineError
from optkit.measuring.settings import Device

__all__ = ["DoesNotFitError", "Memory", "check_device", "probe_environment", "probe_litert"]

_MEGABYTE = 2**20
_RUNS = 3
_ANSWER_WITHIN_SECONDS = 300


class DoesNotFitError(OptkitError):
    """The artifact cannot be loaded and run within the device's memory."""


@dataclass(frozen=True)
class Memory:
    """Resident memory of a process, in bytes.

    Attributes:
        runtime_bytes: Before it loaded the artifact.
        peak_bytes: Its peak after loading and running the artifact.
    """

    runtime_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class _Answer:
    """What a probe said before it ended."""

    lines: tuple[dict[str, Any], ...]
    status: int
    last_words: str


def check_device(device: Device) -> None:
    """Refuses limits that this machine, or the runtime itself, cannot keep.

    Raises:
        PipelineError: With the reason; for memory also with what the runtime needs, as measured.

    Example:
        >>> from optkit.measuring import Device, check_device
        >>> check_device(Device(threads=1, cpus=1))
    """
    if device.cpus is None and device.memory_mb is None:
        return
    if not hasattr(os, "sched_getaffinity"):
        raise PipelineError(
            f"{device!r} needs the limits of Linux, and this is {sys.platform}. Leave `cpus` and "
            "`memory_mb` out."
        )
    available = len(os.sched_getaffinity(0))
    if device.cpus is not None and device.cpus > available:
        raise PipelineError(
            f"`Device(cpus={device.cpus})` asks for more cores than this process may use: "
            f"{available}."
        )
    if device.memory_mb is not None:
        _check_memory(device)


@functools.lru_cache
def _check_memory(device: Device) -> None:
    if _ask(device).lines:
        return
    needed = -(-_address_bytes(device) // _MEGABYTE)
    raise PipelineError(
        f"LiteRT itself cannot start within `memory_mb={device.memory_mb}`: its process (Python, "
        f"NumPy and LiteRT, without any artifact) takes {needed} MB of address space. Give more "
        "than that, or leave the limit out."
    )


def _address_bytes(device: Device) -> int:
    """Address space that the runtime takes up where nothing limits it."""
    free = _ask(Device(threads=device.threads, cpus=device.cpus))
    if not free.lines:
        raise OptkitError(f"The process that measures memory does not start: {free.last_words}")
    return int(free.lines[0]["address_bytes"])


def probe_litert(path: Path, inputs: Path, device: Device) -> Memory:
    """Loads and runs a flatbuffer in a fresh process that holds LiteRT, NumPy and nothing else.

    Args:
        path: The ``.tflite`` file.
        inputs: An ``.npz`` file of the inputs in the file's order.
        device: The limits.

    Raises:
        DoesNotFitError: If it runs without the limit of memory, but not with it.
        OptkitError: If it does not run at all.
    """
    answer = _ask(device, path, inputs)
    if len(answer.lines) == 2:
        return Memory(answer.lines[0]["runtime_bytes"], answer.lines[1]["peak_bytes"])
    if device.memory_mb is not None:
        free = _ask(Device(threads=device.threads, cpus=device.cpus), path, inputs)
        if len(free.lines) == 2:
            # Which of the two it is, a broken file or a limit, only a run without it can tell.
            peak = free.lines[1]["peak_bytes"] / _MEGABYTE
            raise DoesNotFitError(
                f"the artifact does not fit in {device.memory_mb} MB: a process that loads and runs "
                f"it without a limit peaks at {peak:.0f} MB resident, and address space is more"
            )
        answer = free
    raise OptkitError(f"The process that measures memory failed: {answer.last_words}")


def probe_environment(threads: int) -> dict[str, str]:
    """Environment in which only what is measured takes up memory and threads.

    Args:
        threads: Threads for the libraries that keep a pool of their own.
    """
    package_parent = str(Path(__file__).resolve().parents[2])
    search = os.pathsep.join([package_parent, *(path for path in sys.path if path)])
    pools = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return (
        dict(os.environ)
        | dict.fromkeys(pools, str(threads))
        | {"PYTHONPATH": search, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    )


def _ask(device: Device, path: Path | None = None, inputs: Path | None = None) -> _Answer:
    memory = device.memory_mb
    request = {
        "path": None if path is None else str(path),
        "inputs": None if inputs is None else str(inputs),
        "threads": device.threads,
        "cpus": device.cpus,
        "memory_bytes": None if memory is None else memory * _MEGABYTE,
        "runs": _RUNS,
    }
    # By its path and with -P: as a module it would load optkit, and with its folder on the search
    # path its neighbours would stand in for modules of Python.
    script = str(Path(__file__).with_name("probe.py"))
    try:
        done = subprocess.run(
            [sys.executable, "-P", script, json.dumps(request)],
            capture_output=True,
            text=True,
            errors="replace",
            env=probe_environment(device.threads),
            timeout=_ANSWER_WITHIN_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise OptkitError(
            f"The process that measures memory gave no answer in {_ANSWER_WITHIN_SECONDS} s."
        ) from error
    lines = tuple(json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    last_words = " ".join(done.stderr.split()[-30:]) or f"exit status {done.returncode}"
    return _Answer(lines, done.returncode, last_words)
