"""Every kind of model meets every pass: it works end to end, or it refuses before it trains."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from matrix import KINDS, LIBRARIES, PASSES, REFUSED, cell, expected

import optkit as ok
from optkit import passes

#: Chosen so that each kind and each pass comes up with both libraries; `nox -s full` runs all.
SAMPLE = [
    ("sequential", "QuantizeINT8", "keras"),
    ("unbuilt", "Prune", "keras"),
    ("unbuilt", "FineTune", "tf_keras"),
    ("functional", "TransferLearn", "keras"),
    ("functional", "Augment", "keras"),
    ("functional", "AugmentText", "tf_keras"),
    ("strings", "AugmentText", "keras"),
    ("any length", "AugmentText", "tf_keras"),
    ("nested", "Prune", "tf_keras"),
    ("nested", "QuantizeINT8", "keras"),
    ("shared", "Prune", "keras"),
    ("shared", "Augment", "tf_keras"),
    ("multi-label", "Rebalance", "keras"),
    ("strings", "Rebalance", "tf_keras"),
    ("outputs", "LabelSmooth", "tf_keras"),
    ("outputs", "QuantizeINT8", "keras"),
    ("subclassed", "Prune", "keras"),
    ("subclassed", "SWA", "tf_keras"),
    ("branching", "FineTune", "tf_keras"),
    ("branching", "Prune", "tf_keras"),
    ("branching", "QuantizeINT8", "keras"),
    ("functions", "Prune", "keras"),
    ("functions", "QuantizeINT8", "tf_keras"),
    ("custom layer", "SWA", "keras"),
    ("custom layer", "QuantizeINT8", "tf_keras"),
    ("custom loss", "LabelSmooth", "keras"),
    ("custom loss", "FineTune", "tf_keras"),
    ("sample weights", "Prune", "keras"),
    ("multi-label", "LabelSmooth", "tf_keras"),
    ("LSTM", "QuantizeINT8", "tf_keras"),
    ("LSTM", "Prune", "keras"),
    ("GRU", "QuantizeINT8", "keras"),
    ("attention", "QuantizeINT8", "keras"),
    ("attention", "Prune", "tf_keras"),
    ("Conv1D", "BNReestimate", "keras"),
    ("Conv3D", "Prune", "keras"),
    ("transposed", "QuantizeINT8", "keras"),
    ("separable", "Prune", "tf_keras"),
    ("embedding", "QuantizeINT8", "tf_keras"),
    ("strings", "Prune", "keras"),
    ("strings", "QuantizeINT8", "tf_keras"),
    ("strings", "SWA", "tf_keras"),
    ("preprocessing", "BNReestimate", "keras"),
    ("preprocessing", "QuantizeINT8", "keras"),
    ("any size", "QuantizeINT8", "keras"),
    ("any length", "QuantizeINT8", "tf_keras"),
    ("mixed precision", "FineTune", "keras"),
    ("mixed precision", "QuantizeINT8", "tf_keras"),
    ("frozen part", "Prune", "keras"),
    ("frozen part", "BNReestimate", "tf_keras"),
    ("table", "FineTune", "keras"),
    ("stateful", "QuantizeINT8", "keras"),
    ("outputs", "QuantizeFloat16", "keras"),
    ("any size", "QuantizeFloat16", "tf_keras"),
    ("LSTM", "QuantizeDynamic", "keras"),
    ("strings", "QuantizeDynamic", "tf_keras"),
    ("Conv3D", "QuantizeWeights", "tf_keras"),
    ("any length", "QuantizeWeights", "keras"),
    ("mixed precision", "QuantizeINT16x8", "keras"),
    ("transposed", "QuantizeINT16x8", "tf_keras"),
    ("nested", "QuantizeAware", "keras"),
    ("attention", "QuantizeAware", "tf_keras"),
    ("mixed precision", "QuantizeAware", "keras"),
    ("nested", "FirstThatMeets", "keras"),
    ("table", "FirstThatMeets", "tf_keras"),
    ("strings", "AuditData", "keras"),
    ("outputs", "AuditData", "tf_keras"),
    ("any length", "AuditData", "keras"),
    ("GRU", "LRSchedule", "tf_keras"),
    ("outputs", "GradientAccumulation", "keras"),
    ("frozen part", "MixedPrecision", "tf_keras"),
    ("table", "CompileXLA", "keras"),
    ("outputs", "CutMix", "keras"),
    ("functional", "CutMix", "tf_keras"),
    ("table", "MixUp", "keras"),
    ("transposed", "MixUp", "tf_keras"),
]
REST = [
    (kind, item, library)
    for kind in KINDS
    for item in PASSES
    for library in LIBRARIES
    if (kind, item, library) not in SAMPLE
]


def _holds(kind: str, item: str, library: str) -> None:
    refused = cell(kind, item, library)
    wanted = expected(kind, item)
    if wanted is None:
        assert refused is None, f"refused: {refused}"
    else:
        assert refused is not None, "worked, and the matrix says that it refuses"
        assert re.search(wanted, refused), refused


@pytest.mark.parametrize(("kind", "item", "library"), SAMPLE)
def test_cell(kind, item, library):
    _holds(kind, item, library)


@pytest.mark.full
@pytest.mark.parametrize(("kind", "item", "library"), REST)
def test_every_other_cell(kind, item, library):
    _holds(kind, item, library)


def test_the_matrix_knows_every_pass():
    passes.load_all()
    own = {
        kind.__name__
        for key, kind in ok.Pass.registry.items()
        if key.startswith("optkit.passes.") and not kind.__name__.startswith("_")
    }
    assert own == set(PASSES)


def test_the_sample_holds_every_kind_and_every_pass():
    assert {kind for kind, _, _ in SAMPLE} == set(KINDS)
    assert {item for _, item, _ in SAMPLE} == set(PASSES)
    assert set(REFUSED) <= {(kind, item) for kind in KINDS for item in PASSES}


def test_the_page_says_what_the_cells_do():
    """The page is made by `python -m benchmarks.matrix`, which runs every cell."""
    page = (Path(__file__).parents[1] / "docs" / "matrix.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| **")]
    header = next(line for line in page.splitlines() if line.startswith("| kind"))
    names = [cell.strip() for cell in header.strip("|").split("|")][1:]
    assert names == list(PASSES)
    assert len(rows) == len(KINDS)
    for (kind, described), row in zip(KINDS.items(), rows, strict=True):
        first, *cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert first == f"**{kind}**: {described.about}"
        for name, found in zip(names, cells, strict=True):
            assert (found == "yes") == (expected(kind, name) is None), (kind, name, found)
