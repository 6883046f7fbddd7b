"""Scenarios about given answers and about the generator without vLLM; run by generator_scenarios.py."""

from __future__ import annotations

from typing import Any

import numpy as np

Facts = dict[str, Any]


async def continued(bench: Any) -> Facts:
    """Answers that continue a given beginning score as the Hugging Face forward says, beginning included."""
    facts: Facts = {"gaps": [], "begins": [], "lengths": [], "origins": []}
    for number, picture in ((1, True), (2, False)):
        prompt, media = bench.prompt(number, picture)
        begin = (await bench.generator.encode("a red seven top", "gold")).tokens[:-1]
        for rollout in await bench.generator.sample(prompt, media, n=3, seed=2, prefix=begin):
            tokens = rollout.response.tokens
            gaps = np.abs(np.asarray(rollout.behaviour.logps) - bench.logps(prompt, media, tokens))
            facts["gaps"].append(float(gaps.max()))
            facts["begins"].append(tokens[:4] == begin)
            facts["lengths"].append(len(tokens))
            facts["origins"].append(rollout.response.origin)
    return facts


async def probed(bench: Any) -> Facts:
    prompt, media = bench.prompt(1)
    texts = ("a red seven top left .", "a blue one .")
    answers = [await bench.generator.encode(text, "gold") for text in texts]
    facts: Facts = {"gaps": [], "top": [], "versions": []}
    for answer, probe in zip(answers, await bench.generator.probe(prompt, media, answers), strict=True):
        own = np.asarray(bench.logps(prompt, media, answer.tokens))
        facts["gaps"].append(float(np.abs(own - probe.logps).max()))
        logits, start = bench.logits(prompt, media, answer.tokens)
        allowed = logits[start : start + len(answer.tokens)].clone()
        allowed[:, list(bench.processing.forbidden)] = float("-inf")
        facts["top"].append(allowed.argmax(-1).tolist() == list(probe.top))
        facts["versions"].append(probe.version)
    return facts


async def temperatures(bench: Any) -> Facts:
    """Temperature 0 is the most likely answer; decoders that mix logits are refused."""
    from pipelines.decoding import Decoder, Mixture

    prompt, media = bench.prompt(3)
    (text,) = await bench.generator.greedy([(prompt, media)], max_tokens=12)
    cold = await bench.generator.sample(prompt, media, n=2, seed=0, decoder=Decoder(temperature=0.0))
    try:
        await bench.generator.sample(prompt, media, n=2, seed=0, decoder=Mixture())
        refused = "no error"
    except ValueError as error:
        refused = str(error)
    return {"same": {rollout.response.text for rollout in cold} == {text}, "refused": refused}


async def parity_with_the_other_generator(bench: Any) -> Facts:
    """vLLM and torch on the weights of one version: greedy answers, and how likely sampled ones are."""
    from dataclasses import replace

    from actors import exporting
    from actors.decoder import HuggingFaceGenerator

    other = HuggingFaceGenerator(
        "torch", str(bench.processing.path), bench.generator.client.settings, bench.generator.decoding
    )
    await other.start(bench.canaries)
    version, arrays = bench.publish(bench.generator.version)
    stored = exporting.checkpoint_names(bench.model, bench.processing.path)
    proof = await other.adopt(
        replace(version, manifest={stored[name]: digest for name, digest in version.manifest.items()}),
        {stored[name]: array for name, array in arrays.items()},
    )
    prompts = [bench.prompt(number, picture=number % 3 > 0) for number in range(12)]
    greedy = [await engine.greedy(prompts, max_tokens=12) for engine in (bench.generator, other)]
    gaps: list[float] = []
    for prompt, media in prompts[:6]:
        rollouts = await other.sample(prompt, media, n=4, seed=3)
        probes = await bench.generator.probe(prompt, media, [rollout.response for rollout in rollouts])
        for rollout, probe in zip(rollouts, probes, strict=True):
            gaps.append(float(np.abs(np.asarray(rollout.behaviour.logps) - probe.logps).max()))
    await other.stop()
    return {"holds": proof.holds, "same": greedy[0] == greedy[1], "gap": max(gaps), "of": len(gaps)}


MORE = (continued, probed, temperatures, parity_with_the_other_generator)
