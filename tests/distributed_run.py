"""One process of the run that tests/test_distributed.py starts twice.

``python tests/distributed_run.py NUMBER PORTS FOLDER [MODE]``
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def main(number: int, ports: list[str], folder: Path, mode: str) -> None:
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    os.environ["TF_CONFIG"] = json.dumps(
        {"cluster": cluster, "task": {"type": "worker", "index": number}}
    )
    import tensorflow as tf

    # Before anything else of TensorFlow's, which has to know of the others from the start.
    strategy = tf.distribute.MultiWorkerMirroredStrategy()

    sys.path.insert(0, str(Path(__file__).parent))
    from distributed_material import MEASURE, data, model, pipeline

    def tell(event):
        if mode == "die" and event.kind == "epoch":
            sys.stdout.write("epoch\n")
            sys.stdout.flush()

    result = pipeline().run(
        model(),
        data(),
        strategy=strategy,
        workdir=folder / f"run-{number if mode == 'plain' else 0}",
        measure=MEASURE,
        progress=tell,
    )
    result.report.to_json(folder / f"report-{number}.json")
    result.artifact.save(folder / f"artifact-{number}.tflite")
    result.stages["Prune"].save(folder / f"pruned-{number}.keras")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2].split(","), Path(sys.argv[3]), (sys.argv[4:] or ["plain"])[0])
