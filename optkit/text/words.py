"""Changes of the words of texts: synonyms in their place, insertion, swap, deletion."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "NEGATIONS",
    "WordRates",
    "augment_texts",
    "bare",
    "change_words",
    "is_kept",
    "kept_words",
    "texts_of",
]

#: English words that turn a sentence into its opposite: without them it has another label.
NEGATIONS = frozenset(
    {
        *("no", "nor", "not", "never", "none", "nobody", "nothing", "neither", "nowhere"),
        *("without", "hardly", "barely", "cannot", "can't", "couldn't", "don't", "doesn't"),
        *("didn't", "isn't", "aren't", "wasn't", "weren't", "won't", "wouldn't", "shouldn't"),
        *("hasn't", "haven't", "hadn't", "ain't"),
    }
)

#: What stands around the word within what blanks enclose: quotes, brackets, commas.
_PARTS = re.compile(r"^(\W*)(.*?)(\W*)$", re.DOTALL)

Lookup = Callable[[str], Sequence[str]]


@dataclass(frozen=True)
class WordRates:
    """How much of a text changes.

    Attributes:
        replace: Chance of a word that has synonyms to give way to one of them.
        insert: Synonyms inserted, as a share of the words.
        swap: Chance of a word to change places with another one.
        delete: Chance of a word to be left out.
    """

    replace: float = 0.0
    insert: float = 0.0
    swap: float = 0.0
    delete: float = 0.0


@functools.lru_cache(2**17)  # every word of every text is looked at, each time it is shown
def bare(word: str) -> str:
    """A word without what encloses it, in small letters, as it is looked up.

    >>> bare('("Don’t!"'), bare("--")
    ("don't", '')
    """
    return _PARTS.sub(r"\2", word).lower().replace("’", "'")


def kept_words(keep: Sequence[Any] | None) -> frozenset[str]:
    """Words that nothing happens to, as `is_kept` wants them; ``None`` for `NEGATIONS`."""
    if keep is None:
        return NEGATIONS
    return frozenset(str(word).lower().replace("’", "'") for word in keep)


def is_kept(word: str, keep: frozenset[str]) -> bool:
    """Whether nothing happens to a word: as it stands, or without what encloses it.

    >>> keep = frozenset({"not", "c++"})
    >>> is_kept("Not,", keep), is_kept("C++", keep), is_kept("note", keep)
    (True, True, False)
    """
    return bare(word) in keep or word.lower().replace("’", "'") in keep


def change_words(
    words: Sequence[str],
    rng: np.random.Generator,
    rates: WordRates,
    synonyms: Lookup | None = None,
    keep: frozenset[str] = frozenset(),
) -> list[str]:
    """Changes the words of one text at random: replace, insert, swap, delete, in this order.

    A text never loses its last word.

    Args:
        words: The words, with the punctuation that hangs on them.
        rng: What chance is drawn from.
        rates: How much.
        synonyms: Function of a word in small letters to its synonyms; ``None`` where neither
            `WordRates.replace` nor `WordRates.insert` asks for some.
        keep: Words in small letters that are not replaced, moved or deleted; see `is_kept`.

    Example:
        >>> import numpy as np
        >>> rates = WordRates(replace=1.0)
        >>> change_words(["A", "Good", "film!"], np.random.default_rng(0), rates,
        ...              {"good": ["fine"], "film": ["movie"]}.get)
        ['A', 'Fine', 'movie!']
    """
    found = list(words)
    if synonyms is not None and rates.replace:
        for place in np.flatnonzero(rng.random(len(found)) < rates.replace):
            if options := _options(found[place], synonyms, keep):
                found[place] = _dressed(options[int(rng.integers(len(options)))], found[place])
    if synonyms is not None and rates.insert:
        _insert(found, rng, int(rng.binomial(len(found), rates.insert)), synonyms, keep)
    if rates.swap:
        free = np.array([i for i, word in enumerate(found) if not is_kept(word, keep)], np.int64)
        order = rng.permutation(free)
        chosen = rng.random(len(order) // 2) < rates.swap
        for pair in np.flatnonzero(chosen):
            one, other = order[2 * pair], order[2 * pair + 1]
            found[one], found[other] = found[other], found[one]
    if rates.delete and found:
        lost = rng.random(len(found)) < rates.delete
        left = [w for w, gone in zip(found, lost, strict=True) if not gone or is_kept(w, keep)]
        found = left or [found[rng.integers(len(found))]]
    return found


def _options(word: str, synonyms: Lookup, keep: frozenset[str]) -> Sequence[str]:
    plain = bare(word)
    return () if not plain or is_kept(word, keep) else synonyms(plain) or ()


def _insert(
    found: list[str],
    rng: np.random.Generator,
    count: int,
    synonyms: Lookup,
    keep: frozenset[str],
) -> None:
    """Inserts synonyms of words of the text itself, each at any place."""
    known = list(found)
    for _ in range(count):
        for place in rng.permutation(len(known)):
            if options := _options(known[place], synonyms, keep):
                chosen = options[int(rng.integers(len(options)))]
                found.insert(int(rng.integers(len(found) + 1)), chosen)
                break
        else:
            return  # no word of it has any


def _dressed(synonym: str, word: str) -> str:
    """A synonym with the capitals and the punctuation of the word that it stands for."""
    match = _PARTS.match(word)
    before, plain, after = match.groups() if match else ("", word, "")
    if len(plain) > 1 and plain.isupper():
        synonym = synonym.upper()
    elif plain[:1].isupper():
        synonym = synonym[:1].upper() + synonym[1:]
    return f"{before}{synonym}{after}"


def augment_texts(
    texts: np.ndarray,
    seed: Sequence[int],
    rates: WordRates,
    *,
    synonyms: Lookup | None = None,
    keep: frozenset[str] = frozenset(),
    share: float = 1.0,
    translations: Mapping[str, str] | None = None,
    translate_share: float = 0.0,
) -> np.ndarray:
    """Changes each text of a batch at random, by a seed. What is not changed stays byte for byte.

    Args:
        texts: Texts in UTF-8, an array of ``bytes`` of any shape.
        seed: Whole numbers; equal seeds give equal changes, a text's do not depend on the others.
        rates: How much.
        synonyms: See `change_words`.
        keep: See `change_words`.
        share: Share of the texts that are changed at all.
        translations: What stands for a text that is back-translated.
        translate_share: Share of the changed texts that are back-translated first.
    """
    base = [int(part) % 2**64 for part in seed]
    changed = np.empty(texts.size, object)
    for number, raw in enumerate(texts.ravel()):
        rng = np.random.Generator(np.random.PCG64([*base, number]))
        changed[number] = raw
        if rng.random() >= share:
            continue
        text = raw.decode("utf-8", "surrogateescape")
        if translations is not None and rng.random() < translate_share:
            text = translations.get(text, text)
        words = text.split()
        new = change_words(words, rng, rates, synonyms, keep)
        if new != words:
            text = " ".join(new)
        changed[number] = text.encode("utf-8", "surrogateescape")
    return changed.reshape(texts.shape)


def texts_of(batch: Any) -> list[str]:
    """The texts of an array, as Python's; what is not in UTF-8 is left out."""
    found = []
    for item in np.asarray(batch, dtype=object).ravel():
        try:
            found.append(item.decode("utf-8") if isinstance(item, bytes) else str(item))
        except UnicodeDecodeError:
            continue
    return found
