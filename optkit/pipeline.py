"""`Pipeline`: passes in a row, refused when they cannot work, measured after every step."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from optkit import _validate
from optkit.artifact.base import write_atomically
from optkit.base import Pass
from optkit.data import Data
from optkit.errors import ArgumentTypeError, PipelineError
from optkit.measuring import Meter
from optkit.models import check_treatable
from optkit.order import check_order, step_names
from optkit.progress import Progress, ProgressEvent
from optkit.result import Result
from optkit.run import Prepared, Run, prepare
from optkit.runtime import derive_seed, isolated
from optkit.serialize import from_plain, readable, to_plain

__all__ = ["Pipeline"]

_LATENCY_THREADS = 1


class Pipeline:
    """Passes that are run one after the other on a copy of a model, each one measured.

    What cannot work is refused when the pipeline is built: a pass that does not accept what the one
    before it produces, a recipe pass that no training follows, two passes that fill the same
    exclusive slot, a pass that would throw away the work of earlier ones.

    Args:
        passes: The passes, in order.
        loss: Loss for training: a name, a tf_keras loss or a function of ``(y_true, y_pred)``;
            ``None`` for that of the compiled model, else the one that output and targets imply.
        seed: Seed of everything random, in ``[0, 2**31)``. Equal seeds give equal weights on the
            same machine and versions.

    Raises:
        PipelineError: If the passes cannot work in this order.

    Example:
        >>> import optkit as ok
        >>> ok.Pipeline([ok.LabelSmooth(0.1), ok.FineTune(epochs=3), ok.QuantizeINT8()])
        Pipeline([LabelSmooth(), FineTune(epochs=3), QuantizeINT8()])
        >>> ok.Pipeline([ok.QuantizeINT8(), ok.FineTune(epochs=3)])
        Traceback (most recent call last):
        ...
        optkit.errors.PipelineError: Step 2, FineTune, takes a keras artifact, and step 1, ...
    """

    def __init__(self, passes: Sequence[Pass], *, loss: Any = None, seed: int = 0):
        if not isinstance(passes, Sequence):
            raise ArgumentTypeError(
                f"`passes` must be a list of passes. Received: {type(passes).__name__}."
            )
        self.passes = tuple(passes)
        self.loss = loss
        self.seed = _validate.integer("seed", seed, minimum=0, maximum=2**31 - 1)
        for i, item in enumerate(self.passes, 1):
            if isinstance(item, type) and issubclass(item, Pass):
                raise ArgumentTypeError(
                    f"Step {i} is the class {item.__name__}; make a pass of it: "
                    f"`{item.__name__}(…)`."
                )
            if not isinstance(item, Pass):
                raise ArgumentTypeError(
                    f"Step {i} must be a pass. Received: {item!r} (of type {type(item).__name__})."
                )
        if not self.passes:
            raise PipelineError("A pipeline needs at least one pass.")
        self.names = step_names(self.passes)
        check_order(self.passes, self.names)

    def __len__(self) -> int:
        return len(self.passes)

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.passes)

    @overload
    def __getitem__(self, index: int) -> Pass: ...

    @overload
    def __getitem__(self, index: slice) -> Pipeline: ...

    def __getitem__(self, index: int | slice) -> Pass | Pipeline:
        if isinstance(index, slice):
            return Pipeline(self.passes[index], loss=self.loss, seed=self.seed)
        return self.passes[index]

    def __repr__(self) -> str:
        parts = [f"[{', '.join(repr(item) for item in self.passes)}]"]
        if self.loss is not None:
            parts.append(f"loss={readable(self.loss)!r}")
        if self.seed:
            parts.append(f"seed={self.seed}")
        return f"Pipeline({', '.join(parts)})"

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, each pass as a dict of its class and arguments."""
        passes = [{"class": _class_key(item), "config": item.get_config()} for item in self.passes]
        return {"passes": passes, "loss": self.loss, "seed": self.seed}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Pipeline:
        """The pipeline that gave this configuration.

        Raises:
            PipelineError: If it names a pass whose class is not imported.
        """
        passes = [_class_of(item["class"]).from_config(item["config"]) for item in config["passes"]]
        return cls(passes, loss=config.get("loss"), seed=config.get("seed", 0))

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Writes the configuration as JSON.

        Raises:
            PipelineError: For a value that a file cannot hold, naming the parameter.
        """
        config = self.get_config()
        for name, item in zip(self.names, config["passes"], strict=True):
            item["config"] = {
                key: to_plain(f"{name}.{key}", value) for key, value in item["config"].items()
            }
        config["loss"] = to_plain("loss", config["loss"])
        text = json.dumps({"optkit": 1, **config}, indent=1, ensure_ascii=False)
        write_atomically(Path(path), lambda file: file.write_text(text, "utf-8"))

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Pipeline:
        """Reads what `to_json` wrote. Nothing is imported that the file names.

        Raises:
            PipelineError: If the file is no pipeline, or names an unknown pass.
        """
        try:
            config = json.loads(Path(path).read_text("utf-8"))
            passes = config["passes"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PipelineError(f"{str(path)!r} is no pipeline of optkit's: {error!r}") from error
        for item in passes:
            item["config"] = {k: from_plain(k, value) for k, value in item["config"].items()}
        config["loss"] = from_plain("loss", config.get("loss"))
        return cls.from_config(config)

    def check(self, model: Any = None, data: Data | None = None) -> None:
        """Refuses what cannot work, before anything trains.

        Args:
            model: The model to run on; ``None`` to check the order of passes alone.
            data: The data to run on; checked together with the model.

        Raises:
            PipelineError: With the reason and a remedy; a `ModelError` or `DataError`, which are
                kinds of it, where the fault lies there.
        """
        check_order(self.passes, self.names)
        if model is not None and data is not None:
            # Passes may build models to see whether they fit, which draws random numbers.
            with isolated(derive_seed(self.seed, "run")):
                self._prepare(model, data)
        elif model is not None:
            check_treatable(model)

    def run(
        self,
        model: Any,
        data: Data,
        *,
        progress: bool | Callable[[ProgressEvent], Any] | None = None,
    ) -> Result:
        """Runs the passes on a copy of the model and measures every stage.

        The caller's model, data, random generators and global settings stay as they are. Runs in
        several threads of one process take turns.

        Args:
            model: A built functional or Sequential tf_keras model with one output.
            data: The data.
            progress: ``None`` for a bar where a person watches, ``True`` or ``False`` for always
                or never, or a function of one `ProgressEvent`.

        Returns:
            The artifact to deploy, every stage, and the report.

        Raises:
            PipelineError, ModelError, DataError: For what cannot work, before anything trains.
            PassError: If a pass fails on the way; it carries the report and the stages so far.
        """
        with isolated(derive_seed(self.seed, "run")), Progress(progress, len(self)) as shown:
            prepared = self._prepare(model, data)
            with Meter(
                prepared.data, prepared.task, prepared.metric, threads=_LATENCY_THREADS
            ) as meter:
                run = Run(
                    prepared,
                    model,
                    meter=meter,
                    progress=shown,
                    seed=self.seed,
                    pipeline=repr(self),
                )
                return run.run()

    def _prepare(self, model: Any, data: Data) -> Prepared:
        check_treatable(model)
        if not isinstance(data, Data):
            raise ArgumentTypeError(
                "`data` must be an `optkit.Data`, such as `Data(train=(x, y))`. "
                f"Received: {type(data).__name__}."
            )
        steps = tuple(zip(self.names, self.passes, strict=True))
        return prepare(steps, model, data, self.loss)


def _class_key(item: Pass) -> str:
    kind = type(item)
    return f"{kind.__module__}:{kind.__qualname__}"


def _class_of(key: str) -> type[Pass]:
    if key not in Pass.registry and key.startswith("optkit.passes."):
        import optkit.passes

        optkit.passes.load_all()
    if key not in Pass.registry:
        module, _, name = str(key).partition(":")
        raise PipelineError(
            f"The pass {name!r} of module {module!r} is unknown here. Import the module that "
            "defines it, then load the pipeline again: optkit imports nothing that a file names."
        )
    return Pass.registry[key]
