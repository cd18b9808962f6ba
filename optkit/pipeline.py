"""`Pipeline`: passes in a row, refused when they cannot work, measured after every step."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from optkit import _validate
from optkit.artifact.base import write_atomically
from optkit.base import Pass, pass_class, pass_key
from optkit.data import Data
from optkit.distribute import crew_of
from optkit.entrance import admit
from optkit.errors import ArgumentTypeError, PipelineError
from optkit.goals import Goals
from optkit.measuring import Measure, Meter
from optkit.order import check_order, step_names
from optkit.prepare import Options, Prepared, prepare
from optkit.progress import Progress, ProgressEvent
from optkit.result import Result
from optkit.run import Runner
from optkit.runtime import derive_seed, isolated
from optkit.serialize import from_plain, readable, to_plain
from optkit.tensorboard import check_installed
from optkit.workdir import Workdir

if TYPE_CHECKING:
    from optkit.ablation import Ablation

__all__ = ["Pipeline"]


class Pipeline:
    """Passes that are run one after the other on a copy of a model, each one measured.

    What cannot work is refused when the pipeline is built: a pass that does not accept what the one
    before it produces, a recipe pass that no training follows, two passes that fill the same
    exclusive slot, a pass that would throw away the work of earlier ones.

    Args:
        passes: The passes, in order.
        goals: What the result must reach. `Result.report` says of each whether it was met, and
            ``max_accuracy_drop`` is watched on the way.
        on_violation: What to do with a pass after which more accuracy is lost on ``validation``
            than the goal allows: ``"rollback"`` undoes it and goes on from the state before it,
            ``"stop"`` undoes it and ends the run there, ``"keep"`` keeps it and says so.
        guard: When that is looked at: after every ``"pass"`` (after the next training where a pass
            counts on it to recover), or at the ``"end"``, which then goes back to the last stage
            that keeps the goal.
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

    def __init__(
        self,
        passes: Sequence[Pass],
        *,
        goals: Goals | None = None,
        on_violation: str = "rollback",
        guard: str = "pass",
        loss: Any = None,
        seed: int = 0,
    ):
        if not isinstance(passes, Sequence):
            raise ArgumentTypeError(
                f"`passes` must be a list of passes. Received: {type(passes).__name__}."
            )
        self.passes = tuple(passes)
        if goals is not None and not isinstance(goals, Goals):
            raise ArgumentTypeError(
                "`goals` must be an `optkit.Goals`, such as `Goals(max_accuracy_drop=0.01)`. "
                f"Received: {goals!r} (of type {type(goals).__name__})."
            )
        self.goals = goals
        self.on_violation = _validate.one_of(
            "on_violation", on_violation, ("rollback", "stop", "keep")
        )
        self.guard = _validate.one_of("guard", guard, ("pass", "end"))
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
            return Pipeline(self.passes[index], **self._settings())
        return self.passes[index]

    def _settings(self) -> dict[str, Any]:
        """The arguments of the constructor but the passes."""
        return {
            "goals": self.goals,
            "on_violation": self.on_violation,
            "guard": self.guard,
            "loss": self.loss,
            "seed": self.seed,
        }

    def __repr__(self) -> str:
        parts = [f"[{', '.join(repr(item) for item in self.passes)}]"]
        for name, value in self._settings().items():
            if value != inspect.signature(Pipeline).parameters[name].default:
                parts.append(f"{name}={readable(value) if name == 'loss' else value!r}")
        return f"Pipeline({', '.join(parts)})"

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, each pass as a dict of its class and arguments."""
        passes = [{"class": pass_key(item), "config": item.get_config()} for item in self.passes]
        return {"passes": passes} | self._settings()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Pipeline:
        """The pipeline that gave this configuration.

        Raises:
            PipelineError: If it names a pass whose class is not imported, or unknown settings.
        """
        passes = [
            pass_class(item["class"]).from_config(item["config"]) for item in config["passes"]
        ]
        settings = {key: value for key, value in config.items() if key != "passes"}
        if unknown := sorted(set(settings) - set(_SETTINGS)):
            raise PipelineError(
                f"A pipeline has no settings {unknown}. Its settings: {list(_SETTINGS)}."
            )
        return cls(passes, **settings)

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
        config["goals"] = self.goals and self.goals.to_dict()
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
            config.pop("optkit", None)
            for item in config["passes"]:
                item["config"] = {k: from_plain(k, value) for k, value in item["config"].items()}
            config["loss"] = from_plain("loss", config.get("loss"))
            if config.get("goals") is not None:
                config["goals"] = Goals(**config["goals"])
            return cls.from_config(config)
        except PipelineError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PipelineError(f"{str(path)!r} is no pipeline of optkit's: {error!r}") from error

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
                self._prepare(model, data, self._options(None))
        elif model is not None:
            with isolated(derive_seed(self.seed, "run")):
                admit(model, None)

    def run(
        self,
        model: Any,
        data: Data,
        *,
        workdir: str | os.PathLike[str] | None = None,
        progress: bool | Callable[[ProgressEvent], Any] | None = None,
        measure: Measure | None = None,
        stop: Callable[[], Any] | None = None,
        tensorboard: str | os.PathLike[str] | None = None,
        strategy: Any = None,
    ) -> Result:
        """Runs the passes on a copy of the model and measures every stage.

        The caller's model, data, random generators and global settings stay as they are. Runs in
        several threads of one process take turns.

        A run can be ended early, from the keyboard (Ctrl-C, or a notebook's stop button) or by
        ``stop``: the pass that was under way is marked ``"cancelled"``, the others ``"skipped"``,
        and the result holds what was finished.

        Args:
            model: A Keras model, of tf_keras or of Keras 3, built in whatever way, or the path of
                a file that holds one. The results are of the same Keras. A subclassed model that
                was never called has no weights yet; it is called once, which makes them.
            data: The data.
            workdir: Folder that keeps every finished stage. A run that died, however, goes on
                behind the last of them when it is started again with the same arguments; what
                depends on anything that changed is done anew. `Run` reads the folder.
            progress: ``None`` for a bar where a person watches, ``True`` or ``False`` for always
                or never, or a function of one `ProgressEvent`.
            measure: How figures are taken; ``None`` for the defaults of `Measure`.
            stop: Function without arguments that is asked before every pass and after every
                training batch; the run ends when it gives something true.
            tensorboard: Folder for TensorBoard: curves and a profile of every training, figures
                of every stage.
            strategy: A ``tf.distribute`` strategy that every training is done under:
                ``MirroredStrategy`` for several devices of this machine,
                ``MultiWorkerMirroredStrategy`` for several processes, each of which runs this very
                call. The batch size of the data is that of all devices together. Only the chief
                measures, shows progress and writes; every process returns the same.

        Returns:
            The artifact to deploy, every stage, and the report.

        Raises:
            PipelineError, ModelError, DataError: For what cannot work, before anything trains.
            PassError: If a pass fails on the way; it carries the report and the stages so far.
            KeyboardInterrupt: If the run is ended before the model that came in was measured.

        Example:
            >>> import optkit as ok
            >>> from optkit.testing import digits, small_model
            >>> pipeline = ok.Pipeline([ok.QuantizeINT8()], goals=ok.Goals(max_size_mb=0.1))
            >>> result = pipeline.run(small_model(), digits(200), progress=False)
            >>> result.report.met
            True
        """
        crew = crew_of(strategy)
        options = dataclasses.replace(self._options(measure, stop, tensorboard), crew=crew)
        with contextlib.ExitStack() as stack:
            stack.enter_context(isolated(derive_seed(self.seed, "run")))
            shown = stack.enter_context(Progress(progress if crew.chief else False, len(self)))
            prepared = self._prepare(model, data, options)
            opened: list[Workdir] = []  # by the chief; where it cannot, all are told
            if workdir is not None:
                crew.share(lambda: opened.append(stack.enter_context(Workdir(workdir))))
            meter = self._meter(prepared, options)
            kept = opened[0] if opened else None
            if crew.chief:
                stack.enter_context(meter)
            runner = Runner(prepared, meter=meter, progress=shown, options=options, workdir=kept)
            return runner.run()

    def ablate(
        self,
        model: Any,
        data: Data,
        *,
        alone: bool = False,
        workdir: str | os.PathLike[str] | None = None,
        progress: bool | Callable[[ProgressEvent], Any] | None = None,
        measure: Measure | None = None,
        stop: Callable[[], Any] | None = None,
    ) -> Ablation:
        """What each pass contributes: runs the pipeline again without each of them in turn.

        The control-variable method: all else stays as it is, seeds included. What comes before the
        pass that is left out is not done again. Goals are not watched, as undoing passes would
        change more than one thing. Recipe passes are judged by what later training makes of them.

        Args:
            model: The model, as for `run`.
            data: The data, as for `run`.
            alone: Whether to run each pass by itself, too; a recipe pass together with the next
                training pass, against that one alone.
            workdir: Folder that keeps every finished stage, as for `run`; ``None`` for one that
                goes away afterwards.
            progress: As for `run`; the steps of all runs are counted on.
            measure: How figures are taken.
            stop: As for `run`; whatever is finished by then is in the result, and the rest has a
                note.

        Returns:
            A table of what each pass gave and cost, and the report of every run.

        Raises:
            PipelineError, ModelError, DataError: For what cannot work, before anything trains.
            PassError: If a pass of the whole pipeline fails. A run without some pass that fails
                gives a contribution without figures, with the reason.
        """
        from optkit.ablation import ablate

        # Some passes go by the goals; but none is undone for them.
        options = dataclasses.replace(self._options(measure, stop), guard="none")
        with contextlib.ExitStack() as stack:
            stack.enter_context(isolated(derive_seed(self.seed, "run")))
            prepared = self._prepare(model, data, options)
            if workdir is None:
                workdir = stack.enter_context(tempfile.TemporaryDirectory(prefix="optkit-"))
            kept = stack.enter_context(Workdir(workdir))
            meter = stack.enter_context(self._meter(prepared, options))
            return ablate(
                prepared,
                meter=meter,
                progress=progress,
                options=options,
                workdir=kept,
                alone=alone,
            )

    def _options(
        self,
        measure: Measure | None,
        stop: Callable[[], Any] | None = None,
        tensorboard: str | os.PathLike[str] | None = None,
    ) -> Options:
        if measure is not None and not isinstance(measure, Measure):
            raise ArgumentTypeError(
                "`measure` must be an `optkit.Measure`, such as `Measure(threads=2)`. "
                f"Received: {measure!r} (of type {type(measure).__name__})."
            )
        if stop is not None and not callable(stop):
            raise ArgumentTypeError(
                f"`stop` must be a function without arguments. Received: {stop!r}."
            )
        if tensorboard is not None:
            check_installed()
        goals, measure = self.goals or Goals(), measure or Measure()
        if goals.min_throughput is not None and measure.callers is None:
            measure = dataclasses.replace(measure, callers=1)
        return Options(
            seed=self.seed,
            pipeline=repr(self),
            goals=goals,
            on_violation=self.on_violation,
            guard=self.guard,
            measure=measure,
            stop=stop,
            tensorboard=_validate.optional(_validate.path, "tensorboard", tensorboard),
        )

    def _prepare(self, model: Any, data: Data, options: Options) -> Prepared:
        if not isinstance(data, Data):
            raise ArgumentTypeError(
                "`data` must be an `optkit.Data`, such as `Data(train=(x, y))`. "
                f"Received: {type(data).__name__}."
            )
        named = zip(self.names, self.passes, strict=True)
        steps = tuple((number, name, item) for number, (name, item) in enumerate(named, 1))
        return prepare(steps, admit(model, data), data, self.loss, options)

    @staticmethod
    def _meter(prepared: Prepared, options: Options) -> Meter:
        return Meter(prepared.data, prepared.task, prepared.metric, options.measure)


_SETTINGS = ("goals", "on_violation", "guard", "loss", "seed")
