"""What the passes share that make a TFLite file of other numbers out of a float one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal
from weakref import WeakKeyDictionary

from optkit import _validate
from optkit.artifact import Artifact, KerasArtifact, TFLiteArtifact
from optkit.context import Context, Setting
from optkit.convert import convert
from optkit.errors import OptkitError, PipelineError
from optkit.lookups import split_lookups
from optkit.measuring.turns import in_turns
from optkit.quantize.sources import agreement, always_converts
from optkit.quantize.weights import Stored, store_weights

__all__ = [
    "check_bits",
    "check_stored",
    "convert_stored",
    "in_more_bits",
    "in_words",
    "review_file",
    "set_beside",
]

#: Gives the float file that a file was made of, from its making until it was looked at.
_MADE_OF: WeakKeyDictionary[TFLiteArtifact, Callable[[], TFLiteArtifact]] = WeakKeyDictionary()

#: How kernels compute with weights of fewer bits, see `optkit.quantize.weights.store_weights`.
Computes = Literal["float", "integer"]

_NAMES = 3


def check_bits(bits: Any) -> None:
    """Checks the argument `bits` of a pass.

    Raises:
        ArgumentTypeError, PipelineError: If it is neither 8 nor 4.
    """
    _validate.integer("bits", bits, minimum=-(2**31))
    if bits not in (8, 4):
        raise PipelineError(f"`bits` must be 8 or 4. Received: {bits!r}.")


def check_stored(setting: Setting, bits: Literal[16, 8, 4], computes: Computes = "float") -> None:
    """Refuses, before anything runs, what has no weights or does not convert.

    Args:
        setting: What is known before anything runs.
        bits: Bits of the weights.
        computes: As for `optkit.quantize.weights.store_weights`.

    Raises:
        PipelineError: With the reason and a remedy.
    """
    model = setting.model
    if model is None:
        return
    # What lookups hold are no numbers, and have no shape.
    if not any(len(getattr(weight, "shape", ())) > 1 for weight in model.weights):
        raise PipelineError(
            f"Model {model.name!r} has no weights of two and more dimensions, so there is nothing "
            "to store in fewer bits. Leave this pass out."
        )
    if split_lookups(model) is None and always_converts(model):
        return
    try:
        made = convert(model).artifact
        # Reading it back finds what LiteRT does not run.
        stored = store_weights(made.content, bits, computes=computes)
        TFLiteArtifact(stored.content, front=made.front_content).inputs  # noqa: B018
    except OptkitError as error:
        raise PipelineError(
            f"Model {model.name!r} was tried out and does not convert: {error}"
        ) from error


def convert_stored(
    artifact: Artifact, context: Context, bits: Literal[16, 8, 4], computes: Computes = "float"
) -> tuple[TFLiteArtifact, Stored]:
    """Converts to float32 and stores the weights in fewer bits.

    Args:
        artifact: A Keras model, or a graph.
        context: For notes.
        bits: Bits of the weights.
        computes: As for `optkit.quantize.weights.store_weights`.

    Returns:
        The file, and what was stored how.
    """
    source = artifact.model if isinstance(artifact, KerasArtifact) else artifact
    made = convert(source)
    for note in made.notes:
        context.note(note)
    stored = store_weights(made.artifact.content, bits, computes=computes)
    after = TFLiteArtifact(stored.content, front=made.artifact.front_content)
    set_beside(after, lambda: made.artifact)
    for note in _notes(stored, made.artifact):
        context.note(note)
    return after, stored


def _notes(stored: Stored, made: TFLiteArtifact) -> list[str]:
    total = made.parameters
    treated = sum(stored.values.values())
    if not treated:
        return ["stays float32: no weight is so large that storing it otherwise saves anything"]
    shares = ", ".join(
        f"{100 * count / total:.3g} % as {dtype}" for dtype, count in stored.values.items()
    )
    notes = [f"of {total:,} values in weights, stored {shares}; the rest stays float32"]
    if stored.overflowing:
        names = ", ".join(stored.overflowing[:_NAMES])
        notes.append(
            f"too large for float16 (above 65504), so kept as float32: {names}"
            + (", …" if len(stored.overflowing) > _NAMES else "")
        )
    return notes


def in_more_bits(stored: Stored, bits: int) -> list[str]:
    """Says which operators have weights of more bits than were asked for, and why."""
    notes = []
    if bits == 4 and (kept := stored.kinds.get("int8")):
        notes.append(f"kept at 8 bits, as 4 leave too little of them: {in_words(kept)}")
    if kept := stored.kinds.get("float16"):
        notes.append(
            "stored as float16, which takes less than numbers and their scales, or as they are no "
            f"kernels: {in_words(kept)}"
        )
    return notes


def in_words(kinds: Mapping[str, int] | Iterable[str]) -> str:
    """Operators and how many of each.

    Example:
        >>> in_words(["CONV_2D", "CONV_2D", "FULLY_CONNECTED"])
        '2 CONV_2D, 1 FULLY_CONNECTED'
    """
    return ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(kinds).items()))


# ------------------------------------------------------------------------------------ after the fact


def set_beside(after: TFLiteArtifact, made_of: Callable[[], TFLiteArtifact]) -> None:
    """Keeps what gives the float file that a file was made of, until `review_file` has seen it."""
    _MADE_OF[after] = made_of


def review_file(before: Artifact, after: Artifact, context: Context) -> None:
    """Notes how well a file agrees with what it was made of, and how its speed compares.

    The row's speedup is against the Keras model, most of which the runtime gives; this one is
    against the float32 file in the same runtime.
    """
    data = context.data
    split = data.validation or data.train or data.calibration
    if split is None:
        return
    context.note(agreement(before, after, data, context.task))
    if not isinstance(after, TFLiteArtifact):
        return
    made_of = _MADE_OF.pop(after, None)
    if made_of is None:
        return
    sample = next(split.single_inputs(1, 0))
    context.depend_on_machine()
    found = in_turns(after, made_of(), sample)
    low, high = found.ci
    figures = f"{found.ratio:.2f}x (between {low:.2f} and {high:.2f})"
    if high < 1:
        context.note(
            f"slower than the float32 file in LiteRT: {1 / found.ratio:.2f} times its time for one "
            f"sample on one thread, speed {figures}, measured in turns on this processor. What the "
            "speedup of this row shows, the runtime gave"
        )
    elif low > 1:
        context.note(f"faster than the float32 file in LiteRT: {figures} for one sample")
    else:
        context.note(f"as fast as the float32 file in LiteRT: {figures} for one sample")
