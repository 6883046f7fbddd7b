"""One lease in one process: a fake generator, a real perturber, the real ledger and real group programs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from actors.generator import EngineError, ForbiddenToken, PromptMismatch, Quarantined
from actors.ledger import Ledger
from actors.perturber import Perturber
from actors.scorer import Pool, Scorer, check_versions, facts_of
from pipelines.comparisons import Edges
from pipelines.data.base import BadRow
from pipelines.loop import RoleFailed
from pipelines.objectives.base import Objective
from pipelines.perturbations.base import DamageRequest, Regions
from pipelines.recipe import Stage
from pipelines.rollout import Choose, Damage, Drop, Sample
from pipelines.settings import Settings
from pipelines.types import (
    Behaviour,
    Fault,
    Lease,
    Media,
    MediaTable,
    Message,
    Op,
    Part,
    Prompt,
    Receipt,
    Response,
    Rollout,
    Score,
)


@dataclass(frozen=True)
class Blacken:
    def __call__(self, media: Media, mask: Any, seed: int) -> Media:
        payload = np.array(media.payload)
        payload[mask if mask is not None else ...] = 0
        return Media(kind="image", space="rgb8", payload=payload, parent=media.digest, op=Op(name="blacken"))


@dataclass(frozen=True)
class Corner:
    """Finds the corner when the answer speaks of it."""

    def __call__(self, media: Media, answer: str, gold: Any) -> Regions | None:
        mask = np.zeros(media.payload.shape[:2], bool)
        mask[0, 0] = True
        return Regions(mask=mask) if "corner" in answer else None


class Source:
    kind, path = "glyphs", None

    def row(self, raw: Any, position: int) -> dict[str, Any]:
        return {"id": f"row-{position}", "value": raw}

    def prompt(self, row: Any) -> tuple[Prompt, dict[str, Media]]:
        if row["value"] == "bad":
            raise BadRow("data.jsonl:7", "image 1", "nothing", "a picture")
        picture = Media(kind="image", space="rgb8", payload=np.full((2, 2, 3), 9, np.uint8))
        parts = (Part(kind="image", digest=picture.digest), Part(kind="text", text="describe"))
        prompt = Prompt(
            id=row["id"], messages=(Message(role="user", parts=parts),), gold={"row": row["value"]}
        )
        return prompt, {picture.digest: picture}


@dataclass
class Generator:
    texts: tuple[str, ...] = ("bad", "good corner", "fair")
    version: int = 3
    error: Exception | None = None
    calls: list[tuple[str, int, int]] = field(default_factory=list)

    async def sample(self, prompt: Prompt, media: MediaTable, n: int, seed: int) -> tuple[Rollout, ...]:
        self.calls.append((prompt.id, n, seed))
        if self.error is not None:
            raise self.error
        behaviour = Behaviour(
            stream="policy", decoder={}, oldest=self.version, newest=self.version, logps=(-1.0,)
        )
        answers = [Response(tokens=(i, 2), text=text, finished=i != 2) for i, text in enumerate(self.texts)]
        return tuple(Rollout(prompt=prompt, response=answer, behaviour=behaviour) for answer in answers)


VALUES = {"bad": -1.0, "good corner": 2.0, "good": 2.0, "fair": 0.5}


def reward(prompt: Prompt, response: Response) -> Score:
    value = VALUES[response.text]
    return Score(value=value, parts={"right": max(value, 0.0), "wrong": max(-value, 0.0)})


STAGE = Stage(
    rollout=Sample(3) >> Choose() >> Damage("m", Blacken(), Corner()),
    compare=Edges({"text": ("w@x", "l@x"), "media": ("w@x", "w@m")}),
    objective=Objective(()),
)


def ledger() -> Ledger:
    return Ledger("run", 1, 1, 1, 5, 10)


def scorer(
    books: Any, generators: list[Any], judge: Any = reward, stage: Stage = STAGE, **more: Any
) -> Scorer:
    settings = Settings.model_validate({"rollout": {"reward_timeout_s": 1}})
    return Scorer(stage, settings, Source(), generators, more.get("perturbers", [Perturber()]), books, judge)


def produce(books: Ledger, *args: Any, parcel: Any = ((0, None),), generator: int = 0, **more: Any) -> Any:
    async def main() -> Receipt | Fault:
        lease = await books.issue("p0", 0, 0, generator)
        assert lease is not None
        return await scorer(books, *args, **more).produce(lease, parcel)

    return asyncio.run(main())


def delivered(books: Ledger) -> Any:
    return asyncio.run(books.pull(1, 1, 0, 1)).groups[0]


def test_a_lease_becomes_a_group_with_both_edges_its_media_and_its_facts() -> None:
    books, generator = ledger(), Generator()
    receipt = produce(books, [generator])
    assert receipt.accepted and receipt.dropped is None
    group = delivered(books)
    [comparison] = group.comparisons
    assert [r.text for r in comparison.responses] == ["good corner", "bad"]
    assert [(e.name, comparison.axis(e)) for e in comparison.preferences] == [
        ("text", "text"),
        ("media", "media"),
    ]
    clean, damaged = (group.media[p.media[0]] for p in comparison.prompts)
    assert clean.payload[0, 0, 0] == 9 and damaged.payload[0, 0, 0] == 0 and damaged.payload[1, 1, 0] == 9
    assert group.version == 3 and set(group.media) == {clean.digest, damaged.digest}
    assert group.facts == pytest.approx(
        {
            "reward": 0.5,
            "reward_best": 2.0,
            "reward_worst": -1.0,
            "missing": 0.0,
            "hallucination": 1 / 3.5,
            "sampled_tokens": 6,
            "finished": 2 / 3,
            "fallback": 0.0,
        }
    )
    assert set(group.seconds) == {f"rollout/{stage}" for stage in ("prompt", "sample", "score", "damage")}


def test_the_same_lease_asks_for_the_same_samples() -> None:
    generators = [Generator(), Generator()]
    for generator in generators:
        produce(ledger(), [generator])
    assert generators[0].calls == generators[1].calls


def test_the_lease_names_the_generator() -> None:
    books, generators = ledger(), [Generator(), Generator(version=4)]
    produce(books, generators, generator=1)
    assert not generators[0].calls and delivered(books).version == 4


def test_an_awaitable_parcel_is_awaited() -> None:
    async def content() -> tuple[int, None]:
        return 41, None

    books = ledger()
    generator = Generator()
    produce(books, [generator], parcel=[content()])
    assert generator.calls[0][0] == "row-41"


def test_whole_image_fallback_is_counted() -> None:
    books = ledger()
    produce(books, [Generator(texts=("bad", "good", "fair"))])
    assert delivered(books).facts["fallback"] == 1.0


def test_a_tie_is_a_drop_that_still_has_facts() -> None:
    books = ledger()
    receipt = produce(books, [Generator(texts=("good", "good"))])
    assert receipt.dropped == "tie" and not receipt.accepted and receipt.facts["reward"] == 2.0


def raises(prompt: Prompt, response: Response) -> Score:
    raise KeyError("colour")


async def slow(prompt: Prompt, response: Response) -> Score:
    await asyncio.sleep(30)
    raise AssertionError


def wrong_type(prompt: Prompt, response: Response) -> Any:
    return 0.0


@pytest.mark.parametrize(
    ("broken", "why"), [(raises, "KeyError: 'colour'"), (wrong_type, "returned float, not a Score")]
)
def test_a_reward_that_fails_is_missing_never_zero(broken: Any, why: str) -> None:
    books = ledger()
    receipt = produce(books, [Generator()], broken)
    assert receipt.dropped == "missing_score" and receipt.facts["missing"] == 1.0
    assert "reward" not in receipt.facts
    [drop] = asyncio.run(books.events(0))
    assert why in drop["detail"]


def test_an_async_reward_is_awaited_and_one_failure_spares_the_others() -> None:
    async def mixed(prompt: Prompt, response: Response) -> Score:
        if response.text == "fair":
            raise ConnectionError("HTTP 500")
        return reward(prompt, response)

    books = ledger()
    receipt = produce(books, [Generator()], mixed)
    assert (
        receipt.accepted
        and receipt.facts["missing"] == pytest.approx(1 / 3)
        and receipt.facts["reward"] == 0.5
    )


@pytest.mark.parametrize(
    ("error", "reason", "retry"),
    [
        (RoleFailed("generator_died", "generator", "node a"), "generator_died", True),
        (Quarantined("weight version 3"), "quarantined", True),
        (EngineError("the engine stopped"), "engine_error", True),
        (ForbiddenToken("a special token"), "forbidden_token", False),
        (PromptMismatch("image tokens"), "prompt_mismatch", False),
        (TimeoutError(), "timeout", True),
    ],
)
def test_a_failing_generator_is_a_fault_that_names_it(error: Exception, reason: str, retry: bool) -> None:
    books = ledger()
    fault = produce(books, [Generator(error=error)])
    assert isinstance(fault, Fault)
    assert (fault.role, fault.reason, fault.retry) == ("generator", reason, retry)
    assert asyncio.run(books.counts())["leased"] == 1  # the ledger hears of it from the loop


def test_a_bad_row_is_a_fault_of_the_data_and_is_not_tried_again() -> None:
    fault = produce(ledger(), [Generator()], parcel=[(6, "bad")])
    assert (fault.role, fault.reason, fault.retry) == ("data", "bad_row", False)
    assert "data.jsonl:7: image 1: got nothing, expected a picture" in fault.detail


def test_a_failing_ledger_is_a_fault_as_well() -> None:
    class Broken:
        async def accept(self, *args: Any) -> None:
            raise RoleFailed("ledger_died", "ledger", "exit 9")

    lease = Lease(group="g", fence=1, cursor=0, seed=0, generator=0)
    fault = asyncio.run(scorer(Broken(), [Generator()]).produce(lease, [(0, None)]))
    assert isinstance(fault, Fault) and fault.role == "ledger" and fault.group == "g"


def test_damage_without_perturbers_is_a_fault_that_says_so() -> None:
    fault = produce(ledger(), [Generator()], perturbers=[])
    assert (fault.role, fault.retry) == ("perturber", False) and "no perturbers" in fault.detail


def test_both_answers_of_an_edge_share_one_version() -> None:
    books = ledger()
    produce(books, [Generator()])
    [comparison] = delivered(books).comparisons
    check_versions([comparison])
    loser = comparison.candidates[1]
    assert loser.behaviour is not None
    later = replace(loser, behaviour=replace(loser.behaviour, newest=4))
    cells = (comparison.candidates[0], later, *comparison.candidates[2:])
    with pytest.raises(Drop, match="mixed_versions"):
        check_versions([replace(comparison, candidates=cells)])


def test_answers_of_two_versions_are_dropped_by_name() -> None:
    @dataclass
    class Torn(Generator):
        async def sample(self, prompt: Prompt, media: MediaTable, n: int, seed: int) -> tuple[Rollout, ...]:
            older = await Generator.sample(self, prompt, media, n, seed)
            self.version += 1
            return (older[0], *(await Generator.sample(self, prompt, media, n, seed))[1:])

    assert produce(ledger(), [Torn()]).dropped == "mixed_versions"


def test_facts_leave_out_what_nothing_tells_of() -> None:
    assert facts_of((), (), ()) == {}


def test_work_goes_to_the_perturber_with_the_fewest_calls() -> None:
    taken: list[int] = []

    @dataclass
    class Waiting:
        name: int
        free: asyncio.Event

        async def damage(self, media: Media, request: DamageRequest) -> Media:
            taken.append(self.name)
            await self.free.wait()
            return media

    async def main() -> None:
        waiting = [Waiting(name, asyncio.Event()) for name in range(2)]
        pool = Pool(waiting)
        picture = Media(kind="image", space="rgb8", payload=np.zeros((2, 2, 3), np.uint8))
        asked = (picture, DamageRequest(perturbation=Blacken(), seed=0))
        first = [asyncio.create_task(pool.damage(*asked)) for _ in range(4)]
        while len(taken) < 4:
            await asyncio.sleep(0)
        waiting[1].free.set()
        await asyncio.gather(first[1], first[3])  # the second is free again, the first is not
        await pool.damage(*asked)
        waiting[0].free.set()
        await asyncio.gather(*first)

    asyncio.run(asyncio.wait_for(main(), 10))
    assert taken == [0, 1, 0, 1, 1]


def test_a_survey_measures_disagreement_and_tries_another_generator() -> None:
    broken = Generator(error=RuntimeError("dead"))
    agreed, split = Generator(texts=("A dog.", "a dog")), Generator(texts=("a", "b"))
    survey = lambda *generators: asyncio.run(scorer(ledger(), list(generators)).survey([(0, None)], 2, 0, 0))  # noqa: E731
    assert survey(agreed) == 0.0
    assert survey(broken, split) == pytest.approx(np.log(2))
    with pytest.raises(RoleFailed, match=r"row-0.*dead"):
        survey(broken)
