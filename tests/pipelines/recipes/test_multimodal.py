"""Every multimodal recipe: its program runs with honest tools, and its objective reads what it made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from pipelines.objectives.base import Reads
from pipelines.recipe import Stage
from pipelines.recipes import document, load
from pipelines.rollout import Draft

MakeDraft = Callable[..., Draft]
MakeTools = Callable[..., Any]
Run = Callable[..., Any]

ONE_STAGE = [
    "mfpo",
    "mdpo",
    "chip",
    "chip_released",
    "realign_rdpo",
    "adavip",
    "mia_dpo",
    "clip_dpo",
    "tars",
    "bdhs",
    "mixed_dpo",
    "mmedpo",
    "omnidpo",
    "pami_vdpo",
    "bpo_mmsafe",
    "m3id_dpo",
    "dcd",
    "vdd",
    "napo",
    "rrpo",
    "cat_adpo",
    "synthalign_pds",
    "remedy_regression",
    "critic_v",
    "unified_reward",
    "llava_critic_r1",
    "vision_r1",
    "fact_rlhf",
    "internvl_mpo",
    "molpo",
    "harmo",
    "lpoi",
    "ovip",
    "task_po",
]
STAGES = {
    "povid": 2,
    "opa_dpo": 2,
    "temple": 5,
    "mrdpo": 5,
    "haven_tdpo": 2,
    "aigi_holmes": 2,
    "uv_cot": 4,
    "sport": 2,
    "carevl": 2,
    "unified_reward_think": 3,
}
PARAMS: dict[str, dict[str, Any]] = {"ovip": {"gap": 1.0, "floor": 1.0, "of_std": 0.0}}
TOOLS: dict[tuple[str, int], dict[str, Any]] = {
    # One object too many against one too few: the judges of right, wrong and missed mentions disagree.
    ("carevl", 1): {
        "answers": (
            "a blue two top left and a green six top right and a red one bottom left .",
            "a blue two top left .",
        )
    }
}
EVERY = [(name, 0) for name in ONE_STAGE] + [(name, i) for name, n in STAGES.items() for i in range(n)]


def losses(stage: Stage, reads: Reads) -> list[tuple[float, torch.Tensor, torch.Tensor]]:
    heads = {head.name: head.build(8) for head in stage.objective.heads}
    given = replace(reads, heads=heads)
    return [(w, *(lambda loss: (loss.value, loss.weight))(term(given))) for w, term in stage.objective.terms]


def test_the_list_is_complete() -> None:
    """Every multimodal method of the library is tested here: 44 of them."""
    named = {name for name, _ in EVERY}
    assert len(named) == 44
    for name, number in STAGES.items():
        assert len(load(name, {}).stages) == number
    for name in ONE_STAGE:
        assert len(load(name, {}).stages) == 1


@pytest.mark.parametrize(("name", "number"), EVERY)
def test_a_stage_runs_and_its_objective_reads_what_it_made(
    name: str, number: int, glyphs_draft: MakeDraft, glyphs_tools: MakeTools, run: Run, read: Run
) -> None:
    """Every term gets weight and a finite loss, and the policy a gradient."""
    stage = load(name, PARAMS.get(name, {})).stages[number]
    done, comparisons = run(stage, glyphs_draft(), glyphs_tools(**TOOLS.get((name, number), {})))
    shown = {digest for c in comparisons for p in c.prompts for digest in p.media}
    assert shown <= set(done.media)
    assert all(not prompt.acts for c in comparisons for prompt in c.prompts), "acts are for sampling alone"
    reads = read(comparisons)
    terms = losses(stage, reads)
    for _, value, weight in terms:
        assert value.shape == weight.shape == (len(comparisons),)
        assert bool(torch.isfinite(value).all()) and bool((weight >= 0).all())
        assert float(weight.sum()) > 0
    total = torch.stack([w * value.sum() / weight.sum() for w, value, weight in terms]).sum()
    total.backward()
    gradient = reads.tokens["policy"].grad
    assert gradient is not None and bool(torch.isfinite(gradient).all())
    if name not in ("fact_rlhf", "harmo", "vision_r1", "llava_critic_r1"):
        assert float(gradient.abs().sum()) > 0


@pytest.mark.parametrize("name", sorted({name for name, _ in EVERY}))
def test_what_was_not_seen_is_marked(name: str) -> None:
    """A recipe whose source names neither code nor paper as read is experimental, and its text says why."""
    recipe = load(name, {})
    seen = ("code" in recipe.source and "read" in recipe.source) or "paper read" in recipe.source
    assert recipe.experimental or seen
    said = document(name)
    assert any(word in said for word in ("read", "third-party", "inferred", "from memory"))
    assert "arXiv" in recipe.paper and "arXiv" in said
