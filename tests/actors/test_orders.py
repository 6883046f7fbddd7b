"""A stage is surveyed once, however often its run is resumed."""

from __future__ import annotations

import asyncio
from pathlib import Path

from actors.orders import kept


class Survey:
    """Another order at each call, as newer weights would find."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self) -> list[int]:
        self.calls += 1
        return [self.calls, 0]


def test_a_kept_order_and_its_beginning_outlive_the_process(tmp_path: Path) -> None:
    file, survey = tmp_path / "order.json", Survey()
    assert asyncio.run(kept(file, 0, 8, survey)) == ([1, 0], 8)
    assert asyncio.run(kept(file, 0, 16, survey)) == ([1, 0], 8)  # resumed further on
    assert survey.calls == 1


def test_each_stage_has_its_own(tmp_path: Path) -> None:
    file, survey = tmp_path / "order.json", Survey()
    first, second = (asyncio.run(kept(file, stage, 10 * stage, survey)) for stage in (0, 1))
    assert (first, second) == (([1, 0], 0), ([2, 0], 10))
    assert asyncio.run(kept(file, 0, 0, survey)) == first


def test_without_a_file_nothing_is_kept() -> None:
    survey = Survey()
    assert asyncio.run(kept(None, 0, 0, survey)) == ([1, 0], 0)
    assert asyncio.run(kept(None, 0, 0, survey)) == ([2, 0], 0)
