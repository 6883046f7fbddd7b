"""Cells, spans, and several comparisons of one group."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.comparing.several import Each, EveryPair, PerStep
from pipelines.comparing.spans import DiffSpans
from pipelines.comparisons import Cells, Edges
from pipelines.rewards.gates import Similarity
from pipelines.rollout import Draft
from pipelines.types import Comparison, Message, Part, Prompt, Response, Rollout, Score

TEXT = Edges({"text": ("w@x", "l@x")})


def prompt(text: str) -> Prompt:
    return Prompt(id="row", messages=(Message(role="user", parts=(Part(kind="text", text=text),)),))


def draft(values: tuple[float | None, ...], tokens: tuple[tuple[int, ...], ...] | None = None) -> Draft:
    """Answers with these scores; answer i is the one token i unless `tokens` says otherwise."""
    given = tokens or tuple((i,) for i in range(len(values)))
    rollouts = tuple(
        Rollout(prompt=prompt("x"), response=Response(tokens=t, text=" ".join(map(str, t)))) for t in given
    )
    scores = tuple(Score(value=None, missing="lost") if v is None else Score(value=v) for v in values)
    return Draft(
        prompts={"x": prompt("x"), "m": prompt("m")},
        media={},
        rollouts=rollouts,
        scores=scores,
        sets={"y": tuple(range(len(values)))},
    )


def sides(comparison: Comparison) -> list[tuple[str, str]]:
    text = [comparison.responses[c.response].text for c in comparison.candidates]
    return [(text[edge.winner], text[edge.loser]) for edge in comparison.preferences]


def test_a_set_gives_one_cell_each_and_optional_roles_may_be_absent() -> None:
    cells = Cells({"all": "y@x", "gold": "g@x"}, optional=frozenset({"gold"}))
    (made,) = cells("g", draft((1.0, 2.0, 3.0)))
    assert [c.role for c in made.candidates] == ["all"] * 3 and len(made.prompts) == 1
    assert cells.takes == {"y", "x"}
    with pytest.raises(ValueError, match="no earlier step made the response 'g'"):
        Cells({"gold": "g@x"})("g", draft((1.0,)))


def test_parts_are_joined_into_one_comparison() -> None:
    joined = TEXT | Cells({"all": "y@m"}) | DiffSpans("d")
    assert (joined.emits, joined.spans) == ({"text"}, {"d"})
    assert joined.roles == {"w@x", "l@x", "all"} and joined.takes == {"w", "l", "x", "y", "m"}
    chosen = replace(draft((1.0, 2.0)), chosen={"w": 1, "l": 0})
    (made,) = joined("g", chosen)
    assert (len(made.prompts), len(made.responses), len(made.candidates)) == (2, 2, 4)


def test_tokens_that_differ_are_marked() -> None:
    """1 2 3 4 against 1 9 3 4 5: a replaced token in both, and an added one."""
    given = replace(draft((1.0, 0.0), ((1, 2, 3, 4), (1, 9, 3, 4, 5))), chosen={"w": 0, "l": 1})
    (made,) = (TEXT | DiffSpans("d"))("g", given)
    assert made.preferences[0].spans["d"] == ((0, 1, 0, 0), (0, 1, 0, 0, 1))
    (graded,) = (TEXT | DiffSpans("d", changed=2.0, same=1.0))("g", given)
    assert graded.preferences[0].spans["d"] == ((1, 2, 1, 1), (1, 2, 1, 1, 2))


def test_one_answer_under_two_prompts_is_compared_with_another() -> None:
    """The sides of a media edge are alike, so they are held against the rejected answer."""
    given = replace(draft((1.0, 0.0), ((1, 2, 3), (1, 9, 3))), chosen={"w": 0, "l": 1})
    both = Edges({"text": ("w@x", "l@x"), "media": ("w@x", "w@m")})
    (made,) = (both | DiffSpans("d", ("media",), against="l@x"))("g", given)
    spans = {edge.name: edge.spans for edge in made.preferences}
    assert spans == {"text": {}, "media": {"d": ((0, 1, 0), (0, 1, 0))}}
    with pytest.raises(ValueError, match=r"compares with the cell 'v@x', but there are only \['l@x'"):
        (both | DiffSpans("d", ("media",), against="v@x"))("g", given)


def test_each_pair_is_its_own_comparison() -> None:
    """Pairs (2, 0) and (1, 3); the prompt m is that of the pair."""
    given = draft((1.0, 2.0, 3.0, 0.0))
    prompts = {**given.prompts, "m/0": prompt("m0"), "m/1": prompt("m1")}
    given = replace(given, prompts=prompts, sets={"w": (2, 1), "l": (0, 3)})
    each = Each(("w", "l"), TEXT | Edges({"media": ("w@x", "w@m")}), prompts=("m",))
    first, second = each("g", given)
    assert (first.id, second.id) == ("g/0", "g/1")
    assert sides(first) == [("2", "0"), ("2", "2")] and sides(second) == [("1", "3"), ("1", "1")]
    assert [p.messages[0].parts[0].text for p in second.prompts] == ["x", "m1"]
    assert each.emits == {"text", "media"} and each.takes == {"w", "l", "x", "m"}


def test_every_pair_has_its_own_key() -> None:
    """Scores 3, 1, 1 and one missing: two edges, none between equals or to the missing one."""
    (made,) = EveryPair()("g", draft((3.0, 1.0, None, 1.0)))
    assert sides(made) == [("0", "1"), ("0", "3")]
    assert [edge.key for edge in made.preferences] == [0, 1]
    assert {c.role for c in made.candidates} == {"y@x"} and len(made.candidates) == 3
    (far,) = EveryPair(min_gap=2.0)("g", draft((3.0, 1.0, 0.0)))
    assert sides(far) == [("0", "2")]


def test_steps_of_an_agent() -> None:
    """Step 0 prefers its best action to the others, step 1 has none that is worse and gives no comparison."""
    given = draft((1.0, 5.0, 2.0, 4.0, 4.0), ((1, 2), (1, 2, 3), (7,), (8,), (9,)))
    given = replace(
        given,
        prompts={"x": prompt("x"), "s/0": prompt("x"), "s/1": prompt("then")},
        sets={"y/0": (0, 1, 2), "y/1": (3, 4)},
        chosen={"w/0": 1, "w/1": 3},
    )
    (made,) = PerStep(2)("g", given)
    assert made.id == "g/0" and sides(made) == [("1 2 3", "1 2"), ("1 2 3", "7")]
    (gated,) = PerStep(2, (Similarity(most=0.5),))("g", given)
    assert sides(gated) == [("1 2 3", "7")]
