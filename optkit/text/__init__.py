"""Work on texts and on sequences of token ids: synonyms, changes of words, back-translation."""

from __future__ import annotations

from optkit.text.synonyms import STOP_WORDS, Synonyms, find_wordnet, synonyms_from
from optkit.text.tokens import TokenRates, augment_tokens
from optkit.text.translation import BackTranslation
from optkit.text.words import (
    NEGATIONS,
    WordRates,
    augment_texts,
    bare,
    change_words,
    kept_words,
    texts_of,
)

__all__ = [
    "NEGATIONS",
    "STOP_WORDS",
    "BackTranslation",
    "Synonyms",
    "TokenRates",
    "WordRates",
    "augment_texts",
    "augment_tokens",
    "bare",
    "change_words",
    "find_wordnet",
    "kept_words",
    "synonyms_from",
    "texts_of",
]
