"""Groups to learn from, and one rank as a process of its own: `python cases.py SPEC.json RANK`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors import reading
from actors.learner import Learner
from pipelines.comparisons import Compare
from pipelines.objectives.anchor import Anchor
from pipelines.objectives.base import Head, Objective, Reads, Statistic, Term, per_comparison
from pipelines.objectives.pair import Pair
from pipelines.recipe import Recipe, Stage
from pipelines.rollout import Step
from pipelines.settings import LearnerSettings
from pipelines.types import (
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
)

EOS = 2
FIRST_WORD = 8  # ids below are special tokens


def picture(rng: np.random.Generator, **kwargs: Any) -> Media:
    pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    return Media(kind="image", space="rgb8", payload=pixels, **kwargs)


def answer(rng: np.random.Generator) -> Response:
    words = rng.integers(FIRST_WORD, 100, int(rng.integers(3, 12))).tolist()
    return Response(tokens=(*words, EOS), text=" ".join(map(str, words)))


def group(seed: int, *, images: bool = True, damaged: bool = True) -> Group:
    """One comparison: a text edge, and a media edge when the prompt has images and `damaged` is set."""
    rng = np.random.default_rng(seed)
    clean = picture(rng)
    broken = picture(rng, parent=clean.digest, op=Op(name="noise", params={"strength": 1.0}, seed=seed))
    words = Part(kind="text", text="is there a red one top left ?" if seed % 2 else "describe the image .")
    parts = (Part(kind="image", digest=clean.digest), words) if images else (words,)
    prompt = Prompt(id=f"row-{seed}", messages=(Message(role="user", parts=parts),))
    media_edge = images and damaged
    prompts = (prompt, prompt.with_media({clean.digest: broken.digest}, "m")) if media_edge else (prompt,)
    candidates = [
        Candidate(prompt=0, response=0, role="w@x", score=Score(value=1.0, parts={"right": 2.0})),
        Candidate(prompt=0, response=1, role="l@x", score=Score(value=-1.0, parts={"right": 0.0})),
    ]
    edges = [Preference(name="text", winner=0, loser=1, weight=1.0 + 0.25 * (seed % 3))]
    if media_edge:
        candidates.append(Candidate(prompt=1, response=0, role="w@m"))
        edges.append(Preference(name="media", winner=0, loser=2, margin=0.1))
    comparison = Comparison(
        id=f"group-{seed}/0",
        prompts=prompts,
        responses=(answer(rng), answer(rng)),
        candidates=tuple(candidates),
        preferences=tuple(edges),
    )
    media = {item.digest: item for item in (clean, broken)} if images else {}
    return Group(
        id=f"group-{seed}",
        fence=0,
        comparisons=(comparison,),
        media=media,
        version=0,
        facts={"reward": float(seed)},
    )


def objective() -> Objective:
    return Pair("text") + 0.5 * Pair("media") + Anchor("text.winner")


def everything() -> Objective:
    """Terms of every kind: separable, coupled, with features, a head and a running statistic."""
    return objective() + 0.1 * Centred() + 0.1 * Curious()


@dataclass(frozen=True)
class Prepared(Compare):
    """Stands for what made the comparisons: they are handed to the learner ready."""

    objective: Objective

    @property
    def emits(self) -> frozenset[str]:
        return self.objective.edges

    @property
    def roles(self) -> frozenset[str]:
        return self.objective.roles

    @property
    def spans(self) -> frozenset[str]:
        return self.objective.spans


def stage(terms: Objective | Term, **slots: Any) -> Stage:
    whole = terms if isinstance(terms, Objective) else 1.0 * terms
    return Stage(rollout=Step(), compare=Prepared(whole), objective=whole, **slots)


def recipe(*stages: Stage) -> Recipe:
    return Recipe(name="case", paper="none", source="none", stages=stages or (stage(objective()),))


@dataclass(frozen=True)
class Centred(Term):
    """(rho - mean of rho over the batch)^2 of the text winners: every comparison depends on all others."""

    on: str = "text"
    replayed: bool = True  # False is right only where one micro-batch holds the global batch

    @property
    def edges(self) -> frozenset[str]:
        return frozenset({"text"})

    @property
    def coupled(self) -> bool:
        return self.replayed

    def weight(self, reads: Reads) -> torch.Tensor:
        if "text" not in reads.edges:
            return torch.zeros(reads.size)
        table = reads.edges["text"]
        return per_comparison(torch.ones_like(table.weight), table.owner, reads.size)

    def value(self, reads: Reads) -> torch.Tensor:
        table = reads.edges["text"]
        rho = (reads.logps["policy"] - reads.logps["reference"])[table.winner]
        aim = reads.logps["policy"][table.winner].detach() / 10  # away from the start, where rho is 0
        return per_comparison((rho - aim - (rho - aim).mean()) ** 2, table.owner, reads.size)


@dataclass(frozen=True)
class Curious(Term):
    """Reads every feature, a head and a running statistic of the text winners."""

    on: str = "text"

    @property
    def edges(self) -> frozenset[str]:
        return frozenset({"text"})

    @property
    def views(self) -> frozenset[str]:
        return frozenset({"policy", "reference", "behaviour"})

    @property
    def needs(self) -> frozenset[Any]:
        return frozenset({"kl_forward", "kl_reverse", "collision", "entropy", "hidden", "reference_hidden"})

    @property
    def heads(self) -> tuple[Head, ...]:
        return (Head(name="probe", outputs=1, hidden=(4,)),)

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        return (Statistic(name="rho", kind="ema", decay=0.5), Statistic(name="length", kind="mean"))

    def weight(self, reads: Reads) -> torch.Tensor:
        if "text" not in reads.edges:
            return torch.zeros(reads.size)
        table = reads.edges["text"]
        return per_comparison(reads.lengths[table.winner].float(), table.owner, reads.size)

    def value(self, reads: Reads) -> torch.Tensor:
        if "text" not in reads.edges:
            return torch.zeros(reads.size)
        table, found = reads.edges["text"], reads.features
        guess = reads.heads["probe"](found["hidden"]).squeeze(-1)
        odd = reads.tokens["policy"].detach() - reads.carry.get("rho", 0.0)
        pulled = (found["hidden"] * found["reference_hidden"]).mean(-1)
        tokens = found["kl_forward"] + found["kl_reverse"] + found["collision"] + found["entropy"]
        tokens = (tokens + (guess - odd) ** 2 + pulled) * reads.mask
        return per_comparison(tokens.sum(-1)[table.winner], table.owner, reads.size)

    def observe(self, reads: Reads) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        if "text" not in reads.edges:
            return {}
        winner = reads.edges["text"].winner
        count = torch.tensor(float(len(winner)))
        lengths, rho = reads.lengths[winner].float(), reads.logps["policy"][winner] / 10
        return {"rho": (rho.sum(), count), "length/winner": (lengths.sum(), count)}


class Recording(Learner):
    """Keeps the whole gradient of every step before it is applied."""

    gradients: dict[str, np.ndarray]

    def _optimize(self, step: int, bad: Any) -> tuple[float, float, bool]:
        from deepspeed.utils import safe_get_full_grad

        plain = self.settings.zero_stage == 0
        found = {
            name: parameter.grad if plain else safe_get_full_grad(parameter)
            for name, parameter in self.policy.model.named_parameters()
            if parameter.requires_grad
        }
        self.gradients = {
            name: np.zeros(0) if grad is None else grad.float().numpy().copy() for name, grad in found.items()
        }
        return super()._optimize(step, bad)


def shards(spec: dict[str, Any], world: int) -> list[list[Group]]:
    """Groups per rank; with one rank all of them, in the same order."""
    per_rank = [[group(seed, images=images) for seed, images in rank] for rank in spec["groups"]]
    return per_rank if world > 1 else [[item for rank in per_rank for item in rank]]


def train(spec: dict[str, Any], zero: int, rank: int, world: int) -> tuple[Recording, list[Any]]:
    """Some steps on the spec's groups; the results of each step."""
    sizes = {"zero_stage": zero, "micro_batch": spec["micro_batch"]}
    settings = LearnerSettings.model_validate({**sizes, "warmup_steps": 0, "lr": 2e-5})
    reading.LOGITS = spec["logits"]
    learner = Recording(spec["model"], settings, recipe(stage(everything())), seed=1, rank=rank, world=world)
    mine = shards(spec, world)
    largest = max(len(share) for share in mine)
    return learner, [learner.train_step(mine[rank], largest, step + 1) for step in range(spec["steps"])]


def main() -> None:
    torch.set_num_threads(1)
    spec: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    rank, world = int(sys.argv[2]), len(spec["groups"])
    from datetime import timedelta

    import torch.distributed as dist

    store = f"file://{spec['folder']}/rendezvous"
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    save: Any = np.savez
    for zero in spec["stages"]:
        learner, results = train(spec, zero, rank, world)
        weights = learner.export()
        if rank == 0:
            save(f"{spec['folder']}/gradients-{zero}.npz", **learner.gradients)
            save(f"{spec['folder']}/weights-{zero}.npz", **weights)
            metrics = [result.metrics for result in results]
            Path(f"{spec['folder']}/metrics-{zero}.json").write_text(json.dumps(metrics))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
