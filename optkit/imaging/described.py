"""Policies and transforms as plain values, which configurations hold, and back."""

from __future__ import annotations

from typing import Any

from optkit.errors import PipelineError
from optkit.imaging.albumented import is_albumentations, plain_transform, transform_from_plain
from optkit.imaging.policies import AugMix, AutoAugment, ImagePolicy, RandAugment, RandomErasing

__all__ = ["from_description", "to_description"]

_ALBUMENTATIONS = "albumentations"
_KINDS: dict[str, type[ImagePolicy]] = {
    kind.__name__: kind for kind in (AugMix, AutoAugment, RandAugment, RandomErasing)
}


def to_description(value: Any) -> Any:
    """A policy, or a transform that can be stored, as plain values; all else as it is.

    >>> to_description(RandAugment())
    {'kind': 'RandAugment', 'n': 2, 'magnitude': 9}
    """
    if isinstance(value, list | tuple):
        return type(value)(to_description(item) for item in value)
    if isinstance(value, ImagePolicy):
        return value.to_dict()
    if is_albumentations(value) and (stored := plain_transform(value)) is not None:
        return {"kind": _ALBUMENTATIONS, **stored}
    return value


def from_description(value: Any) -> Any:
    """What `to_description` was given; whatever is no description, as it is.

    Raises:
        PipelineError: If a description is of no known kind, or does not fit it.
    """
    if isinstance(value, list | tuple):
        return type(value)(from_description(item) for item in value)
    if not isinstance(value, dict):
        return value
    settings = dict(value)
    name = settings.pop("kind", None)
    if name == _ALBUMENTATIONS:
        return transform_from_plain(settings)
    if name not in _KINDS:
        known = ", ".join(repr(kind) for kind in (*_KINDS, _ALBUMENTATIONS))
        raise PipelineError(f"A policy's `kind` must be one of {known}. Received: {name!r}.")
    try:
        return _KINDS[name](**settings)
    except TypeError as error:
        if isinstance(error, PipelineError):
            raise
        raise PipelineError(f"{name} cannot be made of {settings}: {error}") from error
