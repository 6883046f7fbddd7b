"""A replica follows what it is told, and is heard of while it changes over."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from serving.replicas import follower
from serving.replicas.follower import Follower, Wanted, first_version
from serving.wire import Standing, Version

A, B, C = (Version(id=f"v-{x * 12}", path=f"/{x}", digest=x * 64) for x in "abc")
STANDING = Standing(replica="r1", slot="stable", version=A.id, state="serving", in_flight=0)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "ASK_S", 0.001)
    monkeypatch.setattr(follower, "CHANGING_S", 0.001)


class Scripted:
    """A replica whose change-over ends when the test says so."""

    def __init__(self) -> None:
        self.now, self.swaps, self.go = STANDING, list[str](), asyncio.Event()
        self.fails = False

    async def standing(self) -> Standing:
        return self.now

    async def swap(self, version: Version) -> Standing:
        self.swaps.append(version.id)
        self.now = replace(self.now, state="swapping")
        await self.go.wait()
        if self.fails:
            self.now = replace(self.now, state="quarantined")
            raise RuntimeError("cannot load")
        self.now = replace(self.now, state="serving", version=version.id)
        return self.now


def wants_b(asked: list[Standing]) -> Wanted:
    """A conductor that wants B, and keeps what it was told."""

    async def wanted(standing: Standing) -> Version | None:
        asked.append(standing)
        return B if standing.version != B.id else None

    return wanted


async def until(condition: object) -> None:
    async with asyncio.timeout(30):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0)


def test_it_changes_over_once_and_keeps_asking_meanwhile() -> None:
    async def main() -> None:
        replica, asked = Scripted(), list[Standing]()
        task = asyncio.create_task(Follower(replica, wants_b(asked)).follow())
        await until(lambda: sum(one.state == "swapping" for one in asked) > 3)
        assert replica.swaps == [B.id]
        replica.go.set()
        await until(lambda: asked[-1].version == B.id)
        count = len(asked)
        await until(lambda: len(asked) > count + 2)
        assert replica.swaps == [B.id]
        task.cancel()

    asyncio.run(main())


def test_the_end_of_a_change_over_is_told_without_waiting_for_the_next_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other replicas take turns: a second lost by each is a minute lost by sixty."""
    monkeypatch.setattr(follower, "ASK_S", 3600.0)

    async def main() -> None:
        replica, asked = Scripted(), list[Standing]()
        task = asyncio.create_task(Follower(replica, wants_b(asked)).follow())
        await until(lambda: any(one.state == "swapping" for one in asked))
        replica.go.set()
        await until(lambda: asked[-1].version == B.id)
        assert (asked[-1].state, replica.swaps) == ("serving", [B.id])
        task.cancel()

    asyncio.run(main())


def test_a_failed_change_over_and_a_silent_conductor_do_not_end_it() -> None:
    async def main() -> None:
        replica, asked = Scripted(), list[Standing]()
        replica.fails = True
        replica.go.set()

        async def wanted(standing: Standing) -> Version | None:
            asked.append(standing)
            if len(asked) % 2:
                raise ConnectionError("restarting")
            return C

        task = asyncio.create_task(Follower(replica, wanted).follow())
        await until(lambda: len(replica.swaps) > 2)
        assert not task.done()
        assert any(standing.state == "quarantined" for standing in asked)
        task.cancel()

    asyncio.run(main())


def test_its_end_ends_the_change_over_too() -> None:
    async def main() -> None:
        replica = Scripted()

        async def wanted(standing: Standing) -> Version | None:
            return B

        task = asyncio.create_task(Follower(replica, wanted).follow())
        await until(lambda: replica.swaps)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_a_replica_that_starts_waits_for_its_version() -> None:
    async def main() -> None:
        answers = iter([ConnectionError("starting"), None, B])

        async def wanted(standing: Standing) -> Version | None:
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        assert await first_version(wanted, replace(STANDING, version=None, state="loading")) == B

    asyncio.run(main())
