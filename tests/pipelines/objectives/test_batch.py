"""Tables of cells and edges, and the numbers to log."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipelines.objectives.base import Reads
from pipelines.objectives.batch import Table, add_totals, margins, means, tabulate
from pipelines.types import (
    NOT_SCORED,
    Behaviour,
    Candidate,
    Comparison,
    Message,
    Part,
    Preference,
    Prompt,
    Response,
    Score,
)


def prompt(digest: str) -> Prompt:
    parts = (Part(kind="image", digest=digest), Part(kind="text", text="what is there ?"))
    return Prompt(id="row", messages=(Message(role="user", parts=parts),))


def comparison(name: str, media: bool = True, **edge: float) -> Comparison:
    """w@x and l@x on the text edge; with media also w@m."""
    candidates = [
        Candidate(prompt=0, response=0, role="w@x"),
        Candidate(prompt=0, response=1, role="l@x"),
        Candidate(prompt=1, response=0, role="w@m"),
    ]
    preferences = [
        Preference(name="text", winner=0, loser=1, **edge),
        Preference(name="media", winner=0, loser=2),
    ]
    return Comparison(
        id=name,
        prompts=(prompt("clean"), prompt("damaged")),
        responses=(Response(tokens=(7, 2), text="w"), Response(tokens=(8, 9, 2), text="l")),
        candidates=tuple(candidates if media else candidates[:2]),
        preferences=tuple(preferences if media else preferences[:1]),
    )


def weightless(comparison: Comparison) -> Comparison:
    """The same comparison with weight 0 on every edge, as padding has."""
    return replace(comparison, preferences=tuple(replace(p, weight=0.0) for p in comparison.preferences))


def reads_of(table: Table, policy: list[float], reference: list[float]) -> Reads:
    """Each answer's log-probability is on its first token."""
    bare = table.reads()
    tokens = {name: torch.zeros(bare.mask.shape) for name in ("policy", "reference")}
    for name, values in (("policy", policy), ("reference", reference)):
        tokens[name][:, 0] = torch.tensor(values)
    return replace(bare, tokens=tokens)


def test_cells_edges_and_owners() -> None:
    table = tabulate([comparison("a", margin=0.5, weight=2.0), comparison("b", media=False)])
    assert table.size == 2
    assert [(c.comparison, c.prompt.media[0], c.response.text) for c in table.cells] == [
        (0, "clean", "w"),
        (0, "clean", "l"),
        (0, "damaged", "w"),
        (1, "clean", "w"),
        (1, "clean", "l"),
    ]
    assert table.index == ((0, 1, 2), (3, 4))
    text, media = table.edges["text"], table.edges["media"]
    assert (text.winner.tolist(), text.loser.tolist(), text.owner.tolist()) == ([0, 3], [1, 4], [0, 1])
    assert (text.margin.tolist(), text.weight.tolist()) == ([0.5, 0.0], [2.0, 1.0])
    assert (media.winner.tolist(), media.loser.tolist(), media.owner.tolist()) == ([0], [2], [0])
    assert text.winner.dtype == torch.int64


def test_equal_candidates_share_a_cell() -> None:
    """A second prompt with the same digest and a response with the same tokens are scored once."""
    twin = Comparison(
        id="twin",
        prompts=(prompt("clean"), prompt("clean")),
        responses=(Response(tokens=(7, 2), text="w"), Response(tokens=(8, 2), text="l")),
        candidates=(
            Candidate(prompt=0, response=0, role="w@x"),
            Candidate(prompt=1, response=0, role="w@y"),
            Candidate(prompt=1, response=1, role="l@y"),
        ),
        preferences=(Preference(name="text", winner=1, loser=2),),
    )
    table = tabulate([twin])
    assert len(table.cells) == 2
    assert table.index == ((0, 0, 1),)
    assert table.edges["text"].winner.tolist() == [0]


def test_nothing_to_tabulate() -> None:
    table = tabulate([])
    assert (table.size, table.cells, table.index, dict(table.edges)) == (0, (), (), {})


def test_margins_golden() -> None:
    """rho: a: w 1, l -1, w@m 0.5; b: w -1, l 1. Text margins 2 and -2, media margin 0.5.

    Log-probs of the policy: a: -1, -4, -2.5; b: -3, -2.
    """
    table = tabulate([comparison("a"), comparison("b", media=False)])
    reads = reads_of(table, [-1.0, -4.0, -2.5, -3.0, -2.0], [-2.0, -3.0, -3.0, -2.0, -3.0])
    totals = margins(reads)
    assert totals == {
        "margin/text": (0.0, 2.0),
        "accuracy/text": (1.0, 2.0),
        "logp_chosen": (-4.0, 2.0),
        "logp_rejected": (-6.0, 2.0),
        "length_chosen": (4.0, 2.0),  # two tokens each
        "length_rejected": (6.0, 2.0),
        "margin/media": (0.5, 1.0),
        "accuracy/media": (1.0, 1.0),
    }
    values = means(totals)
    assert values["logp_chosen"] == -2.0
    assert "margin_ratio" not in values  # the text margin is 0


def test_totals_add_up_over_micro_batches() -> None:
    """Two batches with text margins 2 and 4 and media margin 1 in the first: means 3 and 1, ratio 1/3."""
    first = margins(reads_of(tabulate([comparison("a")]), [1.0, -1.0, 0.0], [0.0, 0.0, 0.0]))
    second = margins(reads_of(tabulate([comparison("b", media=False)]), [2.0, -2.0], [0.0, 0.0]))
    values = means(add_totals([first, second]))
    assert (values["margin/text"], values["margin/media"]) == (3.0, 1.0)
    assert values["margin_ratio"] == pytest.approx(1 / 3)


def test_a_tie_counts_half_and_padding_does_not_count() -> None:
    table = tabulate([comparison("a", media=False), weightless(comparison("b"))])
    totals = margins(reads_of(table, [0.0] * 5, [0.0] * 5))
    assert totals["accuracy/text"] == (0.5, 1.0)
    assert totals["margin/media"] == (0.0, 0.0)
    assert "margin/media" not in means(totals)


def test_margins_without_a_reference_are_those_of_the_policy() -> None:
    table = tabulate([comparison("a", media=False)])
    reads = reads_of(table, [-1.0, -4.0], [0.0, 0.0])
    alone = replace(reads, tokens={"policy": reads.tokens["policy"]})
    assert margins(alone)["margin/text"] == (3.0, 1.0)


def test_tokens_that_are_not_scored_are_masked() -> None:
    """Fed (7, 8, 9), scored on (NOT_SCORED, 8, NOT_SCORED): one token counts, at position 1."""
    corrupted = Response(tokens=(7, 8, 9), text="", targets=(NOT_SCORED, 8, NOT_SCORED))
    made = replace(comparison("a", media=False), responses=(corrupted, Response(tokens=(1, 2), text="")))
    reads = tabulate([made]).reads()
    assert reads.mask.tolist() == [[False, True, False], [True, True, False]]
    assert reads.lengths.tolist() == [1, 2]


def test_behaviour_is_nan_where_nobody_sampled() -> None:
    sampled = Behaviour(stream="policy", decoder={}, oldest=0, newest=0, logps=(-0.5, -0.25))
    made = comparison("a", media=False)
    first = replace(made.candidates[0], behaviour=sampled)
    table = tabulate([replace(made, candidates=(first, made.candidates[1]))])
    rows = table.behaviour()
    assert rows[0, :2].tolist() == [-0.5, -0.25]
    assert rows[0, 2:].isnan().all() and rows[1].isnan().all()


def test_missing_scores_are_nan_on_either_side() -> None:
    """A part that only winners have is there, whoever else is in the batch; a missing score is never 0."""
    made = comparison("a", media=False)
    scored = replace(made.candidates[0], score=Score(value=1.0, parts={"facts": 0.5}))
    lost = replace(made.candidates[1], score=Score(value=None, missing="timeout"))
    table = tabulate([replace(made, candidates=(scored, lost))]).edges["text"]
    assert table.part("value")[0].tolist() == [1.0] and table.part("value")[1].isnan().all()
    assert table.part("facts")[0].tolist() == [0.5] and table.part("facts")[1].isnan().all()
    assert table.part("unheard")[0].isnan().all()


def test_spans_have_to_be_on_every_edge_of_a_name() -> None:
    made = comparison("a", media=False)
    marked = replace(made.preferences[0], spans={"seg": ((1.0, 0.0), (0.0, 0.0, 1.0))})
    table = tabulate([replace(made, preferences=(marked,))]).edges["text"]
    assert [side.tolist() for side in table.spans["seg"]] == [[[1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]]]
    with pytest.raises(ValueError, match="annotate all of them"):
        tabulate([replace(made, preferences=(marked,)), comparison("b", media=False)])
