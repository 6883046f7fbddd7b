"""The whole loop in one process, without Ray: the same ledger, scorer, group programs, proofs and learner.

For tests, for experiments that are made of hundreds of short runs, and for deterministic runs
(`actors.deterministic`). Work that a run with Ray gives to threads is done where it is asked for, so that
what shares a batch follows from the program alone: with `sync.max_lag` 0 two runs with the same settings on
one machine have equal losses.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from actors import saving
from actors.canaries import make_canaries
from actors.decoder import HuggingFaceGenerator
from actors.exporting import syncs_adapter, whole_weights, write_checkpoint
from actors.heldout import verified
from actors.holder import Decoding
from actors.inline import InlineExecutor, LocalPrompts, ReadRows
from actors.learner import Learner
from actors.learner_loop import Loop
from actors.ledger import Ledger
from actors.orders import kept
from actors.partners import Partners
from actors.perturber import Perturber
from actors.scorer import Scorer
from actors.step_log import StepResult
from actors.waves import NO_DEADLINE_S, Waves
from pipelines.admission import Admission, admission_of
from pipelines.data import open_source
from pipelines.data.base import Source
from pipelines.data.glyphs import GlyphsSource
from pipelines.editors import Editor
from pipelines.evaluation import heldout
from pipelines.loop import LocalProducer, RunFailed, drive
from pipelines.recipe import Recipe
from pipelines.rewards.base import AnyReward
from pipelines.rewards.threads import in_place
from pipelines.rollout import derived_seed
from pipelines.settings import Settings, model_path
from pipelines.types import Canary, Group, Proof, Shard, WeightVersion

if TYPE_CHECKING:
    from actors.plan import Plan

T = TypeVar("T")
PASSES = 10  # over the data, at most: a program that drops everything would else go on for ever


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One learner step, as `on_step` sees it right after it was taken."""

    step: int  # 1-based
    groups: Sequence[Group]
    result: StepResult
    learner: Learner


OnStep = Callable[[Trained], None]


class LocalPorts:
    """What the learner's loop needs, in one process: each call drives the event loop until it is answered."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._reference: Mapping[str, Any] | None = None
        self._held: dict[str, np.ndarray] = {}

    def pull(self, attempt: int, step: int, rank: int, world: int) -> Shard:
        return self._run.do(self._run.feed.pull(attempt, step, rank, world))

    def trained(self, attempt: int, step: int, metrics: Mapping[str, float]) -> None:
        self._run.do(self._run.ledger.trained(attempt, step, metrics))

    def snapshot(self, step: int) -> Mapping[str, Any]:
        return self._run.do(self._run.ledger.snapshot(step))

    def refer(self, attempt: int, weights: Mapping[str, Any]) -> None:
        self._reference = weights  # taken over with the version that follows

    def hold(self, attempt: int, number: int, tensors: Mapping[str, np.ndarray]) -> None:
        self._held |= tensors

    def publish(self, version: WeightVersion) -> None:
        tensors, self._held = self._held, {}
        self._run.do(self._publish(version, tensors))

    async def _publish(self, version: WeightVersion, tensors: Mapping[str, np.ndarray]) -> None:
        run = self._run
        proof = await run.generator.adopt(version, tensors)
        run.proofs.append(proof)
        if not proof.holds:
            raise RunFailed(
                f"the generator could not prove weight version {version.number}: {dict(proof.detail)}"
            )
        if self._reference is not None:
            await run.generator.adopt_reference(self._reference)
            self._reference = None
        await run.ledger.published(version.number, version.digest, version.step)


@dataclass
class LocalLoop(Loop):
    """Without a run folder nothing is written. `took`: sees each step right after it was trained."""

    took: Callable[[int, Shard, StepResult], None] = lambda step, shard, result: None
    kept: bool = False

    def _log(self, shard: Shard, result: StepResult) -> None:
        self.took(self.step, shard, result)
        if self.kept:
            super()._log(shard, result)

    def _commit(self) -> None:
        if self.kept:
            super()._commit()


class Flow:
    """Production beside the learner, as far ahead of it as the lag allows."""

    def __init__(self, ledger: Ledger, produce: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._ledger, self._produce = ledger, produce
        self._production: asyncio.Task[None] | None = None

    async def pull(self, attempt: int, step: int, rank: int, world: int) -> Shard:
        """The ledger's answer; raises at once what ends production."""
        self._production = self._production or asyncio.create_task(self._produce())
        asked = asyncio.create_task(self._ledger.pull(attempt, step, rank, world))
        await asyncio.wait({asked, self._production}, return_when=asyncio.FIRST_COMPLETED)
        try:
            if self._production.done():
                self._production.result()
            return await asked
        finally:
            asked.cancel()

    async def stop(self) -> None:
        if self._production is not None:
            self._production.cancel()
            await asyncio.gather(self._production, return_exceptions=True)


class Run:
    """One training, from the start of its learner to its last step; afterwards its generator answers.

    A context manager; leaving it frees models and the event loop. `metrics`, `steps` and `proofs` fill while
    it trains.

    Args:
        source, reward, editor: in place of those that the settings name.
        plan: of a run with a folder: its checkpoints are written there, and it may begin at one of them.
    """

    loop_type: ClassVar[type[LocalLoop]] = LocalLoop
    ports_type: ClassVar[type[LocalPorts]] = LocalPorts

    def __init__(
        self,
        settings: Settings,
        recipe: Recipe,
        *,
        source: Source | None = None,
        reward: AnyReward | None = None,
        editor: Editor | None = None,
        plan: Plan | None = None,
    ) -> None:
        self.settings, self.recipe, self.plan = settings, recipe, plan
        self.metrics: list[dict[str, Any]] = []  # of each step
        self.steps: list[tuple[Group, ...]] = []  # what each step was trained on
        self.proofs: list[Proof] = []
        self.counts: Mapping[str, Any] = {}  # groups by what became of them
        self.seconds: dict[str, float] = {}
        self.stopped = False  # set it to end the run before its next step
        self.learner: Learner | None = None
        self._runner = asyncio.Runner()
        self._context = contextvars.copy_context()
        self._context.run(in_place.set, settings.deterministic)
        self._runner.get_loop().set_default_executor(InlineExecutor(1))
        began = time.perf_counter()
        self._source = source or open_source(settings)
        self._attempt = plan.attempt if plan else 1
        self.admission: Admission = admission_of(settings, recipe)
        self.ledger = Ledger(
            settings.name, self._attempt, self.admission, settings.max_drop_share, settings.seed
        )
        self.scorer = Scorer(recipe, settings, ReadRows(self._source), reward, editor)  # type: ignore[arg-type]
        self.generator = self._generator()
        self.partners = Partners(generator=self.generator, perturbers=[Perturber()], ledger=self.ledger)
        self.prompts = LocalPrompts(
            self._source, self._source.inventory().usable, None if settings.deterministic else PASSES
        )
        # One canary with media and one without: each more costs every sync two forwards.
        self.canaries: tuple[Canary, ...] = make_canaries(self._source, self.generator.processing)[:2]
        self.feed = self._feed()
        self.learner = Learner(str(model_path(settings)), settings.learner, recipe, seed=settings.seed)
        self.do(self.generator.start(self.canaries))
        self.loop = self._loop()
        self.seconds["start"] = time.perf_counter() - began

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free what the run holds; weights are gone afterwards."""
        if self.learner is not None:
            self.learner.policy.engine.destroy()
            self.learner = None
        self.do(self.generator.stop())
        self._runner.close()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of an async call, such as one of the generator."""
        return self._runner.run(work, context=self._context)

    def versions(self) -> dict[int, int]:
        """The fleet of this run: one generator and its proved version."""
        return {0: self.generator.version}

    def train(self, on_step: OnStep | None = None) -> None:
        """All steps of the run. Raises what failed; `RunFailed` for a version that cannot be proved."""
        began = time.perf_counter()
        self.loop.took = partial(self._took, on_step)
        try:
            self.loop.run()
        finally:
            self.do(self._settle())
        self.ledger.check()
        self.seconds["train"] = time.perf_counter() - began

    def greedy(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        """The generator's most likely answers to rows of the glyphs world."""
        source = GlyphsSource(count=len(rows), seed=0)
        prompts = [source.prompt(row) for row in rows]
        return self.do(self.generator.greedy(prompts, self.settings.rollout.max_tokens))

    def records(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """What the verifiers say of the generator's greedy answers, as `pipelines.evaluation` takes it."""
        return verified(rows, self.greedy(rows))

    def evaluate(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The measures of `pipelines.evaluation` on held-out rows."""
        return heldout(self.records(rows))

    def weights(self) -> dict[str, NDArray[Any]]:
        """What the learner exports now, by checkpoint name."""
        return self._learner.export()

    def save(self, folder: Path) -> None:
        """The policy as a checkpoint in Hugging Face layout; a LoRA adapter is merged."""
        policy = self._learner.policy
        tensors = whole_weights(policy.model, policy.names, self.settings.learner.zero_stage, True)
        write_checkpoint(folder, tensors, self._learner.processing)

    # -- inside ---------------------------------------------------------------------------------------------

    @property
    def _learner(self) -> Learner:
        if self.learner is None:
            raise RuntimeError("the run is closed")
        return self.learner

    def _generator(self) -> HuggingFaceGenerator:
        """Always from the model that the run started from: a version is published before anything else."""
        learner, rollout, engine = self.settings.learner, self.settings.rollout, self.settings.rollout.engine
        if self.settings.deterministic:
            engine = engine.model_copy(update={"timeout_s": int(NO_DEADLINE_S)})
        return HuggingFaceGenerator(
            "generator-0",
            str(model_path(self.settings)),
            engine,
            Decoding(temperature=rollout.temperature, top_p=rollout.top_p, max_tokens=rollout.max_tokens),
            lora=learner.lora if syncs_adapter(learner, self.recipe) else None,
            seed=self.settings.seed,
        )

    def _feed(self) -> Flow | Waves:
        producer = LocalProducer(partial(self.scorer.produce, partners=self.partners))
        if not self.settings.deterministic:
            return Flow(self.ledger, partial(self._produce, producer))
        producer = replace(producer, timeout_s=NO_DEADLINE_S)
        return Waves(
            self.prompts,
            producer,
            self.ledger,
            size=self.admission.groups_per_step,
            seed=self.settings.seed,
            order=self._order,
            stopped=lambda: self.stopped,
        )

    def _loop(self) -> LocalLoop:
        plan = self.plan
        if plan is not None and plan.resumed is not None:
            self._learner.load(plan.resumed)
            self.do(self.ledger.restore(plan.ledger))
        return self.loop_type(
            learner=self._learner,
            ports=self.ports_type(self),
            settings=self.settings,
            run_dir=plan.run_dir if plan else Path(),
            canaries=self.canaries,
            attempt=self._attempt,
            step=plan.step if plan else 0,
            need=saving.estimate(self._learner),
            kept=plan is not None,
        )

    def _took(self, on_step: OnStep | None, step: int, shard: Shard, result: StepResult) -> None:
        self.steps.append(shard.groups)
        if on_step is not None:
            on_step(Trained(step=step, groups=shard.groups, result=result, learner=self._learner))

    async def _settle(self) -> None:
        await self.feed.stop()
        self.metrics = await self.ledger.progress(0)
        self.counts = await self.ledger.counts()

    async def _produce(self, producer: LocalProducer) -> None:
        for stage in range(len(self.recipe.stages)):
            await self._order(stage)
            await drive(
                self.prompts, producer, self.ledger, self, self.admission, asyncio.Event(), stage=stage
            )

    async def _order(self, stage: int) -> None:
        """The stage's prompts in the order of the recipe, which may ask for a survey of them all."""
        cursor = (await self.ledger.state()).cursor
        if self.recipe.stages[stage].order.key is not None:
            file = self.plan.run_dir / "order.json" if self.plan else None
            await self.prompts.reorder(*await kept(file, stage, cursor, partial(self._survey, stage, cursor)))
        await self.prompts.seek(cursor)

    async def _survey(self, stage: int, cursor: int) -> list[int]:
        """The order of as many prompts as the stage trains on."""
        order = self.recipe.stages[stage].order
        steps = self.admission.stages[stage].last - self.admission.first(stage) + 1
        await self.prompts.seek(cursor)
        items = await self.prompts.next(steps * self.settings.learner.groups_per_step)
        seed = derived_seed(self.settings.seed, "survey", stage)
        surveyed = [
            self.scorer.survey(item[3], order, derived_seed(seed, item[0]), self.partners) for item in items
        ]
        return order(await asyncio.gather(*surveyed))


def train(
    settings: Settings,
    recipe: Recipe,
    *,
    on_step: OnStep | None = None,
    source: Source | None = None,
    reward: AnyReward | None = None,
    editor: Editor | None = None,
) -> Run:
    """Train `recipe` in this process. The caller closes the run, or uses it as a context manager.

    Raises what a run with Ray would be refused or would fail with; the run is closed then.
    """
    run = Run(settings, recipe, source=source, reward=reward, editor=editor)
    try:
        run.train(on_step)
    except BaseException:
        run.close()
        raise
    return run
