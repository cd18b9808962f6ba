"""Work that may take its process down, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from optkit.errors import OptkitError

__all__ = ["run_module"]

_LAST_WORDS = 30


def run_module(module: str, *arguments: str, what: str, seconds: float) -> None:
    """Runs ``python -m module arguments…`` in a fresh process and waits for it.

    Args:
        module: Name of the module to run.
        arguments: What it is given.
        what: The work in words, for errors, such as ``"the calibration of the model"``.
        seconds: How long it may take, above 0.

    Raises:
        OptkitError: If the process crashes, is killed, fails or takes too long. The caller's
            process goes on.

    Example:
        >>> run_module("platform", what="a test", seconds=60)
        >>> run_module("no_such_module", what="a test", seconds=60)
        Traceback (most recent call last):
        ...
        optkit.errors.OptkitError: a test failed in a process of its own (exit status 1): ...
    """
    # What this process imports optkit from may not be where a fresh one would look.
    root = str(Path(__file__).parents[1])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "CUDA_VISIBLE_DEVICES": "",  # the caller's process may hold all memory of the devices
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise OptkitError(
            f"{what} did not end within {seconds:g} seconds, in a process of its own, which was "
            "ended. The model may be too large for this machine."
        ) from error
    if done.returncode == 0:
        return
    if done.returncode < 0:
        try:
            name = signal.Signals(-done.returncode).name
        except ValueError:
            name = f"signal {-done.returncode}"
        reason = f"crashed it with {name}"
        if name == "SIGKILL":
            reason += ", as happens where memory runs out"
        raise OptkitError(f"{what} ran in a process of its own and {reason}.")
    words = " ".join(done.stderr.split()[-_LAST_WORDS:])
    raise OptkitError(
        f"{what} failed in a process of its own (exit status {done.returncode}): {words}"
    )
