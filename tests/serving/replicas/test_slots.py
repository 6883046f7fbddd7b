"""Which replica changes over to which version, and when."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.replicas.slots import CHANGE_S, FORGET_S, Slots
from serving.wire import Standing, State, Version


def version(letter: str) -> Version:
    return Version(id=f"v-{letter * 12}", path=f"/models/{letter}", digest=letter * 64)


A, B, C = version("a"), version("b"), version("c")


def standing(name: str, serves: Version | None, state: State = "serving", slot: str = "stable") -> Standing:
    return Standing(replica=name, slot=slot, version=serves.id if serves else None, state=state, in_flight=0)


def test_a_replica_that_serves_the_stable_version_stays_as_it_is() -> None:
    assert Slots("m", A).ask(standing("r1", A), 0.0) is None


def test_a_replica_that_starts_is_told_the_version_whatever_the_others_do() -> None:
    slots = Slots("m", A)
    slots.ask(standing("r1", A), 0.0)
    slots.stable = B
    assert slots.ask(standing("r1", A), 0.0) == B
    assert slots.ask(standing("r2", None, "loading"), 0.0) == B


def test_two_replicas_change_over_one_after_the_other() -> None:
    slots = Slots("m", A)
    for name in ("r1", "r2"):
        slots.ask(standing(name, A), 0.0)
    slots.stable = B
    assert slots.ask(standing("r1", A), 1.0) == B
    assert slots.ask(standing("r2", A), 1.0) is None
    assert slots.ask(standing("r1", A, "swapping"), 2.0) == B  # it asks again before it has begun
    assert slots.ask(standing("r2", A), 2.0) is None
    assert slots.ask(standing("r1", B), 3.0) is None
    assert slots.ask(standing("r2", A), 3.0) == B


def test_a_replica_that_dies_while_it_changes_over_does_not_hold_up_the_others() -> None:
    slots = Slots("m", A)
    for name in ("r1", "r2"):
        slots.ask(standing(name, A), 0.0)
    slots.stable = B
    assert slots.ask(standing("r1", A), 1.0) == B
    assert slots.ask(standing("r2", A), 1.0 + FORGET_S / 2) is None
    assert slots.ask(standing("r2", A), 1.1 + FORGET_S) == B
    assert [one.replica for one in slots.standings(1.1 + FORGET_S)] == ["r2"]


def test_a_replica_that_refused_the_version_gives_its_turn_away_and_gets_it_again_later() -> None:
    slots = Slots("m", A)
    for name in ("r1", "r2"):
        slots.ask(standing(name, A), 0.0)
    slots.stable = B
    assert slots.ask(standing("r1", A), 1.0) == B
    refused = replace(standing("r1", A), refused=(B.id,))
    assert slots.ask(refused, 2.0) is None
    assert slots.ask(standing("r2", A), 2.0) == B
    assert slots.ask(standing("r2", B), 3.0) is None
    assert slots.ask(standing("r1", A), 4.0) == B


def test_a_replica_that_starts_gets_what_is_intact() -> None:
    slots = Slots("m", B, canary=C, weight=0.5, previous=A)

    def told(slot: str, *refused: Version) -> Version | None:
        ids = tuple(one.id for one in refused)
        return slots.ask(replace(standing("r", None, "loading", slot), refused=ids), 0.0)

    assert (told("stable"), told("canary")) == (B, C)
    assert (told("stable", B), told("canary", C), told("canary", C, B)) == (A, B, A)
    assert (told("stable", B, A), told("canary", C, B, A)) == (B, C)  # nothing is left


def test_a_change_over_that_never_ends_does_not_hold_up_the_others_for_ever() -> None:
    slots = Slots("m", A)
    for name in ("r1", "r2"):
        slots.ask(standing(name, A), 0.0)
    slots.stable = B
    now, told = 0.0, None
    while told is None and now < 2 * CHANGE_S:
        slots.ask(standing("r1", A, "swapping"), now)
        told = slots.ask(standing("r2", A), now)
        now += FORGET_S / 2
    assert told == B and now >= CHANGE_S


def test_the_canary_slot_serves_the_stable_version_until_there_is_a_canary() -> None:
    slots = Slots("m", A)
    assert slots.wanted("canary") == A
    slots.canary, slots.weight = B, 0.1
    assert slots.wanted("canary") == B and slots.wanted("stable") == A
    with pytest.raises(ValueError, match="expected one of stable, canary"):
        slots.wanted("green")


def test_nobody_is_sent_to_a_canary_that_no_replica_serves_yet() -> None:
    slots = Slots("m", A, canary=B, weight=0.25)
    slots.ask(standing("c1", A, slot="canary"), 0.0)
    assert (slots.routing(0.0).canary, slots.routing(0.0).weight) == (None, 0.0)
    slots.ask(standing("c1", B, slot="canary"), 1.0)
    assert (slots.routing(1.0).canary, slots.routing(1.0).weight) == (B.id, 0.25)
    assert slots.routing(1.1 + FORGET_S).canary is None  # the replica is gone


@given(
    size=st.integers(1, 12),
    asks=st.lists(st.tuples(st.integers(0, 11), st.booleans()), max_size=60),
)
def test_at_most_a_quarter_changes_over_at_a_time_and_all_do_in_the_end(
    size: int, asks: list[tuple[int, bool]]
) -> None:
    slots, now = Slots("m", A), 0.0
    have: dict[str, Version] = {f"r{i}": A for i in range(size)}
    changing: set[str] = set()
    for name in have:
        slots.ask(standing(name, A), now)
    slots.stable = B

    def ask(name: str, ends: bool) -> None:
        if name in changing and ends:
            changing.discard(name)
            have[name] = B
        told = slots.ask(standing(name, have[name], "swapping" if name in changing else "serving"), now)
        assert told in (None, B)
        if told is not None:
            changing.add(name)
        assert len(changing) <= max(1, size // 4)

    for index, ends in asks:
        ask(f"r{index % size}", ends)
    for _ in range(2 * size + 1):
        for name in have:
            ask(name, True)
    assert set(have.values()) == {B} and not changing
