"""CAT's ADPO: ambiguous answers against their precise rewriting."""

from __future__ import annotations

from pipelines.objectives.nll import Nll
from pipelines.objectives.pair import Pair
from pipelines.programs.editing import Edited
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage


def recipe(*, beta: float = 0.1, sft: float = 0.1) -> Recipe:
    """DPO of the rewritten answer against the policy's own + 0.1 * NLL of the rewritten one.

    CAT with AI-assisted ambiguity-aware DPO, arXiv 2403.04640 (code and third-party note read). There GPT
    flags ambiguous answers and rewrites them; here the run's editor does ("refine"), and an answer that it
    leaves alone is dropped. As released: learning rate 4e-6, LoRA.
    """
    return one_stage(
        "cat_adpo",
        paper="CAT: Enhancing Multimodal Large Language Model to Answer Questions in Dynamic Audio-Visual "
        "Scenarios, arXiv 2403.04640",
        source="code read; third-party note",
        rollout=Sample(1, "l", judged=False) >> Edited("w", of="l", kind="refine"),
        objective=Pair("text", beta) + sft * Nll("text.winner"),
    )
