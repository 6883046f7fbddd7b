"""The whole loop in one process, without Ray: the same ledger, scorer, group programs, proofs and learner.

For tests, and for experiments that are made of hundreds of short runs. Work that a run with Ray gives to
threads is done where it is asked for, so that what shares a batch follows from the program alone: with
`sync.max_lag` 0 two runs with the same settings on one machine have equal losses.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from numpy.typing import NDArray

from actors.canaries import make_canaries
from actors.decoder import HuggingFaceGenerator
from actors.exporting import syncs_adapter, whole_weights, write_checkpoint
from actors.heldout import verified
from actors.holder import Decoding
from actors.learner import Learner
from actors.learner_loop import boundaries
from actors.ledger import Ledger
from actors.perturber import Perturber
from actors.prompts import PromptStream
from actors.scorer import Scorer
from actors.step_log import StepResult
from pipelines.admission import Admission, admission_of
from pipelines.data import open_source
from pipelines.data.base import Source
from pipelines.data.glyphs import GlyphsSource
from pipelines.editors import Editor
from pipelines.evaluation import heldout
from pipelines.loop import LocalProducer, RunFailed, drive
from pipelines.recipe import Recipe
from pipelines.rewards.base import AnyReward
from pipelines.rollout import derived_seed
from pipelines.settings import Settings, model_path
from pipelines.types import Canary, Group, Proof, WeightVersion

T = TypeVar("T")
ATTEMPT = 1
PASSES = 10  # over the data, at most: a program that drops everything would else go on for ever


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One learner step, as `on_step` sees it right after it was taken."""

    step: int  # 1-based
    groups: Sequence[Group]
    result: StepResult
    learner: Learner


OnStep = Callable[[Trained], None]


class InlineExecutor(ThreadPoolExecutor):
    """Runs work where it is submitted."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


class LocalPrompts(PromptStream):
    """The prompt stream over rows that are read in this process."""

    def __init__(self, source: Source, usable: Sequence[int]) -> None:
        super().__init__(source, usable, epochs=PASSES, put=lambda row: row)
        self._read = dict(source.rows())

    def _stream(self, rank: int) -> Any:
        return ((position, self._read[position]) for position in self._usable[rank:])


class ReadRows:
    """A source whose raw rows have been read already."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def row(self, raw: Any, position: int) -> Any:
        return raw


class Run:
    """One training, from the start of its learner to its last step; afterwards its generator answers.

    A context manager; leaving it frees models and the event loop. `metrics`, `steps` and `proofs` fill while
    it trains.

    Args:
        source, reward, editor: in place of those that the settings name.
    """

    def __init__(
        self,
        settings: Settings,
        recipe: Recipe,
        *,
        source: Source | None = None,
        reward: AnyReward | None = None,
        editor: Editor | None = None,
    ) -> None:
        self.settings, self.recipe = settings, recipe
        self.metrics: list[dict[str, Any]] = []  # of each step
        self.steps: list[tuple[Group, ...]] = []  # what each step was trained on
        self.proofs: list[Proof] = []
        self.counts: Mapping[str, Any] = {}  # groups by what became of them
        self.seconds: dict[str, float] = {}
        self._runner = asyncio.Runner()
        self._runner.get_loop().set_default_executor(InlineExecutor(1))
        began = time.perf_counter()
        self._source = source or open_source(settings)
        path = str(model_path(settings))
        learner = settings.learner
        rollout = settings.rollout
        self.generator = HuggingFaceGenerator(
            "generator-0",
            path,
            rollout.engine,
            Decoding(temperature=rollout.temperature, top_p=rollout.top_p, max_tokens=rollout.max_tokens),
            lora=learner.lora if syncs_adapter(learner, recipe) else None,
            seed=settings.seed,
        )
        # One canary with media and one without: each more costs every sync two forwards.
        self.canaries: tuple[Canary, ...] = make_canaries(self._source, self.generator.processing)[:2]
        self.admission: Admission = admission_of(settings, recipe)
        self.ledger = Ledger(settings.name, ATTEMPT, self.admission, settings.max_drop_share, settings.seed)
        self.scorer = Scorer(
            recipe,
            settings,
            ReadRows(self._source),  # type: ignore[arg-type]
            [self.generator],
            [Perturber()],
            self.ledger,
            reward,
            editor,
        )
        self.prompts = LocalPrompts(self._source, self._source.inventory().usable)
        self.learner: Learner | None = Learner(path, learner, recipe, seed=settings.seed)
        self.published = self.published_step = -1
        self.do(self.generator.start(self.canaries))
        self.do(self._publish(0, 0))
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
        return self._runner.run(work)

    def versions(self) -> dict[int, int]:
        """The fleet of this run: one generator and its proved version."""
        return {0: self.generator.version}

    def train(self, on_step: OnStep | None = None) -> None:
        """All steps of the run. Raises what failed; `RunFailed` for a version that cannot be proved."""
        began = time.perf_counter()
        self.do(self._train(on_step))
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

    async def _train(self, on_step: OnStep | None) -> None:
        tasks = [asyncio.create_task(self._learn(on_step)), asyncio.create_task(self._produce())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.metrics = await self.ledger.progress(0)
            self.counts = await self.ledger.counts()
        self.ledger.check()

    async def _produce(self) -> None:
        producer = LocalProducer(self.scorer.produce)
        for stage in range(len(self.recipe.stages)):
            await self._order(stage)
            await drive(
                self.prompts, producer, self.ledger, self, self.admission, asyncio.Event(), stage=stage
            )

    async def _order(self, stage: int) -> None:
        """The stage's prompts in the order of the recipe, which may ask for a survey of them all."""
        order, cursor = self.recipe.stages[stage].order, (await self.ledger.state()).cursor
        await self.prompts.seek(cursor)
        if order.key is None:
            return
        steps = self.admission.stages[stage].last - self.admission.first(stage) + 1
        items = await self.prompts.next(steps * self.settings.learner.groups_per_step)
        seed = derived_seed(self.settings.seed, "survey", stage)
        surveyed = [self.scorer.survey(item[3], order, derived_seed(seed, item[0]), 0) for item in items]
        await self.prompts.reorder(order(await asyncio.gather(*surveyed)), cursor)

    async def _learn(self, on_step: OnStep | None) -> None:
        """Pull, train, end the stage, publish, begin the next, report: as `learner_loop` does."""
        learner, every = self._learner, self.settings.sync.every
        ends = boundaries(self.settings, self.recipe)
        step = 0
        while not (shard := await self.ledger.pull(ATTEMPT, step + 1, 0, 1)).stop:
            step += 1
            began = time.perf_counter()
            result = learner.train_step(shard.groups, shard.largest, step, self.published)
            self._count("learn", began)
            self.steps.append(shard.groups)
            if on_step is not None:
                on_step(Trained(step=step, groups=shard.groups, result=result, learner=learner))
            if step in ends:
                learner.end_stage()
            if step in ends or step % every == 0:
                await self._publish(self.published + 1, step)
            if step in ends and learner.stage + 1 < len(self.recipe.stages):
                learner.begin_stage(learner.stage + 1)
            await self.ledger.trained(ATTEMPT, step, result.metrics)
        if self.published_step != step:
            await self._publish(self.published + 1, step)

    async def _publish(self, number: int, step: int) -> None:
        began = time.perf_counter()
        learner = self._learner
        tensors = learner.export()
        version = WeightVersion(
            attempt=ATTEMPT,
            number=number,
            step=step,
            stream="policy",
            manifest=learner.manifest(tensors),
            canary=learner.canary(self.canaries),
            adapter=learner.syncs_adapter,
        )
        proof = await self.generator.adopt(version, tensors)
        self.proofs.append(proof)
        if not proof.holds:
            raise RunFailed(f"the generator could not prove weight version {number}: {dict(proof.detail)}")
        if "reference" in self.recipe.needs and (weights := learner.reference_weights()) is not None:
            await self.generator.adopt_reference(weights)
        await self.ledger.published(number)
        self.published, self.published_step = number, step
        self._count("publish", began)

    def _count(self, what: str, began: float) -> None:
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - began


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
