"""How close translated models are: every family of keras.applications, between Keras 3 and tf_keras.

Each model is built by both libraries at the smallest input that it allows, with random weights and
random batch-norm statistics, and translated there and back. Shown is the largest difference of the
logits, relative to the largest logit. Parameter counts and layer names must be equal.

Each model runs in a process of its own, so that memory is free again for the next. Run it with
``python -m benchmarks.translation``; ``--all`` takes every member of each family, not the smallest.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import common

LIMIT = 1e-5
#: The smallest inputs that the builders take.
_SIDES = {"Inception": 75, "Xception": 71}
#: The smallest member of each family.
FAMILIES = (
    "ConvNeXtTiny",
    "DenseNet121",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "InceptionResNetV2",
    "InceptionV3",
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Large",
    "MobileNetV3Small",
    "NASNetMobile",
    "RegNetX002",
    "RegNetY002",
    "ResNet50",
    "ResNet50V2",
    "ResNetRS50",
    "VGG16",
    "Xception",
)
_COLUMNS = ("3 → 2", "3 → 2 → 3", "2 → 3", "2 → 3 → 2")


def side_of(name: str) -> int:
    """The smallest side of a square image that a model takes."""
    return next((side for start, side in _SIDES.items() if name.startswith(start)), 32)


def builders(name: str) -> dict[str, Any]:
    """The builders of a model, by library: ``"keras3"`` and ``"tf_keras"``, where it has one."""
    import keras
    import tf_keras

    found = {"keras3": keras.applications, "tf_keras": tf_keras.applications}
    return {key: getattr(home, name) for key, home in found.items() if hasattr(home, name)}


def everything() -> list[str]:
    """Every model that one of the libraries builds."""
    import keras
    import tf_keras

    homes = (keras.applications, tf_keras.applications)
    return sorted({name for home in homes for name in dir(home) if name[0].isupper()})


def build(name: str, library: str, seed: int = 0) -> Any:
    """A model with random weights at its smallest input.

    The kernels are as they are drawn; everything that starts as all equal (biases, scales, batch-norm
    statistics, layer scales) is drawn around where trained models have it, so that every weight shows
    in the outputs, and these stay finite.
    """
    import numpy as np

    builder = builders(name)[library]
    side = side_of(name)
    model = builder(weights=None, input_shape=(side, side, 3), classifier_activation=None)
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        shape = tuple(variable.shape)
        path = getattr(variable, "path", variable.name)
        leaf = path.rpartition("/")[2].partition(":")[0]
        if leaf in ("moving_variance", "variance", "gamma"):
            variable.assign(rng.uniform(0.5, 1.5, shape))
        elif leaf == "count":
            continue
        elif len(shape) <= 1:
            variable.assign(rng.normal(0.0, 0.1, shape))
        elif "kernel" in leaf:
            fan = (
                float(np.prod(shape[:-1])) if "depthwise" not in leaf else float(np.prod(shape[:2]))
            )
            variable.assign(rng.normal(0.0, (1.5 / fan) ** 0.5, shape))
    return model


def difference(expected: Any, received: Any) -> float:
    """The largest difference, relative to the largest value expected."""
    import numpy as np

    return float(np.abs(expected - received).max() / np.abs(expected).max())


def _names(model: Any) -> set[str]:
    parts = getattr(model, "operations", None) or model.layers
    return {part.name.replace("/", "_") for part in parts}  # Keras 3 has no slashes in names


def measure(name: str) -> dict[str, Any]:
    """The figures of one model."""
    import numpy as np

    from optkit.translate import to_keras3, to_tf_keras

    side = side_of(name)
    images = np.random.default_rng(7).uniform(0, 255, (2, side, side, 3)).astype("float32")
    row: dict[str, Any] = {"name": name, "side": side, "equal": True, "finite": True}
    ways = {"keras3": (to_tf_keras, to_keras3), "tf_keras": (to_keras3, to_tf_keras)}
    columns = {"keras3": _COLUMNS[:2], "tf_keras": _COLUMNS[2:]}
    for library in builders(name):
        model = build(name, library)
        scaled = (
            images if "Efficient" in name or "V3" in name or "RS" in name else images / 127.5 - 1
        )
        expected = np.asarray(model(scaled, training=False))
        row["parameters"] = int(model.count_params())
        spread = float(expected.std())
        row["finite"] &= bool(np.isfinite(expected).all() and spread > 1e-3 * abs(expected).max())
        current = model
        for column, translate in zip(columns[library], ways[library], strict=True):
            current = translate(current)
            row[column] = difference(expected, np.asarray(current(scaled, training=False)))
            same = current.count_params() == model.count_params()
            row["equal"] &= bool(same and _names(current) == _names(model))
        if library == "keras3":
            there = to_tf_keras(model)
            kinds = [type(layer).__name__ for layer in there.layers]
            row["carried"] = kinds.count("KerasOperation")
            row["layers"] = len(kinds)
        del model, current
        gc.collect()
    return row


def _alone(name: str) -> dict[str, Any] | str:
    """The figures of one model from a process of its own, or why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.json"
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.translation", "--one", name, "--row", str(path)],
            cwd=common.ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not path.is_file():
            words = done.stderr.strip().splitlines()
            return words[-1] if words else f"exit status {done.returncode}"
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = common.parser(__doc__)
    parser.add_argument("--all", action="store_true", help="every model of each family")
    parser.add_argument("--only", nargs="+", help="these models")
    parser.add_argument("--one", help=common.argparse.SUPPRESS)
    parser.add_argument("--row", type=Path, help=common.argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if options.one:
        options.row.write_text(json.dumps(measure(options.one)), encoding="utf-8")
        return 0

    names = options.only or (everything() if options.all else list(FAMILIES))
    if options.quick:
        names = ["MobileNetV3Small"]
    outcome = common.Outcome("translation")
    rows = []
    for name in names:
        found = _alone(name)
        if isinstance(found, str):
            print(f"{name}: {found}", file=sys.stderr, flush=True)
            outcome.hold(f"{name}: translated", found, False)
            continue
        outcome.figures[name] = found
        figures = [found[column] for column in _COLUMNS if column in found]
        outcome.hold(
            f"{name}: differences under {LIMIT:g}, equal names and counts",
            f"{max(figures):.1e}, {'equal' if found['equal'] else 'not equal'}",
            max(figures) < LIMIT and found["equal"] and found["finite"],
        )
        shown = [f"{found[c]:.1e}" if c in found else "–" for c in _COLUMNS]
        carried = f"{found['carried']} of {found['layers']}" if "carried" in found else "–"
        row = (name, f"{found['side']}²", f"{found['parameters']:,}", *shown, carried)
        rows.append(row)
        print("| " + " | ".join(row) + " |", flush=True)
    header = ("", "input", "parameters", *_COLUMNS, "carried operations")
    print(f"\n{common.table(header, rows)}")
    return common.finish(outcome, options)


if __name__ == "__main__":
    sys.exit(main())
