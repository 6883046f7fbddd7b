"""Blind preference optimisation: the rejected answer was given without the picture."""

from __future__ import annotations

from pipelines.comparisons import Edges
from pipelines.objectives.pair import Pair
from pipelines.programs.choosing import Unlike
from pipelines.programs.damaging import Blind
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from


def recipe(*, pairs: Pairs = "online", samples: int = 8, min_gap: float = 0.0, beta: float = 0.1) -> Recipe:
    """DPO on a labelled pair + DPO of its winner against the policy's answer without media, 1:1.

    BPO of MMSafe-PO, arXiv 2503.14189 (code and abstract read; not the bootstrapped BPO). The blind answer is
    sampled under the prompt without its media and scored under the full one. There the labelled pairs are
    human; beta 0.1, learning rate 1e-6, all weights, one epoch.
    """
    blind = Blind("blind") >> Sample(1, "b", under="blind", judged=False) >> Unlike("w", "b")
    return one_stage(
        "bpo_mmsafe",
        paper="Towards Harmless Multimodal Assistants with Blind Preference Optimization, arXiv 2503.14189",
        source="code and abstract read",
        rollout=pairs_from(pairs, samples, min_gap) >> blind,
        compare=Edges({"text": ("w@x", "l@x"), "blind": ("w@x", "b@x")}),
        objective=Pair("text", beta) + Pair("blind", beta),
    )
