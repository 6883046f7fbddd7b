"""DPA: directional preference alignment by rejection sampling."""

from __future__ import annotations

from pipelines.comparisons import Cells
from pipelines.objectives.nll import Nll
from pipelines.programs.choosing import NeedsParts
from pipelines.programs.directions import Along, Direct
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe, Stage
from pipelines.references import NoReference


def recipe(
    *,
    samples: int = 8,
    first: str = "helpfulness",
    second: str = "brevity",
    degrees: float = 45.0,
    rounds: int = 2,
) -> Recipe:
    """-log pi(y* | x, v): per prompt a direction v = (cos t, sin t), y* the sample with the largest v . r.

    DPA, arXiv 2402.18571 (repository's README read; the loop is from memory). The direction is drawn with |t|
    <= `degrees` and stated in the prompt; `first` and `second` are parts of the score (there helpfulness and
    verbosity, stated in the system prompt; here at the end of the question). Inferred: t is uniform. Each
    round samples from the newest policy.
    """
    stage = Stage(
        rollout=Direct("xv", first, second, degrees)
        >> Sample(samples, under="xv")
        >> NeedsParts((first, second))
        >> Along("w", first, second),
        compare=Cells({"best": "w@xv"}),
        objective=1.0 * Nll("best", "sequence_mean"),
        reference=NoReference(),
    )
    return Recipe(
        name="dpa",
        paper="Arithmetic Control of LLMs for Diverse User Preferences: Directional Preference Alignment, "
        "arXiv 2402.18571",
        source="README read; loop from memory",
        stages=(stage,) * rounds,
        experimental=True,
    )
