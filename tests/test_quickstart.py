"""The main job: ``python -m optkit`` as a newcomer runs it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np

import optkit as ok
from optkit.testing import digits


def run(*arguments, **keywords):
    return subprocess.run(
        [sys.executable, "-m", "optkit", *arguments],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        **keywords,
    )


def test_the_quick_start_runs_and_tells_the_truth(tmp_path):
    folder = tmp_path / "out"
    done = run("--out", str(folder))
    assert done.returncode == 0, done.stderr[-2000:]
    names = {path.name for path in folder.iterdir()}
    assert {"report.html", "report.json", "report.png", "model.tflite"} <= names
    report = ok.Report.from_json(folder / "report.json")
    shown = {row.name for row in report.rows}
    transfer = done.stdout.split("2. Transfer")[1]
    assert shown | {"TransferLearn"} >= {
        "Augment",
        "LabelSmooth",
        "FineTune",
        "SWA",
        "Prune",
        "QuantizeINT8",
    }
    assert "TransferLearn" in transfer
    assert "pass" in done.stderr, "progress bars"
    x, y = digits().test
    artifact = ok.load(folder / "model.tflite")
    accuracy = np.mean(artifact.predict(x).argmax(1) == y)
    assert abs(accuracy - report.final.accuracy) < 1e-12
    assert accuracy >= report.baseline.accuracy - 0.02
    assert report.final.size_bytes < 0.3 * report.baseline.size_bytes
    assert str(report) in done.stdout


def test_a_failure_gives_a_message_and_a_status(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    done = run("--out", str(blocked / "folder"), env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
    assert done.returncode == 1
    assert "The quick start failed" in done.stderr
    assert "Traceback" not in done.stderr
