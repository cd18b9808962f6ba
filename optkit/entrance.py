"""The door of a pipeline: whatever Keras model comes, it becomes one that passes can treat."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from optkit.artifact import Artifact, KerasArtifact, TreatedArtifact, load_model
from optkit.data import Data
from optkit.errors import ModelError
from optkit.models import check_treatable, clone
from optkit.runtime import keras, tf_keras
from optkit.translate import is_keras3, to_tf_keras

__all__ = ["Admitted", "admit"]


@dataclass(frozen=True)
class Admitted:
    """A model that a pipeline can treat.

    Attributes:
        model: A built functional or Sequential tf_keras model, compiled as the one that came. It
            may share layers with it: passes work on copies.
        given: The model that came, or was read from a file; its Keras is that of the results.
        notes: What the report should say of how the one became the other.
    """

    model: Any
    given: Any
    notes: tuple[str, ...] = ()

    @property
    def keras(self) -> int:
        """The version of the Keras that came: 2 or 3."""
        return 3 if is_keras3(self.given) else 2

    def copy(self) -> KerasArtifact:
        """An artifact of a copy, to begin with."""
        artifact = self.hold(KerasArtifact(clone(self.model)))
        assert isinstance(artifact, KerasArtifact)
        return artifact

    def hold(self, artifact: Artifact) -> Artifact:
        """Has an artifact that a pass made be saved as what it will be handed out as."""
        if self.keras == 3 and type(artifact) is KerasArtifact:
            return TreatedArtifact(artifact.treated().model)
        return artifact

    def finished(self, artifact: Artifact) -> Artifact:
        """The artifact to hand out: a Keras model is of the Keras that came."""
        return artifact.finished() if isinstance(artifact, KerasArtifact) else artifact


def admit(model: Any, data: Data | None = None) -> Admitted:
    """Makes of what a user gives a model that passes can treat.

    Args:
        model: A Keras model, of tf_keras or of Keras 3, built in whatever way; or the path of one.
        data: The data of the run, for the shapes of a model that does not know its own.

    Raises:
        ModelError: If that is not possible, with the reason and a remedy.
    """
    notes: list[str] = []
    if isinstance(model, str | os.PathLike):
        model = load_model(model)
    if not _is_model(model):
        raise ModelError(
            "Expected a Keras model, of Keras 3 or of tf_keras, or the path of one. Received: "
            f"{model!r} (of type {type(model).__module__}.{type(model).__qualname__})."
        )
    given = model
    inside = model
    if is_keras3(inside):
        inside = to_tf_keras(inside)
    check_treatable(inside)
    return Admitted(inside, given, tuple(notes))


def _is_model(value: Any) -> bool:
    library = keras() if is_keras3(value) else tf_keras()
    return isinstance(value, library.Model)
