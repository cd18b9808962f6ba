"""`AuditData`: faults in data that no training can make good."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from optkit import _validate
from optkit.artifact import KerasArtifact
from optkit.audit import CHECKS, KINDS, Finding, audit
from optkit.base import InspectPass
from optkit.context import Context, Setting
from optkit.data import BoundData
from optkit.errors import DataError, PipelineError
from optkit.task import Task

__all__ = ["AuditData"]


class AuditData(InspectPass):
    """Looks for faults in the data, and says in the report what it found.

    Use it first in a pipeline, whenever data are new: samples that are in ``train`` and in ``test``,
    contradicting labels, values that the model was not made for, and the like make every figure
    behind them worth less. It changes nothing, trains nothing, and treats images, tables, texts,
    token ids and other arrays, from memory or streams.

    Args:
        strict: Whether faults (not all findings are) raise a `DataError` that lists them, in
            `Pipeline.check` and before anything of a run has started.
        checks: What to look for:

            - ``"duplicates"``: the same sample more than once within a split;
            - ``"near_duplicates"``: nearly the same samples within a split;
            - ``"leakage"``: samples that two of ``train``, ``validation`` and ``test`` share, or of
              which one has a near duplicate (*fault*);
            - ``"conflicts"``: the same input with different targets (*fault*, but for regression);
            - ``"balance"``: samples a class, classes that are missing (*fault* in ``train``);
            - ``"features"``: features that never change, images of one value, values that are not
              finite (*fault*; those in arrays are refused in any case);
            - ``"range"``: values that are not what the model expects, as far as it can be known, or
              of different forms in the splits (*fault*). See
              `optkit.preprocessing.preprocessing_mismatch`.

        near: Distance up to which two samples are near duplicates, above 0; ``None`` for 0.1 of
            images (relative to their contrast), 0.01 of tables (standard deviations, in the feature
            that differs most), 0.2 of texts and token ids (share of pairs of neighbouring words that
            only one has) and 0.02 of other arrays.
        max_imbalance: How many times as large as the smallest class the largest may be, at least 1;
            more is a *fault*. ``None`` tells from 3 on, and never as a fault.
        samples: Of how many samples of a split near duplicates are looked for, at least 2. Exact
            ones are looked for among all.
        ignore: Findings to leave out, such as ``("near_leakage", "missing_classes")``: any of
            ``"duplicates"``, ``"near_duplicates"``, ``"leakage"``, ``"near_leakage"``,
            ``"conflicts"``, ``"balance"``, ``"imbalance"``, ``"missing_classes"``,
            ``"unknown_classes"``, ``"constant"``, ``"blank"``, ``"not_finite"``, ``"range"``.

    Example:
        >>> import optkit as ok
        >>> from optkit.testing import digits, small_model
        >>> data = digits(200)
        >>> data.test = data.train  # which nobody means to do
        >>> ok.Pipeline([ok.AuditData(strict=True)]).check(small_model(), data)
        Traceback (most recent call last):
        ...
        optkit.errors.DataError: Step 1, AuditData: the data have 1 fault:
        - 120 samples of test (100 %) are in train, too: figures on test are better than they ...

    References:
        Barz and Denzler, "Do We Train on Test Data? Purging CIFAR of Near-Duplicates", 2020, on how
        common near duplicates are. Broder, "On the Resemblance and Containment of Documents", 1997,
        on finding them among texts.
    """

    def __init__(
        self,
        strict: bool = False,
        *,
        checks: Collection[str] = CHECKS,
        near: float | None = None,
        max_imbalance: float | None = None,
        samples: int = 50_000,
        ignore: Collection[str] = (),
    ):
        self.strict = _validate.boolean("strict", strict)
        self.checks = _validate.texts("checks", checks)
        if not self.checks:
            raise PipelineError(
                f"`checks` is empty, so AuditData looks for nothing. Name some of {', '.join(CHECKS)}, "
                "or leave it out for all of them."
            )
        for name in self.checks:
            _validate.one_of("checks", name, CHECKS)
        self.near = _validate.optional(
            _validate.number, "near", near, minimum=0, maximum=2, exclusive="min max"
        )
        self.max_imbalance = _validate.optional(
            _validate.number, "max_imbalance", max_imbalance, minimum=1
        )
        self.samples = _validate.integer("samples", samples, minimum=2)
        self.ignore = _validate.texts("ignore", ignore)
        for name in self.ignore:
            _validate.one_of("ignore", name, KINDS)

    def check(self, setting: Setting) -> None:
        """With ``strict``, refuses data that have faults."""
        if self.strict:
            self._refuse(self._findings(setting.data, setting.task, setting.model)[0])

    def inspect(self, artifact: Any, context: Context) -> None:
        """Looks, and tells."""
        model = artifact.model if isinstance(artifact, KerasArtifact) else None
        found, looked_at = self._findings(context.data, context.task, model)
        if self.strict:  # what only the model that earlier passes made can show
            self._refuse(found)
        for finding in found:
            if finding.text:
                context.note(("FAULT: " if finding.fault else "") + finding.text)
            if finding.study is not None:
                context.show(finding.study)
        faults = sum(finding.fault for finding in found)
        context.note(f"{looked_at}; {faults or 'no'} fault{'s' * (faults != 1)}")

    def _findings(self, data: BoundData, task: Task, model: Any) -> tuple[list[Finding], str]:
        found, looked_at = audit(
            data,
            task,
            model,
            checks=self.checks,
            near=self.near,
            max_imbalance=self.max_imbalance,
            samples=self.samples,
        )
        return [finding for finding in found if finding.kind not in self.ignore], looked_at

    @staticmethod
    def _refuse(found: list[Finding]) -> None:
        faults = [finding.text for finding in found if finding.fault]
        if not faults:
            return
        listed = "".join(f"\n- {text}" for text in faults)
        raise DataError(
            f"the data have {len(faults)} fault{'s' * (len(faults) != 1)}:{listed}\n"
            "Mend them, name what is meant so in `AuditData(ignore=…)`, or leave `strict` out to "
            "read about them in the report."
        )
