"""`QuantizeINT8`: a full-integer TFLite file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from optkit import _validate
from optkit.artifact import Artifact, GraphArtifact, KerasArtifact, TFLiteArtifact
from optkit.base import ConvertPass
from optkit.batch_norm import reestimate_batch_norm
from optkit.context import Context, Setting
from optkit.convert import convert
from optkit.data import Split, join_leaves
from optkit.errors import ArgumentTypeError, DataError, OptkitError, PipelineError
from optkit.goals import Goals
from optkit.lookups import split_lookups
from optkit.measuring.accuracy import compare_scores, score
from optkit.metric import true_classes
from optkit.models import batch_norms, clone, layers_by_path, nested_models, signature
from optkit.quantize.int8 import EXACT, REPAIRS, ControlFlowError, Int8, Settings
from optkit.quantize.ranges import ESTIMATORS
from optkit.quantize.select import resolve
from optkit.quantize.sources import (
    CalibrationSamples,
    Taken,
    agreement,
    always_converts,
    check_input_shape,
    compare_ranges,
    input_shapes,
    leaves_of,
    made_up,
    require_exact_masks,
    require_shapes,
    take,
    to_calibrate_on,
)
from optkit.task import stratified_by

__all__ = ["QuantizeINT8"]

_MAX_DROP = 0.005
_STATISTICS_SAMPLES = 1024
_MISMATCH_SAMPLES = 64
_BALANCE_SAMPLES = 2000
_BALANCE = 0.2


class QuantizeINT8(ConvertPass):
    """Quantizes weights, activations, inputs and outputs to 8 bits: post-training quantization.

    Use it last: the file has about a quarter of the size, and runs in integers alone. Weights get a
    scale a channel; the range of every activation is measured on calibration samples. What can be
    repaired without changing the float model is, and what cannot is tried and kept only where it
    helps on samples set aside for that, a half of the validation split. The file is read back
    through LiteRT, and the row says how well it agrees with the float model.

    Recurrent layers are unrolled: the file grows with the number of steps. A model that computes in
    16 bits is converted from a float32 twin. Lookups of strings and categories, which TFLite cannot
    run, are split off, and the artifact runs them before the file. Behind `QuantizeAware`, ranges
    are those learned in training, unless measured ones give clearly more. What does not convert at
    all is tried out and refused before anything trains.

    Args:
        calibration_samples: Samples to calibrate on, at least 1, drawn from ``calibration``, else
            from ``train`` (of streams the first ones), else from ``validation``. A few hundred that
            look like the data in use are enough.
        io: Type of the file's input and output: ``"int8"``, or ``"float32"`` for callers that
            cannot quantize themselves. Whole-number inputs (token ids) stay what they are.
        input_shape: Shape of one input without the batch, for a model that leaves sizes or lengths
            open: ``(96, 96, 3)``; for several such inputs a dict by name. ``None`` where the model
            leaves none open. Inputs behind a lookup are filled up with zeros or cut off; others
            must have that shape.
        ranges: How ranges come from what was seen of an activation: ``"minmax"`` (from the lowest
            to the highest value), ``"percentile"`` (without the outermost 0.01 %), ``"mse"`` (with
            the least squared error), or ``"auto"``: the one whose file is nearest to the float
            model on the samples set aside, ``"minmax"`` unless another is clearly nearer.
        repairs: ``"auto"`` for all, ``"exact"`` for those that do not change the float model,
            ``"none"``, or a list of: ``"fold"`` (batch norm folded into its neighbours), ``"clip"``
            (ranges without what the next operator tells apart no more), both exact;
            ``"batch_norm"`` (statistics of batch norm measured anew), ``"balance"`` (channels centred,
            and widened before depthwise convolutions), ``"equalize"`` (cross-layer equalization),
            ``"bias"`` and ``"settle"`` (bias correction, worked out from the weights, and measured
            in the file), ``"float_output"`` (the last operator in float), each tried where the
            plain file is off, and kept if it helps.
        keep_float: Layers that stay in float: names of layers (exact), paths of layers within
            models (``"backbone/conv"``), names of models within the model, classes of layers or
            their names (``"Softmax"``). ``"auto"`` searches for them: each layer is returned to
            float by itself, then the best together, until the drop is within ``max_drop``; those go
            back that turn out needless.
        max_drop: Drop of the metric that ``keep_float="auto"`` may leave, in its own unit, at least
            0; ``None`` for what earlier passes left of the pipeline's ``max_accuracy_drop``, else
            for 0.005.
        search_samples: Samples to choose on, at least 1. Half of ``validation`` is set aside for
            that, and they are drawn from it; what the choice is worth is then measured on the other half.
        calibration_study: Whether to show how the result changes with the number of calibration
            samples.

    Example:
        >>> import optkit as ok
        >>> from optkit.testing import digits, small_model
        >>> result = ok.Pipeline([ok.QuantizeINT8()]).run(small_model(), digits(samples=400))
        >>> result.artifact.inputs[0].dtype
        dtype('int8')

    References:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", 2018. Nagel et al., "Data-Free Quantization Through
        Weight Equalization and Bias Correction", 2019.
    """

    accepts = GraphArtifact
    produces = TFLiteArtifact

    def __init__(
        self,
        calibration_samples: int = 200,
        *,
        io: str = "int8",
        input_shape: tuple[int, ...] | list[int] | dict[str, Any] | None = None,
        ranges: str = "auto",
        repairs: str | Sequence[str] = "auto",
        keep_float: str | Sequence[Any] | None = None,
        max_drop: float | None = None,
        search_samples: int = 512,
        calibration_study: bool = False,
    ):
        _validate.integer("calibration_samples", calibration_samples, minimum=1)
        _validate.one_of("io", io, ("int8", "float32"))
        check_input_shape(input_shape)
        _validate.one_of("ranges", ranges, ("auto", *ESTIMATORS))
        _repairs(repairs)
        _check_kept(keep_float)
        _validate.optional(_validate.number, "max_drop", max_drop, minimum=0)
        if max_drop is not None and keep_float != "auto":
            raise PipelineError(
                '`max_drop` says how far `keep_float="auto"` searches, and `keep_float` is '
                f'{keep_float!r}. Pass `keep_float="auto"`, or leave `max_drop` out.'
            )
        _validate.integer("search_samples", search_samples, minimum=1)
        _validate.boolean("calibration_study", calibration_study)
        self.calibration_samples = calibration_samples
        self.io = io
        self.input_shape = input_shape
        self.ranges = ranges
        self.repairs = repairs
        self.keep_float = keep_float
        self.max_drop = max_drop
        self.search_samples = search_samples
        self.calibration_study = calibration_study

    @property
    def needs(self) -> tuple[str, ...]:
        """Something to calibrate on; for a search, something to search on."""
        return ("calibration", "validation") if self.keep_float == "auto" else ("calibration",)

    # --------------------------------------------------------------------------------------- check

    def check(self, setting: Setting) -> None:
        """Refuses open shapes, unknown layers, and what does not convert, which is tried out."""
        _require_differing(setting.data.calibration, self.calibration_samples)
        model = setting.model
        if model is None:
            if isinstance(self.keep_float, list | tuple) and self.keep_float:
                raise PipelineError(
                    "`keep_float` names layers, and what comes in is a traced graph without layers."
                )
            return
        self._layers_of(model)
        require_exact_masks(model, floats_in=self.io == "float32")
        split = split_lookups(model)
        rest = model if split is None else split.rest
        shapes = input_shapes(self.input_shape, signature(rest))
        if shapes:
            sample = next(setting.data.calibration_split().single_inputs(1, 0))
            fixed = {} if split is not None else shapes
            require_shapes(leaves_of(sample, signature(model)), signature(model), fixed)
        if split is None and always_converts(model):
            return
        self._try_out(model, shapes)

    def _layers_of(self, model: Any) -> frozenset[str]:
        """The paths of the layers that were named to stay in float."""
        if self.keep_float is None or isinstance(self.keep_float, str):
            return frozenset()
        kinds = {path: type(layer).__name__ for path, layer in layers_by_path(model).items()}
        return resolve(self.keep_float, kinds, nested_models(model), str(model.name))

    def _try_out(self, model: Any, shapes: dict[str, tuple[int, ...]]) -> None:
        """Converts the model as it came, on a made-up sample, to learn whether it can be done."""
        described = signature(model)
        sample = [made_up(info, shapes) for info in described.inputs]
        try:
            made, _ = _quantized(
                model,
                lambda: iter([sample, sample]),
                Settings(
                    io="int8" if self.io == "int8" else "float32",
                    ranges="minmax",
                    repairs=(),
                    keep_float=self._layers_of(model),
                    max_drop=0.0 if self.keep_float == "auto" else None,
                    input_shapes=shapes,
                ),
            )
            names = [info.name for info in described.inputs]
            made.predict(dict(zip(names, sample, strict=True)))
        except OptkitError as error:
            raise PipelineError(
                f"Model {model.name!r} was tried out and does not convert: {error}"
            ) from error

    # --------------------------------------------------------------------------------------- work

    def convert(self, artifact: Artifact, context: Context) -> Artifact:
        """Calibrates, repairs and quantizes."""
        source, samples, shapes = to_calibrate_on(
            artifact, context, self.calibration_samples, self.input_shape
        )
        settings = Settings(
            io="int8" if self.io == "int8" else "float32",
            ranges=self.ranges,
            repairs=_repairs(self.repairs),
            keep_float=(
                self._layers_of(source) if isinstance(artifact, KerasArtifact) else frozenset()
            ),
            max_drop=self._budget(artifact, context),
            calibration_study=self.calibration_study,
            input_shapes=shapes,
        )
        made, work = _quantized(
            source,
            samples,
            settings,
            metric=context.metric,
            chosen_on=self._chosen_on(context),
            learned=context.learned,
            reestimated=_reestimating(context),
        )
        for note in samples.notes():
            context.note(note)
        if work is None:
            context.note(
                "loops or branches are left in the model: quantized by TensorFlow's converter in a "
                "process of its own, without repairs and with ranges from lowest to highest"
            )
            if context.learned is not None:
                context.note(f"not used there: what training learned ({context.learned})")
            return made
        for note in work.notes:
            context.note(note)
        for study in work.studies:
            context.show(study)
        if context.data.validation is not None:
            seen = CalibrationSamples(
                context.data.validation,
                samples.described,
                _MISMATCH_SAMPLES,
                context.derive_seed("mismatch"),
                samples.shapes,
            )
            for note in work.mismatch(seen):
                context.note(note)
        return made

    def _budget(self, artifact: Artifact, context: Context) -> float | None:
        """The drop that a search may leave; ``None`` where there is no search."""
        if self.keep_float != "auto":
            return None
        if self.max_drop is not None:
            return float(self.max_drop)
        allowed = context.goals.max_accuracy_drop
        if allowed is None:
            return _MAX_DROP
        # The goal is about the model that came into the pipeline, of which passes before may have
        # lost a part.
        change = context.judge(artifact, Goals(max_accuracy_drop=allowed)).accuracy_change or 0.0
        lost = -context.metric.sign() * change
        if lost <= 0:
            return float(allowed)
        left = max(allowed - lost, 0.0)
        context.note(
            f"keep_float='auto': {left:.4g} is left of the drop of {allowed:g} that the goal allows; "
            "the passes before have taken the rest"
        )
        return left

    def _chosen_on(self, context: Context) -> Taken | None:
        """Inputs and targets to choose on: a half of validation, else inputs to calibrate on."""
        halves = _halves(context)
        if halves is not None:
            seed = context.derive_seed("search samples")
            return take(halves[0], context.task, self.search_samples, seed)
        drawn = context.data.calibration_split().single_inputs(
            self.search_samples, context.derive_seed("choosing")
        )
        alike = _of_one_shape(drawn)
        return Taken(join_leaves(alike), None, None, len(alike)) if alike else None

    # ------------------------------------------------------------------------------------- review

    def review(self, before: Artifact, after: Artifact, context: Context) -> None:
        """Reads the file back, measures what the choice is worth, compares calibration data."""
        split = context.data.calibration_split()
        if split.name == "calibration":
            for note in (
                compare_ranges(split, context.data.train),
                _compare_classes(split, context),
            ):
                if note is not None:
                    context.note(note)
        context.note(agreement(before, after, context.data, context.task))
        halves = _halves(context)
        if halves is not None and self.keep_float == "auto":
            held = halves[1]
            pair = [score(item, held, context.task, context.metric) for item in (before, after)]
            change, interval = compare_scores(pair[0], pair[1], context.metric)
            between = (
                "" if interval is None else f" (95 % {interval[0]:+.4f} to {interval[1]:+.4f})"
            )
            context.note(
                f"on the half of validation that the search did not see (n = {pair[0].samples}), "
                f"{context.metric.name} changed by {change:+.4f}{between}"
            )


def _quantized(
    source: Any, samples: Any, settings: Settings, **choice: Any
) -> tuple[TFLiteArtifact, Int8 | None]:
    """The file, and how it came about; ``None`` where TensorFlow's converter made it alone."""
    work = Int8(source, samples, settings, **choice)
    try:
        file, content = work.make()
    except ControlFlowError as error:
        if settings.keep_float or settings.max_drop is not None:
            raise OptkitError(
                "`keep_float` cannot be had for this model, in which loops or branches are left: "
                "TensorFlow's converter quantizes it as a whole. Leave `keep_float` out."
            ) from error
        made = convert(source, samples=samples, io=settings.io, input_shapes=settings.input_shapes)
        return made.artifact, None
    return TFLiteArtifact(content, front=file.front), work


def _reestimating(context: Context) -> Any:
    """A function from a model to a copy with batch norm measured anew; ``None`` without data."""
    train = context.data.train
    if train is None:
        return None

    def reestimated(model: Any) -> Any:
        if not batch_norms(model):
            return None
        twin, part = clone(model), train
        if train.samples is not None and train.samples > _STATISTICS_SAMPLES:
            share = _STATISTICS_SAMPLES / train.samples
            _, part, _ = train.cut(share, context.derive_seed("statistics"), False)
        names = reestimate_batch_norm(
            twin, part, seed=context.derive_seed("batch norm"), include_frozen=True
        )
        return twin if names else None

    return reestimated


def _halves(context: Context) -> tuple[Split, Split] | None:
    """Validation in two: to choose on, and to say what the choice is worth."""
    validation = context.data.validation
    if validation is None or (validation.samples is not None and validation.samples < 4):
        return None
    one, other, _ = validation.cut(0.5, context.derive_seed("halves"), stratified_by(context.task))
    return one, other


def _of_one_shape(drawn: Any) -> list[Any]:
    found: list[Any] = []
    for x in drawn:
        if found and _shapes(x) != _shapes(found[0]):
            break
        found.append(x)
    return found


def _shapes(x: Any) -> list[tuple[int, ...]]:
    leaves = x.values() if isinstance(x, dict) else x if isinstance(x, tuple) else (x,)
    return [leaf.shape for leaf in leaves]


def _require_differing(split: Split | None, count: int) -> None:
    """Refuses calibration samples that are all the same."""
    if split is None:
        return
    first, seen = None, 0
    for x in split.single_inputs(count, 0):
        leaves = list(x.values()) if isinstance(x, dict) else x if isinstance(x, tuple) else [x]
        if first is None:
            first = leaves
        elif any(not np.array_equal(a, b) for a, b in zip(first, leaves, strict=True)):
            return
        seen += 1
    if seen > 1:
        raise DataError(
            f"All of the {seen} calibration samples looked at are the same, so that the ranges of "
            "activations cannot be learned from them. Give samples that look like the data in use, "
            "or leave `calibration` out, to have them drawn from `train`."
        )


def _compare_classes(split: Split, context: Context) -> str | None:
    """Says so where the classes of calibration are not in proportion to those of validation."""
    validation, task = context.data.validation, context.task
    if (
        not split.labelled
        or validation is None
        or task.kind not in ("binary", "multiclass")
        or len(task.each) > 1
    ):
        return None
    counts = []
    for part in (split, validation):
        classes = true_classes(task, np.asarray(part.targets(_BALANCE_SAMPLES))).ravel()
        if not len(classes):
            return None
        counts.append(np.bincount(classes, minlength=max(task.classes, 2)) / len(classes))
    away = float(np.abs(counts[0] - counts[1]).sum() / 2)
    if away <= _BALANCE:
        return None
    place = int(np.argmax(np.abs(counts[0] - counts[1])))
    names = context.data.names_of("")
    name = names[place] if place < len(names) else str(place)
    return (
        f"the classes of calibration are not those of validation: {100 * away:.0f} % of the samples "
        f"would have to change class, most of all class {name} ({100 * counts[0][place]:.0f} % "
        f"against {100 * counts[1][place]:.0f} %)"
    )


def _repairs(given: Any) -> tuple[str, ...]:
    """The repairs that are meant, in the order in which they are done."""
    if isinstance(given, str):
        _validate.one_of("repairs", given, ("auto", "exact", "none"))
        return {"auto": REPAIRS, "exact": EXACT, "none": ()}[given]
    names = _validate.texts("repairs", given)
    for name in names:
        _validate.one_of("repairs", name, REPAIRS)
    return tuple(name for name in REPAIRS if name in names)


def _check_kept(given: Any) -> None:
    if given is None or given == "auto":
        return
    if isinstance(given, str) or not isinstance(given, list | tuple):
        raise ArgumentTypeError(
            '`keep_float` must be a list of names or classes of layers, or "auto". Received: '
            f"{given!r}."
        )
    for item in given:
        if not isinstance(item, str | type) or not item:
            raise ArgumentTypeError(
                f"`keep_float` must hold names or classes of layers. Received: {item!r}."
            )
