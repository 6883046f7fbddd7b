"""What becomes of leases that fail, take too long, or deliver when nobody waits any more."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.accounts import weigh
from actors.leases import BLAMELESS, PATIENCE, SHOWN
from actors.ledger import Ledger
from pipelines.types import Comparison, Group, Media, Preference, Receipt, Response
from tests.actors.ledger_calls import (
    Clock,
    counts,
    fault,
    fill,
    group,
    issue,
    make,
    now,
    pull,
    sizes,
    told,
    train,
)


def fail(ledger: Ledger, cursor: int, reason: str = "scorer_died") -> str:
    """Lease a prompt and let the lease fail."""
    lease = issue(ledger, cursor)
    return now(ledger.fail(fault(lease, reason=reason), lease))


# --- tries -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tries", "verdicts"),
    [(1, ["drop"]), (2, ["alone", "drop"]), (4, ["again", "again", "alone", "drop"])],
)
def test_the_last_try_is_alone_and_then_the_group_is_dropped(tries: int, verdicts: list[str]) -> None:
    ledger = make(max_tries=tries)
    assert [fail(ledger, 0, "engine_dead") for _ in verdicts] == verdicts
    assert counts(ledger)["dropped"] == {"dead_letter": 1} and counts(ledger)["retried"] == tries - 1
    assert now(ledger.issue("p0", 0, 0, 0)) is None


@pytest.mark.parametrize(
    ("tries", "verdicts"),
    [
        (1, ["drop"]),
        (2, ["alone", "alone", "drop"]),
        (3, ["again", "alone", "alone", "alone", "drop"]),
        (4, ["again", "again", "alone", "alone", "alone", "alone", "drop"]),
    ],
)
def test_deaths_convict_only_when_they_repeat_in_a_lone_group(tries: int, verdicts: list[str]) -> None:
    ledger = make(max_tries=tries)
    assert [fail(ledger, 0) for _ in verdicts] == verdicts
    [letter] = told(ledger, "dead_letter")
    assert [one["alone"] for one in letter["faults"]] == [False, *(v == "alone" for v in verdicts[:-1])]


def test_faults_of_its_own_count_beside_lone_deaths_and_deaths_in_company_do_not() -> None:
    ledger = make(max_tries=3)
    assert [fail(ledger, 0), fail(ledger, 0), fail(ledger, 0)] == ["again", "alone", "alone"]
    assert [fail(ledger, 0, "engine_dead"), fail(ledger, 0, "engine_dead")] == ["alone", "drop"]


def dies(ledger: Ledger, role: str, actor: str) -> str:
    """Lease a prompt and let this actor die of it."""
    lease = issue(ledger, 0)
    detail = f"process 7 on 10.0.0.1 died: killed [actor {actor}]"
    died = replace(fault(lease, reason=f"{role}_died"), role=role, detail=detail)
    return now(ledger.fail(died, lease))


def test_the_death_of_one_worker_speaks_once_against_a_group() -> None:
    ledger = make(max_tries=3)
    verdicts = [dies(ledger, "perturber", actor) for actor in ("a1", "a1", "b2", "c3", "c3", "d4", "e5")]
    assert verdicts == ["again", "again", *["alone"] * 4, "drop"]  # c3, d4 and e5 died alone


def test_workers_that_die_now_here_and_now_there_do_not_convict_a_lone_group() -> None:
    ledger = make(max_tries=3)
    roles = ["generator"] * 3 + ["scorer", "perturber", "scorer", "generator"]  # the first two in company
    verdicts = [dies(ledger, role, f"a{number}") for number, role in enumerate(roles)]
    assert verdicts == ["again", *["alone"] * 6]
    assert dies(ledger, "generator", "a7") == "drop"


def test_a_dead_letter_holds_all_that_is_known_of_it() -> None:
    clock = Clock()
    ledger = make(max_tries=3, clock=clock)
    leases = []
    reasons = ("engine_dead", "generator_left", "timeout", "engine_dead")
    for reason in reasons:
        clock.now += 2
        leases.append(now(ledger.issue("p7", 0, 7, len(leases))))
        now(ledger.fail(fault(leases[-1], reason=reason), leases[-1]))
    [letter] = told(ledger, "dead_letter")
    assert (letter["group"], letter["prompt"], letter["cursor"]) == (leases[0].group, "p7", 7)
    assert [
        (one["role"], one["reason"], one["detail"], one["generator"], one["fence"], one["when"])
        for one in letter["faults"]
    ] == [
        ("scorer", reason, "node a", generator, leases[generator].fence, 2.0 * (generator + 1))
        for generator, reason in enumerate(reasons)
    ]
    [drop] = told(ledger, "drop")
    assert drop["reason"] == "dead_letter" and drop["detail"].count("node a") == 4
    assert [one["verdict"] for one in told(ledger, "fault")] == ["again", "again", "alone", "drop"]
    json.dumps(now(ledger.events(0)))


@pytest.mark.parametrize("reason", sorted(BLAMELESS))
def test_a_worker_that_is_taken_away_on_purpose_is_no_try_but_nothing_goes_on_for_ever(reason: str) -> None:
    ledger = make(max_tries=2)
    assert [fail(ledger, 0, reason) for _ in range(3)] == ["again"] * 3
    assert fail(ledger, 0) == "alone"
    assert fail(ledger, 0, reason) == "alone"  # it still has its last try
    assert counts(ledger)["blameless"] == 4
    verdicts = [fail(ledger, 0, reason) for _ in range(PATIENCE * 2 - 5)]
    assert verdicts == ["alone"] * (len(verdicts) - 1) + ["drop"]
    assert counts(ledger)["dropped"] == {"dead_letter": 1}


def test_one_try_and_a_blameless_fault_leave_the_first_try() -> None:
    ledger = make(max_tries=1)
    assert [fail(ledger, 0, "quarantined"), fail(ledger, 0)] == ["again", "drop"]


def test_whoever_asks_again_about_a_failed_lease_gets_the_same_answer_and_no_second_try() -> None:
    ledger = make(max_tries=3)
    lease = issue(ledger, 0)
    assert [now(ledger.fail(fault(lease), lease)) for _ in range(5)] == ["again"] * 5
    assert len(told(ledger, "fault")) == 1 and counts(ledger)["fenced"] == counts(ledger)["late"] == 0
    assert fail(ledger, 0) == "alone"


def test_a_fault_that_cannot_heal_is_dropped_under_its_own_name() -> None:
    ledger = make()
    lease = issue(ledger, 0)
    assert now(ledger.fail(fault(lease, retry=False, reason="value_error"), lease)) == "drop"
    assert counts(ledger)["dropped"] == {"value_error": 1} and told(ledger, "dead_letter") == []


# --- leases that take too long -----------------------------------------------------------------------------


def test_a_lease_without_news_is_void_and_its_group_is_issued_again() -> None:
    clock = Clock()
    ledger = make(lease_s=10, clock=clock)
    slow, quick = issue(ledger, 0), issue(ledger, 1)
    clock.now += 10
    assert now(ledger.state()).expired == frozenset()
    assert now(ledger.accept(group(quick))).accepted
    clock.now += 0.5
    state = now(ledger.state())
    assert (state.expired, state.leased, state.oldest_lease_s) == ({slow.fence}, 1, 0.0)
    assert not now(ledger.accept(group(slow))).accepted  # it comes too late
    assert now(ledger.fail(fault(slow), slow)) == "again"  # the driver gave the work up
    assert now(ledger.state()).expired == frozenset()
    new = issue(ledger, 0)
    assert new.group == slow.group and new.fence > slow.fence
    assert not now(ledger.accept(group(slow))).accepted and now(ledger.accept(group(new))).accepted
    found = counts(ledger)
    assert (found["expired"], found["fenced"], found["retried"], found["buffered"]) == (1, 2, 1, 2)
    [line] = told(ledger, "fault")
    assert line["reason"] == "lease_expired" and "within 10 s" in line["detail"]


def test_a_lease_that_expires_is_a_try_and_the_driver_learns_of_the_last_one_too() -> None:
    clock = Clock()
    ledger = make(max_tries=2, lease_s=1, clock=clock)
    verdicts = []
    for _ in range(2):
        lease = issue(ledger, 0)
        clock.now += 2
        assert now(ledger.state()).expired == {lease.fence}
        verdicts.append(now(ledger.fail(fault(lease), lease)))
        assert now(ledger.state()).expired == frozenset()
    assert verdicts == ["alone", "drop"] and counts(ledger)["dropped"] == {"dead_letter": 1}


def test_deadlines_are_those_of_each_lease_and_settled_ones_have_none() -> None:
    clock = Clock()
    ledger = make(groups=9, lag=9, lease_s=10, clock=clock)
    first = issue(ledger, 0)
    clock.now += 6
    assert now(ledger.fail(fault(first), first)) == "again"
    assert now(ledger.state()).oldest_lease_s == 0  # nothing is under way
    second = issue(ledger, 1)
    clock.now += 5
    issue(ledger, 0)  # renewed 5 s after the second
    assert now(ledger.state()).oldest_lease_s == 5
    clock.now += 6
    assert now(ledger.state()).expired == {second.fence}
    clock.now += 5
    assert len(now(ledger.state()).expired) == 2 and counts(ledger)["expired"] == 2


def test_somebody_who_waits_for_changes_notices_a_lease_that_is_too_old() -> None:
    async def main() -> Any:
        ledger = make(lease_s=0.02)
        lease = await ledger.issue("p", 0, 0, 0)
        seen = (await ledger.state()).revision
        while not (state := await ledger.changed(seen, 5)).expired:
            assert lease is not None and state.leased == 1
        return state

    state = asyncio.run(asyncio.wait_for(main(), 5))
    assert len(state.expired) == 1


def test_what_expires_while_the_run_stops_is_released_with_the_rest() -> None:
    clock = Clock()
    ledger = make(lease_s=1, clock=clock)
    lease = issue(ledger, 0)
    now(ledger.stop())
    clock.now += 2
    assert now(ledger.state()).expired == {lease.fence}
    assert now(ledger.fail(fault(lease), lease)) == "drop"  # nothing is issued any more
    now(ledger.release())
    assert counts(ledger)["released"] == 1 and counts(ledger)["dropped"] == {}
    assert told(ledger, "release")[0]["groups"] == [lease.group]


# --- messages that change nothing --------------------------------------------------------------------------


def test_no_ops_are_counted_by_their_kind() -> None:
    ledger = Ledger("run", 2, sizes(1, 1, 5, 100))
    zombie = Ledger("run", 1, sizes(1, 1, 5, 100))
    old, settled = issue(ledger, 0), issue(ledger, 1)
    now(ledger.fail(fault(old), old))
    taken = issue(ledger, 0)
    now(ledger.accept(group(taken)))
    now(ledger.fail(fault(settled, retry=False), settled))
    before = counts(ledger)
    revision = now(ledger.state()).revision
    earlier, stranger = issue(zombie, 0), issue(Ledger("other", 2, sizes(1, 1, 0, 1)), 9)
    assert now(ledger.accept(group(taken))).accepted  # duplicate: the same receipt as before
    assert not now(ledger.accept(group(old))).accepted  # fenced
    assert not now(ledger.accept(group(earlier))).accepted  # rolled back
    assert not now(ledger.accept(group(settled))).accepted  # late: dropped
    assert not now(ledger.accept(group(stranger))).accepted  # late: unknown
    messages = [(old, "fenced"), (earlier, "rolled_back"), (settled, "late"), (taken, "duplicate")]
    assert [now(ledger.fail(fault(lease), lease)) for lease, _ in messages] == ["drop"] * 4
    after = counts(ledger)
    changed = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert changed == {"duplicate": 2, "fenced": 2, "rolled_back": 2, "late": 3}
    assert now(ledger.state()).revision == revision
    assert len(told(ledger, "refused")) == 9 and told(ledger, "refused")[2]["fence"] == earlier.fence


def test_a_repeated_delivery_of_a_dropped_group_gets_its_receipt_again() -> None:
    ledger = make()
    lease = issue(ledger, 0)
    first = now(ledger.accept(group(lease, dropped="tie", facts={"reward": 1.0})))
    again = now(ledger.accept(group(lease, dropped="tie")))
    assert (first.dropped, again) == ("tie", Receipt(group=lease.group, accepted=False, dropped="tie"))
    assert counts(ledger)["duplicate"] == 1 and counts(ledger)["dropped"] == {"tie": 1}


def test_a_zombie_of_an_older_attempt_cannot_void_or_settle_the_lease_of_this_one() -> None:
    first = make()
    zombie = issue(first, 0)
    second = Ledger("run", 2, sizes(2, 1, 1, 100))
    now(second.restore(now(first.snapshot(0))))
    lease = issue(second, 0)
    assert lease.group == zombie.group
    assert now(second.fail(fault(zombie), zombie)) == "drop"
    assert not now(second.accept(group(zombie))).accepted
    assert counts(second)["leased"] == 1 and counts(second)["rolled_back"] == 2
    assert now(second.accept(group(lease))).accepted


# --- bytes, reports, the logical ledger --------------------------------------------------------------------


def test_held_bytes_are_those_of_buffered_groups() -> None:
    """A picture of 4 x 5 x 3 bytes; 3 tokens with 3 targets, and 2 tokens: 8 numbers of 8 bytes; spans of 3
    and 2 weights: 5 more."""
    ledger = make(groups=2)
    lease = issue(ledger, 0)
    picture = Media(kind="image", space="rgb8", payload=np.zeros((4, 5, 3), np.uint8))
    answers = (Response(tokens=(1, 2, 3), text="a", targets=(1, 2, 3)), Response(tokens=(1, 2), text="b"))
    edge = Preference(name="e", winner=0, loser=1, spans={"words": ((1.0, 0.0, 1.0), (0.0, 1.0))})
    made = Comparison(id="c", prompts=(), responses=answers, candidates=(), preferences=(edge,))
    heavy = Group(
        id=lease.group, fence=lease.fence, comparisons=(made,), media={picture.digest: picture}, version=0
    )
    assert weigh(heavy) == 60 + 8 * 8 + 5 * 8
    now(ledger.accept(heavy))
    assert now(ledger.state()).held_bytes == weigh(heavy) and now(ledger.state()).buffered == 1
    fill(ledger, range(1, 2))
    pull(ledger, 1)
    assert now(ledger.state()).held_bytes == now(ledger.state()).buffered == 0  # it is the learner's now


def test_a_report_says_who_holds_what() -> None:
    clock = Clock()
    ledger = make(groups=30, lag=9, clock=clock)
    for cursor in range(SHOWN + 3):
        clock.now += 1
        lease = now(ledger.issue(f"p{cursor}", 0, cursor, cursor % 2))
        if cursor == 1:
            now(ledger.fail(fault(lease), lease))
    report = json.loads(json.dumps(now(ledger.report())))
    assert (report["under_way"], report["waiting"], len(report["leases"])) == (SHOWN + 2, 1, SHOWN)
    oldest, next_one = report["leases"][:2]
    assert (oldest["prompt"], oldest["age_s"], oldest["generator"], oldest["tries"]) == ("p0", 22.0, 0, 0)
    assert next_one["prompt"] == "p2" and report["oldest_lease_s"] == 22.0
    assert report["counts"]["leased"] == SHOWN + 3 and report["phase"] == "running" and report["step"] == 0
    issue(ledger, 1)
    clock.now += 1
    assert [one["tries"] for one in now(ledger.report())["leases"] if one["prompt"] == "p1"] == []  # newest
    now(ledger.held_back(True))
    now(ledger.held_back(False))
    assert counts(ledger)["held_back"] == 1
    assert [line["on"] for line in told(ledger, "held_back")] == [True, False]


@given(
    cut=st.integers(0, 4),
    beyond=st.integers(0, 2),
    worlds=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    ties=st.sets(st.integers(0, 20)),
    broken=st.sets(st.integers(0, 20)),
)
def test_a_resumed_run_in_order_has_the_same_logical_ledger_and_the_same_steps_at_any_world_size(
    cut: int, beyond: int, worlds: tuple[int, int], ties: set[int], broken: set[int]
) -> None:
    """Five steps of 3 groups, made one after the other; `cut`: the step of the checkpoint; `beyond`: steps
    that are trained after it and lost. Ranks' parts, put together again, are the step in its order."""
    steps: dict[int, list[str]] = {}

    def go(ledger: Ledger, attempt: int, first: int, last: int, cursor: int, world: int) -> None:
        for step in range(first, last + 1):
            while now(ledger.state()).buffered < 3:
                lease = now(ledger.issue(f"p{cursor}", 0, cursor, 0))
                if lease is not None and cursor in broken:
                    now(ledger.fail(fault(lease, retry=False), lease))
                elif lease is not None:
                    now(ledger.accept(group(lease, step - 1, dropped="tie" if cursor in ties else None)))
                cursor += 1
            parts = [now(ledger.pull(attempt, step, rank, world)).groups for rank in range(world)]
            whole = [parts[i % world][i // world].id for i in range(3)]
            assert steps.setdefault(step, whole) == whole
            now(ledger.trained(attempt, step, {}))
            now(ledger.published(step))

    def fresh(attempt: int) -> Ledger:
        return Ledger("run", attempt, sizes(3, 1, 0, 5), max_drop_share=1.0)

    whole = fresh(1)
    go(whole, 1, 1, 5, 0, 1)
    first = fresh(1)
    go(first, 1, 1, cut, 0, worlds[0])
    snapshot = json.loads(json.dumps(now(first.snapshot(cut))))
    go(first, 1, cut + 1, min(cut + beyond, 5), snapshot["next_cursor"], worlds[0])
    second = fresh(2)
    now(second.restore(snapshot))
    go(second, 2, cut + 1, 5, snapshot["next_cursor"], worlds[1])
    for step in range(6):
        mine, other = now(second.logical(step)), now(whole.logical(step))
        assert list(mine["trained"].items()) == list(other["trained"].items())
    assert now(second.logical(5)) == now(whole.logical(5))
    assert now(second.logical(5))["trained"] == {
        name: [step, place] for step, names in steps.items() for place, name in enumerate(names)
    }
    second.check()


def test_tickets_of_later_uses_are_part_of_the_logical_ledger() -> None:
    ledger = Ledger("run", 1, sizes(1, 1, 9, 3, uses=2))
    [lease, _] = fill(ledger, range(2))
    train(ledger, 1)
    train(ledger, 2)
    assert now(ledger.logical(2))["later"] == {f"{lease.group}/0/2": [2, 0]}
    assert now(ledger.logical(1))["later"] == {}


def test_what_only_the_end_of_the_run_dropped_is_no_part_of_the_logical_ledger() -> None:
    ledger = make(groups=2, steps=1)
    leases = fill(ledger, range(4))
    train(ledger, 1)
    assert now(ledger.logical(1)) == {
        "trained": {lease.group: [1, place] for place, lease in enumerate(leases[:2])},
        "dropped": {},
        "later": {},
    }


@given(st.lists(st.integers(1, 3), min_size=1, max_size=9), st.integers(1, 5))
def test_the_parts_of_all_ranks_are_the_step_whatever_the_world(contents: list[int], world: int) -> None:
    """Each rank's part follows from the sealed order, rank and world alone; all pad to the same size."""

    def parts(arrival: list[int]) -> list[tuple[list[str], int]]:
        ledger = make(groups=len(contents))
        leases = [issue(ledger, cursor) for cursor in range(len(contents))]
        for cursor in arrival:
            now(ledger.accept(group(leases[cursor], comparisons=contents[cursor])))
        shards = [pull(ledger, 1, rank, world) for rank in range(world)]
        pull(ledger, 1, 0, world + 1)  # a world of another size in between
        assert [pull(ledger, 1, rank, world) for rank in range(world)] == shards
        return [([g.id for g in shard.groups], shard.largest) for shard in shards]

    forward = parts([*range(len(contents))])
    assert forward == parts([*reversed(range(len(contents)))])
    largest = max(sum(contents[rank::world]) for rank in range(world))
    assert {size for _, size in forward} == {largest}
    ledger = make()
    names = [issue(ledger, cursor).group for cursor in range(len(contents))]
    assert [names for names, _ in forward] == [names[rank::world] for rank in range(world)]


def test_a_ledger_starts_without_torch_and_ray() -> None:
    code = (
        "import sys, actors.ledger\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(loaded & {'torch', 'ray', 'vllm', 'deepspeed', 'transformers'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
