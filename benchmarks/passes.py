"""What each pass gives on scikit-learn's digits: the figures of the method cards.

Every seed has its own split of the data, its own baseline (the quick start's CNN, trained for 12
epochs) and its own training. Each pass runs in a pipeline that shows its effect alone; recipe
passes run with the fine-tuning that they need, and that fine-tuning without them is the row above
them. Prints Markdown.

Run it with ``python -m benchmarks.passes``; a table of five seeds takes some minutes.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import common

_EPOCHS = 12


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: What is shown.
        pipeline: Makes the pipeline of a seed.
        against: Name of the case whose result is "before"; ``None`` for the model that comes in.
    """

    name: str
    pipeline: Callable[[int], Any]
    against: str | None = None


def _cases() -> list[Case]:
    import optkit as ok

    def of(*passes: Callable[[], Any]) -> Callable[[int], Any]:
        return lambda seed: ok.Pipeline([make() for make in passes], seed=seed)

    def fine_tune() -> Any:
        return ok.FineTune(epochs=_EPOCHS, learning_rate=1e-3)

    def prune(sparsity: float) -> Callable[[], Any]:
        return lambda: ok.Prune(sparsity, epochs=4, learning_rate=5e-4)

    def swa() -> Any:
        return ok.SWA(epochs=6, learning_rate=5e-4)

    return [
        Case("FineTune", of(fine_tune)),
        Case("Augment (with FineTune)", of(ok.Augment, fine_tune), "FineTune"),
        Case("LabelSmooth (with FineTune)", of(ok.LabelSmooth, fine_tune), "FineTune"),
        Case("SWA", of(swa)),
        Case("BNReestimate", of(ok.BNReestimate)),
        Case("Prune 0.5", of(prune(0.5))),
        Case("Prune 0.8", of(prune(0.8))),
        Case("Prune 0.9", of(prune(0.9))),
        Case("QuantizeFloat16", of(ok.QuantizeFloat16)),
        Case("QuantizeDynamic 8", of(ok.QuantizeDynamic)),
        Case("QuantizeDynamic 4", of(lambda: ok.QuantizeDynamic(4))),
        Case("QuantizeWeights 8", of(ok.QuantizeWeights)),
        Case("QuantizeWeights 4", of(lambda: ok.QuantizeWeights(4))),
        Case("QuantizeINT16x8", of(ok.QuantizeINT16x8)),
        Case("QuantizeINT8", of(ok.QuantizeINT8)),
    ]


def _trained(model: Any, data: Any, epochs: int) -> Any:
    x, y = data.train
    model.fit(x, y, batch_size=data.batch_size, epochs=epochs, verbose=0)
    return model


def _figures(result: Any, before: Any) -> dict[str, Any]:
    """What one run gave; ``before`` is the measurement that it is held against."""
    row, final = result.report.rows[-1], result.report.final
    return {
        "accuracy_before": before.accuracy,
        "accuracy": final.accuracy,
        "size_bytes": final.size_bytes,
        "compressed_bytes": final.compressed_bytes,
        "size_before_bytes": before.size_bytes,
        "compressed_before_bytes": before.compressed_bytes,
        "sparsity": final.sparsity,
        "speedup": row.speedup,
        "speedup_ci": row.speedup_ci,
        "seconds": sum(row.seconds for row in result.report.rows),
    }


def _transfer(seed: int) -> dict[str, Any]:
    """The quick start's second pipeline: digits 5 to 9 from 50 samples, after digits 0 to 4."""
    import tf_keras as keras

    import optkit as ok
    from optkit.quickstart import (
        _TRANSFER_SAMPLES,
        build_model,
        transfer_data,
        transfer_pipeline,
    )
    from optkit.testing import digits

    data = digits(seed=seed)
    keras.utils.set_random_seed(seed)
    source = transfer_data(data, range(5))
    backbone = _trained(build_model(5, name="backbone"), source, _EPOCHS)
    backbone = keras.Model(backbone.inputs, backbone.get_layer("backbone_flatten").output)
    few = transfer_data(data, range(5, 10), _TRANSFER_SAMPLES)
    scratch = _trained(build_model(5, name="scratch"), few, 60)
    passes = [item for item in transfer_pipeline(backbone) if isinstance(item, ok.TransferLearn)]
    result = ok.Pipeline(passes, seed=seed).run(scratch, few, progress=False)
    return _figures(result, result.report.baseline)


def measure(seeds: Sequence[int], only: str = "") -> dict[str, list[dict[str, Any]]]:
    """Figures by case, one dict a seed.

    Args:
        seeds: The seeds.
        only: Words in the names of the cases to run, with those that they are held against.
    """
    import tf_keras as keras

    from optkit.quickstart import build_model
    from optkit.testing import digits

    chosen = [case for case in _cases() if only in case.name]
    needed = {case.against for case in chosen} | {case.name for case in chosen}
    cases = [case for case in _cases() if case.name in needed]
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in seeds:
        began = time.perf_counter()
        data = digits(seed=seed)
        keras.utils.set_random_seed(seed)
        model = _trained(build_model(), data, _EPOCHS)
        finals: dict[str, Any] = {}
        for case in cases:
            result = case.pipeline(seed).run(model, data, progress=False)
            finals[case.name] = result.report.final
            before = finals[case.against] if case.against else result.report.baseline
            found.setdefault(case.name, []).append(_figures(result, before))
        if only in (name := "TransferLearn (50 samples)"):
            found.setdefault(name, []).append(_transfer(seed))
        keras.backend.clear_session()
        print(f"seed {seed}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return found


def _spread(values: Sequence[float], form: str) -> str:
    mean = sum(values) / len(values)
    if len(values) == 1:
        return format(mean, form)
    return f"{format(mean, form)} ({format(min(values), form)} – {format(max(values), form)})"


def _row(name: str, runs: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    def of(key: str) -> list[float]:
        return [run[key] for run in runs]

    changes = [100 * (run["accuracy"] - run["accuracy_before"]) for run in runs]
    speedups = [run["speedup"] for run in runs if run["speedup"] is not None]
    # Where the interval of most seeds spans 1, there is no change to speak of.
    measurable = [run for run in runs if run["speedup_ci"] and not _spans_one(run["speedup_ci"])]
    speed = f"{common.median(speedups):.2f}×" if speedups else "not measured"
    if speedups and len(measurable) <= len(runs) / 2:
        speed = "no measurable change"
    return (
        name,
        _spread([100 * value for value in of("accuracy_before")], ".1f"),
        _spread([100 * value for value in of("accuracy")], ".1f"),
        _spread(changes, "+.1f"),
        _bytes(of("size_before_bytes"), of("size_bytes")),
        _bytes(of("compressed_before_bytes"), of("compressed_bytes")),
        speed,
    )


def _spans_one(interval: Sequence[float]) -> bool:
    return interval[0] <= 1 <= interval[1]


def _bytes(before: Sequence[float], after: Sequence[float]) -> str:
    return f"{common.median(before) / 1000:,.0f} → {common.median(after) / 1000:,.0f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints the table; returns the exit status."""
    parser = common.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--only", default="", help="words in the names of the cases to run")
    options = parser.parse_args(arguments)
    seeds = range(1 if options.quick else options.seeds)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

    found = measure(seeds, options.only)
    header = (
        "pass",
        "accuracy before, %",
        "after, %",
        "change, points",
        "size, kB",
        "gzipped, kB",
        "speedup",
    )
    print(common.table(header, [_row(name, runs) for name, runs in found.items()]))
    print(
        f"\nAccuracy on test: mean over {len(seeds)} seed{'s' * (len(seeds) != 1)} (smallest – "
        "largest). Sizes and speedup: medians; speedup of one sample on one thread against the "
        "model that came in."
    )
    if options.json is not None:
        common.write_json(
            options.json,
            {"name": "passes", "runs": found, "environment": common.environment()},
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
