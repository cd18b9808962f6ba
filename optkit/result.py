"""`Result`: what a run gave."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path
from typing import Any

from optkit.advice import missed_goals
from optkit.artifact import Artifact, KerasArtifact, TFLiteArtifact
from optkit.errors import GoalsError, ModelError
from optkit.models import clone, compile_like
from optkit.report import Report
from optkit.runtime import isolated
from optkit.translate import is_keras3, to_keras3

__all__ = ["Result"]


class Result:
    """What a run gave.

    Attributes:
        artifact: What to deploy.
        report: The figures.
        stages: The artifact of every stage by the name of its pass, in order.
    """

    def __init__(
        self, artifact: Artifact, report: Report, stages: dict[str, Artifact], source: Any
    ):
        self.artifact, self.report, self.stages = artifact, report, stages
        self._source = source

    @functools.cached_property
    def model(self) -> Any:
        """A copy of the Keras model, of the Keras that came in, compiled as that model was.

        Raises:
            ModelError: If the artifact is no Keras model; `stages` holds those before it.
        """
        if not isinstance(self.artifact, KerasArtifact):
            keras = [name for name, item in self.stages.items() if isinstance(item, KerasArtifact)]
            hint = f" The Keras models on the way: {', '.join(keras)} in `stages`." if keras else ""
            raise ModelError(
                f"The result is a {self.artifact.kind} artifact, no Keras model.{hint}"
            )
        with isolated(0):  # layers draw seeds when they are made
            model = clone(self.artifact.treated().model)
            if is_keras3(self.artifact.model):
                model = to_keras3(model)
            compile_like(model, self._source)
        return model

    def require_goals(self) -> Result:
        """Raises where a goal was missed; gives the result back where all were met.

        Raises:
            GoalsError: With a table of what was missed, by how much, and what to try.
        """
        missed = tuple(goal for goal in self.report.goals if not goal.met)
        if missed:
            count = f"{len(missed)} of {len(self.report.goals)} goals"
            raise GoalsError(f"{count} missed:\n{missed_goals(self.report)}", missed)
        return self

    def __repr__(self) -> str:
        return f"Result({self.artifact!r}, stages={list(self.stages)})"

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Writes the artifact, the stages, and the report as JSON, HTML and plot.

        Args:
            directory: A folder; it is made where it is missing. `optkit.load` reads the artifact
                back from it.

        Returns:
            The folder.
        """
        folder = Path(directory)
        for suffix in (KerasArtifact.suffix, TFLiteArtifact.suffix):
            for name in (
                f"artifact{suffix}",
                f"artifact.*{suffix}",
                f"stages/[0-9][0-9]-*{suffix}",
            ):
                for old in folder.glob(name):
                    old.unlink()  # of an earlier result, which had other stages
        for old in (folder / "artifact", *folder.glob("stages/[0-9][0-9]-*")):
            if (old / "saved_model.pb").is_file():
                shutil.rmtree(old)
        self.artifact.save(folder / f"artifact{self.artifact.suffix}")
        for number, (name, stage) in enumerate(self.stages.items(), 1):
            stage.save(folder / "stages" / f"{number:02d}-{name}{stage.suffix}")
        self.report.to_json(folder / "report.json")
        self.report.to_html(folder / "report.html")
        self.report.plot(folder / "report.png")
        return folder
