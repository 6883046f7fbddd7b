"""The learner: one rank of training. A plain class around DeepSpeed; `actors.learner_loop` runs it in Ray
Train.

The loss of a step is, over the *global* batch of all ranks, sum over terms k of
weight_k * sum(value_k) / sum(weight_k). The denominators are reduced first, so that micro-batches, ranks and
accumulation never change a gradient.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from actors import coupled, exporting, saving, sight, training
from actors.policy import Policy
from actors.processing import Processing
from actors.proof import tensor_digest
from actors.reading import MicroBatch, Reader
from actors.references import References
from actors.running import Heads, observed
from actors.step_log import (
    Counts,
    StepResult,
    Sums,
    bad_tokens,
    bad_values,
    count,
    note,
    summary,
    term_names,
)
from actors.training import NotFinite
from pipelines.objectives.base import Objective, Term, advanced
from pipelines.objectives.batch import add_totals
from pipelines.recipe import Extrapolate, MergeAdapter, Recipe, Refresh, ResetOptimizer, Stage
from pipelines.settings import LearnerSettings
from pipelines.training_requirements import require_possible
from pipelines.types import Canary, Comparison, Group, MediaTable, TensorDigest

Weighted = tuple[str, float, Term]  # name of its loss, factor of its values, the term


class Learner:
    """One rank of data-parallel training, in the first stage of the recipe.

    `model_path`: the checkpoint that training starts from and the reference stays at. `rank` and `world` must
    match the process group; without one, a group of a single process is made. Raises ValueError for a recipe
    that these settings cannot train.
    """

    def __init__(
        self,
        model_path: str | Path,
        settings: LearnerSettings,
        recipe: Recipe,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        require_possible(settings, recipe)
        training.join_process_group(settings, rank, world)
        torch.manual_seed(seed)
        self.settings, self.recipe, self.rank, self.world = settings, recipe, rank, world
        self.processing = Processing(model_path)
        self.policy = Policy(self.processing, settings, seed)
        self.policy.build(trainable=recipe.stages[0].trainable)
        self.references = References(self.policy)
        stages = [stage.objective for stage in recipe.stages]
        heads = dict.fromkeys(head for objective in stages for head in objective.heads)
        self.heads = Heads(list(heads), self.policy.width, settings, self.policy.device, seed)
        self._statistics = [item for objective in stages for item in objective.statistics]
        self.carry: dict[str, float] = {}  # the running statistics that terms read
        self.reader = Reader(self.policy, self.references, self.heads)
        self.applied_steps = 0
        self.skipped_steps = 0
        self.warm_steps = 0  # applied since the optimizer started
        self.skipped_in_a_row = 0
        self.start: dict[str, Tensor] | None = None  # what a stage's extrapolation leads away from
        self.begin_stage(0)

    # -- stages ---------------------------------------------------------------------------------------------

    @property
    def now(self) -> Stage:
        return self.recipe.stages[self.stage]

    @property
    def objective(self) -> Objective:
        return self.now.objective

    @property
    def digest_mismatches(self) -> int:
        return self.reader.rows.digest_mismatches

    def begin_stage(self, index: int) -> None:
        """Sets what is trained, from where and against what; all ranks call it together.

        A stage that starts from the run's model, or trains other parameters, starts with a fresh optimizer.
        """
        self.stage = index
        stage, policy = self.now, self.policy
        if index > 0 and stage.init == "start":
            policy.lora, policy.merged = self.settings.lora, False
            policy.build(trainable=stage.trainable)
        elif stage.trainable != policy.trainable:
            policy.build(policy.base(), stage.trainable, policy.factors())
        self.references.enter(stage)
        if not any(isinstance(action, Extrapolate) for action in stage.then):
            self.start = None
        elif self.start is None or stage.init == "start":
            self.start = policy.weights()

    def end_stage(self) -> None:
        """Runs what the stage does at its end, in order; all ranks call it together.

        Merging and extrapolating change the weights, so the optimizer starts anew; only `ResetOptimizer`
        warms up again as well.
        """
        policy = self.policy
        for action in self.now.then:
            if isinstance(action, Refresh):
                self.references.refresh()
            elif isinstance(action, MergeAdapter):
                merged = policy.weights()
                if action.rank is not None and policy.lora is not None:
                    policy.lora = policy.lora.model_copy(update={"rank": action.rank})
                policy.merged = True
                policy.build(merged, policy.trainable)
            elif isinstance(action, Extrapolate):
                trained = policy.weights()
                policy.build(_extrapolated(trained, self.start or {}, action.alpha), policy.trainable)
                self.start = trained
            elif isinstance(action, ResetOptimizer):
                training.reset_moments(policy.engine)
                self.heads.reset()
                self.warm_steps = 0

    # -- one step -------------------------------------------------------------------------------------------

    def train_step(self, groups: Sequence[Group], largest: int, step: int, published: int = 0) -> StepResult:
        """One optimizer step on this rank's groups; none where no term has a comparison to learn from.

        `largest`: comparisons of the largest rank's share, so that all ranks run equally many micro-batches.
        `published`: number of the newest weight version, from which the lag of each group is counted.
        Raises `BlindLearner`, `SightMismatch`, `TooLong`, `NotFinite`, and ValueError for answers with
        special tokens.
        """
        started = time.perf_counter()
        comparisons = [comparison for group in groups for comparison in group.comparisons]
        media = {digest: item for group in groups for digest, item in group.media.items()}
        if len(comparisons) > largest:
            raise ValueError(
                f"step {step}: rank {self.rank} has {len(comparisons)} comparisons, more than the largest: "
                f"{largest}"
            )
        counts = count(groups, published)
        micros = self.reader.micro_batches(comparisons, largest)
        terms = self._terms(micros)
        if not terms:
            metrics = summary(self.everyones((Sums(), counts)))
            return StepResult(metrics=metrics, margins=({},) * len(comparisons), applied=False)
        sums = self._accumulate(micros, terms, media)
        if self.processing.has_vision and not any(self.everyones(bool(sums.reliances))):
            sums.reliances += self.reader.reliance(comparisons, media)
        parts: list[tuple[Sums, Counts]] = self.everyones((sums, counts))
        sight.require_reliance([r for part, _ in parts for r in part.reliances], self.settings.dtype)
        bad = tuple(line for part, _ in parts for line in part.bad)
        norm, rate, applied = self._optimize(step, bad)
        if applied:
            seen = add_totals([part.observed for part, _ in parts])
            self.carry = advanced(self.carry, self._statistics, seen)
            self.references.after(step)
        seconds = time.perf_counter() - started
        metrics = summary(parts)
        metrics |= {"grad_norm": norm, "lr": rate, "skipped_steps": float(self.skipped_steps)}
        metrics |= {"seconds/forward_backward": seconds, "tokens_per_s": metrics["tokens"] / seconds}
        metrics |= {f"running/{name}": value for name, value in self.carry.items()}
        numbers = {key: value for key, value in metrics.items() if math.isfinite(value)}
        return StepResult(metrics=numbers, margins=tuple(sums.margins), applied=applied, bad=bad)

    def _accumulate(self, micros: Sequence[MicroBatch], terms: Sequence[Weighted], media: MediaTable) -> Sums:
        """Forward and backward over all micro-batches."""
        objective, engine = self.objective, self.policy.engine
        pieces = self.reader.pieces(micros)
        sums = Sums()
        coupling = [entry for entry in terms if entry[2].coupled]
        replayed = self._replay(coupling, micros, media, pieces, sums) if coupling else []
        for index, micro in enumerate(micros):
            reads, loss = self.reader.read(micro, media, pieces, objective, self.carry)
            sums.bad += bad_tokens(micro.table, reads, micro.comparisons)
            for name, scale, term in terms:
                if term.coupled:
                    continue
                values = scale * term.value(reads)
                _add_loss(sums, name, values, micro.comparisons)
                loss = loss + values.sum()
            if replayed:
                loss = loss + (replayed[index] * reads.tokens["policy"]).sum()
            if not torch.isfinite(loss):  # no part of the gradient may pass for finite: all ranks skip
                loss = loss * math.nan
            engine.set_gradient_accumulation_boundary(index == len(micros) - 1)
            engine.backward(loss * self.world)  # DeepSpeed averages over ranks
            note(sums, micro.table, reads, micro.comparisons)
            sums.observed = add_totals([sums.observed, observed(objective, reads)])
        return sums

    def _terms(self, micros: Sequence[MicroBatch]) -> list[Weighted]:
        """(name, factor of its values, term) of each term that some comparison of the global batch has.

        The factor is the term's weight over the sum of its comparisons' weights on all ranks; these do not
        depend on the policy. The name is the key under which the loss is logged.
        """
        weighted = self.objective.terms
        sums = torch.zeros(len(weighted), dtype=torch.float64, device=self.policy.device)
        for micro in micros:
            reads = micro.table.reads(self.policy.device)
            for index, (_, term) in enumerate(weighted):
                sums[index] += term.weight(reads).double().sum()
        dist.all_reduce(sums)
        names, denominators = term_names(self.objective), sums.tolist()
        return [
            (name, weight / denominator, term)
            for name, (weight, term), denominator in zip(names, weighted, denominators, strict=True)
            if denominator > 0
        ]

    def _replay(
        self,
        terms: Sequence[Weighted],
        micros: Sequence[MicroBatch],
        media: MediaTable,
        pieces: int,
        sums: Sums,
    ) -> list[Tensor]:
        """d loss / d log-prob of the coupled terms, [N, L] of each micro-batch of this rank."""
        plain = Objective(tuple((scale, term) for _, scale, term in terms))
        with torch.no_grad():
            reads = [self.reader.read(micro, media, pieces, plain, self.carry)[0] for micro in micros]
        parts: list[coupled.Part] = self.everyones(coupled.part([m.comparisons for m in micros], reads))
        batch = coupled.whole(parts, self.carry, self.policy.device)
        everything = [c for part in parts for c in part.comparisons]
        gradient = torch.zeros_like(batch.tokens["policy"])
        for name, scale, term in terms:
            values, slope = coupled.differentiated(term, batch, scale)
            gradient += slope
            if self.rank == 0:  # all ranks compute the same; losses add up over ranks
                _add_loss(sums, name, scale * values, everything)
        return coupled.of_rank(gradient, parts, self.rank)

    def _optimize(self, step: int, bad: Sequence[str]) -> tuple[float, float, bool]:
        """(gradient norm, learning rate, whether the step was applied). A non-finite step changes nothing."""
        warmup = self.settings.warmup_steps
        warm = min(1.0, (self.warm_steps + 1) / warmup if warmup else 1.0)
        rate = self.settings.lr * warm
        for group in self.policy.engine.optimizer.param_groups:
            group["lr"] = rate
        heads_finite = self.heads.gather(self.objective)
        norm, applied = training.apply_gradients(self.policy.engine, self.settings)
        self.heads.step(self.objective, applied and heads_finite, warm)
        if applied:
            self.applied_steps += 1
            self.warm_steps += 1
            self.skipped_in_a_row = 0
            return norm, rate, True
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        named = f" The first: {bad[0]}." if bad else ""
        if self.rank == 0:
            training.log.warning("step %d was skipped, not finite.%s", step, named)
        if self.skipped_in_a_row > self.settings.max_skipped:
            raise NotFinite(
                f"step {step}: loss or gradient was not finite in {self.skipped_in_a_row} steps in a row "
                f"(gradient norm {norm}); the weights are those of the last finite step.{named} Lower "
                "learner.lr or look at the scores and margins of these comparisons"
            )
        return norm, rate, False

    def everyones(self, value: Any) -> list[Any]:
        """That value of every rank, in rank order."""
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def canary(self, canaries: Sequence[Canary]) -> tuple[float, ...]:
        """Summed log-probability of each canary's answer, nats; all ranks call it together."""
        return self.reader.canary(canaries)

    # -- weights --------------------------------------------------------------------------------------------

    @property
    def syncs_adapter(self) -> bool:
        """Whether `export` gives an adapter."""
        return exporting.syncs_adapter(self.settings, self.recipe)

    def stream(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """What generators load, tensor by tensor: all weights under checkpoint names, or the LoRA adapter
        under PEFT's names. No more than one is in host memory unless the caller keeps it.

        All ranks iterate to the end together; only rank 0 gets tensors. bfloat16 is carried as uint16. A tied
        head is exported only where the checkpoint stores one. A recipe that merges adapters exports whole
        weights, merged.
        """
        stage, keep = self.settings.zero_stage, self.rank == 0
        if self.syncs_adapter:
            return exporting.stream_adapter_weights(self.policy.model, stage, keep)
        return exporting.stream_whole_weights(self.policy.model, self.policy.names, stage, keep)

    def export(self) -> dict[str, NDArray[Any]]:
        """All that `stream` gives, at once."""
        return dict(self.stream())

    def reference_weights(self) -> dict[str, Tensor] | None:
        """Whole weights of the reference under their names in memory; all ranks call it together.

        None while it is the run's model, or where no stage reads one.
        """
        if self.policy.lora is not None:
            return self.policy.base() if self.policy.merged else None
        return self.references.weights()

    def manifest(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, TensorDigest]:
        """SHA-256, shape and dtype of each exported tensor."""
        return {name: tensor_digest(array, exporting.dtype_name(array)) for name, array in tensors.items()}

    def save(self, folder: Path) -> None:
        """Writes a loadable checkpoint and, under `learner/`, what resuming needs; all ranks call it.

        With LoRA the top level holds the merged model, which serves anywhere but is rounded to the model's
        dtype, and `adapter/` the exact adapter while its base is still the run's model. Ranks must share the
        file system. Raises `NotFinite` for tensors that are not.
        """
        saving.save(self, folder)

    def load(self, folder: Path) -> saving.Resumed:
        """Continues from `save`: stage, weights, optimizer state, warm-up, reference, statistics, heads, RNG.

        All ranks call it together. With another number of ranks the optimizer state is "resharded", or starts
        anew with its warm-up ("weights only"). Raises ValueError when ZeRO stage, dtype, adapter or recipe
        are not those of the saved run.
        """
        return saving.load(self, folder)

    def barrier(self) -> None:
        """Waits for all ranks, at most `collective_timeout_s`."""
        dist.barrier()


def _add_loss(sums: Sums, name: str, values: Tensor, comparisons: Sequence[Comparison]) -> None:
    total = float(values.detach().sum())
    sums.losses[name] = sums.losses.get(name, 0.0) + total
    if not math.isfinite(total):
        sums.bad += bad_values(name, values, comparisons)


def _extrapolated(end: Mapping[str, Tensor], start: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """end + alpha (end - start), in float32, then rounded (accelerated preference optimisation)."""
    return {
        name: (tensor.float() + alpha * (tensor.float() - start[name].float())).to(tensor.dtype)
        for name, tensor in end.items()
    }
