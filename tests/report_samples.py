"""Reports to test on: one with everything in it, and one where names are meant to do harm."""

from __future__ import annotations

import dataclasses
from typing import Any

from optkit.goals import Goal
from optkit.measuring import Layer, Measurement, Throughput
from optkit.report import Report, Row

HOSTILE = "<script>alert('x')</script>"

NAMES = (
    HOSTILE,
    '"><img src=x onerror=alert(1)>',
    "'; drop table passes; --",
    "</style></table></div>",
    "{{ 7 * 7 }}",
    "$x^2$ \\frac{",
    "\u202egnirts desrever",
    "שכבה ראשונה",
    "第一层",
    "n" * 300,
)


def measured(accuracy: float, latency: float, size: int, **values: Any) -> Measurement:
    """Every figure there is."""
    known: dict[str, Any] = {
        "accuracy": accuracy,
        "accuracy_ci": (accuracy - 0.012, accuracy + 0.008),
        "samples": 1000,
        "per_class": {f"class {i}": accuracy - 0.01 * i for i in range(12)},
        "class_samples": {f"class {i}": 80 + i for i in range(12)},
        "latency_ms": latency,
        "latency_p90_ms": 1.2 * latency,
        "latency_p99_ms": 1.9 * latency,
        "latency_ci": (0.97 * latency, 1.02 * latency),
        "size_bytes": size,
        "compressed_bytes": size * 9 // 10,
        "parameters": size // 4,
        "sparsity": 0.25,
        "peak_memory_bytes": 90_000_000 + 3 * size,
        "runtime_memory_bytes": 80_000_000,
        "throughput": Throughput(4, 1, 3000 / latency, 4 * latency, 6 * latency, 7 * latency, 0.0),
        "layers": (
            Layer("conv", "Conv2D", size // 8, size // 2, 0.5, "float32"),
            Layer("norm", "BatchNormalization", 64, 256, None, "float32"),
            Layer("relu", "ReLU", 0, 0, None, None),
            Layer("scores", "Dense", size // 8, size // 2 - 256, 0.0, "float32"),
        ),
    }
    return Measurement(**(known | values))


def full_report() -> Report:
    """A run in which everything happened that can happen, and everything was measured."""
    small = measured(
        0.956,
        1.25,
        250_000,
        sparsity=0.5,
        layers=(
            Layer("net/relu/Relu;net/norm/Fused;net/conv/Conv2D", "CONV_2D", 125, 125, 0.5, "int8"),
            Layer("net/scores/MatMul", "FULLY_CONNECTED", 120, 140, 0.25, "int8"),
            Layer("Identity", "SOFTMAX", 0, 0, None, None),
        ),
    )
    classes = dict(small.per_class or {})
    classes["class 3"] = 0.55
    small = dataclasses.replace(small, per_class=classes)
    baseline = measured(0.96, 5.0, 1_000_000)
    return Report(
        rows=(
            Row(1, "Augment", "recipe", {"flip": True}, "recipe", seconds=0.0),
            Row(
                2,
                "FineTune",
                "train",
                {"epochs": 3, "learning_rate": 0.001},
                "ok",
                baseline,
                measured(0.965, 5.02, 1_000_000),
                0.95,
                0.955,
                0.99,
                (0.96, 1.03),
                0.005,
                (-0.002, 0.012),
                12.3,
                ("best epoch: 3",),
                (
                    {
                        "loss": [0.9, 0.5, 0.3],
                        "val_loss": [1.0, 0.6, 0.45],
                        "val_metric": [0.8, 0.9, 0.95],
                    },
                ),
            ),
            Row(
                3,
                "Prune",
                "train",
                {"sparsity": 0.9},
                "rolled back",
                baseline,
                measured(0.71, 5.0, 1_000_000),
                0.955,
                0.70,
                1.01,
                (0.98, 1.04),
                -0.25,
                (-0.28, -0.22),
                8.1,
                ("accuracy on validation fell by 25.5 points, more than the 1.5 allowed",),
                ({"loss": [1.2, 1.1]}, {"loss": [0.9, 0.8], "val_metric": [0.6, 0.7]}),
            ),
            Row(4, "DistillTo", "train", {}, "skipped", notes=("it needs what `Prune` makes",)),
            Row(
                5,
                "QuantizeINT8",
                "convert",
                {"io": "int8", "keep_float": ["scores"]},
                "ok",
                baseline,
                small,
                0.955,
                0.951,
                4.0,
                (3.9, 4.1),
                -0.004,
                (-0.011, 0.003),
                1.5,
            ),
            Row(6, "Cancelled", "train", {}, "cancelled"),
        ),
        baseline=baseline,
        environment={
            "pipeline": "Pipeline([\n    Augment(flip=True),\n    FineTune(epochs=3),\n])",
            "seed": 0,
            "task": "multiclass with 12 classes",
            "loss": "sparse_categorical_crossentropy (from the compiled model)",
            "metric": "accuracy (inferred)",
            "data": {"test": {"samples": 1000, "fingerprint": "0123abcd"}, "seed": 0},
            "versions": {"python": "3.11", "numpy": "2.0"},
            "processor": "A processor @ 2.00 GHz",
            "cores": 2,
            "latency_threads": 2,
            "measure": {
                "batch_size": 1,
                "device": {"threads": 2, "memory_mb": 512, "cpus": 1},
            },
        },
        notes=("a note on the whole run",),
        goals=(
            Goal("max_accuracy_drop", 0.015, 0.004, (-0.003, 0.011)),
            Goal("max_size_mb", 0.2, 0.25, None, "MB"),
            Goal("min_speedup", 2.0, 4.0, (3.9, 4.1), "", True),
            Goal("max_memory_mb", 200, None, None, "MB"),
            Goal("min_class_accuracy", 0.8, 0.55, None, "", True),
        ),
        runtime_baseline=Row(
            0,
            "as tflite float32",
            "convert",
            {},
            "ok",
            None,
            measured(0.96, 2.5, 900_000),
            speedup=2.0,
            speedup_ci=(1.95, 2.05),
            accuracy_change=0.0,
            accuracy_change_ci=(-0.001, 0.001),
        ),
    )


def minimal_report() -> Report:
    """Nothing was measured."""
    return Report(
        rows=(Row(1, "Prune", "train", {}, "ok", after=Measurement()),), baseline=Measurement()
    )


def hostile_report() -> Report:
    """The full report with names that are markup, code, very long, or of other scripts."""
    report = full_report()
    classes = {name: 0.5 + i / 20 for i, name in enumerate(NAMES)}
    layers = tuple(Layer(name, name, 10, 40, 0.5, "int8") for name in NAMES)

    def renamed(figures: Measurement | None) -> Measurement | None:
        if figures is None:
            return None
        return dataclasses.replace(
            figures, per_class=classes, class_samples=dict.fromkeys(classes, 50), layers=layers
        )

    rows = tuple(
        dataclasses.replace(
            row,
            name=NAMES[i % len(NAMES)],
            after=renamed(row.after),
            config={NAMES[-1]: NAMES[-1], HOSTILE: [HOSTILE]},
            notes=NAMES,
            curves=tuple({name: [1.0, 0.5] for name in (*NAMES[:3], "loss")} for _ in row.curves),
        )
        for i, row in enumerate(report.rows)
    )
    baseline = renamed(report.baseline) or Measurement()
    return dataclasses.replace(
        report,
        rows=rows,
        baseline=baseline,
        metric=HOSTILE + " accuracy",
        environment=report.environment | {HOSTILE: {NAMES[-1]: NAMES[-1]}, "pipeline": NAMES[-1]},
        notes=NAMES,
    )
