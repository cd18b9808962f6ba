"""How far a training is: written at the ends of its epochs, so that a killed one goes on there."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from optkit.bundle import Bundle, BundleError
from optkit.distribute import ALONE, Crew
from optkit.models import is_variable
from optkit.runtime import derive_seed, tf_keras
from optkit.training.range_test import LearningRateSearch
from optkit.training.watch import Watch

__all__ = [
    "Checkpoint",
    "Kept",
    "Place",
    "Places",
    "Resumable",
    "Snapshot",
    "begin_anew",
    "build_optimizer",
    "optimizer_variables",
    "signature_of",
]

_LOG = logging.getLogger("optkit")
_SHORTEST = 1.0  # seconds between two checkpoints at least
_SHARE = 20  # and at least so many times what writing the last one took


@runtime_checkable
class Resumable(Protocol):
    """A Keras callback that holds something, and can take it up again in another process.

    A callback without these two methods begins anew where a training goes on.
    """

    def state(self) -> dict[str, np.ndarray]:
        """What it holds, as arrays of numbers by name."""

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Takes up what `state` gave; called with ``self.model`` set, behind ``on_train_begin``."""


class Place:
    """Where one training of a pass keeps how far it is.

    Args:
        path: The file; only the chief of the crew looks at it.
        crew: Those who train together.
    """

    def __init__(self, path: Path, crew: Crew = ALONE):
        self.path, self._crew = path, crew
        self._given_up = False

    def read(self) -> Bundle | None:
        """What is kept; ``None`` for nothing that can be relied on."""
        return self._crew.share(self._read)

    def _read(self) -> Bundle | None:
        try:
            return Bundle.read(self.path)
        except BundleError as error:
            _LOG.warning("the checkpoint in %s is damaged (%s) and not used", self.path, error)
            return None

    def fits(self, mine: bool) -> bool:
        """Whether what is kept can be used, which it can by all who train together or by none."""
        return not self._crew.any_of(not mine)

    def agreed(self, wanted: bool) -> bool:
        """What all who train together do, where it depends on the clock."""
        return self._crew.agreed(wanted and not self._given_up)

    def write(self, bundle: Bundle) -> None:
        """Keeps this instead of what was kept. Where that fails, the training goes on without."""
        if not self._crew.chief:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            bundle.write(self.path)
        except OSError as error:
            _LOG.warning("no further checkpoints, as %s cannot be written: %s", self.path, error)
            self._given_up = True


@dataclass(frozen=True)
class Places:
    """Where the trainings of a pass keep how far they are.

    Args:
        folder: A folder of the pass's own.
        crew: Those who train together.
        branch: Which of several ways to do the work of the pass it is.
    """

    folder: Path
    crew: Crew = ALONE
    branch: tuple[str, ...] = ()

    def of_branch(self, purpose: str) -> Places:
        """Those of one way to do the work of the pass."""
        return replace(self, branch=(*self.branch, purpose))

    def training(self, number: int) -> Place:
        """That of a training, by its number from 1."""
        name = f"training-{number}"
        if self.branch:
            name += f"-{derive_seed(*self.branch):08x}"
        return Place(self.folder / f"{name}.checkpoint", self.crew)


@dataclass(frozen=True)
class Snapshot:
    """What is known of a training that was begun before.

    Attributes:
        epoch: Epochs that are done.
        finished: Whether there is nothing left to train.
        curves: The figures of these epochs.
        resumed: Epochs behind which it went on before, in order.
        bundle: Everything else.
    """

    epoch: int
    finished: bool
    curves: dict[str, list[float]]
    resumed: tuple[int, ...]
    bundle: Bundle = field(repr=False)


def signature_of(model: Any, settings: Sequence[Any]) -> str:
    """What a training is known by: the model as it goes in, weights included, and its settings.

    Args:
        model: The model to train.
        settings: Numbers and texts.
    """
    digest = hashlib.blake2b(repr(settings).encode())
    trained = {id(variable) for variable in model.trainable_variables}
    for variable in _variables(model):
        value = np.ascontiguousarray(variable.numpy())
        described = (value.dtype.name, value.shape, id(variable) in trained)
        digest.update(repr(described).encode())
        digest.update(value.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:40]


class Kept:
    """What an earlier process has left of a training.

    Args:
        place: Where.
        signature: What the training is known by. What is kept of another one is not used.
        callbacks: The callbacks of the training.

    Attributes:
        callbacks: Those whose state is kept.
        found: How far it was; ``None`` for nothing.
    """

    def __init__(self, place: Place, signature: str, callbacks: Sequence[Any]):
        self.place, self.signature = place, signature
        self.callbacks = [item for item in callbacks if _keeps(item) is not None]
        self.found = self._find()

    def _find(self) -> Snapshot | None:
        bundle = self.place.read()
        if bundle is None:
            return None
        values = bundle.values
        same = len(values["callbacks"]) == len(self.callbacks)
        if not self.place.fits(values["signature"] == self.signature and same):
            _LOG.info("a checkpoint is of another training, and not used")
            return None
        return Snapshot(
            values["epoch"],
            values["finished"],
            values["curves"],
            tuple(values["resumed"]),
            bundle,
        )

    @property
    def search(self) -> LearningRateSearch | None:
        """How its learning rate was found; ``None`` where it was given, or nothing was left."""
        stored = None if self.found is None else self.found.bundle.values.get("search")
        return None if stored is None else LearningRateSearch.of(**stored)


class Checkpoint:
    """Keeps how far one training is, and takes it up again.

    Args:
        kept: What an earlier process has left, and where to keep what this one does.
        trainer: The compiled model that trains.
        watch: Looks on.
        search: How its learning rate was found; ``None`` where it was given.

    Attributes:
        found: How far an earlier process was; ``None`` for nothing.
        notes: What the reader of a report should know, of earlier processes too.
    """

    def __init__(
        self,
        kept: Kept,
        *,
        trainer: Any,
        watch: Watch,
        search: LearningRateSearch | None = None,
    ):
        self.place, self.signature = kept.place, kept.signature
        self.trainer, self.watch = trainer, watch
        self.callbacks, self.found = kept.callbacks, kept.found
        self.notes: list[str] = []
        self._search = search
        self._curves: dict[str, list[float]] = {}
        self._resumed: tuple[int, ...] = ()
        if self.found is not None:
            self.notes += self.found.bundle.values.get("notes", ())
            self._curves = {name: list(values) for name, values in self.found.curves.items()}
            self._resumed = self.found.resumed
            if not self.found.finished:
                self._resumed = (*self._resumed, self.found.epoch)
        self._written, self._took = time.monotonic(), 0.0

    @property
    def first_epoch(self) -> int:
        """Number of the epoch to begin with, from 0."""
        return 0 if self.found is None else self.found.epoch

    def last_epoch(self, epochs: int) -> int:
        """Epochs at the end, where so many are asked for: no more where it had ended before."""
        return self.first_epoch if self.found is not None and self.found.finished else epochs

    def note(self, *notes: str) -> None:
        """Adds to what the reader should know."""
        self.notes += [note for note in notes if note not in self.notes]

    @property
    def resumed(self) -> tuple[int, ...]:
        """Epochs behind which the training went on in another process."""
        return self._resumed

    @property
    def curves(self) -> dict[str, list[float]]:
        """The figures of all epochs, those before it went on included."""
        return self._curves

    def callback(self) -> Any:
        """The Keras callback that takes up and keeps, to stand last among those of a training."""
        checkpoint = self

        class Keeping(tf_keras().callbacks.Callback):  # type: ignore[misc]
            def on_train_begin(self, logs: Any = None) -> None:
                # Behind the others, which look at a fresh optimizer and begin from nothing here.
                if checkpoint.found is not None:
                    checkpoint.restore(checkpoint.found)

            def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
                last = epoch + 1 >= self.params["epochs"] or self.model.stop_training
                checkpoint.epoch_ended(epoch + 1, dict(logs or {}), last=last)

        return Keeping()

    def epoch_ended(self, epoch: int, logs: Mapping[str, float], *, last: bool) -> None:
        """Takes note of an epoch and writes, unless the training ends with it."""
        for name, value in logs.items():
            self._curves.setdefault(name, []).append(float(value))
        wait = max(_SHORTEST, _SHARE * self._took)
        if not last and self.place.agreed(time.monotonic() - self._written >= wait):
            self._write(epoch, finished=False)

    def finish(self, epoch: int) -> None:
        """Keeps the end of the training, which a pass of several need then not do again."""
        if self.place.agreed(time.monotonic() - self._written >= _SHORTEST or bool(self._took)):
            self._write(epoch, finished=True)

    def _write(self, epoch: int, *, finished: bool) -> None:
        began = time.monotonic()
        self.place.write(self._bundle(epoch, finished=finished))
        self._written = time.monotonic()
        self._took = self._written - began

    def _bundle(self, epoch: int, *, finished: bool) -> Bundle:
        watch = self.watch
        arrays = {
            f"weights/{i}": _value(variable) for i, variable in enumerate(_variables(self.trainer))
        }
        # Weights just kept as the best ones need not be written twice.
        older = watch.best_weights is not None and watch.best_epoch != epoch
        if not finished:
            for i, variable in enumerate(optimizer_variables(self.trainer)):
                arrays[f"optimizer/{i}"] = _value(variable)
            if older:
                places = _numeric(self.trainer)
                for i, place in enumerate(places):
                    arrays[f"best/{i}"] = np.asarray(watch.best_weights[place])  # type: ignore[index]
        plain: list[dict[str, Any]] = []
        for i, item in enumerate(self.callbacks):
            values, own = _state(item)
            plain.append(values)
            arrays |= {f"callback/{i}/{name}": array for name, array in own.items()}
        values = {
            "signature": self.signature,
            "epoch": epoch,
            "finished": finished,
            "curves": self._curves,
            "resumed": list(self._resumed),
            "best": None if watch.best is None else [float(part) for part in watch.best],
            "best_epoch": watch.best_epoch,
            "best_is_elsewhere": older,
            "stopped": watch.stopped,
            "search": None if self._search is None else self._search.measured,
            "notes": self.notes,
            "callbacks": plain,
        }
        return Bundle(values, arrays)

    def restore(self, found: Snapshot) -> None:
        """Puts the training where the checkpoint is."""
        values, arrays = found.bundle.values, found.bundle.arrays
        _assign(_variables(self.trainer), arrays, "weights")
        # Behind the weights also where nothing is left to train: Keras ends every training with the
        # averages that an optimizer may hold, which are those of the weights as it found them.
        build_optimizer(self.trainer)
        if not found.finished:
            _assign(optimizer_variables(self.trainer), arrays, "optimizer")
        self.trainer.settle()
        watch = self.watch
        watch.best_epoch, watch.stopped = values["best_epoch"], values["stopped"]
        if values["best"] is not None:
            watch.best = (values["best"][0], values["best"][1])
            if not found.finished:
                watch.best_weights = self.trainer.get_weights()
        if values["best_is_elsewhere"] and not found.finished:
            for i, place in enumerate(_numeric(self.trainer)):
                watch.best_weights[place] = arrays[f"best/{i}"]  # type: ignore[index]
        for i, item in enumerate(self.callbacks):
            item.set_model(self.trainer)
            start = f"callback/{i}/"
            own = {
                name.removeprefix(start): array
                for name, array in arrays.items()
                if name.startswith(start)
            }
            _restore(item, values["callbacks"][i], own)


def begin_anew(callbacks: Iterable[Any]) -> list[str]:
    """Classes of callbacks of the user's that cannot take up where they were."""
    return sorted(
        {
            type(item).__name__
            for item in callbacks
            if _keeps(item) is None
            and not type(item).__module__.startswith(("optkit.", "tf_keras."))
        }
    )


# ------------------------------------------------------------------------------------- callbacks


def _keeps(callback: Any) -> str | None:
    """How a callback keeps what it holds: by its own methods, or one of Keras' by its numbers."""
    if isinstance(callback, Resumable):
        return "methods"
    kind = type(callback)
    own = kind.__module__.startswith("tf_keras.") and kind is not tf_keras().callbacks.TensorBoard
    return "numbers" if own else None


def _state(callback: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if _keeps(callback) == "methods":
        return {}, {name: np.asarray(array) for name, array in callback.state().items()}
    plain: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, value in vars(callback).items():
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool | int | float | str):
            plain[name] = value
        elif isinstance(value, list) and value and all(isinstance(v, np.ndarray) for v in value):
            plain[name] = {"arrays": len(value)}
            arrays |= {f"{name}/{i}": array for i, array in enumerate(value)}
    return plain, arrays


def _restore(callback: Any, plain: Mapping[str, Any], arrays: dict[str, np.ndarray]) -> None:
    if _keeps(callback) == "methods":
        callback.restore(arrays)
        return
    for name, value in plain.items():
        if isinstance(value, dict):
            value = [arrays[f"{name}/{i}"].copy() for i in range(value["arrays"])]
        setattr(callback, name, value)


# ------------------------------------------------------------------------------------- variables


def _variables(model: Any) -> list[Any]:
    """The variables with numbers; words of a lookup are no part of a training."""
    return [variable for variable in model.weights if is_variable(variable)]


def _numeric(model: Any) -> list[int]:
    """Where they are among what ``get_weights`` gives."""
    places, place = [], 0
    for variable in model.weights:
        if is_variable(variable):
            places.append(place)
            place += 1
        else:
            place += variable.num_tensors
    return places


def _value(variable: Any) -> np.ndarray:
    return np.array(variable.numpy())


def _assign(variables: Sequence[Any], arrays: Mapping[str, np.ndarray], kind: str) -> None:
    for i, variable in enumerate(variables):
        variable.assign(arrays[f"{kind}/{i}"])


def build_optimizer(trainer: Any) -> None:
    """Makes the variables of an optimizer, which it otherwise does with its first update."""
    for optimizer in _optimizers(trainer.optimizer):
        if hasattr(optimizer, "_create_all_weights"):
            optimizer._create_all_weights(trainer.trainable_variables)
        elif hasattr(optimizer, "build"):
            optimizer.build(trainer.trainable_variables)


def optimizer_variables(trainer: Any) -> list[Any]:
    """Everything that an optimizer holds: iterations, slots, the scale of the loss."""
    found: dict[int, Any] = {}
    for optimizer in _optimizers(trainer.optimizer):
        variables = optimizer.variables
        listed = list(variables() if callable(variables) else variables)
        rate = getattr(optimizer, "_learning_rate", None)  # which callbacks may set
        if hasattr(rate, "assign"):
            listed.append(rate)
        scale = getattr(optimizer, "_loss_scale", None)
        listed += list(getattr(scale, "_weights", {}).values())
        found |= {id(variable): variable for variable in listed}
    return list(found.values())


def _optimizers(optimizer: Any) -> list[Any]:
    """An optimizer, and the one inside it where it scales the loss."""
    inner = getattr(optimizer, "inner_optimizer", None)
    return [optimizer] if inner is None else [*_optimizers(inner), optimizer]
