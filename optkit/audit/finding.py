"""`Finding`: one thing that was found in data."""

from __future__ import annotations

from dataclasses import dataclass

from optkit.study import Study

__all__ = ["ROWS", "Finding", "and_more", "counted", "percent"]

#: Rows of a table of examples at most.
ROWS = 20


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: What it is, such as ``"leakage"``; what ``ignore`` names.
        text: What was found, with counts.
        fault: Whether figures of the run would be wrong, or training harmed, so that ``strict``
            refuses to go on. Others are worth knowing, and may be as they should.
        study: Where it was found, as a table; ``None`` where the text says all.
    """

    kind: str
    text: str
    fault: bool
    study: Study | None = None


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number with its noun.

    >>> counted(1, "sample"), counted(2, "class", "classes")
    ('1 sample', '2 classes')
    """
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def percent(part: int, total: int) -> str:
    """A share in percent, with as many digits as say something.

    >>> percent(1, 3000), percent(120, 120)
    ('0.033 %', '100 %')
    """
    share = 100 * part / total
    return f"{share:.2g} %" if share < 99.5 else f"{share:.0f} %"


def and_more(total: int, shown: int) -> tuple[str, ...]:
    """The note of a table that does not show everything."""
    return (f"the first {shown} of {total}",) if total > shown else ()
