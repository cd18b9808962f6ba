"""Which orders of passes can work: checked when a pipeline is built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from optkit.artifact import Artifact, KerasArtifact
from optkit.base import Pass, RecipePass
from optkit.errors import PipelineError
from optkit.recipe import EXCLUSIVE_SLOTS, Recipe

__all__ = ["check_order", "step_names"]


def step_names(passes: Sequence[Pass]) -> tuple[str, ...]:
    """``Prune``, and ``Prune-2`` for the second of a kind."""
    seen: Counter[str] = Counter()
    names = []
    for item in passes:
        kind = type(item).__name__
        seen[kind] += 1
        names.append(kind if seen[kind] == 1 else f"{kind}-{seen[kind]}")
    return tuple(names)


def check_order(passes: Sequence[Pass], names: Sequence[str]) -> None:
    """Refuses an order of passes in which some of them could not work or would work for nothing."""
    _check_kinds(passes, names)
    _check_recipe(passes, names)
    changed: list[str] = []
    for i, (name, item) in enumerate(zip(names, passes, strict=True), 1):
        if item.replaces_model and changed:
            raise PipelineError(
                f"Step {i}, {name}, puts another model in the place of the one that "
                f"{', '.join(changed)} worked on, whose work would be thrown away. Move {name} to "
                "the front, or leave out what comes before it."
            )
        if item.changes_model:
            changed.append(f"step {i}, {name},")


def _check_kinds(passes: Sequence[Pass], names: Sequence[str]) -> None:
    kind: type[Artifact] = KerasArtifact
    maker = "the model that comes in"
    for i, (name, item) in enumerate(zip(names, passes, strict=True), 1):
        if isinstance(item, RecipePass):
            continue
        if not issubclass(kind, item.accepts):
            raise PipelineError(
                f"Step {i}, {name}, takes a {_kind(item.accepts)} artifact, and {maker} gives a "
                f"{_kind(kind)} artifact. Move {name} before it, or leave one of them out."
            )
        if item.makes_artifact:
            kind, maker = item.produces, f"step {i}, {name},"


def _kind(artifact: type[Artifact]) -> str:
    return getattr(artifact, "kind", artifact.__name__)


def _check_recipe(passes: Sequence[Pass], names: Sequence[str]) -> None:
    trainings = [i for i, item in enumerate(passes) if item.trains]
    last = trainings[-1] if trainings else -1
    filled: dict[str, str] = {}  # exclusive slots, and who filled them since the last training
    empty = Recipe()
    for i, (name, item) in enumerate(zip(names, passes, strict=True)):
        if item.trains:
            filled.clear()
        if not isinstance(item, RecipePass):
            continue
        if i > last:
            raise PipelineError(
                f"Step {i + 1}, {name}, changes how later passes train, and no training pass "
                "follows it. Add one behind it, such as `FineTune(epochs=5)`."
            )
        amended = item.amend(empty)
        for slot in EXCLUSIVE_SLOTS:
            if getattr(amended, slot) is getattr(empty, slot):
                continue
            if slot in filled:
                raise PipelineError(
                    f"{filled[slot]} and step {i + 1}, {name}, both set how the next training "
                    f"does {slot!r}, which holds one setting. Leave one of them out, or put a "
                    "training pass between them."
                )
            filled[slot] = f"Step {i + 1}, {name},"
