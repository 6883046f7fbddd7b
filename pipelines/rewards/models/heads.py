"""Heads on a frozen or trained backbone: from the states of prompt and answer to rewards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.rewards.models import losses


@dataclass(frozen=True)
class States:
    """Last hidden states of N prompt-answer pairs."""

    prompt: Tensor  # [N, width], at the last prompt token
    answer: Tensor  # [N, width], at the last answer token
    user: Tensor  # [N] int64, whose preference it is; 0 where users do not matter


class RewardHead(nn.Module):
    """Base of all heads. `names`: of the components, one per column of `components`."""

    names: tuple[str, ...] = ()

    def components(self, states: States) -> Tensor:
        """[N, components]."""
        raise NotImplementedError

    def forward(self, states: States) -> Tensor:
        """The reward of each answer, [N]."""
        return self.components(states).sum(-1)

    def pair_loss(self, winner: States, loser: States) -> Tensor:
        """Loss of each pair, [N]."""
        return losses.bradley_terry(self(winner), self(loser))


class ScalarHead(RewardHead):
    """r = w . h(end token) + b: the Bradley-Terry reward model. `centre` weighs |mean reward|."""

    names = ("reward",)

    def __init__(self, width: int, centre: float) -> None:
        super().__init__()
        self.project, self.centre = nn.Linear(width, 1), centre
        nn.init.normal_(self.project.weight, std=1 / (width + 1))
        nn.init.zeros_(self.project.bias)

    def components(self, states: States) -> Tensor:
        return self.project(states.answer)

    def pair_loss(self, winner: States, loser: States) -> Tensor:
        won, lost = self(winner), self(loser)
        return losses.bradley_terry(won, lost) + self.centre * losses.centring(torch.cat([won, lost]))


class AttributeHead(RewardHead):
    """One output per named attribute, trained by regression on ratings; the reward is their sum."""

    def __init__(self, width: int, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names, self.project = names, nn.Linear(width, len(names))

    def components(self, states: States) -> Tensor:
        return self.project(states.answer)

    def rating_loss(self, states: States, ratings: Tensor) -> Tensor:
        """Loss of each rated answer, [N], from ratings [N, attributes], nan where there is none."""
        return losses.attribute_regression(self.components(states), ratings)


class MixtureHead(RewardHead):
    """K rewards and a router over the prompt that weighs them: MiCRo, or contexts z of a prompt."""

    def __init__(self, width: int, heads: int, hidden: int, entropy: float) -> None:
        super().__init__()
        self.names, self.entropy = tuple(f"head_{k}" for k in range(heads)), entropy
        self.project = nn.Linear(width, heads)
        self.router = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, heads))

    def components(self, states: States) -> Tensor:
        return self.project(states.answer)

    def log_weights(self, states: States) -> Tensor:
        """log f_k(x), [N, K]."""
        return torch.log_softmax(self.router(states.prompt), dim=-1)

    def forward(self, states: States) -> Tensor:
        return (self.log_weights(states).exp() * self.components(states)).sum(-1)

    def pair_loss(self, winner: States, loser: States) -> Tensor:
        weights = self.log_weights(winner)
        margins = self.components(winner) - self.components(loser)
        return losses.mixture(weights, margins) + self.entropy * losses.negative_entropy(weights)

    def router_loss(self, winner: States, loser: States, tau: float) -> Tensor:
        """Stage 2: cross-entropy of the router to the Hedge weights, [N]; the heads get no gradient."""
        weights = self.log_weights(winner)
        missed = losses.bradley_terry(self.components(winner), self.components(loser))
        return losses.soft_cross_entropy(weights, losses.hedge_targets(weights, missed, tau))


class IdealPointHead(RewardHead):
    """PAL-A: r_u(y) = -||f(y) - f(P softmax(w_u))|| with K prototypes P and one w_u per user."""

    names = ("reward",)

    def __init__(self, width: int, users: int, prototypes: int, dimension: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(width, dimension), nn.GELU(), nn.Linear(dimension, dimension))
        self.prototypes = nn.Parameter(torch.randn(prototypes, width))
        self.users = nn.Embedding(users, prototypes)
        nn.init.normal_(self.users.weight)  # users alike would be a saddle: what one likes the other cancels

    def components(self, states: States) -> Tensor:
        mixed = torch.softmax(self.users(states.user), dim=-1) @ self.prototypes
        return losses.ideal_point_reward(self.project(states.answer), self.project(mixed)).unsqueeze(-1)


class PrototypeHead(RewardHead):
    """PAL-B: r_u(y) = s cos(f(y), sum_k softmax(w_u)_k g_k(x)) with K prompt-dependent prototypes."""

    names = ("reward",)

    def __init__(self, width: int, users: int, prototypes: int, dimension: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(width, dimension), nn.GELU(), nn.Linear(dimension, dimension))
        self.wanted = nn.Sequential(
            nn.Linear(width, dimension), nn.GELU(), nn.Linear(dimension, prototypes * dimension)
        )
        self.users = nn.Embedding(users, prototypes)
        nn.init.normal_(self.users.weight)  # users alike would be a saddle: what one likes the other cancels
        self.log_scale = nn.Parameter(torch.zeros(()))

    def components(self, states: States) -> Tensor:
        shares = torch.softmax(self.users(states.user), dim=-1)
        each = self.wanted(states.prompt).reshape(*shares.shape, -1)
        mixed = (shares.unsqueeze(-1) * each).sum(-2)
        scale = self.log_scale.exp()
        return losses.prototype_reward(self.project(states.answer), mixed, scale).unsqueeze(-1)


@dataclass(frozen=True)
class Scalar:
    centre: float = 1e-3

    def build(self, width: int) -> RewardHead:
        return ScalarHead(width, self.centre)


@dataclass(frozen=True)
class Attributes:
    names: tuple[str, ...]

    def build(self, width: int) -> RewardHead:
        return AttributeHead(width, tuple(self.names))


@dataclass(frozen=True)
class Mixture:
    heads: int = 4
    hidden: int = 128
    entropy: float = 0.5

    def build(self, width: int) -> RewardHead:
        return MixtureHead(width, self.heads, self.hidden, self.entropy)


@dataclass(frozen=True)
class IdealPoint:
    users: int
    prototypes: int = 2
    dimension: int = 512

    def build(self, width: int) -> RewardHead:
        return IdealPointHead(width, self.users, self.prototypes, self.dimension)


@dataclass(frozen=True)
class Prototypes:
    users: int
    prototypes: int = 2
    dimension: int = 512

    def build(self, width: int) -> RewardHead:
        return PrototypeHead(width, self.users, self.prototypes, self.dimension)


HeadSpec = Scalar | Attributes | Mixture | IdealPoint | Prototypes
_KINDS: Mapping[str, type[HeadSpec]] = {
    kind.__name__: kind for kind in (Scalar, Attributes, Mixture, IdealPoint, Prototypes)
}


def spec_to_json(spec: HeadSpec) -> dict[str, Any]:
    return {"kind": type(spec).__name__, **asdict(spec)}


def spec_from_json(given: Mapping[str, Any]) -> HeadSpec:
    """Raises ValueError for a kind of head that does not exist."""
    kind = _KINDS.get(str(given.get("kind")))
    if kind is None:
        raise ValueError(
            f"reward model: unknown head {given.get('kind')!r}; expected one of {sorted(_KINDS)}"
        )
    return kind(**{name: value for name, value in given.items() if name != "kind"})
