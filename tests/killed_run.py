"""The run that tests/test_runs.py kills: ``python tests/killed_run.py WORKDIR REPORT``.

Says a line for each event, so that it can be killed in the middle of things.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import optkit as ok
from optkit.testing import digits, small_model

#: No timing, which would differ; every other figure must not.
MEASURE = ok.Measure(latency_seconds=0, memory=False)


class Spoil(ok.RewritePass):
    """Turns the last kernel over, which the goal does not allow."""

    def rewrite(self, model, context):
        kernel = model.trainable_variables[-2]
        kernel.assign(-kernel)
        return model


def pipeline() -> ok.Pipeline:
    return ok.Pipeline(
        [
            ok.Augment(rotation=5.0),
            ok.FineTune(2, 1e-2, patience=None),
            Spoil(),
            ok.LabelSmooth(0.1),
            ok.SWA(2, 1e-3),
            ok.Prune(0.5, 1),
            ok.QuantizeINT8(calibration_samples=50),
        ],
        goals=ok.Goals(max_accuracy_drop=0.2, max_size_mb=1),
        seed=7,
    )


def main(workdir: str, report: str) -> None:
    import tf_keras

    tf_keras.utils.set_random_seed(0)
    model, data = small_model(), digits(400)
    model.compile(tf_keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    model.fit(*data.train, batch_size=20, epochs=60, verbose=0)
    result = pipeline().run(
        model,
        data,
        workdir=workdir,
        measure=MEASURE,
        progress=lambda event: (
            sys.stdout.write(f"{event.kind} {event.name}\n") and sys.stdout.flush()
        ),
    )
    result.report.to_json(report)
    result.artifact.save(Path(report).with_suffix(".tflite"))


if __name__ == "__main__":
    main(*sys.argv[1:])
