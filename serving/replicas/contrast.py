"""Contrastive decoding over an engine that reads one prompt per request.

A logits processor inside the engine would need the rows of both prompts in every step, which the scheduler
does not promise. So tokens are chosen here, and the engine is asked for one at a time: the log-probabilities
behind each prompt and the answer so far, whose beginning it finds in its prefix cache.

All of them are exact. Behind the original the most likely tokens are asked for, more and more of them until
one is implausible. A plausible token that is not among the most likely ones behind the damaged prompt is read
by allowing nothing else there, since the engine reports log-probabilities of before such masks.
(`logprob_token_ids` is made for that, but vLLM 0.32 then spoils those of other requests in the same step.)
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any

from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest

from pipelines.decoding import Contrast
from serving.replicas.next_token import Logps, chosen, plausible

FIRST = 20  # log-probabilities that are asked for at first
GROWTH = 8
LENGTHS = ("max_tokens", "max_completion_tokens")


class Contrasting:
    """Answers chats that hold `contrast`: alpha, beta, and the messages that count against the answer.

    Args:
        engine: Serve's engine, whose client is vLLM's.
    """

    def __init__(self, engine: Any) -> None:
        self._client, self._chat = engine._engine_client, engine._oai_serving_chat
        self._tokenizer = self._client.get_tokenizer()
        config = self._client.vllm_config.model_config
        self._longest, self._vocabulary = config.max_model_len, config.get_vocab_size()
        self._ends = frozenset(_ends(self._tokenizer, config))

    async def answer(self, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """One chat completion. Its usage counts both prompts, and every token under each of them.

        Raises ValueError for a prompt that the model cannot take.
        """
        wanted = body["contrast"]
        law = Contrast(alpha=wanted["alpha"], cutoff=wanted["beta"])
        own, other = [await self._prompt(body, one["messages"]) for one in (body, wanted)]
        most = self._longest - max(len(own["prompt_token_ids"]), len(other["prompt_token_ids"]))
        if most < 1:
            raise ValueError("the prompt is too long for the model's context length")
        defaults = self._chat.default_sampling_params
        asked = (given[name] for given in (body, defaults) for name in LENGTHS if name in given)
        most = min(most, *asked)  # the least of all, as for vLLM
        adapter = self._chat._maybe_get_adapters(_request(body, body["messages"]))
        reads = _Reads(self._client, body["request_id"], self._vocabulary, adapter)
        temperature, top_p = (body.get(name, defaults.get(name, 1.0)) for name in ("temperature", "top_p"))
        uniforms = random.Random(body.get("seed"))
        tokens: list[int] = []
        while len(tokens) < most and not (tokens and tokens[-1] in self._ends):
            candidates = await reads.plausible(own, tokens, law.cutoff)
            against = await reads.of(other, tokens, candidates) if len(candidates) > 1 else candidates
            uniform = uniforms.random()
            tokens.append(
                chosen(candidates, against, law, temperature=temperature, top_p=top_p, uniform=uniform)
            )
        yield self._completion(body, (own, other), tokens)

    async def _prompt(self, body: Mapping[str, Any], messages: Sequence[Any]) -> dict[str, Any]:
        """The engine's own input for the chat, as it makes it for any other request.

        With all data of the media: the same input goes to the engine many times, which its cache of media
        already sent is not made for.
        """
        request = _request(body, messages)
        try:
            rendered = await self._chat.online_renderer.render_chat(request, skip_mm_cache=True)
        except Exception as error:
            rendered = self._chat.create_error_response(error)  # which knows whose fault it is
        if isinstance(rendered, tuple):
            _, [prompt] = rendered
            return prompt
        kind = ValueError if rendered.error.code < 500 else RuntimeError
        raise kind(rendered.error.message)

    def _completion(
        self, body: Mapping[str, Any], prompts: Sequence[Mapping[str, Any]], tokens: list[int]
    ) -> dict[str, Any]:
        ended = tokens[-1] in self._ends
        text = self._text(prompts[0]["prompt_token_ids"], tokens[: len(tokens) - ended])
        spent = {
            "prompt_tokens": sum(len(prompt["prompt_token_ids"]) for prompt in prompts),
            "completion_tokens": len(prompts) * len(tokens),
        }
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop" if ended else "length",
        }
        return {
            "id": body["request_id"],
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body["model"],
            "choices": [choice],
            "usage": {**spent, "total_tokens": sum(spent.values())},
        }

    def _text(self, prompt: list[int], tokens: list[int]) -> str:
        """What the tokens add to the prompt, as vLLM reads them: a first word keeps its space."""
        before, whole = (
            self._tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, [*prompt, *tokens])
        )
        return whole[len(before) :]


class _Reads:
    """Log-probabilities of the next token, each the first of a request of its own."""

    def __init__(self, client: Any, request_id: str, vocabulary: int, adapter: Any) -> None:
        self._client, self._id, self._vocabulary, self._adapter = client, request_id, vocabulary, adapter
        self._count = itertools.count()

    async def plausible(self, prompt: Mapping[str, Any], answer: Sequence[int], cutoff: float) -> Logps:
        """All tokens with p >= cutoff * max p."""
        count = min(FIRST, self._vocabulary)
        while True:
            found = await self._next(prompt, answer, logprobs=count)
            kept = plausible(found, cutoff)
            if len(kept) < len(found) or count == self._vocabulary:
                return kept
            count = min(GROWTH * count, self._vocabulary)

    async def of(self, prompt: Mapping[str, Any], answer: Sequence[int], tokens: Iterable[int]) -> Logps:
        """The log-probabilities of at least these tokens."""
        found = await self._next(prompt, answer, logprobs=min(FIRST, self._vocabulary))
        forced = [
            self._next(prompt, answer, logprobs=0, allowed_token_ids=[token])
            for token in tokens
            if token not in found
        ]
        for one in await asyncio.gather(*forced):
            found |= one
        return found

    async def _next(self, prompt: Mapping[str, Any], answer: Sequence[int], **asked: Any) -> Logps:
        request = CompletionRequest(prompt=".", temperature=0, **asked)  # a way to vLLM's parameters
        params = request.to_sampling_params(1, {})
        params.detokenize = False
        item = {**prompt, "prompt_token_ids": [*prompt["prompt_token_ids"], *answer]}
        last = None
        name = f"{self._id}-{next(self._count)}"
        async for output in self._client.generate(item, params, name, lora_request=self._adapter):
            last = output
        if last is None or not last.outputs[0].logprobs:
            raise RuntimeError("the engine gave no log-probabilities")
        return {token: entry.logprob for token, entry in last.outputs[0].logprobs[0].items()}


def _request(body: Mapping[str, Any], messages: Sequence[Any]) -> ChatCompletionRequest:
    lengths = {name: body[name] for name in LENGTHS if name in body}
    return ChatCompletionRequest(model=body["model"], messages=list(messages), **lengths)


def _ends(tokenizer: Any, config: Any) -> list[int]:
    """Tokens that end an answer, as vLLM finds them."""
    given = config.try_get_generation_config().get("eos_token_id")
    several = given if isinstance(given, list) else [given]
    return [token for token in (tokenizer.eos_token_id, *several) if token is not None]
