"""The ledger's rules, one by one."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from actors.ledger import Ledger, group_id
from pipelines.admission import Admission, Stretch
from pipelines.loop import RunFailed
from pipelines.types import NEVER_STALE, Group, Media, Receipt, Shard
from tests.actors.ledger_calls import (
    comparison,
    counts,
    fault,
    fill,
    group,
    issue,
    make,
    now,
    pull,
    sizes,
    train,
    waits,
)

DAMAGE = np.zeros((2, 2, 3), np.uint8)


# --- identity and delivery ---------------------------------------------------------------------------------


def test_a_group_is_the_same_in_every_attempt_and_differs_by_prompt_and_epoch() -> None:
    assert group_id("run", "p", 0) == now(Ledger("run", 7, sizes(1, 1, 0, 1)).issue("p", 0, 5, 3)).group
    assert (
        len(
            {group_id("run", "p", 0), group_id("run", "p", 1), group_id("run", "q", 0), group_id("b", "p", 0)}
        )
        == 4
    )


def test_fences_grow_over_leases_and_attempts_and_the_seed_does_not_depend_on_them() -> None:
    first, second = make(), Ledger("run", 2, sizes(2, 1, 1, 100))
    lease = issue(first, 0)
    assert now(first.fail(fault(lease), lease)) == "again"
    again, other = issue(first, 0), issue(second, 0)
    assert lease.fence < again.fence < other.fence
    assert lease.seed == again.seed == other.seed != issue(first, 1).seed


def test_a_delivery_under_an_old_fence_is_a_counted_no_op() -> None:
    ledger = make()
    old = issue(ledger, 0)
    now(ledger.fail(fault(old), old))
    assert now(ledger.accept(group(old))) == Receipt(group=old.group, accepted=False)  # waits to be re-issued
    new = issue(ledger, 0)
    assert not now(ledger.accept(group(old))).accepted
    assert now(ledger.accept(group(new))).accepted
    assert counts(ledger)["fenced"] == 2 and counts(ledger)["buffered"] == 1 and counts(ledger)["issued"] == 1


def test_a_repeated_delivery_is_accepted_once() -> None:
    ledger = make(groups=1)
    lease = issue(ledger, 0)
    receipts = [now(ledger.accept(group(lease)))]
    receipts.append(now(ledger.accept(group(lease))))
    train(ledger, 1)
    receipts.append(now(ledger.accept(group(lease))))
    assert [receipt.accepted for receipt in receipts] == [True] * 3
    assert counts(ledger)["duplicate"] == 2 and counts(ledger)["trained"] == 1


def test_a_failure_of_an_old_lease_does_not_void_the_new_one() -> None:
    ledger = make()
    old = issue(ledger, 0)
    now(ledger.fail(fault(old), old))
    new = issue(ledger, 0)
    assert now(ledger.fail(fault(old), old)) == "drop"
    assert now(ledger.accept(group(new))).accepted


def test_two_rows_with_one_id_are_an_error() -> None:
    ledger = make()
    issue(ledger, 0)
    with pytest.raises(ValueError, match="'p0' of epoch 0 is under way"):
        now(ledger.issue("p0", 0, 9, 0))


def test_the_ledger_owns_the_bytes() -> None:
    ledger = make(groups=1)
    lease = issue(ledger, 0)
    shared = np.zeros((2, 2, 3), np.uint8)
    media = Media(kind="image", space="rgb8", payload=shared)
    digest = media.digest
    made = Group(
        id=lease.group, fence=lease.fence, comparisons=(comparison("c"),), media={digest: media}, version=0
    )
    now(ledger.accept(made))
    shared[:] = 255
    [held] = pull(ledger, 1).groups
    assert not held.media[digest].payload.any() and not np.shares_memory(held.media[digest].payload, shared)


@pytest.mark.parametrize(
    ("made", "reason"), [({"dropped": "tie"}, "tie"), ({"comparisons": 0}, "no_comparison")]
)
def test_a_group_without_comparison_is_a_named_drop(made: dict[str, Any], reason: str) -> None:
    ledger = make()
    receipt = now(ledger.accept(group(issue(ledger, 0), **made), "why"))
    assert receipt.dropped == reason and not receipt.accepted
    assert counts(ledger)["dropped"] == {reason: 1}
    [event] = [event for event in now(ledger.events(0)) if event["event"] == "drop"]
    assert (event["reason"], event["detail"]) == (reason, "why")
    assert now(ledger.events(event["number"])) == []


# --- steps -------------------------------------------------------------------------------------------------


def test_a_step_is_sealed_once_and_every_rank_gets_its_part_again_and_again() -> None:
    ledger = make(groups=5)
    leases = fill(ledger, range(5))
    parts = [pull(ledger, 1, rank, 2) for rank in (0, 1)]
    fill(ledger, range(5, 8))  # what arrives later does not change the answer
    assert [pull(ledger, 1, rank, 2) for rank in (0, 1)] == parts
    names = [[g.id for g in part.groups] for part in parts]
    assert names == [[leases[i].group for i in (0, 2, 4)], [leases[i].group for i in (1, 3)]]
    assert [part.largest for part in parts] == [3, 3]


def test_a_step_is_ordered_by_cursor_whatever_the_order_of_arrival() -> None:
    ledger = make(groups=4)
    leases = [issue(ledger, cursor) for cursor in range(4)]
    for lease in reversed(leases):
        now(ledger.accept(group(lease)))
    assert [g.id for g in pull(ledger, 1).groups] == [lease.group for lease in leases]


def test_every_rank_pads_to_the_comparisons_of_the_largest_part() -> None:
    ledger = make(groups=3)
    for cursor, size in enumerate((1, 4, 2)):
        now(ledger.accept(group(issue(ledger, cursor), comparisons=size)))
    assert [pull(ledger, 1, rank, 2).largest for rank in (0, 1)] == [4, 4]  # 1 + 2 against 4
    assert pull(ledger, 1, 3, 4).groups == ()  # more ranks than groups: a part may be empty


def test_the_oldest_go_first_and_what_is_too_old_is_dropped_and_frees_its_slot() -> None:
    ledger = make(groups=2, lag=1)
    fill(ledger, range(4), version=0)
    train(ledger, 1)
    now(ledger.published(1))
    fill(ledger, range(4, 6), version=1)
    shard = train(ledger, 2)
    assert [g.version for g in shard.groups] == [0, 0]
    late = issue(ledger, 6)
    now(ledger.published(2))
    receipt = now(ledger.accept(group(late, version=0)))
    assert receipt.dropped == "stale"
    assert counts(ledger)["dropped"] == {"stale": 1} and now(ledger.state()).live == 2


def test_lag_is_counted_against_what_is_due_even_if_the_publication_is_not_reported_yet() -> None:
    ledger = make(groups=1, lag=0, sync_every=2)
    fill(ledger, range(3), version=0)
    train(ledger, 1)
    train(ledger, 2)  # step 2 still starts from version 0
    assert counts(ledger)["dropped"] == {"stale": 1}
    assert waits(ledger.pull(1, 3, 0, 1))


def test_a_rank_ahead_of_the_report_waits_and_a_trained_step_is_refused() -> None:
    ledger = make(groups=1)
    fill(ledger, range(3))
    pull(ledger, 1)
    assert waits(ledger.pull(1, 2, 0, 1))
    now(ledger.trained(1, 1, {"loss": 1.0}))
    now(ledger.trained(1, 1, {"loss": 2.0}))  # the second rank
    assert pull(ledger, 2).step == 2
    assert [m["loss"] for m in now(ledger.progress(0))] == [1.0]
    with pytest.raises(ValueError, match="step 1 is trained already"):
        pull(ledger, 1)
    with pytest.raises(ValueError, match="step 3 was never handed out"):
        now(ledger.trained(1, 3, {}))


def test_metrics_join_the_rollout_side_and_the_learner_has_the_last_word() -> None:
    ledger = make(groups=2, lag=2)
    now(ledger.accept(group(issue(ledger, 0), dropped="tie", facts={"reward": 0.0})))
    for cursor, reward in ((1, 1.0), (2, 2.0)):
        now(
            ledger.accept(
                group(issue(ledger, cursor), facts={"reward": reward}, seconds={"rollout/sample": 2.0})
            )
        )
    pull(ledger, 1)
    now(ledger.trained(1, 1, {"loss": 0.5, "lag_max": 7}))
    [metrics] = now(ledger.progress(0))
    assert metrics["reward"] == 1.0  # the tie counts: (0 + 1 + 2) / 3
    assert (metrics["loss"], metrics["lag_max"], metrics["lag_mean"], metrics["groups"]) == (0.5, 7, 0.0, 2)
    seconds = [event for event in now(ledger.events(0)) if event["event"] == "stage_seconds"]
    assert seconds[0]["seconds"] == {"rollout/sample": 4.0}


# --- ends --------------------------------------------------------------------------------------------------


def test_the_end_of_data_trains_the_rest_as_a_smaller_step() -> None:
    ledger = make(groups=2)
    leases = [issue(ledger, cursor) for cursor in range(3)]
    now(ledger.finish())
    assert waits(ledger.pull(1, 1, 0, 1))
    for lease in leases:
        now(ledger.accept(group(lease)))
    assert [len(train(ledger, 1).groups), pull(ledger, 2).drained] == [2, True]
    now(ledger.trained(1, 2, {}))
    assert pull(ledger, 3).stop
    assert counts(ledger)["trained"] == 3 and now(ledger.state()).live == 0


def test_after_the_last_step_the_rest_is_dropped_and_late_work_changes_nothing() -> None:
    ledger = make(groups=2, steps=1)
    fill(ledger, range(3))
    straggler = issue(ledger, 3)
    assert train(ledger, 1).drained
    assert now(ledger.issue("p9", 0, 9, 0)) is None
    assert not now(ledger.accept(group(straggler))).accepted
    assert pull(ledger, 2).stop and now(ledger.state()).phase == "ended"
    assert counts(ledger)["dropped"] == {"end_of_run": 2} and counts(ledger)["late"] == 1


def test_a_stop_hands_out_what_is_sealed_and_releases_the_rest() -> None:
    ledger = make(groups=2)
    fill(ledger, range(5))
    sealed = pull(ledger, 1)
    issue(ledger, 5)
    now(ledger.stop())
    assert pull(ledger, 1) == sealed
    now(ledger.trained(1, 1, {}))
    assert pull(ledger, 2).stop and now(ledger.issue("p9", 0, 9, 0)) is None
    now(ledger.release())
    assert counts(ledger)["released"] == 4 and counts(ledger)["trained"] == 2
    assert now(ledger.state()).live == 0


def test_a_run_that_trains_nothing_at_all_fails_and_says_why() -> None:
    ledger = make()
    now(ledger.accept(group(issue(ledger, 0), dropped="tie")))
    now(ledger.finish())
    with pytest.raises(RunFailed, match=r"before a single step.*'tie': 1"):
        pull(ledger, 1)


def test_the_share_of_one_reason_is_taken_over_the_last_hundred() -> None:
    ledger = make(groups=1, steps=1000, max_drop_share=0.5, lag=10**6)
    for cursor in range(50):
        now(ledger.accept(group(issue(ledger, cursor), dropped="missing_score"), "HTTP 500"))
    assert now(ledger.state()).phase == "running"
    now(ledger.accept(group(issue(ledger, 50), dropped="tie")))  # another reason does not add up
    assert now(ledger.state()).phase == "running"
    now(ledger.accept(group(issue(ledger, 51), dropped="missing_score"), "HTTP 500"))
    assert now(ledger.issue("p60", 0, 60, 0)) is None
    with pytest.raises(
        RunFailed, match=r"51 of the last 100 groups were dropped for 'missing_score'.*HTTP 500"
    ):
        pull(ledger, 1)


def test_trained_groups_keep_a_bearable_share_of_drops_bearable() -> None:
    ledger = make(groups=1, steps=1000, max_drop_share=0.5, lag=10**6)
    for cursor in range(300):
        now(ledger.accept(group(issue(ledger, cursor), dropped="tie" if cursor % 5 < 2 else None)))
        if cursor % 5 >= 2:
            train(ledger, now(ledger.state()).trained + 1)
    assert now(ledger.state()).phase == "running" and counts(ledger)["dropped"] == {"tie": 120}


def test_groups_waiting_for_their_step_count_against_the_share_of_drops() -> None:
    ledger = make(groups=100, steps=10, max_drop_share=0.5, lag=10**6)
    for cursor in range(120):  # no step is sealed meanwhile
        now(ledger.accept(group(issue(ledger, cursor), dropped="tie" if cursor % 5 < 2 else None)))
    assert now(ledger.state()).phase == "running" and counts(ledger)["dropped"] == {"tie": 48}


def test_other_attempts_are_refused() -> None:
    ledger = make()
    for call in (ledger.pull(2, 1, 0, 1), ledger.trained(0, 1, {})):
        with pytest.raises(PermissionError, match="belongs to attempt"):
            now(call)


def test_a_wait_without_news_ends_in_an_error_that_says_what_is_missing() -> None:
    ledger = make(wait_s=0.05, start_s=0.05)
    issue(ledger, 0)
    with pytest.raises(TimeoutError, match=r"step 1 waits for 2 groups.*'leased': 1"):
        asyncio.run(ledger.pull(1, 1, 0, 1))


def test_waiting_calls_wake_when_something_happens() -> None:
    async def main() -> tuple[Shard, int]:
        ledger = make(groups=1, wait_s=5)
        pulling = asyncio.create_task(ledger.pull(1, 1, 0, 1))
        watching = asyncio.create_task(ledger.changed(0, 5))
        await asyncio.sleep(0)
        lease = await ledger.issue("p", 0, 0, 0)
        assert lease is not None
        await ledger.accept(group(lease))
        return await asyncio.wait_for(pulling, 2), (await asyncio.wait_for(watching, 2)).revision

    shard, revision = asyncio.run(main())
    assert len(shard.groups) == 1 and revision >= 1


# --- snapshots ---------------------------------------------------------------------------------------------


def test_a_snapshot_is_json_and_a_resume_issues_all_that_was_not_trained() -> None:
    ledger = make(groups=2, lag=5, steps=3)
    fill(ledger, range(6))
    now(ledger.accept(group(issue(ledger, 6), dropped="tie")))
    for step in (1, 2, 3):
        train(ledger, step)
    issued_late = make(groups=2, lag=5, steps=3)
    snapshot = json.loads(json.dumps(now(ledger.snapshot(1))))
    assert snapshot["next_cursor"] == 2 and len(snapshot["trained"]) == 2
    now(issued_late.restore(snapshot))
    again = [now(issued_late.issue(f"p{cursor}", 0, cursor, 0)) for cursor in range(8)]
    assert [lease is None for lease in again] == [True, True, False, False, False, False, True, False]
    with pytest.raises(ValueError, match="never handed out"):
        now(issued_late.trained(1, 3, {}))
    assert counts(issued_late)["dropped"] == {"tie": 1} and now(issued_late.state()).trained == 2


def test_what_only_the_end_of_the_run_dropped_is_issued_again_by_a_longer_run() -> None:
    ledger = make(groups=2, steps=1)
    fill(ledger, range(4))
    train(ledger, 1)
    longer = make(groups=2, steps=5)
    now(longer.restore(now(ledger.snapshot(1))))
    assert now(ledger.snapshot(1))["next_cursor"] == 2
    assert issue(longer, 2).cursor == 2 and counts(longer)["dropped"] == {}


def test_what_was_released_before_the_snapshot_is_issued_again() -> None:
    ledger = make(groups=1, lag=5)
    fill(ledger, range(3))
    train(ledger, 1)
    now(ledger.release())
    assert now(ledger.snapshot(1))["next_cursor"] == 1


def test_restoring_needs_a_fresh_ledger_of_the_same_run() -> None:
    snapshot = now(make().snapshot(0))
    used = make()
    issue(used, 0)
    with pytest.raises(ValueError, match="cannot be restored"):
        now(used.restore(snapshot))
    with pytest.raises(ValueError, match="of run 'run', this is run 'other'"):
        now(Ledger("other", 1, sizes(1, 1, 0, 1)).restore(snapshot))
    with pytest.raises(ValueError, match="no snapshot of step 4"):
        now(used.snapshot(4))


# --- stages ------------------------------------------------------------------------------------------------


def staged(groups: int = 2, lag: int = 1, lasts: tuple[int, ...] = (2, 4), **more: Any) -> Ledger:
    return Ledger("run", 1, sizes(groups, 1, lag, *lasts), **more)


def test_a_lease_names_the_step_that_it_is_for_and_its_stage() -> None:
    ledger = staged()
    leases = [issue(ledger, cursor) for cursor in range(5)]
    assert [(lease.step, lease.stage) for lease in leases] == [(1, 0), (1, 0), (2, 0), (2, 0), (2, 0)]
    now(ledger.fail(fault(leases[0]), leases[0]))
    assert issue(ledger, 0).step == 2  # four others are under way by now
    ledger = staged()
    first, _ = issue(ledger, 0), issue(ledger, 1)
    now(ledger.fail(fault(first), first))
    assert issue(ledger, 0).step == 1  # it does not count itself


def test_a_stage_opens_when_the_last_one_is_trained_and_its_version_is_out() -> None:
    ledger = staged()
    fill(ledger, range(4))
    train(ledger, 1)
    pull(ledger, 2)
    assert now(ledger.state()).stage == 0
    now(ledger.published(2))
    assert now(ledger.state()).stage == 0  # out, but the ledger has not heard that the step is trained
    now(ledger.trained(1, 2, {}))
    assert now(ledger.state()).stage == 1
    first = issue(ledger, 4)
    assert (first.step, first.stage) == (3, 1)
    other = staged()
    fill(other, range(4))
    train(other, 1)
    train(other, 2)
    assert now(other.state()).stage == 0  # trained, but not out
    now(other.published(2))
    assert now(other.state()).stage == 1


def test_what_a_stage_leaves_over_is_dropped_by_name_and_is_nobodys_fault() -> None:
    ledger = staged(groups=1, lasts=(1, 3), lag=5, max_drop_share=0.01)
    [leased] = [issue(ledger, 0)]
    fill(ledger, range(1, 3))
    pull(ledger, 1)
    assert not now(ledger.accept(group(leased))).accepted
    early = issue(ledger, 3)  # nobody should ask before the stage is open; it cannot do any harm
    assert early.stage == 0 and now(ledger.accept(group(early))).dropped == "stage_over"
    assert counts(ledger)["dropped"] == {"stage_over": 3} and now(ledger.state()).phase == "running"
    now(ledger.trained(1, 1, {}))
    now(ledger.published(1))
    again = now(ledger.issue("p0", 0, 0, 0))
    assert again is None and issue(ledger, 4).stage == 1  # its prompt is spent
    assert [e["reason"] for e in now(ledger.events(0)) if e["event"] == "drop"] == ["stage_over"] * 3


def test_the_tightest_lag_is_that_of_the_stage() -> None:
    stages = (Stretch(last=1, max_lag=3), Stretch(last=9, max_lag=0))
    ledger = Ledger("run", 1, Admission(sync_every=1, groups_per_step=1, stages=stages))
    fill(ledger, range(1))
    train(ledger, 1)
    now(ledger.published(1))
    fill(ledger, range(1, 3), version=1)
    assert [g.version for g in train(ledger, 2).groups] == [1]
    assert counts(ledger)["dropped"] == {"stale": 1}  # version 2 is due for step 3


def test_what_nobody_sampled_is_never_stale_and_is_handed_out_as_new() -> None:
    ledger = make(groups=1, lag=0)
    fill(ledger, range(3), version=NEVER_STALE)
    assert [train(ledger, step).groups[0].version for step in (1, 2, 3)] == [0, 1, 2]
    assert counts(ledger)["dropped"] == {} and now(ledger.progress(0))[2]["lag_max"] == 0


def test_a_resume_goes_on_in_the_open_stage() -> None:
    ledger = staged()
    fill(ledger, range(4))
    train(ledger, 1)
    train(ledger, 2)
    now(ledger.published(2))
    snapshot = json.loads(json.dumps(now(ledger.snapshot(2))))
    resumed = staged()
    now(resumed.restore(snapshot))
    state = now(resumed.state())
    assert (state.stage, state.cursor, issue(resumed, 4).step) == (1, 4, 3)
