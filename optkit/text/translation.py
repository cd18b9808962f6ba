"""Back-translation through a translator of the user's: in batches, retried, each text once."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from optkit.errors import OptkitError, first_line

__all__ = ["BackTranslation"]

Translator = Callable[[list[str]], Sequence[str]]


class BackTranslation:
    """Texts, and what a translator makes of them there and back.

    Kept in memory, and in a file where one is given: then nothing is asked for twice, also not by
    the next process, and what was done before a failure is not lost.

    Args:
        there: Function of a list of texts to their translations.
        back: Function of these to texts in the first language.
        batch_size: Texts a call.
        retries: How often a call that failed is made again.
        wait: Seconds before the first retry; before each further one twice as long.
        path: SQLite file to keep translations in; it is made where it is missing.

    Example:
        >>> def louder(texts):
        ...     return [text.upper() for text in texts]
        >>> def backwards(texts):
        ...     return [text[::-1] for text in texts]
        >>> BackTranslation(louder, backwards)(["abc"])
        {'abc': 'CBA'}
    """

    def __init__(
        self,
        there: Translator,
        back: Translator,
        *,
        batch_size: int = 32,
        retries: int = 3,
        wait: float = 1.0,
        path: Path | None = None,
    ):
        self.there, self.back, self.batch_size = there, back, batch_size
        self.retries, self.wait, self.path = retries, wait, path
        self._known: dict[str, str] = {}
        self._lock = threading.Lock()

    def __call__(self, texts: Iterable[str]) -> dict[str, str]:
        """The texts with their back-translations; of empty ones, the texts themselves.

        Raises:
            OptkitError: If the translator fails again and again, or gives something else than one
                text for each.
        """
        wanted = list(dict.fromkeys(text for text in texts if text.strip()))
        with self._lock, self._file() as file:
            missing = [text for text in wanted if text not in self._known]
            if file is not None:
                self._known |= _stored(file, missing)
                missing = [text for text in missing if text not in self._known]
            for start in range(0, len(missing), self.batch_size):
                batch = missing[start : start + self.batch_size]
                done = f"{start} of {len(missing)} texts were translated before"
                found = self._call("back", self._call("there", batch, done), done)
                new = {a: b if b.strip() else a for a, b in zip(batch, found, strict=True)}
                self._known |= new
                if file is not None:
                    with file:
                        file.executemany("INSERT OR REPLACE INTO texts VALUES (?, ?)", new.items())
            return {text: self._known[text] for text in wanted}

    def _call(self, which: str, texts: list[str], done: str) -> list[str]:
        for attempt in range(self.retries + 1):
            try:
                found = getattr(self, which)(list(texts))
                break
            except Exception as error:
                if attempt == self.retries:
                    raise OptkitError(
                        f"The translator ({which}) failed {attempt + 1} times on a batch of "
                        f"{len(texts)} texts; {done}. The last error: {first_line(error)}"
                    ) from error
                seconds = self.wait * 2**attempt
                logging.getLogger("optkit").warning(
                    "translator (%s) failed on %d texts, once more in %g s: %s",
                    *(which, len(texts), seconds, first_line(error)),
                )
                time.sleep(seconds)
        return _texts(which, found, len(texts))

    @contextlib.contextmanager
    def _file(self) -> Iterator[sqlite3.Connection | None]:
        if self.path is None:
            yield None
            return
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=60)) as file:
                file.execute(
                    "CREATE TABLE IF NOT EXISTS texts (text TEXT PRIMARY KEY, translated TEXT)"
                )
                yield file
        except sqlite3.Error as error:
            raise OptkitError(
                f"The file of translations {str(self.path)!r} cannot be used: {error}. Name a file "
                "that optkit made, or one that does not exist yet."
            ) from error


def _texts(which: str, found: Any, count: int) -> list[str]:
    """What a translator gave, if it is one text for each."""
    told = f"The translator ({which}) must give a list of {count} texts for {count} texts."
    if isinstance(found, str) or not hasattr(found, "__len__"):
        raise OptkitError(f"{told} It gave {found!r:.200} (of type {type(found).__name__}).")
    if len(found) != count:
        raise OptkitError(f"{told} It gave {len(found)}.")
    for item in found:
        if not isinstance(item, str):
            raise OptkitError(
                f"{told} Among them is {item!r:.200} (of type {type(item).__name__})."
            )
    return [str(item) for item in found]


def _stored(file: sqlite3.Connection, texts: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for start in range(0, len(texts), 500):  # SQLite takes so many at a time
        part = texts[start : start + 500]
        marks = ", ".join("?" * len(part))
        query = f"SELECT text, translated FROM texts WHERE text IN ({marks})"
        found |= dict(file.execute(query, part).fetchall())
    return found
