"""Rules by hand: answers, form, LLaVA-RLHF's shaping, Critic-V's lists, aspects, MODPO's margin."""

from __future__ import annotations

import pytest
import torch

from pipelines.rewards.rules import (
    Between,
    CorrectnessBonus,
    ExactMatch,
    Format,
    Jaccard,
    Parts,
    factually_augmented,
    listed,
    score_gaps,
)
from pipelines.types import Score


def test_exact_matches(rollout, group):
    texts = ["Yes.", "yes", "no", "yes indeed"]
    assert [s.value for s in group(ExactMatch(), [rollout(t, answer="yes") for t in texts])] == [1, 1, 0, 0]
    assert group(ExactMatch(), [rollout("b", answer=["a", "B"])])[0].parts == {"correct": 1.0}
    assert group(ExactMatch(), [rollout("b")])[0].missing == "no_gold_column: answer"
    tagged = ExactMatch(answer=Between("<answer>", "</answer>"))
    answers = [rollout(t, answer="7") for t in ("so <answer> 7 </answer>", "7", "<answer>8</answer>")]
    assert [s.value for s in group(tagged, answers)] == [1.0, 0.0, 0.0]


def test_the_form_is_of_the_whole_response(rollout, group):
    form = Format(r"<think>.*</think><answer>.*</answer>")
    texts = ["<think>a\nb</think><answer>7</answer>", "x <think></think><answer></answer>", "7"]
    assert [s.value for s in group(form, [rollout(t) for t in texts])] == [1.0, 0.0, 0.0]


def test_the_correctness_bonus(rollout, group):
    cases = [
        (rollout("No, none.", answer="no"), 0.5),
        (rollout("Yes.", answer="no"), -0.5),
        (rollout("Yes.", answer="yes"), 0.0),
        (rollout("B. because", answer="B", options=["x", "y"]), 1.0),
        (rollout("A", answer="B", options=["x", "y"]), 0.0),
        (rollout("free text"), 0.0),
    ]
    assert [s.value for s in group(CorrectnessBonus(), [r for r, _ in cases])] == [v for _, v in cases]


def test_llava_rlhf_shaping(rollout, told, group):
    """RM 1.5; right about "no": 2 * 0.5; 448 tokens: -10 / 2; cut: -8. 1.5 + 1 - 5 - 8 = -10.5."""
    reward = factually_augmented(told({"no": 1.5}))
    cut = rollout("no", tokens=448, finished=False, answer="no")
    done = rollout("no", tokens=448, answer="no")
    assert [s.value for s in group(reward, [cut, done])] == pytest.approx([-10.5, -2.5])


def test_lists_of_errors(rollout, group):
    """Inserted {a, b}, found {b, c}: 1 / 3."""
    critique = rollout("1. Red, not blue!\n- two digits", errors=["red not blue", "wrong cell"])
    assert group(Jaccard(), [critique])[0].value == pytest.approx(1 / 3)
    assert listed("1. Red, not blue!\n\n* Two digits") == {"red not blue", "two digits"}
    assert group(Jaccard(), [rollout("", errors=[]), rollout("x", errors=[])])[0].value == 1.0
    assert group(Jaccard(), [rollout("x", errors=[])])[0].value == 0.0
    assert group(Jaccard(), [rollout("x")])[0].missing == "no_gold_column: errors"


def test_five_aspects_choose_best_and_worst_by_their_sum(rollout, group):
    rated = {"a": (5, 4, 3, 2, 1), "b": (5, 5, 5, 1, 1), "c": (1, 1, 1, 5, 5)}
    names = ("helpful", "correct", "coherent", "complex", "verbose")
    reward = Parts(lambda p, r: dict(zip(names, rated[r.text], strict=True)))
    values = [s.value for s in group(reward, [rollout(t) for t in "abc"])]
    assert values == [15.0, 17.0, 13.0]
    assert group(Parts(lambda p, r: {}), [rollout()])[0].missing == "no_ratings"


# -- MODPO ---------------------------------------------------------------------------------------------------


def modpo(delta_rho: torch.Tensor, gaps: torch.Tensor, beta: float, w1: float) -> torch.Tensor:
    """-log sigmoid((beta delta rho - w_2 delta r_2) / w_1)."""
    return -torch.nn.functional.logsigmoid((beta * delta_rho - gaps) / w1)


def rewarded(value: float) -> Score:
    return Score(value=0.0, parts={"safe": value, "better": 1.0})


def test_modpo_with_one_objective_is_dpo_and_constants_cancel():
    delta = torch.linspace(-30, 30, 61, dtype=torch.float64)
    gap = score_gaps(rewarded(2.0), rewarded(5.0), {"safe": 0.0})
    assert torch.equal(
        modpo(delta, torch.tensor(gap), 0.1, 1.0), -torch.nn.functional.logsigmoid(0.1 * delta)
    )
    assert score_gaps(rewarded(2.0 + 7), rewarded(5.0 + 7), {"safe": 0.3}) == score_gaps(
        rewarded(2.0), rewarded(5.0), {"safe": 0.3}
    )
    assert score_gaps(rewarded(2.0), rewarded(5.0), {"safe": 0.3, "better": 1.0}) == pytest.approx(-0.9)
    with pytest.raises(KeyError):
        score_gaps(rewarded(2.0), rewarded(5.0), {"unknown": 1.0})


def test_modpos_optimum_on_a_bandit():
    """All pairs of 4 answers, labelled by Bradley-Terry on r_1, with the margin of r_2: the minimiser is
    pi proportional to pi_ref exp((w_1 r_1 + w_2 r_2) / beta)."""
    first = torch.tensor([1.0, 0.2, -0.5, 0.7], dtype=torch.float64)
    second = [0.1, -0.8, 0.9, 0.4]
    reference = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
    beta, w1, w2 = 0.5, 0.3, 0.7
    theta = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        rho = torch.log_softmax(theta, 0) - reference
        loss = torch.zeros((), dtype=torch.float64)
        for i in range(4):
            for j in range(4):
                gap = score_gaps(rewarded(second[i]), rewarded(second[j]), {"safe": w2})
                loss = loss + torch.sigmoid(first[i] - first[j]) * modpo(
                    rho[i] - rho[j], torch.tensor(gap, dtype=torch.float64), beta, w1
                )
        loss.backward()
        return loss

    optimizer.step(closure)
    best = torch.softmax(reference + (w1 * first + w2 * torch.tensor(second, dtype=torch.float64)) / beta, 0)
    torch.testing.assert_close(torch.softmax(theta.detach(), 0), best, atol=1e-6, rtol=0)
