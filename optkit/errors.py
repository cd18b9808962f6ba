"""The errors that optkit raises on purpose.

Every one of them is an `OptkitError`, so one ``except`` clause catches them all, and each is also
the builtin it specialises, so code that knows nothing of optkit treats it sensibly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optkit.artifact import Artifact
    from optkit.goals import Goal
    from optkit.report import Report

__all__ = [
    "ArgumentTypeError",
    "DataError",
    "GoalsError",
    "ModelError",
    "OptkitError",
    "PassError",
    "PipelineError",
    "Stopped",
    "first_line",
]


class OptkitError(Exception):
    """Base of every error that optkit raises on purpose."""


class PipelineError(OptkitError, ValueError):
    """Something is wrong before anything runs: the passes, their order, the model or the data."""


class ArgumentTypeError(PipelineError, TypeError):
    """An argument has the wrong type; raised before anything runs."""


class DataError(PipelineError):
    """The data are unusable: empty, not finite, of the wrong shape, without a known length, …"""


class ModelError(PipelineError):
    """The model is unusable: not built, of a kind that no pass can treat, unreadable, …"""


class GoalsError(OptkitError, RuntimeError):
    """A result misses goals that it was required to meet.

    Attributes:
        missed: The goals that were missed, each with what was reached.
    """

    def __init__(self, message: str, missed: tuple[Goal, ...] = ()):
        super().__init__(message)
        self.missed = missed


class Stopped(KeyboardInterrupt):
    """The ``stop`` function of a run asked it to end; treated as an interrupt from the keyboard."""


class PassError(OptkitError, RuntimeError):
    """A pass failed while the pipeline ran.

    Nothing that was finished before is lost: it travels with the error.

    Attributes:
        step: Position of the pass in the pipeline, from 1.
        pass_name: Name of the pass as in the report, for example ``"Prune-2"``.
        report: The `Report` so far; its last row is the failed pass. ``None`` where the error was
            raised outside a pipeline.
        artifact: The last good `Artifact`, or ``None``.
        stages: The finished stages so far, name to `Artifact`.
    """

    def __init__(self, message: str, *, step: int | None = None, pass_name: str | None = None):
        super().__init__(message)
        self.step = step
        self.pass_name = pass_name
        self.report: Report | None = None
        self.artifact: Artifact | None = None
        self.stages: dict[str, Artifact] = {}


def first_line(error: BaseException) -> str:
    r"""What an error of a library says first, without the code that it passed through.

    >>> first_line(ValueError("wrong shape.\nCall arguments: …"))
    'ValueError: wrong shape.'
    """
    kind = type(error).__name__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    before = None
    while lines != before:  # one layer within another says both again
        before = lines
        if lines and lines[0] == "in user code:":  # then come places in files, and the error itself
            told = [line.partition(": ") for line in lines]
            place = next((i for i, (head, _, _) in enumerate(told) if head.endswith("Error")), 0)
            kind, lines = told[place][0], [told[place][2], *lines[place + 1 :]]
            lines = [line for line in lines if line]
        if len(lines) > 1 and lines[0].startswith("Exception encountered when calling"):
            lines = lines[1:]
    return f"{kind}: {lines[0][:300]}" if lines else repr(error)
