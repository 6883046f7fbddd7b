"""Builds the actors of a run. Classes are plain; they become remote here and only here."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray import PlacementGroupID
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.decoder import HuggingFaceGenerator
from actors.exporting import syncs_adapter
from actors.generator import Decoding, Generator
from actors.ledger import Ledger
from actors.nodes import Needs
from actors.perturber import Perturber
from actors.plan import Plan
from actors.prompts import PromptStream
from actors.scorer import Scorer
from actors.trainer import TrainerHost
from actors.weights import Publisher
from pipelines.admission import admission_of
from pipelines.requirements import backend_of
from pipelines.settings import PERTURBER_CPUS, SCORER_CPUS, Settings

SERVICE: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 1000}
KINDS = {"ledger": Ledger, "publisher": Publisher, "prompts": PromptStream, "trainer": TrainerHost}


class RayMakers:
    """Makes the members of the fleet; each call starts one process."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def generator(self, index: int) -> Any:
        return generator(self._plan, index)

    def scorer(self, index: int) -> Any:
        plan = self._plan
        options = SERVICE | {"num_cpus": SCORER_CPUS}
        return ray.remote(Scorer).options(**options).remote(plan.recipe, plan.settings, plan.source)

    def perturber(self, index: int) -> Any:
        return ray.remote(Perturber).options(**SERVICE | {"num_cpus": PERTURBER_CPUS}).remote()


@dataclass(frozen=True, kw_only=True)
class RayServices:
    """Handles of what lives as long as an attempt."""

    plan: Plan
    ledger: Any
    publisher: Any
    prompts: Any
    trainer: Any

    async def fit(self, ranks: int) -> None:
        """Train to the end with so many ranks."""
        await self.trainer.fit.remote(learner_config(self.plan, self), ranks)

    @property
    def handles(self) -> dict[str, Any]:
        return {
            "trainer": self.trainer,
            "ledger": self.ledger,
            "publisher": self.publisher,
            "prompts": self.prompts,
        }

    def kill(self) -> None:
        """End all of them, and every rank of the learner with its host."""
        for handle in self.handles.values():
            with suppress(Exception):  # or the others would live on
                ray.kill(handle)
        free_placement_groups()


def free_placement_groups() -> None:
    """Give back what ranks had reserved. A learner that is killed cannot, and Ray Train's own cleaner does it
    only where a dashboard answers; two such losses would leave no CPU for Ray Data.
    """
    job = ray.get_runtime_context().get_job_id()
    for name, group in placement_group_table().items():
        if name.endswith(job) and group["state"] != "REMOVED":  # an id ends with that of its job
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(name))))


def begin(plan: Plan) -> RayServices:
    """Create the services of an attempt. Returns at once; actors start up in parallel.

    They stay with the driver, so that the loss of another node never ends an attempt through them.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = SERVICE | {"scheduling_strategy": here}
    service = {name: ray.remote(kind).options(**options) for name, kind in KINDS.items()}
    return RayServices(
        plan=plan,
        ledger=service["ledger"].remote(**ledger_arguments(plan)),
        publisher=service["publisher"].remote(plan.attempt, ray.put),
        prompts=service["prompts"].remote(plan.source, plan.inventory.usable),
        trainer=service["trainer"].remote(),
    )


def ledger_arguments(plan: Plan) -> dict[str, Any]:
    settings = plan.settings
    lease_s = 5.0 * settings.rollout.engine.timeout_s
    return {
        "run": settings.name,
        "attempt": plan.attempt,
        "admission": admission_of(settings, plan.recipe),
        "max_drop_share": settings.max_drop_share,
        "seed": settings.seed,
        "max_tries": settings.rollout.max_tries,
        "lease_s": lease_s,
        "wait_s": 2 * lease_s,  # so that a step outlives a lease that is made again
    }


def generator(plan: Plan, index: int) -> Any:
    settings, rollout = plan.settings, plan.settings.rollout
    decoding = Decoding(temperature=rollout.temperature, top_p=rollout.top_p, max_tokens=rollout.max_tokens)
    options: dict[str, Any] = {
        "num_cpus": rollout.engine.cpus,
        "num_gpus": rollout.engine.gpus,
        "max_concurrency": 1000,
        "scheduling_strategy": "SPREAD",
    }
    if rollout.labels:
        options["label_selector"] = dict(rollout.labels)
    arguments: dict[str, Any] = {
        "name": f"generator-{index}",
        "model_path": str(plan.model),
        "engine": rollout.engine,
        "decoding": decoding,
        "lora": settings.learner.lora if syncs_adapter(settings.learner, plan.recipe) else None,
        "seed": settings.seed + index,
        "in_flight": settings.sync.in_flight,
    }
    kind: Any = Generator
    if backend_of(settings, plan.recipe) == "transformers":
        kind = HuggingFaceGenerator
        arguments["reference_path"] = str(plan.model)
    return ray.remote(kind).options(**options).remote(**arguments)


def needs(settings: Settings) -> Needs:
    """What each member of the fleet and each learner rank reserves; for a cluster that grows on demand."""
    engine, learner = settings.rollout.engine, settings.learner
    rank = {"CPU": float(learner.cpus), "GPU": float(learner.gpus)}
    return Needs(
        generator=_positive({"CPU": float(engine.cpus), "GPU": float(engine.gpus)}),
        scorer={"CPU": SCORER_CPUS},
        perturber={"CPU": PERTURBER_CPUS},
        generator_labels=dict(settings.rollout.labels),
        others=[_positive(rank)] * learner.workers,
    )


def _positive(amounts: dict[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in amounts.items() if amount}


def learner_config(plan: Plan, services: RayServices) -> dict[str, Any]:
    """What every rank is told."""
    return {
        "settings": plan.settings,
        "recipe": plan.recipe,
        "model": str(plan.model),
        "canaries": plan.canaries,
        "run_dir": str(plan.run_dir),
        "attempt": plan.attempt,
        "resumed": str(plan.resumed) if plan.resumed else None,
        "ledger": services.ledger,
        "publisher": services.publisher,
    }
