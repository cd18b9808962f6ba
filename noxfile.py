"""Checks of the project: ``nox`` runs lint, types, tests with doctests, and the docs."""

from __future__ import annotations

import nox

nox.options.sessions = ["lint", "types", "tests", "docs"]
nox.options.reuse_existing_virtualenvs = True
nox.needs_version = ">=2024.10"

PROJECT = nox.project.load_toml("pyproject.toml")


def install(session: nox.Session, *groups: str, package: bool = True) -> None:
    """Installs groups of tools, and the package itself."""
    wanted = nox.project.dependency_groups(PROJECT, *groups) if groups else ()
    session.install(*wanted, *(["-e", "."] if package else []))


@nox.session
def lint(session: nox.Session) -> None:
    """Style and formatting."""
    install(session, "lint", package=False)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Types, strictly."""
    install(session, "lint", "test")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """Tests and doctests, without those marked `full`."""
    install(session, "test")
    session.run("pytest", "-n", "auto", *(session.posargs or ["-m", "not full"]))


@nox.session
def full(session: nox.Session) -> None:
    """All tests, the long ones too."""
    install(session, "test")
    session.run("pytest", "-n", "auto", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, its notebooks executed; warnings are errors."""
    install(session, "docs")
    out = "docs/_build/html"
    session.run("sphinx-build", "-W", "--keep-going", "-j", "auto", "-b", "html", "docs", out)


@nox.session
def screenshots(session: nox.Session) -> None:
    """The pictures of the page on reports, of a run of the quick start or of a report.json given."""
    install(session, "test")
    session.run("python", "docs/screenshots.py", *session.posargs)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Figures on this machine, against targets; takes a while and wants a quiet machine."""
    install(session)
    session.run("python", "-m", "benchmarks", *session.posargs)
