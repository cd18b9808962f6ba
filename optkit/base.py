"""The families of passes. Subclass one, override one method."""

from __future__ import annotations

import abc
import inspect
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np

from optkit.artifact import Artifact, KerasArtifact
from optkit.constraint import Constraint
from optkit.context import Context, Setting, State
from optkit.errors import OptkitError, PipelineError
from optkit.models import clone, variables_by_path
from optkit.recipe import Recipe
from optkit.runtime import tf_keras
from optkit.serialize import readable
from optkit.translate import is_keras3, to_tf_keras

__all__ = [
    "ConvertPass",
    "InspectPass",
    "Pass",
    "RecipePass",
    "RewritePass",
    "TrainPass",
    "pass_class",
    "pass_key",
]


class Pass(abc.ABC):
    """One step of a pipeline.

    Hyperparameters are explicit arguments of ``__init__``, stored unchanged under their own names
    and checked there.

    Attributes:
        family: Name of the family, for the report.
        accepts: The kind of artifact that it takes.
        produces: The kind of artifact that it gives.
        expects_recovery: Whether it harms accuracy by design and counts on training to come. The
            guard of `Goals` then looks after the next training pass instead of after this one.
        makes_artifact: Whether it gives an artifact that was not there before. Such a one is
            measured, kept and held to the goals; the rows of other passes have no figures.
        sees_every_split: Whether it is shown all splits. Only passes that cannot change what is
            deployed are.
    """

    # Of a class, but for passes that hold others: those are of the kind of what they hold.
    family: str
    accepts: type[Artifact] = KerasArtifact
    produces: type[Artifact] = KerasArtifact
    #: Whether it is meant to be followed by training: goals are then judged after that.
    expects_recovery: bool = False
    makes_artifact: ClassVar[bool] = True
    sees_every_split: ClassVar[bool] = False
    #: Classes by name, so that a stored pipeline finds them without importing anything.
    registry: ClassVar[dict[str, type[Pass]]] = {}

    def __init_subclass__(cls, **keywords: Any):
        super().__init_subclass__(**keywords)
        Pass.registry[f"{cls.__module__}:{cls.__qualname__}"] = cls

    @property
    def needs(self) -> tuple[str, ...]:
        """The splits that it cannot do without.

        ``calibration`` is shown only to passes that name it here, and ``test`` to none; but see
        `sees_every_split`.
        """
        return ()

    @property
    def trains(self) -> bool:
        """Whether it trains by the recipe, which the recipe passes before it are there for."""
        return False

    @property
    def replaces_model(self) -> bool:
        """Whether it puts another model in the place of the one that comes in."""
        return False

    @property
    def changes_model(self) -> bool:
        """Whether it does something to the model that is lost if another takes its place."""
        return self.makes_artifact

    def check(self, setting: Setting) -> Any:  # noqa: B027 (nothing to refuse unless overridden)
        """Refuses, before anything runs, a setting in which it cannot work.

        Returns:
            ``None``, or a model like the one that later passes will see, for them to check
            themselves against, where the pass changes the layers.

        Raises:
            PipelineError, ModelError, DataError: With the reason and a remedy.
        """

    def review(self, before: Artifact, after: Artifact, context: Context) -> None:  # noqa: B027
        """Looks at what came out, for notes; not counted as the pass's own time.

        Args:
            before: The artifact that came in.
            after: The artifact that came out.
            context: What to work with; `Context.note` adds to the row.
        """

    @abc.abstractmethod
    def apply(self, state: State, context: Context) -> State:
        """Does the work; families implement it by their one method."""

    @classmethod
    def parameters(cls) -> dict[str, inspect.Parameter]:
        """The hyperparameters, from the signature of ``__init__``."""
        if cls.__init__ is object.__init__:
            return {}
        found = dict(inspect.signature(cls.__init__).parameters)
        found.pop("self")
        for parameter in found.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise PipelineError(
                    f"{cls.__name__}.__init__ must name each hyperparameter; it takes "
                    f"{parameter}, which a configuration cannot hold."
                )
        return found

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as they are."""
        return {name: getattr(self, name) for name in self.parameters()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A pass with these arguments."""
        return cls(**config)

    def __repr__(self) -> str:
        shown = []
        for name, parameter in self.parameters().items():
            value = getattr(self, name)
            if parameter.default is parameter.empty or not _same(value, parameter.default):
                plain = readable(value)
                text = plain if str(plain).startswith("<") else repr(value)
                shown.append(f"{name}={text}")
        return f"{type(self).__name__}({', '.join(shown)})"


def pass_key(item: Pass) -> str:
    """How a file names the class of a pass.

    >>> from optkit.passes.prune import Prune
    >>> pass_key(Prune(0.5)), pass_class(pass_key(Prune(0.5))) is Prune
    ('optkit.passes.prune:Prune', True)
    """
    kind = type(item)
    return f"{kind.__module__}:{kind.__qualname__}"


def pass_class(key: str) -> type[Pass]:
    """The class that a file names.

    Raises:
        PipelineError: If it is not imported: optkit imports nothing that a file names.
    """
    module, _, name = str(key).partition(":")
    if key not in Pass.registry and module.startswith("optkit.passes."):
        import optkit

        getattr(optkit, name, None)  # the public ones are there, and registered once looked at
    if key not in Pass.registry:
        raise PipelineError(
            f"The pass {name!r} of module {module!r} is unknown here. Import the module that "
            "defines it, then load the pipeline again: optkit imports nothing that a file names."
        )
    return Pass.registry[key]


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    return (
        type(one) is type(other)
        and isinstance(one, int | float | str | tuple | list | dict)
        and (one == other)
    )


class RecipePass(Pass):
    """Amends the recipe, by which every later training pass trains. Override `amend`."""

    family = "recipe"
    accepts = produces = Artifact
    makes_artifact = False

    @abc.abstractmethod
    def amend(self, recipe: Recipe) -> Recipe:
        """The recipe with more in it; a pure function of the pass and the recipe."""

    def apply(self, state: State, context: Context) -> State:
        """Amends the recipe of the state."""
        return replace(state, recipe=self.amend(state.recipe))


class InspectPass(Pass):
    """Looks at the data and at what earlier passes made, and changes nothing. Override `inspect`.

    Its row tells what it found: its notes and studies, no figures. With or without it a run gives
    the same, down to the last weight. That is why it alone is shown every split, ``test`` too: what
    it learns there reaches the reader of the report and nothing else.
    """

    family = "inspect"
    accepts = produces = Artifact
    makes_artifact = False
    sees_every_split = True

    @abc.abstractmethod
    def inspect(self, artifact: Any, context: Context) -> None:
        """Looks, and tells what it found by `Context.note` and `Context.show`.

        Args:
            artifact: The artifact of earlier passes, of the kind that `accepts` names. Not to be
                changed.
            context: What to work with, all splits among it.
        """

    def apply(self, state: State, context: Context) -> State:
        """Looks; the state stays what it was."""
        self.inspect(state.artifact, context)
        return state


class _ModelPass(Pass):
    """A pass from a Keras model to a Keras model, on a copy of its own."""

    def _finish(self, state: State, model: Any, context: Context) -> State:
        if is_keras3(model):
            model = to_tf_keras(model)
        if not isinstance(model, tf_keras().Model):
            raise OptkitError(
                f"{type(self).__name__} must return a tf_keras model. It returned {model!r}."
            )
        kept = self._kept(model, context)
        if state.learned is not None and context.newly_learned is None:
            context.note(
                "what was learned for quantization is dropped: it belongs to the weights before "
                "this pass. Put the pass before that training"
            )
        jit = isinstance(state.artifact, KerasArtifact) and state.artifact.jit
        return State(KerasArtifact(model, jit=jit), state.recipe, kept, context.newly_learned)

    def _kept(self, model: Any, context: Context) -> dict[tuple[str, str], Constraint]:
        """The constraints that hold on the new model; the others are dropped or an error."""
        variables = variables_by_path(model)
        kept, dropped = {}, []
        for key, constraint in context.constraints.items():
            variable = variables.get(constraint.path)
            value = np.asarray(variable) if variable is not None else None
            if value is not None and constraint.holds(value):
                kept[key] = constraint
            elif value is not None and self._must_keep:
                raise OptkitError(
                    f"{type(self).__name__} broke the constraint {constraint.name!r} on "
                    f"{constraint.path!r}, which an earlier pass left. Train through "
                    "`context.fit`, which keeps constraints."
                )
            else:
                dropped.append(constraint.path)
        if dropped:
            context.note(
                f"constraints dropped on {len(dropped)} weights that were replaced: "
                + ", ".join(sorted(dropped)[:5])
                + (", …" if len(dropped) > 5 else "")
            )
        return kept

    _must_keep: ClassVar[bool] = True


class TrainPass(_ModelPass):
    """Trains the model. Override `train`."""

    family = "train"

    @property
    def needs(self) -> tuple[str, ...]:
        """The splits that it cannot do without."""
        return ("train",)

    @property
    def trains(self) -> bool:
        """That it does."""
        return True

    @abc.abstractmethod
    def train(self, model: Any, recipe: Recipe, context: Context) -> Any:
        """Trains and returns the model.

        Args:
            model: An uncompiled tf_keras model that belongs to the pass.
            recipe: How to train; hand it to `Context.fit`.
            context: What to work with.

        Returns:
            The trained model: the one given, or another.
        """

    def apply(self, state: State, context: Context) -> State:
        """Trains a copy of the model."""
        model = clone(_keras_model(state))
        return self._finish(state, self.train(model, state.recipe, context), context)


class RewritePass(_ModelPass):
    """Rewrites the model without training. Override `rewrite`."""

    family = "rewrite"
    _must_keep = False

    @abc.abstractmethod
    def rewrite(self, model: Any, context: Context) -> Any:
        """Returns the model, or another in its place.

        Args:
            model: An uncompiled tf_keras model that belongs to the pass.
            context: What to work with.
        """

    def apply(self, state: State, context: Context) -> State:
        """Rewrites a copy of the model."""
        model = clone(_keras_model(state))
        return self._finish(state, self.rewrite(model, context), context)


class ConvertPass(Pass):
    """Turns the artifact into one of another kind. Override `convert` and set `produces`."""

    family = "convert"

    @abc.abstractmethod
    def convert(self, artifact: Any, context: Context) -> Artifact:
        """Returns the new artifact.

        Args:
            artifact: An artifact of the kind that `accepts` names. Not to be changed.
            context: What to work with.
        """

    def apply(self, state: State, context: Context) -> State:
        """Converts the artifact; what holds for Keras weights ends here."""
        artifact = self.convert(state.artifact, context)
        if state.learned is not None and not context.learned_seen:
            context.note(
                f"not used here: what training for quantization learned ({state.learned}). This "
                "pass rounds in its own way"
            )
        return State(artifact, state.recipe)


def _keras_model(state: State) -> Any:
    artifact = state.artifact
    if not isinstance(artifact, KerasArtifact):
        raise PipelineError(f"Expected a Keras model. Received: {artifact!r}.")
    return artifact.model
