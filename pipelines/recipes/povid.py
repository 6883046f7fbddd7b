"""POVID: injected errors first, then what the policy would say of a noised picture."""

from __future__ import annotations

from typing import Literal

from pipelines.comparisons import Edges
from pipelines.objectives.base import Objective
from pipelines.objectives.pair import Linear, Pair
from pipelines.perturbations.diffuse import Diffuse
from pipelines.programs.damaging import Damage
from pipelines.programs.given import Offline
from pipelines.programs.probing import TopTokens
from pipelines.recipe import Recipe, Stage
from pipelines.recipes._text import TEXT


def recipe(
    *,
    beta: float = 0.1,
    form: Literal["two_losses", "one_sigmoid"] = "two_losses",
    text_share: float = 0.5,
    step: int = 500,
) -> Recipe:
    """DPO on injected errors (stage 1), then with an online negative from a noised picture (stage 2).

    POVID, arXiv 2402.11411 (code and third-party note read). The pairs are the columns `chosen` and
    `rejected`, an answer and the same with false objects, attributes and relations (there by GPT-4V). In
    stage 2 the picture is noised to diffusion `step`; the online negative n feeds the chosen answer's tokens
    and scores, under the *clean* picture, those that the policy finds most likely under the noised one.

    `form` "two_losses" (as released): `text_share` * DPO(w, l) + (1 - `text_share`) * DPO(w, n).
    "one_sigmoid" (the paper): -log sigmoid(beta (share * gap_l + (1 - share) * gap_n)), two betas in one
    link. Three to one epochs. In the code the reference scores its own most likely tokens; here both score
    the policy's.
    """
    shares = {"text": text_share, "online": 1 - text_share}
    objective: Objective = (
        shares["text"] * Pair("text", beta) + shares["online"] * Pair("online", beta)
        if form == "two_losses"
        else 1.0 * Linear(shares, beta)
    )
    return Recipe(
        name="povid",
        paper="POVID: Aligning Modalities in Vision Large Language Models via Preference Fine-tuning, "
        "arXiv 2402.11411",
        source="code read; third-party note",
        stages=(
            Stage(rollout=Offline(), compare=TEXT, objective=1.0 * Pair("text", beta), share=3),
            Stage(
                rollout=Offline() >> Damage("m", Diffuse(step)) >> TopTokens("n", of="w", under="m"),
                compare=Edges({"text": ("w@x", "l@x"), "online": ("w@x", "n@x")}),
                objective=objective,
            ),
        ),
    )
