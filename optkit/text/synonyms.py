"""Where synonyms come from: WordNet through nltk, or what the user gives."""

from __future__ import annotations

import functools
import importlib.util
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optkit.errors import PipelineError
from optkit.text.words import bare

__all__ = ["STOP_WORDS", "Synonyms", "find_wordnet", "synonyms_from"]

#: English words that WordNet has other meanings of than a text has: it knows "a" as a unit of
#: length, "he" as a gas and "in" as a metal.
STOP_WORDS = frozenset(
    {
        *("a", "an", "the", "this", "that", "these", "those", "such", "same", "own", "other"),
        *("i", "me", "my", "mine", "myself", "we", "us", "our", "ours", "ourselves"),
        *("you", "your", "yours", "yourself", "he", "him", "his", "himself", "she", "her", "hers"),
        *("herself", "it", "its", "itself", "they", "them", "their", "theirs", "themselves"),
        *("who", "whom", "whose", "which", "what", "when", "where", "why", "how", "there", "here"),
        *("am", "is", "are", "was", "were", "be", "been", "being", "has", "have", "had", "having"),
        *("do", "does", "did", "doing", "done", "will", "would", "shall", "should", "can"),
        *("could", "may", "might", "must", "ought", "and", "or", "but", "if", "because", "as"),
        *("while", "until", "though", "although", "than", "then", "so", "too", "very", "just"),
        *("of", "at", "by", "for", "with", "about", "against", "between", "into", "through"),
        *("during", "before", "after", "above", "below", "to", "from", "up", "down", "in", "out"),
        *("on", "off", "over", "under", "again", "once", "all", "any", "both", "each", "few"),
        *("more", "most", "some", "only", "no", "nor", "not", "ever", "never", "also", "yet"),
        *("s", "t", "d", "ll", "m", "re", "ve", "one", "two", "ones"),
    }
)

_REMEMBERED = 200_000  # words; more than a large training text has
_SENSES = 2  # of a word, the most common ones: what is rare is seldom what was meant


class Synonyms:
    """Looks synonyms up, one word at a time and each word once, from any thread.

    Args:
        look_up: Function of a word in small letters to its synonyms.
        source: What it is, for messages.
    """

    def __init__(self, look_up: Callable[[str], Any], source: str):
        self.source = source
        self._look_up = look_up
        # Readers of files, and functions of the user's, are seldom safe to call from two threads.
        self._lock = threading.Lock()
        self._remembered = functools.lru_cache(_REMEMBERED)(self._found)

    def __call__(self, word: str) -> tuple[str, ...]:
        """The synonyms of a word, none of them the word itself."""
        return self._remembered(word)

    def _found(self, word: str) -> tuple[str, ...]:
        with self._lock:
            found = self._look_up(word)
        if found is None:
            return ()
        if isinstance(found, str) or not all(isinstance(item, str) for item in found):
            raise PipelineError(
                f"`synonyms` must give a list of strings for each word. For {word!r} it gave "
                f"{found!r}."
            )
        return tuple(item for item in found if item.strip() and item.lower() != word)


def synonyms_from(given: str | Mapping[str, Sequence[str]] | Callable[[str], Any]) -> Synonyms:
    """Synonyms from what the user gave: ``"wordnet"``, a mapping, or a function.

    Raises:
        PipelineError: If it is WordNet, and nltk or its data are missing.

    Example:
        >>> synonyms_from({"Good": ["fine", "good"]})("good")
        ('fine',)
    """
    if isinstance(given, str):
        return _wordnet(find_wordnet())
    if isinstance(given, Mapping):
        # Asked for as they are looked up; one of signs alone is never asked for.
        plain = {bare(word): tuple(options) for word, options in given.items()}
        return Synonyms(lambda word: plain.get(word, ()), "a mapping")
    return Synonyms(given, "a function")


def find_wordnet() -> Any:
    """Where nltk finds WordNet; nothing is loaded.

    Raises:
        PipelineError: If nltk or the data are missing, with how to get them.
    """
    if importlib.util.find_spec("nltk") is None:
        raise PipelineError(
            "Synonyms from WordNet need the package nltk, which is not installed: "
            "`pip install 'optkit[text]'`. Or give `synonyms=` a mapping or a function, or None."
        )
    from nltk import data

    for place in ("corpora/wordnet", "corpora/wordnet.zip/wordnet/"):
        try:
            return data.find(place)
        except LookupError:
            continue
    raise PipelineError(
        "nltk finds no WordNet. Get it with `python -m nltk.downloader wordnet`, or set the "
        "environment variable NLTK_DATA, before Python starts, to the folder that holds "
        "corpora/wordnet. Looked in: "
        f"{', '.join(map(str, data.path))}. Or give `synonyms=` a mapping or a function, or None."
    )


def _wordnet(root: Any) -> Synonyms:
    """WordNet's synonyms; the files are read once in a process."""
    with _LOADING:
        return _read_wordnet(str(root), root)


_LOADING = threading.Lock()
_READ: dict[str, Synonyms] = {}


def _read_wordnet(name: str, root: Any) -> Synonyms:
    if name not in _READ:
        from nltk.corpus.reader.wordnet import WordNetCorpusReader

        # A reader of our own: nltk's shared one loads itself on first use, in whatever thread
        # that is. Without the other languages, which are not asked for, it warns.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            reader = WordNetCorpusReader(root, None)
        # How often each sense of a word is met, read at once: `Lemma.count` searches the file.
        with reader.open("cntlist.rev") as file:
            counts = {parts[0]: int(parts[-1]) for line in file if (parts := line.split())}
        _READ[name] = Synonyms(functools.partial(_of_wordnet, reader, counts), "WordNet")
    return _READ[name]


def _of_wordnet(reader: Any, counts: Mapping[str, int], word: str) -> tuple[str, ...]:
    """Single words with a common meaning of a word, the most common meanings first.

    Names are left out, as what has the name of a thing is seldom that thing: "Jean" is no trouser.
    """
    if word in STOP_WORDS or not word.isalpha():
        return ()
    senses = []
    for synset in reader.synsets(word):
        base = reader.morphy(word, synset.pos()) or word
        lemmas = synset.lemmas()
        met = [counts.get(lemma.key(), 0) for lemma in lemmas if lemma.name() == base]
        if met:
            senses.append((met[0], {word, base}, [lemma.name() for lemma in lemmas]))
    senses.sort(key=lambda sense: -sense[0])  # stable: WordNet's order where counts are equal
    found: dict[str, None] = {}
    for _, own, names in senses[:_SENSES]:
        found |= {
            name: None for name in names if name.isalpha() and name.islower() and name not in own
        }
    return tuple(found)
