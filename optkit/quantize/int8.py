"""Full-integer files: the float file, its ranges, what is repaired, what stays in float."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from optkit.convert import Samples
from optkit.errors import OptkitError
from optkit.learned import LearnedRanges
from optkit.metric import Metric
from optkit.quantize.bias import (
    correct_biases,
    settle_biases,
    uncorrected,
    with_own_biases,
)
from optkit.quantize.calibrate import Ranges, batches, calibrate, histograms
from optkit.quantize.floatfile import FloatFile, float_file
from optkit.quantize.judge import Judge, Judgement
from optkit.quantize.mismatch import mismatch
from optkit.quantize.ranges import ESTIMATORS, clip_aware, estimate
from optkit.quantize.repairs import balance, equalize, fold_batch_norms
from optkit.quantize.scan import Found, search
from optkit.quantize.select import MOVES, groups, heirs, operations_of, primary
from optkit.quantize.sources import Taken
from optkit.quantize.tables import (
    REPAIR_NAMES,
    ranges_table,
    repairs_table,
    samples_table,
    scan_table,
)
from optkit.quantize.trained import learned_bits, with_learned
from optkit.quantize.variant import (
    NO_ARITHMETIC,
    Scheme,
    float_inputs,
    float_operations,
    quantize,
    whole_number_inputs,
)
from optkit.runtime import tf_keras
from optkit.study import Study

__all__ = ["EXACT", "REPAIRS", "ControlFlowError", "Int8", "Settings"]

#: What `Int8` can repair, in the order in which it does.
REPAIRS = ("fold", "clip", "batch_norm", "balance", "equalize", "bias", "settle", "float_output")
#: Those that leave the outputs of the float model as they are.
EXACT = ("fold", "clip")

_LOOK_CLOSER = 0.02  # relative error of the outputs from which on repairs are tried out
_HELPS = 0.95  # share of the error that may be left by a repair that is kept
_FEWER = 8  # calibration samples that a study begins with


class ControlFlowError(OptkitError):
    """Loops or branches are left in the file, which only TensorFlow's converter quantizes."""


@dataclass(frozen=True)
class Settings:
    """What is asked of `Int8`; see `optkit.passes.quantize_int8.QuantizeINT8`."""

    io: Literal["int8", "float32"] = "int8"
    ranges: str = "auto"
    repairs: tuple[str, ...] = REPAIRS
    keep_float: frozenset[str] = frozenset()
    max_drop: float | None = None
    calibration_study: bool = False
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Candidate:
    """A file that could be the result, and all that is needed to make it again."""

    model: Any
    #: The name that a layer has in the model, by its path in the one that came in, where it differs.
    names: Mapping[str, str]
    file: FloatFile
    exact: FloatFile  # of the outputs that the file should have: the same, biases not corrected
    extremes: Ranges  # as they were measured
    ranges: Ranges
    keep: frozenset[int]
    judged: Judgement | None = None
    estimator: str = "minmax"
    #: Where the biases stand that were corrected, and what they were; see `uncorrected`.
    own: Mapping[int, tuple[int, bytes]] = field(default_factory=dict)


class Int8:
    """Makes a full-integer file of a model.

    Args:
        source: A built tf_keras model, or an artifact with `signature` and `inference_function`.
        samples: What to calibrate on: inputs of the model.
        settings: What is asked for.
        metric: The metric of the run; needed where there is something to choose on.
        chosen_on: Samples to choose on, with targets or without; ``None`` where nothing is chosen.
        learned: What training for quantization learned, or ``None``.
        reestimated: Gives a copy of the model with batch-norm statistics measured anew; ``None``
            where that cannot be done.

    Attributes:
        notes: What the row of the report should say.
        studies: The tables that it should show.
        judge: What variants are judged by, once `make` has run; ``None`` where nothing is chosen.
        final: The float file that was quantized, its model, its ranges and what stayed in float,
            once `make` has run.
    """

    def __init__(
        self,
        source: Any,
        samples: Samples,
        settings: Settings,
        *,
        metric: Metric | None = None,
        chosen_on: Taken | None = None,
        learned: LearnedRanges | None = None,
        reestimated: Callable[[Any], Any] | None = None,
    ):
        self.source, self.samples, self.settings = source, samples, settings
        self.metric, self.chosen_on, self.learned = metric, chosen_on, learned
        self._reestimated = reestimated
        self.notes: list[str] = []
        self.studies: list[Study] = []
        self.judge: Judge | None = None
        self.final: _Candidate
        self._tried: list[tuple[str, Judgement, bool]] = []
        self._told = False

    # ------------------------------------------------------------------------------- the course

    def make(self) -> tuple[FloatFile, bytes]:
        """The float file that was quantized, and the bytes of the quantized one.

        Raises:
            ControlFlowError: If loops or branches are left in the file.
            OptkitError: If it cannot be done.
        """
        made = self._make()
        return made if self.learned is None else self._better_measured(made, self.learned)

    def _better_measured(
        self, made: tuple[FloatFile, bytes], ranges: LearnedRanges
    ) -> tuple[FloatFile, bytes]:
        """What ranges learned in training gave, unless measured ones and repairs give clearly more.

        A training that was too short leaves a model that does not live well with its ranges.
        """
        fewer = any(bits != 8 for bits in ranges.weight_bits.values())
        if self.judge is None or self.judge.float.score is None or fewer:
            return made
        other = Int8(
            self.source,
            self.samples,
            self.settings,
            metric=self.metric,
            chosen_on=self.chosen_on,
            reestimated=self._reestimated,
        )
        found = other._make()
        learned, measured = self.judge(made[1]), self.judge(found[1])
        if not _is_worse(self.judge, measured, learned):
            return made
        name = self.judge.metric.name
        said = (
            f"ranges learned in training were left out: with measured ones and repairs {name} is "
            f"{measured.score:.4g}, with them {learned.score:.4g}, on the samples set aside"
        )
        self.notes = [said, *other.notes]
        self.studies, self.final, self.learned = other.studies, other.final, None
        return found

    def _make(self) -> tuple[FloatFile, bytes]:
        settings = self.settings
        model, names = self._folded(self.source)
        file = float_file(model, settings.input_shapes)
        if file.has_control_flow:
            raise ControlFlowError("Loops or branches are left in the float file.")
        self.notes += file.notes
        self.judge = judge = self._judge(file)
        now = self._plain(model, names, file)
        now = self._repaired(now, ("batch_norm", "balance", "equalize", "bias"))
        now = self._estimated(now)
        now = self._repaired(now, ("settle", "float_output"))
        if judge is not None and self._tried:
            self.studies.append(repairs_table(judge, self._tried))
        if settings.calibration_study:
            self._study_samples(now)
        if settings.max_drop is not None and judge is not None:
            now = self._searched(now, judge, settings.max_drop)
        content = self._made(now)
        self._say_what_stays(now, content)
        self.final = now
        return now.file, now.file.finish(content)

    def _folded(self, model: Any) -> tuple[Any, Mapping[str, str]]:
        """The model with exact repairs done, and the names of layers that have others now."""
        wanted = "fold" in self.settings.repairs and self.learned is None
        if not wanted or not isinstance(model, tf_keras().Model):
            return model, {}
        folded = fold_batch_norms(model)
        said = f"batch norm folded: {_listed(folded.done)}"
        if folded.done and said not in self.notes:
            self.notes.append(said)
        return folded.model, folded.names

    def _judge(self, file: FloatFile) -> Judge | None:
        if self.chosen_on is None or self.metric is None:
            return None
        return Judge(file, self.chosen_on, self.metric)

    def _plain(self, model: Any, names: Mapping[str, str], file: FloatFile) -> _Candidate:
        """The candidate of a model with ranges from the lowest to the highest value."""
        extremes = self._calibrated(file)
        ranges = self._narrowed(file, extremes)
        keep = self._kept(model, names, file)
        found = _Candidate(model, names, file, file, extremes, ranges, keep)
        return dataclasses.replace(found, judged=self._judged(found))

    def _made(self, candidate: _Candidate, keep: frozenset[int] | None = None) -> bytes:
        keep = candidate.keep if keep is None else keep
        return quantize(
            with_own_biases(candidate.file, candidate.own, keep),
            candidate.ranges,
            scheme=self._scheme(candidate.file),
            keep_float=keep,
            io=self.settings.io,
        )

    def _scheme(self, file: FloatFile) -> Scheme:
        bits = {} if self.learned is None else learned_bits(file, self.learned)
        return Scheme(layer_weights=bits or None)

    def _judged(self, candidate: _Candidate) -> Judgement | None:
        return None if self.judge is None else self.judge(self._made(candidate))

    # ------------------------------------------------------------------------------------- ranges

    def _calibrated(self, file: FloatFile) -> Ranges:
        return _sound(calibrate(file, file.behind(self.samples)))

    def _estimated(self, now: _Candidate) -> _Candidate:
        """With ranges by the way that was asked for, or by the best one."""
        wanted = self.settings.ranges
        judge = self.judge
        if wanted == "minmax" or self.learned is not None or (wanted == "auto" and judge is None):
            return now
        # Biases that were corrected leave the values as they are, but for a little.
        file = now.exact
        extremes = now.extremes
        seen = histograms(file, file.behind(self.samples), extremes)
        judged: dict[str, _Candidate] = {"minmax": now}
        for kind in ESTIMATORS[1:] if wanted == "auto" else (wanted,):
            ranges = self._narrowed(file, estimate(kind, extremes, seen))
            other = dataclasses.replace(now, ranges=ranges, estimator=kind)
            judged[kind] = dataclasses.replace(other, judged=self._judged(other))
        if judge is None or wanted != "auto":
            return judged[wanted]
        best = "minmax"
        for kind, found in judged.items():
            if _helps(judge, judged[best].judged, found.judged):
                best = kind
        rows = {kind: found.judged for kind, found in judged.items()}
        self.studies.append(ranges_table(judge, rows, best))
        return judged[best]

    def _narrowed(self, file: FloatFile, ranges: Ranges) -> Ranges:
        if "clip" in self.settings.repairs:
            ranges = clip_aware(file, ranges)
        return _sound(self._with_learned(file, ranges))

    def _with_learned(self, file: FloatFile, ranges: Ranges) -> Ranges:
        if self.learned is None:
            return ranges
        taken = with_learned(file, ranges, self.learned)
        if not self._told:  # the study of calibration samples comes here again
            self._told = True
            changed = sum(taken[name] != ranges[name] for name in ranges)
            said = f"{changed} ranges of activations are those learned in training"
            self.notes += [said, *self.learned.notes]
        return taken

    # ------------------------------------------------------------------------------------ repairs

    def _repaired(self, now: _Candidate, names: Collection[str]) -> _Candidate:
        """Tries repairs that are not exact, one on top of the other, and keeps those that help."""
        judge = self.judge
        if judge is None or self.learned is not None:
            return now
        for name in names:
            if name not in self.settings.repairs or now.judged is None:
                continue
            if now.judged.error < _LOOK_CLOSER:  # what the metric does then is chance
                break
            candidate = self._try(name, now)
            if candidate is None or candidate.judged is None:
                continue
            kept = _is_better(judge, name, now.judged, candidate.judged)
            if not self._tried:
                self._tried.append(("none", now.judged, True))
            self._tried.append((name, candidate.judged, kept))
            if kept:
                self.notes.append(_why_kept(judge, name, now.judged, candidate.judged))
                now = candidate
            if kept and name == "batch_norm":
                # Another float model: what comes after should be as near to that one.
                judge.compare_with(now.file)
                now = dataclasses.replace(now, judged=self._judged(now))
        return now

    def _try(self, name: str, now: _Candidate) -> _Candidate | None:
        """The candidate with one more repair; ``None`` where it does not apply."""
        if name == "bias":
            file = correct_biases(now.exact, now.exact.behind(self.samples))
            fresh = dataclasses.replace(now, file=file, own=uncorrected(file, now.exact))
        elif name == "settle":
            file = settle_biases(
                now.exact,
                lambda part: self._made(dataclasses.replace(now, file=part, own={})),
                now.exact.behind(self.samples),
                now.keep,
            )
            fresh = dataclasses.replace(now, file=file, own=uncorrected(file, now.exact))
        elif name == "float_output":
            ends = frozenset(
                item.index
                for item in now.file.operations
                if set(item.outputs) & set(now.file.outputs)
            )
            if not ends - now.keep:
                return None
            fresh = dataclasses.replace(now, keep=now.keep | ends)
        else:
            other = self._other_model(name, now)
            if other is None:
                return None
            return self._plain(*other, float_file(other[0], self.settings.input_shapes))
        return dataclasses.replace(fresh, judged=self._judged(fresh))

    def _other_model(self, name: str, now: _Candidate) -> tuple[Any, Mapping[str, str]] | None:
        """A model that computes the same, or nearly so, and quantizes better; ``None`` for none."""
        if not isinstance(now.model, tf_keras().Model):
            return None
        if name == "batch_norm":
            # Of the model as it came: folded statistics cannot be measured.
            fresh = None if self._reestimated is None else self._reestimated(self.source)
            return None if fresh is None else self._folded(fresh)
        if name == "equalize":
            repaired = equalize(now.model)
        elif now.file.source.split is None:
            repaired = balance(now.model, lambda: batches(now.file, self.samples))
        else:  # the samples are those of the whole model
            return None
        return (repaired.model, {**now.names, **repaired.names}) if repaired.done else None

    # --------------------------------------------------------------------------------- keep float

    def _kept(self, model: Any, names: Mapping[str, str], file: FloatFile) -> frozenset[int]:
        """The operators of the layers that were asked to stay in float."""
        found: frozenset[int] = frozenset()
        gone = []
        for path in sorted(self.settings.keep_float):
            own = operations_of(file, {names.get(path, path)})
            if not own and isinstance(model, tf_keras().Model):
                took = heirs(path, self.source, model, names)
                own = operations_of(file, {names.get(name, name) for name in took})
            if not own:
                gone.append(path)
            found |= own
        said = (
            f"nothing is left in the file of {', '.join(gone)}, which were to stay in float: they "
            "do nothing outside of training, or went into their neighbours"
        )
        if gone and said not in self.notes:
            self.notes.append(said)
        return found

    def _searched(self, now: _Candidate, judge: Judge, max_drop: float) -> _Candidate:
        """Returns layers to float until the drop is within the budget."""
        if not judge.labelled:
            self.notes.append(
                "keep_float='auto': NOT SEARCHED, as there are no samples with targets to set aside "
                "for it: validation needs at least 4, of which one half is searched on"
            )
            return now
        fixed = now.keep
        own = _names_that_came(now)
        layers = {
            own.get(layer, layer): indices - fixed
            for layer, indices in groups(now.file).items()
            if any(now.file.operations[i].kind not in MOVES for i in indices - fixed)
        }
        found = search(lambda keep: self._made(now, fixed | keep), judge, layers, max_drop)
        self._show_scan(judge, found, max_drop)
        return dataclasses.replace(now, keep=fixed | found.operations, judged=found.judged)

    def _show_scan(self, judge: Judge, found: Found, max_drop: float) -> None:
        self.studies.append(scan_table(judge, found))
        drop = judge.drop(found.judged)
        if found.met:
            chosen = f"{_listed(found.kept)} kept in float" if found.kept else "no layer in float"
            self.notes.append(
                f"keep_float='auto': {chosen} for a drop of {drop:.4g} on the samples that the "
                f"search saw; {max_drop:g} is allowed"
            )
        else:
            self.notes.append(
                f"keep_float='auto': THE BUDGET IS NOT MET: the least drop found is {drop:.4g}, and "
                f"{max_drop:g} is allowed; "
                + (f"{_listed(found.kept)} kept in float" if found.kept else "no layer in float")
                + "; inputs and outputs are rounded as well, unless `io='float32'`"
                * (self.settings.io == "int8")
            )

    def _say_what_stays(self, now: _Candidate, content: bytes) -> None:
        """Says what still computes in float in the file, or comes as floats."""
        floats = [kind for kind in float_operations(content) if kind not in NO_ARITHMETIC]
        asked = [now.file.operations[index].kind for index in now.keep]
        for kind in asked:
            if kind in floats:
                floats.remove(kind)
        if asked:
            own = _names_that_came(now)
            found = [primary(now.file.operations[i], now.file) for i in sorted(now.keep)]
            layers = dict.fromkeys(own.get(layer, layer) for layer in found)
            self.notes.append(f"in float: {_listed(tuple(layers))}")
        if floats:
            kinds = ", ".join(sorted(set(floats)))
            self.notes.append(f"in float, as no quantizer treats them: {kinds}")
        whole = whole_number_inputs(now.file)
        ports = [port.name for port in now.file.signature.inputs]
        names = dict(zip(ports, now.file.inputs, strict=True))
        taken = float_inputs(content) if self.settings.io == "int8" else ()
        if left := [name for name in taken if names.get(name) not in whole]:
            self.notes.append(
                f"taken as float32, as other inputs are whole numbers: {_listed(left)}"
            )

    # ------------------------------------------------------------------------------------ studies

    def _study_samples(self, now: _Candidate) -> None:
        """Shows how the result changes with the number of calibration samples."""
        if self.judge is None:
            self.notes.append("no study of calibration samples: there is nothing to judge on")
            return
        every = list(now.file.behind(self.samples)())
        counts, count = [], _FEWER
        while count < len(every):
            counts.append(count)
            count *= 2
        rows = []
        for count in [*counts, len(every)]:
            part = every[:count]
            extremes = _sound(calibrate(now.file, functools.partial(iter, part)))
            ranges = self._narrowed(now.file, extremes)
            judged = self._judged(dataclasses.replace(now, ranges=ranges))
            if judged is not None:
                rows.append((count, judged.error, judged.score))
        self.studies.append(samples_table(self.judge, rows))

    def mismatch(self, samples: Samples) -> list[str]:
        """How other samples differ from those of the calibration, in words; nothing if they agree.

        Args:
            samples: Inputs of the model, such as those of the validation split.
        """
        if self.learned is not None:  # what training learned to clip is meant to be
            return []
        file = self.final.exact
        ranges = self._narrowed(
            file, self.final.extremes
        )  # other ways than extremes clip on purpose
        clips = "clip" in self.settings.repairs
        return mismatch(file, ranges, file.behind(samples), clips=clips)


def _helps(judge: Judge | None, before: Judgement | None, after: Judgement | None) -> bool:
    """Whether a change is clearly for the better, and the metric not for the worse."""
    if judge is None or before is None or after is None:
        return False
    return after.error < _HELPS * before.error and not _is_worse(judge, before, after)


def _is_worse(judge: Judge, before: Judgement, after: Judgement) -> bool:
    """Whether the metric lost more than a few samples that fall this way or that."""
    lost = judge.drop(after) - judge.drop(before)
    if before.values is None or after.values is None:
        return lost > 0
    spread = float(np.std(after.values - before.values))
    return bool(lost > spread / max(len(after.values), 1) ** 0.5)


def _is_better(judge: Judge, name: str, before: Judgement, after: Judgement) -> bool:
    """Whether a repair is kept."""
    if name == "float_output":  # a file in integers alone is given up for nothing less
        return judge.drop(after) < judge.drop(before) and _helps(judge, before, after)
    if name != "batch_norm":
        return _helps(judge, before, after)
    # It makes another float model, so that nearness to the first one says nothing of it.
    if before.values is None or after.values is None:
        return False
    gains = judge.metric.sign() * (after.values - before.values)
    spread = float(np.std(gains)) / max(len(gains), 1) ** 0.5
    return bool(gains.mean() > 2 * spread > 0)


def _why_kept(judge: Judge, name: str, before: Judgement, after: Judgement) -> str:
    if name == "batch_norm" and before.score is not None and after.score is not None:
        return (
            f"{REPAIR_NAMES[name]} on train: kept, {judge.metric.name} {before.score:.4g} -> "
            f"{after.score:.4g} on the samples set aside; the float model gains by it as well "
            "(`BNReestimate`)"
        )
    return f"{REPAIR_NAMES[name]}: kept, output error {before.error:.3g} -> {after.error:.3g}"


def _names_that_came(now: _Candidate) -> dict[str, str]:
    """The paths in the model that came in of layers that have other names in the file."""
    return {name: path for path, name in now.names.items()}


def _sound(ranges: Ranges) -> Ranges:
    """Ranges that a scale can be made of: what never left zero gets the range of one."""
    return {
        name: (low, high) if low < 0 or high > 0 else (0.0, 1.0)
        for name, (low, high) in ranges.items()
    }


def _listed(names: Collection[str]) -> str:
    shown = list(names)[:5]
    return ", ".join(shown) + (f", … ({len(names)} in all)" if len(names) > len(shown) else "")
