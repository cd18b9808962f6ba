"""A split that is read anew for every pass."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from optkit.data.inputs import array_of, has_shape, is_frame, is_ragged, no_fit
from optkit.data.split import (
    Split,
    batch_length,
    check_finite,
    leaves_of,
    map_leaves,
    sample_fits,
)
from optkit.data.targets import Targets
from optkit.errors import DataError
from optkit.models import TensorInfo
from optkit.runtime import derive_seed, tensorflow

__all__ = ["StreamSplit", "call", "is_sequence", "number_of_batches"]


#: Batches' worth of samples among which a drawn stream is mixed.
_MIXED_BATCHES = 16


class StreamSplit(Split):
    """A dataset, Sequence or generator: read anew for every pass, never held in memory."""

    def __init__(
        self,
        name: str,
        inputs: tuple[TensorInfo, ...],
        read: Callable[[int | None], Any],
        *,
        steps: int,
        samples: int | None,
        batch_size: int,
        fingerprint: str | None,
        weighted: bool = False,
    ):
        self.name, self.inputs, self.batch_size = name, inputs, batch_size
        self.steps, self.samples, self.fingerprint = steps, samples, fingerprint
        self.weighted = weighted
        self._read = read
        self._first: int | None = None  # samples of the first batch; the stream's maker decides

    @property
    def identity(self) -> tuple[Any, ...] | None:
        """Changes with the content and with how it is cut into batches; ``None`` if not known."""
        found = super().identity
        if found is None:
            return None
        return (*found, self._first, str(self.batches(weighted=True).element_spec))

    @classmethod
    def bind(
        cls,
        name: str,
        value: Any,
        inputs: tuple[TensorInfo, ...],
        *,
        targets: Targets,
        batch_size: int,
        notes: list[str],
        steps: int | None,
        fingerprint: str | None,
    ) -> StreamSplit:
        """Settles whether it is batched, how many batches a pass has, and what becomes of them.

        Args:
            name: Name of the split.
            value: The stream as it came.
            inputs: The model's inputs.
            targets: How its targets are read.
            batch_size: Samples a batch, where the stream gives single samples.
            notes: Is told what is done to the data.
            steps: Batches a pass, where the user said so.
            fingerprint: What the user gave as one.

        Raises:
            DataError: If it does not fit, or its length cannot be known.
        """
        tf = tensorflow()
        raw, length = _reader(name, value, inputs, targets)
        form = _Form(
            name,
            raw(None).element_spec,
            inputs,
            targets=targets,
            batch_size=batch_size,
            notes=notes,
        )

        def read(order: int | None) -> Any:
            return form.settle(raw(order))

        if length is None:
            counted = int(tf.data.experimental.cardinality(read(None)).numpy())
            if counted == tf.data.INFINITE_CARDINALITY and steps is None:
                raise DataError(
                    f"`{name}` is an infinite tf.data.Dataset. Say how many batches make one "
                    "pass: `Data(..., steps=…)`."
                )
            if counted == tf.data.UNKNOWN_CARDINALITY and steps is None:
                if not hasattr(value, "element_spec"):
                    what = "a generator" if callable(value) else "a PyDataset"
                    raise DataError(
                        f"`{name}` is {what}, whose length cannot be known. Say how many "
                        "batches make one pass: `Data(..., steps=…)`."
                    )
                counted = _count(name, read(None))
            length = counted
        if length == 0:
            raise DataError(f"`{name}` is empty.")
        total = steps if steps is not None else length
        if length > 0:
            total = min(total, length)
        split = cls(
            name,
            inputs,
            read,
            steps=total,
            samples=None,
            batch_size=batch_size,
            fingerprint=fingerprint,
            weighted=form.weighted,
        )
        split._check_first()
        return split

    def _check_first(self) -> None:
        """Reads the first batch, and where its weights are all 0 on to the first that is not."""
        batches = self.iterate_weighted()
        first = next(batches, None)
        if first is None:
            raise DataError(f"`{self.name}` is empty.")
        x, y, weights = first
        if batch_length(y) == 0:
            raise DataError(f"The first batch of `{self.name}` is empty.")
        for what, part in (("inputs", x), ("targets", y), ("sample weights", weights)):
            for leaf in () if part is None else leaves_of(part):
                check_finite(self.name, what, leaf)
        # Batches that come as such have a size of their own.
        self.batch_size = self._first = batch_length(y)
        if weights is None:
            return
        counts = [False] * len(leaves_of(weights))
        for _, _, found in itertools.chain([first], batches):
            pairs = zip(counts, leaves_of(found), strict=True)
            counts = [seen or bool(np.any(leaf)) for seen, leaf in pairs]
            if all(counts):
                return
        of = ""
        if isinstance(weights, dict):
            names = [name for name, seen in zip(weights, counts, strict=True) if not seen]
            of = f" for {', '.join(map(repr, names))}"
        raise DataError(
            f"All sample weights of `{self.name}`{of} are 0: no sample would count. Give some "
            "above 0."
        )

    def iterate_weighted(self) -> Iterator[tuple[Any, Any, Any]]:
        """NumPy batches ``(x, y, weights)`` of one pass, in order; ``None`` without weights."""
        batches = self.batches(weighted=True).as_numpy_iterator()
        while True:
            with _reading(self.name):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch if self.weighted else (*batch, None)

    def _without_weights(self, batches: Any, weighted: bool) -> Any:
        if not self.weighted or weighted:
            return batches
        return batches.map(lambda x, y, weights: (x, y))

    def batches(self, *, weighted: bool = False) -> Any:
        """A ``tf.data.Dataset`` of the batches of one pass, in order."""
        return self._without_weights(self._read(None).take(self.steps), weighted)

    def training_batches(self, seed: int, *, weighted: bool = False, first_epoch: int = 0) -> Any:
        """An endless ``tf.data.Dataset`` of batches; only Sequences are shuffled here."""
        batches = self._read(seed).repeat()
        if first_epoch:  # they are read all the same: nothing else knows what comes behind them
            batches = batches.skip(first_epoch * self.steps)
        return self._without_weights(batches, weighted)

    def cut(self, share: float, seed: int, stratify: bool | str) -> tuple[Split, Split, str]:
        """A cut by the content of each sample, so that it holds in whatever order they come."""
        tf = tensorflow()
        buckets = 10_000
        key = [derive_seed(seed, 0), derive_seed(seed, 1)]
        opened = [_open_axes(spec.shape) for spec in self._specs()]

        def held_out(*sample: Any) -> Any:
            leaves = tf.nest.flatten(sample[:2])
            # What a sample was padded with depends on the batch that it came in.
            bare = [_unpadded(*pair) for pair in zip(leaves, opened, strict=True)]
            parts = [tf.io.serialize_tensor(leaf) for leaf in bare]
            bucket = tf.strings.to_hash_bucket_strong(tf.strings.join(parts), buckets, key)
            return bucket < int(share * buckets)

        def part(name: str, wanted: bool) -> StreamSplit:
            def read(order: int | None) -> Any:
                # `take` before the filter: a pass over an endless stream must end.
                batches = self._read(order).take(self.steps)
                if any(opened):
                    # Samples of other shapes cannot come into one batch: each batch gets smaller.
                    chosen = batches.map(lambda *batch: _chosen(batch, held_out, wanted))
                    return chosen.filter(lambda *batch: tf.size(_first(batch[1])) > 0)
                samples = batches.unbatch()
                chosen = samples.filter(lambda *sample: tf.equal(held_out(*sample), wanted))
                return chosen.batch(self.batch_size)

            steps = _count(self.name, read(None))
            if steps == 0:
                raise DataError(
                    f"`{self.name}` has too few different samples to cut a validation split from."
                )
            return StreamSplit(
                name,
                self.inputs,
                read,
                steps=steps,
                samples=None,
                batch_size=self.batch_size,
                fingerprint=self.fingerprint,
                weighted=self.weighted,
            )

        return part(self.name, False), part("validation", True), "by a hash of each sample"

    def drawn(
        self, wanted: Callable[[Any], Any], samples: int, seed: int, reason: str
    ) -> StreamSplit:
        """A stream in which samples come as often as asked, on average.

        Samples of one shape are mixed over a few batches, so that those that come often do not all
        come in one; others stay in the batch that they came in, which gets larger or smaller.

        Args:
            wanted: Function of the targets of a batch, as tensors, to how often each sample shall
                come, shape ``(n,)``, at least 0.
            samples: How many samples that makes in a pass.
            seed: Seed of the draws.
            reason: What the draws depend on, for the fingerprint.
        """
        tf = tensorflow()
        size = self._first or self.batch_size
        mixed = not any(_open_axes(spec.shape) for spec in self._specs())

        def choose(number: Any, batch: Any) -> Any:
            rates = tf.cast(wanted(batch[1]), tf.float32)
            key = tf.stack([tf.constant(seed, tf.int64), number])
            draws = tf.random.stateless_uniform(tf.shape(rates), key)
            # On average this is the rate: it rounds up as often as its fraction says.
            times = tf.cast(tf.floor(rates + draws), tf.int32)
            rows = tf.repeat(tf.range(tf.size(rates)), times)
            return tf.nest.map_structure(lambda leaf: tf.gather(leaf, rows), batch)

        def read(order: int | None) -> Any:
            # Endless, so that every pass draws anew; whoever reads takes as much as is a pass.
            batches = self._read(order).repeat().enumerate()
            chosen = batches.map(choose)
            if not mixed:
                return chosen.filter(lambda *batch: tf.size(_first(batch[1])) > 0)
            mix = chosen.unbatch().shuffle(_MIXED_BATCHES * size, derive_seed(seed, "mix"))
            return mix.batch(size)

        split = StreamSplit(
            self.name,
            self.inputs,
            read,
            steps=-(-samples // size) if mixed else self.steps,
            samples=None,
            batch_size=self.batch_size,
            fingerprint=None if self.fingerprint is None else f"{self.fingerprint}, {reason}",
            weighted=self.weighted,
        )
        split._first = self._first
        return split

    def _specs(self) -> list[Any]:
        """What the leaves of one sample's inputs and targets are."""
        samples = self._read(None).unbatch().element_spec
        return list(tensorflow().nest.flatten(samples[:2]))

    def reweighted(
        self,
        by_arrays: Callable[[Any, Any], Any],
        by_tensors: Callable[[Any, Any], Any],
        reason: str,
    ) -> StreamSplit:
        """The same samples with other weights."""

        def weigh(x: Any, y: Any, weights: Any = None) -> Any:
            return x, y, by_tensors(y, weights)

        split = StreamSplit(
            self.name,
            self.inputs,
            lambda order: self._read(order).map(weigh),
            steps=self.steps,
            samples=self.samples,
            batch_size=self.batch_size,
            fingerprint=None if self.fingerprint is None else f"{self.fingerprint}, {reason}",
            weighted=True,
        )
        split._first = self._first
        return split


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Errors from within a stream as `DataError`, without the places in TensorFlow's graph."""
    try:
        yield
    except Exception as error:
        said = re.sub(r"\{\{function_node [^}]*\}\}\s*", "", str(error))
        asserted = re.search(r"assertion failed: (.*?)\s*(?:\[\[\{\{node|$)", said, re.DOTALL)
        if asserted is not None:
            said = asserted[1]
            if said.startswith("[") and said.endswith("]") and "] [" not in said:
                said = said[1:-1]
            said = _unescaped(said)
        raise DataError(f"Reading `{name}` failed: {said}") from error


def _unescaped(text: str) -> str:
    """What TensorFlow's assertions say, with quotes and letters as they were given."""

    def letter(found: re.Match[bytes]) -> bytes:
        escaped = found[1]
        return bytes([int(escaped, 8)]) if len(escaped) == 3 else escaped

    # Letters beyond ASCII come as the octal numbers of their bytes.
    return re.sub(rb"\\([0-3][0-7]{2}|[\"'\\])", letter, text.encode()).decode("utf-8", "replace")


def _count(name: str, dataset: Any) -> int:
    with _reading(name):
        return int(dataset.reduce(np.int64(0), lambda number, *_: number + 1).numpy())


def _open_axes(shape: Any) -> list[int]:
    return [axis for axis, size in enumerate(shape) if size is None]


def _unpadded(leaf: Any, axes: list[int]) -> Any:
    """A sample without the zeros (or empty texts) at the ends of its open dimensions."""
    tf = tensorflow()
    if leaf.dtype == tf.bool:
        return leaf
    for axis in axes:
        filled = tf.not_equal(leaf, "" if leaf.dtype == tf.string else tf.zeros((), leaf.dtype))
        others = [i for i in range(leaf.shape.rank) if i != axis]
        used = tf.where(tf.reduce_any(filled, others))
        length = tf.reduce_max(tf.concat([used[:, 0] + 1, [0]], 0))
        leaf = tf.gather(leaf, tf.range(length), axis=axis)
    return leaf


def _chosen(batch: Any, held_out: Callable[..., Any], wanted: bool) -> Any:
    """The samples of a batch that belong to a part of a cut."""
    tf = tensorflow()
    flags = tf.map_fn(lambda sample: held_out(*sample), batch[:2], fn_output_signature=tf.bool)
    kept = tf.equal(flags, wanted)
    return tf.nest.map_structure(lambda leaf: tf.boolean_mask(leaf, kept), batch)


class _Form:
    """What the elements of a stream look like, and what has to be done to them."""

    def __init__(
        self,
        name: str,
        spec: Any,
        inputs: tuple[TensorInfo, ...],
        *,
        targets: Targets,
        batch_size: int,
        notes: list[str],
    ):
        self.name, self.inputs, self.targets, self.batch_size = name, inputs, targets, batch_size
        if not isinstance(spec, tuple) or len(spec) not in (2, 3):
            raise DataError(
                f"`{name}` must give pairs (x, y), or (x, y, sample weights). Received elements: "
                f"{spec}."
            )
        self.spec = spec
        self.weighted = len(spec) == 3
        if self.weighted and any(
            leaf.dtype.name == "string" for leaf in tensorflow().nest.flatten(spec[2])
        ):
            raise DataError(f"The sample weights of `{name}` must be numbers: they are texts.")
        x = self._ordered(spec[0])
        self.batched = self._is_batched(x, spec[1])
        self.ragged = [_is_ragged_spec(item) for item in x]
        # Sequences are padded. Of what may differ in more ways (images) it is not known how.
        opened = [_open_axes(item.shape) for item in x]
        lengths = not self.batched and any(opened) and all(axes in ([], [0]) for axes in opened)
        self.padded = any(self.ragged) or lengths
        if self.padded:
            notes.append(
                f"{name}: inputs of different lengths are padded with zeros (or empty texts) at "
                "the end, to the longest of each batch where the model takes any length"
            )

    def _ordered(self, x: Any) -> list[Any]:
        """The leaves of an element's inputs in the order of the model's."""
        names = [info.name for info in self.inputs]
        leaves = list(x.values()) if isinstance(x, Mapping) else tensorflow().nest.flatten(x)
        if len(leaves) != len(names):
            raise DataError(
                f"The model has {len(names)} inputs; `{self.name}` gives {len(leaves)} a sample."
            )
        if isinstance(x, Mapping):
            if sorted(x) != sorted(names):
                raise DataError(
                    f"The inputs of `{self.name}` are named {sorted(x)}; the model's are "
                    f"{sorted(names)}."
                )
            return [x[name] for name in names]
        return leaves

    def _is_batched(self, specs: list[Any], y: Any) -> bool:
        if any(spec.shape.rank is None for spec in specs):
            raise DataError(
                f"`{self.name}` does not say the shapes of its elements. Set them: "
                "`dataset.map(lambda x, y: (tf.ensure_shape(x, …), tf.ensure_shape(y, …)))`."
            )
        pairs = [
            (tuple(spec.shape), info.shape) for spec, info in zip(specs, self.inputs, strict=True)
        ]
        ranks = [spec.shape.rank for spec in tensorflow().nest.flatten(y)]
        single = bool(ranks) and all(rank == 0 for rank in ranks)  # a batch has no scalar targets

        def batch(shape: Any, wanted: Any) -> bool:
            return sample_fits(shape[1:], wanted[1:]) and len(shape) == len(wanted)

        def sample(shape: Any, wanted: Any) -> bool:
            return sample_fits(shape, wanted[1:])

        if not single:
            if all(batch(*pair) for pair in pairs):
                return True
            # Numbers, one a sample: a batch of them looks like one sample of one number.
            sure = all(None not in shape for shape, _ in pairs)
            is_sample = sure and all(sample(*pair) for pair in pairs)
            flat = [bool(shape) and _fits_flat(shape[1:], wanted[1:]) for shape, wanted in pairs]
            if not is_sample and all(
                batch(*pair) or is_flat for pair, is_flat in zip(pairs, flat, strict=True)
            ):
                return True
        if all(sample(*pair) or _fits_flat(pair[0], pair[1][1:]) for pair in pairs):
            return False
        bad = next(i for i, pair in enumerate(pairs) if not (batch(*pair) and not single))
        raise no_fit(self.name, self.inputs[bad], pairs[bad][0])

    def settle(self, elements: Any) -> Any:
        """The stream as batches that the model takes."""
        if not self.batched:
            if any(self.ragged):
                elements = elements.map(self._each_input(_dense))
            elements = self._batched(elements)
        shapes = [tuple(spec.shape) for spec in self._ordered(elements.element_spec[0])]
        fits = all(
            len(shape) == len(info.shape) for shape, info in zip(shapes, self.inputs, strict=True)
        )
        named = isinstance(self.spec[0], Mapping) or len(self.inputs) == 1
        as_they_are = fits and named and not self.padded
        if self.targets.changes(self.name, elements.element_spec[1]) or not as_they_are:
            elements = elements.map(self._batch)
        return elements.map(_weighed) if self.weighted else elements

    def _batched(self, samples: Any) -> Any:
        shapes = tensorflow().nest.map_structure(lambda spec: spec.shape, samples.element_spec)
        if not self.padded:
            return samples.batch(self.batch_size)
        return samples.padded_batch(self.batch_size, shapes)

    def _each_input(self, function: Callable[[Any], Any]) -> Callable[..., Any]:
        def change(x: Any, *rest: Any) -> Any:
            if isinstance(x, Mapping):
                return ({name: function(leaf) for name, leaf in x.items()}, *rest)
            if isinstance(x, list | tuple):
                return (tuple(function(leaf) for leaf in x), *rest)
            return (function(x), *rest)

        return change

    def _batch(self, x: Any, y: Any, *weights: Any) -> Any:
        tf = tensorflow()
        leaves = []
        for leaf, info in zip(self._ordered(x), self.inputs, strict=True):
            leaf = _to_shape(_dense(leaf), info) if self.padded else leaf
            rank = len(info.shape)
            if leaf.shape.rank == 1 and rank == 2:
                leaf = leaf[:, None]
            elif leaf.shape.rank == 2 and rank == 1:
                leaf = tf.squeeze(leaf, 1)
            leaves.append(leaf)
        if isinstance(x, Mapping) or len(leaves) > 1:
            # By name from here on: a converted file may have another order than the model.
            x = dict(zip((info.name for info in self.inputs), leaves, strict=True))
        else:
            x = leaves[0]
        found = self.targets.from_tensors(self.name, y)
        if not weights:
            return x, found
        nested = isinstance(weights[0], Mapping | list | tuple)
        return x, found, self.targets.by_output(self.name, weights[0]) if nested else weights[0]


def _weighed(x: Any, y: Any, weights: Any) -> Any:
    """A batch that fails to be read where weights are negative."""
    tf = tensorflow()

    def checked(leaf: Any) -> Any:
        values = tf.cast(leaf, tf.float32)
        lowest = tf.strings.as_string(tf.reduce_min(values), shortest=True)
        message = tf.strings.join(["its sample weights must be at least 0; one is ", lowest])
        with tf.control_dependencies([tf.debugging.Assert(~tf.reduce_any(values < 0), [message])]):
            return tf.identity(leaf)

    return x, y, map_leaves(checked, weights)


def _fits_flat(shape: tuple[int | None, ...], wanted: tuple[int | None, ...]) -> bool:
    """Whether one number a sample is given to an input of one number a row, or the reverse."""
    return (shape == () and wanted == (1,)) or (shape == (1,) and wanted == ())


def _is_ragged_spec(spec: Any) -> bool:
    return isinstance(spec, tensorflow().RaggedTensorSpec)


def _dense(leaf: Any) -> Any:
    return leaf.to_tensor() if is_ragged(leaf) else leaf


def _to_shape(leaf: Any, info: TensorInfo) -> Any:
    """Pads a batch to the lengths that the model insists on."""
    tf = tensorflow()
    if leaf.shape.rank != len(info.shape) or leaf.shape[1:].is_fully_defined():
        return leaf
    if not any(
        size is None and wanted is not None
        for size, wanted in zip(leaf.shape[1:], info.shape[1:], strict=True)
    ):
        return leaf
    size = tf.shape(leaf)
    goal = [
        size[axis] if wanted is None or axis == 0 else wanted
        for axis, wanted in enumerate(info.shape)
    ]
    missing = tf.stack(goal) - size
    fits = tf.debugging.Assert(
        tf.reduce_all(missing >= 0),
        [f"samples are longer than the model's input {info.name!r} takes:", size],
    )
    with tf.control_dependencies([fits]):
        paddings = tf.stack([tf.zeros_like(missing), missing], 1)
    padded = tf.pad(leaf, paddings, constant_values="" if leaf.dtype == tf.string else 0)
    return tf.ensure_shape(padded, (leaf.shape[0], *info.shape[1:]))


def is_sequence(value: Any) -> bool:
    """Whether it is a Keras ``Sequence`` or ``PyDataset``, or alike."""
    sized = hasattr(value, "__len__") or hasattr(type(value), "num_batches")
    return hasattr(value, "__getitem__") and sized and not has_shape(value)


def number_of_batches(name: str, value: Any) -> int | None:
    """The length of a ``Sequence`` or ``PyDataset``; ``None`` for one without end."""
    try:
        return len(value) if hasattr(value, "__len__") else value.num_batches
    except NotImplementedError as error:
        raise DataError(
            f"`{name}` does not say how many batches it has: {type(value).__name__} needs "
            "`__len__` or `num_batches`."
        ) from error


def _reader(
    name: str, value: Any, inputs: tuple[TensorInfo, ...], targets: Targets
) -> tuple[Callable[[int | None], Any], int | None]:
    """A function from an order (a seed, or None for as it is) to a dataset, and its known length."""
    tf = tensorflow()
    if hasattr(value, "element_spec"):
        return lambda order: value, None

    def as_element(item: Any) -> Any:
        return _as_element(name, item, len(inputs) > 1, targets.several)

    if callable(value) and not is_sequence(value):
        first = as_element(_first_element(name, iter(call(name, value))))
        specs = _element_spec(name, first, inputs, targets)
        return (
            lambda order: tf.data.Dataset.from_generator(
                lambda: map(as_element, value()), output_signature=specs
            ),
            None,
        )
    length = number_of_batches(name, value)
    if length == 0:
        raise DataError(f"`{name}` is empty.")
    first = as_element(_first_element(name, iter([value[0]])))
    specs = _element_spec(name, first, inputs, targets)

    def read(order: int | None) -> Any:
        epochs = itertools.count()

        def items() -> Iterator[Any]:
            if length is None:
                yield from (as_element(value[i]) for i in itertools.count())
                return
            indices = np.arange(length)
            if order is not None:
                # A new order each epoch, made here: `on_epoch_end` would change the user's object.
                np.random.default_rng(derive_seed(order, next(epochs))).shuffle(indices)
            for i in indices:
                yield as_element(value[int(i)])

        return tf.data.Dataset.from_generator(items, output_signature=specs)

    return read, length


def call(name: str, function: Callable[[], Any]) -> Any:
    """What a function of the user's gives to iterate over.

    Raises:
        DataError: If it is no fresh iterator: reading from one that was given before would take
            samples away from whoever comes next.
    """
    try:
        result = function()
    except TypeError as error:
        raise DataError(
            f"`{name}` must be a function without arguments that returns a fresh iterator: {error}"
        ) from error
    if not hasattr(result, "__iter__"):
        raise DataError(
            f"`{name}` must return an iterator over (x, y). It returned: {type(result).__name__}."
        )
    if iter(result) is result and function() is result:
        raise DataError(
            f"`{name}` returns the same iterator each time it is called, which can be read once. "
            "It must return a fresh one: make it inside the function."
        )
    return result


def _as_element(name: str, item: Any, inputs: bool, outputs: bool) -> Any:
    """Lists of arrays as tuples, as TensorFlow takes a list for one array; tables as arrays.

    Args:
        name: Name of the split.
        item: What the stream gave.
        inputs: Whether the model has several inputs, so that tables are a column for each.
        outputs: Whether it has several outputs.
    """

    def part(value: Any, several: bool) -> Any:
        if is_frame(value) and several:
            # The columns of a table may be groups of columns, which have names of several parts.
            keys = [key[0] if isinstance(key, tuple) else key for key in value.columns]
            return {str(key): array_of(name, "elements", value[key]) for key in keys}
        if hasattr(value, "to_numpy"):
            return array_of(name, "elements", value)
        if isinstance(value, Mapping):
            return {key: part(leaf, False) for key, leaf in value.items()}
        if isinstance(value, list | tuple) and value and all(has_shape(leaf) for leaf in value):
            return tuple(part(leaf, False) for leaf in value)
        return value

    x, *rest = item
    x = part(x, inputs)
    return (tuple(x) if isinstance(x, list) else x, *(part(value, outputs) for value in rest))


def _first_element(name: str, iterator: Iterator[Any]) -> Any:
    try:
        item = next(iterator)
    except StopIteration:
        raise DataError(f"`{name}` is empty.") from None
    if not isinstance(item, tuple | list) or len(item) not in (2, 3):
        raise DataError(
            f"`{name}` must give pairs (x, y), or (x, y, sample weights). Received: "
            f"{type(item).__name__}" + (f" of {len(item)}." if hasattr(item, "__len__") else ".")
        )
    return item


def _element_spec(
    name: str, element: Any, inputs: tuple[TensorInfo, ...], targets: Targets
) -> tuple[Any, ...]:
    """The spec of every element of a stream, from its first one and what the model leaves open."""
    tf = tensorflow()
    x, y, *weights = element
    named = {info.name: info for info in inputs}
    keys = list(x) if isinstance(x, Mapping) else None
    infos = [named.get(key) for key in keys] if keys is not None else list(inputs)
    leaves = [x[key] for key in keys] if keys is not None else leaves_of(x)
    first = infos[0] if infos else None
    rank = _rank(leaves[0])
    batched = first is not None and rank == len(first.shape)
    if first is not None and first.shape == (None, 1) and _rank(_first(y)) > 0:
        batched |= rank == 1  # numbers, one a sample

    def spec(leaf: Any, wanted: tuple[int | None, ...] | None) -> Any:
        if is_ragged(leaf):
            shape = [None, *leaf.shape[1:]] if batched else leaf.shape
            return tf.RaggedTensorSpec(shape, leaf.dtype, leaf.ragged_rank, leaf.row_splits.dtype)
        array = array_of(name, "elements", leaf)
        sizes: list[int | None] = list(array.shape)
        if wanted is not None:
            opened = zip(sizes, (*wanted, *sizes[len(wanted) :]), strict=False)
            sizes = [None if w is None else size for size, w in opened]
        if batched and sizes:
            sizes[0] = None
        dtype = tf.string if array.dtype.kind in "OSU" else tf.as_dtype(array.dtype)
        return tf.TensorSpec(sizes, dtype)

    def expected(i: int) -> tuple[int | None, ...] | None:
        info = infos[i] if i < len(infos) else None
        if info is None:
            return None
        wanted = info.shape if batched else info.shape[1:]
        return wanted if len(wanted) == _rank(leaves[i]) else None

    specs = [spec(leaf, expected(i)) for i, leaf in enumerate(leaves)]
    if keys is not None:
        x_spec: Any = dict(zip(keys, specs, strict=True))
    else:
        x_spec = tuple(specs) if isinstance(x, tuple) else specs[0]
    lengths = {info.name: info.shape for info in targets.outputs}

    def rest(part: Any) -> Any:
        """Targets and weights may be as long as the outputs may be."""
        whole = targets.outputs[0].shape if len(targets.outputs) == 1 else None
        if isinstance(part, Mapping):
            shapes = [lengths.get(key) for key in part]
            found = [
                spec(leaf, _after_batch(shape, batched))
                for leaf, shape in zip(part.values(), shapes, strict=True)
            ]
            return dict(zip(part, found, strict=True))
        if isinstance(part, tuple):
            outputs = [info.shape for info in targets.outputs]
            return tuple(
                spec(leaf, _after_batch(outputs[i] if i < len(outputs) else None, batched))
                for i, leaf in enumerate(part)
            )
        return spec(part, _after_batch(whole, batched))

    return (x_spec, *map(rest, (y, *weights)))


def _after_batch(
    shape: tuple[int | None, ...] | None, batched: bool
) -> tuple[int | None, ...] | None:
    return shape if shape is None or batched else shape[1:]


def _first(y: Any) -> Any:
    leaves = leaves_of(y) if isinstance(y, dict | tuple) else [y]
    return leaves[0]


def _rank(leaf: Any) -> int:
    return len(leaf.shape) if hasattr(leaf, "shape") else np.ndim(leaf)
