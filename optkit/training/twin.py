"""A copy of a model to train in another way than the model is built, whose weights then go back.

Layers compute in another precision only if they are built so, and variables are spread over devices
only if they are made in the scope of a strategy: both take a model of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from optkit.models import clone, copy_state, sublayers
from optkit.training.precision import replacement

__all__ = ["working_twin"]


@contextlib.contextmanager
def working_twin(
    model: Any, *, precision: str | None = None, jit: bool = False, strategy: Any = None
) -> Iterator[Any]:
    """A copy of a model to train, whose weights become those of the model at the end.

    The copy has the same names: `variables_by_path` gives the same paths for it. Callbacks of a
    training find it as ``self.model``, and must not keep variables of the model itself. On failure
    the model keeps the weights that it had.

    Args:
        model: A built functional or Sequential tf_keras model.
        precision: Policy under which layers of the copy compute, ``"mixed_float16"`` or
            ``"mixed_bfloat16"``, as far as they can; ``None`` for that of the model.
        jit: Whether XLA is to compile the training. Random layers of the copy then draw from
            generators that it knows: equal seeds would give other values each time otherwise.
        strategy: A ``tf.distribute`` strategy in whose scope the copy's variables are made;
            ``None`` for none. A model that was made in it is not copied for that.

    Yields:
        The copy; the model itself where nothing takes one.

    Example:
        >>> from optkit.testing import small_model
        >>> model = small_model()
        >>> with working_twin(model, precision="mixed_bfloat16") as twin:
        ...     twin.get_layer("conv").compute_dtype, twin.get_layer("classes").compute_dtype
        ('bfloat16', 'float32')
    """
    in_place = strategy is None or _made_in(model, strategy)
    generators = jit and _draws(model)
    if precision is None and in_place and not generators:
        yield model
        return
    with (
        contextlib.nullcontext() if strategy is None else strategy.scope(),
        _generators() if generators else contextlib.nullcontext(),
    ):
        if precision is None:
            twin = clone(model)
        else:
            twin = clone(model, replace=replacement(model, precision))
            copy_state(model, twin)
    yield twin
    copy_state(twin, model)


def _made_in(model: Any, strategy: Any) -> bool:
    """Whether all variables of a model belong to a strategy already."""
    created = strategy.extended.variable_created_in_scope
    return all(created(variable) for variable in model.variables)


def _draws(model: Any) -> bool:
    """Whether layers of a model draw from TensorFlow's global generator."""
    return any(
        getattr(getattr(layer, "_random_generator", None), "_rng_type", None) == "legacy_stateful"
        for layer in sublayers(model)
    )


@contextlib.contextmanager
def _generators() -> Iterator[None]:
    """Layers that are made within draw from generators of their own."""
    from tf_keras.src import backend

    before = backend.is_tf_random_generator_enabled()
    backend.enable_tf_random_generator()
    try:
        yield
    finally:
        if not before:
            backend.disable_tf_random_generator()
