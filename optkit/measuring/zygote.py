"""A process that has imported TensorFlow and nothing more, and forks one child a question.

Importing TensorFlow takes seconds, so a fresh process for the memory of each Keras artifact would
cost more than everything else that is measured. A fork of a process that has imported TensorFlow
without starting it (no device, no thread) is as good as fresh, but for one thing: the system maps
the pages of the libraries' files into it anew, page by page, so that its resident memory starts
hundreds of megabytes too low. Therefore a child first touches the pages that its parent had.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from optkit.measuring.probe import status_bytes

__all__ = ["Zygote"]

_PAGE = mmap.PAGESIZE
_PRESENT = np.uint64(1 << 63)

Work = Callable[[dict[str, Any]], Any]


class Zygote:
    """Forks itself off the calling process at once, and a child for each question later.

    Args:
        work: Is called in the child with the question, before the peak is read.
        close: Descriptors of the calling process to close in the zygote.
    """

    def __init__(self, work: Work, close: tuple[int, ...] = ()):
        questions, ask = os.pipe()
        answers, answer = os.pipe()
        runs = _resident_runs()  # here, as the zygote is itself a fork that lacks them
        if os.fork() == 0:
            try:
                for descriptor in (ask, answers, *close):
                    os.close(descriptor)
                _serve(questions, answer, work, runs)
            finally:
                os._exit(0)
        os.close(questions)
        os.close(answer)
        self._ask = os.fdopen(ask, "w")
        self._answers = os.fdopen(answers)

    def question(self, **values: Any) -> dict[str, Any]:
        """Puts a question to a fresh child.

        Returns:
            Its resident memory before (``runtime_bytes``) and its peak after the work
            (``peak_bytes``), or an ``error``.
        """
        self._ask.write(json.dumps(values) + "\n")
        self._ask.flush()
        line = self._answers.readline()
        return json.loads(line) if line else {"error": "the process that measures memory ended"}


def _serve(questions: int, answer: int, work: Work, runs: list[range]) -> None:
    with os.fdopen(questions) as lines:
        for line in lines:
            child = os.fork()
            if child == 0:
                _answer(json.loads(line), answer, work, runs)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            if status != 0:
                _write(answer, {"error": f"the process that measures memory ended with {status}"})


def _answer(question: dict[str, Any], answer: int, work: Work, runs: list[range]) -> None:
    try:
        _touch(runs)
        before = status_bytes("VmRSS")
        held = work(question)
        found: dict[str, Any] = {"runtime_bytes": before, "peak_bytes": status_bytes("VmHWM")}
        del held
    except BaseException as error:
        found = {"error": f"{type(error).__name__}: {error}"[:2000]}
    _write(answer, found)


def _write(answer: int, values: dict[str, Any]) -> None:
    os.write(answer, (json.dumps(values) + "\n").encode())


def _resident_runs() -> list[range]:
    """Addresses of the pages of files that are mapped in this process."""
    runs: list[range] = []
    with (
        open("/proc/self/maps", encoding="utf-8") as maps,
        open("/proc/self/pagemap", "rb") as table,
    ):
        for line in maps:
            fields = line.split()
            if len(fields) < 6 or not fields[5].startswith("/") or not fields[1].startswith("r"):
                continue
            start, end = (int(address, 16) for address in fields[0].split("-"))
            table.seek(start // _PAGE * 8)
            pages = np.frombuffer(table.read((end - start) // _PAGE * 8), np.uint64)
            present = np.flatnonzero(pages & _PRESENT)
            for run in np.split(present, np.flatnonzero(np.diff(present) != 1) + 1):
                if len(run):
                    first = start + int(run[0]) * _PAGE
                    runs.append(range(first, first + len(run) * _PAGE, _PAGE))
    return runs


def _touch(runs: list[range]) -> None:
    for run in runs:
        for address in run:
            ctypes.string_at(address, 1)
