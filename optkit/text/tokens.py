"""Changes of sequences of token ids, in TensorFlow: masking, swap, deletion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optkit.runtime import tensorflow

__all__ = ["TokenRates", "augment_tokens"]


@dataclass(frozen=True)
class TokenRates:
    """How much of a sequence changes.

    Attributes:
        mask: Chance of a token to give way to the mask.
        swap: Chance of a token to change places with another one.
        delete: Chance of a token to be left out.
    """

    mask: float = 0.0
    swap: float = 0.0
    delete: float = 0.0


def augment_tokens(
    tokens: Any,
    seed: Any,
    rates: TokenRates,
    *,
    padding: int = 0,
    mask: int | None = None,
    keep: tuple[int, ...] = (),
    share: float = 1.0,
) -> Any:
    """Changes each sequence of a batch at random, by a seed: mask, swap, delete, in this order.

    Padding is not touched. What deletion frees becomes padding, at the beginning of sequences that
    are padded there, else at their end. No sequence has all its tokens masked or deleted: one that
    is not in ``keep`` stays.

    Args:
        tokens: Whole numbers of shape ``(batch, length)``.
        seed: Integer tensor of shape ``(2,)``; equal seeds give equal changes.
        rates: How much.
        padding: The token that fills sequences up.
        mask: The token that stands for a masked one.
        keep: Tokens that are not changed, moved or deleted, such as those that begin and end.
        share: Share of the sequences that are changed at all.

    Returns:
        Sequences of the same shape and dtype.
    """
    tf = tensorflow()
    tokens = tf.convert_to_tensor(tokens)
    before = tokens
    keys = tf.random.split(seed, 5)
    free = tokens != tf.cast(padding, tokens.dtype)
    for token in keep:
        free &= tokens != tf.cast(token, tokens.dtype)
    if mask is not None and rates.mask:
        hit = _chosen(free, rates.mask, keys[0])
        tokens = tf.where(hit, tf.cast(mask, tokens.dtype), tokens)
    if rates.swap:  # among free places alone, so these stay the free ones
        tokens = _swapped(tokens, free, rates.swap, keys[1], keys[2])
    if rates.delete:
        telling = free if mask is None else free & (tokens != tf.cast(mask, tokens.dtype))
        gone = _chosen(free, rates.delete, keys[3], spare=telling)
        tokens = _deleted(tokens, gone, tf.cast(padding, tokens.dtype))
    if share < 1:
        changed = tf.random.stateless_uniform(tf.shape(tokens)[:1], keys[4]) < share
        tokens = tf.where(changed[:, None], tokens, before)
    return tf.ensure_shape(tokens, before.shape)


def _chosen(free: Any, rate: float, key: Any, spare: Any = None) -> Any:
    """Free tokens by chance; where it would take all, or all of those to spare, all but one."""
    tf = tensorflow()
    draws = tf.random.stateless_uniform(tf.shape(free), key)
    hit = free & (draws < rate)
    spared = free
    if spare is not None:
        spared = tf.where(tf.reduce_any(spare, axis=1, keepdims=True), spare, free)
    left = tf.reduce_any(spared & ~hit, axis=1, keepdims=True)
    # The token with the largest draw stays: which one it is follows from chance alone.
    highest = tf.argmax(tf.where(spared, draws, -1.0), axis=1, output_type=tf.int32)
    spared = tf.one_hot(highest, tf.shape(free)[1], on_value=True, off_value=False, dtype=tf.bool)
    return hit & (left | ~spared)


def _swapped(tokens: Any, free: Any, rate: float, order_key: Any, pair_key: Any) -> Any:
    """Free tokens in pairs drawn at random, each pair swapped by chance."""
    tf = tensorflow()
    length = tf.shape(tokens)[1]
    draws = tf.random.stateless_uniform(tf.shape(tokens), order_key)
    # Free places come first, in random order; neighbours in it are the pairs.
    order = tf.argsort(tf.where(free, draws, 2.0), axis=1, stable=True)
    ranks = tf.range(length)
    partners = tf.minimum(tf.bitwise.bitwise_xor(ranks, 1), length - 1)
    paired = tf.gather(free, order, batch_dims=1)
    paired &= tf.gather(paired, partners, axis=1) & (partners != ranks)[None]
    chances = tf.random.stateless_uniform(tf.shape(tokens), pair_key)
    swap = paired & (tf.gather(chances, ranks // 2, axis=1) < rate)
    drawn = tf.gather(tokens, order, batch_dims=1)
    moved = tf.where(swap, tf.gather(drawn, partners, axis=1), drawn)
    return tf.gather(moved, tf.argsort(order, axis=1), batch_dims=1)


def _deleted(tokens: Any, gone: Any, padding: Any) -> Any:
    """The tokens that stay, closed up, padded where the sequence has its padding."""
    tf = tensorflow()
    length = tf.shape(tokens)[1]
    before = (tokens[:, :1] == padding) & (tokens[:, -1:] != padding)
    aside = tf.where(before, -1, length)
    places = tf.where(gone, aside, tf.range(length)[None])
    order = tf.argsort(places, axis=1, stable=True)
    return tf.gather(tf.where(gone, padding, tokens), order, batch_dims=1)
