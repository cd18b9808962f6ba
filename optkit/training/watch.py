"""What looks on while a model trains."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from optkit.runtime import tf_keras

__all__ = ["Watch"]


class Watch:
    """Keeps the best weights, stops when patience runs out, notices divergence, tells progress."""

    def __init__(
        self,
        watched: tuple[str, int],
        patience: int | None,
        settled_after: int,
        on_epoch: Callable[[int, int, dict[str, float]], None] | None,
    ):
        (self.name, self.sign), self.patience, self.settled_after = watched, patience, settled_after
        self.on_epoch = on_epoch
        self.best: tuple[float, float] | None = None
        self.best_epoch = 0
        self.best_weights: list[np.ndarray] | None = None
        self.stopped = False
        self.diverged: tuple[int, float] | None = None

    def callback(self) -> Any:
        """The Keras callback that looks on."""
        watch = self

        class Watching(tf_keras().callbacks.Callback):  # type: ignore[misc]
            def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
                watch.epoch_ended(self.model, epoch + 1, self.params["epochs"], dict(logs or {}))

            def on_train_end(self, logs: dict[str, float] | None = None) -> None:
                if watch.best_weights is not None:
                    self.model.set_weights(watch.best_weights)

        return Watching()

    def epoch_ended(self, model: Any, epoch: int, epochs: int, logs: dict[str, float]) -> None:
        """Takes note of an epoch: progress, divergence, the best weights, patience."""
        if self.on_epoch is not None:
            self.on_epoch(epoch, epochs, {k: float(v) for k, v in logs.items()})
        if not math.isfinite(logs.get("loss", 0.0)):
            self.diverged = (epoch, float(logs["loss"]))
            model.stop_training = True
            return
        if self.patience is None or epoch <= self.settled_after:
            return
        # The metric decides; on a small split it often ties, and then the loss does.
        score = (self.sign * logs.get(f"val_{self.name}", 0.0), -logs["val_loss"])
        if self.best is None or score > self.best:
            self.best, self.best_epoch = score, epoch
            self.best_weights = model.get_weights()
        elif epoch - self.best_epoch >= self.patience:
            self.stopped = True
            model.stop_training = True
