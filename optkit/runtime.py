"""The one place that touches what a whole process shares: imports with side effects, seeds, policy.

Models are tf_keras (Keras 2) inside, because tensorflow-model-optimization needs that. Importing
tfmot sets ``TF_USE_LEGACY_KERAS``, which would change what ``tf.keras`` means for everybody else in
the process, so it is imported here, after ``tf.keras`` was resolved, and the variable is put back.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import random
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

__all__ = ["derive_seed", "isolated", "keras", "locked", "tensorflow", "tf_keras", "tfmot"]

# Training needs TensorFlow's global seed, and timing needs a quiet process: one run at a time.
_LOCK = threading.RLock()


def tensorflow() -> Any:
    """The ``tensorflow`` module."""
    import tensorflow

    return tensorflow


def tf_keras() -> Any:
    """The ``tf_keras`` module, ready for the calling thread."""
    import tf_keras
    from tf_keras.src.saving import saving_lib

    # Which file format and serialization tf_keras uses is kept by thread, and set in the main one
    # alone; elsewhere it would write the legacy format into `.keras` files.
    if not hasattr(saving_lib._SAVING_V3_ENABLED, "value"):
        saving_lib._SAVING_V3_ENABLED.value = True
    return tf_keras


def keras() -> Any:
    """The ``keras`` module: Keras 3, which tells of models that users bring and take away."""
    import keras

    return keras


def tfmot() -> Any:
    """The ``tensorflow_model_optimization`` module, imported without a trace in the process."""
    tf = tensorflow()
    _ = tf.keras.__version__  # resolves the lazy `tf.keras` before tfmot sets the variable
    with _LOCK:
        before = os.environ.get("TF_USE_LEGACY_KERAS")
        try:
            # What it imports adds filters of its own to those of the process.
            with warnings.catch_warnings():
                import tensorflow_model_optimization
        finally:
            if before is None:
                os.environ.pop("TF_USE_LEGACY_KERAS", None)
            else:
                os.environ["TF_USE_LEGACY_KERAS"] = before
    return tensorflow_model_optimization


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Holds the process-wide lock; a thread that holds it already goes on."""
    with _LOCK:
        yield


def derive_seed(*parts: object) -> int:
    """A seed in ``[0, 2**31)`` that depends on every part, and on nothing else.

    >>> derive_seed(0, 1) == derive_seed(0, 1), derive_seed(0, 1) == derive_seed(0, 2)
    (True, False)
    """
    digest = hashlib.blake2b("\x1f".join(str(part) for part in parts).encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big") % 2**31


def _drop_basic_handlers(root: logging.Logger) -> None:
    """Takes away what absl sets up when it logs first.

    With it there, the caller's own `logging.basicConfig` would do nothing.
    """
    for handler in list(root.handlers):
        form = getattr(handler.formatter, "_fmt", None)
        if type(handler) is logging.StreamHandler and form == logging.BASIC_FORMAT:
            root.removeHandler(handler)


@contextlib.contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Seeds every global generator for the duration and puts all of them back, also on failure.

    Holds the process-wide lock, so that runs in several threads take turns. Restored are the
    global generators of Python, NumPy, TensorFlow and tf_keras, the dtype policies of both Keras,
    the level of TensorFlow's logger, which only tells of errors meanwhile, and a root logger
    without handlers.

    Args:
        seed: The seed to work under, in ``[0, 2**31)``.
    """
    import numpy as np
    from tensorflow.python.eager import context as eager_context
    from tf_keras.src import backend

    keras = tf_keras()
    with _LOCK:
        eager = eager_context.context()
        python_state = random.getstate()
        numpy_state = np.random.get_state()
        # TensorFlow has no public way to read its global seed and what it draws operation seeds
        # from; the latter does not exist before the first seed is set.
        tensorflow_seed, tensorflow_draws = eager._seed, getattr(eager, "_rng", None)
        keras_generator = getattr(backend._SEED_GENERATOR, "generator", None)
        policy = keras.mixed_precision.global_policy()
        keras3 = sys.modules.get("keras")  # where it is not loaded, it has its defaults
        policy3 = keras3.config.dtype_policy() if keras3 is not None else None
        logger = tensorflow().get_logger()
        level = logger.level
        root = logging.getLogger()
        handlers = list(root.handlers)
        try:
            logger.setLevel(logging.ERROR)
            keras.utils.set_random_seed(seed)
            keras.mixed_precision.set_global_policy("float32")
            if keras3 is not None:
                keras3.config.set_dtype_policy("float32")
            yield
        finally:
            logger.setLevel(level)
            if not handlers:
                _drop_basic_handlers(root)
            if keras3 is not None:
                keras3.config.set_dtype_policy(policy3)
            keras.mixed_precision.set_global_policy(policy)
            backend._SEED_GENERATOR.generator = keras_generator
            eager._seed, eager._rng = tensorflow_seed, tensorflow_draws
            np.random.set_state(numpy_state)
            random.setstate(python_state)
