"""The one way in which every pass trains: by the recipe, seeded, with constraints kept."""

from optkit.training.checkpoint import Places, Resumable
from optkit.training.loop import History, fit
from optkit.training.optimizers import (
    DEFAULT_LEARNING_RATE,
    check_compiled_optimizer,
    check_learning_rate,
    check_optimizer,
    follows_schedule,
    initial_learning_rate,
    peak_learning_rate,
)
from optkit.training.plan import require_means
from optkit.training.range_test import LearningRateSearch, RateRange
from optkit.training.steps import Steps, sampled, steps_of

__all__ = [
    "DEFAULT_LEARNING_RATE",
    "History",
    "LearningRateSearch",
    "Places",
    "RateRange",
    "Resumable",
    "Steps",
    "check_compiled_optimizer",
    "check_learning_rate",
    "check_optimizer",
    "fit",
    "follows_schedule",
    "initial_learning_rate",
    "peak_learning_rate",
    "require_means",
    "sampled",
    "steps_of",
]
