"""`AugmentText`: shows the training variants of its texts, or of its token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optkit import _validate
from optkit.base import RecipePass
from optkit.context import Context, Setting, State
from optkit.data import Split
from optkit.errors import ArgumentTypeError, PipelineError
from optkit.models import TensorInfo, signature
from optkit.recipe import Recipe
from optkit.runtime import tensorflow
from optkit.text import (
    BackTranslation,
    Synonyms,
    TokenRates,
    WordRates,
    augment_texts,
    augment_tokens,
    bare,
    find_wordnet,
    kept_words,
    synonyms_from,
    texts_of,
)

__all__ = ["AugmentText"]

_RATES = {"replace": 0.1, "insert": 0.05, "delete": 0.05, "swap": 0.1, "mask": 0.1}
_LOOKED_AT = 200  # texts, for the note and for what can be refused

#: What means nothing for the other kind of input.
_OF_TEXTS = ("replace", "insert", "translate", "translations")
_OF_TOKENS = ("mask", "mask_token", "padding_token")


class AugmentText(RecipePass):
    """Augments the texts of the trainings that follow, on the fly, the training split only.

    Use it for text classifiers with few training texts. Texts are strings, of shape ``(batch,)`` or
    ``(batch, 1)``, that the model vectorizes itself, as with a ``TextVectorization`` layer; each is
    changed anew every time it is seen: words give way to synonyms, synonyms are inserted, words
    change places and are left out (EDA), and whole texts are translated there and back. For models
    that take token ids (whole numbers of shape ``(batch, length)``), tokens are masked, swapped and
    deleted. Which of the two it is, the data say. Labels stay as they are.

    Args:
        synonyms: Where synonyms come from: ``"wordnet"`` (English; through nltk, of
            ``optkit[text]``), a mapping of words in small letters to lists of synonyms, a function
            of a word to a list of synonyms, or ``None`` to do without.
        replace: Chance of a word that has synonyms to give way to one, in ``[0, 1]``. Here and for
            the next four ``None`` means the default, 0 leaves it out. Default 0.1; texts only.
        insert: Synonyms of the text's own words that are inserted, as a share of the words, in
            ``[0, 1]``. Default 0.05; texts only.
        delete: Chance of a word or token to be left out, in ``[0, 1]``. Default 0.05. The last one
            always stays.
        swap: Chance of a word or token to change places with another one, in ``[0, 1]``. Default
            0.1.
        mask: Chance of a token to give way to ``mask_token``, in ``[0, 1]``. Default 0.1 where
            that is given; token ids only.
        share: Share of the samples that are changed at all, in ``(0, 1]``; the others are shown as
            they are.
        keep: Words in small letters, or token ids, that are never replaced, moved, masked or
            deleted. ``None`` means English negations for texts, and nothing for token ids.
        mask_token: Token id of the mask, for example that of unknown words.
        padding_token: Token id that fills sequences up. It is not touched; what deletion frees
            becomes padding.
        translate: A pair of functions ``(there, back)``, each of a list of strings to a list of
            strings; ``None`` for no back-translation. Training texts are sent before a training
            begins, each once.
        translate_share: Share of the changed texts that are back-translated first, in ``(0, 1]``.
        translate_batch: Texts in one call of the translator, at least 1.
        translations: File to keep translations in (SQLite; made where it is missing), so that
            another run need not ask again; ``None`` keeps them as long as the pass lives. Give
            each translator a file of its own.
        retries: How often a call of the translator that raised is made again, at least 0.
        retry_wait: Seconds before the first retry, at least 0; each further wait is twice as long.
        inputs: Names of the inputs to change, of a model with several.

    Example:
        >>> import numpy as np, optkit as ok, tf_keras
        >>> x = np.array(["a fine film", "what a dull film", "truly fine", "dull and long"] * 10)
        >>> vectorize = tf_keras.layers.TextVectorization(output_sequence_length=5)
        >>> vectorize.adapt(x)
        >>> model = tf_keras.Sequential([
        ...     tf_keras.Input((), dtype="string"),
        ...     vectorize,
        ...     tf_keras.layers.Embedding(vectorize.vocabulary_size(), 4),
        ...     tf_keras.layers.GlobalAveragePooling1D(),
        ...     tf_keras.layers.Dense(1, activation="sigmoid"),
        ... ])
        >>> data = ok.Data(train=(x, np.array([1, 0, 1, 0] * 10)), test=(x[:4], np.array([1, 0, 1, 0])))
        >>> augment = ok.AugmentText(synonyms={"fine": ["good"], "dull": ["boring"]}, replace=0.3)
        >>> result = ok.Pipeline([augment, ok.FineTune(epochs=2)]).run(model, data)
        >>> [row.status for row in result.report.rows]
        ['recipe', 'ok']

    References:
        Wei and Zou, "EDA: Easy Data Augmentation Techniques for Boosting Performance on Text
        Classification Tasks", 2019.
        Sennrich, Haddow and Birch, "Improving Neural Machine Translation Models with Monolingual
        Data", 2016.
        Miller, "WordNet: A Lexical Database for English", 1995.
    """

    def __init__(
        self,
        *,
        synonyms: str | Mapping[str, Sequence[str]] | Callable[[str], Any] | None = "wordnet",
        replace: float | None = None,
        insert: float | None = None,
        delete: float | None = None,
        swap: float | None = None,
        mask: float | None = None,
        share: float = 0.8,
        keep: Sequence[str] | Sequence[int] | None = None,
        mask_token: int | None = None,
        padding_token: int = 0,
        translate: tuple[Callable[..., Any], Callable[..., Any]] | None = None,
        translate_share: float = 0.5,
        translate_batch: int = 32,
        translations: Any = None,
        retries: int = 3,
        retry_wait: float = 1.0,
        inputs: Sequence[str] | None = None,
    ):
        self.synonyms = synonyms
        self.replace = replace
        self.insert = insert
        self.delete = delete
        self.swap = swap
        self.mask = mask
        self.share = share
        self.keep = keep
        self.mask_token = mask_token
        self.padding_token = padding_token
        self.translate = translate
        self.translate_share = translate_share
        self.translate_batch = translate_batch
        self.translations = translations
        self.retries = retries
        self.retry_wait = retry_wait
        self.inputs = inputs
        self._validate()
        self._back_translation = self._translator()

    def _validate(self) -> None:
        for name in _RATES:
            _validate.optional(_validate.number, name, getattr(self, name), minimum=0, maximum=1)
        for name in ("share", "translate_share"):
            _validate.number(name, getattr(self, name), minimum=0, maximum=1, exclusive="min")
        _validate.integer("translate_batch", self.translate_batch, minimum=1)
        _validate.integer("retries", self.retries, minimum=0)
        _validate.number("retry_wait", self.retry_wait, minimum=0)
        _validate.optional(_validate.integer, "mask_token", self.mask_token, minimum=0)
        _validate.integer("padding_token", self.padding_token, minimum=0)
        if self.inputs is not None and not _validate.texts("inputs", self.inputs):
            raise PipelineError("`inputs` is empty. Name the inputs to change, or give None.")
        _validate.optional(_validate.path, "translations", self.translations)
        self._validate_synonyms()
        self._validate_keep()
        self._validate_translate()
        if self.mask and self.mask_token is None:
            raise PipelineError(
                "`mask` needs `mask_token`, the token id that stands for a masked token: for "
                "example that of unknown words, which is 1 for a TextVectorization layer."
            )
        if self.mask_token is not None and self.mask_token == self.padding_token:
            raise PipelineError(
                f"`mask_token` and `padding_token` are both {self.mask_token}: a masked token would "
                "be taken for padding. Give another `mask_token`."
            )
        of_texts, of_tokens = self._asked(_OF_TEXTS), self._asked(_OF_TOKENS)
        if of_texts and of_tokens:
            raise PipelineError(
                f"`{of_texts[0]}` is for texts and `{of_tokens[0]}` for token ids; a pass treats one "
                "of them. Leave out what does not fit the model's input."
            )
        rates = (self._words(), self._tokens())
        if not any(any(vars(rate).values()) for rate in rates) and self.translate is None:
            raise PipelineError("Every rate is 0, so AugmentText changes nothing. Leave it out.")

    def _validate_synonyms(self) -> None:
        given = self.synonyms
        if isinstance(given, str):
            _validate.one_of("synonyms", given, ("wordnet",))
        elif isinstance(given, Mapping):
            for word, options in given.items():
                _validate.text("a word of `synonyms`", word)
                _validate.texts(f"synonyms[{word!r}]", options)
        elif given is not None and (not callable(given) or isinstance(given, type)):
            raise ArgumentTypeError(
                "`synonyms` must be 'wordnet', a mapping of words to lists of synonyms, a function "
                f"of a word to such a list, or None. Received: {given!r} (of type "
                f"{type(given).__name__})."
            )
        for name in ("replace", "insert"):
            if given is None and getattr(self, name):
                raise PipelineError(
                    f"`{name}={getattr(self, name)}` needs synonyms, and `synonyms` is None. Give "
                    "some, or leave it out."
                )

    def _validate_keep(self) -> None:
        if self.keep is None:
            return
        if isinstance(self.keep, str) or not isinstance(self.keep, Sequence | set | frozenset):
            raise ArgumentTypeError(
                "`keep` must be a list of words or of token ids. Received: "
                f"{self.keep!r} (of type {type(self.keep).__name__})."
            )
        words = [isinstance(item, str) for item in self.keep]
        if any(words) and not all(words):
            raise ArgumentTypeError(f"`keep` mixes words and token ids: {self.keep!r}.")
        if not any(words):
            for item in self.keep:
                _validate.integer("keep", item, minimum=0)

    def _validate_translate(self) -> None:
        pair = self.translate
        if pair is None:
            if self.translations is not None:
                raise PipelineError(
                    "`translations` keeps what a translator gives, and `translate` is None. Give "
                    "the pair of functions."
                )
            return
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(map(callable, pair)):
            raise ArgumentTypeError(
                "`translate` must be a pair (there, back) of functions, each of a list of strings to "
                f"a list of strings. Received: {pair!r} (of type {type(pair).__name__})."
            )

    def _asked(self, names: Sequence[str]) -> list[str]:
        """Those of some parameters that were given, and are not the same as left out."""
        neutral: dict[str, Any] = {"padding_token": 0}
        return [
            name
            for name in names
            if (value := getattr(self, name)) is not None
            and value != neutral.get(name)
            and not (name in _RATES and value == 0)
        ]

    def _rate(self, name: str) -> float:
        value = getattr(self, name)
        return float(_RATES[name] if value is None else value)

    def _words(self) -> WordRates:
        known = self.synonyms is not None
        return WordRates(
            replace=self._rate("replace") if known else 0.0,
            insert=self._rate("insert") if known else 0.0,
            swap=self._rate("swap"),
            delete=self._rate("delete"),
        )

    def _tokens(self) -> TokenRates:
        mask = self._rate("mask") if self.mask_token is not None else 0.0
        return TokenRates(mask=mask, swap=self._rate("swap"), delete=self._rate("delete"))

    def _translator(self) -> BackTranslation | None:
        """What remembers translations, so that it lives as long as the pass."""
        if self.translate is None:
            return None
        there, back = self.translate
        path = self.translations
        return BackTranslation(
            there,
            back,
            batch_size=self.translate_batch,
            retries=self.retries,
            wait=self.retry_wait,
            path=None if path is None else _validate.path("translations", path),
        )

    def _needs_synonyms(self) -> bool:
        rates = self._words()
        return self.synonyms is not None and bool(rates.replace or rates.insert)

    def check(self, setting: Setting) -> None:
        """Refuses what is neither texts nor token ids, options of the other, missing WordNet."""
        split = setting.data.train
        if split is None:
            return
        chosen = _treated(split, self.inputs)
        head = split.head(_LOOKED_AT)[0]
        batches = {info.name: _part(head, info) for info in chosen}
        texts = [batch.dtype.kind in "OSU" for batch in batches.values()]
        self._refuse_positions(setting, texts=any(texts))
        if all(texts):
            self._check_texts(batches)
        elif any(texts):
            raise PipelineError(
                "AugmentText treats texts or token ids, and the inputs "
                f"{', '.join(batches)} are some of each. Use two passes, each with its `inputs`."
            )
        else:
            for info in chosen:
                self._check_tokens(info, batches[info.name], setting.model)

    def _refuse_positions(self, setting: Setting, *, texts: bool) -> None:
        """Refuses to move words whose positions have targets of their own, which would stay."""
        split, tokens = setting.data.train, self._tokens()
        if split is None or setting.model is None or len(split.inputs) != 1:
            return  # of several inputs, another one may be what the positions are of
        if not texts and not (tokens.swap or tokens.delete):
            return
        length = split.inputs[0].shape[1] if len(split.inputs[0].shape) > 1 else None
        for info in signature(setting.model).outputs:
            trained = info.name in setting.loss.each or "" in setting.loss.each
            per_position = len(info.shape) > 2 and (texts or info.shape[1] in (None, length))
            if trained and per_position:
                remedy = "Leave it out"
                if not texts:
                    remedy += ", or mask alone: `AugmentText(mask_token=…, swap=0, delete=0)`"
                raise PipelineError(
                    f"AugmentText moves and drops words, and the output {info.name!r} has a target "
                    f"for each position (shape {info.shape}): they would stay where they are. "
                    f"{remedy}."
                )

    def _check_texts(self, batches: dict[str, np.ndarray]) -> None:
        told = "The model takes texts, and"
        if wrong := self._asked(_OF_TOKENS):
            raise PipelineError(f"{told} `{wrong[0]}` is for token ids. Leave it out.")
        if self.keep and not isinstance(next(iter(self.keep)), str):
            raise PipelineError(f"{told} `keep` has token ids. Give words.")
        path = None if self.translations is None else Path(self.translations).absolute()
        if path is not None and not path.parent.is_dir():
            raise PipelineError(
                f"`translations` names a file in {str(path.parent)!r}, which is no folder. Make it."
            )
        if not self._needs_synonyms():
            return
        if isinstance(self.synonyms, str):
            find_wordnet()
            return
        source = synonyms_from(self.synonyms) if self.synonyms is not None else None
        for word in {bare(word) for batch in batches.values() for word in _words_of(batch)}:
            if source is not None and word:
                source(word)  # a function that fails is refused here, not within the training

    def _check_tokens(self, info: TensorInfo, batch: np.ndarray, model: Any) -> None:
        sizes = _embedding_sizes(model)
        whole = batch.dtype.kind in "iu"
        if not whole or batch.ndim != 2 or not (sizes or info.dtype.startswith(("int", "uint"))):
            hint = (
                " If they are token ids, give them as whole numbers: `x.astype('int32')`."
                if sizes and batch.ndim == 2 and not whole
                else ""
            )
            raise PipelineError(
                "AugmentText treats texts (strings), or token ids: whole numbers of shape (batch, "
                f"length) that the model embeds. Its input {info.name!r} has shape {info.shape} and "
                f"dtype {info.dtype}, the data have dtype {batch.dtype}.{hint or ' Leave it out.'}"
            )
        told = "The model takes token ids, and"
        if wrong := self._asked(_OF_TEXTS):
            raise PipelineError(f"{told} `{wrong[0]}` is for texts. Leave it out.")
        if self.synonyms not in ("wordnet", None):
            raise PipelineError(f"{told} `synonyms` is for texts. Leave it out.")
        if self.keep and isinstance(next(iter(self.keep)), str):
            raise PipelineError(f"{told} `keep` has words. Give token ids.")
        if not any(vars(self._tokens()).values()):
            raise PipelineError(f"{told} every rate for them is 0. Leave AugmentText out.")
        if self.mask_token is not None and sizes and self.mask_token >= max(sizes):
            raise PipelineError(
                f"`mask_token` is {self.mask_token}, and the model embeds token ids from 0 to "
                f"{max(sizes) - 1}. Give one of these, for example that of unknown words."
            )

    def apply(self, state: State, context: Context) -> State:
        """Amends the recipe, and notes what is treated and how much of it is known."""
        split = context.data.train
        if split is not None:
            self._tell(split, context)
        return super().apply(state, context)

    def _tell(self, split: Split, context: Context) -> None:
        head = split.head(_LOOKED_AT)[0]
        batches = [_part(head, info) for info in _treated(split, self.inputs)]
        if batches[0].dtype.kind not in "OSU":
            rates = {name: rate for name, rate in vars(self._tokens()).items() if rate}
            listed = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
            context.note(f"treats token ids: {listed}")
            return
        rates = {name: rate for name, rate in vars(self._words()).items() if rate}
        listed = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
        if self.translate is not None:
            sent = f"back-translation {self.translate_share:g}"
            listed = f"{sent}, {listed}" if listed else sent
        context.note(f"treats texts: {listed}")
        if not self._needs_synonyms() or self.synonyms is None:
            return
        source = synonyms_from(self.synonyms)
        words = [bare(word) for batch in batches for word in _words_of(batch)]
        keep = kept_words(self.keep)
        found = [source(word) if word and word not in keep else () for word in words]
        known = sum(map(bool, found))
        context.note(
            f"{source.source} has synonyms for {known / max(1, len(words)):.0%} of the words of "
            f"{sum(batch.size for batch in batches)} training texts"
        )
        vocabulary = _vocabulary(context.model)
        options = {option.lower() for some in found for option in some}
        if vocabulary and options:
            strange = sum(option not in vocabulary for option in options) / len(options)
            if strange > 0.5:
                context.note(
                    f"{strange:.0%} of these synonyms are not in the vocabulary of the model, to "
                    "which they are one and the same unknown word. Adapt it to more texts"
                )

    def amend(self, recipe: Recipe) -> Recipe:
        """Adds to ``augment``."""
        return recipe.amended(
            augment=_Texts(
                inputs=None if self.inputs is None else tuple(self.inputs),
                words=self._words(),
                synonyms=self.synonyms if self._needs_synonyms() else None,
                keep=None if self.keep is None else tuple(self.keep),
                share=float(self.share),
                back_translation=self._back_translation,
                translate_share=float(self.translate_share),
                tokens=self._tokens(),
                mask_token=self.mask_token,
                padding_token=self.padding_token,
            )
        )


@dataclass(frozen=True)
class _Texts:
    """The settings of an `AugmentText` as part of a recipe."""

    inputs: tuple[str, ...] | None
    words: WordRates
    synonyms: Any
    keep: tuple[Any, ...] | None
    share: float
    back_translation: BackTranslation | None
    translate_share: float
    tokens: TokenRates
    mask_token: int | None
    padding_token: int
    stateless: bool = True

    def prepare(self, split: Split, seed: int) -> Callable[[Any, Any], Any]:
        """Loads synonyms, translates the training texts, and looks at which inputs to change."""
        chosen = _treated(split, self.inputs)
        first = _part(split.head(1)[0], chosen[0])
        change = self._of_texts(split, chosen) if first.dtype.kind in "OSU" else self._of_tokens()

        def run(x: Any, key: Any) -> Any:
            if not isinstance(x, dict):
                return change(x, key)
            changed = {
                info.name: change(x[info.name], key + tensorflow().constant([number, 0], key.dtype))
                for number, info in enumerate(chosen)
            }
            return {**x, **changed}

        return run

    def _of_texts(self, split: Split, chosen: Sequence[TensorInfo]) -> Callable[[Any, Any], Any]:
        synonyms: Synonyms | None = None
        if self.synonyms is not None:
            synonyms = synonyms_from(self.synonyms)
        translations = None
        if self.back_translation is not None:
            translations = self.back_translation(_all_texts(split, chosen))
        keep = kept_words(self.keep)

        def work(texts: np.ndarray, key: np.ndarray) -> np.ndarray:
            return augment_texts(
                texts,
                [int(part) for part in key],
                self.words,
                synonyms=synonyms,
                keep=keep,
                share=self.share,
                translations=translations,
                translate_share=self.translate_share,
            )

        def change(x: Any, key: Any) -> Any:
            tf = tensorflow()
            return tf.ensure_shape(tf.numpy_function(work, [x, key], tf.string), x.shape)

        return change

    def _of_tokens(self) -> Callable[[Any, Any], Any]:
        # There is no control flow of TensorFlow's in it, and looking for some takes a while.
        work = tensorflow().autograph.experimental.do_not_convert(augment_tokens)
        return lambda x, key: work(
            x,
            key,
            self.tokens,
            padding=self.padding_token,
            mask=self.mask_token,
            keep=tuple(int(token) for token in self.keep or ()),
            share=self.share,
        )


def _treated(split: Split, names: Sequence[str] | None) -> list[TensorInfo]:
    """The inputs to change."""
    known = [info.name for info in split.inputs]
    if names is None:
        if len(known) > 1:
            words = [info.name for info in split.inputs if "float" not in info.dtype]
            raise PipelineError(
                f"The model has {len(known)} inputs ({', '.join(known)}), and AugmentText must be "
                f"told which of them are texts or token ids: `inputs=[{[*words, *known][0]!r}]`."
            )
        return list(split.inputs)
    if strange := [name for name in names if name not in known]:
        raise PipelineError(
            f"`inputs` names {strange[0]!r}, and the model's inputs are {', '.join(known)}."
        )
    return [info for info in split.inputs if info.name in names]


def _part(x: Any, info: TensorInfo) -> np.ndarray:
    return np.asarray(x[info.name] if isinstance(x, dict) else x)


def _words_of(batch: np.ndarray) -> Iterator[str]:
    for text in texts_of(batch):
        yield from text.split()


def _all_texts(split: Split, chosen: Sequence[TensorInfo]) -> Iterator[str]:
    """The texts of one pass through a split."""
    for x, _ in split.iterate():
        for info in chosen:
            yield from texts_of(_part(x, info))


def _embedding_sizes(model: Any) -> list[int]:
    """How many tokens each embedding of a model knows."""
    if model is None:
        return []
    return [
        int(layer.input_dim)
        for layer in model._flatten_layers(include_self=False)
        if hasattr(layer, "input_dim") and hasattr(layer, "embeddings")
    ]


def _vocabulary(model: Any) -> set[str]:
    """The words that a model knows that vectorizes texts itself; none for another one."""
    if model is None:
        return set()
    return {
        str(word)
        for layer in model._flatten_layers(include_self=False)
        if type(layer).__name__ == "TextVectorization"
        for word in layer.get_vocabulary()
    }
