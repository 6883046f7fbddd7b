"""The gate's account of who was inside with whom."""

from __future__ import annotations

import pytest

from actors import load as module
from actors.load import Load


def test_crowd_is_averaged_over_a_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A is inside from 0 to 4, B from 2 to 3: A keeps company of (3 * 1 + 1 * 2) / 4 = 1.25, B of 2."""
    clock = iter([0.0, 0.0, 2.0, 3.0, 4.0, 9.0, 10.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    load = Load()
    a = load.enter()
    b = load.enter()
    load.leave(b)
    load.leave(a)
    told = load.to_json()
    assert (told["requests"], told["busy_s"]) == (2, 4.0)
    assert (told["crowd"], told["seconds"]) == (3.25, 5.0)
    assert told["crowd_crowd"] == 1.25**2 + 4.0
    assert (told["crowd_seconds"], told["seconds_seconds"]) == (1.25 * 4 + 2.0, 17.0)
    load.leave(load.enter())  # alone for a second, after a pause that nobody was busy in
    assert load.to_json()["busy_s"] == 5.0
