"""Policies that change images, and transforms of albumentations, on batches and seeded."""

from __future__ import annotations

from optkit.imaging.albumented import Albumented, is_albumentations, moves_pixels
from optkit.imaging.described import from_description, to_description
from optkit.imaging.keyed import KeyedLayer, is_random_layer
from optkit.imaging.policies import (
    AugMix,
    AutoAugment,
    ImagePolicy,
    RandAugment,
    RandomErasing,
)

__all__ = [
    "POLICIES_BY_NAME",
    "Albumented",
    "AugMix",
    "AutoAugment",
    "ImagePolicy",
    "KeyedLayer",
    "RandAugment",
    "RandomErasing",
    "from_description",
    "is_albumentations",
    "is_random_layer",
    "moves_pixels",
    "to_description",
]

#: What the words stand for that a policy can be given as.
POLICIES_BY_NAME: dict[str, ImagePolicy] = {
    "rand": RandAugment(),
    "auto-cifar10": AutoAugment("cifar10"),
    "auto-imagenet": AutoAugment("imagenet"),
    "augmix": AugMix(),
    "erase": RandomErasing(),
}
