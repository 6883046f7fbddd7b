"""CAREVL: a judge learns verdicts on which others agree, then prefers right ones where they do not."""

from __future__ import annotations

from pipelines.comparisons import Cells, Edges
from pipelines.objectives.nll import Nll
from pipelines.objectives.pair import Pair
from pipelines.programs.choosing import Choose, best_and_worst
from pipelines.programs.judging import VERDICT, Agreement, AskVerdict, Told
from pipelines.programs.sampling import JudgedBy, Sample
from pipelines.recipe import Recipe, Stage
from pipelines.recipes._multimodal import renewed
from pipelines.rewards.rules import ExactMatch


def recipe(
    *,
    judges: tuple[str, ...] = ("right", "-wrong", "-missed"),
    samples: int = 4,
    verdicts: int = 8,
    beta: float = 0.1,
    template: str = VERDICT,
    lora: bool = False,
) -> Recipe:
    """NLL of the verdict where several judges agree, then DPO on sampled verdicts where they do not.

    CAREVL, arXiv 2503.06260 (abstract read; thresholds were not seen). There text reward models judge
    captions of the picture; here `judges` are parts of the run's reward (a minus in front: less is better),
    and a score without one of them ends the run with an error. The policy is asked which of two answers, its
    own best and worst, is better; in stage 2 a sampled verdict is right when it equals that of the reward's
    value.
    """
    asked = AskVerdict("judge", template=template)
    pair = best_and_worst(samples)
    right = ExactMatch("verdict")
    return Recipe(
        name="carevl",
        paper="From Captions to Rewards (CAREVL): Leveraging Large Language Model Experts for Enhanced "
        "Reward Modeling in Large Vision-Language Models, arXiv 2503.06260",
        source="abstract; thresholds and prompts inferred",
        experimental=True,
        stages=(
            Stage(
                rollout=pair >> Agreement(judges, agree=True) >> asked >> Told("t"),
                compare=Cells({"verdict": "t@judge"}),
                objective=1.0 * Nll("verdict"),
                then=renewed(lora),
            ),
            Stage(
                rollout=pair
                >> Agreement(judges, agree=False)
                >> asked
                >> Sample(verdicts, "v", under="judge", judged=False)
                >> JudgedBy("v", right)
                >> Choose(of="v", best="a", worst="b"),
                compare=Edges({"text": ("a@judge", "b@judge")}),
                objective=1.0 * Pair("text", beta),
            ),
        ),
    )
