"""`AugmentText`: words and tokens change as often as the rates say, and nothing else does."""

from __future__ import annotations

import collections
import inspect
import json
import pydoc
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import optkit as ok
from optkit import text as work
from optkit.fingerprint import fingerprint
from optkit.text import (
    NEGATIONS,
    BackTranslation,
    TokenRates,
    WordRates,
    augment_texts,
    augment_tokens,
    bare,
    change_words,
    synonyms_from,
)

NO_WORDS = {"replace": 0.0, "insert": 0.0, "delete": 0.0, "swap": 0.0}
FAST = ok.Measure(latency_seconds=0, memory=False)


def _rng(seed=0):
    return np.random.default_rng(seed)


def _near(found, rate, draws):
    """Whether a share is what a rate says, within five standard deviations of a binomial one."""
    assert abs(found - rate) <= 5 * np.sqrt(rate * (1 - rate) / draws), (found, rate)


WORDS = [f"w{i}" for i in range(40)]
DOUBLES = {word: [f"{word}-one", f"{word}-two"] for word in WORDS[::2]}  # half of them have some


# ------------------------------------------------------------------------------------------ words


def test_replacement_takes_the_share_of_the_known_words_that_the_rate_says():
    runs = 500
    hits, chosen = 0, collections.Counter()
    for seed in range(runs):
        new = change_words(WORDS, _rng(seed), WordRates(replace=0.2), synonyms_from(DOUBLES))
        assert len(new) == len(WORDS)
        for old, word in zip(WORDS, new, strict=True):
            if word != old:
                assert word in DOUBLES[old]
                hits += 1
                chosen[word[-3:]] += 1
    _near(hits / (runs * len(DOUBLES)), 0.2, runs * len(DOUBLES))
    _near(chosen["one"] / hits, 0.5, hits)


def test_a_synonym_takes_over_capitals_and_punctuation():
    synonyms = synonyms_from({"good": ["fine"], "film": ["movie"]})
    words = ["Good", '"GOOD"', "(film,", "film's", "bad!"]
    new = change_words(words, _rng(), WordRates(replace=1.0), synonyms)
    assert new == ["Fine", '"FINE"', "(movie,", "film's", "bad!"]


def test_insertion_adds_the_share_that_the_rate_says_and_keeps_the_order():
    added = []
    for seed in range(500):
        new = change_words(WORDS, _rng(seed), WordRates(insert=0.1), synonyms_from(DOUBLES))
        assert [word for word in new if word in WORDS] == WORDS
        options = {option for some in DOUBLES.values() for option in some}
        assert {word for word in new if word not in WORDS} <= options
        added.append(len(new) - len(WORDS))
    _near(np.mean(added) / len(WORDS), 0.1, 500 * len(WORDS))


def test_nothing_is_inserted_where_no_word_has_synonyms():
    new = change_words(["a", "b"], _rng(), WordRates(insert=1.0), synonyms_from({"c": ["d"]}))
    assert new == ["a", "b"]


@pytest.mark.parametrize("count", [2, 7, 40])
def test_swaps_are_permutations_and_move_the_share_that_the_rate_says(count):
    runs, moved = 2000, 0
    for seed in range(runs):
        new = change_words(WORDS[:count], _rng(seed), WordRates(swap=0.3))
        assert sorted(new) == sorted(WORDS[:count])
        moved += sum(a != b for a, b in zip(WORDS, new, strict=False))
    pairs = runs * (count // 2)  # of an odd number, one word is alone
    _near(moved / 2 / pairs, 0.3, pairs)


def test_deletion_keeps_the_order_and_takes_the_share_that_the_rate_says():
    lost = 0
    for seed in range(500):
        new = change_words(WORDS, _rng(seed), WordRates(delete=0.15))
        places = [WORDS.index(word) for word in new]
        assert places == sorted(places)
        lost += len(WORDS) - len(new)
    _near(lost / (500 * len(WORDS)), 0.15, 500 * len(WORDS))


def test_a_text_is_never_emptied():
    left = collections.Counter()
    for seed in range(300):
        (word,) = change_words(["one", "two", "three"], _rng(seed), WordRates(delete=1.0))
        left[word] += 1
    _near(left["one"] / 300, 1 / 3, 300)
    assert change_words([], _rng(), WordRates(0.5, 0.5, 0.5, 0.5), synonyms_from({})) == []


def test_what_is_kept_is_neither_replaced_nor_moved_nor_deleted():
    words = ["It", "is", "NOT", "good,", "isn’t", "it"]
    synonyms = synonyms_from({"not": ["hardly"], "good": ["fine"], "isn't": ["is"]})
    for seed in range(50):
        new = change_words(words, _rng(seed), WordRates(1.0, 0.0, 1.0, 0.0), synonyms, NEGATIONS)
        assert (new[2], new[4]) == ("NOT", "isn’t")
        new = change_words(words, _rng(seed), WordRates(delete=1.0), None, NEGATIONS)
        assert new == ["NOT", "isn’t"]


def test_words_of_signs_are_kept_too():
    keep = work.kept_words(["C++", ":(", "don’t"])
    words = ["I", "don't", "like", "C++", ":(", "Don’t,"]
    rng = np.random.default_rng(0)
    found = [change_words(words, rng, WordRates(delete=0.9), keep=keep) for _ in range(20)]
    for changed in found:
        assert [word for word in changed if word in {"don't", "C++", ":(", "Don’t,"}] == [
            "don't",
            "C++",
            ":(",
            "Don’t,",
        ]
    assert any("like" not in changed for changed in found)


def test_keys_of_a_mapping_are_found_as_words_are():
    assert synonyms_from({"Don’t": ["never"]})("don't") == ("never",)


def test_words_are_looked_up_without_what_encloses_them():
    assert [bare(word) for word in ['"Don’t!"', "co-op.", "--", "É"]] == ["don't", "co-op", "", "é"]


# ------------------------------------------------------------------------------------------ texts

RATES = WordRates(0.3, 0.2, 0.3, 0.2)


def _encoded(texts):
    return np.array([text.encode() for text in texts], dtype=object)


def test_equal_seeds_give_equal_texts_and_a_text_does_not_depend_on_the_others():
    texts = _encoded([" ".join(WORDS[i:]) for i in range(10)])
    settings = {"synonyms": synonyms_from(DOUBLES)}
    first = augment_texts(texts, (3, 7), RATES, **settings)
    assert first.tolist() == augment_texts(texts, (3, 7), RATES, **settings).tolist()
    others = texts.copy()
    others[1:] = b"something else"
    assert augment_texts(others, (3, 7), RATES, **settings)[0] == first[0]
    for seed in ((3, 8), (4, 7)):
        assert augment_texts(texts, seed, RATES, **settings).tolist() != first.tolist()
    # Equal texts of a batch are changed in different ways.
    same = augment_texts(np.repeat(texts[:1], 10), (3, 7), RATES, **settings)
    assert len(set(same)) == 10


def test_the_share_that_is_not_changed_stays_byte_for_byte():
    text = b"two  blanks,\ta tab "
    texts = np.full(2000, text, dtype=object)
    new = augment_texts(texts, (0, 1), WordRates(delete=1.0), share=0.3)
    assert {item for item in new if item != text} <= {b"two", b"blanks,", b"a", b"tab"}
    _near(np.mean(new != text), 0.3, 2000)
    assert augment_texts(texts, (0, 1), WordRates(replace=1.0)).tolist() == texts.tolist()


def test_what_is_no_utf8_and_what_is_empty_survives():
    texts = np.array([[b"caf\xe9 \xff au lait"], [b""], ["größer 好".encode()]], dtype=object)
    new = augment_texts(texts, (0, 0), WordRates(swap=1.0))
    assert new.shape == (3, 1)
    assert sorted(new[0, 0].split()) == sorted(texts[0, 0].split())
    assert new[1, 0] == b""
    assert new[2, 0].decode() == "好 größer"


# ----------------------------------------------------------------------------------------- tokens


def _tokens(rows=400, length=30, real=20, *, left=False):
    """Rows of different ids from 10 on, padded with zeros."""
    tokens = np.zeros((rows, length), "int32")
    places = slice(length - real, None) if left else slice(None, real)
    tokens[:, places] = np.arange(10, 10 + real)
    return tokens


def _key(*parts):
    return np.array(parts or (1, 2), "int64")


@pytest.mark.parametrize("left", [False, True])
def test_token_deletion_keeps_the_order_and_pads_where_the_padding_is(left):
    tokens = _tokens(left=left)
    new = augment_tokens(tokens, _key(), TokenRates(delete=0.15)).numpy()
    assert new.dtype == tokens.dtype
    assert new.shape == tokens.shape
    for row in new:
        kept = row[row != 0]
        assert np.all(np.diff(kept) > 0)
        assert np.all((row[-len(kept) :] if left else row[: len(kept)]) == kept)
    _near(1 - np.count_nonzero(new) / (400 * 20), 0.15, 400 * 20)


def test_rows_without_padding_are_padded_at_the_end():
    tokens = _tokens(rows=50, length=20)
    new = augment_tokens(tokens, _key(), TokenRates(delete=0.5)).numpy()
    lengths = np.count_nonzero(new, axis=1)
    assert len(set(lengths)) > 3
    assert all(np.all(row[:n] > 0) for row, n in zip(new, lengths, strict=True))


@pytest.mark.parametrize("real", [1, 2, 7, 20])
def test_token_swaps_are_permutations_of_what_is_no_padding(real):
    tokens = _tokens(rows=2000, real=real)
    new = augment_tokens(tokens, _key(), TokenRates(swap=0.3)).numpy()
    assert np.array_equal(np.sort(new[:, :real], axis=1), tokens[:, :real])
    assert not new[:, real:].any()
    pairs = 2000 * (real // 2)
    if pairs:
        _near(np.count_nonzero(new != tokens) / 2 / pairs, 0.3, pairs)
    else:
        assert np.array_equal(new, tokens)


def test_masks_are_as_many_as_the_rate_says_and_padding_is_not_masked():
    tokens = _tokens()
    new = augment_tokens(tokens, _key(), TokenRates(mask=0.2), mask=1).numpy()
    assert np.array_equal(new == 0, tokens == 0)
    assert set(new[new != tokens]) == {1}
    _near(np.count_nonzero(new == 1) / (400 * 20), 0.2, 400 * 20)


def test_no_row_loses_its_last_token_or_has_all_masked():
    tokens = _tokens(rows=200, real=3)
    deleted = augment_tokens(tokens, _key(), TokenRates(delete=1.0)).numpy()
    assert np.array_equal(np.count_nonzero(deleted, axis=1), np.ones(200))
    assert set(deleted[:, 0]) == {10, 11, 12}
    masked = augment_tokens(tokens, _key(), TokenRates(mask=1.0), mask=1).numpy()
    assert np.array_equal(np.count_nonzero(masked == 1, axis=1), np.full(200, 2))
    empty = np.zeros((2, 5), "int64")
    rates = TokenRates(0.9, 0.9, 0.9)
    assert np.array_equal(augment_tokens(empty, _key(), rates, mask=1), empty)


def test_masking_and_deletion_together_leave_a_token():
    tokens = np.tile([[5, 6, 0]], (400, 1))
    out = augment_tokens(tokens, [1, 2], TokenRates(mask=0.6, delete=0.6), mask=1).numpy()
    assert np.all(np.isin(out, (5, 6)).any(1))
    assert (out == 1).any()


def test_kept_tokens_stay_what_and_where_they_are():
    tokens = _tokens(rows=100, real=8)
    tokens[:, 0], tokens[:, 7] = 2, 3  # those that begin and end
    rates = TokenRates(mask=0.5, swap=1.0)
    new = augment_tokens(tokens, _key(), rates, mask=1, keep=(2, 3)).numpy()
    assert np.all(new[:, 0] == 2)
    assert np.all(new[:, 7] == 3)
    assert np.any(new[:, 1:7] != tokens[:, 1:7])
    short = augment_tokens(tokens, _key(), TokenRates(delete=1.0), keep=(2, 3)).numpy()
    assert np.all(short[:, 0] == 2)
    assert np.all(short[:, 2] == 3)  # one token between them is left


def test_other_padding_and_the_share_of_rows():
    tokens = _tokens(rows=1000)
    tokens[tokens == 0] = 99
    new = augment_tokens(tokens, _key(), TokenRates(delete=1.0), padding=99, share=0.4).numpy()
    changed = np.any(new != tokens, axis=1)
    assert np.all(np.count_nonzero(new[changed] != 99, axis=1) == 1)
    _near(changed.mean(), 0.4, 1000)


# --------------------------------------------------------------------------------------- synonyms


def test_a_function_is_asked_for_each_word_once_and_by_one_thread_at_a_time():
    asked, inside, most = collections.Counter(), [0], [0]

    def look_up(word):
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        asked[word] += 1
        found = [word[::-1], word.upper(), " "]
        inside[0] -= 1
        return found

    source = synonyms_from(look_up)
    found = []
    threads = [
        threading.Thread(target=lambda: found.extend(source(word) for word in WORDS))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 * len(WORDS)
    assert set(found) == {(word[::-1],) for word in WORDS}  # not itself, and nothing empty
    assert most == [1]
    again = asked.total()
    assert source("w1") == ("1w",)
    assert asked.total() == again


@pytest.mark.parametrize("bad", ["one text", [1, 2]])
def test_a_function_that_gives_no_list_of_texts_is_refused(bad):
    with pytest.raises(ok.PipelineError, match="must give a list of strings"):
        synonyms_from(lambda word: bad)("word")


def test_a_missing_package_is_told_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)  # which imports take for a missing package
    with pytest.raises(ok.PipelineError, match=r"pip install 'optkit\[text\]'"):
        work.find_wordnet()


def _without_wordnet(monkeypatch, *places):
    data = pytest.importorskip("nltk.data")
    monkeypatch.setattr(data, "path", [str(place) for place in places])


def test_missing_data_are_told_before_training_with_how_to_get_them(monkeypatch, tmp_path):
    _without_wordnet(monkeypatch, tmp_path)
    model, data = _sentiment(words=("good", "bad"), test=("good", "bad"))
    pipeline = ok.Pipeline([ok.AugmentText(), ok.FineTune(epochs=1)])
    with pytest.raises(ok.PipelineError, match=r"python -m nltk\.downloader wordnet") as told:
        pipeline.check(model, data)
    assert "NLTK_DATA" in str(told.value)
    assert str(tmp_path) in str(told.value)
    # Nothing of it is needed where no synonyms are.
    ok.Pipeline([ok.AugmentText(synonyms=None), ok.FineTune(epochs=1)]).check(model, data)
    ok.Pipeline([ok.AugmentText(replace=0, insert=0), ok.FineTune(epochs=1)]).check(model, data)


_SYNSETS = {
    "noun": [
        (["movie", "film", "moving_picture", "Flick"], [9, 7, 0, 0]),
        (["film"], [5]),
        (["watch", "ticker"], [1, 0]),
        (["watch", "vigil"], [1, 0]),
    ],
    "verb": [(["film", "shoot", "take"], [1, 0, 0]), (["watch", "view"], [9, 0])],
    "adj": [(["nice"], [3]), (["nice", "decent"], [2, 0]), (["nice", "gracious"], [1, 0])],
    "adv": [(["nicely"], [0])],
}


def _tiny_wordnet(folder):
    """A WordNet of a few words, in the format of its files."""
    root = folder / "corpora" / "wordnet"
    root.mkdir(parents=True)
    header = "  1 WordNet 3.0 Copyright, of a few words.  \n"
    counts, senses = [], []
    for number, (part, synsets) in enumerate(_SYNSETS.items(), 1):
        letter = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}[part]
        text, index = header, collections.defaultdict(list)
        for words, met in synsets:
            offset = len(text)
            named = " ".join(f"{word} 0" for word in words)
            frames = " 00" if part == "verb" else ""
            text += f"{offset:08d} {number:02d} {letter} {len(words):02x} {named} 000{frames} | .\n"
            for word, count in zip(words, met, strict=True):
                places = index[word.lower()]
                places.append(offset)
                key = f"{word.lower()}%{number}:{number:02d}:00::"
                senses.append(f"{key} {offset:08d} {len(places)} {count}\n")
                if count:
                    counts.append(f"{key} {len(places)} {count}\n")
        (root / f"data.{part}").write_text(text)
        lines = [
            f"{word} {letter} {len(places)} 0 {len(places)} 0 "
            + " ".join(f"{place:08d}" for place in places)
            + "  \n"
            for word, places in sorted(index.items())
        ]
        (root / f"index.{part}").write_text(header + "".join(lines))
        (root / f"{part}.exc").write_text("")
    (root / "lexnames").write_text(
        "".join(f"{i:02d}\tpart.{i}\t{i}\n" for i in range(len(_SYNSETS) + 1))
    )
    (root / "cntlist.rev").write_text("".join(sorted(counts)))
    (root / "index.sense").write_text("".join(sorted(senses)))


def test_wordnet_is_read_from_its_files(monkeypatch, tmp_path):
    _tiny_wordnet(tmp_path)
    _without_wordnet(monkeypatch, tmp_path)
    source = synonyms_from("wordnet")
    assert source("movies") == ("film",)  # single words in small letters; of the plural, too
    assert source("film") == ("movie",)  # the rarer sense, of the verb, is left out
    assert source("nice") == ("decent",)  # so is the third one
    assert source("watch") == ("view", "ticker")  # the most common senses first, here of the verb
    assert [source(word) for word in ("nicely", "unheard", "a", "3d", "")] == [()] * 5
    assert synonyms_from("wordnet") is source  # read once
    rates = WordRates(replace=1.0)
    assert change_words(["Nice", "movie!"], _rng(), rates, source) == ["Decent", "film!"]


def test_the_real_wordnet():
    pytest.importorskip("nltk")
    try:
        work.find_wordnet()
    except ok.PipelineError:
        pytest.skip("WordNet is not on this machine")
    source = synonyms_from("wordnet")
    assert "film" in source("movie")
    assert "amusing" in source("funny")
    assert "awful" in source("terrible")
    assert source("he") == ()  # which WordNet knows as helium
    assert not any("_" in word or word != word.lower() for word in source("picture"))


# -------------------------------------------------------------------------------- back-translation


class _Translator:
    """Reverses texts on the way there and back; fails as often as told."""

    def __init__(self, failures=0):
        self.failures = failures
        self.calls = []

    def there(self, texts):
        self.calls.append(list(texts))
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no line to the translator")
        return [text[::-1] for text in texts]

    def back(self, texts):
        return [text[::-1].replace("good", "great") for text in texts]


def test_texts_are_translated_in_batches_and_each_once():
    translator = _Translator()
    translate = BackTranslation(translator.there, translator.back, batch_size=3)
    texts = [f"good {i % 5}" for i in range(20)] + ["", "  "]
    assert translate(texts) == {f"good {i}": f"great {i}" for i in range(5)}
    assert [len(call) for call in translator.calls] == [3, 2]
    assert translate(["good 1", "good 9"]) == {"good 1": "great 1", "good 9": "great 9"}
    assert translator.calls[2:] == [["good 9"]]


def test_a_call_that_fails_is_made_again_after_longer_and_longer_waits(monkeypatch):
    waits = []
    monkeypatch.setattr("optkit.text.translation.time.sleep", waits.append)
    translator = _Translator(failures=3)
    translate = BackTranslation(translator.there, translator.back, retries=3, wait=0.5)
    assert translate(["good"]) == {"good": "great"}
    assert waits == [0.5, 1.0, 2.0]


def test_after_that_the_error_says_how_many_texts_and_what_happened():
    translator = _Translator(failures=9)
    translate = BackTranslation(translator.there, translator.back, retries=2, wait=0)
    with pytest.raises(ok.OptkitError, match=r"failed 3 times on a batch of 2 texts") as told:
        translate(["one", "two"])
    assert isinstance(told.value.__cause__, ConnectionError)
    assert "no line to the translator" in str(told.value)
    assert len(translator.calls) == 3


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (lambda texts: texts[:-1], "list of 2 texts for 2 texts. It gave 1"),
        (" ".join, "It gave 'one two'"),
        (lambda texts: [None for _ in texts], "Among them is None"),
        (lambda texts: None, "It gave None"),
    ],
)
def test_what_is_not_one_text_for_each_is_refused_at_once(bad, told):
    calls = []

    def there(texts):
        calls.append(texts)
        return bad(texts)

    with pytest.raises(ok.OptkitError, match=told):
        BackTranslation(there, _Translator().back, retries=3, wait=10)(["one", "two"])
    assert len(calls) == 1


def test_a_text_whose_translation_is_empty_stays():
    translate = BackTranslation(lambda texts: texts, lambda texts: ["" for _ in texts])
    assert translate(["one"]) == {"one": "one"}


def test_a_file_keeps_translations_for_the_next_process_also_of_a_run_that_failed(tmp_path):
    path = tmp_path / "translations.sqlite"
    first = _Translator()

    def tires(texts):
        if len(first.calls) > 1:
            raise ConnectionError("over")
        return first.back(texts)

    broken = BackTranslation(first.there, tires, batch_size=2, retries=0, path=path)
    with pytest.raises(ok.OptkitError, match="2 of 4 texts were translated before"):
        broken(["good 1", "good 2", "good 3", "good 4"])
    second = _Translator()
    translate = BackTranslation(second.there, second.back, path=path)
    assert translate(["good 1", "good 2", "good 3"])["good 2"] == "great 2"
    assert second.calls == [["good 3"]]
    before = path.read_bytes()
    third = _Translator()
    assert len(BackTranslation(third.there, third.back, path=path)(["good 1", "good 3"])) == 2
    assert third.calls == []
    assert path.read_bytes() == before  # reading changes no byte, and so no key of a stage


def test_a_file_that_is_none_of_translations_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("something else entirely" * 100)
    with pytest.raises(ok.OptkitError, match="cannot be used"):
        BackTranslation(_Translator().there, _Translator().back, path=path)(["one"])


# ------------------------------------------------------------------------------------------- pass

_FILLER = ["a", "film", "of", "that", "year", "with", "people", "in", "it"]


def _sentiment(words, test, *, samples=160, shape=(), inputs="string"):
    """A model and texts in which one word, good or bad, makes the label.

    Args:
        words: The good and the bad word of the training texts.
        test: Those of the other texts.
        samples: Training texts.
        shape: Shape of a sample.
        inputs: ``"string"``, or ``"int32"`` for token ids.
    """
    import tf_keras

    layers = tf_keras.layers
    rng = np.random.default_rng(3)

    def part(count, pair):
        label = rng.integers(0, 2, count)
        rows = rng.choice(np.array(_FILLER, object), (count, 6))
        rows[np.arange(count), rng.integers(0, 6, count)] = np.array(pair)[1 - label]
        return np.array([" ".join(row) for row in rows]).reshape(count, *shape), label

    parts = {
        "train": part(samples, words),
        "validation": part(60, test),
        "test": part(100, test),
    }
    tf_keras.utils.set_random_seed(4)
    vectorize = layers.TextVectorization(output_sequence_length=8, name="vectorize")
    vectorize.adapt([" ".join([*words, *test, *_FILLER])])
    if inputs != "string":
        parts = {
            name: (vectorize(x).numpy().astype(inputs), label) for name, (x, label) in parts.items()
        }
        shape = (8,)
    text = tf_keras.Input(shape, dtype=inputs, name="text")
    x = vectorize(text) if inputs == "string" else text
    x = layers.Embedding(vectorize.vocabulary_size(), 8, name="embedding")(x)
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    out = layers.Dense(2, activation="softmax", name="classes")(x)
    model = tf_keras.Model(text, out, name="sentiment")
    model.compile("adam", "sparse_categorical_crossentropy")
    return model, ok.Data(**parts)


def _accuracy(passes, model, data):
    result = ok.Pipeline(passes, seed=2).run(model, data, progress=False, measure=FAST)
    return result.report.final.accuracy, result


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_model_learns_words_that_it_only_knows_as_synonyms(shape):
    model, data = _sentiment(("good", "bad"), ("splendid", "awful"), shape=shape)
    synonyms = {"good": ["splendid"], "bad": ["awful"]}
    train = ok.FineTune(epochs=12, learning_rate=0.05)
    augment = ok.AugmentText(**NO_WORDS | {"synonyms": synonyms, "replace": 0.5})
    taught, result = _accuracy([augment, train], model, data)
    assert taught > 0.97, taught
    if not shape:
        plain, _ = _accuracy([train], model, data)
        assert plain < 0.75, plain  # words that it never saw in training
    (row, _) = result.report.rows
    assert row.status == "recipe"
    assert list(row.notes) == [
        "treats texts: replace 0.5",
        "a mapping has synonyms for 17% of the words of 160 training texts",
    ]


def test_synonyms_that_the_model_does_not_know_are_told():
    model, data = _sentiment(("good", "bad"), ("good", "bad"))
    augment = ok.AugmentText(synonyms={"good": ["splendid"], "bad": ["awful", "film"]})
    _, result = _accuracy([augment, ok.FineTune(epochs=1)], model, data)
    assert "67% of these synonyms are not in the vocabulary" in result.report.rows[0].notes[-1]


def test_back_translation_within_a_pipeline_asks_once_for_each_training_text():
    model, data = _sentiment(("good", "bad"), ("great", "bad"))
    translator = _Translator()
    augment = ok.AugmentText(
        **NO_WORDS, share=1.0, translate=(translator.there, translator.back), translate_share=0.6
    )
    passes = [
        augment,
        ok.FineTune(epochs=12, learning_rate=0.03, patience=None),
        ok.SWA(epochs=2, learning_rate=0.01),
    ]
    accuracy, result = _accuracy(passes, model, data)
    assert result.report.rows[0].notes == ("treats texts: back-translation 0.6",)
    asked = [text for call in translator.calls for text in call]
    assert sorted(asked) == sorted(set(data.train[0]))  # two trainings, and nothing but `train`
    assert accuracy > 0.97


def test_a_translator_that_fails_ends_the_run_with_the_cause():
    model, data = _sentiment(("good", "bad"), ("good", "bad"))
    translator = _Translator(failures=99)
    augment = ok.AugmentText(
        translate=(translator.there, translator.back), synonyms=None, retries=1, retry_wait=0.0
    )
    with pytest.raises(ok.PassError, match="failed 2 times on a batch of 32 texts") as told:
        _accuracy([augment, ok.FineTune(epochs=1)], model, data)
    causes = []
    error = told.value
    while error is not None:
        causes.append(type(error))
        error = error.__cause__
    assert causes[-1] is ConnectionError


def test_equal_seeds_give_equal_texts_in_a_parallel_map_and_labels_stay():
    import tensorflow as tf

    model, data = _sentiment(("good", "bad"), ("good", "bad"))
    augment = ok.AugmentText(synonyms={"film": ["movie", "picture"]}, replace=0.5)
    (item,) = augment.amend(ok.Recipe()).augment
    split = _bound(model, data)

    def epoch(seed):
        change = item.prepare(split, seed)
        batches = (
            split.batches()
            .enumerate()
            .map(
                lambda number, batch: (
                    change(batch[0], tf.stack([tf.constant(seed, tf.int64), number])),
                    batch[1],
                ),
                num_parallel_calls=4,
            )
        )
        texts, labels = zip(*batches.as_numpy_iterator(), strict=True)
        return np.concatenate(texts).tolist(), np.concatenate(labels)

    texts, labels = epoch(5)
    again, _ = epoch(5)
    other, _ = epoch(6)
    assert texts == again
    assert texts != other
    assert np.array_equal(labels, data.train[1])
    plain = [text.encode() for text in data.train[0]]
    changed = np.mean([a != b for a, b in zip(texts, plain, strict=True)])
    assert 0.4 < changed <= 0.9  # a share of 0.8, and some of these by chance in no word
    for text, before in zip(texts, plain, strict=True):  # each word that makes the label is there
        if b"good" in before.split() and len(text.split()) >= len(before.split()):
            assert b"bad" not in text.split()


def _bound(model, data):
    """The training split, as passes get it."""
    seen = []

    class Look(ok.RewritePass):
        """Keeps the split."""

        def check(self, setting):
            seen.append(setting.data.train)

        def rewrite(self, model, context):
            return model

    ok.Pipeline([Look()]).check(model, data)
    return seen[0]


def test_only_the_named_inputs_are_changed():
    import tensorflow as tf
    import tf_keras

    layers = tf_keras.layers
    vectorize = layers.TextVectorization(output_sequence_length=4)
    vectorize.adapt(_FILLER)
    text = tf_keras.Input((), dtype="string", name="text")
    place = tf_keras.Input((1,), dtype="string", name="place")
    number = tf_keras.Input((2,), name="number")
    lookup = layers.StringLookup(vocabulary=["York", "New York"])
    x = layers.GlobalAveragePooling1D()(layers.Embedding(20, 4)(vectorize(text)))
    y = layers.Flatten()(layers.Embedding(4, 2)(lookup(place)))
    out = layers.Dense(1, activation="sigmoid")(layers.Concatenate()([x, y, number]))
    model = tf_keras.Model([text, place, number], out)
    x = {
        "text": np.array(["a film of that year"] * 40),
        "place": np.array([["New York"]] * 40),
        "number": np.random.default_rng(0).normal(size=(40, 2)).astype("float32"),
    }
    data = ok.Data(train=(x, np.arange(40) % 2), test=(x, np.arange(40) % 2))
    augment = ok.AugmentText(synonyms=None, swap=1.0, share=1.0, inputs=["text"])
    _accuracy([augment, ok.FineTune(epochs=1)], model, data)
    (item,) = augment.amend(ok.Recipe()).augment
    tensors = {name: tf.constant(leaf) for name, leaf in x.items()}
    new = item.prepare(_bound(model, data), 0)(tensors, tf.constant(_key()))
    assert np.all(new["place"].numpy() == b"New York")
    assert np.all(new["number"] == x["number"])
    assert len(set(new["text"].numpy())) > 10
    train = ok.FineTune(epochs=1)
    with pytest.raises(ok.PipelineError, match=r"has 3 inputs .*`inputs=\['text'\]`"):
        ok.Pipeline([ok.AugmentText(synonyms=None), train]).check(model, data)
    for inputs, told in [(["title"], "names 'title'"), (["text", "number"], "some of each")]:
        pipeline = ok.Pipeline([ok.AugmentText(synonyms=None, inputs=inputs), train])
        with pytest.raises(ok.PipelineError, match=told):
            pipeline.check(model, data)


def test_token_ids_train_and_the_model_never_sees_what_was_masked_every_time():
    model, data = _sentiment(("good", "bad"), ("good", "bad"), inputs="int32")
    augment = ok.AugmentText(mask_token=1, mask=0.2, delete=0.1)
    accuracy, result = _accuracy([augment, ok.FineTune(epochs=8, learning_rate=0.03)], model, data)
    assert accuracy > 0.97
    (note,) = result.report.rows[0].notes
    assert note == "treats token ids: mask 0.2, swap 0.1, delete 0.1"


def test_docstrings_of_the_standard_library():
    """Real English: which of two kinds of module a sentence is about."""
    import http.client
    import math
    import statistics
    import urllib.request

    import tf_keras

    def sentences(*modules):
        found = []
        for module in modules:
            for _, member in inspect.getmembers(module, callable):
                lines = pydoc.getdoc(member).splitlines()
                found += [line for line in lines if len(line.split()) > 4 and ">>>" not in line]
        return list(dict.fromkeys(found))

    kinds = [sentences(math, statistics), sentences(http.client, urllib.request)]
    count = min(map(len, kinds))
    assert count > 100
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.permutation(np.array(kind, object))[:count] for kind in kinds])
    y = np.repeat([0, 1], count)
    order = rng.permutation(len(x))
    train, test = order[60:], order[:60]
    layers = tf_keras.layers
    tf_keras.utils.set_random_seed(0)
    vectorize = layers.TextVectorization(1000, output_sequence_length=16)
    vectorize.adapt(x[train])
    model = tf_keras.Sequential(
        [
            tf_keras.Input((), dtype="string"),
            vectorize,
            layers.Embedding(1000, 16),
            layers.GlobalAveragePooling1D(),
            layers.Dense(2, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    data = ok.Data(train=(x[train], y[train]), test=(x[test], y[test]))
    augment = ok.AugmentText(synonyms={"return": ["give"], "number": ["value"]})
    accuracy, _ = _accuracy([augment, ok.FineTune(epochs=8, learning_rate=0.03)], model, data)
    assert accuracy > 0.7


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"mask_token": 1}, "`mask_token` is for token ids"),
        ({"padding_token": 2}, "`padding_token` is for token ids"),
        ({"keep": [1]}, "`keep` has token ids"),
        ({"translate": (len, len), "translations": "/no/such/folder/x"}, "which is no folder"),
        ({"synonyms": lambda word: word}, "must give a list of strings"),
    ],
)
def test_what_makes_no_sense_for_texts_is_refused_before_training(arguments, told):
    model, data = _sentiment(("good", "bad"), ("good", "bad"))
    augment = ok.AugmentText(**{"synonyms": None} | arguments)
    with pytest.raises(ok.PipelineError, match=told):
        ok.Pipeline([augment, ok.FineTune(epochs=1)]).check(model, data)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"replace": 0.1}, "`replace` is for texts"),
        ({"insert": 0.1}, "`insert` is for texts"),
        ({"translate": (len, len)}, "`translate` is for texts"),
        ({"synonyms": {"good": ["fine"]}}, "`synonyms` is for texts"),
        ({"keep": ["not"]}, "`keep` has words"),
        ({"mask_token": 5000}, "embeds token ids from 0 to 12"),
        ({"swap": 0, "delete": 0}, "every rate for them is 0"),
    ],
)
def test_what_makes_no_sense_for_token_ids_is_refused_before_training(arguments, told):
    model, data = _sentiment(("good", "bad"), ("good", "bad"), inputs="int32")
    with pytest.raises(ok.PipelineError, match=told):
        ok.Pipeline([ok.AugmentText(**arguments), ok.FineTune(epochs=1)]).check(model, data)


def test_images_and_tables_are_refused(dense):
    from optkit.testing import digits, small_model

    train = ok.FineTune(epochs=1)
    told = r"treats texts \(strings\), or token ids"
    with pytest.raises(ok.PipelineError, match=told):
        ok.Pipeline([ok.AugmentText(), train]).check(small_model(), digits(100))
    for dtype in ("float32", "int64"):  # a table of whole numbers is one, too
        x, y = np.arange(80).reshape(20, 4).astype(dtype), np.arange(20) % 3
        with pytest.raises(ok.PipelineError, match=told):
            ok.Pipeline([ok.AugmentText(), train]).check(
                dense(), ok.Data(train=(x, y), test=(x, y))
            )


def test_token_ids_given_as_floats_are_told_how_to_give_them():
    model, data = _sentiment(("good", "bad"), ("good", "bad"), inputs="float32")
    with pytest.raises(ok.PipelineError, match=r"x.astype\('int32'\)"):
        ok.Pipeline([ok.AugmentText(), ok.FineTune(epochs=1)]).check(model, data)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"replace": 1.5}, r"`replace` must be a number in \[0, 1\]"),
        ({"swap": True}, "`swap` must be a number"),
        ({"share": 0}, r"`share` must be a number in \(0, 1\]"),
        ({"translate_share": 0}, "`translate_share`"),
        ({"translate_batch": 0}, "`translate_batch`"),
        ({"retries": -1}, "`retries`"),
        ({"retry_wait": -1}, "`retry_wait`"),
        ({"mask": 0.1}, "`mask` needs `mask_token`"),
        ({"mask_token": 0}, "both 0"),
        ({"mask_token": 1, "replace": 0.2}, "`replace` is for texts and `mask_token` for token"),
        ({"synonyms": "openthesaurus"}, "`synonyms` must be one of 'wordnet'"),
        ({"synonyms": {"good": "fine"}}, r"`synonyms\['good'\]` must be a list of strings"),
        ({"synonyms": 3}, "`synonyms` must be"),
        ({"synonyms": None, "replace": 0.1}, "needs synonyms, and `synonyms` is None"),
        ({"keep": "not"}, "`keep` must be a list"),
        ({"keep": ["not", 3]}, "mixes words and token ids"),
        ({"translate": len}, "must be a pair"),
        ({"translate": (len, 3)}, "must be a pair"),
        ({"translations": "kept.sqlite"}, "`translate` is None"),
        ({"inputs": "text"}, "`inputs` must be a list of strings"),
        ({"inputs": []}, "`inputs` is empty"),
        (NO_WORDS, "changes nothing"),
    ],
)
def test_wrong_arguments_are_refused(arguments, told):
    with pytest.raises(ok.PipelineError, match=told):
        ok.AugmentText(**arguments)


def test_plain_settings_are_stored_and_functions_are_refused_by_name(tmp_path):
    augment = ok.AugmentText(
        synonyms={"good": ["fine", "nice"]}, replace=0.2, keep=["film"], inputs=["text"]
    )
    path = tmp_path / "pipeline.json"
    ok.Pipeline([augment, ok.FineTune(epochs=1)]).to_json(path)
    assert json.loads(path.read_text())
    again = ok.Pipeline.from_json(path)[0]
    assert again.get_config() == augment.get_config()
    for name, value in {"synonyms": lambda word: [], "translate": (len, len)}.items():
        pipeline = ok.Pipeline([ok.AugmentText(**{name: value}), ok.FineTune(epochs=1)])
        with pytest.raises(ok.PipelineError, match=f"{name}` cannot be stored in JSON"):
            pipeline.to_json(tmp_path / "other.json")


def test_stage_keys_tell_settings_and_functions_apart():
    def upper(texts):
        return [text.upper() for text in texts]

    def lower(texts):
        return [text.lower() for text in texts]

    def of(**arguments):
        return fingerprint(ok.AugmentText(**arguments))

    assert of() == of()
    assert of(replace=0.2) != of()
    assert of(synonyms={"a": ["b"]}) != of(synonyms={"a": ["c"]})
    assert of(translate=(upper, lower)) == of(translate=(upper, lower))
    assert of(translate=(upper, lower)) != of(translate=(upper, upper))


def test_several_passes_add_up_and_the_recipe_is_left_as_it_was():
    recipe = ok.Recipe()
    once = ok.AugmentText(synonyms=None).amend(recipe)
    twice = ok.AugmentText(synonyms=None, swap=0.3).amend(once)
    assert (len(recipe.augment), len(once.augment), len(twice.augment)) == (0, 1, 2)
    assert once.augment[0].stateless


def test_a_split_without_training_data_is_none_of_its_business():
    setting = SimpleNamespace(data=SimpleNamespace(train=None))
    assert ok.AugmentText().check(setting) is None


@pytest.mark.parametrize("texts", [False, True])
def test_words_are_not_moved_away_from_labels_of_their_positions(texts):
    import tf_keras

    layers = tf_keras.layers
    tags = np.random.default_rng(0).integers(0, 2, (40, 6)).astype("int32")
    embed = [layers.Embedding(20, 4), layers.Dense(2, activation="softmax")]
    if texts:
        words = layers.TextVectorization(output_sequence_length=6, vocabulary=WORDS[:10])
        model = tf_keras.Sequential([tf_keras.Input((1,), dtype="string"), words, *embed])
        x = np.array([" ".join(WORDS[:6])] * 40)[:, None]
    else:
        model = tf_keras.Sequential([tf_keras.Input((6,), dtype="int32"), *embed])
        x = np.random.default_rng(1).integers(2, 20, (40, 6)).astype("int32")
    model.compile("sgd", "sparse_categorical_crossentropy")
    data = ok.Data(train=(x, tags))
    moving = ok.AugmentText(synonyms=None) if texts else ok.AugmentText()
    remedy = "Leave it out.$" if texts else "or mask alone"
    with pytest.raises(ok.PipelineError, match=f"would stay where they are. .*{remedy}"):
        ok.Pipeline([moving, ok.FineTune(1)]).check(model, data)
    if not texts:
        masking = ok.AugmentText(mask_token=1, swap=0, delete=0)
        ok.Pipeline([masking, ok.FineTune(1)]).check(model, data)


def test_the_hint_names_an_input_that_can_hold_words():
    import tf_keras

    age, city = tf_keras.Input((1,), name="age"), tf_keras.Input((3,), name="city", dtype="int32")
    known = tf_keras.layers.Flatten()(tf_keras.layers.Embedding(9, 2)(city))
    both = tf_keras.layers.Concatenate()([age, known])
    model = tf_keras.Model([age, city], tf_keras.layers.Dense(2, activation="softmax")(both))
    x = {"age": np.zeros((8, 1), "f4"), "city": np.ones((8, 3), "int32")}
    with pytest.raises(ok.PipelineError, match=r"`inputs=\['city'\]`"):
        ok.Pipeline([ok.AugmentText(), ok.FineTune(1)]).check(
            model, ok.Data(train=(x, np.arange(8) % 2))
        )
