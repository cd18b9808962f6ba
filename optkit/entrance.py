"""The door of a pipeline: whatever Keras model comes, it becomes one that passes can treat."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from optkit.artifact import (
    Artifact,
    KerasArtifact,
    SavedModelArtifact,
    TreatedArtifact,
    load_model,
)
from optkit.data import Data
from optkit.errors import ModelError
from optkit.models import Signature, check_treatable, clone, compile_like, signature
from optkit.runtime import keras, tf_keras
from optkit.trace import (
    NotTraceableError,
    build,
    is_wired,
    opaque,
    refuse_own_steps,
    to_functional,
)
from optkit.translate import is_keras3, to_tf_keras

__all__ = ["Admitted", "admit"]


@dataclass(frozen=True)
class Admitted:
    """A model that a pipeline can treat.

    Attributes:
        model: A built functional or Sequential tf_keras model, compiled as the one that came. It
            may be that one itself: passes work on copies. ``None`` for what can only be converted.
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

    @property
    def signature(self) -> Signature:
        """Its inputs and outputs."""
        if self.model is None:
            found: Signature = self.given.signature
            return found
        return signature(self.model)

    def artifact(self) -> Artifact:
        """The artifact to look at."""
        return self.given if self.model is None else KerasArtifact(self.model)

    def copy(self) -> Artifact:
        """An artifact of a copy, to begin with."""
        return self.given if self.model is None else self.hold(KerasArtifact(clone(self.model)))

    def hold(self, artifact: Artifact) -> Artifact:
        """Has an artifact that a pass made be saved as what it will be handed out as."""
        if self.keras == 3 and type(artifact) is KerasArtifact:
            return TreatedArtifact(artifact.treated().model, jit=artifact.jit)
        return artifact

    def finished(self, artifact: Artifact) -> Artifact:
        """The artifact to hand out: a Keras model is of the Keras that came."""
        return artifact.finished() if isinstance(artifact, KerasArtifact) else artifact


def admit(model: Any, data: Data | None) -> Admitted:
    """Makes of what a user gives a model that passes can treat.

    Args:
        model: A Keras model, of tf_keras or of Keras 3, built in whatever way; the path of one; or
            a SavedModel that can only be converted.
        data: The data of the run, for the shapes of a model that does not know its own; without
            them such a model is only looked at from outside.

    Raises:
        ModelError: If that is not possible, with the reason and a remedy.
    """
    if isinstance(model, str | os.PathLike):
        model = load_model(model)
    if isinstance(model, KerasArtifact):
        model = model.model
    if isinstance(model, SavedModelArtifact):
        return Admitted(None, model)
    _require_model(model)
    if data is None and not (model.built and is_wired(model)):
        return Admitted(None, model)
    graph, notes = _as_graph(model, data)
    if graph is not model:
        compile_like(graph, model)
    inside = to_tf_keras(graph) if is_keras3(graph) else graph
    check_treatable(inside)
    return Admitted(inside, model, notes)


def _require_model(model: Any) -> None:
    library = keras() if is_keras3(model) else tf_keras()
    if not isinstance(model, library.Model):
        raise ModelError(
            "Expected a Keras model, of Keras 3 or of tf_keras, or the path of one. Received: "
            f"{model!r} (of type {type(model).__module__}.{type(model).__qualname__})."
        )


def _as_graph(model: Any, data: Data | None) -> tuple[Any, tuple[str, ...]]:
    """A functional or Sequential model of the same Keras, and what to say of it."""
    refuse_own_steps(model)
    if data is None or (model.built and is_wired(model)):
        return model, ()
    example = data.example()
    model = build(model, example)
    if is_wired(model):
        return model, ()
    try:
        graph = to_functional(model, example)
    except NotTraceableError as error:
        return opaque(model, example), (f"model: treated as a whole. {error}",)
    note = (
        f"model: {type(model).__name__} is subclassed; its layers were wired into a functional "
        "model, which gave the same on samples in both modes"
    )
    return graph, (note,)
