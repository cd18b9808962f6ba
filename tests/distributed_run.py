"""One process of the runs that tests/test_distributed.py starts.

``python tests/distributed_run.py HOW FOLDER [NUMBER PORT PORT]``, where HOW is ``one`` (a process
by itself), ``mirrored`` (with two devices), ``workers`` (one of two) or ``slow`` (the same, with
time between epochs).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def main(how: str, folder: Path, number: str = "0", *ports: str) -> None:
    if ports:
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        task = {"type": "worker", "index": int(number)}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
    import tensorflow as tf

    strategy = None
    if how == "mirrored":
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
        )
        strategy = tf.distribute.MirroredStrategy(["cpu:0", "cpu:1"])
    elif ports:
        # Before anything else of TensorFlow's, which has to know of the others from the start.
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    from distributed_material import MEASURE, data, model, pipeline

    from optkit import distribute

    distribute._PIECE = 1000  # so that what is sent is of several pieces

    def tell(event):
        sys.stdout.write(f"{event.kind} {event.epoch}\n")
        sys.stdout.flush()

    result = pipeline(slow=how == "slow").run(
        # Built from other random numbers in each process: those of the chief count.
        model(3 + int(number)),
        data(),
        strategy=strategy,
        # Each its own, to see that only one of them is written to.
        workdir=folder / f"run-{number}",
        measure=MEASURE,
        progress=tell,
    )
    result.report.to_json(folder / f"report-{number}.json")
    result.artifact.save(folder / f"artifact-{number}{result.artifact.suffix}")
    for name in ("FineTune", "Prune", "SWA"):
        if name in result.stages:
            result.stages[name].save(folder / f"{name}-{number}.keras")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
