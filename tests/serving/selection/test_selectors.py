"""Selection at inference time: what is asked of replicas, what rewards see, and what clients get."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.rewards.rules import Length
from pipelines.settings_errors import SettingsError
from pipelines.types import MediaTable, Prompt, Response, Rollout, Score
from serving.gateway.errors import ApiError
from serving.limits import Limits
from serving.selection.judging import Judges, load_rewards, prompt_of
from serving.selection.selectors import Inference
from serving.wire import Answer, Refusal

Body = dict[str, Any]
CHAT: Body = {"model": "m", "messages": [{"role": "user", "content": "how many ?"}]}


class Replica:
    """Answers the k-th answer of all calls with the k-th text; three tokens of prompt, one per word."""

    def __init__(self, texts: Sequence[str], **extra: Any) -> None:
        self._texts, self._extra = iter(texts), extra
        self.asked: list[Body] = []

    async def __call__(self, body: Body) -> Answer | Refusal:
        self.asked.append(body)
        texts = [next(self._texts) for _ in range(body.get("n", 1))]
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
                **({"token_ids": list(range(len(text.split())))} if body.get("return_token_ids") else {}),
                **self._extra,
            }
            for i, text in enumerate(texts)
        ]
        spent = sum(len(text.split()) for text in texts)
        usage = {"prompt_tokens": 3, "completion_tokens": spent, "total_tokens": 3 + spent}
        answer = {"object": "chat.completion", "prompt_token_ids": [1, 2], "choices": choices, "usage": usage}
        return Answer(version="v-1", replica="r", body=answer)


class Seen:
    """Scores by the pictures and the prompt, and keeps what it was shown."""

    def __init__(self) -> None:
        self.media: MediaTable = {}
        self.prompts: list[Prompt] = []

    async def group(self, rollouts: Sequence[Rollout], media: MediaTable) -> list[Score]:
        self.media, self.prompts = media, [rollout.prompt for rollout in rollouts]
        return [Score(value=float(len(rollout.response.text))) for rollout in rollouts]


class Parts:
    """A vector reward: 'helpful:brief' in the text are its parts."""

    def __call__(self, prompt: Prompt, response: Response) -> Score:
        helpfulness, brevity = map(float, response.text.split(":"))
        return Score(value=0.0, parts={"helpfulness": helpfulness, "brevity": brevity})


def fails(prompt: Prompt, response: Response) -> Score:
    raise RuntimeError("/secret/path")


def some(prompt: Prompt, response: Response) -> Score:
    if "?" in response.text:
        return Score(value=None, missing="no_idea")
    return Score(value=-1.0)


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def selectors(seen: Seen) -> Iterator[Inference]:
    hold = threading.Event()

    def blocks(prompt: Prompt, response: Response) -> Score:
        hold.wait()
        return Score(value=1.0)

    rewards = {
        "length": Length(),
        "seen": seen,
        "parts": Parts(),
        "fails": fails,
        "some": some,
        "blocks": blocks,
    }
    judges = Judges(rewards, timeout_s=0.5)
    yield Inference(judges, Limits(n=6), undamaged)
    hold.set()
    judges.close()


async def undamaged(urls: Sequence[str], name: str, amount: float | None, seed: int) -> list[str]:
    return list(urls)


def run(selectors: Inference, options: Mapping[str, Any], replica: Any, body: Body = CHAT) -> Answer:
    answer = attempt(selectors, options, replica, body)
    assert isinstance(answer, Answer), answer
    return answer


def attempt(
    selectors: Inference, options: Mapping[str, Any], replica: Any, body: Body = CHAT
) -> Answer | Refusal:
    selectors.check(options, body)
    return asyncio.run(selectors.run(options, body, replica))


def test_best_of_n_asks_once_and_gives_the_best_with_what_all_cost(selectors: Inference):
    """Lengths 1, 3, 2: the second is the longest; 3 prompt and 6 answer tokens were spent."""
    replica = Replica(["a", "a b c", "a b"])
    answer = run(selectors, {"best_of": {"n": 3, "reward": "length"}}, replica)
    assert replica.asked == [{**CHAT, "n": 3, "return_token_ids": True}]
    assert answer.version == "v-1"
    [choice] = answer.body["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": "a b c"},
        "finish_reason": "stop",
    }
    assert answer.body["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}
    assert answer.body["plumbline"] == {
        "selector": "best_of",
        "reward": "length",
        "scores": [1.0, 3.0, 2.0],
        "chosen": 1,
        "of": 3,
    }
    assert "prompt_token_ids" not in answer.body


def test_among_equal_rewards_the_first_answer_is_taken(selectors: Inference):
    answer = run(selectors, {"best_of": {"n": 3, "reward": "length"}}, Replica(["a", "b c", "d e"]))
    assert answer.body["choices"][0]["message"]["content"] == "b c"


def test_consensus_takes_the_answer_most_like_the_others(selectors: Inference):
    """Jaccard of 'a b' and 'a b c' is 2/3, of either and 'x' 0: two tie, and the first of them is taken."""
    replica = Replica(["x", "a b", "a b c"])
    answer = run(selectors, {"consensus": {"n": 3}}, replica)
    assert answer.body["plumbline"] == {
        "selector": "consensus",
        "similarity": "jaccard",
        "chosen": 1,
        "of": 3,
    }
    assert replica.asked == [{**CHAT, "n": 3}]


def test_neighbourhood_tells_each_answer_its_direction_and_the_wanted_one_chooses(selectors: Inference):
    """v* = (1, 0): the third answer reaches furthest along it, whatever its brevity."""
    replica = Replica(["1:9", "2:9", "3:0"])
    wish = {"direction": {"helpfulness": 2.0, "brevity": 0.0}, "reward": "parts", "k": 3}
    answer = run(selectors, {"neighbourhood": wish}, replica, {**CHAT, "seed": 5})
    told = [body["messages"][0]["content"] for body in replica.asked]
    assert told[0] == "how many ? helpfulness: 100. brevity: 0."
    assert len(set(told)) == 3
    assert [body["seed"] for body in replica.asked] == [5, 6, 7]
    assert answer.body["choices"][0]["message"]["content"] == "3:0"
    assert answer.body["usage"]["prompt_tokens"] == 9
    assert answer.body["plumbline"]["scores"][0] == {"helpfulness": 1.0, "brevity": 9.0}


def test_neighbourhood_without_an_angle_tells_all_the_same(selectors: Inference):
    wish = {"direction": {"helpfulness": 1, "brevity": 1}, "reward": "parts", "k": 2, "degrees": 0}
    replica = Replica(["1:1", "0:3"])
    answer = run(selectors, {"neighbourhood": wish}, replica)
    assert len({body["messages"][0]["content"] for body in replica.asked}) == 1
    assert answer.body["plumbline"]["chosen"] == 1  # 2 / sqrt 2 against 3 / sqrt 2


def data_url(pixels: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def looking(url: str, kind: str = "image_url") -> Body:
    parts = [{"type": kind, kind: {"url": url}}, {"type": "text", "text": "what ?"}]
    return {"model": "m", "messages": [{"role": "user", "content": parts}]}


def test_the_reward_sees_the_pixels_that_the_engine_gets(selectors: Inference, seen: Seen):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    body = looking(data_url(pixels))
    replica = Replica(["a", "b"])
    run(selectors, {"best_of": {"n": 2, "reward": "seen"}}, replica, body)
    [asked] = replica.asked
    assert asked["messages"] == body["messages"]
    [(digest, picture)] = seen.media.items()
    np.testing.assert_array_equal(picture.payload, pixels)
    assert all(prompt.media == (digest,) for prompt in seen.prompts)


def test_the_reward_judges_what_was_asked_not_what_a_direction_told(selectors: Inference, seen: Seen):
    wish = {"direction": {"helpfulness": 1, "brevity": 0}, "reward": "seen", "k": 2}
    answer = attempt(selectors, {"neighbourhood": wish}, Replica(["a", "b"]))
    assert [prompt.messages[-1].parts[0].text for prompt in seen.prompts] == ["how many ?"] * 2
    assert isinstance(answer, Refusal)  # its scores have no parts
    assert answer.code == "reward_failed"
    assert "helpfulness, brevity" in answer.message


@pytest.mark.parametrize(("reward", "reason"), [("fails", "reward_raised"), ("blocks", "reward_timed_out")])
def test_a_reward_that_fails_is_an_error_by_name_without_its_words(
    selectors: Inference, reward: str, reason: str
):
    refusal = attempt(selectors, {"best_of": {"n": 2, "reward": reward}}, Replica(["a", "b"]))
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.code) == (503, "reward_failed")
    assert reason in refusal.message
    assert "secret" not in refusal.message


def test_an_answer_without_a_score_is_neither_chosen_nor_zero(selectors: Inference):
    """A missing score would win over -1 if it counted as 0."""
    answer = run(selectors, {"best_of": {"n": 2, "reward": "some"}}, Replica(["a ?", "b"]))
    assert answer.body["plumbline"]["scores"] == [None, -1.0]
    assert answer.body["choices"][0]["message"]["content"] == "b"


def test_a_replica_that_does_not_tell_its_tokens_is_an_error(selectors: Inference):
    refusal = attempt(
        selectors, {"best_of": {"n": 2, "reward": "length"}}, Replica(["a", "b"], token_ids=None)
    )
    assert isinstance(refusal, Refusal)
    assert refusal.code == "no_tokens"


def test_a_refusal_of_the_replica_is_handed_on(selectors: Inference):
    refusal = Refusal(status=503, code="swapping", message="try again")

    async def busy(body: Body) -> Answer | Refusal:
        return refusal

    for options in (
        {"best_of": {"n": 2, "reward": "length"}},
        {"consensus": {"n": 2}},
        {"neighbourhood": {"direction": {"a": 1, "b": 1}, "reward": "parts"}},
    ):
        assert attempt(selectors, options, busy) is refusal


@pytest.mark.parametrize(
    ("options", "param", "says"),
    [
        ({"best_of": {"n": 1, "reward": "length"}}, "plumbline.best_of.n", "2"),
        ({"best_of": {"n": 7, "reward": "length"}}, "plumbline.best_of.n", "at most 6"),
        ({"best_of": {"n": "3", "reward": "length"}}, "plumbline.best_of.n", "integer"),
        ({"best_of": {"n": 3}}, "plumbline.best_of.reward", "missing"),
        ({"best_of": None}, "plumbline.best_of", "null"),
        ({"best_of": {"n": 3, "reward": "os:system"}}, "plumbline.best_of.reward", "match"),
        ({"best_of": {"n": 3, "reward": "other"}}, "plumbline.best_of.reward", "blocks, fails, length"),
        ({"consensus": {"n": 3, "similarity": "cosine"}}, "plumbline.consensus.similarity", "jaccard"),
        ({"consensus": {"n": 3, "k": 3}}, "plumbline.consensus.k", "unknown"),
        ({"consensus": {"n": 3}, "best_of": {"n": 3, "reward": "length"}}, "plumbline", "one selector"),
        ({"beam": {"n": 3}}, "plumbline.beam", "unknown"),
        (
            {"neighbourhood": {"direction": {"a": 0, "b": 0}, "reward": "parts"}},
            "plumbline.neighbourhood",
            "length",
        ),
        (
            {"neighbourhood": {"direction": {"a": 1}, "reward": "parts"}},
            "plumbline.neighbourhood",
            "at least 2 parts",
        ),
        (
            {"neighbourhood": {"direction": {"a": 1, "b": 1}, "reward": "parts", "k": 9}},
            "plumbline.neighbourhood.k",
            "at most 6",
        ),
    ],
)
def test_options_that_cannot_be_used_are_named(
    selectors: Inference, options: Mapping[str, Any], param: str, says: str
):
    with pytest.raises(ApiError) as caught:
        selectors.check(options, CHAT)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("field", "value"), [("n", 2), ("temperature", 0.0), ("tools", [{"type": "function"}])]
)
def test_bodies_that_leave_no_choice_are_named(selectors: Inference, field: str, value: Any):
    with pytest.raises(ApiError) as caught:
        selectors.check({"consensus": {"n": 3}}, {**CHAT, field: value})
    assert caught.value.param == field


def test_a_reward_cannot_be_asked_about_sound():
    with pytest.raises(ApiError) as caught:
        prompt_of(looking("data:audio/wav;base64,AAAA", "audio_url"))
    assert caught.value.param == "messages[0].content[0]"


def test_rewards_are_loaded_by_the_names_of_the_settings(tmp_path: Path):
    own = tmp_path / "own.py"
    own.write_text("def words(prompt, response, row):\n    return len(response.split())\n")
    rewards = load_rewards({"mine": f"{own}:words", "length": "pipelines.rewards.rules:Length"})
    selectors = Inference(Judges(rewards, 5.0), Limits(), undamaged)
    for name in ("mine", "length"):
        answer = run(selectors, {"best_of": {"n": 2, "reward": name}}, Replica(["a", "b c"]))
        assert answer.body["plumbline"]["scores"] == [1.0, 2.0]
    with pytest.raises(SettingsError, match=r"selectors\.rewards\.gone"):
        load_rewards({"gone": f"{own}:gone"})
