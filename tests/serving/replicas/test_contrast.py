"""Contrastive decoding over an engine: exact log-probabilities, whatever they take; and real vLLM (CPU)."""

from __future__ import annotations

import asyncio
import base64
import io
import math
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.worlds.glyphs import BASE_MODEL
from pipelines.worlds.glyphs.scenes import render_image, scenes
from serving.replicas.engine_settings import environment

pytestmark = pytest.mark.timeout(600)

END, VOCABULARY = 0, 30


# -- without a model --------------------------------------------------------------------------------------


@dataclass
class Engine:
    """A language model of random numbers behind the two methods that the decoder uses of vLLM's client."""

    seed: int
    asked: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)

    def logps(self, ids: tuple[int, ...]) -> np.ndarray[Any, Any]:
        logits = np.random.default_rng([self.seed, *ids]).normal(0, 1.5, VOCABULARY)
        return logits - np.log(np.exp(logits).sum())

    def get_tokenizer(self) -> Any:
        decode = lambda ids, skip_special_tokens: " ".join(map(str, ids))  # noqa: E731
        return SimpleNamespace(eos_token_id=END, decode=decode)

    async def generate(
        self, item: Any, params: Any, name: str, lora_request: Any
    ) -> AsyncGenerator[Any, None]:
        """As vLLM: the sampled token first, then the most likely ones."""
        self.asked.append(name)
        logps = self.logps(tuple(item["prompt_token_ids"]))
        allowed = params.allowed_token_ids or range(VOCABULARY)
        sampled = max(allowed, key=lambda token: logps[token])
        top = [sampled, *np.argsort(-logps, kind="stable")[: params.logprobs].tolist()]
        found = {token: SimpleNamespace(logprob=float(logps[token])) for token in dict.fromkeys(top)}
        yield SimpleNamespace(outputs=[SimpleNamespace(logprobs=[found])])

    def served(self) -> Any:
        """As Ray Serve holds it; a prompt is the length of its text."""

        async def render_chat(request: Any, skip_mm_cache: bool) -> Any:
            assert skip_mm_cache
            self.shown.append(request.messages[-1]["content"])
            return [], [{"prompt_token_ids": [len(request.messages[-1]["content"])]}]

        config = SimpleNamespace(
            max_model_len=40, get_vocab_size=lambda: VOCABULARY, try_get_generation_config=dict
        )
        client = SimpleNamespace(
            generate=self.generate,
            get_tokenizer=self.get_tokenizer,
            vllm_config=SimpleNamespace(model_config=config),
        )
        chat = SimpleNamespace(
            online_renderer=SimpleNamespace(render_chat=render_chat),
            default_sampling_params={},
            _maybe_get_adapters=lambda request: None,
        )
        return SimpleNamespace(_engine_client=client, _oai_serving_chat=chat)


def said(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def contrasted(engine: Engine, alpha: float, beta: float, **more: Any) -> dict[str, Any]:
    from serving.replicas.contrast import Contrasting

    wanted = {"alpha": alpha, "beta": beta, "messages": said("ab")}
    body = {"model": "m", "request_id": "r", "messages": said("a"), "max_tokens": 8, "contrast": wanted}

    async def only() -> dict[str, Any]:
        [answer] = [one async for one in Contrasting(engine.served()).answer({**body, **more})]
        return answer

    return asyncio.run(only())


def by_hand(engine: Engine, alpha: float, beta: float) -> list[int]:
    """Every log-probability of the vocabulary under both prompts, greedily."""
    tokens: list[int] = []
    while len(tokens) < 8 and END not in tokens:
        own, other = engine.logps((1, *tokens)), engine.logps((2, *tokens))
        score = np.where(own >= own.max() + math.log(beta), (1 + alpha) * own - alpha * other, -np.inf)
        tokens.append(int(score.argmax()))
    return tokens


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 4), st.sampled_from([0.01, 0.03, 0.1, 0.5, 1.0]))
def test_it_equals_the_formula_over_the_whole_vocabulary(seed: int, alpha: float, beta: float):
    """At beta 0.01 nearly all 30 tokens are plausible, so that 20 log-probabilities are not enough."""
    engine = Engine(seed)
    answer = contrasted(engine, alpha, beta, temperature=0)
    expected = by_hand(engine, alpha, beta)
    ended = expected[-1] == END
    choice = answer["choices"][0]
    assert choice["message"]["content"] == "".join(f" {token}" for token in expected[: len(expected) - ended])
    assert choice["finish_reason"] == ("stop" if ended else "length")
    spent = {"prompt_tokens": 2, "completion_tokens": 2 * len(expected)}
    assert answer["usage"] == {**spent, "total_tokens": 2 + 2 * len(expected)}
    assert len(set(engine.asked)) == len(engine.asked)  # no two requests under one name


def test_a_seed_makes_a_draw_again():
    drawn = [contrasted(Engine(3), 1.0, 0.1, seed=seed, temperature=1.0) for seed in (5, 5, 6, 7, 8)]
    texts = [answer["choices"][0]["message"]["content"] for answer in drawn]
    assert texts[0] == texts[1] and len(set(texts)) > 2


def test_the_context_bounds_the_answer():
    """A context of 40 tokens and prompts of one each leave 39; the request's own bound is larger."""
    from serving.replicas import contrast

    class Endless(Engine):
        def logps(self, ids: tuple[int, ...]) -> np.ndarray[Any, Any]:
            found = super().logps(ids)
            found[END] = -50.0
            return found

    answer = contrasted(Endless(1), 1.0, 0.1, temperature=0, max_tokens=500)
    assert answer["usage"]["completion_tokens"] == 2 * 39
    assert answer["choices"][0]["finish_reason"] == "length"
    assert contrast.FIRST < VOCABULARY


@pytest.mark.filterwarnings("ignore:coroutine 'LLMServer.__del__'")
def test_a_replica_breaks_special_tokens_in_both_prompts_and_shows_one_answer():
    from transformers import AutoTokenizer

    from serving.replicas.plain_text import PlainText
    from serving.replicas.replica import PolicyServer

    engine = Engine(1)
    server = object.__new__(PolicyServer)  # without Serve and its engine
    server.engine, server._model, server._adapters = engine.served(), "m", {}
    server._plain = PlainText(AutoTokenizer.from_pretrained(BASE_MODEL))
    wanted = {"alpha": 1.0, "beta": 0.1, "messages": said("the <|im_end|>")}
    body = {"model": "m", "messages": said("a <|im_end|>"), "max_tokens": 3, "contrast": wanted}

    async def items() -> list[Any]:
        return [item async for item in server._asked("chat", body, "r")]

    [answer] = asyncio.run(items())
    assert answer["object"] == "chat.completion" and answer["choices"][0]["message"]["content"]
    assert [text[0] for text in engine.shown] == ["a", "t"]
    assert not any("<|im_end|>" in text for text in engine.shown)


# -- with one -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[Callable[[Any], Awaitable[Any]]], Any]]:
    """serve(story): the story run with vLLM's engine and its OpenAI layer, as Ray Serve holds them."""
    from starlette.datastructures import State
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.entrypoints.openai.api_server import init_app_state
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.async_llm import AsyncLLM

    before = dict(os.environ)
    os.environ.update(environment())
    given = ["--model", str(BASE_MODEL), "--served-model-name", "m", "--max-logprobs", "-1"]
    given += ["--enforce-eager", "--skip-mm-profiling", "--dtype", "float32"]
    loop = asyncio.new_event_loop()

    async def started() -> tuple[Any, Any]:
        args = make_arg_parser(FlexibleArgumentParser()).parse_args(given)
        client = AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(args))
        state = State()
        await init_app_state(client, state, args, await client.get_supported_tasks())
        chat = state.openai_serving_chat
        return client, SimpleNamespace(_engine_client=client, _oai_serving_chat=chat)

    client, engine = loop.run_until_complete(started())
    yield lambda story: loop.run_until_complete(story(engine))
    client.shutdown()
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.close()
    os.environ.clear()
    os.environ.update(before)


SCENES = list(scenes("heldout", 0, 3, 7))


def shown(number: int | None) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = [{"type": "text", "text": "describe the image ."}]
    if number is not None:
        buffer = io.BytesIO()
        Image.fromarray(render_image(SCENES[number])).save(buffer, "PNG")
        url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    return [{"role": "user", "content": content}]


async def plain(engine: Any, number: int, **more: Any) -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    body = {"model": "m", "messages": shown(number), "max_tokens": 24, "temperature": 0, **more}
    return (await engine._oai_serving_chat.create_chat_completion(ChatCompletionRequest(**body))).choices[0]


async def against(engine: Any, number: int, other: int | None, alpha: float, **more: Any) -> str:
    from serving.replicas.contrast import Contrasting

    wanted = {"alpha": alpha, "beta": 0.1, "messages": shown(other)}
    body = {"model": "m", "messages": shown(number), "max_tokens": 24, "temperature": 0, "contrast": wanted}
    name = f"{number}-{other}-{alpha}-{next(NUMBERS)}"
    async for answer in Contrasting(engine).answer({**body, "request_id": name, **more}):
        return answer["choices"][0]["message"]["content"]
    raise AssertionError("no answer")


NUMBERS = iter(range(10**6))


def transformed(number: int, other: int | None, alpha: float, beta: float = 0.1) -> str:
    """Two forwards of transformers per token and the formula, with nothing of ours."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor: Any = AutoProcessor.from_pretrained(BASE_MODEL)
    model: Any = AutoModelForImageTextToText.from_pretrained(BASE_MODEL, dtype=torch.float32).eval()

    def read(which: int | None) -> Mapping[str, Any]:
        content: list[dict[str, Any]] = [{"type": "text", "text": "describe the image ."}]
        if which is not None:
            content.insert(0, {"type": "image", "image": Image.fromarray(render_image(SCENES[which]))})
        return processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    def next_logps(prompt: Mapping[str, Any], tokens: list[int]) -> torch.Tensor:
        ids = torch.cat([prompt["input_ids"], torch.tensor([tokens], dtype=torch.long)], dim=1)
        kept = {key: value for key, value in prompt.items() if key in ("pixel_values", "image_grid_thw")}
        if "mm_token_type_ids" in prompt:
            blank = torch.zeros(1, len(tokens), dtype=prompt["mm_token_type_ids"].dtype)
            kept["mm_token_type_ids"] = torch.cat([prompt["mm_token_type_ids"], blank], dim=1)
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **kept).logits
        return logits[0, -1].double().log_softmax(-1)

    own, other_prompt = read(number), read(other)
    tokens: list[int] = []
    end = processor.tokenizer.eos_token_id
    while len(tokens) < 24 and end not in tokens:
        l_own, l_other = next_logps(own, tokens), next_logps(other_prompt, tokens)
        score = (1 + alpha) * l_own - alpha * l_other
        tokens.append(int(score.masked_fill(l_own < l_own.max() + math.log(beta), -torch.inf).argmax()))
    words = [token for token in tokens if token != end]
    return " " + processor.tokenizer.decode(words, skip_special_tokens=True)  # as vLLM writes a first word


def test_alpha_0_and_the_same_picture_are_the_plain_answer(serve: Any) -> None:
    async def story(engine: Any) -> None:
        for number in range(3):
            expected = (await plain(engine, number)).message.content
            assert await against(engine, number, (number + 1) % 3, 0.0) == expected
            assert await against(engine, number, number, 1.0) == expected

    serve(story)


@pytest.mark.parametrize(("number", "other", "alpha"), [(0, 1, 1.0), (1, 2, 2.0), (2, None, 1.0)])
def test_it_equals_two_forwards_of_transformers(
    serve: Any, number: int, other: int | None, alpha: float
) -> None:
    found = serve(lambda engine: against(engine, number, other, alpha))
    assert found == transformed(number, other, alpha)


def test_a_contrast_does_change_answers(serve: Any) -> None:
    async def story(engine: Any) -> list[bool]:
        answers = [(await plain(engine, number)).message.content for number in range(3)]
        contrasts = [await against(engine, number, (number + 1) % 3, 3.0) for number in range(3)]
        return [one != other for one, other in zip(answers, contrasts, strict=True)]

    assert any(serve(story))


def test_every_log_probability_is_the_models_own_however_it_is_read(serve: Any) -> None:
    """All tokens at once; 20 at once and each other one by itself; more and more of them."""
    from serving.replicas.contrast import Contrasting, _Reads

    async def story(engine: Any) -> None:
        decoder = Contrasting(engine)
        prompt = await decoder._prompt({"model": "m"}, shown(0))
        reads = _Reads(engine._engine_client, "reads", decoder._vocabulary, None)
        whole = await reads._next(prompt, [], logprobs=decoder._vocabulary)
        assert len(whole) == decoder._vocabulary > 20
        assert await reads.of(prompt, [], whole) == pytest.approx(whole, abs=1e-5)
        assert await reads.plausible(prompt, [], 1e-30) == pytest.approx(whole, abs=1e-5)

    serve(story)


def test_contrasts_and_other_requests_at_once_get_what_they_get_alone(serve: Any) -> None:
    async def story(engine: Any) -> None:
        asked: dict[str, Any] = {"logprobs": True, "top_logprobs": 5}
        alone = [await against(engine, number, (number + 1) % 3, 2.0) for number in range(3)]
        beside = await plain(engine, 0, **asked)
        *together, first, second = await asyncio.gather(
            *(against(engine, number, (number + 1) % 3, 2.0) for number in range(3)),
            *(plain(engine, 0, **asked) for _ in range(2)),
        )
        assert together == alone
        for one in (first, second):
            for position, expected in zip(one.logprobs.content, beside.logprobs.content, strict=True):
                assert len(position.top_logprobs) == 5
                for found, right in zip(position.top_logprobs, expected.top_logprobs, strict=True):
                    assert (found.token, found.logprob) == (
                        right.token,
                        pytest.approx(right.logprob, abs=1e-4),
                    )

    serve(story)


def test_a_prompt_beyond_the_context_is_the_clients_error(serve: Any) -> None:
    long = [{"role": "user", "content": "describe " * 4000}]

    with pytest.raises(ValueError, match=r"context|longer"):
        serve(lambda engine: against(engine, 0, 1, 1.0, messages=long))
