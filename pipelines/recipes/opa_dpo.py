"""OPA-DPO: make expert corrections on-policy by fine-tuning, then prefer them to the policy's own answer."""

from __future__ import annotations

from pipelines.comparing.spans import DiffSpans
from pipelines.comparisons import Cells, Edges
from pipelines.objectives.anchor import Anchor
from pipelines.objectives.nll import Nll
from pipelines.objectives.positions import PositionPair
from pipelines.perturbations.fill import PixelMask
from pipelines.programs.damaging import Damage
from pipelines.programs.editing import Edited
from pipelines.programs.given import Gold
from pipelines.programs.optional import Maybe
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe, Stage
from pipelines.recipes._multimodal import renewed


def recipe(
    *,
    beta: float = 0.1,
    media_weight: float = 0.2,
    mask_share: float = 0.3,
    severity: float = 2.0,
    lora: bool = False,
) -> Recipe:
    """NLL on gold and revised answers, then per-token pairs gold > own, revised > own and media pairs.

    OPA-DPO, arXiv 2501.09695 (code read; its tables were not seen). Stage 1: sequence-mean NLL of the gold
    answer g and of v, the policy's own answer y minimally revised; its model is the reference of stage 2.
    Stage 2: P(g, y) + P_s(v, y) + `media_weight` (P(g, g under m) + P_s(v, v under m)) + anchors, where P
    puts a sigmoid on *every token position*, P_s multiplies log-ratios by token severities and m has
    `mask_share` of its pixels at the mean. As released, the anchor on v pushes its log-ratio *down*.

    The revision is that of the run's editor ("correct"); GPT-4V also grades each change, here every changed
    token weighs `severity` (inferred), in the media pair of v as well, where the code has weights of its own.
    `lora`: the run trains an adapter, which is merged between the stages.
    """
    own = Gold("g") >> Sample(1, "y", judged=False)
    damaged = own >> Edited("v", of="y", kind="correct") >> Damage("m", PixelMask(mask_share), of="g")
    edges = {"gold": ("g@x", "y@x"), "revised": ("v@x", "y@x")}
    media = {"gold_media": ("g@x", "g@m"), "revised_media": ("v@x", "v@m")}
    pairs = (
        PositionPair("gold", beta)
        + PositionPair("revised", beta, "severity")
        + media_weight * PositionPair("gold_media", beta)
        + media_weight * PositionPair("revised_media", beta, "severity")
    )
    return Recipe(
        name="opa_dpo",
        paper="Mitigating Hallucinations in Large Vision-Language Models via DPO: On-Policy Data Hold the "
        "Key, arXiv 2501.09695",
        source="code read; severities inferred",
        stages=(
            Stage(
                rollout=own >> Maybe(Edited("v", of="y", kind="correct")),
                compare=Cells({"gold": "g@x", "revised": "v@x"}, optional=frozenset({"revised"})),
                objective=Nll("gold") + Nll("revised"),
                share=2,
                then=renewed(lora),
            ),
            Stage(
                rollout=damaged,
                compare=Edges(edges | media)
                | DiffSpans("severity", ("revised",), severity, 1.0)
                | DiffSpans("severity", ("revised_media",), severity, 1.0, against="y@x"),
                objective=pairs + Anchor("gold.winner", 0.0, beta) + Anchor("revised.winner", 0.0, beta, -1),
                share=4,
            ),
        ),
    )
