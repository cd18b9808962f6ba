"""The checks: each a function of what was kept of the splits, to findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit.audit.finding import ROWS, Finding, and_more, counted, percent
from optkit.audit.near import near_sets, near_vectors
from optkit.audit.reading import Digest
from optkit.preprocessing import FORMS, form_of, preprocessing_mismatch
from optkit.study import Chart, Study
from optkit.task import Task

__all__ = [
    "DISTANCE",
    "NearPairs",
    "balance",
    "conflicts",
    "duplicates",
    "features",
    "leakage",
    "near_duplicates",
    "near_leakage",
    "near_pairs",
    "value_range",
]

#: Distance up to which samples are near duplicates, by kind of input.
DISTANCE = {"image": 0.1, "array": 0.02, "table": 0.01, "text": 0.2, "ids": 0.2}
_IMBALANCE = 3.0  # of the largest class to the smallest, from which on it is told
_FLAT = 0.05  # of the usual contrast, below which images are too flat to be told apart by it


@dataclass(frozen=True)
class NearPairs:
    """Pairs of samples that are nearly, but not exactly the same.

    Attributes:
        digests: The splits.
        split: For both of each pair the number of its split, shape ``(m, 2)``.
        sample: The same for its place in the split.
        distances: How far they are apart.
        how: How they were looked for, in words; why not, where they were not.
        looked: Whether they were looked for.
    """

    digests: Sequence[Digest]
    split: np.ndarray
    sample: np.ndarray
    distances: np.ndarray
    how: str
    looked: bool = True


# ------------------------------------------------------------------------------------- same samples


def duplicates(digests: Sequence[Digest]) -> list[Finding]:
    """Samples that come more than once within a split."""
    found = []
    for digest in digests:
        groups = _groups(digest.hashes)
        if not groups:
            continue
        extra = sum(len(group) - 1 for group in groups)
        groups.sort(key=lambda group: (-len(group), group[0]))
        rows = tuple(
            (len(group), _listed(digest, group), _other_targets([digest] * len(group), group))
            for group in groups[:ROWS]
        )
        found.append(
            Finding(
                "duplicates",
                f"{digest.name}: {counted(extra, 'sample')} of {digest.samples} "
                f"({percent(extra, digest.samples)}) "
                f"{'is a copy' if extra == 1 else 'are copies'} of others in it",
                False,
                Study(
                    f"Copies within {digest.name}",
                    ("times", "samples", "other targets"),
                    rows,
                    and_more(len(groups), len(rows)),
                ),
            )
        )
    return found


def leakage(digests: Sequence[Digest]) -> list[Finding]:
    """Samples that two splits share."""
    found = []
    for one, other in _split_pairs(digests):
        where = _first_places(one.hashes)
        shared = [(i, where[h]) for i, h in enumerate(other.hashes.tolist()) if h in where]
        if not shared:
            continue
        rows = tuple(
            (other.place(i), one.place(j), _other_targets((other, one), (i, j)))
            for i, j in shared[:ROWS]
        )
        found.append(
            Finding(
                "leakage",
                f"{counted(len(shared), 'sample')} of {other.name} ({percent(len(shared), other.samples)}) "
                f"{'is' if len(shared) == 1 else 'are'} in {one.name}, too: figures on "
                f"{other.name} are better than they should be",
                True,
                Study(
                    f"Samples of {other.name} that are in {one.name}",
                    (other.name, one.name, "other targets"),
                    rows,
                    and_more(len(shared), len(rows)),
                ),
            )
        )
    return found


def conflicts(digests: Sequence[Digest], task: Task) -> list[Finding]:
    """The same inputs with different targets, within splits and across them."""
    labelled = [digest for digest in digests if len(digest.targets)]
    if not labelled:
        return []
    hashes = np.concatenate([digest.hashes for digest in labelled])
    targets = np.concatenate([digest.targets for digest in labelled])
    owner = np.repeat(np.arange(len(labelled)), [digest.samples for digest in labelled])
    starts = np.cumsum([0, *(digest.samples for digest in labelled[:-1])])
    groups = [group for group in _groups(hashes) if len(np.unique(targets[group])) > 1]
    if not groups:
        return []
    rows = []
    for group in groups[:ROWS]:
        places = [(labelled[owner[i]], int(i - starts[owner[i]])) for i in group]
        listed = ", ".join(f"{digest.name} {digest.place(i)}" for digest, i in places[:6])
        rows.append((listed + (", …" if len(places) > 6 else ""), _classes_of(places)))
    involved = sum(map(len, groups))
    of_classes = any(part.is_classification for part in task.each.values())
    return [
        Finding(
            "conflicts",
            f"{counted(len(groups), 'input')} with different targets ({involved} samples)"
            + ("" if of_classes else ", as measurements that were repeated have"),
            of_classes,
            Study(
                "The same input, other targets",
                ("samples", "classes"),
                tuple(rows),
                and_more(len(groups), len(rows)),
            ),
        )
    ]


def _split_pairs(digests: Sequence[Digest]) -> list[tuple[Digest, Digest]]:
    return [(one, other) for i, one in enumerate(digests) for other in digests[i + 1 :]]


def _groups(hashes: np.ndarray) -> list[np.ndarray]:
    """The samples that share a hash with others, group by group, in order of their first."""
    order = np.argsort(hashes, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(hashes[order])) + 1)
    found = [group for group in groups if len(group) > 1]
    return sorted(found, key=lambda group: int(group[0]))


def _first_places(hashes: np.ndarray) -> dict[int, int]:
    values, places = np.unique(hashes, return_index=True)
    return dict(zip(values.tolist(), places.tolist(), strict=True))


def _listed(digest: Digest, group: Sequence[int] | np.ndarray, limit: int = 8) -> str:
    listed = ", ".join(str(digest.place(int(i))) for i in group[:limit])
    return listed + (", …" if len(group) > limit else "")


def _other_targets(digests: Sequence[Digest], samples: Any) -> bool | None:
    """Whether the targets of samples differ; ``None`` where they have none."""
    pairs = list(zip(digests, samples, strict=True))
    if not all(len(digest.targets) for digest, _ in pairs):
        return None
    return len({int(digest.targets[i]) for digest, i in pairs}) > 1


def _classes_of(places: Sequence[tuple[Digest, int]]) -> str | None:
    """The classes of samples in words, by output where there are several."""
    found = []
    for output in places[0][0].classes:
        numbers = sorted({int(digest.classes[output][i]) for digest, i in places})
        found.append((f"{output}: " if output else "") + ", ".join(map(str, numbers)))
    return "; ".join(found) or None


# ------------------------------------------------------------------------------------- near samples


def near_pairs(digests: Sequence[Digest], distance: float | None = None) -> NearPairs:
    """Pairs of samples that are nearly the same, within splits and across them.

    - Images: distance of their thumbnails of 8 by 8 pixels, brightness taken off, relative to their
      contrast. Images without contrast are left out.
    - Tables: the largest difference of a feature, in its standard deviations.
    - Other arrays: as images, over 256 blocks of neighbouring values.
    - Texts and ids: the share of pairs of neighbouring words (case and punctuation aside) that only
      one of the two has.

    Args:
        digests: The splits.
        distance: Largest distance; ``None`` for that of `DISTANCE`.
    """
    kinds = digests[0].kinds
    owner = np.repeat(np.arange(len(digests)), [len(digest.looked_at) for digest in digests])
    place = np.concatenate([digest.looked_at for digest in digests])
    hashes = np.concatenate([digest.hashes[digest.looked_at] for digest in digests])
    # Of samples that are the same one will do: what is exact is told elsewhere.
    _, first = np.unique(hashes, return_index=True)
    first = np.sort(first)
    sets = len(kinds) == 1 and kinds[0] in ("text", "ids")
    with_vectors = all(digest.vectors is not None for digest in digests)
    if not sets and not with_vectors:
        return _none(digests, "near duplicates were not looked for: inputs of several kinds")
    kind = kinds[0]
    radius = DISTANCE[kind] if distance is None else distance
    how = f"distance up to {radius:g} {_MEANING[kind]}"
    if any(len(digest.looked_at) < digest.samples for digest in digests):
        how += f"; among {len(place)} samples drawn of {sum(d.samples for d in digests)}"
    if sets:
        every = [item for digest in digests for item in digest.sets]
        pairs, apart, left_out = near_sets([every[i] for i in first], 1 - radius)
    else:
        vectors = [digest.vectors for digest in digests if digest.vectors is not None]
        if len({part.shape[1:] for part in vectors}) > 1:
            return _none(digests, "near duplicates were not looked for: samples of several sizes")
        table = np.concatenate(vectors)[first].astype(np.float32)
        sound = np.isfinite(table).all(1)
        first, table = first[sound], table[sound]
        if kind == "table":
            deviation = table.std(0, dtype="float64")
            table = table[:, deviation > 0] / deviation[deviation > 0].astype(np.float32)
        else:
            table, contrast = _relative(table)
            first = first[contrast]
        pairs, apart, left_out = near_vectors(table, radius, largest=kind == "table")
    if left_out:
        how += "; there are too many for all to be compared"
    where = first[pairs]
    return NearPairs(digests, owner[where], place[where], apart, how)


_MEANING = {
    "image": "of thumbnails, relative to their contrast",
    "array": "relative to the variation of the values",
    "table": "standard deviations in the feature that differs most",
    "text": "of the pairs of neighbouring words, which only one has",
    "ids": "of the pairs of neighbouring ids, which only one has",
}


def _none(digests: Sequence[Digest], why: str) -> NearPairs:
    nothing = np.zeros((0, 2), np.int64)
    return NearPairs(digests, nothing, nothing, np.zeros(0), why, looked=False)


def _relative(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vectors that have a contrast to speak of, at length 1 and mean 0; and which these are."""
    centred = vectors - vectors.mean(1, keepdims=True)
    length = np.sqrt((centred**2).sum(1))
    contrast = length > _FLAT * np.median(length) if len(length) else np.zeros(0, bool)
    contrast &= length > 0
    return centred[contrast] / length[contrast, None], contrast


def near_duplicates(pairs: NearPairs) -> list[Finding]:
    """Samples within a split that are nearly the same."""
    found = []
    for number, digest in enumerate(pairs.digests):
        chosen = (pairs.split == number).all(1)
        if not chosen.any():
            continue
        later = len(np.unique(pairs.sample[chosen][:, 1]))
        found.append(
            Finding(
                "near_duplicates",
                f"{digest.name}: {counted(later, 'sample')} ({percent(later, digest.samples)}) "
                f"nearly like another one in it ({pairs.how})",
                False,
                _pair_study(pairs, chosen, f"Nearly the same within {digest.name}"),
            )
        )
    return found


def near_leakage(pairs: NearPairs) -> list[Finding]:
    """Samples of which another split has one that is nearly the same."""
    found = []
    for i in range(len(pairs.digests)):
        for j in range(i + 1, len(pairs.digests)):
            chosen = (pairs.split == (i, j)).all(1)
            if not chosen.any():
                continue
            one, other = pairs.digests[i], pairs.digests[j]
            count = len(np.unique(pairs.sample[chosen][:, 1]))
            found.append(
                Finding(
                    "near_leakage",
                    f"{counted(count, 'sample')} of {other.name} ({percent(count, other.samples)}) "
                    f"nearly like one of {one.name} ({pairs.how})",
                    True,
                    _pair_study(
                        pairs, chosen, f"Samples of {other.name} nearly like one of {one.name}"
                    ),
                )
            )
    return found


def _pair_study(pairs: NearPairs, chosen: np.ndarray, title: str) -> Study:
    nearest = np.flatnonzero(chosen)[np.argsort(pairs.distances[chosen], kind="stable")]
    rows = []
    for k in nearest[:ROWS]:
        both = [
            (pairs.digests[s], int(i)) for s, i in zip(pairs.split[k], pairs.sample[k], strict=True)
        ]
        (one, i), (other, j) = both
        names = tuple(f"{digest.name} {digest.place(place)}" for digest, place in both)
        rows.append((*names, float(pairs.distances[k]), _other_targets((one, other), (i, j))))
    total = len(nearest)
    return Study(
        title,
        ("one", "other", "distance", "other targets"),
        tuple(rows),
        and_more(total, len(rows)),
    )


# ------------------------------------------------------------------------------- classes and values


def balance(
    digests: Sequence[Digest],
    task: Task,
    names: dict[str, tuple[str, ...]],
    max_imbalance: float | None = None,
) -> list[Finding]:
    """How often each class comes, and which a split lacks.

    Args:
        digests: The splits.
        task: What the targets are.
        names: Names of the classes by output.
        max_imbalance: Ratio of the largest class to the smallest of a split above which it is a
            fault; ``None`` to tell from 3 on, as something to know.
    """
    found = []
    for output, part in task.each.items():
        own = [digest for digest in digests if output in digest.classes]
        if part.kind not in ("multiclass", "binary") or not own:
            continue
        counts = {}
        for digest in own:
            numbers = digest.classes[output]
            sound = (numbers >= 0) & (numbers < part.classes)
            counts[digest.name] = np.bincount(numbers[sound], minlength=part.classes)
            if not sound.all():
                strange = ", ".join(map(str, np.unique(numbers[~sound])[:5]))
                found.append(
                    Finding(
                        "unknown_classes",
                        f"{digest.name}: {counted(int(np.sum(~sound)), 'sample')} of classes that "
                        f"there are not ({strange}), of {part.classes}",
                        True,
                    )
                )
        known = names.get(output, ())
        labels = [known[i] if i < len(known) else str(i) for i in range(part.classes)]
        of = f" of {output}" if output else ""
        texts, fault, kind = [], False, "balance"
        for split, count in counts.items():
            missing = [labels[i] for i in np.flatnonzero(count == 0)]
            if missing:
                listed = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
                found.append(
                    Finding(
                        "missing_classes",
                        f"{split}: no sample of {counted(len(missing), 'class', 'classes')}{of} "
                        f"({listed})",
                        split == "train",
                    )
                )
            present = count[count > 0]
            ratio = float(present.max() / present.min()) if len(present) else 1.0
            limit = _IMBALANCE if max_imbalance is None else max_imbalance
            if ratio > limit:
                texts.append(
                    f"{split}: the largest class{of} has {ratio:.1f} times as many samples as the "
                    "smallest" + ("" if max_imbalance is None else f", {limit:g} are allowed")
                )
                fault, kind = fault or max_imbalance is not None, "imbalance"
        order = np.argsort(-next(iter(counts.values())), kind="stable")
        rows = tuple((labels[i], *(int(count[i]) for count in counts.values())) for i in order)
        study = Study(
            f"Samples a class{of}",
            ("class", *counts),
            rows,
            chart=Chart("bar", x="class", y=tuple(counts)),
        )
        found.append(Finding(kind, "; ".join(texts), fault, study))
    return found


def features(digests: Sequence[Digest]) -> list[Finding]:
    """Features that never change, images of one value, values that are not finite."""
    found = []
    for digest in digests:
        if digest.not_finite:
            count = len(set(digest.not_finite))
            found.append(
                Finding(
                    "not_finite",
                    f"{digest.name}: {counted(count, 'sample')} with NaN or infinite values "
                    f"({_listed(digest, sorted(set(digest.not_finite)))})",
                    True,
                )
            )
        if digest.blank:
            found.append(
                Finding(
                    "blank",
                    f"{digest.name}: {counted(len(digest.blank), 'image')} of one value "
                    f"({_listed(digest, digest.blank)})",
                    False,
                )
            )
    first = digests[0]
    for kind, low, high in zip(first.kinds, first.lows, first.highs, strict=True):
        if low is None or high is None or first.samples < 2 or low.ndim == 0:
            continue
        # Pixels at the rim of images are often constant; a whole channel never should be.
        over = tuple(range(low.ndim - 1)) if kind == "image" else ()
        same = np.atleast_1d((low.min(over) if over else low) == (high.max(over) if over else high))
        constant = np.flatnonzero(same.ravel())
        if len(constant) and kind in ("table", "image"):
            noun = "channel" if kind == "image" else "feature"
            listed = ", ".join(map(str, constant[:10])) + (", …" if len(constant) > 10 else "")
            found.append(
                Finding(
                    "constant",
                    f"{first.name}: {counted(len(constant), noun)} of {same.size} never "
                    f"{'changes' if len(constant) == 1 else 'change'} ({listed})",
                    False,
                )
            )
    return found


def value_range(digests: Sequence[Digest], model: Any) -> list[Finding]:
    """Whether values are what the model expects, and of one form in all splits.

    Args:
        digests: The splits.
        model: A tf_keras model; ``None`` to compare the splits alone.
    """
    found = []
    for i, kind in enumerate(digests[0].kinds):
        if kind != "image":
            continue
        forms = {digest.name: form_of(digest.raw[i]) for digest in digests}
        known = {name: FORMS[form].name for name, form in forms.items() if form is not None}
        if len(set(known.values())) > 1:
            listed = ", ".join(f"{name} {form}" for name, form in known.items())
            found.append(
                Finding("range", f"the splits have values of different forms: {listed}", True)
            )
    if model is None:
        return found
    raw = digests[0].raw
    inputs = dict(zip(model.input_names, raw, strict=True)) if len(raw) > 1 else raw[0]
    mismatch = preprocessing_mismatch(model, inputs)
    if mismatch is not None:
        found.append(Finding("range", mismatch.message, mismatch.certain))
    return found
