"""`audit`: all checks that are asked for, of all splits."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from optkit.audit import checks as check
from optkit.audit.finding import Finding
from optkit.audit.reading import Digest, read
from optkit.data import BoundData, Split
from optkit.preprocessing import inputs_of_ids
from optkit.task import Task

__all__ = ["CHECKS", "KINDS", "audit"]

CHECKS = (
    "duplicates",
    "near_duplicates",
    "leakage",
    "conflicts",
    "balance",
    "features",
    "range",
)
#: What a finding may be; the names that ``ignore`` takes.
KINDS = (
    *("duplicates", "near_duplicates", "leakage", "near_leakage", "conflicts"),
    *("balance", "imbalance", "missing_classes", "unknown_classes"),
    *("constant", "blank", "not_finite", "range"),
)
_SPLITS = ("train", "validation", "test")

#: Digests of splits that are still there: `Pipeline.check` and the run that follows read them once.
_read: weakref.WeakKeyDictionary[Split, dict[Any, Digest]] = weakref.WeakKeyDictionary()


def audit(
    data: BoundData,
    task: Task,
    model: Any = None,
    *,
    checks: Collection[str] = CHECKS,
    near: float | None = None,
    max_imbalance: float | None = None,
    samples: int = 50_000,
) -> tuple[list[Finding], str]:
    """Looks for faults in the splits.

    Each split is read once; hashes and small outlines of its samples are kept, never all of it.

    Args:
        data: The splits; those of calibration are left out, as they may come from any.
        task: What the targets are.
        model: A tf_keras model that the values are for; ``None`` where there is none.
        checks: Which of `CHECKS` to do.
        near: Distance up to which samples are near duplicates; ``None`` for the kind's own.
        max_imbalance: See `checks.balance`.
        samples: Of how many samples of a split near duplicates are looked for.

    Returns:
        What was found, faults first, and a sentence about what was looked at.
    """
    ids = frozenset() if model is None else inputs_of_ids(model)
    splits = [split for name in _SPLITS if (split := getattr(data, name)) is not None]
    digests = [_digest(split, task, ids, samples) for split in splits]
    found: list[Finding] = []
    if "duplicates" in checks:
        found += check.duplicates(digests)
    if "leakage" in checks:
        found += check.leakage(digests)
    how = ""
    if {"near_duplicates", "leakage"} & set(checks):
        pairs = check.near_pairs(digests, near)
        how = f"; near duplicates: {pairs.how}" if pairs.looked else f"; {pairs.how}"
        if "near_duplicates" in checks:
            found += check.near_duplicates(pairs)
        if "leakage" in checks:
            found += check.near_leakage(pairs)
    if "conflicts" in checks:
        found += check.conflicts(digests, task)
    if "balance" in checks:
        names = {output: data.names_of(output) for output in task.each}
        found += check.balance(digests, task, names, max_imbalance)
    if "features" in checks:
        found += check.features(digests)
    if "range" in checks:
        found += check.value_range(digests, model)
    found.sort(key=lambda finding: not finding.fault)  # which keeps the order of equal ones
    return found, _looked_at(digests) + how


def _looked_at(digests: Sequence[Digest]) -> str:
    return "looked at " + ", ".join(f"{d.name} {d.samples}" for d in digests) + _rows(digests)


def _rows(digests: Sequence[Digest]) -> str:
    """Says how samples are numbered, where that is not plain."""
    cut = [d.name for d in digests if d.places is not None and not _in_order(d.places)]
    return f" ({' and '.join(cut)}: numbers are rows of what was given)" if cut else ""


def _in_order(places: np.ndarray) -> bool:
    return bool(np.array_equal(places, np.arange(len(places))))


def _digest(split: Split, task: Task, ids: frozenset[str], samples: int) -> Digest:
    known = _read.setdefault(split, {})
    key = (ids, samples)
    if key not in known:
        known[key] = read(split, task, ids=ids, samples=samples)
    return known[key]
