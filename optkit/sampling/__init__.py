"""Training splits in which classes have other shares: what `Rebalance` does.

Class weights and random drawing work on whatever a sample is; everything else on rows of numbers,
through imbalanced-learn.
"""

from optkit.sampling.classes import (
    balanced_weights,
    class_numbers,
    count_classes,
    over_targets,
    require_classes,
    under_targets,
)
from optkit.sampling.draw import Drawn, draw_rows, draw_stream, weigh
from optkit.sampling.features import Features, images_among, whole_number_inputs
from optkit.sampling.samplers import (
    STRATEGIES,
    Lack,
    Strategy,
    as_samplers,
    draws_at_random,
    knows_categories,
    makes_rows,
    seeded,
    too_few,
)

__all__ = [
    "STRATEGIES",
    "Drawn",
    "Features",
    "Lack",
    "Strategy",
    "as_samplers",
    "balanced_weights",
    "class_numbers",
    "count_classes",
    "draw_rows",
    "draw_stream",
    "draws_at_random",
    "images_among",
    "knows_categories",
    "makes_rows",
    "over_targets",
    "require_classes",
    "seeded",
    "too_few",
    "under_targets",
    "weigh",
    "whole_number_inputs",
]
