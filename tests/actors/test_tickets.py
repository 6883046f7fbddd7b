"""Later uses of comparisons: how often, when, drawn from what, and over a resume."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.ledger import Ledger
from actors.tickets import BODIES, decode, encode
from pipelines.admission import Admission, Stretch
from pipelines.types import (
    NEVER_STALE,
    Behaviour,
    Candidate,
    Comparison,
    Group,
    Media,
    Message,
    Op,
    Part,
    Preference,
    Prompt,
    Response,
    Score,
    Shard,
)
from tests.actors.ledger_calls import group, issue, now, pull, sizes, train

Uses = list[tuple[str, int]]  # (comparison, use) of a step


def ledger(*lasts: int, groups: int = 2, lag: int = 9, **reuse: Any) -> Ledger:
    return Ledger("run", 1, sizes(groups, 1, lag, *lasts, **reuse))


def feed(books: Ledger, steps: range, comparisons: int = 1, groups: int = 2) -> list[Uses]:
    """Train these steps on fresh groups; what each of them held."""
    held: list[Uses] = []
    for step in steps:
        for cursor in range((step - 1) * groups, step * groups):
            now(books.accept(group(issue(books, cursor), step - 1, comparisons)))
        held.append(uses(train(books, step)))
        now(books.published(step))
        books.check()
    return held


def uses(shard: Shard) -> Uses:
    return [(c.id, g.use) for g in shard.groups for c in g.comparisons]


def later(books: Ledger) -> Any:
    return now(books.counts())["later_uses"]


def saved(books: Ledger, step: int) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What a checkpoint's manifest holds of the ledger, and the file beside it."""
    snapshot = now(books.snapshot(step))
    bodies = {BODIES: snapshot.pop(BODIES)} if BODIES in snapshot else {}
    return json.loads(json.dumps(snapshot)), bodies


def test_each_comparison_comes_up_as_often_as_asked_in_steps_that_follow() -> None:
    held = feed(ledger(5, uses=3), range(1, 6))
    by_step = [Counter(use for _, use in step) for step in held]
    assert by_step == [{1: 2}, {1: 2, 2: 2}] + [{1: 2, 2: 2, 3: 2}] * 3
    first = {name for name, _ in held[0]}
    assert [sorted(use for name, use in step if name in first) for step in held[:4]] == [
        [1, 1],
        [2, 2],
        [3, 3],
        [],
    ]


def test_what_the_end_of_a_stage_leaves_over_is_dropped_by_name() -> None:
    """Stages end at 2 and 3. Step 2 leaves use 3 of step 1's groups, and uses 2 and 3 of its own; step 3, the
    last of the run, leaves uses 2 and 3 of its own."""
    books = ledger(2, 3, uses=3)
    held = feed(books, range(1, 4))
    assert [Counter(use for _, use in step) for step in held] == [{1: 2}, {1: 2, 2: 2}, {1: 2}]
    assert later(books) == {
        "minted": 12,
        "open": 0,
        "trained": 2,
        "dropped": {"stage_over": 2 + 4, "end_of_run": 4},
        "released": 0,
    }


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_replayed_comparisons_make_up_their_share_of_a_step(share: float) -> None:
    """With 8 fresh comparisons: r / (1 - r) * 8 replayed ones as soon as there are so many."""
    books = ledger(9, groups=4, replay=share)
    held = feed(books, range(1, 9), comparisons=2, groups=4)
    assert all(use == 1 for _, use in held[0])
    wanted = round(share / (1 - share) * 8)
    for step, content in enumerate(held[1:], start=1):
        again = [name for name, use in content if use > 1]
        assert len(again) == min(wanted, 8 * step) and len(set(again)) == len(again)
        earlier = {name for before in held[:step] for name, _ in before}
        assert set(again) <= earlier


def test_ranks_share_replayed_comparisons_too() -> None:
    books = ledger(3, uses=2)
    feed(books, range(1, 2), comparisons=3)
    for cursor in (2, 3):
        now(books.accept(group(issue(books, cursor), 1)))
    parts = [pull(books, 2, rank, 2) for rank in (0, 1)]
    assert sorted(use for part in parts for _, use in uses(part)) == [1, 1, *[2] * 6]
    assert {part.largest for part in parts} == {max(len(uses(part)) for part in parts)}


def test_draws_depend_on_the_seed_and_on_nothing_else() -> None:
    def run(seed: int) -> list[Uses]:
        return feed(Ledger("run", 1, sizes(2, 1, 9, 8, replay=0.5), seed=seed), range(1, 8))

    assert run(1) == run(1) != run(2)


def test_lag_is_that_of_fresh_groups() -> None:
    books = ledger(6, replay=0.5, lag=0)
    feed(books, range(1, 6))
    metrics = now(books.progress(0))
    assert {line["lag_max"] for line in metrics} == {0} and {line["groups"] for line in metrics} == {2}
    assert "reused" not in metrics[0] and metrics[1]["reused"] == 0.5


def test_a_stop_releases_what_waits_for_another_use() -> None:
    books = ledger(9, uses=2)
    feed(books, range(1, 3))
    now(books.release())
    books.check()
    assert later(books)["released"] == 2 and later(books)["open"] == 0


@given(
    st.integers(1, 3),
    st.sampled_from([0.0, 0.3, 0.5]),
    st.integers(1, 5),
    st.booleans(),
    st.integers(0, 3),
)
def test_a_resumed_run_holds_the_steps_that_the_first_one_would_have(
    n: int, share: float, cut: int, ahead: bool, seed: int
) -> None:
    """Stages end at 3 and 7. A run is cut after step `cut`, possibly with the next step sealed; its successor
    trains the same tickets in the same steps, and none twice."""
    sized = sizes(2, 1, 9, 3, 7, uses=n, replay=share)
    whole = feed(Ledger("run", 1, sized, seed=seed), range(1, 8), comparisons=2)
    first = Ledger("run", 1, sized, seed=seed)
    before = feed(first, range(1, cut + 1), comparisons=2)
    snapshot, bodies = saved(first, cut)
    if ahead:
        for cursor in (2 * cut, 2 * cut + 1):
            now(first.accept(group(issue(first, cursor), cut, 2)))
        pull(first, cut + 1)
        assert saved(first, cut)[0]["later"] == snapshot["later"]
    second = Ledger("run", 2, sized, seed=seed)
    now(second.restore(snapshot | bodies))
    second.check()
    after: list[Uses] = []
    for step in range(cut + 1, 8):
        for cursor in range((step - 1) * 2, step * 2):
            now(second.accept(group(issue(second, cursor), step - 1, 2)))
        after.append(uses(now(second.pull(2, step, 0, 1))))
        now(second.trained(2, step, {}))
        now(second.published(step))
        second.check()
    assert [sorted(step) for step in before + after] == [sorted(step) for step in whole]
    seen: defaultdict[tuple[str, int], int] = defaultdict(int)
    for step in before + after:
        assert len({name for name, _ in step}) == len(step)  # never twice in one step
        for ticket in step:
            seen[ticket] += 1
    assert set(seen.values()) == {1}


def test_a_resume_without_its_bodies_is_refused() -> None:
    books = ledger(9, uses=2)
    feed(books, range(1, 3))
    with pytest.raises(ValueError, match=r"replay.npz holds 0 groups, its manifest names 2"):
        now(ledger(9, uses=2).restore(saved(books, 2)[0]))
    with pytest.raises(ValueError, match="no bodies of step 1"):
        now(books.snapshot(1))


def test_a_snapshot_of_an_older_step_knows_nothing_of_later_ones() -> None:
    stages = (Stretch(last=1, max_lag=9), Stretch(last=3, max_lag=9, uses=2))
    books = Ledger("run", 1, Admission(sync_every=1, groups_per_step=2, stages=stages))
    feed(books, range(1, 4))
    assert later(books)["trained"] == 2
    assert now(books.snapshot(1))["later"]["trained"] == []
    with pytest.raises(ValueError, match="no bodies of step 2"):
        now(books.snapshot(2))  # step 3 has used them up


def test_a_run_without_later_uses_keeps_no_bodies_and_says_nothing_of_them() -> None:
    books = ledger(9)
    feed(books, range(1, 4))
    assert saved(books, 3)[1] == {} and "later_uses" not in now(books.counts())


def test_bodies_come_back_as_they_were() -> None:
    picture = Media(
        kind="image",
        space="rgb8",
        payload=np.arange(12, dtype=np.uint8).reshape(2, 2, 3),
        parent="p",
        op=Op(name="noise", params={"boxes": [[1, 2]], "strength": 0.5}, seed=3),
    )
    parts = (Part(kind="image", digest=picture.digest), Part(kind="text", text="what \u2028 is it"))
    prompt = Prompt(
        id="x", messages=(Message(role="user", parts=parts),), acts=(Op(name="drop"),), gold={"n": [1, None]}
    )
    response = Response(tokens=(1, 2), text="é", targets=(1, -1))
    behaviour = Behaviour(
        stream="policy", decoder={"temperature": 1.0}, oldest=1, newest=2, logps=(-0.1, -1e-9)
    )
    cells = (
        Candidate(
            prompt=0, response=0, role="w", score=Score(value=0.1, parts={"a": 1.0}), behaviour=behaviour
        ),
        Candidate(prompt=0, response=0, role="l", score=Score(value=None, missing="HTTP 500")),
    )
    spans = {"words": ((1.0, 0.0), (0.0, 1.0))}
    made = Comparison(
        id="g/0",
        stage=1,
        prompts=(prompt,),
        responses=(response,),
        candidates=cells,
        preferences=(Preference(name="text", winner=0, loser=1, probability=0.7, spans=spans),),
    )
    held = Group(id="g", fence=1, comparisons=(made,), media={picture.digest: picture}, version=NEVER_STALE)
    [again] = decode(encode([held]))
    assert again.comparisons == held.comparisons and again.version == NEVER_STALE
    [back] = again.media.values()
    assert (back.digest, back.op, back.parent) == (picture.digest, picture.op, "p")
    odd = replace(prompt, gold={"odd": np.float32(1.5)})  # what JSON cannot say becomes text
    [again] = decode(encode([replace(held, comparisons=(replace(made, prompts=(odd,)),))]))
    assert again.comparisons[0].prompts[0].gold == {"odd": "1.5"}
