"""What `MixedPrecision`, `CompileXLA` and `GradientAccumulation` do to time and memory.

Steps of training are timed in turns (A B, B A, …) on one batch, against float32 without XLA: a small
CNN on images of the size of the digits, and MobileNetV2 (alpha 0.35, 96 pixels) with random weights.
The same for inference of one sample with XLA. Peak memory of one epoch in one large batch, and of the
same update by accumulated small ones, each in a process of its own.

Run it with ``python -m benchmarks.training_speed``. The cards of the three passes show its figures.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import common

BATCH = 32
TOGETHER = 256
MODELS = ("digits CNN", "MobileNetV2 0.35 (96)")
WAYS = {
    "float16": {"precision": "mixed_float16"},
    "bfloat16": {"precision": "mixed_bfloat16"},
    "XLA": {"jit": True},
}


def _model(name: str) -> Any:
    import tf_keras

    from optkit.quickstart import build_model
    from optkit.runtime import isolated

    with isolated(0):
        if name == MODELS[0]:
            return build_model()
        model = tf_keras.applications.MobileNetV2((96, 96, 3), alpha=0.35, weights=None, classes=10)
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


def _settings(model: Any, batch: int) -> dict[str, Any]:
    """What training takes, of one large batch of random samples."""
    import numpy as np

    import optkit as ok
    from optkit.metric import infer_metric
    from optkit.models import signature
    from optkit.task import infer_loss, infer_task

    rng = np.random.default_rng(0)
    x = rng.random((TOGETHER, *model.input_shape[1:]), dtype=np.float32)
    y = np.arange(TOGETHER) % 10
    data = ok.Data(train=(x, y), validation=(x[:10], y[:10]), batch_size=batch)
    task = infer_task(model, y)
    return {
        "data": data.bind(signature(model)),
        "task": task,
        "metric": infer_metric(model, task),
        "loss": infer_loss(model, task),
        "source": model,
        "seed": 0,
    }


def _speeds(names: Sequence[str], outcome: common.Outcome) -> None:
    from optkit.passes.compile_xla import compare_inference
    from optkit.recipe import Recipe
    from optkit.training.speed import compare_steps

    rows = []
    for name in names:
        model = _model(name)
        settings = _settings(model, BATCH)
        for way, slots in WAYS.items():
            found = compare_steps(model, Recipe(**slots), Recipe(), **settings)
            ratio, ends = found.speedup.ratio, found.speedup.ci
            rows.append(
                (
                    name,
                    f"training, {way}",
                    common.shown(ratio, ends),
                    f"{found.milliseconds:.3g}",
                    f"{found.preparing:.1f}",
                )
            )
            outcome.figures[f"{name}, {way}"] = {
                "speedup": ratio,
                "interval": ends,
                "step_ms": found.milliseconds,
                "first_step_s": found.preparing,
            }
        speedup, apart, seconds = compare_inference(model, settings["data"].train, 0)
        rows.append(
            (
                name,
                "inference, XLA",
                common.shown(speedup.ratio, speedup.ci),
                "",
                f"{seconds:.1f}",
            )
        )
        outcome.figures[f"{name}, inference"] = {
            "speedup": speedup.ratio,
            "interval": speedup.ci,
            "outputs_apart": apart,
            "compiling_s": seconds,
        }
    header = ("model", "what", "speedup against float32 without XLA", "step, ms", "first call, s")
    print(common.table(header, rows))


def _peak(batch: int, accumulate: int) -> dict[str, float]:
    """Peak memory of this process, in MiB, before an epoch and at its end."""
    import numpy as np

    from optkit.recipe import Recipe
    from optkit.training import fit

    model = _model(MODELS[1])
    settings = _settings(model, batch)
    model(np.zeros((1, 96, 96, 3), "float32"))
    before = _high_water()
    recipe = Recipe(accumulate=accumulate if accumulate > 1 else None)
    fit(model, recipe, constraints={}, epochs=2, **settings)
    return {"before": before, "peak": _high_water()}


def _high_water() -> float:
    """Most memory that this program has had, in MiB; `getrusage` would count what started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def _memory(outcome: common.Outcome) -> None:
    rows = []
    for batch, accumulate in ((TOGETHER, 1), (BATCH, TOGETHER // BATCH)):
        done = common.child(
            ["-m", "benchmarks.training_speed", "--peak", str(batch), str(accumulate)],
            capture_output=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        added = found["peak"] - found["before"]
        rows.append((f"{accumulate} of {batch}", f"{added:.0f}", f"{found['peak']:.0f}"))
        outcome.figures[f"memory, {accumulate} of {batch}"] = found
    print(common.table(("batches an update", "added by training, MiB", "peak, MiB"), rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = common.parser(__doc__)
    parser.add_argument("--peak", nargs=2, type=int, default=None, help="used by itself")
    options = parser.parse_args(arguments)
    if options.peak:
        print(json.dumps(_peak(*options.peak)))
        return 0
    outcome = common.Outcome("time and memory of training")
    _speeds(MODELS[:1] if options.quick else MODELS, outcome)
    if not options.quick:
        _memory(outcome)
    return common.finish(outcome, options)


if __name__ == "__main__":
    sys.exit(main())
