"""What schedules, found learning rates and averaged weights give: the figures of their cards.

The quick start's CNN is trained from nothing on 420 of scikit-learn's digits for as many epochs in
every case; each seed has its own split and its own first weights. Short as it is, it leaves statistics
of batch normalization behind that do not fit yet, so these are measured anew in all cases. Prints
Markdown.

Run it with ``python -m benchmarks.learning_rates --seeds 3``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import numpy as np

EPOCHS = 12
SAMPLES = 700
PEAK = 3e-3


def cases() -> dict[str, Callable[[], list[Any]]]:
    """Passes by what is shown."""
    import optkit as ok

    def tune(rate: float | str = PEAK, epochs: int = EPOCHS) -> Any:
        return ok.FineTune(epochs, rate, patience=None)

    def shaped(*settings: Any, rate: float | str = PEAK, **named: Any) -> Callable[[], list[Any]]:
        return lambda: [ok.LRSchedule(*settings, **named), tune(rate)]

    def averaged(**settings: Any) -> Callable[[], list[Any]]:
        half = EPOCHS // 2
        return lambda: [tune(epochs=half), ok.SWA(EPOCHS - half, PEAK, start=0, **settings)]

    return {
        "constant": lambda: [tune()],
        "cosine": shaped("cosine"),
        "cosine, warmup=0.1": shaped("cosine", warmup=0.1),
        "cosine_restarts": shaped("cosine_restarts"),
        "step": shaped("step"),
        "exponential": shaped("exponential"),
        "one_cycle": shaped("one_cycle"),
        "constant, a tenth of the rate": lambda: [tune(PEAK / 10)],
        "constant, ten times the rate": lambda: [tune(PEAK * 10)],
        '"auto"': lambda: [tune("auto")],
        '"auto", cosine': shaped("cosine", rate="auto"),
        "SWA, constant": averaged(),
        "SWA, cyclic": averaged(schedule="cyclic"),
        "SWA, cosine": averaged(schedule="cosine"),
        "SWA, ema 0.99": averaged(average="ema", decay=0.99),
    }


def measure(make: Callable[[], list[Any]], seeds: int) -> list[tuple[float, float]]:
    """Accuracy on test and the highest rate at the end of an epoch, one pair a seed."""
    import tf_keras as keras

    import optkit as ok
    from optkit.quickstart import build_model
    from optkit.testing import digits

    found = []
    for seed in range(seeds):
        keras.utils.set_random_seed(seed)
        result = ok.Pipeline([*make(), ok.BNReestimate()], seed=seed).run(
            build_model(),
            digits(SAMPLES, seed=seed),
            measure=ok.Measure(latency_seconds=0, memory=False),
            progress=False,
        )
        rates = [
            rate
            for row in result.report.rows
            for curves in row.curves
            for rate in curves["learning_rate"]
        ]
        found.append((result.report.final.accuracy, max(rates)))
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    print(f"{seeds} seeds, {os.cpu_count()} cores, {EPOCHS} epochs\n")
    print(
        "| training | accuracy on test, % (smallest to largest) | highest rate of an epoch's end |"
    )
    print("|---|---|---|")
    for name, make in cases().items():
        values = measure(make, seeds)
        accuracies = 100 * np.array([accuracy for accuracy, _ in values])
        rates = ", ".join(f"{rate:.2g}" for rate in sorted({rate for _, rate in values}))
        spread = f"({accuracies.min():.1f} to {accuracies.max():.1f})"
        print(f"| {name} | {accuracies.mean():.1f} {spread} | {rates} |", flush=True)


if __name__ == "__main__":
    main()
