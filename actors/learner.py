"""The learner: one rank of training. A plain class around DeepSpeed; `actors.learner_loop` runs it in Ray
Train.

The loss of a step is, over the *global* batch of all ranks, sum over terms k of
weight_k * sum(value_k) / sum(weight_k). The denominators are reduced first, so that micro-batches, ranks and
accumulation never change a gradient.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from actors import exporting, sight, training
from actors.forward import Batch, Row, Scorer, blank_row, collate
from actors.processing import Encoded, Processing
from actors.proof import tensor_digest
from actors.step_log import Counts, StepResult, Sums, count, note, summary
from pipelines.objectives.base import Objective, Reads
from pipelines.objectives.batch import Table, tabulate
from pipelines.settings import LearnerSettings
from pipelines.types import Canary, Comparison, Group, MediaTable, Prompt, Response, TensorDigest

MOST_SKIPPED = 3  # non-finite steps in a row that are tolerated
PROBED = 4  # comparisons per rank whose reliance on images is probed when no edge differs in media
TAG = "state"  # DeepSpeed's name for the one checkpoint of a folder
STATE = "plumbline"  # the learner's own entry in it; DeepSpeed keeps names such as skipped_steps to itself
LAYOUT = "layout.json"  # what the shards depend on


class NotFinite(RuntimeError):
    """Loss or gradient was not finite several steps in a row."""


class Learner:
    """One rank of data-parallel training.

    `model_path`: the checkpoint that training starts from and the reference stays at. `rank` and `world` must
    match the process group; without one, a group of a single process is made.
    """

    def __init__(
        self,
        model_path: str | Path,
        settings: LearnerSettings,
        objective: Objective,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        training.join_process_group(settings, rank, world)
        torch.manual_seed(seed)
        self.settings, self.objective, self.rank, self.world = settings, objective, rank, world
        self.processing = Processing(model_path)
        self._model = training.load_model(self.processing, settings.dtype)
        self._names = exporting.checkpoint_names(self._model, Path(model_path))
        self._adapter: Any = None
        if settings.lora:
            vision = self.processing.has_vision
            self._adapter = training.add_adapter(self._model, settings.lora, seed, vision)
        scorer = Scorer(self._model, self.processing)
        frozen = None if settings.lora else training.frozen_reference(scorer, settings)
        self._frozen: Callable[[Batch], Tensor] | None = frozen
        self._engine = training.start_engine(scorer, settings)
        self._device = torch.device(self._engine.device)
        self._blank = blank_row(self.processing)
        self.applied_steps = 0
        self.skipped_steps = 0
        self.digest_mismatches = 0
        self._skipped_in_a_row = 0

    # -- one step -------------------------------------------------------------------------------------------

    def train_step(self, groups: Sequence[Group], largest: int, step: int, published: int = 0) -> StepResult:
        """One optimizer step on this rank's groups.

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
        if largest == 0:
            return StepResult(metrics=summary(self._everyones((Sums(), counts))), margins=(), applied=False)
        sums = self._accumulate(comparisons, media, largest)
        if self.processing.has_vision and not any(self._everyones(bool(sums.reliances))):
            sums.reliances += self._probe(comparisons, media)
        parts: list[tuple[Sums, Counts]] = self._everyones((sums, counts))
        sight.require_reliance([r for part, _ in parts for r in part.reliances], self.settings.dtype)
        norm, rate, applied = self._optimize(step)
        seconds = time.perf_counter() - started
        metrics = summary(parts)
        metrics |= {"grad_norm": norm, "lr": rate, "skipped_steps": float(self.skipped_steps)}
        metrics |= {"seconds/forward_backward": seconds, "tokens_per_s": metrics["tokens"] / seconds}
        numbers = {key: value for key, value in metrics.items() if math.isfinite(value)}
        return StepResult(metrics=numbers, margins=tuple(sums.margins), applied=applied)

    def _accumulate(self, comparisons: Sequence[Comparison], media: MediaTable, largest: int) -> Sums:
        """Forward and backward over all micro-batches."""
        size = self.settings.micro_batch
        chunks = [comparisons[start : start + size] for start in range(0, largest, size)]
        tables = [tabulate(chunk, self._device) for chunk in chunks]
        denominators = self._denominators(tables)
        sums = Sums()
        for index, (table, chunk) in enumerate(zip(tables, chunks, strict=True)):
            batch = collate(self._rows(table, media), self.processing).to(self._device)
            reference, policy = self._reference(batch), self._engine(batch)
            reads = _reads(table, policy=policy, reference=reference)
            loss = policy.sum() * 0.0  # every module stays in the graph, whatever the micro-batch holds
            for (name, weight, term), denominator in zip(self._terms(), denominators, strict=True):
                if denominator > 0:
                    part = weight * term(reads).value.sum() / denominator
                    sums.losses[name] = sums.losses.get(name, 0.0) + float(part.detach())
                    loss = loss + part
            if not torch.isfinite(loss):
                loss = (
                    loss * math.nan
                )  # no part of the gradient may pass for finite: all ranks skip this step
            self._engine.set_gradient_accumulation_boundary(index == len(chunks) - 1)
            self._engine.backward(loss * self.world)  # DeepSpeed averages over ranks
            note(sums, table, reads, chunk)
        return sums

    def _terms(self) -> list[tuple[str, float, Any]]:
        """(name, weight, term) of the objective; the name is the key under which its loss is logged."""
        names = [f"{type(term).__name__.lower()}_{term.on}" for _, term in self.objective.terms]
        unique = [f"{name}_{i}" if names.count(name) > 1 else name for i, name in enumerate(names)]
        return [(name, *entry) for name, entry in zip(unique, self.objective.terms, strict=True)]

    def _denominators(self, tables: Sequence[Table]) -> list[float]:
        """Sum of each term's weights over the global batch; weights do not depend on the policy."""
        sums = torch.zeros(len(self.objective.terms), dtype=torch.float64, device=self._device)
        for table in tables:
            nothing = torch.zeros(len(table.cells), device=self._device)
            reads = _reads(table, policy=nothing, reference=nothing)
            for index, (_, term) in enumerate(self.objective.terms):
                sums[index] += term(reads).weight.double().sum()
        dist.all_reduce(sums)
        return sums.tolist()

    def _optimize(self, step: int) -> tuple[float, float, bool]:
        """(gradient norm, learning rate, whether the step was applied). A non-finite step changes nothing."""
        warmup = self.settings.warmup_steps
        rate = self.settings.lr * min(1.0, (self.applied_steps + 1) / warmup if warmup else 1.0)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        norm, applied = training.apply_gradients(self._engine, self.settings)
        if applied:
            self.applied_steps += 1
            self._skipped_in_a_row = 0
            return norm, rate, True
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row > MOST_SKIPPED:
            raise NotFinite(
                f"step {step}: loss or gradient was not finite in {self._skipped_in_a_row} steps in a row "
                f"(gradient norm {norm}); the weights are those of the last finite step. Lower learner.lr "
                "or look at the scores and margins of these comparisons"
            )
        return norm, rate, False

    def _everyones(self, value: Any) -> list[Any]:
        """That value of every rank, in rank order."""
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    # -- forward --------------------------------------------------------------------------------------------

    def _encode(self, prompt: Prompt, media: MediaTable) -> Encoded:
        """What the model is shown, checked against what the comparison says."""
        encoded = self.processing.encode(prompt, media)
        try:
            sight.require_seen(prompt, encoded)
        except sight.SightMismatch:
            self.digest_mismatches += 1
            raise
        return encoded

    def _rows(self, table: Table, media: MediaTable) -> list[Row]:
        """One row per cell, and the blank row where the micro-batch would leave modules unused."""
        shown: dict[str, Encoded] = {}
        rows: list[Row] = []
        for cell in table.cells:
            if cell.prompt.digest not in shown:
                shown[cell.prompt.digest] = self._encode(cell.prompt, media)
            rows.append(self._row(cell.prompt, shown[cell.prompt.digest], cell.response))
        return self._padded(rows)

    def _row(self, prompt: Prompt, encoded: Encoded, response: Response) -> Row:
        where = f"prompt {prompt.id!r} ({prompt.origin})"
        sight.require_answer(response, self.processing, where)
        self.processing.require_fit(len(encoded.input_ids), len(response.tokens), where)
        return encoded, response.tokens

    def _padded(self, rows: list[Row]) -> list[Row]:
        seen = any(encoded.pixel_values is not None for encoded, _ in rows)
        needed = not rows or (self.processing.has_vision and not seen)
        return [*rows, self._blank] if needed else rows

    @torch.no_grad()
    def _reference(self, batch: Batch) -> Tensor:
        if self._frozen is not None:
            return self._frozen(batch)
        with self._adapter.disable_adapter():
            return self._engine(batch)

    @torch.no_grad()
    def _probe(self, comparisons: Sequence[Comparison], media: MediaTable) -> list[float]:
        """log p(y|x, m) - log p(y|x, gray m) of a few winners; all ranks call it together."""
        rows: list[Row] = []
        for comparison in comparisons:
            candidate = comparison.candidates[comparison.preferences[0].winner]
            prompt, response = comparison.prompts[candidate.prompt], comparison.responses[candidate.response]
            if not prompt.media or len(rows) == 2 * PROBED:
                continue
            gray, table = sight.blanked(prompt, media)
            if gray.digest != prompt.digest:
                rows.append(self._row(prompt, self._encode(prompt, media), response))
                rows.append(self._row(gray, self._encode(gray, table), response))
        scores = self._engine(collate(self._padded(rows), self.processing).to(self._device))
        return (scores[: len(rows) : 2] - scores[1 : len(rows) : 2]).tolist()

    @torch.no_grad()
    def canary(self, canaries: Sequence[Canary]) -> tuple[float, ...]:
        """Summed log-probability of each canary's answer, nats; all ranks call it together."""
        scores: list[float] = []
        for canary in canaries:
            row = (self._encode(canary.prompt, canary.media), canary.tokens)
            batch = collate(self._padded([row]), self.processing).to(self._device)
            scores.append(float(self._engine(batch)[0]))
        return tuple(scores)

    # -- weights --------------------------------------------------------------------------------------------

    def export(self) -> dict[str, NDArray[Any]]:
        """What generators load: all weights under checkpoint names, or the LoRA adapter under PEFT's names.

        All ranks call it together; rank 0 gets the tensors, the others an empty dict. bfloat16 is carried as
        uint16. A tied head is exported only where the checkpoint stores one.
        """
        stage, keep = self.settings.zero_stage, self.rank == 0
        if self.settings.lora:
            return exporting.adapter_weights(self._model, stage, keep)
        return exporting.whole_weights(self._model, self._names, stage, keep)

    def manifest(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, TensorDigest]:
        """SHA-256, shape and dtype of each exported tensor."""
        return {name: tensor_digest(array, exporting.dtype_name(array)) for name, array in tensors.items()}

    def save(self, folder: Path) -> None:
        """Writes a loadable checkpoint and, under `learner/`, what resuming needs; all ranks call it.

        With LoRA the top level holds the merged model, which serves anywhere but is rounded to the model's
        dtype, and `adapter/` the exact adapter. Ranks must share the file system.
        """
        tensors = exporting.whole_weights(self._model, self._names, self.settings.zero_stage, self.rank == 0)
        adapter = self.export() if self.settings.lora else {}
        if self.rank == 0:
            exporting.write_checkpoint(folder, tensors, self.processing)
            (folder / "learner").mkdir(exist_ok=True)
            (folder / "learner" / LAYOUT).write_text(json.dumps(self._layout()))
            if self.settings.lora:
                exporting.write_adapter(folder / "adapter", adapter, self._adapter)
        counters = {"applied": self.applied_steps, "skipped": self.skipped_steps}
        state = {STATE: {**counters, "torch_rng": torch.get_rng_state()}}
        with training.quiet():
            self._engine.save_checkpoint(
                str(folder / "learner"),
                tag=TAG,
                client_state=state,
                save_latest=False,
                exclude_frozen_parameters=bool(self.settings.lora),
            )
        if self.rank == 0:
            for script in (folder / "learner").glob("*.py"):  # a checkpoint holds data, no programs
                script.unlink()
        self.barrier()

    def barrier(self) -> None:
        """Waits for all ranks, at most `collective_timeout_s`."""
        dist.barrier()

    def load(self, folder: Path) -> None:
        """Continues from `save`: weights, optimizer state, warm-up, RNG. All ranks call it together.

        Raises ValueError when ranks, ZeRO stage, dtype or adapter are not those of the saved run.
        """
        saved, now = json.loads((folder / "learner" / LAYOUT).read_text()), self._layout()
        if saved != now:
            odd = ", ".join(
                f"{key}: saved with {saved[key]}, now {now[key]}" for key in now if saved[key] != now[key]
            )
            raise ValueError(
                f"checkpoint {folder}: the optimizer state cannot be taken over ({odd}); resume with the "
                "saved settings, or start a new run from the checkpoint as its model"
            )
        path, state = self._engine.load_checkpoint(
            str(folder / "learner"), tag=TAG, load_module_strict=not self.settings.lora
        )
        if path is None:
            raise ValueError(f"checkpoint {folder}: it holds no learner state to continue from")
        own = state[STATE]
        self.applied_steps, self.skipped_steps = own["applied"], own["skipped"]
        torch.set_rng_state(own["torch_rng"])

    def _layout(self) -> dict[str, Any]:
        settings = self.settings
        lora = settings.lora.model_dump(mode="json") if settings.lora else None
        return {"world": self.world, "zero_stage": settings.zero_stage, "dtype": settings.dtype, "lora": lora}


def _reads(table: Table, *, policy: Tensor, reference: Tensor) -> Reads:
    """What the terms read; rows behind the table's cells are padding."""
    cells = len(table.cells)
    lengths = [len(cell.response.tokens) for cell in table.cells]
    return Reads(
        size=table.size,
        logps={"policy": policy[:cells], "reference": reference[:cells]},
        lengths=torch.tensor(lengths, dtype=torch.long, device=policy.device),
        edges=table.edges,
    )
