"""Random numbers of layers in training: of an epoch and the seed, and of nothing before it.

Dropout and its kin draw from operations of TensorFlow's whose state nobody can read or set, so that
a training that goes on in the middle would draw other numbers than one that was not interrupted.
While a model trains, these layers draw from generators instead, which are seeded anew with each
epoch. So are generators that a layer of the user's holds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from optkit.runtime import derive_seed, tensorflow, tf_keras

__all__ = ["UNREPEATABLE", "seeded_layers", "unrepeatable_operations"]

#: Operations whose random numbers depend on how often they ran before.
UNREPEATABLE = frozenset(
    {
        "Multinomial",
        "ParameterizedTruncatedNormal",
        "RandomGamma",
        "RandomPoisson",
        "RandomPoissonV2",
        "RandomShuffle",
        "RandomStandardNormal",
        "RandomUniform",
        "RandomUniformInt",
        "StatefulUniform",
        "TruncatedNormal",
    }
)


@contextlib.contextmanager
def seeded_layers(model: Any, seed: int) -> Iterator[Any]:
    """Has the layers of a model draw random numbers that depend on the seed and the epoch alone.

    Under a strategy, to be entered in its scope: each replica then draws its own.

    Args:
        model: A model, whose layers draw as before once this is left.
        seed: Seed of the training.

    Yields:
        The Keras callback that seeds them, to stand first among those of the training.
    """
    from tf_keras.src.backend import RandomGenerator

    tf = tensorflow()
    borrowed: list[tuple[Any, dict[str, Any]]] = []
    drawn: list[tuple[Any, int]] = []
    kind = tf.random.Generator
    try:
        for place, layer in enumerate(model._flatten_layers()):
            held = [value for value in vars(layer).values() if isinstance(value, kind)]
            drawn += [
                (generator, derive_seed("held", seed, place, number))
                for number, generator in enumerate(held)
            ]
            source = getattr(layer, "_random_generator", None)
            if not isinstance(source, RandomGenerator):
                continue
            # A layer with a seed of its own keeps to it, whatever that of the training is.
            own = derive_seed("layer", seed if source._seed is None else source._seed, place)
            if source._rng_type == RandomGenerator.RNG_LEGACY_STATEFUL:
                borrowed.append((source, dict(vars(source))))
                # Not by attribute: Keras would track, and save, what is only lent.
                vars(source).update(
                    _rng_type=RandomGenerator.RNG_STATEFUL,
                    _generator=tf.random.Generator.from_seed(own),
                    _built=True,
                )
            source._maybe_init()
            if source._generator is not None:
                drawn.append((source._generator, own))

        class Seeding(tf_keras().callbacks.Callback):  # type: ignore[misc]
            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                for generator, own in drawn:
                    generator.reset_from_seed(derive_seed("epoch", own, epoch))

        yield Seeding()
    finally:
        for source, before in borrowed:
            vars(source).clear()
            vars(source).update(before)


def unrepeatable_operations(function: Any) -> list[str]:
    """Operations in a traced function that draw other numbers when a training goes on in it."""
    found: set[str] = set()
    for traced in function._list_all_concrete_functions():
        definition = traced.graph.as_graph_def()
        nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
        found |= {node.op for node in nodes} & UNREPEATABLE
    return sorted(found)
