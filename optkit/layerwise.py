"""`sensitivity`: what each layer by itself costs when it is quantized or pruned, before you choose."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from optkit import _validate
from optkit.artifact import KerasArtifact, TFLiteArtifact
from optkit.data import Data
from optkit.entrance import admit
from optkit.errors import ArgumentTypeError, DataError, ModelError, PipelineError
from optkit.flatbuffer import unpacked
from optkit.lookups import split_lookups
from optkit.measuring import Interval, Measure
from optkit.measuring.statistics import paired_change, weighted_interval
from optkit.metric import Metric
from optkit.models import (
    clone,
    is_variable,
    layers_by_path,
    nested_models,
    signature,
    variables_by_path,
)
from optkit.passes.prune import Prune, smallest_out
from optkit.prepare import Options, Prepared, prepare
from optkit.progress import Progress, ProgressEvent
from optkit.quantize.floatfile import FloatFile, float_file
from optkit.quantize.int8 import EXACT, ControlFlowError, Int8, Settings
from optkit.quantize.judge import Judge, Scored, relative_error, score_of
from optkit.quantize.repairs import fold_batch_norms
from optkit.quantize.scan import quantize_alone, round_alone
from optkit.quantize.select import MOVES, groups, operations_of, resolve
from optkit.quantize.sources import (
    CalibrationSamples,
    Taken,
    check_input_shape,
    input_shapes,
    take,
)
from optkit.quantize.variant import float_operations
from optkit.runtime import derive_seed, isolated
from optkit.study import Chart, Study

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

__all__ = ["METHODS", "LayerSensitivity", "Sensitivity", "sensitivity"]

#: What can be done to a layer.
METHODS = ("int8", "int4", "prune")

_AMOUNTS = (0.5, 0.7, 0.9)
_BATCH = 64
#: Operators that multiply, and the axes of their kernels that one value goes through.
_PRODUCTS = {
    "BATCH_MATMUL": (-2,),
    "CONV_2D": (1, 2, 3),
    "CONV_3D": (0, 1, 2, 3),
    "DEPTHWISE_CONV_2D": (1, 2),
    "FULLY_CONNECTED": (1,),
    "TRANSPOSE_CONV": (0, 1, 2),
}
_LISTED = 6
_TITLES = {
    "int8": "Layers in 8 bits, one at a time",
    "int4": "Layers with weights of 4 bits, one at a time",
    "prune": "Layers pruned, one at a time",
}


@dataclass(frozen=True)
class LayerSensitivity:
    """What the model is worth with one layer treated and all the others as they were.

    Attributes:
        layer: Name of the layer, of one in a model within the model its path (``"inner/conv"``).
        kind: Class of the layer.
        amount: Share of its weights set to zero; ``None`` where it was not pruned.
        bits: The fewest bits of its weights; ``None`` where it was pruned, and without weights.
        error: Root mean square difference to the outputs of the float model, relative to their
            spread; of several outputs the mean. 0 is no difference, 1 as wrong as the mean output.
        score: The metric.
        change: The metric against that of the float model, on the same samples.
        change_ci: Its paired 95 % interval; ``None`` for a metric that is a figure of all samples.
        bytes: Bytes of its weights in float32.
        saved_bytes: Bytes of weights that the treatment saves. Zeros are counted as if they were
            left out, which only a sparse or compressed file does.
        operations: Multiplications of one sample that would run in integers; ``None`` for other
            methods than ``"int8"``.
    """

    layer: str
    kind: str
    amount: float | None
    bits: int | None
    error: float
    score: float
    change: float
    change_ci: Interval | None
    bytes: int
    saved_bytes: int
    operations: int | None = None


@dataclass(frozen=True)
class Sensitivity:
    """What `sensitivity` found.

    Attributes:
        method: What was done to the layers.
        metric: Name of the metric.
        higher_is_better: Whether more of it is better.
        score: The metric of the float model.
        samples: Number of samples that figures are of.
        layers: A row for each layer (and amount), the most sensitive layer first.
        notes: What the reader should know.
    """

    method: str
    metric: str
    higher_is_better: bool
    score: float
    samples: int
    layers: tuple[LayerSensitivity, ...]
    notes: tuple[str, ...] = ()

    @property
    def order(self) -> tuple[str, ...]:
        """The layers by output error, the most sensitive one first.

        The names are those that ``QuantizeINT8(keep_float=…)`` and ``Prune(exclude=…, layers=…)``
        take.
        """
        return tuple(dict.fromkeys(row.layer for row in self.layers))

    def worst(self, count: int = 5) -> list[str]:
        """The most sensitive layers, as ``keep_float=`` and ``exclude=`` take them.

        Args:
            count: How many, at least 1.

        Example:
            >>> import optkit as ok
            >>> from optkit.testing import digits, small_model
            >>> found = ok.sensitivity(small_model(), digits(200), "prune", amounts=[0.5])
            >>> ok.Prune(0.5, exclude=found.worst(1)).exclude == [found.order[0]]
            True
        """
        return list(self.order[: _validate.integer("count", count, minimum=1)])

    @property
    def study(self) -> Study:
        """The table, a row a layer, with its chart."""
        if self.method == "prune":
            return self._study_of_amounts()
        columns = ["layer", "kind", "output error", "change", "95 %", "saved bytes"]
        last = {"int8": "operations", "int4": "bits"}[self.method]
        rows: list[tuple[Any, ...]] = []
        for row in self.layers:
            cells: list[Any] = [row.layer, row.kind, row.error, row.change]
            cells += [_between(row.change_ci), row.saved_bytes, getattr(row, last)]
            rows.append(tuple(cells))
        columns.append({"operations": "mult.", "bits": "bits"}[last])
        return Study(
            _TITLES[self.method],
            tuple(columns),
            tuple(rows),
            notes=self._told(),
            chart=Chart("bar", x="layer", y=("output error",)),
        )

    def _study_of_amounts(self) -> Study:
        amounts = sorted({row.amount for row in self.layers if row.amount is not None})
        errors = tuple(f"error {amount:g}" for amount in amounts)
        scores = tuple(f"score {amount:g}" for amount in amounts)
        found = {(row.layer, row.amount): row for row in self.layers}
        rows: list[tuple[Any, ...]] = []
        for layer in self.order:
            own = [found[layer, amount] for amount in amounts]
            rows.append((layer, *(row.error for row in own), *(row.score for row in own)))
        return Study(
            _TITLES[self.method],
            ("layer", *errors, *scores),
            tuple(rows),
            notes=self._told(),
            chart=Chart("bar", x="layer", y=errors),
        )

    def _told(self) -> tuple[str, ...]:
        what = "score: the" if self.method == "prune" else "change: of the"
        said = (
            f"{what} {self.metric}, which is {self.score:.4g} for the float "
            f"model; on {self.samples} samples of validation"
        )
        return (said, *self.notes)

    def __str__(self) -> str:
        return str(self.study)

    def __repr__(self) -> str:
        return f"Sensitivity({self.method!r}, {len(self.order)} layers)"

    def _repr_html_(self) -> str:
        return self.study._repr_html_()

    def to_frame(self) -> pandas.DataFrame:
        """A tidy ``pandas.DataFrame``, a row a layer (and amount)."""
        import pandas

        records = []
        for row in self.layers:
            values = dataclasses.asdict(row)
            low, high = values.pop("change_ci") or (None, None)
            records.append(values | {"change_low": low, "change_high": high})
        return pandas.DataFrame.from_records(records)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Axes:
        """The output error of every layer, as bars.

        Args:
            path: Where to save the picture; the suffix (``.png``, ``.svg``, ``.pdf``) says how.

        Returns:
            The matplotlib ``Axes``.
        """
        return self.study.plot(path)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` gave, also after a round trip through JSON."""
        rows = []
        for row in values["layers"]:
            interval = row["change_ci"]
            rows.append(
                LayerSensitivity(
                    **{**row, "change_ci": None if interval is None else tuple(interval)}
                )
            )
        return cls(**{**values, "layers": tuple(rows), "notes": tuple(values["notes"])})


def sensitivity(
    model: Any,
    data: Any,
    method: str = "int8",
    *,
    metric: Any = None,
    measure: Measure | None = None,
    loss: Any = None,
    samples: int = 512,
    layers: Sequence[Any] | None = None,
    amounts: Sequence[float] = _AMOUNTS,
    calibration_samples: int = 200,
    seed: int = 0,
    input_shape: tuple[int, ...] | list[int] | dict[str, Any] | None = None,
    progress: bool | Callable[[ProgressEvent], Any] | None = None,
) -> Sensitivity:
    """Treats each layer by itself, and says how far the outputs move and what the metric loses.

    For those who want to look before they choose: which layers to keep in float, which to prune
    less. Everything but the layer stays in float and as it was. Figures are of ``validation``
    (cut from ``train`` where there is none); ``test`` is not looked at. The model, the data and
    the global settings of the process stay as they are.

    Args:
        model: A Keras model, of tf_keras or of Keras 3, built in whatever way, or the path of a
            file that holds one.
        data: `Data` with ``validation`` or ``train``, or ``(x, y)`` or ``(x, y, sample weights)`` of
            arrays, which are taken for ``validation``.
        method: ``"int8"``: weights and activations of the layer in 8 bits, as `QuantizeINT8` would
            have them with ranges from the lowest to the highest value. ``"int4"``: its weights
            rounded to 4 bits, as `QuantizeWeights` would. ``"prune"``: the smallest of its weights
            set to zero, as `Prune` would, without the training that lets the others adapt.
        metric: What to measure, as in `Measure`; ``None`` for the compiled metric, else the one for
            the task.
        measure: In place of ``metric``, a `Measure`; of its settings those of the metric count.
        loss: A loss as ``compile`` takes it, where what the model is for does not follow from its
            outputs and the targets.
        samples: Samples to compare on, at most; at least 1.
        layers: Which layers to look at: names of layers, paths of layers within models, names of
            models within the model, classes of layers or their names; ``None`` for all. What
            converting fuses is looked at together, under the layer with the weights.
        amounts: For ``"prune"``, the shares of weights to set to zero, each in ``(0, 1)``.
        calibration_samples: For ``"int8"``, samples to measure ranges on, at least 1.
        seed: Seed of what is drawn, in ``[0, 2**31)``.
        input_shape: Shape of one input without the batch, for a model that leaves sizes open, as in
            `QuantizeINT8`; ``None`` for that of the samples.
        progress: ``None`` for a bar where a person watches, ``True`` or ``False`` for always or
            never, or a function of one `ProgressEvent`.

    Returns:
        A row for each layer, the most sensitive first; ``print`` shows the table.

    Raises:
        PipelineError: For arguments that cannot be meant; `DataError` and `ModelError`, which are
            kinds of it, where the fault lies there.
        OptkitError: If the model does not convert.

    Example:
        >>> import optkit as ok
        >>> from optkit.testing import digits, small_model
        >>> found = ok.sensitivity(small_model(), digits(200), "int8")
        >>> sorted(found.order)
        ['classes', 'conv', 'pool']
        >>> ok.QuantizeINT8(keep_float=found.worst(1)).keep_float == [found.order[0]]
        True
    """
    _validate.one_of("method", method, METHODS)
    measure = _measure(metric, measure)
    _validate.integer("samples", samples, minimum=1)
    _check_layers(layers)
    shares = _amounts(method, amounts)
    _validate.integer("calibration_samples", calibration_samples, minimum=1)
    _validate.integer("seed", seed, minimum=0, maximum=2**31 - 1)
    check_input_shape(input_shape)
    shown = _without_test(data)
    with isolated(derive_seed(seed, "sensitivity")):
        admitted = admit(_require_layers(model), shown)
        if admitted.model is None:
            raise ModelError(
                "What came in is a traced graph without layers, and there is nothing to tell apart "
                "in it. Load the model from a file that Keras saved."
            )
        prepared = prepare((), admitted, shown, loss, Options(seed=seed, measure=measure))
        _require_weights(admitted.model)
        judged_on = _taken(prepared, samples, seed)
        look = _Look(
            prepared,
            judged_on,
            layers,
            calibration_samples=calibration_samples,
            seed=seed,
            input_shape=input_shape,
        )
        scan = look.pruned(shares) if method == "prune" else look.quantized(method)
        with Progress(progress, scan.steps) as shown_progress:
            rows = []
            for number, row in enumerate(scan.rows, start=1):
                rows.append(row)
                shown_progress.send(
                    "measured",
                    number,
                    row.layer,
                    figures={"output error": row.error, prepared.metric.name: row.score},
                )
        if not rows:
            raise PipelineError(
                f"Nothing in model {admitted.model.name!r} is left to look at with the method "
                f"{method!r}: {'; '.join(look.notes) or 'no layer computes anything'}."
            )
        return Sensitivity(
            method=method,
            metric=prepared.metric.name,
            higher_is_better=prepared.metric.higher_is_better,
            score=scan.scorer.float,
            samples=judged_on.count,
            layers=_ranked(rows),
            notes=(
                _ERROR,
                *([_CONSTANT] * scan.scorer.constant),
                *look.notes,
                *admitted.notes,
                *prepared.data.notes,
            ),
        )


_CONSTANT = (
    "THE FLOAT MODEL GIVES THE SAME FOR ALL SAMPLES, so nothing can be told of its layers: was it "
    "trained, and are the inputs scaled as in training?"
)
_ERROR = (
    "output error: root mean square difference to the float model, relative to the spread of its "
    "outputs"
)


# --------------------------------------------------------------------------------------- arguments


def _measure(metric: Any, measure: Any) -> Measure:
    if measure is None:
        return Measure(metric=metric)
    if not isinstance(measure, Measure):
        raise ArgumentTypeError(
            "`measure` must be an `optkit.Measure`, such as `Measure(metric='mae')`. Received: "
            f"{measure!r} (of type {type(measure).__name__})."
        )
    if metric is not None:
        raise PipelineError(
            f"The metric is given twice. Received: `metric={metric!r}` and `measure={measure!r}`. "
            "Leave one of them out."
        )
    return measure


def _check_layers(layers: Any) -> None:
    if layers is None:
        return
    if not isinstance(layers, list | tuple) or not layers:
        raise ArgumentTypeError(
            "`layers` must be a list of names or classes of layers, at least one, or None for all. "
            f"Received: {layers!r}."
        )
    for item in layers:
        if not isinstance(item, str | type) or not item:
            raise ArgumentTypeError(
                f"`layers` must hold names or classes of layers. Received: {item!r}."
            )


def _amounts(method: str, amounts: Any) -> tuple[float, ...]:
    if isinstance(amounts, str) or not isinstance(amounts, Sequence):
        raise ArgumentTypeError(
            f"`amounts` must be a list of shares, such as (0.5, 0.9). Received: {amounts!r}."
        )
    found = {
        _validate.number(f"amounts[{i}]", amount, minimum=0, maximum=1, exclusive="min max")
        for i, amount in enumerate(amounts)
    }
    if not found:
        raise PipelineError("`amounts` must hold at least one share. Received: none.")
    if method != "prune" and tuple(amounts) != _AMOUNTS:
        raise PipelineError(
            f"`amounts` are shares of weights to prune, and the method is {method!r}. Leave them "
            "out, or pass `method='prune'`."
        )
    return tuple(sorted(found))


def _without_test(data: Any) -> Data:
    """The data without ``test``, which must have no say in what is chosen."""
    if isinstance(data, tuple) and len(data) in (2, 3):
        return Data(validation=data)
    if not isinstance(data, Data):
        raise ArgumentTypeError(
            "`data` must be an `optkit.Data`, such as `Data(validation=(x, y))`, or a pair (x, y) of "
            f"arrays. Received: {type(data).__name__}."
        )
    if data.validation is None and data.train is None:
        raise DataError(
            "Sensitivity is measured on `validation`, which is cut from `train` where it is missing, "
            "and data has neither. What is chosen by `test` would be reported too well on it: give "
            "other samples as `validation`."
        )
    shown = copy.copy(data)
    shown.test = None
    return shown


def _require_layers(model: Any) -> Any:
    """Refuses files of LiteRT's, whose layers are gone."""
    path = model if isinstance(model, str | os.PathLike) else None
    if isinstance(model, TFLiteArtifact) or (path is not None and _is_tflite(path)):
        raise ModelError(
            f"`model` is a converted file ({path or repr(model)}), whose layers cannot be treated "
            "one at a time any more. Give the Keras model that it was made of."
        )
    return model


def _is_tflite(path: str | os.PathLike[str]) -> bool:
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(8)[4:] == b"TFL3"


def _require_weights(model: Any) -> None:
    if not any(is_variable(weight) and len(weight.shape) > 1 for weight in model.weights):
        raise ModelError(
            f"Model {model.name!r} has no weights of two and more dimensions, so there is nothing to "
            "quantize or prune in it."
        )


# ----------------------------------------------------------------------------------------- samples


def _taken(prepared: Prepared, samples: int, seed: int) -> Taken:
    """Samples of validation to compare on."""
    split = prepared.data.validation
    if split is None:
        raise DataError("There is no `validation` split to measure on.")
    return take(split, prepared.task, samples, derive_seed(seed, "sensitivity samples"))


class _Scorer:
    """Says what outputs are worth beside those of the float model.

    Args:
        metric: The metric.
        taken: The samples, with their targets.
        wanted: The outputs of the float model by name; of the only one under ``""``.
    """

    def __init__(self, metric: Metric, taken: Taken, wanted: Mapping[str, np.ndarray]):
        self._metric, self._taken = metric, taken
        self._wanted = wanted
        self._float = self._score(wanted)
        self.float = self._float.figure

    @property
    def constant(self) -> bool:
        """Whether the float model gives the same for all samples."""
        return all(
            np.array_equal(found, found[:1].repeat(len(found), 0))
            for found in self._wanted.values()
        )

    def _score(self, outputs: Mapping[str, np.ndarray]) -> Scored:
        return score_of(self._metric, self._taken.y, outputs, self._taken.weights)

    def __call__(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Output error, metric, and its change with the paired interval where that is cheap."""
        errors = [relative_error(self._wanted[name], found) for name, found in outputs.items()]
        scored = self._score(outputs)
        interval = None
        if scored.values is not None and self._float.values is not None:
            if scored.weights is None:
                interval = paired_change(self._float.values, scored.values)[1]
            else:
                change = scored.values - self._float.values
                interval = weighted_interval(change, scored.weights)
        return {
            "error": float(np.mean(errors)),
            "score": scored.figure,
            "change": scored.figure - self.float,
            "change_ci": interval,
        }


def _ranked(rows: list[LayerSensitivity]) -> tuple[LayerSensitivity, ...]:
    """The layers by the mean of their errors, the largest first; amounts in their order."""
    # By error and not by metric: on a few hundred samples that moves by chance.
    errors: dict[str, list[float]] = {}
    for row in rows:
        errors.setdefault(row.layer, []).append(row.error if math.isfinite(row.error) else math.inf)
    place = sorted(errors, key=lambda layer: -float(np.mean(errors[layer])))
    return tuple(sorted(rows, key=lambda row: (place.index(row.layer), row.amount or 0)))


def _between(interval: Interval | None) -> str | None:
    return None if interval is None else f"{interval[0]:+.3f} to {interval[1]:+.3f}"


# ------------------------------------------------------------------------------------------ scans


@dataclass(frozen=True)
class _Scan:
    """A scan under way: how many rows it will give, and the rows."""

    steps: int
    rows: Iterator[LayerSensitivity]
    scorer: _Scorer


class _Look:
    """Treats the layers of one model.

    Args:
        prepared: Model, data and metric.
        taken: The samples to compare on.
        layers: The layers that were asked for.
        calibration_samples: Samples to measure ranges on.
        seed: Seed of what is drawn.
        input_shape: As given.
    """

    def __init__(
        self,
        prepared: Prepared,
        taken: Taken,
        layers: Sequence[Any] | None,
        *,
        calibration_samples: int,
        seed: int,
        input_shape: Any,
    ):
        self.model = prepared.admitted.model
        self.prepared, self.taken, self.seed = prepared, taken, seed
        self.calibration_samples = calibration_samples
        self.input_shape = input_shape
        self.kinds = {
            path: type(layer).__name__ for path, layer in layers_by_path(self.model).items()
        }
        self.named = layers
        self.wanted = None if layers is None else self._resolved(layers)
        self.notes: list[str] = []

    def _resolved(self, layers: Sequence[Any]) -> frozenset[str]:
        return resolve(
            layers,
            self.kinds,
            nested_models(self.model),
            str(self.model.name),
            argument="layers",
        )

    def _left_out(self, names: Sequence[str], why: str) -> None:
        if names:
            more = f", … ({len(names)} in all)" if len(names) > _LISTED else ""
            self.notes.append(f"not listed, {why}: {', '.join(names[:_LISTED])}{more}")

    # ------------------------------------------------------------------------------------ quantized

    def quantized(self, method: str) -> _Scan:
        """Each layer in 8 bits, or with its weights in 4, by itself."""
        shapes = self._shapes()
        wanted: frozenset[int] | None = None
        back: dict[str, str] = {}
        if method == "int8":
            work = self._calibrated(shapes).final
            file, ranges, whole = work.file, work.ranges, work.model
            wanted = None if self.wanted is None else work.keep
            if nested_models(self.model):  # folding opens them, and gives their layers other names
                names = fold_batch_norms(self.model).names
                back = {name: path for path, name in names.items()}
        else:
            file, ranges, whole = float_file(self.model, shapes), {}, self.model
            wanted = None if self.wanted is None else operations_of(file, self.wanted)
            self.notes += file.notes
        judge = Judge(file, self.taken, self.prepared.metric)
        scorer = _Scorer(self.prepared.metric, self.taken, judge.wanted)
        found = self._groups(file, whole, back, wanted)
        facts = _Facts(file)

        def rows() -> Iterator[LayerSensitivity]:
            untouched = []
            for layer, operations in found.items():
                if method == "int8":
                    content = quantize_alone(file, ranges, operations)
                    saved = facts.saved_in_8_bits(operations)
                    bits = 8 if saved else None
                elif (rounded := round_alone(file, operations, 4)) is not None:
                    content, saved, bits = rounded.content, rounded.saved, rounded.bits
                else:
                    untouched.append(layer)
                    continue
                figures = scorer(judge.run(content))
                # What gives exactly the float outputs may have been left alone.
                if method == "int8" and not figures["error"] and not facts.treated(content):
                    untouched.append(layer)
                    continue
                yield LayerSensitivity(
                    layer=layer,
                    kind=self.kinds.get(layer, file.kinds.get(layer, "")),
                    amount=None,
                    bits=bits,
                    **figures,
                    bytes=facts.weight_bytes(operations),
                    saved_bytes=saved,
                    operations=facts.multiplications(operations) if method == "int8" else None,
                )
            if method == "int8":
                self._left_out(untouched, "as no quantizer treats them")
            elif self.wanted is not None:
                self._left_out(untouched, "as they have no kernels")

        return _Scan(len(found), rows(), scorer)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the file's inputs that the model leaves open."""
        described = self.prepared.admitted.signature
        split = split_lookups(self.model)
        if split is not None:
            return input_shapes(self.input_shape, signature(split.rest), required="The file")
        opened = {info.name for info in described.variable_inputs}
        given = input_shapes(self.input_shape, described, required=None)
        if missing := sorted(opened - set(given)):
            x = self.taken.x
            named = x if isinstance(x, dict) else {described.inputs[0].name: x}
            if isinstance(x, tuple):
                named = dict(zip((info.name for info in described.inputs), x, strict=True))
            fresh = {name: tuple(np.shape(named[name])[1:]) for name in missing}
            told = ", ".join(f"{name} {shape}" for name, shape in fresh.items())
            self.notes.append(f"inputs of open shape are those of the samples: {told}")
            given |= fresh
        return given

    def _calibrated(self, shapes: Mapping[str, tuple[int, ...]]) -> Int8:
        """The float file and its ranges, as `QuantizeINT8` has them, batch norms folded.

        What it keeps in float are the operators of the layers that were asked for, those included
        that a layer was folded into.
        """
        samples = CalibrationSamples(
            self.prepared.data.calibration_split(),
            self.prepared.admitted.signature,
            self.calibration_samples,
            derive_seed(self.seed, "calibration"),
            {} if split_lookups(self.model) is not None else shapes,
        )
        settings = Settings(
            io="float32",
            ranges="minmax",
            repairs=EXACT,
            keep_float=self.wanted or frozenset(),
            input_shapes=shapes,
        )
        work = Int8(self.model, samples, settings)
        try:
            work.make()
        except ControlFlowError as error:
            raise ModelError(
                f"Loops or branches are left in the float file of model {self.model.name!r}, and "
                "what stands in them cannot be quantized one layer at a time. Write the loop of "
                "your own layer without TensorFlow's control flow, or look at it with the method "
                "'prune'."
            ) from error
        self.notes += samples.notes()
        self.notes += [note for note in work.notes if not note.startswith("in float: ")]
        return work

    def _groups(
        self,
        file: FloatFile,
        model: Any,
        back: Mapping[str, str],
        wanted: frozenset[int] | None,
    ) -> dict[str, frozenset[int]]:
        """The operators of each layer that was asked for, by its name in the model that came in.

        Args:
            file: The float file.
            model: The model that it was made of.
            back: Where layers have other names in that model, from these to those that came in.
            wanted: The operators of the layers that were asked for; ``None`` for all.
        """
        holding = {path for path, layer in layers_by_path(model).items() if layer.weights}
        found: dict[str, frozenset[int]] = {}
        unnamed, moving = [], []
        for name, operations in groups(file).items():
            if name not in holding:
                # A layer without weights, such as padding, may have gone into one with weights.
                name = _with_weights(file, operations, holding) or name
            kinds = {file.operations[index].kind for index in operations}
            if wanted is not None and not wanted & operations:
                continue
            if name not in file.kinds:
                unnamed += sorted(kinds - MOVES)
            elif kinds <= MOVES:
                moving.append(back.get(name, name))
            else:
                own = back.get(name, name)
                found[own] = found.get(own, frozenset()) | operations
        self._left_out(unnamed, "as they belong to no layer")
        if wanted is not None:
            self._left_out(moving, "as they only move numbers")
        return found

    # --------------------------------------------------------------------------------------- pruned

    def pruned(self, amounts: Sequence[float]) -> _Scan:
        """Each layer without the smallest of its weights, by itself."""
        targets = self._prunable()
        twin = clone(self.model)
        variables = variables_by_path(twin)
        artifact = KerasArtifact(twin)

        def outputs() -> dict[str, np.ndarray]:
            found = artifact.predict(self.taken.x, _BATCH)
            return found if isinstance(found, dict) else {"": found}

        scorer = _Scorer(self.prepared.metric, self.taken, outputs())

        def rows() -> Iterator[LayerSensitivity]:
            for layer, paths in targets.items():
                kernels = [variables[path] for path in paths]
                before = [kernel.numpy() for kernel in kernels]
                for amount in amounts:
                    zeros = 0
                    for kernel, values in zip(kernels, before, strict=True):
                        kept = smallest_out(values, amount)
                        kernel.assign(np.where(kept, values, 0))
                        zeros += 4 * int(values.size - np.count_nonzero(kept))
                    yield LayerSensitivity(
                        layer=layer,
                        kind=self.kinds[layer],
                        amount=amount,
                        bits=None,
                        **scorer(outputs()),
                        bytes=sum(4 * values.size for values in before),
                        saved_bytes=zeros,
                    )
                for kernel, values in zip(kernels, before, strict=True):
                    kernel.assign(values)

        frozen = [
            path
            for path, layer in layers_by_path(self.model).items()
            if layer.weights
            and not layer.trainable_weights
            and (self.wanted is None or path in self.wanted)
        ]
        self._left_out(frozen, "as they are frozen, and `Prune` leaves them as they are")
        self.notes.append(
            "without the training that lets the other weights adapt; zeros make only compressed or "
            "sparse files smaller"
        )
        return _Scan(len(targets) * len(amounts), rows(), scorer)

    def _prunable(self) -> dict[str, list[str]]:
        """Paths of the kernels by layer, those that `Prune` would take."""
        exact = [name for name in self.named or () if isinstance(name, str) and name in self.kinds]
        targets = Prune(0.5, layers=dict.fromkeys(exact, 0.5)).targets(self.model)
        found = {
            layer: paths
            for layer, (_, paths) in targets.items()
            if self.wanted is None or layer in self.wanted
        }
        if not found:
            raise PipelineError(
                f"None of the layers that `layers` names has weights that `Prune` would take. "
                f"Received: {list(self.named or ())}. It would take those of {', '.join(targets)}."
            )
        return found


def _with_weights(
    file: FloatFile, operations: frozenset[int], holding: Collection[str]
) -> str | None:
    """The layer whose weights are in the operators; ``None`` where none are, or several layers'."""
    found = {
        path
        for index in operations
        for path in file.operations[index].layers
        if path in holding and file.kinds[path] != "BatchNormalization"
    }
    return found.pop() if len(found) == 1 else None


class _Facts:
    """What is known of the operators of a float file."""

    def __init__(self, file: FloatFile):
        self._file = file
        self._graph = unpacked(file.content).subgraphs[0]
        self._bytes = {item.name: item.bytes for item in TFLiteArtifact(file.content).layers()}
        self._values = {
            tensor.name.decode(): math.prod(_shape(tensor)) for tensor in self._graph.tensors
        }

    def weight_bytes(self, operations: frozenset[int]) -> int:
        """Bytes of their weights."""
        names = {self._file.operations[index].outputs[0] for index in operations}
        return sum(self._bytes.get(name, 0) for name in names)

    def saved_in_8_bits(self, operations: frozenset[int]) -> int:
        """Bytes of their kernels that 8 bits save; biases are stored in 32 bits as before."""
        kernels = {name for index in operations for name in self._file.operations[index].weights}
        return sum(3 * self._values[name] for name in kernels)

    def treated(self, content: bytes) -> bool:
        """Whether an operator computes in integers in another file of the model."""
        return len(float_operations(content)) < len(float_operations(self._file.content))

    def multiplications(self, operations: frozenset[int]) -> int:
        """Multiplications of one sample in their convolutions and matrix products."""
        return sum(self._of_one(index) for index in operations)

    def _of_one(self, index: int) -> int:
        operator, kind = self._graph.operators[index], self._file.operations[index].kind
        if kind not in _PRODUCTS:
            return 0

        def shape(tensor: int) -> list[int]:
            return _shape(self._graph.tensors[int(tensor)])

        # An open batch stands as 1. Each value that comes out is a sum over a part of the kernel;
        # of a transposed convolution, each that goes in is spread over one.
        kernel = shape(operator.inputs[1])
        values = shape(operator.inputs[2] if kind == "TRANSPOSE_CONV" else operator.outputs[0])
        return math.prod(values) * math.prod(kernel[place] for place in _PRODUCTS[kind])


def _shape(tensor: Any) -> list[int]:
    return [] if tensor.shape is None else [int(size) for size in tensor.shape]
