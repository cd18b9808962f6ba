"""Zip archives, HDF5 files and folders from elsewhere, looked through before anything reads them.

What is looked for: names that lead out of the archive, links to other files, and claims of sizes
that the file cannot hold, which would take up the memory before anybody could say no.
"""

from __future__ import annotations

import functools
import io
import json
import math
import os
import shutil
import stat
import zipfile
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from optkit.errors import ModelError

__all__ = [
    "allowed_bytes",
    "check_folder",
    "check_hdf5",
    "copy_folder",
    "escapes",
    "read_json",
    "repack",
    "zip_names",
]

_MEGABYTE = 2**20
_ASSETS = "assets/"
# What a file may claim beyond what it holds: enough for any model stored compressed, as zeros of a
# pruned one are, and little enough for any machine.
_FREE_BYTES = 256 * _MEGABYTE
_EXPANSION = 100
_JSON_BYTES = 128 * _MEGABYTE
_MEMBERS = 100_000
_DEPTH = 64
_FILTERS = frozenset({1, 2, 3, 4, 5, 6, 32000})  # those that HDF5 and h5py bring themselves


def allowed_bytes(stored: int) -> int:
    """How much a file of that many bytes may claim to hold."""
    return _FREE_BYTES + _EXPANSION * stored


def zip_names(archive: zipfile.ZipFile, path: Path) -> list[str]:
    """The names in an archive, once they and their sizes are known to be harmless.

    Raises:
        ModelError: For names that lead out of it, links, doubles, encryption, and sizes that the
            file cannot hold.
    """
    entries = archive.infolist()
    if len(entries) > _MEMBERS:
        raise ModelError(
            f"{str(path)!r} is refused: it claims {len(entries):,} entries, and no Keras file has "
            f"more than {_MEMBERS:,}. Save the model again."
        )
    times = Counter(entry.filename for entry in entries)
    for entry in entries:
        reason = _bad_entry(entry)
        if reason is None and times[entry.filename] > 1:
            reason = "it is there twice"
        if reason is not None:
            raise ModelError(
                f"{str(path)!r} is refused: its entry {entry.filename[:80]!r} cannot be in a file "
                f"that Keras wrote: {reason}. Nothing was unpacked. Get the file from its source "
                "again, or save the model again."
            )
    _refuse_claim(path, sum(entry.file_size for entry in entries), path.stat().st_size)
    return list(times)


def _bad_entry(entry: zipfile.ZipInfo) -> str | None:
    name = entry.filename
    if escapes(name) or "\\" in name:
        return "its name leads out of the archive"
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "it is a link"
    if entry.flag_bits & 0x1:
        return "it is encrypted"
    return None


def escapes(name: str) -> bool:
    """Whether a relative name leads out of the folder that it is relative to."""
    parts = PurePosixPath(name).parts
    return not parts or parts[0] == "/" or ".." in parts or ":" in parts[0] or "\0" in name


def _refuse_claim(path: Path, claimed: int, stored: int) -> None:
    if claimed > allowed_bytes(stored):
        raise ModelError(
            f"{str(path)!r} is refused: it claims {claimed / _MEGABYTE:,.0f} MB of content, and the "
            f"file has {stored / _MEGABYTE:,.3f} MB. Such a file fills the memory when it is read. "
            "Get it from its source again, or save the model again."
        )


def read_json(content: bytes, name: str, path: Path) -> Any:
    """What a JSON text holds.

    Raises:
        ModelError: If it is none, or too long or too deep to be a model's.
    """
    if len(content) > _JSON_BYTES:
        raise ModelError(
            f"{str(path)!r} is refused: its {name} has {len(content) / _MEGABYTE:,.0f} MB, more "
            f"than the {_JSON_BYTES // _MEGABYTE} MB that a description of layers may have."
        )
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"{str(path)!r} cannot be read: its {name} is no valid JSON ({error}). The file is "
            "damaged: get it from its source again, or save the model again."
        ) from error


def repack(archive: zipfile.ZipFile, target: Path, replaced: dict[str, bytes]) -> None:
    """Copies an archive, its parts checked on the way, with some of them replaced.

    A copy that nobody else has is what is read then: what was looked at is what Keras gets. Parts are
    stored as they are; where Python cannot read two of such at a time, as tf_keras does with the
    weights of a model that has vocabularies, they are wrapped so that it can.

    Args:
        archive: The archive, whose names have been checked.
        target: The file to write.
        replaced: New content by name.

    Raises:
        zipfile.BadZipFile: If a part is damaged.
    """
    assets = any(name.startswith(_ASSETS) for name in archive.namelist())
    form = zipfile.ZIP_DEFLATED if assets and _loses_its_place() else zipfile.ZIP_STORED
    # Level 0 wraps without compressing.
    with zipfile.ZipFile(target, "w", compression=form, compresslevel=0) as copy:
        for entry in archive.infolist():
            if entry.is_dir():
                continue
            if entry.filename in replaced:
                copy.writestr(entry.filename, replaced[entry.filename])
                continue
            large = entry.file_size >= zipfile.ZIP64_LIMIT
            with (
                archive.open(entry) as source,
                copy.open(entry.filename, "w", force_zip64=large) as place,
            ):
                shutil.copyfileobj(source, place, _MEGABYTE)


@functools.cache
def _loses_its_place() -> bool:
    """Whether reading one stored part of an archive moves the place where another is read.

    That is so in Python 3.12 before 3.12.9 and in 3.13 before 3.13.2 (CPython issue 127847): a seek
    goes from where the file is, not from where the part was read last.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("one", b"1" * 20_000 + b"2")
        archive.writestr("other", b"3" * 20_000)
    with zipfile.ZipFile(buffer) as archive, archive.open("one") as one:
        one.read(1)
        archive.read("other")
        one.seek(20_000)
        try:
            return one.read(1) != b"2"
        except EOFError:
            return True


def check_hdf5(path: Path) -> None:
    """Refuses an HDF5 file that reaches out of itself or claims more than it holds.

    Raises:
        ModelError: With what was found.
    """
    import h5py

    with h5py.File(path, "r") as file:
        claimed, seen = 0, set()
        groups: list[tuple[Any, int]] = [(file["/"], 0)]
        while groups:
            group, depth = groups.pop()
            _check_attributes(group, path)
            for name in group:
                place = f"{group.name.rstrip('/')}/{name}"
                link = group.get(name, getlink=True)
                if not isinstance(link, h5py.HardLink):
                    raise _refused(path, place, f"it is a link ({type(link).__name__})")
                item = group[name]
                address = h5py.h5o.get_info(item.id).addr
                if address in seen:
                    raise _refused(path, place, "it is in the file under two names")
                seen.add(address)
                if len(seen) > _MEMBERS or depth > _DEPTH:
                    raise _refused(path, place, "there are more parts in the file than models have")
                if isinstance(item, h5py.Group):
                    groups.append((item, depth + 1))
                elif isinstance(item, h5py.Dataset):
                    _check_attributes(item, path)
                    claimed += _claim(item, path, place)
                else:
                    raise _refused(path, place, f"it is a {type(item).__name__}")
        _refuse_claim(path, claimed, path.stat().st_size)


def _claim(dataset: Any, path: Path, place: str) -> int:
    """How many bytes an array takes up when it is read."""
    if dataset.is_virtual or dataset.external:
        raise _refused(path, place, "its values are taken from another file")
    if dataset.dtype.hasobject and dataset.dtype.kind != "O":
        raise _refused(path, place, f"its type {dataset.dtype} is none that weights have")
    creation = dataset.id.get_create_plist()
    filters = {creation.get_filter(k)[0] for k in range(creation.get_nfilters())}
    if not filters <= _FILTERS:
        raise _refused(path, place, f"it needs filters {sorted(filters - _FILTERS)} to be unpacked")
    return math.prod(dataset.shape or ()) * int(dataset.dtype.itemsize)


def _check_attributes(item: Any, path: Path) -> None:
    import h5py

    for name in item.attrs:
        attribute = h5py.h5a.open(item.id, name.encode())
        size = math.prod(attribute.shape or ()) * int(attribute.get_type().get_size())
        if size > path.stat().st_size:
            raise _refused(path, f"{item.name}@{name}", "it claims to be larger than the file")


def _refused(path: Path, place: str, reason: str) -> ModelError:
    return ModelError(
        f"{str(path)!r} is refused: {place[:120]!r} in it cannot be in a file that Keras wrote: "
        f"{reason}. Get the file from its source again, or save the model again."
    )


def check_folder(folder: Path) -> None:
    """Refuses a folder in which something is neither a file of its own nor a folder.

    Raises:
        ModelError: For links that lead out of it, pipes, devices, and too many files.
    """
    root = folder.resolve()
    count = 0
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            count += 1
            item = Path(place) / name
            if item.is_symlink() and not item.resolve().is_relative_to(root):
                raise ModelError(
                    f"The folder {str(folder)!r} is refused: {str(item.relative_to(folder))!r} is "
                    f"a link to {os.readlink(item)!r}, outside of the folder. If you put it there, "
                    "copy the folder with what is behind the links (`cp -rL`) and load the copy."
                )
            if not (item.is_dir() or item.is_file()):
                raise ModelError(
                    f"The folder {str(folder)!r} is refused: {str(item.relative_to(folder))!r} is "
                    "neither a file nor a folder."
                )
        if count > _MEMBERS:
            raise ModelError(
                f"The folder {str(folder)!r} is refused: it holds more than {_MEMBERS:,} files, and "
                "no model does. Name the model's own folder."
            )


def copy_folder(source: Path, target: Path) -> None:
    """Copies a folder; links within it become what they lead to.

    Raises:
        ModelError: If it holds what a model's folder cannot.
    """
    check_folder(source)
    try:
        shutil.copytree(source, target, symlinks=False)
    except OSError as error:
        raise ModelError(f"The folder {str(source)!r} cannot be read: {error}.") from error
