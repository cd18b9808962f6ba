"""The training that tests/test_resume.py kills: ``python tests/killed_training.py WORKDIR MODEL``.

Says a line for each epoch, so that it can be killed in the middle of one.
"""

from __future__ import annotations

import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from test_resume import run

import optkit as ok
from optkit.training import checkpoint


class Slow(ok.RecipePass):
    """Leaves time in every epoch for the process to be killed."""

    def amend(self, recipe):
        import tf_keras

        class Waiting(tf_keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                time.sleep(0.05)

        return recipe.amended(callbacks=Waiting)


def tell(event) -> None:
    if event.kind == "epoch":
        sys.stdout.write(f"epoch {event.epoch}\n")
        sys.stdout.flush()


def main(workdir: str, model: str) -> None:
    checkpoint._SHORTEST, checkpoint._SHARE = 0.0, 0
    passes = [Slow(), ok.Augment(rotation=5.0), ok.Prune(0.7, 5, learning_rate=1e-2)]
    result, _ = run(passes, workdir, progress=tell)
    result.artifact.save(model)


if __name__ == "__main__":
    main(*sys.argv[1:])
