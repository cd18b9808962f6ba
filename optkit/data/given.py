"""`Data`: what users give."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from optkit import _validate
from optkit.data.arrays import ArraySplit
from optkit.data.inputs import array_of, has_shape, is_frame, is_ragged, length_of
from optkit.data.split import SPLITS, BoundData, ClassNames, Split, map_leaves
from optkit.data.streams import StreamSplit, call, is_sequence, number_of_batches
from optkit.data.targets import Targets
from optkit.errors import ArgumentTypeError, DataError
from optkit.models import Signature, TensorInfo

__all__ = ["Data"]


class Data:
    """The data that models are trained, chosen and judged on.

    Each split is one of

    - ``(x, y)`` or ``(x, y, sample_weight)`` in memory;
    - a ``tf.data.Dataset`` of such, batched or not (which of the two is settled against the model's
      input);
    - a Keras 2 ``Sequence`` or a Keras 3 ``PyDataset`` of batches;
    - a function without arguments that returns a fresh iterator over such, batches or single
      samples, together with ``steps``.

    ``x`` is an array of shape ``(n, …)``, a list, a ``pandas.DataFrame`` (its columns are the
    features) or a ``tf.RaggedTensor`` (padded with zeros at the end); for a model with several
    inputs a dict by input name, a list in the model's order, or a table with a column for each
    input. ``y`` is an array, a list or a ``pandas.Series``; for a model with several outputs a dict
    by output name, a list in the model's order, or a table. Outputs that a dict leaves out are
    neither trained nor measured.

    Classes are numbers from 0, one-hot rows, true and false, or names, of which ``class_names`` says
    the numbers. Sample weights say how much a sample counts in training: an array of shape
    ``(n,)``, or a dict by output name. Figures count each sample once unless
    `Measure(sample_weight=True)` says otherwise.

    Decisions (early stopping, choosing) are made on ``validation``, and ``test`` is only ever used
    to report. A missing ``validation`` is cut from ``train`` (a fifth, stratified by class where
    every class has at least two samples) as soon as a pass needs one; a missing ``calibration`` is
    drawn from ``train`` (of a stream, its first samples). The report says so.

    Args:
        train: Split to train on.
        validation: Split to decide on.
        test: Split to report on; without it the report shows validation figures and says so.
        calibration: Split that shows converters the range of activations; targets are not used,
            and arrays may come without them.
        batch_size: Samples a batch, for arrays and for datasets of single samples.
        class_names: Names of the classes in the order of their numbers, for the report and for
            targets that are names; for several outputs a dict by output name (a list is taken for
            the outputs that have as many classes).
        steps: Batches an epoch of what has no length of its own (generators, infinite or repeated
            datasets): one number for all splits, or a dict by split.
        fingerprint: For streams, a text that changes whenever their content does: one for all
            splits, or a dict by split. Arrays are fingerprinted by their content.
        class_weight: How much the samples of a class count in training, by class number or name,
            as in ``model.fit(class_weight=…)``; classes left out count 1. For several outputs, a
            dict of such by output name. Multiplies the sample weights.
        seed: Seed of the cut and of the draws, in ``[0, 2**31)``.

    Raises:
        DataError: For an empty split, inputs and targets of different lengths, no split at all.
        PipelineError: For a bad argument; `ArgumentTypeError` for one of the wrong type.

    Example:
        >>> import numpy as np
        >>> import optkit as ok
        >>> x, y = np.zeros((100, 8, 8, 1), "float32"), np.arange(100) % 10
        >>> ok.Data(train=(x, y), test=(x[:20], y[:20]))
        Data(train=100 samples, test=20 samples, batch_size=32, seed=0)
    """

    def __init__(
        self,
        train: Any = None,
        validation: Any = None,
        test: Any = None,
        calibration: Any = None,
        *,
        batch_size: int = 32,
        class_names: list[str] | tuple[str, ...] | dict[str, Any] | None = None,
        steps: int | dict[str, int] | None = None,
        fingerprint: str | dict[str, str] | None = None,
        class_weight: Mapping[Any, Any] | None = None,
        seed: int = 0,
    ):
        self.train, self.validation = train, validation
        self.test, self.calibration = test, calibration
        self.batch_size = _validate.integer("batch_size", batch_size, minimum=1)
        self.class_names: ClassNames | None = None
        if isinstance(class_names, Mapping):
            self.class_names = {
                str(output): _validate.texts(f"class_names[{output!r}]", names)
                for output, names in class_names.items()
            }
        else:
            self.class_names = _validate.optional(_validate.texts, "class_names", class_names)
        self.steps = _by_split(
            "steps", steps, lambda name, v: _validate.integer(name, v, minimum=1)
        )
        self.fingerprint = _by_split("fingerprint", fingerprint, _validate.text)
        self.class_weight = _checked_class_weight(class_weight)
        self.seed = _validate.integer("seed", seed, minimum=0, maximum=2**31 - 1)
        given = {name: getattr(self, name) for name in SPLITS if getattr(self, name) is not None}
        if not given:
            raise DataError("Data needs at least one split: `train`, `validation`, `test`, …")
        for name, value in given.items():
            _check_form(name, value)

    def __repr__(self) -> str:
        parts = []
        for name in SPLITS:
            value = getattr(self, name)
            if value is None:
                continue
            if _is_arrays(value, name):
                parts.append(f"{name}={_array_length(name, value)} samples")
            else:
                parts.append(f"{name}=<{type(value).__name__}>")
        return f"Data({', '.join(parts)}, batch_size={self.batch_size}, seed={self.seed})"

    def bind(self, signature: Signature, one_hot: Collection[str] = ()) -> BoundData:
        """Settles every split against a model's inputs and outputs.

        Args:
            signature: The inputs and outputs that the splits must fit.
            one_hot: Names of the outputs (``""`` for the only one) whose loss takes one-hot rows
                alone: class numbers for them are widened.

        Raises:
            DataError: For data that do not fit, that are not finite, or whose length cannot be
                known.
        """
        names = _names_for(self.class_names, signature.outputs)
        targets = Targets(signature.outputs, names, one_hot)
        bound = BoundData(
            batch_size=self.batch_size,
            seed=self.seed,
            class_names=names,
            class_weight=_class_weight_for(self.class_weight, targets),
        )
        for name in SPLITS:
            value = getattr(self, name)
            if value is not None:
                split = self._bind_split(name, value, signature.inputs, targets, bound.notes)
                setattr(bound, name, split)
        return bound

    def _bind_split(
        self,
        name: str,
        value: Any,
        inputs: tuple[TensorInfo, ...],
        targets: Targets,
        notes: list[str],
    ) -> Split:
        steps, fingerprint = self.steps.get(name), self.fingerprint.get(name)
        if _is_arrays(value, name):
            if steps is not None and isinstance(self.steps, _Explicit):
                raise DataError(f"`{name}` is arrays, whose length is known; it takes no `steps`.")
            parts = _parts(name, value, inputs=len(inputs))
            return ArraySplit.bind(
                name, parts, inputs, targets=targets, batch_size=self.batch_size, notes=notes
            )
        return StreamSplit.bind(
            name,
            value,
            inputs,
            targets=targets,
            batch_size=self.batch_size,
            notes=notes,
            steps=steps,
            fingerprint=fingerprint,
        )

    def example(self, count: int = 2) -> Any:
        """The inputs of the first samples as they came, without knowing a model.

        Args:
            count: How many samples at most, of what is in memory. Of a stream its first element
                is given whole, which is taken for a batch.

        Returns:
            NumPy arrays: one, or a dict, or a list of them, as the inputs are. Ragged inputs are
            padded.

        Raises:
            DataError: If the split is empty or cannot be read.

        Example:
            >>> import numpy as np
            >>> import optkit as ok
            >>> x = {"a": np.arange(6).reshape(3, 2), "b": np.zeros(3)}
            >>> {k: v.shape for k, v in ok.Data(train=(x, np.zeros(3))).example().items()}
            {'a': (2, 2), 'b': (2,)}
        """
        name = next(name for name in SPLITS if getattr(self, name) is not None)
        value = getattr(self, name)
        if _is_arrays(value, name):
            x = _parts(name, value, inputs=None)[0]
            return _first_rows(name, x, count, _array_length(name, value))
        if hasattr(value, "element_spec"):
            element = next(iter(value.take(1)), None)
        elif is_sequence(value):
            element = value[0] if number_of_batches(name, value) != 0 else None
        else:
            element = next(iter(call(name, value)), None)
        if element is None:
            raise DataError(f"`{name}` is empty.")
        x = element[0] if isinstance(element, tuple | list) else element
        return _first_rows(name, x, None)


def _first_rows(name: str, x: Any, count: int | None, length: int | None = None) -> Any:
    """The first rows of nested inputs as NumPy arrays; of all rows for ``None``."""

    def rows(leaf: Any) -> np.ndarray:
        if count is not None:
            leaf = leaf.head(count) if hasattr(leaf, "iloc") else leaf[:count]
        return np.asarray(leaf.to_tensor()) if is_ragged(leaf) else array_of(name, "inputs", leaf)

    if is_frame(x) and not all(map(_numeric, x.dtypes)):
        x = {str(column): x[column] for column in x.columns}
    if isinstance(x, Mapping):
        return map_leaves(rows, dict(x))
    arrays = isinstance(x, list | tuple) and x and all(has_shape(item) for item in x)
    if arrays and len({len(item) for item in x}) == 1 and (count is None or len(x) != length):
        return [rows(item) for item in x]
    return rows(x)


def _numeric(dtype: Any) -> bool:
    return getattr(dtype, "kind", "O") in "biuf"


class _Explicit(dict[str, Any]):
    """Settings that the user gave split by split."""


def _by_split(name: str, value: Any, check: Callable[[str, Any], Any]) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, Mapping):
        unknown = sorted(set(value) - set(SPLITS))
        if unknown:
            raise DataError(f"`{name}` names unknown splits: {unknown}. Splits: {list(SPLITS)}.")
        return _Explicit((key, check(f"{name}[{key!r}]", item)) for key, item in value.items())
    return dict.fromkeys(SPLITS, check(name, value))


def _checked_class_weight(given: Any) -> dict[Any, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not given:
        raise ArgumentTypeError(
            "`class_weight` must be a dict from class numbers or names to weights, such as "
            f"{{0: 1.0, 1: 5.0}}. Received: {given!r}."
        )

    def check(place: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: check(f"{place}[{key!r}]", item) for key, item in value.items()}
        return _validate.number(place, value, minimum=0)

    return {key: check(f"class_weight[{key!r}]", value) for key, value in given.items()}


def _class_weight_for(given: dict[Any, Any], targets: Targets) -> dict[str, dict[int, float]]:
    """The weights by output and class number."""
    if not given:
        return {}
    names = [info.name for info in targets.outputs]
    by_output = given
    if targets.several:
        unknown = sorted(set(map(str, given)) - set(names))
        if unknown or not all(isinstance(value, Mapping) for value in given.values()):
            raise DataError(
                "`class_weight` of a model with several outputs is a dict by output name, such as "
                f"{{{names[0]!r}: {{0: 1.0, 1: 5.0}}}}. Outputs: {names}. Received: {given!r}."
            )
    elif not (names and list(given) == names and isinstance(given[names[0]], Mapping)):
        by_output = {"": given}
    else:
        by_output = {"": given[names[0]]}
    found: dict[str, dict[int, float]] = {}
    for output, weights in by_output.items():
        known = targets.class_names.get(output, ()) if isinstance(targets.class_names, dict) else ()
        if not isinstance(targets.class_names, dict):
            known = targets.class_names
        found[output] = {}
        for key, value in weights.items():
            if isinstance(key, str):
                if key not in known:
                    raise DataError(
                        f"`class_weight` names the class {key!r}, and `class_names` knows "
                        f"{list(known)}."
                    )
                number = known.index(key)
            else:
                whole = int(key) if isinstance(key, float) and key.is_integer() else key
                number = _validate.integer("class_weight", whole, minimum=0)
            if number in found[output]:
                raise DataError(
                    f"`class_weight` names class {number} twice, by its number and by its name: "
                    f"{dict(weights)}."
                )
            found[output][number] = float(value)
    return found


def _names_for(given: ClassNames | None, outputs: tuple[TensorInfo, ...]) -> ClassNames:
    """The names of the classes by output, where there are several."""
    names = [info.name for info in outputs]
    if isinstance(given, dict):
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise DataError(f"`class_names` names unknown outputs: {unknown}. Outputs: {names}.")
        return given if len(outputs) > 1 else given.get(names[0], ())
    if given is None or len(outputs) < 2:
        return given or ()
    fits = {info.name: given for info in outputs if max(2, info.shape[-1] or 0) == len(given)}
    if not fits:
        raise DataError(
            f"`class_names` has {len(given)} names, and no output has as many classes. Give them "
            f"by output: `class_names={{{names[0]!r}: […]}}`."
        )
    return fits


def _is_array_like(value: Any) -> bool:
    return (
        has_shape(value)
        or isinstance(value, list | tuple)
        or hasattr(value, "to_numpy")
        or is_ragged(value)
    )


def _is_arrays(value: Any, split: str) -> bool:
    """Whether a split is in memory: ``(x, y)``, or ``x`` alone for calibration."""
    if isinstance(value, tuple):
        return True
    return split == "calibration" and (_is_array_like(value) or isinstance(value, Mapping))


def _check_form(name: str, value: Any) -> None:
    if _is_arrays(value, name):
        _array_length(name, value)
        return
    is_stream = callable(value) or hasattr(value, "element_spec") or is_sequence(value)
    if not is_stream or isinstance(value, list | Mapping | str) or is_frame(value):
        raise ArgumentTypeError(
            f"`{name}` must be (x, y), a tf.data.Dataset, a Keras Sequence or PyDataset, or a "
            f"function that returns an iterator. Received: {type(value).__name__}."
        )


def _parts(name: str, value: Any, inputs: int | None) -> tuple[Any, Any, Any]:
    """Inputs, targets and weights; ``None`` for what is not given.

    Args:
        name: Name of the split.
        value: The split as it came.
        inputs: Number of the model's inputs; ``None`` where it is not known.
    """
    if name == "calibration":
        if not isinstance(value, tuple) or len(value) not in (2, 3):
            return value, None, None
        if len(value) == 3 and inputs in (None, 3):  # three inputs, as far as can be known
            return value, None, None
    if len(value) not in (2, 3):
        raise DataError(
            f"`{name}` must be a pair (x, y), or (x, y, sample weights). Received: a tuple of "
            f"{len(value)}."
        )
    x, y, *weights = value
    return x, y, weights[0] if weights else None


def _candidates(part: Any) -> set[int]:
    """The numbers of samples that a part may have: a list may be of samples or of arrays."""
    if isinstance(part, Mapping):
        found = {length_of(leaf) for leaf in part.values()}
        return found if len(found) == 1 else set()
    if not isinstance(part, list | tuple):
        return {length_of(part)}
    lengths = [length_of(leaf) for leaf in part if is_ragged(leaf) or np.ndim(leaf) > 0]
    common = set(lengths) if len(lengths) == len(part) else set()
    return {len(part), *(common if len(common) == 1 else ())}


def _counts(part: Any) -> str:
    """The numbers of samples in words."""
    if isinstance(part, Mapping):
        return ", ".join(f"{length_of(leaf)} of {name!r}" for name, leaf in part.items())
    return " or ".join(map(str, sorted(_candidates(part))))


def _array_length(name: str, value: Any) -> int:
    x, y, weights = _parts(name, value, inputs=None)
    possible = _candidates(x) if y is None else _candidates(x) & _candidates(y)
    if not possible:
        raise DataError(
            f"`{name}` has inputs and targets of different lengths: {_counts(x)} and "
            f"{'none' if y is None else _counts(y)}."
        )
    length = min(possible)
    if length == 0:
        raise DataError(f"`{name}` is empty.")
    if weights is not None and not possible & _candidates(weights):
        raise DataError(
            f"`{name}` has {length} samples and sample weights of another length: "
            f"{_counts(weights)}. A split is (x, y) or (x, y, sample weights)."
        )
    return length
