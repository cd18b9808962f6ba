"""A copy of a model to train in another way than the model is built, whose weights then go back.

Layers compute in another precision only if they are built so, and variables are spread over devices
only if they are made in the scope of a strategy: both take a model of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from optkit.models import clone, copy_state
from optkit.training.precision import replacement

__all__ = ["working_twin"]


@contextlib.contextmanager
def working_twin(
    model: Any, *, precision: str | None = None, strategy: Any = None
) -> Iterator[Any]:
    """A copy of a model to train, whose weights become those of the model at the end.

    The copy has the same names: `variables_by_path` gives the same paths for it. Callbacks of a
    training find it as ``self.model``, and must not keep variables of the model itself. On failure
    the model keeps the weights that it had.

    Args:
        model: A built functional or Sequential tf_keras model.
        precision: Policy under which layers of the copy compute, ``"mixed_float16"`` or
            ``"mixed_bfloat16"``, as far as they can; ``None`` for that of the model.
        strategy: A ``tf.distribute`` strategy in whose scope the copy's variables are made;
            ``None`` for none. A model that was made in it is not copied for that.

    Yields:
        The copy; the model itself where neither is asked for.

    Example:
        >>> from optkit.testing import small_model
        >>> model = small_model()
        >>> with working_twin(model, precision="mixed_bfloat16") as twin:
        ...     twin.get_layer("conv").compute_dtype, twin.get_layer("classes").compute_dtype
        ('bfloat16', 'float32')
    """
    if precision is None and (strategy is None or _made_in(model, strategy)):
        yield model
        return
    with contextlib.nullcontext() if strategy is None else strategy.scope():
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
