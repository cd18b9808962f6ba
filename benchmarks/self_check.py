"""(e) Whether the measuring can be trusted: one thing against itself, and against a known difference.

An artifact is measured against itself many times, each time in fresh processes: the 95 % interval of
the speedup must cover 1 in at least 90 % of them. An artifact of 20 equal layers is measured against
one of 22, which is 10 % more work and nothing else: it must be found, and be found near 1.10.

Run it with ``python -m benchmarks.self_check --repeats 200``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import common

WANTED_SHARE = 0.9
LAYERS = (20, 22)
SIDE, FILTERS = 16, 32
# The layers are all of the work but for reading the input and writing the output, and small enough
# for the caches: weights that do not fit there would make the larger model slower by more than 10 %.
KNOWN_RATIO = LAYERS[1] / LAYERS[0]
TOLERANCE = 0.03


def _model(layers: int) -> Any:
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((SIDE, SIDE, FILTERS), name="image"),
            *[
                keras.layers.Conv2D(FILTERS, 3, padding="same", activation="relu")
                for _ in range(layers)
            ],
        ]
    )


def _speedup(baseline: Any, artifact: Any, sample: Any) -> tuple[float, common.Interval]:
    """As `optkit.measure` takes it: both loaded anew, in a process of their own."""
    from optkit.measuring import Device
    from optkit.measuring.latency import LatencyProcess

    keras = "keras" in (baseline.kind, artifact.kind)
    with LatencyProcess(Device(), sample, keras=keras) as process:
        process.load("baseline", baseline)
        process.load("artifact", artifact)
        _, speedup = process.time_against("artifact", "baseline")
    return speedup.ratio, speedup.ci


def _repeat(
    label: str, baseline: Any, artifact: Any, sample: Any, repeats: int
) -> list[tuple[float, common.Interval]]:
    found = []
    for i in range(repeats):
        found.append(_speedup(baseline, artifact, sample))
        ratio, (low, high) = found[-1]
        print(f"{label}: {i + 1}/{repeats}: {ratio:.3f} [{low:.3f}, {high:.3f}]", flush=True)
    return found


def _figures(found: list[tuple[float, common.Interval]]) -> dict[str, Any]:
    return {
        "ratios": [ratio for ratio, _ in found],
        "intervals": [list(interval) for _, interval in found],
        "median_ratio": common.median([ratio for ratio, _ in found]),
        "median_width": common.median([high - low for _, (low, high) in found]),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = common.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=200, help="of the TFLite artifact")
    parser.add_argument(
        "--keras-repeats", type=int, default=20, help="of the Keras artifact, which starts slowly"
    )
    options = parser.parse_args(arguments)
    repeats = 2 if options.quick else options.repeats
    keras_repeats = 1 if options.quick else options.keras_repeats

    import numpy as np

    import optkit as ok
    from optkit.convert import convert_to_tflite

    sample = np.random.default_rng(0).random((1, SIDE, SIDE, FILTERS), dtype=np.float32)
    small, large = (ok.TFLiteArtifact(convert_to_tflite(_model(layers))) for layers in LAYERS)
    small_keras = ok.KerasArtifact(_model(LAYERS[0]))

    outcome = common.Outcome("self-check of the measuring")
    for name, artifact, times in (
        ("TFLite", small, repeats),
        ("Keras", small_keras, keras_repeats),
    ):
        found = _repeat(f"{name} against itself", artifact, artifact, sample, times)
        covered = sum(low <= 1 <= high for _, (low, high) in found)
        figures = _figures(found) | {"covered": covered, "repeats": times}
        outcome.figures[f"{name.lower()}_against_itself"] = figures
        outcome.hold(
            f"{name} against itself: the interval covers 1 in {WANTED_SHARE:.0%}",
            f"{covered} of {times}; median width {figures['median_width']:.3f}",
            covered >= WANTED_SHARE * times,
        )
    found = _repeat("10 % more work", large, small, sample, repeats)
    seen = sum(low > 1 for _, (low, _) in found)
    figures = _figures(found) | {"found": seen, "repeats": repeats, "known_ratio": KNOWN_RATIO}
    outcome.figures["known_difference"] = figures
    outcome.hold(
        f"{KNOWN_RATIO - 1:.0%} less work is found to be faster in {WANTED_SHARE:.0%}",
        f"{seen} of {repeats}",
        seen >= WANTED_SHARE * repeats,
    )
    outcome.hold(
        f"and found near {KNOWN_RATIO:.2f} (within {TOLERANCE})",
        f"median {figures['median_ratio']:.3f}",
        abs(figures["median_ratio"] - KNOWN_RATIO) <= TOLERANCE,
    )
    return common.finish(outcome, options)


if __name__ == "__main__":
    sys.exit(main())
