"""Progress of a run: events for programs, a bar for people."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from optkit.errors import ArgumentTypeError

__all__ = ["Progress", "ProgressEvent"]


Kind = Literal[
    "started",
    "epoch",
    "finished",
    "reused",
    "measured",
    "rolled back",
    "skipped",
    "cancelled",
    "failed",
]

_LOG = logging.getLogger("optkit")
_SETTLED = ("measured", "rolled back", "skipped", "cancelled", "failed")


@dataclass(frozen=True)
class ProgressEvent:
    """Something that happened in a run.

    Attributes:
        kind: ``"started"`` and ``"finished"`` for a pass, ``"epoch"`` for an epoch of its
            training, ``"measured"`` for its figures (also those of the baseline, step 0). Instead
            of ``"finished"`` there is ``"reused"`` where an earlier run in the same folder had
            done the work. A pass ends with ``"rolled back"`` where it broke a goal, with
            ``"failed"`` or ``"cancelled"`` where it raised or the run was ended in it, and is
            ``"skipped"`` where it could not run for that.
        step: Position of the pass, from 1; 0 for the baseline. An ablation counts on over all its
            runs.
        steps: Number of passes, of all runs.
        name: Name of the pass.
        epoch: Epochs finished in this training; 0 for other kinds.
        epochs: Epochs that this training may take; 0 for other kinds.
        figures: Figures of the epoch or stage, by name.
        run: Which run of an ablation it belongs to, for example ``"without Prune"``.
    """

    kind: Kind
    step: int
    steps: int
    name: str
    epoch: int = 0
    epochs: int = 0
    figures: tuple[tuple[str, float], ...] = ()
    run: str = ""


class Progress:
    """Sends events to a function, or shows them as a bar.

    Args:
        target: ``None`` for a bar where a person watches (a terminal or a notebook), ``True`` or
            ``False`` for always or never a bar, or a function of one `ProgressEvent`.
        steps: Number of passes.

    Raises:
        ArgumentTypeError: For any other target.
    """

    def __init__(self, target: bool | Callable[[ProgressEvent], Any] | None, steps: int):
        if target is not None and not isinstance(target, bool) and not callable(target):
            raise ArgumentTypeError(
                "`progress` must be True, False, None or a function of one event. "
                f"Received: {target!r}."
            )
        self._steps = steps
        self._before, self._run = 0, ""
        self._function = target if callable(target) else None
        self._bar: Any = None
        watched = "ipykernel" in sys.modules or sys.stderr.isatty()
        if target is True or (target is None and watched):
            from tqdm.auto import tqdm

            self._bar = tqdm(total=steps, unit="pass", dynamic_ncols=True)

    def begin(self, run: str, before: int) -> None:
        """Makes what follows part of a further run.

        Args:
            run: What run it is.
            before: Number of steps in the runs before it.
        """
        self._run, self._before = run, before

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def send(
        self,
        kind: Kind,
        step: int,
        name: str,
        *,
        epoch: int = 0,
        epochs: int = 0,
        figures: dict[str, float] | None = None,
    ) -> None:
        """Tells of something that happened.

        A function that raises is not called again: the work of hours should not end for that.
        """
        ordered = tuple((figures or {}).items())
        event = ProgressEvent(
            kind, self._before + step, self._steps, name, epoch, epochs, ordered, self._run
        )
        if self._function is not None:
            try:
                self._function(event)
            except Exception:
                _LOG.exception("the `progress` function raised, and is not called any more")
                self._function = None
        if self._bar is not None:
            self._show(event)

    def _show(self, event: ProgressEvent) -> None:
        name = f"{event.run}: {event.name}" if event.run else event.name
        doing = {
            "started": name,
            "finished": f"{name}: measuring",
            "reused": f"{name}: reused",
            "measured": name,
        }.get(event.kind, f"{name}: {event.kind}")
        if event.kind == "epoch":
            shown = ", ".join(f"{key} {value:.4g}" for key, value in event.figures)
            doing = f"{name}: epoch {event.epoch}/{event.epochs} {shown}"
        self._bar.set_description_str(doing)
        done = event.step if event.kind in _SETTLED else event.step - 1
        if done > self._bar.n:
            self._bar.update(done - self._bar.n)
