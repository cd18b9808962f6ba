"""Progress of a run: events for programs, a bar for people."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from optkit.errors import ArgumentTypeError

__all__ = ["Progress", "ProgressEvent"]


Kind = Literal[
    "started", "epoch", "finished", "reused", "measured", "rolled back", "skipped", "cancelled"
]

_SETTLED = ("measured", "rolled back", "skipped", "cancelled")


@dataclass(frozen=True)
class ProgressEvent:
    """Something that happened in a run.

    Attributes:
        kind: ``"started"`` and ``"finished"`` for a pass, ``"epoch"`` for an epoch of its
            training, ``"measured"`` for its figures (also those of the baseline, step 0). Instead
            of ``"finished"`` there is ``"reused"`` where an earlier run in the same folder had
            done the work. A pass ends with ``"rolled back"`` where it broke a goal, with
            ``"cancelled"`` where the run was ended in it, and is ``"skipped"`` where it could not
            run for that.
        step: Position of the pass, from 1; 0 for the baseline.
        steps: Number of passes.
        name: Name of the pass.
        epoch: Epochs finished in this training; 0 for other kinds.
        epochs: Epochs that this training may take; 0 for other kinds.
        figures: Figures of the epoch or stage, by name.
    """

    kind: Kind
    step: int
    steps: int
    name: str
    epoch: int = 0
    epochs: int = 0
    figures: tuple[tuple[str, float], ...] = ()


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
        self._function = target if callable(target) else None
        self._bar: Any = None
        watched = "ipykernel" in sys.modules or sys.stderr.isatty()
        if target is True or (target is None and watched):
            from tqdm.auto import tqdm

            self._bar = tqdm(total=steps, unit="pass", dynamic_ncols=True)

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
        """Tells of something that happened."""
        ordered = tuple((figures or {}).items())
        event = ProgressEvent(kind, step, self._steps, name, epoch, epochs, ordered)
        if self._function is not None:
            self._function(event)
        if self._bar is not None:
            self._show(event)

    def _show(self, event: ProgressEvent) -> None:
        name = event.name
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
