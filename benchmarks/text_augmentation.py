"""What `AugmentText` gives on movie-review sentences: the figures of its card.

Few sentences to train on, a classifier of the kind that is built in a few lines (strings in, a
`TextVectorization` layer, an embedding, a convolution over words), trained with augmentation off and
on, for each operation by itself and for the defaults. Every seed draws its own training sentences
and its own first weights; each way to train gets the same ones, the same number of epochs at most,
and the same early stopping, so differences are within a seed. The test part is one for all.

Wants the folder of data in the environment variable ``OPTKIT_DATA``, and WordNet (``NLTK_DATA``, or
``python -m nltk.downloader wordnet``). Prints Markdown. Run it with
``python -m benchmarks.text_augmentation``.
"""

from __future__ import annotations

import csv
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import common

_TEST, _VALIDATION = 2000, 500
_NEUTRAL = 0.5  # ratings go from -4 to 4; nearer to 0 than this, people do not agree on the side
_WORDS, _LENGTH = 12_000, 40
_EPOCHS, _PATIENCE = 30, 5
_OFF = {"replace": 0.0, "insert": 0.0, "delete": 0.0, "swap": 0.0}

#: Ways to train by name: the arguments of `AugmentText`, or `None` for none.
WAYS: dict[str, dict[str, Any] | None] = {
    "off": None,
    "synonyms in place (0.1)": _OFF | {"replace": 0.1},
    "insertion (0.05)": _OFF | {"insert": 0.05},
    "swap (0.1)": _OFF | {"swap": 0.1},
    "deletion (0.05)": _OFF | {"delete": 0.05},
    "the defaults, all four": {},
    "all four, three times as much": {
        "replace": 0.3,
        "insert": 0.15,
        "delete": 0.15,
        "swap": 0.3,
    },
}


def sentences() -> tuple[Any, Any]:
    """The sentences and whether each is positive.

    Raises:
        SystemExit: If the data are not there.
    """
    import numpy as np

    path = Path(os.environ.get("OPTKIT_DATA", "")) / "data" / "movie_review_sentences.tsv"
    if not path.is_file():
        raise SystemExit("Set OPTKIT_DATA to the folder that holds data/movie_review_sentences.tsv")
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    clear = [row for row in rows if abs(float(row["rating"])) >= _NEUTRAL]
    texts = np.array([row["text"] for row in clear], dtype=object)
    return texts, np.array([float(row["rating"]) > 0 for row in clear]).astype("int64")


def _model(vocabulary: Sequence[str], seed: int) -> Any:
    import tf_keras as keras

    layers = keras.layers
    keras.utils.set_random_seed(seed)
    vectorize = layers.TextVectorization(
        output_sequence_length=_LENGTH, vocabulary=list(vocabulary), name="vectorize"
    )
    text = keras.Input((), dtype="string", name="text")
    x = layers.Embedding(len(vocabulary) + 2, 64, name="embedding")(vectorize(text))
    x = layers.Conv1D(64, 3, activation="relu", name="conv")(x)
    x = layers.GlobalMaxPooling1D(name="pool")(x)
    x = layers.Dropout(0.5, name="drop")(x)
    out = layers.Dense(1, activation="sigmoid", name="positive")(x)
    return keras.Model(text, out, name="sentiment")


def measure(sizes: Sequence[int], seeds: Sequence[int]) -> dict[str, Any]:
    """Accuracy on the test part by number of training sentences and way, one value a seed."""
    import numpy as np
    import tf_keras as keras

    import optkit as ok

    texts, labels = sentences()
    order = np.random.default_rng(0).permutation(len(texts))
    test, validation = order[:_TEST], order[_TEST : _TEST + _VALIDATION]
    pool = order[_TEST + _VALIDATION :]
    # Texts without labels are easy to come by: the words of all of them are known to every way.
    vectorize = keras.layers.TextVectorization(max_tokens=_WORDS)
    vectorize.adapt(texts[pool])
    vocabulary = vectorize.get_vocabulary()[2:]
    found: dict[str, Any] = {
        "sentences": {"test": len(test), "validation": len(validation), "pool": len(pool)},
        "positive": float(labels[test].mean()),
        "accuracy": {},
    }
    plain = ok.Measure(latency_seconds=0, memory=False)
    for size in sizes:
        scores: dict[str, list[float]] = {name: [] for name in WAYS}
        found["accuracy"][str(size)] = scores
        for seed in seeds:
            began = time.perf_counter()
            rows = np.random.default_rng(seed + 1).choice(pool, size, replace=False)
            data = ok.Data(
                train=(texts[rows], labels[rows]),
                validation=(texts[validation], labels[validation]),
                test=(texts[test], labels[test]),
            )
            model = _model(vocabulary, seed)
            for name, arguments in WAYS.items():
                augment = [] if arguments is None else [ok.AugmentText(**arguments)]
                train = ok.FineTune(epochs=_EPOCHS, learning_rate=1e-3, patience=_PATIENCE)
                result = ok.Pipeline([*augment, train], seed=seed).run(
                    model, data, progress=False, measure=plain
                )
                scores[name].append(result.report.final.accuracy)
            keras.backend.clear_session()
            took = time.perf_counter() - began
            print(f"{size} sentences, seed {seed}: {took:.0f} s", file=sys.stderr, flush=True)
    return found


def speed() -> float:
    """Sentences a second that the defaults change, on one core, synonyms looked up before."""
    import numpy as np

    import optkit as ok
    from optkit.text import NEGATIONS, augment_texts, bare, synonyms_from

    texts = np.array([text.encode() for text in sentences()[0][:2000]], dtype=object)
    (item,) = ok.AugmentText().amend(ok.Recipe()).augment
    synonyms = synonyms_from("wordnet")
    for word in {word for text in texts for word in text.decode().split()}:
        synonyms(bare(word))

    def once(seed: int) -> float:
        return common.seconds_of(
            lambda: augment_texts(
                texts, (0, seed), item.words, synonyms=synonyms, keep=NEGATIONS, share=item.share
            )
        )

    return len(texts) / common.median([once(seed) for seed in range(5)])


def _interval(values: Sequence[float]) -> str:
    """The mean with a 95 % interval (Student's t), where there is more than one value."""
    import numpy as np
    from scipy import stats

    mean = float(np.mean(values))
    if len(values) < 2 or np.ptp(values) == 0:
        return f"{mean:+.1f}"
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{mean:+.1f} ({mean - half:+.1f} – {mean + half:+.1f})"


def _rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for size, scores in found["accuracy"].items():
        for name, values in scores.items():
            mean = 100 * sum(values) / len(values)
            spread = f"{mean:.1f} ({100 * min(values):.1f} – {100 * max(values):.1f})"
            pairs = zip(values, scores["off"], strict=True)
            change = "" if name == "off" else _interval([100 * (a - b) for a, b in pairs])
            rows.append((size, name, spread, change))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints the table; returns the exit status."""
    parser = common.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=4, help="number of seeds")
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 2000])
    options = parser.parse_args(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("optkit").setLevel(logging.ERROR)  # that an untrained model is untrained
    seeds = range(1 if options.quick else options.seeds)
    sizes = options.sizes[:1] if options.quick else options.sizes

    found = measure(sizes, seeds) | {"sentences_per_second": speed()}
    header = ("sentences", "augmentation", "accuracy, %", "against off, points")
    print(common.table(header, _rows(found)))
    print(
        f"\nOn {found['sentences']['test']} test sentences, {found['positive']:.1%} of them positive: "
        f"mean over {len(seeds)} seed{'s' * (len(seeds) != 1)} (smallest – largest); the difference "
        "is within a seed, with a 95 % interval over the seeds. The defaults change "
        f"{found['sentences_per_second']:,.0f} sentences a second on one core."
    )
    if options.json is not None:
        common.write_json(
            options.json,
            {"name": "text_augmentation", **found, "environment": common.environment()},
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
