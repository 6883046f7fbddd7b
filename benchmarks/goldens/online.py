"""Losses on fresh samples: online DPO, GRPO's family, RLOO and optimal-advantage regression."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.a2po import A2POConfig, A2POTrainer
from trl.experimental.gmpo import GMPOConfig, GMPOTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

from benchmarks.goldens.preferences import LENGTHS, POLICY, QUIET, REFERENCE, Case, result, settings
from benchmarks.goldens.stand_in import EOS, PROMPT, Encoded, draw, encode, grouped, models, nudge, trainer

# Online DPO ----------------------------------------------------------------------------------------------

SCORES = [[0.5, -0.25], [-1.0, 0.75], [0.5, 0.5], [0.25, 0.5]]  # the third is a tie
ENDS = [[True, True], [True, False], [True, True], [True, False]]
ONLINE_GRID: list[dict[str, Any]] = [
    {"loss_type": "sigmoid", "beta": 0.5},
    {"loss_type": "ipo", "beta": 0.5},
    {"loss_type": "sigmoid", "beta": 0.5, "missing_eos_penalty": 1.0},
]


def online_dpo(params: dict[str, Any]) -> Case:
    policy, reference = models("samples", POLICY, REFERENCE)
    encoded = encode(range(len(LENGTHS)), LENGTHS, ends=[e for side in zip(*ENDS, strict=True) for e in side])
    scores = [score for side in zip(*SCORES, strict=True) for score in side]
    args = OnlineDPOConfig(**QUIET, **params)
    made = trainer(
        OnlineDPOTrainer,
        args,
        policy,
        reference,
        _beta=args.beta,
        state=SimpleNamespace(global_step=0, epoch=0),
        max_length=args.max_length,
        eos_token_ids=[EOS],
        processing_class=SimpleNamespace(batch_decode=lambda ids, **_: [""] * len(ids)),
        reward_funcs=[lambda **_: scores],
        reward_processing_classes=[None],
        reward_weights=None,
        stats=Statistics(),
        _generate=lambda *_: (*split(encoded), None),
    )
    loss = made.training_step(policy, {"prompt": [""] * len(SCORES)})
    return result("online_dpo", "samples", params, loss, policy, 2, settings(args, "missing_eos_penalty"))


class Statistics(dict[str, list[float]]):
    def __missing__(self, key: str) -> list[float]:
        return self.setdefault(key, [])


def split(encoded: Encoded) -> tuple[torch.Tensor, ...]:
    """Prompt ids and mask, answer ids and mask."""
    ids, mask = encoded.input_ids, encoded.attention_mask
    return ids[:, :PROMPT], mask[:, :PROMPT], ids[:, PROMPT:], mask[:, PROMPT:]


# Policy gradients ----------------------------------------------------------------------------------------

GROUP = [3, 6, 1, 4, 2, 5]
ADVANTAGES = [1.25, -0.5, 0.75, -1.0, 0.0, -0.25]
NOW = draw("group", GROUP)
BEFORE = nudge("group/old", NOW, 0.4)  # far enough that some ratios are clipped
BASE = nudge("group/reference", NOW, 0.9)
GRPO_GRID: list[dict[str, Any]] = [
    *({"loss_type": kind} for kind in ("grpo", "bnpo", "dr_grpo", "dapo")),
    {"loss_type": "sapo", "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05},
    {
        "loss_type": "vespo",
        "vespo_k_pos": 2.0,
        "vespo_lambda_pos": 3.0,
        "vespo_k_neg": 3.0,
        "vespo_lambda_neg": 2.0,
    },
    {"loss_type": "cispo", "epsilon_high": 1.2},
    {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.1},
    *({"loss_type": "grpo", "beta": 0.2, "use_bias_correction_kl": flag} for flag in (False, True)),
    {"loss_type": "dapo", "epsilon_high": 0.28},
    {"loss_type": "grpo", "delta": 1.25},
]
LIMIT = 8  # tokens an answer may have: what Dr. GRPO divides by


def gradient_inputs() -> dict[str, Any]:
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    inputs: dict[str, Any] = dict(zip(names, split(encode(range(len(GROUP)), GROUP)), strict=True))
    width = max(GROUP)
    for name, rows in (("old_per_token_logps", BEFORE), ("ref_per_token_logps", BASE)):
        padded = [row + [0.0] * (width - len(row)) for row in rows]
        inputs[name] = torch.tensor(padded, dtype=torch.float64)
    inputs["advantages"] = torch.tensor(ADVANTAGES, dtype=torch.float64)
    inputs["old_logps"] = inputs["old_per_token_logps"].sum(-1)
    inputs["num_items_in_batch"] = torch.tensor(sum(GROUP))
    return inputs


GRPO_OPTIONS = "loss_type beta epsilon epsilon_high delta importance_sampling_level use_bias_correction_kl"
#: Policy-gradient losses -> (trainer, configuration, what makes the loss, grid).
GRADIENTS: dict[str, tuple[type, type, str, list[dict[str, Any]]]] = {
    "grpo": (GRPOTrainer, GRPOConfig, GRPO_OPTIONS, GRPO_GRID),
    "gmpo": (GMPOTrainer, GMPOConfig, "beta epsilon epsilon_high", [{"beta": 0.0}, {"beta": 0.2}]),
    "rloo": (RLOOTrainer, RLOOConfig, "epsilon epsilon_high", [{}]),
}


def policy_gradient(method: str, params: dict[str, Any]) -> Case:
    policy, reference = models("group", NOW, BASE)
    cls, config, names, _ = GRADIENTS[method]
    args = config(**QUIET, per_device_train_batch_size=len(GROUP), num_generations=len(GROUP), **params)
    options = settings(args, names)
    if options["epsilon_high"] is None:
        options["epsilon_high"] = args.epsilon  # as the trainers' set-up does
    switches = ("top_entropy_quantile", "off_policy_mask_threshold", "use_vllm")
    made = trainer(
        cls,
        args,
        policy,
        reference,
        **options,
        **{name: getattr(args, name) for name in switches if hasattr(args, name)},
        epsilon_low=args.epsilon,
        max_completion_length=LIMIT,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
    )
    loss = made._compute_loss(policy, gradient_inputs())
    return result(method, "group", params, loss, policy, 1, options)


def a2po(params: dict[str, Any]) -> Case:
    policy, reference = models("group", NOW, BASE)
    encoded = encode(range(len(GROUP)), GROUP)
    made = trainer(A2POTrainer, A2POConfig(**QUIET, **params), policy, reference, model_kwarg_keys=())
    values = [0.4, 0.1, 0.9]  # the best value of each prompt under the reference
    inputs = {
        "input_ids": encoded.input_ids,
        "attention_mask": encoded.attention_mask,
        "logits_to_keep": max(GROUP),
        "ref_logps": torch.tensor([sum(row) for row in BASE], dtype=torch.float64),
        "rewards": torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 1.0], dtype=torch.float64),
        "v_star": torch.tensor(values * 2, dtype=torch.float64),
    }
    loss = made.compute_loss(policy, inputs)
    more = {"inputs": {"rewards": inputs["rewards"].tolist(), "v_star": inputs["v_star"].tolist()}}
    return result("a2po", "group", params, loss, policy, 1, {}, **more)


def batches() -> dict[str, Any]:
    return {
        "samples": {
            "policy": grouped(POLICY, 2),
            "reference": grouped(REFERENCE, 2),
            "scores": SCORES,
            "ended": ENDS,
        },
        "group": {
            "policy": NOW,
            "old": BEFORE,
            "reference": BASE,
            "advantages": ADVANTAGES,
            "max_completion_length": LIMIT,
        },
    }


def cases() -> Iterator[Case]:
    yield from map(online_dpo, ONLINE_GRID)
    for method, (_, _, _, grid) in GRADIENTS.items():
        yield from (policy_gradient(method, params) for params in grid)
    yield a2po({"beta2": 0.3})
