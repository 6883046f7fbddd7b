"""Builds the actors of a run. Classes are plain; they become remote here and only here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from actors.decoder import HuggingFaceGenerator
from actors.exporting import syncs_adapter
from actors.generator import Decoding, Generator
from actors.learner_loop import train_loop
from actors.ledger import Ledger
from actors.perturber import Perturber
from actors.prompts import PromptStream
from actors.scorer import Scorer
from actors.weights import Publisher
from pipelines.admission import admission_of
from pipelines.data.base import Inventory, Source
from pipelines.recipe import Recipe
from pipelines.requirements import backend_of
from pipelines.settings import PERTURBER_CPUS, SCORER_CPUS, Settings
from pipelines.types import Canary


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that is known before Ray starts."""

    settings: Settings
    run_dir: Path
    recipe: Recipe
    source: Source
    inventory: Inventory
    model: Path  # what the run started from: the learner's frozen reference
    start: Path  # what this attempt's generators load: the same, or a checkpoint
    canaries: tuple[Canary, ...]
    attempt: int = 1
    resumed: Path | None = None  # the verified checkpoint that this attempt continues
    step: int = 0  # learner steps that the checkpoint holds
    ledger: dict[str, Any] = field(default_factory=dict[str, Any])  # its snapshot of the ledger


@dataclass(frozen=True, kw_only=True)
class Crew:
    """Handles of the actors of a run."""

    ledger: Any
    publisher: Any
    prompts: Any
    generators: Sequence[Any]
    perturbers: Sequence[Any]
    scorers: Sequence[Any]


def build(plan: Plan) -> Crew:
    """Create every actor but the learner. Returns at once; actors start up in parallel."""
    settings = plan.settings
    service: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 1000}
    ledger = ray.remote(Ledger).options(**service).remote(**ledger_arguments(plan))
    prompts = ray.remote(PromptStream).options(**service).remote(plan.source, plan.inventory.usable)
    publisher = ray.remote(Publisher).options(**service).remote(plan.attempt, ray.put)
    generators = [generator(plan, index) for index in range(settings.rollout.generators)]
    perturbing = ray.remote(Perturber).options(**service | {"num_cpus": PERTURBER_CPUS})
    perturbers = [perturbing.remote() for _ in range(settings.rollout.perturbers)]
    scoring = ray.remote(Scorer).options(**service | {"num_cpus": SCORER_CPUS})
    scorers = [
        scoring.remote(plan.recipe, settings, plan.source, generators, perturbers, ledger)
        for _ in range(settings.rollout.scorers)
    ]
    return Crew(
        ledger=ledger,
        publisher=publisher,
        prompts=prompts,
        generators=generators,
        perturbers=perturbers,
        scorers=scorers,
    )


def ledger_arguments(plan: Plan) -> dict[str, Any]:
    settings = plan.settings
    return {
        "run": settings.name,
        "attempt": plan.attempt,
        "admission": admission_of(settings, plan.recipe),
        "max_drop_share": settings.max_drop_share,
        "seed": settings.seed,
    }


def generator(plan: Plan, index: int) -> Any:
    settings, rollout = plan.settings, plan.settings.rollout
    decoding = Decoding(temperature=rollout.temperature, top_p=rollout.top_p, max_tokens=rollout.max_tokens)
    options = {"num_cpus": rollout.engine.cpus, "num_gpus": rollout.engine.gpus, "max_concurrency": 1000}
    arguments: dict[str, Any] = {
        "name": f"generator-{index}",
        "model_path": str(plan.start),
        "engine": rollout.engine,
        "decoding": decoding,
        "lora": settings.learner.lora if syncs_adapter(settings.learner, plan.recipe) else None,
        "seed": settings.seed + index,
    }
    kind: Any = Generator
    if backend_of(settings, plan.recipe) == "transformers":
        kind = HuggingFaceGenerator
        arguments["reference_path"] = str(plan.model)
    return ray.remote(kind).options(**options).remote(**arguments)


def trainer(plan: Plan, crew: Crew) -> TorchTrainer:
    """The learner under Ray Train. A worker that dies ends the attempt: the run is resumed from a commit."""
    learner = plan.settings.learner
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(learner.start_timeout_s)
    config = {
        "settings": plan.settings,
        "recipe": plan.recipe,
        "model": str(plan.model),
        "canaries": plan.canaries,
        "run_dir": str(plan.run_dir),
        "attempt": plan.attempt,
        "resumed": str(plan.resumed) if plan.resumed else None,
        "ledger": crew.ledger,
        "publisher": crew.publisher,
    }
    return TorchTrainer(
        train_loop,
        train_loop_config=config,
        torch_config=TorchConfig(
            backend="nccl" if learner.gpus else "gloo", timeout_s=learner.collective_timeout_s
        ),
        scaling_config=ScalingConfig(
            num_workers=learner.workers,
            use_gpu=bool(learner.gpus),
            resources_per_worker={"CPU": learner.cpus, "GPU": learner.gpus},
        ),
        run_config=RunConfig(
            name=".ray_train",
            storage_path=str(plan.run_dir.absolute()),
            failure_config=FailureConfig(max_failures=0),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
