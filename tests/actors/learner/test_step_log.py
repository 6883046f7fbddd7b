"""What a step says for people: names of losses, lags, and the comparisons whose numbers are bad."""

from __future__ import annotations

import math
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from actors.step_log import Sums, bad_tokens, count, note, rollout_gap, term_names
from pipelines.objectives.anchor import Anchor
from pipelines.objectives.base import Reads
from pipelines.objectives.batch import Table, tabulate
from pipelines.objectives.pair import Pair
from pipelines.types import Behaviour, Comparison, Preference


def _reads(table: Table, policy: torch.Tensor) -> Reads:
    reads = table.reads()
    tokens = {"policy": policy.masked_fill(~reads.mask, 0.0), "reference": torch.zeros_like(policy)}
    return replace(reads, tokens=tokens)


def test_a_bad_log_probability_names_comparison_prompt_cell_and_view(cases: ModuleType) -> None:
    """The chosen answer under the damaged prompt is the third cell of the second comparison."""
    comparisons = [cases.group(seed).comparisons[0] for seed in (1, 2)]
    table = tabulate(comparisons)
    policy = torch.full((6, table.longest), -1.0)
    assert bad_tokens(table, _reads(table, policy), comparisons) == []
    policy[5, 0] = -math.inf
    assert bad_tokens(table, _reads(table, policy), comparisons) == [
        "comparison group-2/0, prompt 'row-2', cell w@m: the policy's log-probability is not finite"
    ]


def test_losses_are_named_by_what_they_act_on() -> None:
    assert term_names(Pair("text") + Anchor("text.winner")) == ["pair_text", "anchor_text.winner"]
    assert term_names(Pair("text") + Pair("text", 0.5)) == ["pair_text_0", "pair_text_1"]


def test_edges_of_one_name_are_averaged_in_the_log(cases: ModuleType) -> None:
    """Margins 3 - 1 = 2 of the chosen against the rejected answer, and 3 - 2 = 1 against itself, damaged."""
    comparison: Comparison = cases.group(1).comparisons[0]
    edges = tuple(Preference(name="both", winner=0, loser=loser) for loser in (1, 2))
    comparison = replace(comparison, preferences=edges)
    table = tabulate([comparison])
    policy = torch.zeros(3, table.longest)
    policy[:, 0] = torch.tensor([3.0, 1.0, 2.0])
    sums = Sums()
    note(sums, table, _reads(table, policy), [comparison])
    assert sums.margins == [{"both": pytest.approx(1.5)}]
    assert sums.reliances == [pytest.approx(1.0)]  # the damaged picture took 1 nat


def test_the_gap_to_the_sampler_counts_what_the_policy_sampled_under_this_prompt(cases: ModuleType) -> None:
    """The learner gives each token -1. The chosen answer was sampled with -1.5 per token under its own
    prompt: a gap of 0.5. The rejected one is the reference's, the damaged cell was sampled under the clean
    one."""
    comparison: Comparison = cases.group(1).comparisons[0]
    shown = comparison.prompts[comparison.candidates[0].prompt].digest

    def drawn(stream: str, length: int) -> Behaviour:
        return Behaviour(stream=stream, decoder={}, oldest=0, newest=0, logps=(-1.5,) * length)

    sides = tuple(
        replace(
            side,
            behaviour=drawn(stream, len(comparison.responses[side.response].tokens)),
            sampled_under=shown,
        )
        for side, stream in zip(comparison.candidates, ("policy", "reference", "policy"), strict=True)
    )
    comparison = replace(comparison, candidates=sides)
    table = tabulate([comparison])
    reads = _reads(table, torch.full((3, table.longest), -1.0))
    tokens = len(comparison.responses[sides[0].response].tokens)
    assert rollout_gap(table, reads, [comparison]) == {"rollout_gap": (0.5 * tokens, float(tokens))}
    others = replace(comparison, candidates=(replace(sides[0], behaviour=None), *sides[1:]))
    assert rollout_gap(tabulate([others]), reads, [others]) == {}


def test_only_first_uses_count_as_lag(cases: ModuleType) -> None:
    groups = [replace(cases.group(1), version=2), replace(cases.group(2), version=0, use=2)]
    assert count(groups, published=3).lags == (1,)
