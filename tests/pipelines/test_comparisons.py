"""Edges: cells, indices, what is optional and what is refused."""

from __future__ import annotations

import pytest

from pipelines.comparisons import Edges
from pipelines.rollout import Draft
from pipelines.types import Behaviour, Comparison, Message, Part, Prompt, Response, Rollout, Score

BOTH = {"text": ("w@x", "l@x"), "media": ("w@x", "w@m")}


def draft(damaged: bool = True) -> Draft:
    """Three responses of which the third is chosen and the first rejected."""

    def prompt(digest: str) -> Prompt:
        return Prompt(id="row", messages=(Message(role="user", parts=(Part(kind="image", digest=digest),)),))

    behaviour = Behaviour(stream="policy", decoder={}, oldest=4, newest=4, logps=())
    return Draft(
        prompts={"x": prompt("clean"), **({"m": prompt("damaged")} if damaged else {})},
        media={},
        rollouts=tuple(
            Rollout(prompt=prompt("clean"), response=Response(tokens=(i,), text=f"y{i}"), behaviour=behaviour)
            for i in range(3)
        ),
        scores=tuple(Score(value=float(i)) for i in range(3)),
        chosen={"w": 2, "l": 0},
    )


def cells(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """role -> (media of the prompt it is scored under, text of the response)."""
    return {
        c.role: (comparison.prompts[c.prompt].media[0], comparison.responses[c.response].text)
        for c in comparison.candidates
    }


def test_cells_are_shared_by_edges() -> None:
    (comparison,) = Edges(BOTH)("g", draft())
    assert comparison.id == "g/0"
    assert cells(comparison) == {"w@x": ("clean", "y2"), "l@x": ("clean", "y0"), "w@m": ("damaged", "y2")}
    assert (len(comparison.prompts), len(comparison.responses)) == (2, 2)
    assert [(p.name, p.winner, p.loser) for p in comparison.preferences] == [("text", 0, 1), ("media", 0, 2)]
    assert [comparison.axis(edge) for edge in comparison.preferences] == ["text", "media"]
    assert [c.score.value for c in comparison.candidates if c.score is not None] == [2.0, 0.0, 2.0]
    assert all(c.behaviour is not None and c.behaviour.newest == 4 for c in comparison.candidates)


def test_an_edge_that_differs_on_both_sides_is_joint() -> None:
    (comparison,) = Edges({"both": ("w@x", "l@m")})("g", draft())
    assert comparison.axis(comparison.preferences[0]) == "joint"


def test_an_optional_edge_is_left_out_where_its_cell_is_absent() -> None:
    compare = Edges(BOTH, optional=frozenset({"media"}))
    assert compare.emits == {"text", "media"}
    (with_media,), (without,) = compare("g", draft()), compare("g", draft(damaged=False))
    assert [p.name for p in with_media.preferences] == ["text", "media"]
    assert [p.name for p in without.preferences] == ["text"]
    assert list(cells(without)) == ["w@x", "l@x"]
    assert len(without.prompts) == 1


def test_nothing_but_absent_optional_edges_gives_no_comparison() -> None:
    assert Edges({"media": ("w@x", "w@m")}, optional=frozenset({"media"}))("g", draft(damaged=False)) == ()


def test_a_required_edge_must_have_its_cells() -> None:
    with pytest.raises(
        ValueError, match=r"comparison g/0: the edge 'media' needs the cell 'w@m'.*prompts \['x'\]"
    ):
        Edges(BOTH)("g", draft(damaged=False))
    with pytest.raises(ValueError, match=r"needs the cell 'f@x'.*responses \['l', 'w'\]"):
        Edges({"text": ("w@x", "f@x")})("g", draft())


def test_malformed_edges_are_refused() -> None:
    for cell in ("w", "@x", "w@"):
        with pytest.raises(ValueError, match=f"expected cells like 'w@x', got '{cell}'"):
            Edges({"text": ("w@x", cell)})
    with pytest.raises(ValueError, match="compares the cell 'w@x' with itself"):
        Edges({"text": ("w@x", "w@x")})
    with pytest.raises(ValueError, match=r"optional edges \['medai'\] are not among the edges \['text'\]"):
        Edges({"text": ("w@x", "l@x")}, optional=frozenset({"medai"}))
