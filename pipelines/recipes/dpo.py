"""DPO: direct preference optimisation, and how fresh, how often and in which order its pairs are trained."""

from __future__ import annotations

from typing import Literal

from pipelines.objectives.pair import Pair
from pipelines.programs.choosing import best_and_worst
from pipelines.programs.given import Offline
from pipelines.programs.mixing import Either
from pipelines.recipe import Recipe, Stage
from pipelines.recipes._text import TEXT, pairs_from
from pipelines.rollout import Step
from pipelines.schedules import EasyToHard, HardToEasy, InOrder, Key, Order

Mix = Literal["online", "recorded", "mixed"]
ORDERS = {"easy_to_hard": EasyToHard, "hard_to_easy": HardToEasy}


def recipe(
    *,
    pairs: Mix = "online",
    on_policy: float | None = None,
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
    uses: int = 1,
    replay: float = 0.0,
    max_lag: int | None = None,
    order: Literal["data", "easy_to_hard", "hard_to_easy"] = "data",
    difficulty: Key | None = None,
    parts: int = 3,
) -> Recipe:
    """-log sigmoid(beta (rho_w - rho_l)), rho = log pi - log pi_ref summed over the answer, nats.

    DPO, arXiv 2305.18290, equation 7 (from memory; TRL's code read: `sigmoid`). `pairs`: "online" compares
    the best and the worst of `samples` fresh answers, "recorded" takes the columns `chosen` and `rejected` of
    the data, "mixed" a fresh pair with probability `on_policy` and else the recorded one.

    The knobs of the study of suboptimal, on-policy data (arXiv 2404.14367; its repository read, findings from
    the abstract): `on_policy`, the share of fresh pairs; `uses`, how often each pair is trained on; `replay`,
    the share of a step's pairs that earlier steps trained; `max_lag`, how many published versions old a fresh
    pair may be when it is first trained on (never more than the run's `sync.max_lag`).

    `order`: `parts` equal parts of the prompts by `difficulty`, which is surveyed before the first step:
    "entropy" and "score_gap" of `samples` answers, "reference_gap" of the recorded pair, or the row's column
    "strength" (see `pipelines/schedules.py`). What says nothing about the pairs in use is refused.
    """
    return Recipe(
        name="dpo",
        paper="Direct Preference Optimization, arXiv 2305.18290",
        source="TRL's code read (numbers reproduced in tests/goldens)",
        stages=(
            Stage(
                rollout=_program(pairs, on_policy, samples, min_gap),
                compare=TEXT,
                objective=1.0 * Pair("text", beta),
                order=_order(order, difficulty, parts, samples, pairs),
                uses=uses,
                replay=replay,
                max_lag=_lag(max_lag, pairs),
            ),
        ),
    )


def _program(pairs: Mix, on_policy: float | None, samples: int, min_gap: float) -> Step:
    if pairs == "mixed":
        if on_policy is None:
            raise ValueError("pairs='mixed' needs on_policy, the share of fresh pairs; 0.5 for one in two")
        return Either(on_policy, best_and_worst(samples, min_gap), Offline())
    if on_policy is not None:
        raise ValueError(
            f"on_policy={on_policy:g} mixes fresh and recorded pairs, but pairs={pairs!r} takes one kind; "
            "set pairs='mixed' or leave on_policy out"
        )
    return pairs_from(pairs, samples, min_gap)


def _lag(max_lag: int | None, pairs: str) -> int | None:
    if max_lag is not None and max_lag < 0:
        raise ValueError(f"max_lag: expected at least 0 published versions, got {max_lag}")
    if max_lag is not None and pairs == "recorded":
        raise ValueError("max_lag bounds the age of fresh pairs, and recorded ones have none; leave it out")
    return max_lag


def _order(order: str, difficulty: Key | None, parts: int, samples: int, pairs: str) -> Order:
    if order == "data":
        if difficulty is not None:
            raise ValueError(
                f"difficulty={difficulty!r} orders nothing with order='data'; "
                "set order to 'easy_to_hard' or 'hard_to_easy'"
            )
        return InOrder()
    if difficulty is None:
        raise ValueError(f"order={order!r} needs difficulty: entropy, score_gap, reference_gap or strength")
    if difficulty == "score_gap" and pairs == "recorded":
        raise ValueError(
            "difficulty='score_gap' compares fresh answers, which pairs='recorded' does not train on; "
            "use reference_gap, strength or entropy"
        )
    if difficulty in ("reference_gap", "strength") and pairs == "online":
        raise ValueError(
            f"difficulty={difficulty!r} is that of a recorded pair, which pairs='online' does not train on; "
            "use score_gap or entropy"
        )
    return ORDERS[order](samples, difficulty, parts)
