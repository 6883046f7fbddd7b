"""Reward models: a text or vision-language backbone with a head, its trainer, and the reward it makes.

On disk: the backbone and its processor in Hugging Face layout, `reward_head.safetensors`, and `reward.json`
with the kind of head and what is said in front of every conversation.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from actors.forward import Row, collate, last_hidden, without_dropout
from actors.processing import Processing
from pipelines.checkpoint import NotACheckpoint
from pipelines.rewards.models.heads import (
    AttributeHead,
    HeadSpec,
    MixtureHead,
    RewardHead,
    Scalar,
    States,
    spec_from_json,
    spec_to_json,
)
from pipelines.rewards.models.losses import plackett_luce, scorer_dpo, skip_wise
from pipelines.rewards.models.training import Fit, History, fit
from pipelines.rewards.prompts import WithContext
from pipelines.rewards.threads import WorkFailed, in_thread
from pipelines.types import MediaTable, Prompt, Rollout, Score

HEAD_FILE, DESCRIPTION = "reward_head.safetensors", "reward.json"


@dataclass(frozen=True, kw_only=True)
class Answered:
    """An answer to judge: the prompt with its media, the answer as text, and whose preference counts."""

    prompt: Prompt
    media: MediaTable
    text: str
    user: int = 0


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A labelled comparison."""

    winner: Answered
    loser: Answered


@dataclass(frozen=True, kw_only=True)
class Rated:
    """An answer with ratings, attribute -> number; attributes nobody rated are absent."""

    answer: Answered
    ratings: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Answers to one prompt from best to worst, and their ratings, of which at least two differ."""

    answers: tuple[Answered, ...]
    labels: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.answers) != len(self.labels) or len(self.answers) < 2:
            raise ValueError(
                f"Ranking: expected one label for each of at least 2 answers, got {len(self.labels)} labels "
                f"for {len(self.answers)} answers"
            )
        falls = all(better >= worse for better, worse in pairwise(self.labels))
        if not falls or self.labels[0] == self.labels[-1]:
            raise ValueError(
                f"Ranking: expected labels from best to worst that are not all alike, got {self.labels}"
            )


class RewardModel(nn.Module):
    """Scores answers from the state of the end-of-sequence token behind them.

    `context`: a system message in front of every conversation, in place of its own ("" for WorldPM's empty
    one, a criterion for a context-conditioned model); None leaves conversations as they are.
    """

    def __init__(
        self, backbone: Any, processing: Processing, spec: HeadSpec, context: str | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head: RewardHead = spec.build(processing.text_config.hidden_size)
        self.processing, self.spec, self.context = processing, spec, context
        self._end = int(processing.tokenizer.eos_token_id)
        without_dropout(self)

    @classmethod
    def start(
        cls, base: str | Path, spec: HeadSpec | None = None, *, context: str | None = None, seed: int = 0
    ) -> RewardModel:
        """A new head on the backbone of a checkpoint: text-only causal, or vision-language (Qwen2.5-VL).

        Raises `NotACheckpoint`.
        """
        torch.manual_seed(seed)
        return cls(_backbone(base), Processing(base), spec or Scalar(), context)

    @classmethod
    def load(cls, path: str | Path) -> RewardModel:
        """What `save` wrote. Raises `NotACheckpoint` for other folders, naming what is wrong."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(path)
        for needed in (DESCRIPTION, HEAD_FILE):
            if not (folder / needed).is_file():
                raise NotACheckpoint(
                    f"reward model {str(folder)!r}: expected a folder of RewardModel.save, found no {needed}"
                )
        try:
            said = json.loads((folder / DESCRIPTION).read_text())
            spec = spec_from_json(said["head"])
            model = cls(_backbone(folder), Processing(folder), spec, said["context"])
            model.head.load_state_dict(load_file(folder / HEAD_FILE))
        except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise NotACheckpoint(f"reward model {str(folder)!r}: it does not load: {error}") from error
        return model.eval()

    def save(self, path: str | Path) -> None:
        """Write the folder that `load` reads, from scratch."""
        from safetensors.torch import save_file

        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        self.backbone.save_pretrained(folder)
        for file in self.processing.path.iterdir():  # tokenizer, processor and chat template, unchanged
            if file.suffix in (".json", ".jinja", ".txt", ".model") and not (folder / file.name).exists():
                shutil.copy(file, folder / file.name)
        save_file({k: v.contiguous() for k, v in self.head.state_dict().items()}, folder / HEAD_FILE)
        said = {"head": spec_to_json(self.spec), "context": self.context}
        (folder / DESCRIPTION).write_text(json.dumps(said, indent=2) + "\n")

    # -- scoring --------------------------------------------------------------------------------------------

    def rows(self, answers: Sequence[Answered]) -> list[Row]:
        """Token ids and pixels; answers to one prompt share one encoding. Raises ValueError, `TooLong`."""
        encoded: dict[str, Any] = {}
        rows: list[Row] = []
        for answer in answers:
            prompt = answer.prompt if self.context is None else WithContext(self.context)(answer.prompt)
            where = f"prompt {prompt.id!r} for the reward model"
            if prompt.digest not in encoded:
                encoded[prompt.digest] = self.processing.encode(prompt, answer.media)
            self.processing.check_text(answer.text, where)
            ids = self.processing.tokenizer(answer.text, add_special_tokens=False)["input_ids"]
            self.processing.require_fit(len(encoded[prompt.digest].input_ids), len(ids) + 1, where)
            rows.append(Row(encoded[prompt.digest], (*ids, self._end)))
        return rows

    def states(self, rows: Sequence[Row], users: Sequence[int]) -> States:
        device = next(self.head.parameters()).device
        hidden = last_hidden(self.backbone, collate(rows, self.processing).to(device)).float()
        index = torch.arange(len(rows), device=device)
        asked = torch.tensor([len(row.encoded.input_ids) for row in rows], device=device)
        said = torch.tensor([len(row.tokens) for row in rows], device=device)
        user = torch.tensor(list(users), device=device)
        return States(hidden[index, asked - 1], hidden[index, asked + said - 1], user)

    def pairs(self, pairs: Sequence[Pair]) -> tuple[States, States]:
        """States of winners and losers, from one forward."""
        answers = [pair.winner for pair in pairs] + [pair.loser for pair in pairs]
        states = self.states(self.rows(answers), [answer.user for answer in answers])
        halves = (slice(None, len(pairs)), slice(len(pairs), None))
        won, lost = (States(states.prompt[h], states.answer[h], states.user[h]) for h in halves)
        return won, lost

    @torch.no_grad()
    def score(self, answers: Sequence[Answered]) -> tuple[Tensor, Tensor]:
        """Rewards [N] and their components [N, names of the head]."""
        states = self.states(self.rows(answers), [answer.user for answer in answers])
        return self.head(states), self.head.components(states)

    # -- training -------------------------------------------------------------------------------------------

    def fit(
        self,
        pairs: Sequence[Pair],
        held_out: Sequence[Pair],
        how: Fit,
        loss: Callable[[States, States], Tensor] | None = None,
    ) -> History:
        """Train on comparisons, with the head's own loss or another one on (winners, losers)."""
        own = loss or self.head.pair_loss
        return fit(self, lambda batch: own(*self.pairs(batch)), self.accuracy, pairs, held_out, how)

    def fit_ratings(self, rated: Sequence[Rated], held_out: Sequence[Rated], how: Fit) -> History:
        """Train an `Attributes` head by regression; the held-out measure is minus its loss."""
        head = self.head
        if not isinstance(head, AttributeHead):
            raise TypeError(f"ratings train an Attributes head, this model has {self.spec!r}")

        def losses(batch: Sequence[Rated]) -> Tensor:
            answers = [item.answer for item in batch]
            states = self.states(self.rows(answers), [answer.user for answer in answers])
            table = [[item.ratings.get(name, float("nan")) for name in head.names] for item in batch]
            return head.rating_loss(states, torch.tensor(table, device=states.answer.device))

        return fit(self, losses, lambda items: -float(losses(items).mean()), rated, held_out, how)

    def fit_ranking(
        self,
        lists: Sequence[Ranking],
        held_out: Sequence[Ranking],
        how: Fit,
        *,
        skip: int = 2,
        skip_weight: float = 0.5,
        least_gap: float = 0.0,
    ) -> History:
        """RankList: Plackett-Luce of each list plus `skip_weight` times the loss of pairs up to `skip` apart.

        That reach grows from 1 to `skip` in equal parts of `how.steps`; pairs whose labels differ by less
        than `least_gap` are left out of it. The held-out measure is `concordance`.
        """
        taken = count()

        def losses(batch: Sequence[Ranking]) -> Tensor:
            scores, labels = self._listed(batch)
            reach = 1 + next(taken) * skip // how.steps
            local = skip_wise(scores, labels, reach, least_gap)
            return plackett_luce(scores, ~labels.isnan()) + skip_weight * local

        return fit(self, losses, self.concordance, lists, held_out, how)

    def fit_reranker(
        self, pairs: Sequence[Pair], held_out: Sequence[Pair], how: Fit, beta: float = 0.1
    ) -> History:
        """FinSage: DPO of the scores, towards the gold chunk of a query and away from hard negatives.

        A pair has the query as prompt, its gold chunk as the winner and one negative as the loser. The
        reference is this model as it is now. The held-out measure is `accuracy`.
        """

        def losses(batch: Sequence[tuple[Pair, Tensor]]) -> Tensor:
            won, lost = self.pairs([pair for pair, _ in batch])
            before = torch.stack([reference for _, reference in batch])
            return scorer_dpo(self.head(won), self.head(lost), before[:, 0], before[:, 1], beta)

        def measure(items: Sequence[tuple[Pair, Tensor]]) -> float:
            return self.accuracy([pair for pair, _ in items])

        return fit(self, losses, measure, self._before(pairs), self._before(held_out), how)

    @torch.no_grad()
    def _before(self, pairs: Sequence[Pair]) -> list[tuple[Pair, Tensor]]:
        """Each pair with its present rewards, [2]."""
        return [(pair, self.score([pair.winner, pair.loser])[0]) for pair in pairs]

    def _listed(self, lists: Sequence[Ranking]) -> tuple[Tensor, Tensor]:
        """Rewards and labels [N, longest list]; labels are nan at padding."""
        answers = [answer for ranking in lists for answer in ranking.answers]
        rewards = self.head(self.states(self.rows(answers), [answer.user for answer in answers]))
        scores = rewards.split([len(ranking.answers) for ranking in lists])
        labels = [rewards.new_tensor(ranking.labels) for ranking in lists]
        return pad_sequence(scores, True), pad_sequence(labels, True, float("nan"))

    def fit_router(self, pairs: Sequence[Pair], held_out: Sequence[Pair], how: Fit, tau: float) -> History:
        """MiCRo's second stage: the router alone, towards the Hedge weights, on few labelled pairs."""
        head = self.head
        if not isinstance(head, MixtureHead):
            raise TypeError(f"only a Mixture head has a router, this model has {self.spec!r}")
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        for name, parameter in self.named_parameters():
            parameter.requires_grad = name.startswith("head.router.")
        try:
            return self.fit(pairs, held_out, how, lambda won, lost: head.router_loss(won, lost, tau))
        finally:
            for name, parameter in self.named_parameters():
                parameter.requires_grad = name in trained

    def freeze_backbone(self) -> RewardModel:
        """Train the head alone from now on."""
        self.backbone.requires_grad_(False)
        return self

    @torch.no_grad()
    def accuracy(self, pairs: Sequence[Pair], batch: int = 64) -> float:
        """Share of pairs whose winner scores strictly higher."""
        right = 0
        for start in range(0, len(pairs), batch):
            won, lost = self.pairs(pairs[start : start + batch])
            right += int((self.head(won) > self.head(lost)).sum())
        return right / len(pairs)

    @torch.no_grad()
    def concordance(self, lists: Sequence[Ranking]) -> float:
        """Share of the pairs with different labels that are scored in their order, list by list."""
        right: list[Tensor] = []
        for ranking in lists:
            scores, labels = self._listed([ranking])
            differ = labels[0, :, None] > labels[0]
            right.append((scores[0, :, None] > scores[0])[differ])
        return float(torch.cat(right).float().mean())


def _backbone(path: str | Path) -> Any:
    from transformers import AutoModel

    try:
        return AutoModel.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise NotACheckpoint(f"reward model {str(path)!r}: its backbone does not load: {error}") from error


class Trained:
    """The reward of a saved model, for whole groups in one forward; loaded when it first judges.

    Parts are the head's components where it has several. `user`: the gold column with the user's number, for
    heads that know users; without it user 0 is meant. The forward runs in a thread, one group at a time.
    """

    def __init__(self, path: str | Path, *, device: str = "cpu", user: str | None = None) -> None:
        self._path, self._device, self._user = Path(path), device, user
        self._model: RewardModel | None = None
        self._turn = asyncio.Lock()

    async def group(self, rollouts: Sequence[Rollout], media: MediaTable) -> Sequence[Score]:
        async with self._turn:
            try:
                return await in_thread(lambda: self._scores(rollouts, media))
            except WorkFailed as failure:
                raise RuntimeError(f"reward model {str(self._path)!r}: {failure}") from failure

    def _scores(self, rollouts: Sequence[Rollout], media: MediaTable) -> list[Score]:
        if self._model is None:
            self._model = RewardModel.load(self._path).to(self._device)
        users = [int(r.prompt.gold[self._user]) if self._user is not None else 0 for r in rollouts]
        answers = [
            Answered(prompt=r.prompt, media=media, text=r.response.text, user=user)
            for r, user in zip(rollouts, users, strict=True)
        ]
        rewards, components = self._model.score(answers)
        names = self._model.head.names
        return [
            Score(value=value, parts=dict(zip(names, row, strict=True)) if len(names) > 1 else {})
            for value, row in zip(rewards.tolist(), components.tolist(), strict=True)
        ]
