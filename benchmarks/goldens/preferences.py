"""Losses on stored answers: DPO and its relatives, KTO, CPO, ORPO, TRL's triple TPO, reward models."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.experimental.tpo import TPOConfig, TPOTrainer
from trl.trainer.callbacks import SyncRefModelCallback

from benchmarks.goldens.stand_in import (
    PAD,
    PROMPT,
    Encoded,
    StandIn,
    draw,
    encode,
    grouped,
    models,
    nudge,
    trainer,
)

Case = dict[str, Any]

QUIET: dict[str, Any] = {"output_dir": "unused", "use_cpu": True, "report_to": []}
PAIRS = [(3, 5), (7, 2), (1, 4), (4, 4)]  # answer lengths of winner and loser
LENGTHS = [length for side in zip(*PAIRS, strict=True) for length in side]
KEYS = range(len(LENGTHS))
POLICY = draw("pairs", LENGTHS)
REFERENCE = nudge("pairs/reference", POLICY, 0.9)
SINGLE = "float32 inside TRL"


def settings(args: Any, names: str) -> dict[str, Any]:
    """What TRL's configuration makes of these options, its defaults included."""
    return {name: getattr(args, name) for name in names.split()}


def pairs() -> tuple[StandIn, StandIn, Encoded]:
    return *models("pairs", POLICY, REFERENCE), encode(KEYS, LENGTHS)


def pairs_batch() -> dict[str, Any]:
    policy, _, encoded = pairs()
    fused = policy(encoded.input_ids, labels=encoded.labels(), fused_lm_head=True)
    collision = [
        fused.log_sum_sq_probs[key, PROMPT - 1 : PROMPT - 1 + length].tolist()
        for key, length in zip(KEYS, LENGTHS, strict=True)
    ]
    prompts = [row[: PROMPT - 1].tolist() for row in policy.rows[: len(PAIRS)]]
    return {
        "policy": grouped(POLICY, 2),
        "reference": grouped(REFERENCE, 2),
        "collision": grouped(collision, 2),
        "prompt": prompts,
    }


# DPO -----------------------------------------------------------------------------------------------------

DPO_GRID: list[dict[str, Any]] = [
    *({"loss_type": kind, "beta": beta} for kind in ("sigmoid", "hinge", "ipo") for beta in (0.1, 0.5, 2.0)),
    *({"loss_type": "exo_pair", "beta": 0.5, "label_smoothing": e} for e in (0.001, 0.1, 0.3)),
    *({"loss_type": "robust", "beta": 0.5, "label_smoothing": e} for e in (0.0, 0.1, 0.3)),
    {"loss_type": "sigmoid", "beta": 0.5, "label_smoothing": 0.3},
    *(
        {"loss_type": kind, "beta": beta}
        for kind in ("nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down", "sigmoid_norm")
        for beta in (0.1, 0.5)
    ),
    *(
        {"loss_type": kind, "beta": 0.5, "label_smoothing": e}
        for kind in ("aot", "aot_unpaired")
        for e in (0.0, 0.2)
    ),
    *({"loss_type": "discopop", "beta": beta, "discopop_tau": t} for beta, t in ((0.1, 0.05), (0.5, 0.5))),
    {"loss_type": "sft"},
    *(
        {"loss_type": kind, "beta": 0.5, "f_divergence_type": divergence}
        for kind in ("sigmoid", "ipo")
        for divergence in ("forward_kl", "js_divergence")
    ),
    *(
        {
            "loss_type": "sigmoid",
            "beta": 0.5,
            "f_divergence_type": "alpha_divergence",
            "f_alpha_divergence_coef": alpha,
        }
        for alpha in (-0.5, 0.5, 1.0, 2.0)
    ),
    *({"loss_type": kind, "beta": 0.5, "ld_alpha": a} for kind in ("sigmoid", "ipo") for a in (0.0, 0.5)),
    *({"loss_type": kind, "beta": 0.5, "use_weighting": True} for kind in ("sigmoid", "ipo")),
    {"loss_type": "sigmoid", "beta": 0.5, "use_weighting": True, "ld_alpha": 0.5},
    {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0], "beta": 0.1},
    {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.005], "beta": 0.1},
]


DPO_OPTIONS = (
    "beta label_smoothing f_divergence_type f_alpha_divergence_coef ld_alpha use_weighting discopop_tau"
)


def dpo(params: dict[str, Any]) -> Case:
    policy, reference, encoded = pairs()
    # TRL's alpha-divergence clamps by a table of types that has no float64.
    single = (
        params.get("f_divergence_type") == "alpha_divergence" and params["f_alpha_divergence_coef"] != 1.0
    )
    args = DPOConfig(**QUIET, **params)
    made = trainer(
        DPOTrainer,
        args,
        Single(policy) if single else policy,
        Single(reference) if single else reference,
        loss_types=args.loss_type,
        loss_weights=args.loss_weights or [1.0] * len(args.loss_type),
        **settings(args, DPO_OPTIONS),
    )
    loss = made._compute_loss(made.model, dict(vars(encoded)), return_outputs=False)
    case = result("dpo", "pairs", params, loss, policy, 2, settings(args, DPO_OPTIONS))
    if single:
        case |= {"atol": 1e-5, "note": SINGLE}
    elif "exo_pair" in args.loss_type:
        case |= {"atol": 1e-6, "note": f"log(label_smoothing) is {SINGLE}"}
    return case


class Single(nn.Module):
    """Rounds what a stand-in gives TRL to float32."""

    is_gradient_checkpointing = False

    def __init__(self, model: StandIn) -> None:
        super().__init__()
        self.inner = model

    def forward(self, **inputs: Any) -> Any:
        outputs = self.inner(**inputs)
        for name, value in outputs.items():
            outputs[name] = value.float() if value.is_floating_point() else value
        return outputs


def result(
    method: str,
    batch: str,
    params: dict[str, Any],
    loss: Tensor,
    policy: StandIn,
    sides: int,
    options: dict[str, Any],
    **more: Any,
) -> Case:
    """A case, named by `params`; `options` adds TRL's defaults; gradients are laid out as "policy"."""
    if loss.requires_grad:
        loss.backward()
    rows = policy.gradients(range(len(policy.rows)))
    gradients = grouped(rows, sides) if sides > 1 else rows
    return {
        "name": "/".join([method, *(f"{key}={spell(value)}" for key, value in params.items())]),
        "method": method,
        "batch": batch,
        "params": params | {name: value for name, value in options.items() if name not in params},
        "loss": loss.item(),
        **more,
        "grads": gradients,
    }


def spell(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def ema() -> Case:
    """TR-DPO's soft update of the reference by TRL's callback."""
    old, new = [0.5, -1.25, 2.0], [0.75, 1.5, -0.5]
    trained, kept = (nn.Linear(3, 1, bias=False).double() for _ in range(2))
    trained.weight.data = torch.tensor([new], dtype=torch.float64)
    kept.weight.data = torch.tensor([old], dtype=torch.float64)
    params = {"ref_model_mixup_alpha": 0.6, "ref_model_sync_steps": 2}
    callback = SyncRefModelCallback(ref_model=kept, accelerator=Accelerator(cpu=True))
    steps: list[list[float]] = []
    for step in range(1, 5):
        state = SimpleNamespace(global_step=step)
        callback.on_step_end(SimpleNamespace(**params), state, None, model=trained)
        steps.append(kept.weight.data[0].tolist())
    inputs = {"policy_weights": new, "reference_weights": old}
    return {
        "name": "tr_dpo",
        "method": "tr_dpo",
        "params": params,
        "inputs": inputs,
        "after_each_step": steps,
    }


# KTO -----------------------------------------------------------------------------------------------------

GOOD = [True, False, True, True, False]
ALONE = [3, 6, 1, 4, 2]
KTO_GRID: list[dict[str, Any]] = [
    {"loss_type": "kto", "beta": 0.1},
    {"loss_type": "kto", "beta": 0.5, "desirable_weight": 1.0, "undesirable_weight": 1.33},
    {"loss_type": "apo_zero_unpaired", "beta": 0.5},
]


def unpaired(name: str, shift: float) -> dict[str, Any]:
    """Answers alone, and answer i under prompt i + 1, whose log-ratios KTO averages."""
    policy, other = draw(name, ALONE), draw(f"{name}/mismatched", ALONE)
    reference = nudge(f"{name}/reference", policy, 0.9)
    against = [
        [min(round(value + shift, 3), -0.05) for value in row]
        for row in nudge(f"{name}/mismatched/reference", other, 0.5)
    ]
    return {
        "policy": policy,
        "reference": reference,
        "good": GOOD,
        "mismatched": {"policy": other, "reference": against},
    }


UNPAIRED = {"unpaired": unpaired("unpaired", -0.3), "unpaired_low": unpaired("unpaired_low", 0.3)}


def kto(batch: str, params: dict[str, Any]) -> Case:
    data = UNPAIRED[batch]
    rows = data["policy"] + data["mismatched"]["policy"]
    references = data["reference"] + data["mismatched"]["reference"]
    policy, reference = models(batch, rows, references)
    count = len(ALONE)
    inputs = dict(vars(encode(range(count), ALONE)))
    inputs |= {f"KL_{key}": value for key, value in vars(encode(range(count, 2 * count), ALONE)).items()}
    args = KTOConfig(**QUIET, **params)
    options = settings(args, "loss_type beta desirable_weight undesirable_weight")
    made = trainer(
        KTOTrainer,
        args,
        policy,
        reference,
        calculate_KL=args.loss_type == "kto",
        **options,
    )
    loss = made._compute_loss(policy, inputs | {"label": torch.tensor(GOOD)}, return_outputs=False)
    case = result("kto", batch, params, loss, policy, 1, options, z=made._metrics["train"]["kl"][0])
    assert not any(value for row in case["grads"][count:] for value in row)  # z has no gradient
    return case | {"name": f"{case['name']}/{batch}", "grads": case["grads"][:count]}


# CPO, SimPO, AlphaPO, ORPO: no reference ----------------------------------------------------------------

CPO_GRID: list[dict[str, Any]] = [
    *(
        {"loss_type": kind, "beta": 0.5, "cpo_alpha": a}
        for kind in ("sigmoid", "hinge", "ipo")
        for a in (0.0, 1.0)
    ),
    {"loss_type": "sigmoid", "beta": 0.5, "cpo_alpha": 1.0, "label_smoothing": 0.2},
    *({"loss_type": "simpo", "beta": 2.0, "simpo_gamma": g, "cpo_alpha": 0.0} for g in (0.0, 0.5, 1.0)),
    {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0, "label_smoothing": 0.2},
    {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.5},
    *(
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0, "alpha": a}
        for a in (0.25, -0.25)
    ),
]


def sides(encoded: Encoded) -> dict[str, Tensor]:
    """The keys of a batch that CPO and ORPO read."""
    found: dict[str, Tensor] = {}
    for side, rows in (("chosen", slice(0, len(PAIRS))), ("rejected", slice(len(PAIRS), None))):
        found |= {
            f"{side}_input_ids": encoded.input_ids[rows],
            f"{side}_attention_mask": encoded.attention_mask[rows],
            f"{side}_labels": encoded.labels()[rows],
        }
    return found


def cpo(params: dict[str, Any]) -> Case:
    policy, _, encoded = pairs()
    args = CPOConfig(**QUIET, **params)
    options = settings(args, "loss_type beta label_smoothing cpo_alpha simpo_gamma alpha")
    made = trainer(CPOTrainer, args, policy, None, pad_token_id=PAD, **options)
    loss, _ = made.get_batch_loss_metrics(policy, sides(encoded))
    return result("cpo", "pairs", params, loss, policy, 2, options)


def orpo(beta: float) -> Case:
    """TRL's likelihood term covers the prompt as well ("prompt" of the batch), its odds term the answers."""
    policy, _, encoded = pairs()
    args = ORPOConfig(**QUIET, beta=beta)
    made = trainer(ORPOTrainer, args, policy, None, padding_value=PAD, beta=beta)
    loss, _ = made.get_batch_loss_metrics(policy, sides(encoded))
    case = result("orpo", "pairs", {"beta": beta}, loss, policy, 2, {})
    return case | {"atol": 1e-6, "note": f"the odds term is {SINGLE}"}


# Triples and reward models ------------------------------------------------------------------------------

TRIPLES = [(3, 5, 4), (7, 2, 6), (1, 4, 2)]
TRIPLE_LENGTHS = [length for side in zip(*TRIPLES, strict=True) for length in side]
TRIPLE_POLICY = draw("triples", TRIPLE_LENGTHS)
TPO_GRID: list[dict[str, Any]] = [
    *({"loss_type": kind, "beta": 0.5, "tpo_alpha": 1.0} for kind in ("sigmoid", "hinge", "ipo")),
    {"loss_type": "sigmoid", "beta": 0.5, "tpo_alpha": 0.3, "label_smoothing": 0.2},
    {"loss_type": "tpo-l", "beta": 2.0, "tpo_alpha": 1.0, "tpo_l_gamma": 0.5},
]


def tpo(params: dict[str, Any]) -> Case:
    policy, _ = models("triples", TRIPLE_POLICY, TRIPLE_POLICY)
    args = TPOConfig(**QUIET, **params)
    options = settings(args, "loss_type beta label_smoothing tpo_alpha tpo_l_gamma")
    made = trainer(TPOTrainer, args, policy, None, **options)
    encoded = encode(range(len(TRIPLE_LENGTHS)), TRIPLE_LENGTHS)
    loss = made._compute_loss(policy, dict(vars(encoded)), return_outputs=False)
    return result("tpo", "triples", params, loss, policy, 3, options)


def reward_model(params: dict[str, Any], margins: list[float] | None) -> Case:
    scores = [[1.25, 0.5], [-0.75, 0.25], [2.0, 2.0]]
    leaf = torch.tensor([pair[side] for side in (0, 1) for pair in scores], dtype=torch.float64)
    leaf.requires_grad_(True)
    args = RewardConfig(**QUIET, **params)
    model = nn.Module()
    made = trainer(RewardTrainer, args, model, None)
    inputs: dict[str, Any] = {"attention_mask": torch.ones(6, 2)}
    if margins is not None:
        inputs["margin"] = torch.tensor(margins, dtype=torch.float64)
    loss = made.compute_loss(lambda **_: SimpleNamespace(logits=leaf[:, None]), inputs)
    loss.backward()
    assert leaf.grad is not None
    gradient: list[float] = leaf.grad.tolist()
    return {
        "name": "/".join(
            ["reward", *(f"{k}={v}" for k, v in params.items()), *(["margins"] if margins else [])]
        ),
        "method": "reward",
        "params": params,
        "inputs": {"scores": scores, "margins": margins},
        "loss": loss.item(),
        "grads": [list(pair) for pair in zip(gradient[:3], gradient[3:], strict=True)],
    }


def batches() -> dict[str, Any]:
    return {"pairs": pairs_batch(), **UNPAIRED, "triples": {"policy": grouped(TRIPLE_POLICY, 3)}}


def cases() -> Iterator[Case]:
    yield from map(dpo, DPO_GRID)
    yield ema()
    for batch in UNPAIRED:
        yield from (kto(batch, params) for params in KTO_GRID)
    yield from map(cpo, CPO_GRID)
    yield from map(orpo, (0.1, 1.0))
    yield from map(tpo, TPO_GRID)
    yield reward_model({}, None)
    yield reward_model({}, [0.5, 0.0, 1.0])
    yield reward_model({"center_rewards_coefficient": 0.01}, None)
