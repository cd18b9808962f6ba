"""`Keeper`: what a run leaves in its folder, and what it need not do again."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from optkit.base import Pass
from optkit.context import Context, State
from optkit.environment import describe_system, switches, training_threads
from optkit.fingerprint import Unfingerprintable, artifact_fingerprint, library_versions, own_parts
from optkit.measuring import Measured
from optkit.prepare import Options, Prepared
from optkit.report import Report
from optkit.runtime import tf_keras
from optkit.training import Places
from optkit.workdir import StoredStage, Workdir, stage_key, unique_key

__all__ = ["BASELINE", "Keeper"]

#: Name of the model that came in, among the stages.
BASELINE = "baseline"
_UNKNOWN = "unknown"  # figures taken in a way that cannot be known again; they are only shown


class Keeper:
    """Keeps the stages of a run and finds those of earlier ones; does nothing without a folder.

    Args:
        prepared: What was prepared.
        options: What else was asked for.
        workdir: The folder, or ``None``.

    Attributes:
        notes: What the report should say of it.
    """

    def __init__(self, prepared: Prepared, options: Options, workdir: Workdir | None):
        self.prepared, self.options = prepared, options
        self.model, self._keras = prepared.admitted.model, prepared.admitted.keras
        self._source = prepared.admitted.given if self.model is None else self.model
        self.workdir = workdir
        self.notes: list[str] = []
        self._keys: dict[str, str] = {}  # of the stages of this run that are kept, by name

    def keep_baseline(self, state: State) -> str:
        """Keeps the model that came in; returns its fingerprint, empty where there is none."""
        if self.workdir is None:
            return ""
        key = self.plain_key(BASELINE)
        stored = self.find(BASELINE, key)
        return self.keep(BASELINE, state, {}, key) if stored is None else stored.fingerprint

    def plain_key(self, name: str) -> str | None:
        """The key of what depends on the model that came in and on nothing else of the run."""
        if self.workdir is None:
            return None
        return stage_key(
            name=name, model=self._source, keras=self._keras, versions=library_versions()
        )[0]

    def key(
        self,
        item: Pass,
        context: Context,
        incoming: str,
        state: State,
        recipe: Sequence[Pass],
    ) -> str | None:
        """The key of a stage: everything that its result depends on.

        Args:
            item: The pass.
            context: What it will work with.
            incoming: Fingerprint of the artifact that comes in.
            state: What comes in besides.
            recipe: The passes so far that have amended the recipe.

        Returns:
            ``None`` where not everything can be known again.
        """
        if self.workdir is None or not incoming:
            return None
        prepared, splits = self.prepared, context.data.identities()
        streams = [name for name, identity in splits.items() if identity is None]
        if streams:
            self._note(
                f"workdir: stages cannot be reused, as `{streams[0]}` is a stream without a "
                "fingerprint; give `Data(fingerprint=…)`"
            )
            return None
        # Batch normalization, for one, looks at the share of a replica.
        together = {} if self.options.crew.replicas == 1 else {"crew": self.options.crew.describe()}
        key, reason = stage_key(
            **together,
            incoming=incoming,
            constraints=context.constraints,
            learned=state.learned,
            item=item,
            recipe=list(recipe),
            # What is measured may have decided it.
            jit=state.recipe.jit,
            seed=context.seed,
            threads=training_threads(),
            data=splits,
            batch_size=prepared.data.batch_size,
            task=prepared.task,
            metric=prepared.metric,
            loss=prepared.loss,
            source=self._source,
            keras=self._keras,
            versions=library_versions(),
            switches=switches(),
        )
        if key is None:
            self._note(f"workdir: a stage cannot be reused: {reason}")
        return key

    def find(self, name: str, key: str | None) -> StoredStage | None:
        """The stage of that key, which becomes a stage of this run under a name."""
        if self.workdir is None or key is None:
            return None
        stored = self.workdir.find(key, self.own_parts)
        if stored is not None:
            self._keys[name] = key
        return stored

    @functools.cached_property
    def own_parts(self) -> dict[str, Any]:
        """Classes of the user's that models of this run may be made of."""
        found: dict[str, Any] = {}
        for _, _, item in self.prepared.steps:
            for model in _models_in(item):
                found |= own_parts(model)
        return found if self.model is None else found | own_parts(self.model)

    def places(self, key: str | None) -> Places | None:
        """Where trainings of a stage keep how far they are; ``None`` where nobody could go on."""
        crew = self.options.crew
        folder = None
        if self.workdir is not None and key is not None:
            folder = self.workdir.checkpoints(key)
        # All who train together take part where the chief keeps something.
        return Places(folder or Path(), crew) if crew.agreed(folder is not None) else None

    def keep(self, name: str, state: State, facts: dict[str, Any], key: str | None) -> str:
        """Writes a stage, also one that no later run will find, so that `Run` can show it.

        Returns:
            The fingerprint of its artifact, empty where there is none.

        Raises:
            OptkitError: If it cannot be written.
        """
        if self.workdir is None:
            return ""
        try:
            fingerprint = artifact_fingerprint(state.artifact)
        except Unfingerprintable as error:
            fingerprint, key = "", None
            self._note(f"workdir: stages behind {name} cannot be reused: {error}")
        key = key or unique_key()
        learned = None if state.learned is None else state.learned.to_dict()
        reason = self.workdir.put(
            key, name, state.artifact, state.constraints, facts | {"learned": learned}, fingerprint
        )
        if reason is None:
            self._keys[name] = key
            self.workdir.drop_checkpoints(key)
        else:
            self._note(reason)
        return fingerprint

    def figures(self, name: str) -> Measured | None:
        """What an earlier run measured of a stage in the same way."""
        key, measure_key = self._keys.get(name), self._measure_key
        if self.workdir is None or key is None or measure_key is None:
            return None
        kept = self.workdir.measured(key, measure_key)
        return None if kept is None else Measured.from_plain(*kept)

    def keep_figures(self, name: str, measured: Measured) -> None:
        """Writes what was measured of a stage.

        Raises:
            OptkitError: If it cannot be written.
        """
        if self.workdir is not None and name in self._keys:
            plain, arrays = measured.to_plain()
            # What went wrong once need not go wrong again, so it is shown and not relied on.
            whole = self._measure_key is not None and not measured.missing
            measure_key = self._measure_key if whole else _UNKNOWN
            self.workdir.put_measured(self._keys[name], measure_key or _UNKNOWN, plain, arrays)

    @functools.cached_property
    def _measure_key(self) -> str | None:
        """Everything that figures depend on but the artifact itself; asked for with a baseline."""
        data = self.prepared.data
        splits = [split for split in (data.report_split, data.validation) if split is not None]
        if self.workdir is None or any(split.identity is None for split in splits):
            return None
        key, _ = stage_key(
            measure=self.options.measure,
            metric=self.prepared.metric,
            task=self.prepared.task,
            splits=[(split.name, split.identity) for split in splits],
            class_names=data.class_names,
            baseline=self._keys.get(BASELINE),
            system={k: v for k, v in describe_system().items() if k != "system"},
            versions=library_versions(),
            switches=switches(),
        )
        return key

    @functools.cached_property
    def timing_key(self) -> str:
        """What figures depend on that are of this machine, where they have decided something."""
        key, _ = stage_key(
            measure=self.options.measure,
            system={k: v for k, v in describe_system().items() if k != "system"},
        )
        return key or unique_key()

    def record(self, report: Report) -> None:
        """Makes this run the one that the folder shows.

        Raises:
            OptkitError: If it cannot be written.
        """
        if self.workdir is None or not self.options.record:
            return
        rows = [(BASELINE, "ok"), *((row.name, row.status) for row in report.rows)]
        stages = [(name, self._keys[name], status) for name, status in rows if name in self._keys]
        final = report.final_row
        self.workdir.record(
            stages,
            report,
            current=BASELINE if final is None else final.name,
            measure_key=self._measure_key or _UNKNOWN,
        )
        if not any(row.status in ("cancelled", "failed") for row in report.rows):
            self.workdir.drop_checkpoints()  # of stages that nothing asks for any more

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def _models_in(value: Any) -> Iterator[Any]:
    """The tf_keras models among the arguments of a pass, and of passes that it holds."""
    if isinstance(value, tf_keras().Model):
        yield value
    elif isinstance(value, Pass):
        yield from _models_in(value.get_config())
    elif isinstance(value, dict):
        yield from _models_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _models_in(item)
