"""What a real engine does on a checkpoint, beside a Hugging Face forward of the same weights.

`python generator_scenarios.py MODEL` runs every scenario on one engine and prints its facts as JSON;
test_generator.py judges them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from generator_answers import MORE
from generator_syncs import SYNCS

PICTURE_SIDE = 64
Facts = dict[str, Any]


class Bench:
    """One generator, the learner's side as a plain model, and prompts to show them."""

    def __init__(self, path: str) -> None:
        import torch
        from transformers import AutoModelForImageTextToText

        from actors.generator import Decoding, Generator
        from actors.processing import Processing
        from pipelines.settings import EngineSettings

        torch.manual_seed(0)
        self.processing = Processing(path)
        self.model: Any = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32)
        settings = EngineSettings(max_model_len=512, kv_cache_gib=0.25, timeout_s=60)
        self.generator = Generator("bench", path, settings, Decoding(max_tokens=12), seed=1)
        self.weights: dict[int, dict[str, np.ndarray]] = {}
        self.canaries = (self.canary(0, True), self.canary(0, False))

    def prompt(
        self, number: int, picture: bool = True, text: str = "describe the image ."
    ) -> tuple[Any, Any]:
        from pipelines.types import Media, Message, Part, Prompt

        pixels = np.random.default_rng(number).integers(
            0, 255, (PICTURE_SIDE, PICTURE_SIDE, 3), dtype=np.uint8
        )
        media = Media(kind="image", space="rgb8", payload=pixels)
        shown = (Part(kind="image", digest=media.digest),) if picture else ()
        message = Message(role="user", parts=(*shown, Part(kind="text", text=text)))
        return Prompt(id=f"p{number}", messages=(message,)), {media.digest: media} if picture else {}

    def canary(self, number: int, picture: bool) -> Any:
        from pipelines.types import Canary

        prompt, media = self.prompt(number, picture)
        answer = self.processing.tokenizer("a red seven top left .", add_special_tokens=False)["input_ids"]
        return Canary(prompt=prompt, media=media, tokens=tuple(answer))

    def logps(self, prompt: Any, media: Any, tokens: tuple[int, ...]) -> list[float]:
        """Log-probability of each answer token by the Hugging Face forward."""
        import torch

        logits, start = self.logits(prompt, media, tokens)
        with torch.no_grad():
            return [float(logits[start + i, token]) for i, token in enumerate(tokens)]

    def logits(self, prompt: Any, media: Any, tokens: tuple[int, ...]) -> tuple[Any, int]:
        import torch

        encoded = self.processing.encode(prompt, media)
        ids = torch.tensor([[*encoded.input_ids, *tokens]])
        extra: dict[str, Any] = {}
        if encoded.pixel_values is not None:
            extra = {
                "pixel_values": encoded.pixel_values,
                "image_grid_thw": encoded.image_grid_thw,
                "mm_token_type_ids": (ids == self.processing.image_token).int(),
            }
        with torch.no_grad():
            logits = self.model(input_ids=ids, **extra).logits[0]
        return logits.log_softmax(-1), len(encoded.input_ids) - 1

    def publish(self, number: int) -> tuple[Any, dict[str, np.ndarray]]:
        from actors.proof import tensor_digest
        from pipelines.types import WeightVersion

        state = {k: v for k, v in self.model.state_dict().items() if k != "lm_head.weight"}
        arrays = {name: tensor.detach().numpy().copy() for name, tensor in state.items()}
        for array in arrays.values():
            array.flags.writeable = False  # as they come out of shared memory
        self.weights[number] = arrays
        version = WeightVersion(
            attempt=1,
            number=number,
            step=number,
            stream="policy",
            manifest={name: tensor_digest(array) for name, array in arrays.items()},
            canary=tuple(sum(self.logps(c.prompt, c.media, c.tokens)) for c in self.canaries),
        )
        return version, arrays

    def restore(self, number: int) -> None:
        import torch

        state = {name: torch.from_numpy(array.copy()) for name, array in self.weights[number].items()}
        self.model.load_state_dict(state, strict=False)

    def move(self, size: float) -> None:
        """A change of every weight, as large as one step of AdamW with that learning rate."""
        import torch

        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(size * torch.sign(torch.randn_like(parameter)))


# -- scenarios ---------------------------------------------------------------------------------------------


async def before_any_version(bench: Bench) -> Facts:
    texts = await bench.generator.greedy([bench.prompt(i) for i in range(3)], max_tokens=4)
    return {"version": bench.generator.version, "texts": len(texts)}


async def first_version(bench: Bench) -> Facts:
    from dataclasses import asdict

    return asdict(await bench.generator.adopt(*bench.publish(0)))


async def parity(bench: Bench) -> Facts:
    facts: Facts = {"gaps": [], "versions": [], "lengths": [], "texts": [], "finished": []}
    for number, picture in ((1, True), (2, False)):
        prompt, media = bench.prompt(number, picture)
        for rollout in await bench.generator.sample(prompt, media, n=4, seed=5):
            behaviour, tokens = rollout.behaviour, rollout.response.tokens
            gaps = np.abs(np.asarray(behaviour.logps) - bench.logps(prompt, media, tokens))
            facts["gaps"].append(float(gaps.max()))
            facts["versions"].append([behaviour.oldest, behaviour.newest])
            facts["lengths"].append(len(tokens))
            facts["texts"].append(rollout.response.text == bench.processing.decode(tokens))
            ended = tokens[-1] in bench.processing.eos
            facts["finished"].append(rollout.response.finished == ended)
    canary = bench.canaries[0]
    own = await bench.generator.logprob(canary.prompt, canary.media, canary.tokens)
    facts["teacher_forced_gap"] = abs(own - sum(bench.logps(canary.prompt, canary.media, canary.tokens)))
    return facts


async def greedy(bench: Bench) -> Facts:
    prompt, media = bench.prompt(3)
    (text,) = await bench.generator.greedy([(prompt, media)], max_tokens=6)
    tokens: tuple[int, ...] = ()
    while len(tokens) < 6 and not (tokens and tokens[-1] in bench.processing.eos):
        logits, start = bench.logits(prompt, media, tokens)
        allowed = logits[start + len(tokens)].clone()
        allowed[list(bench.processing.forbidden)] = float("-inf")
        tokens += (int(allowed.argmax()),)
    return {"engine": text, "forward": bench.processing.decode(tokens)}


async def seeds(bench: Bench) -> Facts:
    prompt, media = bench.prompt(4)
    runs = [await bench.generator.sample(prompt, media, n=4, seed=seed) for seed in (7, 7, 8)]
    tokens = [[rollout.response.tokens for rollout in run] for run in runs]
    return {"same": tokens[0] == tokens[1], "other": tokens[0] != tokens[2], "distinct": len(set(tokens[0]))}


async def health_while_decoding(bench: Bench) -> Facts:
    task = asyncio.create_task(bench.generator.sample(*bench.prompt(5), n=32, seed=0))
    seen = [await bench.generator.health()]
    while not task.done():
        seen.append(await bench.generator.health())
        await asyncio.sleep(0.001)
    return {
        "in_flight": max(h["in_flight"] for h in seen),
        "alive": all(h["alive"] for h in seen),
        "asked": len(seen),
    }


async def adopt_while_sampling(bench: Bench) -> Facts:
    """Many requests around an adoption; every response must score as its version says, under that version."""
    bench.move(3e-2)  # far enough that a token of another version shows
    version = bench.publish(1)
    early = [
        asyncio.create_task(bench.generator.sample(*bench.prompt(i), n=3, seed=i)) for i in range(10, 22)
    ]
    while (await bench.generator.health())["in_flight"] == 0:
        await asyncio.sleep(0)
    adopting = asyncio.create_task(bench.generator.adopt(*version))
    while (await bench.generator.health())["open"]:  # the bytes are checked before it closes
        await asyncio.sleep(0)
    late = [asyncio.create_task(bench.generator.sample(*bench.prompt(i), n=3, seed=i)) for i in range(30, 42)]
    proof = await adopting
    gaps, wrong, versions = [], [], []
    groups = [await task for task in (*early, *late)]
    for number in (0, 1):
        for group in (group for group in groups if group[0].behaviour.newest == number):
            versions += [number] * len({(r.behaviour.oldest, r.behaviour.newest) for r in group})
            for rollout in group:
                bench.restore(number)
                media = bench.prompt(int(rollout.prompt.id[1:]))[1]
                own = np.asarray(rollout.behaviour.logps)
                gaps.append(
                    float(np.abs(own - bench.logps(rollout.prompt, media, rollout.response.tokens)).max())
                )
                bench.restore(1 - number)
                wrong.append(
                    float(np.abs(own - bench.logps(rollout.prompt, media, rollout.response.tokens)).max())
                )
    bench.restore(1)
    return {"holds": proof.holds, "gap": max(gaps), "other_gap": min(wrong), "versions": versions}


async def forbidden_tokens(bench: Bench) -> Facts:
    """Weights that favour an image placeholder above everything: it must not be sampled all the same."""
    import torch

    prompt, media = bench.prompt(6)
    token = bench.processing.image_token
    seen: list[Any] = []
    head = bench.model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    bench.logits(prompt, media, ())
    hook.remove()
    direction = seen[0].reshape(-1, seen[0].shape[-1])[-1]
    with torch.no_grad():
        head.weight[token] = 50 * direction / direction.norm() ** 2
    logits, start = bench.logits(prompt, media, ())
    proof = await bench.generator.adopt(*bench.publish(2))
    rollouts = await bench.generator.sample(prompt, media, n=64, seed=0)
    text = await bench.generator.greedy([(prompt, media)], max_tokens=8)
    bench.restore(1)
    return {
        "favoured": int(logits[start].argmax()) == token,
        "holds": proof.holds,
        "sampled": sorted({t for r in rollouts for t in r.response.tokens} & set(bench.processing.forbidden)),
        "some": len({t for r in rollouts for t in r.response.tokens}),
        "greedy": len(text),
    }


async def a_forbidden_token_is_refused_afterwards(bench: Bench) -> Facts:
    from types import SimpleNamespace

    from actors.drafts import Asked
    from pipelines.decoding import Decoder

    token = bench.processing.image_token
    logprob = {token: SimpleNamespace(logprob=0.0)}
    bad = SimpleNamespace(token_ids=[token], logprobs=[logprob], finish_reason="length")
    asked = Asked(*bench.prompt(6), 1, 0, Decoder(), ())
    asked.versions[0] = bench.generator.held
    asked.drafts[0].take(bad, 0)
    return {"error": await error_of(lambda: to_async(bench.generator.rollout, asked, asked.drafts[0]))}


async def bad_prompts(bench: Bench) -> Facts:
    sample = bench.generator.sample
    typed = bench.prompt(7, text="<|image_pad|> what is this ?")
    long = bench.prompt(7, text="a red seven top left and a blue one . " * 80)
    prompt, media = bench.prompt(7)
    facts = {
        "typed": await error_of(lambda: sample(*typed, n=1, seed=0)),
        "long": await error_of(lambda: sample(*long, n=1, seed=0)),
        "missing": await error_of(lambda: sample(prompt, {}, n=1, seed=0)),
        "empty": await error_of(lambda: bench.generator.logprob(prompt, media, ())),
    }
    await sample(prompt, media, n=1, seed=0)
    return facts


async def an_expansion_that_differs_from_the_learners(bench: Bench) -> Facts:
    from dataclasses import replace

    processing = bench.generator.client.processing
    encode = processing.encode

    def shorter(prompt: Any, media: Any) -> Any:
        encoded = encode(prompt, media)
        return replace(encoded, input_ids=encoded.input_ids[:-1])

    processing.encode = shorter  # type: ignore[method-assign]
    try:
        return {"error": await error_of(lambda: bench.generator.sample(*bench.prompt(8), n=1, seed=0))}
    finally:
        del processing.encode


async def engine_failure(bench: Bench) -> Facts:
    """A step that raises reaches the caller; the engine then serves again."""

    def sabotage(engine: Any) -> None:
        step = engine.step

        def broken() -> Any:
            engine.step = step
            raise RuntimeError("Encoder cache miss")

        engine.step = broken

    await bench.generator.client.on_engine(sabotage)
    error = await error_of(lambda: bench.generator.sample(*bench.prompt(1), n=2, seed=0))
    again = await bench.generator.sample(*bench.prompt(1), n=2, seed=0)
    health = await bench.generator.health()
    return {
        "error": error,
        "again": len(again),
        "faults": health["engine_faults"],
        "in_flight": health["in_flight"],
    }


async def cancelled_callers(bench: Bench) -> Facts:
    tasks = [asyncio.create_task(bench.generator.sample(*bench.prompt(i), n=4, seed=0)) for i in range(4)]
    while (await bench.generator.health())["in_flight"] < 4:
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    left = -1
    while left:
        left = await bench.generator.client.on_engine(lambda engine: engine.get_num_unfinished_requests())
    return {"in_flight": (await bench.generator.health())["in_flight"], "left": left}


async def quarantine(bench: Bench) -> Facts:
    bench.move(3e-4)
    version, arrays = bench.publish(3)
    before = bench.generator.version
    name = next(iter(arrays))
    broken = {**arrays, name: arrays[name] + 1}
    waiting = asyncio.create_task(error_of(lambda: bench.generator.sample(*bench.prompt(1), n=1, seed=0)))
    proof = await bench.generator.adopt(version, broken)
    facts: Facts = {
        "tensor": name,
        "problems": proof.detail["bytes"]["problems"],
        "bytes": proof.bytes_received,
        "holds": proof.holds,
        "version_kept": bench.generator.version == before,
        "waiting": await waiting,
        "sample": await error_of(lambda: bench.generator.sample(*bench.prompt(1), n=1, seed=0)),
        "greedy": await error_of(lambda: bench.generator.greedy([bench.prompt(1)], 4)),
        "health": (await bench.generator.health())["quarantined"],
    }
    healed = await bench.generator.adopt(version, arrays)
    rollouts = await bench.generator.sample(*bench.prompt(1), n=1, seed=0)
    return {**facts, "healed": healed.holds, "then": rollouts[0].behaviour.newest}


async def to_async(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


async def error_of(call: Callable[[], Awaitable[Any]]) -> str:
    try:
        await call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


SCENARIOS: tuple[Callable[[Bench], Awaitable[Facts]], ...] = (
    before_any_version,
    first_version,
    parity,
    greedy,
    *MORE,
    seeds,
    health_while_decoding,
    adopt_while_sampling,
    forbidden_tokens,
    a_forbidden_token_is_refused_afterwards,
    bad_prompts,
    an_expansion_that_differs_from_the_learners,
    engine_failure,
    cancelled_callers,
    quarantine,
    *SYNCS,
)


async def main(path: str) -> Facts:
    bench = Bench(path)
    facts: Facts = {"start": await bench.generator.start(bench.canaries)}
    for scenario in SCENARIOS:
        try:
            facts[scenario.__name__] = await asyncio.wait_for(scenario(bench), 120)
        except Exception:
            facts[scenario.__name__] = {"failed": traceback.format_exc()}
    await bench.generator.stop()
    facts["stopped"] = await error_of(lambda: bench.generator.client.on_engine(lambda engine: engine))
    return facts


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1]))))
