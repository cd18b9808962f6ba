"""What the README says is true."""

from __future__ import annotations

from pathlib import Path

import pytest

import optkit as ok

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    code, further = (part.split("```")[0] for part in README.split("```python\n")[1:])
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(code, scope)
    assert ok.load(tmp_path / "model.tflite").kind == "tflite"
    assert str(scope["result"].report) in capsys.readouterr().out
    assert scope["result"].report.final.accuracy > 0.9
    exec(further, scope)
    assert scope["result"].artifact.kind == "tflite"
    assert scope["result"].report.final.accuracy > 0.9


def test_the_report_is_one_that_was_printed():
    assert "<!-- report" not in README
    table = README.split("## A report")[1].split("```")[1]
    for name in ("baseline", "Augment", "LabelSmooth", "FineTune", "SWA", "Prune", "QuantizeINT8"):
        assert name in table
    assert max(len(line) for line in table.splitlines()) <= 100


@pytest.mark.parametrize("name", ["Augment", "SWA", "QuantizeINT8", "BNReestimate"])
def test_the_table_names_passes_that_exist(name):
    assert f"| `{name}` | {getattr(ok, name).family} |" in README


def test_ci_runs_the_command_of_the_readme():
    assert "python -m pip install nox && nox" in README
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    assert "pip install --quiet nox" in script
    assert script.rstrip().endswith('python" -m nox')
