"""PDS-DPO: synthetic pictures, chosen by how well they fit, and answers ranked by a reward model."""

from __future__ import annotations

from functools import reduce

from pipelines.comparisons import Edges
from pipelines.decoding import FromCheckpoint
from pipelines.objectives.pair import Pair
from pipelines.perturbations.replace import Generate
from pipelines.programs.choosing import Choose
from pipelines.programs.damaging import DamageMany, MostSimilar
from pipelines.programs.given import Recorded
from pipelines.programs.sampling import Judged, Pool, Sample
from pipelines.recipe import Recipe
from pipelines.recipes._multimodal import PAINTER, SIMILARITY, renderer_of, similarity_of
from pipelines.recipes._text import one_stage
from pipelines.rollout import Pipe


def recipe(
    *,
    pictures: int = 3,
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
    text: str = "answer",
    renderer: str = PAINTER,
    similarity: str = SIMILARITY,
    models: tuple[str, ...] = (),
) -> Recipe:
    """DPO on best against worst answers to a picture that was made from a text.

    SynthAlign / PDS-DPO, arXiv 2412.17417 (code read). There a diffusion model draws several pictures of a
    text, ImageReward keeps the best, three models answer and ArmoRM ranks. Here `renderer`
    ("module:function") draws `pictures` of the column `text`, `similarity` keeps one, the policy answers and
    the run's reward ranks. With `models`, paths of checkpoints that have the policy's tokenizer, each of them
    gives `samples` answers and the policy none. Answers are sampled and scored under the synthetic picture.
    """
    names = tuple(f"y/{number}" for number in range(len(models)))
    drawn = (
        Sample(samples, name, "s", FromCheckpoint(path=path), judged=False)
        for name, path in zip(names, models, strict=True)
    )
    program = (
        Recorded("said", text)
        >> DamageMany("c", (Generate(renderer_of(renderer)),) * pictures, of="said")
        >> MostSimilar("s", among="c", of="said", similarity=similarity_of(similarity))
    )
    answers = Pool("y", names) >> Judged() if models else Sample(samples, under="s")
    program = reduce(Pipe.__rshift__, drawn, program) >> answers >> Choose(min_gap)
    return one_stage(
        "synthalign_pds",
        paper="Multimodal Preference Data Synthetic Alignment with Reward Model, arXiv 2412.17417",
        source="code read. Answers of the policy are ours",
        rollout=program,
        compare=Edges({"text": ("w@s", "l@s")}),
        objective=Pair("text", beta),
    )
