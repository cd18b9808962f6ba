"""The folder that keeps what a run has finished: every stage whole or not at all.

A stage is written under a temporary name, flushed to the disk, and renamed; a process that is
killed at any moment leaves either the stage or nothing. Everything carries checksums, so that a
damaged stage is done again instead of believed.

`Workdir` is what a running pipeline writes through; `Run` is the view that users open.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import html
import json
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from optkit import _validate
from optkit.artifact import Artifact, KerasArtifact, TFLiteArtifact, TreatedArtifact
from optkit.artifact.reading import Terms, read_keras_archive
from optkit.bundle import Bundle
from optkit.constraint import Constraint, constraints_from_arrays, constraints_to_arrays
from optkit.errors import ModelError, OptkitError, PipelineError
from optkit.fingerprint import Unfingerprintable, fingerprint
from optkit.measuring import Measurement
from optkit.models import is_variable
from optkit.report import Report

__all__ = ["HistoryEntry", "Run", "Stage", "StoredStage", "Workdir", "stage_key", "unique_key"]

_LOG = logging.getLogger("optkit")
_FORMAT = 1
_RUN, _LOCK, _STAGES, _REPORT, _PAGE = "run.json", "lock", "stages", "report.json", "report.html"
_CHECKPOINTS = "checkpoints"
_OURS = frozenset({_RUN, _LOCK, _STAGES, _CHECKPOINTS, _REPORT, _PAGE})
_STAGE, _CONSTRAINTS = "stage.json", "constraints.npz"
_MEASURED = "measured-"
_NEW, _OLD = ".new-", ".old-"
_ONCE = "once-"
_KEY_LENGTH = 20
_REMEDIES = {
    errno.ENOSPC: "The disk is full: free some space, or choose a folder on another disk.",
    errno.EDQUOT: "The quota is used up: free some space, or choose a folder elsewhere.",
    errno.EFBIG: "A file would be larger than the system allows: choose a folder elsewhere.",
    errno.EROFS: "It is on a read-only file system: choose a folder elsewhere.",
    errno.EACCES: "Permission is missing: change it, or choose a folder that you may write.",
    errno.EPERM: "Permission is missing: change it, or choose a folder that you may write.",
}


class _DamageError(Exception):
    """What lies on the disk is not what was written."""


class _OtherFormatError(_DamageError):
    """It was written by a version of optkit with another format."""


# ------------------------------------------------------------------------------------------- keys


def stage_key(**parts: Any) -> tuple[str | None, str | None]:
    """The key of a stage, made of everything that its result depends on.

    Args:
        **parts: The parts by name, each a value that `optkit.fingerprint.fingerprint` takes.

    Returns:
        The key and ``None``, or ``None`` and the reason why there is no key.

    Example:
        >>> key, reason = stage_key(seed=1, config={"epochs": 3})
        >>> key == stage_key(config={"epochs": 3}, seed=1)[0], reason
        (True, None)
        >>> stage_key(data=(i for i in ()))
        (None, "data: an object of builtins.generator: cannot pickle 'generator' object")
    """
    found = {}
    for name, part in parts.items():
        try:
            found[name] = fingerprint(part)
        except Unfingerprintable as error:
            return None, f"{name}: {error}"
    return _checksum(json.dumps(found, sort_keys=True).encode()), None


def unique_key() -> str:
    """A key for a stage that has none: it is kept with the run and never found again."""
    return _ONCE + secrets.token_hex(20)


# ---------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class StoredStage:
    """A finished stage, as it was read back.

    Attributes:
        artifact: The artifact.
        constraints: The constraints on it, as a `State` holds them.
        fingerprint: Fingerprint of the artifact when it was written.
        facts: What else was said of it.
    """

    artifact: Artifact
    constraints: dict[tuple[str, str], Constraint]
    fingerprint: str
    facts: dict[str, Any]
    folder: Path

    def measured(self, measure_key: str) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """What was measured of it in that way; ``None`` if nothing was or it is damaged."""
        return _measured_in(self.folder, measure_key)

    def pack(self) -> Bundle:
        """Everything but figures, for another process.

        Raises:
            OptkitError: If it is of a kind that cannot be read back.
        """
        with tempfile.TemporaryDirectory(prefix="optkit-") as folder:
            described = _write_artifact(Path(folder), self.artifact)
            files = {
                f"file/{path.name}": np.frombuffer(path.read_bytes(), np.uint8)
                for path in Path(folder).iterdir()
            }
        values = {
            "kind": self.artifact.kind,
            "artifact": described,
            "fingerprint": self.fingerprint,
            "facts": self.facts,
        }
        constraints = constraints_to_arrays(self.constraints.values())
        return Bundle(
            values, files | {f"constraint/{name}": array for name, array in constraints.items()}
        )

    @classmethod
    def unpack(cls, bundle: Bundle, custom_objects: Mapping[str, Any] | None = None) -> StoredStage:
        """What `pack` gave.

        Args:
            bundle: That.
            custom_objects: As for `Workdir.find`.
        """
        values = bundle.values
        arrays: dict[str, np.ndarray] = {}
        with tempfile.TemporaryDirectory(prefix="optkit-") as folder:
            for place, array in bundle.arrays.items():
                kind, _, name = place.partition("/")
                if kind == "file":
                    (Path(folder) / name).write_bytes(array.tobytes())
                else:
                    arrays[name] = array
            artifact = _read_artifact(Path(folder), values, custom_objects)
        constraints = {(item.path, item.name): item for item in constraints_from_arrays(arrays)}
        return cls(artifact, constraints, values["fingerprint"], values["facts"], Path())


class Workdir:
    """A folder that keeps finished stages, held by one process at a time.

    Args:
        path: The folder; it is made where it is missing.

    Raises:
        PipelineError: If it cannot be written, holds something else, or another run holds it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, Workdir(folder) as workdir:
        ...     print(workdir.find("no such key"))
        None
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = _validate.path("workdir", path)
        if self.path.exists() and not self.path.is_dir():
            raise PipelineError(
                f"`workdir` must be a folder; {str(path)!r} is a file. Name another place."
            )
        with _explained(self.path, PipelineError):
            self.path.mkdir(parents=True, exist_ok=True)
            _refuse_foreign(self.path)
            self._lock = _locked(self.path)
        try:
            with _explained(self.path, PipelineError):
                self._stages = self.path / _STAGES
                self._stages.mkdir(exist_ok=True)
                self._clear_leftovers()
                self._run = self._opened_run()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets the folder go."""
        self._lock.close()

    def _clear_leftovers(self) -> None:
        """Removes what processes that were killed left half done; making one shows it can be."""
        (self._stages / f"{_NEW}{secrets.token_hex(8)}").mkdir()
        checkpoints = self.path / _CHECKPOINTS
        folders = [self.path, self._stages, *self._stages.iterdir()]
        if checkpoints.is_dir():
            folders += [folder for folder in checkpoints.iterdir() if folder.is_dir()]
        for folder in folders:
            for pattern in (f"{_NEW}*", f"{_OLD}*"):
                for found in folder.glob(pattern):
                    _remove(found)

    def _opened_run(self) -> dict[str, Any]:
        fresh: dict[str, Any] = {"current": None, "stages": [], "history": [], "report": None}
        fresh["measure_key"] = None
        path = self.path / _RUN
        if path.exists():
            try:
                return _read_sealed(path)
            except _DamageError as error:
                _LOG.warning(
                    "%s is damaged (%s) and begun anew; the stages are kept, the history is lost",
                    path,
                    error,
                )
        _write_sealed(path, fresh)
        return fresh

    def find(self, key: str, custom_objects: Mapping[str, Any] | None = None) -> StoredStage | None:
        """The stage of that key; ``None`` if there is none that can be relied on.

        Args:
            key: Its key, from `stage_key`.
            custom_objects: Classes of layers and functions by name, for models whose own are not
                registered with Keras.
        """
        folder = self._folder(key)
        if not folder.is_dir():
            return None
        try:
            facts = _verified(folder, key)
        except _DamageError as error:
            _LOG.warning("the stage in %s is damaged (%s) and will be done again", folder, error)
            with _explained(self.path, OptkitError):
                _remove(folder)
            return None
        try:
            artifact = _read_artifact(folder, facts, custom_objects)
            constraints = _read_constraints(folder)
        except Exception as error:
            _LOG.warning(
                "the stage in %s cannot be read back and will be done again: %s", folder, error
            )
            return None
        return StoredStage(artifact, constraints, facts["fingerprint"], facts["facts"], folder)

    def measured(
        self, key: str, measure_key: str
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """What was measured of a stage in that way, without reading the artifact itself."""
        return _measured_in(self._folder(key), measure_key)

    def put(  # noqa: PLR0917
        self,
        key: str,
        name: str,
        artifact: Artifact,
        constraints: Mapping[tuple[str, str], Constraint],
        facts: Mapping[str, Any],
        fingerprint: str,
    ) -> str | None:
        """Keeps a finished stage: when this returns, it is on the disk.

        Args:
            key: Its key.
            name: Name of the stage.
            artifact: What it gave.
            constraints: The constraints on it.
            facts: What else to remember; plain values, fit for JSON.
            fingerprint: Fingerprint of the artifact.

        Returns:
            ``None``, or why such an artifact cannot be kept: the run can go on without.

        Raises:
            OptkitError: If the folder cannot be written: a full disk, missing permission, …
        """
        temporary = self._stages / f"{_NEW}{secrets.token_hex(8)}"
        try:
            with _explained(self.path, OptkitError):
                temporary.mkdir()
                try:
                    described = _write_artifact(temporary, artifact)
                    if constraints:
                        arrays = constraints_to_arrays(constraints.values())
                        np.savez(temporary / _CONSTRAINTS, **arrays)  # type: ignore[arg-type]
                except OSError:
                    raise
                except Exception as error:
                    return f"workdir: the stage {name} cannot be kept: {error}"
                files = {file.name: _file_checksum(file) for file in temporary.iterdir()}
                _write_sealed(
                    temporary / _STAGE,
                    {
                        "key": key,
                        "name": name,
                        "kind": artifact.kind,
                        "written": _now(),
                        "fingerprint": fingerprint,
                        "files": files,
                        "artifact": described,
                        "facts": dict(facts),
                    },
                )
                for file in temporary.iterdir():
                    _flush(file)
                _flush(temporary)
                folder = self._folder(key)
                if folder.exists():  # a directory cannot be replaced in one step
                    os.rename(folder, self._stages / f"{_OLD}{secrets.token_hex(8)}")
                os.rename(temporary, folder)
                _flush(self._stages)
        finally:
            with contextlib.suppress(OSError):  # what stays is removed at the next opening
                for left in (temporary, *self._stages.glob(f"{_OLD}*")):
                    _remove(left)
        return None

    def checkpoints(self, key: str) -> Path:
        """Where the trainings of a stage that is under way keep how far they are.

        Args:
            key: Key of the stage.
        """
        return self.path / _CHECKPOINTS / key[:_KEY_LENGTH]

    def drop_checkpoints(self, key: str | None = None) -> None:
        """Removes those of a stage, which is finished, or of all.

        Args:
            key: Key of the stage; ``None`` for all.

        Raises:
            OptkitError: If they cannot be removed.
        """
        folder = self.path / _CHECKPOINTS if key is None else self.checkpoints(key)
        with _explained(self.path, OptkitError):
            _remove(folder)

    def put_measured(
        self,
        key: str,
        measure_key: str,
        facts: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
    ) -> None:
        """Keeps what was measured of a stage, in the place of what was measured in the same way.

        Args:
            key: Key of the stage. Nothing happens where it is not kept.
            measure_key: Key of everything that the figures depend on besides the stage.
            facts: Plain values, fit for JSON; ``"figures"`` as `Measurement.to_dict` gives them.
            arrays: Arrays by name.

        Raises:
            OptkitError: If the folder cannot be written.
        """
        folder = self._folder(key)
        if not folder.is_dir():
            return
        with _explained(self.path, OptkitError):
            figures, target = _measured_files(folder, measure_key)

            def write(path: Path) -> None:
                with path.open("wb") as file:
                    np.savez(file, **arrays)  # type: ignore[arg-type]

            # The figures name the arrays by their checksum, so whatever is between the two writes,
            # new arrays are never taken for old ones.
            _replace(target, write)
            values = {"key": key, "measure_key": measure_key, "facts": dict(facts)}
            _write_sealed(figures, values | {"arrays": _file_checksum(target)})

    def record(
        self,
        stages: Sequence[tuple[str, str, str]],
        report: Report,
        *,
        current: str | None,
        measure_key: str | None = None,
    ) -> None:
        """Makes a run the one that the folder shows.

        Args:
            stages: Name, key and status of each stage, in order.
            report: Its report.
            current: Name of the stage to deploy.
            measure_key: Key of the way in which its stages were measured.

        Raises:
            OptkitError: If the folder cannot be written.
        """
        entry = {"when": _now(), "what": "run", "stage": current}
        with _explained(self.path, OptkitError):
            text = report.to_json().encode()
            _replace(self.path / _REPORT, lambda path: path.write_bytes(text))
            page = report.to_html().encode()
            _replace(self.path / _PAGE, lambda path: path.write_bytes(page))
            self._run = {
                "current": current,
                "stages": [
                    {"name": name, "key": key, "status": status} for name, key, status in stages
                ],
                "history": [*self._run["history"], entry],
                "report": _checksum(text),
                "measure_key": measure_key,
            }
            _write_sealed(self.path / _RUN, self._run)
            shown = {key[:_KEY_LENGTH] for _, key, _ in stages}
            for folder in self._stages.glob(f"{_ONCE}*"):
                if folder.name not in shown:  # of an earlier run; nobody can find it any more
                    _remove(folder)

    def _folder(self, key: str) -> Path:
        return self._stages / key[:_KEY_LENGTH]


# ---------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class HistoryEntry:
    """What made a stage the current one.

    Attributes:
        when: Time, UTC, in ISO 8601.
        what: ``"run"`` or ``"rollback"``.
        stage: Name of the stage; ``None`` where a run gave none.
    """

    when: str
    what: str
    stage: str | None


@dataclass(frozen=True)
class Stage:
    """One stage of a run, as `Run.stages` lists them.

    Attributes:
        name: Its name: ``"baseline"`` for the model that came in, else that of the pass.
        key: Its key.
        status: As in the report's row.
        kind: Kind of its artifact; ``None`` if the stage is missing or damaged.
        when: Time when it was written, UTC, in ISO 8601.
        figures: What the run measured of it; ``None`` if nothing was.
    """

    name: str
    key: str
    status: str
    kind: str | None = None
    when: str | None = None
    figures: Measurement | None = None

    def __repr__(self) -> str:
        return f"Stage({', '.join(part for part in self._cells() if part)})"

    def _cells(self) -> tuple[str, ...]:
        figures = self.figures or Measurement()
        return (
            self.name,
            self.status,
            self.kind or "not there",
            "" if figures.accuracy is None else f"{figures.accuracy:.4f}",
            "" if figures.size_bytes is None else f"{figures.size_bytes / 1e6:.3f} MB",
            "" if figures.latency_ms is None else f"{figures.latency_ms:.3g} ms",
        )


class Run:
    """What a ``workdir`` holds: the stages of the last run, their figures, and which is current.

    It reads the folder each time it is asked, and needs no lock to do so: looking while a run is
    under way, or after it was killed, is fine, and shows the stages that are finished.

    Args:
        workdir: The folder that `Pipeline.run` was given.

    Raises:
        PipelineError: If there is no such folder, or it holds no run.

    Example:
        >>> import tempfile
        >>> import optkit as ok
        >>> from optkit.testing import digits, small_model
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pipeline = ok.Pipeline([ok.BNReestimate()])
        ...     _ = pipeline.run(small_model(), digits(200), workdir=folder, progress=False)
        ...     run = ok.Run(folder)
        ...     [stage.name for stage in run.stages], run.current_name
        ...     run.rollback(to="baseline")
        ...     run.current_name, [entry.what for entry in run.history]
        (['baseline', 'BNReestimate'], 'BNReestimate')
        ('baseline', ['run', 'rollback'])
    """

    def __init__(self, workdir: str | os.PathLike[str]):
        self.path = _validate.path("workdir", workdir)
        self._read()

    def _read(self) -> dict[str, Any]:
        if not self.path.is_dir():
            raise PipelineError(
                f"There is no folder {str(self.path)!r}. Give the one that "
                "`Pipeline.run(…, workdir=…)` was given."
            )
        path = self.path / _RUN
        if not path.is_file():
            raise PipelineError(
                f"The folder {str(self.path)!r} holds no run of optkit's: {_RUN!r} is missing. "
                "Give the one that `Pipeline.run(…, workdir=…)` was given."
            )
        try:
            with _explained(self.path, PipelineError):
                return _read_sealed(path)
        except _OtherFormatError as error:
            raise PipelineError(_other_format(self.path, error)) from error
        except _DamageError as error:
            raise PipelineError(
                f"{str(path)!r} is damaged: {error}. Run the pipeline on this folder again: it "
                "finds the stages that are whole."
            ) from error

    @property
    def stages(self) -> list[Stage]:
        """The stages, in order; the first is ``"baseline"``, the model that came in."""
        values = self._read()
        listed = values["stages"] or self._finished()
        return [self._stage(item, values["measure_key"]) for item in listed]

    def _finished(self) -> list[dict[str, Any]]:
        """The stages of a first run that has not ended, by the time when they were written."""
        found = []
        for path in (self.path / _STAGES).glob(f"[!.]*/{_STAGE}"):
            with contextlib.suppress(_DamageError):
                found.append(_read_sealed(path))
        found.sort(key=lambda facts: facts["written"])
        by_name = {facts["name"]: facts for facts in found}
        return [{"name": n, "key": facts["key"], "status": "ok"} for n, facts in by_name.items()]

    def _stage(self, item: Mapping[str, Any], measure_key: str | None) -> Stage:
        stage = Stage(item["name"], item["key"], item["status"])
        folder = self._folder(stage)
        try:
            facts = _verified(folder, stage.key)
        except _DamageError:
            return stage
        figures = None
        path = _newest_figures(folder)  # of a run that has not ended
        if measure_key is not None:
            taken, _ = _measured_files(folder, measure_key)
            path = taken if taken.is_file() else path
        with contextlib.suppress(_DamageError, KeyError, TypeError):
            if path is not None:
                figures = Measurement.from_dict(_read_sealed(path)["facts"]["figures"])
        return Stage(stage.name, stage.key, stage.status, facts["kind"], facts["written"], figures)

    def _folder(self, stage: Stage) -> Path:
        return self.path / _STAGES / stage.key[:_KEY_LENGTH]

    @property
    def report(self) -> Report | None:
        """The report of the last run that ended; ``None`` before.

        Raises:
            OptkitError: If it is damaged.
        """
        wanted = self._read()["report"]
        if wanted is None:
            return None
        path = self.path / _REPORT
        if not path.is_file() or _file_checksum(path)["blake2b"] != wanted:
            raise OptkitError(
                f"{str(path)!r} is not the report of the stages that the folder lists: it was "
                "changed, or the process ended while it was written. Run the pipeline on this "
                "folder again: it finds the stages and writes the report."
            )
        return Report.from_json(path)

    @property
    def current_name(self) -> str | None:
        """Name of the current stage; ``None`` where no run has ended yet."""
        current: str | None = self._read()["current"]
        return current

    @property
    def history(self) -> list[HistoryEntry]:
        """What made which stage the current one, the oldest first."""
        return [HistoryEntry(**entry) for entry in self._read()["history"]]

    def current(
        self, custom_objects: Mapping[str, Any] | None = None, *, trust: bool = False
    ) -> Artifact:
        """The artifact of the current stage: what the last run gave, or `rollback` chose.

        Args:
            custom_objects: As for `load`.
            trust: As for `load`.

        Raises:
            PipelineError: If no run has ended yet.
            ModelError: If the artifact cannot be read.
        """
        name = self.current_name
        if name is None:
            raise PipelineError(
                f"No run has ended in {str(self.path)!r} yet. Run the pipeline on it again, or "
                "choose a finished stage with `rollback(to=…)`."
            )
        return self.load(name, custom_objects, trust=trust)

    def load(
        self, name: str, custom_objects: Mapping[str, Any] | None = None, *, trust: bool = False
    ) -> Artifact:
        """The artifact of a stage.

        Args:
            name: Its name, as `stages` lists it; upper and lower case matter only where two differ
                by nothing else. ``"baseline"`` is the model that came in.
            custom_objects: Classes of layers and functions by name, for a Keras model whose own are
                not registered with `register_keras_serializable` of their Keras.
            trust: Whether code that is stored in the file, such as that of Lambda layers, may run.

        Raises:
            PipelineError: If there is no such stage.
            ModelError: If it cannot be read.
        """
        stage = self._named(name)
        folder = self._folder(stage)
        try:
            facts = _verified(folder, stage.key)
            artifact = _read_artifact(folder, facts, custom_objects, trust=trust)
            return artifact.finished() if isinstance(artifact, KerasArtifact) else artifact
        except _DamageError as error:
            raise ModelError(_no_artifact(stage, error)) from error
        except Exception as error:
            raise ModelError(
                f"The artifact of the stage {stage.name!r} cannot be read: {error} Layers of your "
                "own must be registered with `register_keras_serializable` of their Keras, or "
                "given as `custom_objects`."
            ) from error

    def rollback(self, to: str) -> None:
        """Makes a stage the current one, with an entry in the history; nothing is lost.

        Args:
            to: Name of the stage, as for `load`.

        Raises:
            PipelineError: If there is no such stage, a run is under way, or the folder cannot be
                written.
            ModelError: If the stage is damaged.
        """
        with _explained(self.path, PipelineError), _locked(self.path):
            stage = self._named(to)
            try:
                _verified(self._folder(stage), stage.key)
            except _DamageError as error:
                raise ModelError(_no_artifact(stage, error)) from error
            values = self._read()
            entry = {"when": _now(), "what": "rollback", "stage": stage.name}
            values |= {"current": stage.name, "history": [*values["history"], entry]}
            _write_sealed(self.path / _RUN, values)

    def _named(self, name: str) -> Stage:
        stages = self.stages
        found = [stage for stage in stages if stage.name == name]
        if not found:
            found = [stage for stage in stages if stage.name.casefold() == str(name).casefold()]
        if len(found) == 1:
            return found[0]
        names = ", ".join(stage.name for stage in stages) or "none yet"
        what = f"{len(found)} stages are" if found else "No stage is"
        raise PipelineError(f"{what} called {name!r} in {str(self.path)!r}. Stages: {names}.")

    def __str__(self) -> str:
        header, *rows = self._table()
        widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (header, *rows)
        ]
        return "\n".join([f"Run in {self.path}", *lines])

    def __repr__(self) -> str:
        names = [stage.name for stage in self.stages]
        return f"Run({str(self.path)!r}, stages={names}, current={self.current_name!r})"

    def _repr_html_(self) -> str:
        def row(cells: tuple[str, ...], tag: str) -> str:
            inner = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
            return f"<tr>{inner}</tr>"

        header, *rows = self._table()
        body = "".join(row(cells, "td") for cells in rows)
        return (
            f"<table><caption>{html.escape(f'Run in {self.path}')}</caption>"
            f"<thead>{row(header, 'th')}</thead><tbody>{body}</tbody></table>"
        )

    def _table(self) -> list[tuple[str, ...]]:
        current, report = self.current_name, None
        with contextlib.suppress(OptkitError):
            report = self.report
        header = ("", "stage", "status", "kind", report.metric if report else "accuracy")
        rows = [("*" if s.name == current else "", *s._cells()) for s in self.stages]
        return [(*header, "size", "latency"), *rows]


def _other_format(folder: Path, error: _OtherFormatError) -> str:
    return (
        f"The folder {str(folder)!r} cannot be read: {error}. Use the version of optkit that wrote "
        "it, or name another folder as `workdir`."
    )


def _no_artifact(stage: Stage, error: _DamageError) -> str:
    return (
        f"The stage {stage.name!r} is damaged or missing: {error}. Run the pipeline on this folder "
        "again: it does anew what is not whole."
    )


# ------------------------------------------------------------------------------ stages on the disk


def _write_artifact(folder: Path, artifact: Artifact) -> dict[str, Any]:
    """Writes the artifact and says what it takes to know it again when it is read back."""
    described: dict[str, Any] = {}
    if isinstance(artifact, KerasArtifact):
        # In the form in which passes take it: a translation back and forth need not be exact in
        # everything that a later pass might look at.
        artifact = artifact.treated()
        model = artifact.model
        # A `.keras` file keeps the flags of layers, but setting that of a model in it sets those of
        # all its layers, and its own flag is lost.
        described = {
            "layers": _layers(model),
            "trainable": [bool(layer.trainable) for layer in model._flatten_layers()],
            "weights": _weights_checksum(model),
            "keras": 3 if isinstance(artifact, TreatedArtifact) else 2,
            "jit": artifact.jit,
        }
        artifact = KerasArtifact(model, jit=artifact.jit)
    elif not isinstance(artifact, TFLiteArtifact):
        raise OptkitError(f"optkit does not read {artifact.kind} artifacts back.")
    artifact.save(folder / f"artifact{artifact.suffix}")
    return described


def _read_artifact(
    folder: Path,
    facts: Mapping[str, Any],
    custom_objects: Mapping[str, Any] | None,
    *,
    trust: bool = False,
) -> Artifact:
    """Reads the artifact of a stage whose files are known to be whole.

    Raises:
        Exception: Whatever Keras raises, or `ModelError` if the model is not what was written.
    """
    if facts["kind"] == TFLiteArtifact.kind:
        return TFLiteArtifact.read(folder / f"artifact{TFLiteArtifact.suffix}")
    model = read_keras_archive(
        folder / f"artifact{KerasArtifact.suffix}",
        Terms(compile=False, custom_objects=custom_objects, trust=trust),
    )
    described = facts["artifact"]
    if [kind for _, kind in _layers(model)] != [kind for _, kind in described["layers"]]:
        raise ModelError("it has other layers than the model that was written.")
    for layer, (name, _) in zip(model._flatten_layers(), described["layers"], strict=True):
        layer._name = name  # what is within a subclassed model is named anew when it is rebuilt
    # Parents come before what is in them, whose flags they set.
    for layer, flag in zip(model._flatten_layers(), described["trainable"], strict=True):
        layer.trainable = flag
    if _weights_checksum(model) != described["weights"]:
        raise ModelError("it has other weights than the model that was written.")
    kind = TreatedArtifact if described.get("keras") == 3 else KerasArtifact
    return kind(model, jit=described.get("jit", False))


def _layers(model: Any) -> list[list[str]]:
    return [
        [layer.name, f"{type(layer).__module__}:{type(layer).__qualname__}"]
        for layer in model._flatten_layers()
    ]


def _weights_checksum(model: Any) -> str:
    found = hashlib.blake2b(digest_size=20)
    for variable in model.weights:
        if not is_variable(variable):  # words of a lookup, in an order that changes
            continue
        weight = variable.numpy()
        found.update(f"{weight.dtype.str}{weight.shape}".encode())
        found.update(np.ascontiguousarray(weight).tobytes())
    for layer in model._flatten_layers():
        if hasattr(layer, "get_vocabulary"):
            found.update(repr([str(word) for word in layer.get_vocabulary()]).encode())
    return found.hexdigest()


def _read_constraints(folder: Path) -> dict[tuple[str, str], Constraint]:
    path = folder / _CONSTRAINTS
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as arrays:
        restored = constraints_from_arrays(dict(arrays))
    return {(item.path, item.name): item for item in restored}


def _verified(folder: Path, key: str) -> dict[str, Any]:
    """What a stage says of itself, once its files are known to be what was written.

    Raises:
        _DamageError: If they are not.
    """
    facts = _read_sealed(folder / _STAGE)
    if facts.get("key") != key:
        raise _DamageError("it is the stage of another key")
    for name, wanted in facts["files"].items():
        path = folder / name
        if not path.is_file():
            raise _DamageError(f"{name} is missing")
        try:
            found = _file_checksum(path)
        except OSError as error:
            raise _DamageError(f"{name} cannot be read: {error}") from error
        if found != wanted:
            raise _DamageError(f"{name} is not what was written")
    return facts


def _measured_files(folder: Path, measure_key: str) -> tuple[Path, Path]:
    """Where figures taken in one way lie: plain values, and arrays."""
    stem = f"{_MEASURED}{_checksum(measure_key.encode())[:12]}"
    return folder / f"{stem}.json", folder / f"{stem}.npz"


def _newest_figures(folder: Path) -> Path | None:
    found = list(folder.glob(f"{_MEASURED}*.json"))
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def _measured_in(
    folder: Path, measure_key: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    figures, target = _measured_files(folder, measure_key)
    if not figures.is_file():
        return None
    try:
        values = _read_sealed(figures)
        if values["measure_key"] != measure_key or values["key"][:_KEY_LENGTH] != folder.name:
            return None
        if _file_checksum(target) != values["arrays"]:
            raise _DamageError(f"{target.name} is not what was written")
        with np.load(target, allow_pickle=False) as arrays:
            return values["facts"], dict(arrays)
    except (_DamageError, OSError, ValueError) as error:
        _LOG.warning("the figures in %s are damaged (%s) and will be taken again", folder, error)
        return None


# --------------------------------------------------------------------------------- files and locks


def _refuse_foreign(folder: Path) -> None:
    """Refuses a folder that holds something, but no run of optkit's."""
    path = folder / _RUN
    others = sorted(
        item.name
        for item in folder.iterdir()
        if item.name not in _OURS and not item.name.startswith(".")
    )
    if path.is_file():
        try:
            _read_sealed(path)
        except _OtherFormatError as error:
            raise PipelineError(_other_format(folder, error)) from error
        except _DamageError:
            if not others:
                return  # ours and damaged, which is mended
        else:
            return
    if others or (path.exists() and not path.is_file()):
        listed = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        raise PipelineError(
            f"The folder {str(folder)!r} holds other files ({listed}) and no run of optkit's. Name "
            "an empty folder, or one that does not exist yet, as `workdir`."
        )


def _locked(folder: Path) -> IO[str]:
    """The folder's lock, held until it is closed; the system frees that of a process that dies.

    Raises:
        PipelineError: If another process or thread holds it.
    """
    try:
        import fcntl
    except ImportError as error:
        raise PipelineError(
            "`workdir` needs file locks as Linux and macOS have them, and this system has none. "
            "Run without `workdir`."
        ) from error
    file = (folder / _LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(f"process {os.getpid()} since {_now()}")
        file.flush()
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read() or "another process"
        file.close()
        raise PipelineError(
            f"The folder {str(folder)!r} is in use: {holder} holds it. Wait until that run has "
            "ended, or name another folder as `workdir`."
        ) from error
    except BaseException:
        file.close()
        raise
    return file


@contextlib.contextmanager
def _explained(folder: Path, kind: type[OptkitError]) -> Iterator[None]:
    """Turns the system's errors into ones that name the folder and say what to do."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "Choose another folder.")
        raise kind(
            f"`workdir` {str(folder)!r} cannot be written: {error}. {remedy} What was finished "
            "before is kept, and the same run goes on from there."
        ) from error


def _read_sealed(path: Path) -> dict[str, Any]:
    """The values of a JSON file that `_write_sealed` wrote.

    Raises:
        _DamageError: If it cannot be read, is not what was written, or of another format.
    """
    try:
        values = json.loads(path.read_bytes())
        written, seal = values.pop("optkit"), values.pop("checksum")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _DamageError(f"{path.name} cannot be read: {error!r}") from error
    if not isinstance(values, dict) or seal != _seal(values):
        raise _DamageError(f"{path.name} is not what was written")
    if written != _FORMAT:
        raise _OtherFormatError(
            f"{path.name} is of another version of optkit: its format is {written}, and this one "
            f"reads {_FORMAT}"
        )
    return values


def _write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Writes JSON with a checksum of its values, whole or not at all."""
    plain = json.loads(json.dumps(values))
    text = json.dumps({"optkit": _FORMAT, **plain, "checksum": _seal(plain)}, indent=1)
    _replace(path, lambda temporary: temporary.write_text(text, "utf-8"))


def _seal(values: Mapping[str, Any]) -> str:
    return _checksum(json.dumps(values, sort_keys=True).encode())


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes a file beside its place, flushes it to the disk and moves it there."""
    temporary = path.with_name(f"{_NEW}{secrets.token_hex(8)}")
    try:
        write(temporary)
        _flush(temporary)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # what stays is removed at the next opening
            temporary.unlink(missing_ok=True)
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Sees to it that a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _checksum(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=20).hexdigest()


def _file_checksum(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=20)).hexdigest()
    return {"bytes": path.stat().st_size, "blake2b": found}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
