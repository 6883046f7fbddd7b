"""One lease in one process: a fake generator, a real perturber, the real ledger and real group programs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ObjectLostError, OwnerDiedError

from actors.generator import EngineError, ForbiddenToken, PromptMismatch, Quarantined
from actors.group_facts import facts_of
from actors.ledger import Ledger
from actors.partners import Partners
from actors.perturber import Perturber
from actors.scorer import GroupTools, Pool, Scorer, check_sides, check_versions, oldest_version
from pipelines.comparisons import Cells, Edges
from pipelines.data.base import BadRow
from pipelines.decoding import Contrast
from pipelines.loop import PROMPT_LOST, RoleFailed
from pipelines.objectives.base import Objective
from pipelines.perturbations.base import DamageRequest, Regions
from pipelines.programs.choosing import Choose
from pipelines.programs.damaging import Damage
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe, Stage
from pipelines.rewards.clock import Clock
from pipelines.rollout import Draft, Drop, Probe, Step, Tools
from pipelines.schedules import EasyToHard, Thirds
from pipelines.settings import Settings
from pipelines.types import (
    NEVER_STALE,
    Behaviour,
    Candidate,
    Comparison,
    Fault,
    Lease,
    Media,
    MediaTable,
    Message,
    Op,
    Part,
    Preference,
    Prompt,
    Receipt,
    Response,
    Rollout,
    Score,
)
from tests.actors.ledger_calls import sizes


@dataclass(frozen=True)
class Blacken:
    def __call__(self, media: Media, mask: Any, seed: int) -> Media:
        payload = np.array(media.payload)
        payload[mask if mask is not None else ...] = 0
        return Media(kind="image", space="rgb8", payload=payload, parent=media.digest, op=Op(name="blacken"))


@dataclass(frozen=True)
class Corner:
    """Finds the corner when the answer speaks of it."""

    def __call__(self, media: Media, answer: str, gold: Any, seed: int) -> Regions | None:
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
        gold = row["value"] if isinstance(row["value"], dict) else {"row": row["value"]}
        prompt = Prompt(id=row["id"], messages=(Message(role="user", parts=parts),), gold=gold)
        return prompt, {picture.digest: picture}


@dataclass
class Generator:
    texts: tuple[str, ...] = ("bad", "good corner", "fair")
    version: int = 3
    error: Exception | None = None
    calls: list[tuple[str, int, int]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def sample(
        self, prompt: Prompt, media: MediaTable, n: int, seed: int, **asked: Any
    ) -> tuple[Rollout, ...]:
        self.asked.append(asked)
        self.calls.append((prompt.id, n, seed))
        if self.error is not None:
            raise self.error
        behaviour = Behaviour(
            stream="policy", decoder={}, oldest=self.version, newest=self.version, logps=(-1.0,)
        )
        answers = [Response(tokens=(i, 2), text=text, finished=i != 2) for i, text in enumerate(self.texts)]
        return tuple(Rollout(prompt=prompt, response=answer, behaviour=behaviour) for answer in answers)

    async def probe(
        self, prompt: Prompt, media: MediaTable, responses: Any, *, attention: bool = False
    ) -> tuple[Probe, ...]:
        """One nat per token and character."""
        return tuple(
            Probe(logps=tuple(-float(len(r.text)) for _ in r.tokens), top=r.tokens, version=self.version)
            for r in responses
        )

    async def encode(self, text: str, origin: str) -> Response:
        return Response(tokens=(*range(3, 3 + len(text.split())), 2), text=text, origin=origin)

    async def decode(self, tokens: Any) -> str:
        return " ".join(map(str, tokens))


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
    return Ledger("run", 1, sizes(1, 1, 5, 10))


def scorer(judge: Any = reward, stage: Stage = STAGE, **more: Any) -> Scorer:
    settings = Settings.model_validate({"rollout": {"reward_timeout_s": 1}})
    recipe = Recipe(name="test", paper="", source="", stages=(stage, *more.get("later", ())))
    return Scorer(recipe, settings, Source(), judge, more.get("editor"))


def partners(books: Any, generator: Any, perturbers: Sequence[Any] | None = None) -> Partners:
    helpers = [Perturber()] if perturbers is None else perturbers
    return Partners(generator=generator, perturbers=helpers, ledger=books)


def produce(
    books: Ledger, generator: Any, *args: Any, parcel: Any = ((0, None),), perturbers: Any = None, **more: Any
) -> Any:
    async def main() -> Receipt | Fault:
        lease = await books.issue("p0", 0, 0, 0)
        assert lease is not None
        return await scorer(*args, **more).produce(lease, parcel, partners(books, generator, perturbers))

    return asyncio.run(main())


def delivered(books: Ledger) -> Any:
    return asyncio.run(books.pull(1, 1, 0, 1)).groups[0]


def test_a_lease_becomes_a_group_with_both_edges_its_media_and_its_facts() -> None:
    books, generator = ledger(), Generator()
    receipt = produce(books, generator)
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
            "reward_variance": 1.5,  # 2, 0.5, -1
            "length_variance": 0.0,
            "reward_length_covariance": 0.0,
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
        produce(ledger(), generator)
    assert generators[0].calls == generators[1].calls


def test_an_awaitable_parcel_is_awaited() -> None:
    async def content() -> tuple[int, None]:
        return 41, None

    books = ledger()
    generator = Generator()
    produce(books, generator, parcel=[content()])
    assert generator.calls[0][0] == "row-41"


def test_whole_image_fallback_is_counted() -> None:
    books = ledger()
    produce(books, Generator(texts=("bad", "good", "fair")))
    assert delivered(books).facts["fallback"] == 1.0


def test_a_tie_is_a_drop_that_still_has_facts() -> None:
    books = ledger()
    receipt = produce(books, Generator(texts=("good", "good")))
    assert receipt.dropped == "tie" and not receipt.accepted and receipt.facts["reward"] == 2.0


def raises(prompt: Prompt, response: Response) -> Score:
    raise KeyError("colour")


async def slow(prompt: Prompt, response: Response) -> Score:
    await asyncio.sleep(30)
    raise AssertionError


def wrong_type(prompt: Prompt, response: Response) -> Any:
    return 0.0


@pytest.mark.parametrize(
    ("broken", "why"),
    [(raises, "reward_raised: KeyError: 'colour'"), (wrong_type, "reward_returned: float, expected a Score")],
)
def test_a_reward_that_fails_is_missing_never_zero(broken: Any, why: str) -> None:
    books = ledger()
    receipt = produce(books, Generator(), broken)
    assert receipt.dropped == "missing_score" and receipt.facts["missing"] == 1.0
    assert "reward" not in receipt.facts
    [drop] = [event for event in asyncio.run(books.events(0)) if event["event"] == "drop"]
    assert why in drop["detail"]


def test_an_async_reward_is_awaited_and_one_failure_spares_the_others() -> None:
    async def mixed(prompt: Prompt, response: Response) -> Score:
        if response.text == "fair":
            raise ConnectionError("HTTP 500")
        return reward(prompt, response)

    books = ledger()
    receipt = produce(books, Generator(), mixed)
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
    fault = produce(books, Generator(error=error))
    assert isinstance(fault, Fault)
    assert (fault.role, fault.reason, fault.retry) == ("generator", reason, retry)
    assert asyncio.run(books.counts())["leased"] == 1  # the ledger hears of it from the loop


def test_a_bad_row_is_a_fault_of_the_data_and_is_not_tried_again() -> None:
    fault = produce(ledger(), Generator(), parcel=[(6, "bad")])
    assert (fault.role, fault.reason, fault.retry) == ("data", "bad_row", False)
    assert "data.jsonl:7: image 1: got nothing, expected a picture" in fault.detail


@pytest.mark.parametrize("lost", [OwnerDiedError, ObjectLostError])
def test_a_prompt_that_went_with_its_stream_is_a_fault_of_the_data(lost: type[ObjectLostError]) -> None:
    async def content() -> tuple[int, None]:
        raise lost("0" * 56, None, "")

    fault = produce(ledger(), Generator(), parcel=[content()])
    assert (fault.role, fault.reason, fault.retry) == ("data", PROMPT_LOST, True)
    assert f"{lost.__name__}: the prompt stream is gone" in fault.detail


def test_a_failing_ledger_is_a_fault_as_well() -> None:
    class Broken:
        async def accept(self, *args: Any) -> None:
            raise RoleFailed("ledger_died", "ledger", "exit 9")

    lease = Lease(group="g", fence=1, cursor=0, seed=0, generator=0)
    fault = asyncio.run(scorer().produce(lease, [(0, None)], partners(Broken(), Generator())))
    assert isinstance(fault, Fault) and fault.role == "ledger" and fault.group == "g"


def test_damage_without_perturbers_is_a_fault_that_says_so() -> None:
    fault = produce(ledger(), Generator(), perturbers=[])
    assert (fault.role, fault.retry) == ("perturber", False) and "no perturbers" in fault.detail


def test_both_answers_of_an_edge_share_one_version() -> None:
    books = ledger()
    produce(books, Generator())
    [comparison] = delivered(books).comparisons
    check_versions([comparison])
    loser = comparison.candidates[1]
    assert loser.behaviour is not None
    later = replace(loser, behaviour=replace(loser.behaviour, newest=4))
    cells = (comparison.candidates[0], later, *comparison.candidates[2:])
    with pytest.raises(Drop, match="mixed_versions"):
        check_versions([replace(comparison, candidates=cells)])


def test_an_answer_is_not_compared_with_itself() -> None:
    """A judge may score one answer twice, and differently; one answer under two prompts is a pair."""
    books = ledger()
    produce(books, Generator())
    [comparison] = delivered(books).comparisons
    check_sides([comparison])
    edge = comparison.preferences[0]
    twin = replace(comparison.candidates[edge.loser], response=len(comparison.responses))
    same = replace(comparison.responses[comparison.candidates[edge.winner].response], origin="gold")
    cells = tuple(twin if i == edge.loser else c for i, c in enumerate(comparison.candidates))
    with pytest.raises(Drop, match="same_response"):
        check_sides([replace(comparison, candidates=cells, responses=(*comparison.responses, same))])


def test_answers_of_two_versions_are_dropped_by_name() -> None:
    @dataclass
    class Torn(Generator):
        async def sample(self, *args: Any, **asked: Any) -> tuple[Rollout, ...]:
            older = await Generator.sample(self, *args, **asked)
            self.version += 1
            return (older[0], *(await Generator.sample(self, *args, **asked))[1:])

    assert produce(ledger(), Torn()).dropped == "mixed_versions"


def test_facts_leave_out_what_nothing_tells_of() -> None:
    assert facts_of((), (), (), ()) == {}


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


def edge_between(first: Behaviour | None, second: Behaviour | None, same: bool = False) -> Comparison:
    prompt = Prompt(id="p", messages=())
    answers = (Response(tokens=(1,), text="a"), Response(tokens=(2,), text="b"))
    cells = (
        Candidate(prompt=0, response=0, role="w", behaviour=first),
        Candidate(prompt=0, response=0 if same else 1, role="l", behaviour=second),
    )
    edge = Preference(name="text", winner=0, loser=1)
    return Comparison(id="c", prompts=(prompt,), responses=answers, candidates=cells, preferences=(edge,))


def at(version: int, stream: str = "policy") -> Behaviour:
    return Behaviour(stream=stream, decoder={}, oldest=version, newest=version, logps=())


def test_gold_answers_other_streams_and_one_answer_under_two_prompts_may_be_of_any_version() -> None:
    exempt = [(at(1), None), (at(1), at(2, "reference")), (at(1, "mixture"), at(2, "mixture"))]
    check_versions([edge_between(*pair) for pair in exempt])
    check_versions([edge_between(at(1), at(2), same=True)])
    with pytest.raises(Drop, match="mixed_versions"):
        check_versions([edge_between(at(1), at(2))])


def test_answers_that_may_go_on_under_later_weights_were_begun_under_the_same() -> None:
    mixed = replace(at(1), newest=2, versions=((1, 3), (2, 4)))
    check_versions([edge_between(at(1), mixed)], mixed=True)
    with pytest.raises(Drop, match="mixed_versions"):
        check_versions([edge_between(at(1), mixed)])
    with pytest.raises(Drop, match="mixed_versions"):
        check_versions([edge_between(at(2), mixed)], mixed=True)


def test_a_group_is_as_old_as_the_weights_of_the_policy_that_took_part() -> None:
    def drawn(*behaviours: Behaviour | None) -> int:
        prompt = Prompt(id="p", messages=())
        return oldest_version([Rollout(prompt=prompt, response=GOLD, behaviour=b) for b in behaviours])

    assert drawn(at(5), at(4, "mixture"), at(0, "reference"), None) == 4
    assert drawn(at(0, "reference"), at(0, "checkpoint"), None) == drawn() == NEVER_STALE


@dataclass(frozen=True)
class Everything(Step):
    """Uses every tool once."""

    @property
    def makes(self) -> frozenset[str]:
        return frozenset("ygm")

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        x = draft.prompt
        drawn = await tools.sample(x, draft.media, 1, seed, decoder=Contrast(), prefix=[7])
        scores = await tools.score(drawn, draft.media)
        gold = await tools.encode("good", "gold")
        edited = await tools.edit(Rollout(prompt=x, response=gold), "shout", seed, draft.media)
        shouted = await tools.encode(edited, "edited")
        [probe] = await tools.probe(x, draft.media, [shouted])
        foreign = await tools.foreign()
        names = {"text": await tools.decode([5, 6]), "foreign": foreign.prompt.id if foreign else "none"}
        draft = draft.with_rollouts("y", drawn[:1], scores[:1])
        draft = draft.with_rollouts("g", [Rollout(prompt=x, response=shouted)])
        marked = replace(x, origin="/".join(names.values()))
        return replace(draft.with_prompt("m", marked), facts={"surprise": -sum(probe.logps)})


class Shout:
    async def __call__(self, text: str, kind: str, gold: Any, seed: int) -> str:
        return f"{text} {kind}".upper()


EVERYTHING = Stage(
    rollout=Everything(), compare=Cells({"y": "y@x", "g": "g@m"}), objective=Objective(()), order=Thirds(2)
)


def test_a_program_reaches_every_tool_and_its_facts_are_logged() -> None:
    books, generator = ledger(), Generator()
    made = scorer(stage=EVERYTHING, editor=Shout())

    async def main() -> list[Any]:
        for cursor in range(2):
            lease = await books.issue(f"p{cursor}", 0, cursor, 0)
            assert lease is not None
            assert (await made.produce(lease, [(cursor, None)], partners(books, generator))).accepted
        return [(await books.pull(1, 1, 0, 1)).groups[0], (await books.trained(1, 1, {}))]

    [first, _] = asyncio.run(main())
    second = asyncio.run(books.pull(1, 2, 0, 1)).groups[0]
    assert generator.asked[0] == {"decoder": Contrast(), "prefix": (7,)}
    [comparison] = first.comparisons
    assert [r.text for r in comparison.responses] == ["bad", "GOOD SHOUT"]
    assert comparison.prompts[-1].origin == "5 6/none"
    assert second.comparisons[0].prompts[-1].origin == "5 6/row-0"  # the answer to the prompt before
    # "GOOD SHOUT": 3 tokens, 10 characters each
    assert first.facts["program/surprise"] == 30.0
    sampled, edited = comparison.candidates
    assert sampled.sampled_under == comparison.prompts[0].digest and edited.sampled_under is None


@dataclass(frozen=True)
class OfData(Step):
    @property
    def makes(self) -> frozenset[str]:
        return frozenset("yx")

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        gold = Rollout(prompt=draft.prompt, response=await tools.encode("good", "gold"))
        return draft.with_rollouts("y", [gold]).with_rollouts("g", [gold])


def test_a_group_that_nobody_sampled_never_gets_stale_and_a_lease_says_which_stage_runs() -> None:
    books = Ledger("run", 1, sizes(1, 1, 0, 1, 2))
    offline = replace(EVERYTHING, rollout=OfData(), compare=Cells({"y": "y@x"}))
    made = scorer(stage=EVERYTHING, later=(offline,), editor=Shout())
    lease = Lease(group="g", fence=1, cursor=0, seed=0, generator=0, stage=1)
    group, _ = asyncio.run(made._group(lease, [(0, None)], partners(books, Generator())))
    assert group.version == NEVER_STALE and [c.stage for c in group.comparisons] == [1]
    group, _ = asyncio.run(made._group(replace(lease, stage=0), [(0, None)], partners(books, Generator())))
    assert group.version == 3 and [c.stage for c in group.comparisons] == [0]


def test_rewards_see_the_step_that_a_group_is_for() -> None:
    @dataclass(frozen=True)
    class Scaled:
        scale: Any

        def __call__(self, prompt: Prompt, response: Response) -> Score:
            return Score(value=self.scale)  # a number by then

    for step, expected in ((4, 1.0), (5, 10.0)):
        tools = GroupTools(Generator(), Pool([]), Scaled(Clock({0: 1.0, 5: 10.0})), Shout(), step)
        [score] = asyncio.run(tools.score([Rollout(prompt=Prompt(id="p", messages=()), response=GOLD)], {}))
        assert score.value == expected


GOLD = Response(tokens=(1,), text="good")


def test_a_survey_measures_disagreement() -> None:
    broken = Generator(error=RuntimeError("dead"))
    agreed, split = Generator(texts=("A dog.", "a dog")), Generator(texts=("a", "b"))

    def survey(generator: Generator) -> float:
        work = scorer().survey([(0, None)], Thirds(2), 0, partners(ledger(), generator))
        return asyncio.run(work)

    assert survey(agreed) == 0.0
    assert survey(split) == pytest.approx(np.log(2))
    with pytest.raises(RoleFailed, match="dead"):
        survey(broken)


def test_a_survey_by_gaps_and_strength() -> None:
    """Best 2 minus worst -1; log p("a") + 2 log p("bcd")... one nat per token and character, 2 tokens each:
    -2 * 1 - (-2 * 3) = 4; strength 8. Difficulty falls with each."""

    def difficulty(order: EasyToHard, row: Any = None, judge: Any = reward) -> float:
        work = scorer(judge).survey([(0, row)], order, 0, partners(ledger(), Generator()))
        return asyncio.run(work)

    assert difficulty(EasyToHard(3, "score_gap")) == -3.0
    row = {"chosen": "a", "rejected": "bcd", "strength": 8}
    assert difficulty(EasyToHard(0, "reference_gap"), row) == -4.0
    assert difficulty(EasyToHard(0, "strength"), row) == -8.0
    with pytest.raises(RoleFailed, match="no column 'strength'; it has"):
        difficulty(EasyToHard(0, "strength"))
    with pytest.raises(RoleFailed, match="0 of 3 scores; reward_raised: KeyError"):
        difficulty(EasyToHard(3, "score_gap"), judge=raises)


def test_reward_and_length_vary_together_around_the_means_of_their_group() -> None:
    """Rewards 1, 3, missing, 2 of answers with 2, 6, 9, 4 tokens: means 2 and 4, so variances 2/3 and 8/3 and
    the covariance ((-1)(-2) + (1)(2) + 0) / 3 = 4/3: the correlation is 1."""
    scores = [Score(value=1.0), Score(value=3.0), Score(value=None, missing="timeout"), Score(value=2.0)]
    facts = facts_of((), scores, (), (2, 6, 9, 4))
    assert facts["reward_variance"] == pytest.approx(2 / 3)
    assert facts["length_variance"] == pytest.approx(8 / 3)
    assert facts["reward_length_covariance"] == pytest.approx(4 / 3)
    assert "reward_variance" not in facts_of((), scores[:1], (), (2,))


def test_a_scorer_says_how_many_leases_it_has_and_whether_it_gets_on() -> None:
    class Waiting(Generator):
        async def sample(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(await one.health())
            return await super().sample(*args, **kwargs)

    one, seen, books = scorer(), [], ledger()

    async def main() -> None:
        seen.append(await one.health())
        lease = await books.issue("p0", 0, 0, 0)
        assert lease is not None
        await one.produce(lease, [(0, None)], partners(books, Waiting()))
        await one.produce(replace(lease, group="g"), [(0, None)], partners(books, None))  # fails
        seen.append(await one.health())

    asyncio.run(main())
    assert [health["in_flight"] for health in seen] == [0, *[1] * (len(seen) - 2), 0]
    moves = [health["progress"] for health in seen]
    assert moves[0] == 0 and moves == sorted(moves) and moves[-1] > moves[1]
    assert all(health["alive"] and health["pid"] == os.getpid() for health in seen)


def test_a_perturber_says_what_it_has_under_way() -> None:
    async def main() -> list[Any]:
        perturber = Perturber()
        failing = asyncio.ensure_future(perturber.damage(None, None))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        during = await perturber.health()
        await asyncio.gather(failing, return_exceptions=True)
        return [(health["in_flight"], health["progress"]) for health in (during, await perturber.health())]

    assert asyncio.run(main()) == [(1, 0), (0, 1)]
