"""What `import optkit` costs, and that imports run one way."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import optkit

PACKAGE = Path(optkit.__file__).parent

#: Each module may import only what stands above it; docs/architecture.md says what each holds.
ORDER = [
    "errors",
    "_validate",
    "runtime",
    "bundle",
    "safety",
    "models",
    "trace",
    "lookups",
    "isolate",
    "translate",
    "task",
    "metric",
    "data",
    "images",
    "imaging",
    "mixing",
    "preprocessing",
    "text",
    "flatbuffer",
    "artifact",
    "convert",
    "recipe",
    "sampling",
    "constraint",
    "measuring",
    "goals",
    "trial",
    "looks",
    "study",
    "audit",
    "report",
    "advice",
    "progress",
    "batch_norm",
    "distribute",
    "training",
    "backbones",
    "probe",
    "unfreezing",
    "collapse",
    "serialize",
    "learned",
    "context",
    "base",
    "fingerprint",
    "quantize",
    "passes",
    "environment",
    "order",
    "result",
    "tensorboard",
    "workdir",
    "entrance",
    "prepare",
    "learning_rate",
    "layerwise",
    "keep",
    "run",
    "ablation",
    "pipeline",
    "testing",
    "quickstart",
    "__main__",
]
HEAVY = ("tensorflow", "tf_keras", "keras", "numpy", "sklearn", "matplotlib", "pandas")


def test_import_brings_nothing_heavy():
    script = (
        "import json, sys, optkit; "
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []


def test_public_names_resolve_and_the_rest_is_refused():
    for name in optkit.__all__:
        assert getattr(optkit, name) is not None
    assert set(optkit.__all__) <= set(dir(optkit))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        optkit.nothing  # noqa: B018


def _top(module: str) -> str:
    return module.split(".")[1] if module.count(".") else "__init__"


def _imports(path: Path) -> set[str]:
    """Modules of optkit imported anywhere in a file, type-checking blocks left out."""
    tree = ast.parse(path.read_text("utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "optkit":
            if node.module == "optkit":
                found |= {alias.name for alias in node.names}
            else:
                found.add(_top(node.module or ""))
        if isinstance(node, ast.Import):
            found |= {_top(a.name) for a in node.names if a.name.split(".")[0] == "optkit"}
    return found


def test_every_module_has_its_place():
    names = {path.stem if path.suffix else path.name for path in PACKAGE.iterdir()}
    assert names - {"__init__", "py", "__pycache__"} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_run_one_way(name):
    place = ORDER.index(name)
    folder = PACKAGE / name
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{name}.py"]
    for file in files:
        for imported in _imports(file) & set(ORDER) - {name}:
            assert ORDER.index(imported) < place, f"{file.name} imports {imported}"


def test_a_pass_imports_no_other_pass():
    for file in (PACKAGE / "passes").glob("[!_]*.py"):
        tree = ast.parse(file.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith(("optkit.passes", "optkit.pipeline"))
