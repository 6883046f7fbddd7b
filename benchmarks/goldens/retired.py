"""Losses that TRL has dropped; its release 1.13.0 is the last with them: BCO, XPO and Nash-MD."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from trl.experimental.bco.bco_trainer import BCOTrainer, RunningMoments
from trl.experimental.nash_md.nash_md_trainer import NashMDTrainer
from trl.experimental.xpo.xpo_trainer import XPOTrainer

from benchmarks.goldens.stand_in import Row, draw, nudge

Case = dict[str, Any]


def leaves(rows: list[Row], trained: bool = False) -> list[Tensor]:
    return [torch.tensor(row, dtype=torch.float64, requires_grad=trained) for row in rows]


def sums(rows: list[Tensor]) -> Tensor:
    return torch.stack([row.sum() for row in rows])


def padded(rows: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def gradients(rows: list[Tensor]) -> list[Row]:
    return [[0.0] * len(row) if row.grad is None else row.grad.tolist() for row in rows]


# BCO -----------------------------------------------------------------------------------------------------

STEPS = {
    "bco_first": ([3, 6, 1], [4, 2]),
    "bco_second": ([2, 5], [1, 7, 3]),
}  # good, bad answers of each step


def bco_batch(name: str) -> dict[str, Any]:
    good, bad = STEPS[name]
    policy = draw(name, good + bad)
    labels = [True] * len(good) + [False] * len(bad)
    reference = nudge(f"{name}/reference", policy, 0.9)
    return {"policy": policy, "reference": reference, "good": labels, "desirable": DESIRABLE[name]}


#: Probability that a bad answer's prompt is like the good ones'; its odds, within [0.5, 10], weigh the loss.
DESIRABLE = {"bco_first": [0.2, 0.75], "bco_second": [0.95, 0.6, 0.4]}


def bco(beta: float, matched: bool) -> Iterator[Case]:
    """Two steps: the running mean of all rewards covers the present batch and those before."""
    made: Any = SimpleNamespace(
        beta=beta,
        running=RunningMoments(Accelerator(cpu=True)),
        match_underlying_distribution=matched,
        args=SimpleNamespace(min_density_ratio=0.5, max_density_ratio=10.0),
        _get_chosen_prob=lambda probabilities: probabilities,
    )
    made._get_udm_weight = partial(BCOTrainer._get_udm_weight, made)
    for name in STEPS:
        data = bco_batch(name)
        policy, reference = leaves(data["policy"], trained=True), leaves(data["reference"])
        count = sum(data["good"])
        losses, _, _, delta = BCOTrainer.bco_loss(
            made,
            sums(policy[:count]),
            sums(policy[count:]),
            sums(reference[:count]),
            sums(reference[count:]),
            None,
            torch.tensor(DESIRABLE[name], dtype=torch.float64),
        )
        loss = losses.nanmean()
        loss.backward()
        yield {
            "name": f"bco/beta={beta}/{name}" + ("/matched" if matched else ""),
            "method": "bco",
            "batch": name,
            "params": {"beta": beta, "matched": matched},
            "loss": loss.item(),
            "losses": losses.tolist(),
            "delta": float(delta),
            "atol": 1e-6,
            "note": "the running mean is float32 inside TRL",
            "grads": gradients(policy),
        }


# XPO and Nash-MD -----------------------------------------------------------------------------------------

LENGTHS = [3, 7, 1, 4]
OWN = draw("xpo/own", LENGTHS)  # answers that the policy gave, under the policy
OWN_BASE = nudge("xpo/own/reference", OWN, 0.9)
OTHER = draw("xpo/other", LENGTHS[::-1])  # answers that the reference gave, under the policy
OTHER_BASE = nudge("xpo/other/reference", OTHER, 0.9)
OWN_WINS = [True, False, True, False]
PROBABILITY = [0.75, 0.375, 0.5, 0.125]  # that the policy's answer beats the mixture's


def xpo(loss_type: str, alpha: float) -> Case:
    own, other = leaves(OWN, trained=True), leaves(OTHER, trained=True)
    params = {"loss_type": loss_type, "beta": 0.5, "alpha": alpha}
    made = SimpleNamespace(args=SimpleNamespace(loss_type=loss_type), beta=0.5, alpha=alpha)
    loss, preference, exploration = XPOTrainer._compute_losses(
        made,
        padded(own),
        padded(other),
        padded(leaves(OTHER_BASE)),
        padded(leaves(OWN_BASE)),
        torch.tensor(OWN_WINS),
    )
    loss.backward()
    return {
        "name": f"xpo/loss_type={loss_type}/alpha={alpha}",
        "method": "xpo",
        "batch": "xpo",
        "params": params,
        "loss": loss.item(),
        "losses": preference.tolist(),
        "exploration": exploration.tolist(),
        "grads": {"own": gradients(own), "other": gradients(other)},
    }


def nash_md(beta: float) -> Case:
    own = leaves(OWN, trained=True)
    made = SimpleNamespace(beta=beta)
    probability = torch.tensor(PROBABILITY, dtype=torch.float64)
    loss, score, kl = NashMDTrainer._compute_losses(made, padded(own), padded(leaves(OWN_BASE)), probability)
    loss.backward()
    return {
        "name": f"nash_md/beta={beta}",
        "method": "nash_md",
        "batch": "xpo",
        "params": {"beta": beta},
        "loss": loss.item(),
        "score": score.tolist(),
        "kl": kl.tolist(),
        "grads": {"own": gradients(own)},
    }


def batches() -> dict[str, Any]:
    found: dict[str, Any] = {name: bco_batch(name) for name in STEPS}
    found["xpo"] = {
        "own": {"policy": OWN, "reference": OWN_BASE},
        "other": {"policy": OTHER, "reference": OTHER_BASE},
        "own_wins": OWN_WINS,
        "probability": PROBABILITY,
    }
    return found


def cases() -> Iterator[Case]:
    for beta, matched in ((0.1, False), (0.5, False), (0.5, True)):
        yield from bco(beta, matched)
    for loss_type in ("sigmoid", "ipo"):
        yield from (xpo(loss_type, alpha) for alpha in (0.0, 0.01))
    yield from map(nash_md, (0.1, 0.5))
