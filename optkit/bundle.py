"""Plain values and arrays in one piece: a file that is whole or not believed, bytes for a wire."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Bundle", "BundleError"]

_MAGIC = b"optkit bundle 1\n"
_LENGTH, _DIGEST = 8, 20


class BundleError(ValueError):
    """What was read is not what was written."""


@dataclass(frozen=True)
class Bundle:
    """Plain values, and arrays by name.

    Attributes:
        values: Plain values, fit for JSON.
        arrays: Arrays of numbers or of texts of bounded length.

    Example:
        >>> import numpy as np
        >>> read = Bundle.from_bytes(Bundle({"epoch": 3}, {"w": np.eye(2)}).to_bytes())
        >>> read.values, read.arrays["w"].tolist()
        ({'epoch': 3}, [[1.0, 0.0], [0.0, 1.0]])
    """

    values: dict[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Everything in one piece, with a checksum at the end."""
        return b"".join(self._parts())

    def write(self, path: Path) -> None:
        """Writes a file, whole or not at all: when this returns, it is on the disk.

        Raises:
            OSError: If it cannot be written.
        """
        temporary = path.with_name(f".new-{secrets.token_hex(8)}")
        try:
            with temporary.open("wb") as file:
                for part in self._parts():
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _parts(self) -> Iterator[Any]:
        arrays = {name: np.asarray(array) for name, array in self.arrays.items()}
        listed = [[name, _kind_of(array), list(array.shape)] for name, array in arrays.items()]
        header = json.dumps({"values": self.values, "arrays": listed}).encode()
        digest = hashlib.blake2b(digest_size=_DIGEST)
        yield _MAGIC
        parts: list[bytes | memoryview] = [len(header).to_bytes(_LENGTH, "little"), header]
        parts += [_bytes_of(array) for array in arrays.values()]
        for part in parts:
            digest.update(part)
            yield part
        yield digest.digest()

    @classmethod
    def from_bytes(cls, content: bytes) -> Bundle:
        """What `to_bytes` gave.

        Raises:
            BundleError: If it is not that.
        """
        body = memoryview(content)[len(_MAGIC) : -_DIGEST]
        if not content.startswith(_MAGIC) or len(content) < len(_MAGIC) + _LENGTH + _DIGEST:
            raise BundleError("it is cut short, or nothing of optkit's")
        if hashlib.blake2b(body, digest_size=_DIGEST).digest() != content[-_DIGEST:]:
            raise BundleError("it is not what was written")
        place = _LENGTH + int.from_bytes(body[:_LENGTH], "little")
        header = json.loads(bytes(body[_LENGTH:place]))
        arrays = {}
        for name, kind, shape in header["arrays"]:
            dtype = np.dtype(kind)
            size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
            # Copied, as what lies in bytes can only be read.
            arrays[name] = np.frombuffer(body[place : place + size], dtype).reshape(shape).copy()
            place += size
        return cls(header["values"], arrays)

    @classmethod
    def read(cls, path: Path) -> Bundle | None:
        """What `write` wrote; ``None`` where there is no file.

        Raises:
            BundleError: If it is not what was written, or cannot be read.
        """
        try:
            return cls.from_bytes(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, TypeError) as error:
            raise BundleError(f"it cannot be read: {error}") from error


def _kind_of(array: np.ndarray) -> str:
    dtype = array.dtype
    return dtype.name if dtype.kind == "V" else dtype.str  # bfloat16 is known by name alone


def _bytes_of(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
