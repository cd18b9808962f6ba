"""What the tests and the examples in docstrings share."""

from __future__ import annotations

import pytest

import optkit as ok


@pytest.fixture
def untimed(monkeypatch):
    """Leaves timing and memory out of runs that do not say how to measure.

    For what is about something else: a process of its own and a second for each stage would make
    up most of its time.
    """
    options = ok.Pipeline._options
    fast = ok.Measure(latency_seconds=0, memory=False)
    monkeypatch.setattr(
        ok.Pipeline,
        "_options",
        lambda self, measure, *rest: options(self, measure or fast, *rest),
    )


@pytest.fixture(autouse=True)
def _examples_untimed(request):
    """Examples show what a pass does; none shows a time."""
    if isinstance(request.node, pytest.DoctestItem):
        request.getfixturevalue("untimed")
