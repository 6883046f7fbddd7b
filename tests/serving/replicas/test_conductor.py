"""The conductor follows its registries, and tells replicas that ask."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from serving.replicas.conductor import Conductor, Fixed, Plan
from serving.wire import Standing, Version


def version(letter: str) -> Version:
    return Version(id=f"v-{letter * 12}", path=f"/models/{letter}", digest=letter * 64)


A, B = version("a"), version("b")


class Notes:
    """A source whose plan a test writes."""

    def __init__(self, plan: Plan) -> None:
        self.now: Plan | Exception = plan
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def plan(self) -> Plan:
        if isinstance(self.now, Exception):
            raise self.now
        return self.now

    def observe(self, slot: str, samples: Sequence[dict[str, Any]]) -> None:
        self.seen += [(slot, sample) for sample in samples]

    def history(self) -> list[dict[str, Any]]:
        return [{"seen": len(self.seen)}]


def replica(serves: Version | None, name: str = "r1", slot: str = "stable") -> Standing:
    state = "serving" if serves else "loading"
    return Standing(replica=name, slot=slot, version=serves.id if serves else None, state=state, in_flight=0)


def test_a_promotion_reaches_a_replica_that_waits_for_news() -> None:
    async def main() -> None:
        notes = Notes(Plan(stable=A))
        conductor = Conductor({"m": notes})
        assert await conductor.wanted("m", replica(None)) == A
        asking = asyncio.create_task(conductor.wanted("m", replica(A)))
        await asyncio.sleep(0)
        notes.now = Plan(stable=B)
        await conductor.look()
        assert await asking == B

    asyncio.run(main())


def test_without_news_a_replica_is_answered_all_the_same() -> None:
    async def main() -> None:
        assert await Conductor({"m": Fixed(version=A)}).wanted("m", replica(A)) is None

    asyncio.run(main())


def test_a_registry_that_cannot_be_read_changes_nothing_and_is_read_again() -> None:
    async def main() -> None:
        notes = Notes(Plan(stable=A))
        conductor = Conductor({"m": notes})
        notes.now = OSError("gone")
        await conductor.look()
        routing = await conductor.routing("m")
        assert routing is not None and routing.stable == A.id
        notes.now = Plan(stable=B)
        await conductor.look()
        routing = await conductor.routing("m")
        assert routing is not None and routing.stable == B.id

    asyncio.run(main())


def test_a_server_whose_registry_cannot_be_read_at_its_start_does_not_start() -> None:
    notes = Notes(Plan(stable=A))
    notes.now = OSError("gone")
    with pytest.raises(OSError, match="gone"):
        Conductor({"m": notes})


def test_it_is_ready_when_a_replica_of_every_model_serves_what_was_promoted() -> None:
    async def main() -> None:
        notes = Notes(Plan(stable=A))
        conductor = Conductor({"m": notes, "n": Fixed(version=B)})
        assert not await conductor.ready()
        await conductor.wanted("m", replica(A))
        assert not await conductor.ready()
        await conductor.wanted("n", replica(B, "r2"))
        assert await conductor.ready()
        notes.now = Plan(stable=B)
        await conductor.look()
        assert not await conductor.ready()

    asyncio.run(main())


def test_models_are_known_by_name_alone_and_the_first_is_the_default() -> None:
    async def main() -> None:
        conductor = Conductor({"m": Fixed(version=A), "n": Fixed(version=B)})
        assert await conductor.models() == ["m", "n"]
        default, other = await conductor.routing(None), await conductor.routing("n")
        assert default is not None and other is not None and (default.model, other.stable) == ("m", B.id)
        assert await conductor.routing("../m") is None
        with pytest.raises(KeyError):
            await conductor.wanted("x", replica(A))

    asyncio.run(main())


def test_measurements_and_history_go_through_the_models_own_registry() -> None:
    async def main() -> None:
        notes, others = Notes(Plan(stable=A)), Notes(Plan(stable=B))
        conductor = Conductor({"m": notes, "n": others})
        await conductor.observe("n", "canary", [{"status": 200}, {"status": 500}])
        assert notes.seen == [] and [slot for slot, _ in others.seen] == ["canary", "canary"]
        await conductor.wanted("n", replica(B))
        assert [(one.model, one.version) for one in await conductor.standings()] == [("n", B.id)]
        assert await conductor.history() == [{"model": "m", "seen": 0}, {"model": "n", "seen": 2}]

    asyncio.run(main())


def test_an_adapter_goes_where_its_base_goes_under_a_version_of_both() -> None:
    async def main() -> None:
        notes = Notes(Plan(stable=A))
        conductor = Conductor({"n": Fixed(version=B), "m": notes}, {"short": ("m", "v-cccccccccccc")})
        assert await conductor.models() == ["n", "m", "short"]
        route = await conductor.routing("short")
        assert route is not None and (route.model, route.stable) == ("short", f"{A.id}+v-cccccccccccc")
        assert (route.canary, route.weight) == (None, 0.0)
        base = await conductor.routing("m")
        assert base is not None and (base.model, base.stable) == ("m", A.id)
        await conductor.observe("short", "stable", [{"status": 200}])
        assert notes.seen == [("stable", {"status": 200})]

    asyncio.run(main())
