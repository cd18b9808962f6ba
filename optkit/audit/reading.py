"""Going through a split once, and what is kept of it."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optkit.data import ArraySplit, Split, batch_length, content_of
from optkit.data.split import leaves_of
from optkit.metric import true_classes
from optkit.task import Task

__all__ = ["Digest", "InputKind", "input_kind", "read"]

_SIDE = 8  # of thumbnails, in pixels
_BLOCKS = 256  # that other arrays are brought down to
_WORDS = 2000  # of a text that are looked at
_WORD = re.compile(r"\w+")
_VALUES = 2**22  # of samples that are kept as they are
_RAW = 512

InputKind = str  # "image", "table", "array", "text" or "ids"


@dataclass
class Digest:
    """What is kept of a split.

    Attributes:
        name: Name of the split.
        hashes: For each sample a number that changes with its inputs.
        targets: The same of its targets; empty where it has none.
        classes: By output, the class number of each sample, where samples have one.
        looked_at: The samples, by place, that near duplicates are looked for among.
        vectors: Of these, what distances are taken of; ``None`` for texts and ids.
        sets: Of these, the hashes of pairs of words or ids; empty for others.
        kinds: Kind of each input.
        lows, highs: For each numeric input the smallest and largest value of each feature.
        blank: Samples that are images of one value.
        not_finite: Samples that hold NaN or infinity.
        raw: A few samples as they came, an array for each input.
        places: Of samples that were chosen from arrays, their rows there; ``None`` if all were.
    """

    name: str
    hashes: np.ndarray
    targets: np.ndarray
    classes: dict[str, np.ndarray]
    looked_at: np.ndarray
    vectors: np.ndarray | None
    sets: list[np.ndarray]
    kinds: tuple[InputKind, ...]
    lows: list[np.ndarray | None]
    highs: list[np.ndarray | None]
    blank: list[int] = field(default_factory=list)
    not_finite: list[int] = field(default_factory=list)
    raw: list[np.ndarray] = field(default_factory=list)
    places: np.ndarray | None = None

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.hashes)

    def place(self, sample: int) -> int:
        """The row of a sample in the array that the user gave."""
        return int(sample if self.places is None else self.places[sample])


def input_kind(leaf: np.ndarray, name: str, ids: Collection[str]) -> InputKind:
    """What an input holds: ``"image"``, ``"table"``, ``"array"``, ``"text"`` or ``"ids"``."""
    if leaf.dtype.kind in "OSU":
        return "text"
    if name in ids:
        return "ids"
    if leaf.ndim == 4 and leaf.shape[-1] in (1, 3, 4):
        return "image"
    return "table" if leaf.ndim <= 2 else "array"


def read(split: Split, task: Task, *, ids: Collection[str] = (), samples: int = 50_000) -> Digest:
    """Goes through a split once.

    Args:
        split: The split; nothing of it is held in memory but what the digest keeps.
        task: What the targets are.
        ids: Names of the inputs that hold numbers of things (token ids), not quantities.
        samples: How many samples near duplicates are looked for among at most; drawn without regard
            to their order where there are more.
    """
    draw = np.random.default_rng(0)
    names = [info.name for info in split.inputs]
    whole = [info.dtype.startswith(("int", "uint")) for info in split.inputs]
    ragged = [len(info.shape) > 1 and info.shape[1] is None for info in split.inputs]
    hashes: list[int] = []
    targets: list[int] = []
    classes: dict[str, list[np.ndarray]] = {}
    near, raw = _Drawn(samples), _Drawn(_RAW)
    kinds: tuple[InputKind, ...] = ()
    lows: list[np.ndarray | None] = [None] * len(names)
    highs: list[np.ndarray | None] = [None] * len(names)
    blank: list[int] = []
    not_finite: list[int] = []
    start = 0
    for x, y in split.iterate():
        parts = [x[name] for name in names] if isinstance(x, dict) else leaves_of(x)
        parts = [np.asarray(part) for part in parts]
        count = batch_length(y) if y is not None else len(parts[0])
        if not kinds:
            kinds = tuple(map(input_kind, parts, names, [ids] * len(parts)))
            size = max(1, sum(part[:1].size for part in parts))
            raw.limit = max(1, min(_RAW, _VALUES // size))
        canonical = [
            part if part.dtype.kind in "OSU" else part.astype("int64" if integers else "float32")
            for part, integers in zip(parts, whole, strict=True)
        ]
        hashes += _hashes(canonical, ragged)
        if y is not None:
            targets += _hashes([_canonical(leaf) for leaf in leaves_of(y)], [])
            for output, part in task.each.items():
                if part.kind in ("multiclass", "binary"):
                    found = true_classes(part, np.asarray(y[output] if output else y))
                    if found.ndim == 1:  # not a class a pixel
                        classes.setdefault(output, []).append(found)
        for i, (leaf, kind) in enumerate(zip(canonical, kinds, strict=True)):
            if kind in ("text", "ids"):
                continue
            flat = leaf.reshape(count, -1)
            finite = np.isfinite(flat).all(1)
            not_finite += (start + np.flatnonzero(~finite)).tolist()
            if kind == "image":
                flat_ends = flat.min(1), flat.max(1)
                blank += (start + np.flatnonzero(flat_ends[0] == flat_ends[1])).tolist()
            lows[i] = _ends(np.fmin, lows[i], leaf)
            highs[i] = _ends(np.fmax, highs[i], leaf)
        priority = draw.random(count)
        near.add(start, priority, [_outline(canonical, kinds)])
        raw.add(start, priority, [list(rows) for rows in parts])
        start += count
    looked_at, (outlines,) = near.drawn()
    _, rows = raw.drawn()
    vectors = bool(outlines) and kinds[0] not in ("text", "ids") and outlines[0] is not None
    sets = bool(outlines) and len(kinds) == 1 and kinds[0] in ("text", "ids")
    index = split.index if isinstance(split, ArraySplit) else None
    return Digest(
        split.name,
        np.array(hashes, np.uint64),
        np.array(targets, np.uint64),
        {output: np.concatenate(found) for output, found in classes.items()},
        looked_at,
        np.stack(outlines) if vectors else None,
        list(outlines) if sets else [],
        kinds,
        lows,
        highs,
        blank,
        not_finite,
        [_alike(part) for part in rows],
        index,
    )


class _Drawn:
    """The samples with the smallest random numbers, so that how they came in batches is no matter."""

    def __init__(self, limit: int):
        self.limit = limit
        self._places = np.zeros(0, np.int64)
        self._priority = np.zeros(0)
        self._rows: list[list[Any]] = []

    def add(self, start: int, priority: np.ndarray, columns: list[list[Any]]) -> None:
        """Takes in a batch: for each column one value a sample."""
        self._places = np.concatenate([self._places, start + np.arange(len(priority))])
        self._priority = np.concatenate([self._priority, priority])
        self._rows = self._rows or [[] for _ in columns]
        for rows, column in zip(self._rows, columns, strict=True):
            rows += column
        if len(self._places) > 2 * self.limit:
            self._cut()

    def _cut(self) -> None:
        kept = np.sort(np.argsort(self._priority, kind="stable")[: self.limit])
        self._places, self._priority = self._places[kept], self._priority[kept]
        self._rows = [[rows[i] for i in kept] for rows in self._rows]

    def drawn(self) -> tuple[np.ndarray, list[list[Any]]]:
        """Places and columns of those drawn, in the order in which they came."""
        self._cut()
        return self._places, self._rows


def _canonical(leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    return array if array.dtype.kind in "OSU" else array.astype("float64")


def _hashes(parts: list[np.ndarray], ragged: list[bool]) -> list[int]:
    """For each sample a number of 64 bits that changes with any of its values."""
    # Adding zero makes one of the two zeros of floats.
    plain = [part if part.dtype.kind in "OSU" else np.ascontiguousarray(part + 0) for part in parts]
    found = []
    for i in range(len(plain[0])):
        digest = hashlib.blake2b(digest_size=8)
        for number, part in enumerate(plain):
            row = part[i : i + 1]
            if ragged and ragged[number] and part.ndim > 1:
                row = _unpadded(row)
            digest.update(repr(row.shape[1:]).encode())
            digest.update(content_of(row))
        found.append(int.from_bytes(digest.digest(), "little"))
    return found


def _unpadded(row: np.ndarray) -> np.ndarray:
    """A sample of free length without the zeros (or empty texts) at its end, as batches pad them."""
    flat = row.reshape(row.shape[1], -1)
    filled = np.flatnonzero((flat != ("" if row.dtype.kind in "OSU" else 0)).any(1))
    return row[:, : filled[-1] + 1 if len(filled) else 0]


def _ends(smaller: Any, known: np.ndarray | None, leaf: np.ndarray) -> np.ndarray | None:
    """The smallest (or largest) value of each feature so far."""
    found = smaller.reduce(leaf, axis=0)
    if known is not None and known.shape != found.shape:  # images of several sizes
        return np.asarray(
            smaller(smaller.reduce(known, axis=None), smaller.reduce(found, axis=None))
        )
    return np.asarray(found if known is None else smaller(known, found))


def _alike(rows: list[Any]) -> np.ndarray:
    """The samples that have the shape of the first."""
    return np.stack([row for row in rows if np.shape(row) == np.shape(rows[0])])


# -------------------------------------------------------------------------------- what is compared


def _outline(parts: list[np.ndarray], kinds: tuple[InputKind, ...]) -> list[Any]:
    """For each sample what near duplicates are found by; ``None`` where there is no way."""
    if len(parts) == 1 and kinds[0] == "text":
        return [_word_pairs(text) for text in parts[0].reshape(len(parts[0]), -1)]
    if len(parts) == 1 and kinds[0] == "ids":
        rows = parts[0].reshape(len(parts[0]), -1)
        return [_pairs(row[row != 0].astype(np.int64).astype(np.uint64)) for row in rows]
    if len(parts) == 1 and kinds[0] == "image":
        return list(_thumbnails(parts[0]))
    if len(parts) == 1 and kinds[0] == "array":
        flat = parts[0].reshape(len(parts[0]), -1)
        return list(_pooled(flat, 1, min(_BLOCKS, flat.shape[1])))
    if set(kinds) == {"table"}:
        return list(np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1))
    return [None] * len(parts[0])


def _thumbnails(images: np.ndarray) -> np.ndarray:
    """Eight by eight pixels of each image, in a row."""
    small = _pooled(_pooled(images, 1, min(_SIDE, images.shape[1])), 2, min(_SIDE, images.shape[2]))
    return small.reshape(len(images), -1)


def _pooled(values: np.ndarray, axis: int, blocks: int) -> np.ndarray:
    """Means over blocks of neighbours along an axis."""
    edges = np.linspace(0, values.shape[axis], blocks, endpoint=False).astype(int)
    sizes = np.diff([*edges, values.shape[axis]])
    sums = np.add.reduceat(values.astype(np.float32), edges, axis=axis)
    shape = [1] * values.ndim
    shape[axis] = blocks
    pooled: np.ndarray = sums / sizes.reshape(shape).astype(np.float32)
    return pooled


def _word_pairs(texts: np.ndarray) -> np.ndarray:
    words: list[str] = []
    for text in texts:
        letters = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
        words += _WORD.findall(letters.casefold())[:_WORDS]
    return _pairs(np.array([zlib.crc32(word.encode()) for word in words[:_WORDS]], np.uint64))


def _pairs(numbers: np.ndarray) -> np.ndarray:
    """The different pairs of neighbours, as hashes; of a lone one itself."""
    if len(numbers) < 2:
        return numbers if len(numbers) else np.zeros(1, np.uint64)
    mixed = numbers[:-1] * np.uint64(0x9E3779B97F4A7C15) + numbers[1:]
    return np.unique((mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9))
