"""Logging a run to TensorBoard: curves and a profile of every training, figures of every stage.

The files are written by TensorFlow, with parts of the package ``tensorboard`` (``optkit[tensorboard]``),
which also shows them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from optkit.errors import PipelineError
from optkit.runtime import tensorflow, tf_keras

__all__ = ["callback", "check_installed", "write_figures"]

# The first batches trace and compile; these show how training goes on.
_PROFILED_BATCHES = (3, 8)


def check_installed() -> None:
    """Refuses a run that could not be logged.

    Raises:
        PipelineError: If ``tensorboard``, whose parts TensorFlow writes with, is missing.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise PipelineError(
            "`tensorboard=…` needs the package tensorboard, which is not installed: "
            "`pip install 'optkit[tensorboard]'`."
        )


def callback(folder: Path, number: int, name: str, training: int) -> Any:
    """A Keras callback that writes the curves and a profile of one training.

    Args:
        folder: Folder of the run.
        number: Position of the pass.
        name: Name of the pass.
        training: Number of the training within the pass, from 1.
    """
    run = f"{number:02d}-{name}" + (f"-training-{training}" if training > 1 else "")
    return tf_keras().callbacks.TensorBoard(
        str(folder / run), write_graph=False, profile_batch=_PROFILED_BATCHES
    )


def write_figures(folder: Path, number: int, figures: dict[str, float]) -> None:
    """Writes the figures of a stage as scalars, with the position of its pass as the step.

    Args:
        folder: Folder of the run.
        number: Position of the pass; 0 for the baseline.
        figures: Figures by name.
    """
    tf = tensorflow()
    writer = tf.summary.create_file_writer(str(folder / "stages"))
    with writer.as_default(step=number):
        for name, value in figures.items():
            tf.summary.scalar(f"stage/{name}", value)
    writer.close()
