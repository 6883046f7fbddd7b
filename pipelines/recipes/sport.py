"""SPORT: step preferences of an agent that sees what its actions lead to."""

from __future__ import annotations

from pipelines.comparing.several import PerStep
from pipelines.objectives.pair import Pair
from pipelines.perturbations.keywords import GraphRank
from pipelines.perturbations.regions import KeyRegions, KnownBoxes
from pipelines.programs.looking import Agent, Closer, Environment
from pipelines.recipe import Recipe, Stage
from pipelines.recipes._multimodal import plug, renewed, repeated
from pipelines.rewards.gates import Similarity
from pipelines.rewards.similarity import bleu


def recipe(
    *,
    iterations: int = 2,
    beam: int = 3,
    steps: int = 2,
    beta: float = 0.1,
    similar: float = 0.95,
    environment: str | None = None,
    lora: bool = False,
) -> Recipe:
    """DPO on the best of `beam` actions of every step against the others, after their results are known.

    SPORT, arXiv 2504.21561 (released code and abstract read). The run's reward verifies: it sees what an
    action led to as the column `observation`. Losers more than `similar` like the winner by BLEU are left
    out; the code has 0.3, for actions that are programs. `environment` ("module:object", a
    `programs.looking.Environment`) carries actions out, in a sandbox of its own where they are code; by
    default an action is an answer, and what it leads to is a closer look at what it speaks of. There tasks
    are synthesised between iterations; here they are those of the data.
    """
    world: Environment = (
        Closer(KeyRegions(GraphRank(5), KnownBoxes())) if environment is None else plug(environment)
    )
    one = Stage(
        rollout=Agent(world, beam, steps),
        compare=PerStep(steps, (Similarity(most=similar, measure=bleu),)),
        objective=1.0 * Pair("text", beta),
        then=renewed(lora),
    )
    return Recipe(
        name="sport",
        paper="Iterative Tool Usage Exploration for Multimodal Agents via Step-wise Preference Tuning, "
        "arXiv 2504.21561",
        source="code and abstract read. The default environment is ours",
        stages=repeated(one, iterations),
    )
