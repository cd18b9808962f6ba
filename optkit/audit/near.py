"""Which samples are nearly the same, without comparing each with each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["near_sets", "near_vectors"]

_AXES = 8  # in which vectors are looked up; all of their values are compared afterwards
_PAIRS = 4_000_000  # that are compared at most
_HASHES, _BAND = 64, 4
_CROWD = 40  # members of a bucket up to which each is compared with each


def near_vectors(
    vectors: np.ndarray, radius: float, *, largest: bool = False, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, bool]:
    """All pairs of rows that are at most ``radius`` apart.

    Rows are looked up in a tree over a few directions, in which they are at most as far apart as
    they really are, so that no pair is missed; those found are compared in full.

    Args:
        vectors: Shape ``(n, d)``.
        radius: Largest distance, above 0.
        largest: Whether the distance is the largest difference of a value, instead of the
            Euclidean one.
        seed: Seed of the choice where there are too many candidates to compare.

    Returns:
        Pairs of shape ``(m, 2)``, the smaller number first, in order; their distances; and whether
        rows had to be left out.

    Example:
        >>> import numpy as np
        >>> near_vectors(np.array([[0.0, 0.0], [5.0, 5.0], [0.0, 0.1]]), 0.2)[0].tolist()
        [[0, 2]]
    """
    from scipy.spatial import cKDTree

    count = len(vectors)
    nothing = np.zeros((0, 2), np.int64), np.zeros(0), False
    if count < 2 or vectors.shape[1] == 0:
        return nothing
    order = np.inf if largest else 2
    placed = _placed(vectors.astype(np.float64), largest)
    chosen = np.arange(count)
    tree = cKDTree(placed)
    candidates = (int(tree.count_neighbors(tree, radius, p=order)) - count) // 2
    left_out = candidates > _PAIRS
    if left_out:
        size = max(2, int(count * np.sqrt(_PAIRS / candidates)))
        chosen = np.sort(np.random.default_rng(seed).choice(count, size, replace=False))
        tree = cKDTree(placed[chosen])
    pairs = chosen[tree.query_pairs(radius, p=order, output_type="ndarray")].reshape(-1, 2)
    pairs = np.sort(pairs, axis=1)
    distances = np.zeros(len(pairs))
    step = max(1, 2**22 // vectors.shape[1])
    for start in range(0, len(pairs), step):
        one, other = pairs[start : start + step].T
        apart = vectors[one].astype(np.float64) - vectors[other]
        distances[start : start + step] = (
            np.abs(apart).max(1) if largest else np.sqrt((apart**2).sum(1))
        )
    near = distances <= radius
    pairs, distances = pairs[near], distances[near]
    by_place = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return pairs[by_place], distances[by_place], left_out


def _placed(vectors: np.ndarray, largest: bool) -> np.ndarray:
    """The rows in few directions, in which no two are farther apart than they really are."""
    if vectors.shape[1] <= _AXES:
        return vectors
    if largest:
        varied = [len(np.unique(column)) for column in vectors[:5000].T]
        columns: np.ndarray = vectors[:, np.argsort(varied, kind="stable")[-_AXES:]]
        return columns
    centred = vectors - vectors.mean(0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    projected: np.ndarray = centred @ directions[:, -_AXES:]
    return projected


def near_sets(
    sets: Sequence[np.ndarray], similarity: float, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Pairs of sets that have at least this share of their members in common (Jaccard).

    By MinHash in bands (Broder, 1997): a pair at a similarity of 0.8 is missed once in five
    thousand times, and one at 0.9 in practice never.

    Args:
        sets: For each sample the different numbers in it, ``uint64``, sorted; not empty.
        similarity: Share of what both hold in what either holds, in ``(0, 1]``.
        seed: Seed of the hash functions.

    Returns:
        Pairs of shape ``(m, 2)``, the smaller number first, in order; their distances, which are
        1 - similarity; and whether candidates had to be left out.

    Example:
        >>> import numpy as np
        >>> sets = [np.arange(10), np.arange(100, 120), np.arange(11)]
        >>> near_sets([s.astype("uint64") for s in sets], 0.8)[0].tolist()
        [[0, 2]]
    """
    if len(sets) < 2:
        return np.zeros((0, 2), np.int64), np.zeros(0), False
    generator = np.random.default_rng(seed)
    flat = np.concatenate(sets)
    starts = np.cumsum([0, *map(len, sets[:-1])])
    factors = generator.integers(1, 2**63, _HASHES, dtype=np.uint64) | np.uint64(1)
    shifts = generator.integers(0, 2**63, _HASHES, dtype=np.uint64)
    candidates: list[np.ndarray] = []
    found, left_out = 0, False
    for band in range(0, _HASHES, _BAND):
        key = np.zeros(len(sets), np.uint64)
        for factor, shift in zip(
            factors[band : band + _BAND], shifts[band : band + _BAND], strict=True
        ):
            # The upper half, as the lower bits of a product depend on the lower bits alone.
            mixed = (flat * factor + shift) >> np.uint64(32)
            key = key * np.uint64(0x9E3779B97F4A7C15) + np.minimum.reduceat(mixed, starts)
        pairs = _within_buckets(key)
        if found + len(pairs) > _PAIRS // 8:
            left_out = True
            break
        candidates.append(pairs)
        found += len(pairs)
    pairs = np.unique(np.concatenate(candidates), axis=0) if found else np.zeros((0, 2), np.int64)
    distances = np.array([1 - _shared(sets[i], sets[j]) for i, j in pairs])
    near = distances <= 1 - similarity + 1e-9
    return pairs[near], distances[near], left_out


def _within_buckets(key: np.ndarray) -> np.ndarray:
    """Pairs with equal keys: each with each, and where there are many each with the first."""
    order = np.argsort(key, kind="stable")
    ends = np.flatnonzero(np.diff(key[order])) + 1
    pairs = []
    for bucket in np.split(order, ends):
        if len(bucket) < 2:
            continue
        members = np.sort(bucket)
        if len(members) <= _CROWD:
            one, other = np.triu_indices(len(members), 1)
            pairs.append(np.stack([members[one], members[other]], 1))
        else:
            pairs.append(np.stack([np.full(len(members) - 1, members[0]), members[1:]], 1))
    return np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64)


def _shared(one: np.ndarray, other: np.ndarray) -> float:
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)
