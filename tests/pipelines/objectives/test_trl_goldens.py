"""Our terms against numbers that TRL's own code produced on fixed log-probabilities (`make goldens`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.objectives.base import Objective, Reads, Term, advanced
from pipelines.objectives.kl import Bonus
from pipelines.objectives.links import DiscoPop, Exo, Hinge, Link, LogSigmoid, Robust, Square
from pipelines.objectives.margins import Constant
from pipelines.objectives.nll import Nll
from pipelines.objectives.pair import Pair
from pipelines.objectives.policy_gradient import Nash, PolicyGradient
from pipelines.objectives.quantiles import Aot
from pipelines.objectives.ratios import AdvantageRegression, Cispo, Gmpo, Sapo, Vespo
from pipelines.objectives.scoring import Alpha, Desensitised, FDivergence, LogOdds, Mean, Scoring, Sum
from pipelines.objectives.sides import ApoDown, ApoZero, BcoPair, Nca, Sides, SppoHard
from pipelines.objectives.terms import Reduction
from pipelines.objectives.unpaired import Bco, Kto
from pipelines.objectives.weightings import Wpo

Json = dict[str, Any]
MakeReads = Callable[..., Reads]
GOLDENS = Path(__file__).parents[2] / "goldens"
TRL, RETIRED = (json.loads((GOLDENS / name).read_text()) for name in ("trl.json", "trl_retired.json"))
ELSEWHERE = {  # tested beside what computes them
    "tr_dpo": "tests/actors/learner/test_blending_goldens.py",
    "reward": "tests/pipelines/rewards/models/test_trl_goldens.py",
}


def cases(file: Json, *methods: str) -> list[Any]:
    chosen = [case for case in file["cases"] if case["method"] in methods]
    assert chosen, f"no goldens of {methods}"
    return [pytest.param(case, id=case["name"]) for case in chosen]


def flat(rows: Sequence[Any]) -> list[list[float]]:
    """Answers in order, whatever the nesting."""
    return [list(rows)] if isinstance(rows[0], float) else [row for part in rows for row in flat(part)]


def reduced(objective: Term | Objective, reads: Reads) -> torch.Tensor:
    terms = objective.terms if isinstance(objective, Objective) else ((1.0, objective),)
    return torch.stack([w * t.value(reads).sum() / t.weight(reads).sum() for w, t in terms]).sum()


def check(objective: Term | Objective, reads: Reads, case: Json, grads: Sequence[Any] | None = None) -> None:
    loss, atol = reduced(objective, reads), max(case.get("atol", 1e-9), 1e-9)
    assert loss.item() == pytest.approx(case["loss"], abs=atol, rel=1e-9)
    (found,) = torch.autograd.grad(loss, reads.tokens["policy"])
    expected = flat(grads if grads is not None else case["grads"])
    for row, numbers in zip(found, expected, strict=True):
        torch.testing.assert_close(row[: len(numbers)], torch.tensor(numbers).double(), atol=atol, rtol=1e-6)


def pairs(make_reads: MakeReads, batch: Json) -> Reads:
    n, each = len(batch["policy"]), len(batch["policy"][0])
    edges = {"text": [(each * i, each * i + 1, i) for i in range(n)]}
    roles = {"gold": [(each * i + 2, i) for i in range(n)]} if each == 3 else {}
    reads = make_reads(
        flat(batch["policy"]), edges, n, reference=flat(batch.get("reference", batch["policy"])), roles=roles
    )
    if "collision" in batch:
        numbers = flat(batch["collision"])
        collision = torch.zeros_like(reads.tokens["reference"])
        for row, values in enumerate(numbers):
            collision[row, : len(values)] = torch.tensor(values, dtype=torch.float64)
        reads.features["collision"] = collision  # type: ignore[index]
    return reads


# -- pairs --------------------------------------------------------------------------------------------------


def dpo_scoring(params: Json, normalised: bool) -> Scoring:
    if params["ld_alpha"] is not None:
        return Desensitised(params["ld_alpha"], normalised)
    kind = params["f_divergence_type"].removesuffix("_divergence")
    if kind != "reverse_kl":
        return FDivergence(kind, params["f_alpha_divergence_coef"], normalised)
    return Mean() if normalised else Sum()


def dpo_term(kind: str, params: Json) -> Term:
    beta, smoothing = params["beta"], params["label_smoothing"]
    forms = {
        "nca_pair": Nca,
        "bco_pair": BcoPair,
        "sppo_hard": SppoHard,
        "apo_zero": ApoZero,
        "apo_down": ApoDown,
    }
    links: dict[str, Callable[[], Link]] = {
        "sigmoid": LogSigmoid,  # TRL ignores the smoothing here
        "sigmoid_norm": LogSigmoid,
        "hinge": Hinge,
        "ipo": Square,
        "exo_pair": lambda: Exo(smoothing),
        "robust": lambda: Robust(smoothing),
        "discopop": lambda: DiscoPop(params["discopop_tau"]),
    }
    weighting = Wpo() if params["use_weighting"] else None
    if kind in forms:
        return Sides("text", beta, forms[kind](), weighting=weighting)
    if kind.startswith("aot"):
        return Aot("text", beta, smoothing, paired=kind == "aot")
    if kind == "sft":
        return Nll("text.winner", "batch_tokens")
    scoring = dpo_scoring(params, kind in ("ipo", "sigmoid_norm"))
    return Pair("text", beta, links[kind](), scoring, weighting=weighting)


@pytest.mark.parametrize("case", cases(TRL, "dpo"))
def test_dpo_family(case: Json, make_reads: MakeReads) -> None:
    params, kinds = case["params"], case["params"]["loss_type"]
    if isinstance(kinds, str):
        objective: Term | Objective = dpo_term(kinds, params)
    else:
        weights = zip(params["loss_weights"], kinds, strict=True)
        objective = Objective(tuple((weight, dpo_term(kind, params)) for weight, kind in weights))
    check(objective, pairs(make_reads, TRL["batches"]["pairs"]), case)


def reference_free(kind: str, params: Json, margin: float) -> Pair:
    links: dict[str, Link] = {"hinge": Hinge(), "ipo": Square()}
    mean = kind in ("ipo", "simpo", "tpo-l")
    scoring: Scoring = Mean(against=None) if mean else Sum(against=None)
    if params.get("alpha"):
        scoring = Alpha(params["alpha"])
    link = links.get(kind, LogSigmoid(params["label_smoothing"]))
    return Pair("text", params["beta"], link, scoring, Constant(margin) if mean and kind != "ipo" else None)


@pytest.mark.parametrize("case", cases(TRL, "cpo"))
def test_cpo_simpo_and_alpha_po(case: Json, make_reads: MakeReads) -> None:
    params = case["params"]
    pair = reference_free(params["loss_type"], params, params["simpo_gamma"])
    objective = pair + params["cpo_alpha"] * Nll("text.winner", "batch_tokens")
    check(objective, pairs(make_reads, TRL["batches"]["pairs"]), case)


@pytest.mark.parametrize("case", cases(TRL, "tpo"))
def test_triple_preference(case: Json, make_reads: MakeReads) -> None:
    params = case["params"]
    pair = reference_free(params["loss_type"], params, params["tpo_l_gamma"])
    objective = pair + params["tpo_alpha"] * Nll("gold", "batch_tokens")
    check(objective, pairs(make_reads, TRL["batches"]["triples"]), case)


@pytest.mark.parametrize("case", cases(TRL, "orpo"))
def test_orpo(case: Json, make_reads: MakeReads) -> None:
    """TRL's likelihood covers prompt and winner: here the two are one more role, "whole"."""
    batch = TRL["batches"]["pairs"]
    n = len(batch["policy"])
    whole = [[*batch["prompt"][i], *batch["policy"][i][0]] for i in range(n)]
    reads = make_reads(
        [*flat(batch["policy"]), *whole],
        {"text": [(2 * i, 2 * i + 1, i) for i in range(n)]},
        n,
        roles={"whole": [(2 * n + i, i) for i in range(n)]},
    )
    objective = case["params"]["beta"] * Pair("text", 1.0, scoring=LogOdds()) + Nll("whole", "batch_tokens")
    loss = reduced(objective, reads)
    assert loss.item() == pytest.approx(case["loss"], abs=case["atol"])
    (found,) = torch.autograd.grad(loss, reads.tokens["policy"])
    for i, (winner, loser) in enumerate(case["grads"]):
        prompt = len(batch["prompt"][i])
        own = found[2 * i, : len(winner)] + found[2 * n + i, prompt : prompt + len(winner)]
        torch.testing.assert_close(own, torch.tensor(winner).double(), atol=case["atol"], rtol=0)
        torch.testing.assert_close(
            found[2 * i + 1, : len(loser)], torch.tensor(loser).double(), atol=case["atol"], rtol=0
        )


@pytest.mark.parametrize("case", cases(TRL, "online_dpo"))
def test_online_dpo(case: Json, make_reads: MakeReads) -> None:
    """The better sample wins, the first one in a tie; what did not end loses the penalty."""
    batch, params = TRL["batches"]["samples"], case["params"]
    edges: list[tuple[int, int, int]] = []
    for i, (scores, ended) in enumerate(zip(batch["scores"], batch["ended"], strict=True)):
        penalty = params["missing_eos_penalty"] or 0.0
        first, second = (s - (0.0 if e else penalty) for s, e in zip(scores, ended, strict=True))
        edges.append((2 * i, 2 * i + 1, i) if first >= second else (2 * i + 1, 2 * i, i))
    reads = make_reads(flat(batch["policy"]), {"text": edges}, len(edges), reference=flat(batch["reference"]))
    link: Link = Square() if params["loss_type"] == "ipo" else LogSigmoid()
    check(Pair("text", params["beta"], link), reads, case)


# -- single answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases(TRL, "kto"))
def test_kto(case: Json, make_reads: MakeReads) -> None:
    batch, params = TRL["batches"][case["batch"]], case["params"]
    n = len(batch["good"])
    roles = {
        "good": [(i, i) for i in range(n) if batch["good"][i]],
        "bad": [(i, i) for i in range(n) if not batch["good"][i]],
        "kl": [(n + i, i) for i in range(n)],
    }
    reads = make_reads(
        [*batch["policy"], *batch["mismatched"]["policy"]],
        size=n,
        reference=[*batch["reference"], *batch["mismatched"]["reference"]],
        roles=roles,
    )
    kl = "kl" if params["loss_type"] == "kto" else None
    term = Kto("good", "bad", kl, params["beta"], params["desirable_weight"], params["undesirable_weight"])
    if case.get("z") is not None and kl:
        assert term.shift(reads).item() == pytest.approx(case["z"], abs=1e-9)
    zeros = [[0.0] * len(row) for row in batch["mismatched"]["policy"]]
    check(term, reads, case, [*case["grads"], *zeros])


@pytest.mark.parametrize(("beta", "matched"), [(0.1, False), (0.5, False), (0.5, True)])
def test_bco(beta: float, matched: bool, make_reads: MakeReads) -> None:
    """Two batches in a row: the shift is the mean of all rewards so far, the present batch included."""
    carry: dict[str, float] = {}
    term = Bco(beta=beta, current=True, density="desirable" if matched else None)
    wanted = {"beta": beta, "matched": matched}
    for case in (case for case in RETIRED["cases"] if case["method"] == "bco" and case["params"] == wanted):
        batch = RETIRED["batches"][case["batch"]]
        n = len(batch["good"])
        roles = {
            "good": [(i, i) for i in range(n) if batch["good"][i]],
            "bad": [(i, i) for i in range(n) if not batch["good"][i]],
        }
        reads = make_reads(
            batch["policy"],
            size=n,
            reference=batch["reference"],
            roles=roles,
            scores={"bad": {"desirable": batch["desirable"]}},
            carry=dict(carry),
        )
        assert term.shift(reads).item() == pytest.approx(case["delta"], abs=1e-6)
        check(term, reads, case)
        observed = {key: (float(a), float(b)) for key, (a, b) in term.observe(reads).items()}
        carry = advanced(carry, term.statistics, observed)


# -- fresh samples ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases(RETIRED, "xpo"))
def test_xpo(case: Json, make_reads: MakeReads) -> None:
    batch, params = RETIRED["batches"]["xpo"], case["params"]
    n = len(batch["own_wins"])
    edges = [(i, n + i, i) if wins else (n + i, i, i) for i, wins in enumerate(batch["own_wins"])]
    reads = make_reads(
        [*batch["own"]["policy"], *batch["other"]["policy"]],
        {"text": edges},
        n,
        reference=[*batch["own"]["reference"], *batch["other"]["reference"]],
        roles={"r": [(n + i, i) for i in range(n)]},
    )
    link: Link = Square() if params["loss_type"] == "ipo" else LogSigmoid()
    objective = Pair("text", params["beta"], link) + params["alpha"] * Bonus("r")
    check(objective, reads, case, [*case["grads"]["own"], *case["grads"]["other"]])


@pytest.mark.parametrize("case", cases(RETIRED, "nash_md"))
def test_nash_md(case: Json, make_reads: MakeReads) -> None:
    batch = RETIRED["batches"]["xpo"]
    n = len(batch["probability"])
    reads = make_reads(
        [*batch["own"]["policy"], *batch["other"]["policy"]],
        {"duel": [(i, n + i, i) for i in range(n)]},
        n,
        reference=[*batch["own"]["reference"], *batch["other"]["reference"]],
        annotated={"duel": {"probability": batch["probability"]}},
    )
    zeros = [[0.0] * len(row) for row in batch["other"]["policy"]]
    check(Nash("duel", case["params"]["beta"], None), reads, case, [*case["grads"]["own"], *zeros])


def group(make_reads: MakeReads, batch: Json, scores: dict[str, list[float]]) -> Reads:
    """Six answers of one comparison each, with the log-probs of those who sampled them."""
    n = len(batch["policy"])
    reads = make_reads(
        batch["policy"],
        size=n,
        reference=batch["reference"],
        roles={"y": [(i, i) for i in range(n)]},
        scores={"y": scores},
    )
    behaviour = torch.full_like(reads.tokens["reference"], torch.nan)
    for row, numbers in enumerate(batch["old"]):
        behaviour[row, : len(numbers)] = torch.tensor(numbers, dtype=torch.float64)
    reads.tokens["behaviour"] = behaviour  # type: ignore[index]
    return reads


def policy_gradient(method: str, params: Json, longest: int) -> Objective:
    """Advantages are given; TRL divides Dr. GRPO by the longest answer that is allowed."""
    kind = params.get("loss_type", method)
    clips: Json = {"advantage": "raw", "clip": params["epsilon"], "clip_high": params["epsilon_high"]}
    more: Json = {"kl": params.get("beta", 0.0), "ratio": params.get("importance_sampling_level", "token")}
    more["kl_ratio"] = bool(params.get("use_bias_correction_kl"))
    if kind == "cispo":
        return 1.0 * Cispo("y", **clips, **more, ceiling=params["epsilon_high"])
    if kind == "sapo":
        sharp = params["sapo_temperature_pos"], params["sapo_temperature_neg"]
        return 1.0 * Sapo("y", **clips, **more, sharp=sharp[0], sharp_negative=sharp[1])
    if kind == "vespo":
        gammas = [(params[f"vespo_k_{sign}"], params[f"vespo_lambda_{sign}"]) for sign in ("pos", "neg")]
        return 1.0 * Vespo("y", **clips, **more, gamma=gammas[0], gamma_negative=gammas[1])
    if kind == "gmpo":
        return 1.0 * Gmpo("y", **clips, kl=params["beta"])
    if kind == "rloo":
        return 1.0 * PolicyGradient("y", **clips, ratio="whole")
    reductions: dict[str, Reduction] = {"grpo": "sequence_mean", "dr_grpo": "sum", "luspo": "sum"}
    reduction = reductions.get(kind, "batch_tokens")
    term = PolicyGradient("y", **clips, **more, reduction=reduction, ceiling=params["delta"])
    return (1 / longest if kind == "dr_grpo" else 1.0) * term


@pytest.mark.parametrize("case", cases(TRL, "grpo", "gmpo", "rloo"))
def test_policy_gradients(case: Json, make_reads: MakeReads) -> None:
    batch = TRL["batches"]["group"]
    objective = policy_gradient(case["method"], case["params"], batch["max_completion_length"])
    check(objective, group(make_reads, batch, {"value": batch["advantages"]}), case)


@pytest.mark.parametrize("case", cases(TRL, "a2po"))
def test_regression_on_the_advantage(case: Json, make_reads: MakeReads) -> None:
    scores = {"value": case["inputs"]["rewards"], "optimal": case["inputs"]["v_star"]}
    check(
        AdvantageRegression("y", case["params"]["beta2"]),
        group(make_reads, TRL["batches"]["group"], scores),
        case,
    )


def test_every_golden_is_used() -> None:
    tested = {"dpo", "cpo", "tpo", "orpo", "online_dpo", "kto", "bco", "xpo", "nash_md"}
    tested |= {"grpo", "gmpo", "rloo", "a2po"}
    methods = {case["method"] for file in (TRL, RETIRED) for case in file["cases"]}
    assert methods == tested | set(ELSEWHERE)
    assert all((GOLDENS.parents[1] / file).exists() for file in ELSEWHERE.values())
