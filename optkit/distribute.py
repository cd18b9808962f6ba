"""Several devices, or several processes, that train one model together.

Under `tf.distribute.MultiWorkerMirroredStrategy` every process runs the same script. They stay in
step because they compute the same from the same seeds; what depends on the clock, on a machine or
on files is found out by one of them, the chief, and sent to the others.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from optkit import errors
from optkit.bundle import Bundle
from optkit.errors import ArgumentTypeError, OptkitError, PipelineError
from optkit.runtime import tensorflow

__all__ = ["ALONE", "Crew", "crew_of"]

_PIECE = 2**24  # words that are sent at a time
_WORD = 4


class Crew:
    """Those who do a run together: the devices of a strategy, and the processes that hold them.

    Args:
        strategy: A ``tf.distribute`` strategy; ``None`` for this process and its devices as
            TensorFlow uses them by itself.

    Attributes:
        replicas: Copies of the model that train together.
        workers: Processes.
        chief: Whether this is the process that measures, decides and writes.
    """

    def __init__(self, strategy: Any = None):
        self.strategy = strategy
        self.replicas = 1 if strategy is None else int(strategy.num_replicas_in_sync)
        self.workers, self.worker, self.chief = _place(strategy)
        self._left = False

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """In which variables are made that all replicas have."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def describe(self) -> dict[str, Any]:
        """Plain values for the report."""
        if self.strategy is None:
            return {}
        name = type(self.strategy).__name__
        if name.startswith("CollectiveAllReduce"):  # what the class is called inside
            name = "MultiWorkerMirroredStrategy"
        return {"strategy": {"name": name, "replicas": self.replicas, "workers": self.workers}}

    def leave(self) -> None:
        """From here on this process goes on alone: it has failed or was ended, others may not have.

        Whatever others wait for would never come, and what it sent would be taken for something
        else.
        """
        self._left = True

    def explain(self, error: BaseException) -> str:
        """What to make of an error of TensorFlow's that others may be the reason of."""
        tf = tensorflow()
        if isinstance(error, tf.errors.OpError) and "in the collective instance" in str(error):
            return (
                " (Another strategy was made in this process before, and TensorFlow cannot tell "
                "what their devices send each other apart. Start the process anew, make one "
                "strategy, and give it to every run.)"
            )
        kinds = (
            *(tf.errors.UnavailableError, tf.errors.DeadlineExceededError),
            *(tf.errors.CancelledError, tf.errors.AbortedError, tf.errors.InternalError),
        )
        if self.workers == 1 or not isinstance(error, kinds):
            return ""
        return (
            f" (This is process {self.worker} of {self.workers}: another one has failed, was ended "
            "or cannot be reached; look at what it said. Start all of them again: with the same "
            "`workdir` the run goes on where it was.)"
        )

    @property
    def alone(self) -> bool:
        """Whether no other process takes part, or takes part any more."""
        return self.workers == 1 or self._left

    def share(self, make: Callable[[], Bundle | None]) -> Bundle | None:
        """What the chief makes, in all processes.

        Args:
            make: Makes it; called in the chief alone.

        Raises:
            OptkitError: In every process, if it fails in the chief.
        """
        if self.alone:
            return make()
        if not self.chief:
            return _read(self._send(None))
        try:
            made = make()
            content = b"-" if made is None else b"+" + made.to_bytes()
        except Exception as error:
            said = {"failed": type(error).__name__, "message": str(error)}
            self._send(b"!" + json.dumps(said).encode())
            raise
        self._send(content)
        return made

    def same(self, value: Any) -> Any:
        """The chief's of a plain value that each has found for itself, in all processes."""
        found = self.share(lambda: Bundle({"value": value}))
        return value if found is None else found.values["value"]

    def agreed(self, wanted: bool) -> bool:
        """What the chief wants, in all processes."""
        return bool(self.same(bool(wanted)))

    def any_of(self, mine: bool) -> bool:
        """Whether it is so in any of the processes."""
        return mine if self.alone else bool(self._sum(np.array([int(mine)], np.int32), None)[0])

    def _send(self, content: bytes | None) -> bytes:
        """Bytes of the chief in all processes; the others give ``None``.

        By sums in which all others hold zeros: the one way of TensorFlow's that every such
        strategy has, over the connections that training uses anyway.
        """
        parts = self._sum(np.array(divmod(len(content or b""), _PIECE), np.int32), 0)
        length = int(parts[0]) * _PIECE + int(parts[1])
        padded = -(-length // _WORD)
        words = np.zeros(padded, np.int32)
        if content is not None:
            words.view(np.uint8)[: len(content)] = np.frombuffer(content, np.uint8)
        pieces = [self._sum(words[start : start + _PIECE], 0) for start in range(0, padded, _PIECE)]
        return bytes(np.concatenate(pieces).view(np.uint8)[:length])

    def _sum(self, words: np.ndarray, only: int | None) -> np.ndarray:
        """The sum over one replica of each process, or over replica ``only`` alone."""
        tf = tensorflow()
        own = self.worker * (self.replicas // self.workers)

        def of(context: Any) -> Any:
            number = context.replica_id_in_sync_group
            counts = number == (own if only is None else only)
            return tf.constant(words if counts else np.zeros_like(words))

        values = self.strategy.experimental_distribute_values_from_function(of)
        total = self.strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None)
        return np.asarray(total)


def crew_of(strategy: Any) -> Crew:
    """The crew of a strategy.

    Args:
        strategy: What `Pipeline.run` was given; ``None`` for none.

    Raises:
        PipelineError: For a strategy under which optkit cannot train.
    """
    if strategy is None:
        return ALONE
    tf = tensorflow()
    if not isinstance(strategy, tf.distribute.Strategy):
        raise ArgumentTypeError(
            "`strategy` must be a `tf.distribute` strategy, such as "
            f"`tf.distribute.MirroredStrategy()`. Received: {strategy!r} (of type "
            f"{type(strategy).__name__})."
        )
    kinds = (
        tf.distribute.MirroredStrategy,
        tf.distribute.MultiWorkerMirroredStrategy,
        tf.distribute.OneDeviceStrategy,
    )
    if not isinstance(strategy, kinds):
        raise PipelineError(
            f"Training under {type(strategy).__name__} is not supported: every replica must have "
            "all variables and take every step together with the others. Use "
            "`tf.distribute.MirroredStrategy` (several devices of one machine) or "
            "`tf.distribute.MultiWorkerMirroredStrategy` (several machines)."
        )
    crew = Crew(strategy)
    kind = _task(strategy)[0]
    if kind not in (None, "", "chief", "worker"):
        raise PipelineError(
            f"This process is a {kind!r} of its cluster, and only 'chief' and 'worker' train. "
            "Leave it out of TF_CONFIG."
        )
    return crew


def _task(strategy: Any) -> tuple[str | None, int]:
    resolver = strategy.cluster_resolver
    if resolver is None:
        return None, 0
    return resolver.task_type, int(resolver.task_id or 0)


def _place(strategy: Any) -> tuple[int, int, bool]:
    """Number of processes, the number of this one, and whether it is the chief."""
    resolver = None if strategy is None else strategy.cluster_resolver
    cluster = {} if resolver is None else resolver.cluster_spec().as_dict()
    counted = {name: len(cluster.get(name, ())) for name in ("chief", "worker")}
    workers = sum(counted.values())
    if workers < 2:
        return 1, 0, True
    kind, number = _task(strategy)
    # In the order in which TensorFlow numbers replicas.
    place = number + (counted["chief"] if kind == "worker" else 0)
    return workers, place, place == 0


def _read(content: bytes) -> Bundle | None:
    kind, rest = content[:1], content[1:]
    if kind == b"!":
        said = json.loads(rest)
        known = getattr(errors, said["failed"], None)
        message = f"in the chief: {said['message']}"
        if isinstance(known, type) and known in (errors.DataError, errors.ModelError):
            raise known(message)
        raise OptkitError(f"{said['failed']} {message}")
    return Bundle.from_bytes(rest) if kind == b"+" else None


#: A process without a strategy.
ALONE = Crew()
